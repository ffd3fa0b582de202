/* Inside common/rpc: one packed WorkerItem or RouterItem, from and to struct bt_msg. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/rpc/wire.h"

/* A part of an item, as it was sent; not yet checked. */
struct bt_wire_piece {
    uint32_t total_bytes, offset;
    const uint8_t *data;
    size_t n_data;
};

/* What an item was. */
enum bt_wire_item_kind {
    BT_WIRE_ITEM_UNKNOWN, /* no member that we know: to be skipped */
    BT_WIRE_ITEM_MESSAGE,
    BT_WIRE_ITEM_PIECE,
};

/* Unpacks one item; checks what struct bt_msg has no room for (lengths, columns, bytes), not the
 * rest. Resets the arena first; what comes back lives in it. */
bt_status bt_wire_item_unpack(const uint8_t *bytes, size_t n_bytes, enum bt_wire_side from,
                              struct bt_wire_arena *arena, enum bt_wire_item_kind *kind,
                              struct bt_msg *msg, struct bt_wire_piece *piece,
                              struct bt_error *err);

enum {
    BT_WIRE_COLUMN_BYTES = 2 * 8 + 4 * 4,                       /* of one token row */
    BT_WIRE_LOGPROB_COLUMN_BYTES = 4 + 4 + 8 * BT_TOP_LOGPROBS, /* of one row of logprobs */
};

/* Where a packer puts an item of n_bytes: room for it, or NULL (no memory). */
typedef uint8_t *bt_wire_room(void *self, size_t n_bytes);
/* Packs one checked message. columns is room for the columns of its rows: TOKENS and SCORES have
 * them, BT_WIRE_COLUMN_BYTES and, where there are logprobs, BT_WIRE_LOGPROB_COLUMN_BYTES a row. */
bt_status bt_wire_item_pack(const struct bt_msg *msg, void *columns, bt_wire_room *room, void *self,
                            struct bt_error *err);
/* A Piece item of one side. */
bt_status bt_wire_piece_pack(const struct bt_wire_piece *piece, enum bt_wire_side from,
                             bt_wire_room *room, void *self, struct bt_error *err);

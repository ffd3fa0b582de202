/* Turns struct bt_msg into the bytes of proto/registry.proto and back.
 *
 * Pure: no clock, no thread, no socket. A writer collects what one side says and cuts it into
 * messages of at most BT_MESSAGE_BYTES; a reader takes a peer's messages, joins pieces and gives
 * checked messages one by one. Everything that a peer can say passes bt_wire_check: nothing outside
 * the bounds of registry_msg.h comes out of a reader, and a writer takes nothing outside them. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/rpc/registry_msg.h"
#include "common/rpc/wire_arena.h"

enum {
    BT_WIRE_ITEMS = 1024,                        /* in one message */
    BT_WIRE_JOIN_BYTES = (4 << 20) + (64 << 10), /* one item that travels in pieces */
    BT_WIRE_TOKEN_ROWS = 8192,                   /* in one Tokens */
    BT_WIRE_TOKEN_ROWS_SENT = 4096,              /* in one Tokens that we make: always fits */
    BT_WIRE_LOGPROB_ROWS_SENT = 1024,            /* in one that has logprobs: always fits */
    BT_WIRE_BLOCKS = 262144,                     /* added, and evicted, in one Blocks */
    BT_WIRE_RESUME_ROWS = 16384,
    BT_WIRE_SEEN_KEYS = 8192,
    BT_WIRE_PROMPT_TOKENS = 1048576, /* in one Work; also the most max_tokens */
    BT_WIRE_DURATION_MS = 24 * 60 * 60 * 1000,
    BT_WIRE_ARENA_BYTES = 16 << 20, /* what unpacking one item may take */
};

/* Who says it. */
enum bt_wire_side { BT_WIRE_WORKER = 1, BT_WIRE_ROUTER = 2 };

/* BT_OK, or BT_E_INVALID or BT_E_TOO_LARGE with a sentence that names field, value and bound. */
bt_status bt_wire_check(const struct bt_msg *msg, enum bt_wire_side from, struct bt_error *err);

/* What one side says, packed and not yet taken. Open to be embedded; touch it by these functions
 * only. */
struct bt_wire_writer {
    enum bt_wire_side from;
    uint8_t *bytes; /* packed items, each with its tag and length as in WorkerMessage.items */
    size_t n_bytes, capacity;
    struct bt_token *rows; /* of TOKENS messages, not yet an item */
    uint32_t n_rows, rows_capacity;
    void *columns; /* room to turn rows into columns */
    size_t columns_bytes;
};

void bt_wire_writer_init(struct bt_wire_writer *writer, enum bt_wire_side from);
void bt_wire_writer_fini(struct bt_wire_writer *writer);

/* Copies msg behind what is there; rows of successive TOKENS become one item, those of a message
 * with logprobs items of their own. BT_E_INVALID and
 * BT_E_TOO_LARGE (bt_wire_check, or an item over BT_WIRE_JOIN_BYTES), BT_E_NO_MEMORY: nothing was
 * added. */
bt_status bt_wire_writer_add(struct bt_wire_writer *writer, const struct bt_msg *msg,
                             struct bt_error *err);
/* Makes an item of the rows that still wait; after that writer->bytes is all that was added. */
void bt_wire_writer_finish(struct bt_wire_writer *writer);
/* Bytes packed, and about the bytes that waiting rows will have. */
size_t bt_wire_writer_bytes(const struct bt_wire_writer *writer);
/* Forgets everything; keeps its memory for the next turn unless it is much. */
void bt_wire_writer_clear(struct bt_wire_writer *writer);

/* The length of the first message of a writer's bytes: the longest run of whole items within
 * BT_MESSAGE_BYTES and BT_WIRE_ITEMS. More than 0 where n_bytes is. */
size_t bt_wire_message_bytes(const uint8_t *bytes, size_t n_bytes);

/* What a peer says. One reader per stream; the arena may be shared by many. */
struct bt_wire_reader {
    enum bt_wire_side from;
    const uint8_t *message; /* borrowed */
    size_t n_message, at;
    uint32_t n_items;
    uint8_t *joined; /* an item that arrives in pieces; NULL while there is none */
    uint32_t n_joined, total;
};

/* from: who the peer is. */
void bt_wire_reader_init(struct bt_wire_reader *reader, enum bt_wire_side from);
void bt_wire_reader_fini(struct bt_wire_reader *reader);
/* Begins with the next message; bytes are borrowed until bt_wire_reader_next answers other than
 * BT_OK. */
void bt_wire_reader_begin(struct bt_wire_reader *reader, const uint8_t *bytes, size_t n_bytes);
/* BT_OK with the next item that counts, valid until the arena is used again; BT_DONE at the end of
 * the message. BT_E_INVALID, BT_E_TOO_LARGE: the peer breaks the protocol, the reader must not be
 * used again. BT_E_NO_MEMORY. */
bt_status bt_wire_reader_next(struct bt_wire_reader *reader, struct bt_wire_arena *arena,
                              struct bt_msg *out, struct bt_error *err);

/* Takes the units of a KV link apart as their bytes come, and lands frames straight in pages.
 *
 * Knows no socket: it says where the next bytes belong (want) and is told how many came (got). So a
 * link reads with readv into the pages themselves, and a test or fuzzer feeds it from memory. It
 * asks the user (kv_link.h) where a frame may land; refused frames go to scratch. Owned by the loop
 * thread, inside its link. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/base/status.h"
#include "common/kv/kv_link.h"
#include "common/kv/kv_wire.h"

enum { BT_KV_READER_IOVS = BT_KV_FRAME_PAGES + 1 };

enum bt_kv_reader_phase {
    BT_KV_READ_HEADER,
    BT_KV_READ_CONTROL,
    BT_KV_READ_SUMS,
    BT_KV_READ_PAYLOAD,
};

struct bt_kv_reader {
    /* Set by the owner before the first call. */
    const struct bt_kv_link_user *user; /* frame, frame_end, page */
    uint32_t link;                      /* handed to the user */
    uint32_t page_bytes;
    bool may_frame; /* frames may come: D, once the link is up */
    /* Each control message but those of an unknown type. A failure ends the stream. */
    bt_status (*control)(void *arg, const struct bt_kv_control *control, struct bt_error *err);
    void (*frame_ended)(void *arg); /* after each user.frame_end of got */
    void *arg;
    uint8_t *scratch; /* BT_KV_FRAME_BYTES; its content means nothing, links may share it */
    /* The reader's own. */
    enum bt_kv_reader_phase phase;
    uint32_t n_done; /* bytes of the phase that have come */
    bool is_landing; /* the payload goes to landing.pages, and frame_end is owed */
    struct bt_kv_unit unit;
    struct bt_kv_landing landing;
    uint8_t header[BT_KV_HEADER_BYTES];
    uint8_t sums[BT_KV_FRAME_PAGES * 8];
    uint8_t payload[BT_KV_CONTROL_BYTES];
};

/* Where the next bytes belong; the number of entries, at least 1. The last entry may reach into the
 * next unit's header. */
int bt_kv_reader_want(struct bt_kv_reader *reader, struct iovec iov[BT_KV_READER_IOVS]);
/* n_bytes of what was wanted have come, at least 1. BT_E_PROTOCOL: the peer broke a rule; the
 * reader must not be used further, except for `stop`. */
bt_status bt_kv_reader_got(struct bt_kv_reader *reader, size_t n_bytes, struct bt_error *err);
/* The rest of a frame that lands for this lease goes to scratch; its frame_end comes from inside.
 */
void bt_kv_reader_cut(struct bt_kv_reader *reader, uint32_t lease);
/* Nothing comes any more: frame_end, not whole, for what was landing. */
void bt_kv_reader_stop(struct bt_kv_reader *reader);
/* The bytes so far end in the middle of a unit. */
bool bt_kv_reader_is_inside(const struct bt_kv_reader *reader);

/* What the two ends of a KV link say to each other, as plain structs, and the header of a KV frame.
 *
 * kv_send.c and kv_recv.c (pure cores) speak these; kv_wire.c packs the messages as proto/kv.proto
 * and the frames in a fixed form, and checks everything that a peer sends. P is the prefill worker
 * (sends), D the decode worker (receives). */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/id.h"
#include "common/base/limits.h"
#include "common/base/sampling.h"

enum {
    BT_KV_FRAME_BYTES = 262144, /* largest payload of one frame */
    BT_KV_FRAME_PAGES = 64,     /* most pages in one frame */
    BT_KV_PAGES_MAX = 65536,    /* most pages of one prompt: 2^20 tokens */
    BT_KV_LAYERS_MAX = 1024,
};

/* Why a hello was refused or a lease ended before commit. */
enum bt_kv_reason {
    BT_KV_REASON_UNKNOWN = 1, /* no such ticket, or it has ended */
    BT_KV_REASON_FULL,        /* no room to remember one more */
    BT_KV_REASON_PROMPT,      /* the prompt's hash is another one */
    BT_KV_REASON_LAYOUT,      /* the layout's hash is another one */
    BT_KV_REASON_CHECKSUM,    /* a page or the manifest did not verify */
    BT_KV_REASON_INCOMPLETE,  /* commit before all pages were there */
    BT_KV_REASON_LINK,        /* the link was lost */
    BT_KV_REASON_CANCELLED,
    BT_KV_REASON_DEADLINE,
    BT_KV_REASON_PREEMPTED, /* the pages went to an older sequence */
    BT_KV_REASON_LEASE,     /* its router was silent for one lease */
    BT_KV_REASON_PEER,      /* its prefill worker gave it up */
    BT_KV_REASON_COUNT,
};
const char *bt_kv_reason_name(enum bt_kv_reason reason);

enum bt_kv_msg_type {
    BT_KV_HELLO = 1, /* P: this ticket is next here */
    BT_KV_GRANT,     /* D: pages are bound, send */
    BT_KV_REFUSED,   /* D, to a hello */
    BT_KV_COMMIT,    /* P: everything was sent */
    BT_KV_COMMITTED, /* D, to a commit: the pages are D's */
    BT_KV_ABORTED,   /* D: the lease has ended without commit; also the answer to such a commit */
    BT_KV_WITHDRAWN, /* P gives the ticket up, before commit */
    BT_KV_MSG_COUNT,
};

struct bt_kv_msg {
    enum bt_kv_msg_type type;
    struct bt_id ticket; /* in every message; never 0 */
    /* HELLO, COMMIT: bt_block_prompt of the whole prompt. */
    struct bt_id chain;
    uint32_t n_tokens; /* HELLO: of the prompt */
    /* GRANT, COMMIT. */
    uint32_t lease;      /* D's slot */
    uint64_t generation; /* of the slot; 64 bits, never reused in an incarnation of D */
    /* GRANT. */
    uint32_t pages_held; /* D has these first pages already: not to be sent */
    uint32_t pages;      /* of the prompt, all */
    /* COMMIT. */
    uint32_t n_sums;   /* (pages - pages_held) * layers */
    uint64_t manifest; /* XXH3-64 over those sums (u64 little-endian) in (page, layer) order */
    uint64_t fingerprint_hash; /* bt_fingerprint_hash of P's layout */
    int32_t token;             /* the first token, its finish and logits hash */
    enum bt_finish finish;
    uint64_t logits_hash;
    bool has_logprobs; /* of the token, where its request asked for them */
    struct bt_logprobs logprobs;
    uint64_t wait_us, prefill_us; /* P's part: until the first chunk's start; compute */
    /* REFUSED, ABORTED, WITHDRAWN. */
    enum bt_kv_reason reason;
};

/* Header of a frame of KV bytes: pages [first_page, first_page + n_pages) of one layer. Either
 * whole pages (offset 0, length = n_pages * page bytes), or, where a page is larger than a frame,
 * one piece of one page (n_pages 1), pieces in order. Page indexes count in the prompt; page ids
 * never leave a worker. The sums of all pages that end in the frame stand between header and
 * payload. */
struct bt_kv_frame {
    uint32_t lease;
    uint64_t generation;
    uint32_t layer;
    uint32_t first_page;
    uint32_t n_pages; /* 1 .. BT_KV_FRAME_PAGES */
    uint32_t offset;  /* in the page, bytes */
    uint32_t length;  /* of the payload, bytes, 1 .. BT_KV_FRAME_BYTES */
};

/* Pages that end in the frame: all, or for a piece the one whose last byte it carries. */
static inline uint32_t bt_kv_frame_sums(const struct bt_kv_frame *frame, uint32_t page_bytes) {
    return frame->n_pages > 1 || frame->offset + frame->length == page_bytes ? frame->n_pages : 0;
}

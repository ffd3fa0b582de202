/* The sending half of the hand-off (P): hello, wait for the grant, frames as layers are done,
 * commit.
 *
 * Pure core: told the time, no malloc after create, answers by actions (bt_kv_send_next). Owned by
 * the prefill worker's loop thread, inside its core. The life of one send:
 *
 *   HELLO      hello sent (or waiting for the link to come up)
 *   GRANTED    D has bound its pages; the owner takes pages and computes, reports what is ready
 *   COMMITTING every frame was given to the link and commit sent; D has not answered
 *   CLOSING    given up while the link still reads a page: waits for that frame to return
 *   -> RELEASED: nothing reads the hold any more; the owner releases it
 *
 * The link pulls frames when it can write; among sends of one link they go round by first-token
 * deadline, so that a long prompt does not block it. Sums are taken from the pool, where they were
 * put when the page was filled, never made here (ARCHITECTURE 7). */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/kv/kv_msg.h"
#include "common/kv/kv_pool.h"

struct bt_kv_send_config {
    struct bt_kv_pool *pool; /* borrowed */
    uint32_t n_layers;
    uint32_t page_bytes; /* of one (layer, page) */
    uint64_t fingerprint_hash;
    uint32_t max_sends;
#if BT_MUTANT_checksum_at_sending
    /* Sums the bytes that are in the page now. */
    uint64_t (*sum_now)(void *arg, uint32_t layer, uint32_t page);
    void *sum_now_arg;
#endif
};

struct bt_kv_send;

bt_status bt_kv_send_create(const struct bt_kv_send_config *config, struct bt_kv_send **out,
                            struct bt_error *err);
void bt_kv_send_destroy(struct bt_kv_send *send); /* NULL is fine */

/* ---- from the prefill core ---- */

struct bt_kv_offer {
    struct bt_id ticket;
    struct bt_id chain; /* bt_block_prompt */
    uint32_t n_tokens;
    uint32_t n_pages;     /* of the prompt, all */
    uint32_t link;        /* to its D; must be up */
    uint64_t deadline_us; /* for the first token: the order among frames */
    uint32_t user;        /* comes back with each action */
};

/* Sends hello. BT_E_FULL: no slot; BT_E_PEER_GONE: the link is not up;
 * BT_E_INVALID: this ticket is being sent on this link already. */
bt_status bt_kv_send_offer(struct bt_kv_send *send, uint64_t now_us,
                           const struct bt_kv_offer *offer, uint32_t *id);
/* After GRANTED, once the owner has taken its pages: hold covers all pages of the prompt. Borrowed
 * until RELEASED. */
void bt_kv_send_bind(struct bt_kv_send *send, uint32_t id, const struct bt_kv_hold *hold);
/* Pages [.., n_pages) of one layer are filled and their sums stand in the pool: a number that only
 * grows. Pages that D holds are passed over. */
void bt_kv_send_ready(struct bt_kv_send *send, uint64_t now_us, uint32_t id, uint32_t layer,
                      uint32_t n_pages);
/* How long P's part took; commit tells it to D. Before finish. */
void bt_kv_send_took(struct bt_kv_send *send, uint32_t id, uint64_t wait_us, uint64_t prefill_us);
/* The first token is known and every page of every layer is ready: commit follows the last frame.
 * logprobs: of the token, NULL where nobody asked; copied. */
void bt_kv_send_finish(struct bt_kv_send *send, uint64_t now_us, uint32_t id, int32_t token,
                       enum bt_finish finish, uint64_t logits_hash,
                       const struct bt_logprobs *logprobs);
/* Gives it up (cancel, deadline, error) in any state before RELEASED; tells D. RELEASED follows, at
 * once or when the link has let go. */
void bt_kv_send_cancel(struct bt_kv_send *send, uint64_t now_us, uint32_t id,
                       enum bt_kv_reason reason);

/* ---- from the links ---- */

void bt_kv_send_link_up(struct bt_kv_send *send, uint64_t now_us, uint32_t link);
/* Every send on it ends (ENDED, LINK). A frame that the link holds must come back by
 * bt_kv_send_frame_done before or after this. */
void bt_kv_send_link_down(struct bt_kv_send *send, uint64_t now_us, uint32_t link);
/* GRANT, REFUSED, COMMITTED, ABORTED. A ticket that is not here is ignored. A grant whose numbers
 * cannot be (pages differ, more held than pages) ends the send. */
void bt_kv_send_message(struct bt_kv_send *send, uint64_t now_us, uint32_t link,
                        const struct bt_kv_msg *msg);

struct bt_kv_outgoing {
    uint32_t id; /* of the send; frame_done wants it back */
    struct bt_kv_frame frame;
    uint32_t pages[BT_KV_FRAME_PAGES]; /* ids in our pool */
    uint64_t sums[BT_KV_FRAME_PAGES];  /* of the pages that end in the frame */
};

/* The next frame for this link; its pages are not released before frame_done. False: none now. At
 * most 8 frames of a link may be out at once. */
bool bt_kv_send_next_frame(struct bt_kv_send *send, uint64_t now_us, uint32_t link,
                           struct bt_kv_outgoing *out);
/* The link does not read the frame's pages any more (written, or given up). */
void bt_kv_send_frame_done(struct bt_kv_send *send, uint64_t now_us, uint32_t link, uint32_t id);
/* Whether next_frame would give one. */
bool bt_kv_send_has_frame(const struct bt_kv_send *send, uint32_t link);

/* ---- actions ---- */

enum bt_kv_send_action_type {
    BT_KV_SEND_MSG = 1,   /* msg on link */
    BT_KV_SEND_GRANTED,   /* user: pages_held pages need not be sent */
    BT_KV_SEND_ENDED,     /* user: reason; refused, aborted or link lost. RELEASED follows */
    BT_KV_SEND_COMMITTED, /* user: D has it. RELEASED follows */
    BT_KV_SEND_RELEASED,  /* user: nothing reads the hold any more; the id is free */
    BT_KV_SEND_FRAMES,    /* link has frames to pull */
};

struct bt_kv_send_action {
    enum bt_kv_send_action_type type;
    uint32_t link;
    uint32_t user;
    uint32_t pages_held;
    enum bt_kv_reason reason;
    struct bt_kv_msg msg;
};

bool bt_kv_send_next(struct bt_kv_send *send, struct bt_kv_send_action *out);

struct bt_kv_send_counters {
    uint64_t frames, bytes; /* given to links */
    uint64_t offers, granted, refused, committed, aborted, cancelled, links_lost;
};
const struct bt_kv_send_counters *bt_kv_send_counters(const struct bt_kv_send *send);
/* Payload bytes given to the link for one send so far. */
uint64_t bt_kv_send_bytes(const struct bt_kv_send *send, uint32_t id);
bool bt_kv_send_is_valid(const struct bt_kv_send *send);
const uint32_t *bt_kv_send_coverage(const struct bt_kv_send *send, uint32_t *n_pairs);
const char *bt_kv_send_pair_name(uint32_t pair, bool *handled);

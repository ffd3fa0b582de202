/* The receiving half of the hand-off (D): who may write into which pages, and when that is over.
 *
 * Pure core: told the time, no malloc after create, answers by actions (bt_kv_recv_next). Owned by
 * the decode worker's loop thread, inside its core. The life of a lease:
 *
 *   EXPECTED   Reserve accepted, no hello yet        (a hello that is early is parked, 3 s)
 *   ARMED      granted to one link: pages bound; frames land
 *   COMMITTING commit seen, receives still in flight (links whose bulk overtakes control)
 *   -> committed: the hold goes back to its owner with every page live; or aborted: it is released
 *
 * A frame lands only where lease slot, generation, link, layer, range and order are right; all else
 * is refused, counted, and its bytes go to scratch. Ended tickets are remembered for two leases and
 * refused (ARCHITECTURE 7). */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/kv/kv_msg.h"
#include "common/kv/kv_pool.h"

struct bt_kv_recv_config {
    struct bt_kv_pool *pool; /* borrowed */
    uint32_t n_layers;
    uint32_t page_bytes;       /* of one (layer, page) */
    uint64_t fingerprint_hash; /* of our layout */
    uint32_t max_leases;       /* at once */
    uint32_t max_pages;        /* of one prompt */
    uint32_t max_parked;       /* early hellos */
    uint32_t max_ended;        /* ended tickets remembered */
};

struct bt_kv_recv;

bt_status bt_kv_recv_create(const struct bt_kv_recv_config *config, struct bt_kv_recv **out,
                            struct bt_error *err);
void bt_kv_recv_destroy(struct bt_kv_recv *recv); /* NULL is fine */

/* ---- from the decode core ---- */

struct bt_kv_expect {
    struct bt_id ticket;
    struct bt_id peer;       /* incarnation of the prefill worker that will send */
    struct bt_id chain;      /* bt_block_prompt of our copy of the prompt */
    uint32_t n_tokens;       /* of the prompt */
    uint32_t n_pages;        /* of the prompt, all */
    struct bt_kv_hold *hold; /* the prefix pinned, at least n_pages - n_shared pages promised;
                                borrowed until committed or aborted */
    uint32_t user;           /* the core's sequence, comes back with each action */
};

/* Opens a lease; joins a parked hello and grants at once where there is one. BT_E_INVALID: the
 * ticket has ended or is here already. BT_E_FULL: no lease slot. BT_E_TOO_LARGE: more than
 * max_pages. Where the parked hello shows another prompt the lease has ended at once: ABORTED
 * follows. */
bt_status bt_kv_recv_expect(struct bt_kv_recv *recv, uint64_t now_us,
                            const struct bt_kv_expect *expect, uint32_t *lease);
/* Ends a lease before commit (cancel, deadline, preemption, router silent): tells P where it was
 * granted, remembers the ticket, releases the hold. No ABORTED action follows. */
void bt_kv_recv_abort(struct bt_kv_recv *recv, uint64_t now_us, uint32_t lease,
                      enum bt_kv_reason reason);
/* Remembers a ticket as ended though it has no lease (a cancel that came for what is not here). */
void bt_kv_recv_forbid(struct bt_kv_recv *recv, uint64_t now_us, struct bt_id ticket);
bool bt_kv_recv_is_ended(const struct bt_kv_recv *recv, struct bt_id ticket);
/* Expires parked hellos and remembered tickets. */
void bt_kv_recv_tick(struct bt_kv_recv *recv, uint64_t now_us);

/* ---- from the links ---- */

/* link < BT_MAX_LINKS. */
void bt_kv_recv_link_up(struct bt_kv_recv *recv, uint64_t now_us, uint32_t link, struct bt_id peer);
/* Aborts what was granted on it (ABORTED, LINK), drops its parked hellos. Its receives must have
 * ended (bt_kv_recv_frame_end) before or must end after; pages stay quarantined until then. */
void bt_kv_recv_link_down(struct bt_kv_recv *recv, uint64_t now_us, uint32_t link);
void bt_kv_recv_message(struct bt_kv_recv *recv, uint64_t now_us, uint32_t link,
                        const struct bt_kv_msg *msg);

/* Where a frame's bytes go. */
struct bt_kv_landing {
    uint32_t lease;
    uint64_t generation; /* of the lease when the receive began */
    struct bt_kv_frame frame;
    uint32_t pages[BT_KV_FRAME_PAGES]; /* ids in our pool, frame.n_pages of them */
};

/* A frame's header has come. BT_OK: the bytes may land as *out says, and frame_end must follow,
 * whatever happens. Else (BT_E_INVALID with a sentence): counted; the bytes go to scratch and no
 * frame_end follows. */
bt_status bt_kv_recv_frame(struct bt_kv_recv *recv, uint64_t now_us, uint32_t link,
                           const struct bt_kv_frame *frame, struct bt_kv_landing *out,
                           struct bt_error *err);
/* The receive has ended: nothing writes there any more. whole: all bytes came; then for each page
 * that ends in the frame `carried` is the sum sent with it and `computed` that of the bytes in the
 * page now (XXH3-64 over page_bytes). Not whole, or the lease ended meanwhile: only the pages are
 * let go. A sum that differs aborts the lease. */
void bt_kv_recv_frame_end(struct bt_kv_recv *recv, uint64_t now_us,
                          const struct bt_kv_landing *landing, bool whole, const uint64_t *carried,
                          const uint64_t *computed);

/* ---- actions ---- */

enum bt_kv_recv_action_type {
    BT_KV_RECV_SEND = 1,  /* msg on link */
    BT_KV_RECV_GRANTED,   /* for user: time stamps */
    BT_KV_RECV_COMMITTED, /* for user: the hold's pages are live; msg carries the first token */
    BT_KV_RECV_ABORTED,   /* for user: reason; the hold has been released */
    BT_KV_RECV_CUT,       /* link: receives of lease (slot) should end soon: bytes to scratch */
};

struct bt_kv_recv_action {
    enum bt_kv_recv_action_type type;
    uint32_t link;  /* SEND, CUT */
    uint32_t lease; /* CUT */
    uint32_t user;  /* GRANTED, COMMITTED, ABORTED */
    enum bt_kv_reason reason;
    struct bt_kv_msg msg; /* SEND, COMMITTED */
};

/* False: none left. Drain before the next event. */
bool bt_kv_recv_next(struct bt_kv_recv *recv, struct bt_kv_recv_action *out);

struct bt_kv_recv_counters {
    uint64_t frames, bytes; /* landed */
    uint64_t refused_ticket, refused_generation, refused_range, refused_order, refused_link;
    uint64_t refused_checksum, refused_commit, refused_prompt, refused_layout;
    uint64_t refused_message; /* of a type that only D sends */
    uint64_t parked, parked_expired, leases, committed, aborted;
};
const struct bt_kv_recv_counters *bt_kv_recv_counters(const struct bt_kv_recv *recv);
uint32_t bt_kv_recv_links_up(const struct bt_kv_recv *recv);
/* Bytes that have landed for a lease so far; after its commit ask before the next event. */
uint64_t bt_kv_recv_lease_bytes(const struct bt_kv_recv *recv, uint32_t lease);
bool bt_kv_recv_is_valid(const struct bt_kv_recv *recv);
/* (state, event) pairs reached so far, for the simulator: counts[i] belongs to
 * bt_kv_recv_pair_name(i). A pair is handled, ignored or impossible (asserted); see the table in
 * kv_recv.c. */
const uint32_t *bt_kv_recv_coverage(const struct bt_kv_recv *recv, uint32_t *n_pairs);
const char *bt_kv_recv_pair_name(uint32_t pair, bool *handled);

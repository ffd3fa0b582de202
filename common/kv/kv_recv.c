/* Opens, grants, commits and ends leases on D's pages. */
#include "common/kv/kv_recv.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/kv/kv_recv_inner.h"

enum { LEASES_MAX = 1 << 16 };

/* What each event does in each state of a ticket. H: handled. i: ignored. -: impossible, asserted.
 *
 *   expect     NONE opens a lease, PARKED opens it and grants; ignored where the ticket is here
 *              already or has ended: the caller is told
 *   abort      is by lease slot, so only of a lease that is open
 *   forbid     remembers, and refuses what is PARKED; ignored for a lease, whose owner ends it by
 *              abort, and for what is remembered already
 *   hello      NONE is parked; EXPECTED is granted (or refused and ended, where the prompt is
 *              another); ENDED is refused; PARKED ignores one on the same link, as it waits
 *              already; ARMED and COMMITTING refuse it: one lease has one link
 *   commit     ARMED is compared, or waits for receives; ENDED is told how it ended; answered
 *              without any effect where nothing was granted (NONE, PARKED, EXPECTED); COMMITTING
 *              ignores a second one, as its answer comes
 *   withdrawn  PARKED is dropped, a lease is ended if its own peer says so; ignored where there is
 *              nothing to give up (NONE, ENDED)
 *   frame      only ARMED lets bytes land; refused else: late bytes of a lease that has ended
 *              (NONE), never granted (EXPECTED), after everything was sent (COMMITTING). A frame
 *              names a slot, so it cannot mean a ticket without one
 *   frame end  ARMED and COMMITTING count it; NONE (the lease ended meanwhile) lets the pages go
 *   link down  PARKED is dropped, ARMED and COMMITTING are ended; EXPECTED has no link yet
 *   expire     PARKED is refused, ENDED forgotten; the deadlines of leases are their owner's */
static const char table[BT_KV_RECV_STATE_COUNT][BT_KV_RECV_EVENT_COUNT + 1] = {
    [BT_KV_RECV_NONE] = "H-HHiiiH--",       [BT_KV_RECV_PARKED] = "H-HiiH--HH",
    [BT_KV_RECV_EXPECTED] = "iHiHiHi-i-",   [BT_KV_RECV_ARMED] = "iHiiHHHHH-",
    [BT_KV_RECV_COMMITTING] = "iHiiiHiHH-", [BT_KV_RECV_ENDED] = "i-iHHi---H",
};

#define NAMES(state)                                                                             \
    state " + expect", state " + abort", state " + forbid", state " + hello", state " + commit", \
        state " + withdrawn", state " + frame", state " + frame end", state " + link down",      \
        state " + expire"
static const char *const pair_names[] = {NAMES("none"),  NAMES("parked"),     NAMES("expected"),
                                         NAMES("armed"), NAMES("committing"), NAMES("ended")};
_Static_assert(sizeof pair_names / sizeof *pair_names ==
                   BT_KV_RECV_STATE_COUNT * BT_KV_RECV_EVENT_COUNT,
               "a name for each pair");

bool bt_kv_recv_enter(struct bt_kv_recv *recv, enum bt_kv_recv_state state,
                      enum bt_kv_recv_event event) {
    char what = table[state][event];
    BT_ASSERT(what != '-');
    recv->coverage[state * BT_KV_RECV_EVENT_COUNT + event]++;
    return what == 'H';
}

const uint32_t *bt_kv_recv_coverage(const struct bt_kv_recv *recv, uint32_t *n_pairs) {
    *n_pairs = BT_KV_RECV_STATE_COUNT * BT_KV_RECV_EVENT_COUNT;
    return recv->coverage;
}

const char *bt_kv_recv_pair_name(uint32_t pair, bool *handled) {
    BT_ASSERT(pair < BT_KV_RECV_STATE_COUNT * BT_KV_RECV_EVENT_COUNT);
    *handled = table[pair / BT_KV_RECV_EVENT_COUNT][pair % BT_KV_RECV_EVENT_COUNT] == 'H';
    return pair_names[pair];
}

/* ---- life ---- */

static bt_status check_config(const struct bt_kv_recv_config *config, struct bt_error *err) {
    if (config->max_leases < 1 || config->max_leases > LEASES_MAX)
        return bt_fail(err, BT_E_INVALID, "room for %u leases, must be 1 to %d", config->max_leases,
                       LEASES_MAX);
    if (config->max_pages < 1 || config->max_pages > BT_KV_PAGES_MAX)
        return bt_fail(err, BT_E_INVALID, "prompts of %u pages, must be 1 to %d", config->max_pages,
                       BT_KV_PAGES_MAX);
    if (config->n_layers < 1 || config->n_layers > BT_KV_LAYERS_MAX)
        return bt_fail(err, BT_E_INVALID, "%u layers to receive, must be 1 to %d", config->n_layers,
                       BT_KV_LAYERS_MAX);
    if (config->page_bytes < 1)
        return bt_fail(err, BT_E_INVALID, "pages of 0 bytes, must be at least 1");
    return BT_OK;
}

bt_status bt_kv_recv_create(const struct bt_kv_recv_config *config, struct bt_kv_recv **out,
                            struct bt_error *err) {
    BT_TRY(check_config(config, err));
    struct bt_census census;
    bt_kv_pool_census(config->pool, &census);
    struct bt_kv_recv *recv = calloc(1, sizeof *recv);
    if (!recv)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for the receiving half");
    bt_status status = BT_OK;
    recv->config = *config;
    /* An event makes three actions for each lease and one for each parked hello at most; the rest
     * is for owners that cause a few events before they ask. */
    recv->max_actions = 4 * config->max_leases + 2 * config->max_parked + 64;
    recv->leases = calloc(config->max_leases, sizeof *recv->leases);
    recv->progress = calloc((size_t)census.total * config->n_layers, sizeof *recv->progress);
    recv->verified = calloc(census.total, sizeof *recv->verified);
    recv->actions = calloc(recv->max_actions, sizeof *recv->actions);
    if (!recv->leases || !recv->progress || !recv->verified || !recv->actions) {
        status = bt_fail(err, BT_E_NO_MEMORY, "no memory for %u leases on %u pages of %u layers",
                         config->max_leases, census.total, config->n_layers);
        goto fail;
    }
    BT_TRY_GOTO(bt_kv_tickets_init(&recv->tickets, config->max_parked, config->max_ended, err),
                fail);
    *out = recv;
    return BT_OK;
fail:
    bt_kv_recv_destroy(recv);
    return status;
}

void bt_kv_recv_destroy(struct bt_kv_recv *recv) {
    if (!recv)
        return;
    bt_kv_tickets_fini(&recv->tickets);
    free(recv->leases);
    free(recv->progress);
    free(recv->verified);
    free(recv->actions);
    free(recv);
}

/* ---- actions ---- */

void bt_kv_recv_act(struct bt_kv_recv *recv, const struct bt_kv_recv_action *action) {
    BT_ASSERT(recv->n_actions < recv->max_actions);
    recv->actions[(recv->next_action + recv->n_actions++) % recv->max_actions] = *action;
}

bool bt_kv_recv_next(struct bt_kv_recv *recv, struct bt_kv_recv_action *out) {
    if (!recv->n_actions)
        return false;
    *out = recv->actions[recv->next_action];
    recv->next_action = (recv->next_action + 1) % recv->max_actions;
    recv->n_actions--;
    return true;
}

static void answer(struct bt_kv_recv *recv, uint32_t link, enum bt_kv_msg_type type,
                   struct bt_id ticket, enum bt_kv_reason reason) {
    bt_kv_recv_act(recv, &(struct bt_kv_recv_action){
                             .type = BT_KV_RECV_SEND,
                             .link = link,
                             .msg = {.type = type, .ticket = ticket, .reason = reason},
                         });
}

static void refuse_ticket(struct bt_kv_recv *recv, uint32_t link, struct bt_id ticket,
                          enum bt_kv_reason reason) {
    recv->counters.refused_ticket++;
    answer(recv, link, BT_KV_REFUSED, ticket, reason);
}

/* ---- what is known of a ticket ---- */

static struct bt_kv_lease *find_lease(struct bt_kv_recv *recv, struct bt_id ticket) {
    for (uint32_t i = 0; i < recv->config.max_leases; i++)
        if (recv->leases[i].state != BT_KV_RECV_NONE &&
            bt_id_equal(recv->leases[i].expect.ticket, ticket))
            return &recv->leases[i];
    return NULL;
}

static enum bt_kv_recv_state state_of(const struct bt_kv_recv *recv,
                                      const struct bt_kv_lease *lease, struct bt_id ticket) {
    if (lease)
        return lease->state;
    if (bt_kv_tickets_find_ended(&recv->tickets, ticket))
        return BT_KV_RECV_ENDED;
    return bt_kv_tickets_is_parked(&recv->tickets, ticket) ? BT_KV_RECV_PARKED : BT_KV_RECV_NONE;
}

static uint32_t slot_of(const struct bt_kv_recv *recv, const struct bt_kv_lease *lease) {
    return (uint32_t)(lease - recv->leases);
}

bool bt_kv_recv_is_ended(const struct bt_kv_recv *recv, struct bt_id ticket) {
    return bt_kv_tickets_find_ended(&recv->tickets, ticket);
}

/* ---- grant, end ---- */

/* Binds the lease's pages: from now on this link may write into them. */
static void grant(struct bt_kv_recv *recv, struct bt_kv_lease *lease, uint32_t link) {
    struct bt_kv_hold *hold = lease->expect.hold;
    lease->pages_held = hold->n_shared;
    bt_kv_hold_bind(recv->config.pool, hold, lease->expect.n_pages - hold->n_shared, BT_PAGE_ARMED);
    for (uint32_t i = lease->pages_held; i < hold->n_pages; i++) {
        uint32_t n_layers = recv->config.n_layers;
        memset(&recv->progress[(size_t)hold->pages[i] * n_layers], 0,
               n_layers * sizeof *recv->progress);
        recv->verified[hold->pages[i]] = 0;
    }
    lease->state = BT_KV_RECV_ARMED;
    lease->generation = ++recv->generation;
    lease->link = link;
    bt_kv_recv_act(recv, &(struct bt_kv_recv_action){
                             .type = BT_KV_RECV_SEND,
                             .link = link,
                             .msg = {.type = BT_KV_GRANT,
                                     .ticket = lease->expect.ticket,
                                     .lease = slot_of(recv, lease),
                                     .generation = lease->generation,
                                     .pages_held = lease->pages_held,
                                     .pages = lease->expect.n_pages},
                         });
    bt_kv_recv_act(
        recv, &(struct bt_kv_recv_action){.type = BT_KV_RECV_GRANTED, .user = lease->expect.user});
}

void bt_kv_recv_end(struct bt_kv_recv *recv, uint64_t now_us, uint32_t slot,
                    enum bt_kv_reason reason, bool tell_peer, bool tell_user) {
    struct bt_kv_lease *lease = &recv->leases[slot];
    BT_ASSERT(lease->state != BT_KV_RECV_NONE);
    bool granted = lease->state != BT_KV_RECV_EXPECTED;
    if (lease->receives)
        bt_kv_recv_act(recv, &(struct bt_kv_recv_action){
                                 .type = BT_KV_RECV_CUT, .link = lease->link, .lease = slot});
    if (granted && tell_peer)
        answer(recv, lease->link, BT_KV_ABORTED, lease->expect.ticket, reason);
    bt_kv_tickets_end(&recv->tickets, now_us, lease->expect.ticket, reason);
    bt_kv_hold_release(recv->config.pool, lease->expect.hold);
    lease->state = BT_KV_RECV_NONE;
    lease->generation = 0;
    lease->receives = 0;
    lease->expect.hold = NULL;
    recv->counters.aborted++;
    if (tell_user)
        bt_kv_recv_act(recv, &(struct bt_kv_recv_action){
                                 .type = BT_KV_RECV_ABORTED,
                                 .user = lease->expect.user,
                                 .reason = reason,
                             });
}

static void commit(struct bt_kv_recv *recv, uint64_t now_us, struct bt_kv_lease *lease) {
    struct bt_kv_hold *hold = lease->expect.hold;
    for (uint32_t i = lease->pages_held; i < hold->n_pages; i++)
        bt_kv_page_move(recv->config.pool, hold->pages[i], BT_PAGE_LIVE);
    bt_kv_tickets_end(&recv->tickets, now_us, lease->expect.ticket, (enum bt_kv_reason)0);
    answer(recv, lease->link, BT_KV_COMMITTED, lease->expect.ticket, (enum bt_kv_reason)0);
    lease->state = BT_KV_RECV_NONE;
    lease->generation = 0;
    lease->expect.hold = NULL;
    recv->counters.committed++;
    bt_kv_recv_act(recv, &(struct bt_kv_recv_action){
                             .type = BT_KV_RECV_COMMITTED,
                             .user = lease->expect.user,
                             .msg = lease->commit,
                         });
}

void bt_kv_recv_finish(struct bt_kv_recv *recv, uint64_t now_us, uint32_t slot) {
    struct bt_kv_lease *lease = &recv->leases[slot];
    const struct bt_kv_msg *msg = &lease->commit;
    BT_ASSERT(!lease->receives);
    uint32_t n_pages = lease->expect.n_pages - lease->pages_held;
    if (lease->n_landed != n_pages) {
        recv->counters.refused_commit++;
        bt_kv_recv_end(recv, now_us, slot, BT_KV_REASON_INCOMPLETE, true, true);
    } else if (msg->n_sums != (uint64_t)n_pages * recv->config.n_layers ||
               msg->manifest !=
                   bt_kv_hold_manifest(recv->config.pool, lease->expect.hold, lease->pages_held)) {
        recv->counters.refused_commit++;
        recv->counters.refused_checksum++;
        bt_kv_recv_end(recv, now_us, slot, BT_KV_REASON_CHECKSUM, true, true);
    } else {
        commit(recv, now_us, lease);
    }
}

/* ---- hello, from a link or from where it was parked ---- */

static void join_hello(struct bt_kv_recv *recv, uint64_t now_us, struct bt_kv_lease *lease,
                       uint32_t link, struct bt_id chain, uint32_t n_tokens) {
    const struct bt_kv_expect *expect = &lease->expect;
    if (!bt_id_equal(recv->links[link].peer, expect->peer)) {
        refuse_ticket(recv, link, expect->ticket, BT_KV_REASON_UNKNOWN);
    } else if (!bt_id_equal(chain, expect->chain) || n_tokens != expect->n_tokens) {
        recv->counters.refused_prompt++;
        answer(recv, link, BT_KV_REFUSED, expect->ticket, BT_KV_REASON_PROMPT);
        bt_kv_recv_end(recv, now_us, slot_of(recv, lease), BT_KV_REASON_PROMPT, false, true);
    } else {
        grant(recv, lease, link);
    }
}

static void park_hello(struct bt_kv_recv *recv, uint64_t now_us, uint32_t link,
                       const struct bt_kv_msg *msg) {
#if BT_MUTANT_no_parked_hello
    refuse_ticket(recv, link, msg->ticket, BT_KV_REASON_UNKNOWN); /* a planted defect */
    return;
#endif
    bt_status status = bt_kv_tickets_park(&recv->tickets, now_us, link, msg);
    if (status == BT_OK)
        recv->counters.parked++;
    else if (status == BT_E_FULL)
        refuse_ticket(recv, link, msg->ticket, BT_KV_REASON_FULL);
}

static void on_hello(struct bt_kv_recv *recv, uint64_t now_us, uint32_t link,
                     const struct bt_kv_msg *msg) {
    struct bt_kv_lease *lease = find_lease(recv, msg->ticket);
    enum bt_kv_recv_state state = state_of(recv, lease, msg->ticket);
    bt_kv_recv_enter(recv, state, BT_KV_RECV_ON_HELLO);
    if (state == BT_KV_RECV_NONE || state == BT_KV_RECV_PARKED)
        park_hello(recv, now_us, link, msg);
    else if (state == BT_KV_RECV_EXPECTED)
        join_hello(recv, now_us, lease, link, msg->chain, msg->n_tokens);
    else
        refuse_ticket(recv, link, msg->ticket, BT_KV_REASON_UNKNOWN);
}

/* ---- from the decode core ---- */

bt_status bt_kv_recv_expect(struct bt_kv_recv *recv, uint64_t now_us,
                            const struct bt_kv_expect *expect, uint32_t *slot) {
    if (expect->n_pages > recv->config.max_pages)
        return BT_E_TOO_LARGE;
    if (bt_id_is_zero(expect->ticket))
        return BT_E_INVALID;
    struct bt_kv_lease *lease = find_lease(recv, expect->ticket);
    enum bt_kv_recv_state state = state_of(recv, lease, expect->ticket);
    uint32_t i = 0;
    while (i < recv->config.max_leases && recv->leases[i].state != BT_KV_RECV_NONE)
        i++;
    if (i == recv->config.max_leases && (state == BT_KV_RECV_NONE || state == BT_KV_RECV_PARKED))
        return BT_E_FULL;
    if (!bt_kv_recv_enter(recv, state, BT_KV_RECV_ON_EXPECT))
        return BT_E_INVALID;
    const struct bt_kv_hold *hold = expect->hold;
    BT_ASSERT(hold->n_pages == hold->n_shared && hold->n_shared <= expect->n_pages);
    BT_ASSERT(expect->n_pages <= hold->capacity);
    BT_ASSERT(hold->n_reserved >= expect->n_pages - hold->n_shared);
    lease = &recv->leases[i];
    *lease = (struct bt_kv_lease){.state = BT_KV_RECV_EXPECTED, .expect = *expect};
    recv->counters.leases++;
    *slot = i;
    struct bt_kv_parked parked;
    while (bt_kv_tickets_take_parked(&recv->tickets, &expect->ticket, UINT32_MAX, 0, &parked)) {
        if (lease->state == BT_KV_RECV_EXPECTED)
            join_hello(recv, now_us, lease, parked.link, parked.chain, parked.n_tokens);
        else
            refuse_ticket(recv, parked.link, parked.ticket, BT_KV_REASON_UNKNOWN);
    }
    return BT_OK;
}

void bt_kv_recv_abort(struct bt_kv_recv *recv, uint64_t now_us, uint32_t slot,
                      enum bt_kv_reason reason) {
    BT_ASSERT(slot < recv->config.max_leases);
    bt_kv_recv_enter(recv, recv->leases[slot].state, BT_KV_RECV_ON_ABORT);
    bt_kv_recv_end(recv, now_us, slot, reason, true, false);
}

void bt_kv_recv_forbid(struct bt_kv_recv *recv, uint64_t now_us, struct bt_id ticket) {
    enum bt_kv_recv_state state = state_of(recv, find_lease(recv, ticket), ticket);
    if (!bt_kv_recv_enter(recv, state, BT_KV_RECV_ON_FORBID))
        return;
    struct bt_kv_parked parked;
    while (bt_kv_tickets_take_parked(&recv->tickets, &ticket, UINT32_MAX, 0, &parked))
        refuse_ticket(recv, parked.link, ticket, BT_KV_REASON_UNKNOWN);
    bt_kv_tickets_end(&recv->tickets, now_us, ticket, BT_KV_REASON_CANCELLED);
}

void bt_kv_recv_tick(struct bt_kv_recv *recv, uint64_t now_us) {
    struct bt_kv_parked parked;
    while (bt_kv_tickets_take_parked(&recv->tickets, NULL, UINT32_MAX, now_us, &parked)) {
        bt_kv_recv_enter(recv, BT_KV_RECV_PARKED, BT_KV_RECV_ON_EXPIRE);
        recv->counters.parked_expired++;
        refuse_ticket(recv, parked.link, parked.ticket, BT_KV_REASON_UNKNOWN);
    }
    while (bt_kv_tickets_forget(&recv->tickets, now_us))
        bt_kv_recv_enter(recv, BT_KV_RECV_ENDED, BT_KV_RECV_ON_EXPIRE);
}

/* ---- from the links ---- */

void bt_kv_recv_link_up(struct bt_kv_recv *recv, uint64_t now_us, uint32_t link,
                        struct bt_id peer) {
    (void)now_us;
    BT_ASSERT(link < BT_MAX_LINKS && !recv->links[link].up);
    recv->links[link].up = true;
    recv->links[link].peer = peer;
}

void bt_kv_recv_link_down(struct bt_kv_recv *recv, uint64_t now_us, uint32_t link) {
    BT_ASSERT(link < BT_MAX_LINKS);
    if (!recv->links[link].up) /* it ended before its first exchange did: nothing was said on it */
        return;
    recv->links[link].up = false;
    struct bt_kv_parked parked;
    while (bt_kv_tickets_take_parked(&recv->tickets, NULL, link, 0, &parked))
        bt_kv_recv_enter(recv, BT_KV_RECV_PARKED, BT_KV_RECV_ON_LINK_DOWN);
    for (uint32_t i = 0; i < recv->config.max_leases; i++) {
        struct bt_kv_lease *lease = &recv->leases[i];
        if (lease->state == BT_KV_RECV_EXPECTED) {
            if (bt_id_equal(lease->expect.peer, recv->links[link].peer))
                bt_kv_recv_enter(recv, lease->state, BT_KV_RECV_ON_LINK_DOWN);
        } else if (lease->state != BT_KV_RECV_NONE && lease->link == link) {
            bt_kv_recv_enter(recv, lease->state, BT_KV_RECV_ON_LINK_DOWN);
            bt_kv_recv_end(recv, now_us, i, BT_KV_REASON_LINK, false, true);
        }
    }
}

bool bt_kv_recv_fits(const struct bt_kv_lease *lease, uint64_t generation) {
#if BT_MUTANT_generation_unchecked
    return true; /* a planted defect */
#endif
    return lease->generation == generation;
}

/* 0, or why this is not the commit of what the lease expects. */
static enum bt_kv_reason compare_commit(struct bt_kv_recv *recv, const struct bt_kv_lease *lease,
                                        const struct bt_kv_msg *msg) {
    if (msg->lease != slot_of(recv, lease) || !bt_kv_recv_fits(lease, msg->generation)) {
        recv->counters.refused_generation++;
        return BT_KV_REASON_UNKNOWN;
    }
#if !BT_MUTANT_commit_uncompared
    if (msg->fingerprint_hash != recv->config.fingerprint_hash) {
        recv->counters.refused_layout++;
        return BT_KV_REASON_LAYOUT;
    }
    if (!bt_id_equal(msg->chain, lease->expect.chain)) {
        recv->counters.refused_prompt++;
        return BT_KV_REASON_PROMPT;
    }
#endif
    return (enum bt_kv_reason)0;
}

static void on_commit(struct bt_kv_recv *recv, uint64_t now_us, uint32_t link,
                      const struct bt_kv_msg *msg) {
    struct bt_kv_lease *lease = find_lease(recv, msg->ticket);
    if (lease && lease->state != BT_KV_RECV_EXPECTED && lease->link != link) {
        /* The lease is another peer's: what this one says must not touch it. */
        recv->counters.refused_link++;
        recv->counters.refused_commit++;
        answer(recv, link, BT_KV_ABORTED, msg->ticket, BT_KV_REASON_UNKNOWN);
        return;
    }
    enum bt_kv_recv_state state = state_of(recv, lease, msg->ticket);
    bt_kv_recv_enter(recv, state, BT_KV_RECV_ON_COMMIT);
    if (state == BT_KV_RECV_ARMED) {
        enum bt_kv_reason reason = compare_commit(recv, lease, msg);
        if (reason) {
            recv->counters.refused_commit++;
            bt_kv_recv_end(recv, now_us, slot_of(recv, lease), reason, true, true);
            return;
        }
        lease->commit = *msg;
        lease->state = BT_KV_RECV_COMMITTING;
        if (!lease->receives)
            bt_kv_recv_finish(recv, now_us, slot_of(recv, lease));
    } else if (state == BT_KV_RECV_ENDED) {
        enum bt_kv_reason reason = bt_kv_tickets_find_ended(&recv->tickets, msg->ticket)->reason;
        answer(recv, link, reason ? BT_KV_ABORTED : BT_KV_COMMITTED, msg->ticket, reason);
    } else if (state != BT_KV_RECV_COMMITTING) {
        recv->counters.refused_ticket++;
        recv->counters.refused_commit++;
        answer(recv, link, BT_KV_ABORTED, msg->ticket, BT_KV_REASON_UNKNOWN);
    }
}

static void on_withdrawn(struct bt_kv_recv *recv, uint64_t now_us, uint32_t link,
                         const struct bt_kv_msg *msg) {
    struct bt_kv_lease *lease = find_lease(recv, msg->ticket);
    bool own = lease && (lease->state == BT_KV_RECV_EXPECTED
                             ? bt_id_equal(recv->links[link].peer, lease->expect.peer)
                             : lease->link == link);
    if (lease && !own) {
        recv->counters.refused_link++;
        return;
    }
    enum bt_kv_recv_state state = state_of(recv, lease, msg->ticket);
    bt_kv_recv_enter(recv, state, BT_KV_RECV_ON_WITHDRAWN);
    struct bt_kv_parked parked;
    if (lease)
        bt_kv_recv_end(recv, now_us, slot_of(recv, lease), BT_KV_REASON_PEER, false, true);
    else if (state == BT_KV_RECV_PARKED)
        bt_kv_tickets_take_parked(&recv->tickets, &msg->ticket, link, 0, &parked);
}

void bt_kv_recv_message(struct bt_kv_recv *recv, uint64_t now_us, uint32_t link,
                        const struct bt_kv_msg *msg) {
    BT_ASSERT(link < BT_MAX_LINKS);
    if (!recv->links[link].up) {
        recv->counters.refused_link++;
        return;
    }
    if (bt_id_is_zero(msg->ticket)) {
        recv->counters.refused_ticket++;
        return;
    }
    switch (msg->type) {
    case BT_KV_HELLO:
        on_hello(recv, now_us, link, msg);
        return;
    case BT_KV_COMMIT:
        on_commit(recv, now_us, link, msg);
        return;
    case BT_KV_WITHDRAWN:
        on_withdrawn(recv, now_us, link, msg);
        return;
    default: /* only D says the others */
        recv->counters.refused_message++;
        return;
    }
}

/* ---- what is asked ---- */

const struct bt_kv_recv_counters *bt_kv_recv_counters(const struct bt_kv_recv *recv) {
    return &recv->counters;
}

uint32_t bt_kv_recv_links_up(const struct bt_kv_recv *recv) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < BT_MAX_LINKS; i++)
        n += recv->links[i].up;
    return n;
}

uint64_t bt_kv_recv_lease_bytes(const struct bt_kv_recv *recv, uint32_t slot) {
    BT_ASSERT(slot < recv->config.max_leases);
    return recv->leases[slot].bytes;
}

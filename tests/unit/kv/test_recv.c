/* The receiving half: both orders of hello and Reserve, frames of all kinds, commits, every end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <cmocka.h>

#include "common/base/block_hash.h"
#include "common/kv/kv_recv.h"

static int allocations_left = -1;
static void *failing_calloc(size_t n, size_t size) {
    if (allocations_left == 0)
        return NULL;
    if (allocations_left > 0)
        allocations_left--;
    return calloc(n, size);
}
#define calloc failing_calloc
#include "common/kv/kv_recv.c"
#include "common/kv/kv_recv_tickets.c"
#undef calloc

enum { N_LAYERS = 2, PAGE_BYTES = 64, N_PAGES = 16, PROMPT_PAGES = 3, N_TOKENS = 40, LINK = 5 };
static const uint64_t layout = 0x1234;
static const struct bt_id peer = {11, 12}, other_peer = {13, 14}, chain = {21, 22};
static const struct bt_id root = {1, 1};

struct world {
    struct bt_kv_pool *pool;
    struct bt_kv_recv *recv;
    struct bt_kv_hold hold;
    uint32_t pages[8];
    uint64_t now_us;
    uint32_t lease;
    uint64_t generation;
    struct bt_kv_recv_action actions[16];
    uint32_t n_actions;
};

static struct bt_id ticket_of(uint64_t n) {
    return (struct bt_id){n, ~n};
}

static struct bt_kv_recv_config config_of(struct bt_kv_pool *pool, uint32_t page_bytes) {
    return (struct bt_kv_recv_config){
        .pool = pool,
        .n_layers = N_LAYERS,
        .page_bytes = page_bytes,
        .fingerprint_hash = layout,
        .max_leases = 2,
        .max_pages = 6,
        .max_parked = 2,
        .max_ended = 4,
    };
}

static void open_world(struct world *w, uint32_t page_bytes) {
    memset(w, 0, sizeof *w);
    struct bt_kv_pool_config pool = {.n_pages = N_PAGES, .n_layers = N_LAYERS, .n_changes = 16};
    assert_int_equal(bt_kv_pool_create(&pool, &w->pool, NULL), BT_OK);
    struct bt_kv_recv_config config = config_of(w->pool, page_bytes);
    assert_int_equal(bt_kv_recv_create(&config, &w->recv, NULL), BT_OK);
    w->hold.pages = w->pages;
    w->hold.capacity = 8;
    w->now_us = 1000000;
    bt_kv_recv_link_up(w->recv, w->now_us, LINK, peer);
    bt_kv_recv_link_up(w->recv, w->now_us, LINK + 1, other_peer);
}

/* Takes the actions of the last event and checks the invariants. */
static void drain(struct world *w) {
    w->n_actions = 0;
    while (bt_kv_recv_next(w->recv, &w->actions[w->n_actions]))
        w->n_actions++;
    assert_true(bt_kv_recv_is_valid(w->recv));
    assert_true(bt_kv_pool_is_valid(w->pool));
}

/* Pairs of state and event that any test has reached. */
static uint32_t reached[BT_KV_RECV_STATE_COUNT * BT_KV_RECV_EVENT_COUNT];

static void close_world(struct world *w) {
    uint32_t n_pairs;
    const uint32_t *coverage = bt_kv_recv_coverage(w->recv, &n_pairs);
    assert_int_equal(n_pairs, sizeof reached / sizeof *reached);
    for (uint32_t i = 0; i < n_pairs; i++)
        reached[i] += coverage[i];
    bt_kv_hold_release(w->pool, &w->hold);
    bt_kv_pool_flush(w->pool);
    assert_int_equal(bt_kv_pool_available(w->pool), N_PAGES);
    bt_kv_recv_destroy(w->recv);
    bt_kv_pool_destroy(w->pool);
}

static const struct bt_kv_msg *sent(const struct world *w, uint32_t i, uint32_t link,
                                    enum bt_kv_msg_type type) {
    assert_true(i < w->n_actions);
    assert_int_equal(w->actions[i].type, BT_KV_RECV_SEND);
    assert_int_equal(w->actions[i].link, link);
    assert_int_equal(w->actions[i].msg.type, type);
    return &w->actions[i].msg;
}

static bt_status expect(struct world *w, uint64_t ticket) {
    if (!w->hold.n_pages && !w->hold.n_reserved)
        assert_true(bt_kv_hold_reserve(w->pool, &w->hold, PROMPT_PAGES));
    struct bt_kv_expect e = {.ticket = ticket_of(ticket),
                             .peer = peer,
                             .chain = chain,
                             .n_tokens = N_TOKENS,
                             .n_pages = PROMPT_PAGES,
                             .hold = &w->hold,
                             .user = 77};
    bt_status status = bt_kv_recv_expect(w->recv, w->now_us, &e, &w->lease);
    drain(w);
    return status;
}

static void say(struct world *w, uint32_t link, struct bt_kv_msg msg) {
    bt_kv_recv_message(w->recv, w->now_us, link, &msg);
    drain(w);
}

static void hello(struct world *w, uint32_t link, uint64_t ticket) {
    say(w, link,
        (struct bt_kv_msg){.type = BT_KV_HELLO,
                           .ticket = ticket_of(ticket),
                           .chain = chain,
                           .n_tokens = N_TOKENS});
}

static void check_grant_of(struct world *w, uint32_t i) {
    const struct bt_kv_msg *msg = sent(w, i, LINK, BT_KV_GRANT);
    assert_int_equal(msg->pages, PROMPT_PAGES);
    assert_int_equal(msg->lease, w->lease);
    assert_true(msg->generation > w->generation);
    w->generation = msg->generation;
    assert_int_equal(w->actions[i + 1].type, BT_KV_RECV_GRANTED);
    assert_int_equal(w->actions[i + 1].user, 77);
    assert_int_equal(w->n_actions, i + 2);
}

static void arm(struct world *w, uint64_t ticket) {
    assert_int_equal(expect(w, ticket), BT_OK);
    assert_int_equal(w->n_actions, 0);
    hello(w, LINK, ticket);
    check_grant_of(w, 0);
}

static struct bt_kv_frame frame_of(const struct world *w, uint32_t layer, uint32_t first,
                                   uint32_t n) {
    return (struct bt_kv_frame){.lease = w->lease,
                                .generation = w->generation,
                                .layer = layer,
                                .first_page = first,
                                .n_pages = n,
                                .length = n * PAGE_BYTES};
}

static uint64_t sum_of(uint32_t layer, uint32_t page) {
    return 1000 + layer * 100 + page;
}

static void land(struct world *w, const struct bt_kv_frame *frame, struct bt_kv_landing *landing) {
    struct bt_error err = {0};
    assert_int_equal(bt_kv_recv_frame(w->recv, w->now_us, LINK, frame, landing, &err), BT_OK);
    drain(w);
    assert_int_equal(w->n_actions, 0);
}

static void finish_landing(struct world *w, const struct bt_kv_landing *landing, bool whole) {
    uint64_t sums[BT_KV_FRAME_PAGES];
    for (uint32_t i = 0; i < landing->frame.n_pages; i++)
        sums[i] = sum_of(landing->frame.layer, landing->frame.first_page + i);
    bt_kv_recv_frame_end(w->recv, w->now_us, landing, whole, sums, sums);
    drain(w);
}

/* Everything lands but what D has. */
static void fill(struct world *w) {
    uint32_t held = w->hold.n_shared;
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
        struct bt_kv_frame frame = frame_of(w, layer, held, PROMPT_PAGES - held);
        struct bt_kv_landing landing;
        land(w, &frame, &landing);
        finish_landing(w, &landing, true);
        assert_int_equal(w->n_actions, 0);
    }
}

static struct bt_kv_msg commit_of(const struct world *w, uint64_t ticket) {
    uint64_t sums[PROMPT_PAGES * N_LAYERS]; /* little-endian, as this machine's */
    uint32_t n = 0;
    for (uint32_t page = w->hold.n_shared; page < PROMPT_PAGES; page++)
        for (uint32_t layer = 0; layer < N_LAYERS; layer++)
            sums[n++] = sum_of(layer, page);
    return (struct bt_kv_msg){.type = BT_KV_COMMIT,
                              .ticket = ticket_of(ticket),
                              .chain = chain,
                              .lease = w->lease,
                              .generation = w->generation,
                              .n_sums = n,
                              .manifest = XXH3_64bits(sums, n * sizeof *sums),
                              .fingerprint_hash = layout,
                              .token = 42,
                              .finish = BT_FINISH_LENGTH,
                              .logits_hash = 99};
}

static void check_aborted(const struct world *w, uint32_t i, enum bt_kv_reason reason) {
    assert_true(i < w->n_actions);
    assert_int_equal(w->actions[i].type, BT_KV_RECV_ABORTED);
    assert_int_equal(w->actions[i].user, 77);
    assert_int_equal(w->actions[i].reason, reason);
    assert_int_equal(w->hold.n_pages + w->hold.n_reserved, 0);
}

static void check_committed(const struct world *w, uint32_t i) {
    sent(w, i, LINK, BT_KV_COMMITTED);
    assert_int_equal(w->actions[i + 1].type, BT_KV_RECV_COMMITTED);
    assert_int_equal(w->actions[i + 1].user, 77);
    assert_int_equal(w->actions[i + 1].msg.token, 42);
    assert_int_equal(w->actions[i + 1].msg.finish, BT_FINISH_LENGTH);
    assert_int_equal(w->actions[i + 1].msg.logits_hash, 99);
    assert_int_equal(w->n_actions, i + 2);
    for (uint32_t page = 0; page < PROMPT_PAGES; page++)
        assert_int_equal(bt_kv_page_state(w->pool, w->pages[page]), BT_PAGE_LIVE);
}

static const struct bt_kv_recv_counters *counters(const struct world *w) {
    return bt_kv_recv_counters(w->recv);
}

/* ---- life ---- */

static void test_refuses_sizes_out_of_bounds(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    struct bt_kv_recv *recv = NULL;
    struct bt_error err;
    struct bt_kv_recv_config config = config_of(w.pool, 0);
    assert_int_equal(bt_kv_recv_create(&config, &recv, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "pages of 0 bytes"));
    config = config_of(w.pool, 1);
    config.max_leases = 0;
    assert_int_equal(bt_kv_recv_create(&config, &recv, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "0 leases, must be 1 to 65536"));
    config = config_of(w.pool, 1);
    config.max_pages = BT_KV_PAGES_MAX + 1;
    assert_int_equal(bt_kv_recv_create(&config, &recv, &err), BT_E_INVALID);
    config = config_of(w.pool, 1);
    config.n_layers = 0;
    assert_int_equal(bt_kv_recv_create(&config, &recv, &err), BT_E_INVALID);
    config = config_of(w.pool, 1);
    config.max_parked = 0;
    assert_int_equal(bt_kv_recv_create(&config, &recv, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "0 early hellos"));
    config = config_of(w.pool, 1);
    config.max_ended = 1u << 21;
    assert_int_equal(bt_kv_recv_create(&config, &recv, &err), BT_E_INVALID);
    assert_null(recv);
    bt_kv_recv_destroy(NULL);
    close_world(&w);
}

static void test_create_survives_each_failed_allocation(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    struct bt_kv_recv_config config = config_of(w.pool, PAGE_BYTES);
    int n = 0;
    for (;; n++) {
        struct bt_kv_recv *recv = NULL;
        struct bt_error err = {0};
        allocations_left = n;
        bt_status status = bt_kv_recv_create(&config, &recv, &err);
        allocations_left = -1;
        if (status == BT_OK) {
            bt_kv_recv_destroy(recv);
            break;
        }
        assert_int_equal(status, BT_E_NO_MEMORY);
        assert_non_null(strstr(err.text, "no memory"));
        assert_null(recv);
    }
    assert_int_equal(n, 8);
    close_world(&w);
}

/* ---- tickets ---- */

static void test_reserve_before_hello(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    arm(&w, 1);
    for (uint32_t i = 0; i < PROMPT_PAGES; i++)
        assert_int_equal(bt_kv_page_state(w.pool, w.pages[i]), BT_PAGE_ARMED);
    fill(&w);
    for (uint32_t i = 0; i < PROMPT_PAGES; i++)
        assert_int_equal(bt_kv_page_state(w.pool, w.pages[i]), BT_PAGE_LANDED);
    say(&w, LINK, commit_of(&w, 1));
    check_committed(&w, 0);
    assert_int_equal(bt_kv_recv_lease_bytes(w.recv, w.lease), PROMPT_PAGES * N_LAYERS * PAGE_BYTES);
    assert_int_equal(counters(&w)->bytes, PROMPT_PAGES * N_LAYERS * PAGE_BYTES);
    assert_int_equal(counters(&w)->frames, N_LAYERS);
    assert_int_equal(counters(&w)->committed, 1);
    assert_true(bt_kv_recv_is_ended(w.recv, ticket_of(1)));
    say(&w, LINK, commit_of(&w, 1)); /* asked again: the answer is the same */
    sent(&w, 0, LINK, BT_KV_COMMITTED);
    assert_int_equal(w.n_actions, 1);
    close_world(&w);
}

static void test_hello_before_reserve(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    hello(&w, LINK, 1);
    assert_int_equal(w.n_actions, 0);
    hello(&w, LINK, 1); /* it waits already */
    assert_int_equal(w.n_actions, 0);
    assert_int_equal(counters(&w)->parked, 1);
    assert_int_equal(expect(&w, 1), BT_OK);
    check_grant_of(&w, 0);
    fill(&w);
    say(&w, LINK, commit_of(&w, 1));
    check_committed(&w, 0);
    close_world(&w);
}

static void test_a_ticket_shown_by_two_workers_is_the_expected_ones(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    hello(&w, LINK + 1, 1);
    hello(&w, LINK, 1);
    assert_int_equal(w.n_actions, 0);
    assert_int_equal(expect(&w, 1), BT_OK);
    assert_int_equal(sent(&w, 0, LINK + 1, BT_KV_REFUSED)->reason, BT_KV_REASON_UNKNOWN);
    check_grant_of(&w, 1);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_CANCELLED);
    drain(&w);
    hello(&w, LINK, 2); /* in the other order: the second one comes too late */
    hello(&w, LINK + 1, 2);
    assert_int_equal(expect(&w, 2), BT_OK);
    sent(&w, 0, LINK, BT_KV_GRANT);
    assert_int_equal(sent(&w, 2, LINK + 1, BT_KV_REFUSED)->reason, BT_KV_REASON_UNKNOWN);
    close_world(&w);
}

static void test_hello_of_another_incarnation_is_refused(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    assert_int_equal(expect(&w, 1), BT_OK);
    hello(&w, LINK + 1, 1);
    assert_int_equal(sent(&w, 0, LINK + 1, BT_KV_REFUSED)->reason, BT_KV_REASON_UNKNOWN);
    assert_int_equal(w.n_actions, 1);
    assert_int_equal(counters(&w)->refused_ticket, 1);
    hello(&w, LINK, 1);
    check_grant_of(&w, 0);
    hello(&w, LINK, 1); /* one lease, one link, one hello */
    sent(&w, 0, LINK, BT_KV_REFUSED);
    hello(&w, LINK + 1, 1);
    sent(&w, 0, LINK + 1, BT_KV_REFUSED);
    fill(&w);
    say(&w, LINK, commit_of(&w, 1));
    check_committed(&w, 0);
    close_world(&w);
}

static void test_hello_of_another_prompt_ends_the_lease(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    struct bt_kv_msg wrong[2] = {
        {.type = BT_KV_HELLO, .ticket = ticket_of(1), .chain = {1, 1}, .n_tokens = N_TOKENS},
        {.type = BT_KV_HELLO, .ticket = ticket_of(2), .chain = chain, .n_tokens = N_TOKENS + 1},
    };
    assert_int_equal(expect(&w, 1), BT_OK);
    say(&w, LINK, wrong[0]);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_REFUSED)->reason, BT_KV_REASON_PROMPT);
    check_aborted(&w, 1, BT_KV_REASON_PROMPT);
    assert_int_equal(counters(&w)->refused_prompt, 1);
    say(&w, LINK, wrong[1]); /* parked first: the same */
    assert_int_equal(expect(&w, 2), BT_OK);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_REFUSED)->reason, BT_KV_REASON_PROMPT);
    check_aborted(&w, 1, BT_KV_REASON_PROMPT);
    assert_int_equal(expect(&w, 2), BT_E_INVALID);
    close_world(&w);
}

static void test_parked_hellos_are_few_and_do_not_stay(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    hello(&w, LINK, 1);
    w.now_us += 1000000;
    hello(&w, LINK, 2);
    hello(&w, LINK, 3);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_REFUSED)->reason, BT_KV_REASON_FULL);
    w.now_us += BT_LEASE_MS * 1000 - 1000000;
    bt_kv_recv_tick(w.recv, w.now_us);
    drain(&w);
    assert_int_equal(w.n_actions, 1);
    const struct bt_kv_msg *msg = sent(&w, 0, LINK, BT_KV_REFUSED);
    assert_int_equal(msg->reason, BT_KV_REASON_UNKNOWN);
    assert_true(bt_id_equal(msg->ticket, ticket_of(1)));
    assert_int_equal(counters(&w)->parked_expired, 1);
    say(&w, LINK, (struct bt_kv_msg){.type = BT_KV_WITHDRAWN, .ticket = ticket_of(2)});
    assert_int_equal(expect(&w, 2), BT_OK); /* nothing is parked: it waits */
    assert_int_equal(w.n_actions, 0);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_CANCELLED);
    drain(&w);
    assert_int_equal(w.n_actions, 0); /* nobody was granted: nobody to tell */
    hello(&w, LINK, 4);
    bt_kv_recv_forbid(w.recv, w.now_us, ticket_of(4));
    drain(&w);
    sent(&w, 0, LINK, BT_KV_REFUSED);
    hello(&w, LINK, 4);
    sent(&w, 0, LINK, BT_KV_REFUSED);
    hello(&w, LINK, 5);
    bt_kv_recv_link_down(w.recv, w.now_us, LINK);
    drain(&w);
    assert_int_equal(w.n_actions, 0);
    assert_int_equal(expect(&w, 5), BT_OK);
    assert_int_equal(w.n_actions, 0);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_CANCELLED);
    close_world(&w);
}

static void test_ended_tickets_are_refused_for_two_leases(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    bt_kv_recv_forbid(w.recv, w.now_us, ticket_of(1));
    bt_kv_recv_forbid(w.recv, w.now_us + 10, ticket_of(1));
    drain(&w);
    w.now_us += 2 * BT_LEASE_MS * 1000 - 1;
    bt_kv_recv_tick(w.recv, w.now_us);
    assert_true(bt_kv_recv_is_ended(w.recv, ticket_of(1)));
    assert_int_equal(expect(&w, 1), BT_E_INVALID);
    hello(&w, LINK, 1);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_REFUSED)->reason, BT_KV_REASON_UNKNOWN);
    say(&w, LINK, (struct bt_kv_msg){.type = BT_KV_WITHDRAWN, .ticket = ticket_of(1)});
    assert_int_equal(w.n_actions, 0);
    say(&w, LINK, commit_of(&w, 1));
    assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_CANCELLED);
    w.now_us += 1;
    bt_kv_recv_tick(w.recv, w.now_us);
    assert_false(bt_kv_recv_is_ended(w.recv, ticket_of(1)));
    for (uint64_t i = 10; i < 15; i++) { /* room for four: the oldest goes */
        bt_kv_recv_forbid(w.recv, w.now_us, ticket_of(i));
        drain(&w);
    }
    assert_false(bt_kv_recv_is_ended(w.recv, ticket_of(10)));
    for (uint64_t i = 11; i < 15; i++)
        assert_true(bt_kv_recv_is_ended(w.recv, ticket_of(i)));
    bt_kv_hold_release(w.pool, &w.hold);
    close_world(&w);
}

static void test_expect_says_why_not(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    assert_int_equal(expect(&w, 1), BT_OK);
    struct bt_kv_hold hold[2] = {{.capacity = 8}, {.capacity = 8}};
    uint32_t pages[2][8];
    uint32_t lease;
    hold[0].pages = pages[0];
    hold[1].pages = pages[1];
    for (int i = 0; i < 2; i++)
        assert_true(bt_kv_hold_reserve(w.pool, &hold[i], 6));
    struct bt_kv_expect e = {.ticket = ticket_of(1), .peer = peer, .n_pages = 1, .hold = &hold[0]};
    assert_int_equal(bt_kv_recv_expect(w.recv, 0, &e, &lease), BT_E_INVALID);
    e.ticket = (struct bt_id){0, 0};
    assert_int_equal(bt_kv_recv_expect(w.recv, 0, &e, &lease), BT_E_INVALID);
    e.ticket = ticket_of(2);
    e.n_pages = 7;
    assert_int_equal(bt_kv_recv_expect(w.recv, 0, &e, &lease), BT_E_TOO_LARGE);
    e.n_pages = 6;
    assert_int_equal(bt_kv_recv_expect(w.recv, 0, &e, &lease), BT_OK);
    e.ticket = ticket_of(3);
    e.hold = &hold[1];
    assert_int_equal(bt_kv_recv_expect(w.recv, 0, &e, &lease), BT_E_FULL);
    e.ticket = ticket_of(1); /* that it is here already is the better reason */
    assert_int_equal(bt_kv_recv_expect(w.recv, 0, &e, &lease), BT_E_INVALID);
    bt_kv_recv_forbid(w.recv, 0, ticket_of(1)); /* a lease ends by abort, not by this */
    assert_false(bt_kv_recv_is_ended(w.recv, ticket_of(1)));
    drain(&w);
    assert_int_equal(w.n_actions, 0);
    bt_kv_recv_abort(w.recv, 0, 0, BT_KV_REASON_DEADLINE);
    bt_kv_recv_abort(w.recv, 0, 1, BT_KV_REASON_DEADLINE);
    bt_kv_hold_release(w.pool, &hold[1]);
    close_world(&w);
}

/* ---- frames ---- */

static void refuse_frame(struct world *w, uint32_t link, struct bt_kv_frame frame,
                         const uint64_t *counter) {
    struct bt_kv_landing landing;
    struct bt_error err = {0};
    uint64_t before = *counter;
    assert_int_equal(bt_kv_recv_frame(w->recv, w->now_us, link, &frame, &landing, &err),
                     BT_E_INVALID);
    assert_true(err.text[0]);
    assert_int_equal(*counter, before + 1);
    drain(w);
    assert_int_equal(w->n_actions, 0);
}

/* A good frame but for one field. */
static struct bt_kv_frame with(const struct world *w, size_t field, uint64_t value) {
    struct bt_kv_frame frame = frame_of(w, 0, 1, 1);
    uint32_t value32 = (uint32_t)value;
    if (field == offsetof(struct bt_kv_frame, generation))
        frame.generation = value;
    else
        memcpy((uint8_t *)&frame + field, &value32, sizeof value32);
    return frame;
}
#define WITH(member, value) with(&w, offsetof(struct bt_kv_frame, member), value)

static void test_hostile_frames_do_not_land(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    const struct bt_kv_recv_counters *c = counters(&w);
    struct bt_kv_frame early = {.n_pages = 1, .length = PAGE_BYTES};
    refuse_frame(&w, LINK, early, &c->refused_generation);
    assert_int_equal(expect(&w, 1), BT_OK);
    refuse_frame(&w, LINK, early, &c->refused_generation);
    hello(&w, LINK, 1);
    check_grant_of(&w, 0);
    refuse_frame(&w, LINK, WITH(lease, 2), &c->refused_range);
    refuse_frame(&w, LINK, WITH(lease, UINT32_MAX), &c->refused_range);
    refuse_frame(&w, LINK, WITH(lease, 1), &c->refused_generation);
    refuse_frame(&w, LINK, WITH(generation, w.generation + 1), &c->refused_generation);
    refuse_frame(&w, LINK, WITH(generation, 0), &c->refused_generation);
    refuse_frame(&w, LINK + 1, frame_of(&w, 0, 1, 1), &c->refused_link);
    refuse_frame(&w, LINK, WITH(layer, N_LAYERS), &c->refused_range);
    refuse_frame(&w, LINK, WITH(layer, UINT32_MAX), &c->refused_range);
    refuse_frame(&w, LINK, WITH(first_page, PROMPT_PAGES), &c->refused_range);
    refuse_frame(&w, LINK, WITH(first_page, UINT32_MAX), &c->refused_range);
    refuse_frame(&w, LINK, frame_of(&w, 0, 1, PROMPT_PAGES), &c->refused_range);
    refuse_frame(&w, LINK, WITH(n_pages, 0), &c->refused_range);
    refuse_frame(&w, LINK, WITH(n_pages, BT_KV_FRAME_PAGES + 1), &c->refused_range);
    refuse_frame(&w, LINK, WITH(n_pages, 2), &c->refused_range); /* its length says one */
    refuse_frame(&w, LINK, WITH(length, 0), &c->refused_range);
    refuse_frame(&w, LINK, WITH(length, PAGE_BYTES + 1), &c->refused_range);
    refuse_frame(&w, LINK, WITH(length, UINT32_MAX), &c->refused_range);
    refuse_frame(&w, LINK, WITH(offset, 1), &c->refused_range);
    refuse_frame(&w, LINK, WITH(offset, UINT32_MAX), &c->refused_range);
    struct bt_kv_frame two = frame_of(&w, 0, 0, 2), late_piece = WITH(offset, 8);
    two.offset = 8;
    refuse_frame(&w, LINK, two, &c->refused_range);
    late_piece.length = PAGE_BYTES - 8;
    refuse_frame(&w, LINK, late_piece, &c->refused_order);
    struct bt_kv_landing landing;
    struct bt_kv_frame good = frame_of(&w, 0, 1, 1);
    land(&w, &good, &landing);
    assert_int_equal(landing.pages[0], w.pages[1]);
    refuse_frame(&w, LINK, good, &c->refused_order); /* while it is on its way */
    finish_landing(&w, &landing, true);
    refuse_frame(&w, LINK, good, &c->refused_order); /* and when it is there */
    refuse_frame(&w, LINK, frame_of(&w, 0, 0, 3), &c->refused_order);
    assert_int_equal(c->bytes, PAGE_BYTES);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_CANCELLED);
    drain(&w);
    refuse_frame(&w, LINK, good, &c->refused_generation);
    close_world(&w);
}

static void test_a_large_page_comes_in_pieces_in_order(void **state) {
    (void)state;
    struct world w;
    open_world(&w, 2 * BT_KV_FRAME_BYTES + 100);
    arm(&w, 1);
    uint32_t lengths[] = {BT_KV_FRAME_BYTES, BT_KV_FRAME_BYTES, 100};
    struct bt_kv_landing landings[3];
    for (uint32_t layer = 0; layer < N_LAYERS; layer++)
        for (uint32_t page = 0; page < PROMPT_PAGES; page++) {
            for (uint32_t i = 0, offset = 0; i < 3; offset += lengths[i++]) {
                struct bt_kv_frame frame = frame_of(&w, layer, page, 1);
                frame.offset = offset + 1;
                frame.length = lengths[i] - 1;
                refuse_frame(&w, LINK, frame, &counters(&w)->refused_order);
                frame.offset = offset;
                frame.length = lengths[i];
                land(&w, &frame, &landings[i]);
            }
            for (uint32_t i = 0; i < 3; i++)
                finish_landing(&w, &landings[i], true);
        }
    say(&w, LINK, commit_of(&w, 1));
    check_committed(&w, 0);
    close_world(&w);
}

/* The sum was made before the first piece was there: it is not believed. */
static void test_the_last_piece_must_end_last(void **state) {
    (void)state;
    struct world w;
    open_world(&w, BT_KV_FRAME_BYTES + 100);
    arm(&w, 1);
    struct bt_kv_landing first, last;
    struct bt_kv_frame frame = frame_of(&w, 0, 0, 1);
    frame.length = BT_KV_FRAME_BYTES;
    land(&w, &frame, &first);
    frame.offset = BT_KV_FRAME_BYTES;
    frame.length = 100;
    land(&w, &frame, &last);
    finish_landing(&w, &last, true);
    assert_int_equal(w.actions[0].type, BT_KV_RECV_CUT);
    assert_int_equal(sent(&w, 1, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_CHECKSUM);
    check_aborted(&w, 2, BT_KV_REASON_CHECKSUM);
    finish_landing(&w, &first, true);
    close_world(&w);
}

static void test_a_wrong_sum_ends_the_lease(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    arm(&w, 1);
    struct bt_kv_frame frame = frame_of(&w, 0, 0, 3);
    struct bt_kv_landing landing;
    land(&w, &frame, &landing);
    uint64_t carried[] = {1, 2, 3}, computed[] = {1, 2, 4};
    bt_kv_recv_frame_end(w.recv, w.now_us, &landing, true, carried, computed);
    drain(&w);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_CHECKSUM);
    check_aborted(&w, 1, BT_KV_REASON_CHECKSUM);
    assert_int_equal(counters(&w)->refused_checksum, 1);
    assert_int_equal(bt_kv_pool_available(w.pool), N_PAGES);
    close_world(&w);
}

static void test_pages_are_quarantined_while_a_receive_is_in_flight(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    arm(&w, 1);
    struct bt_kv_landing old, young;
    struct bt_kv_frame frame = frame_of(&w, 0, 0, 2);
    land(&w, &frame, &old);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_PREEMPTED);
    drain(&w);
    assert_int_equal(w.actions[0].type, BT_KV_RECV_CUT);
    assert_int_equal(w.actions[0].link, LINK);
    assert_int_equal(w.actions[0].lease, w.lease);
    assert_int_equal(sent(&w, 1, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_PREEMPTED);
    assert_int_equal(w.n_actions, 2);
    assert_int_equal(bt_kv_page_state(w.pool, old.pages[0]), BT_PAGE_QUARANTINED);
    assert_int_equal(bt_kv_page_state(w.pool, old.pages[1]), BT_PAGE_QUARANTINED);
    arm(&w, 2); /* the same slot, other pages, another generation */
    assert_int_equal(w.lease, old.lease);
    for (uint32_t i = 0; i < PROMPT_PAGES; i++)
        assert_true(w.pages[i] != old.pages[0] && w.pages[i] != old.pages[1]);
    frame = frame_of(&w, 0, 0, 2);
    land(&w, &frame, &young);
    finish_landing(&w, &old, true); /* it frees its pages and proves nothing about the new lease */
    assert_int_equal(bt_kv_page_state(w.pool, old.pages[0]), BT_PAGE_FREE);
    assert_int_equal(counters(&w)->bytes, 0);
    finish_landing(&w, &young, true);
    assert_int_equal(counters(&w)->bytes, 2 * PAGE_BYTES);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_CANCELLED);
    close_world(&w);
}

static void test_a_frame_that_breaks_off_completes_nothing(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    arm(&w, 1);
    struct bt_kv_landing landing;
    struct bt_kv_frame frame = frame_of(&w, 0, 0, 1);
    land(&w, &frame, &landing);
    bt_kv_recv_frame_end(w.recv, w.now_us, &landing, false, NULL, NULL);
    drain(&w);
    assert_int_equal(w.n_actions, 0);
    assert_int_equal(counters(&w)->bytes, 0);
    say(&w, LINK, commit_of(&w, 1));
    assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_INCOMPLETE);
    check_aborted(&w, 1, BT_KV_REASON_INCOMPLETE);
    close_world(&w);
}

static void test_a_prefix_that_is_here_is_not_sent(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    int32_t tokens[BT_PAGE_TOKENS] = {5};
    assert_true(bt_kv_hold_reserve(w.pool, &w.hold, 1));
    bt_kv_hold_bind(w.pool, &w.hold, 1, BT_PAGE_FILLING);
    bt_kv_page_move(w.pool, w.pages[0], BT_PAGE_LIVE);
    bt_kv_pool_publish(w.pool, &w.hold, 0, root, tokens);
    bt_kv_hold_release(w.pool, &w.hold);
    assert_int_equal(bt_kv_hold_pin(w.pool, &w.hold, root, tokens, 1), 1);
    assert_true(bt_kv_hold_reserve(w.pool, &w.hold, PROMPT_PAGES - 1 + 2)); /* two to grow into */
    assert_int_equal(expect(&w, 1), BT_OK);
    hello(&w, LINK, 1);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_GRANT)->pages_held, 1);
    check_grant_of(&w, 0);
    refuse_frame(&w, LINK, frame_of(&w, 0, 0, 1), &counters(&w)->refused_range);
    refuse_frame(&w, LINK, frame_of(&w, 0, 0, 2), &counters(&w)->refused_range);
    fill(&w);
    struct bt_kv_msg msg = commit_of(&w, 1);
    assert_int_equal(msg.n_sums, (PROMPT_PAGES - 1) * N_LAYERS);
    say(&w, LINK, msg);
    check_committed(&w, 0);
    assert_int_equal(w.hold.n_reserved, 2);
    close_world(&w);
}

/* ---- commit ---- */

static void test_a_commit_is_compared_with_our_own_copy(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    const struct bt_kv_recv_counters *c = counters(&w);
    struct {
        enum bt_kv_reason reason;
        const uint64_t *counter;
    } cases[] = {
        {BT_KV_REASON_UNKNOWN, &c->refused_generation},
        {BT_KV_REASON_UNKNOWN, &c->refused_generation},
        {BT_KV_REASON_LAYOUT, &c->refused_layout},
        {BT_KV_REASON_PROMPT, &c->refused_prompt},
        {BT_KV_REASON_CHECKSUM, &c->refused_checksum},
        {BT_KV_REASON_CHECKSUM, &c->refused_checksum},
    };
    for (uint64_t i = 0; i < 6; i++) {
        arm(&w, 100 + i);
        fill(&w);
        struct bt_kv_msg msg = commit_of(&w, 100 + i);
        msg.lease += i == 0;
        msg.generation += i == 1;
        msg.fingerprint_hash += i == 2;
        msg.chain.lo += i == 3;
        msg.manifest += i == 4;
        msg.n_sums += i == 5;
        uint64_t before = *cases[i].counter, commits = c->refused_commit;
        say(&w, LINK, msg);
        assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, cases[i].reason);
        check_aborted(&w, 1, cases[i].reason);
        assert_int_equal(*cases[i].counter, before + 1);
        assert_int_equal(c->refused_commit, commits + 1);
        say(&w, LINK, msg); /* asked again: told again */
        assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, cases[i].reason);
        assert_int_equal(w.n_actions, 1);
    }
    assert_int_equal(c->committed, 0);
    close_world(&w);
}

static void test_a_strangers_commit_touches_nothing(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    say(&w, LINK, commit_of(&w, 1)); /* of nothing */
    assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_UNKNOWN);
    hello(&w, LINK, 1);
    say(&w, LINK, commit_of(&w, 1)); /* of what is parked */
    sent(&w, 0, LINK, BT_KV_ABORTED);
    say(&w, LINK, (struct bt_kv_msg){.type = BT_KV_WITHDRAWN, .ticket = ticket_of(1)});
    assert_int_equal(expect(&w, 1), BT_OK);
    say(&w, LINK, commit_of(&w, 1)); /* not granted yet */
    sent(&w, 0, LINK, BT_KV_ABORTED);
    assert_int_equal(w.n_actions, 1);
    say(&w, LINK + 1, (struct bt_kv_msg){.type = BT_KV_WITHDRAWN, .ticket = ticket_of(1)});
    assert_int_equal(w.n_actions, 0);
    hello(&w, LINK, 1);
    check_grant_of(&w, 0);
    say(&w, LINK + 1, (struct bt_kv_msg){.type = BT_KV_WITHDRAWN, .ticket = ticket_of(1)});
    assert_int_equal(w.n_actions, 0);
    fill(&w);
    say(&w, LINK + 1, commit_of(&w, 1));
    assert_int_equal(sent(&w, 0, LINK + 1, BT_KV_ABORTED)->reason, BT_KV_REASON_UNKNOWN);
    assert_int_equal(w.n_actions, 1);
    say(&w, LINK, (struct bt_kv_msg){.type = BT_KV_GRANT, .ticket = ticket_of(1)});
    assert_int_equal(counters(&w)->refused_message, 1);
    say(&w, LINK, (struct bt_kv_msg){.type = BT_KV_HELLO});
    say(&w, LINK + 2, commit_of(&w, 1)); /* a link that is not up */
    assert_int_equal(w.n_actions, 0);
    say(&w, LINK, commit_of(&w, 1));
    check_committed(&w, 0);
    close_world(&w);
}

/* Arms a lease whose last frame is in flight when commit comes. */
static void commit_early(struct world *w, uint64_t ticket, struct bt_kv_landing *landing) {
    arm(w, ticket);
    struct bt_kv_frame frame = frame_of(w, 0, 0, PROMPT_PAGES);
    land(w, &frame, landing);
    finish_landing(w, landing, true);
    frame.layer = 1;
    land(w, &frame, landing);
    say(w, LINK, commit_of(w, ticket));
    assert_int_equal(w->n_actions, 0);
}

static void test_a_commit_waits_for_receives_in_flight(void **state) {
    (void)state;
    struct world w;
    struct bt_kv_landing landing;
    open_world(&w, PAGE_BYTES);
    commit_early(&w, 1, &landing);
    say(&w, LINK, commit_of(&w, 1));
    hello(&w, LINK, 1);
    sent(&w, 0, LINK, BT_KV_REFUSED);
    assert_int_equal(expect(&w, 1), BT_E_INVALID);
    bt_kv_recv_forbid(w.recv, w.now_us, ticket_of(1));
    refuse_frame(&w, LINK, frame_of(&w, 0, 0, 1), &counters(&w)->refused_order);
    finish_landing(&w, &landing, true);
    check_committed(&w, 0);
    bt_kv_hold_release(w.pool, &w.hold);

    commit_early(&w, 2, &landing);
    bt_kv_recv_frame_end(w.recv, w.now_us, &landing, false, NULL, NULL);
    drain(&w);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_INCOMPLETE);
    check_aborted(&w, 1, BT_KV_REASON_INCOMPLETE);

    commit_early(&w, 3, &landing);
    say(&w, LINK, (struct bt_kv_msg){.type = BT_KV_WITHDRAWN, .ticket = ticket_of(3)});
    assert_int_equal(w.actions[0].type, BT_KV_RECV_CUT);
    check_aborted(&w, 1, BT_KV_REASON_PEER);
    finish_landing(&w, &landing, true);

    commit_early(&w, 4, &landing);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_LEASE);
    drain(&w);
    assert_int_equal(sent(&w, 1, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_LEASE);
    finish_landing(&w, &landing, false);

    commit_early(&w, 5, &landing);
    bt_kv_recv_link_down(w.recv, w.now_us, LINK);
    drain(&w);
    check_aborted(&w, 1, BT_KV_REASON_LINK);
    finish_landing(&w, &landing, false);
    assert_int_equal(bt_kv_pool_available(w.pool), N_PAGES);
    close_world(&w);
}

/* ---- ends ---- */

static void test_a_lost_link_ends_what_was_granted_on_it(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    assert_int_equal(expect(&w, 1), BT_OK);
    bt_kv_recv_link_down(w.recv, w.now_us, LINK);
    drain(&w);
    assert_int_equal(w.n_actions, 0); /* P may dial again and say hello then */
    bt_kv_recv_link_down(w.recv, w.now_us, LINK);
    bt_kv_recv_link_up(w.recv, w.now_us, LINK, peer);
    hello(&w, LINK, 1);
    check_grant_of(&w, 0);
    bt_kv_recv_link_down(w.recv, w.now_us, LINK + 1); /* another one */
    drain(&w);
    assert_int_equal(w.n_actions, 0);
    bt_kv_recv_link_down(w.recv, w.now_us, LINK);
    drain(&w);
    check_aborted(&w, 0, BT_KV_REASON_LINK);
    assert_int_equal(w.n_actions, 1);
    bt_kv_recv_link_up(w.recv, w.now_us, LINK, peer);
    hello(&w, LINK, 1);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_REFUSED)->reason, BT_KV_REASON_UNKNOWN);
    close_world(&w);
}

static void test_p_gives_up(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    struct bt_kv_msg msg = {.type = BT_KV_WITHDRAWN, .ticket = ticket_of(1)};
    say(&w, LINK, msg);
    assert_int_equal(w.n_actions, 0);
    assert_int_equal(expect(&w, 1), BT_OK);
    say(&w, LINK, msg); /* its hello has expired here, and it does not know yet */
    check_aborted(&w, 0, BT_KV_REASON_PEER);
    msg.ticket = ticket_of(2);
    arm(&w, 2);
    bt_kv_recv_forbid(w.recv, w.now_us, ticket_of(2));
    assert_int_equal(expect(&w, 2), BT_E_INVALID);
    say(&w, LINK, msg);
    check_aborted(&w, 0, BT_KV_REASON_PEER);
    assert_int_equal(w.n_actions, 1);
    assert_int_equal(counters(&w)->aborted, 2);
    close_world(&w);
}

static void test_every_pair_was_reached(void **state) {
    (void)state;
    for (uint32_t i = 0; i < sizeof reached / sizeof *reached; i++) {
        bool handled;
        const char *name = bt_kv_recv_pair_name(i, &handled);
        bool possible = table[i / BT_KV_RECV_EVENT_COUNT][i % BT_KV_RECV_EVENT_COUNT] != '-';
        if ((reached[i] > 0) != possible)
            fail_msg("%s: reached %u times", name, reached[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_sizes_out_of_bounds),
        cmocka_unit_test(test_create_survives_each_failed_allocation),
        cmocka_unit_test(test_reserve_before_hello),
        cmocka_unit_test(test_hello_before_reserve),
        cmocka_unit_test(test_a_ticket_shown_by_two_workers_is_the_expected_ones),
        cmocka_unit_test(test_hello_of_another_incarnation_is_refused),
        cmocka_unit_test(test_hello_of_another_prompt_ends_the_lease),
        cmocka_unit_test(test_parked_hellos_are_few_and_do_not_stay),
        cmocka_unit_test(test_ended_tickets_are_refused_for_two_leases),
        cmocka_unit_test(test_expect_says_why_not),
        cmocka_unit_test(test_hostile_frames_do_not_land),
        cmocka_unit_test(test_a_large_page_comes_in_pieces_in_order),
        cmocka_unit_test(test_the_last_piece_must_end_last),
        cmocka_unit_test(test_a_wrong_sum_ends_the_lease),
        cmocka_unit_test(test_pages_are_quarantined_while_a_receive_is_in_flight),
        cmocka_unit_test(test_a_frame_that_breaks_off_completes_nothing),
        cmocka_unit_test(test_a_prefix_that_is_here_is_not_sent),
        cmocka_unit_test(test_a_commit_is_compared_with_our_own_copy),
        cmocka_unit_test(test_a_strangers_commit_touches_nothing),
        cmocka_unit_test(test_a_commit_waits_for_receives_in_flight),
        cmocka_unit_test(test_a_lost_link_ends_what_was_granted_on_it),
        cmocka_unit_test(test_p_gives_up),
        cmocka_unit_test(test_every_pair_was_reached),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

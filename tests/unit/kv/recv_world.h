/* What the tests of the receiving half share: a pool, a receiving half, one prompt of three pages.
 */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <xxhash.h>
#include <cmocka.h>

#include "common/kv/kv_recv.h"

enum { N_LAYERS = 2, PAGE_BYTES = 64, N_PAGES = 16, PROMPT_PAGES = 3, N_TOKENS = 40, LINK = 5 };
static const uint64_t layout = 0x1234;
static const struct bt_id peer = {11, 12}, other_peer = {13, 14}, chain = {21, 22};

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

static inline struct bt_id ticket_of(uint64_t n) {
    return (struct bt_id){n, ~n};
}

static inline struct bt_kv_recv_config config_of(struct bt_kv_pool *pool, uint32_t page_bytes) {
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

static inline void open_world(struct world *w, uint32_t page_bytes) {
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
static inline void drain(struct world *w) {
    w->n_actions = 0;
    while (bt_kv_recv_next(w->recv, &w->actions[w->n_actions]))
        w->n_actions++;
    assert_true(bt_kv_recv_is_valid(w->recv));
    assert_true(bt_kv_pool_is_valid(w->pool));
}

/* Pairs of state and event that any test has reached. */
static uint32_t reached[64];

static inline void close_world(struct world *w) {
    uint32_t n_pairs;
    const uint32_t *coverage = bt_kv_recv_coverage(w->recv, &n_pairs);
    assert_true(n_pairs <= sizeof reached / sizeof *reached);
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

static inline bt_status expect(struct world *w, uint64_t ticket) {
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

static inline void say(struct world *w, uint32_t link, struct bt_kv_msg msg) {
    bt_kv_recv_message(w->recv, w->now_us, link, &msg);
    drain(w);
}

static inline void hello(struct world *w, uint32_t link, uint64_t ticket) {
    say(w, link,
        (struct bt_kv_msg){.type = BT_KV_HELLO,
                           .ticket = ticket_of(ticket),
                           .chain = chain,
                           .n_tokens = N_TOKENS});
}

static inline void check_grant_of(struct world *w, uint32_t i) {
    const struct bt_kv_msg *msg = sent(w, i, LINK, BT_KV_GRANT);
    assert_int_equal(msg->pages, PROMPT_PAGES);
    assert_int_equal(msg->lease, w->lease);
    assert_true(msg->generation > w->generation);
    w->generation = msg->generation;
    assert_int_equal(w->actions[i + 1].type, BT_KV_RECV_GRANTED);
    assert_int_equal(w->actions[i + 1].user, 77);
    assert_int_equal(w->n_actions, i + 2);
}

static inline void arm(struct world *w, uint64_t ticket) {
    assert_int_equal(expect(w, ticket), BT_OK);
    assert_int_equal(w->n_actions, 0);
    hello(w, LINK, ticket);
    check_grant_of(w, 0);
}

static inline struct bt_kv_frame frame_of(const struct world *w, uint32_t layer, uint32_t first,
                                          uint32_t n) {
    return (struct bt_kv_frame){.lease = w->lease,
                                .generation = w->generation,
                                .layer = layer,
                                .first_page = first,
                                .n_pages = n,
                                .length = n * PAGE_BYTES};
}

static inline uint64_t sum_of(uint32_t layer, uint32_t page) {
    return 1000 + layer * 100 + page;
}

static inline void land(struct world *w, const struct bt_kv_frame *frame,
                        struct bt_kv_landing *landing) {
    struct bt_error err = {0};
    assert_int_equal(bt_kv_recv_frame(w->recv, w->now_us, LINK, frame, landing, &err), BT_OK);
    drain(w);
    assert_int_equal(w->n_actions, 0);
}

static inline void finish_landing(struct world *w, const struct bt_kv_landing *landing,
                                  bool whole) {
    uint64_t sums[BT_KV_FRAME_PAGES];
    for (uint32_t i = 0; i < landing->frame.n_pages; i++)
        sums[i] = sum_of(landing->frame.layer, landing->frame.first_page + i);
    bt_kv_recv_frame_end(w->recv, w->now_us, landing, whole, sums, sums);
    drain(w);
}

/* Everything lands but what D has. */
static inline void fill(struct world *w) {
    uint32_t held = w->hold.n_shared;
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
        struct bt_kv_frame frame = frame_of(w, layer, held, PROMPT_PAGES - held);
        struct bt_kv_landing landing;
        land(w, &frame, &landing);
        finish_landing(w, &landing, true);
        assert_int_equal(w->n_actions, 0);
    }
}

static inline struct bt_kv_msg commit_of(const struct world *w, uint64_t ticket) {
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

static inline void check_aborted(const struct world *w, uint32_t i, enum bt_kv_reason reason) {
    assert_true(i < w->n_actions);
    assert_int_equal(w->actions[i].type, BT_KV_RECV_ABORTED);
    assert_int_equal(w->actions[i].user, 77);
    assert_int_equal(w->actions[i].reason, reason);
    assert_int_equal(w->hold.n_pages + w->hold.n_reserved, 0);
}

static inline void check_committed(const struct world *w, uint32_t i) {
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

static inline void refuse_frame(struct world *w, uint32_t link, struct bt_kv_frame frame,
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

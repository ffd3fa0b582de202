/* Whole hand-offs over each kind of link: pool, sending and receiving core and link together. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <event2/event.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>
#include <xxhash.h>

#include "common/base/block_hash.h"
#include "common/kv/kv_link.h"
#include "common/kv/kv_link_local.h"
#include "common/kv/kv_pool.h"
#include "common/kv/kv_recv.h"
#include "common/kv/kv_send.h"

enum { WAIT_S = 30, MAX_JOBS = 8, MAX_PAGES = 128 };

static const struct bt_logprobs first_logprobs = {
    .logprob = -0.25f, .n_top = 2, .top = {{42, -0.25f}, {7, -2}}};

/* One prompt on one worker. */
struct job {
    struct bt_kv_hold hold;
    uint32_t pages[MAX_PAGES];
    struct bt_id ticket;
    uint32_t n_tokens, n_pages, id, held;
    uint32_t salt;       /* of the bytes that its pages get */
    bool is_held, hurry; /* P: computes in one go once granted, else layer by layer */
    uint32_t next_layer;
    bool is_granted, is_committed, is_released, is_ended;
    enum bt_kv_reason reason;
    struct bt_kv_msg commit;
    uint32_t place; /* among the worker's commits, from 1 */
};

struct worker {
    struct event_base *base;
    bool prefill;
    const struct bt_kv_link_ops *ops;
    struct bt_kv_links *links;
    struct bt_kv_pool *pool;
    struct bt_kv_send *send;
    struct bt_kv_recv *recv;
    uint32_t n_layers, n_pages, page_bytes;
    uint8_t *memory;
    struct bt_id incarnation;
    uint32_t n_up, n_down;
    char why[BT_ERROR_TEXT_BYTES];
    uint32_t link;
    struct job jobs[MAX_JOBS];
    uint32_t most_quarantined, n_committed, n_receiving;
};

struct world {
    struct event_base *base;
    struct event *tick;
    struct worker p, d;
};

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

#define UNTIL(world, condition)                                      \
    do {                                                             \
        uint64_t end_ = now_us() + WAIT_S * 1000000ull;              \
        while (!(condition)) {                                       \
            if (now_us() > end_)                                     \
                fail_msg("not within %d s: %s", WAIT_S, #condition); \
            event_base_loop((world)->base, EVLOOP_ONCE);             \
        }                                                            \
    } while (0)

/* ---- the workers' glue ---- */

static uint8_t *on_page(void *arg, uint32_t layer, uint32_t page) {
    struct worker *w = arg;
    assert_true(layer < w->n_layers && page < w->n_pages);
    return w->memory + ((size_t)layer * w->n_pages + page) * w->page_bytes;
}

static void on_up(void *arg, uint32_t link, struct bt_id peer) {
    struct worker *w = arg;
    w->n_up++;
    w->link = link;
    if (w->prefill)
        bt_kv_send_link_up(w->send, now_us(), link);
    else
        bt_kv_recv_link_up(w->recv, now_us(), link, peer);
}

static void on_down(void *arg, uint32_t link, const char *why) {
    struct worker *w = arg;
    w->n_down++;
    strcpy(w->why, why);
    if (w->prefill)
        bt_kv_send_link_down(w->send, now_us(), link);
    else
        bt_kv_recv_link_down(w->recv, now_us(), link);
}

static void on_message(void *arg, uint32_t link, const struct bt_kv_msg *msg) {
    struct worker *w = arg;
    if (w->prefill)
        bt_kv_send_message(w->send, now_us(), link, msg);
    else
        bt_kv_recv_message(w->recv, now_us(), link, msg);
}

static bt_status on_frame(void *arg, uint32_t link, const struct bt_kv_frame *frame,
                          struct bt_kv_landing *out, struct bt_error *err) {
    struct worker *w = arg;
    bt_status status = bt_kv_recv_frame(w->recv, now_us(), link, frame, out, err);
    w->n_receiving += status == BT_OK;
    return status;
}

static void on_frame_end(void *arg, uint32_t link, const struct bt_kv_landing *landing, bool whole,
                         const uint64_t *carried, const uint64_t *computed) {
    struct worker *w = arg;
    (void)link;
    w->n_receiving--;
    bt_kv_recv_frame_end(w->recv, now_us(), landing, whole, carried, computed);
}

static bool on_next_frame(void *arg, uint32_t link, struct bt_kv_outgoing *out) {
    return bt_kv_send_next_frame(((struct worker *)arg)->send, now_us(), link, out);
}

static void on_frame_done(void *arg, uint32_t link, uint32_t id) {
    bt_kv_send_frame_done(((struct worker *)arg)->send, now_us(), link, id);
}

/* The bytes that a prompt's page has in a layer, on both sides known by (salt, layer, index). */
static void fill(struct worker *w, uint8_t *out, uint32_t salt, uint32_t layer, uint32_t index) {
    uint32_t x = salt * 40503 + layer * 7919 + index * 104729 + 1;
    for (uint32_t i = 0; i < w->page_bytes / 4; i++) {
        x = x * 1664525 + 1013904223;
        memcpy(out + 4 * (size_t)i, &x, 4);
    }
}

static void compute_layer(struct worker *w, struct job *job) {
    uint32_t layer = job->next_layer++;
    for (uint32_t i = 0; i < job->n_pages; i++) {
        uint8_t *page = on_page(w, layer, job->pages[i]);
        fill(w, page, job->salt, layer, i);
        *bt_kv_page_sum(w->pool, layer, job->pages[i]) = XXH3_64bits(page, w->page_bytes);
    }
    bt_kv_send_ready(w->send, now_us(), job->id, layer, job->n_pages);
}

static void on_granted(struct worker *w, struct job *job) {
    assert_true(bt_kv_hold_reserve(w->pool, &job->hold, job->n_pages));
    bt_kv_hold_bind(w->pool, &job->hold, job->n_pages, BT_PAGE_FILLING);
    bt_kv_send_bind(w->send, job->id, &job->hold);
    job->is_granted = true;
}

static void drain_send(struct worker *w) {
    struct bt_kv_send_action a;
    while (bt_kv_send_next(w->send, &a)) {
        struct job *job = &w->jobs[a.user];
        switch (a.type) {
        case BT_KV_SEND_MSG:
            w->ops->send(w->links, a.link, &a.msg);
            break;
        case BT_KV_SEND_FRAMES:
            w->ops->pump(w->links, a.link);
            break;
        case BT_KV_SEND_GRANTED:
            job->held = a.pages_held;
            on_granted(w, job);
            break;
        case BT_KV_SEND_ENDED:
            job->is_ended = true;
            job->reason = a.reason;
            break;
        case BT_KV_SEND_COMMITTED:
            job->is_committed = true;
            break;
        case BT_KV_SEND_RELEASED:
            bt_kv_hold_release(w->pool, &job->hold);
            job->is_released = true;
            break;
        }
    }
    assert_true(bt_kv_send_is_valid(w->send));
}

static void drain_recv(struct worker *w) {
    struct bt_kv_recv_action a;
    while (bt_kv_recv_next(w->recv, &a)) {
        struct job *job = &w->jobs[a.user];
        switch (a.type) {
        case BT_KV_RECV_SEND:
            w->ops->send(w->links, a.link, &a.msg);
            break;
        case BT_KV_RECV_CUT:
            w->ops->cut(w->links, a.link, a.lease);
            break;
        case BT_KV_RECV_GRANTED:
            job->is_granted = true;
            break;
        case BT_KV_RECV_COMMITTED:
            job->is_committed = true;
            job->place = ++w->n_committed;
            job->commit = a.msg;
            break;
        case BT_KV_RECV_ABORTED:
            job->is_ended = true;
            job->reason = a.reason;
            break;
        }
    }
    assert_true(bt_kv_recv_is_valid(w->recv));
}

static void on_turn(void *arg) {
    struct worker *w = arg;
    struct bt_census census;
    if (w->prefill)
        drain_send(w);
    else
        drain_recv(w);
    bt_kv_pool_census(w->pool, &census);
    if (census.quarantined > w->most_quarantined)
        w->most_quarantined = census.quarantined;
    assert_int_equal(census.free + census.cached + census.reserved + census.filling + census.armed +
                         census.landed + census.live + census.quarantined,
                     census.total);
}

/* Each turn P computes one layer of each prompt that was granted. */
static void on_tick(evutil_socket_t fd, short what, void *arg) {
    struct world *world = arg;
    struct worker *p = &world->p;
    (void)fd, (void)what;
    for (uint32_t i = 0; p->send && i < MAX_JOBS; i++) {
        struct job *job = &p->jobs[i];
        while (job->is_granted && !job->is_held && !job->is_released && !job->is_ended &&
               job->next_layer < p->n_layers) {
            compute_layer(p, job);
            if (job->next_layer == p->n_layers)
                bt_kv_send_finish(p->send, now_us(), job->id, 42, BT_FINISH_NONE, 0x1234567,
                                  &first_logprobs);
            drain_send(p);
            if (!job->hurry)
                break;
        }
    }
}

/* ---- the world ---- */

static void open_worker(struct worker *w, struct event_base *base, const char *kind, bool prefill,
                        const struct bt_fingerprint *layout, uint32_t n_pages,
                        uint32_t page_bytes) {
    struct bt_error err = {0};
    struct bt_kv_pool_config pool = {
        .n_pages = n_pages, .n_layers = layout->n_layers, .n_changes = 256};
    w->base = base;
    w->prefill = prefill;
    w->ops = bt_kv_link_find(kind);
    w->n_layers = layout->n_layers;
    w->n_pages = n_pages;
    w->page_bytes = page_bytes;
    w->incarnation = (struct bt_id){77, prefill};
    w->memory = calloc((size_t)w->n_layers * n_pages, page_bytes);
    assert_non_null(w->memory);
    assert_int_equal(bt_kv_pool_create(&pool, &w->pool, &err), BT_OK);
    struct bt_kv_send_config send = {.pool = w->pool,
                                     .n_layers = w->n_layers,
                                     .page_bytes = page_bytes,
                                     .fingerprint_hash = bt_fingerprint_hash(layout),
                                     .max_sends = MAX_JOBS};
    struct bt_kv_recv_config recv = {.pool = w->pool,
                                     .n_layers = w->n_layers,
                                     .page_bytes = page_bytes,
                                     .fingerprint_hash = bt_fingerprint_hash(layout),
                                     .max_leases = MAX_JOBS,
                                     .max_pages = MAX_PAGES,
                                     .max_parked = 8,
                                     .max_ended = 64};
    if (prefill)
        assert_int_equal(bt_kv_send_create(&send, &w->send, &err), BT_OK);
    else
        assert_int_equal(bt_kv_recv_create(&recv, &w->recv, &err), BT_OK);
    struct bt_kv_links_config links = {
        .base = base,
        .user = {.arg = w,
                 .up = on_up,
                 .down = on_down,
                 .message = on_message,
                 .frame = on_frame,
                 .frame_end = on_frame_end,
                 .next_frame = on_next_frame,
                 .frame_done = on_frame_done,
                 .page = on_page,
                 .turn = on_turn},
        .prefill = prefill,
        .name = "worker",
        .incarnation = w->incarnation,
        .fingerprint = *layout,
        .n_layers = w->n_layers,
        .page_bytes = page_bytes,
        .listen = "127.0.0.1:0",
    };
    assert_int_equal(w->ops->create(&links, &w->links, &err), BT_OK);
    for (uint32_t i = 0; i < MAX_JOBS; i++)
        w->jobs[i].hold = (struct bt_kv_hold){.pages = w->jobs[i].pages, .capacity = MAX_PAGES};
}

static struct world *open_world(const char *kind, uint32_t n_layers, uint32_t n_pages,
                                uint32_t page_bytes) {
    const struct timeval period = {.tv_usec = 1000};
    struct world *world = calloc(1, sizeof *world);
    assert_non_null(world);
    struct bt_error err = {0};
    struct bt_fingerprint layout = {.model_hash = 1,
                                    .n_layers = n_layers,
                                    .n_kv_heads = 3,
                                    .head_dim = 64,
                                    .page_tokens = BT_PAGE_TOKENS,
                                    .kv_type = BT_KV_BF16,
                                    .wire_type = BT_KV_BF16,
                                    .inner_order = BT_KV_INNER_ORDER_CPU,
                                    .profile = BT_PROFILE_FAST,
                                    .contract = BT_NUMERICS_CONTRACT};
    world->base = event_base_new();
    world->tick = event_new(world->base, -1, EV_PERSIST, on_tick, world);
    assert_true(world->base && world->tick && !event_add(world->tick, &period));
    open_worker(&world->d, world->base, kind, false, &layout, n_pages, page_bytes);
    open_worker(&world->p, world->base, kind, true, &layout, n_pages, page_bytes);
    assert_int_equal(world->p.ops->dial(world->p.links, 0, world->d.ops->address(world->d.links),
                                        world->d.incarnation, &err),
                     BT_OK);
    UNTIL(world, world->p.n_up && world->d.n_up);
    return world;
}

static void close_worker(struct worker *w) {
    if (w->links)
        w->ops->destroy(w->links);
    w->links = NULL;
    bt_kv_send_destroy(w->send);
    bt_kv_recv_destroy(w->recv);
    w->send = NULL;
    w->recv = NULL;
}

/* Everything that was held is given back: nothing is lost anywhere. */
static void close_world(struct world *world) {
    struct worker *both[] = {&world->p, &world->d};
    close_worker(&world->p);
    close_worker(&world->d);
    for (int k = 0; k < 2; k++) {
        for (uint32_t i = 0; i < MAX_JOBS; i++)
            bt_kv_hold_release(both[k]->pool, &both[k]->jobs[i].hold);
        bt_kv_pool_flush(both[k]->pool);
        assert_true(bt_kv_pool_is_valid(both[k]->pool));
        assert_int_equal(bt_kv_pool_available(both[k]->pool), both[k]->n_pages);
        bt_kv_pool_destroy(both[k]->pool);
        free(both[k]->memory);
    }
    event_free(world->tick);
    event_base_free(world->base);
    free(world);
}

/* ---- prompts ---- */

static const struct bt_id root = {5, 6};

static int32_t token_at(uint32_t salt, uint32_t i) {
    return (int32_t)((salt * 1000003 + i * 7) % 50000);
}

/* Prompt `salt` of n tokens, on both workers as job i: D reserves and expects, P offers. */
static void start(struct world *world, uint32_t i, uint32_t salt, uint32_t n_tokens,
                  uint64_t deadline_us) {
    int32_t *tokens = calloc(n_tokens, sizeof *tokens);
    assert_non_null(tokens);
    for (uint32_t t = 0; t < n_tokens; t++)
        tokens[t] = token_at(salt, t);
    struct job *p = &world->p.jobs[i], *d = &world->d.jobs[i];
    p->salt = d->salt = salt;
    p->n_tokens = d->n_tokens = n_tokens;
    p->n_pages = d->n_pages = (n_tokens + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
    p->ticket = d->ticket = (struct bt_id){i + 1, now_us()};
    struct bt_id chain = bt_block_prompt(root, tokens, n_tokens);
    bt_kv_hold_pin(world->d.pool, &d->hold, root, tokens, n_tokens / BT_PAGE_TOKENS);
    assert_true(bt_kv_hold_reserve(world->d.pool, &d->hold, d->n_pages - d->hold.n_shared));
    struct bt_kv_expect expect = {.ticket = d->ticket,
                                  .peer = world->p.incarnation,
                                  .chain = chain,
                                  .n_tokens = n_tokens,
                                  .n_pages = d->n_pages,
                                  .hold = &d->hold,
                                  .user = i};
    assert_int_equal(bt_kv_recv_expect(world->d.recv, now_us(), &expect, &d->id), BT_OK);
    drain_recv(&world->d);
    struct bt_kv_offer offer = {.ticket = p->ticket,
                                .chain = chain,
                                .n_tokens = n_tokens,
                                .n_pages = p->n_pages,
                                .link = 0,
                                .deadline_us = deadline_us,
                                .user = i};
    assert_int_equal(bt_kv_send_offer(world->p.send, now_us(), &offer, &p->id), BT_OK);
    drain_send(&world->p);
    free(tokens);
}

/* D has exactly the prompt's bytes. */
static void check_pages(struct world *world, uint32_t i) {
    struct worker *d = &world->d;
    struct job *job = &d->jobs[i];
    uint8_t *expected = malloc(d->page_bytes);
    assert_non_null(expected);
    assert_int_equal(job->hold.n_pages, job->n_pages);
    for (uint32_t layer = 0; layer < d->n_layers; layer++)
        for (uint32_t k = 0; k < job->n_pages; k++) {
            fill(d, expected, job->salt, layer, k);
            assert_memory_equal(on_page(d, layer, job->pages[k]), expected, d->page_bytes);
            assert_int_equal(bt_kv_page_state(d->pool, job->pages[k]), BT_PAGE_LIVE);
        }
    free(expected);
    assert_int_equal(job->commit.token, 42);
    assert_int_equal(job->commit.logits_hash, 0x1234567);
    assert_true(job->commit.has_logprobs);
    assert_memory_equal(&job->commit.logprobs, &first_logprobs, sizeof first_logprobs);
}

static void test_a_prompt_is_handed_off(const char *kind) {
    /* SmolLM2's shape: 30 layers, 12,288 bytes a page, 1,500 tokens: 35 MB. */
    struct world *world = open_world(kind, 30, 100, 12288);
    start(world, 0, 1, 1500, 1);
    UNTIL(world, world->p.jobs[0].is_released);
    assert_true(world->p.jobs[0].is_committed && world->d.jobs[0].is_committed);
    check_pages(world, 0);
    assert_int_equal(bt_kv_recv_counters(world->d.recv)->bytes, 94ull * 30 * 12288);
    assert_int_equal(bt_kv_send_counters(world->p.send)->bytes, 94ull * 30 * 12288);
    close_world(world);
}

static void test_pages_larger_than_a_frame(const char *kind) {
    struct world *world = open_world(kind, 2, 8, 600000);
    start(world, 0, 1, 70, 1);
    UNTIL(world, world->p.jobs[0].is_released);
    assert_true(world->d.jobs[0].is_committed);
    check_pages(world, 0);
    close_world(world);
}

static void test_the_earlier_deadline_goes_first(const char *kind) {
    struct world *world = open_world(kind, 30, 128, 12288);
    world->p.jobs[0].is_held = world->p.jobs[1].is_held = true;
    start(world, 0, 1, 1500, 2000);
    start(world, 1, 2, 60, 1000);
    UNTIL(world, world->p.jobs[0].is_granted && world->p.jobs[1].is_granted);
    world->p.jobs[0].is_held = world->p.jobs[1].is_held = false;
    world->p.jobs[0].hurry = world->p.jobs[1].hurry = true; /* all is ready in one go */
    UNTIL(world, world->p.jobs[0].is_released && world->p.jobs[1].is_released);
    assert_int_equal(world->d.jobs[1].place, 1);
    assert_int_equal(world->d.jobs[0].place, 2);
    check_pages(world, 0);
    check_pages(world, 1);
    close_world(world);
}

static void publish(struct worker *w, struct job *job) {
    struct bt_id previous = root;
    int32_t tokens[BT_PAGE_TOKENS];
    for (uint32_t b = 0; b < job->n_tokens / BT_PAGE_TOKENS; b++) {
        for (uint32_t t = 0; t < BT_PAGE_TOKENS; t++)
            tokens[t] = token_at(job->salt, b * BT_PAGE_TOKENS + t);
        bt_kv_pool_publish(w->pool, &job->hold, b, previous, tokens);
        previous = bt_block_next(previous, tokens);
    }
}

static void test_pages_that_d_holds_are_not_sent(const char *kind) {
    struct world *world = open_world(kind, 4, 64, 12288);
    start(world, 0, 1, 200, 1);
    UNTIL(world, world->p.jobs[0].is_released);
    publish(&world->d, &world->d.jobs[0]);
    uint64_t before = bt_kv_recv_counters(world->d.recv)->bytes;
    start(world, 1, 1, 500, 1); /* the same tokens and more: 12 whole blocks are known */
    UNTIL(world, world->p.jobs[1].is_released);
    assert_true(world->d.jobs[1].is_committed);
    assert_int_equal(world->p.jobs[1].held, 12);
    assert_int_equal(bt_kv_recv_counters(world->d.recv)->bytes - before, (32ull - 12) * 4 * 12288);
    check_pages(world, 1);
    close_world(world);
}

static void test_a_lost_link_ends_both_halves(const char *kind) {
    struct world *world = open_world(kind, 30, 128, 12288);
    start(world, 0, 1, 1500, 1);
    start(world, 1, 2, 300, 2);
    UNTIL(world, bt_kv_recv_counters(world->d.recv)->frames >= 10);
    /* P goes away in mid-transfer. */
    close_worker(&world->p);
    UNTIL(world, world->d.n_down == 1);
    for (int i = 0; i < 2; i++) {
        assert_false(world->d.jobs[i].is_committed);
        assert_true(world->d.jobs[i].is_ended);
        assert_int_equal(world->d.jobs[i].reason, BT_KV_REASON_LINK);
    }
    struct bt_census census;
    bt_kv_pool_census(world->d.pool, &census);
    assert_int_equal(census.free, 128);
    close_world(world);
}

static void test_d_that_goes_away_frees_p(const char *kind) {
    struct world *world = open_world(kind, 30, 128, 12288);
    start(world, 0, 1, 1500, 1);
    UNTIL(world, bt_kv_recv_counters(world->d.recv)->frames >= 10);
    close_worker(&world->d);
    UNTIL(world, world->p.jobs[0].is_released);
    assert_true(world->p.jobs[0].is_ended);
    assert_int_equal(world->p.jobs[0].reason, BT_KV_REASON_LINK);
    assert_int_equal(bt_kv_pool_available(world->p.pool), 128);
    close_world(world);
}

/* D takes a lease back while its frames are on their way, and gives the pages to another prompt. */
static void test_an_aborted_lease_gets_no_byte(const char *kind) {
    struct world *world = open_world(kind, 30, 110, 12288);
    const struct bt_kv_local_timing slow_bulk = {.bulk_us = 3000};
    bool is_local = strcmp(kind, "local") == 0;
    if (is_local)
        bt_kv_link_local_set_timing(world->p.links, &slow_bulk);
    world->p.jobs[0].is_held = true;
    start(world, 0, 1, 1500, 1);
    UNTIL(world, world->p.jobs[0].is_granted);
    world->p.jobs[0].is_held = false;
    world->p.jobs[0].hurry = true;
    UNTIL(world, bt_kv_recv_counters(world->d.recv)->frames >= 5 &&
                     (!is_local || world->d.n_receiving > 0));
    bt_kv_recv_abort(world->d.recv, now_us(), world->d.jobs[0].id, BT_KV_REASON_PREEMPTED);
    on_turn(&world->d);
    /* On TCP all pages can be bound again at once; else when the last receive has ended. */
    if (is_local) {
        assert_true(world->d.most_quarantined > 0);
        UNTIL(world, bt_kv_pool_available(world->d.pool) == 110);
    }
    assert_int_equal(bt_kv_pool_available(world->d.pool), 110);
    UNTIL(world, world->p.jobs[0].is_released);
    assert_true(world->p.jobs[0].is_ended);
    assert_int_equal(world->p.jobs[0].reason, BT_KV_REASON_PREEMPTED);
    start(world, 1, 2, 1500, 1);
    UNTIL(world, world->p.jobs[1].is_released);
    assert_true(world->d.jobs[1].is_committed);
    check_pages(world, 1);
    assert_int_equal(world->d.n_down + world->d.n_receiving, 0);
    close_world(world);
}

static void test_a_page_that_changes_under_the_sender_is_caught(const char *kind) {
    struct world *world = open_world(kind, 4, 64, 12288);
    struct job *job = &world->p.jobs[0];
    start(world, 0, 1, 200, 1);
    UNTIL(world, job->is_granted);
    job->is_held = true;
    compute_layer(&world->p, job);
    on_page(&world->p, 0, job->pages[7])[100] ^= 4; /* after its sum was made */
    drain_send(&world->p);
    UNTIL(world, job->is_released);
    assert_int_equal(job->reason, BT_KV_REASON_CHECKSUM);
    assert_int_equal(world->d.jobs[0].reason, BT_KV_REASON_CHECKSUM);
    assert_int_equal(bt_kv_recv_counters(world->d.recv)->refused_checksum, 1);
    assert_int_equal(bt_kv_pool_available(world->d.pool), 64);
    close_world(world);
}

#define OVER_EACH(name)                      \
    static void name##_tcp(void **state) {   \
        (void)state;                         \
        test_##name("tcp");                  \
    }                                        \
    static void name##_local(void **state) { \
        (void)state;                         \
        test_##name("local");                \
    }
OVER_EACH(a_prompt_is_handed_off)
OVER_EACH(pages_larger_than_a_frame)
OVER_EACH(the_earlier_deadline_goes_first)
OVER_EACH(pages_that_d_holds_are_not_sent)
OVER_EACH(a_lost_link_ends_both_halves)
OVER_EACH(d_that_goes_away_frees_p)
OVER_EACH(an_aborted_lease_gets_no_byte)
OVER_EACH(a_page_that_changes_under_the_sender_is_caught)

#define EACH(name) cmocka_unit_test(name##_tcp), cmocka_unit_test(name##_local)
int main(void) {
    const struct CMUnitTest tests[] = {
        EACH(a_prompt_is_handed_off),          EACH(pages_larger_than_a_frame),
        EACH(the_earlier_deadline_goes_first), EACH(pages_that_d_holds_are_not_sent),
        EACH(a_lost_link_ends_both_halves),    EACH(d_that_goes_away_frees_p),
        EACH(an_aborted_lease_gets_no_byte),   EACH(a_page_that_changes_under_the_sender_is_caught),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

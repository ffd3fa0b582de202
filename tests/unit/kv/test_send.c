/* The sending half: hello to release, frames in turn, commits, every end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/kv/kv_send.h"

static int allocations_left = -1;
static void *failing_calloc(size_t n, size_t size) {
    if (allocations_left == 0)
        return NULL;
    if (allocations_left > 0)
        allocations_left--;
    return calloc(n, size);
}
#define calloc failing_calloc
#include "common/kv/kv_send.c"
#undef calloc

enum { N_LAYERS = 2, PAGE_BYTES = 1024, N_PAGES = 400, CAPACITY = 200, LINK = 3, MAX_SENDS = 3 };
static const uint64_t layout = 0x77;

struct world {
    struct bt_kv_pool *pool;
    struct bt_kv_send *send;
    struct bt_kv_hold holds[MAX_SENDS];
    uint32_t pages[MAX_SENDS][CAPACITY];
    struct bt_kv_send_action actions[16];
    uint32_t n_actions;
};

static uint32_t reached[BT_KV_SEND_STATE_COUNT * BT_KV_SEND_EVENT_COUNT];

static struct bt_kv_send_config config_of(struct bt_kv_pool *pool, uint32_t page_bytes) {
    return (struct bt_kv_send_config){.pool = pool,
                                      .n_layers = N_LAYERS,
                                      .page_bytes = page_bytes,
                                      .fingerprint_hash = layout,
                                      .max_sends = MAX_SENDS};
}

static void open_world(struct world *w, uint32_t page_bytes) {
    memset(w, 0, sizeof *w);
    struct bt_kv_pool_config pool = {.n_pages = N_PAGES, .n_layers = N_LAYERS, .n_changes = 16};
    assert_int_equal(bt_kv_pool_create(&pool, &w->pool, NULL), BT_OK);
    struct bt_kv_send_config config = config_of(w->pool, page_bytes);
    assert_int_equal(bt_kv_send_create(&config, &w->send, NULL), BT_OK);
    for (int i = 0; i < MAX_SENDS; i++) {
        w->holds[i].pages = w->pages[i];
        w->holds[i].capacity = CAPACITY;
    }
    bt_kv_send_link_up(w->send, 0, LINK);
}

static void drain(struct world *w) {
    w->n_actions = 0;
    while (bt_kv_send_next(w->send, &w->actions[w->n_actions]))
        w->n_actions++;
    assert_true(bt_kv_send_is_valid(w->send));
}

static void close_world(struct world *w) {
    uint32_t n_pairs;
    const uint32_t *coverage = bt_kv_send_coverage(w->send, &n_pairs);
    assert_int_equal(n_pairs, sizeof reached / sizeof *reached);
    for (uint32_t i = 0; i < n_pairs; i++)
        reached[i] += coverage[i];
    for (int i = 0; i < MAX_SENDS; i++)
        bt_kv_hold_release(w->pool, &w->holds[i]);
    assert_int_equal(bt_kv_pool_available(w->pool), N_PAGES);
    bt_kv_send_destroy(w->send);
    bt_kv_pool_destroy(w->pool);
}

static struct bt_id ticket_of(uint64_t n) {
    return (struct bt_id){n, ~n};
}

static bt_status offer(struct world *w, uint64_t ticket, uint32_t n_pages, uint64_t deadline_us,
                       uint32_t *id) {
    struct bt_kv_offer o = {.ticket = ticket_of(ticket),
                            .chain = {ticket, 5},
                            .n_tokens = n_pages * 16 - 1,
                            .n_pages = n_pages,
                            .link = LINK,
                            .deadline_us = deadline_us,
                            .user = (uint32_t)ticket};
    bt_status status = bt_kv_send_offer(w->send, 0, &o, id);
    drain(w);
    return status;
}

static void say(struct world *w, struct bt_kv_msg msg) {
    bt_kv_send_message(w->send, 0, LINK, &msg);
    drain(w);
}

static void check_action(const struct world *w, uint32_t i, enum bt_kv_send_action_type type,
                         uint64_t user) {
    assert_true(i < w->n_actions);
    assert_int_equal(w->actions[i].type, type);
    assert_int_equal(w->actions[i].user, user);
}

static const struct bt_kv_msg *said(const struct world *w, uint32_t i, enum bt_kv_msg_type type) {
    assert_true(i < w->n_actions);
    assert_int_equal(w->actions[i].type, BT_KV_SEND_MSG);
    assert_int_equal(w->actions[i].link, LINK);
    assert_int_equal(w->actions[i].msg.type, type);
    return &w->actions[i].msg;
}

/* ENDED and RELEASED are the last two actions. */
static void check_ended(const struct world *w, uint64_t user, enum bt_kv_reason reason) {
    assert_true(w->n_actions >= 2);
    check_action(w, w->n_actions - 2, BT_KV_SEND_ENDED, user);
    assert_int_equal(w->actions[w->n_actions - 2].reason, reason);
    check_action(w, w->n_actions - 1, BT_KV_SEND_RELEASED, user);
}

static struct bt_kv_msg grant_of(uint64_t ticket, uint32_t n_pages, uint32_t held) {
    return (struct bt_kv_msg){.type = BT_KV_GRANT,
                              .ticket = ticket_of(ticket),
                              .lease = 9,
                              .generation = 1000 + ticket,
                              .pages = n_pages,
                              .pages_held = held};
}

/* Hello, grant, pages taken. */
static uint32_t start(struct world *w, uint64_t ticket, uint32_t n_pages, uint32_t held,
                      uint64_t deadline_us) {
    uint32_t id = 99;
    assert_int_equal(offer(w, ticket, n_pages, deadline_us, &id), BT_OK);
    const struct bt_kv_msg *hello = said(w, 0, BT_KV_HELLO);
    assert_true(bt_id_equal(hello->ticket, ticket_of(ticket)));
    assert_int_equal(hello->chain.hi, ticket);
    assert_int_equal(hello->n_tokens, n_pages * 16 - 1);
    assert_int_equal(w->n_actions, 1);
    say(w, grant_of(ticket, n_pages, held));
    check_action(w, 0, BT_KV_SEND_GRANTED, ticket);
    assert_int_equal(w->actions[0].pages_held, held);
    struct bt_kv_hold *hold = &w->holds[id];
    bt_kv_hold_release(w->pool, hold);
    assert_true(bt_kv_hold_reserve(w->pool, hold, n_pages));
    bt_kv_hold_bind(w->pool, hold, n_pages, BT_PAGE_FILLING);
    for (uint32_t i = 0; i < n_pages; i++)
        for (uint32_t layer = 0; layer < N_LAYERS; layer++)
            *bt_kv_page_sum(w->pool, layer, hold->pages[i]) = ticket * 1000 + layer * 100 + i;
    bt_kv_send_bind(w->send, id, hold);
    drain(w);
    return id;
}

static void ready(struct world *w, uint32_t id, uint32_t layer, uint32_t n_pages) {
    bt_kv_send_ready(w->send, 0, id, layer, n_pages);
    drain(w);
}

static void ready_all(struct world *w, uint32_t id) {
    for (uint32_t layer = 0; layer < N_LAYERS; layer++)
        ready(w, id, layer, w->holds[id].n_pages);
}

static bool next(struct world *w, struct bt_kv_outgoing *out) {
    bool has = bt_kv_send_has_frame(w->send, LINK);
    assert_int_equal(bt_kv_send_next_frame(w->send, 0, LINK, out), has);
    drain(w);
    return has;
}

static void done(struct world *w, uint32_t id) {
    bt_kv_send_frame_done(w->send, 0, LINK, id);
    drain(w);
}

/* ---- life ---- */

static void test_refuses_sizes_out_of_bounds(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    struct bt_kv_send *send = NULL;
    struct bt_error err;
    struct bt_kv_send_config config = config_of(w.pool, 0);
    assert_int_equal(bt_kv_send_create(&config, &send, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "pages of 0 bytes"));
    config = config_of(w.pool, 1);
    config.max_sends = 0;
    assert_int_equal(bt_kv_send_create(&config, &send, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "0 sends, must be 1 to 65536"));
    config = config_of(w.pool, 1);
    config.n_layers = BT_KV_LAYERS_MAX + 1;
    assert_int_equal(bt_kv_send_create(&config, &send, &err), BT_E_INVALID);
    assert_null(send);
    bt_kv_send_destroy(NULL);
    close_world(&w);
}

static void test_create_survives_each_failed_allocation(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    struct bt_kv_send_config config = config_of(w.pool, PAGE_BYTES);
    int n = 0;
    for (;; n++) {
        struct bt_kv_send *send = NULL;
        struct bt_error err = {0};
        allocations_left = n;
        bt_status status = bt_kv_send_create(&config, &send, &err);
        allocations_left = -1;
        if (status == BT_OK) {
            bt_kv_send_destroy(send);
            break;
        }
        assert_int_equal(status, BT_E_NO_MEMORY);
        assert_non_null(strstr(err.text, "no memory"));
        assert_null(send);
    }
    assert_int_equal(n, 4);
    close_world(&w);
}

static void test_offer_says_why_not(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    uint32_t id;
    assert_int_equal(offer(&w, 1, 2, 0, &id), BT_OK);
    assert_int_equal(offer(&w, 1, 2, 0, &id), BT_E_INVALID);
    assert_int_equal(offer(&w, 2, 2, 0, &id), BT_OK);
    assert_int_equal(offer(&w, 3, 2, 0, &id), BT_OK);
    assert_int_equal(offer(&w, 4, 2, 0, &id), BT_E_FULL);
    struct bt_kv_offer zero = {.link = LINK, .n_pages = 1}, down = {.link = LINK + 1, .n_pages = 1};
    assert_int_equal(bt_kv_send_offer(w.send, 0, &zero, &id), BT_E_INVALID);
    assert_int_equal(bt_kv_send_offer(w.send, 0, &down, &id), BT_E_PEER_GONE);
    bt_kv_send_link_down(w.send, 0, LINK + 1); /* it never was up */
    drain(&w);
    assert_int_equal(w.n_actions, 0);
    assert_int_equal(bt_kv_send_counters(w.send)->offers, 3);
    close_world(&w);
}

/* ---- the way of one send ---- */

static void test_pages_go_as_layers_are_done_and_commit_follows(void **state) {
    (void)state;
    struct world w;
    struct bt_kv_outgoing out;
    open_world(&w, PAGE_BYTES);
    uint32_t id = start(&w, 1, 5, 2, 0);
    assert_false(next(&w, &out));
    ready(&w, id, 0, 1); /* D has it */
    assert_int_equal(w.n_actions, 0);
    assert_false(next(&w, &out));
    ready(&w, id, 0, 4);
    check_action(&w, 0, BT_KV_SEND_FRAMES, 0);
    assert_int_equal(w.actions[0].link, LINK);
    assert_true(next(&w, &out));
    assert_int_equal(out.id, id);
    struct bt_kv_frame *f = &out.frame;
    assert_int_equal(f->lease, 9);
    assert_int_equal(f->generation, 1001);
    assert_int_equal(f->layer, 0);
    assert_int_equal(f->first_page, 2);
    assert_int_equal(f->n_pages, 2);
    assert_int_equal(f->offset, 0);
    assert_int_equal(f->length, 2 * PAGE_BYTES);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(out.pages[i], w.pages[id][2 + i]);
        assert_int_equal(out.sums[i], 1000 + 2 + i);
    }
    assert_false(next(&w, &out));
    ready_all(&w, id);
    const struct bt_logprobs logprobs = {.logprob = -0.25f, .n_top = 1, .top = {{42, -0.25f}}};
    bt_kv_send_took(w.send, id, 77, 88);
    bt_kv_send_finish(w.send, 0, id, 42, BT_FINISH_STOP, 4242, &logprobs);
    drain(&w);
    assert_int_equal(w.n_actions, 0); /* not before the last frame */
    done(&w, id);
    assert_true(next(&w, &out));
    assert_int_equal(f->layer, 0);
    assert_int_equal(f->first_page, 4);
    assert_true(next(&w, &out));
    assert_int_equal(f->layer, 1);
    assert_int_equal(f->first_page, 2);
    assert_int_equal(f->n_pages, 3);
    assert_false(next(&w, &out));
    done(&w, id);
    assert_int_equal(w.n_actions, 0);
    done(&w, id);
    const struct bt_kv_msg *commit = said(&w, 0, BT_KV_COMMIT);
    assert_int_equal(commit->lease, 9);
    assert_int_equal(commit->generation, 1001);
    assert_int_equal(commit->n_sums, 3 * N_LAYERS);
    assert_int_equal(commit->manifest, bt_kv_hold_manifest(w.pool, &w.holds[id], 2));
    assert_int_equal(commit->fingerprint_hash, layout);
    assert_int_equal(commit->chain.hi, 1);
    assert_int_equal(commit->token, 42);
    assert_int_equal(commit->finish, BT_FINISH_STOP);
    assert_int_equal(commit->logits_hash, 4242);
    assert_int_equal(commit->wait_us, 77);
    assert_int_equal(commit->prefill_us, 88);
    assert_true(commit->has_logprobs);
    assert_memory_equal(&commit->logprobs, &logprobs, sizeof logprobs);
    assert_int_equal(bt_kv_send_bytes(w.send, id), 3 * N_LAYERS * PAGE_BYTES);
    say(&w, grant_of(1, 5, 0)); /* too late for anything */
    say(&w, (struct bt_kv_msg){.type = BT_KV_REFUSED, .ticket = ticket_of(1)});
    assert_int_equal(w.n_actions, 0);
    say(&w, (struct bt_kv_msg){.type = BT_KV_COMMITTED, .ticket = ticket_of(1)});
    check_action(&w, 0, BT_KV_SEND_COMMITTED, 1);
    check_action(&w, 1, BT_KV_SEND_RELEASED, 1);
    assert_int_equal(w.n_actions, 2);
    assert_int_equal(bt_kv_send_bytes(w.send, id), 3 * N_LAYERS * PAGE_BYTES);
    assert_int_equal(bt_kv_send_counters(w.send)->committed, 1);
    assert_int_equal(bt_kv_send_counters(w.send)->frames, 3);
    assert_int_equal(bt_kv_send_counters(w.send)->bytes, 3 * N_LAYERS * PAGE_BYTES);
    close_world(&w);
}

static void test_a_prompt_that_d_has_sends_only_commit(void **state) {
    (void)state;
    struct world w;
    struct bt_kv_outgoing out;
    open_world(&w, PAGE_BYTES);
    uint32_t id = start(&w, 1, 4, 4, 0);
    assert_false(next(&w, &out));
    bt_kv_send_finish(w.send, 0, id, 1, BT_FINISH_NONE, 0, NULL);
    drain(&w);
    assert_int_equal(said(&w, 0, BT_KV_COMMIT)->n_sums, 0);
    assert_int_equal(said(&w, 0, BT_KV_COMMIT)->manifest,
                     bt_kv_hold_manifest(w.pool, &w.holds[id], 4));
    close_world(&w);
}

static void test_frames_are_bounded_in_pages_and_bytes(void **state) {
    (void)state;
    struct world w;
    struct bt_kv_outgoing out;
    open_world(&w, PAGE_BYTES);
    uint32_t id = start(&w, 1, 150, 0, 0);
    ready(&w, id, 0, 150);
    uint32_t n_pages[] = {64, 64, 22};
    for (int i = 0; i < 3; i++) {
        assert_true(next(&w, &out));
        assert_int_equal(out.frame.n_pages, n_pages[i]);
    }
    assert_false(next(&w, &out));
    close_world(&w);

    open_world(&w, BT_KV_FRAME_BYTES / 3);
    id = start(&w, 1, 7, 0, 0);
    ready(&w, id, 0, 7);
    uint32_t three[] = {3, 3, 1};
    for (int i = 0; i < 3; i++) {
        assert_true(next(&w, &out));
        assert_int_equal(out.frame.n_pages, three[i]);
        assert_true(out.frame.length <= BT_KV_FRAME_BYTES);
    }
    close_world(&w);

    open_world(&w, 2 * BT_KV_FRAME_BYTES + 7);
    id = start(&w, 1, 2, 0, 0);
    ready(&w, id, 0, 2);
    for (uint32_t page = 0; page < 2; page++)
        for (uint32_t piece = 0; piece < 3; piece++) {
            assert_true(next(&w, &out));
            assert_int_equal(out.frame.first_page, page);
            assert_int_equal(out.frame.n_pages, 1);
            assert_int_equal(out.frame.offset, piece * BT_KV_FRAME_BYTES);
            assert_int_equal(out.frame.length, piece < 2 ? BT_KV_FRAME_BYTES : 7);
            if (piece == 2)
                assert_int_equal(out.sums[0], 1000 + page);
        }
    assert_false(next(&w, &out));
    close_world(&w);
}

static void test_at_most_eight_frames_of_a_link_are_out(void **state) {
    (void)state;
    struct world w;
    struct bt_kv_outgoing out;
    open_world(&w, BT_KV_FRAME_BYTES);
    uint32_t id = start(&w, 1, 10, 0, 0);
    ready(&w, id, 0, 10);
    for (int i = 0; i < 8; i++)
        assert_true(next(&w, &out));
    assert_false(next(&w, &out));
    done(&w, id);
    check_action(&w, 0, BT_KV_SEND_FRAMES, 0); /* there is room again */
    assert_true(next(&w, &out));
    assert_false(next(&w, &out));
    close_world(&w);
}

static void test_sends_take_turns_by_deadline(void **state) {
    (void)state;
    struct world w;
    struct bt_kv_outgoing out;
    open_world(&w, BT_KV_FRAME_BYTES);
    uint32_t late = start(&w, 1, 9, 0, 300), early = start(&w, 2, 2, 0, 100);
    ready(&w, late, 0, 9);
    ready(&w, early, 0, 2);
    uint32_t order[] = {early, late, early, late, late};
    for (int i = 0; i < 5; i++) {
        assert_true(next(&w, &out));
        assert_int_equal(out.id, order[i]);
        done(&w, out.id);
    }
    uint32_t middle = start(&w, 3, 2, 0, 200); /* late has had its turn in this round */
    ready(&w, early, 1, 1);
    ready(&w, middle, 0, 2);
    uint32_t then[] = {early, middle, middle, late, late, late};
    for (int i = 0; i < 6; i++) {
        assert_true(next(&w, &out));
        assert_int_equal(out.id, then[i]);
        done(&w, out.id);
    }
    close_world(&w);
}

/* ---- ends ---- */

static void test_hello_is_refused_or_lost(void **state) {
    (void)state;
    struct world w;
    uint32_t id;
    open_world(&w, PAGE_BYTES);
    struct bt_kv_msg msg = {
        .type = BT_KV_REFUSED, .ticket = ticket_of(1), .reason = BT_KV_REASON_UNKNOWN};
    assert_int_equal(offer(&w, 1, 2, 0, &id), BT_OK);
    say(&w, (struct bt_kv_msg){.type = BT_KV_COMMITTED, .ticket = ticket_of(1)});
    assert_int_equal(w.n_actions, 0); /* nothing was promised yet */
    say(&w, msg);
    check_ended(&w, 1, BT_KV_REASON_UNKNOWN);
    say(&w, msg); /* of nothing */
    msg.type = BT_KV_ABORTED;
    say(&w, msg);
    say(&w, (struct bt_kv_msg){.type = BT_KV_COMMITTED, .ticket = ticket_of(1)});
    say(&w, grant_of(1, 2, 0));
    say(&w, (struct bt_kv_msg){.type = BT_KV_HELLO, .ticket = ticket_of(1)});
    assert_int_equal(w.n_actions, 0);
    assert_int_equal(offer(&w, 1, 2, 0, &id), BT_OK);
    say(&w, msg); /* nothing was granted yet */
    assert_int_equal(w.n_actions, 0);
    bt_kv_send_cancel(w.send, 0, id, BT_KV_REASON_CANCELLED);
    drain(&w);
    assert_int_equal(said(&w, 0, BT_KV_WITHDRAWN)->reason, BT_KV_REASON_CANCELLED);
    check_action(&w, 1, BT_KV_SEND_RELEASED, 1);
    assert_int_equal(offer(&w, 1, 2, 0, &id), BT_OK);
    bt_kv_send_link_down(w.send, 0, LINK);
    drain(&w);
    check_ended(&w, 1, BT_KV_REASON_LINK);
    const struct bt_kv_send_counters *c = bt_kv_send_counters(w.send);
    assert_int_equal(c->refused, 1);
    assert_int_equal(c->aborted, 0);
    assert_int_equal(c->cancelled, 1);
    assert_int_equal(c->links_lost, 1);
    close_world(&w);
}

static void test_a_grant_that_cannot_be_ends_the_send(void **state) {
    (void)state;
    struct world w;
    uint32_t id;
    open_world(&w, PAGE_BYTES);
    struct bt_kv_msg wrong[] = {grant_of(1, 3, 0), grant_of(1, 2, 3), grant_of(1, 2, 0)};
    wrong[2].generation = 0;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(offer(&w, 1, 2, 0, &id), BT_OK);
        say(&w, wrong[i]);
        assert_int_equal(said(&w, 0, BT_KV_WITHDRAWN)->reason, BT_KV_REASON_PROMPT);
        check_ended(&w, 1, BT_KV_REASON_PROMPT);
        assert_int_equal(w.n_actions, 3);
    }
    close_world(&w);
}

/* The link still reads a page: the hold is released when it has let go, however the send ended. */
static void test_a_hold_is_released_when_the_link_has_let_go(void **state) {
    (void)state;
    for (int how = 0; how < 3; how++) {
        struct world w;
        struct bt_kv_outgoing out;
        open_world(&w, BT_KV_FRAME_BYTES);
        uint32_t id = start(&w, 1, 3, 0, 0);
        ready(&w, id, 0, 3);
        assert_true(next(&w, &out) && next(&w, &out));
        say(&w, grant_of(1, 3, 0));
        say(&w, (struct bt_kv_msg){.type = BT_KV_REFUSED, .ticket = ticket_of(1)});
        say(&w, (struct bt_kv_msg){.type = BT_KV_COMMITTED, .ticket = ticket_of(1)});
        assert_int_equal(w.n_actions, 0);
        struct bt_kv_msg aborted = {
            .type = BT_KV_ABORTED, .ticket = ticket_of(1), .reason = BT_KV_REASON_PREEMPTED};
        if (how == 0)
            say(&w, aborted);
        else if (how == 1)
            bt_kv_send_link_down(w.send, 0, LINK);
        else
            bt_kv_send_cancel(w.send, 0, id, BT_KV_REASON_DEADLINE);
        if (how)
            drain(&w);
        assert_int_equal(w.n_actions, 1);
        if (how == 2)
            said(&w, 0, BT_KV_WITHDRAWN);
        else
            check_action(&w, 0, BT_KV_SEND_ENDED, 1);
        assert_false(next(&w, &out));
        ready(&w, id, 1, 3); /* a step that was posted before */
        bt_kv_send_finish(w.send, 0, id, 1, BT_FINISH_NONE, 0, NULL);
        bt_kv_send_cancel(w.send, 0, id, BT_KV_REASON_DEADLINE);
        for (enum bt_kv_msg_type type = BT_KV_GRANT; type <= BT_KV_ABORTED; type++)
            say(&w, (struct bt_kv_msg){.type = type, .ticket = ticket_of(1)});
        if (how != 1)
            bt_kv_send_link_down(w.send, 0, LINK);
        done(&w, id);
        assert_int_equal(w.n_actions, 0);
        done(&w, id);
        check_action(&w, 0, BT_KV_SEND_RELEASED, 1);
        assert_int_equal(w.n_actions, 1);
        close_world(&w);
    }
}

static void test_a_commit_may_still_end_badly(void **state) {
    (void)state;
    for (int how = 0; how < 3; how++) {
        struct world w;
        struct bt_kv_outgoing out;
        open_world(&w, PAGE_BYTES);
        uint32_t id = start(&w, 1, 3, 0, 0);
        ready_all(&w, id);
        for (int i = 0; i < N_LAYERS; i++)
            assert_true(next(&w, &out));
        done(&w, id);
        done(&w, id);
        assert_int_equal(w.n_actions, 0);
        bt_kv_send_finish(w.send, 0, id, 1, BT_FINISH_NONE, 0, NULL);
        drain(&w);
        said(&w, 0, BT_KV_COMMIT);
        struct bt_kv_msg aborted = {
            .type = BT_KV_ABORTED, .ticket = ticket_of(1), .reason = BT_KV_REASON_CHECKSUM};
        if (how == 0) {
            say(&w, aborted);
            check_ended(&w, 1, BT_KV_REASON_CHECKSUM);
        } else if (how == 1) {
            bt_kv_send_link_down(w.send, 0, LINK);
            drain(&w);
            check_ended(&w, 1, BT_KV_REASON_LINK);
        } else {
            bt_kv_send_cancel(w.send, 0, id, BT_KV_REASON_CANCELLED);
            drain(&w);
            said(&w, 0, BT_KV_WITHDRAWN);
            check_action(&w, 1, BT_KV_SEND_RELEASED, 1);
        }
        close_world(&w);
    }
}

static void test_every_pair_was_reached(void **state) {
    (void)state;
    for (uint32_t i = 0; i < sizeof reached / sizeof *reached; i++) {
        bool handled;
        const char *name = bt_kv_send_pair_name(i, &handled);
        bool possible = table[i / BT_KV_SEND_EVENT_COUNT][i % BT_KV_SEND_EVENT_COUNT] != '-';
        if ((reached[i] > 0) != possible)
            fail_msg("%s: reached %u times", name, reached[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_sizes_out_of_bounds),
        cmocka_unit_test(test_create_survives_each_failed_allocation),
        cmocka_unit_test(test_offer_says_why_not),
        cmocka_unit_test(test_pages_go_as_layers_are_done_and_commit_follows),
        cmocka_unit_test(test_a_prompt_that_d_has_sends_only_commit),
        cmocka_unit_test(test_frames_are_bounded_in_pages_and_bytes),
        cmocka_unit_test(test_at_most_eight_frames_of_a_link_are_out),
        cmocka_unit_test(test_sends_take_turns_by_deadline),
        cmocka_unit_test(test_hello_is_refused_or_lost),
        cmocka_unit_test(test_a_grant_that_cannot_be_ends_the_send),
        cmocka_unit_test(test_a_hold_is_released_when_the_link_has_let_go),
        cmocka_unit_test(test_a_commit_may_still_end_badly),
        cmocka_unit_test(test_every_pair_was_reached),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

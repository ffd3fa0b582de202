/* Workers come, fall silent, die, come back: joining, liveness, Resume, Peers, heartbeats. */
#include "harness.h"

#include "router/worker_table.h"

static struct harness *start(void) {
    struct harness *h = calloc(1, sizeof *h);
    struct bt_router_config config = small_config();
    harness_init(h, &config);
    return h;
}

/* Counts of all cores of this program, pair by pair. */
static uint64_t reached[BT_WORKER_PAIRS];

static void finish(struct harness *h) {
    uint32_t n = 0;
    const uint32_t *counts = bt_router_core_coverage(h->core, &n);
    for (uint32_t i = 0; i < BT_WORKER_PAIRS; i++)
        reached[i] += counts[n - BT_WORKER_PAIRS + i];
    harness_finish(h);
}

static enum bt_worker_state state_of(struct harness *h, const char *name) {
    struct bt_worker_view view;
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++)
        if (bt_router_core_worker(h->core, h->now_us, i, &view) && !strcmp(view.name, name) &&
            view.state != BT_WORKER_DEAD)
            return view.state;
    return BT_WORKER_NONE;
}

static void try_join(struct harness *h, uint32_t slot, const struct bt_msg *msg) {
    clear(h);
    bt_router_core_worker_opened(h->core, h->now_us, slot);
    drain(h);
    say(h, slot, msg);
}

/* The sentence of a Refused, or "". */
static const char *refusal(struct harness *h, uint32_t slot, bool *final) {
    const struct sent *s = sent_to(h, slot, BT_MSG_REFUSED);
    *final = s && s->msg.refused.final;
    return s ? s->msg.refused.reason : "";
}

static void test_join_is_answered_in_order(void **state) {
    (void)state;
    struct harness *h = start();
    assert_false(bt_router_core_ready(h->core));
    assert_int_equal(bt_router_core_context(h->core), 0);
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    assert_false(bt_router_core_ready(h->core));
    attach(h, P, "p0", 10, BT_ROLE_PREFILL);
    assert_true(bt_router_core_ready(h->core));
    assert_int_equal(bt_router_core_context(h->core), 4096);
    struct sent *welcome = sent_to(h, P, BT_MSG_WELCOME), *peers = sent_to(h, P, BT_MSG_PEERS);
    struct sent *resume = sent_to(h, P, BT_MSG_RESUME);
    assert_true(welcome && peers && resume && welcome < peers && peers < resume);
    assert_int_equal(welcome->msg.welcome.incarnation.lo, 2);
    assert_int_equal(welcome->msg.welcome.protocol, 1);
    assert_int_equal(peers->n_rows, 1);
    assert_string_equal(peers->peers[0].name, "d0");
    assert_string_equal(peers->peers[0].link_address, "127.0.0.1:9000");
    assert_int_equal(resume->n_rows, 0);
    /* A decode worker more: P hears the whole list. */
    clear(h);
    attach(h, 2, "d1", 30, BT_ROLE_DECODE);
    assert_int_equal(sent_to(h, P, BT_MSG_PEERS)->n_rows, 2);
    assert_null(sent_to(h, D, BT_MSG_PEERS));
    /* And one less. */
    clear(h);
    stream_end(h, 2);
    const uint32_t slots[] = {P, D};
    pass(h, 350, slots, 2);
    assert_int_equal(sent_to(h, P, BT_MSG_PEERS)->n_rows, 1);
    finish(h);
}

static void test_workers_that_do_not_fit_are_refused_by_name(void **state) {
    (void)state;
    struct harness *h = start();
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    struct bt_msg msg = join_of("d1", 30, BT_ROLE_DECODE);
    bool final;

    msg.join.fingerprint.head_dim = 128;
    try_join(h, 2, &msg);
    assert_non_null(strstr(refusal(h, 2, &final), "head_dim differs: ours is 64, theirs is 128"));
    assert_true(final);
    assert_int_equal(h->n_closed, 1);
    stream_end(h, 2);

    msg = join_of("d1", 30, BT_ROLE_DECODE);
    msg.join.text_hash = 6;
    try_join(h, 2, &msg);
    assert_non_null(strstr(refusal(h, 2, &final), "text_hash"));
    stream_end(h, 2);

    msg = join_of("d1", 30, BT_ROLE_DECODE);
    msg.join.protocol_min = msg.join.protocol_max = 2;
    try_join(h, 2, &msg);
    assert_non_null(strstr(refusal(h, 2, &final), "protocol 2 to 2"));
    assert_true(final);
    stream_end(h, 2);

    msg = join_of("d1", 30, BT_ROLE_DECODE);
    msg.join.link_address[0] = 0;
    try_join(h, 2, &msg);
    assert_non_null(strstr(refusal(h, 2, &final), "link address"));
    stream_end(h, 2);

    /* A range that holds ours is fine. */
    msg = join_of("d1", 30, BT_ROLE_DECODE);
    msg.join.protocol_max = 7;
    try_join(h, 2, &msg);
    assert_non_null(sent_to(h, 2, BT_MSG_WELCOME));
    assert_int_equal(bt_router_core_counters(h->core)->joins_refused, 4);

    /* The first word must be Join, and it is said once. */
    struct bt_msg status = {.type = BT_MSG_STATUS};
    try_join(h, 3, &status);
    assert_non_null(strstr(h->closed, "Join"));
    clear(h);
    say(h, 2, &msg);
    assert_int_equal(h->n_closed, 1);
    assert_int_equal(state_of(h, "d1"), BT_WORKER_DETACHED);
    finish(h);
}

static void test_a_name_belongs_to_the_one_that_talks(void **state) {
    (void)state;
    struct harness *h = start();
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    struct bt_msg other = join_of("d0", 21, BT_ROLE_DECODE);
    try_join(h, 2, &other);
    bool final;
    assert_non_null(strstr(refusal(h, 2, &final), "d0 is taken"));
    assert_false(final);
    stream_end(h, 2);
    /* The first one is silent: it is suspect, and the newcomer is its restart. */
    pass(h, 800, NULL, 0);
    assert_int_equal(state_of(h, "d0"), BT_WORKER_SUSPECT);
    try_join(h, 2, &other);
    assert_non_null(sent_to(h, 2, BT_MSG_WELCOME));
    assert_int_equal(state_of(h, "d0"), BT_WORKER_UP);
    assert_int_equal(h->n_closed, 1); /* the old one's stream */
    assert_int_equal(bt_router_core_counters(h->core)->deaths, 1);
    finish(h);
}

/* What ends its stream after its drain has left; one that had work of ours there was lost. */
static void test_a_drained_worker_leaves(void **state) {
    (void)state;
    for (int busy = 0; busy <= 1; busy++) {
        struct harness *h = start();
        attach(h, P, "p0", 10, BT_ROLE_PREFILL);
        attach(h, D, "d0", 20, BT_ROLE_DECODE);
        if (busy)
            token(h, D, key_of(submit(h, 40, 8)), 0, 500, BT_FINISH_NONE);
        struct bt_msg msg = {.type = BT_MSG_STATUS, .status = {.draining = true}};
        msg.status.census = (struct bt_census){.total = 256, .free = 256};
        say(h, D, &msg);
        stream_end(h, D);
        static const uint32_t others[] = {P};
        pass(h, 1000, others, 1);
        assert_int_equal(state_of(h, "d0"), BT_WORKER_NONE);
        assert_int_equal(bt_router_core_counters(h->core)->deaths, busy);
        assert_int_equal(bt_router_core_counters(h->core)->leaves, !busy);
        finish(h);
    }
}

static void test_a_restart_is_noticed_at_once(void **state) {
    (void)state;
    struct harness *h = start();
    attach(h, P, "p0", 10, BT_ROLE_PREFILL);
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    struct bt_request *req = submit(h, 40, 8);
    token(h, D, key_of(req), 0, 500, BT_FINISH_NONE);
    stream_end(h, D);
    attach(h, 2, "d0", 21, BT_ROLE_DECODE);
    /* Dead without a wait, and the request is on the new one, from the next token. */
    assert_int_equal(bt_router_core_counters(h->core)->deaths, 1);
    assert_int_equal(sent_to(h, 2, BT_MSG_RESUME)->n_rows, 0);
    assert_int_equal(req->attempt, 2);
    assert_int_equal(sent_to(h, 2, BT_MSG_RESERVE)->msg.work.n_tokens, 41);
    token(h, 2, key_of(req), 1, 501, BT_FINISH_NONE);
    assert_int_equal(h->n_emits, 2);
    assert_int_equal(h->emits[1].index, 1);
    finish(h);
}

static void test_a_short_cut_costs_nothing(void **state) {
    (void)state;
    struct harness *h = start();
    attach(h, P, "p0", 10, BT_ROLE_PREFILL);
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    struct bt_request *req = submit(h, 40, 8);
    struct bt_attempt key = key_of(req);
    reserved(h, D, key, true, 0);
    token(h, D, key, 0, 500, BT_FINISH_NONE);
    token(h, D, key, 1, 501, BT_FINISH_NONE);
    /* Silent for 1.9 s: suspect, no new work; then it attaches again beside its old stream. */
    const uint32_t p = P;
    pass(h, 1900, &p, 1);
    assert_int_equal(state_of(h, "d0"), BT_WORKER_SUSPECT);
    assert_int_equal(bt_router_core_counters(h->core)->suspects, 1);
    struct bt_request *waits = submit(h, 40, 8);
    assert_int_equal(waits->state, BT_REQUEST_QUEUED);
    clear(h);
    attach(h, 2, "d0", 20, BT_ROLE_DECODE);
    assert_int_equal(h->n_closed, 1);
    struct sent *resume = sent_to(h, 2, BT_MSG_RESUME);
    /* Only what it holds: the one placed in this very event is not among the rows. */
    assert_int_equal(resume->n_rows, 1);
    assert_int_equal(resume->resume[0].next_index, 2);
    assert_true(bt_id_equal(resume->resume[0].ticket, req->ticket));
    assert_true(sent_to(h, 2, BT_MSG_RESERVE) > resume);
    assert_int_equal(waits->state, BT_REQUEST_RESERVING);
    /* What the old stream still says is not read, what comes again is a duplicate. */
    token(h, D, key, 2, 999, BT_FINISH_NONE);
    token(h, 2, key, 1, 501, BT_FINISH_NONE);
    token(h, 2, key, 2, 502, BT_FINISH_NONE);
    assert_int_equal(h->n_emits, 1);
    assert_int_equal(h->emits[0].token, 502);
    assert_int_equal(req->attempt, 1);
    stream_end(h, D); /* the old one, late */
    assert_int_equal(state_of(h, "d0"), BT_WORKER_UP);
    finish(h);
}

static void test_silence_kills_after_two_seconds(void **state) {
    (void)state;
    struct harness *h = start();
    attach(h, P, "p0", 10, BT_ROLE_PREFILL);
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    struct bt_request *req = submit(h, 40, 8);
    const uint32_t p = P;
    clear(h);
    pass(h, 700, &p, 1);
    assert_int_equal(state_of(h, "d0"), BT_WORKER_UP);
    pass(h, 100, &p, 1);
    assert_int_equal(state_of(h, "d0"), BT_WORKER_SUSPECT);
    status_free(h, D, 256);
    assert_int_equal(state_of(h, "d0"), BT_WORKER_UP);
    pass(h, 1950, &p, 1);
    assert_int_equal(state_of(h, "d0"), BT_WORKER_SUSPECT);
    pass(h, 100, &p, 1);
    assert_int_equal(state_of(h, "d0"), BT_WORKER_NONE);
    assert_int_equal(h->n_closed, 1);
    assert_int_equal(req->state, BT_REQUEST_QUEUED);
    assert_non_null(sent_to(h, P, BT_MSG_CANCEL));
    /* It was only cut off: its zombie learns that nothing of it is wanted. */
    clear(h);
    attach(h, 2, "d0", 20, BT_ROLE_DECODE);
    assert_int_equal(sent_to(h, 2, BT_MSG_RESUME)->n_rows, 0);
    finish(h);
}

static void test_our_own_stall_judges_nobody(void **state) {
    (void)state;
    struct harness *h = start();
    attach(h, P, "p0", 10, BT_ROLE_PREFILL);
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    h->now_us += 5000000;
    bt_router_core_tick(h->core, h->now_us);
    drain(h);
    assert_int_equal(state_of(h, "d0"), BT_WORKER_UP);
    assert_int_equal(state_of(h, "p0"), BT_WORKER_UP);
    assert_int_equal(bt_router_core_counters(h->core)->stalls, 1);
    assert_int_equal(bt_router_core_counters(h->core)->suspects, 0);
    finish(h);
}

static void test_a_pulse_every_quarter_second(void **state) {
    (void)state;
    struct harness *h = start();
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    const uint32_t d = D;
    clear(h);
    pass(h, 1000, &d, 1);
    assert_non_null(sent_nth(h, D, BT_MSG_PULSE, 3));
    assert_null(sent_nth(h, D, BT_MSG_PULSE, 4));
    assert_true(bt_router_core_next_tick_us(h->core) <= h->now_us + 50000);
    clear(h);
    bt_router_core_flush(h->core, h->now_us);
    drain(h);
    assert_non_null(sent_to(h, D, BT_MSG_FLUSH));
    finish(h);
}

static void test_a_draining_worker_gets_no_new_work(void **state) {
    (void)state;
    struct harness *h = start();
    attach(h, P, "p0", 10, BT_ROLE_PREFILL);
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    struct bt_request *req = submit(h, 40, 8);
    struct bt_msg msg = {.type = BT_MSG_STATUS};
    msg.status.census = (struct bt_census){.total = 256, .free = 256};
    msg.status.draining = true;
    say(h, D, &msg);
    assert_false(bt_router_core_ready(h->core));
    struct bt_submit what = submit_of(sample_prompt, 4, 4);
    struct bt_request *none = NULL;
    struct bt_error err = {0};
    assert_int_equal(bt_router_core_submit(h->core, h->now_us, &what, &none, &err),
                     BT_E_UNAVAILABLE);
    assert_non_null(strstr(err.text, "decode"));
    /* What it has goes on, or is handed back. */
    ended(h, D, key_of(req), BT_END_DRAINING);
    assert_int_equal(req->state, BT_REQUEST_QUEUED);
    assert_int_equal(req->moves, 1);
    attach(h, 2, "d1", 30, BT_ROLE_DECODE);
    assert_int_equal(req->state, BT_REQUEST_RESERVING);
    assert_string_equal(req->d_name, "d1");
    assert_int_equal(bt_router_core_counters(h->core)->moved_drained, 1);
    /* The router drains: what is here goes on, nothing comes in. */
    bt_router_core_drain(h->core, h->now_us);
    drain(h);
    assert_int_equal(bt_router_core_submit(h->core, h->now_us, &what, &none, &err),
                     BT_E_UNAVAILABLE);
    token(h, 2, key_of(req), 0, 2, BT_FINISH_STOP);
    assert_int_equal(h->n_ends, 1);
    assert_int_equal(h->ends[0].status, BT_OK);
    finish(h);
}

static void test_prefill_workers_resume_too(void **state) {
    (void)state;
    struct harness *h = start();
    attach(h, P, "p0", 10, BT_ROLE_PREFILL);
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    struct bt_request *req = submit(h, 40, 8);
    clear(h);
    attach(h, 2, "p0", 10, BT_ROLE_PREFILL);
    assert_int_equal(sent_to(h, 2, BT_MSG_RESUME)->n_rows, 1);
    /* Prefill was lost with the old stream. */
    ended(h, 2, key_of(req), BT_END_UNKNOWN);
    assert_non_null(sent_to(h, D, BT_MSG_PGONE));
    ended(h, D, key_of(req), BT_END_PEER_GONE);
    const uint32_t slots[] = {2, D};
    pass(h, 300, slots, 2);
    assert_int_equal(req->attempt, 2);
    finish(h);
}

static void test_the_table_has_its_bound(void **state) {
    (void)state;
    struct harness *h = start();
    char name[16];
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++) {
        snprintf(name, sizeof name, "d%u", i);
        attach(h, i, name, 100 + i, BT_ROLE_DECODE);
    }
    struct bt_msg msg = join_of("one more", 1, BT_ROLE_DECODE);
    try_join(h, 100, &msg);
    bool final;
    assert_non_null(strstr(refusal(h, 100, &final), "64 workers"));
    assert_false(final);
    /* All leave: another model may come. */
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++)
        stream_end(h, i);
    pass(h, 350, NULL, 0);
    stream_end(h, 100);
    msg.join.fingerprint.head_dim = 128;
    try_join(h, 100, &msg);
    assert_non_null(sent_to(h, 100, BT_MSG_WELCOME));
    finish(h);
}

static void test_too_many_rows_close_the_stream(void **state) {
    (void)state;
    struct harness *h = start();
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    struct bt_token *rows = calloc(BT_ROUTER_TOKEN_ROWS + 1, sizeof *rows);
    struct bt_msg msg = {.type = BT_MSG_TOKENS};
    msg.tokens = (struct bt_msg_tokens){rows, BT_ROUTER_TOKEN_ROWS};
    say(h, D, &msg);
    assert_int_equal(bt_router_core_counters(h->core)->tokens_stale, BT_ROUTER_TOKEN_ROWS);
    assert_int_equal(h->n_closed, 0);
    msg.tokens.n_rows++;
    say(h, D, &msg);
    assert_int_equal(h->n_closed, 1);
    assert_non_null(strstr(h->closed, "16385"));
    free(rows);
    finish(h);
}

static void test_a_suspect_that_hangs_up_may_come_back(void **state) {
    (void)state;
    struct harness *h = start();
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    pass(h, 800, NULL, 0);
    stream_end(h, D);
    assert_int_equal(state_of(h, "d0"), BT_WORKER_DETACHED);
    attach(h, 2, "d0", 20, BT_ROLE_DECODE);
    assert_int_equal(state_of(h, "d0"), BT_WORKER_UP);
    assert_int_equal(bt_router_core_counters(h->core)->deaths, 0);
    finish(h);
}

static void test_a_dead_worker_is_cleaned_up_in_slices(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    struct bt_router_config config = small_config();
    config.max_requests = config.max_queued = 2000;
    config.disaggregate = BT_DISAGGREGATE_NEVER;
    harness_init(h, &config);
    struct bt_msg big = join_of("d0", 20, BT_ROLE_DECODE);
    big.join.max_seqs = 2000;
    big.join.census = (struct bt_census){.total = 100000, .free = 100000};
    bt_router_core_worker_opened(h->core, h->now_us, D);
    say(h, D, &big);
    for (int i = 0; i < 1500; i++) {
        submit(h, 10, 4);
        clear(h);
    }
    struct bt_worker_view view;
    assert_true(bt_router_core_worker(h->core, h->now_us, 0, &view));
    assert_int_equal(view.requests, 1500);
    stream_end(h, D);
    h->now_us += 300000;
    uint64_t left = 1500;
    for (int i = 0; i < 3; i++) {
        assert_true(bt_router_core_next_tick_us(h->core) <= h->now_us);
        bt_router_core_tick(h->core, h->now_us);
        drain(h);
        left = left > 512 ? left - 512 : 0;
        assert_int_equal(bt_router_core_counters(h->core)->queued, 1500 - left);
    }
    assert_false(bt_router_core_worker(h->core, h->now_us, 0, &view));
    assert_int_equal(bt_router_core_counters(h->core)->moved_death, 1500);
    finish(h);
}

/* Runs last. */
static void test_every_handled_pair_was_reached(void **state) {
    (void)state;
    struct bt_pair_view pair;
    for (uint32_t i = 0; i < BT_WORKER_PAIRS; i++) {
        bt_worker_pair(i, &pair);
        assert_string_equal(pair.machine, "worker");
        if (pair.kind == BT_PAIR_HANDLED && !reached[i])
            fail_msg("not reached: %s x %s", pair.state, pair.event);
        if (pair.kind == BT_PAIR_IMPOSSIBLE)
            assert_int_equal(reached[i], 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_join_is_answered_in_order),
        cmocka_unit_test(test_workers_that_do_not_fit_are_refused_by_name),
        cmocka_unit_test(test_a_name_belongs_to_the_one_that_talks),
        cmocka_unit_test(test_a_drained_worker_leaves),
        cmocka_unit_test(test_a_restart_is_noticed_at_once),
        cmocka_unit_test(test_a_short_cut_costs_nothing),
        cmocka_unit_test(test_silence_kills_after_two_seconds),
        cmocka_unit_test(test_our_own_stall_judges_nobody),
        cmocka_unit_test(test_a_pulse_every_quarter_second),
        cmocka_unit_test(test_a_draining_worker_gets_no_new_work),
        cmocka_unit_test(test_prefill_workers_resume_too),
        cmocka_unit_test(test_the_table_has_its_bound),
        cmocka_unit_test(test_too_many_rows_close_the_stream),
        cmocka_unit_test(test_a_suspect_that_hangs_up_may_come_back),
        cmocka_unit_test(test_a_dead_worker_is_cleaned_up_in_slices),
        cmocka_unit_test(test_every_handled_pair_was_reached),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

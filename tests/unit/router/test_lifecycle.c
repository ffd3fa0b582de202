/* Every event in every state of a request: each handled pair of the table is reached, and does what
 * the row of its worker's end says. */
#include "harness.h"

#include "router/lifecycle.h"

/* Counts of all cores of this program, pair by pair. */
static uint64_t reached[BT_LIFECYCLE_PAIRS];

static void finish(struct harness *h) {
    uint32_t n = 0;
    const uint32_t *counts = bt_router_core_coverage(h->core, &n);
    for (uint32_t i = 0; i < BT_LIFECYCLE_PAIRS && i < n; i++)
        reached[i] += counts[i];
    harness_finish(h);
}

static struct bt_request *bring_to(struct harness *h, enum bt_request_state to) {
    if (to == BT_REQUEST_QUEUED)
        status_free(h, D, 0);
    struct bt_request *req = submit(h, 40, 8);
    struct bt_attempt key = key_of(req);
    if (to >= BT_REQUEST_PREFILLING)
        reserved(h, D, key, true, 0);
    if (to == BT_REQUEST_TRANSFERRING || to == BT_REQUEST_STREAMING)
        token(h, P, key, 0, 500, BT_FINISH_NONE);
    if (to == BT_REQUEST_STREAMING)
        token(h, D, key, 0, 500, BT_FINISH_NONE);
    if (to == BT_REQUEST_ASKING)
        ended(h, P, key, BT_END_LINK);
    assert_int_equal(req->state, to);
    clear(h);
    return req;
}

/* What is expected of an Ended that says `end` from a worker of that role. */
static void check_end(enum bt_request_state from, enum bt_end end, bool from_p) {
    struct harness *h = harness_start(NULL);
    struct bt_request *req = bring_to(h, from);
    ended(h, from_p ? P : D, key_of(req), end);
    bool computes = from_p ? from <= BT_REQUEST_PREFILLING
                           : from <= BT_REQUEST_PREFILLING || from == BT_REQUEST_STREAMING;
    bool fatal =
        (computes && end == BT_END_NONFINITE) || (end == BT_END_INVALID && (computes || !from_p));
    if (from_p && (end == BT_END_HANDED || from == BT_REQUEST_STREAMING)) {
        /* D has the cache, or will say so itself. */
        assert_int_equal(req->state, from);
        assert_int_equal(h->n_sent, 0);
        assert_false(req->p_open);
    } else if (fatal) {
        assert_int_equal(h->n_ends, 1);
        assert_int_equal(h->ends[0].status, end == BT_END_INVALID ? BT_E_TOO_LARGE : BT_E_INTERNAL);
        assert_int_equal(sent_to(h, D, BT_MSG_CANCEL) != NULL, from_p);
        assert_int_equal(sent_to(h, P, BT_MSG_CANCEL) != NULL,
                         !from_p && from != BT_REQUEST_ASKING);
    } else if (from_p) {
        assert_int_equal(req->state, BT_REQUEST_ASKING);
        assert_non_null(sent_to(h, D, BT_MSG_PGONE));
        assert_null(sent_to(h, D, BT_MSG_CANCEL));
    } else {
        /* The attempt is over: P hears it, and the request waits or runs again. */
        assert_int_equal(h->n_ends, 0);
        assert_int_equal(sent_to(h, P, BT_MSG_CANCEL) != NULL, from != BT_REQUEST_ASKING);
        assert_null(sent_to(h, D, BT_MSG_CANCEL));
        assert_true(req->state == BT_REQUEST_QUEUED || req->attempt == 2);
    }
    /* The end is confirmed in any case. */
    h->now_us += 50000;
    bt_router_core_tick(h->core, h->now_us);
    drain(h);
    assert_int_equal(sent_to(h, from_p ? P : D, BT_MSG_SEEN)->n_rows, 1);
    finish(h);
}

static void test_every_end_in_every_state(void **state) {
    (void)state;
    for (int from = BT_REQUEST_RESERVING; from <= BT_REQUEST_ASKING; from++)
        for (int end = 1; end < BT_END_COUNT; end++)
            for (int from_p = 0; from_p < 2; from_p++)
                if (!(from_p && from == BT_REQUEST_ASKING))
                    check_end(from, end, from_p);
}

static void test_death_in_every_state(void **state) {
    (void)state;
    for (int from = BT_REQUEST_RESERVING; from <= BT_REQUEST_ASKING; from++) {
        for (int p_dies = 0; p_dies < 2; p_dies++) {
            struct harness *h = harness_start(NULL);
            struct bt_request *req = bring_to(h, from);
            bool p_open = req->p_open;
            stream_end(h, p_dies ? P : D);
            assert_int_equal(req->state, from); /* it may come back */
            uint32_t other = p_dies ? D : P;
            pass(h, 350, &other, 1);
            assert_int_equal(bt_router_core_counters(h->core)->deaths, 1);
            if (p_dies && p_open && from != BT_REQUEST_STREAMING) {
                assert_int_equal(req->state, BT_REQUEST_ASKING);
                assert_non_null(sent_to(h, D, BT_MSG_PGONE));
                assert_int_equal(req->deaths, 1);
            } else if (p_dies) {
                assert_int_equal(req->state, from);
                assert_int_equal(req->deaths, 0);
            } else {
                assert_int_equal(req->state, BT_REQUEST_QUEUED);
                assert_int_equal(req->deaths, 1);
                assert_int_equal(sent_to(h, P, BT_MSG_CANCEL) != NULL, p_open);
            }
            finish(h);
        }
    }
}

static void test_the_answers_to_pgone(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *req = bring_to(h, BT_REQUEST_ASKING);
    live(h, D, key_of(req));
    assert_int_equal(req->state, BT_REQUEST_STREAMING);
    assert_int_equal(bt_router_core_counters(h->core)->pgone_live, 1);
    live(h, D, key_of(req)); /* again: nothing */
    finish(h);

    h = harness_start(NULL);
    req = bring_to(h, BT_REQUEST_ASKING);
    token(h, D, key_of(req), 0, 500, BT_FINISH_NONE);
    assert_int_equal(req->state, BT_REQUEST_STREAMING);
    live(h, D, key_of(req));
    assert_int_equal(req->state, BT_REQUEST_STREAMING);
    finish(h);

    /* D refuses Reserve while the question is on its way. */
    h = harness_start(NULL);
    req = bring_to(h, BT_REQUEST_RESERVING);
    ended(h, P, key_of(req), BT_END_FULL);
    assert_int_equal(req->state, BT_REQUEST_ASKING);
    reserved(h, D, key_of(req), false, BT_END_FULL);
    assert_int_equal(req->state, BT_REQUEST_QUEUED);
    finish(h);

    /* Or accepts it. */
    h = harness_start(NULL);
    req = bring_to(h, BT_REQUEST_RESERVING);
    ended(h, P, key_of(req), BT_END_FULL);
    reserved(h, D, key_of(req), true, 0);
    assert_int_equal(req->state, BT_REQUEST_ASKING);
    finish(h);
}

static void test_a_question_lost_with_the_stream_is_asked_again(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *req = bring_to(h, BT_REQUEST_ASKING);
    stream_end(h, D);
    attach(h, 2, "d0", 20, BT_ROLE_DECODE);
    struct sent *resume = sent_to(h, 2, BT_MSG_RESUME);
    assert_int_equal(resume->n_rows, 1);
    assert_int_equal(resume->resume[0].key.request, req->id);
    assert_int_equal(resume->resume[0].next_index, 0);
    assert_non_null(sent_to(h, 2, BT_MSG_PGONE));
    assert_true(sent_to(h, 2, BT_MSG_PGONE) > resume);
    finish(h);
}

static void test_unasked_words_change_nothing(void **state) {
    (void)state;
    for (int from = BT_REQUEST_RESERVING; from <= BT_REQUEST_STREAMING; from++) {
        struct harness *h = harness_start(NULL);
        struct bt_request *req = bring_to(h, from);
        struct bt_attempt key = key_of(req);
        live(h, D, key);
        assert_int_equal(req->state, from);
        if (from != BT_REQUEST_RESERVING) {
            reserved(h, D, key, true, 0);
            assert_int_equal(req->state, from);
        }
        /* P is no D: it cannot answer for it. */
        reserved(h, P, key, false, BT_END_FULL);
        live(h, P, key);
        assert_int_equal(req->state, from);
        /* D's stream is replaced. */
        attach(h, 2, "d0", 20, BT_ROLE_DECODE);
        assert_int_equal(req->state, from);
        assert_int_equal(sent_to(h, 2, BT_MSG_RESUME)->n_rows, 1);
        finish(h);
    }
    /* It can never run there: no other attempt. */
    struct harness *never = harness_start(NULL);
    struct bt_request *too_long = bring_to(never, BT_REQUEST_RESERVING);
    reserved(never, D, key_of(too_long), false, BT_END_INVALID);
    assert_int_equal(never->ends[0].status, BT_E_TOO_LARGE);
    finish(never);
    /* D takes its word back: the attempt is lost. */
    struct harness *h = harness_start(NULL);
    struct bt_request *req = bring_to(h, BT_REQUEST_PREFILLING);
    reserved(h, D, key_of(req), false, BT_END_FULL);
    assert_int_equal(req->state, BT_REQUEST_QUEUED);
    finish(h);
}

static void test_tokens_in_every_state(void **state) {
    (void)state;
    for (int from = BT_REQUEST_RESERVING; from <= BT_REQUEST_ASKING; from++) {
        struct harness *h = harness_start(NULL);
        struct bt_request *req = bring_to(h, from);
        token(h, D, key_of(req), 0, 500, BT_FINISH_NONE);
        assert_int_equal(req->state, BT_REQUEST_STREAMING);
        finish(h);
        if (from == BT_REQUEST_ASKING)
            continue;
        h = harness_start(NULL);
        req = bring_to(h, from);
        token(h, P, key_of(req), 0, 500, BT_FINISH_NONE);
        assert_int_equal(req->state, from == BT_REQUEST_STREAMING ? BT_REQUEST_STREAMING
                                                                  : BT_REQUEST_TRANSFERRING);
        finish(h);
    }
}

static void test_refused_is_tried_again_within_the_budget(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *first = bring_to(h, BT_REQUEST_RESERVING);
    struct bt_request *second = submit(h, 40, 8);
    reserved(h, D, key_of(first), false, BT_END_FULL);
    reserved(h, D, key_of(second), false, BT_END_FULL);
    assert_non_null(sent_nth(h, P, BT_MSG_CANCEL, 1));
    const uint32_t slots[] = {P, D};
    pass(h, 400, slots, 2);
    /* Two live requests: one retry at a time. */
    const struct bt_router_counters *c = bt_router_core_counters(h->core);
    assert_int_equal(c->retries, 1);
    assert_int_equal(c->retries_held_back, 1);
    struct bt_request *again = first->attempt == 2 ? first : second;
    struct bt_request *held = again == first ? second : first;
    assert_int_equal(again->attempt, 2);
    assert_int_equal(held->attempt, 1);
    reserved(h, D, key_of(again), true, 0);
    token(h, P, key_of(again), 0, 500, BT_FINISH_NONE);
    pass(h, 100, slots, 2);
    assert_int_equal(held->attempt, 2);
    finish(h);
}

static void test_enough_failures_end_it(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *req = bring_to(h, BT_REQUEST_RESERVING);
    const uint32_t slots[] = {P, D};
    for (int i = 0; i < 20 && !h->n_ends; i++) {
        if (req->state == BT_REQUEST_RESERVING)
            ended(h, D, key_of(req), BT_END_CHECKSUM);
        pass(h, 300, slots, 2);
    }
    assert_int_equal(h->n_ends, 1);
    assert_int_equal(h->ends[0].status, BT_E_UNAVAILABLE);
    assert_non_null(strstr(h->ends[0].reason, "checksum"));
    finish(h);
}

static void test_two_deaths_end_it(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    attach(h, 2, "d1", 30, BT_ROLE_DECODE);
    struct bt_request *req = bring_to(h, BT_REQUEST_STREAMING);
    const uint32_t slots[] = {P, D, 2};
    uint32_t first = req->d_name[1] == '0' ? D : 2, second = first == D ? 2 : D;
    if (first != D) {
        token(h, first, key_of(req), 0, 500, BT_FINISH_NONE);
        assert_int_equal(req->state, BT_REQUEST_STREAMING);
    }
    stream_end(h, first);
    const uint32_t rest[] = {P, second};
    pass(h, 350, rest, 2);
    assert_int_equal(req->attempt, 2);
    assert_string_equal(req->d_name, second == D ? "d0" : "d1");
    assert_int_equal(bt_router_core_counters(h->core)->moved_death, 1);
    stream_end(h, second);
    pass(h, 350, slots, 1);
    assert_int_equal(h->ends[0].status, BT_E_PEER_GONE);
    assert_non_null(strstr(h->ends[0].reason, "2 workers died"));
    assert_int_equal(bt_router_core_counters(h->core)->poisoned, 1);
    finish(h);
}

static void test_the_queue_has_its_own_deadline(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *req = bring_to(h, BT_REQUEST_QUEUED);
    (void)req;
    for (int i = 0; i < 700 && !h->n_ends; i++) {
        h->now_us += 50000;
        status_free(h, D, 0);
        status_free(h, P, 256);
        bt_router_core_tick(h->core, h->now_us);
        drain(h);
    }
    assert_int_equal(h->ends[0].status, BT_E_DEADLINE);
    assert_non_null(strstr(h->ends[0].reason, "30000 ms"));
    finish(h);

    /* One that lost its place waits for as long as there is somebody to wait for. */
    h = harness_start(NULL);
    req = bring_to(h, BT_REQUEST_STREAMING);
    stream_end(h, D);
    const uint32_t p = P;
    for (int i = 0; i < 31 && !h->n_ends; i++)
        pass(h, 1000, &p, 1);
    assert_int_equal(h->ends[0].status, BT_E_UNAVAILABLE);
    finish(h);
}

static void test_the_marked_pair_is_avoided(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *req = bring_to(h, BT_REQUEST_PREFILLING);
    ended(h, D, key_of(req), BT_END_LINK);
    assert_int_equal(req->state, BT_REQUEST_QUEUED);
    const uint32_t slots[] = {P, D};
    pass(h, 950, slots, 2);
    assert_int_equal(req->attempt, 1);
    pass(h, 100, slots, 2);
    assert_int_equal(req->attempt, 2);
    assert_int_equal(bt_router_core_counters(h->core)->moved_link, 1);
    finish(h);
}

static void test_clients_events_in_every_state(void **state) {
    (void)state;
    for (int from = BT_REQUEST_QUEUED; from <= BT_REQUEST_ASKING; from++) {
        for (int what = 0; what < 3; what++) {
            struct harness *h = harness_start(NULL);
            struct bt_request *req = bring_to(h, from);
            if (what == 0)
                bt_router_core_cancel(h->core, h->now_us, req);
            else if (what == 1)
                bt_router_core_stop(h->core, h->now_us, req);
            else { /* a stall of ten minutes is ours: nobody is judged, the deadline passes */
                h->now_us += 601000000;
                bt_router_core_tick(h->core, h->now_us);
            }
            drain(h);
            assert_int_equal(h->n_ends, 1);
            if (what < 2) {
                bt_router_core_cancel(h->core, h->now_us, req);
                drain(h);
            }
            finish(h);
        }
    }
    struct harness *h = harness_start(NULL);
    struct bt_request *req = bring_to(h, BT_REQUEST_STREAMING);
    bt_router_core_cancel(h->core, h->now_us, req);
    bt_router_core_stop(h->core, h->now_us, req);
    drain(h);
    assert_int_equal(h->n_ends, 1);
    finish(h);
}

/* P's token was the last one of a request whose cache others wait for. */
static struct bt_request *bring_to_served(struct harness *h, struct bt_request **follower) {
    struct bt_request *leader = submit(h, 40, 1);
    *follower = submit_follower(h, leader, 8);
    reserved(h, D, key_of(leader), true, 0);
    token(h, P, key_of(leader), 0, 500, BT_FINISH_LENGTH);
    assert_int_equal(leader->state, BT_REQUEST_SERVED);
    assert_int_equal(h->n_ends, 1);
    assert_int_equal((*follower)->state, BT_REQUEST_QUEUED);
    assert_int_equal((*follower)->attempt, 0);
    clear(h);
    return leader;
}

static void test_a_served_leader_waits_for_its_decode_worker(void **state) {
    (void)state;
    for (int what = 0; what < BT_END_COUNT + 4; what++) {
        struct harness *h = harness_start(NULL);
        struct bt_request *follower;
        struct bt_request *leader = bring_to_served(h, &follower);
        struct bt_attempt key = key_of(leader);
        bool has_cache = what == 0 || what == BT_END_DONE;
        if (what == 0) {
            token(h, D, key, 0, 500, BT_FINISH_LENGTH);
            assert_int_equal(h->n_emits, 0);
        } else if (what < BT_END_COUNT) {
            ended(h, D, key, what);
        } else if (what == BT_END_COUNT) {
            stream_end(h, D);
            const uint32_t p = P;
            pass(h, 350, &p, 1);
        } else if (what == BT_END_COUNT + 1) {
            h->now_us += 601000000;
            bt_router_core_tick(h->core, h->now_us);
            drain(h);
            assert_int_equal(h->n_ends, 1); /* the follower's deadline passed as well */
        } else if (what == BT_END_COUNT + 2) {
            reserved(h, D, key, true, 0);
            live(h, D, key);
            bt_router_core_cancel(h->core, h->now_us, leader);
            bt_router_core_stop(h->core, h->now_us, leader);
            drain(h);
            attach(h, 2, "d0", 20, BT_ROLE_DECODE);
            assert_int_equal(sent_to(h, 2, BT_MSG_RESUME)->n_rows, 1);
            assert_int_equal(leader->state, BT_REQUEST_SERVED);
            finish(h);
            continue;
        } else {
            bt_router_core_cancel(h->core, h->now_us, follower);
            drain(h);
            token(h, D, key, 0, 500, BT_FINISH_LENGTH);
            assert_int_equal(leader->state, BT_REQUEST_ENDED);
            finish(h);
            continue;
        }
        assert_true(leader->state == BT_REQUEST_ENDED || leader->state == BT_REQUEST_FREE);
        if (what < BT_END_COUNT && follower->attempt) {
            assert_int_equal(follower->placement,
                             has_cache ? BT_PLACE_LOCAL_CHOICE : BT_PLACE_SPLIT);
            assert_int_equal(sent_to(h, P, BT_MSG_PREFILL) != NULL, !has_cache);
        }
        assert_true(!has_cache || follower->attempt == 1);
        /* Its record took the report, and its client's end is not told again. */
        assert_int_equal(bt_router_core_counters(h->core)->incomplete, 0);
        assert_int_equal(bt_router_core_counters(h->core)->ended_ok, 1);
        finish(h);
    }
}

static void test_scores_in_every_state(void **state) {
    (void)state;
    const struct bt_logprobs rows[39] = {{.logprob = -1}};
    for (int from = BT_REQUEST_RESERVING; from <= BT_REQUEST_STREAMING; from++) {
        if (from == BT_REQUEST_TRANSFERRING)
            continue;
        struct harness *h = harness_start(NULL);
        struct bt_submit what = submit_of(sample_prompt, 40, 8);
        what.sampling.prompt_logprobs = 1;
        struct bt_request *req = submit_this(h, &what);
        struct bt_msg msg = {.type = BT_MSG_SCORES};
        msg.scores = (struct bt_msg_scores){key_of(req), 1, rows, 39};
        if (from >= BT_REQUEST_PREFILLING)
            reserved(h, D, key_of(req), true, 0);
        if (from == BT_REQUEST_STREAMING) {
            say(h, D, &msg);
            token(h, D, key_of(req), 0, 500, BT_FINISH_NONE);
        }
        say(h, D, &msg);
        assert_int_equal(req->state, from == BT_REQUEST_RESERVING ? BT_REQUEST_PREFILLING : from);
        assert_int_equal(h->n_scores, 39);
        assert_int_equal(h->n_closed, 0);
        finish(h);
    }
}

/* Runs last. */
static void test_every_handled_pair_was_reached(void **state) {
    (void)state;
    uint32_t n_missing = 0;
    struct bt_pair_view pair;
    for (uint32_t i = 0; i < BT_LIFECYCLE_PAIRS; i++) {
        assert_true(bt_router_core_pair(i, &pair));
        assert_string_equal(pair.machine, "request");
        if (pair.kind == BT_PAIR_IMPOSSIBLE)
            assert_int_equal(reached[i], 0);
        else
            assert_int_equal(pair.kind == BT_PAIR_IGNORED, pair.why[0] != 0);
        if (pair.kind == BT_PAIR_HANDLED && !reached[i]) {
            print_error("not reached: %s x %s\n", pair.state, pair.event);
            n_missing++;
        }
    }
    assert_int_equal(n_missing, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_end_in_every_state),
        cmocka_unit_test(test_death_in_every_state),
        cmocka_unit_test(test_the_answers_to_pgone),
        cmocka_unit_test(test_a_question_lost_with_the_stream_is_asked_again),
        cmocka_unit_test(test_unasked_words_change_nothing),
        cmocka_unit_test(test_tokens_in_every_state),
        cmocka_unit_test(test_refused_is_tried_again_within_the_budget),
        cmocka_unit_test(test_enough_failures_end_it),
        cmocka_unit_test(test_two_deaths_end_it),
        cmocka_unit_test(test_the_queue_has_its_own_deadline),
        cmocka_unit_test(test_the_marked_pair_is_avoided),
        cmocka_unit_test(test_clients_events_in_every_state),
        cmocka_unit_test(test_a_served_leader_waits_for_its_decode_worker),
        cmocka_unit_test(test_scores_in_every_state),
        cmocka_unit_test(test_every_handled_pair_was_reached),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

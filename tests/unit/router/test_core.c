/* One request through the core with scripted workers: the straight way, and each client's event in
 * each state. */
#include "harness.h"

enum { D2 = 2, P2 = 3 };

static void start(struct harness *h) {
    struct bt_router_config config = small_config();
    harness_init(h, &config);
    attach(h, P, "p0", 10, BT_ROLE_PREFILL);
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    clear(h);
}

static void test_split_request_goes_the_straight_way(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h);
    struct bt_request *req = submit(h, 40, 4);
    uint64_t id = req->id;
    struct sent *reserve = sent_to(h, D, BT_MSG_RESERVE), *prefill = sent_to(h, P, BT_MSG_PREFILL);
    assert_non_null(reserve);
    assert_non_null(prefill);
    assert_int_equal(reserve->first_token, 101);
    assert_int_equal(reserve->msg.work.n_tokens, 40);
    assert_int_equal(reserve->msg.work.n_prompt, 40);
    assert_int_equal(reserve->msg.work.remaining_ms, BT_REQUEST_DEADLINE_MS);
    assert_false(reserve->msg.work.prefill_here);
    assert_int_equal(prefill->msg.work.peer.hi, 20);
    assert_int_equal(reserve->msg.work.peer.hi, 10);
    assert_true(bt_id_equal(reserve->msg.work.ticket, prefill->msg.work.ticket));
    assert_false(bt_id_is_zero(reserve->msg.work.ticket));
    assert_int_equal(req->state, BT_REQUEST_RESERVING);
    struct bt_attempt key = key_of(req);

    reserved(h, D, key, true, 0);
    assert_int_equal(req->state, BT_REQUEST_PREFILLING);
    h->now_us += 8000;
    token(h, P, key, 0, 500, BT_FINISH_NONE);
    assert_int_equal(req->state, BT_REQUEST_TRANSFERRING);
    assert_int_equal(h->n_emits, 1);
    ended(h, P, key, BT_END_HANDED);
    token(h, D, key, 0, 500, BT_FINISH_NONE);
    assert_int_equal(req->state, BT_REQUEST_STREAMING);
    assert_int_equal(h->n_emits, 1);
    token(h, D, key, 1, 501, BT_FINISH_NONE);
    token(h, D, key, 2, 502, BT_FINISH_NONE);
    assert_int_equal(h->n_ends, 0);
    token(h, D, key, 3, 503, BT_FINISH_LENGTH);
    assert_int_equal(h->n_emits, 4);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(h->emits[i].index, i);
        assert_int_equal(h->emits[i].token, 500 + (int)i);
        assert_int_equal(h->emits[i].finish, i == 3 ? BT_FINISH_LENGTH : BT_FINISH_NONE);
    }
    assert_int_equal(h->n_ends, 1);
    assert_int_equal(h->ends[0].status, BT_OK);
    assert_int_equal(h->ends[0].finish, BT_FINISH_LENGTH);
    assert_string_equal(h->ends[0].reason, "");
    /* Nobody is cancelled: both ended by themselves. */
    assert_null(sent_to(h, D, BT_MSG_CANCEL));
    assert_null(sent_to(h, P, BT_MSG_CANCEL));

    /* D's report comes after the end and is added to the record; the ends are confirmed. */
    ended(h, D, key, BT_END_DONE);
    struct bt_request_record record;
    assert_true(bt_router_core_record(h->core, h->now_us, 0, &record));
    assert_int_equal(record.id, id);
    assert_int_equal(record.d.decode_us, 2000);
    assert_int_equal(record.p.prefill_us, 5000);
    assert_int_equal(record.ttft_us, 8000);
    assert_int_equal(record.placement, BT_PLACE_SPLIT);
    assert_string_equal(record.p_name, "p0");
    assert_string_equal(record.d_name, "d0");
    assert_int_equal(record.kv_bytes, 4096);
    assert_int_equal(bt_router_core_counters(h->core)->kv_bytes, 4096);
    pass(h, 50, NULL, 0);
    assert_int_equal(sent_to(h, D, BT_MSG_SEEN)->seen[0].request, id);
    assert_int_equal(sent_to(h, P, BT_MSG_SEEN)->n_rows, 1);
    const struct bt_router_counters *c = bt_router_core_counters(h->core);
    assert_int_equal(c->live, 0);
    assert_int_equal(c->ended_ok, 1);
    assert_int_equal(c->tokens_stored, 0);
    assert_int_equal(c->tokens_duplicate, 1);
    assert_int_equal(c->slow[BT_SLOW_NOT][BT_STAGE_NONE], 1);
    harness_fini(h);
    free(h);
}

static void test_token_zero_that_ends_the_request_ends_it_at_once(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h);
    struct bt_request *req = submit(h, 40, 4);
    struct bt_attempt key = key_of(req);
    reserved(h, D, key, true, 0);
    token(h, P, key, 0, 2, BT_FINISH_STOP);
    assert_int_equal(h->n_emits, 1);
    assert_int_equal(h->ends[0].finish, BT_FINISH_STOP);
    assert_null(sent_to(h, D, BT_MSG_CANCEL));
    /* D's copy is of nobody. */
    token(h, D, key, 0, 2, BT_FINISH_STOP);
    ended(h, D, key, BT_END_DONE);
    ended(h, P, key, BT_END_HANDED);
    assert_int_equal(h->n_emits, 1);
    assert_int_equal(h->n_ends, 1);
    struct bt_request_record record;
    assert_true(bt_router_core_record(h->core, h->now_us, 0, &record));
    assert_int_equal(record.p.prefill_us, 5000);
    harness_fini(h);
    free(h);
}

static void test_a_worker_that_goes_on_past_max_tokens_is_stopped(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h);
    struct bt_request *req = submit(h, 10, 1);
    struct bt_attempt key = key_of(req);
    reserved(h, D, key, true, 0);
    token(h, D, key, 0, 9, BT_FINISH_NONE);
    assert_int_equal(h->emits[0].finish, BT_FINISH_LENGTH);
    assert_int_equal(h->ends[0].finish, BT_FINISH_LENGTH);
    assert_non_null(sent_to(h, D, BT_MSG_CANCEL));
    token(h, D, key, 1, 9, BT_FINISH_NONE);
    assert_int_equal(h->n_emits, 1);
    harness_fini(h);
    free(h);
}

/* Brings a fresh request of 40 tokens into a state. */
static struct bt_request *bring_to(struct harness *h, enum bt_request_state to) {
    if (to == BT_REQUEST_QUEUED) {
        status_free(h, D, 0);
        struct bt_request *req = submit(h, 40, 8);
        assert_int_equal(req->state, BT_REQUEST_QUEUED);
        return req;
    }
    struct bt_request *req = submit(h, 40, 8);
    struct bt_attempt key = key_of(req);
    if (to != BT_REQUEST_RESERVING)
        reserved(h, D, key, true, 0);
    if (to == BT_REQUEST_TRANSFERRING || to == BT_REQUEST_STREAMING)
        token(h, P, key, 0, 500, BT_FINISH_NONE);
    if (to == BT_REQUEST_STREAMING)
        token(h, D, key, 0, 500, BT_FINISH_NONE);
    if (to == BT_REQUEST_ASKING)
        ended(h, P, key, BT_END_REFUSED);
    assert_int_equal(req->state, to);
    return req;
}

static void test_cancel_reaches_both_workers_in_every_state(void **state) {
    (void)state;
    for (int to = BT_REQUEST_QUEUED; to <= BT_REQUEST_ASKING; to++) {
        struct harness *h = calloc(1, sizeof *h);
        start(h);
        struct bt_request *req = bring_to(h, to);
        struct bt_id ticket = req->ticket;
        clear(h);
        bt_router_core_cancel(h->core, h->now_us, req);
        drain(h);
        assert_int_equal(h->n_ends, 1);
        assert_int_equal(h->ends[0].status, BT_E_CANCELLED);
        bool on_d = to != BT_REQUEST_QUEUED, on_p = on_d && to != BT_REQUEST_ASKING;
        assert_int_equal(sent_to(h, D, BT_MSG_CANCEL) != NULL, on_d);
        assert_int_equal(sent_to(h, P, BT_MSG_CANCEL) != NULL, on_p);
        if (on_d)
            assert_true(bt_id_equal(sent_to(h, D, BT_MSG_CANCEL)->msg.cancel.ticket, ticket));
        /* A second one, and a stop, are harmless. */
        bt_router_core_cancel(h->core, h->now_us, req);
        drain(h);
        assert_int_equal(h->n_ends, 1);
        assert_int_equal(bt_router_core_counters(h->core)->tokens_stored, 0);
        harness_fini(h);
        free(h);
    }
}

static void test_stop_ends_in_every_state(void **state) {
    (void)state;
    for (int to = BT_REQUEST_QUEUED; to <= BT_REQUEST_ASKING; to++) {
        struct harness *h = calloc(1, sizeof *h);
        start(h);
        struct bt_request *req = bring_to(h, to);
        clear(h);
        bt_router_core_stop(h->core, h->now_us, req);
        bt_router_core_stop(h->core, h->now_us, req);
        drain(h);
        assert_int_equal(h->n_ends, 1);
        assert_int_equal(h->ends[0].status, BT_OK);
        assert_int_equal(h->ends[0].finish, BT_FINISH_STOP);
        assert_int_equal(sent_to(h, D, BT_MSG_CANCEL) != NULL, to != BT_REQUEST_QUEUED);
        harness_fini(h);
        free(h);
    }
}

static void test_tokens_still_in_the_ring_are_dropped_after_a_stop(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h);
    struct bt_request *req = bring_to(h, BT_REQUEST_STREAMING);
    clear(h);
    struct bt_token rows[3];
    for (uint32_t i = 0; i < 3; i++)
        rows[i] = (struct bt_token){.key = key_of(req), .index = i + 1, .token = 7};
    struct bt_msg msg = {.type = BT_MSG_TOKENS};
    msg.tokens = (struct bt_msg_tokens){rows, 3};
    bt_router_core_worker_message(h->core, h->now_us, D, &msg);
    struct bt_router_action action;
    assert_true(bt_router_core_next(h->core, &action));
    assert_int_equal(action.type, BT_ROUTER_EMIT);
    bt_router_core_stop(h->core, h->now_us, req);
    drain(h);
    assert_int_equal(h->n_emits, 0);
    assert_int_equal(h->n_ends, 1);
    harness_fini(h);
    free(h);
}

static void test_deadline_ends_in_every_state(void **state) {
    (void)state;
    const uint32_t slots[] = {P, D};
    for (int to = BT_REQUEST_QUEUED; to <= BT_REQUEST_ASKING; to++) {
        struct harness *h = calloc(1, sizeof *h);
        struct bt_router_config config = small_config();
        config.deadline_ms = 1000;
        harness_init(h, &config);
        attach(h, P, "p0", 10, BT_ROLE_PREFILL);
        attach(h, D, "d0", 20, BT_ROLE_DECODE);
        struct bt_request *req = bring_to(h, to);
        (void)req;
        if (to == BT_REQUEST_QUEUED) { /* keep D full, or it would be placed */
            for (int i = 0; i < 19; i++) {
                h->now_us += 50000;
                status_free(h, D, 0);
                status_free(h, P, 256);
                bt_router_core_tick(h->core, h->now_us);
                drain(h);
            }
        } else {
            pass(h, 950, slots, 2);
        }
        assert_int_equal(h->n_ends, 0);
        h->now_us += 50000;
        bt_router_core_tick(h->core, h->now_us);
        drain(h);
        assert_int_equal(h->n_ends, 1);
        assert_int_equal(h->ends[0].status, BT_E_DEADLINE);
        assert_non_null(strstr(h->ends[0].reason, "1000 ms"));
        assert_non_null(strstr(h->ends[0].reason, bt_request_state_name(to)));
        harness_fini(h);
        free(h);
    }
}

static void test_a_logit_that_is_no_number_fails_the_request(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h);
    struct bt_request *req = bring_to(h, BT_REQUEST_STREAMING);
    clear(h);
    token(h, D, key_of(req), 1, -1, BT_FINISH_ERROR);
    assert_int_equal(h->n_emits, 0);
    assert_int_equal(h->ends[0].status, BT_E_INTERNAL);
    harness_fini(h);
    free(h);
}

static void test_seed_is_drawn_once_for_all_attempts(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h);
    struct bt_request *req = bring_to(h, BT_REQUEST_STREAMING);
    uint64_t seed = sent_to(h, D, BT_MSG_RESERVE)->msg.work.sampling.seed;
    assert_int_not_equal(seed, 0);
    struct bt_id first = req->ticket;
    clear(h);
    ended(h, D, key_of(req), BT_END_PREEMPTED);
    /* D has just said that it has no room: it is asked again when its Status says better. */
    assert_null(sent_to(h, D, BT_MSG_RESERVE));
    status_free(h, D, 256);
    struct sent *again = sent_to(h, D, BT_MSG_RESERVE);
    assert_non_null(again);
    assert_int_equal(again->msg.work.sampling.seed, seed);
    assert_int_equal(again->msg.work.key.attempt, 2);
    /* Prompt and the token that the client has. */
    assert_int_equal(again->msg.work.n_tokens, 41);
    assert_int_equal(again->msg.work.n_prompt, 40);
    assert_false(bt_id_equal(again->msg.work.ticket, first));
    assert_int_equal(req->attempt_first, 1);
    harness_fini(h);
    free(h);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split_request_goes_the_straight_way),
        cmocka_unit_test(test_token_zero_that_ends_the_request_ends_it_at_once),
        cmocka_unit_test(test_a_worker_that_goes_on_past_max_tokens_is_stopped),
        cmocka_unit_test(test_cancel_reaches_both_workers_in_every_state),
        cmocka_unit_test(test_stop_ends_in_every_state),
        cmocka_unit_test(test_tokens_still_in_the_ring_are_dropped_after_a_stop),
        cmocka_unit_test(test_deadline_ends_in_every_state),
        cmocka_unit_test(test_a_logit_that_is_no_number_fails_the_request),
        cmocka_unit_test(test_seed_is_drawn_once_for_all_attempts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

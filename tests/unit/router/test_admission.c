/* What submit refuses, with which status and sentence, and what the bounds are. */
#include "harness.h"

static bt_status try_submit(struct harness *h, uint32_t n, uint32_t max, struct bt_error *err) {
    struct bt_submit what = submit_of(sample_prompt, n, max);
    struct bt_request *req = NULL;
    *err = (struct bt_error){0};
    bt_status status = bt_router_core_submit(h->core, h->now_us, &what, &req, err);
    drain(h);
    return status;
}

static void test_without_workers(void **state) {
    (void)state;
    struct bt_router_config config = small_config();
    struct harness *h = calloc(1, sizeof *h);
    struct bt_error err;
    harness_init(h, &config);
    assert_int_equal(try_submit(h, 4, 4, &err), BT_E_UNAVAILABLE);
    assert_non_null(strstr(err.text, "no decode worker"));
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    assert_int_equal(try_submit(h, 4, 4, &err), BT_E_UNAVAILABLE);
    assert_non_null(strstr(err.text, "no prefill worker"));
    assert_int_equal(bt_router_core_counters(h->core)->refused_unavailable, 2);
    harness_finish(h);
    config.disaggregate = BT_DISAGGREGATE_AUTO;
    h = calloc(1, sizeof *h);
    harness_init(h, &config);
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    assert_int_equal(try_submit(h, 100, 4, &err), BT_OK);
    assert_true(sent_to(h, D, BT_MSG_RESERVE)->msg.work.prefill_here);
    assert_true(bt_id_is_zero(sent_to(h, D, BT_MSG_RESERVE)->msg.work.peer));
    harness_finish(h);
}

static void test_lengths(void **state) {
    (void)state;
    struct bt_router_config config = small_config();
    struct harness *h = harness_start(&config);
    struct bt_error err;
    assert_int_equal(try_submit(h, 0, 4, &err), BT_E_INVALID);
    assert_int_equal(try_submit(h, 96, 4001, &err), BT_E_TOO_LARGE);
    assert_non_null(strstr(err.text, "96"));
    assert_non_null(strstr(err.text, "4001"));
    assert_non_null(strstr(err.text, "4096"));
    assert_int_equal(try_submit(h, 96, 4000, &err), BT_OK);
    /* A smaller prefill worker bounds it too: a replay must fit. */
    struct bt_msg small = join_of("p1", 11, BT_ROLE_PREFILL);
    small.join.census = (struct bt_census){.total = 8, .free = 8};
    stream_end(h, P);
    const uint32_t d = D;
    pass(h, 350, &d, 1);
    bt_router_core_worker_opened(h->core, h->now_us, 3);
    say(h, 3, &small);
    assert_int_equal(bt_router_core_context(h->core), 128);
    assert_int_equal(try_submit(h, 100, 29, &err), BT_E_TOO_LARGE);
    assert_int_equal(try_submit(h, 129, 0, &err), BT_E_TOO_LARGE);
    assert_int_equal(try_submit(h, 128, 0, &err), BT_E_TOO_LARGE);
    /* max_tokens that is not given becomes what fits. */
    struct bt_request *req = submit(h, 100, 0);
    assert_int_equal(req->sampling.max_tokens, 28);
    assert_int_equal(bt_router_core_counters(h->core)->refused_invalid, 5);
    harness_finish(h);
}

static void test_max_context_of_the_config(void **state) {
    (void)state;
    struct bt_router_config config = small_config();
    config.max_context = 64;
    struct harness *h = harness_start(&config);
    struct bt_error err;
    assert_int_equal(bt_router_core_context(h->core), 64);
    assert_int_equal(try_submit(h, 60, 5, &err), BT_E_TOO_LARGE);
    assert_int_equal(try_submit(h, 60, 4, &err), BT_OK);
    harness_finish(h);
}

static void test_full(void **state) {
    (void)state;
    struct bt_router_config config = small_config();
    config.max_queued = 3;
    struct harness *h = harness_start(&config);
    struct bt_error err;
    status_free(h, D, 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(try_submit(h, 10, 4, &err), BT_OK);
    assert_int_equal(try_submit(h, 10, 4, &err), BT_E_FULL);
    assert_non_null(strstr(err.text, "3 requests wait"));
    assert_in_range(bt_router_core_retry_after_ms(h->core), 1000, 30000);
    assert_int_equal(bt_router_core_counters(h->core)->refused_full, 1);
    /* Room comes: they go, oldest first. */
    clear(h);
    status_free(h, D, 256);
    assert_int_equal(bt_router_core_counters(h->core)->queued, 0);
    uint64_t last = 0;
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t id = sent_nth(h, D, BT_MSG_RESERVE, i)->msg.work.key.request;
        assert_true(id >> 20 > last);
        last = id >> 20;
    }
    harness_finish(h);
}

static void test_short_prompts_pass_those_that_wait_for_a_prefill_worker(void **state) {
    (void)state;
    struct bt_router_config config = small_config();
    config.disaggregate = BT_DISAGGREGATE_AUTO;
    struct harness *h = harness_start(&config);
    struct bt_msg busy = {.type = BT_MSG_STATUS};
    busy.status.census = (struct bt_census){.total = 256, .free = 256};
    busy.status.backlog_tokens = 5000;
    say(h, P, &busy);
    struct bt_request *first = submit(h, 100, 4), *second = submit(h, 100, 4);
    struct bt_request *quick = submit(h, 10, 4);
    assert_int_equal(first->state, BT_REQUEST_QUEUED);
    assert_int_equal(second->state, BT_REQUEST_QUEUED);
    assert_int_equal(quick->state, BT_REQUEST_RESERVING);
    assert_int_equal(quick->placement, BT_PLACE_LOCAL_SHORT);
    /* When pages are what is missing nobody passes. */
    status_free(h, D, 2);
    struct bt_request *third = submit(h, 10, 4);
    assert_int_equal(third->state, BT_REQUEST_QUEUED);
    /* The order among those that wait is kept. */
    clear(h);
    status_free(h, D, 256);
    status_free(h, P, 256);
    assert_int_equal(sent_nth(h, P, BT_MSG_PREFILL, 0)->msg.work.key.request, first->id);
    assert_int_equal(sent_nth(h, P, BT_MSG_PREFILL, 1)->msg.work.key.request, second->id);
    harness_finish(h);
}

static void test_token_budget(void **state) {
    (void)state;
    struct bt_router_config config = small_config();
    config.token_budget = 310;
    struct harness *h = harness_start(&config);
    struct bt_error err;
    struct bt_request *req = submit(h, 100, 55);
    assert_int_equal(try_submit(h, 100, 87, &err), BT_E_FULL);
    assert_non_null(strstr(err.text, "310"));
    assert_int_equal(try_submit(h, 100, 55, &err), BT_OK);
    assert_int_equal(try_submit(h, 1, 1, &err), BT_E_FULL);
    bt_router_core_cancel(h->core, h->now_us, req);
    drain(h);
    assert_int_equal(try_submit(h, 1, 1, &err), BT_OK);
    harness_finish(h);
}

static void test_requests_are_bounded(void **state) {
    (void)state;
    struct bt_router_config config = small_config();
    config.max_requests = 2;
    struct harness *h = harness_start(&config);
    struct bt_error err;
    struct bt_request *a = submit(h, 10, 4);
    submit(h, 10, 4);
    assert_int_equal(try_submit(h, 10, 4, &err), BT_E_FULL);
    uint64_t id = a->id;
    bt_router_core_cancel(h->core, h->now_us, a);
    drain(h);
    struct bt_request *b = submit(h, 10, 4);
    assert_ptr_equal(a, b);
    assert_int_not_equal(b->id, id); /* never used again */
    /* The old one's tokens are nobody's. */
    token(h, D, (struct bt_attempt){id, 1}, 0, 5, BT_FINISH_NONE);
    assert_int_equal(bt_router_core_counters(h->core)->tokens_stale, 1);
    assert_int_equal(h->n_emits, 0);
    harness_finish(h);
}

static void test_records_and_live_ones(void **state) {
    (void)state;
    struct bt_router_config config = small_config();
    config.n_records = 2;
    struct harness *h = harness_start(&config);
    uint64_t ids[3];
    for (int i = 0; i < 3; i++) {
        struct bt_request *req = submit(h, 10, 4);
        ids[i] = req->id;
        token(h, D, key_of(req), 0, 2, BT_FINISH_STOP);
    }
    struct bt_request *alive = submit(h, 10, 4);
    struct bt_request_record record;
    uint32_t cursor = 0;
    assert_true(bt_router_core_live(h->core, h->now_us, &cursor, &record));
    assert_int_equal(record.id, alive->id);
    assert_int_equal(record.state, BT_REQUEST_RESERVING);
    assert_false(bt_router_core_live(h->core, h->now_us, &cursor, &record));
    assert_true(bt_router_core_record(h->core, h->now_us, 0, &record));
    assert_int_equal(record.id, ids[2]);
    assert_true(bt_router_core_record(h->core, h->now_us, 1, &record));
    assert_int_equal(record.id, ids[1]);
    assert_false(bt_router_core_record(h->core, h->now_us, 2, &record));
    /* Each counts once by its verdict, also without the workers' reports. */
    const uint32_t slots[] = {P, D};
    pass(h, 1100, slots, 2);
    assert_int_equal(bt_router_core_counters(h->core)->slow[BT_SLOW_NOT][BT_STAGE_NONE], 3);
    harness_finish(h);
}

static void test_config_is_checked_by_name(void **state) {
    (void)state;
    struct bt_error err;
    struct bt_router_config config = small_config();
    config.max_requests = 1u << 20;
    assert_null(bt_router_core_create(&config, &err));
    assert_non_null(strstr(err.text, "max_requests"));
    config = small_config();
    config.prefix_slots = 100;
    assert_null(bt_router_core_create(&config, &err));
    assert_non_null(strstr(err.text, "prefix_slots"));
    config = small_config();
    config.incarnation = (struct bt_id){0, 0};
    assert_null(bt_router_core_create(&config, &err));
    config = small_config();
    config.token_budget = 0;
    assert_null(bt_router_core_create(&config, &err));
    assert_non_null(strstr(err.text, "token_budget"));
    bt_router_core_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_workers),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_max_context_of_the_config),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_short_prompts_pass_those_that_wait_for_a_prefill_worker),
        cmocka_unit_test(test_token_budget),
        cmocka_unit_test(test_requests_are_bounded),
        cmocka_unit_test(test_records_and_live_ones),
        cmocka_unit_test(test_config_is_checked_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Where a request's time went, as the core sees it: stages that add up, whatever happened. */
#include "harness.h"

enum { D2 = 2, P2 = 3 };

static void start(struct harness *h, enum bt_disaggregate mode, bool two) {
    struct bt_router_config config = small_config();
    config.disaggregate = mode;
    harness_init(h, &config);
    if (mode != BT_DISAGGREGATE_NEVER)
        attach(h, P, "p0", 100, BT_ROLE_PREFILL);
    attach(h, D, "d0", 101, BT_ROLE_DECODE);
    if (two)
        attach(h, D2, "d1", 102, BT_ROLE_DECODE);
    clear(h);
}

static void report(struct harness *h, uint32_t slot, struct bt_attempt key, enum bt_end reason,
                   struct bt_stages stages) {
    struct bt_msg msg = {.type = BT_MSG_REPORT,
                         .ended = {.key = key, .reason = reason, .stages = stages}};
    say(h, slot, &msg);
}

static struct bt_request_record last(struct harness *h) {
    struct bt_request_record r;
    assert_true(bt_router_core_record(h->core, h->now_us, 0, &r));
    uint64_t all = 0, first = 0;
    for (int i = 0; i < BT_SPAN_COUNT; i++) {
        all += r.span_us[i];
        first += r.start_us[i];
    }
    assert_int_equal(all, r.total_us);
    assert_int_equal(first, r.ttft_us ? r.ttft_us : r.total_us);
    return r;
}

static void spans_are(const struct bt_request_record *r, const uint64_t want[BT_SPAN_COUNT]) {
    for (int i = 0; i < BT_SPAN_COUNT; i++)
        if (r->span_us[i] != want[i])
            fail_msg("%s is %llu us, must be %llu", bt_span_name((enum bt_span)i),
                     (unsigned long long)r->span_us[i], (unsigned long long)want[i]);
}

static const struct bt_stages of_p = {.queue_us = 1000, .grant_us = 3000, .prefill_us = 5000};
static const struct bt_stages of_d = {.queue_us = 4000,
                                      .prefill_us = 5000,
                                      .transfer_us = 6000,
                                      .join_us = 500,
                                      .decode_us = 4000,
                                      .steps = 2,
                                      .batch_rows = 2};

/* Placed after 2 ms, token 0 after 10, the last one after 20. */
static struct bt_request *run_split(struct harness *h, bool p_is_late) {
    struct bt_request *req = submit(h, 40, 3);
    struct bt_attempt key = key_of(req);
    h->now_us += 2000;
    reserved(h, D, key, true, 0);
    h->now_us += 8000;
    if (!p_is_late) {
        report(h, P, key, 0, of_p);
        token(h, P, key, 0, 7, BT_FINISH_NONE);
    } else {
        token(h, D, key, 0, 7, BT_FINISH_NONE);
    }
    h->now_us += 10000;
    report(h, D, key, BT_END_DONE, of_d);
    token(h, D, key, 1, 7, BT_FINISH_NONE);
    token(h, D, key, 2, 7, BT_FINISH_LENGTH);
    assert_int_equal(h->n_ends, 1);
    return req;
}

static void test_split(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h, BT_DISAGGREGATE_ALWAYS, false);
    struct bt_request *req = run_split(h, false);
    struct bt_attempt key = key_of(req);
    /* What END has, before anything else comes. */
    struct bt_request_record r;
    bt_router_core_record_of(h->core, req, &r);
    static const uint64_t at_end[BT_SPAN_COUNT] = {0, 2000, 2000, 5000, 1000, 500, 4000, 0, 5500};
    spans_are(&r, at_end);
    assert_int_equal(r.unknown, 0);
    assert_int_equal(r.start_us[BT_SPAN_NETWORK], 1000);
    /* P's word on the transfer is exact. */
    struct bt_msg msg = {.type = BT_MSG_ENDED,
                         .ended = {.key = key, .reason = BT_END_HANDED, .stages = of_p}};
    msg.ended.stages.transfer_us = 1500;
    say(h, P, &msg);
    r = last(h);
    static const uint64_t later[BT_SPAN_COUNT] = {0, 2000, 2000, 5000, 1500, 500, 4000, 0, 5000};
    spans_are(&r, later);
    harness_fini(h);
    free(h);
}

/* All tokens come from D, and so does P's part. */
static void test_split_with_p_late(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h, BT_DISAGGREGATE_ALWAYS, false);
    run_split(h, true);
    struct bt_request_record r = last(h);
    static const uint64_t want[BT_SPAN_COUNT] = {0, 2000, 2000, 5000, 1000, 500, 4000, 0, 5500};
    spans_are(&r, want);
    assert_int_equal(r.start_us[BT_SPAN_TRANSFER], 1000);
    assert_int_equal(r.unknown, 0);
    harness_fini(h);
    free(h);
}

static void test_what_is_too_long_is_cut(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h, BT_DISAGGREGATE_ALWAYS, false);
    struct bt_request *req = submit(h, 40, 2);
    struct bt_attempt key = key_of(req);
    h->now_us += 3000;
    reserved(h, D, key, true, 0);
    report(h, P, key, 0, (struct bt_stages){.queue_us = UINT64_MAX, .prefill_us = 2000});
    token(h, P, key, 0, 7, BT_FINISH_NONE);
    h->now_us += 1000;
    report(h, D, key, BT_END_DONE,
           (struct bt_stages){.transfer_us = 500, .join_us = UINT64_MAX, .decode_us = UINT64_MAX});
    token(h, D, key, 1, 7, BT_FINISH_LENGTH);
    struct bt_request_record r = last(h);
    static const uint64_t want[BT_SPAN_COUNT] = {0, 1000, 0, 2000, 500, 500, 0, 0, 0};
    spans_are(&r, want);
    harness_fini(h);
    free(h);
}

static void test_local_and_one_token(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h, BT_DISAGGREGATE_NEVER, false);
    for (uint32_t n = 1; n <= 2; n++) {
        clear(h);
        struct bt_request *req = submit(h, 40, n);
        struct bt_attempt key = key_of(req);
        h->now_us += 1000;
        reserved(h, D, key, true, 0);
        h->now_us += 9000;
        struct bt_stages stages = {.queue_us = 2000, .prefill_us = 6000};
        report(h, D, key, n == 1 ? BT_END_DONE : 0, stages);
        token(h, D, key, 0, 7, n == 1 ? BT_FINISH_LENGTH : BT_FINISH_NONE);
        if (n == 2) {
            h->now_us += 4000;
            stages.decode_us = 3000;
            report(h, D, key, BT_END_DONE, stages);
            token(h, D, key, 1, 7, BT_FINISH_LENGTH);
        }
        struct bt_request_record r = last(h);
        const uint64_t want[BT_SPAN_COUNT] = {
            0, 1000, 2000, 6000, 0, 0, n == 2 ? 3000 : 0, 0, n == 2 ? 2000 : 1000};
        spans_are(&r, want);
        assert_int_equal(r.unknown, 0);
        ended(h, D, key, BT_END_DONE);
    }
    harness_fini(h);
    free(h);
}

/* Token 0 from P ends it: what comes after it is nobody's time. */
static void test_split_of_one_token(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h, BT_DISAGGREGATE_ALWAYS, false);
    struct bt_request *req = submit(h, 40, 1);
    struct bt_attempt key = key_of(req);
    reserved(h, D, key, true, 0);
    h->now_us += 10000;
    report(h, P, key, 0, of_p);
    token(h, P, key, 0, 7, BT_FINISH_LENGTH);
    h->now_us += 5000;
    ended(h, P, key, BT_END_HANDED);
    struct bt_request_record r = last(h);
    assert_int_equal(r.total_us, 10000);
    assert_int_equal(r.unknown, 0);
    assert_int_equal(r.span_us[BT_SPAN_TRANSFER], 0);
    harness_fini(h);
    free(h);
}

/* Its worker dies in mid-stream: from its last token to the next one it was moved. */
static void test_moved(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h, BT_DISAGGREGATE_NEVER, true);
    struct bt_request *req = submit(h, 40, 4);
    uint32_t first = sent_to(h, D, BT_MSG_RESERVE) ? D : D2, second = first == D ? D2 : D;
    struct bt_attempt key = key_of(req);
    h->now_us += 1000;
    reserved(h, first, key, true, 0);
    h->now_us += 9000;
    report(h, first, key, 0, (struct bt_stages){.queue_us = 2000, .prefill_us = 6000});
    token(h, first, key, 0, 7, BT_FINISH_NONE);
    h->now_us += 5000;
    token(h, first, key, 1, 7, BT_FINISH_NONE);
    h->now_us += 3000; /* of silence, before it says that it is leaving */
    ended(h, first, key, BT_END_DRAINING);
    key = key_of(req);
    assert_int_equal(key.attempt, 2);
    h->now_us += 2000;
    reserved(h, second, key, true, 0);
    h->now_us += 10000;
    report(h, second, key, 0, (struct bt_stages){.queue_us = 100, .prefill_us = 9000});
    token(h, second, key, 2, 7, BT_FINISH_NONE);
    h->now_us += 4000;
    report(
        h, second, key, BT_END_DONE,
        (struct bt_stages){.queue_us = 100, .prefill_us = 9000, .join_us = 200, .decode_us = 3000});
    token(h, second, key, 3, 7, BT_FINISH_LENGTH);
    struct bt_request_record r = last(h);
    static const uint64_t want[BT_SPAN_COUNT] = {0, 1000, 100, 5000, 0, 200, 8000, 15000, 4700};
    spans_are(&r, want); /* of the start the last word counts: ended() says 100 and 5000 */
    assert_int_equal(r.unknown, 0);
    assert_int_equal(r.ttft_us, 10000);
    harness_fini(h);
    free(h);
}

/* Lost before the first token: all of the attempt. And what waits for a place, waits in the queue.
 */
static void test_wasted_and_held(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h, BT_DISAGGREGATE_NEVER, true);
    bt_router_core_hold(h->core, h->now_us, true);
    drain(h);
    struct bt_request *req = submit(h, 40, 1);
    assert_null(sent_to(h, D, BT_MSG_RESERVE));
    assert_null(sent_to(h, D2, BT_MSG_RESERVE));
    assert_true(bt_router_core_next_tick_us(h->core) > h->now_us);
    h->now_us += 4000;
    bt_router_core_hold(h->core, h->now_us, false);
    drain(h);
    uint32_t first = sent_to(h, D, BT_MSG_RESERVE) ? D : D2, second = first == D ? D2 : D;
    reserved(h, first, key_of(req), true, 0);
    h->now_us += 7000;
    ended(h, first, key_of(req), BT_END_DRAINING);
    struct bt_attempt key = key_of(req);
    reserved(h, second, key, true, 0);
    h->now_us += 5000;
    report(h, second, key, BT_END_DONE, (struct bt_stages){.prefill_us = 4000});
    token(h, second, key, 0, 7, BT_FINISH_LENGTH);
    struct bt_request_record r = last(h);
    static const uint64_t want[BT_SPAN_COUNT] = {4000, 0, 0, 4000, 0, 0, 0, 7000, 1000};
    spans_are(&r, want);
    harness_fini(h);
    free(h);
}

/* Ends that nobody reports on: what is not known is said, and the network is not blamed. */
static void test_unknown(void **state) {
    (void)state;
    struct harness *h = calloc(1, sizeof *h);
    start(h, BT_DISAGGREGATE_ALWAYS, false);
    struct bt_request *req = submit(h, 40, 9);
    struct bt_attempt key = key_of(req);
    reserved(h, D, key, true, 0);
    h->now_us += 10000;
    report(h, P, key, 0, of_p);
    token(h, P, key, 0, 7, BT_FINISH_NONE);
    h->now_us += 10000;
    token(h, D, key, 1, 7, BT_FINISH_NONE);
    bt_router_core_stop(h->core, h->now_us, req);
    drain(h);
    struct bt_request_record r = last(h);
    assert_int_equal(r.unknown, 1u << BT_SPAN_TRANSFER | 1u << BT_SPAN_JOIN | 1u << BT_SPAN_DECODE);
    assert_int_equal(r.span_us[BT_SPAN_PREFILL], 5000);
    /* One that never had a place has no stage that could be unknown. */
    bt_router_core_hold(h->core, h->now_us, true);
    drain(h);
    req = submit(h, 40, 9);
    h->now_us += 6000;
    bt_router_core_cancel(h->core, h->now_us, req);
    drain(h);
    r = last(h);
    assert_int_equal(r.unknown, 0);
    assert_int_equal(r.span_us[BT_SPAN_QUEUE], 6000);
    harness_fini(h);
    free(h);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_split_with_p_late),
        cmocka_unit_test(test_what_is_too_long_is_cut),
        cmocka_unit_test(test_local_and_one_token),
        cmocka_unit_test(test_split_of_one_token),
        cmocka_unit_test(test_moved),
        cmocka_unit_test(test_wasted_and_held),
        cmocka_unit_test(test_unknown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

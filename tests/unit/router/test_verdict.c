/* The verdict names the phase that missed its target and the stage that took most of the excess
 * over what is usual for it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "router/verdict.h"

/* What one span takes more, in the start or in the stream. */
static void add(struct bt_request_record *r, enum bt_span span, bool start, uint64_t us) {
    r->span_us[span] += us;
    r->total_us += us;
    if (start) {
        r->start_us[span] += us;
        r->ttft_us += us;
    } else {
        r->itl_mean_us += us / (r->generated_tokens - 1);
        if (span == BT_SPAN_DECODE)
            r->d.decode_us += us;
    }
}

/* 100 tokens in 40 ms, the first one after 50; ten more, one each 5 ms. */
static struct bt_request_record base(void) {
    struct bt_request_record r = {.placement = BT_PLACE_SPLIT,
                                  .prompt_tokens = 100,
                                  .generated_tokens = 11,
                                  .attempts = 1,
                                  .d = {.steps = 10, .batch_rows = 10}};
    add(&r, BT_SPAN_PLACEMENT, true, 1000);
    add(&r, BT_SPAN_WAIT, true, 2000);
    add(&r, BT_SPAN_PREFILL, true, 40000);
    add(&r, BT_SPAN_NETWORK, true, 7000);
    add(&r, BT_SPAN_TRANSFER, false, 2000);
    add(&r, BT_SPAN_JOIN, false, 1000);
    add(&r, BT_SPAN_DECODE, false, 45000);
    add(&r, BT_SPAN_NETWORK, false, 2000);
    return r;
}

static void check(const struct bt_verdict_targets *targets, const struct bt_request_record *r,
                  bool preempted, enum bt_slow_phase phase, enum bt_slow_stage stage) {
    struct bt_verdict v = bt_verdict_of(targets, r, preempted);
    assert_int_equal(v.phase, phase);
    assert_string_equal(bt_slow_stage_name(v.stage), bt_slow_stage_name(stage));
    assert_true(v.advice && v.advice[0]);
}

static const struct {
    enum bt_span span;
    bool start;
    enum bt_slow_stage stage;
} cases[] = {
    {BT_SPAN_QUEUE, true, BT_STAGE_QUEUE},       {BT_SPAN_PLACEMENT, true, BT_STAGE_PLACEMENT},
    {BT_SPAN_WAIT, true, BT_STAGE_WAIT},         {BT_SPAN_PREFILL, true, BT_STAGE_PREFILL},
    {BT_SPAN_TRANSFER, true, BT_STAGE_TRANSFER}, {BT_SPAN_MOVED, true, BT_STAGE_MOVED},
    {BT_SPAN_NETWORK, true, BT_STAGE_NETWORK},   {BT_SPAN_TRANSFER, false, BT_STAGE_TRANSFER},
    {BT_SPAN_JOIN, false, BT_STAGE_JOIN},        {BT_SPAN_DECODE, false, BT_STAGE_STEP},
    {BT_SPAN_MOVED, false, BT_STAGE_MOVED},      {BT_SPAN_NETWORK, false, BT_STAGE_NETWORK},
};

static void check_each_stage(const struct bt_verdict_targets *t) {
    struct bt_request_record r = base();
    check(t, &r, false, BT_SLOW_NOT, BT_STAGE_NONE);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        r = base();
        add(&r, cases[i].span, cases[i].start, 200000);
        enum bt_slow_phase phase = cases[i].start ? BT_SLOW_START : BT_SLOW_STREAM;
        check(t, &r, false, phase, cases[i].stage);
        if (cases[i].span == BT_SPAN_MOVED)
            check(t, &r, true, phase, BT_STAGE_MEMORY);
    }
}

static void test_set_targets_and_nothing_usual(void **state) {
    (void)state;
    struct bt_verdict_targets t;
    bt_verdict_init(&t, 100, 10000);
    assert_int_equal(bt_verdict_ttft_target_us(&t, 5), 100000);
    assert_int_equal(bt_verdict_itl_target_us(&t), 10000);
    check_each_stage(&t);
}

static void learn(struct bt_verdict_targets *t, struct bt_request_record r, int n) {
    for (int i = 0; i < n; i++) {
        r.verdict = bt_verdict_of(t, &r, false);
        bt_verdict_learn(t, &r);
    }
}

static void test_learnt_targets(void **state) {
    (void)state;
    struct bt_verdict_targets t;
    bt_verdict_init(&t, 0, 0);
    for (int i = 0; i < BT_VERDICT_SAMPLES; i++) {
        assert_int_equal(bt_verdict_ttft_target_us(&t, 100), 0);
        assert_int_equal(bt_verdict_itl_target_us(&t), 0);
        learn(&t, base(), 1);
    }
    /* 400 us a token and 10 ms beside, twice, and the margin. */
    assert_int_equal(bt_verdict_ttft_target_us(&t, 100), 100000 + BT_VERDICT_MARGIN_US);
    assert_int_equal(bt_verdict_ttft_target_us(&t, 1000), 820000 + BT_VERDICT_MARGIN_US);
    assert_int_equal(bt_verdict_itl_target_us(&t), 10000 + BT_VERDICT_TOKEN_MARGIN_US);
    check_each_stage(&t);
    /* One hiccup in a short stream is none. */
    struct bt_request_record short_one = base();
    add(&short_one, BT_SPAN_DECODE, false, 110000);
    check(&t, &short_one, false, BT_SLOW_NOT, BT_STAGE_NONE);
    /* Cached blocks are not computed: they teach nothing false about a token's cost. */
    struct bt_request_record r = base();
    r.pages_cached_p = 5;
    r.start_us[BT_SPAN_PREFILL] = 8000;
    r.ttft_us = 18000;
    learn(&t, r, 40);
    assert_in_range(bt_verdict_ttft_target_us(&t, 100), 99000 + BT_VERDICT_MARGIN_US,
                    101000 + BT_VERDICT_MARGIN_US);
}

/* The largest stage is not the one to blame where it is always that large. */
static void test_excess_over_what_is_usual(void **state) {
    (void)state;
    struct bt_verdict_targets t;
    bt_verdict_init(&t, 0, 0);
    learn(&t, base(), 8);
    struct bt_request_record r = base();
    r.prompt_tokens = 1000;
    add(&r, BT_SPAN_PREFILL, true, 360000); /* usual for a thousand */
    check(&t, &r, false, BT_SLOW_NOT, BT_STAGE_NONE);
    add(&r, BT_SPAN_QUEUE, true, 600000);
    check(&t, &r, false, BT_SLOW_START, BT_STAGE_QUEUE);
    /* Less than the compute, more than its excess. */
    bt_verdict_init(&t, 100, 10000);
    learn(&t, base(), 8);
    r = base();
    r.prompt_tokens = 1000;
    add(&r, BT_SPAN_PREFILL, true, 360000);
    add(&r, BT_SPAN_WAIT, true, 300000);
    check(&t, &r, false, BT_SLOW_START, BT_STAGE_WAIT);
    /* What is usual misses the target by itself: the prompt is long. */
    r = base();
    r.prompt_tokens = 1000;
    add(&r, BT_SPAN_PREFILL, true, 360000);
    add(&r, BT_SPAN_WAIT, true, 3000);
    check(&t, &r, false, BT_SLOW_START, BT_STAGE_PREFILL);
    assert_non_null(strstr(bt_verdict_of(&t, &r, false).advice, "the prompt is long"));
    add(&r, BT_SPAN_PREFILL, true, 400000);
    assert_non_null(strstr(bt_verdict_of(&t, &r, false).advice, "slower than usual"));
}

static void test_slow_ones_teach_little(void **state) {
    (void)state;
    struct bt_verdict_targets set, learnt;
    bt_verdict_init(&set, 100, 10000);
    bt_verdict_init(&learnt, 0, 0);
    learn(&set, base(), 8);
    learn(&learnt, base(), 8);
    struct bt_request_record r = base();
    add(&r, BT_SPAN_TRANSFER, false, 400000);
    uint64_t transfer_us = set.transfer_us;
    learn(&set, r, 100);
    assert_int_equal(set.transfer_us, transfer_us);
    check(&set, &r, false, BT_SLOW_STREAM, BT_STAGE_TRANSFER);
    learn(&learnt, r, 4);
    check(&learnt, &r, false, BT_SLOW_STREAM, BT_STAGE_TRANSFER);
    learn(&learnt, r, 1000); /* in the end it is how things are */
    check(&learnt, &r, false, BT_SLOW_NOT, BT_STAGE_NONE);
}

static void test_batch_or_step(void **state) {
    (void)state;
    struct bt_verdict_targets t;
    bt_verdict_init(&t, 0, 0);
    learn(&t, base(), 8);
    struct bt_request_record r = base();
    add(&r, BT_SPAN_DECODE, false, 450000); /* ten times as long, by eleven sequences */
    r.d.batch_rows = 110;
    check(&t, &r, false, BT_SLOW_STREAM, BT_STAGE_BATCH);
    r.d.batch_rows = 20; /* two do not explain it */
    check(&t, &r, false, BT_SLOW_STREAM, BT_STAGE_STEP);
    r.d.batch_rows = 10;
    check(&t, &r, false, BT_SLOW_STREAM, BT_STAGE_STEP);
    bt_verdict_init(&t, 100, 10000); /* nothing learnt: many sequences are the reason */
    r.d.batch_rows = 20;
    check(&t, &r, false, BT_SLOW_STREAM, BT_STAGE_BATCH);
}

static void test_ties_and_two_targets(void **state) {
    (void)state;
    struct bt_verdict_targets t;
    bt_verdict_init(&t, 100, 10000);
    struct bt_request_record r = base();
    add(&r, BT_SPAN_QUEUE, true, 200000);
    add(&r, BT_SPAN_MOVED, true, 200000);
    check(&t, &r, false, BT_SLOW_START, BT_STAGE_QUEUE); /* the earlier one */
    r = base();
    add(&r, BT_SPAN_JOIN, false, 200000);
    add(&r, BT_SPAN_TRANSFER, false, 199000);
    check(&t, &r, false, BT_SLOW_STREAM, BT_STAGE_TRANSFER);
    /* Of two missed targets the one missed by more. */
    add(&r, BT_SPAN_QUEUE, true, 60000);
    check(&t, &r, false, BT_SLOW_STREAM, BT_STAGE_TRANSFER);
    add(&r, BT_SPAN_QUEUE, true, 900000);
    check(&t, &r, false, BT_SLOW_START, BT_STAGE_QUEUE);
}

static void test_without_reports(void **state) {
    (void)state;
    struct bt_verdict_targets t;
    bt_verdict_init(&t, 100, 10000);
    struct bt_request_record r = {.placement = BT_PLACE_SPLIT,
                                  .prompt_tokens = 100,
                                  .generated_tokens = 11,
                                  .attempts = 1,
                                  .unknown = 1u << BT_SPAN_DECODE};
    add(&r, BT_SPAN_QUEUE, true, 1000);
    add(&r, BT_SPAN_NETWORK, false, 400000);
    check(&t, &r, false, BT_SLOW_STREAM, BT_STAGE_NONE);
    assert_non_null(strstr(bt_verdict_of(&t, &r, false).advice, "not reported"));
    r.unknown = 0;
    check(&t, &r, false, BT_SLOW_STREAM, BT_STAGE_NETWORK);
    /* It ended in the queue. */
    r = (struct bt_request_record){.total_us = 500000};
    r.start_us[BT_SPAN_QUEUE] = r.span_us[BT_SPAN_QUEUE] = 500000;
    check(&t, &r, false, BT_SLOW_START, BT_STAGE_QUEUE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set_targets_and_nothing_usual),
        cmocka_unit_test(test_learnt_targets),
        cmocka_unit_test(test_excess_over_what_is_usual),
        cmocka_unit_test(test_slow_ones_teach_little),
        cmocka_unit_test(test_batch_or_step),
        cmocka_unit_test(test_ties_and_two_targets),
        cmocka_unit_test(test_without_reports),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

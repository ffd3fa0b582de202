/* The verdict names the phase that missed its target and the stage that took most of the excess. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "router/verdict.h"

static struct bt_request_record base(void) {
    return (struct bt_request_record){.placement = BT_PLACE_SPLIT,
                                      .prompt_tokens = 100,
                                      .generated_tokens = 11,
                                      .attempts = 1,
                                      .ttft_us = 50000,
                                      .itl_mean_us = 5000,
                                      .p = {.prefill_us = 40000},
                                      .d = {.decode_us = 45000, .steps = 10}};
}

static void check(const struct bt_verdict_targets *targets, const struct bt_request_record *r,
                  bool preempted, enum bt_slow_phase phase, enum bt_slow_stage stage) {
    struct bt_verdict v = bt_verdict_of(targets, r, preempted);
    assert_int_equal(v.phase, phase);
    assert_int_equal(v.stage, stage);
    assert_true(v.advice && v.advice[0]);
}

static void test_set_targets(void **state) {
    (void)state;
    struct bt_verdict_targets t;
    bt_verdict_init(&t, 100, 10000);
    assert_int_equal(bt_verdict_ttft_target_us(&t, 5), 100000);
    assert_int_equal(bt_verdict_itl_target_us(&t), 10000);
    struct bt_request_record r = base();
    check(&t, &r, false, BT_SLOW_NOT, BT_STAGE_NONE);

    r.ttft_us = 500000;
    r.queue_us = 300000;
    check(&t, &r, false, BT_SLOW_START, BT_STAGE_QUEUE);
    r.queue_us = 0;
    r.p.prefill_us = 450000;
    check(&t, &r, false, BT_SLOW_START, BT_STAGE_PREFILL);
    r.p.prefill_us = 40000;
    check(&t, &r, false, BT_SLOW_START, BT_STAGE_NETWORK);
    r.attempts = 2;
    check(&t, &r, true, BT_SLOW_START, BT_STAGE_MEMORY);
    check(&t, &r, false, BT_SLOW_START, BT_STAGE_MOVED);

    r = base();
    r.itl_mean_us = 50000;
    r.d.decode_us = 480000;
    check(&t, &r, false, BT_SLOW_STREAM, BT_STAGE_BATCH);
    r.d.decode_us = 50000;
    check(&t, &r, false, BT_SLOW_STREAM, BT_STAGE_NETWORK);
    r.replay_us = 400000;
    check(&t, &r, false, BT_SLOW_STREAM, BT_STAGE_MOVED);
    check(&t, &r, true, BT_SLOW_STREAM, BT_STAGE_MEMORY);
    r.replay_us = 0;
    r.p.transfer_us = 420000;
    check(&t, &r, false, BT_SLOW_STREAM, BT_STAGE_TRANSFER);
    /* Of two missed targets the one missed by more. */
    r.ttft_us = 110000;
    check(&t, &r, false, BT_SLOW_STREAM, BT_STAGE_TRANSFER);
}

static void test_learnt_targets(void **state) {
    (void)state;
    struct bt_verdict_targets t;
    bt_verdict_init(&t, 0, 0);
    struct bt_request_record r = base();
    for (int i = 0; i < BT_VERDICT_SAMPLES; i++) {
        assert_int_equal(bt_verdict_ttft_target_us(&t, 100), 0);
        assert_int_equal(bt_verdict_itl_target_us(&t), 0);
        bt_verdict_learn(&t, &r);
    }
    /* 400 us a token and 10 ms beside, twice. */
    assert_int_equal(bt_verdict_ttft_target_us(&t, 100), 100000);
    assert_int_equal(bt_verdict_ttft_target_us(&t, 1000), 820000);
    assert_int_equal(bt_verdict_itl_target_us(&t), 10000);
    /* Cached blocks are not computed: they teach nothing false about a token's cost. */
    r.pages_cached_p = 5;
    r.p.prefill_us = 8000;
    r.ttft_us = 18000;
    for (int i = 0; i < 40; i++)
        bt_verdict_learn(&t, &r);
    assert_in_range(bt_verdict_ttft_target_us(&t, 100), 99000, 101000);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_set_targets),
                                       cmocka_unit_test(test_learnt_targets)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

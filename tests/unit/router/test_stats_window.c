/* The last minute's rates and quantiles, at a clock of the test's own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "router/stats_window.h"

enum { SECOND = 1000000 };

static struct bt_stats_window window;

static void near(double value, double expected, double share) {
    if (value < expected * (1 - share) || value > expected * (1 + share))
        fail_msg("%f, expected %f within %f", value, expected, share);
}

static void test_nothing_yet(void **state) {
    (void)state;
    bt_stats_window_init(&window, 5 * SECOND);
    struct bt_stats_quantiles q = bt_stats_window_quantiles(&window, 5 * SECOND, BT_STATS_TTFT);
    assert_true(q.n == 0 && q.p50_us == 0 && q.p99_us == 0);
    assert_true(bt_stats_window_rates(&window, 5 * SECOND).tokens == 0);
    assert_true(bt_stats_window_rates(&window, 500 * (uint64_t)SECOND).tokens == 0);
}

/* Every duration comes back within a bucket's half width, from 0 to more than an hour. */
static void test_one_duration(void **state) {
    (void)state;
    for (uint64_t us = 0; us < (1ull << 32); us = us < 64 ? us + 1 : us + us / 7) {
        bt_stats_window_init(&window, 0);
        bt_stats_window_token(&window, 0, BT_STATS_ITL, us);
        struct bt_stats_quantiles q = bt_stats_window_quantiles(&window, 0, BT_STATS_ITL);
        assert_true(q.n == 1);
        near(q.p50_us, (double)us, 0.0323);
        assert_true(q.p50_us == q.p99_us);
        if (us < 32)
            assert_true(q.p50_us == (double)us);
    }
    bt_stats_window_token(&window, 0, BT_STATS_ITL, UINT64_MAX);
    assert_true(bt_stats_window_quantiles(&window, 0, BT_STATS_ITL).n == 2);
}

static void test_quantiles(void **state) {
    (void)state;
    bt_stats_window_init(&window, 0);
    /* 1 to 10,000 us, over ten seconds, in an order that has nothing to do with their size. */
    for (uint64_t i = 0; i < 10000; i++)
        bt_stats_window_token(&window, i * 1000, BT_STATS_TTFT, i * 7919 % 10000 + 1);
    struct bt_stats_quantiles q = bt_stats_window_quantiles(&window, 10 * SECOND, BT_STATS_TTFT);
    assert_true(q.n == 10000);
    near(q.p50_us, 5000, 0.04);
    near(q.p95_us, 9500, 0.04);
    near(q.p99_us, 9900, 0.04);
    assert_true(bt_stats_window_quantiles(&window, 10 * SECOND, BT_STATS_ITL).n == 0);
}

/* What is older than a minute is gone, also where nothing came after it. */
static void test_a_minute_passes(void **state) {
    (void)state;
    uint64_t at = 1000 * (uint64_t)SECOND;
    bt_stats_window_init(&window, at);
    bt_stats_window_token(&window, at, BT_STATS_ITL, 100);
    bt_stats_window_token(&window, at + 30 * SECOND, BT_STATS_ITL, 200);
    assert_true(bt_stats_window_quantiles(&window, at + 60 * SECOND, BT_STATS_ITL).n == 2);
    assert_true(bt_stats_window_quantiles(&window, at + 61 * SECOND, BT_STATS_ITL).n == 1);
    assert_true(bt_stats_window_quantiles(&window, at + 91 * SECOND, BT_STATS_ITL).n == 0);
    assert_true(bt_stats_window_quantiles(&window, at + 1000 * (uint64_t)SECOND, BT_STATS_ITL).n ==
                0);
    /* A slot used again starts from nothing. */
    bt_stats_window_token(&window, at + 61 * SECOND, BT_STATS_ITL, 300);
    assert_true(bt_stats_window_quantiles(&window, at + 61 * SECOND, BT_STATS_ITL).n == 2);
}

static void test_rates(void **state) {
    (void)state;
    bt_stats_window_init(&window, 0);
    for (uint64_t i = 0; i < 20; i++) {
        bt_stats_window_request(&window, i * SECOND, 50);
        for (uint64_t t = 0; t < 8; t++)
            bt_stats_window_token(&window, i * SECOND + t, t ? BT_STATS_ITL : BT_STATS_TTFT, 10);
    }
    struct bt_stats_rates r = bt_stats_window_rates(&window, 3 * SECOND);
    near(r.tokens, 8, 0.001); /* three whole seconds so far, those of later seconds do not count */
    r = bt_stats_window_rates(&window, 20 * SECOND);
    near(r.requests, 1, 0.001);
    near(r.prompt_tokens, 50, 0.001);
    near(r.tokens, 8, 0.001);
    r = bt_stats_window_rates(&window, 25 * SECOND);
    near(r.tokens, 4, 0.001); /* five of the last ten seconds were empty */
    assert_true(bt_stats_window_rates(&window, 40 * SECOND).tokens == 0);
}

static void test_growth(void **state) {
    (void)state;
    struct bt_stats_growth growth = {0};
    bt_stats_growth_read(&growth, 0, 1, 1, 500);
    assert_true(bt_stats_growth_per_second(&growth) == 0);
    bt_stats_growth_read(&growth, SECOND / 2, 1, 1, 9999); /* too soon: not taken */
    assert_true(bt_stats_growth_per_second(&growth) == 0);
    for (uint64_t i = 1; i <= 30; i++)
        bt_stats_growth_read(&growth, i * SECOND, 1, 1, 500 + i * 1000);
    near(bt_stats_growth_per_second(&growth), 1000, 0.001);
    for (uint64_t i = 31; i < 60; i++)
        bt_stats_growth_read(&growth, i * SECOND, 1, 1, 30500);
    assert_true(bt_stats_growth_per_second(&growth) == 0);
    bt_stats_growth_read(&growth, 60 * SECOND, 1, 2, 40000); /* another incarnation */
    assert_true(bt_stats_growth_per_second(&growth) == 0);
    bt_stats_growth_read(&growth, 62 * SECOND, 1, 2, 44000);
    near(bt_stats_growth_per_second(&growth), 2000, 0.001);
    bt_stats_growth_read(&growth, 63 * SECOND, 1, 2, 10); /* it fell */
    assert_true(bt_stats_growth_per_second(&growth) == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_yet), cmocka_unit_test(test_one_duration),
        cmocka_unit_test(test_quantiles),   cmocka_unit_test(test_a_minute_passes),
        cmocka_unit_test(test_rates),       cmocka_unit_test(test_growth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

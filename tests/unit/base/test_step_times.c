/* Tests the durations of the last steps: quantiles against a sort, the ring, how often they are
 * made. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/step_times.h"

static uint64_t draw(uint64_t *seed) { /* splitmix64, Steele et al. 2014 */
    uint64_t z = (*seed += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* The smallest of the sorted values that at least percent of them do not exceed. */
static uint32_t expected(const uint32_t *sorted, uint32_t n, uint32_t percent) {
    for (uint32_t i = 0; i < n; i++)
        if (100 * (i + 1) >= percent * n)
            return sorted[i];
    return 0;
}

static void test_without_steps(void **state) {
    (void)state;
    struct bt_step_times times = {0};
    bt_step_times_refresh(&times, 1000000);
    assert_int_equal(times.p50_us, 0);
    assert_int_equal(times.p99_us, 0);
    assert_int_equal(times.mean_us, 0);
}

/* Every count of steps up to three rings, with many equal values and with few. */
static void test_quantiles_are_those_of_a_sort(void **state) {
    (void)state;
    uint64_t seed = 1, now_us = 1000000;
    const uint64_t ranges[] = {1, 3, 50, 100000, UINT32_MAX};
    for (size_t r = 0; r < sizeof ranges / sizeof ranges[0]; r++) {
        struct bt_step_times times = {0};
        uint32_t all[3 * BT_STEP_TIMES];
        for (uint32_t n = 1; n <= 3 * BT_STEP_TIMES; n++) {
            all[n - 1] = (uint32_t)(draw(&seed) % ranges[r]);
            bt_step_times_add(&times, all[n - 1]);
            if (n % 7 && n > 130)
                continue;
            uint32_t count = n < BT_STEP_TIMES ? n : BT_STEP_TIMES, sorted[BT_STEP_TIMES];
            memcpy(sorted, all + n - count, count * sizeof sorted[0]);
            qsort(sorted, count, sizeof sorted[0], ascending);
            now_us += BT_STEP_TIMES_FRESH_MS * 1000;
            bt_step_times_refresh(&times, now_us);
            assert_int_equal(times.p50_us, expected(sorted, count, 50));
            assert_int_equal(times.p99_us, expected(sorted, count, 99));
        }
    }
}

static void test_orders_that_are_hard_to_select_from(void **state) {
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        struct bt_step_times times = {0};
        for (uint32_t i = 0; i < BT_STEP_TIMES; i++) {
            uint32_t up = i + 1, down = BT_STEP_TIMES - i;
            bt_step_times_add(&times, kind == 0 ? up : kind == 1 ? down : up < down ? up : down);
        }
        bt_step_times_refresh(&times, 1);
        assert_int_equal(times.p50_us, kind == 2 ? 256 : 512);
        assert_int_equal(times.p99_us, kind == 2 ? 507 : 1014);
    }
}

static void test_they_are_made_rarely(void **state) {
    (void)state;
    struct bt_step_times times = {0};
    uint64_t now_us = 7000000;
    bt_step_times_add(&times, 10);
    bt_step_times_refresh(&times, now_us);
    assert_int_equal(times.p99_us, 10);
    bt_step_times_add(&times, 20);
    bt_step_times_refresh(&times, now_us + BT_STEP_TIMES_FRESH_MS * 1000 - 1);
    assert_int_equal(times.p99_us, 10);
    bt_step_times_refresh(&times, now_us + BT_STEP_TIMES_FRESH_MS * 1000);
    assert_int_equal(times.p99_us, 20);
    assert_int_equal(times.p50_us, 10);
}

static void test_a_step_longer_than_an_hour(void **state) {
    (void)state;
    struct bt_step_times times = {0};
    bt_step_times_add(&times, UINT64_MAX);
    bt_step_times_refresh(&times, 1);
    assert_int_equal(times.p50_us, UINT32_MAX);
    assert_int_equal(times.mean_us, UINT32_MAX);
    bt_step_times_add(&times, UINT32_MAX);
    assert_int_equal(times.mean_us, UINT32_MAX);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_steps),
        cmocka_unit_test(test_quantiles_are_those_of_a_sort),
        cmocka_unit_test(test_orders_that_are_hard_to_select_from),
        cmocka_unit_test(test_they_are_made_rarely),
        cmocka_unit_test(test_a_step_longer_than_an_hour),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

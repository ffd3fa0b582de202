/* Logprobs against a plain float64 computation that sorts, ties, corners, and the same bits on
 * every path of the CPU. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/engine/logprobs.h"

enum { N_MAX = 49152 };

static float logits[N_MAX];
static uint32_t ids[N_MAX];
static const struct bt_kernels *kernels;

static int find_kernels(void **state) {
    (void)state;
    char why[256];
    bt_kernels_thread_init();
    kernels = bt_kernels_find(NULL, why, sizeof why);
    return kernels ? 0 : -1;
}

static uint32_t random_state = 1;

static uint32_t next_random(uint32_t below) {
    random_state = random_state * 1664525u + 1013904223u;
    return (random_state >> 8) % below;
}

static int by_logit(const void *a, const void *b) {
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    if (logits[i] != logits[j])
        return logits[i] > logits[j] ? -1 : 1;
    return i < j ? -1 : i > j;
}

static double plain_log_sum(uint32_t n) {
    double highest = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        highest = fmax(highest, (double)logits[i]);
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - highest);
    return highest + log(sum);
}

static void expect_near(float value, double expected) {
    if (expected < -9999)
        expected = -9999;
    if (!(fabs((double)value - expected) <= fmax(1e-6, fabs(expected) * 1.2e-7)))
        fail_msg("logprob %.9g, plainly computed %.9g", (double)value, expected);
}

static void check(uint32_t n, uint32_t n_top) {
    int32_t token = (int32_t)next_random(n);
    struct bt_logprobs out;
    bt_logprobs_make(kernels, logits, n, token, n_top, &out);
    double log_sum = plain_log_sum(n);
    expect_near(out.logprob, (double)logits[token] - log_sum);
    assert_int_equal(out.n_top, n_top < n ? n_top : n);
    for (uint32_t i = 0; i < n; i++)
        ids[i] = i;
    qsort(ids, n, sizeof *ids, by_logit);
    for (uint32_t i = 0; i < out.n_top; i++) {
        assert_int_equal(out.top[i].token, ids[i]);
        expect_near(out.top[i].logprob, (double)logits[ids[i]] - log_sum);
    }
}

static void test_equal_to_the_plain_computation(void **state) {
    (void)state;
    static const uint32_t sizes[] = {1, 2, 15, 17, 200, 1023, 1024, 1025, 5000};
    for (uint32_t round = 0; round < 300; round++) {
        uint32_t n = sizes[round % 9];
        for (uint32_t i = 0; i < n; i++)
            logits[i] = (float)next_random(1 << 20) * 0x1p-15f - 20;
        check(n, next_random(BT_TOP_LOGPROBS + 1));
    }
    for (uint32_t i = 0; i < N_MAX; i++)
        logits[i] = (float)next_random(1 << 20) * 0x1p-15f - 20;
    for (uint32_t round = 0; round < 5; round++)
        check(N_MAX, 5 * round);
}

static void test_ties_go_by_id(void **state) {
    (void)state;
    for (uint32_t round = 0; round < 200; round++) {
        for (uint32_t i = 0; i < 3000; i++)
            logits[i] = (float)next_random(12) * 0.25f;
        check(3000, BT_TOP_LOGPROBS);
    }
    for (uint32_t i = 0; i < 3000; i++)
        logits[i] = 1.5f;
    check(3000, BT_TOP_LOGPROBS);
}

static void test_values_stay_within_their_bounds(void **state) {
    (void)state;
    struct bt_logprobs out;
    for (uint32_t i = 0; i < 100; i++)
        logits[i] = i == 7 ? 3e38f : -3e38f;
    bt_logprobs_make(kernels, logits, 100, 3, 2, &out);
    assert_true(out.logprob == BT_LOGPROB_MIN);
    assert_int_equal(out.top[0].token, 7);
    assert_true(out.top[0].logprob == 0);
    assert_int_equal(out.top[1].token, 0);
    assert_true(out.top[1].logprob == BT_LOGPROB_MIN);
    bt_logprobs_make(kernels, logits, 1, 0, 0, &out); /* a vocabulary of one */
    assert_true(out.logprob == 0 && out.n_top == 0);
}

/* The rule as docs/numerics.md states it, lane by lane. */
static void test_the_sum_has_one_order(void **state) {
    (void)state;
    static const char *const names[] = {"portable", "fma", "avx2", "avx2vnni", "avx512"};
    enum { N = 5003 };
    for (uint32_t i = 0; i < N; i++)
        logits[i] = (float)next_random(1 << 24) * 0x1p-19f - 16;
    static float e[N];
    double lanes[16] = {0};
    float highest = kernels->max(logits, N);
    kernels->exp(logits, highest, N, e);
    for (uint32_t i = 0; i < N; i++)
        lanes[i % 16] += (double)e[i];
    for (uint32_t apart = 8; apart; apart /= 2)
        for (uint32_t i = 0; i < apart; i++)
            lanes[i] += lanes[i + apart];
    double log_sum = bt_kernels_log(lanes[0]);
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        char why[256];
        const struct bt_kernels *path = bt_kernels_find(names[k], why, sizeof why);
        if (!path) {
            print_message("not run: %s\n", why);
            continue;
        }
        for (int32_t token = 0; token < N; token += 50) {
            struct bt_logprobs out;
            bt_logprobs_make(path, logits, N, token, 3, &out);
            float expected = (float)(((double)logits[token] - (double)highest) - log_sum);
            assert_memory_equal(&out.logprob, &expected, sizeof expected);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equal_to_the_plain_computation),
        cmocka_unit_test(test_ties_go_by_id),
        cmocka_unit_test(test_values_stay_within_their_bounds),
        cmocka_unit_test(test_the_sum_has_one_order),
    };
    return cmocka_run_group_tests(tests, find_kernels, NULL);
}

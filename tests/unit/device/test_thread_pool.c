/* The thread pool's runs: each task once, what tasks wrote is seen after the run, with threads that
 * spin, that sleep, and that are held up in the middle of a task. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/device/thread_pool.h"

enum { TASKS_MAX = 64, THREADS = 3 };

struct work {
    uint32_t written[TASKS_MAX]; /* without atomics: the run must order it */
    uint32_t round;
    bool hold_up; /* the pool's own threads in every task */
    _Atomic uint32_t n_started;
};

static void start(void *arg, uint32_t thread) {
    struct work *work = arg;
    assert_true(thread >= 1 && thread < THREADS);
    atomic_fetch_add(&work->n_started, 1);
}

static void task(void *arg, uint32_t index, uint32_t thread) {
    struct work *work = arg;
    if (work->hold_up && thread)
        usleep(200);
    work->written[index] += work->round;
}

static void run_rounds(uint32_t spin, uint32_t n_rounds, bool hold_up) {
    struct bt_thread_pool *pool = NULL;
    struct bt_error err;
    struct work work = {.hold_up = hold_up};
    uint64_t expected[TASKS_MAX] = {0};
    assert_int_equal(bt_thread_pool_create(THREADS, spin, start, &work, &pool, &err), BT_OK);
    for (work.round = 1; work.round <= n_rounds; work.round++) {
        uint32_t n = work.round * 7 % (TASKS_MAX + 1);
        bt_thread_pool_run(pool, n, task, &work);
        for (uint32_t i = 0; i < n; i++)
            expected[i] += work.round;
        for (uint32_t i = 0; i < TASKS_MAX; i++)
            assert_int_equal(work.written[i], expected[i]);
    }
    bt_thread_pool_destroy(pool);
    assert_int_equal(work.n_started, THREADS - 1);
}

static void test_threads_that_spin(void **state) {
    (void)state;
    run_rounds(2000, 1000, false);
}

static void test_threads_that_sleep(void **state) {
    (void)state;
    run_rounds(0, 1000, false);
}

static void test_threads_that_are_held_up(void **state) {
    (void)state;
    run_rounds(0, 50, true);
    run_rounds(100, 50, true);
}

static void test_one_thread_and_none(void **state) {
    (void)state;
    struct bt_thread_pool *pool = NULL;
    struct bt_error err;
    struct work work = {.round = 1};
    assert_int_equal(bt_thread_pool_create(1, 0, NULL, NULL, &pool, &err), BT_OK);
    bt_thread_pool_run(pool, TASKS_MAX, task, &work);
    for (uint32_t i = 0; i < TASKS_MAX; i++)
        assert_int_equal(work.written[i], 1);
    bt_thread_pool_destroy(pool);
    bt_thread_pool_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads_that_spin),
        cmocka_unit_test(test_threads_that_sleep),
        cmocka_unit_test(test_threads_that_are_held_up),
        cmocka_unit_test(test_one_thread_and_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The CPU device: every task runs once, from one thread to many more than there are CPUs. */
#include <stdatomic.h>

#include "common/device/device.h"
#include "tests/kernels/paths.h"

struct tally {
    _Atomic uint32_t runs[4096];
    uint32_t n_threads;
    _Atomic uint32_t faults;
    uint32_t stamp[4096]; /* written by the tasks without atomics: the run must order it */
    uint32_t round;
};

static void count(void *arg, uint32_t task, uint32_t thread) {
    struct tally *tally = arg;
    atomic_fetch_add(&tally->runs[task], 1);
    if (thread >= tally->n_threads || !(__builtin_ia32_stmxcsr() & 0x8040))
        atomic_fetch_add(&tally->faults, 1);
    tally->stamp[task] = tally->round;
}

static struct bt_device *open_device(uint32_t n_threads, bool pin) {
    struct bt_device_params params = {.kind = "cpu", .n_threads = n_threads, .pin = pin};
    struct bt_device *device = NULL;
    struct bt_error err;
    assert_int_equal(bt_device_open(&params, &device, NULL, &err), BT_OK);
    return device;
}

static void test_each_task_runs_once(void **state) {
    (void)state;
    static const uint32_t THREADS[] = {1, 2, 3, 9};
    static const uint32_t TASKS[] = {0, 1, 2, 3, 17, 300};
    for (int t = 0; t < 4; t++) {
        struct bt_device *device = open_device(THREADS[t], t % 2);
        struct tally *tally = calloc(1, sizeof *tally);
        tally->n_threads = THREADS[t];
        assert_int_equal(bt_device_threads(device), THREADS[t]);
        uint32_t n_rounds = THREADS[t] > 3 ? 200 : 1000;
        for (tally->round = 1; tally->round <= n_rounds; tally->round++) {
            uint32_t n = TASKS[tally->round % 6];
            memset(tally->runs, 0, sizeof tally->runs);
            bt_device_run(device, n, count, tally);
            for (uint32_t i = 0; i < 301; i++) {
                assert_int_equal(tally->runs[i], i < n);
                assert_true(i >= n || tally->stamp[i] == tally->round);
            }
        }
        assert_int_equal(tally->faults, 0);
        free(tally);
        bt_device_close(device);
    }
}

static void test_zero_threads_means_one_per_cpu(void **state) {
    (void)state;
    struct bt_device *device = open_device(0, false);
    assert_true(bt_device_threads(device) >= 1);
    assert_non_null(bt_device_kernels(device));
    bt_device_close(device);
    bt_device_close(NULL);
}

static void test_refusals_say_why(void **state) {
    (void)state;
    struct bt_device *device = NULL;
    struct bt_error err;
    struct bt_device_params params = {.kind = "tpu", .n_threads = 1};
    assert_int_equal(bt_device_open(&params, &device, NULL, &err), BT_E_INVALID);
    assert_string_equal(err.text, "device is \"tpu\", expected cpu");
    params = (struct bt_device_params){.kind = "cpu", .n_threads = 257};
    assert_int_equal(bt_device_open(&params, &device, NULL, &err), BT_E_INVALID);
    assert_string_equal(err.text, "257 compute threads asked for, at most 256");
    params = (struct bt_device_params){.kind = "cpu", .n_threads = 1, .path = "sse9"};
    assert_int_equal(bt_device_open(&params, &device, NULL, &err), BT_E_INVALID);
    assert_string_equal(
        err.text, "kernels path is \"sse9\", expected portable, fma, avx2, avx2vnni or avx512");
    assert_null(device);
}

static void test_path_of_environment(void **state) {
    (void)state;
    setenv("BATON_CPU", "portable", 1);
    struct bt_device *device = open_device(1, false);
    assert_string_equal(bt_device_kernels(device)->name, "portable");
    bt_device_close(device);
    unsetenv("BATON_CPU");
}

static void test_memory_is_aligned_and_zero(void **state) {
    (void)state;
    static const size_t SIZES[] = {0, 1, 64, 4097, (2 << 20) - 1, 2 << 20, (5 << 20) + 3};
    struct bt_device *device = open_device(1, false);
    for (int i = 0; i < 7; i++) {
        uint8_t *memory = bt_device_alloc(device, SIZES[i]);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % 64, 0);
        for (size_t j = 0; j < SIZES[i]; j++)
            if (memory[j])
                fail_msg("byte %zu of %zu is not zero", j, SIZES[i]);
        memset(memory, 1, SIZES[i]);
        bt_device_free(device, memory, SIZES[i]);
    }
    bt_device_free(device, NULL, 1);
    assert_null(bt_device_alloc(device, SIZE_MAX - 8));
    bt_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_task_runs_once),
        cmocka_unit_test(test_zero_threads_means_one_per_cpu),
        cmocka_unit_test(test_refusals_say_why),
        cmocka_unit_test(test_path_of_environment),
        cmocka_unit_test(test_memory_is_aligned_and_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

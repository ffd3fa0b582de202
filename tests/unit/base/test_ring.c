/* The ring between a thread and a loop: order, bounds, wake-ups, two threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/ring.h"

static bool readable(const struct bt_ring *ring) {
    struct pollfd fd = {.fd = bt_ring_fd(ring), .events = POLLIN};
    return poll(&fd, 1, 0) == 1;
}

static void test_refuses_sizes_out_of_bounds(void **state) {
    (void)state;
    struct bt_ring ring;
    struct bt_error err = {0};
    assert_int_equal(bt_ring_init(&ring, 0, 4, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "0 elements, must be 1 to 16777216"));
    bt_ring_fini(&ring);
    assert_int_equal(bt_ring_init(&ring, (1u << 24) + 1, 4, &err), BT_E_INVALID);
    assert_int_equal(bt_ring_init(&ring, 8, 0, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "0 bytes"));
    bt_ring_fini(&ring);
    bt_ring_fini(&ring);
    struct bt_ring zeroed = {0};
    bt_ring_fini(&zeroed);
}

static void test_keeps_order_and_says_when_full(void **state) {
    (void)state;
    struct bt_ring ring;
    assert_int_equal(bt_ring_init(&ring, 5, sizeof(uint64_t), NULL), BT_OK);
    assert_int_equal(ring.n_elements, 8);
    uint64_t out, next_in = 0, next_out = 0;
    for (int round = 0; round < 100; round++) {
        while (bt_ring_push(&ring, &next_in))
            next_in++;
        assert_int_equal(next_in - next_out, 8);
        for (int i = 0; i < 3 + round % 6; i++) {
            assert_true(bt_ring_pop(&ring, &out));
            assert_int_equal(out, next_out);
            next_out++;
        }
    }
    while (bt_ring_pop(&ring, &out)) {
        assert_int_equal(out, next_out);
        next_out++;
    }
    assert_int_equal(next_in, next_out);
    bt_ring_fini(&ring);
}

static void test_index_wraps_past_32_bits(void **state) {
    (void)state;
    struct bt_ring ring;
    assert_int_equal(bt_ring_init(&ring, 4, sizeof(uint32_t), NULL), BT_OK);
    ring.head = ring.tail = UINT32_MAX - 2;
    uint32_t out;
    for (uint32_t i = 0; i < 4; i++)
        assert_true(bt_ring_push(&ring, &i));
    assert_false(bt_ring_push(&ring, &(uint32_t){9}));
    for (uint32_t i = 0; i < 4; i++) {
        assert_true(bt_ring_pop(&ring, &out));
        assert_int_equal(out, i);
    }
    assert_false(bt_ring_pop(&ring, &out));
    bt_ring_fini(&ring);
}

static void test_wakes_once_for_a_burst(void **state) {
    (void)state;
    struct bt_ring ring;
    assert_int_equal(bt_ring_init(&ring, 8, 1, NULL), BT_OK);
    uint8_t v = 1;
    assert_false(readable(&ring));
    assert_true(bt_ring_push(&ring, &v));
    assert_true(readable(&ring));
    bt_ring_acknowledge(&ring);
    assert_true(bt_ring_push(&ring, &v)); /* the consumer has not run dry: no second wake-up */
    assert_false(readable(&ring));
    assert_true(bt_ring_pop(&ring, &v));
    assert_true(bt_ring_pop(&ring, &v));
    assert_false(bt_ring_pop(&ring, &v));
    assert_true(bt_ring_push(&ring, &v));
    assert_true(readable(&ring));
    bt_ring_acknowledge(&ring);
    bt_ring_acknowledge(&ring); /* once too often does not block */
    bt_ring_fini(&ring);
}

enum { N_VALUES = 300000 };
struct value {
    uint64_t number, twice, thrice;
};

static void *produce(void *self) {
    struct bt_ring *ring = self;
    for (uint64_t i = 0; i < N_VALUES;) {
        struct value v = {i, 2 * i, 3 * i};
        if (bt_ring_push(ring, &v))
            i++;
        else
            sched_yield();
    }
    return NULL;
}

/* A lost wake-up would leave poll waiting for ever: it is given ten seconds and must not need them.
 */
static void test_two_threads_lose_nothing(void **state) {
    (void)state;
    struct bt_ring ring;
    assert_int_equal(bt_ring_init(&ring, 64, sizeof(struct value), NULL), BT_OK);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, produce, &ring), 0);
    uint64_t expected = 0;
    while (expected < N_VALUES) {
        struct pollfd fd = {.fd = bt_ring_fd(&ring), .events = POLLIN};
        assert_int_equal(poll(&fd, 1, 10000), 1);
        bt_ring_acknowledge(&ring);
        struct value v;
        while (bt_ring_pop(&ring, &v)) {
            assert_int_equal(v.number, expected);
            assert_int_equal(v.twice, 2 * expected);
            assert_int_equal(v.thrice, 3 * expected);
            expected++;
        }
    }
    pthread_join(thread, NULL);
    bt_ring_fini(&ring);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_sizes_out_of_bounds),
        cmocka_unit_test(test_keeps_order_and_says_when_full),
        cmocka_unit_test(test_index_wraps_past_32_bits),
        cmocka_unit_test(test_wakes_once_for_a_burst),
        cmocka_unit_test(test_two_threads_lose_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

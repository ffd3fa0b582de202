/* The output fence: first copy wins, order is kept, what it holds is bounded. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "router/fence.h"

static struct bt_token row(uint32_t index) {
    return (struct bt_token){.index = index, .token = 1000 + (int32_t)index, .hash = index};
}

static enum bt_fence_answer offer(struct bt_fence *fence, uint32_t *window, uint32_t next,
                                  uint32_t index) {
    struct bt_token token = row(index);
    return bt_fence_offer(fence, window, next, &token, false);
}

static void test_order_and_duplicates(void **state) {
    (void)state;
    struct bt_fence fence;
    uint32_t window = 0;
    struct bt_fence_row out;
    assert_int_equal(bt_fence_init(&fence, 8, NULL), BT_OK);
    assert_int_equal(offer(&fence, &window, 0, 0), BT_FENCE_NEXT);
    assert_int_equal(offer(&fence, &window, 1, 0), BT_FENCE_DUPLICATE);
    assert_int_equal(offer(&fence, &window, 1, 3), BT_FENCE_HELD);
    assert_int_equal(offer(&fence, &window, 1, 2), BT_FENCE_HELD);
    assert_int_equal(offer(&fence, &window, 1, 3), BT_FENCE_DUPLICATE);
    assert_int_equal(bt_fence_length(&fence, window), 2);
    assert_false(bt_fence_take(&fence, &window, 1, &out));
    assert_true(bt_fence_take(&fence, &window, 2, &out));
    assert_int_equal(out.index, 2);
    assert_int_equal(out.token, 1002);
    assert_true(bt_fence_take(&fence, &window, 3, &out));
    assert_int_equal(out.hash, 3);
    assert_int_equal(window, 0);
    assert_int_equal(fence.n_held, 0);
    bt_fence_fini(&fence);
}

static void test_bounds(void **state) {
    (void)state;
    struct bt_fence fence;
    uint32_t one = 0, two = 0;
    assert_int_equal(bt_fence_init(&fence, 4, NULL), BT_OK);
    /* Too far ahead for one request. */
    assert_int_equal(offer(&fence, &one, 0, BT_FENCE_WINDOW + 1), BT_FENCE_FULL);
    assert_int_equal(offer(&fence, &one, 0, BT_FENCE_WINDOW), BT_FENCE_HELD);
    /* Too many for all. */
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(offer(&fence, &two, 0, 5 + i), BT_FENCE_HELD);
    assert_int_equal(offer(&fence, &two, 0, 9), BT_FENCE_FULL);
    bt_fence_drop(&fence, &one);
    assert_int_equal(one, 0);
    assert_int_equal(offer(&fence, &two, 0, 9), BT_FENCE_HELD);
    bt_fence_drop(&fence, &two);
    assert_int_equal(fence.n_held, 0);
    bt_fence_fini(&fence);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_order_and_duplicates),
                                       cmocka_unit_test(test_bounds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

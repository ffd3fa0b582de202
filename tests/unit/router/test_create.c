/* Creating a core fails cleanly wherever memory runs out. */
#include "harness.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define BT_OWN_ALLOCATOR 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define BT_OWN_ALLOCATOR 1
#endif
#endif

#ifndef BT_OWN_ALLOCATOR
void *__libc_calloc(size_t n, size_t bytes);

static int calls_left = -1; /* -1: all succeed */
static int n_live;

/* Stands in front of the C library's. */
void *calloc(size_t n, size_t bytes) {
    if (calls_left == 0)
        return NULL;
    if (calls_left > 0)
        calls_left--;
    return __libc_calloc(n, bytes);
}
#endif

static void test_the_nth_allocation_fails(void **state) {
    (void)state;
#ifdef BT_OWN_ALLOCATOR
    skip(); /* the sanitizer has its own calloc */
#else
    struct bt_router_config config = small_config();
    struct bt_error err = {0};
    struct bt_router_core *core = NULL;
    for (n_live = 0; !core && n_live < 100; n_live++) {
        calls_left = n_live;
        core = bt_router_core_create(&config, &err);
        calls_left = -1;
        if (!core) {
            assert_int_equal(err.status, BT_E_NO_MEMORY);
            assert_true(err.text[0]);
        }
    }
    assert_in_range(n_live, 10, 40); /* so many allocations it has */
    bt_router_core_destroy(core);
#endif
}

static void test_two_cores_draw_alike_and_apart(void **state) {
    (void)state;
    struct bt_id tickets[3];
    for (int i = 0; i < 3; i++) {
        struct harness *h = malloc(sizeof *h);
        struct bt_router_config config = small_config();
        config.seed.lo += i == 2;
        harness_init(h, &config);
        attach(h, 0, "p0", 10, BT_ROLE_PREFILL);
        attach(h, 1, "d0", 20, BT_ROLE_DECODE);
        tickets[i] = submit(h, 10, 4)->ticket;
        harness_fini(h);
        free(h);
    }
    assert_true(bt_id_equal(tickets[0], tickets[1]));
    assert_false(bt_id_equal(tickets[0], tickets[2]));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_the_nth_allocation_fails),
                                       cmocka_unit_test(test_two_cores_draw_alike_and_apart)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

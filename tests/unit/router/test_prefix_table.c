/* The prefix table beside a plain array of sets, and the walk of a prompt. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/block_hash.h"
#include "router/prefix_table.h"

static void test_like_a_plain_set(void **state) {
    (void)state;
    enum { N = 40 };
    struct bt_prefix_table table;
    uint64_t sets[N] = {0}, s = 12345;
    assert_int_equal(bt_prefix_table_init(&table, 64, NULL), BT_OK);
    for (int step = 0; step < 20000; step++) {
        s = s * 6364136223846793005ull + 1442695040888963407ull;
        uint32_t block = (uint32_t)(s >> 33) % N, worker = (uint32_t)(s >> 50) % 5 * 13;
        uint64_t hash = block * 0x100000001ull; /* block 0 has the hash 0 */
        switch ((s >> 60) % 8) {
        case 0:
            if ((s >> 20) % 16 == 0) {
                bt_prefix_table_forget(&table, worker);
                for (int i = 0; i < N; i++)
                    sets[i] &= ~(1ull << worker);
            }
            break;
        case 1:
        case 2:
        case 3:
            bt_prefix_table_remove(&table, hash, worker);
            sets[block] &= ~(1ull << worker);
            break;
        default:
            bt_prefix_table_add(&table, hash, worker);
            sets[block] |= 1ull << worker;
        }
        assert_true(bt_prefix_table_is_valid(&table));
        uint32_t n = 0;
        for (int i = 0; i < N; i++)
            n += sets[i] != 0;
        assert_int_equal(table.n_used, n);
    }
    for (uint32_t i = 0; i < table.n_slots; i++)
        if (table.slots[i].workers)
            assert_int_equal(table.slots[i].workers, sets[table.slots[i].hash / 0x100000001ull]);
    bt_prefix_table_fini(&table);
}

static void test_it_is_bounded(void **state) {
    (void)state;
    struct bt_prefix_table table;
    assert_int_equal(bt_prefix_table_init(&table, 16, NULL), BT_OK);
    for (uint64_t i = 1; i <= 20; i++)
        bt_prefix_table_add(&table, i, 3);
    assert_int_equal(table.n_used, 14);
    assert_int_equal(table.n_dropped, 6);
    bt_prefix_table_add(&table, 1, 4); /* known blocks still gain holders */
    assert_int_equal(table.n_of[4], 1);
    assert_true(bt_prefix_table_is_valid(&table));
    bt_prefix_table_fini(&table);
    struct bt_error err;
    assert_int_equal(bt_prefix_table_init(&table, 24, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "24"));
}

static void test_a_walk_stops_at_the_first_hole(void **state) {
    (void)state;
    struct bt_prefix_table table;
    int32_t tokens[5 * BT_PAGE_TOKENS];
    for (int i = 0; i < 5 * BT_PAGE_TOKENS; i++)
        tokens[i] = i * 3;
    assert_int_equal(bt_prefix_table_init(&table, 64, NULL), BT_OK);
    struct bt_id root = bt_block_root("tenant", 77), hash = root;
    for (uint32_t i = 0; i < 5; i++) {
        hash = bt_block_next(hash, tokens + i * BT_PAGE_TOKENS);
        if (i < 2)
            bt_prefix_table_add(&table, hash.lo, 0);
        if (i != 1)
            bt_prefix_table_add(&table, hash.lo, 1);
        bt_prefix_table_add(&table, hash.lo, 63);
    }
    uint32_t depth[BT_MAX_WORKERS];
    bt_prefix_table_walk(&table, root, tokens, 5 * BT_PAGE_TOKENS, depth);
    assert_int_equal(depth[0], 2);
    assert_int_equal(depth[1], 1);
    assert_int_equal(depth[63], 5);
    assert_int_equal(depth[2], 0);
    /* Only whole blocks count, and only this tenant's. */
    bt_prefix_table_walk(&table, root, tokens, 3 * BT_PAGE_TOKENS - 1, depth);
    assert_int_equal(depth[63], 2);
    bt_prefix_table_walk(&table, bt_block_root("other", 77), tokens, 5 * BT_PAGE_TOKENS, depth);
    assert_int_equal(depth[63], 0);
    bt_prefix_table_walk(&table, root, tokens, 3, depth);
    assert_int_equal(depth[63], 0);
    /* All 64 workers hold all of it. */
    hash = bt_block_next(root, tokens);
    for (uint32_t w = 0; w < 64; w++)
        bt_prefix_table_add(&table, hash.lo, w);
    bt_prefix_table_walk(&table, root, tokens, BT_PAGE_TOKENS, depth);
    for (uint32_t w = 0; w < 64; w++)
        assert_int_equal(depth[w], 1);
    bt_prefix_table_fini(&table);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_like_a_plain_set),
                                       cmocka_unit_test(test_it_is_bounded),
                                       cmocka_unit_test(test_a_walk_stops_at_the_first_hole)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

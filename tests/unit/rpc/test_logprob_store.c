/* The logprob store: chains of any width beside each other, read from any row, all chunks back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rpc/logprob_store.h"

enum { CHUNKS = 30, CHAINS = 5 };

static uint32_t random_state = 1;

static uint32_t next_random(uint32_t below) {
    random_state = random_state * 1664525u + 1013904223u;
    return (random_state >> 8) % below;
}

/* Row i of chain c in its n-th life. */
static struct bt_logprobs row_of(uint32_t c, uint32_t life, uint32_t i, uint32_t n_top) {
    struct bt_logprobs row = {.logprob = -(float)(c + life * 7 + i * 3),
                              .n_top = (uint8_t)((i + life) % (n_top + 1))};
    for (uint32_t k = 0; k < row.n_top; k++)
        row.top[k] = (struct bt_logprob){(int32_t)(i * 31 + k + c), -(float)(k + life)};
    return row;
}

static void test_chains_beside_each_other(void **state) {
    (void)state;
    struct bt_logprob_store store;
    struct bt_logprob_chain chains[CHAINS] = {0};
    uint32_t lives[CHAINS] = {0}, n_rows[CHAINS] = {0}, n_promised = 0, n_full = 0;
    struct bt_error err;
    assert_int_equal(bt_logprob_store_init(&store, CHUNKS, &err), BT_OK);
    for (uint32_t turn = 0; turn < 100000; turn++) {
        uint32_t c = next_random(CHAINS);
        struct bt_logprob_chain *chain = &chains[c];
        if (!chain->is_open) {
            uint32_t n = next_random(200), n_top = next_random(BT_TOP_LOGPROBS + 1);
            uint32_t n_chunks = bt_logprob_store_chunks_for(n, n_top);
            bool fits = n_promised + n_chunks <= CHUNKS;
            assert_int_equal(bt_logprob_store_open(&store, chain, n, n_top), fits);
            n_full += !fits;
            if (!fits)
                continue;
            n_promised += n_chunks;
            lives[c]++;
            n_rows[c] = n;
        } else if (next_random(400) == 0) {
            n_promised -= chain->n_reserved;
            bt_logprob_store_close(&store, chain);
            bt_logprob_store_close(&store, chain); /* a closed one is accepted */
        } else if (next_random(30) == 0) {
            bt_logprob_store_seek(&store, chain, next_random(chain->n_rows + 1));
        } else if (chain->n_rows < n_rows[c] && next_random(2)) {
            struct bt_logprobs row = row_of(c, lives[c], chain->n_rows, chain->n_top);
            bt_logprob_store_append(&store, chain, &row);
        } else if (chain->n_read < chain->n_rows) {
            struct bt_logprobs row, expected = row_of(c, lives[c], chain->n_read, chain->n_top);
            bt_logprob_store_read(&store, chain, &row);
            assert_memory_equal(&row, &expected, sizeof row);
        }
        assert_int_equal(store.pool.n_reserved, n_promised);
        assert_true(store.pool.n_touched <= CHUNKS);
    }
    assert_true(n_full > 100);
    for (uint32_t c = 0; c < CHAINS; c++)
        bt_logprob_store_close(&store, &chains[c]);
    assert_int_equal(store.pool.n_reserved, 0);
    assert_int_equal(store.pool.n_free, store.pool.n_touched);
    bt_logprob_store_fini(&store);
    bt_logprob_store_fini(&store); /* a zeroed one is accepted */
}

static void test_a_row_takes_what_it_shows(void **state) {
    (void)state;
    assert_int_equal(bt_logprob_store_chunks_for(0, 20), 0);
    assert_int_equal(bt_logprob_store_chunks_for(127, 0), 1);
    assert_int_equal(bt_logprob_store_chunks_for(128, 0), 2);
    assert_int_equal(bt_logprob_store_chunks_for(6, 20), 1);
    assert_int_equal(bt_logprob_store_chunks_for(7, 20), 2);
    assert_int_equal(bt_logprob_store_chunks_for(UINT64_MAX / 2, 20), UINT32_MAX);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chains_beside_each_other),
        cmocka_unit_test(test_a_row_takes_what_it_shows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The page pool: random use against a naive model, eviction order, pins, twins, collisions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <cmocka.h>

#include "common/base/block_hash.h"
#include "common/kv/kv_index.h"
#include "common/kv/kv_msg.h"
#include "common/kv/kv_pool.h"

/* The create functions are compiled into this test with an allocator that fails on demand. */
static int allocations_left = -1;
static void *failing_calloc(size_t n, size_t size) {
    if (allocations_left == 0)
        return NULL;
    if (allocations_left > 0)
        allocations_left--;
    return calloc(n, size);
}
#define calloc failing_calloc
#include "common/kv/kv_index.c"
#include "common/kv/kv_pool.c"
#undef calloc

enum { CAPACITY = 12, N_LAYERS = 2 };
static const struct bt_id root = {.hi = 7, .lo = 9};

struct seq {
    struct bt_kv_hold hold;
    uint32_t pages[CAPACITY];
    int32_t tokens[CAPACITY * BT_PAGE_TOKENS];
};

static struct bt_kv_pool *make_pool(uint32_t n_pages) {
    struct bt_kv_pool *pool = NULL;
    struct bt_kv_pool_config config = {.n_pages = n_pages, .n_layers = N_LAYERS, .n_changes = 16};
    assert_int_equal(bt_kv_pool_create(&config, &pool, NULL), BT_OK);
    assert_true(bt_kv_pool_is_valid(pool));
    return pool;
}

/* A sequence whose block i is made of the i-th letter of text. */
static void init_seq(struct seq *seq, const char *text) {
    memset(seq, 0, sizeof *seq);
    seq->hold.pages = seq->pages;
    seq->hold.capacity = CAPACITY;
    for (size_t i = 0; text[i]; i++)
        for (int j = 0; j < BT_PAGE_TOKENS; j++)
            seq->tokens[i * BT_PAGE_TOKENS + (size_t)j] = text[i] * 100 + j;
}

static struct bt_id hash_before(const struct seq *seq, uint32_t block_i) {
    return bt_block_prompt(root, seq->tokens, block_i * BT_PAGE_TOKENS);
}

/* Pins what is there, computes and publishes the rest. */
static uint32_t run_seq(struct bt_kv_pool *pool, struct seq *seq, const char *text) {
    init_seq(seq, text);
    uint32_t n = (uint32_t)strlen(text);
    uint32_t found = bt_kv_hold_pin(pool, &seq->hold, root, seq->tokens, n);
    assert_true(bt_kv_hold_reserve(pool, &seq->hold, n - found));
    bt_kv_hold_bind(pool, &seq->hold, n - found, BT_PAGE_FILLING);
    for (uint32_t i = found; i < n; i++) {
        bt_kv_page_move(pool, seq->pages[i], BT_PAGE_LIVE);
        bt_kv_pool_publish(pool, &seq->hold, i, hash_before(seq, i),
                           seq->tokens + i * BT_PAGE_TOKENS);
    }
    assert_true(bt_kv_pool_is_valid(pool));
    return found;
}

static uint32_t match(const struct bt_kv_pool *pool, const char *text) {
    struct seq seq;
    init_seq(&seq, text);
    return bt_kv_pool_match(pool, root, seq.tokens, (uint32_t)strlen(text));
}

static struct bt_census census_of(const struct bt_kv_pool *pool) {
    struct bt_census census;
    bt_kv_pool_census(pool, &census);
    return census;
}

static void test_refuses_sizes_out_of_bounds(void **state) {
    (void)state;
    struct bt_kv_pool *pool = NULL;
    struct bt_error err;
    struct bt_kv_pool_config config = {.n_pages = 0, .n_layers = 1, .n_changes = 1};
    assert_int_equal(bt_kv_pool_create(&config, &pool, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "0 pages, must be 1 to 16777216"));
    config.n_pages = (1u << 24) + 1;
    assert_int_equal(bt_kv_pool_create(&config, &pool, &err), BT_E_INVALID);
    config.n_pages = 1;
    config.n_layers = BT_KV_LAYERS_MAX + 1;
    assert_int_equal(bt_kv_pool_create(&config, &pool, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "1025 layers, must be 1 to 1024"));
    config.n_layers = 1;
    config.n_changes = 3;
    assert_int_equal(bt_kv_pool_create(&config, &pool, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "3 index changes, must be a power of two"));
    assert_null(pool);
    bt_kv_pool_destroy(NULL);
}

static void test_create_survives_each_failed_allocation(void **state) {
    (void)state;
    struct bt_kv_pool_config config = {.n_pages = 5, .n_layers = 3, .n_changes = 4};
    int n = 0;
    for (;; n++) {
        struct bt_kv_pool *pool = NULL;
        struct bt_error err = {0};
        allocations_left = n;
        bt_status status = bt_kv_pool_create(&config, &pool, &err);
        allocations_left = -1;
        if (status == BT_OK) {
            bt_kv_pool_destroy(pool);
            break;
        }
        assert_int_equal(status, BT_E_NO_MEMORY);
        assert_non_null(strstr(err.text, "no memory"));
        assert_null(pool);
    }
    assert_int_equal(n, 6);
}

static void test_names(void **state) {
    (void)state;
    assert_string_equal(bt_page_state_name(BT_PAGE_FREE), "free");
    assert_string_equal(bt_page_state_name(BT_PAGE_QUARANTINED), "quarantined");
    assert_string_equal(bt_page_state_name(BT_PAGE_STATE_COUNT), "unknown");
    assert_string_equal(bt_kv_reason_name(BT_KV_REASON_UNKNOWN), "unknown");
    assert_string_equal(bt_kv_reason_name(BT_KV_REASON_PEER), "peer");
    assert_string_equal(bt_kv_reason_name(BT_KV_REASON_COUNT), "none");
    assert_string_equal(bt_kv_reason_name((enum bt_kv_reason)0), "none");
}

static void test_a_second_prompt_finds_the_first_ones_blocks(void **state) {
    (void)state;
    struct bt_kv_pool *pool = make_pool(8);
    struct seq a, b;
    assert_int_equal(run_seq(pool, &a, "abc"), 0);
    assert_int_equal(match(pool, "abcd"), 3);
    assert_int_equal(match(pool, "abd"), 2);
    assert_int_equal(match(pool, "bc"), 0); /* the same block elsewhere is another block */
    assert_int_equal(run_seq(pool, &b, "abx"), 2);
    assert_int_equal(a.pages[1], b.pages[1]);
    assert_int_equal(census_of(pool).live, 4);
    assert_int_equal(bt_kv_hold_gain(pool, &a.hold), 1);
    bt_kv_hold_release(pool, &a.hold);
    assert_int_equal(census_of(pool).cached, 1);
    assert_int_equal(census_of(pool).live, 3);
    assert_int_equal(bt_kv_hold_gain(pool, &b.hold), 3);
    bt_kv_hold_release(pool, &b.hold);
    bt_kv_hold_release(pool, &b.hold); /* an empty hold is fine */
    assert_int_equal(census_of(pool).cached, 4);
    assert_int_equal(match(pool, "abc"), 3);
    struct bt_id other = {.hi = 7, .lo = 10};
    assert_int_equal(bt_kv_pool_match(pool, other, a.tokens, 3), 0);
    bt_kv_pool_flush(pool);
    assert_int_equal(census_of(pool).free, 8);
    assert_int_equal(match(pool, "abc"), 0);
    assert_true(bt_kv_pool_is_valid(pool));
    bt_kv_pool_destroy(pool);
}

static void test_pin_stops_at_its_bounds(void **state) {
    (void)state;
    struct bt_kv_pool *pool = make_pool(8);
    struct seq a, b;
    run_seq(pool, &a, "abcd");
    init_seq(&b, "abcd");
    assert_int_equal(bt_kv_hold_pin(pool, &b.hold, root, b.tokens, 2), 2);
    assert_int_equal(b.hold.n_pages, 2);
    bt_kv_hold_release(pool, &b.hold);
    b.hold.capacity = 3;
    assert_int_equal(bt_kv_hold_pin(pool, &b.hold, root, b.tokens, 4), 3);
    bt_kv_hold_release(pool, &b.hold);
    bt_kv_hold_release(pool, &a.hold);
    bt_kv_pool_destroy(pool);
}

static void test_evicts_the_least_recently_used_leaves_first(void **state) {
    (void)state;
    struct bt_kv_pool *pool = make_pool(6);
    struct seq a, b, c;
    run_seq(pool, &a, "abc");
    run_seq(pool, &b, "xyz");
    bt_kv_hold_release(pool, &a.hold);
    bt_kv_hold_release(pool, &b.hold);
    init_seq(&c, "ab"); /* touches a, b: c is the oldest of all now, then z, y, x */
    bt_kv_hold_pin(pool, &c.hold, root, c.tokens, 2);
    bt_kv_hold_release(pool, &c.hold);
    const char *left[][2] = {{"ab", "xyz"}, {"ab", "xy"}, {"ab", "x"}, {"ab", ""}, {"a", ""}};
    for (int i = 0; i < 5; i++) {
        assert_true(bt_kv_hold_reserve(pool, &c.hold, 1));
        assert_true(bt_kv_pool_is_valid(pool));
        assert_int_equal(match(pool, "abc"), strlen(left[i][0]));
        assert_int_equal(match(pool, "xyz"), strlen(left[i][1]));
    }
    assert_false(bt_kv_hold_reserve(pool, &c.hold, 2));
    assert_int_equal(match(pool, "abc"), 1); /* nothing was evicted in vain */
    assert_int_equal(census_of(pool).reserved, 5);
    bt_kv_hold_release(pool, &c.hold);
    assert_int_equal(bt_kv_pool_available(pool), 6);
    bt_kv_pool_destroy(pool);
}

/* Two sequences compute the same blocks side by side: the first copy stays, and what the second one
 * publishes after it is found under the first copy. */
static void test_the_first_copy_of_a_block_stays(void **state) {
    (void)state;
    struct bt_kv_pool *pool = make_pool(8);
    struct seq a, b, c;
    init_seq(&a, "ab");
    init_seq(&b, "abc");
    struct seq *seqs[] = {&a, &b};
    uint32_t n_pages[] = {2, 3};
    for (int s = 0; s < 2; s++) {
        assert_true(bt_kv_hold_reserve(pool, &seqs[s]->hold, n_pages[s]));
        bt_kv_hold_bind(pool, &seqs[s]->hold, n_pages[s], BT_PAGE_FILLING);
    }
    for (int s = 0; s < 2; s++)
        for (uint32_t i = 0; i < n_pages[s]; i++) {
            bt_kv_page_move(pool, seqs[s]->pages[i], BT_PAGE_LIVE);
            bt_kv_pool_publish(pool, &seqs[s]->hold, i, hash_before(seqs[s], i),
                               seqs[s]->tokens + i * BT_PAGE_TOKENS);
        }
    init_seq(&c, "abc");
    assert_int_equal(bt_kv_hold_pin(pool, &c.hold, root, c.tokens, 3), 3);
    assert_int_equal(c.pages[0], a.pages[0]);
    assert_int_equal(c.pages[1], a.pages[1]);
    assert_int_equal(c.pages[2], b.pages[2]);
    bt_kv_hold_release(pool, &c.hold);
    bt_kv_hold_release(pool, &a.hold);
    assert_int_equal(census_of(pool).cached, 2);
    /* Released last, its own block is still evicted before the older ones above it. */
    bt_kv_hold_release(pool, &b.hold);
    assert_true(bt_kv_pool_is_valid(pool));
    assert_int_equal(census_of(pool).cached, 3);
    assert_true(bt_kv_hold_reserve(pool, &c.hold, 6));
    assert_int_equal(match(pool, "abc"), 2);
    bt_kv_hold_release(pool, &c.hold);
    bt_kv_pool_destroy(pool);
}

/* The first copy is evicted while the second sequence still lives: its block leaves the index,
 * because nobody could find it, and its page is free at the end. */
static void test_a_live_block_whose_parent_is_evicted_leaves_the_index(void **state) {
    (void)state;
    struct bt_kv_pool *pool = make_pool(4);
    struct seq a, b, c;
    run_seq(pool, &a, "a");
    init_seq(&b, "abc");
    assert_true(bt_kv_hold_reserve(pool, &b.hold, 3));
    bt_kv_hold_bind(pool, &b.hold, 3, BT_PAGE_FILLING);
    for (uint32_t i = 0; i < 2; i++) {
        bt_kv_page_move(pool, b.pages[i], BT_PAGE_LIVE);
        bt_kv_pool_publish(pool, &b.hold, i, hash_before(&b, i), b.tokens + i * BT_PAGE_TOKENS);
    }
    assert_int_equal(match(pool, "ab"), 2);
    bt_kv_hold_release(pool, &a.hold);
    init_seq(&c, "x");
    assert_true(bt_kv_hold_reserve(pool, &c.hold, 1));
    assert_true(bt_kv_pool_is_valid(pool));
    assert_int_equal(match(pool, "ab"), 0);
    bt_kv_page_move(pool, b.pages[2], BT_PAGE_LIVE);
    bt_kv_pool_publish(pool, &b.hold, 2, hash_before(&b, 2), b.tokens + 2 * BT_PAGE_TOKENS);
    uint32_t cursor = 0;
    uint64_t hash;
    assert_false(bt_kv_pool_indexed(pool, &cursor, &hash));
    bt_kv_hold_release(pool, &b.hold);
    bt_kv_hold_release(pool, &c.hold);
    assert_int_equal(census_of(pool).free, 4);
    bt_kv_pool_destroy(pool);
}

static void test_quarantine_lasts_until_the_last_receive(void **state) {
    (void)state;
    struct bt_kv_pool *pool = make_pool(3);
    struct seq a;
    init_seq(&a, "ab");
    assert_true(bt_kv_hold_reserve(pool, &a.hold, 2));
    bt_kv_hold_bind(pool, &a.hold, 2, BT_PAGE_ARMED);
    uint32_t page = a.pages[0];
    uint64_t generation = bt_kv_page_generation(pool, page);
    assert_true(generation > 0 && bt_kv_page_generation(pool, a.pages[1]) > generation);
    bt_kv_page_receive_begin(pool, page);
    bt_kv_page_receive_begin(pool, page);
    assert_int_equal(bt_kv_hold_gain(pool, &a.hold), 1);
    bt_kv_hold_release(pool, &a.hold);
    assert_int_equal(bt_kv_page_state(pool, page), BT_PAGE_QUARANTINED);
    assert_int_equal(bt_kv_pool_available(pool), 2);
    bt_kv_page_receive_end(pool, page);
    assert_int_equal(census_of(pool).quarantined, 1);
    assert_int_equal(bt_kv_page_receives(pool, page), 1);
    assert_true(bt_kv_pool_is_valid(pool));
    bt_kv_page_receive_end(pool, page);
    assert_int_equal(census_of(pool).free, 3);
    assert_true(bt_kv_hold_reserve(pool, &a.hold, 3));
    bt_kv_hold_bind(pool, &a.hold, 3, BT_PAGE_ARMED);
    assert_true(bt_kv_page_generation(pool, page) > generation + 1);
    bt_kv_hold_release(pool, &a.hold);
    bt_kv_pool_destroy(pool);
}

static void test_changes_are_told_or_known_to_be_lost(void **state) {
    (void)state;
    struct bt_kv_pool *pool = make_pool(20);
    struct seq a, b;
    struct bt_kv_change change = {0};
    assert_int_equal(bt_kv_pool_next_change(pool, &change), BT_AGAIN);
    run_seq(pool, &a, "abcdefghij");
    for (uint32_t i = 0; i < 10; i++) {
        assert_int_equal(bt_kv_pool_next_change(pool, &change), BT_OK);
        assert_true(change.added);
        assert_int_equal(change.hash, hash_before(&a, i + 1).lo);
    }
    assert_int_equal(bt_kv_pool_next_change(pool, &change), BT_AGAIN);
    bt_kv_hold_release(pool, &a.hold);
    bt_kv_pool_flush(pool);
    assert_int_equal(bt_kv_pool_next_change(pool, &change), BT_OK);
    assert_false(change.added);
    assert_int_equal(change.hash, hash_before(&a, 10).lo);
    run_seq(pool, &b, "klmnopqr"); /* 9 + 8 > 16 */
    assert_int_equal(bt_kv_pool_next_change(pool, &change), BT_E_FULL);
    assert_int_equal(bt_kv_pool_next_change(pool, &change), BT_AGAIN);
    uint32_t cursor = 0, n = 0;
    uint64_t hash;
    while (bt_kv_pool_indexed(pool, &cursor, &hash))
        n++;
    assert_int_equal(n, 8);
    bt_kv_hold_release(pool, &b.hold);
    bt_kv_pool_flush(pool);
    assert_int_equal(bt_kv_pool_next_change(pool, &change), BT_OK);
    bt_kv_pool_destroy(pool);
}

/* Equal 128-bit hashes of different blocks cannot be made to order, so the index is asked with
 * hashes that we choose. */
static void test_a_collision_is_no_hit(void **state) {
    (void)state;
    struct bt_kv_index index;
    assert_int_equal(bt_kv_index_init(&index, 4, 4, NULL), BT_OK);
    struct bt_id h = {1, 2}, g = {3, 2}, other_root = {7, 8};
    int32_t a[BT_PAGE_TOKENS] = {1}, b[BT_PAGE_TOKENS] = {2};
    bt_kv_index_enter(&index, 0, BT_KV_NO_PAGE, root, h, a);
    bt_kv_index_enter(&index, 1, BT_KV_NO_PAGE, root, h, b);       /* other tokens */
    bt_kv_index_enter(&index, 2, BT_KV_NO_PAGE, other_root, h, a); /* another root */
    bt_kv_index_enter(&index, 3, 0, h, g, a);                      /* the same bucket */
    assert_true(bt_kv_index_is_valid(&index));
    assert_int_equal(bt_kv_index_find(&index, BT_KV_NO_PAGE, root, h, a), 0);
    assert_int_equal(bt_kv_index_find(&index, BT_KV_NO_PAGE, root, h, b), 1);
    assert_int_equal(bt_kv_index_find(&index, BT_KV_NO_PAGE, other_root, h, a), 2);
    assert_int_equal(bt_kv_index_find(&index, 0, h, g, a), 3);
    assert_int_equal(bt_kv_index_find(&index, 1, h, g, a), BT_KV_NO_PAGE); /* another parent */
    assert_int_equal(bt_kv_index_find(&index, 0, h, g, b), BT_KV_NO_PAGE);
    assert_int_equal(bt_kv_index_find(&index, 0, h, h, a), BT_KV_NO_PAGE);
    assert_int_equal(bt_kv_index_leaf(&index, 0), 3);
    bt_kv_index_remove(&index, 1);
    bt_kv_index_remove(&index, 3);
    assert_true(bt_kv_index_is_valid(&index));
    assert_int_equal(bt_kv_index_find(&index, BT_KV_NO_PAGE, root, h, b), BT_KV_NO_PAGE);
    assert_int_equal(bt_kv_index_find(&index, BT_KV_NO_PAGE, root, h, a), 0);
    assert_int_equal(index.n_entered, 2);
    bt_kv_index_fini(&index);
}

static void test_the_manifest_is_in_page_then_layer_order(void **state) {
    (void)state;
    struct bt_kv_pool *pool = make_pool(4);
    struct seq a;
    run_seq(pool, &a, "abc");
    uint8_t bytes[3 * N_LAYERS * 8];
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
            uint64_t sum = 0x0102030405060708u * (i * N_LAYERS + layer + 1);
            *bt_kv_page_sum(pool, layer, a.pages[i]) = sum;
            for (uint32_t j = 0; j < 8; j++)
                bytes[(i * N_LAYERS + layer) * 8 + j] = (uint8_t)(sum >> (8 * j));
        }
    assert_int_equal(bt_kv_hold_manifest(pool, &a.hold, 0), XXH3_64bits(bytes, sizeof bytes));
    assert_int_equal(bt_kv_hold_manifest(pool, &a.hold, 1),
                     XXH3_64bits(bytes + N_LAYERS * 8, sizeof bytes - N_LAYERS * 8));
    assert_int_equal(bt_kv_hold_manifest(pool, &a.hold, 3), XXH3_64bits(bytes, 0));
    bt_kv_hold_release(pool, &a.hold);
    bt_kv_pool_destroy(pool);
}

/* ---- random use against a naive model ---- */

enum { N_SEQS = 5, N_PAGES = 24, N_STEPS = 200000 };

static uint64_t random_state;
static uint32_t random_below(uint32_t n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

struct model {
    struct bt_kv_pool *pool;
    struct seq seqs[N_SEQS];
    uint32_t n_tokens_pages[N_SEQS]; /* blocks of text that the sequence will have */
    uint32_t n_published[N_SEQS];
    bool receiving[N_SEQS];
    uint32_t lost[4 * N_PAGES]; /* pages with a receive whose hold is gone */
    uint32_t n_lost;
    /* What each page holds, as the model believes: the letters up to and with its block. */
    char content[N_PAGES][CAPACITY + 1];
};

static void letters_of(const struct seq *seq, uint32_t n, char *out) {
    for (uint32_t i = 0; i < n; i++)
        out[i] = (char)(seq->tokens[i * BT_PAGE_TOKENS] / 100);
    out[n] = 0;
}

static void start_seq(struct model *m, uint32_t s) {
    char text[CAPACITY + 1] = {0};
    uint32_t n = 1 + random_below(CAPACITY);
    for (uint32_t i = 0; i < n; i++)
        text[i] = (char)('a' + random_below(i < 3 ? 2 : 3));
    struct seq *seq = &m->seqs[s];
    init_seq(seq, text);
    m->n_tokens_pages[s] = n;
    m->receiving[s] = random_below(2);
    uint32_t found = bt_kv_pool_match(m->pool, root, seq->tokens, n);
    assert_int_equal(bt_kv_hold_pin(m->pool, &seq->hold, root, seq->tokens, n), found);
    m->n_published[s] = found;
    char letters[CAPACITY + 1];
    for (uint32_t i = 0; i < found; i++) {
        letters_of(seq, i + 1, letters);
        assert_string_equal(m->content[seq->pages[i]], letters);
    }
}

static void finish_page(struct model *m, uint32_t s, uint32_t i) {
    struct seq *seq = &m->seqs[s];
    uint32_t page = seq->pages[i];
    if (bt_kv_page_state(m->pool, page) == BT_PAGE_ARMED) {
        if (bt_kv_page_receives(m->pool, page)) {
            bt_kv_page_receive_end(m->pool, page);
            return;
        }
        bt_kv_page_move(m->pool, page, BT_PAGE_LANDED);
    }
    bt_kv_page_move(m->pool, page, BT_PAGE_LIVE);
    letters_of(seq, i + 1, m->content[page]);
    bt_kv_pool_publish(m->pool, &seq->hold, i, hash_before(seq, i),
                       seq->tokens + i * BT_PAGE_TOKENS);
    m->n_published[s]++;
}

static void grow(struct model *m, uint32_t s) {
    struct seq *seq = &m->seqs[s];
    uint32_t open = m->n_tokens_pages[s] - seq->hold.n_pages - seq->hold.n_reserved;
    uint32_t available = bt_kv_pool_available(m->pool);
    uint32_t n = random_below(open + 2);
    uint32_t before = seq->hold.n_reserved;
    if (n <= open) {
        assert_int_equal(bt_kv_hold_reserve(m->pool, &seq->hold, n), n <= available);
        assert_int_equal(seq->hold.n_reserved - before, n <= available ? n : 0);
    }
    if (random_below(4) == 0)
        bt_kv_hold_unreserve(m->pool, &seq->hold, random_below(seq->hold.n_reserved + 1));
    uint32_t bound = random_below(seq->hold.n_reserved + 1);
    bt_kv_hold_bind(m->pool, &seq->hold, bound, m->receiving[s] ? BT_PAGE_ARMED : BT_PAGE_FILLING);
    for (uint32_t i = 0; m->receiving[s] && i < bound; i++)
        if (random_below(2))
            bt_kv_page_receive_begin(m->pool, seq->pages[seq->hold.n_pages - 1 - i]);
}

static void end_seq(struct model *m, uint32_t s) {
    struct seq *seq = &m->seqs[s];
    uint32_t available = bt_kv_pool_available(m->pool);
    uint32_t gain = bt_kv_hold_gain(m->pool, &seq->hold);
    for (uint32_t i = 0; i < seq->hold.n_pages; i++)
        if (bt_kv_page_receives(m->pool, seq->pages[i]))
            m->lost[m->n_lost++] = seq->pages[i];
    bt_kv_hold_release(m->pool, &seq->hold);
    assert_int_equal(bt_kv_pool_available(m->pool), available + gain);
    m->n_tokens_pages[s] = 0;
}

static void check_model(const struct model *m) {
    uint32_t refs[N_PAGES] = {0}, reserved = 0, referenced = 0;
    for (uint32_t s = 0; s < N_SEQS; s++) {
        reserved += m->seqs[s].hold.n_reserved;
        for (uint32_t i = 0; i < m->seqs[s].hold.n_pages; i++)
            referenced += refs[m->seqs[s].pages[i]]++ == 0;
    }
    for (uint32_t page = 0; page < N_PAGES; page++)
        assert_int_equal(m->pool->pages[page].refs, refs[page]);
    struct bt_census c = census_of(m->pool);
    assert_int_equal(c.reserved, reserved);
    assert_int_equal(c.quarantined, m->n_lost);
    assert_int_equal(c.filling + c.armed + c.landed + c.live, referenced);
    assert_int_equal(c.total, N_PAGES);
    assert_int_equal(bt_kv_pool_available(m->pool), c.free + c.cached);
    assert_true(bt_kv_pool_is_valid(m->pool));
}

static void test_random_use_agrees_with_a_naive_model(void **state) {
    (void)state;
    struct model *m = calloc(1, sizeof *m);
    m->pool = make_pool(N_PAGES);
    random_state = 1;
    uint32_t n_ended = 0, n_found = 0;
    for (int step = 0; step < N_STEPS; step++) {
        uint32_t s = random_below(N_SEQS);
        struct seq *seq = &m->seqs[s];
        uint32_t what = random_below(16);
        if (!m->n_tokens_pages[s]) {
            start_seq(m, s);
            n_found += seq->hold.n_shared;
        } else if (what < 5) {
            grow(m, s);
        } else if (what < 12 && m->n_published[s] < seq->hold.n_pages) {
            finish_page(m, s, m->n_published[s]);
        } else if (what == 12 && m->n_lost) {
            bt_kv_page_receive_end(m->pool, m->lost[--m->n_lost]);
        } else if (what == 13) {
            end_seq(m, s);
            n_ended++;
        } else if (what == 14 && step % 61 == 0) {
            bt_kv_pool_flush(m->pool);
        }
        check_model(m);
    }
    assert_true(n_ended > 1000 && n_found > 1000);
    for (uint32_t s = 0; s < N_SEQS; s++)
        if (m->n_tokens_pages[s])
            end_seq(m, s);
    while (m->n_lost)
        bt_kv_page_receive_end(m->pool, m->lost[--m->n_lost]);
    bt_kv_pool_flush(m->pool);
    check_model(m);
    assert_int_equal(census_of(m->pool).free, N_PAGES);
    bt_kv_pool_destroy(m->pool);
    free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_sizes_out_of_bounds),
        cmocka_unit_test(test_create_survives_each_failed_allocation),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_a_second_prompt_finds_the_first_ones_blocks),
        cmocka_unit_test(test_pin_stops_at_its_bounds),
        cmocka_unit_test(test_evicts_the_least_recently_used_leaves_first),
        cmocka_unit_test(test_the_first_copy_of_a_block_stays),
        cmocka_unit_test(test_a_live_block_whose_parent_is_evicted_leaves_the_index),
        cmocka_unit_test(test_quarantine_lasts_until_the_last_receive),
        cmocka_unit_test(test_changes_are_told_or_known_to_be_lost),
        cmocka_unit_test(test_a_collision_is_no_hit),
        cmocka_unit_test(test_the_manifest_is_in_page_then_layer_order),
        cmocka_unit_test(test_random_use_agrees_with_a_naive_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

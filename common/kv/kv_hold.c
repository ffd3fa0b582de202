/* What one sequence holds of the pool: pins a prefix, promises and binds pages, lets all go. */
#include "common/kv/kv_pool.h"

#define XXH_STATIC_LINKING_ONLY /* the state stands on the stack */
#include <xxhash.h>

#include "common/base/assert.h"
#include "common/base/block_hash.h"
#include "common/base/bytes.h"
#include "common/kv/kv_pool_inner.h"

enum {
#if BT_MUTANT_quarantine_skipped
    /* A planted defect: pages are free at once, and a receive that ends later finds it so. */
    QUARANTINE = 0
#else
    QUARANTINE = 1
#endif
};

/* The page of the block that follows parent, or BT_KV_NO_PAGE; steps *hash on. */
static uint32_t match_next(const struct bt_kv_pool *pool, uint32_t parent, struct bt_id *hash,
                           const int32_t *tokens) {
    struct bt_id previous = *hash;
    *hash = bt_block_next(previous, tokens);
    uint32_t page = bt_kv_index_find(&pool->index, parent, previous, *hash, tokens);
    if (page == BT_KV_NO_PAGE)
        return page;
    enum bt_page_state state = pool->pages[page].state;
    return state == BT_PAGE_CACHED || state == BT_PAGE_LIVE ? page : BT_KV_NO_PAGE;
}

uint32_t bt_kv_pool_match(const struct bt_kv_pool *pool, struct bt_id root, const int32_t *tokens,
                          uint32_t max_blocks) {
    struct bt_id hash = root;
    uint32_t page = BT_KV_NO_PAGE, n = 0;
    for (; n < max_blocks; n++) {
        page = match_next(pool, page, &hash, tokens + (size_t)n * BT_PAGE_TOKENS);
        if (page == BT_KV_NO_PAGE)
            break;
    }
    return n;
}

uint32_t bt_kv_hold_pin(struct bt_kv_pool *pool, struct bt_kv_hold *hold, struct bt_id root,
                        const int32_t *tokens, uint32_t max_blocks) {
    BT_ASSERT(!hold->n_pages && !hold->n_shared && !hold->n_reserved);
    if (max_blocks > hold->capacity)
        max_blocks = hold->capacity;
    struct bt_id hash = root;
    uint32_t page = BT_KV_NO_PAGE;
    while (hold->n_pages < max_blocks) {
        page = match_next(pool, page, &hash, tokens + (size_t)hold->n_pages * BT_PAGE_TOKENS);
        if (page == BT_KV_NO_PAGE)
            break;
        if (pool->pages[page].state == BT_PAGE_CACHED)
            bt_kv_pool_take_cached(pool, page);
        pool->pages[page].refs++;
        hold->pages[hold->n_pages++] = page;
    }
    hold->n_shared = hold->n_pages;
    return hold->n_shared;
}

bool bt_kv_hold_reserve(struct bt_kv_pool *pool, struct bt_kv_hold *hold, uint32_t n) {
    if (n > bt_kv_pool_available(pool))
        return false;
    while (pool->counts[BT_PAGE_FREE] - pool->n_reserved < n)
        bt_kv_pool_evict(pool);
    pool->n_reserved += n;
    hold->n_reserved += n;
    return true;
}

void bt_kv_hold_unreserve(struct bt_kv_pool *pool, struct bt_kv_hold *hold, uint32_t n) {
    BT_ASSERT(n <= hold->n_reserved && n <= pool->n_reserved);
    hold->n_reserved -= n;
    pool->n_reserved -= n;
}

void bt_kv_hold_bind(struct bt_kv_pool *pool, struct bt_kv_hold *hold, uint32_t n,
                     enum bt_page_state state) {
    BT_ASSERT(state == BT_PAGE_FILLING || state == BT_PAGE_ARMED);
    BT_ASSERT(n <= hold->n_reserved && n <= hold->capacity - hold->n_pages);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t page = bt_kv_pool_take_free(pool);
        struct bt_kv_page *p = &pool->pages[page];
        BT_ASSERT(!p->refs && !p->receives);
        bt_kv_pool_set_state(pool, page, state);
        p->refs = 1;
        p->generation = ++pool->generation;
        hold->pages[hold->n_pages++] = page;
    }
    hold->n_reserved -= n;
    pool->n_reserved -= n;
}

static void drop_reference(struct bt_kv_pool *pool, uint32_t page) {
    struct bt_kv_page *p = &pool->pages[page];
    BT_ASSERT(p->refs > 0);
    if (--p->refs)
        return;
    if (!QUARANTINE)
        p->receives = 0;
    if (p->receives)
        bt_kv_pool_set_state(pool, page, BT_PAGE_QUARANTINED);
    else if (p->state == BT_PAGE_LIVE && pool->index.blocks[page].entered)
        bt_kv_pool_put_cached(pool, page);
    else
        bt_kv_pool_put_free(pool, page);
}

void bt_kv_hold_release(struct bt_kv_pool *pool, struct bt_kv_hold *hold) {
    bt_kv_hold_unreserve(pool, hold, hold->n_reserved);
    /* Later blocks first: they are evicted before their parents. */
    while (hold->n_pages)
        drop_reference(pool, hold->pages[--hold->n_pages]);
    hold->n_shared = 0;
}

uint32_t bt_kv_hold_gain(const struct bt_kv_pool *pool, const struct bt_kv_hold *hold) {
    uint32_t n = hold->n_reserved;
    for (uint32_t i = 0; i < hold->n_pages; i++) {
        const struct bt_kv_page *p = &pool->pages[hold->pages[i]];
        n += p->refs == 1 && !p->receives;
    }
    return n;
}

uint64_t bt_kv_hold_manifest(const struct bt_kv_pool *pool, const struct bt_kv_hold *hold,
                             uint32_t first_page) {
    XXH3_state_t state;
    XXH3_64bits_reset(&state);
    for (uint32_t i = first_page; i < hold->n_pages; i++) {
        const uint64_t *sums = &pool->sums[(size_t)hold->pages[i] * pool->n_layers];
        for (uint32_t layer = 0; layer < pool->n_layers; layer++) {
            uint8_t bytes[8];
            bt_store_u64(bytes, sums[layer]);
            XXH3_64bits_update(&state, bytes, sizeof bytes);
        }
    }
    return XXH3_64bits_digest(&state);
}

void bt_kv_page_receive_begin(struct bt_kv_pool *pool, uint32_t page) {
    BT_ASSERT(page < pool->n_pages && pool->pages[page].state == BT_PAGE_ARMED);
    pool->pages[page].receives++;
}

void bt_kv_page_receive_end(struct bt_kv_pool *pool, uint32_t page) {
    BT_ASSERT(page < pool->n_pages);
    struct bt_kv_page *p = &pool->pages[page];
    if (!QUARANTINE && !p->receives)
        return;
    BT_ASSERT(p->receives > 0);
    p->receives--;
    if (!p->receives && p->state == BT_PAGE_QUARANTINED)
        bt_kv_pool_put_free(pool, page);
}

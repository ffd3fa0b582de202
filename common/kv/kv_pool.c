/* Keeps each page in exactly one state: free and cached lists, the index's blocks, the census. */
#include "common/kv/kv_pool.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/base/block_hash.h"
#include "common/kv/kv_msg.h"
#include "common/kv/kv_pool_inner.h"

enum { PAGES_MAX = 1 << 24, CHANGES_MAX = 1 << 24 };

/* Which state may follow which. All else is impossible and asserted.
 *   free        -> filling, armed       bound to a hold
 *   cached      -> live (pinned), free (evicted)
 *   filling     -> live (complete), free (given up)
 *   armed       -> landed (complete, verified), free, quarantined (given up, a receive in flight)
 *   landed      -> live (committed), free (given up)
 *   live        -> filling (its sequence goes on in it), cached (in the index), free
 *   quarantined -> free (its last receive ended) */
#define TO(state) (1u << BT_PAGE_##state)
static const uint8_t legal[BT_PAGE_STATE_COUNT] = {
    [BT_PAGE_FREE] = TO(FILLING) | TO(ARMED),
    [BT_PAGE_CACHED] = TO(LIVE) | TO(FREE),
    [BT_PAGE_FILLING] = TO(LIVE) | TO(FREE),
    [BT_PAGE_ARMED] = TO(LANDED) | TO(FREE) | TO(QUARANTINED),
    [BT_PAGE_LANDED] = TO(LIVE) | TO(FREE),
    [BT_PAGE_LIVE] = TO(FILLING) | TO(CACHED) | TO(FREE),
    [BT_PAGE_QUARANTINED] = TO(FREE),
};

const char *bt_page_state_name(enum bt_page_state state) {
    static const char *const names[BT_PAGE_STATE_COUNT] = {
        "free", "cached", "filling", "armed", "landed", "live", "quarantined"};
    return (unsigned)state < BT_PAGE_STATE_COUNT ? names[state] : "unknown";
}

static bt_status check_config(const struct bt_kv_pool_config *config, struct bt_error *err) {
    if (config->n_pages < 1 || config->n_pages > PAGES_MAX)
        return bt_fail(err, BT_E_INVALID, "a KV pool of %u pages, must be 1 to %d", config->n_pages,
                       PAGES_MAX);
    if (config->n_layers < 1 || config->n_layers > BT_KV_LAYERS_MAX)
        return bt_fail(err, BT_E_INVALID, "a KV pool of %u layers, must be 1 to %d",
                       config->n_layers, BT_KV_LAYERS_MAX);
    if (config->n_changes < 1 || config->n_changes > CHANGES_MAX ||
        (config->n_changes & (config->n_changes - 1)))
        return bt_fail(err, BT_E_INVALID,
                       "a log of %u index changes, must be a power of two from 1 to %d",
                       config->n_changes, CHANGES_MAX);
    return BT_OK;
}

bt_status bt_kv_pool_create(const struct bt_kv_pool_config *config, struct bt_kv_pool **out,
                            struct bt_error *err) {
    BT_TRY(check_config(config, err));
    struct bt_kv_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a KV pool");
    bt_status status = BT_OK;
    uint32_t n_pages = config->n_pages;
    pool->pages = calloc(n_pages, sizeof *pool->pages);
    pool->sums = calloc((size_t)n_pages * config->n_layers, sizeof *pool->sums);
    if (!pool->pages || !pool->sums) {
        status = bt_fail(err, BT_E_NO_MEMORY, "no memory for the states of %u KV pages", n_pages);
        goto fail;
    }
    BT_TRY_GOTO(bt_kv_index_init(&pool->index, n_pages, config->n_changes, err), fail);
    pool->n_pages = n_pages;
    pool->n_layers = config->n_layers;
    pool->counts[BT_PAGE_FREE] = n_pages;
    for (uint32_t page = 0; page < n_pages; page++) {
        pool->pages[page].next = page + 1 < n_pages ? page + 1 : BT_KV_NO_PAGE;
        pool->pages[page].twin = BT_KV_NO_PAGE;
    }
    pool->oldest = pool->newest = BT_KV_NO_PAGE;
    *out = pool;
    return BT_OK;
fail:
    bt_kv_pool_destroy(pool);
    return status;
}

void bt_kv_pool_destroy(struct bt_kv_pool *pool) {
    if (!pool)
        return;
    bt_kv_index_fini(&pool->index);
    free(pool->pages);
    free(pool->sums);
    free(pool);
}

/* ---- states and lists ---- */

void bt_kv_pool_set_state(struct bt_kv_pool *pool, uint32_t page, enum bt_page_state to) {
    struct bt_kv_page *p = &pool->pages[page];
    BT_ASSERT(legal[p->state] & (1u << to));
    pool->counts[p->state]--;
    pool->counts[to]++;
    p->state = to;
}

void bt_kv_pool_put_free(struct bt_kv_pool *pool, uint32_t page) {
    struct bt_kv_page *p = &pool->pages[page];
    BT_ASSERT(!p->refs && !p->receives && !pool->index.blocks[page].entered);
    bt_kv_pool_set_state(pool, page, BT_PAGE_FREE);
    p->twin = BT_KV_NO_PAGE;
    p->next = pool->first_free;
    pool->first_free = page;
}

uint32_t bt_kv_pool_take_free(struct bt_kv_pool *pool) {
    uint32_t page = pool->first_free;
    BT_ASSERT(page != BT_KV_NO_PAGE);
    pool->first_free = pool->pages[page].next;
    return page;
}

static void leave_cached_list(struct bt_kv_pool *pool, uint32_t page) {
    struct bt_kv_page *p = &pool->pages[page];
    if (p->previous != BT_KV_NO_PAGE)
        pool->pages[p->previous].next = p->next;
    else
        pool->oldest = p->next;
    if (p->next != BT_KV_NO_PAGE)
        pool->pages[p->next].previous = p->previous;
    else
        pool->newest = p->previous;
}

static void join_cached_list(struct bt_kv_pool *pool, uint32_t page) {
    struct bt_kv_page *p = &pool->pages[page];
    p->used = ++pool->used;
    p->next = BT_KV_NO_PAGE;
    p->previous = pool->newest;
    if (pool->newest != BT_KV_NO_PAGE)
        pool->pages[pool->newest].next = page;
    else
        pool->oldest = page;
    pool->newest = page;
}

void bt_kv_pool_put_cached(struct bt_kv_pool *pool, uint32_t page) {
    BT_ASSERT(!pool->pages[page].refs && pool->index.blocks[page].entered);
    bt_kv_pool_set_state(pool, page, BT_PAGE_CACHED);
    join_cached_list(pool, page);
    /* Parents are evicted after their children. A hold releases its later blocks first, so this
     * walk has work only where the parent is another sequence's copy of the block before. */
    for (uint32_t parent = pool->index.blocks[page].parent;
         parent != BT_KV_NO_PAGE && pool->pages[parent].state == BT_PAGE_CACHED;
         parent = pool->index.blocks[parent].parent) {
        leave_cached_list(pool, parent);
        join_cached_list(pool, parent);
    }
}

void bt_kv_pool_take_cached(struct bt_kv_pool *pool, uint32_t page) {
    leave_cached_list(pool, page);
    bt_kv_pool_set_state(pool, page, BT_PAGE_LIVE);
}

void bt_kv_pool_evict(struct bt_kv_pool *pool) {
    uint32_t victim = pool->oldest;
    BT_ASSERT(victim != BT_KV_NO_PAGE);
    /* It has blocks below it only where a sequence that computed the victim's block a second time
     * published its next block under the victim. Without their parent nobody can find these: they
     * leave the index too, and what is live among them stays live. */
    for (;;) {
        uint32_t leaf = bt_kv_index_leaf(&pool->index, victim);
        bt_kv_index_remove(&pool->index, leaf);
        if (pool->pages[leaf].state == BT_PAGE_CACHED) {
            leave_cached_list(pool, leaf);
            bt_kv_pool_put_free(pool, leaf);
        }
        if (leaf == victim)
            return;
    }
}

/* ---- one page ---- */

void bt_kv_page_move(struct bt_kv_pool *pool, uint32_t page, enum bt_page_state to) {
    BT_ASSERT(page < pool->n_pages);
    struct bt_kv_page *p = &pool->pages[page];
    BT_ASSERT(p->refs == 1 && !p->receives && !pool->index.blocks[page].entered);
    BT_ASSERT(to == BT_PAGE_LIVE || to == BT_PAGE_LANDED || to == BT_PAGE_FILLING);
    bt_kv_pool_set_state(pool, page, to);
}

enum bt_page_state bt_kv_page_state(const struct bt_kv_pool *pool, uint32_t page) {
    BT_ASSERT(page < pool->n_pages);
    return pool->pages[page].state;
}

uint64_t bt_kv_page_generation(const struct bt_kv_pool *pool, uint32_t page) {
    BT_ASSERT(page < pool->n_pages);
    return pool->pages[page].generation;
}

uint32_t bt_kv_page_receives(const struct bt_kv_pool *pool, uint32_t page) {
    BT_ASSERT(page < pool->n_pages);
    return pool->pages[page].receives;
}

uint64_t *bt_kv_page_sum(struct bt_kv_pool *pool, uint32_t layer, uint32_t page) {
    BT_ASSERT(page < pool->n_pages && layer < pool->n_layers);
    return &pool->sums[(size_t)page * pool->n_layers + layer];
}

/* ---- the index ---- */

/* The page under which block_i of the hold stands in the index, in *parent. False: the block before
 * it is not in the index (any more), and nobody could find this one. */
static bool find_parent(const struct bt_kv_pool *pool, const struct bt_kv_hold *hold,
                        uint32_t block_i, uint32_t *parent) {
    *parent = BT_KV_NO_PAGE;
    if (!block_i)
        return true;
    uint32_t before = hold->pages[block_i - 1];
    const struct bt_kv_page *p = &pool->pages[before];
    if (pool->index.blocks[before].entered)
        *parent = before;
    else if (p->twin != BT_KV_NO_PAGE && pool->index.blocks[p->twin].entered &&
             pool->pages[p->twin].generation == p->twin_generation)
        *parent = p->twin;
    return *parent != BT_KV_NO_PAGE;
}

void bt_kv_pool_publish(struct bt_kv_pool *pool, const struct bt_kv_hold *hold, uint32_t block_i,
                        struct bt_id previous, const int32_t tokens[BT_PAGE_TOKENS]) {
    BT_ASSERT(block_i < hold->n_pages);
    uint32_t page = hold->pages[block_i], parent;
    struct bt_kv_page *p = &pool->pages[page];
    BT_ASSERT(p->state == BT_PAGE_LIVE);
    if (pool->index.blocks[page].entered || !find_parent(pool, hold, block_i, &parent))
        return;
    struct bt_id hash = bt_block_next(previous, tokens);
    uint32_t first = bt_kv_index_find(&pool->index, parent, previous, hash, tokens);
    if (first != BT_KV_NO_PAGE) {
        p->twin = first;
        p->twin_generation = pool->pages[first].generation;
        return;
    }
    bt_kv_index_enter(&pool->index, page, parent, previous, hash, tokens);
}

void bt_kv_pool_flush(struct bt_kv_pool *pool) {
    while (pool->counts[BT_PAGE_CACHED])
        bt_kv_pool_evict(pool);
}

bt_status bt_kv_pool_next_change(struct bt_kv_pool *pool, struct bt_kv_change *out) {
    struct bt_kv_index *index = &pool->index;
    if (index->changes_lost) {
        index->changes_lost = false;
        return BT_E_FULL;
    }
    if (index->change_tail == index->change_head)
        return BT_AGAIN;
    *out = index->changes[index->change_tail++ & (index->n_changes - 1)];
    return BT_OK;
}

bool bt_kv_pool_indexed(const struct bt_kv_pool *pool, uint32_t *cursor, uint64_t *hash) {
    while (*cursor < pool->n_pages) {
        const struct bt_kv_block *block = &pool->index.blocks[(*cursor)++];
        if (block->entered) {
            *hash = block->hash.lo;
            return true;
        }
    }
    return false;
}

/* ---- the sum ---- */

void bt_kv_pool_census(const struct bt_kv_pool *pool, struct bt_census *out) {
    const uint32_t *counts = pool->counts;
    *out = (struct bt_census){
        .total = pool->n_pages,
        .free = counts[BT_PAGE_FREE] - pool->n_reserved,
        .cached = counts[BT_PAGE_CACHED],
        .reserved = pool->n_reserved,
        .filling = counts[BT_PAGE_FILLING],
        .armed = counts[BT_PAGE_ARMED],
        .landed = counts[BT_PAGE_LANDED],
        .live = counts[BT_PAGE_LIVE],
        .quarantined = counts[BT_PAGE_QUARANTINED],
    };
    BT_ASSERT(pool->n_reserved <= counts[BT_PAGE_FREE]);
    BT_ASSERT(out->free + out->cached + out->reserved + out->filling + out->armed + out->landed +
                  out->live + out->quarantined ==
              out->total);
}

uint32_t bt_kv_pool_available(const struct bt_kv_pool *pool) {
    return pool->counts[BT_PAGE_FREE] - pool->n_reserved + pool->counts[BT_PAGE_CACHED];
}

static bool page_is_valid(const struct bt_kv_pool *pool, uint32_t page) {
    const struct bt_kv_page *p = &pool->pages[page];
    const struct bt_kv_block *block = &pool->index.blocks[page];
    bool referenced =
        p->state != BT_PAGE_FREE && p->state != BT_PAGE_CACHED && p->state != BT_PAGE_QUARANTINED;
    if (referenced != (p->refs > 0) || (p->state != BT_PAGE_FREE && !p->generation) ||
        p->generation > pool->generation)
        return false;
    if (p->receives && p->state != BT_PAGE_ARMED && p->state != BT_PAGE_QUARANTINED)
        return false;
    if (p->state == BT_PAGE_QUARANTINED && !p->receives)
        return false;
    if (p->refs > 1 && !block->entered && p->state != BT_PAGE_LIVE)
        return false;
    if (block->entered != (p->state == BT_PAGE_CACHED) && p->state != BT_PAGE_LIVE)
        return false;
    if (p->state == BT_PAGE_CACHED && block->parent != BT_KV_NO_PAGE) {
        const struct bt_kv_page *parent = &pool->pages[block->parent];
        return parent->state == BT_PAGE_LIVE || parent->used > p->used;
    }
    return true;
}

/* Follows a list of pages that are all in one state, and never for longer than there are pages. */
static uint32_t count_list(const struct bt_kv_pool *pool, uint32_t page, enum bt_page_state state) {
    uint32_t n = 0;
    while (page != BT_KV_NO_PAGE && n <= pool->n_pages) {
        if (page >= pool->n_pages || pool->pages[page].state != state)
            return UINT32_MAX;
        uint32_t next = pool->pages[page].next;
        if (state == BT_PAGE_CACHED && next != BT_KV_NO_PAGE &&
            (pool->pages[next].previous != page ||
             pool->pages[next].used <= pool->pages[page].used))
            return UINT32_MAX;
        n++;
        page = next;
    }
    return n;
}

bool bt_kv_pool_is_valid(const struct bt_kv_pool *pool) {
    uint32_t counts[BT_PAGE_STATE_COUNT] = {0};
    for (uint32_t page = 0; page < pool->n_pages; page++) {
        if (pool->pages[page].state >= BT_PAGE_STATE_COUNT || !page_is_valid(pool, page))
            return false;
        counts[pool->pages[page].state]++;
    }
    return !memcmp(counts, pool->counts, sizeof counts) &&
           pool->n_reserved <= counts[BT_PAGE_FREE] &&
           count_list(pool, pool->first_free, BT_PAGE_FREE) == counts[BT_PAGE_FREE] &&
           count_list(pool, pool->oldest, BT_PAGE_CACHED) == counts[BT_PAGE_CACHED] &&
           bt_kv_index_is_valid(&pool->index);
}

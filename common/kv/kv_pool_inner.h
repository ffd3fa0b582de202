/* What the files of the page pool share: its struct, and the moves of one page. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/kv/kv_index.h"
#include "common/kv/kv_pool.h"

struct bt_kv_page {
    uint64_t generation;
    uint64_t used; /* when it became cached, in steps of pool->used: the order of eviction */
    uint32_t refs;
    uint32_t receives;       /* in flight into it */
    uint32_t next, previous; /* in the free list (next only) or the list of cached pages */
    /* The page that was in the index first with this page's block, as it was bound then. */
    uint32_t twin;
    uint64_t twin_generation;
    enum bt_page_state state;
};

struct bt_kv_pool {
    struct bt_kv_page *pages; /* [n_pages] */
    uint64_t *sums;           /* [n_pages][n_layers] */
    struct bt_kv_index index;
    uint32_t n_pages, n_layers;
    uint32_t n_reserved;
    uint32_t counts[BT_PAGE_STATE_COUNT];
    uint32_t first_free;
    uint32_t oldest, newest; /* cached pages */
    uint64_t generation, used;
};

/* The one place where a page changes its state; the table of legal moves is asserted. */
void bt_kv_pool_set_state(struct bt_kv_pool *pool, uint32_t page, enum bt_page_state to);
/* A page without reference enters the free list, or leaves it. */
void bt_kv_pool_put_free(struct bt_kv_pool *pool, uint32_t page);
uint32_t bt_kv_pool_take_free(struct bt_kv_pool *pool);
/* A live page without reference becomes cached, or a cached one live again. */
void bt_kv_pool_put_cached(struct bt_kv_pool *pool, uint32_t page);
void bt_kv_pool_take_cached(struct bt_kv_pool *pool, uint32_t page);
/* Makes the least recently used cached page free; there must be one. */
void bt_kv_pool_evict(struct bt_kv_pool *pool);

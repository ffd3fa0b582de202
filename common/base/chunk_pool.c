/* Promises, chains and takes back the chunks of a pool. */
#include "common/base/chunk_pool.h"

#include <stdlib.h>

#include "common/base/assert.h"

bt_status bt_chunk_pool_init(struct bt_chunk_pool *pool, uint64_t n_chunks, uint32_t chunk_words,
                             struct bt_error *err) {
    size_t chunk_bytes = (1 + (size_t)chunk_words) * sizeof *pool->words;
    *pool = (struct bt_chunk_pool){.chunk_words = chunk_words};
    /* calloc of this size is untouched zero pages: idle memory stays small. */
    if (n_chunks < UINT32_MAX)
        pool->words = calloc(n_chunks + 1, chunk_bytes);
    if (!pool->words)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %llu chunks of %zu bytes",
                       (unsigned long long)n_chunks, chunk_bytes);
    pool->n_chunks = (uint32_t)n_chunks;
    return BT_OK;
}

void bt_chunk_pool_fini(struct bt_chunk_pool *pool) {
    free(pool->words);
    *pool = (struct bt_chunk_pool){0};
}

uint32_t bt_chunk_pool_chunks_for(uint64_t n, uint32_t in_one) {
    uint64_t n_chunks = n / in_one + (n % in_one != 0);
    return n_chunks > UINT32_MAX ? UINT32_MAX : (uint32_t)n_chunks;
}

bool bt_chunk_pool_reserve(struct bt_chunk_pool *pool, uint32_t n_chunks) {
    if (n_chunks > pool->n_chunks - pool->n_reserved)
        return false;
    pool->n_reserved += n_chunks;
    return true;
}

void bt_chunk_pool_extend(struct bt_chunk_pool *pool, uint32_t *first, uint32_t *last) {
    uint32_t chunk = pool->first_free;
    if (chunk) {
        pool->first_free = bt_chunk_pool_next(pool, chunk);
        pool->n_free--;
    } else {
        BT_ASSERT(pool->n_touched < pool->n_chunks);
        chunk = ++pool->n_touched;
    }
    *bt_chunk_pool_link(pool, chunk) = 0;
    if (*first)
        *bt_chunk_pool_link(pool, *last) = chunk;
    else
        *first = chunk;
    *last = chunk;
}

void bt_chunk_pool_release(struct bt_chunk_pool *pool, uint32_t first, uint32_t last,
                           uint32_t n_used, uint32_t n_reserved) {
    BT_ASSERT(n_used <= n_reserved && n_reserved <= pool->n_reserved);
    if (n_used) {
        *bt_chunk_pool_link(pool, last) = pool->first_free;
        pool->first_free = first;
        pool->n_free += n_used;
    }
    pool->n_reserved -= n_reserved;
}

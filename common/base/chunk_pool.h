/* A fixed number of equal chunks of words, promised first and chained to lists as they are used.
 *
 * Whoever may append has promised its chunks before (reserve), so that appending never fails. Chunk
 * numbers are handles; 0 is none. Pure; memory is fixed at init and touched only as it is used. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

struct bt_chunk_pool {
    uint32_t *words; /* [n_chunks + 1][1 + chunk_words]: the next chunk's number, then what is held;
                        chunk 0 is never used */
    uint32_t chunk_words;
    uint32_t n_chunks;
    uint32_t n_touched; /* chunks 1..n_touched were used at least once */
    uint32_t first_free;
    uint32_t n_free;     /* in that list */
    uint32_t n_reserved; /* promised, those in use included */
};

/* chunk_words words of 4 bytes can be held in each. BT_E_NO_MEMORY. */
bt_status bt_chunk_pool_init(struct bt_chunk_pool *pool, uint64_t n_chunks, uint32_t chunk_words,
                             struct bt_error *err);
void bt_chunk_pool_fini(struct bt_chunk_pool *pool); /* accepts a zeroed one */

/* Chunks that n elements take where `in_one` of them fit in each; UINT32_MAX for too many. */
uint32_t bt_chunk_pool_chunks_for(uint64_t n, uint32_t in_one);
/* False, and nothing is promised, when so many are not left. */
bool bt_chunk_pool_reserve(struct bt_chunk_pool *pool, uint32_t n_chunks);
/* Puts one more chunk at the end of a list, within its promise; *first is 0 for an empty list. */
void bt_chunk_pool_extend(struct bt_chunk_pool *pool, uint32_t *first, uint32_t *last);
/* Gives a list of n_used chunks and its promise of n_reserved back. */
void bt_chunk_pool_release(struct bt_chunk_pool *pool, uint32_t first, uint32_t last,
                           uint32_t n_used, uint32_t n_reserved);

static inline uint32_t *bt_chunk_pool_link(const struct bt_chunk_pool *pool, uint32_t chunk) {
    return pool->words + (size_t)chunk * (1 + pool->chunk_words);
}

static inline uint32_t *bt_chunk_pool_words(const struct bt_chunk_pool *pool, uint32_t chunk) {
    return bt_chunk_pool_link(pool, chunk) + 1;
}

static inline uint32_t bt_chunk_pool_next(const struct bt_chunk_pool *pool, uint32_t chunk) {
    return *bt_chunk_pool_link(pool, chunk);
}

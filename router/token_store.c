/* Puts tokens in chunks: promised at admission, taken when a token comes, given back at the end. */
#include "router/token_store.h"

#include <string.h>

bt_status bt_token_store_init(struct bt_token_store *store, uint64_t n_tokens,
                              struct bt_error *err) {
    *store = (struct bt_token_store){0};
    uint32_t n_chunks = bt_token_store_chunks_for(n_tokens);
    if (!n_tokens || n_chunks == UINT32_MAX)
        return bt_fail(err, BT_E_INVALID, "token_budget is %llu, must be 1 to %llu",
                       (unsigned long long)n_tokens,
                       (unsigned long long)(UINT32_MAX - 1ull) * BT_CHUNK_TOKENS);
    if (bt_chunk_pool_init(&store->pool, n_chunks, BT_CHUNK_TOKENS, NULL) < 0)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a token budget of %llu tokens",
                       (unsigned long long)n_tokens);
    return BT_OK;
}

void bt_token_store_fini(struct bt_token_store *store) {
    bt_chunk_pool_fini(&store->pool);
}

uint32_t bt_token_store_chunks_for(uint64_t n_tokens) {
    return bt_chunk_pool_chunks_for(n_tokens, BT_CHUNK_TOKENS);
}

bool bt_token_store_reserve(struct bt_token_store *store, uint32_t n_chunks) {
    return bt_chunk_pool_reserve(&store->pool, n_chunks);
}

void bt_token_store_append(struct bt_token_store *store, uint32_t *first, uint32_t *last,
                           uint32_t n_before, int32_t token) {
    uint32_t at = n_before % BT_CHUNK_TOKENS;
    if (!at)
        bt_chunk_pool_extend(&store->pool, first, last);
    bt_chunk_pool_words(&store->pool, *last)[at] = (uint32_t)token;
}

void bt_token_store_copy(const struct bt_token_store *store, uint32_t first, uint32_t n,
                         int32_t *out) {
    for (uint32_t chunk = first, i = 0; i < n; chunk = bt_chunk_pool_next(&store->pool, chunk)) {
        uint32_t part = n - i < BT_CHUNK_TOKENS ? n - i : BT_CHUNK_TOKENS;
        memcpy(out + i, bt_chunk_pool_words(&store->pool, chunk), part * sizeof *out);
        i += part;
    }
}

void bt_token_store_release(struct bt_token_store *store, uint32_t first, uint32_t last,
                            uint32_t n_tokens, uint32_t n_reserved) {
    bt_chunk_pool_release(&store->pool, first, last, bt_token_store_chunks_for(n_tokens),
                          n_reserved);
}

uint32_t bt_token_store_used(const struct bt_token_store *store) {
    return store->pool.n_touched - store->pool.n_free;
}

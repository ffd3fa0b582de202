/* The token store's chunks: promised at admission, taken when a token comes, given back at the end.
 */
#include "router/token_store.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"

bt_status bt_token_store_init(struct bt_token_store *store, uint64_t n_tokens,
                              struct bt_error *err) {
    *store = (struct bt_token_store){0};
    uint64_t n_chunks = (n_tokens + BT_CHUNK_TOKENS - 1) / BT_CHUNK_TOKENS;
    if (!n_tokens || n_chunks >= UINT32_MAX)
        return bt_fail(err, BT_E_INVALID, "token_budget is %llu, must be 1 to %llu",
                       (unsigned long long)n_tokens,
                       (unsigned long long)(UINT32_MAX - 1ull) * BT_CHUNK_TOKENS);
    /* calloc of this size is untouched zero pages: idle memory stays small. */
    store->chunks = calloc(n_chunks + 1, sizeof *store->chunks);
    if (!store->chunks)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a token budget of %llu tokens",
                       (unsigned long long)n_tokens);
    store->n_chunks = (uint32_t)n_chunks;
    return BT_OK;
}

void bt_token_store_fini(struct bt_token_store *store) {
    free(store->chunks);
    *store = (struct bt_token_store){0};
}

uint32_t bt_token_store_chunks_for(uint64_t n_tokens) {
    uint64_t n = (n_tokens + BT_CHUNK_TOKENS - 1) / BT_CHUNK_TOKENS;
    return n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

bool bt_token_store_reserve(struct bt_token_store *store, uint32_t n_chunks) {
    if (n_chunks > store->n_chunks - store->n_reserved)
        return false;
    store->n_reserved += n_chunks;
    return true;
}

static uint32_t take_chunk(struct bt_token_store *store) {
    uint32_t chunk = store->first_free;
    if (chunk) {
        store->first_free = store->chunks[chunk].next;
        store->n_free--;
    } else {
        BT_ASSERT(store->n_touched < store->n_chunks);
        chunk = ++store->n_touched;
    }
    store->chunks[chunk].next = 0;
    return chunk;
}

void bt_token_store_append(struct bt_token_store *store, uint32_t *first, uint32_t *last,
                           uint32_t n_before, int32_t token) {
    uint32_t at = n_before % BT_CHUNK_TOKENS;
    if (!at) {
        uint32_t chunk = take_chunk(store);
        if (n_before)
            store->chunks[*last].next = chunk;
        else
            *first = chunk;
        *last = chunk;
    }
    store->chunks[*last].tokens[at] = token;
}

void bt_token_store_copy(const struct bt_token_store *store, uint32_t first, uint32_t n,
                         int32_t *out) {
    for (uint32_t chunk = first, i = 0; i < n; chunk = store->chunks[chunk].next) {
        uint32_t part = n - i < BT_CHUNK_TOKENS ? n - i : BT_CHUNK_TOKENS;
        memcpy(out + i, store->chunks[chunk].tokens, part * sizeof *out);
        i += part;
    }
}

void bt_token_store_release(struct bt_token_store *store, uint32_t first, uint32_t last,
                            uint32_t n_tokens, uint32_t n_reserved) {
    uint32_t n_used = bt_token_store_chunks_for(n_tokens);
    BT_ASSERT(n_used <= n_reserved && n_reserved <= store->n_reserved);
    if (n_used) {
        store->chunks[last].next = store->first_free;
        store->first_free = first;
        store->n_free += n_used;
    }
    store->n_reserved -= n_reserved;
}

uint32_t bt_token_store_used(const struct bt_token_store *store) {
    return store->n_touched - store->n_free;
}

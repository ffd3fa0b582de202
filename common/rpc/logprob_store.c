/* Puts rows of logprobs in chunks: promised when a job opens, taken as rows come, given back at the
 * end. */
#include "common/rpc/logprob_store.h"

#include <string.h>

#include "common/base/assert.h"

/* A row: its number of likeliest tokens, its own logprob, then each token with its logprob. */
static uint32_t row_words(uint32_t n_top) {
    return 2 + 2 * n_top;
}

static uint32_t rows_of_chunk(uint32_t n_top) {
    return BT_LOGPROB_CHUNK_WORDS / row_words(n_top);
}

bt_status bt_logprob_store_init(struct bt_logprob_store *store, uint64_t n_chunks,
                                struct bt_error *err) {
    return bt_chunk_pool_init(&store->pool, n_chunks, BT_LOGPROB_CHUNK_WORDS, err);
}

void bt_logprob_store_fini(struct bt_logprob_store *store) {
    bt_chunk_pool_fini(&store->pool);
}

uint32_t bt_logprob_store_chunks_for(uint64_t n_rows, uint32_t n_top) {
    return bt_chunk_pool_chunks_for(n_rows, rows_of_chunk(n_top));
}

bool bt_logprob_store_open(struct bt_logprob_store *store, struct bt_logprob_chain *chain,
                           uint32_t n_rows, uint32_t n_top) {
    BT_ASSERT(!chain->is_open && n_top <= BT_TOP_LOGPROBS);
    uint32_t n_chunks = bt_logprob_store_chunks_for(n_rows, n_top);
    if (!bt_chunk_pool_reserve(&store->pool, n_chunks))
        return false;
    *chain =
        (struct bt_logprob_chain){.is_open = true, .n_top = (uint8_t)n_top, .n_reserved = n_chunks};
    return true;
}

static uint32_t *row_at(const struct bt_logprob_store *store, const struct bt_logprob_chain *chain,
                        uint32_t chunk, uint32_t at) {
    return bt_chunk_pool_words(&store->pool, chunk) + (size_t)at * row_words(chain->n_top);
}

void bt_logprob_store_append(struct bt_logprob_store *store, struct bt_logprob_chain *chain,
                             const struct bt_logprobs *row) {
    BT_ASSERT(chain->is_open && row->n_top <= chain->n_top);
    uint32_t at = chain->n_rows % rows_of_chunk(chain->n_top);
    if (!at) {
        BT_ASSERT(chain->n_rows / rows_of_chunk(chain->n_top) < chain->n_reserved);
        bt_chunk_pool_extend(&store->pool, &chain->first, &chain->last);
    }
    uint32_t *to = row_at(store, chain, chain->last, at);
    *to++ = row->n_top;
    memcpy(to++, &row->logprob, sizeof *to);
    for (uint32_t i = 0; i < row->n_top; i++) {
        *to++ = (uint32_t)row->top[i].token;
        memcpy(to++, &row->top[i].logprob, sizeof *to);
    }
    chain->n_rows++;
}

void bt_logprob_store_seek(const struct bt_logprob_store *store, struct bt_logprob_chain *chain,
                           uint32_t row) {
    BT_ASSERT(chain->is_open && row <= chain->n_rows);
    chain->n_read = row;
    chain->read_chunk = row ? chain->first : 0;
    /* A row at the start of a chunk still has the one before: reading goes on to it. */
    for (uint32_t i = row ? (row - 1) / rows_of_chunk(chain->n_top) : 0; i > 0; i--)
        chain->read_chunk = bt_chunk_pool_next(&store->pool, chain->read_chunk);
}

void bt_logprob_store_read(const struct bt_logprob_store *store, struct bt_logprob_chain *chain,
                           struct bt_logprobs *out) {
    BT_ASSERT(chain->is_open && chain->n_read < chain->n_rows);
    uint32_t at = chain->n_read % rows_of_chunk(chain->n_top);
    if (!at)
        chain->read_chunk =
            chain->n_read ? bt_chunk_pool_next(&store->pool, chain->read_chunk) : chain->first;
    const uint32_t *from = row_at(store, chain, chain->read_chunk, at);
    *out = (struct bt_logprobs){.n_top = (uint8_t)*from++};
    memcpy(&out->logprob, from++, sizeof out->logprob);
    for (uint32_t i = 0; i < out->n_top; i++) {
        out->top[i].token = (int32_t)*from++;
        memcpy(&out->top[i].logprob, from++, sizeof out->top[i].logprob);
    }
    chain->n_read++;
}

void bt_logprob_store_close(struct bt_logprob_store *store, struct bt_logprob_chain *chain) {
    if (!chain->is_open)
        return;
    bt_chunk_pool_release(&store->pool, chain->first, chain->last,
                          bt_logprob_store_chunks_for(chain->n_rows, chain->n_top),
                          chain->n_reserved);
    *chain = (struct bt_logprob_chain){0};
}

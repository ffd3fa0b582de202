/* The chunks of the logprob store: promised when a job opens, taken as rows come, given back at the
 * end. */
#include "common/rpc/logprob_store.h"

#include <stdlib.h>
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
    *store = (struct bt_logprob_store){0};
    /* calloc of this size is untouched zero pages: idle memory stays small. */
    if (n_chunks < UINT32_MAX)
        store->chunks = calloc(n_chunks + 1, sizeof *store->chunks);
    if (!store->chunks)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for logprobs: %llu chunks of %zu bytes",
                       (unsigned long long)n_chunks, sizeof *store->chunks);
    store->n_chunks = (uint32_t)n_chunks;
    return BT_OK;
}

void bt_logprob_store_fini(struct bt_logprob_store *store) {
    free(store->chunks);
    *store = (struct bt_logprob_store){0};
}

uint32_t bt_logprob_store_chunks_for(uint64_t n_rows, uint32_t n_top) {
    uint32_t in_one = rows_of_chunk(n_top);
    uint64_t n = (n_rows + in_one - 1) / in_one;
    return n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

bool bt_logprob_store_open(struct bt_logprob_store *store, struct bt_logprob_chain *chain,
                           uint32_t n_rows, uint32_t n_top) {
    BT_ASSERT(!chain->is_open && n_top <= BT_TOP_LOGPROBS);
    uint32_t n_chunks = bt_logprob_store_chunks_for(n_rows, n_top);
    if (n_chunks > store->n_chunks - store->n_reserved)
        return false;
    store->n_reserved += n_chunks;
    *chain =
        (struct bt_logprob_chain){.is_open = true, .n_top = (uint8_t)n_top, .n_reserved = n_chunks};
    return true;
}

static uint32_t take_chunk(struct bt_logprob_store *store) {
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

void bt_logprob_store_append(struct bt_logprob_store *store, struct bt_logprob_chain *chain,
                             const struct bt_logprobs *row) {
    BT_ASSERT(chain->is_open && row->n_top <= chain->n_top);
    uint32_t at = chain->n_rows % rows_of_chunk(chain->n_top);
    if (!at) {
        BT_ASSERT(chain->n_rows / rows_of_chunk(chain->n_top) < chain->n_reserved);
        uint32_t chunk = take_chunk(store);
        if (chain->first)
            store->chunks[chain->last].next = chunk;
        else
            chain->first = chunk;
        chain->last = chunk;
    }
    uint32_t *to = store->chunks[chain->last].words + (size_t)at * row_words(chain->n_top);
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
        chain->read_chunk = store->chunks[chain->read_chunk].next;
}

void bt_logprob_store_read(const struct bt_logprob_store *store, struct bt_logprob_chain *chain,
                           struct bt_logprobs *out) {
    BT_ASSERT(chain->is_open && chain->n_read < chain->n_rows);
    uint32_t at = chain->n_read % rows_of_chunk(chain->n_top);
    if (!at)
        chain->read_chunk = chain->n_read ? store->chunks[chain->read_chunk].next : chain->first;
    const uint32_t *from =
        store->chunks[chain->read_chunk].words + (size_t)at * row_words(chain->n_top);
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
    uint32_t n_used = bt_logprob_store_chunks_for(chain->n_rows, chain->n_top);
    BT_ASSERT(n_used <= chain->n_reserved && chain->n_reserved <= store->n_reserved);
    if (n_used) {
        store->chunks[chain->last].next = store->first_free;
        store->first_free = chain->first;
        store->n_free += n_used;
    }
    store->n_reserved -= chain->n_reserved;
    *chain = (struct bt_logprob_chain){0};
}

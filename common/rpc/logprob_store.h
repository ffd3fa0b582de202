/* Holds rows of logprobs of a worker's jobs in chained chunks of fixed number.
 *
 * A chain promises its chunks when it is opened, so that appending never fails. A row takes what
 * its chain shows, not what the widest would. Memory is fixed at init and touched only as it is
 * used (common/base/chunk_pool.h). Owned by the ledger. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/chunk_pool.h"
#include "common/base/sampling.h"

enum { BT_LOGPROB_CHUNK_WORDS = 255 }; /* of 4 bytes, beside the link */

struct bt_logprob_store {
    struct bt_chunk_pool pool;
};

/* The rows of one job, and how far they were read. Zeroed is closed. */
struct bt_logprob_chain {
    bool is_open;
    uint8_t n_top;        /* most that a row shows */
    uint32_t n_reserved;  /* chunks */
    uint32_t first, last; /* chunks; 0: none */
    uint32_t n_rows;
    uint32_t n_read, read_chunk; /* the next row to be read, and its chunk once there is one */
};

bt_status bt_logprob_store_init(struct bt_logprob_store *store, uint64_t n_chunks,
                                struct bt_error *err);
void bt_logprob_store_fini(struct bt_logprob_store *store); /* accepts a zeroed one */

uint32_t bt_logprob_store_chunks_for(uint64_t n_rows, uint32_t n_top);
/* Promises n_rows rows with at most n_top likeliest each; false, and nothing is promised, when so
 * many chunks are not left. */
bool bt_logprob_store_open(struct bt_logprob_store *store, struct bt_logprob_chain *chain,
                           uint32_t n_rows, uint32_t n_top);
/* Within the promise. */
void bt_logprob_store_append(struct bt_logprob_store *store, struct bt_logprob_chain *chain,
                             const struct bt_logprobs *row);
/* The next row read is this one; at most n_rows. */
void bt_logprob_store_seek(const struct bt_logprob_store *store, struct bt_logprob_chain *chain,
                           uint32_t row);
/* There must be one. */
void bt_logprob_store_read(const struct bt_logprob_store *store, struct bt_logprob_chain *chain,
                           struct bt_logprobs *out);
/* Gives rows and promise back; a closed one is accepted. */
void bt_logprob_store_close(struct bt_logprob_store *store, struct bt_logprob_chain *chain);

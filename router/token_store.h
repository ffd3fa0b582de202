/* Holds the prompt and emitted tokens of all live requests in chained chunks of fixed number.
 *
 * A request promises its chunks at admission (reserve), so that appending never fails. Memory is
 * fixed at init and touched only as it is used (common/base/chunk_pool.h). */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/chunk_pool.h"

enum { BT_CHUNK_TOKENS = 31 };

struct bt_token_store {
    struct bt_chunk_pool pool;
};

bt_status bt_token_store_init(struct bt_token_store *store, uint64_t n_tokens,
                              struct bt_error *err);
void bt_token_store_fini(struct bt_token_store *store);

uint32_t bt_token_store_chunks_for(uint64_t n_tokens);
/* False, and nothing is promised, when so many are not left. */
bool bt_token_store_reserve(struct bt_token_store *store, uint32_t n_chunks);
/* Puts token number n_before at the end of a chain, which is 0, 0 before its first. The chain must
 * have a chunk left in its promise. */
void bt_token_store_append(struct bt_token_store *store, uint32_t *first, uint32_t *last,
                           uint32_t n_before, int32_t token);
/* Copies the first n tokens of a chain. */
void bt_token_store_copy(const struct bt_token_store *store, uint32_t first, uint32_t n,
                         int32_t *out);
/* Gives a chain and its promise of n_reserved chunks back. */
void bt_token_store_release(struct bt_token_store *store, uint32_t first, uint32_t last,
                            uint32_t n_tokens, uint32_t n_reserved);
uint32_t bt_token_store_used(const struct bt_token_store *store);

/* Chained hashes of a prompt's 16-token blocks: the key of the prefix index, the same on router and
 * workers. */
#pragma once
#include <stdint.h>

#include "common/base/id.h"
#include "common/base/limits.h"

/* The root of a chain: prompts of different tenants, models or numerics never share a hash. tenant
 * may be empty. */
struct bt_id bt_block_root(const char *tenant, uint64_t fingerprint_hash);

/* hash[i] = XXH3-128(hash[i-1], BT_PAGE_TOKENS token ids, little-endian). */
struct bt_id bt_block_next(struct bt_id previous, const int32_t tokens[BT_PAGE_TOKENS]);

/* Hash of a whole prompt, its unfinished last block included: what hello and commit carry as proof
 * of the prompt. */
struct bt_id bt_block_prompt(struct bt_id root, const int32_t *tokens, uint32_t n_tokens);

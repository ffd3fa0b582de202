/* Finds the page that holds a finished block: the prefix index over chained block hashes.
 *
 * A part of the page pool (kv_pool.c), which owns it and knows the pages' states; here a page is
 * only a number. A block is found by its hash and believed only if its 16 token ids are equal and
 * its parent is the very page that holds the block before it (for the first block: the root is
 * equal in all 128 bits), so a collision costs a comparison and never a wrong token. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/id.h"
#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/kv/kv_pool.h"

enum { BT_KV_NO_PAGE = UINT32_MAX };

/* What the index knows of one page. */
struct bt_kv_block {
    struct bt_id hash;     /* bt_block_next(previous, tokens) */
    struct bt_id previous; /* hash of the parent's block, or the root */
    int32_t tokens[BT_PAGE_TOKENS];
    uint32_t parent; /* page, BT_KV_NO_PAGE for a first block */
    uint32_t first_child, next_sibling, previous_sibling;
    uint32_t next_in_bucket;
    bool entered;
};

struct bt_kv_index {
    struct bt_kv_block *blocks; /* [n_pages] */
    uint32_t *buckets;          /* [n_buckets], first page of each */
    struct bt_kv_change *changes;
    uint32_t n_pages, n_buckets, n_changes; /* the last two are powers of two */
    uint32_t n_entered;
    uint64_t change_head, change_tail;
    bool changes_lost;
};

bt_status bt_kv_index_init(struct bt_kv_index *index, uint32_t n_pages, uint32_t n_changes,
                           struct bt_error *err);
void bt_kv_index_fini(struct bt_kv_index *index);

/* The page of the block, or BT_KV_NO_PAGE. */
uint32_t bt_kv_index_find(const struct bt_kv_index *index, uint32_t parent, struct bt_id previous,
                          struct bt_id hash, const int32_t tokens[BT_PAGE_TOKENS]);
/* The block must not be there, its parent must. */
void bt_kv_index_enter(struct bt_kv_index *index, uint32_t page, uint32_t parent,
                       struct bt_id previous, struct bt_id hash,
                       const int32_t tokens[BT_PAGE_TOKENS]);
/* Takes out a block without children. */
void bt_kv_index_remove(struct bt_kv_index *index, uint32_t page);
/* A block without children at or below page. */
uint32_t bt_kv_index_leaf(const struct bt_kv_index *index, uint32_t page);

bool bt_kv_index_is_valid(const struct bt_kv_index *index);

/* Which workers hold which prompt blocks: one flat table from chained block hash to a set of
 * workers.
 *
 * The chain is in the hash, so no tree is needed: the walk of a prompt stops at the first block
 * that nobody holds. What it says is a hint, exact up to delivery; the workers confirm by token
 * ids. Memory is fixed at init; past 7/8 full new blocks are dropped and counted. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/id.h"
#include "common/base/limits.h"
#include "common/base/status.h"

struct bt_prefix_slot {
    uint64_t hash;
    uint64_t workers; /* bit i: worker i; 0: the slot is free */
};

struct bt_prefix_table {
    struct bt_prefix_slot *slots;
    uint32_t n_slots; /* a power of two */
    uint32_t n_used;
    uint32_t n_of[BT_MAX_WORKERS]; /* blocks of each worker */
    uint64_t n_dropped;
};

/* n_slots: a power of two, 16 to 2^26. */
bt_status bt_prefix_table_init(struct bt_prefix_table *table, uint32_t n_slots,
                               struct bt_error *err);
void bt_prefix_table_fini(struct bt_prefix_table *table);

void bt_prefix_table_add(struct bt_prefix_table *table, uint64_t hash, uint32_t worker);
void bt_prefix_table_remove(struct bt_prefix_table *table, uint64_t hash, uint32_t worker);
/* All blocks of one worker; one pass over the table, nothing when it has none. */
void bt_prefix_table_forget(struct bt_prefix_table *table, uint32_t worker);

/* depth[w] = how many blocks from the prompt's start worker w holds without a hole. root begins the
 * chain (bt_block_root). */
void bt_prefix_table_walk(const struct bt_prefix_table *table, struct bt_id root,
                          const int32_t *tokens, uint32_t n_tokens, uint32_t depth[BT_MAX_WORKERS]);
/* Reads the whole table: for the simulator. */
bool bt_prefix_table_is_valid(const struct bt_prefix_table *table);

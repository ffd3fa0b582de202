/* Open addressing with linear probing; a removal moves later blocks back, so no markers remain. */
#include "router/prefix_table.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/base/block_hash.h"

bt_status bt_prefix_table_init(struct bt_prefix_table *table, uint32_t n_slots,
                               struct bt_error *err) {
    *table = (struct bt_prefix_table){0};
    if (n_slots < 16 || n_slots > 1u << 26 || (n_slots & (n_slots - 1)))
        return bt_fail(err, BT_E_INVALID,
                       "prefix_slots is %u, must be a power of two from 16 to %u", n_slots,
                       1u << 26);
    table->slots = calloc(n_slots, sizeof *table->slots);
    if (!table->slots)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u prefix slots", n_slots);
    table->n_slots = n_slots;
    return BT_OK;
}

void bt_prefix_table_fini(struct bt_prefix_table *table) {
    free(table->slots);
    *table = (struct bt_prefix_table){0};
}

/* The hashes come from workers: a multiplication spreads what a hostile one may have chosen to
 * share its low bits. */
static uint32_t home(const struct bt_prefix_table *table, uint64_t hash) {
    return (uint32_t)((hash * 0x9e3779b97f4a7c15ull) >> 32) & (table->n_slots - 1);
}

/* The slot of this hash, or the free one where it would stand. */
static uint32_t find(const struct bt_prefix_table *table, uint64_t hash) {
    uint32_t at = home(table, hash);
    while (table->slots[at].workers && table->slots[at].hash != hash)
        at = (at + 1) & (table->n_slots - 1);
    return at;
}

static void erase(struct bt_prefix_table *table, uint32_t at) {
    uint32_t mask = table->n_slots - 1, hole = at;
    for (uint32_t next = (at + 1) & mask; table->slots[next].workers; next = (next + 1) & mask) {
        /* It may move into the hole if its home is not after the hole, going round. */
        uint32_t from = home(table, table->slots[next].hash);
        if (((next - from) & mask) >= ((next - hole) & mask)) {
            table->slots[hole] = table->slots[next];
            hole = next;
        }
    }
    table->slots[hole] = (struct bt_prefix_slot){0};
    table->n_used--;
}

void bt_prefix_table_add(struct bt_prefix_table *table, uint64_t hash, uint32_t worker) {
    BT_ASSERT(worker < BT_MAX_WORKERS);
    uint32_t at = find(table, hash);
    struct bt_prefix_slot *slot = &table->slots[at];
    if (!slot->workers) {
        if (table->n_used >= table->n_slots / 8 * 7) {
            table->n_dropped++;
            return;
        }
        slot->hash = hash;
        table->n_used++;
    }
    if (!(slot->workers >> worker & 1)) {
        slot->workers |= 1ull << worker;
        table->n_of[worker]++;
    }
}

void bt_prefix_table_remove(struct bt_prefix_table *table, uint64_t hash, uint32_t worker) {
    BT_ASSERT(worker < BT_MAX_WORKERS);
    uint32_t at = find(table, hash);
    struct bt_prefix_slot *slot = &table->slots[at];
    if (!(slot->workers >> worker & 1))
        return;
    slot->workers &= ~(1ull << worker);
    table->n_of[worker]--;
    if (!slot->workers)
        erase(table, at);
}

void bt_prefix_table_forget(struct bt_prefix_table *table, uint32_t worker) {
    BT_ASSERT(worker < BT_MAX_WORKERS);
    uint64_t bit = 1ull << worker;
    for (uint32_t at = 0; at < table->n_slots && table->n_of[worker];) {
        struct bt_prefix_slot *slot = &table->slots[at];
        if (slot->workers & bit) {
            slot->workers &= ~bit;
            table->n_of[worker]--;
            if (!slot->workers) {
                /* Another block may have moved here: look at this slot again. */
                erase(table, at);
                continue;
            }
        }
        at++;
    }
    /* A move never takes a block from ahead of `at` to behind it: what moves round the table's end
     * was looked at before. */
    BT_ASSERT(!table->n_of[worker]);
}

void bt_prefix_table_walk(const struct bt_prefix_table *table, struct bt_id root,
                          const int32_t *tokens, uint32_t n_tokens,
                          uint32_t depth[BT_MAX_WORKERS]) {
    memset(depth, 0, BT_MAX_WORKERS * sizeof *depth);
    uint64_t holders = UINT64_MAX;
    struct bt_id hash = root;
    for (uint32_t i = 0; i < n_tokens / BT_PAGE_TOKENS && holders; i++) {
        hash = bt_block_next(hash, tokens + (uint64_t)i * BT_PAGE_TOKENS);
        uint64_t here = table->slots[find(table, hash.lo)].workers & holders;
        for (uint64_t gone = i ? holders & ~here : 0; gone; gone &= gone - 1)
            depth[__builtin_ctzll(gone)] = i;
        holders = here;
    }
    for (; holders && holders != UINT64_MAX; holders &= holders - 1)
        depth[__builtin_ctzll(holders)] = n_tokens / BT_PAGE_TOKENS;
    /* All 64 workers hold all of it. */
    for (uint32_t w = 0; holders == UINT64_MAX && n_tokens >= BT_PAGE_TOKENS && w < 64; w++)
        depth[w] = n_tokens / BT_PAGE_TOKENS;
}

bool bt_prefix_table_is_valid(const struct bt_prefix_table *table) {
    uint32_t n_used = 0, n_of[BT_MAX_WORKERS] = {0};
    for (uint32_t at = 0; at < table->n_slots; at++) {
        uint64_t workers = table->slots[at].workers;
        if (!workers)
            continue;
        n_used++;
        if (find(table, table->slots[at].hash) != at)
            return false;
        for (; workers; workers &= workers - 1)
            n_of[__builtin_ctzll(workers)]++;
    }
    return n_used == table->n_used && n_used <= table->n_slots / 8 * 7 &&
           !memcmp(n_of, table->n_of, sizeof n_of);
}

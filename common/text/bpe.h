/* Merges the byte tokens of a word, best rank first: the core of byte-pair encoding. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

/* Hash table of merges, keyed by the pair of ids; immutable once filled. */
struct bt_bpe {
    struct bt_bpe_merge *slots;
    uint32_t mask; /* number of slots - 1 */
};

struct bt_bpe_merge {
    int32_t left, right;
    int32_t merged;
    uint32_t rank; /* 0 is merged first; BT_BPE_NONE marks an empty slot */
};

enum { BT_BPE_NONE = 0x7fffffff };

bt_status bt_bpe_init(struct bt_bpe *bpe, uint32_t n_merges, struct bt_error *err);
void bt_bpe_fini(struct bt_bpe *bpe);
/* At most n_merges calls. Of a pair given twice the first stays. */
void bt_bpe_add(struct bt_bpe *bpe, int32_t left, int32_t right, int32_t merged, uint32_t rank);

/* Working memory of one thread; zeroed to begin with. */
struct bt_bpe_scratch {
    struct bt_bpe_symbol *symbols;
    uint64_t *heap;
    size_t capacity; /* symbols; the heap has room for three times as many */
};

void bt_bpe_scratch_fini(struct bt_bpe_scratch *scratch);
/* Merges ids[n] in place and returns how many are left; n log n. scratch must have been reserved
 * for n. */
size_t bt_bpe_run(const struct bt_bpe *bpe, struct bt_bpe_scratch *scratch, int32_t *ids, size_t n);
bt_status bt_bpe_scratch_reserve(struct bt_bpe_scratch *scratch, size_t n, struct bt_error *err);

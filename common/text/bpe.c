/* A linked list of symbols and a heap of possible merges, ordered by rank, then from the left. */
#include "common/text/bpe.h"

#include <stdlib.h>

enum { NONE = BT_BPE_NONE };

struct bt_bpe_symbol {
    int32_t id; /* -1: merged into its left neighbour */
    int32_t previous, next;
    uint32_t rank; /* of the pair (this, next); NONE: they do not merge */
    int32_t merged;
};

static uint32_t hash_pair(int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    key *= 0x9e3779b97f4a7c15u; /* 2^64 / golden ratio (Knuth, multiplicative hashing) */
    return (uint32_t)(key >> 32) ^ (uint32_t)(key >> 15);
}

bt_status bt_bpe_init(struct bt_bpe *bpe, uint32_t n_merges, struct bt_error *err) {
    uint32_t n_slots = 16;
    while (n_slots < 2 * (uint64_t)n_merges)
        n_slots *= 2;
    *bpe = (struct bt_bpe){.mask = n_slots - 1, .slots = malloc(n_slots * sizeof *bpe->slots)};
    if (!bpe->slots)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u merges", n_merges);
    for (uint32_t i = 0; i < n_slots; i++)
        bpe->slots[i].rank = NONE;
    return BT_OK;
}

void bt_bpe_fini(struct bt_bpe *bpe) {
    free(bpe->slots);
    *bpe = (struct bt_bpe){0};
}

void bt_bpe_add(struct bt_bpe *bpe, int32_t left, int32_t right, int32_t merged, uint32_t rank) {
    uint32_t i = hash_pair(left, right) & bpe->mask;
    for (; bpe->slots[i].rank != NONE; i = (i + 1) & bpe->mask)
        if (bpe->slots[i].left == left && bpe->slots[i].right == right)
            return;
    bpe->slots[i] = (struct bt_bpe_merge){left, right, merged, rank};
}

void bt_bpe_scratch_fini(struct bt_bpe_scratch *scratch) {
    free(scratch->symbols);
    free(scratch->heap);
    *scratch = (struct bt_bpe_scratch){0};
}

bt_status bt_bpe_scratch_reserve(struct bt_bpe_scratch *scratch, size_t n, struct bt_error *err) {
    if (n <= scratch->capacity)
        return BT_OK;
    size_t capacity = 256;
    while (capacity < n)
        capacity *= 2;
    bt_bpe_scratch_fini(scratch);
    scratch->symbols = malloc(capacity * sizeof *scratch->symbols);
    scratch->heap = malloc(capacity * 3 * sizeof *scratch->heap);
    if (!scratch->symbols || !scratch->heap) {
        bt_bpe_scratch_fini(scratch);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a word of %zu bytes", n);
    }
    scratch->capacity = capacity;
    return BT_OK;
}

static void push(uint64_t *heap, size_t *n, uint64_t key) {
    size_t i = (*n)++;
    for (; i && heap[(i - 1) / 2] > key; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = key;
}

static uint64_t pop(uint64_t *heap, size_t *n) {
    uint64_t top = heap[0], key = heap[--*n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < *n; i = child) {
        if (child + 1 < *n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= key)
            break;
        heap[i] = heap[child];
    }
    heap[i] = key;
    return top;
}

/* Looks up the pair (s, its right neighbour) and offers it to the heap. */
static void consider(const struct bt_bpe *bpe, struct bt_bpe_scratch *scratch, size_t *n_heap,
                     int32_t i) {
    struct bt_bpe_symbol *s = &scratch->symbols[i];
    s->rank = NONE;
    if (s->next < 0)
        return;
    int32_t right = scratch->symbols[s->next].id;
    uint32_t slot = hash_pair(s->id, right) & bpe->mask;
    for (; bpe->slots[slot].rank != NONE; slot = (slot + 1) & bpe->mask) {
        const struct bt_bpe_merge *m = &bpe->slots[slot];
        if (m->left != s->id || m->right != right)
            continue;
        s->rank = m->rank;
        s->merged = m->merged;
        push(scratch->heap, n_heap, (uint64_t)m->rank << 32 | (uint32_t)i);
        return;
    }
}

size_t bt_bpe_run(const struct bt_bpe *bpe, struct bt_bpe_scratch *scratch, int32_t *ids,
                  size_t n) {
    if (n < 2)
        return n;
    struct bt_bpe_symbol *symbols = scratch->symbols;
    size_t n_heap = 0;
    for (size_t i = 0; i < n; i++) {
        symbols[i].id = ids[i];
        symbols[i].previous = (int32_t)i - 1;
        symbols[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i < n; i++)
        consider(bpe, scratch, &n_heap, (int32_t)i);
    while (n_heap) {
        uint64_t key = pop(scratch->heap, &n_heap);
        struct bt_bpe_symbol *s = &symbols[(uint32_t)key];
        /* An entry is stale if its symbol is gone or has other neighbours; the same rank means the
         * same pair. */
        if (s->id < 0 || s->rank != key >> 32)
            continue;
        struct bt_bpe_symbol *right = &symbols[s->next];
        s->id = s->merged;
        s->next = right->next;
        right->id = -1;
        if (s->next >= 0)
            symbols[s->next].previous = (int32_t)(uint32_t)key;
        consider(bpe, scratch, &n_heap, (int32_t)(uint32_t)key);
        if (s->previous >= 0)
            consider(bpe, scratch, &n_heap, s->previous);
    }
    size_t n_left = 0;
    for (int32_t i = 0; i >= 0; i = symbols[i].next)
        ids[n_left++] = symbols[i].id;
    return n_left;
}

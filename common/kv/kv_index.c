/* Keeps the prefix index: a chained hash table of blocks that know their parents and children. */
#include "common/kv/kv_index.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"

bt_status bt_kv_index_init(struct bt_kv_index *index, uint32_t n_pages, uint32_t n_changes,
                           struct bt_error *err) {
    memset(index, 0, sizeof *index);
    uint32_t n_buckets = 1;
    while (n_buckets < n_pages)
        n_buckets *= 2;
    index->blocks = calloc(n_pages, sizeof *index->blocks);
    index->buckets = calloc(n_buckets, sizeof *index->buckets);
    index->changes = calloc(n_changes, sizeof *index->changes);
    if (!index->blocks || !index->buckets || !index->changes) {
        bt_kv_index_fini(index);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for the prefix index of %u pages", n_pages);
    }
    for (uint32_t i = 0; i < n_buckets; i++)
        index->buckets[i] = BT_KV_NO_PAGE;
    index->n_pages = n_pages;
    index->n_buckets = n_buckets;
    index->n_changes = n_changes;
    return BT_OK;
}

void bt_kv_index_fini(struct bt_kv_index *index) {
    free(index->blocks);
    free(index->buckets);
    free(index->changes);
    memset(index, 0, sizeof *index);
}

/* Nobody has asked for a while and more happened than the log holds: what is pending is useless
 * without the rest, and a census replaces it. */
static void log_change(struct bt_kv_index *index, bool added, uint64_t hash) {
    if (index->changes_lost)
        return;
    if (index->change_head - index->change_tail == index->n_changes) {
        index->changes_lost = true;
        index->change_tail = index->change_head;
        return;
    }
    index->changes[index->change_head++ & (index->n_changes - 1)] =
        (struct bt_kv_change){.added = added, .hash = hash};
}

static uint32_t *bucket_of(const struct bt_kv_index *index, struct bt_id hash) {
    return &index->buckets[hash.lo & (index->n_buckets - 1)];
}

uint32_t bt_kv_index_find(const struct bt_kv_index *index, uint32_t parent, struct bt_id previous,
                          struct bt_id hash, const int32_t tokens[BT_PAGE_TOKENS]) {
    uint32_t page = *bucket_of(index, hash);
    while (page != BT_KV_NO_PAGE) {
        const struct bt_kv_block *block = &index->blocks[page];
        if (bt_id_equal(block->hash, hash) && block->parent == parent &&
            bt_id_equal(block->previous, previous) &&
            !memcmp(block->tokens, tokens, sizeof block->tokens))
            return page;
        page = block->next_in_bucket;
    }
    return BT_KV_NO_PAGE;
}

void bt_kv_index_enter(struct bt_kv_index *index, uint32_t page, uint32_t parent,
                       struct bt_id previous, struct bt_id hash,
                       const int32_t tokens[BT_PAGE_TOKENS]) {
    struct bt_kv_block *block = &index->blocks[page];
    BT_ASSERT(page < index->n_pages && !block->entered && parent != page);
    uint32_t *bucket = bucket_of(index, hash);
    *block = (struct bt_kv_block){
        .hash = hash,
        .previous = previous,
        .parent = parent,
        .first_child = BT_KV_NO_PAGE,
        .next_sibling = BT_KV_NO_PAGE,
        .previous_sibling = BT_KV_NO_PAGE,
        .next_in_bucket = *bucket,
        .entered = true,
    };
    memcpy(block->tokens, tokens, sizeof block->tokens);
    *bucket = page;
    if (parent != BT_KV_NO_PAGE) {
        struct bt_kv_block *above = &index->blocks[parent];
        BT_ASSERT(above->entered && bt_id_equal(above->hash, previous));
        block->next_sibling = above->first_child;
        if (above->first_child != BT_KV_NO_PAGE)
            index->blocks[above->first_child].previous_sibling = page;
        above->first_child = page;
    }
    index->n_entered++;
    log_change(index, true, hash.lo);
}

static void leave_siblings(struct bt_kv_index *index, struct bt_kv_block *block) {
    if (block->parent == BT_KV_NO_PAGE)
        return;
    if (block->previous_sibling != BT_KV_NO_PAGE)
        index->blocks[block->previous_sibling].next_sibling = block->next_sibling;
    else
        index->blocks[block->parent].first_child = block->next_sibling;
    if (block->next_sibling != BT_KV_NO_PAGE)
        index->blocks[block->next_sibling].previous_sibling = block->previous_sibling;
}

void bt_kv_index_remove(struct bt_kv_index *index, uint32_t page) {
    struct bt_kv_block *block = &index->blocks[page];
    BT_ASSERT(block->entered && block->first_child == BT_KV_NO_PAGE);
    uint32_t *at = bucket_of(index, block->hash);
    while (*at != page) {
        BT_ASSERT(*at != BT_KV_NO_PAGE);
        at = &index->blocks[*at].next_in_bucket;
    }
    *at = block->next_in_bucket;
    leave_siblings(index, block);
    block->entered = false;
    index->n_entered--;
    log_change(index, false, block->hash.lo);
}

uint32_t bt_kv_index_leaf(const struct bt_kv_index *index, uint32_t page) {
    while (index->blocks[page].first_child != BT_KV_NO_PAGE)
        page = index->blocks[page].first_child;
    return page;
}

static bool block_is_valid(const struct bt_kv_index *index, uint32_t page) {
    const struct bt_kv_block *block = &index->blocks[page];
    if (bt_kv_index_find(index, block->parent, block->previous, block->hash, block->tokens) != page)
        return false;
    uint32_t before = BT_KV_NO_PAGE;
    for (uint32_t child = block->first_child; child != BT_KV_NO_PAGE;) {
        const struct bt_kv_block *below = &index->blocks[child];
        if (!below->entered || below->parent != page || below->previous_sibling != before ||
            !bt_id_equal(below->previous, block->hash))
            return false;
        before = child;
        child = below->next_sibling;
    }
    return block->parent == BT_KV_NO_PAGE || index->blocks[block->parent].entered;
}

bool bt_kv_index_is_valid(const struct bt_kv_index *index) {
    uint32_t n_entered = 0, n_in_buckets = 0;
    for (uint32_t page = 0; page < index->n_pages; page++) {
        if (!index->blocks[page].entered)
            continue;
        n_entered++;
        if (!block_is_valid(index, page))
            return false;
    }
    for (uint32_t i = 0; i < index->n_buckets; i++)
        for (uint32_t page = index->buckets[i]; page != BT_KV_NO_PAGE && n_in_buckets <= n_entered;
             page = index->blocks[page].next_in_bucket)
            n_in_buckets++;
    return n_entered == index->n_entered && n_in_buckets == n_entered &&
           index->change_head - index->change_tail <= index->n_changes;
}

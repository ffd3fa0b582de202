/* The pages of one worker's KV cache: each in exactly one state, with the index of finished blocks.
 *
 * Knows page ids, never bytes: the memory is the engine's (common/engine/kv_memory.h), the links
 * get it by a callback. Pure: no clock, no malloc after create. Owned by the worker's loop thread.
 *
 * A page goes free -> filling | armed -> (landed) -> live -> cached | free. What a sequence holds
 * of the pool is a struct bt_kv_hold; every end of it (success, abort, error, peer death) goes
 * through bt_kv_hold_release. `reserved` is a number, not a set of pages: pages promised and not
 * yet bound. Prefix sharing is by whole blocks of 16 tokens; a shared page is never written. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/census.h"
#include "common/base/id.h"
#include "common/base/limits.h"
#include "common/base/status.h"

enum bt_page_state {
    BT_PAGE_FREE, /* not bound; some of these are promised (reserved) */
    BT_PAGE_CACHED,
    BT_PAGE_FILLING,
    BT_PAGE_ARMED,
    BT_PAGE_LANDED,
    BT_PAGE_LIVE,
    BT_PAGE_QUARANTINED,
    BT_PAGE_STATE_COUNT,
};
const char *bt_page_state_name(enum bt_page_state state);

struct bt_kv_pool_config {
    uint32_t n_pages;   /* 1 .. 2^24 */
    uint32_t n_layers;  /* a checksum is kept for each (layer, page) */
    uint32_t n_changes; /* index changes remembered for bt_kv_pool_next_change; a power of two */
};

struct bt_kv_pool;

bt_status bt_kv_pool_create(const struct bt_kv_pool_config *config, struct bt_kv_pool **out,
                            struct bt_error *err);
void bt_kv_pool_destroy(struct bt_kv_pool *pool); /* NULL is fine */

/* ---- what one sequence holds ---- */

/* Open struct, embedded in its sequence. pages[i] is the page of positions 16 i .. 16 i + 15. The
 * first n_shared were found in the index. */
struct bt_kv_hold {
    uint32_t *pages; /* [capacity], the owner's memory */
    uint32_t capacity;
    uint32_t n_shared;
    uint32_t n_pages;    /* bound, the shared ones included */
    uint32_t n_reserved; /* promised by the pool to this hold and not yet bound */
};

/* Longest run of whole blocks of the prompt that is in the index, at most max_blocks. tokens has at
 * least max_blocks * 16 ids. Reads only. */
uint32_t bt_kv_pool_match(const struct bt_kv_pool *pool, struct bt_id root, const int32_t *tokens,
                          uint32_t max_blocks);

/* Adds that run to an empty hold, with a reference to each page (cached ones become live). Returns
 * its length. */
uint32_t bt_kv_hold_pin(struct bt_kv_pool *pool, struct bt_kv_hold *hold, struct bt_id root,
                        const int32_t *tokens, uint32_t max_blocks);
/* Promises n more pages to the hold, evicting cached pages (least recently used first) as needed.
 * False, with nothing changed, where free + cached pages do not cover them. */
bool bt_kv_hold_reserve(struct bt_kv_pool *pool, struct bt_kv_hold *hold, uint32_t n);
/* Gives n promised pages back. */
void bt_kv_hold_unreserve(struct bt_kv_pool *pool, struct bt_kv_hold *hold, uint32_t n);
/* Turns n promised pages into bound ones at the hold's end, in state FILLING or ARMED, each with a
 * new generation. */
void bt_kv_hold_bind(struct bt_kv_pool *pool, struct bt_kv_hold *hold, uint32_t n,
                     enum bt_page_state state);
/* Every end: promises are given back and references dropped. A page without another reference
 * becomes cached if it is in the index, quarantined if a receive into it is in flight, else free.
 * The hold is empty afterwards; an empty hold is fine. */
void bt_kv_hold_release(struct bt_kv_pool *pool, struct bt_kv_hold *hold);
/* Pages that releasing the hold would make free or cached now (no other reference), and its
 * promises. */
uint32_t bt_kv_hold_gain(const struct bt_kv_pool *pool, const struct bt_kv_hold *hold);
/* XXH3-64 over the sums (u64 little-endian) of the hold's pages from first_page on, in (page,
 * layer) order: the manifest of a commit. */
uint64_t bt_kv_hold_manifest(const struct bt_kv_pool *pool, const struct bt_kv_hold *hold,
                             uint32_t first_page);

/* ---- one page ---- */

/* Moves a bound page that has one reference: FILLING -> LIVE (complete), ARMED -> LANDED, LANDED ->
 * LIVE (committed), LIVE -> FILLING (a sequence goes on in its last, unshared page). Any other move
 * is a defect of ours and asserted. */
void bt_kv_page_move(struct bt_kv_pool *pool, uint32_t page, enum bt_page_state to);
enum bt_page_state bt_kv_page_state(const struct bt_kv_pool *pool, uint32_t page);
/* Goes up at each binding; never reused in a process. 0: never bound. */
uint64_t bt_kv_page_generation(const struct bt_kv_pool *pool, uint32_t page);
/* XXH3-64 of (layer, page), made when it was filled and kept with it. Written by the owner. */
uint64_t *bt_kv_page_sum(struct bt_kv_pool *pool, uint32_t layer, uint32_t page);
/* Receives in flight into an ARMED page; end frees a page that was quarantined when the last one
 * ends. */
void bt_kv_page_receive_begin(struct bt_kv_pool *pool, uint32_t page);
void bt_kv_page_receive_end(struct bt_kv_pool *pool, uint32_t page);
uint32_t bt_kv_page_receives(const struct bt_kv_pool *pool, uint32_t page);

/* ---- the index ---- */

/* Enters a complete block: block_i of the hold, LIVE, whose 16 tokens are given, under hash =
 * bt_block_next(previous, tokens); previous is the root for block 0. Where the same block (same
 * tokens all the way to the root) is there already, that one stays and nothing changes. */
void bt_kv_pool_publish(struct bt_kv_pool *pool, const struct bt_kv_hold *hold, uint32_t block_i,
                        struct bt_id previous, const int32_t tokens[BT_PAGE_TOKENS]);
/* Evicts every cached page. */
void bt_kv_pool_flush(struct bt_kv_pool *pool);

struct bt_kv_change {
    bool added;    /* else evicted */
    uint64_t hash; /* low half of the block's hash */
};
/* The next change of the index since the last call. BT_AGAIN: none. BT_E_FULL: more happened than
 * n_changes holds; what was pending is dropped, and a census (below) must be told instead. */
bt_status bt_kv_pool_next_change(struct bt_kv_pool *pool, struct bt_kv_change *out);
/* Walks the index: *cursor = 0 first; false at the end. No change may come between the calls. */
bool bt_kv_pool_indexed(const struct bt_kv_pool *pool, uint32_t *cursor, uint64_t *hash);

/* ---- the sum ---- */

void bt_kv_pool_census(const struct bt_kv_pool *pool, struct bt_census *out);
/* Pages that could be promised now: free and cached. */
uint32_t bt_kv_pool_available(const struct bt_kv_pool *pool);
/* Everything adds up: states, references, lists, index. Walks the pool: for tests, the simulator
 * and debug builds. */
bool bt_kv_pool_is_valid(const struct bt_kv_pool *pool);

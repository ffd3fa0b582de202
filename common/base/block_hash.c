/* Computes the chained block hashes. */
#include "common/base/block_hash.h"

#include <string.h>
#include <xxhash.h>

#include "common/base/bytes.h"

static struct bt_id hash(const uint8_t *bytes, size_t n_bytes) {
    XXH128_hash_t h = XXH3_128bits(bytes, n_bytes);
    return (struct bt_id){.hi = h.high64, .lo = h.low64};
}

struct bt_id bt_block_root(const char *tenant, uint64_t fingerprint_hash) {
    uint8_t bytes[8 + BT_NAME_BYTES];
    size_t n = strnlen(tenant, BT_NAME_BYTES);
    bt_store_u64(bytes, fingerprint_hash);
    memcpy(bytes + 8, tenant, n);
    return hash(bytes, 8 + n);
}

static struct bt_id chain(struct bt_id previous, const int32_t *tokens, uint32_t n_tokens) {
    uint8_t bytes[16 + 4 * BT_PAGE_TOKENS];
    bt_store_u64(bytes, previous.hi);
    bt_store_u64(bytes + 8, previous.lo);
    for (uint32_t i = 0; i < n_tokens; i++)
        bt_store_u32(bytes + 16 + 4 * i, (uint32_t)tokens[i]);
    return hash(bytes, 16 + 4 * (size_t)n_tokens);
}

struct bt_id bt_block_next(struct bt_id previous, const int32_t tokens[BT_PAGE_TOKENS]) {
    return chain(previous, tokens, BT_PAGE_TOKENS);
}

struct bt_id bt_block_prompt(struct bt_id root, const int32_t *tokens, uint32_t n_tokens) {
    struct bt_id h = root;
    while (n_tokens >= BT_PAGE_TOKENS) {
        h = bt_block_next(h, tokens);
        tokens += BT_PAGE_TOKENS;
        n_tokens -= BT_PAGE_TOKENS;
    }
    return n_tokens ? chain(h, tokens, n_tokens) : h;
}

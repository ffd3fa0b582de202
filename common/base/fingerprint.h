/* What two workers must share before one may read the other's KV cache, field by field.
 *
 * Made by a worker from its model and layout, sent in Join and on each KV link, compared by the
 * router and by decode workers. Plain values; owned by whoever holds it. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum bt_kv_type { BT_KV_BY_PROFILE = 0, BT_KV_BF16 = 1, BT_KV_F32 = 2, BT_KV_INT8 = 3 };
enum bt_profile { BT_PROFILE_FAST = 1, BT_PROFILE_BF16 = 2, BT_PROFILE_EXACT = 3 };

enum {
    BT_FINGERPRINT_BYTES = 64, /* serialised */
    BT_NUMERICS_CONTRACT = 1,  /* version of the numerics contract (docs/numerics.md) */
    /* The order inside a page that kernels/kernels.h states for each type. */
    BT_KV_INNER_ORDER_CPU = 1,
};

struct bt_fingerprint {
    uint64_t model_hash; /* XXH3-64 of the architecture's numbers and of every weight as it is
                            computed with */
    uint32_t n_layers;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t page_tokens; /* BT_PAGE_TOKENS */
    uint32_t kv_type;     /* enum bt_kv_type, in the cache */
    uint32_t wire_type;   /* enum bt_kv_type, on the link */
    uint32_t inner_order; /* BT_KV_INNER_ORDER_* */
    uint32_t profile;     /* enum bt_profile */
    uint32_t contract;    /* BT_NUMERICS_CONTRACT */
};

/* BT_OK, or BT_E_LAYOUT_MISMATCH with a sentence that names the first field that differs and both
 * values. */
bt_status bt_fingerprint_compare(const struct bt_fingerprint *ours,
                                 const struct bt_fingerprint *theirs, struct bt_error *err);

/* Little-endian, fields in the order above, zero padded. */
void bt_fingerprint_pack(const struct bt_fingerprint *fp, uint8_t out[BT_FINGERPRINT_BYTES]);
/* Refuses another length, padding that is not zero, and values that no worker can have. */
bt_status bt_fingerprint_unpack(const uint8_t *bytes, size_t n_bytes, struct bt_fingerprint *fp,
                                struct bt_error *err);

/* XXH3-64 of the packed form: what `commit` carries, and the numerics part of a block hash's root.
 */
uint64_t bt_fingerprint_hash(const struct bt_fingerprint *fp);

const char *bt_profile_name(uint32_t profile);
const char *bt_kv_type_name(uint32_t kv_type);

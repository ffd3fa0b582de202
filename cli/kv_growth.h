/* How the KV cache of one sequence grows with its text, as a table and a picture for the terminal.
 */
#pragma once
#include <stdint.h>

#include "common/base/status.h"

/* What of a model's shape its cache depends on; each at least 1. */
struct bt_kv_shape {
    uint64_t layers, kv_heads, head_dim_k, head_dim_v; /* at most 65,536 each */
    uint64_t heads;                                    /* of the queries; 0: not known */
    uint64_t context;                                  /* longest text, tokens; 0: not known */
};

/* "layers=40,heads=40,kv-heads=40,head-dim=128,bytes=2,context=4096": heads, bytes (2) and context
 * may be left out; kv-heads are then heads. *element_bytes: of one value, 1 to 8. BT_E_INVALID
 * names the part, the value and the bound. */
bt_status bt_kv_shape_parse(const char *text, struct bt_kv_shape *shape, uint64_t *element_bytes,
                            struct bt_error *err);

enum { BT_KV_TYPES_MAX = 3 };

struct bt_kv_growth {
    struct bt_kv_shape shape;
    struct {
        const char *name; /* "bf16" */
        uint64_t bytes;   /* of one value */
        uint64_t scale;   /* bytes beside the values of one head's K, and of its V */
    } types[BT_KV_TYPES_MAX];
    unsigned n_types;
    uint64_t memory_bytes; /* also says how many sequences fit into so much; 0: not asked */
};

/* Bytes of one token of a type. */
uint64_t bt_kv_token_bytes(const struct bt_kv_shape *shape, uint64_t bytes, uint64_t scale);

/* On stdout: the sum of one token, then 256, 512, ... tokens up to the context. */
void bt_kv_growth_print(const struct bt_kv_growth *growth);

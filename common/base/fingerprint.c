/* Compares and serialises layout fingerprints, from one table of fields. */
#include "common/base/fingerprint.h"

#include <stddef.h>
#include <string.h>
#include <xxhash.h>

#include "common/base/bytes.h"
#include "common/base/limits.h"

struct field {
    const char *name;
    size_t offset;
    uint32_t min, max;
    const char *(*name_of)(uint32_t value); /* NULL: the number itself is shown */
};

#define NAMED(member, min, max, name_of) \
    { #member, offsetof(struct bt_fingerprint, member), min, max, name_of }
#define FIELD(member, min, max) NAMED(member, min, max, NULL)
static const struct field fields[] = {
    FIELD(n_layers, 1, 1024),
    FIELD(n_kv_heads, 1, 1024),
    FIELD(head_dim, 1, 1024),
    FIELD(page_tokens, 1, 256),
    NAMED(kv_type, BT_KV_BF16, BT_KV_INT8, bt_kv_type_name),
    NAMED(wire_type, BT_KV_BF16, BT_KV_INT8, bt_kv_type_name),
    FIELD(inner_order, BT_KV_INNER_ORDER_CPU, BT_KV_INNER_ORDER_CPU),
    NAMED(profile, BT_PROFILE_FAST, BT_PROFILE_EXACT, bt_profile_name),
    FIELD(contract, 1, 65535),
};
enum { N_FIELDS = sizeof fields / sizeof fields[0] };
_Static_assert(8 + 4 * sizeof fields / sizeof fields[0] <= BT_FINGERPRINT_BYTES,
               "packed form is too small");

static uint32_t get(const struct bt_fingerprint *fp, const struct field *field) {
    uint32_t v;
    memcpy(&v, (const char *)fp + field->offset, sizeof v);
    return v;
}

bt_status bt_fingerprint_compare(const struct bt_fingerprint *ours,
                                 const struct bt_fingerprint *theirs, struct bt_error *err) {
    for (int i = 0; i < N_FIELDS; i++) {
        uint32_t a = get(ours, &fields[i]), b = get(theirs, &fields[i]);
        if (a != b && fields[i].name_of)
            return bt_fail(err, BT_E_LAYOUT_MISMATCH,
                           "layout field %s differs: ours is %s, theirs is %s", fields[i].name,
                           fields[i].name_of(a), fields[i].name_of(b));
        if (a != b)
            return bt_fail(err, BT_E_LAYOUT_MISMATCH,
                           "layout field %s differs: ours is %u, theirs is %u", fields[i].name, a,
                           b);
    }
    if (ours->model_hash != theirs->model_hash)
        return bt_fail(err, BT_E_LAYOUT_MISMATCH,
                       "layout field model_hash differs: ours is %016llx, theirs is %016llx "
                       "(another model file)",
                       (unsigned long long)ours->model_hash,
                       (unsigned long long)theirs->model_hash);
    return BT_OK;
}

void bt_fingerprint_pack(const struct bt_fingerprint *fp, uint8_t out[BT_FINGERPRINT_BYTES]) {
    memset(out, 0, BT_FINGERPRINT_BYTES);
    bt_store_u64(out, fp->model_hash);
    for (int i = 0; i < N_FIELDS; i++)
        bt_store_u32(out + 8 + 4 * i, get(fp, &fields[i]));
}

bt_status bt_fingerprint_unpack(const uint8_t *bytes, size_t n_bytes, struct bt_fingerprint *fp,
                                struct bt_error *err) {
    if (n_bytes != BT_FINGERPRINT_BYTES)
        return bt_fail(err, BT_E_PROTOCOL, "layout fingerprint has %zu bytes, must have %d",
                       n_bytes, BT_FINGERPRINT_BYTES);
    struct bt_fingerprint out = {.model_hash = bt_load_u64(bytes)};
    for (int i = 0; i < N_FIELDS; i++) {
        uint32_t v = bt_load_u32(bytes + 8 + 4 * i);
        if (v < fields[i].min || v > fields[i].max)
            return bt_fail(err, BT_E_PROTOCOL, "layout field %s is %u, must be %u to %u",
                           fields[i].name, v, fields[i].min, fields[i].max);
        memcpy((char *)&out + fields[i].offset, &v, sizeof v);
    }
    for (size_t i = 8 + 4 * N_FIELDS; i < BT_FINGERPRINT_BYTES; i++)
        if (bytes[i])
            return bt_fail(err, BT_E_PROTOCOL,
                           "layout fingerprint has a byte %u at %zu where zero must stand",
                           bytes[i], i);
    *fp = out;
    return BT_OK;
}

uint64_t bt_fingerprint_hash(const struct bt_fingerprint *fp) {
    uint8_t packed[BT_FINGERPRINT_BYTES];
    bt_fingerprint_pack(fp, packed);
    return XXH3_64bits(packed, sizeof packed);
}

const char *bt_profile_name(uint32_t profile) {
    return profile == BT_PROFILE_FAST    ? "fast"
           : profile == BT_PROFILE_BF16  ? "bf16"
           : profile == BT_PROFILE_EXACT ? "exact"
                                         : "unknown";
}

const char *bt_kv_type_name(uint32_t kv_type) {
    return kv_type == BT_KV_BF16   ? "bf16"
           : kv_type == BT_KV_F32  ? "f32"
           : kv_type == BT_KV_INT8 ? "int8"
                                   : "unknown";
}

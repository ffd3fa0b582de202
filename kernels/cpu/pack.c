/* Repacks weights into the kernels' layouts and writes the cache's pages; the same on every path.
 */
#include "kernels/cpu/pack.h"

#include <string.h>

#include "kernels/cpu/layout.h"
#include "kernels/cpu/scalar.h"

static size_t round_up_64(size_t bytes) {
    return (bytes + 63) & ~(size_t)63;
}

size_t bt_pack_bytes(enum bt_pack pack, uint32_t n_out, uint32_t n_in) {
    return round_up_64(tiles_of(n_out) * tile_bytes(pack, n_in));
}

enum bt_prepared bt_pack_prepared_for(enum bt_pack pack) {
    return pack == BT_PACK_BF16  ? BT_PREPARED_BF16
           : pack == BT_PACK_F32 ? BT_PREPARED_F32
                                 : BT_PREPARED_INT8;
}

size_t bt_pack_prepared_bytes(enum bt_prepared form, uint32_t n_rows, uint32_t n_in) {
    return round_up_64((size_t)((n_rows + ROWS - 1) / ROWS) * row_block_bytes(form, n_in));
}

/* Bytes of one block of a file format and how many values it holds; 0 if unknown. */
static size_t file_block(enum bt_tensor_type type, uint32_t *n_values) {
    *n_values = GROUP;
    switch (type) {
    case BT_TENSOR_Q4_0:
        return 18;
    case BT_TENSOR_Q4_1:
        return 20;
    case BT_TENSOR_Q8_0:
        return 34;
    case BT_TENSOR_F32:
        *n_values = 1;
        return 4;
    case BT_TENSOR_F16:
    case BT_TENSOR_BF16:
        *n_values = 1;
        return 2;
    }
    *n_values = 1;
    return 0;
}

size_t bt_pack_row_bytes(enum bt_tensor_type type, uint32_t n) {
    uint32_t n_values;
    size_t bytes = file_block(type, &n_values);
    return n % n_values ? 0 : n / n_values * bytes;
}

static uint16_t load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

/* d * q is exact (11 by at most 8 bits), so product and sum here are one rounding: fma(d, q, m). */
static void dequantise_block(enum bt_tensor_type type, const uint8_t *block, float *out) {
    float d = f16_to_f32(load_u16(block));
    if (type == BT_TENSOR_Q8_0) {
        for (int i = 0; i < GROUP; i++)
            out[i] = d * (float)(int8_t)block[2 + i];
        return;
    }
    float m = type == BT_TENSOR_Q4_1 ? f16_to_f32(load_u16(block + 2)) : -8.0f * d;
    const uint8_t *nibbles = block + (type == BT_TENSOR_Q4_1 ? 4 : 2);
    for (int i = 0; i < GROUP / 2; i++) {
        out[i] = d * (float)(nibbles[i] & 15) + m;
        out[i + GROUP / 2] = d * (float)(nibbles[i] >> 4) + m;
    }
}

int bt_pack_dequantise(enum bt_tensor_type type, const void *row, uint32_t n, float *out) {
    uint32_t n_values;
    size_t bytes = file_block(type, &n_values);
    if (!bytes || n % n_values)
        return -1;
    const uint8_t *from = row;
    if (type == BT_TENSOR_F32) {
        memcpy(out, from, (size_t)n * 4);
        return 0;
    }
    for (uint32_t i = 0; i < n / n_values; i++) {
        if (type == BT_TENSOR_F16)
            out[i] = f16_to_f32(load_u16(from + i * bytes));
        else if (type == BT_TENSOR_BF16)
            out[i] = bf16_to_f32(load_u16(from + i * bytes));
        else
            dequantise_block(type, from + i * bytes, out + (size_t)i * GROUP);
    }
    return 0;
}

/* One file block into its place for output `lane` of a packed block. */
static void pack_block(enum bt_pack pack, const uint8_t *from, uint32_t lane, uint8_t *to) {
    if (pack == BT_PACK_Q8_0) {
        for (int i = 0; i < 8; i++)
            for (int kk = 0; kk < 4; kk++)
                to[i * 64 + (int)lane * 4 + kk] = from[2 + 4 * i + kk] ^ 0x80;
        memcpy(to + Q8_QUANTS + lane * 2, from, 2);
        return;
    }
    const uint8_t *nibbles = from + (pack == BT_PACK_Q4_1 ? 4 : 2);
    for (int i = 0; i < 4; i++)
        memcpy(to + i * 64 + lane * 4, nibbles + 4 * i, 4);
    memcpy(to + Q4_QUANTS + lane * 2, from, 2);
    if (pack == BT_PACK_Q4_1)
        memcpy(to + Q4_QUANTS + 32 + lane * 2, from + 2, 2);
}

static int pack_quantised(enum bt_pack pack, enum bt_tensor_type type, const uint8_t *tensor,
                          uint32_t n_in, uint32_t row_first, uint32_t row_end, uint8_t *packed) {
    if (n_in % GROUP || (pack == BT_PACK_Q4_1 && type != BT_TENSOR_Q4_1) ||
        (pack == BT_PACK_Q4_0 && type != BT_TENSOR_Q4_0) ||
        (pack == BT_PACK_Q8_0 && type != BT_TENSOR_Q8_0))
        return -1;
    uint32_t n_groups = n_in / GROUP, n_values;
    size_t file_bytes = file_block(type, &n_values), bytes = block_bytes(pack);
    for (uint32_t row = row_first; row < row_end; row++) {
        const uint8_t *from = tensor + (size_t)row * n_groups * file_bytes;
        uint8_t *to = packed + row / TILE * tile_bytes(pack, n_in);
        for (uint32_t g = 0; g < n_groups; g++)
            pack_block(pack, from + g * file_bytes, row % TILE, to + g * bytes);
    }
    return 0;
}

/* One value into its place; [k / 2][16][2] for bf16, [k][16] for f32. */
static void pack_value(enum bt_pack pack, float value, uint32_t k, uint32_t lane, uint8_t *tile) {
    if (pack == BT_PACK_BF16) {
        uint16_t b = f32_to_bf16(value);
        memcpy(tile + ((size_t)(k / 2) * TILE + lane) * 4 + (k % 2) * 2, &b, 2);
    } else {
        memcpy(tile + ((size_t)k * TILE + lane) * 4, &value, 4);
    }
}

static int pack_float(enum bt_pack pack, enum bt_tensor_type type, const uint8_t *tensor,
                      uint32_t n_in, uint32_t row_first, uint32_t row_end, uint8_t *packed) {
    uint32_t n_values;
    size_t file_bytes = file_block(type, &n_values);
    if (!file_bytes || n_in % n_values || (pack == BT_PACK_BF16 && n_in % 2))
        return -1;
    float values[GROUP];
    for (uint32_t row = row_first; row < row_end; row++) {
        const uint8_t *from = tensor + (size_t)row * (n_in / n_values) * file_bytes;
        uint8_t *tile = packed + row / TILE * tile_bytes(pack, n_in);
        for (uint32_t k = 0; k < n_in; k += n_values, from += file_bytes) {
            bt_pack_dequantise(type, from, n_values, values);
            for (uint32_t i = 0; i < n_values; i++)
                pack_value(pack, values[i], k + i, row % TILE, tile);
        }
    }
    return 0;
}

int bt_pack_rows(enum bt_pack pack, enum bt_tensor_type type, const void *tensor, uint32_t n_out,
                 uint32_t n_in, uint32_t row_first, uint32_t row_end, void *packed) {
    /* The lanes beyond the last output are computed and dropped, so they must hold numbers. */
    if (row_end == n_out && n_out % TILE)
        memset((uint8_t *)packed + n_out / TILE * tile_bytes(pack, n_in), 0,
               tile_bytes(pack, n_in));
    if (pack == BT_PACK_BF16 || pack == BT_PACK_F32)
        return pack_float(pack, type, tensor, n_in, row_first, row_end, packed);
    return pack_quantised(pack, type, tensor, n_in, row_first, row_end, packed);
}

size_t bt_pack_page_bytes(enum bt_cache_type cache, uint32_t n_kv_heads, uint32_t head_dim) {
    return n_kv_heads * head_bytes(cache, head_dim);
}

static void write_token_bf16(uint16_t *head, uint32_t slot, uint32_t head_dim, const float *k,
                             const float *v) {
    uint16_t *values = head + (size_t)PAGE * head_dim + (size_t)(slot / 2) * head_dim * 2;
    for (uint32_t d = 0; d < head_dim; d += 2) {
        uint16_t pair[2] = {f32_to_bf16(k[d]), f32_to_bf16(k[d + 1])};
        memcpy(head + (size_t)d * PAGE + slot * 2, pair, 4);
    }
    for (uint32_t d = 0; d < head_dim; d++)
        values[d * 2 + slot % 2] = f32_to_bf16(v[d]);
}

static void write_token_f32(float *head, uint32_t slot, uint32_t head_dim, const float *k,
                            const float *v) {
    for (uint32_t d = 0; d < head_dim; d++)
        head[(size_t)d * PAGE + slot] = k[d];
    memcpy(head + (size_t)(PAGE + slot) * head_dim, v, (size_t)head_dim * 4);
}

/* One token's K or V in a row, which the compiler turns into vectors. Returns its scale. */
static float quantise_int8(const float *x, uint32_t head_dim, int8_t *out) {
    float s = symmetric_scale(x, head_dim, 127.0f);
    if (!scale_is_usable(s)) {
        memset(out, 0, head_dim);
        return s;
    }
    for (uint32_t d = 0; d < head_dim; d++)
        out[d] = (int8_t)round_f32(x[d] / s);
    return s;
}

static void write_token_int8(uint8_t *head, uint32_t slot, uint32_t head_dim, const float *k,
                             const float *v) {
    size_t half = half_bytes(BT_CACHE_INT8, head_dim);
    uint8_t *keys = head + slot * 2;
    uint8_t *values = head + half + (size_t)(slot / 2) * head_dim * 2 + slot % 2;
    struct int8_scales *scales = (struct int8_scales *)(void *)(head + 2 * half);
    int8_t q[HEAD_DIM_MAX];
    scales->k[slot] = quantise_int8(k, head_dim, q);
    for (uint32_t d = 0; d < head_dim; d += 2, keys += PAGE * 2)
        memcpy(keys, q + d, 2);
    scales->v[slot] = quantise_int8(v, head_dim, q);
    for (uint32_t d = 0; d < head_dim; d++)
        values[2 * d] = (uint8_t)q[d];
}

void bt_pack_cache_write(const struct bt_cache_write *args) {
    size_t bytes = head_bytes(args->cache, args->head_dim);
    for (uint32_t h = 0; h < args->n_kv_heads; h++) {
        uint8_t *head = (uint8_t *)args->page + h * bytes;
        for (uint32_t t = 0; t < args->n_tokens; t++) {
            const float *k = args->k + t * args->stride + (size_t)h * args->head_dim;
            const float *v = args->v + t * args->stride + (size_t)h * args->head_dim;
            if (args->cache == BT_CACHE_BF16)
                write_token_bf16((uint16_t *)(void *)head, args->slot + t, args->head_dim, k, v);
            else if (args->cache == BT_CACHE_INT8)
                write_token_int8(head, args->slot + t, args->head_dim, k, v);
            else
                write_token_f32((float *)(void *)head, args->slot + t, args->head_dim, k, v);
        }
    }
}

/* Clears tokens slot .. 15 of K [n_steps][16 tokens] of `width` bytes each. */
static void zero_keys(uint8_t *k, uint32_t slot, uint32_t n_steps, size_t width) {
    for (uint32_t d = 0; d < n_steps; d++, k += PAGE * width)
        memset(k + slot * width, 0, (PAGE - slot) * width);
}

/* Clears tokens slot .. 15 of V [8][head_dim][2], each element of `width` bytes. */
static void zero_value_pairs(uint8_t *v, uint32_t slot, uint32_t head_dim, size_t width) {
    size_t pair_bytes = (size_t)head_dim * 2 * width;
    v += slot / 2 * pair_bytes;
    if (slot % 2) { /* the pair's other token stays */
        for (uint32_t d = 0; d < head_dim; d++)
            memset(v + (2 * d + 1) * width, 0, width);
        v += pair_bytes;
    }
    memset(v, 0, (PAGE - slot) / 2 * pair_bytes);
}

void bt_pack_zero_tail(enum bt_cache_type cache, void *page, uint32_t slot, uint32_t n_kv_heads,
                       uint32_t head_dim) {
    size_t bytes = head_bytes(cache, head_dim), half = half_bytes(cache, head_dim);
    if (slot >= PAGE)
        return;
    for (uint32_t h = 0; h < n_kv_heads; h++) {
        uint8_t *k = (uint8_t *)page + h * bytes, *v = k + half;
        if (cache == BT_CACHE_F32) {
            zero_keys(k, slot, head_dim, 4);
            memset(v + (size_t)slot * head_dim * 4, 0, (size_t)(PAGE - slot) * head_dim * 4);
            continue;
        }
        size_t width = cache == BT_CACHE_INT8 ? 1 : 2;
        zero_keys(k, slot, head_dim / 2, 2 * width);
        zero_value_pairs(v, slot, head_dim, width);
        if (cache == BT_CACHE_INT8) {
            struct int8_scales *scales = (struct int8_scales *)(void *)(v + half);
            memset(scales->k + slot, 0, (PAGE - slot) * sizeof(float));
            memset(scales->v + slot, 0, (PAGE - slot) * sizeof(float));
        }
    }
}

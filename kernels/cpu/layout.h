/* The packed forms of weights, activations and pages on the CPU, shared by all its paths. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* Weights of the int8 rule: [tile of 16 outputs][group of 32 inputs], each block the nibbles or
 * bytes, then the 16 outputs' d (f16), then, for Q4_1, their m (f16). Step i holds, for each
 * output, the inputs 4 i .. 4 i + 3, the order in which vpdpbusd eats them.
 * Q4: byte [i][output][kk] has input 4 i + kk low and input 16 + 4 i + kk high, i < 4.
 * Q8: byte [i][output][kk] is q + 128 of input 4 i + kk, i < 8. */
enum {
    TILE = BT_KERNELS_TILE,
    GROUP = BT_KERNELS_GROUP,
    ROWS = BT_KERNELS_ROWS,
    PAGE = BT_KERNELS_PAGE_TOKENS,
    PIECE = BT_KERNELS_PIECE_TOKENS,
    PIECE_PAGES = PIECE / PAGE,
    HEAD_DIM_MAX = BT_KERNELS_HEAD_DIM_MAX,
    Q4_QUANTS = 256,
    Q4_1_BLOCK = Q4_QUANTS + 64,
    Q4_0_BLOCK = Q4_QUANTS + 32,
    Q8_QUANTS = 512,
    Q8_0_BLOCK = Q8_QUANTS + 32
};

/* Activations of the int8 rule: [block of 4 rows][group]. */
struct int8_group {
    int8_t q[8][ROWS][4]; /* step i: inputs 4 i .. 4 i + 3 of each row */
    float s[ROWS];        /* scale */
    float t[ROWS];        /* s * sum of q */
    int32_t offset[ROWS]; /* -128 * sum of q: undoes the 128 added to Q8's bytes */
};
_Static_assert(sizeof(struct int8_group) == 176, "packed without holes");

static inline uint32_t tiles_of(uint32_t n_out) {
    return (n_out + TILE - 1) / TILE;
}

static inline size_t block_bytes(enum bt_pack pack) {
    return pack == BT_PACK_Q4_1 ? Q4_1_BLOCK : pack == BT_PACK_Q4_0 ? Q4_0_BLOCK : Q8_0_BLOCK;
}

/* Bytes of one tile of 16 outputs. BF16: [n_in / 2][16][2]; F32: [n_in][16]. */
static inline size_t tile_bytes(enum bt_pack pack, uint32_t n_in) {
    if (pack == BT_PACK_BF16)
        return (size_t)n_in * TILE * 2;
    if (pack == BT_PACK_F32)
        return (size_t)n_in * TILE * 4;
    return (size_t)(n_in / GROUP) * block_bytes(pack);
}

/* Bytes of one block of 4 prepared rows. BF16: [n_in / 2][4 rows][2]; F32: [n_in][4 rows]. */
static inline size_t row_block_bytes(enum bt_prepared form, uint32_t n_in) {
    if (form == BT_PREPARED_BF16)
        return (size_t)n_in * ROWS * 2;
    if (form == BT_PREPARED_F32)
        return (size_t)n_in * ROWS * 4;
    return (size_t)(n_in / GROUP) * sizeof(struct int8_group);
}

/* Bytes of K, and of V, of one head in a page. */
static inline size_t half_bytes(enum bt_cache_type cache, uint32_t head_dim) {
    size_t width = cache == BT_CACHE_INT8 ? 1 : cache == BT_CACHE_BF16 ? 2 : 4;
    return PAGE * head_dim * width;
}

/* Behind the integers of a head in an int8 page. */
struct int8_scales {
    float k[PAGE], v[PAGE];
};

static inline size_t head_bytes(enum bt_cache_type cache, uint32_t head_dim) {
    size_t scales = cache == BT_CACHE_INT8 ? sizeof(struct int8_scales) : 0;
    return 2 * half_bytes(cache, head_dim) + scales;
}

/* `k` is where a head begins in an int8 page. */
static inline const struct int8_scales *int8_scales_of(const uint8_t *k, uint32_t head_dim) {
    return (const struct int8_scales *)(const void *)(k + 2 * half_bytes(BT_CACHE_INT8, head_dim));
}

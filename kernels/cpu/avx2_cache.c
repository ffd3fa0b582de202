/* Writes tokens into bf16 pages in AVX2, for all paths that have it. */
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/avx2_math.h"
#include "kernels/cpu/layout.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/scalar.h"

/* K [head_dim / 2][16 tokens][2]: a token's pairs, a line apart. */
static void write_key(uint16_t *keys, uint32_t slot, uint32_t head_dim, const float *k) {
    uint16_t *to = keys + slot * 2;
    uint32_t d = 0;
    for (; d + 16 <= head_dim; d += 16) {
        __m256i first = bf16_256(_mm256_loadu_ps(k + d)),
                second = bf16_256(_mm256_loadu_ps(k + d + 8));
        uint32_t pairs[8];
        __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(first, second), 0xd8);
        _mm256_storeu_si256((void *)pairs, both);
        for (int i = 0; i < 8; i++, to += PAGE * 2)
            memcpy(to, &pairs[i], 4);
    }
    for (; d < head_dim; d += 2, to += PAGE * 2) {
        uint16_t pair[2] = {f32_to_bf16(k[d]), f32_to_bf16(k[d + 1])};
        memcpy(to, pair, 4);
    }
}

/* V [8][head_dim][2]: a token's numbers beside those of the other token of its pair, which stay. */
static void write_value(uint16_t *values, uint32_t slot, uint32_t head_dim, const float *v) {
    uint16_t *to = values + (size_t)(slot / 2) * head_dim * 2;
    uint32_t d = 0;
    for (; d + 8 <= head_dim; d += 8) {
        __m256i half = bf16_256(_mm256_loadu_ps(v + d));
        __m256i there = _mm256_loadu_si256((const void *)(to + 2 * d));
        __m256i both = slot % 2 ? _mm256_blend_epi16(there, _mm256_slli_epi32(half, 16), 0xaa)
                                : _mm256_blend_epi16(there, half, 0x55);
        _mm256_storeu_si256((void *)(to + 2 * d), both);
    }
    for (; d < head_dim; d++)
        to[2 * d + slot % 2] = f32_to_bf16(v[d]);
}

void bt_avx2_cache_write(const struct bt_cache_write *args) {
    if (args->cache != BT_CACHE_BF16) {
        bt_pack_cache_write(args);
        return;
    }
    size_t bytes = head_bytes(args->cache, args->head_dim);
    for (uint32_t h = 0; h < args->n_kv_heads; h++) {
        uint16_t *keys = (uint16_t *)(void *)((uint8_t *)args->page + h * bytes);
        uint16_t *values = keys + (size_t)PAGE * args->head_dim;
        for (uint32_t t = 0; t < args->n_tokens; t++) {
            size_t at = t * args->stride + (size_t)h * args->head_dim;
            write_key(keys, args->slot + t, args->head_dim, args->k + at);
            write_value(values, args->slot + t, args->head_dim, args->v + at);
        }
    }
}

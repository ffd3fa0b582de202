/* Quantises rows of activations in AVX2, for all paths that have no wider registers. */
#include <immintrin.h>

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/layout.h"
#include "kernels/cpu/portable.h"
#include "kernels/cpu/scalar.h"

/* The highest magnitude of a group, compared as integers so that NaN counts as the highest. */
static uint32_t top_bits_of(const __m256 v[4]) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i top = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++)
        top = _mm256_max_epu32(top, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    __m128i half = _mm_max_epu32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(half);
}

/* The sum of all lanes. */
static int32_t total_of(__m256i v) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    return _mm_cvtsi128_si32(half);
}

/* A group's 32 numbers, as its steps of 4: even steps stand in the lower half of each q. */
static void store_steps(const __m256i q[4], uint32_t row, struct int8_group *to) {
    __m256i bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    uint32_t steps[8];
    _mm256_storeu_si256((void *)steps, bytes);
    for (int i = 0; i < 4; i++) {
        memcpy(to->q[2 * i][row], &steps[i], 4);
        memcpy(to->q[2 * i + 1][row], &steps[4 + i], 4);
    }
}

/* A group of one row: q = RNE(x / s) by vcvtps2dq, which rounds to nearest even. */
static void prepare_int8_row(const float *x, uint32_t n_in, uint32_t row, struct int8_group *to) {
    for (uint32_t g = 0; g < n_in / GROUP; g++, x += GROUP, to++) {
        __m256 v[4];
        __m256i q[4];
        for (int i = 0; i < 4; i++)
            v[i] = _mm256_loadu_ps(x + i * 8);
        float s = from_bits(top_bits_of(v)) / 127.0f;
        __m256i keep = _mm256_set1_epi32(scale_is_usable(s) ? -1 : 0);
        for (int i = 0; i < 4; i++)
            q[i] =
                _mm256_and_si256(_mm256_cvtps_epi32(_mm256_div_ps(v[i], _mm256_set1_ps(s))), keep);
        int32_t sum =
            total_of(_mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3])));
        store_steps(q, row, to);
        to->s[row] = s;
        to->t[row] = s * (float)sum;
        to->offset[row] = -128 * sum;
    }
}

void bt_avx2_prepare(enum bt_prepared form, const float *x, size_t x_stride, uint32_t row_first,
                     uint32_t row_end, uint32_t n_in, void *prepared) {
    if (form != BT_PREPARED_INT8) {
        bt_fma_prepare(form, x, x_stride, row_first, row_end, n_in, prepared);
        return;
    }
    size_t block = row_block_bytes(form, n_in);
    for (uint32_t row = row_first; row < row_end; row++)
        prepare_int8_row(x + row * x_stride, n_in, row % ROWS,
                         (struct int8_group *)(void *)((uint8_t *)prepared + row / ROWS * block));
}

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

static void prepare_int8_row(const float *x, uint32_t n_in, uint32_t row, struct int8_group *to) {
    for (uint32_t g = 0; g < n_in / GROUP; g++, x += GROUP, to++) {
        __m256 v[4];
        for (int i = 0; i < 4; i++)
            v[i] = _mm256_loadu_ps(x + i * 8);
        float s = from_bits(top_bits_of(v)) / 127.0f;
        __m256i sum = _mm256_setzero_si256(), keep = _mm256_set1_epi32(scale_is_usable(s) ? -1 : 0);
        for (int i = 0; i < 4; i++) {
            __m256i q = _mm256_cvtps_epi32(_mm256_div_ps(v[i], _mm256_set1_ps(s)));
            q = _mm256_and_si256(q, keep);
            sum = _mm256_add_epi32(sum, q);
            int32_t lanes[8];
            _mm256_storeu_si256((void *)lanes, q);
            for (int j = 0; j < 8; j++)
                to->q[i * 2 + j / 4][row][j % 4] = (int8_t)lanes[j];
        }
        int32_t lanes[8], total = 0;
        _mm256_storeu_si256((void *)lanes, sum);
        for (int j = 0; j < 8; j++)
            total += lanes[j];
        to->s[row] = s;
        to->t[row] = s * (float)total;
        to->offset[row] = -128 * total;
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

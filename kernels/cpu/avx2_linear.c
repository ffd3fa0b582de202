/* Linear layers in 256 bits: 8 or 16 outputs of up to 4 rows at once. Compiled for AVX2, and with
 * vpdpbusd for AVX-VNNI and for AVX-512's form of it; BT_AVX2_LINEAR names the function. */
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/avx2_dot.h"
#include "kernels/cpu/avx2_math.h"
#include "kernels/cpu/compiler.h"
#include "kernels/cpu/layout.h"

#ifndef BT_AVX2_LINEAR
#define BT_AVX2_LINEAR bt_avx2_linear
#endif

enum { ROWS_OF_A_SWEEP = 96 };

/* One tile, one block of up to 4 rows; sums go to acc[row][output]. */
struct tile_job {
    const uint8_t *weights, *x;
    uint32_t n_in;
    float acc[ROWS][TILE] __attribute__((aligned(32)));
};

/* The int8 rule: a group's dots of both halves of the tile side by side, so that the activations
 * are fetched once. */
ALWAYS_INLINE void tile_int8(struct tile_job *job, enum bt_pack pack, const int R) {
    const size_t bytes = block_bytes(pack);
    const size_t quants = pack == BT_PACK_Q8_0 ? Q8_QUANTS : Q4_QUANTS;
    const struct int8_group *x = (const struct int8_group *)(const void *)job->x;
    const uint8_t *w = job->weights;
    __m256 acc[ROWS][2];
    UNROLL for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (uint32_t g = 0; g < job->n_in / GROUP; g++, w += bytes, x++) {
        __m256i dot[ROWS][2];
        if (pack == BT_PACK_Q8_0)
            dot_q8(w, x, dot, R);
        else
            dot_q4(w, x, dot, R);
        UNROLL for (int half = 0; half < 2; half++) {
            const uint8_t *scales = w + quants + half * 16;
            __m256 d = _mm256_cvtph_ps(_mm_loadu_si128((const void *)scales)), m = d;
            if (pack == BT_PACK_Q4_1)
                m = _mm256_cvtph_ps(_mm_loadu_si128((const void *)(scales + 32)));
            if (pack == BT_PACK_Q4_0)
                m = _mm256_mul_ps(d, _mm256_set1_ps(-8.0f));
            UNROLL for (int r = 0; r < R; r++) {
                __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(x->s[r]));
                acc[r][half] =
                    _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][half]), scale, acc[r][half]);
                if (pack != BT_PACK_Q8_0)
                    acc[r][half] = _mm256_fmadd_ps(m, _mm256_set1_ps(x->t[r]), acc[r][half]);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        _mm256_store_ps(job->acc[r], acc[r][0]);
        _mm256_store_ps(job->acc[r] + 8, acc[r][1]);
    }
}

/* The bf16 rule: two fused multiply-adds for each pair of inputs, the odd one first. */
ALWAYS_INLINE void tile_bf16(struct tile_job *job, const int R) {
    const uint8_t *w = job->weights, *x = job->x;
    __m256 low[ROWS], high[ROWS];
    UNROLL for (int r = 0; r < R; r++) low[r] = high[r] = _mm256_setzero_ps();
    for (uint32_t k = 0; k < job->n_in / 2; k++, w += 64, x += ROWS * 4) {
        __m256i first = load_256(w), second = load_256(w + 32);
        UNROLL for (int r = 0; r < R; r++) {
            int32_t q;
            memcpy(&q, x + r * 4, 4);
            __m256i pair = _mm256_set1_epi32(q);
            __m256 odd = odd_256(pair), even = even_256(pair);
            low[r] = _mm256_fmadd_ps(odd_256(first), odd, low[r]);
            high[r] = _mm256_fmadd_ps(odd_256(second), odd, high[r]);
            low[r] = _mm256_fmadd_ps(even_256(first), even, low[r]);
            high[r] = _mm256_fmadd_ps(even_256(second), even, high[r]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        _mm256_store_ps(job->acc[r], low[r]);
        _mm256_store_ps(job->acc[r] + 8, high[r]);
    }
}

/* The exact rule: a product and a sum, each rounded. */
ALWAYS_INLINE void tile_f32(struct tile_job *job, const int R) {
    const float *w = (const float *)(const void *)job->weights;
    const float *x = (const float *)(const void *)job->x;
    __m256 low[ROWS], high[ROWS];
    UNROLL for (int r = 0; r < R; r++) low[r] = high[r] = _mm256_setzero_ps();
    for (uint32_t k = 0; k < job->n_in; k++, w += TILE, x += ROWS) {
        __m256 first = _mm256_loadu_ps(w), second = _mm256_loadu_ps(w + 8);
        UNROLL for (int r = 0; r < R; r++) {
            __m256 v = _mm256_set1_ps(x[r]);
            low[r] = _mm256_add_ps(low[r], _mm256_mul_ps(first, v));
            high[r] = _mm256_add_ps(high[r], _mm256_mul_ps(second, v));
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        _mm256_store_ps(job->acc[r], low[r]);
        _mm256_store_ps(job->acc[r] + 8, high[r]);
    }
}

/* One function for each number of rows, so that each keeps its sums in registers. */
#define TILE_FUNCTIONS(NAME, CALL)               \
    static void NAME##_1(struct tile_job *job) { \
        enum { R = 1 };                          \
        CALL;                                    \
    }                                            \
    static void NAME##_2(struct tile_job *job) { \
        enum { R = 2 };                          \
        CALL;                                    \
    }                                            \
    static void NAME##_3(struct tile_job *job) { \
        enum { R = 3 };                          \
        CALL;                                    \
    }                                            \
    static void NAME##_4(struct tile_job *job) { \
        enum { R = 4 };                          \
        CALL;                                    \
    }                                            \
    static void (*const NAME[])(struct tile_job *) = {NAME##_1, NAME##_2, NAME##_3, NAME##_4};

TILE_FUNCTIONS(q4_1_tile, tile_int8(job, BT_PACK_Q4_1, R))
TILE_FUNCTIONS(q4_0_tile, tile_int8(job, BT_PACK_Q4_0, R))
TILE_FUNCTIONS(q8_0_tile, tile_int8(job, BT_PACK_Q8_0, R))
TILE_FUNCTIONS(bf16_tile, tile_bf16(job, R))
TILE_FUNCTIONS(f32_tile, tile_f32(job, R))

ALWAYS_INLINE void store_half(const float *acc, const float *bias, int add, float *y) {
    __m256 sum = _mm256_load_ps(acc);
    if (bias)
        sum = _mm256_add_ps(sum, _mm256_loadu_ps(bias));
    if (add)
        sum = _mm256_add_ps(_mm256_loadu_ps(y), sum);
    _mm256_storeu_ps(y, sum);
}

/* Bias, residual, and only the outputs that exist. */
static void store_tile(const struct bt_linear *args, const struct tile_job *job, uint32_t row,
                       uint32_t n_rows, uint32_t col) {
    uint32_t n = args->col_end - col;
    const float *bias = args->bias ? args->bias + col : NULL;
    for (uint32_t r = 0; r < n_rows; r++) {
        const float *acc = job->acc[r];
        float *y = args->y + (row + r) * args->y_stride + col;
        if (n >= TILE) {
            store_half(acc, bias, args->add, y);
            store_half(acc + 8, bias ? bias + 8 : NULL, args->add, y + 8);
            continue;
        }
        for (uint32_t j = 0; j < n; j++) {
            float result = bias ? acc[j] + bias[j] : acc[j];
            y[j] = args->add ? y[j] + result : result;
        }
    }
}

/* All tiles of the range for a sweep of rows that stays in the second-level cache, then the next.
 */
static void sweep(const struct bt_linear *args, void (*const *tiles)(struct tile_job *),
                  enum bt_prepared form) {
    size_t tile = tile_bytes(args->pack, args->n_in), block = row_block_bytes(form, args->n_in);
    struct tile_job job = {.n_in = args->n_in};
    for (uint32_t first = args->row_first; first < args->row_end; first += ROWS_OF_A_SWEEP) {
        uint32_t end =
            args->row_end - first < ROWS_OF_A_SWEEP ? args->row_end : first + ROWS_OF_A_SWEEP;
        for (uint32_t col = args->col_first; col < args->col_end; col += TILE) {
            job.weights = (const uint8_t *)args->weights + col / TILE * tile;
            for (uint32_t row = first; row < end; row += ROWS) {
                uint32_t more = end - row - 1 < ROWS - 1 ? end - row - 1 : ROWS - 1;
                job.x = (const uint8_t *)args->x + row / ROWS * block;
                tiles[more](&job);
                store_tile(args, &job, row, more + 1, col);
            }
        }
    }
}

void BT_AVX2_LINEAR(const struct bt_linear *args) {
    switch (args->pack) {
    case BT_PACK_Q4_1:
        sweep(args, q4_1_tile, BT_PREPARED_INT8);
        break;
    case BT_PACK_Q4_0:
        sweep(args, q4_0_tile, BT_PREPARED_INT8);
        break;
    case BT_PACK_Q8_0:
        sweep(args, q8_0_tile, BT_PREPARED_INT8);
        break;
    case BT_PACK_BF16:
        sweep(args, bf16_tile, BT_PREPARED_BF16);
        break;
    case BT_PACK_F32:
    case BT_PACK_COUNT:
        sweep(args, f32_tile, BT_PREPARED_F32);
        break;
    }
}

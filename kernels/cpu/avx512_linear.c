/* Linear layers in AVX-512: 16 outputs in a register, up to 12 rows at once. */
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/avx512.h"
#include "kernels/cpu/avx512_math.h"
#include "kernels/cpu/compiler.h"
#include "kernels/cpu/layout.h"
#include "kernels/cpu/portable.h"

/* Rows of one call, in blocks of 4: 12 accumulators of dots, 12 of sums, the rest for weights. */
enum { ROWS_MAX = 12, ROWS_OF_A_SWEEP = 96 };

/* One tile: 16 outputs of up to 12 rows. */
struct tile_job {
    const uint8_t *weights;
    const uint8_t *x; /* first block of 4 rows */
    size_t row_block; /* bytes from one block of 4 rows to the next */
    uint32_t n_in;
    float *y; /* first row's first output */
    size_t y_stride;
    const float *bias; /* of the 16 outputs, or NULL */
    int add;
    __mmask16 lanes; /* outputs that exist */
};

ALWAYS_INLINE void store_row(const struct tile_job *job, int row, __m512 acc) {
    float *y = job->y + (size_t)row * job->y_stride;
    if (job->bias)
        acc = _mm512_add_ps(acc, _mm512_maskz_loadu_ps(job->lanes, job->bias));
    if (job->add)
        acc = _mm512_add_ps(_mm512_maskz_loadu_ps(job->lanes, y), acc);
    _mm512_mask_storeu_ps(y, job->lanes, acc);
}

ALWAYS_INLINE __m512i four_inputs(const struct int8_group *x, int step, int row) {
    int32_t q;
    memcpy(&q, x->q[step][row], 4);
    return _mm512_set1_epi32(q);
}

/* The int8 rule for R rows; x of row r is block r / 4, lane r % 4. */
ALWAYS_INLINE void tile_int8(const struct tile_job *job, enum bt_pack pack, const int R) {
    const __m512i low_bits = _mm512_set1_epi8(15);
    const size_t bytes = pack == BT_PACK_Q4_1   ? Q4_1_BLOCK
                         : pack == BT_PACK_Q4_0 ? Q4_0_BLOCK
                                                : Q8_0_BLOCK;
    const size_t quants = pack == BT_PACK_Q8_0 ? Q8_QUANTS : Q4_QUANTS;
    const uint8_t *w = job->weights, *x = job->x;
    __m512 acc[ROWS_MAX];
    UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
    for (uint32_t g = 0; g < job->n_in / GROUP; g++, w += bytes, x += sizeof(struct int8_group)) {
        const struct int8_group *block[3];
        __m512i dot[ROWS_MAX];
        UNROLL for (int b = 0; b < (R + 3) / 4; b++) block[b] =
            (const struct int8_group *)(const void *)(x + (size_t)b * job->row_block);
        UNROLL for (int r = 0; r < R; r++) dot[r] =
            pack == BT_PACK_Q8_0 ? _mm512_set1_epi32(block[r / 4]->offset[r % 4])
                                 : _mm512_setzero_si512();
        UNROLL for (int i = 0; i < 4; i++) {
            __m512i first, second;
            if (pack == BT_PACK_Q8_0) {
                first = _mm512_loadu_si512(w + i * 64);
                second = _mm512_loadu_si512(w + (i + 4) * 64);
            } else {
                __m512i both = _mm512_loadu_si512(w + i * 64);
                first = _mm512_and_si512(both, low_bits);
                second = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_bits);
            }
            UNROLL for (int r = 0; r < R; r++) dot[r] =
                _mm512_dpbusd_epi32(dot[r], first, four_inputs(block[r / 4], i, r % 4));
            UNROLL for (int r = 0; r < R; r++) dot[r] =
                _mm512_dpbusd_epi32(dot[r], second, four_inputs(block[r / 4], i + 4, r % 4));
        }
        __m512 d = _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(w + quants))), m = d;
        if (pack == BT_PACK_Q4_1)
            m = _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(w + quants + 32)));
        if (pack == BT_PACK_Q4_0)
            m = _mm512_mul_ps(d, _mm512_set1_ps(-8.0f));
        UNROLL for (int r = 0; r < R; r++) {
            __m512 scale = _mm512_mul_ps(d, _mm512_set1_ps(block[r / 4]->s[r % 4]));
            acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), scale, acc[r]);
            if (pack != BT_PACK_Q8_0)
                acc[r] = _mm512_fmadd_ps(m, _mm512_set1_ps(block[r / 4]->t[r % 4]), acc[r]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) store_row(job, r, acc[r]);
}

/* The bf16 rule for R rows: one vdpbf16ps for each pair of inputs. */
ALWAYS_INLINE void tile_bf16(const struct tile_job *job, const int R) {
    const uint8_t *w = job->weights, *x = job->x;
    __m512 acc[ROWS_MAX];
    UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
    for (uint32_t k = 0; k < job->n_in / 2; k++, w += 64, x += ROWS * 4) {
        __m512bh pair = (__m512bh)_mm512_loadu_si512(w);
        UNROLL for (int r = 0; r < R; r++) {
            int32_t q;
            memcpy(&q, x + (size_t)(r / 4) * job->row_block + r % 4 * 4, 4);
            acc[r] = _mm512_dpbf16_ps(acc[r], pair, (__m512bh)_mm512_set1_epi32(q));
        }
    }
    UNROLL for (int r = 0; r < R; r++) store_row(job, r, acc[r]);
}

/* The bf16 rule where vdpbf16ps cannot be trusted: two fused multiply-adds. */
ALWAYS_INLINE void tile_bf16_fma(const struct tile_job *job, const int R) {
    const uint8_t *w = job->weights, *x = job->x;
    const __m512i high_half = _mm512_set1_epi32((int)0xffff0000);
    __m512 acc[ROWS_MAX];
    UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
    for (uint32_t k = 0; k < job->n_in / 2; k++, w += 64, x += ROWS * 4) {
        __m512i pair = _mm512_loadu_si512(w);
        __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
        __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(pair, high_half));
        UNROLL for (int r = 0; r < R; r++) {
            uint32_t q;
            memcpy(&q, x + (size_t)(r / 4) * job->row_block + r % 4 * 4, 4);
            __m512 x_odd = _mm512_castsi512_ps(_mm512_set1_epi32((int)(q & 0xffff0000u)));
            __m512 x_even = _mm512_castsi512_ps(_mm512_set1_epi32((int)(q << 16)));
            acc[r] = _mm512_fmadd_ps(odd, x_odd, acc[r]);
            acc[r] = _mm512_fmadd_ps(even, x_even, acc[r]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) store_row(job, r, acc[r]);
}

/* The exact rule for R rows: a product and a sum, each rounded. */
ALWAYS_INLINE void tile_f32(const struct tile_job *job, const int R) {
    const uint8_t *w = job->weights, *x = job->x;
    __m512 acc[ROWS_MAX];
    UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
    for (uint32_t k = 0; k < job->n_in; k++, w += 64, x += ROWS * 4) {
        __m512 weights = _mm512_loadu_ps(w);
        UNROLL for (int r = 0; r < R; r++) {
            float v;
            memcpy(&v, x + (size_t)(r / 4) * job->row_block + r % 4 * 4, 4);
            acc[r] = _mm512_add_ps(acc[r], _mm512_mul_ps(weights, _mm512_set1_ps(v)));
        }
    }
    UNROLL for (int r = 0; r < R; r++) store_row(job, r, acc[r]);
}

/* One function for each number of rows, so that each keeps its sums in registers. */
#define TILE_FUNCTIONS(NAME, CALL)                                    \
    static void NAME##_1(const struct tile_job *job) {                \
        enum { R = 1 };                                               \
        CALL;                                                         \
    }                                                                 \
    static void NAME##_2(const struct tile_job *job) {                \
        enum { R = 2 };                                               \
        CALL;                                                         \
    }                                                                 \
    static void NAME##_3(const struct tile_job *job) {                \
        enum { R = 3 };                                               \
        CALL;                                                         \
    }                                                                 \
    static void NAME##_4(const struct tile_job *job) {                \
        enum { R = 4 };                                               \
        CALL;                                                         \
    }                                                                 \
    static void NAME##_5(const struct tile_job *job) {                \
        enum { R = 5 };                                               \
        CALL;                                                         \
    }                                                                 \
    static void NAME##_6(const struct tile_job *job) {                \
        enum { R = 6 };                                               \
        CALL;                                                         \
    }                                                                 \
    static void NAME##_7(const struct tile_job *job) {                \
        enum { R = 7 };                                               \
        CALL;                                                         \
    }                                                                 \
    static void NAME##_8(const struct tile_job *job) {                \
        enum { R = 8 };                                               \
        CALL;                                                         \
    }                                                                 \
    static void NAME##_9(const struct tile_job *job) {                \
        enum { R = 9 };                                               \
        CALL;                                                         \
    }                                                                 \
    static void NAME##_10(const struct tile_job *job) {               \
        enum { R = 10 };                                              \
        CALL;                                                         \
    }                                                                 \
    static void NAME##_11(const struct tile_job *job) {               \
        enum { R = 11 };                                              \
        CALL;                                                         \
    }                                                                 \
    static void NAME##_12(const struct tile_job *job) {               \
        enum { R = 12 };                                              \
        CALL;                                                         \
    }                                                                 \
    static void (*const NAME[])(const struct tile_job *) = {          \
        NAME##_1, NAME##_2, NAME##_3, NAME##_4,  NAME##_5,  NAME##_6, \
        NAME##_7, NAME##_8, NAME##_9, NAME##_10, NAME##_11, NAME##_12};

TILE_FUNCTIONS(q4_1_tile, tile_int8(job, BT_PACK_Q4_1, R))
TILE_FUNCTIONS(q4_0_tile, tile_int8(job, BT_PACK_Q4_0, R))
TILE_FUNCTIONS(q8_0_tile, tile_int8(job, BT_PACK_Q8_0, R))
TILE_FUNCTIONS(bf16_tile, tile_bf16(job, R))
TILE_FUNCTIONS(bf16_fma_tile, tile_bf16_fma(job, R))
TILE_FUNCTIONS(f32_tile, tile_f32(job, R))

/* All tiles of the range for a sweep of rows that stays in the second-level cache, then the next.
 */
static void sweep(const struct bt_linear *args, void (*const *tiles)(const struct tile_job *),
                  enum bt_prepared form) {
    size_t tile = tile_bytes(args->pack, args->n_in), block = row_block_bytes(form, args->n_in);
    struct tile_job job = {
        .row_block = block, .n_in = args->n_in, .y_stride = args->y_stride, .add = args->add};
    for (uint32_t first = args->row_first; first < args->row_end; first += ROWS_OF_A_SWEEP) {
        uint32_t end =
            args->row_end - first < ROWS_OF_A_SWEEP ? args->row_end : first + ROWS_OF_A_SWEEP;
        for (uint32_t col = args->col_first; col < args->col_end; col += TILE) {
            uint32_t n_lanes = args->col_end - col;
            job.weights = (const uint8_t *)args->weights + col / TILE * tile;
            job.bias = args->bias ? args->bias + col : NULL;
            job.lanes = first_lanes(n_lanes);
            for (uint32_t row = first; row < end; row += ROWS_MAX) {
                job.x = (const uint8_t *)args->x + row / ROWS * block;
                job.y = args->y + row * args->y_stride + col;
                tiles[(end - row < ROWS_MAX ? end - row : ROWS_MAX) - 1](&job);
            }
        }
    }
}

void bt_avx512_linear(const struct bt_linear *args) {
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

void bt_avx512_fma_linear(const struct bt_linear *args) {
    if (args->pack == BT_PACK_BF16)
        sweep(args, bf16_fma_tile, BT_PREPARED_BF16);
    else
        bt_avx512_linear(args);
}

/* A group of one row: q = RNE(x / s) by vcvtps2dq, which rounds to nearest even. */
static void prepare_int8_row(const float *x, uint32_t n_in, uint32_t row, struct int8_group *to) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    for (uint32_t g = 0; g < n_in / GROUP; g++, x += GROUP, to++) {
        __m512 first = _mm512_loadu_ps(x), second = _mm512_loadu_ps(x + 16);
        __m512i top = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(first), magnitude),
                                       _mm512_and_si512(_mm512_castps_si512(second), magnitude));
        uint32_t top_bits = _mm512_reduce_max_epu32(top), s_bits;
        float s;
        memcpy(&s, &top_bits, 4);
        s = s / 127.0f;
        memcpy(&s_bits, &s, 4);
        __mmask16 usable = (__mmask16)(s_bits != 0 && s_bits < 0x7f800000u ? 0xffff : 0);
        __m512 by = _mm512_set1_ps(s);
        __m512i a = _mm512_maskz_cvtps_epi32(usable, _mm512_div_ps(first, by));
        __m512i b = _mm512_maskz_cvtps_epi32(usable, _mm512_div_ps(second, by));
        int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
        uint32_t q[8];
        _mm_storeu_si128((void *)q, _mm512_cvtepi32_epi8(a));
        _mm_storeu_si128((void *)(q + 4), _mm512_cvtepi32_epi8(b));
        for (int i = 0; i < 8; i++)
            memcpy(to->q[i][row], &q[i], 4);
        to->s[row] = s;
        to->t[row] = s * (float)sum;
        to->offset[row] = -128 * sum;
    }
}

void bt_avx512_prepare(enum bt_prepared form, const float *x, size_t x_stride, uint32_t row_first,
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

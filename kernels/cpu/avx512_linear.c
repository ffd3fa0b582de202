/* Linear layers in AVX-512: 16 outputs in a register, up to 12 rows at once. */
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/avx512.h"
#include "kernels/cpu/avx512_math.h"
#include "kernels/cpu/compiler.h"
#include "kernels/cpu/layout.h"
#include "kernels/cpu/portable.h"
#include "kernels/cpu/scalar.h"

enum {
    ROWS_MAX = 24,      /* of one call: as many sums stay in registers */
    INT8_ROWS_MAX = 16, /* beside the weights of a group */
    DOTS_MAX = 8,       /* int8 dots that are summed side by side */
    ROWS_OF_A_SWEEP = 96,
    /* How far ahead weights are fetched, measured with weights in memory: so many rows give the
     * time to fetch them, and hide it; with fewer, loads alone keep memory busy. */
    Q4_PREFETCH_ROWS = 5,
    Q8_PREFETCH_ROWS = 9,
    BF16_PREFETCH_ROWS = 6,
    PREFETCH_BYTES = 4096
};

/* One tile: 16 outputs of up to ROWS_MAX rows. */
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

/* The 32 inputs of a group of 16 outputs, 4 in each lane of a step. */
ALWAYS_INLINE void load_quants(const uint8_t *w, enum bt_pack pack, __m512i quants[8]) {
    const __m512i low_bits = _mm512_set1_epi8(15);
    UNROLL for (int i = 0; i < 4; i++) {
        __m512i first = _mm512_loadu_si512(w + i * 64);
        if (pack == BT_PACK_Q8_0) {
            quants[i] = first;
            quants[i + 4] = _mm512_loadu_si512(w + (i + 4) * 64);
        } else {
            quants[i] = _mm512_and_si512(first, low_bits);
            quants[i + 4] = _mm512_and_si512(_mm512_srli_epi16(first, 4), low_bits);
        }
    }
}

/* A group's scales and minima as the rule adds them; m is not used by Q8_0. */
ALWAYS_INLINE void load_scales(const uint8_t *scales, enum bt_pack pack, __m512 *d, __m512 *m) {
    *d = *m = _mm512_cvtph_ps(_mm256_loadu_si256((const void *)scales));
    if (pack == BT_PACK_Q4_1)
        *m = _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(scales + 32)));
    if (pack == BT_PACK_Q4_0)
        *m = _mm512_mul_ps(*d, _mm512_set1_ps(-8.0f));
}

/* One group for R rows from `row` on: their dots side by side, so that none waits for itself. The
 * scales are read after the quants that stand before them: the other order streams a fifth slower.
 */
ALWAYS_INLINE void group_int8(const uint8_t *x, size_t row_block, enum bt_pack pack,
                              const __m512i quants[8], const uint8_t *scales, __m512 *acc,
                              const int row, const int R) {
    const struct int8_group *block[DOTS_MAX];
    __m512i dot[DOTS_MAX];
    __m512 d, m;
    UNROLL for (int r = 0; r < R; r++) {
        block[r] = (const void *)(x + (size_t)((row + r) / ROWS) * row_block);
        dot[r] = pack == BT_PACK_Q8_0 ? _mm512_set1_epi32(block[r]->offset[(row + r) % ROWS])
                                      : _mm512_setzero_si512();
    }
    UNROLL for (int i = 0; i < 8; i++) {
        UNROLL for (int r = 0; r < R; r++) dot[r] =
            _mm512_dpbusd_epi32(dot[r], quants[i], four_inputs(block[r], i, (row + r) % ROWS));
    }
    load_scales(scales, pack, &d, &m);
    UNROLL for (int r = 0; r < R; r++) {
        const int lane = (row + r) % ROWS, at = row + r;
        __m512 scale = _mm512_mul_ps(d, _mm512_set1_ps(block[r]->s[lane]));
        acc[at] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), scale, acc[at]);
        if (pack != BT_PACK_Q8_0)
            acc[at] = _mm512_fmadd_ps(m, _mm512_set1_ps(block[r]->t[lane]), acc[at]);
    }
}

/* The int8 rule for R rows; x of row r is block r / 4, lane r % 4. The group's weights are unpacked
 * once and stay in registers while the rows pass. */
ALWAYS_INLINE void tile_int8(const struct tile_job *job, enum bt_pack pack, const int R) {
    const size_t bytes = block_bytes(pack);
    const size_t n_quants = pack == BT_PACK_Q8_0 ? Q8_QUANTS : Q4_QUANTS;
    /* Even shares of the rows; sums, dots and 8 registers of weights are 31 at most. */
    const int n_shares = R <= DOTS_MAX ? 1 : R <= 12 ? 2 : R <= 14 ? 3 : 4;
    const int share = (R + n_shares - 1) / n_shares;
    const uint8_t *w = job->weights, *x = job->x;
    __m512 acc[INT8_ROWS_MAX];
    UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
    for (uint32_t g = 0; g < job->n_in / GROUP; g++, w += bytes, x += sizeof(struct int8_group)) {
        __m512i quants[8];
        if (R >= (pack == BT_PACK_Q8_0 ? Q8_PREFETCH_ROWS : Q4_PREFETCH_ROWS)) {
            UNROLL for (size_t i = 0; i < (bytes + 63) / 64; i++)
                _mm_prefetch((const char *)w + PREFETCH_BYTES + i * 64, _MM_HINT_T0);
        }
        load_quants(w, pack, quants);
        UNROLL for (int r = 0; r < R; r += share) group_int8(
            x, job->row_block, pack, quants, w + n_quants, acc, r, R - r < share ? R - r : share);
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
        if (R >= BF16_PREFETCH_ROWS)
            _mm_prefetch((const char *)w + PREFETCH_BYTES, _MM_HINT_T0);
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
#define TILE_FUNCTION(NAME, N_ROWS, CALL)                     \
    static void NAME##_##N_ROWS(const struct tile_job *job) { \
        enum { R = N_ROWS };                                  \
        CALL;                                                 \
    }
#define EIGHT_TILE_FUNCTIONS(NAME, A, B, C, D, E, F, G, H, CALL) \
    TILE_FUNCTION(NAME, A, CALL)                                 \
    TILE_FUNCTION(NAME, B, CALL)                                 \
    TILE_FUNCTION(NAME, C, CALL)                                 \
    TILE_FUNCTION(NAME, D, CALL)                                 \
    TILE_FUNCTION(NAME, E, CALL)                                 \
    TILE_FUNCTION(NAME, F, CALL)                                 \
    TILE_FUNCTION(NAME, G, CALL)                                 \
    TILE_FUNCTION(NAME, H, CALL)
#define EIGHT_NAMES(NAME, A, B, C, D, E, F, G, H) \
    NAME##_##A, NAME##_##B, NAME##_##C, NAME##_##D, NAME##_##E, NAME##_##F, NAME##_##G, NAME##_##H
#define TILES_OF_16_ROWS(NAME, CALL)                                              \
    EIGHT_TILE_FUNCTIONS(NAME, 1, 2, 3, 4, 5, 6, 7, 8, CALL)                      \
    EIGHT_TILE_FUNCTIONS(NAME, 9, 10, 11, 12, 13, 14, 15, 16, CALL)               \
    static const struct tiles NAME = {16,                                         \
                                      {EIGHT_NAMES(NAME, 1, 2, 3, 4, 5, 6, 7, 8), \
                                       EIGHT_NAMES(NAME, 9, 10, 11, 12, 13, 14, 15, 16)}};
#define TILES_OF_24_ROWS(NAME, CALL)                                                     \
    EIGHT_TILE_FUNCTIONS(NAME, 1, 2, 3, 4, 5, 6, 7, 8, CALL)                             \
    EIGHT_TILE_FUNCTIONS(NAME, 9, 10, 11, 12, 13, 14, 15, 16, CALL)                      \
    EIGHT_TILE_FUNCTIONS(NAME, 17, 18, 19, 20, 21, 22, 23, 24, CALL)                     \
    static const struct tiles NAME = {24,                                                \
                                      {EIGHT_NAMES(NAME, 1, 2, 3, 4, 5, 6, 7, 8),        \
                                       EIGHT_NAMES(NAME, 9, 10, 11, 12, 13, 14, 15, 16), \
                                       EIGHT_NAMES(NAME, 17, 18, 19, 20, 21, 22, 23, 24)}};

struct tiles {
    uint32_t rows_max;                                  /* of one call */
    void (*of_rows[ROWS_MAX])(const struct tile_job *); /* [number of rows - 1] */
};

TILES_OF_16_ROWS(q4_1_tile, tile_int8(job, BT_PACK_Q4_1, R))
TILES_OF_16_ROWS(q4_0_tile, tile_int8(job, BT_PACK_Q4_0, R))
TILES_OF_16_ROWS(q8_0_tile, tile_int8(job, BT_PACK_Q8_0, R))
TILES_OF_24_ROWS(bf16_tile, tile_bf16(job, R))
TILES_OF_16_ROWS(bf16_fma_tile, tile_bf16_fma(job, R))
TILES_OF_16_ROWS(f32_tile, tile_f32(job, R))

/* Rows of each call for n rows: even shares in whole blocks of 4. */
static uint32_t rows_of_a_call(uint32_t n, uint32_t rows_max) {
    uint32_t n_calls = (n + rows_max - 1) / rows_max, blocks = (n + ROWS - 1) / ROWS;
    return (blocks + n_calls - 1) / n_calls * ROWS;
}

/* All tiles of the range for a sweep of rows that stays in the second-level cache, then the next.
 */
static void sweep(const struct bt_linear *args, const struct tiles *tiles, enum bt_prepared form) {
    size_t tile = tile_bytes(args->pack, args->n_in), block = row_block_bytes(form, args->n_in);
    struct tile_job job = {
        .row_block = block, .n_in = args->n_in, .y_stride = args->y_stride, .add = args->add};
    for (uint32_t first = args->row_first; first < args->row_end; first += ROWS_OF_A_SWEEP) {
        uint32_t end =
            args->row_end - first < ROWS_OF_A_SWEEP ? args->row_end : first + ROWS_OF_A_SWEEP;
        uint32_t step = rows_of_a_call(end - first, tiles->rows_max);
        for (uint32_t col = args->col_first; col < args->col_end; col += TILE) {
            uint32_t n_lanes = args->col_end - col;
            job.weights = (const uint8_t *)args->weights + col / TILE * tile;
            job.bias = args->bias ? args->bias + col : NULL;
            job.lanes = first_lanes(n_lanes);
            for (uint32_t row = first; row < end; row += step) {
                job.x = (const uint8_t *)args->x + row / ROWS * block;
                job.y = args->y + row * args->y_stride + col;
                tiles->of_rows[(end - row < step ? end - row : step) - 1](&job);
            }
        }
    }
}

void bt_avx512_linear(const struct bt_linear *args) {
    switch (args->pack) {
    case BT_PACK_Q4_1:
        sweep(args, &q4_1_tile, BT_PREPARED_INT8);
        break;
    case BT_PACK_Q4_0:
        sweep(args, &q4_0_tile, BT_PREPARED_INT8);
        break;
    case BT_PACK_Q8_0:
        sweep(args, &q8_0_tile, BT_PREPARED_INT8);
        break;
    case BT_PACK_BF16:
        sweep(args, &bf16_tile, BT_PREPARED_BF16);
        break;
    case BT_PACK_F32:
    case BT_PACK_COUNT:
        sweep(args, &f32_tile, BT_PREPARED_F32);
        break;
    }
}

void bt_avx512_fma_linear(const struct bt_linear *args) {
    if (args->pack == BT_PACK_BF16)
        sweep(args, &bf16_fma_tile, BT_PREPARED_BF16);
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
        float s = from_bits(_mm512_reduce_max_epu32(top)) / 127.0f;
        __mmask16 usable = scale_is_usable(s) ? 0xffff : 0;
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

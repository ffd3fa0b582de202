/* Attention in AVX-512: a page's 16 keys in a register; K and V are read once for up to 6 rows. */
#include <immintrin.h>

#include "kernels/cpu/attention_walk.h"
#include "kernels/cpu/avx512.h"
#include "kernels/cpu/avx512_math.h"
#include "kernels/cpu/compiler.h"

enum {
    ROWS_MAX = 6,
    /* With so few rows K and V come from memory: V is fetched while K is read, and the next piece's
     * K while V is. */
    PREFETCH_ROWS = 4
};

/* Scores, then e, of each row; one vector is one page. */
typedef __m512 scores[ROWS_MAX][PIECE_PAGES];

ALWAYS_INLINE __mmask16 visible(const struct piece *p, int row, uint32_t page) {
    uint32_t low = p->low[row], high = p->high[row], start = page * PAGE;
    uint32_t from = low <= start ? 0 : low - start, to = high <= start ? 0 : high - start;
    return (__mmask16)(first_lanes(to) & ~first_lanes(from));
}

/* Dots of R rows with U pages at once: U * R independent chains hide the instruction's latency. */
ALWAYS_INLINE void dots_bf16(const struct piece *p, uint32_t page, scores s, const int R,
                             const int U) {
    __m512 acc[4][ROWS_MAX];
    const uint32_t *q = p->q;
    UNROLL for (int u = 0; u < U; u++) UNROLL for (int r = 0; r < R; r++) acc[u][r] =
        _mm512_setzero_ps();
    for (uint32_t d = 0; d < p->head_dim / 2; d++, q++)
        UNROLL for (int u = 0; u < U; u++) {
            __m512bh k = (__m512bh)_mm512_loadu_si512(p->k[page + (uint32_t)u] + (size_t)d * 64);
            if (R <= PREFETCH_ROWS)
                _mm_prefetch((const char *)p->v[page + (uint32_t)u] + (size_t)d * 64, _MM_HINT_T1);
            UNROLL for (int r = 0; r < R; r++) acc[u][r] = _mm512_dpbf16_ps(
                acc[u][r], k, (__m512bh)_mm512_set1_epi32((int)q[r * HEAD_DIM_MAX]));
        }
    UNROLL for (int u = 0; u < U; u++) UNROLL for (int r = 0; r < R; r++) s[r][page + (uint32_t)u] =
        acc[u][r];
}

ALWAYS_INLINE void dots_f32(const struct piece *p, uint32_t page, scores s, const int R) {
    __m512 acc[ROWS_MAX];
    const float *q = (const float *)(const void *)p->q;
    UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
    for (uint32_t d = 0; d < p->head_dim; d++, q++) {
        __m512 k = _mm512_loadu_ps(p->k[page] + (size_t)d * 64);
        UNROLL for (int r = 0; r < R; r++) acc[r] =
            _mm512_add_ps(acc[r], _mm512_mul_ps(k, _mm512_set1_ps(q[r * HEAD_DIM_MAX])));
    }
    UNROLL for (int r = 0; r < R; r++) s[r][page] = acc[r];
}

/* m, e and l of one row. A masked key's e is exactly 0. */
ALWAYS_INLINE void soften(struct piece *p, scores s, const int r) {
    const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
    __m512 top = lowest, sum = _mm512_setzero_ps();
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        s[r][i] =
            _mm512_mask_mul_ps(lowest, visible(p, r, i), s[r][i], _mm512_set1_ps(p->scale[r]));
        top = _mm512_max_ps(top, s[r][i]);
    }
    float m = _mm512_reduce_max_ps(top);
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        __m512 e = exp_512(_mm512_sub_ps(s[r][i], _mm512_set1_ps(m)));
        s[r][i] = _mm512_maskz_mov_ps(visible(p, r, i), e);
        sum = _mm512_add_ps(sum, s[r][i]);
    }
    p->m[r] = m;
    p->l[r] = tree_512(sum);
}

/* Probabilities in bf16, each row's pairs of keys in order. */
typedef uint32_t pairs[ROWS_MAX][PIECE / 2] __attribute__((aligned(64)));

/* o of R rows for 16 * J dims from `at`, keys in pairs. */
ALWAYS_INLINE void values_bf16(struct piece *p, pairs probabilities, uint32_t at, const int R,
                               const int J) {
    __m512 acc[ROWS_MAX][4];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < J; j++) acc[r][j] =
        _mm512_setzero_ps();
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        const uint8_t *v = p->v[i] + (size_t)at * 4;
        const uint32_t *pair = &probabilities[0][i * (PAGE / 2)];
        for (int t = 0; t < PAGE / 2; t++, v += (size_t)p->head_dim * 4, pair++)
            UNROLL for (int j = 0; j < J; j++) {
                __m512bh values = (__m512bh)_mm512_loadu_si512(v + j * 64);
                if (R <= PREFETCH_ROWS)
                    _mm_prefetch((const char *)p->ahead[i] + (v - p->v[i]) + j * 64, _MM_HINT_T1);
                UNROLL for (int r = 0; r < R; r++) acc[r][j] = _mm512_dpbf16_ps(
                    acc[r][j], values, (__m512bh)_mm512_set1_epi32((int)pair[r * (PIECE / 2)]));
            }
    }
    /* Adding +0 makes -0 into +0: how many masked pages were read must not show. */
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < J; j++)
        _mm512_storeu_ps(p->o[r] + at + j * 16, _mm512_add_ps(acc[r][j], _mm512_setzero_ps()));
}

ALWAYS_INLINE void values_f32(struct piece *p, scores s, uint32_t at, const int R) {
    __m512 acc[ROWS_MAX];
    UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        const uint8_t *v = p->v[i] + (size_t)at * 4;
        for (int t = 0; t < PAGE; t++, v += (size_t)p->head_dim * 4) {
            __m512 values = _mm512_loadu_ps(v);
            UNROLL for (int r = 0; r < R; r++) acc[r] = _mm512_add_ps(
                acc[r], _mm512_mul_ps(values, _mm512_set1_ps(((const float *)&s[r][i])[t])));
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        _mm512_storeu_ps(p->o[r] + at, _mm512_add_ps(acc[r], _mm512_setzero_ps()));
}

ALWAYS_INLINE void piece_bf16_rows(struct piece *p, const int R) {
    scores s;
    pairs probabilities;
    uint32_t i = p->page_first;
    if (R <= 3)
        for (; i + 4 <= p->page_end; i += 4)
            dots_bf16(p, i, s, R, 4);
    for (; i + 2 <= p->page_end; i += 2)
        dots_bf16(p, i, s, R, 2);
    for (; i < p->page_end; i++)
        dots_bf16(p, i, s, R, 1);
    UNROLL for (int r = 0; r < R; r++) {
        soften(p, s, r);
        for (i = p->page_first; i < p->page_end; i++)
            _mm256_store_si256((void *)&probabilities[r][i * (PAGE / 2)],
                               (__m256i)_mm512_cvtneps_pbh(s[r][i]));
    }
    uint32_t at = 0;
    for (; at + 64 <= p->head_dim; at += 64)
        values_bf16(p, probabilities, at, R, 4);
    for (; at < p->head_dim; at += 16)
        values_bf16(p, probabilities, at, R, 1);
}

ALWAYS_INLINE void piece_f32_rows(struct piece *p, const int R) {
    scores s;
    for (uint32_t i = p->page_first; i < p->page_end; i++)
        dots_f32(p, i, s, R);
    UNROLL for (int r = 0; r < R; r++) soften(p, s, r);
    for (uint32_t at = 0; at < p->head_dim; at += 16)
        values_f32(p, s, at, R);
}

/* As dots_bf16, in exact integers: K is widened to 16 bits on its way from memory. */
ALWAYS_INLINE void dots_int8(const struct piece *p, uint32_t page, scores s, const int R,
                             const int U) {
    __m512i acc[4][ROWS_MAX];
    const uint32_t *q = p->q;
    UNROLL for (int u = 0; u < U; u++) UNROLL for (int r = 0; r < R; r++) acc[u][r] =
        _mm512_setzero_si512();
    for (uint32_t d = 0; d < p->head_dim / 2; d++, q++)
        UNROLL for (int u = 0; u < U; u++) {
            __m512i k = widen_512(p->k[page + (uint32_t)u] + (size_t)d * 32);
            if (R <= PREFETCH_ROWS && d % 2 == 0)
                _mm_prefetch((const char *)p->v[page + (uint32_t)u] + (size_t)d * 32, _MM_HINT_T1);
            UNROLL for (int r = 0; r < R; r++) acc[u][r] =
                dot_pairs_512(acc[u][r], k, _mm512_set1_epi32((int)q[r * HEAD_DIM_MAX]));
        }
    UNROLL for (int u = 0; u < U; u++) {
        __m512 scale = _mm512_loadu_ps(int8_scales_of(p->k[page + (uint32_t)u], p->head_dim)->k);
        UNROLL for (int r = 0; r < R; r++) s[r][page + (uint32_t)u] =
            _mm512_mul_ps(_mm512_cvtepi32_ps(acc[u][r]), scale);
    }
}

/* From e to the integers of e * s_v, in pairs of keys; returns their scale. */
ALWAYS_INLINE float scale_probabilities(const struct piece *p, scores s, uint32_t *out,
                                        const int r) {
    __m512i most = _mm512_setzero_si512(), magnitude = _mm512_set1_epi32(0x7fffffff);
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        __m512 scale = _mm512_loadu_ps(int8_scales_of(p->k[i], p->head_dim)->v);
        s[r][i] = _mm512_maskz_mul_ps(visible(p, r, i), s[r][i], scale);
        most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_castps_si512(s[r][i]), magnitude));
    }
    float step = from_bits(_mm512_reduce_max_epu32(most)) / 32767.0f;
    __m512 inverse = _mm512_set1_ps(1.0f / step);
    __mmask16 usable = scale_is_usable(step) ? 0xffff : 0;
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        __m512i q = _mm512_maskz_cvtps_epi32(usable, _mm512_mul_ps(s[r][i], inverse));
        _mm256_storeu_si256((void *)(out + i * (PAGE / 2)), _mm512_cvtepi32_epi16(q));
    }
    return step;
}

/* As values_bf16, in exact integers times the scale of the row's probabilities. */
ALWAYS_INLINE void values_int8(struct piece *p, pairs probabilities, const float *step, uint32_t at,
                               const int R, const int J) {
    __m512i acc[ROWS_MAX][4];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < J; j++) acc[r][j] =
        _mm512_setzero_si512();
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        const uint8_t *v = p->v[i] + (size_t)at * 2;
        const uint32_t *pair = &probabilities[0][i * (PAGE / 2)];
        for (int t = 0; t < PAGE / 2; t++, v += (size_t)p->head_dim * 2, pair++) {
            __m512i values[4];
            UNROLL for (int j = 0; j < J; j++) {
                values[j] = widen_512(v + j * 32);
                if (R <= PREFETCH_ROWS && j % 2 == 0)
                    _mm_prefetch((const char *)p->ahead[i] + (v + j * 32 - p->v[i]), _MM_HINT_T1);
            }
            UNROLL for (int r = 0; r < R; r++) {
                __m512i both = _mm512_set1_epi32((int)pair[r * (PIECE / 2)]);
                UNROLL for (int j = 0; j < J; j++) acc[r][j] =
                    dot_pairs_512(acc[r][j], values[j], both);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < J; j++) {
        __m512 o = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][j]), _mm512_set1_ps(step[r]));
        _mm512_storeu_ps(p->o[r] + at + j * 16, _mm512_add_ps(o, _mm512_setzero_ps()));
    }
}

ALWAYS_INLINE void piece_int8_rows(struct piece *p, const int R) {
    scores s;
    pairs probabilities;
    float step[ROWS_MAX];
    uint32_t i = p->page_first;
    if (R <= 3)
        for (; i + 4 <= p->page_end; i += 4)
            dots_int8(p, i, s, R, 4);
    for (; i + 2 <= p->page_end; i += 2)
        dots_int8(p, i, s, R, 2);
    for (; i < p->page_end; i++)
        dots_int8(p, i, s, R, 1);
    UNROLL for (int r = 0; r < R; r++) {
        soften(p, s, r);
        step[r] = scale_probabilities(p, s, probabilities[r], r);
    }
    uint32_t at = 0;
    for (; at + 64 <= p->head_dim; at += 64)
        values_int8(p, probabilities, step, at, R, 4);
    for (; at < p->head_dim; at += 16)
        values_int8(p, probabilities, step, at, R, 1);
}

#define FOR_EACH_ROW_COUNT(CALL) \
    switch (p->n_rows) {         \
    case 1:                      \
        CALL(p, 1);              \
        break;                   \
    case 2:                      \
        CALL(p, 2);              \
        break;                   \
    case 3:                      \
        CALL(p, 3);              \
        break;                   \
    case 4:                      \
        CALL(p, 4);              \
        break;                   \
    case 5:                      \
        CALL(p, 5);              \
        break;                   \
    default:                     \
        CALL(p, 6);              \
        break;                   \
    }

static void piece_bf16(struct piece *p) {
    FOR_EACH_ROW_COUNT(piece_bf16_rows)
}

static void piece_f32(struct piece *p) {
    FOR_EACH_ROW_COUNT(piece_f32_rows)
}

static void piece_int8(struct piece *p) {
    FOR_EACH_ROW_COUNT(piece_int8_rows)
}

static void merge(float *sum, const float *o, uint32_t n, float a, float b) {
    for (uint32_t d = 0; d < n; d += 16) {
        __m512 part = _mm512_mul_ps(_mm512_loadu_ps(o + d), _mm512_set1_ps(b));
        _mm512_storeu_ps(sum + d,
                         _mm512_fmadd_ps(_mm512_loadu_ps(sum + d), _mm512_set1_ps(a), part));
    }
}

static void divide(float *x, uint32_t n, float l) {
    for (uint32_t d = 0; d < n; d += 16)
        _mm512_storeu_ps(x + d, _mm512_div_ps(_mm512_loadu_ps(x + d), _mm512_set1_ps(l)));
}

static const struct walk_path path = {ROWS_MAX, piece_bf16, piece_f32, piece_int8, merge, divide};

void bt_avx512_attention(const struct bt_attention *args) {
    walk_attention(args, &path);
}

void bt_avx512_attention_merge(const struct bt_attention *args) {
    walk_attention_merge(args, &path);
}

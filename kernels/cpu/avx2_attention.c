/* Attention in AVX2: a page's 16 keys in two registers; K and V are read once for up to 4 rows. */
#include <immintrin.h>

#include "kernels/cpu/attention_walk.h"
#include "kernels/cpu/avx2.h"
#include "kernels/cpu/avx2_math.h"
#include "kernels/cpu/compiler.h"

enum { ROWS_MAX = 4 };

/* Scores, then e, of one row of a piece. */
typedef float scores[ROWS_MAX][PIECE] __attribute__((aligned(32)));

/* acc += pairs of K or V (odd elements first) times a pair of one row. */
ALWAYS_INLINE __m256 fused_pair(__m256i pairs, __m256 odd, __m256 even, __m256 acc) {
    return _mm256_fmadd_ps(even_256(pairs), even, _mm256_fmadd_ps(odd_256(pairs), odd, acc));
}

ALWAYS_INLINE void dots_bf16(const struct piece *p, uint32_t page, scores s, const int R) {
    __m256 low[ROWS_MAX], high[ROWS_MAX];
    const uint32_t *q = p->q;
    UNROLL for (int r = 0; r < R; r++) low[r] = high[r] = _mm256_setzero_ps();
    for (uint32_t d = 0; d < p->head_dim / 2; d++, q++) {
        const uint8_t *k = p->k[page] + (size_t)d * 64;
        __m256i first = _mm256_loadu_si256((const void *)k);
        __m256i second = _mm256_loadu_si256((const void *)(k + 32));
        UNROLL for (int r = 0; r < R; r++) {
            __m256i pair = _mm256_set1_epi32((int)q[r * HEAD_DIM_MAX]);
            __m256 odd = odd_256(pair), even = even_256(pair);
            low[r] = fused_pair(first, odd, even, low[r]);
            high[r] = fused_pair(second, odd, even, high[r]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        _mm256_store_ps(s[r] + page * PAGE, low[r]);
        _mm256_store_ps(s[r] + page * PAGE + 8, high[r]);
    }
}

ALWAYS_INLINE void dots_f32(const struct piece *p, uint32_t page, scores s, const int R) {
    __m256 low[ROWS_MAX], high[ROWS_MAX];
    const float *q = (const float *)(const void *)p->q;
    UNROLL for (int r = 0; r < R; r++) low[r] = high[r] = _mm256_setzero_ps();
    for (uint32_t d = 0; d < p->head_dim; d++, q++) {
        const float *k = (const float *)(const void *)(p->k[page] + (size_t)d * 64);
        __m256 first = _mm256_loadu_ps(k), second = _mm256_loadu_ps(k + 8);
        UNROLL for (int r = 0; r < R; r++) {
            __m256 v = _mm256_set1_ps(q[r * HEAD_DIM_MAX]);
            low[r] = _mm256_add_ps(low[r], _mm256_mul_ps(first, v));
            high[r] = _mm256_add_ps(high[r], _mm256_mul_ps(second, v));
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        _mm256_store_ps(s[r] + page * PAGE, low[r]);
        _mm256_store_ps(s[r] + page * PAGE + 8, high[r]);
    }
}

/* All ones in the lanes whose key the row sees. */
static inline __m256 visible(const struct piece *p, int row, uint32_t key) {
    __m256i keys =
        _mm256_add_epi32(_mm256_set1_epi32((int)key), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)p->low[row]), keys);
    __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)p->high[row]), keys);
    return _mm256_castsi256_ps(_mm256_andnot_si256(before, inside));
}

/* m, e and l of one row. A masked key's e is exactly 0. */
static void soften(struct piece *p, scores s, int r) {
    const __m256 lowest = _mm256_set1_ps(-__builtin_inff()), scale = _mm256_set1_ps(p->scale[r]);
    uint32_t from = p->page_first * PAGE, to = p->page_end * PAGE;
    __m256 top = lowest;
    for (uint32_t t = from; t < to; t += 8) {
        __m256 score = _mm256_mul_ps(_mm256_load_ps(s[r] + t), scale);
        score = _mm256_blendv_ps(lowest, score, visible(p, r, t));
        _mm256_store_ps(s[r] + t, score);
        top = _mm256_max_ps(top, score);
    }
    float lanes[16] __attribute__((aligned(32)));
    _mm256_store_ps(lanes, top);
    float m = lanes[0];
    for (int i = 1; i < 8; i++)
        m = lanes[i] > m ? lanes[i] : m;
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    for (uint32_t t = from; t < to; t += 16) {
        __m256 first = exp_256(_mm256_sub_ps(_mm256_load_ps(s[r] + t), _mm256_set1_ps(m)));
        __m256 second = exp_256(_mm256_sub_ps(_mm256_load_ps(s[r] + t + 8), _mm256_set1_ps(m)));
        first = _mm256_and_ps(first, visible(p, r, t));
        second = _mm256_and_ps(second, visible(p, r, t + 8));
        _mm256_store_ps(s[r] + t, first);
        _mm256_store_ps(s[r] + t + 8, second);
        low = _mm256_add_ps(low, first);
        high = _mm256_add_ps(high, second);
    }
    _mm256_store_ps(lanes, low);
    _mm256_store_ps(lanes + 8, high);
    p->m[r] = m;
    p->l[r] = tree_f32(lanes);
}

/* e rounded to bf16 stands in s as f32 again: the upper half of each is its bf16. */
static void round_probabilities(const struct piece *p, scores s, int r) {
    for (uint32_t t = p->page_first * PAGE; t < p->page_end * PAGE; t += 8) {
        __m256i half = bf16_256(_mm256_load_ps(s[r] + t));
        _mm256_store_ps(s[r] + t, _mm256_castsi256_ps(_mm256_slli_epi32(half, 16)));
    }
}

/* o of R rows for 16 dims from `at`. Adding +0 at the end makes -0 into +0: how many masked pages
 * were read must not show. */
ALWAYS_INLINE void values(struct piece *p, scores s, uint32_t at, const int bf16, const int R) {
    const __m256 zero = _mm256_setzero_ps();
    __m256 low[ROWS_MAX], high[ROWS_MAX];
    UNROLL for (int r = 0; r < R; r++) low[r] = high[r] = zero;
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        const uint8_t *v = p->v[i] + (size_t)at * 4;
        for (uint32_t t = i * PAGE; t < (i + 1) * PAGE; t += 1 + (uint32_t)bf16) {
            __m256i first = _mm256_loadu_si256((const void *)v);
            __m256i second = _mm256_loadu_si256((const void *)(v + 32));
            v += (size_t)p->head_dim * 4;
            UNROLL for (int r = 0; r < R; r++) {
                __m256 even = _mm256_set1_ps(s[r][t]);
                if (bf16) {
                    __m256 odd = _mm256_set1_ps(s[r][t + 1]);
                    low[r] = fused_pair(first, odd, even, low[r]);
                    high[r] = fused_pair(second, odd, even, high[r]);
                } else {
                    __m256 a = _mm256_mul_ps(_mm256_castsi256_ps(first), even);
                    __m256 b = _mm256_mul_ps(_mm256_castsi256_ps(second), even);
                    low[r] = _mm256_add_ps(low[r], a);
                    high[r] = _mm256_add_ps(high[r], b);
                }
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        _mm256_storeu_ps(p->o[r] + at, _mm256_add_ps(low[r], zero));
        _mm256_storeu_ps(p->o[r] + at + 8, _mm256_add_ps(high[r], zero));
    }
}

ALWAYS_INLINE void piece_rows(struct piece *p, const int bf16, const int R) {
    scores s;
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        if (bf16)
            dots_bf16(p, i, s, R);
        else
            dots_f32(p, i, s, R);
    }
    for (int r = 0; r < R; r++) {
        soften(p, s, r);
        if (bf16)
            round_probabilities(p, s, r);
    }
    for (uint32_t at = 0; at < p->head_dim; at += 16)
        values(p, s, at, bf16, R);
}

ALWAYS_INLINE void piece_any(struct piece *p, const int bf16) {
    switch (p->n_rows) {
    case 1:
        piece_rows(p, bf16, 1);
        break;
    case 2:
        piece_rows(p, bf16, 2);
        break;
    case 3:
        piece_rows(p, bf16, 3);
        break;
    default:
        piece_rows(p, bf16, 4);
        break;
    }
}

static void piece_bf16(struct piece *p) {
    piece_any(p, 1);
}

static void piece_f32(struct piece *p) {
    piece_any(p, 0);
}

/* As dots_bf16, in exact integers times each key's scale. */
ALWAYS_INLINE void dots_int8(const struct piece *p, uint32_t page, scores s, const int R) {
    const struct int8_scales *scales = int8_scales_of(p->k[page], p->head_dim);
    __m256i low[ROWS_MAX], high[ROWS_MAX];
    const uint32_t *q = p->q;
    UNROLL for (int r = 0; r < R; r++) low[r] = high[r] = _mm256_setzero_si256();
    for (uint32_t d = 0; d < p->head_dim / 2; d++, q++) {
        const uint8_t *k = p->k[page] + (size_t)d * 32;
        __m256i first = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)k));
        __m256i second = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(k + 16)));
        UNROLL for (int r = 0; r < R; r++) {
            __m256i pair = _mm256_set1_epi32((int)q[r * HEAD_DIM_MAX]);
            low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(first, pair));
            high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(second, pair));
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        __m256 a = _mm256_mul_ps(_mm256_cvtepi32_ps(low[r]), _mm256_loadu_ps(scales->k));
        __m256 b = _mm256_mul_ps(_mm256_cvtepi32_ps(high[r]), _mm256_loadu_ps(scales->k + 8));
        _mm256_store_ps(s[r] + page * PAGE, a);
        _mm256_store_ps(s[r] + page * PAGE + 8, b);
    }
}

/* Probabilities as int16, each row's pairs of keys in order. */
typedef uint32_t pairs[ROWS_MAX][PIECE / 2] __attribute__((aligned(32)));

/* From e to the integers of e * s_v; returns their scale. */
static float scale_probabilities(const struct piece *p, scores s, uint32_t *out, int r) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    uint32_t from = p->page_first * PAGE, to = p->page_end * PAGE, most[8], top = 0;
    __m256i tops = _mm256_setzero_si256();
    for (uint32_t t = from; t < to; t += 8) {
        const float *scales = int8_scales_of(p->k[t / PAGE], p->head_dim)->v + t % PAGE;
        __m256 scaled = _mm256_mul_ps(_mm256_load_ps(s[r] + t), _mm256_loadu_ps(scales));
        scaled = _mm256_and_ps(scaled, visible(p, r, t));
        _mm256_store_ps(s[r] + t, scaled);
        tops = _mm256_max_epu32(tops, _mm256_and_si256(_mm256_castps_si256(scaled), magnitude));
    }
    _mm256_storeu_si256((void *)most, tops);
    for (int i = 0; i < 8; i++)
        top = most[i] > top ? most[i] : top;
    float step = from_bits(top) / 32767.0f;
    __m256 inverse = _mm256_set1_ps(1.0f / step);
    __m256i usable = _mm256_set1_epi32(scale_is_usable(step) ? -1 : 0);
    for (uint32_t t = from; t < to; t += PAGE) {
        __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(s[r] + t), inverse));
        __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(s[r] + t + 8), inverse));
        __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        _mm256_store_si256((void *)(out + t / 2), _mm256_and_si256(both, usable));
    }
    return step;
}

/* As values, in exact integers times the scale of the row's probabilities. */
ALWAYS_INLINE void values_int8(struct piece *p, pairs probabilities, const float *step, uint32_t at,
                               const int R) {
    __m256i low[ROWS_MAX], high[ROWS_MAX];
    UNROLL for (int r = 0; r < R; r++) low[r] = high[r] = _mm256_setzero_si256();
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        const uint8_t *v = p->v[i] + (size_t)at * 2;
        for (uint32_t t = i * (PAGE / 2); t < (i + 1) * (PAGE / 2); t++) {
            __m256i first = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)v));
            __m256i second = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(v + 16)));
            v += (size_t)p->head_dim * 2;
            UNROLL for (int r = 0; r < R; r++) {
                __m256i pair = _mm256_set1_epi32((int)probabilities[r][t]);
                low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(first, pair));
                high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(second, pair));
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        __m256 scale = _mm256_set1_ps(step[r]), zero = _mm256_setzero_ps();
        __m256 first = _mm256_mul_ps(_mm256_cvtepi32_ps(low[r]), scale);
        __m256 second = _mm256_mul_ps(_mm256_cvtepi32_ps(high[r]), scale);
        _mm256_storeu_ps(p->o[r] + at, _mm256_add_ps(first, zero));
        _mm256_storeu_ps(p->o[r] + at + 8, _mm256_add_ps(second, zero));
    }
}

ALWAYS_INLINE void piece_int8_rows(struct piece *p, const int R) {
    scores s;
    pairs probabilities;
    float step[ROWS_MAX];
    for (uint32_t i = p->page_first; i < p->page_end; i++)
        dots_int8(p, i, s, R);
    for (int r = 0; r < R; r++) {
        soften(p, s, r);
        step[r] = scale_probabilities(p, s, probabilities[r], r);
    }
    for (uint32_t at = 0; at < p->head_dim; at += 16)
        values_int8(p, probabilities, step, at, R);
}

static void piece_int8(struct piece *p) {
    switch (p->n_rows) {
    case 1:
        piece_int8_rows(p, 1);
        break;
    case 2:
        piece_int8_rows(p, 2);
        break;
    case 3:
        piece_int8_rows(p, 3);
        break;
    default:
        piece_int8_rows(p, 4);
        break;
    }
}

static void merge(float *sum, const float *o, uint32_t n, float a, float b) {
    for (uint32_t d = 0; d < n; d += 8) {
        __m256 part = _mm256_mul_ps(_mm256_loadu_ps(o + d), _mm256_set1_ps(b));
        _mm256_storeu_ps(sum + d,
                         _mm256_fmadd_ps(_mm256_loadu_ps(sum + d), _mm256_set1_ps(a), part));
    }
}

static void divide(float *x, uint32_t n, float l) {
    for (uint32_t d = 0; d < n; d += 8)
        _mm256_storeu_ps(x + d, _mm256_div_ps(_mm256_loadu_ps(x + d), _mm256_set1_ps(l)));
}

static const struct walk_path path = {ROWS_MAX, piece_bf16, piece_f32, piece_int8, merge, divide};

void bt_avx2_attention(const struct bt_attention *args) {
    walk_attention(args, &path);
}

void bt_avx2_attention_merge(const struct bt_attention *args) {
    walk_attention_merge(args, &path);
}

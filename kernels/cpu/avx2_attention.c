/* Attention in AVX2: a page's 16 keys in two registers; K and V are read once for up to 4 rows. */
#include <immintrin.h>

#include "kernels/cpu/attention_walk.h"
#include "kernels/cpu/avx2.h"
#include "kernels/cpu/avx2_math.h"
#include "kernels/cpu/compiler.h"

enum {
    ROWS_MAX = 4,
    FEW_ROWS = 3,    /* up to here 4 vectors' sums have room in the registers, else 2 */
    VECTORS_MAX = 4, /* of K or V at once */
};

/* Scores, then e, of one row of a piece. */
typedef float scores[ROWS_MAX][PIECE] __attribute__((aligned(32)));

/* acc += pairs of K or V (odd elements first) times a pair of one row. */
ALWAYS_INLINE __m256 fused_pair(__m256i pairs, __m256 odd, __m256 even, __m256 acc) {
    return _mm256_fmadd_ps(even_256(pairs), even, _mm256_fmadd_ps(odd_256(pairs), odd, acc));
}

/* acc[j][r] += vector j of K or V, in pairs, times row r's pair at x[r * stride]. Beside the sums
 * there is room in the registers for one row's pair and two vectors, or for one vector. */
ALWAYS_INLINE void fuse_pairs(__m256 acc[VECTORS_MAX][ROWS_MAX], const __m256i pairs[VECTORS_MAX],
                              const float *x, const size_t stride, const int R, const int J) {
    if (R > FEW_ROWS) {
        UNROLL for (int r = 0; r < R; r++) {
            __m256 even = _mm256_set1_ps(x[r * stride]), odd = _mm256_set1_ps(x[r * stride + 1]);
            UNROLL for (int j = 0; j < J; j++) acc[j][r] =
                fused_pair(pairs[j], odd, even, acc[j][r]);
        }
        return;
    }
    UNROLL for (int j = 0; j < J; j++) UNROLL for (int r = 0; r < R; r++) {
        __m256 even = _mm256_set1_ps(x[r * stride]), odd = _mm256_set1_ps(x[r * stride + 1]);
        acc[j][r] = fused_pair(pairs[j], odd, even, acc[j][r]);
    }
}

/* Fetches a line of V, which the values will need, and of the K that is read next: where rows are
 * few, both come from memory, and the CPU sees no stream across pages. */
ALWAYS_INLINE void fetch_ahead(const struct piece *p, uint32_t page, const int U, size_t at) {
    uint32_t next = page + (uint32_t)U < p->page_end ? page + (uint32_t)U : page;
    _mm_prefetch((const char *)p->v[page] + at, _MM_HINT_T1);
    _mm_prefetch((const char *)p->k[next] + at, _MM_HINT_T1);
}

/* Dots of R rows with U pages at once: 2 * U * R independent chains hide fma's latency. */
ALWAYS_INLINE void dots_bf16(const struct piece *p, const float *q, uint32_t page, scores s,
                             const int R, const int U) {
    __m256 acc[VECTORS_MAX][ROWS_MAX];
    UNROLL for (int j = 0; j < 2 * U; j++) UNROLL for (int r = 0; r < R; r++) acc[j][r] =
        _mm256_setzero_ps();
    for (uint32_t d = 0; d < p->head_dim / 2; d++) {
        __m256i pairs[VECTORS_MAX];
        UNROLL for (int u = 0; u < U; u++) {
            const uint8_t *k = p->k[page + (uint32_t)u] + (size_t)d * 64;
            pairs[2 * u] = _mm256_loadu_si256((const void *)k);
            pairs[2 * u + 1] = _mm256_loadu_si256((const void *)(k + 32));
            fetch_ahead(p, page + (uint32_t)u, U, (size_t)d * 64);
        }
        fuse_pairs(acc, pairs, q + 2 * d, HEAD_DIM_MAX, R, 2 * U);
    }
    UNROLL for (int j = 0; j < 2 * U; j++) UNROLL for (int r = 0; r < R; r++)
        _mm256_store_ps(s[r] + page * PAGE + j * 8, acc[j][r]);
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

/* The highest score of a row, scaled, in its 8 lanes. */
ALWAYS_INLINE __m256 scale_scores(const struct piece *p, scores s, int r, const int masked) {
    const __m256 lowest = _mm256_set1_ps(-__builtin_inff()), scale = _mm256_set1_ps(p->scale[r]);
    __m256 top = lowest;
    for (uint32_t t = p->page_first * PAGE; t < p->page_end * PAGE; t += 8) {
        __m256 score = _mm256_mul_ps(_mm256_load_ps(s[r] + t), scale);
        if (masked)
            score = _mm256_blendv_ps(lowest, score, visible(p, r, t));
        _mm256_store_ps(s[r] + t, score);
        top = _mm256_max_ps(top, score);
    }
    return top;
}

/* e rounded to bf16, the upper half of each: it is no denormal (exp has a floor), and NaN is cut.
 */
ALWAYS_INLINE __m256 round_probability(__m256 e) {
    __m256i u = _mm256_castps_si256(e);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256 both = _mm256_blendv_ps(_mm256_castsi256_ps(up), e, _mm256_cmp_ps(e, e, _CMP_UNORD_Q));
    return odd_256(_mm256_castps_si256(both));
}

/* e of 8 keys; exactly 0 where a key is masked. */
ALWAYS_INLINE __m256 probability(const struct piece *p, scores s, int r, uint32_t t, float m,
                                 const int masked) {
    __m256 e = exp_256(_mm256_sub_ps(_mm256_load_ps(s[r] + t), _mm256_set1_ps(m)));
    return masked ? _mm256_and_ps(e, visible(p, r, t)) : e;
}

/* m, e and l of one row; for bf16 pages e is rounded once it has been summed. */
ALWAYS_INLINE void soften_keys(struct piece *p, scores s, int r, const int bf16, const int masked) {
    float lanes[16] __attribute__((aligned(32)));
    _mm256_store_ps(lanes, scale_scores(p, s, r, masked));
    float m = lanes[0];
    for (int i = 1; i < 8; i++)
        m = lanes[i] > m ? lanes[i] : m;
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    for (uint32_t t = p->page_first * PAGE; t < p->page_end * PAGE; t += 16) {
        __m256 first = probability(p, s, r, t, m, masked);
        __m256 second = probability(p, s, r, t + 8, m, masked);
        low = _mm256_add_ps(low, first);
        high = _mm256_add_ps(high, second);
        _mm256_store_ps(s[r] + t, bf16 ? round_probability(first) : first);
        _mm256_store_ps(s[r] + t + 8, bf16 ? round_probability(second) : second);
    }
    _mm256_store_ps(lanes, low);
    _mm256_store_ps(lanes + 8, high);
    p->m[r] = m;
    p->l[r] = tree_f32(lanes);
}

static void soften(struct piece *p, scores s, int r, int bf16) {
    int masked = p->low[r] > p->page_first * PAGE || p->high[r] < p->page_end * PAGE;
    if (bf16 && masked)
        soften_keys(p, s, r, 1, 1);
    else if (bf16)
        soften_keys(p, s, r, 1, 0);
    else
        soften_keys(p, s, r, 0, 1);
}

/* Adding +0 makes -0 into +0: how many masked pages were read must not show. */
ALWAYS_INLINE void store_values(struct piece *p, __m256 acc[VECTORS_MAX][ROWS_MAX], uint32_t at,
                                const int R, const int J) {
    UNROLL for (int j = 0; j < J; j++) UNROLL for (int r = 0; r < R; r++)
        _mm256_storeu_ps(p->o[r] + at + j * 8, _mm256_add_ps(acc[j][r], _mm256_setzero_ps()));
}

/* o of R rows for 8 * J dims from `at`. */
ALWAYS_INLINE void values_bf16(struct piece *p, scores s, uint32_t at, const int R, const int J) {
    __m256 acc[VECTORS_MAX][ROWS_MAX];
    UNROLL for (int j = 0; j < J; j++) UNROLL for (int r = 0; r < R; r++) acc[j][r] =
        _mm256_setzero_ps();
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        const uint8_t *v = p->v[i] + (size_t)at * 4;
        for (uint32_t t = i * PAGE; t < (i + 1) * PAGE; t += 2) {
            __m256i pairs[VECTORS_MAX];
            UNROLL for (int j = 0; j < J; j++) pairs[j] =
                _mm256_loadu_si256((const void *)(v + j * 32));
            fuse_pairs(acc, pairs, s[0] + t, PIECE, R, J);
            v += (size_t)p->head_dim * 4;
        }
    }
    store_values(p, acc, at, R, J);
}

/* o of R rows for 16 dims from `at`. */
ALWAYS_INLINE void values_f32(struct piece *p, scores s, uint32_t at, const int R) {
    __m256 acc[VECTORS_MAX][ROWS_MAX];
    UNROLL for (int r = 0; r < R; r++) acc[0][r] = acc[1][r] = _mm256_setzero_ps();
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        const float *v = (const float *)(const void *)p->v[i] + at;
        for (uint32_t t = i * PAGE; t < (i + 1) * PAGE; t++, v += p->head_dim) {
            __m256 first = _mm256_loadu_ps(v), second = _mm256_loadu_ps(v + 8);
            UNROLL for (int r = 0; r < R; r++) {
                __m256 e = _mm256_set1_ps(s[r][t]);
                acc[0][r] = _mm256_add_ps(acc[0][r], _mm256_mul_ps(first, e));
                acc[1][r] = _mm256_add_ps(acc[1][r], _mm256_mul_ps(second, e));
            }
        }
    }
    store_values(p, acc, at, R, 2);
}

/* The queries' bf16 pairs as f32. */
ALWAYS_INLINE void widen_queries(const struct piece *p, float q[ROWS_MAX][HEAD_DIM_MAX],
                                 const int R) {
    UNROLL for (int r = 0; r < R; r++) for (uint32_t d = 0; d < p->head_dim; d += 8) {
        __m128i half = _mm_loadu_si128((const void *)(p->q + r * HEAD_DIM_MAX + d / 2));
        __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
        _mm256_store_ps(q[r] + d, _mm256_castsi256_ps(wide));
    }
}

ALWAYS_INLINE void piece_bf16_rows(struct piece *p, const int R) {
    float q[ROWS_MAX][HEAD_DIM_MAX] __attribute__((aligned(32)));
    scores s;
    uint32_t i = p->page_first, at = 0;
    widen_queries(p, q, R);
    if (R <= FEW_ROWS)
        for (; i + 2 <= p->page_end; i += 2)
            dots_bf16(p, q[0], i, s, R, 2);
    for (; i < p->page_end; i++)
        dots_bf16(p, q[0], i, s, R, 1);
    for (int r = 0; r < R; r++)
        soften(p, s, r, 1);
    if (R <= FEW_ROWS)
        for (; at + 32 <= p->head_dim; at += 32)
            values_bf16(p, s, at, R, 4);
    for (; at < p->head_dim; at += 16)
        values_bf16(p, s, at, R, 2);
}

ALWAYS_INLINE void piece_f32_rows(struct piece *p, const int R) {
    scores s;
    for (uint32_t i = p->page_first; i < p->page_end; i++)
        dots_f32(p, i, s, R);
    for (int r = 0; r < R; r++)
        soften(p, s, r, 0);
    for (uint32_t at = 0; at < p->head_dim; at += 16)
        values_f32(p, s, at, R);
}

/* As fuse_pairs, in exact integers: K or V has been widened to 16 bits. */
ALWAYS_INLINE void add_pairs(__m256i acc[VECTORS_MAX][ROWS_MAX], const __m256i pairs[VECTORS_MAX],
                             const uint32_t *x, const size_t stride, const int R, const int J) {
    UNROLL for (int j = 0; j < J; j++) UNROLL for (int r = 0; r < R; r++) acc[j][r] =
        _mm256_add_epi32(acc[j][r],
                         _mm256_madd_epi16(pairs[j], _mm256_set1_epi32((int)x[r * stride])));
}

ALWAYS_INLINE __m256i widen_256(const uint8_t *x) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)x));
}

/* As dots_bf16, in exact integers times each key's scale. */
ALWAYS_INLINE void dots_int8(const struct piece *p, uint32_t page, scores s, const int R,
                             const int U) {
    __m256i acc[VECTORS_MAX][ROWS_MAX];
    UNROLL for (int j = 0; j < 2 * U; j++) UNROLL for (int r = 0; r < R; r++) acc[j][r] =
        _mm256_setzero_si256();
    for (uint32_t d = 0; d < p->head_dim / 2; d++) {
        __m256i pairs[VECTORS_MAX];
        UNROLL for (int u = 0; u < U; u++) {
            const uint8_t *k = p->k[page + (uint32_t)u] + (size_t)d * 32;
            pairs[2 * u] = widen_256(k);
            pairs[2 * u + 1] = widen_256(k + 16);
            if (d % 2 == 0)
                fetch_ahead(p, page + (uint32_t)u, U, (size_t)d * 32);
        }
        add_pairs(acc, pairs, p->q + d, HEAD_DIM_MAX, R, 2 * U);
    }
    UNROLL for (int j = 0; j < 2 * U; j++) {
        uint32_t i = page + (uint32_t)j / 2;
        __m256 scale = _mm256_loadu_ps(int8_scales_of(p->k[i], p->head_dim)->k + j % 2 * 8);
        UNROLL for (int r = 0; r < R; r++) _mm256_store_ps(
            s[r] + page * PAGE + j * 8, _mm256_mul_ps(_mm256_cvtepi32_ps(acc[j][r]), scale));
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

/* As values_bf16, in exact integers times the scale of the row's probabilities. */
ALWAYS_INLINE void values_int8(struct piece *p, pairs probabilities, const float *step, uint32_t at,
                               const int R, const int J) {
    __m256i acc[VECTORS_MAX][ROWS_MAX];
    __m256 o[VECTORS_MAX][ROWS_MAX];
    UNROLL for (int j = 0; j < J; j++) UNROLL for (int r = 0; r < R; r++) acc[j][r] =
        _mm256_setzero_si256();
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        const uint8_t *v = p->v[i] + (size_t)at * 2;
        for (uint32_t t = i * (PAGE / 2); t < (i + 1) * (PAGE / 2); t++) {
            __m256i wide[VECTORS_MAX];
            UNROLL for (int j = 0; j < J; j++) wide[j] = widen_256(v + j * 16);
            add_pairs(acc, wide, probabilities[0] + t, PIECE / 2, R, J);
            v += (size_t)p->head_dim * 2;
        }
    }
    UNROLL for (int j = 0; j < J; j++) UNROLL for (int r = 0; r < R; r++) o[j][r] =
        _mm256_mul_ps(_mm256_cvtepi32_ps(acc[j][r]), _mm256_set1_ps(step[r]));
    store_values(p, o, at, R, J);
}

ALWAYS_INLINE void piece_int8_rows(struct piece *p, const int R) {
    scores s;
    pairs probabilities;
    float step[ROWS_MAX];
    uint32_t i = p->page_first, at = 0;
    if (R <= FEW_ROWS)
        for (; i + 2 <= p->page_end; i += 2)
            dots_int8(p, i, s, R, 2);
    for (; i < p->page_end; i++)
        dots_int8(p, i, s, R, 1);
    for (int r = 0; r < R; r++) {
        soften(p, s, r, 0);
        step[r] = scale_probabilities(p, s, probabilities[r], r);
    }
    if (R <= FEW_ROWS)
        for (; at + 32 <= p->head_dim; at += 32)
            values_int8(p, probabilities, step, at, R, 4);
    for (; at < p->head_dim; at += 16)
        values_int8(p, probabilities, step, at, R, 2);
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
    default:                     \
        CALL(p, 4);              \
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

/* Norms, rotation, activation and logit helpers in AVX2, and the AVX2 tables. What does not fill a
 * register is done by the scalar form, which gives the same bits. */
#include "kernels/cpu/avx2.h"

#include "kernels/cpu/avx2_math.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/portable.h"
#include "kernels/cpu/scalar.h"

static void rmsnorm(const float *x, const float *w, uint32_t n, float eps, float *y) {
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    float lanes[16];
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        low = _mm256_fmadd_ps(a, a, low);
        high = _mm256_fmadd_ps(b, b, high);
    }
    _mm256_storeu_ps(lanes, low);
    _mm256_storeu_ps(lanes + 8, high);
    for (uint32_t j = 0; i + j < n; j++)
        lanes[j] = fused(x[i + j], x[i + j], lanes[j]);
    float r = 1.0f / square_root(tree_f32(lanes) / (float)n + eps);
    for (i = 0; i + 8 <= n; i += 8) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(r));
        _mm256_storeu_ps(y + i, _mm256_mul_ps(v, _mm256_loadu_ps(w + i)));
    }
    for (; i < n; i++)
        y[i] = x[i] * r * w[i];
}

/* Four neighbouring pairs at a time; the rest, and the other order of pairs, as the compiler does.
 */
static void rope(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot,
                 const float *cos_row, const float *sin_row, int halves) {
    if (halves || n_rot % 8) {
        bt_fma_rope(x, n_heads, head_dim, n_rot, cos_row, sin_row, halves);
        return;
    }
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    for (uint32_t h = 0; h < n_heads; h++, x += head_dim)
        for (uint32_t i = 0; i < n_rot / 2; i += 4) {
            __m256 c = _mm256_castps128_ps256(_mm_loadu_ps(cos_row + i));
            __m256 s = _mm256_castps128_ps256(_mm_loadu_ps(sin_row + i));
            c = _mm256_permutevar8x32_ps(c, twice);
            s = _mm256_permutevar8x32_ps(s, twice);
            __m256 v = _mm256_loadu_ps(x + 2 * i);
            __m256 a = _mm256_moveldup_ps(v), b = _mm256_movehdup_ps(v);
            __m256 even = _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s));
            __m256 odd = _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c));
            _mm256_storeu_ps(x + 2 * i, _mm256_blend_ps(even, odd, 0xaa));
        }
}

static void silu_mul(const float *gate, const float *up, size_t n, float *out) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 g = _mm256_loadu_ps(gate + i);
        __m256 e = exp_256(_mm256_xor_ps(g, sign));
        __m256 sigmoid = _mm256_div_ps(g, _mm256_add_ps(one, e));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(sigmoid, _mm256_loadu_ps(up + i)));
    }
    for (; i < n; i++)
        out[i] = silu_mul_f32(gate[i], up[i]);
}

static float max(const float *x, size_t n) {
    float m = x[0], lanes[8];
    size_t i = 0;
    if (n >= 8) {
        __m256 top = _mm256_loadu_ps(x);
        for (; i + 8 <= n; i += 8)
            top = _mm256_max_ps(top, _mm256_loadu_ps(x + i));
        _mm256_storeu_ps(lanes, top);
        for (int j = 0; j < 8; j++)
            m = lanes[j] > m ? lanes[j] : m;
    }
    for (; i < n; i++)
        m = x[i] > m ? x[i] : m;
    return m + 0.0f;
}

static uint32_t argmax(const float *x, size_t n) {
    float top = max(x, n);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 equal = _mm256_cmp_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(top), _CMP_EQ_OQ);
        int mask = _mm256_movemask_ps(equal);
        if (mask)
            return (uint32_t)(i + (size_t)__builtin_ctz((unsigned)mask));
    }
    for (; i < n; i++)
        if (x[i] == top)
            return (uint32_t)i;
    return 0;
}

static void exp_shifted(const float *x, float shift, size_t n, float *out) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i,
                         exp_256(_mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(shift))));
    for (; i < n; i++)
        out[i] = exp_f32(x[i] - shift);
}

#define SHARED_ENTRIES                                                                            \
    BT_PACK_ENTRIES, .prepare = bt_avx2_prepare, .rmsnorm = rmsnorm, .rope = rope,                \
                     .silu_mul = silu_mul, .add = bt_fma_add, .cache_write = bt_avx2_cache_write, \
                     .attention = bt_avx2_attention, .attention_merge = bt_avx2_attention_merge,  \
                     .all_finite = bt_fma_all_finite, .argmax = argmax, .max = max,               \
                     .exp = exp_shifted, .scale = bt_fma_scale, .divide = bt_fma_divide,          \
                     .to_bf16 = bt_fma_to_bf16

const struct bt_kernels bt_avx2_kernels = {
    .name = "avx2",
    SHARED_ENTRIES,
    .linear = bt_avx2_linear,
};

const struct bt_kernels bt_avx2vnni_kernels = {
    .name = "avx2vnni",
    SHARED_ENTRIES,
    .linear = bt_avx2vnni_linear,
};

const struct bt_kernels bt_avx2vnni_evex_kernels = {
    .name = "avx2vnni",
    SHARED_ENTRIES,
    .linear = bt_avx2vnni_evex_linear,
};

/* Norms, rotation, activation and logit helpers in AVX-512, and the AVX-512 tables. */
#include "kernels/cpu/avx512.h"

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/avx512_math.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/portable.h"
#include "kernels/cpu/scalar.h"

static void rmsnorm(const float *x, const float *w, uint32_t n, float eps, float *y) {
    __m512 lanes = _mm512_setzero_ps();
    for (uint32_t i = 0; i < n; i += 16) {
        __m512 v = _mm512_maskz_loadu_ps(first_lanes(n - i), x + i);
        lanes = _mm512_fmadd_ps(v, v, lanes);
    }
    __m512 r = _mm512_set1_ps(1.0f / square_root(tree_512(lanes) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), r);
        _mm512_mask_storeu_ps(y + i, mask, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, w + i)));
    }
}

/* Neighbouring pairs of 8 rotations at a time: fma(a, c, -(b s)) in even lanes, fma(b, c, a s)
 * would round otherwise than fma(a, s, b c), so each lane multiplies what the contract says first.
 */
static void rope_pairs(float *x, uint32_t half, const float *cos_row, const float *sin_row) {
    const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    for (uint32_t i = 0; i < half; i += 8) {
        uint32_t n = half - i < 8 ? half - i : 8;
        __mmask16 mask = first_lanes(2 * n);
        __m512 c = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(first_lanes(n), cos_row + i));
        __m512 s = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(first_lanes(n), sin_row + i));
        __m512 v = _mm512_maskz_loadu_ps(mask, x + 2 * i);
        __m512 a = _mm512_moveldup_ps(v), b = _mm512_movehdup_ps(v);
        __m512 even = _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s));
        __m512 odd = _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c));
        _mm512_mask_storeu_ps(x + 2 * i, mask, _mm512_mask_blend_ps(0xaaaa, even, odd));
    }
}

static void rope_halves(float *x, uint32_t half, const float *cos_row, const float *sin_row) {
    for (uint32_t i = 0; i < half; i += 16) {
        __mmask16 mask = first_lanes(half - i);
        __m512 a = _mm512_maskz_loadu_ps(mask, x + i);
        __m512 b = _mm512_maskz_loadu_ps(mask, x + half + i);
        __m512 c = _mm512_maskz_loadu_ps(mask, cos_row + i);
        __m512 s = _mm512_maskz_loadu_ps(mask, sin_row + i);
        _mm512_mask_storeu_ps(x + i, mask, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        _mm512_mask_storeu_ps(x + half + i, mask, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)));
    }
}

static void rope(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot,
                 const float *cos_row, const float *sin_row, int halves) {
    for (uint32_t h = 0; h < n_heads; h++, x += head_dim) {
        if (halves)
            rope_halves(x, n_rot / 2, cos_row, sin_row);
        else
            rope_pairs(x, n_rot / 2, cos_row, sin_row);
    }
}

static void silu_mul(const float *gate, const float *up, size_t n, float *out) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512i sign = _mm512_set1_epi32((int)0x80000000u);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __m512 g = _mm512_maskz_loadu_ps(mask, gate + i), u = _mm512_maskz_loadu_ps(mask, up + i);
        __m512 minus_g = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(g), sign));
        __m512 sigmoid = _mm512_div_ps(g, _mm512_add_ps(one, exp_512(minus_g)));
        _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(sigmoid, u));
    }
}

static void add(float *x, const float *y, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __m512 sum =
            _mm512_add_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_maskz_loadu_ps(mask, y + i));
        _mm512_mask_storeu_ps(x + i, mask, sum);
    }
}

static int all_finite(const float *x, size_t n) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i top = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += 16) {
        __m512i v = _mm512_maskz_loadu_epi32(first_lanes(n - i), x + i);
        top = _mm512_max_epu32(top, _mm512_and_si512(v, magnitude));
    }
    return _mm512_reduce_max_epu32(top) < 0x7f800000u;
}

static float max(const float *x, size_t n) {
    __m512 top = _mm512_set1_ps(x[0]);
    for (size_t i = 0; i < n; i += 16)
        top = _mm512_max_ps(top, _mm512_mask_loadu_ps(top, first_lanes(n - i), x + i));
    return _mm512_reduce_max_ps(top) + 0.0f;
}

static uint32_t argmax(const float *x, size_t n) {
    __m512 top = _mm512_set1_ps(max(x, n));
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __mmask16 equal =
            _mm512_mask_cmp_ps_mask(mask, _mm512_maskz_loadu_ps(mask, x + i), top, _CMP_EQ_OQ);
        if (equal)
            return (uint32_t)(i + (size_t)__builtin_ctz(equal));
    }
    return 0;
}

static void exp_shifted(const float *x, float shift, size_t n, float *out) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __m512 v = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_set1_ps(shift));
        _mm512_mask_storeu_ps(out + i, mask, exp_512(v));
    }
}

static void to_bf16(const float *x, size_t n, uint16_t *out) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __m256i half = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
        _mm256_mask_storeu_epi16(out + i, mask, half);
    }
}

#define SHARED_ENTRIES                                                                           \
    BT_PACK_ENTRIES, .prepare = bt_avx512_prepare, .rmsnorm = rmsnorm, .rope = rope,             \
                     .silu_mul = silu_mul, .add = add, .cache_write = bt_avx2_cache_write,       \
                     .all_finite = all_finite, .argmax = argmax, .max = max, .exp = exp_shifted, \
                     .scale = bt_fma_scale, .divide = bt_fma_divide, .to_bf16 = to_bf16

const struct bt_kernels bt_avx512_kernels = {
    .name = "avx512",
    SHARED_ENTRIES,
    .linear = bt_avx512_linear,
    .attention = bt_avx512_attention,
    .attention_merge = bt_avx512_attention_merge,
};

const struct bt_kernels bt_avx512_fma_kernels = {
    .name = "avx512",
    SHARED_ENTRIES,
    .linear = bt_avx512_fma_linear,
    .attention = bt_avx2_attention,
    .attention_merge = bt_avx2_attention_merge,
};

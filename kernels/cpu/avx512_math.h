/* The contract's vector arithmetic in AVX-512: exp, tree sums, rounding to bf16. */
#pragma once
#include <immintrin.h>
#include <stdint.h>

#include "kernels/cpu/exp_coefficients.h"

/* e^x of 16 numbers, as exp_f32. The operand order of min and max keeps NaN. */
static inline __m512 exp_512(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(EXP_LOW), x);
    x = _mm512_min_ps(_mm512_set1_ps(EXP_HIGH), x);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(EXP_LOG2E)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(EXP_LN2_HIGH), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(EXP_LN2_LOW), r);
    __m512 p = _mm512_set1_ps(EXP_P0);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P5));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* Adds halves 8, 4, 2, 1 apart. */
static inline float tree_512(__m512 v) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

static inline __mmask16 first_lanes(size_t n) {
    return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1);
}

/* acc + the sums of products of 16-bit pairs. Written as the instruction: around its intrinsic gcc
 * 12 copies the sums from register to register, which costs a third of the time. */
static inline __m512i dot_pairs_512(__m512i acc, __m512i a, __m512i b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}

/* 32 numbers of one byte in 16 bits each. */
static inline __m512i widen_512(const uint8_t *from) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)from));
}

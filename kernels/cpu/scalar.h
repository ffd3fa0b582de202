/* Scalar arithmetic of the contract, the same bits with and without FMA instructions. */
#pragma once
#include <stdint.h>
#include <string.h>
#include <xmmintrin.h>

#include "kernels/cpu/exp_coefficients.h"

static inline float from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint32_t to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static inline float bf16_to_f32(uint16_t b) {
    return from_bits((uint32_t)b << 16);
}

/* As vcvtneps2bf16: NaN keeps its top half and becomes quiet, denormals become zero, the rest is
 * rounded to nearest even. */
static inline uint16_t f32_to_bf16(float f) {
    uint32_t u = to_bits(f), magnitude = u & 0x7fffffffu;
    uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
    uint32_t nan = u >> 16 | 0x40u, zero = u >> 16 & 0x8000u;
    return (uint16_t)(magnitude > 0x7f800000u ? nan : magnitude < 0x00800000u ? zero : rounded);
}

/* As vcvtph2ps: half denormals become normal numbers, NaN becomes quiet. */
static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 0x3ffu;
    if (exponent == 31)
        return from_bits(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0u));
    if (exponent)
        return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float value = (float)mantissa * 0x1p-24f;
    return from_bits(sign | to_bits(value));
}

/* One rounding of a * b + c. Without the instruction: the product is exact in double, the sum is
 * rounded to odd there, so that the second rounding cannot go wrong (Boldo and Melquiond 2008). */
static inline float fused(float a, float b, float c) {
#ifdef __FMA__
    return __builtin_fmaf(a, b, c);
#else
    double p = (double)a * (double)b, s = p + (double)c;
    double back = s - p, rest = (p - (s - back)) + ((double)c - back);
    uint64_t u;
    memcpy(&u, &s, 8);
    /* Of NaN (from infinities) neither comparison holds. */
    if ((rest > 0.0 || rest < 0.0) && !(u & 1u))
        u = (rest > 0.0) == (s > 0.0) ? u + 1 : u - 1;
    memcpy(&s, &u, 8);
    return (float)s;
#endif
}

/* The same for a and b that are bf16: product and sum then need one double rounding only. */
static inline float fused_bf16(float a, float b, float c) {
#ifdef __FMA__
    return __builtin_fmaf(a, b, c);
#else
    return (float)((double)a * (double)b + (double)c);
#endif
}

static inline float square_root(float x) {
    return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
}

/* e^x; NaN stays NaN. */
static inline float exp_f32(float x) {
    x = x < EXP_LOW ? EXP_LOW : x;
    x = x > EXP_HIGH ? EXP_HIGH : x;
    float shifted = x * EXP_LOG2E + EXP_ROUNDER;
    float n = shifted - EXP_ROUNDER;
    float r = fused(-n, EXP_LN2_HIGH, x);
    r = fused(-n, EXP_LN2_LOW, r);
    float p = EXP_P0;
    p = fused(p, r, EXP_P1);
    p = fused(p, r, EXP_P2);
    p = fused(p, r, EXP_P3);
    p = fused(p, r, EXP_P4);
    p = fused(p, r, EXP_P5);
    p = fused(p, r * r, r + 1.0f);
    uint32_t power = to_bits(shifted) - to_bits(EXP_ROUNDER) + 127u;
    return p * from_bits(power << 23);
}

static inline float silu_mul_f32(float g, float u) {
    return g / (1.0f + exp_f32(-g)) * u;
}

/* The scale that takes n numbers to integers of at most `top` (127 or 32767), max|x| / top. NaN and
 * infinity show in it. */
static inline float symmetric_scale(const float *x, uint32_t n, float top) {
    int32_t most = 0; /* without their sign, bits of floats are ordered as they are */
    for (uint32_t i = 0; i < n; i++) {
        int32_t u = (int32_t)(to_bits(x[i]) & 0x7fffffffu);
        most = u > most ? u : most;
    }
    return from_bits((uint32_t)most) / top;
}

/* Of a scale: where not, every integer is 0. */
static inline int scale_is_usable(float s) {
    return to_bits(s) != 0 && to_bits(s) < 0x7f800000u;
}

/* RNE of |x| < 2^22. */
static inline int32_t round_f32(float x) {
    return (int32_t)(to_bits(x + EXP_ROUNDER) - to_bits(EXP_ROUNDER));
}

/* Adds halves 8, 4, 2, 1 apart. */
static inline float tree_f32(const float v[16]) {
    float a[8];
    for (int i = 0; i < 8; i++)
        a[i] = v[i] + v[i + 8];
    for (int i = 0; i < 4; i++)
        a[i] = a[i] + a[i + 4];
    return (a[0] + a[2]) + (a[1] + a[3]);
}

/* Portable norms, rotation, activation and logit helpers, and the portable tables. */
#include "kernels/cpu/layout.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/portable.h"
#include "kernels/cpu/scalar.h"

void NAME(rmsnorm)(const float *x, const float *w, uint32_t n, float eps, float *y) {
    float lanes[16] = {0}; /* lane i mod 16 */
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (uint32_t j = 0; j < 16; j++)
            lanes[j] = fused(x[i + j], x[i + j], lanes[j]);
    for (uint32_t j = 0; i + j < n; j++)
        lanes[j] = fused(x[i + j], x[i + j], lanes[j]);
    float r = 1.0f / square_root(tree_f32(lanes) / (float)n + eps);
    for (i = 0; i < n; i++)
        y[i] = x[i] * r * w[i];
}

void NAME(rope)(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot, const float *cos_row,
                const float *sin_row, int halves) {
    uint32_t half = n_rot / 2, step = halves ? 1 : 2, apart = halves ? half : 1;
    for (uint32_t h = 0; h < n_heads; h++, x += head_dim)
        for (uint32_t i = 0; i < half; i++) {
            float *first = x + (size_t)i * step, *second = first + apart;
            float a = *first, b = *second, c = cos_row[i], s = sin_row[i];
            *first = fused(a, c, -(b * s));
            *second = fused(a, s, b * c);
        }
}

void NAME(silu_mul)(const float *gate, const float *up, size_t n, float *out) {
    for (size_t i = 0; i < n; i++)
        out[i] = silu_mul_f32(gate[i], up[i]);
}

void NAME(add)(float *x, const float *y, size_t n) {
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] + y[i];
}

int NAME(all_finite)(const float *x, size_t n) {
    uint32_t top = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t u = to_bits(x[i]) & 0x7fffffffu;
        top = u > top ? u : top;
    }
    return top < 0x7f800000u;
}

uint32_t NAME(argmax)(const float *x, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return (uint32_t)best;
}

/* Of +0 and -0 the answer is +0 and of a denormal zero, so that no order of comparing shows. */
float NAME(max)(const float *x, size_t n) {
    float m = x[0];
    for (size_t i = 1; i < n; i++)
        m = x[i] > m ? x[i] : m;
    return m + 0.0f;
}

void NAME(exp)(const float *x, float shift, size_t n, float *out) {
    for (size_t i = 0; i < n; i++)
        out[i] = exp_f32(x[i] - shift);
}

void NAME(scale)(float *x, size_t n, float f) {
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] * f;
}

void NAME(divide)(float *x, size_t n, float f) {
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] / f;
}

void NAME(to_bf16)(const float *x, size_t n, uint16_t *out) {
    for (size_t i = 0; i < n; i++)
        out[i] = f32_to_bf16(x[i]);
}

const struct bt_kernels NAME(kernels) = {
#ifdef BT_KERNELS_FMA
    .name = "fma",
#else
    .name = "portable",
#endif
    BT_PACK_ENTRIES,
    .prepare = NAME(prepare),
    .linear = NAME(linear),
    .rmsnorm = NAME(rmsnorm),
    .rope = NAME(rope),
    .cache_write = bt_pack_cache_write,
    .silu_mul = NAME(silu_mul),
    .add = NAME(add),
    .attention = NAME(attention),
    .attention_merge = NAME(attention_merge),
    .all_finite = NAME(all_finite),
    .argmax = NAME(argmax),
    .max = NAME(max),
    .exp = NAME(exp),
    .scale = NAME(scale),
    .divide = NAME(divide),
    .to_bf16 = NAME(to_bf16),
};

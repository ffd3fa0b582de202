/* The portable source, compiled twice: for x86-64 as it began (bt_portable_*) and with AVX2 and FMA
 * switched on in the compiler (bt_fma_*). It states the contract; every other path must equal it.
 */
#pragma once
#include "kernels/kernels.h"

#define BT_PORTABLE_DECLARE(PREFIX)                                                             \
    void PREFIX##_prepare(enum bt_prepared form, const float *x, size_t x_stride,               \
                          uint32_t row_first, uint32_t row_end, uint32_t n_in, void *prepared); \
    void PREFIX##_linear(const struct bt_linear *args);                                         \
    void PREFIX##_rmsnorm(const float *x, const float *w, uint32_t n, float eps, float *y);     \
    void PREFIX##_rope(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot,           \
                       const float *cos_row, const float *sin_row, int halves);                 \
    void PREFIX##_silu_mul(const float *gate, const float *up, size_t n, float *out);           \
    void PREFIX##_add(float *x, const float *y, size_t n);                                      \
    void PREFIX##_attention(const struct bt_attention *args);                                   \
    void PREFIX##_attention_merge(const struct bt_attention *args);                             \
    int PREFIX##_all_finite(const float *x, size_t n);                                          \
    uint32_t PREFIX##_argmax(const float *x, size_t n);                                         \
    float PREFIX##_max(const float *x, size_t n);                                               \
    void PREFIX##_exp(const float *x, float shift, size_t n, float *out);                       \
    void PREFIX##_scale(float *x, size_t n, float f);                                           \
    void PREFIX##_divide(float *x, size_t n, float f);                                          \
    void PREFIX##_to_bf16(const float *x, size_t n, uint16_t *out);                             \
    extern const struct bt_kernels PREFIX##_kernels;

BT_PORTABLE_DECLARE(bt_portable)
BT_PORTABLE_DECLARE(bt_fma)

#ifdef BT_KERNELS_FMA
#define NAME(verb) bt_fma_##verb
#else
#define NAME(verb) bt_portable_##verb
#endif

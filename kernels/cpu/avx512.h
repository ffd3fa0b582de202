/* Kernels in AVX-512 instructions (F, BW, DQ, VL, VNNI, BF16); the same bits as the portable ones.
 */
#pragma once
#include "kernels/kernels.h"

extern const struct bt_kernels bt_avx512_kernels;
/* The same without vdpbf16ps, for a CPU whose vdpbf16ps rounds otherwise. */
extern const struct bt_kernels bt_avx512_fma_kernels;

/* Compares vdpbf16ps with two fused multiply-adds, odd element first, on a list of corners. */
int bt_avx512_dot_is_exact(void);

void bt_avx512_prepare(enum bt_prepared form, const float *x, size_t x_stride, uint32_t row_first,
                       uint32_t row_end, uint32_t n_in, void *prepared);
void bt_avx512_linear(const struct bt_linear *args);
void bt_avx512_fma_linear(const struct bt_linear *args);
void bt_avx512_attention(const struct bt_attention *args);
void bt_avx512_attention_merge(const struct bt_attention *args);

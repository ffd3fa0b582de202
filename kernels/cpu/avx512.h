/* Kernels in AVX-512 instructions (F, BW, DQ, VL, VNNI, BF16); the same bits as the portable ones.
 */
#pragma once
#include "kernels/kernels.h"

extern const struct bt_kernels bt_avx512_kernels;
/* The same without vdpbf16ps, for a CPU whose vdpbf16ps rounds otherwise. */
extern const struct bt_kernels bt_avx512_fma_kernels;

/* Compares vdpbf16ps with two fused multiply-adds, odd element first, on a list of corners. */
int bt_avx512_dot_is_exact(void);

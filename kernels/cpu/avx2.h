/* Kernels in AVX2 and FMA instructions; the same bits as the portable ones. */
#pragma once
#include "kernels/kernels.h"

extern const struct bt_kernels bt_avx2_kernels;

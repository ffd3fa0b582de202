/* Kernels in AVX2 and FMA instructions; the same bits as the portable ones. */
#pragma once
#include "kernels/kernels.h"

extern const struct bt_kernels bt_avx2_kernels;

void bt_avx2_prepare(enum bt_prepared form, const float *x, size_t x_stride, uint32_t row_first,
                     uint32_t row_end, uint32_t n_in, void *prepared);
void bt_avx2_linear(const struct bt_linear *args);
void bt_avx2_attention(const struct bt_attention *args);
void bt_avx2_attention_pieces(const struct bt_attention *args);
void bt_avx2_attention_merge(const struct bt_attention *args);

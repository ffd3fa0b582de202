/* Kernels in AVX2 and FMA instructions, without and with vpdpbusd; the same bits as the portable
 * ones. */
#pragma once
#include "kernels/kernels.h"

extern const struct bt_kernels bt_avx2_kernels;
/* With vpdpbusd in 256 bits: as AVX-VNNI (laptops without AVX-512), or in AVX-512's encoding (CPUs
 * that have VNNI, but not BF16). */
extern const struct bt_kernels bt_avx2vnni_kernels;
extern const struct bt_kernels bt_avx2vnni_evex_kernels;

void bt_avx2_prepare(enum bt_prepared form, const float *x, size_t x_stride, uint32_t row_first,
                     uint32_t row_end, uint32_t n_in, void *prepared);
void bt_avx2_linear(const struct bt_linear *args);
void bt_avx2vnni_linear(const struct bt_linear *args);
void bt_avx2vnni_evex_linear(const struct bt_linear *args);
void bt_avx2_cache_write(const struct bt_cache_write *args);
void bt_avx2_attention(const struct bt_attention *args);
void bt_avx2_attention_merge(const struct bt_attention *args);

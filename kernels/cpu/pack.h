/* Repacking of weights, sizes, and the cache's bookkeeping: the entries that all CPU tables share.
 */
#pragma once
#include "kernels/kernels.h"

size_t bt_pack_bytes(enum bt_pack pack, uint32_t n_out, uint32_t n_in);
int bt_pack_rows(enum bt_pack pack, enum bt_tensor_type type, const void *tensor, uint32_t n_out,
                 uint32_t n_in, uint32_t row_first, uint32_t row_end, void *packed);
size_t bt_pack_row_bytes(enum bt_tensor_type type, uint32_t n);
int bt_pack_dequantise(enum bt_tensor_type type, const void *row, uint32_t n, float *out);
enum bt_prepared bt_pack_prepared_for(enum bt_pack pack);
size_t bt_pack_prepared_bytes(enum bt_prepared form, uint32_t n_rows, uint32_t n_in);
size_t bt_pack_page_bytes(enum bt_cache_type cache, uint32_t n_kv_heads, uint32_t head_dim);
void bt_pack_zero_tail(enum bt_cache_type cache, void *page, uint32_t slot, uint32_t n_kv_heads,
                       uint32_t head_dim);
void bt_pack_cache_write(const struct bt_cache_write *args);

/* The entries of a table that are the same on every CPU path. */
#define BT_PACK_ENTRIES                                                                    \
    .packed_bytes = bt_pack_bytes, .repack = bt_pack_rows, .row_bytes = bt_pack_row_bytes, \
    .dequantise = bt_pack_dequantise, .prepared_for = bt_pack_prepared_for,                \
    .prepared_bytes = bt_pack_prepared_bytes, .page_bytes = bt_pack_page_bytes,            \
    .zero_tail = bt_pack_zero_tail

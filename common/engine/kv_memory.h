/* The memory of the KV cache: [layer][page][kv head][K, then V][...]; one (layer, page) is one
 * piece.
 *
 * Knows addresses, not states: which page may be read or written by whom is common/kv/kv_pool.h's.
 * The order inside a page is the kernels' (kernels/kernels.h, enum bt_cache_type).
 *
 * The system gives memory when it is first touched, and then clears it, 2 MB at a time: the first
 * prompt would wait for that in every layer (measured: 0.15 s for 30 layers). A thread of the
 * lowest priority touches it all after the start instead. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

struct bt_device;

struct bt_kv_memory {
    uint8_t *base; /* in huge pages where the system gives them */
    size_t page_bytes;
    uint32_t n_layers, n_pages;
    struct bt_device *device; /* that it was taken from */
    pthread_t toucher;
    bool has_toucher;
    atomic_bool stop; /* tells the toucher to end early */
};

/* All zero. BT_E_TOO_LARGE where the size does not fit 63 bits, BT_E_NO_MEMORY. */
bt_status bt_kv_memory_init(struct bt_kv_memory *mem, struct bt_device *device, uint32_t n_layers,
                            uint32_t n_pages, size_t page_bytes, struct bt_error *err);
/* Accepts a zeroed struct. */
void bt_kv_memory_fini(struct bt_kv_memory *mem);

size_t bt_kv_memory_bytes(const struct bt_kv_memory *mem);
/* page_bytes bytes, any thread; layer and page are ours, so they are asserted. */
void *bt_kv_memory_page(const struct bt_kv_memory *mem, uint32_t layer, uint32_t page);

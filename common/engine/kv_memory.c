/* The memory of the KV cache: [layer][page][kv head][K, then V][...]. */
#include "common/engine/kv_memory.h"

#include "common/base/assert.h"
#include "common/base/bytes.h"
#include "common/device/device.h"

bt_status bt_kv_memory_init(struct bt_kv_memory *mem, struct bt_device *device, uint32_t n_layers,
                            uint32_t n_pages, size_t page_bytes, struct bt_error *err) {
    uint64_t bytes = 0;
    if (!bt_mul_u64((uint64_t)n_layers * n_pages, page_bytes, &bytes) || bytes > INT64_MAX)
        return bt_fail(err, BT_E_TOO_LARGE,
                       "a cache of %u layers, %u pages of %zu bytes is too large", n_layers,
                       n_pages, page_bytes);
    uint8_t *base = bt_device_alloc(device, (size_t)bytes);
    if (!base)
        return bt_fail(err, BT_E_NO_MEMORY,
                       "no memory for the cache: %llu bytes for %u pages in %u layers",
                       (unsigned long long)bytes, n_pages, n_layers);
    *mem = (struct bt_kv_memory){base, page_bytes, n_layers, n_pages, device};
    return BT_OK;
}

void bt_kv_memory_fini(struct bt_kv_memory *mem) {
    if (mem->base)
        bt_device_free(mem->device, mem->base, bt_kv_memory_bytes(mem));
    *mem = (struct bt_kv_memory){0};
}

size_t bt_kv_memory_bytes(const struct bt_kv_memory *mem) {
    return (size_t)mem->n_layers * mem->n_pages * mem->page_bytes;
}

void *bt_kv_memory_page(const struct bt_kv_memory *mem, uint32_t layer, uint32_t page) {
    BT_ASSERT(layer < mem->n_layers && page < mem->n_pages);
    return mem->base + ((size_t)layer * mem->n_pages + page) * mem->page_bytes;
}

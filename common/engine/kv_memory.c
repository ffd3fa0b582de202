/* The memory of the KV cache: [layer][page][kv head][K, then V][...]. */
#include "common/engine/kv_memory.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/base/assert.h"
#include "common/base/bytes.h"
#include "common/device/device.h"

enum { STRIPE_BYTES = 2 << 20 };

/* Touches stripe after stripe of all layers: pages are handed out from the lowest on. The contents
 * stay as they are, so a step may write meanwhile. On a kernel older than 5.14 nothing happens. */
static void *touch_all(void *arg) {
    struct bt_kv_memory *mem = arg;
    size_t layer_bytes = (size_t)mem->n_pages * mem->page_bytes;
    /* Lowest normal priority: with SCHED_IDLE it would never run beside a busy compute thread. */
    setpriority(PRIO_PROCESS, (id_t)gettid(), 19);
    for (size_t at = 0; at < layer_bytes; at += STRIPE_BYTES)
        for (uint32_t layer = 0; layer < mem->n_layers; layer++) {
            uintptr_t from = (uintptr_t)mem->base + layer * layer_bytes + at;
            size_t n = layer_bytes - at < STRIPE_BYTES ? layer_bytes - at : STRIPE_BYTES;
            uintptr_t first = from & ~(uintptr_t)4095, end = (from + n) & ~(uintptr_t)4095;
            if (atomic_load(&mem->stop) ||
                (end > first && madvise((void *)first, end - first, MADV_POPULATE_WRITE)))
                return NULL;
        }
    return NULL;
}

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
    memset(mem, 0, sizeof *mem);
    mem->base = base;
    mem->page_bytes = page_bytes;
    mem->n_layers = n_layers;
    mem->n_pages = n_pages;
    mem->device = device;
    /* Without the thread the memory comes when it is used: slower, not wrong. Small caches come
     * from the heap and need none. */
    mem->has_toucher =
        bytes >= 2 * STRIPE_BYTES && !pthread_create(&mem->toucher, NULL, touch_all, mem);
    return BT_OK;
}

void bt_kv_memory_fini(struct bt_kv_memory *mem) {
    if (mem->has_toucher) {
        atomic_store(&mem->stop, true);
        pthread_join(mem->toucher, NULL);
    }
    if (mem->base)
        bt_device_free(mem->device, mem->base, bt_kv_memory_bytes(mem));
    memset(mem, 0, sizeof *mem);
}

size_t bt_kv_memory_bytes(const struct bt_kv_memory *mem) {
    return (size_t)mem->n_layers * mem->n_pages * mem->page_bytes;
}

void *bt_kv_memory_page(const struct bt_kv_memory *mem, uint32_t layer, uint32_t page) {
    BT_ASSERT(layer < mem->n_layers && page < mem->n_pages);
    return mem->base + ((size_t)layer * mem->n_pages + page) * mem->page_bytes;
}

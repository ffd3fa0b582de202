/* The memory of the KV cache: [layer][page][kv head][K, then V][...]. */
#include "common/engine/kv_memory.h"

#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/base/assert.h"
#include "common/base/bytes.h"
#include "common/device/device.h"

enum { STRIPE_BYTES = 2 << 20, SYSTEM_PAGE_BYTES = 4096 };

/* Makes the system back the page at `at`; its contents stay as they are, whoever writes meanwhile,
 * which is why a sanitizer that sees a race here is told not to look. */
#if defined __SANITIZE_THREAD__
__attribute__((no_sanitize("thread")))
#endif
static void
touch(uint8_t *at) {
    __atomic_fetch_or(at, 0, __ATOMIC_RELAXED);
}

/* Touches stripe after stripe of all layers: pages are handed out from the lowest on. Page by page,
 * not by MADV_POPULATE_WRITE: that holds the lock of the whole address space while it clears, and a
 * thread of this priority that loses its CPU meanwhile kept every mmap of the process waiting
 * (measured: half a second of a start on a busy machine). */
static void *touch_all(void *arg) {
    struct bt_kv_memory *mem = arg;
    size_t layer_bytes = (size_t)mem->n_pages * mem->page_bytes;
    /* Lowest normal priority: with SCHED_IDLE it would never run beside a busy compute thread. */
    setpriority(PRIO_PROCESS, (id_t)gettid(), 19);
    for (size_t at = 0; at < layer_bytes; at += STRIPE_BYTES)
        for (uint32_t layer = 0; layer < mem->n_layers; layer++) {
            uint8_t *from = mem->base + layer * layer_bytes + at;
            size_t n = layer_bytes - at < STRIPE_BYTES ? layer_bytes - at : STRIPE_BYTES;
            for (size_t i = 0; i < n; i += SYSTEM_PAGE_BYTES) {
                if (atomic_load_explicit(&mem->stop, memory_order_relaxed))
                    return NULL;
                touch(from + i);
            }
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

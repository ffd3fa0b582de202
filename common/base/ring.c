/* Carries values from one thread to an event loop: a fixed ring of copies and an eventfd. */
#include "common/base/ring.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { ELEMENTS_MAX = 1 << 24 };

bt_status bt_ring_init(struct bt_ring *ring, uint32_t n_elements, uint32_t element_bytes,
                       struct bt_error *err) {
    memset(ring, 0, sizeof *ring);
    ring->fd = -1;
    if (n_elements == 0 || n_elements > ELEMENTS_MAX)
        return bt_fail(err, BT_E_INVALID, "ring of %u elements, must be 1 to %d", n_elements,
                       ELEMENTS_MAX);
    if (element_bytes == 0)
        return bt_fail(err, BT_E_INVALID, "ring elements have 0 bytes, must have at least 1");
    uint32_t size = 1;
    while (size < n_elements)
        size *= 2;
    ring->elements = calloc(size, element_bytes);
    if (!ring->elements)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a ring of %u elements of %u bytes", size,
                       element_bytes);
    ring->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (ring->fd < 0) {
        bt_fail(err, BT_E_IO, "cannot open an eventfd: %s", strerror(errno));
        bt_ring_fini(ring);
        return BT_E_IO;
    }
    ring->n_elements = size;
    ring->element_bytes = element_bytes;
    return BT_OK;
}

void bt_ring_fini(struct bt_ring *ring) {
    /* In a zeroed ring fd is 0, which is not ours: only a ring with elements has opened one. */
    if (ring->elements && ring->fd >= 0)
        close(ring->fd);
    free(ring->elements);
    memset(ring, 0, sizeof *ring);
    ring->fd = -1;
}

static uint8_t *element_at(const struct bt_ring *ring, uint32_t i) {
    return ring->elements + (size_t)(i & (ring->n_elements - 1)) * ring->element_bytes;
}

bool bt_ring_push(struct bt_ring *ring, const void *element) {
    uint32_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
    if (head - tail == ring->n_elements)
        return false;
    memcpy(element_at(ring, head), element, ring->element_bytes);
    /* Both sides store their own index and then load the other's, all sequentially consistent: so
     * either the consumer sees this element before it goes to sleep, or we see that it had taken
     * everything else and wake it. */
    atomic_store(&ring->head, head + 1);
    if (atomic_load(&ring->tail) == head) {
        uint64_t one = 1;
        /* It can only fail where the counter is at its end; the fd is readable then. */
        ssize_t written = write(ring->fd, &one, sizeof one);
        (void)written;
    }
    return true;
}

bool bt_ring_pop(struct bt_ring *ring, void *element) {
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    if (atomic_load(&ring->head) == tail)
        return false;
    memcpy(element, element_at(ring, tail), ring->element_bytes);
    atomic_store(&ring->tail, tail + 1);
    return true;
}

int bt_ring_fd(const struct bt_ring *ring) {
    return ring->fd;
}

void bt_ring_acknowledge(struct bt_ring *ring) {
    uint64_t count;
    /* Nothing to read is as good: the pops that follow decide. */
    ssize_t n = read(ring->fd, &count, sizeof count);
    (void)n;
}

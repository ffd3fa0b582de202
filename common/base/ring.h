/* A fixed ring that carries values from one thread to an event loop and wakes the loop by an
 * eventfd.
 *
 * One producer thread, one consumer thread. The eventfd is written only when the consumer may have
 * run dry, so a burst costs one wake-up. Memory is fixed at init. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"

struct bt_ring {
    /* Each index has one writer; padding keeps them off each other's cache line (no _Alignas: an
     * owner on the heap would have to allocate aligned). */
    _Atomic uint32_t head; /* producer: next to write */
    uint8_t head_padding[124];
    _Atomic uint32_t tail; /* consumer: next to read */
    uint8_t tail_padding[124];
    uint8_t *elements;
    uint32_t n_elements; /* a power of two */
    uint32_t element_bytes;
    int fd; /* -1 when not open */
};

/* n_elements is rounded up to a power of two. Refuses 0 and more than 2^24 elements, 0 bytes.
 * BT_E_NO_MEMORY, BT_E_IO (no eventfd). */
bt_status bt_ring_init(struct bt_ring *ring, uint32_t n_elements, uint32_t element_bytes,
                       struct bt_error *err);
/* Accepts a zeroed or half-built ring. Both threads must be done with it. */
void bt_ring_fini(struct bt_ring *ring);

/* Producer. Copies element_bytes; false when the ring is full. */
bool bt_ring_push(struct bt_ring *ring, const void *element);
/* Consumer. Copies the oldest element out; false when the ring is empty. */
bool bt_ring_pop(struct bt_ring *ring, void *element);

/* Consumer. Readable (poll, epoll, libevent) while there may be something to pop. */
int bt_ring_fd(const struct bt_ring *ring);
/* Consumer. Call when the fd is readable, before the pops; then pop until the ring is empty. */
void bt_ring_acknowledge(struct bt_ring *ring);

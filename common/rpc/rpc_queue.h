/* Inside common/rpc: bytes of a call that wait to be sent, in one buffer that grows.
 *
 * Zeroed is empty. Not locked: whoever has the call's lock, or is the only thread that uses it. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bt_rpc_queue {
    uint8_t *bytes; /* [capacity]; what waits is [at, end) */
    size_t at, end, capacity;
};

static inline size_t bt_rpc_queue_size(const struct bt_rpc_queue *queue) {
    return queue->end - queue->at;
}

void bt_rpc_queue_fini(struct bt_rpc_queue *queue);
/* Forgets what waits and keeps the buffer. */
void bt_rpc_queue_clear(struct bt_rpc_queue *queue);
/* Makes room for n_bytes more, which may then be put. False: no memory. */
bool bt_rpc_queue_reserve(struct bt_rpc_queue *queue, size_t n_bytes);
void bt_rpc_queue_put(struct bt_rpc_queue *queue, const void *bytes, size_t n_bytes);
/* Moves all of `from` behind what is in `to`. False: no memory, and nothing was moved. */
bool bt_rpc_queue_move(struct bt_rpc_queue *to, struct bt_rpc_queue *from);
/* The first n_bytes are sent. An empty queue keeps a buffer of at most keep_bytes. */
void bt_rpc_queue_drop(struct bt_rpc_queue *queue, size_t n_bytes, size_t keep_bytes);

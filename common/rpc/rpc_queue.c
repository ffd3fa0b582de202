/* Grows, moves and empties the buffer of bytes that wait. */
#include "common/rpc/rpc_queue.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"

void bt_rpc_queue_fini(struct bt_rpc_queue *queue) {
    free(queue->bytes);
    *queue = (struct bt_rpc_queue){0};
}

void bt_rpc_queue_clear(struct bt_rpc_queue *queue) {
    queue->at = queue->end = 0;
}

bool bt_rpc_queue_reserve(struct bt_rpc_queue *queue, size_t n_bytes) {
    if (queue->capacity - queue->end >= n_bytes)
        return true;
    size_t used = bt_rpc_queue_size(queue);
    if (used)
        memmove(queue->bytes, queue->bytes + queue->at, used);
    queue->at = 0;
    queue->end = used;
    if (queue->capacity - used >= n_bytes)
        return true;
    size_t capacity = 2 * (used + n_bytes);
    uint8_t *bytes = realloc(queue->bytes, capacity);
    if (!bytes)
        return false;
    queue->bytes = bytes;
    queue->capacity = capacity;
    return true;
}

void bt_rpc_queue_put(struct bt_rpc_queue *queue, const void *bytes, size_t n_bytes) {
    BT_ASSERT(queue->capacity - queue->end >= n_bytes);
    if (n_bytes)
        memcpy(queue->bytes + queue->end, bytes, n_bytes);
    queue->end += n_bytes;
}

bool bt_rpc_queue_move(struct bt_rpc_queue *to, struct bt_rpc_queue *from) {
    if (bt_rpc_queue_size(to) == 0) { /* the common case: the buffers change hands */
        struct bt_rpc_queue empty = *to;
        *to = *from;
        *from = empty;
    } else {
        if (!bt_rpc_queue_reserve(to, bt_rpc_queue_size(from)))
            return false;
        bt_rpc_queue_put(to, from->bytes + from->at, bt_rpc_queue_size(from));
    }
    bt_rpc_queue_clear(from);
    return true;
}

void bt_rpc_queue_drop(struct bt_rpc_queue *queue, size_t n_bytes, size_t keep_bytes) {
    BT_ASSERT(n_bytes <= bt_rpc_queue_size(queue));
    queue->at += n_bytes;
    if (queue->at < queue->end)
        return;
    bt_rpc_queue_clear(queue);
    if (queue->capacity > keep_bytes)
        bt_rpc_queue_fini(queue);
}

/* A binary heap whose elements know their positions. */
#include "router/request_heap.h"

#include <stdlib.h>

#include "common/base/assert.h"

bt_status bt_request_heap_init(struct bt_request_heap *heap, struct bt_request *requests,
                               uint32_t n_max, enum bt_request_order order, struct bt_error *err) {
    *heap = (struct bt_request_heap){.requests = requests, .n_max = n_max, .order = order};
    heap->elements = calloc(n_max, sizeof *heap->elements);
    return heap->elements
               ? BT_OK
               : bt_fail(err, BT_E_NO_MEMORY, "no memory for a heap of %u requests", n_max);
}

void bt_request_heap_fini(struct bt_request_heap *heap) {
    free(heap->elements);
    *heap = (struct bt_request_heap){0};
}

static uint32_t *position(const struct bt_request_heap *heap, struct bt_request *req) {
    return heap->order == BT_ORDER_TIMER ? &req->timer_position : &req->queue_position;
}

static bool before(const struct bt_request_heap *heap, uint32_t a, uint32_t b) {
    const struct bt_request *x = &heap->requests[a], *y = &heap->requests[b];
    uint64_t x_key = heap->order == BT_ORDER_TIMER ? x->timer_us : x->arrived_us;
    uint64_t y_key = heap->order == BT_ORDER_TIMER ? y->timer_us : y->arrived_us;
    return x_key != y_key ? x_key < y_key : x->id < y->id;
}

static void set(struct bt_request_heap *heap, uint32_t at, uint32_t element) {
    heap->elements[at] = element;
    *position(heap, &heap->requests[element]) = at + 1;
}

static void sift(struct bt_request_heap *heap, uint32_t at) {
    uint32_t element = heap->elements[at];
    while (at && before(heap, element, heap->elements[(at - 1) / 2])) {
        set(heap, at, heap->elements[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= heap->n)
            break;
        if (child + 1 < heap->n && before(heap, heap->elements[child + 1], heap->elements[child]))
            child++;
        if (!before(heap, heap->elements[child], element))
            break;
        set(heap, at, heap->elements[child]);
        at = child;
    }
    set(heap, at, element);
}

bool bt_request_heap_has(const struct bt_request_heap *heap, const struct bt_request *req) {
    return heap->order == BT_ORDER_TIMER ? req->timer_position : req->queue_position;
}

void bt_request_heap_put(struct bt_request_heap *heap, struct bt_request *req) {
    if (!bt_request_heap_has(heap, req)) {
        BT_ASSERT(heap->n < heap->n_max);
        set(heap, heap->n++, (uint32_t)(req - heap->requests));
    }
    sift(heap, *position(heap, req) - 1);
}

void bt_request_heap_remove(struct bt_request_heap *heap, struct bt_request *req) {
    if (!bt_request_heap_has(heap, req))
        return;
    uint32_t at = *position(heap, req) - 1;
    *position(heap, req) = 0;
    heap->n--;
    if (at < heap->n) {
        set(heap, at, heap->elements[heap->n]);
        sift(heap, at);
    }
}

struct bt_request *bt_request_heap_first(const struct bt_request_heap *heap) {
    return heap->n ? &heap->requests[heap->elements[0]] : NULL;
}

bool bt_request_heap_is_valid(const struct bt_request_heap *heap) {
    for (uint32_t i = 0; i < heap->n; i++) {
        if (*position(heap, &heap->requests[heap->elements[i]]) != i + 1)
            return false;
        if (i && before(heap, heap->elements[i], heap->elements[(i - 1) / 2]))
            return false;
    }
    return heap->n <= heap->n_max;
}

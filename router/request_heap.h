/* A heap of requests: by the time at which they are due, or by age.
 *
 * Each request stores its own position (1-based, 0 = not in the heap), so that any one can leave at
 * any time. Memory is fixed at init. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "router/request.h"

enum bt_request_order {
    BT_ORDER_TIMER, /* timer_us; position in timer_position */
    BT_ORDER_AGE,   /* arrived_us, then id; position in queue_position */
};

struct bt_request_heap {
    struct bt_request *requests; /* the core's table; elements are indices in it */
    uint32_t *elements;
    uint32_t n, n_max;
    enum bt_request_order order;
};

bt_status bt_request_heap_init(struct bt_request_heap *heap, struct bt_request *requests,
                               uint32_t n_max, enum bt_request_order order, struct bt_error *err);
void bt_request_heap_fini(struct bt_request_heap *heap);

bool bt_request_heap_has(const struct bt_request_heap *heap, const struct bt_request *req);
/* Adds it, or moves it to where its changed key belongs. */
void bt_request_heap_put(struct bt_request_heap *heap, struct bt_request *req);
/* Harmless when it is not there. */
void bt_request_heap_remove(struct bt_request_heap *heap, struct bt_request *req);
/* NULL when empty. */
struct bt_request *bt_request_heap_first(const struct bt_request_heap *heap);
bool bt_request_heap_is_valid(const struct bt_request_heap *heap);

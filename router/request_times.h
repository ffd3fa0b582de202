/* How long requests took, for /metrics: to the first token, between tokens, in all, in each stage.
 */
#pragma once
#include <stdint.h>

#include "common/base/metrics.h"
#include "router/core.h"

struct evbuffer;

struct bt_request_times {
    struct bt_histogram ttft, itl; /* per token, as they leave */
    struct bt_histogram total, per_token, stages[BT_SPAN_COUNT];
};

void bt_request_times_init(struct bt_request_times *times);
/* A request has ended. Only those that ended well count. */
void bt_request_times_add(struct bt_request_times *times, const struct bt_request_record *record);
void bt_request_times_write(struct evbuffer *out, const struct bt_request_times *times);

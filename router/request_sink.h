/* Where a request's tokens go: the one table between the generation and what carries it to the
 * client (server-sent events, one JSON object, later gRPC).
 *
 * All on the loop thread. A sink is embedded in what implements it. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/sampling.h"
#include "common/base/status.h"
#include "common/text/slice.h"

/* One token as the client gets it. */
struct bt_piece {
    uint32_t index;
    int32_t token;
    uint64_t hash;         /* logits hash or 0 */
    struct bt_slice text;  /* what is certain and may be shown; often empty */
    enum bt_finish finish; /* not NONE on the last */
};

struct bt_sink_end {
    bt_status status;
    const char *reason; /* a sentence, "" for BT_OK */
    uint32_t n_generated;
};

struct bt_request_sink;

struct bt_request_sink_ops {
    /* The client does not read: give no more pieces until it asks for them. */
    bool (*is_full)(const struct bt_request_sink *sink);
    /* In order, each index once. Borrowed for the call. */
    void (*piece)(struct bt_request_sink *sink, const struct bt_piece *piece);
    /* Once, after the last piece. */
    void (*end)(struct bt_request_sink *sink, const struct bt_sink_end *end);
};

struct bt_request_sink {
    const struct bt_request_sink_ops *ops;
};

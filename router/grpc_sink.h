/* One call of Inference.Generate: the sink that turns pieces into messages of its stream.
 *
 * Lives from the call's STARTED to its CLOSED; loop thread. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/rpc/inference_wire.h"
#include "common/rpc/public_server.h"
#include "router/generate_request.h"
#include "router/request_sink.h"

struct bt_completion;
struct bt_grpc_api;

struct bt_grpc_choice {
    enum bt_finish finish;
    int32_t last_token; /* that ended it */
    int8_t stop;        /* index of the stop string that matched, -1: none */
};

struct bt_grpc_call {
    struct bt_request_sink base;
    struct bt_grpc_api *api;
    struct bt_public_call *public;
    struct bt_completion *completion; /* NULL: not started, or ended */
    uint64_t id;                      /* the completion's */
    uint8_t n_stop_tokens;
    int32_t stop_tokens[BT_STOP_TOKENS];
    size_t n_stops;
    uint16_t stop_bytes[BT_STOP_STRINGS];
    char stops[BT_STOP_STRINGS][BT_STOP_BYTES];
    struct bt_grpc_call *next, *previous; /* all of the api's */
    uint32_t n_choices;
    struct bt_grpc_choice choices[];
};

/* NULL: no memory. n_choices: of the request, at most BT_CHOICES. */
struct bt_grpc_call *bt_grpc_call_create(struct bt_grpc_api *api, struct bt_public_call *public,
                                         const struct bt_generate_request *request);
void bt_grpc_call_destroy(struct bt_grpc_call *call); /* the public call is not its own */

/* The calls of the public gRPC door: Generate, Tokenize, ListModels, health and reflection
 * (proto/).
 *
 * Before the same front as HTTP's handlers (completion.h). Health follows whether the router is
 * ready, and turns NOT_SERVING first when it drains; then new calls are refused and open streams
 * finish. Everything runs on the loop thread; grpc_door.h opens and closes it. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/rpc/inference_wire.h"
#include "common/rpc/public_health.h"
#include "common/rpc/public_server.h"
#include "common/rpc/wire_arena.h"
#include "router/generate_request.h"
#include "router/grpc_listener.h"

struct bt_grpc_call;
struct bt_shell;
struct bt_tls;
struct event;

enum { BT_GRPC_METHODS = 7 };
extern const struct bt_public_method bt_grpc_methods[BT_GRPC_METHODS];

struct bt_grpc_api {
    struct bt_shell *shell;
    struct bt_tls *tls; /* the HTTP door's files, for HTTP/2; NULL: plain */
    struct bt_public_server *server;
    struct bt_grpc_listener *listener;
    struct event *event;
    struct bt_public_health health;
    struct bt_wire_arena arena;        /* of the message at hand */
    struct bt_inference_buffer buffer; /* of the answer at hand */
    struct bt_caller caller;           /* of the call at hand */
    struct bt_grpc_call *calls;        /* of Generate */
    size_t n_calls;
    uint64_t n_requests, n_refused;
};

/* Takes the server's events: calls are answered, or started. */
void bt_grpc_api_turn(struct bt_grpc_api *api);
/* Frees a call of Generate whose completion is no more. */
void bt_grpc_api_end_call(struct bt_grpc_call *call);
/* Ends a call with the status, its sentence and the details. prompt names the field better; may be
 * NULL. */
void bt_grpc_api_refuse(struct bt_grpc_api *api, struct bt_public_call *call, bt_status status,
                        const char *why, const struct bt_generate_fault *fault,
                        const struct bt_inference_prompt *prompt);

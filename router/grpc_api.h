/* The public gRPC door: Generate, Tokenize, ListModels, health and reflection (proto/).
 *
 * Stands beside the HTTP door before the same front (completion.h). Everything runs on the loop
 * thread. Health follows whether the router is ready, and turns NOT_SERVING first when it drains;
 * then new calls are refused and open streams finish. */
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

/* After the HTTP door, whose host, keys and certificate it shares. BT_E_INVALID, BT_E_IO (cannot
 * listen there), BT_E_NO_MEMORY. */
bt_status bt_grpc_api_open(struct bt_shell *shell, struct bt_grpc_api **out, struct bt_error *err);
/* Cancels what is open; completions have been freed. NULL is accepted. */
void bt_grpc_api_close(struct bt_grpc_api *api);
/* The certificate again; what cannot be read stays as it was, and the log says so. */
void bt_grpc_api_reload(struct bt_grpc_api *api);
/* "host:port" with the true port. */
const char *bt_grpc_api_address(const struct bt_grpc_api *api);
/* At the end of each turn: says the health, sends what the turn brought. */
void bt_grpc_api_flush(struct bt_grpc_api *api);
/* From the loop's tick: cancels clients that do not read. */
void bt_grpc_api_sweep(struct bt_grpc_api *api, uint64_t now_us);
/* Ends a call with the status, its sentence and the details. prompt names the field better; may be
 * NULL. */
void bt_grpc_api_refuse(struct bt_grpc_api *api, struct bt_public_call *call, bt_status status,
                        const char *why, const struct bt_generate_fault *fault,
                        const struct bt_inference_prompt *prompt);

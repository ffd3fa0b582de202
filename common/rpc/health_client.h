/* Asks a gRPC server for its health once (grpc.health.v1.Health/Check), plain text, and waits. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"

/* After bt_rpc_init. address: "host:port"; service: "" asks for the whole server. BT_OK: *serving
 * is what it said. BT_E_NOT_FOUND: it knows no such service; BT_E_DEADLINE: no answer within
 * timeout_ms; BT_E_PEER_GONE: nobody answers there, or not as gRPC. */
bt_status bt_health_client_ask(const char *address, const char *service, uint32_t timeout_ms,
                               bool *serving, struct bt_error *err);

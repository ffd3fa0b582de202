/* A loopback port that answers grpc.health.v1 for one process, whatever its other ports are.
 *
 * For probes that run beside the process (`baton health` in its container): a worker has no gRPC
 * port of its own, and a router's may be under TLS, which the kubelet's probe does not speak. Plain
 * text, so loopback only. "liveness" is SERVING as long as the loop answers; "" and "readiness"
 * follow what the owner says. Everything is called on the loop thread. */
#pragma once
#include <stdbool.h>

#include "common/base/limits.h"
#include "common/base/status.h"

struct bt_health_port;
struct event_base;

/* After bt_rpc_init. listen: "host:port", port 0: chosen by the system. BT_E_INVALID: not an
 * address, or not loopback; BT_E_IO; BT_E_NO_MEMORY. */
bt_status bt_health_port_open(struct event_base *base, const char *listen,
                              struct bt_health_port **out, struct bt_error *err);
/* NULL is accepted. */
void bt_health_port_close(struct bt_health_port *port);
/* Not ready at first. Once per turn of the loop; NULL is accepted. */
void bt_health_port_set(struct bt_health_port *port, bool is_ready);

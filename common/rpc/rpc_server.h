/* The router's end of Registry.Attach: listens for workers.
 *
 * Any other method is answered UNIMPLEMENTED; a stream past max_streams RESOURCE_EXHAUSTED. Dead
 * peers are noticed by keepalive (3 s + 1 s) as a backstop of the heartbeats. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/rpc/rpc_stream.h"

struct bt_tls;

struct bt_rpc_server_config {
    const char *listen;    /* "host:port"; port 0: chosen by the system */
    struct bt_tls *tls;    /* workers show a certificate for the role that they join as; NULL: plain
                              text, which the caller refuses other than on loopback without
                              --insecure. Shared */
    uint32_t max_streams;  /* slots; 0: 2 * BT_MAX_WORKERS (an old stream may linger while its
                              worker attaches again) */
    size_t send_bytes_max; /* per stream; 0: 16 MiB */
};

struct bt_rpc_server;

/* Loop thread, after bt_rpc_init. BT_E_INVALID (address), BT_E_IO (cannot listen there),
 * BT_E_NO_MEMORY. */
bt_status bt_rpc_server_start(const struct bt_rpc_server_config *config, struct bt_rpc_server **out,
                              struct bt_error *err);
/* Cancels what is open (workers see UNAVAILABLE), ends the thread and frees all, the streams
 * included; no events come any more. NULL is accepted. */
void bt_rpc_server_stop(struct bt_rpc_server *server);

/* After bt_tls_reload of its tls: connections made from about a second later use it. */
bt_status bt_rpc_server_reload(struct bt_rpc_server *server, struct bt_error *err);

/* "host:port" with the true port. */
const char *bt_rpc_server_address(const struct bt_rpc_server *server);
/* Borrowed until stop. */
struct bt_rpc_streams *bt_rpc_server_streams(struct bt_rpc_server *server);

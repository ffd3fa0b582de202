/* The gRPC door of a router: its port, beside the HTTP door and with the same host, keys and
 * certificate. Loop thread. */
#pragma once
#include <stddef.h>

#include "common/base/status.h"

struct bt_shell;
struct evbuffer;

/* After the HTTP door. BT_E_INVALID, BT_E_IO (cannot listen there), BT_E_NO_MEMORY. */
bt_status bt_grpc_door_open(struct bt_shell *shell, struct bt_error *err);
/* Cancels what is open; completions have been freed. Accepts one half open. */
void bt_grpc_door_close(struct bt_shell *shell);
/* The certificate again; what cannot be read stays as it was, and the log says so. */
void bt_grpc_door_reload(struct bt_shell *shell);
/* "host:port" with the true port. */
const char *bt_grpc_door_address(const struct bt_shell *shell);
/* At the end of each turn: says the health, sends what the turn brought. */
void bt_grpc_door_flush(struct bt_shell *shell);
/* From the loop's tick: cancels clients that do not read. */
void bt_grpc_door_sweep(struct bt_shell *shell);
/* Of Generate, not yet closed. */
size_t bt_grpc_door_calls(const struct bt_shell *shell);
void bt_grpc_door_write_metrics(const struct bt_shell *shell, struct evbuffer *out);

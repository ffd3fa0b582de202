/* The HTTP door of a router: which page is whose handler and asks for what, its keys and its
 * certificate, read again on SIGHUP. */
#pragma once
#include "common/base/status.h"

struct bt_shell;
struct evbuffer;

/* Reads the key file and the certificate, which the gRPC door uses too, and listens. */
bt_status bt_http_door_open(struct bt_shell *shell, struct bt_error *err);
/* Keys and certificate again; what cannot be read stays as it was, and the log says so. */
void bt_http_door_reload(struct bt_shell *shell);
void bt_http_door_close(struct bt_shell *shell); /* accepts one half open */
/* What the port counts, as Prometheus text. */
void bt_http_door_write_metrics(const struct bt_shell *shell, struct evbuffer *out);

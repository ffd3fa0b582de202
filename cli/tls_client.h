/* TLS for the tools' HTTP clients: whom they trust, and an encrypted stream for evhttp. */
#pragma once
#include <stdbool.h>

#include "common/base/status.h"

struct bufferevent;
struct event_base;
struct bt_tls_client;

/* ca_file: PEM of the certificates to trust, a server's own among them; NULL: the system's.
 * any_host: the name in the certificate is not compared. BT_E_INVALID, BT_E_NO_MEMORY. */
bt_status bt_tls_client_open(const char *ca_file, bool any_host, struct bt_tls_client **out,
                             struct bt_error *err);
void bt_tls_client_close(struct bt_tls_client *client); /* NULL is accepted */
/* For evhttp_connection_base_bufferevent_new, to a host by name or address; NULL: no memory. */
struct bufferevent *bt_tls_client_stream(struct bt_tls_client *client, struct event_base *base,
                                         const char *host);

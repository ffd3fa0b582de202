/* Opens a socket that listens for clients. */
#pragma once
#include <stdint.h>

#include "common/base/limits.h"
#include "common/base/status.h"

/* host: an address or a name; port 0: chosen by the system; what: "gRPC", stands in the sentences.
 * *fd is non-blocking, accepted sockets inherit its options. address gets "host:port" with the true
 * port. BT_E_INVALID (host), BT_E_IO (cannot listen there). */
bt_status bt_listen_open(const char *host, uint16_t port, const char *what, int *fd,
                         char address[BT_ADDRESS_BYTES], struct bt_error *err);

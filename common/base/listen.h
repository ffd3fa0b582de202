/* Opens a TCP socket that listens: the one way in which every port here is opened. */
#pragma once
#include <stdint.h>

#include "common/base/limits.h"
#include "common/base/status.h"

struct bt_listen {
    const char *host; /* an address or a name */
    uint16_t port;    /* 0: chosen by the system */
    const char *what; /* "gRPC", "HTTP"; stands in the sentences */
    int backlog;
    int send_buffer_bytes; /* of accepted sockets; 0: as the kernel likes, which may be 4 MB each */
};

/* *fd is non-blocking, the first of the name's addresses that can be listened on; accepted sockets
 * inherit TCP_NODELAY and the send buffer. address gets "host:port" with the true port.
 * BT_E_INVALID (host), BT_E_IO (cannot listen there). */
bt_status bt_listen_open(const struct bt_listen *listen, int *fd, char address[BT_ADDRESS_BYTES],
                         struct bt_error *err);

/* Refuses HTTP requests that two parsers could read in two ways.
 *
 * libevent's parser is lenient: of two Content-Lengths the first wins, "+3" is a length, an unknown
 * Transfer-Encoding is ignored and the body is read as the next request. Behind another proxy each
 * of these lets one client's bytes become another client's request (RFC 9112, 11.2), so all of them
 * are refused here and the connection is closed. Pure. */
#pragma once
#include <stddef.h>

#include "common/base/status.h"

struct bt_http_header {
    const char *name, *value;
};

/* The headers in the order in which they came; version is 10 for HTTP/1.0 and 11 for 1.1.
 * BT_E_INVALID names the header. */
bt_status bt_http_check_headers(const struct bt_http_header *headers, size_t n_headers, int version,
                                struct bt_error *err);

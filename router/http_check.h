/* Refuses HTTP requests that two parsers could read in two ways.
 *
 * Lenient parsers take the first of two Content-Lengths, read "+3" as a length, or ignore an
 * unknown Transfer-Encoding and read the body as the next request. Behind another proxy each of
 * these lets one client's bytes become another client's request (RFC 9112, 11.2), so all of them
 * are refused here and the connection is closed. Pure. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "common/base/status.h"

struct bt_http_header {
    const char *name, *value;
};

/* The headers in the order in which they came; version is 10 for HTTP/1.0 and 11 for 1.1.
 * BT_E_INVALID names the header. */
bt_status bt_http_check_headers(const struct bt_http_header *headers, size_t n_headers, int version,
                                struct bt_error *err);
/* A token of RFC 9110, 5.6.2: what a name or a method may be. */
bool bt_http_is_token(const char *text);

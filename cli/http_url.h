/* Reads the URL of a router, as the tools take it. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct bt_http_url {
    bool https;
    char host[256];      /* without the brackets of an IPv6 address */
    uint16_t port;       /* that of the scheme where none is given */
    char authority[300]; /* host:port, for the Host header */
    char path[256];      /* without slashes at its end */
};

/* False: it is not of the form http[s]://host[:port][/path]. */
bool bt_http_url_parse(const char *url, struct bt_http_url *out);

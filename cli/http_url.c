/* Takes a URL apart with libevent's parser. */
#include "cli/http_url.h"

#include <stdio.h>
#include <string.h>
#include <event2/http.h>

static bool fill(const struct evhttp_uri *uri, struct bt_http_url *out) {
    const char *scheme = evhttp_uri_get_scheme(uri), *host = evhttp_uri_get_host(uri),
               *path = evhttp_uri_get_path(uri);
    bool plain = scheme && !strcmp(scheme, "http");
    int port = evhttp_uri_get_port(uri);
    size_t n_path = path ? strlen(path) : 0;
    out->https = scheme && !strcmp(scheme, "https");
    if ((!plain && !out->https) || !host || !*host || strlen(host) >= sizeof out->host ||
        port == 0 || n_path >= sizeof out->path)
        return false;
    /* An IPv6 address stands in brackets in a URL only. */
    bool bracket = host[0] == '[' && host[strlen(host) - 1] == ']';
    snprintf(out->host, sizeof out->host, "%.*s", (int)strlen(host) - 2 * bracket, host + bracket);
    out->port = (uint16_t)(port > 0 ? port : out->https ? 443 : 80);
    snprintf(out->authority, sizeof out->authority, "%s:%u", host, out->port);
    while (n_path && path[n_path - 1] == '/')
        n_path--;
    snprintf(out->path, sizeof out->path, "%.*s", (int)n_path, path ? path : "");
    return true;
}

bool bt_http_url_parse(const char *url, struct bt_http_url *out) {
    struct evhttp_uri *uri = evhttp_uri_parse(url);
    *out = (struct bt_http_url){0};
    bool good = uri && fill(uri, out);
    if (uri)
        evhttp_uri_free(uri);
    return good;
}

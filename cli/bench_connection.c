/* Keeps a bench's connections and makes new ones when all are busy. */
#include "cli/bench_connection.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <event2/bufferevent.h>
#include <event2/event.h>

#include "cli/http_url.h"
#include "cli/tls_client.h"

struct bt_bench_connection {
    struct bt_bench_connections *owner;
    struct evhttp_connection *http;
    bool closed;                               /* the server closed it while it was idle */
    struct bt_bench_connection *next;          /* in idle or dead */
    struct bt_bench_connection *newer, *older; /* in all */
};

struct bt_bench_connections {
    struct event_base *base;
    struct event *sweep; /* frees `dead` outside of evhttp's callbacks */
    struct bt_bench_connection *all, *idle, *dead;
    struct bt_tls_client *tls; /* NULL: plain */
    struct bt_http_url url;
    char address[64]; /* what its host resolved to */
    char authorization[300];
    uint32_t timeout_s;
};

/* ---- the target ---- */

static bt_status parse_url(struct bt_bench_connections *c, const char *url, struct bt_error *err) {
    if (!bt_http_url_parse(url, &c->url))
        return bt_fail(err, BT_E_INVALID,
                       "url \"%.100s\" is not of the form http[s]://host[:port][/path]", url);
    /* People give the base URL of OpenAI clients, which ends with /v1. */
    size_t n = strlen(c->url.path);
    if (n >= 3 && !strcmp(c->url.path + n - 3, "/v1"))
        c->url.path[n - 3] = 0;
    return BT_OK;
}

static bt_status resolve(struct bt_bench_connections *c, struct bt_error *err) {
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    int code = getaddrinfo(c->url.host, NULL, &hints, &list);
    if (code == 0)
        code = getnameinfo(list->ai_addr, list->ai_addrlen, c->address, sizeof c->address, NULL, 0,
                           NI_NUMERICHOST);
    if (list)
        freeaddrinfo(list);
    return code ? bt_fail(err, BT_E_INVALID, "host \"%.100s\": %s", c->url.host, gai_strerror(code))
                : BT_OK;
}

static void destroy(struct bt_bench_connection *connection) {
    evhttp_connection_set_closecb(connection->http, NULL, NULL);
    evhttp_connection_free(connection->http);
    free(connection);
}

static void take_out(struct bt_bench_connection *connection) {
    struct bt_bench_connection *newer = connection->newer, *older = connection->older;
    *(newer ? &newer->older : &connection->owner->all) = older;
    if (older)
        older->newer = newer;
}

static void on_sweep(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_bench_connections *c = arg;
    while (c->dead) {
        struct bt_bench_connection *connection = c->dead;
        c->dead = connection->next;
        take_out(connection);
        destroy(connection);
    }
}

bt_status bt_bench_connections_create(struct event_base *base, const struct bt_bench_target *target,
                                      struct bt_bench_connections **out, struct bt_error *err) {
    struct bt_bench_connections *c = calloc(1, sizeof *c);
    if (!c)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for connections");
    *out = c;
    c->base = base;
    c->timeout_s = target->timeout_s;
    BT_TRY(parse_url(c, target->url, err));
    if (target->api_key && snprintf(c->authorization, sizeof c->authorization, "Bearer %s",
                                    target->api_key) >= (int)sizeof c->authorization)
        return bt_fail(err, BT_E_INVALID, "api-key has %zu bytes, it may have at most %zu",
                       strlen(target->api_key), sizeof c->authorization - 8);
    BT_TRY(resolve(c, err));
    if (c->url.https)
        BT_TRY(bt_tls_client_open(target->ca_file, false, &c->tls, err));
    c->sweep = evtimer_new(base, on_sweep, c);
    return c->sweep ? BT_OK : bt_fail(err, BT_E_NO_MEMORY, "out of memory for connections");
}

void bt_bench_connections_destroy(struct bt_bench_connections *c) {
    if (!c)
        return;
    for (struct bt_bench_connection *at = c->all, *older; at; at = older) {
        older = at->older;
        destroy(at);
    }
    if (c->sweep)
        event_free(c->sweep);
    bt_tls_client_close(c->tls);
    free(c);
}

const char *bt_bench_connections_prefix(const struct bt_bench_connections *c) {
    return c->url.path;
}

/* ---- connections ---- */

static void on_close(struct evhttp_connection *http, void *arg) {
    (void)http;
    struct bt_bench_connection *connection = arg;
    connection->closed = true;
}

static struct bt_bench_connection *create(struct bt_bench_connections *c) {
    struct bt_bench_connection *connection = calloc(1, sizeof *connection);
    struct bufferevent *bev =
        connection && c->tls ? bt_tls_client_stream(c->tls, c->base, c->url.host) : NULL;
    if (!connection || (c->tls && !bev)) {
        free(connection);
        return NULL;
    }
    connection->owner = c;
    connection->http =
        evhttp_connection_base_bufferevent_new(c->base, NULL, bev, c->address, c->url.port);
    if (!connection->http) {
        if (bev)
            bufferevent_free(bev);
        free(connection);
        return NULL;
    }
    evhttp_connection_set_timeout(connection->http, (int)c->timeout_s);
    evhttp_connection_set_closecb(connection->http, on_close, connection);
    connection->older = c->all;
    if (c->all)
        c->all->newer = connection;
    c->all = connection;
    return connection;
}

static void bury(struct bt_bench_connection *connection) {
    struct bt_bench_connections *c = connection->owner;
    connection->next = c->dead;
    c->dead = connection;
    event_active(c->sweep, EV_TIMEOUT, 1);
}

struct bt_bench_connection *bt_bench_connection_take(struct bt_bench_connections *c) {
    while (c->idle) {
        struct bt_bench_connection *connection = c->idle;
        c->idle = connection->next;
        connection->next = NULL;
        if (!connection->closed)
            return connection;
        bury(connection);
    }
    return create(c);
}

int bt_bench_connection_send(struct bt_bench_connection *connection, struct evhttp_request *request,
                             enum evhttp_cmd_type type, const char *path) {
    struct evkeyvalq *headers = evhttp_request_get_output_headers(request);
    evhttp_add_header(headers, "Host", connection->owner->url.authority);
    evhttp_add_header(headers, "Accept", "*/*");
    if (connection->owner->authorization[0])
        evhttp_add_header(headers, "Authorization", connection->owner->authorization);
    return evhttp_make_request(connection->http, request, type, path);
}

void bt_bench_connection_give_back(struct bt_bench_connection *connection, bool good) {
    struct bt_bench_connections *c = connection->owner;
    if (!good || connection->closed) {
        bury(connection);
        return;
    }
    connection->next = c->idle;
    c->idle = connection;
}

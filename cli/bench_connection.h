/* The connections of a bench: kept alive between requests, plain or TLS, one request on each.
 *
 * Owned by the bench's loop. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <event2/http.h>

#include "common/base/status.h"

struct event_base;
struct bt_bench_connections;
struct bt_bench_connection;

struct bt_bench_target {
    const char *url;     /* "http[s]://host[:port][/prefix]" */
    const char *api_key; /* NULL: none */
    const char *ca_file; /* NULL: the system's */
    uint32_t timeout_s;
};

/* Resolves the host, once. BT_E_INVALID names what is wrong with the URL, the host or the file. */
bt_status bt_bench_connections_create(struct event_base *base, const struct bt_bench_target *target,
                                      struct bt_bench_connections **out, struct bt_error *err);
/* Cuts what is open; requests on them are forgotten. NULL is accepted. */
void bt_bench_connections_destroy(struct bt_bench_connections *connections);
/* The path in the URL, without a slash at its end. */
const char *bt_bench_connections_prefix(const struct bt_bench_connections *connections);

/* An idle one, or a new one. NULL: no memory. */
struct bt_bench_connection *bt_bench_connection_take(struct bt_bench_connections *connections);
/* Adds Host, Authorization and Accept, and starts the request, which is evhttp's from here on. Not
 * 0: it could not be started, and its callback will not be called. */
int bt_bench_connection_send(struct bt_bench_connection *connection, struct evhttp_request *request,
                             enum evhttp_cmd_type type, const char *path);
/* Its request has ended; good: in order, so that the connection may be used again. May be called in
 * the request's callback. */
void bt_bench_connection_give_back(struct bt_bench_connection *connection, bool good);

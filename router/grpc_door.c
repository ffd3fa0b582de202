/* Opens the gRPC port with the HTTP door's host, keys and certificate; what its turns need. */
#include "router/grpc_door.h"

#include <inttypes.h>
#include <stdlib.h>
#include <event2/event.h>

#include "common/base/log.h"
#include "common/base/metrics.h"
#include "common/base/tls.h"
#include "router/grpc_api.h"
#include "router/grpc_relay.h"
#include "router/shell.h"

static void on_readable(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    bt_grpc_api_turn(arg);
}

void bt_grpc_door_flush(struct bt_shell *shell) {
    struct bt_grpc_api *api = shell->grpc;
    bt_public_health_set(&api->health, bt_router_core_ready(shell->core) && !shell->draining);
    bt_public_flush(api->server);
}

void bt_grpc_door_sweep(struct bt_shell *shell) {
    bt_public_sweep(shell->grpc->server, shell->now_us);
}

size_t bt_grpc_door_calls(const struct bt_shell *shell) {
    return shell->grpc->n_calls;
}

static void on_connection(void *arg, int fd) {
    struct bt_grpc_api *api = arg;
    bt_public_add_connection(api->server, fd);
}

static bt_status find_port(const struct bt_router_options *o, uint16_t *port,
                           struct bt_error *err) {
    uint32_t wanted = o->grpc_port;
    if (wanted == BT_GRPC_PORT_STANDARD)
        wanted = o->port ? o->port + 1 : 0;
    if (wanted > UINT16_MAX)
        return bt_fail(err, BT_E_INVALID,
                       "port is %" PRIu32 ", so there is none after it for gRPC: "
                       "give --grpc-port",
                       o->port);
    *port = (uint16_t)wanted;
    return BT_OK;
}

static bt_status open_all(struct bt_grpc_api *api, struct bt_error *err) {
    const struct bt_router_options *o = api->shell->options;
    struct event_base *base = api->shell->base;
    uint16_t port = 0;
    BT_TRY(find_port(o, &port, err));
    const struct bt_tls_config tls = {
        .cert = o->http_tls_cert, .key = o->http_tls_key, .alpn = "h2", .takes_1_2 = true};
    if (o->http_tls_cert)
        BT_TRY(bt_tls_create(&tls, &api->tls, err));
    const struct bt_public_config server = {.methods = bt_grpc_methods,
                                            .n_methods = BT_GRPC_METHODS,
                                            .message_bytes_max = (uint32_t)o->body_bytes_max,
                                            .stuck_ms = o->client_stuck_ms};
    const struct bt_grpc_listener_config listener = {.host = o->host,
                                                     .port = port,
                                                     .connections_max = o->grpc_connections_max,
                                                     .tls = api->tls,
                                                     .on_connection = on_connection,
                                                     .arg = api};
    BT_TRY(bt_public_start(&server, &api->server, err));
    BT_TRY(bt_grpc_listener_start(base, &listener, &api->listener, err));
    api->event = event_new(base, bt_public_fd(api->server), EV_READ | EV_PERSIST, on_readable, api);
    if (!api->event || event_add(api->event, NULL) != 0)
        return bt_fail(err, BT_E_NO_MEMORY, "cannot watch the gRPC port's calls");
    double passing = (double)o->grpc_connections_max * (double)bt_grpc_relay_bytes_max(api->tls);
    BT_INFO("gRPC: at most %" PRIu32
            " connections, %.1f MiB for what passes on them and %d MiB in gRPC's own buffers",
            o->grpc_connections_max, passing / (1 << 20), BT_PUBLIC_QUOTA_BYTES >> 20);
    return BT_OK;
}

bt_status bt_grpc_door_open(struct bt_shell *shell, struct bt_error *err) {
    struct bt_grpc_api *api = calloc(1, sizeof *api);
    if (!api)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the gRPC port");
    shell->grpc = api;
    api->shell = shell;
    bt_wire_arena_init(&api->arena, BT_INFERENCE_ARENA_BYTES);
    return open_all(api, err);
}

void bt_grpc_door_close(struct bt_shell *shell) {
    struct bt_grpc_api *api = shell->grpc;
    if (!api)
        return;
    if (api->event)
        event_free(api->event);
    bt_grpc_listener_destroy(api->listener);
    bt_public_stop(api->server);
    while (api->calls)
        bt_grpc_api_end_call(api->calls);
    bt_tls_destroy(api->tls);
    bt_wire_arena_fini(&api->arena);
    bt_inference_buffer_fini(&api->buffer);
    free(api);
}

void bt_grpc_door_reload(struct bt_shell *shell) {
    struct bt_grpc_api *api = shell->grpc;
    struct bt_error err;
    if (api->tls && bt_tls_reload(api->tls, &err) != BT_OK)
        BT_WARN("the gRPC certificate stays as it was: %s", err.text);
}

const char *bt_grpc_door_address(const struct bt_shell *shell) {
    return bt_grpc_listener_address(shell->grpc->listener);
}

void bt_grpc_door_write_metrics(const struct bt_shell *shell, struct evbuffer *out) {
    const struct bt_grpc_api *api = shell->grpc;
    const struct bt_grpc_listener_counters *c = bt_grpc_listener_counters(api->listener);
    const struct {
        const char *name, *help;
        enum bt_metric_kind kind;
        uint64_t n;
    } rows[] = {
        {"baton_grpc_requests_total", "gRPC calls, health and reflection apart.", BT_METRIC_COUNTER,
         api->n_requests},
        {"baton_grpc_refused_total", "gRPC calls that ended with an error.", BT_METRIC_COUNTER,
         api->n_refused},
        {"baton_grpc_calls", "gRPC calls open.", BT_METRIC_GAUGE, bt_public_n_calls(api->server)},
        {"baton_grpc_connections", "gRPC connections open.", BT_METRIC_GAUGE,
         bt_grpc_listener_open(api->listener)},
        {"baton_grpc_connections_total", "gRPC connections accepted.", BT_METRIC_COUNTER,
         c->n_accepted},
        {"baton_grpc_slowed_total",
         "Times that a gRPC client was made to wait: it reset too many streams.", BT_METRIC_COUNTER,
         c->n_slowed},
    };
    const struct {
        const char *reason;
        uint64_t n;
    } cut[] = {
        {"strange", c->n_strange},
        {"displaced", c->n_displaced},
        {"turned_away", c->n_turned_away},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        bt_metrics_family(out, rows[i].name, rows[i].kind, rows[i].help);
        bt_metrics_u64(out, rows[i].name, NULL, 0, rows[i].n);
    }
    bt_metrics_family(out, "baton_grpc_cut_total", BT_METRIC_COUNTER,
                      "gRPC connections ended by the router, by reason.");
    for (size_t i = 0; i < sizeof cut / sizeof cut[0]; i++) {
        const struct bt_label label = {"reason", cut[i].reason};
        bt_metrics_u64(out, "baton_grpc_cut_total", &label, 1, cut[i].n);
    }
}

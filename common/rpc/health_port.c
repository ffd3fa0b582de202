/* Accepts probes on loopback and answers Check and Watch. */
#include "common/rpc/health_port.h"

#include <stdlib.h>
#include <unistd.h>
#include <event2/event.h>
#include <event2/listener.h>

#include "common/base/address.h"
#include "common/base/clock.h"
#include "common/base/listen.h"
#include "common/base/log.h"
#include "common/rpc/public_health.h"
#include "common/rpc/public_server.h"

enum { CALLS_MAX = 16, MESSAGE_BYTES_MAX = 1024, BACKLOG = 16, SWEEP_MS = 1000 };

struct bt_health_port {
    struct bt_public_server *server;
    struct bt_public_health health;
    struct evconnlistener *listener;
    struct event *readable, *sweep;
    char address[BT_ADDRESS_BYTES];
};

enum method { CHECK, WATCH, METHODS };
static const struct bt_public_method methods[METHODS] = {
    [CHECK] = {.path = "/grpc.health.v1.Health/Check"},
    [WATCH] = {.path = "/grpc.health.v1.Health/Watch"},
};

static void on_connection(struct evconnlistener *listener, evutil_socket_t fd,
                          struct sockaddr *from, int n_from, void *arg) {
    (void)listener, (void)from, (void)n_from;
    struct bt_health_port *port = arg;
    bt_public_add_connection(port->server, (int)fd);
}

static void on_readable(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_health_port *port = arg;
    struct bt_public_event event;
    while (bt_public_next(port->server, &event)) {
        if (event.type == BT_PUBLIC_CLOSED && event.method == WATCH)
            bt_public_health_closed(&port->health, event.call);
        else if (event.type == BT_PUBLIC_STARTED && event.method == WATCH)
            bt_public_health_watch(&port->health, event.call, event.bytes, event.n_bytes);
        else if (event.type == BT_PUBLIC_STARTED)
            bt_public_health_check(&port->health, event.call, event.bytes, event.n_bytes);
    }
    bt_public_flush(port->server);
}

static void on_sweep(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_health_port *port = arg;
    bt_public_sweep(port->server, bt_clock_us());
}

static bt_status listen_on(struct bt_health_port *port, struct event_base *base, const char *listen,
                           struct bt_error *err) {
    struct bt_address address;
    struct bt_error why;
    if (bt_address_parse(listen, &address, &why) < 0)
        return bt_fail(err, BT_E_INVALID, "health-listen: %.200s", why.text);
    if (!bt_address_is_loopback(&address))
        return bt_fail(err, BT_E_INVALID,
                       "health-listen \"%.80s\" is not a loopback address: probes are plain text, "
                       "so they run beside the process (baton health)",
                       listen);
    const struct bt_listen config = {
        .host = address.host, .port = address.port, .what = "probes", .backlog = BACKLOG};
    int fd = -1;
    BT_TRY(bt_listen_open(&config, &fd, port->address, err));
    port->listener = evconnlistener_new(base, on_connection, port,
                                        LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, fd);
    if (port->listener)
        return BT_OK;
    close(fd);
    return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the health port");
}

static bt_status open_all(struct bt_health_port *port, struct event_base *base, const char *listen,
                          struct bt_error *err) {
    const struct bt_public_config config = {.methods = methods,
                                            .n_methods = METHODS,
                                            .max_calls = CALLS_MAX,
                                            .message_bytes_max = MESSAGE_BYTES_MAX};
    const struct timeval period = {SWEEP_MS / 1000, 0};
    BT_TRY(bt_public_start(&config, &port->server, err));
    BT_TRY(listen_on(port, base, listen, err));
    port->readable =
        event_new(base, bt_public_fd(port->server), EV_READ | EV_PERSIST, on_readable, port);
    port->sweep = event_new(base, -1, EV_PERSIST, on_sweep, port);
    if (!port->readable || !port->sweep || event_add(port->readable, NULL) != 0 ||
        event_add(port->sweep, &period) != 0)
        return bt_fail(err, BT_E_NO_MEMORY, "cannot watch the health port");
    return BT_OK;
}

bt_status bt_health_port_open(struct event_base *base, const char *listen,
                              struct bt_health_port **out, struct bt_error *err) {
    struct bt_health_port *port = calloc(1, sizeof *port);
    if (!port)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the health port");
    bt_status status = open_all(port, base, listen, err);
    if (status < 0) {
        bt_health_port_close(port);
        return status;
    }
    BT_INFO("health answers on %s", port->address);
    *out = port;
    return BT_OK;
}

void bt_health_port_close(struct bt_health_port *port) {
    if (!port)
        return;
    if (port->readable)
        event_free(port->readable);
    if (port->sweep)
        event_free(port->sweep);
    if (port->listener)
        evconnlistener_free(port->listener);
    bt_public_stop(port->server);
    free(port);
}

void bt_health_port_set(struct bt_health_port *port, bool is_ready) {
    if (!port || port->health.serving == is_ready)
        return;
    bt_public_health_set(&port->health, is_ready);
    bt_public_flush(port->server);
}

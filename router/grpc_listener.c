/* Accepts the gRPC port's connections and keeps their number and cost within bounds. */
#include "router/grpc_listener.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <event2/event.h>

#include "common/base/listen.h"
#include "common/base/log.h"
#include "router/grpc_relay.h"

enum {
    ACCEPTS_PER_TURN = 64,
    PAUSE_MS = 250,
    BACKLOG = 4096,             /* with the usual 128, clients of a burst wait for SYN retries */
    SEND_BUFFER_BYTES = 131072, /* else the kernel lets it grow to 4 MB per socket */
    /* Costly frames (grpc_guard.h): so many at once, as when a client cancels what it has open;
     * past that so many a second, which gRPC clears away without falling behind. */
    COSTLY_BURST = 256,
    COSTLY_PER_S = 500,
    COSTLY_BURST_ALL = 1024,
    COSTLY_PER_S_ALL = 2000,
};

struct connection {
    struct bt_grpc_listener *listener;
    struct bt_grpc_relay *relay;
    struct event *waiting; /* NULL: it is open */
    struct connection *next, *previous;
};

struct list {
    struct connection *first, *last;
    size_t n;
};

struct bt_grpc_listener {
    struct event_base *base;
    struct bt_grpc_listener_config config;
    int fd;
    struct event *accept_event, *resume_event;
    struct bt_grpc_bucket costly; /* of all connections */
    struct list waiting, open;    /* oldest first */
    struct bt_grpc_listener_counters counters;
    char address[BT_ADDRESS_BYTES];
};

/* ---- lists ---- */

static void append(struct list *list, struct connection *c) {
    c->next = NULL;
    c->previous = list->last;
    *(list->last ? &list->last->next : &list->first) = c;
    list->last = c;
    list->n++;
}

static void take_out(struct list *list, struct connection *c) {
    *(c->previous ? &c->previous->next : &list->first) = c->next;
    *(c->next ? &c->next->previous : &list->last) = c->previous;
    list->n--;
}

static void close_connection(struct connection *c) {
    take_out(c->waiting ? &c->listener->waiting : &c->listener->open, c);
    if (c->waiting)
        event_free(c->waiting);
    bt_grpc_relay_destroy(c->relay);
    free(c);
}

static void close_all(struct list *list) {
    for (struct connection *c = list->first, *next; c; c = next) {
        next = c->next;
        close_connection(c);
    }
}

static void turn_strange(struct connection *c) {
    c->listener->counters.n_strange++;
    close_connection(c);
}

/* ---- from waiting to open ---- */

static bool may_open(struct connection *c) {
    if (c->listener->open.n < c->listener->config.connections_max)
        return true;
    c->listener->counters.n_turned_away++;
    close_connection(c);
    return false;
}

static void set_open(struct connection *c) {
    take_out(&c->listener->waiting, c);
    event_free(c->waiting);
    c->waiting = NULL;
    append(&c->listener->open, c);
}

static void on_relay(void *arg, enum bt_grpc_relay_event event) {
    struct connection *c = arg;
    if (event == BT_GRPC_RELAY_ENDED) {
        if (c->waiting)
            turn_strange(c);
        else
            close_connection(c);
        return;
    }
    if (!may_open(c))
        return;
    int fd = bt_grpc_relay_open(c->relay);
    if (fd < 0) {
        BT_WARN("cannot take a gRPC connection: %s", strerror(errno));
        close_connection(c);
        return;
    }
    set_open(c);
    c->listener->config.on_connection(c->listener->config.arg, fd);
}

static void on_late(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    turn_strange(arg);
}

/* ---- accepting ---- */

static struct connection *create_connection(struct bt_grpc_listener *listener, int fd) {
    const struct timeval limit = {BT_GRPC_PREFACE_S, 0};
    struct connection *c = calloc(1, sizeof *c);
    if (!c) {
        close(fd);
        return NULL;
    }
    const struct bt_grpc_relay_config relay = {
        .base = listener->base,
        .tls = listener->config.tls,
        .shared = &listener->costly,
        .n_open = &listener->open.n,
        .allowance.own = {.burst = COSTLY_BURST, .per_second = COSTLY_PER_S},
        .n_slowed = &listener->counters.n_slowed,
        .on_event = on_relay,
        .arg = c,
    };
    c->listener = listener;
    c->waiting = evtimer_new(listener->base, on_late, c);
    c->relay = bt_grpc_relay_create(&relay, fd);
    if (c->waiting && c->relay && event_add(c->waiting, &limit) == 0)
        return c;
    if (c->waiting)
        event_free(c->waiting);
    if (c->relay)
        bt_grpc_relay_destroy(c->relay);
    free(c);
    return NULL;
}

static void take_connection(struct bt_grpc_listener *listener, int fd) {
    struct connection *c = create_connection(listener, fd);
    listener->counters.n_accepted++;
    if (!c)
        return;
    append(&listener->waiting, c);
    if (listener->waiting.n > BT_GRPC_WAITING_MAX) {
        listener->counters.n_displaced++;
        close_connection(listener->waiting.first);
    }
}

static void on_resume(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_grpc_listener *listener = arg;
    event_add(listener->accept_event, NULL);
}

static void on_accept(evutil_socket_t fd, short what, void *arg) {
    (void)what;
    struct bt_grpc_listener *listener = arg;
    const struct timeval pause = {0, PAUSE_MS * 1000};
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int accepted = accept4((int)fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (accepted >= 0) {
            take_connection(listener, accepted);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return;
        } else if (errno != EINTR && errno != ECONNABORTED && errno != EPROTO) {
            /* Out of descriptors, most likely: trying again at once would spin. */
            BT_WARN("cannot accept a gRPC connection: %s; waiting", strerror(errno));
            event_del(listener->accept_event);
            event_add(listener->resume_event, &pause);
            return;
        }
    }
}

static bt_status start(struct bt_grpc_listener *listener, struct bt_error *err) {
    struct event_base *base = listener->base;
    const struct bt_listen config = {.host = listener->config.host,
                                     .port = listener->config.port,
                                     .what = "gRPC",
                                     .backlog = BACKLOG,
                                     .send_buffer_bytes = SEND_BUFFER_BYTES};
    BT_TRY(bt_listen_open(&config, &listener->fd, listener->address, err));
    listener->costly =
        (struct bt_grpc_bucket){.burst = COSTLY_BURST_ALL, .per_second = COSTLY_PER_S_ALL};
    listener->accept_event =
        event_new(base, listener->fd, EV_READ | EV_PERSIST, on_accept, listener);
    listener->resume_event = evtimer_new(base, on_resume, listener);
    if (!listener->accept_event || !listener->resume_event ||
        event_add(listener->accept_event, NULL) != 0)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the gRPC port");
    return BT_OK;
}

bt_status bt_grpc_listener_start(struct event_base *base,
                                 const struct bt_grpc_listener_config *config,
                                 struct bt_grpc_listener **out, struct bt_error *err) {
    struct bt_grpc_listener *listener = calloc(1, sizeof *listener);
    if (!listener)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the gRPC port");
    listener->base = base;
    listener->config = *config;
    listener->fd = -1;
    bt_status status = start(listener, err);
    if (status < 0)
        bt_grpc_listener_destroy(listener);
    else
        *out = listener;
    return status;
}

void bt_grpc_listener_destroy(struct bt_grpc_listener *listener) {
    if (!listener)
        return;
    close_all(&listener->waiting);
    close_all(&listener->open);
    struct event *events[] = {listener->accept_event, listener->resume_event};
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
        if (events[i])
            event_free(events[i]);
    if (listener->fd >= 0)
        close(listener->fd);
    free(listener);
}

const char *bt_grpc_listener_address(const struct bt_grpc_listener *listener) {
    return listener->address;
}

const struct bt_grpc_listener_counters *
bt_grpc_listener_counters(const struct bt_grpc_listener *listener) {
    return &listener->counters;
}

size_t bt_grpc_listener_open(const struct bt_grpc_listener *listener) {
    return listener->open.n;
}

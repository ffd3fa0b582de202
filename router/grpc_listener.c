/* Accepts the gRPC port's connections and looks at their first bytes. */
#include "router/grpc_listener.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <event2/event.h>

#include "common/base/listen.h"
#include "common/base/log.h"
#include "router/grpc_relay.h"

/* RFC 9113, 3.4: what every client sends first. */
static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
enum {
    PREFACE_BYTES = sizeof preface - 1,
    ACCEPTS_PER_TURN = 64,
    ENDS_PER_TURN = 64,
    PAUSE_MS = 250,
    BACKLOG = 4096,             /* with the usual 128, clients of a burst wait for SYN retries */
    SEND_BUFFER_BYTES = 131072, /* else the kernel lets it grow to 4 MB per socket */
};

struct connection {
    struct bt_grpc_listener *listener;
    int fd; /* waiting: the socket. Open: a duplicate, to see its end. -1: the relay has it */
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
    int fd, ends; /* ends: an epoll set of the open connections' duplicates */
    struct event *accept_event, *ends_event, *resume_event;
    struct list waiting, open; /* oldest first */
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
    struct bt_grpc_listener *listener = c->listener;
    take_out(c->waiting ? &listener->waiting : &listener->open, c);
    if (c->relay)
        bt_grpc_relay_destroy(c->relay);
    if (c->fd >= 0 && !c->waiting) /* by name: gRPC's copy would keep it in the set */
        epoll_ctl(listener->ends, EPOLL_CTL_DEL, c->fd, NULL);
    if (c->waiting)
        event_free(c->waiting);
    if (c->fd >= 0)
        close(c->fd);
    free(c);
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
    c->listener->counters.n_opened++;
}

/* gRPC closes its own copy; ours tells us when the connection is over. */
static bool watch_end(struct connection *c) {
    int copy = fcntl(c->fd, F_DUPFD_CLOEXEC, 0);
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (copy < 0)
        return false;
    if (epoll_ctl(c->listener->ends, EPOLL_CTL_ADD, copy, &event) != 0) {
        close(copy);
        return false;
    }
    int socket_fd = c->fd, least = 1;
    setsockopt(socket_fd, SOL_SOCKET, SO_RCVLOWAT, &least, sizeof least);
    c->fd = copy;
    set_open(c);
    c->listener->config.on_connection(c->listener->config.arg, socket_fd);
    return true;
}

static void on_first_bytes(evutil_socket_t fd, short what, void *arg) {
    struct connection *c = arg;
    char bytes[PREFACE_BYTES];
    ssize_t n = what & EV_READ ? recv((int)fd, bytes, sizeof bytes, MSG_PEEK) : -1;
    if (n != PREFACE_BYTES || memcmp(bytes, preface, PREFACE_BYTES) != 0) {
        turn_strange(c);
        return;
    }
    if (!may_open(c))
        return;
    if (!watch_end(c)) {
        BT_WARN("cannot take a gRPC connection: %s", strerror(errno));
        close_connection(c);
    }
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

/* Ends of open connections. Any event is one: nothing else is asked for. */
static void on_ends(evutil_socket_t fd, short what, void *arg) {
    (void)what, (void)arg;
    struct epoll_event events[ENDS_PER_TURN];
    int n = epoll_wait((int)fd, events, ENDS_PER_TURN, 0);
    for (int i = 0; i < n; i++)
        close_connection(events[i].data.ptr);
}

/* ---- accepting ---- */

/* Waits for what the client says first. */
static bool await_first(struct connection *c, int fd) {
    struct bt_grpc_listener *listener = c->listener;
    const struct timeval limit = {BT_GRPC_PREFACE_S, 0};
    int least = PREFACE_BYTES; /* else one byte of a slow client would wake us again and again */
    if (listener->config.tls) {
        const struct bt_grpc_relay_config relay = {
            .base = listener->base, .tls = listener->config.tls, .on_event = on_relay, .arg = c};
        c->relay = bt_grpc_relay_create(&relay, fd);
        c->fd = -1;
        c->waiting = c->relay ? evtimer_new(listener->base, on_late, c) : NULL;
    } else {
        c->fd = fd;
        setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &least, sizeof least);
        c->waiting = event_new(listener->base, fd, EV_READ, on_first_bytes, c);
    }
    return c->waiting && event_add(c->waiting, &limit) == 0;
}

static void take_connection(struct bt_grpc_listener *listener, int fd) {
    struct connection *c = calloc(1, sizeof *c);
    listener->counters.n_accepted++;
    if (!c) {
        close(fd);
        return;
    }
    c->listener = listener;
    if (!await_first(c, fd)) {
        if (c->waiting)
            event_free(c->waiting);
        if (c->relay)
            bt_grpc_relay_destroy(c->relay);
        if (c->fd >= 0)
            close(c->fd);
        free(c);
        return;
    }
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
    listener->ends = epoll_create1(EPOLL_CLOEXEC);
    if (listener->ends < 0)
        return bt_fail(err, BT_E_IO, "cannot watch gRPC connections: %s", strerror(errno));
    listener->accept_event =
        event_new(base, listener->fd, EV_READ | EV_PERSIST, on_accept, listener);
    listener->ends_event = event_new(base, listener->ends, EV_READ | EV_PERSIST, on_ends, listener);
    listener->resume_event = evtimer_new(base, on_resume, listener);
    if (!listener->accept_event || !listener->ends_event || !listener->resume_event ||
        event_add(listener->accept_event, NULL) != 0 || event_add(listener->ends_event, NULL) != 0)
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
    listener->fd = listener->ends = -1;
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
    while (listener->waiting.first)
        close_connection(listener->waiting.first);
    while (listener->open.first)
        close_connection(listener->open.first);
    struct event *events[] = {listener->accept_event, listener->ends_event, listener->resume_event};
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
        if (events[i])
            event_free(events[i]);
    if (listener->ends >= 0)
        close(listener->ends);
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

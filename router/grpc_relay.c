/* Moves bytes between a client's connection and the socket that gRPC has. */
#include "router/grpc_relay.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include <event2/event.h>

#include "common/base/clock.h"
#include "common/base/log.h"

enum {
    IN_BYTES = 16384,
    OUT_BYTES = 65536,
    ROUNDS_PER_TURN = 16,
};

struct buffer {
    size_t at, end;
    char *bytes;
};

struct bt_grpc_relay {
    struct bt_grpc_relay_config config;
    struct bt_tls_stream *stream; /* NULL: plain */
    int outer, inner;             /* inner -1: not open yet */
    struct event *outer_read, *outer_write, *inner_read, *inner_write, *resume;
    struct bt_grpc_guard guard;
    bool shaken, inner_ended;
    bool waits;            /* nothing is read from the client, nor given to gRPC, until `resume` */
    struct buffer in, out; /* to gRPC, to the client */
    char in_bytes[IN_BYTES];
};

static bool is_empty(const struct buffer *buffer) {
    return buffer->at == buffer->end;
}

static void want(struct event *event, bool wanted) {
    if (!event)
        return;
    /* Without memory to watch it the connection stands still, and keepalive ends it. */
    if (wanted)
        event_add(event, NULL);
    else
        event_del(event);
}

/* ---- reading and writing: BT_OK progress, BT_AGAIN none, a failure or BT_DONE the end ---- */

static bt_status plain_read(int fd, void *to, size_t n_bytes, size_t *n_read) {
    ssize_t n = recv(fd, to, n_bytes, 0);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? BT_AGAIN : BT_E_PEER_GONE;
    *n_read = (size_t)n;
    return n ? BT_OK : BT_DONE;
}

static bt_status plain_write(int fd, const void *from, size_t n_bytes, size_t *n_written) {
    ssize_t n = send(fd, from, n_bytes, MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? BT_AGAIN : BT_E_PEER_GONE;
    *n_written = (size_t)n;
    return BT_OK;
}

/* Slows the client down where it asks for too much. */
static void charge(struct bt_grpc_relay *relay, uint32_t n_costly) {
    struct bt_grpc_relay_config *config = &relay->config;
    uint64_t wait_us = bt_grpc_allowance_take(&config->allowance, config->shared, *config->n_open,
                                              bt_clock_us(), n_costly);
    const struct timeval wait = {(time_t)(wait_us / 1000000), (suseconds_t)(wait_us % 1000000)};
    relay->waits = wait_us && event_add(relay->resume, &wait) == 0;
    *relay->config.n_slowed += relay->waits;
}

/* Until it is open, what comes is gathered. */
static bt_status read_outer(struct bt_grpc_relay *relay) {
    struct bt_error err;
    struct buffer *in = &relay->in;
    uint32_t n_costly = 0;
    size_t n = 0;
    if (is_empty(in))
        in->at = in->end = 0;
    else if (relay->inner >= 0)
        return BT_AGAIN;
    char *to = in->bytes + in->end;
    size_t room = IN_BYTES - in->end;
    if (relay->waits || !room)
        return BT_AGAIN;
    err.text[0] = 0;
    bt_status status = relay->stream ? bt_tls_read(relay->stream, to, room, &n, &err)
                                     : plain_read(relay->outer, to, room, &n);
    if (status == BT_OK) {
        in->end += n;
        status = bt_grpc_guard_take(&relay->guard, to, n, &n_costly, &err);
    }
    if (status < 0 && err.text[0])
        BT_DEBUG("a client of the gRPC port: %s", err.text);
    if (n_costly)
        charge(relay, n_costly);
    return status;
}

static bt_status write_inner(struct bt_grpc_relay *relay) {
    struct buffer *in = &relay->in;
    size_t n = 0;
    if (relay->inner < 0 || is_empty(in) || relay->waits)
        return BT_AGAIN;
    bt_status status = plain_write(relay->inner, in->bytes + in->at, in->end - in->at, &n);
    in->at += n;
    return status;
}

static bt_status read_inner(struct bt_grpc_relay *relay) {
    size_t n = 0;
    if (relay->inner < 0 || !is_empty(&relay->out))
        return BT_AGAIN;
    if (relay->inner_ended)
        return BT_DONE;
    bt_status status = plain_read(relay->inner, relay->out.bytes, OUT_BYTES, &n);
    relay->inner_ended = status == BT_DONE;
    relay->out.at = 0;
    relay->out.end = n;
    return status;
}

static bt_status write_outer(struct bt_grpc_relay *relay) {
    struct buffer *out = &relay->out;
    struct bt_error err;
    size_t n = 0;
    if (is_empty(out))
        return BT_AGAIN;
    const char *bytes = out->bytes + out->at;
    bt_status status = relay->stream
                           ? bt_tls_write(relay->stream, bytes, out->end - out->at, &n, &err)
                           : plain_write(relay->outer, bytes, out->end - out->at, &n);
    out->at += n;
    return status;
}

/* ---- a turn ---- */

static void end(struct bt_grpc_relay *relay) {
    if (relay->stream)
        bt_tls_close(relay->stream);
    relay->config.on_event(relay->config.arg, BT_GRPC_RELAY_ENDED); /* destroys it */
}

/* BT_OK: all is moved. BT_AGAIN: there is more. Else the connection is over. */
static bt_status move_bytes(struct bt_grpc_relay *relay) {
    static bt_status (*const steps[])(struct bt_grpc_relay *) = {read_outer, write_inner,
                                                                 read_inner, write_outer};
    for (int round = 0; round < ROUNDS_PER_TURN; round++) {
        bool moved = false;
        for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
            bt_status status = steps[i](relay);
            if (status < 0 || status == BT_DONE)
                return status;
            moved = moved || status == BT_OK;
        }
        if (!moved)
            return BT_OK;
    }
    return BT_AGAIN;
}

/* False: it has ended and is gone. */
static bool shake_hands(struct bt_grpc_relay *relay) {
    struct bt_error err;
    bt_status status = relay->stream ? bt_tls_handshake(relay->stream, &err) : BT_OK;
    if (status < 0) {
        BT_DEBUG("a client of the gRPC port: %s", err.text);
        end(relay);
        return false;
    }
    relay->shaken = status == BT_OK;
    return true;
}

/* False: it is open and has its next turn, or has ended and is gone. */
static bool await_preface(struct bt_grpc_relay *relay) {
    while (!bt_grpc_guard_is_open(&relay->guard)) {
        bt_status status = read_outer(relay);
        if (status == BT_AGAIN)
            return true;
        if (status < 0 || status == BT_DONE) {
            end(relay);
            return false;
        }
    }
    relay->config.on_event(relay->config.arg, BT_GRPC_RELAY_SPEAKS);
    return false;
}

static void watch(struct bt_grpc_relay *relay) {
    bool tls_writes = relay->stream && bt_tls_wants_write(relay->stream);
    bool opening = relay->inner < 0;
    want(relay->outer_read, (is_empty(&relay->in) || opening) && !relay->waits);
    want(relay->outer_write, !is_empty(&relay->out) || tls_writes);
    want(relay->inner_read, is_empty(&relay->out) && !relay->inner_ended);
    want(relay->inner_write, !is_empty(&relay->in) && !relay->waits);
}

static void pump(struct bt_grpc_relay *relay) {
    if (!relay->shaken && !shake_hands(relay))
        return;
    if (relay->shaken && relay->inner < 0 && !await_preface(relay))
        return;
    bt_status status = relay->shaken && relay->inner >= 0 ? move_bytes(relay) : BT_OK;
    if (status < 0 || status == BT_DONE) {
        end(relay);
        return;
    }
    watch(relay);
    if (status == BT_AGAIN) /* others have their turn first */
        event_active(relay->outer_read, EV_READ, 1);
}

static void on_ready(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    pump(arg);
}

static void on_resume(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_grpc_relay *relay = arg;
    relay->waits = false;
    pump(relay);
}

/* ---- create, open, destroy ---- */

struct bt_grpc_relay *bt_grpc_relay_create(const struct bt_grpc_relay_config *config, int fd) {
    struct bt_grpc_relay *relay = calloc(1, sizeof *relay);
    if (!relay) {
        close(fd);
        return NULL;
    }
    relay->config = *config;
    relay->outer = fd;
    relay->inner = -1;
    relay->in.bytes = relay->in_bytes;
    relay->stream = config->tls ? bt_tls_accept(config->tls, fd, 0) : NULL;
    relay->outer_read = event_new(config->base, fd, EV_READ | EV_PERSIST, on_ready, relay);
    relay->outer_write = event_new(config->base, fd, EV_WRITE | EV_PERSIST, on_ready, relay);
    relay->resume = event_new(config->base, -1, 0, on_resume, relay);
    if ((config->tls && !relay->stream) || !relay->outer_read || !relay->outer_write ||
        !relay->resume || event_add(relay->outer_read, NULL) != 0) {
        bt_grpc_relay_destroy(relay);
        return NULL;
    }
    return relay;
}

void bt_grpc_relay_destroy(struct bt_grpc_relay *relay) {
    struct event *events[] = {relay->outer_read, relay->outer_write, relay->inner_read,
                              relay->inner_write, relay->resume};
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
        if (events[i])
            event_free(events[i]);
    if (relay->stream)
        bt_tls_stream_destroy(relay->stream);
    close(relay->outer);
    if (relay->inner >= 0)
        close(relay->inner);
    free(relay->out.bytes);
    free(relay);
}

size_t bt_grpc_relay_bytes_max(bool is_tls) {
    return sizeof(struct bt_grpc_relay) + OUT_BYTES + (is_tls ? BT_TLS_STREAM_BYTES : 0);
}

int bt_grpc_relay_open(struct bt_grpc_relay *relay) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
        return -1;
    struct event_base *base = relay->config.base;
    relay->inner = pair[0];
    relay->out.bytes = malloc(OUT_BYTES);
    relay->inner_read = event_new(base, pair[0], EV_READ | EV_PERSIST, on_ready, relay);
    relay->inner_write = event_new(base, pair[0], EV_WRITE | EV_PERSIST, on_ready, relay);
    if (!relay->out.bytes || !relay->inner_read || !relay->inner_write ||
        event_add(relay->inner_write, NULL) != 0) {
        close(pair[1]);
        return -1;
    }
    want(relay->outer_read, false); /* until the first bytes are through */
    return pair[1];
}

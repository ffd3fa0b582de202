/* Moves bytes between a TLS connection and the socket that gRPC has. */
#include "router/grpc_relay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <event2/event.h>

#include "common/base/log.h"

enum { BUFFER_BYTES = 16384, ROUNDS_PER_TURN = 16 };

struct buffer {
    size_t at, end;
    char bytes[BUFFER_BYTES];
};

struct bt_grpc_relay {
    struct bt_grpc_relay_config config;
    struct bt_tls_stream *stream;
    int outer, inner; /* inner -1: not open yet */
    struct event *outer_read, *outer_write, *inner_read, *inner_write;
    bool shaken, spoke, inner_ended;
    struct buffer in, out; /* to gRPC, to the client */
};

static bool is_empty(const struct buffer *buffer) {
    return buffer->at == buffer->end;
}

static void want(struct event *event, bool wanted) {
    if (!event)
        return;
    if (wanted)
        event_add(event, NULL);
    else
        event_del(event);
}

/* ---- one step of each direction: BT_OK progress, BT_AGAIN none, a failure or BT_DONE the end ----
 */

static bt_status read_outer(struct bt_grpc_relay *relay) {
    struct bt_error err;
    size_t n = 0;
    if (!is_empty(&relay->in))
        return BT_AGAIN;
    bt_status status = bt_tls_read(relay->stream, relay->in.bytes, BUFFER_BYTES, &n, &err);
    if (status == BT_OK) {
        relay->in.at = 0;
        relay->in.end = n;
    } else if (status < 0 && !relay->spoke) {
        BT_DEBUG("a client of the gRPC port: %s", err.text);
    }
    return status;
}

static bt_status write_inner(struct bt_grpc_relay *relay) {
    struct buffer *in = &relay->in;
    if (relay->inner < 0 || is_empty(in))
        return BT_AGAIN;
    ssize_t n = send(relay->inner, in->bytes + in->at, in->end - in->at, MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? BT_AGAIN : BT_E_PEER_GONE;
    in->at += (size_t)n;
    return BT_OK;
}

static bt_status read_inner(struct bt_grpc_relay *relay) {
    if (relay->inner < 0 || !is_empty(&relay->out))
        return BT_AGAIN;
    if (relay->inner_ended)
        return BT_DONE;
    ssize_t n = recv(relay->inner, relay->out.bytes, BUFFER_BYTES, 0);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? BT_AGAIN : BT_E_PEER_GONE;
    relay->inner_ended = n == 0;
    relay->out.at = 0;
    relay->out.end = (size_t)n;
    return BT_OK;
}

static bt_status write_outer(struct bt_grpc_relay *relay) {
    struct buffer *out = &relay->out;
    struct bt_error err;
    size_t n = 0;
    if (is_empty(out))
        return BT_AGAIN;
    bt_status status =
        bt_tls_write(relay->stream, out->bytes + out->at, out->end - out->at, &n, &err);
    if (status == BT_OK)
        out->at += n;
    return status;
}

static void end(struct bt_grpc_relay *relay) {
    bt_tls_close(relay->stream);
    relay->config.on_event(relay->config.arg, BT_GRPC_RELAY_ENDED); /* destroys it */
}

static bool is_over(bt_status status) {
    return status < 0 || status == BT_DONE;
}

/* False: the relay has ended and is gone. */
static bool move_bytes(struct bt_grpc_relay *relay, bool *more) {
    static bt_status (*const steps[])(struct bt_grpc_relay *) = {read_outer, write_inner,
                                                                 read_inner, write_outer};
    *more = true;
    for (int round = 0; round < ROUNDS_PER_TURN && *more; round++) {
        *more = false;
        for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
            bt_status status = steps[i](relay);
            if (is_over(status)) {
                end(relay);
                return false;
            }
            *more = *more || status == BT_OK;
        }
        if (!relay->spoke && !is_empty(&relay->in)) {
            relay->spoke = true;
            relay->config.on_event(relay->config.arg, BT_GRPC_RELAY_SPEAKS);
            return false; /* it has been opened and pumped, or destroyed */
        }
    }
    return true;
}

static void pump(struct bt_grpc_relay *relay) {
    struct bt_error err;
    bool more;
    if (!relay->shaken) {
        bt_status status = bt_tls_handshake(relay->stream, &err);
        if (status < 0) {
            BT_DEBUG("a client of the gRPC port: %s", err.text);
            end(relay);
            return;
        }
        relay->shaken = status == BT_OK;
        if (!relay->shaken) {
            want(relay->outer_read, true);
            want(relay->outer_write, bt_tls_wants_write(relay->stream));
            return;
        }
    }
    if (!move_bytes(relay, &more))
        return;
    want(relay->outer_read, is_empty(&relay->in));
    want(relay->outer_write, !is_empty(&relay->out) || bt_tls_wants_write(relay->stream));
    want(relay->inner_read, is_empty(&relay->out) && !relay->inner_ended);
    want(relay->inner_write, !is_empty(&relay->in));
    if (more) /* others have their turn first */
        event_active(relay->outer_read, EV_READ, 1);
}

static void on_ready(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    pump(arg);
}

struct bt_grpc_relay *bt_grpc_relay_create(const struct bt_grpc_relay_config *config, int fd) {
    struct bt_grpc_relay *relay = calloc(1, sizeof *relay);
    if (!relay) {
        close(fd);
        return NULL;
    }
    relay->config = *config;
    relay->outer = fd;
    relay->inner = -1;
    relay->stream = bt_tls_accept(config->tls, fd, 0);
    relay->outer_read = event_new(config->base, fd, EV_READ | EV_PERSIST, on_ready, relay);
    relay->outer_write = event_new(config->base, fd, EV_WRITE | EV_PERSIST, on_ready, relay);
    if (!relay->stream || !relay->outer_read || !relay->outer_write ||
        event_add(relay->outer_read, NULL) != 0) {
        bt_grpc_relay_destroy(relay);
        return NULL;
    }
    return relay;
}

void bt_grpc_relay_destroy(struct bt_grpc_relay *relay) {
    struct event *events[] = {relay->outer_read, relay->outer_write, relay->inner_read,
                              relay->inner_write};
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
        if (events[i])
            event_free(events[i]);
    bt_tls_stream_destroy(relay->stream);
    close(relay->outer);
    if (relay->inner >= 0)
        close(relay->inner);
    free(relay);
}

int bt_grpc_relay_open(struct bt_grpc_relay *relay) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
        return -1;
    struct event_base *base = relay->config.base;
    relay->inner_read = event_new(base, pair[0], EV_READ | EV_PERSIST, on_ready, relay);
    relay->inner_write = event_new(base, pair[0], EV_WRITE | EV_PERSIST, on_ready, relay);
    if (!relay->inner_read || !relay->inner_write || event_add(relay->inner_write, NULL) != 0) {
        close(pair[0]);
        close(pair[1]);
        return -1;
    }
    relay->inner = pair[0];
    want(relay->inner_read, true);
    want(relay->outer_read, false); /* until the first bytes are through */
    return pair[1];
}

/* One connection of the HTTP port: reads it in every state, writes answers, and closes it so that
 * the last answer arrives. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/assert.h"
#include "common/base/log.h"
#include "router/http_state.h"

enum { TLS_RECORD_HANDSHAKE = 0x16 };

/* What a client that begins TLS on a plain port understands: a fatal alert, protocol_version. */
static const char tls_alert[] = {0x15, 3, 1, 0, 2, 2, 70};

/* ---- state ---- */

static void unlink_connection(struct bt_http_connection *c) {
    struct bt_http_list *list = &c->server->lists[c->state];
    *(c->previous ? &c->previous->next : &list->first) = c->next;
    *(c->next ? &c->next->previous : &list->last) = c->previous;
    list->n--;
    c->next = c->previous = NULL;
}

static void link_connection(struct bt_http_connection *c) {
    struct bt_http_list *list = &c->server->lists[c->state];
    c->previous = list->last;
    *(list->last ? &list->last->next : &list->first) = c;
    list->last = c;
    list->n++;
}

void bt_http_connection_set_state(struct bt_http_connection *c, enum bt_http_state state) {
    unlink_connection(c);
    c->state = state;
    c->since_us = c->server->now_us;
    link_connection(c);
}

/* ---- bytes ---- */

/* Gives a buffer up, and what it counted for. */
static void drop_buffer(struct bt_http_server *server, struct bt_text_buffer *buffer) {
    server->held_bytes -= buffer->capacity;
    bt_text_buffer_fini(buffer);
}

static bool append(struct bt_http_connection *c, struct bt_text_buffer *buffer, const char *bytes,
                   size_t n) {
    struct bt_http_server *server = c->server;
    size_t before = buffer->capacity;
    if (buffer == &c->in && c->in_at) {
        BT_ASSERT(c->in.data);
        memmove(c->in.data, c->in.data + c->in_at, c->in.n_bytes - c->in_at);
        c->in.n_bytes -= c->in_at;
        c->in_at = 0;
    }
    bt_text_buffer_add(buffer, bytes, n);
    server->held_bytes += buffer->capacity - before;
    return !buffer->failed;
}

/* BT_OK with at least one byte, BT_AGAIN, BT_DONE at the end, BT_E_PEER_GONE. */
static bt_status read_some(struct bt_http_connection *c, char *to, size_t n_max, size_t *n) {
    struct bt_error err;
    if (c->tls) {
        bt_status status = bt_tls_read(c->tls, to, n_max, n, &err);
        return status < 0 ? BT_E_PEER_GONE : status;
    }
    ssize_t got;
    do
        got = recv(c->fd, to, n_max, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got > 0)
        *n = (size_t)got;
    return got > 0                                   ? BT_OK
           : got == 0                                ? BT_DONE
           : errno == EAGAIN || errno == EWOULDBLOCK ? BT_AGAIN
                                                     : BT_E_PEER_GONE;
}

bt_status bt_http_connection_write(struct bt_http_connection *c, const char *bytes, size_t n_bytes,
                                   size_t *n) {
    struct bt_error err;
    if (c->tls) {
        bt_status status = bt_tls_write(c->tls, bytes, n_bytes, n, &err);
        return status < 0 ? BT_E_PEER_GONE : status;
    }
    ssize_t sent;
    do
        sent = send(c->fd, bytes, n_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    if (sent > 0) {
        *n = (size_t)sent;
        return BT_OK;
    }
    return sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? BT_AGAIN : BT_E_PEER_GONE;
}

bool bt_http_connection_await_room(struct bt_http_connection *c, bool wanted) {
    return (wanted ? event_add(&c->write_event, NULL) : event_del(&c->write_event)) == 0;
}

/* ---- the end ---- */

void bt_http_connection_close(struct bt_http_connection *c) {
    struct bt_http_server *server = c->server;
    struct bt_http_call *call = c->call;
    if (c->state == BT_HTTP_DEAD)
        return;
    event_del(&c->read_event);
    event_del(&c->write_event);
    bt_http_connection_set_state(c, BT_HTTP_DEAD);
    server->n_connections--;
    c->call = NULL;
    if (call && call->is_kept && call->on_gone)
        call->on_gone(call->arg);
    if (call)
        bt_http_call_free(call);
    /* TLS's end is not said here: an answer that was cut must not look whole. */
    bt_tls_stream_destroy(c->tls);
    c->tls = NULL;
    close(c->fd);
    c->fd = -1;
    drop_buffer(server, &c->in);
    bt_text_buffer_fini(&c->out);
}

void bt_http_connection_free(struct bt_http_connection *c) {
    unlink_connection(c);
    free(c);
}

/* What is there already is looked at in a later turn, so that none has the loop for long. */
static void come_back(struct bt_http_connection *c) {
    event_active(&c->read_event, EV_READ, 0);
}

void bt_http_connection_answered(struct bt_http_connection *c) {
    struct bt_http_server *server = c->server;
    bt_text_buffer_fini(&c->out);
    c->n_out_sent = 0;
    if (event_add(&c->read_event, NULL) != 0) {
        bt_http_connection_close(c);
        return;
    }
    if (!c->close_after) {
        bt_http_connection_set_state(c, BT_HTTP_IDLE);
        if (c->in.n_bytes > c->in_at)
            come_back(c);
        else
            drop_buffer(server, &c->in);
        return;
    }
    /* Closed with bytes unread, the kernel would send a reset, and the answer could be lost. */
    if (c->tls)
        bt_tls_close(c->tls);
    drop_buffer(server, &c->in);
    c->in_at = 0;
    if (shutdown(c->fd, SHUT_WR) != 0)
        bt_http_connection_close(c);
    else
        bt_http_connection_set_state(c, BT_HTTP_LINGER);
}

void bt_http_connection_send_out(struct bt_http_connection *c) {
    bt_status status = BT_OK;
    while (status == BT_OK && c->n_out_sent < c->out.n_bytes) {
        size_t n = 0;
        status = bt_http_connection_write(c, c->out.data + c->n_out_sent,
                                          c->out.n_bytes - c->n_out_sent, &n);
        c->n_out_sent += n;
        if (n)
            c->since_us = c->server->now_us;
    }
    if (status < 0) {
        bt_http_connection_close(c);
    } else if (status == BT_AGAIN) {
        if (c->state != BT_HTTP_REPLYING)
            bt_http_connection_set_state(c, BT_HTTP_REPLYING);
        /* Who does not read his answer is not listened to: what he sends stays with him. */
        event_del(&c->read_event);
        if (!bt_http_connection_await_room(c, true))
            bt_http_connection_close(c);
    } else {
        bt_http_connection_await_room(c, false);
        bt_http_connection_answered(c);
    }
}

/* ---- requests ---- */

/* Refuses what is no request, or one that came no further than its head. */
static void refuse(struct bt_http_connection *c, int code, const char *message) {
    if (!c->call)
        c->call = bt_http_call_create(c);
    if (c->call)
        bt_http_call_refuse(c->call, code, message, NULL);
    else
        bt_http_connection_close(c);
}

static void use_input(struct bt_http_connection *c, size_t n) {
    c->in_at += n;
    c->scan = (struct bt_http_scan){0};
    if (c->in_at == c->in.n_bytes) {
        c->in_at = c->in.n_bytes = 0;
        if (c->in.capacity > 16384)
            drop_buffer(c->server, &c->in);
    }
}

static bool begin_body(struct bt_http_connection *c) {
    static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct bt_http_server *server = c->server;
    struct bt_http_call *call = c->call;
    const struct bt_http_head *head = &call->head->fields;
    if (head->body_bytes > server->config.body_bytes_max) {
        char text[96];
        snprintf(text, sizeof text, "the body has %llu bytes, at most %zu are taken",
                 (unsigned long long)head->body_bytes, server->config.body_bytes_max);
        refuse(c, 413, text);
        return false;
    }
    uint64_t bytes = head->is_chunked ? server->config.body_bytes_max : head->body_bytes;
    c->due_us = server->now_us + server->config.header_s * UINT64_C(1000000) +
                bytes * 1000000 / BT_HTTP_BODY_BYTES_PER_S;
    bt_http_connection_set_state(c, BT_HTTP_BODY);
    size_t n = 0;
    if (!head->expects_continue || c->in_at < c->in.n_bytes)
        return true;
    /* So few bytes always find room on a connection that is fit to live. */
    if (bt_http_connection_write(c, go_on, sizeof go_on - 1, &n) == BT_OK && n == sizeof go_on - 1)
        return true;
    bt_http_connection_close(c);
    return false;
}

/* False where there is nothing more to be done with the input now. */
static bool take_head(struct bt_http_connection *c) {
    struct bt_http_server *server = c->server;
    struct bt_error err;
    size_t n = c->in.n_bytes - c->in_at;
    if (!n)
        return false;
    const char *bytes = c->in.data + c->in_at;
    if (!c->tls && c->scan.at == 0 && bytes[0] == TLS_RECORD_HANDSHAKE) {
        size_t sent;
        bt_http_connection_write(c, tls_alert, sizeof tls_alert, &sent);
        bt_http_connection_close(c);
        return false;
    }
    if (c->state == BT_HTTP_IDLE)
        bt_http_connection_set_state(c, BT_HTTP_HEAD);
    bt_status status = bt_http_scan_head(&c->scan, bytes, n, &err);
    size_t head_bytes = status == BT_OK ? c->scan.at : n;
    if (status < 0) {
        refuse(c, 400, err.text);
        return false;
    }
    if (head_bytes > server->config.header_bytes_max) {
        char text[80];
        snprintf(text, sizeof text, "the request's head has more than %zu bytes",
                 server->config.header_bytes_max);
        refuse(c, 431, text);
        return false;
    }
    if (status == BT_AGAIN)
        return false;
    c->call = bt_http_call_create(c);
    if (!c->call) {
        bt_http_connection_close(c);
        return false;
    }
    int code = 400;
    status = bt_http_call_read_head(c->call, bytes, head_bytes, &code, &err);
    use_input(c, head_bytes);
    if (status < 0) {
        refuse(c, code, err.text);
        return false;
    }
    return bt_http_call_route(c->call) && begin_body(c);
}

/* Moves what is there of the body; true where it is whole. */
static bool take_body(struct bt_http_connection *c) {
    struct bt_http_call *call = c->call;
    const struct bt_http_head *head = &call->head->fields;
    size_t limit = c->server->config.body_bytes_max;
    for (;;) {
        const char *bytes = c->in.data ? c->in.data + c->in_at : "";
        size_t n = c->in.n_bytes - c->in_at, n_used = 0;
        struct bt_slice data = {bytes, 0};
        struct bt_error err;
        bt_status status = BT_OK;
        if (head->is_chunked) {
            status = bt_http_read_chunks(&call->chunks, bytes, n, limit, &n_used, &data, &err);
        } else {
            uint64_t left = head->body_bytes - call->body.n_bytes;
            n_used = data.n_bytes = (size_t)(n < left ? n : left);
        }
        if (status < 0) {
            refuse(c, status == BT_E_TOO_LARGE ? 413 : 400, err.text);
            return false;
        }
        if (call->body.n_bytes + data.n_bytes > limit) {
            char text[80];
            snprintf(text, sizeof text, "the body has more than %zu bytes", limit);
            refuse(c, 413, text);
            return false;
        }
        if (data.n_bytes && !append(c, &call->body, data.data, data.n_bytes)) {
            refuse(c, 503, "out of memory for a request");
            return false;
        }
        if (n_used)
            use_input(c, n_used);
        if (status == BT_DONE || (!head->is_chunked && call->body.n_bytes == head->body_bytes))
            return true;
        if (!n_used || c->in_at == c->in.n_bytes)
            return false;
    }
}

/* Looks at what has been read; at most one request is handled. */
static void process(struct bt_http_connection *c) {
    if ((c->state == BT_HTTP_HEAD || c->state == BT_HTTP_IDLE) && !take_head(c))
        return;
    if (c->state != BT_HTTP_BODY || !take_body(c))
        return;
    bt_http_connection_set_state(c, BT_HTTP_BUSY);
    bt_http_call_handle(c->call);
}

/* ---- what the socket says ---- */

/* Bytes arrived while an answer is made. */
static void on_early_input(struct bt_http_connection *c, const char *bytes, size_t n) {
    struct bt_http_server *server = c->server;
    if (c->in.n_bytes - c->in_at + n > BT_HTTP_UNREAD_BYTES_MAX || !append(c, &c->in, bytes, n)) {
        bt_http_connection_close(c);
        return;
    }
    bt_http_server_make_room(server);
    if (server->held_bytes > server->config.held_bytes_max)
        bt_http_connection_close(c);
}

static void take_input(struct bt_http_connection *c, const char *bytes, size_t n) {
    if (c->state == BT_HTTP_LINGER) {
        c->n_lingered += n;
        if (c->n_lingered > BT_HTTP_LINGER_BYTES_MAX)
            bt_http_connection_close(c);
    } else if (c->state == BT_HTTP_BUSY) {
        on_early_input(c, bytes, n);
    } else if (!append(c, &c->in, bytes, n)) {
        bt_http_connection_close(c);
    } else {
        bt_http_server_make_room(c->server);
        if (c->state != BT_HTTP_DEAD)
            process(c);
    }
}

/* A handshake that is done goes on with the head, whose time began with the connection. */
static void shake_hands(struct bt_http_connection *c) {
    struct bt_error err;
    char first;
    /* A word to who speaks plain HTTP here, which TLS could not say. */
    if (c->in_at == 0 && recv(c->fd, &first, 1, MSG_PEEK | MSG_DONTWAIT) == 1) {
        c->in_at = 1; /* looked at */
        if (first != TLS_RECORD_HANDSHAKE) {
            bt_tls_stream_destroy(c->tls);
            c->tls = NULL;
            c->in_at = 0;
            refuse(c, 400, "this port speaks HTTPS, not plain HTTP");
            return;
        }
    }
    bt_status status = bt_tls_handshake(c->tls, &err);
    if (status == BT_AGAIN) {
        if (!bt_http_connection_await_room(c, bt_tls_wants_write(c->tls)))
            bt_http_connection_close(c);
        return;
    }
    if (status < 0) {
        BT_DEBUG("a TLS handshake failed: %s", err.text);
        c->server->counters.n_tls_failed++;
        bt_http_connection_close(c);
        return;
    }
    /* No ticket follows the handshake that could carry the acknowledgement of its last message: a
     * client under Nagle's algorithm would keep its request back for the 40 ms of a delayed one. */
    int now = 1;
    if (setsockopt(c->fd, IPPROTO_TCP, TCP_QUICKACK, &now, sizeof now) != 0)
        BT_DEBUG("TCP_QUICKACK: %s", strerror(errno));
    c->in_at = 0;
    uint64_t since_us = c->since_us;
    bt_http_connection_await_room(c, false);
    bt_http_connection_set_state(c, BT_HTTP_HEAD);
    c->since_us = since_us;
    come_back(c);
}

/* One turn's work; BT_OK where there may be more to read. */
static bt_status read_turn(struct bt_http_connection *c) {
    struct bt_http_server *server = c->server;
    size_t n = 0;
    if ((c->state == BT_HTTP_IDLE || c->state == BT_HTTP_HEAD) && c->in.n_bytes > c->in_at) {
        process(c);
        if (c->state != BT_HTTP_HEAD && c->state != BT_HTTP_BODY)
            return BT_OK; /* a request was handled */
    }
    bt_status status = read_some(c, server->scratch, BT_HTTP_READ_BYTES, &n);
    if (status == BT_OK)
        take_input(c, server->scratch, n);
    else if (status != BT_AGAIN)
        bt_http_connection_close(c);
    return status;
}

static void on_readable(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_http_connection *c = arg;
    bt_http_server_begin(c->server);
    if (c->state == BT_HTTP_REPLYING)
        return;
    if (c->state == BT_HTTP_HANDSHAKE)
        shake_hands(c);
    else if (read_turn(c) == BT_OK && c->tls && bt_tls_has_pending(c->tls))
        come_back(c); /* the socket need not become readable again for these */
}

static void on_writable(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_http_connection *c = arg;
    bt_http_server_begin(c->server);
    if (c->state == BT_HTTP_HANDSHAKE)
        shake_hands(c);
    else if (c->state == BT_HTTP_REPLYING)
        bt_http_connection_send_out(c);
    else if (c->call && c->call->on_room)
        c->call->on_room(c->call->room_arg);
    else
        bt_http_connection_await_room(c, false);
}

struct bt_http_connection *bt_http_connection_open(struct bt_http_server *server, int fd,
                                                   bool is_local) {
    struct bt_http_connection *c = calloc(1, sizeof *c);
    if (!c) {
        close(fd);
        return NULL;
    }
    c->server = server;
    c->fd = fd;
    c->is_local = is_local;
    c->since_us = server->now_us;
    c->state = server->config.tls ? BT_HTTP_HANDSHAKE : BT_HTTP_HEAD;
    link_connection(c);
    server->n_connections++;
    event_assign(&c->read_event, server->base, fd, EV_READ | EV_PERSIST, on_readable, c);
    event_assign(&c->write_event, server->base, fd, EV_WRITE | EV_PERSIST, on_writable, c);
    if (server->config.tls)
        c->tls = bt_tls_accept(server->config.tls, fd, 0);
    if ((!server->config.tls || c->tls) && event_add(&c->read_event, NULL) == 0)
        return c;
    bt_http_connection_close(c);
    return NULL;
}

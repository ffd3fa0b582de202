/* The HTTP port: listens, bounds how many connections there are and what they hold, and cuts those
 * that are slow. */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/listen.h"
#include "common/base/log.h"
#include "router/http_state.h"

enum {
    BACKLOG = 4096,             /* with the usual 128, clients of a burst wait for SYN retries */
    SEND_BUFFER_BYTES = 131072, /* else the kernel lets it grow to 4 MB per socket */
    TICK_MS = 250,              /* also the pause after running out of descriptors */
    ACCEPTS_PER_TURN = 64,
    REPLY_STUCK_US = 30000000, /* an answer that the client takes no byte of for so long is cut */
    YOUNG_US = 1000000,        /* a silent connection younger than this is not displaced */
    CONNECTION_BYTES = 1024,   /* of one that is silent; measured */
};

uint64_t bt_http_server_bytes_max(const struct bt_http_server_config *config) {
    uint64_t each = CONNECTION_BYTES + (config->tls ? BT_TLS_STREAM_BYTES : 0);
    return config->held_bytes_max + config->connections_max * each;
}

void bt_http_server_begin(struct bt_http_server *server) {
    server->now_us = bt_clock_us();
    while (server->lists[BT_HTTP_DEAD].first)
        bt_http_connection_free(server->lists[BT_HTTP_DEAD].first);
}

static void refuse(struct bt_http_connection *c, int code, const char *message, const char *extra) {
    if (!c->call)
        c->call = bt_http_call_create(c);
    if (c->call)
        bt_http_call_refuse(c->call, code, message, extra);
    else
        bt_http_connection_close(c);
}

/* ---- bounds ---- */

/* The one that has been sending for longest and holds something. */
static struct bt_http_connection *slowest(struct bt_http_server *server) {
    struct bt_http_connection *body = server->lists[BT_HTTP_BODY].first;
    if (body)
        return body;
    struct bt_http_connection *head = server->lists[BT_HTTP_HEAD].first;
    while (head && !head->in.capacity)
        head = head->next;
    return head;
}

void bt_http_server_make_room(struct bt_http_server *server) {
    while (server->held_bytes > server->config.held_bytes_max) {
        struct bt_http_connection *c = slowest(server);
        if (!c)
            return;
        server->counters.n_over_memory++;
        refuse(c, 503, "too much is being received at once, and this request took longest",
               "Retry-After: 1\r\n");
    }
}

/* Frees one place: of the connection that has been silent longest, or of one that is answered. */
static bool displace(struct bt_http_server *server) {
    static const enum bt_http_state order[] = {BT_HTTP_LINGER, BT_HTTP_HANDSHAKE, BT_HTTP_HEAD,
                                               BT_HTTP_IDLE};
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
        struct bt_http_connection *oldest = server->lists[order[i]].first;
        if (!oldest || (order[i] != BT_HTTP_LINGER && server->now_us - oldest->since_us < YOUNG_US))
            continue;
        server->counters.n_displaced += order[i] != BT_HTTP_LINGER;
        bt_http_connection_close(oldest);
        return true;
    }
    return false;
}

/* A list is in the order of since_us, but for connections that have just shaken hands, whose time
 * began before: one of them may be seen later, by as long as its handshake took. */
static struct bt_http_connection *overdue(struct bt_http_server *server, enum bt_http_state state,
                                          uint64_t limit_us) {
    struct bt_http_connection *c = server->lists[state].first;
    return c && server->now_us - c->since_us >= limit_us ? c : NULL;
}

static void cut_slow_bodies(struct bt_http_server *server) {
    for (struct bt_http_connection *c = server->lists[BT_HTTP_BODY].first, *next; c; c = next) {
        next = c->next;
        if (server->now_us < c->due_us)
            continue;
        server->counters.n_slow++;
        refuse(c, 408, "the request's body did not come in time", NULL);
    }
}

static void cut_slow(struct bt_http_server *server) {
    const struct bt_http_server_config *config = &server->config;
    uint64_t header_us = config->header_s * UINT64_C(1000000);
    struct bt_http_connection *c;
    while ((c = overdue(server, BT_HTTP_HANDSHAKE, header_us))) {
        server->counters.n_slow++;
        bt_http_connection_close(c);
    }
    while ((c = overdue(server, BT_HTTP_HEAD, header_us))) {
        server->counters.n_slow++;
        if (c->in.n_bytes)
            refuse(c, 408, "the request's head did not come in time", NULL);
        else
            bt_http_connection_close(c);
    }
    while ((c = overdue(server, BT_HTTP_IDLE, config->idle_s * UINT64_C(1000000))))
        bt_http_connection_close(c);
    while ((c = overdue(server, BT_HTTP_LINGER, BT_HTTP_LINGER_US)))
        bt_http_connection_close(c);
    cut_slow_bodies(server);
    for (struct bt_http_connection *next, *at = server->lists[BT_HTTP_REPLYING].first; at;
         at = next) {
        next = at->next;
        if (server->now_us - at->since_us >= REPLY_STUCK_US)
            bt_http_connection_close(at);
    }
}

/* ---- listening ---- */

static bool is_loopback(const struct sockaddr_storage *peer) {
    if (peer->ss_family == AF_INET6) {
        const struct in6_addr *v6 = &((const struct sockaddr_in6 *)(const void *)peer)->sin6_addr;
        return IN6_IS_ADDR_LOOPBACK(v6) || (IN6_IS_ADDR_V4MAPPED(v6) && v6->s6_addr[12] == 127);
    }
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)(const void *)peer;
    return peer->ss_family == AF_INET && ntohl(v4->sin_addr.s_addr) >> 24 == 127;
}

static void take_connection(struct bt_http_server *server, int fd,
                            const struct sockaddr_storage *peer) {
    size_t limit = server->config.connections_max;
    server->counters.n_accepted++;
    while (server->n_connections >= limit && displace(server)) {
    }
    bool is_full = server->n_connections >= limit;
    struct bt_http_connection *c = bt_http_connection_open(server, fd, is_loopback(peer));
    if (!c || !is_full)
        return;
    server->counters.n_turned_away++;
    /* Under TLS a word would cost a handshake. */
    if (c->tls)
        bt_http_connection_close(c);
    else
        refuse(c, 503, "there are too many connections", "Retry-After: 1\r\n");
}

static void on_accept(evutil_socket_t listener, short what, void *arg) {
    (void)what;
    struct bt_http_server *server = arg;
    bt_http_server_begin(server);
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        struct sockaddr_storage peer = {0};
        socklen_t n = sizeof peer;
        int fd = accept4((int)listener, (struct sockaddr *)&peer, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            take_connection(server, fd, &peer);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return;
        } else if (errno != EINTR && errno != ECONNABORTED && errno != EPROTO) {
            /* Out of descriptors, most likely: the pending connection stays pending, and trying
             * again at once would spin. The tick tries again. */
            BT_WARN("cannot accept a connection: %s; waiting", strerror(errno));
            event_del(server->accept_event);
            server->paused = true;
            return;
        }
    }
}

static void on_tick(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_http_server *server = arg;
    bt_http_server_begin(server);
    cut_slow(server);
    if (server->paused)
        server->paused = event_add(server->accept_event, NULL) != 0;
}

static bt_status start(struct bt_http_server *server, struct event_base *base,
                       struct bt_error *err) {
    const struct timeval tick = {0, TICK_MS * 1000};
    server->base = base;
    server->now_us = bt_clock_us();
    server->scratch = malloc(BT_HTTP_READ_BYTES);
    if (!server->scratch)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the HTTP port");
    if (getrandom(&server->random, sizeof server->random, 0) != (ssize_t)sizeof server->random)
        return bt_fail(err, BT_E_IO, "no random bytes: %s", strerror(errno));
    const struct bt_listen listen = {.host = server->config.host,
                                     .port = server->config.port,
                                     .what = "HTTP",
                                     .backlog = BACKLOG,
                                     .send_buffer_bytes = SEND_BUFFER_BYTES};
    BT_TRY(bt_listen_open(&listen, &server->fd, server->address, err));
    server->accept_event = event_new(base, server->fd, EV_READ | EV_PERSIST, on_accept, server);
    server->tick = event_new(base, -1, EV_PERSIST, on_tick, server);
    if (!server->accept_event || !server->tick || event_add(server->accept_event, NULL) != 0 ||
        event_add(server->tick, &tick) != 0)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the HTTP port");
    return BT_OK;
}

bt_status bt_http_server_start(struct event_base *base, const struct bt_http_server_config *config,
                               struct bt_http_server **out, struct bt_error *err) {
    struct bt_http_server *server = calloc(1, sizeof *server);
    if (!server)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the HTTP port");
    server->config = *config;
    server->fd = -1;
    bt_status status = start(server, base, err);
    if (status < 0) {
        bt_http_server_destroy(server);
        return status;
    }
    *out = server;
    return BT_OK;
}

const char *bt_http_server_address(const struct bt_http_server *server) {
    return server->address;
}

const struct bt_http_counters *bt_http_server_counters(const struct bt_http_server *server) {
    return &server->counters;
}

size_t bt_http_server_connections(const struct bt_http_server *server) {
    return server->n_connections;
}

void bt_http_server_drain(struct bt_http_server *server) {
    server->draining = true;
}

void bt_http_server_destroy(struct bt_http_server *server) {
    if (!server)
        return;
    for (int state = 0; state < BT_HTTP_DEAD; state++) {
        struct bt_http_connection *c;
        while ((c = server->lists[state].first)) {
            if (c->call)
                c->call->is_kept = false; /* nobody is told */
            bt_http_connection_close(c);
        }
    }
    while (server->lists[BT_HTTP_DEAD].first)
        bt_http_connection_free(server->lists[BT_HTTP_DEAD].first);
    if (server->accept_event)
        event_free(server->accept_event);
    if (server->tick)
        event_free(server->tick);
    if (server->fd >= 0)
        close(server->fd);
    free(server->scratch);
    free(server);
}

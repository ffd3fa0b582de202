/* The KV link over TCP: listens, dials, makes the first exchange; the operation table. */
#include "common/kv/kv_link_tcp.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/dns.h>
#include <event2/listener.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/address.h"
#include "common/base/assert.h"
#include "common/base/clock.h"
#include "common/base/listen.h"
#include "common/base/log.h"
#include "common/base/tls.h"

static struct bt_kv_tcp_conn *conn_create(struct bt_kv_links *set, enum bt_kv_tcp_state state,
                                          uint32_t link) {
    struct bt_kv_tcp_conn *conn = calloc(1, sizeof *conn);
    if (!conn)
        return NULL;
    conn->set = set;
    conn->state = state;
    conn->fd = -1;
    conn->link = link;
    if (!bt_kv_tcp_watch(conn)) {
        if (conn->control)
            evbuffer_free(conn->control);
        if (conn->deadline)
            event_free(conn->deadline);
        free(conn);
        return NULL;
    }
    conn->next = set->conns;
    set->conns = conn;
    if (link == BT_KV_NO_LINK)
        set->n_pending++;
    else
        set->by_link[link] = conn;
    bt_kv_tcp_set_deadline(conn, BT_KV_TCP_EXCHANGE_MS);
    return conn;
}

static void no_delay(int fd) {
    int on = 1;
    /* Without it a commit may wait for an acknowledgement: slower, not wrong. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* ---- the first exchange ---- */

void bt_kv_tcp_refuse(struct bt_kv_tcp_conn *conn, const char *why) {
    struct bt_kv_control refused = {.type = BT_KV_CONTROL_REFUSED};
    snprintf(refused.refused, sizeof refused.refused, "%s", why);
    BT_WARN("a KV link from %s was refused: %s", conn->who, why);
    bt_kv_tcp_queue(conn, &refused);
    conn->state = BT_KV_TCP_CLOSING;
    bt_kv_tcp_set_deadline(conn, BT_KV_TCP_CLOSE_MS);
}

static void come_up(struct bt_kv_tcp_conn *conn) {
    const struct bt_kv_link_user *user = &conn->set->config.user;
    conn->state = BT_KV_TCP_UP;
    conn->was_up = true;
    conn->reader.may_frame = !conn->set->config.prefill;
    conn->heard_us = bt_clock_us();
    event_del(conn->deadline);
    user->up(user->arg, conn->link, conn->peer);
    bt_kv_tcp_turn(conn->set);
}

/* A worker that dials again has lost its old connection, whatever that looks like from here. */
static void bury_older(struct bt_kv_links *set, struct bt_id peer) {
    for (uint32_t i = 0; i < BT_MAX_LINKS; i++) {
        struct bt_kv_tcp_conn *old = set->by_link[i];
        if (old && bt_id_equal(old->peer, peer)) {
            bt_kv_tcp_doom(old, "the same worker has opened a new connection");
            bt_kv_tcp_bury(old);
        }
    }
}

static bt_status check_join(const struct bt_kv_links *set, const struct bt_kv_join *join,
                            uint32_t *protocol, struct bt_error *err) {
    const struct bt_kv_links_config *config = &set->config;
    if (!bt_id_equal(join->peer, config->incarnation))
        return bt_fail(err, BT_E_PEER_GONE,
                       "this is incarnation %016llx%016llx of %s, the link was meant for "
                       "%016llx%016llx: it has started again",
                       (unsigned long long)config->incarnation.hi,
                       (unsigned long long)config->incarnation.lo, config->name,
                       (unsigned long long)join->peer.hi, (unsigned long long)join->peer.lo);
    if (join->protocol_min > BT_KV_PROTOCOL_MAX || join->protocol_max < BT_KV_PROTOCOL_MIN)
        return bt_fail(
            err, BT_E_UNSUPPORTED, "link protocol %u to %u is offered, this worker speaks %d to %d",
            join->protocol_min, join->protocol_max, BT_KV_PROTOCOL_MIN, BT_KV_PROTOCOL_MAX);
    BT_TRY(bt_fingerprint_compare(&config->fingerprint, &join->fingerprint, err));
    *protocol = join->protocol_max < BT_KV_PROTOCOL_MAX ? join->protocol_max : BT_KV_PROTOCOL_MAX;
    return BT_OK;
}

static bt_status on_join(struct bt_kv_tcp_conn *conn, const struct bt_kv_join *join) {
    struct bt_kv_links *set = conn->set;
    struct bt_error err;
    struct bt_kv_control welcome = {.type = BT_KV_CONTROL_WELCOME,
                                    .welcome = {.incarnation = set->config.incarnation}};
    uint32_t link = 0;
    memcpy(conn->who, join->name, sizeof conn->who);
    if (check_join(set, join, &welcome.welcome.protocol, &err) != BT_OK) {
        bt_kv_tcp_refuse(conn, err.text);
        return BT_OK;
    }
    bury_older(set, join->incarnation);
    while (link < BT_MAX_LINKS && set->by_link[link])
        link++;
    if (link == BT_MAX_LINKS) {
        bt_fail(&err, BT_E_FULL, "%s has %d KV links, which is the most", set->config.name,
                BT_MAX_LINKS);
        bt_kv_tcp_refuse(conn, err.text);
        return BT_OK;
    }
    set->n_pending--;
    set->by_link[link] = conn;
    conn->link = conn->reader.link = link;
    conn->peer = join->incarnation;
    bt_kv_tcp_queue(conn, &welcome);
    come_up(conn);
    return BT_OK;
}

static bt_status on_answer(struct bt_kv_tcp_conn *conn, const struct bt_kv_control *control,
                           struct bt_error *err) {
    if (control->type == BT_KV_CONTROL_REFUSED) {
        bt_kv_tcp_doom(conn, "the decode worker refused: %s", control->refused);
        return BT_OK;
    }
    if (control->type != BT_KV_CONTROL_WELCOME)
        return bt_fail(err, BT_E_PROTOCOL,
                       "the answer to LinkJoin must be LinkWelcome or LinkRefused");
    if (!bt_id_equal(control->welcome.incarnation, conn->peer)) {
        bt_kv_tcp_doom(conn,
                       "%s is incarnation %016llx%016llx, %016llx%016llx was dialled: it has "
                       "started again",
                       conn->who, (unsigned long long)control->welcome.incarnation.hi,
                       (unsigned long long)control->welcome.incarnation.lo,
                       (unsigned long long)conn->peer.hi, (unsigned long long)conn->peer.lo);
        return BT_OK;
    }
    come_up(conn);
    return BT_OK;
}

/* Who may say what once the link is up. */
static bool may_say(bool from_prefill, enum bt_kv_msg_type type) {
    bool is_prefills = type == BT_KV_HELLO || type == BT_KV_COMMIT || type == BT_KV_WITHDRAWN;
    return is_prefills == from_prefill;
}

bt_status bt_kv_tcp_control(void *arg, const struct bt_kv_control *control, struct bt_error *err) {
    struct bt_kv_tcp_conn *conn = arg;
    struct bt_kv_links *set = conn->set;
    const struct bt_kv_link_user *user = &set->config.user;
    if (conn->is_doomed || (conn->state == BT_KV_TCP_CLOSING && !conn->was_up))
        return BT_OK; /* refused: what it says does not count any more */
    if (conn->state == BT_KV_TCP_EXCHANGE && set->config.prefill)
        return on_answer(conn, control, err);
    if (conn->state == BT_KV_TCP_EXCHANGE) {
        if (control->type != BT_KV_CONTROL_JOIN)
            return bt_fail(err, BT_E_PROTOCOL, "the first message of a link must be LinkJoin");
        return on_join(conn, &control->join);
    }
    if (control->type == BT_KV_CONTROL_PING)
        return BT_OK;
    if (control->type != BT_KV_CONTROL_MSG)
        return bt_fail(err, BT_E_PROTOCOL,
                       "a message of the first exchange came on a link that is up");
    if (!may_say(!set->config.prefill, control->msg.type))
        return bt_fail(err, BT_E_PROTOCOL, "a %s worker must not send a message of type %d",
                       set->config.prefill ? "decode" : "prefill", control->msg.type);
    user->message(user->arg, conn->link, &control->msg);
    bt_kv_tcp_turn(set);
    return BT_OK;
}

/* ---- dialling ---- */

/* Outlives its connection where a lookup is given up: the resolver calls back all the same. */
struct bt_kv_tcp_lookup {
    struct bt_kv_tcp_conn *conn; /* NULL: given up */
    struct evdns_getaddrinfo_request *request;
};

void bt_kv_tcp_forget_lookup(struct bt_kv_tcp_lookup *lookup) {
    lookup->conn = NULL;
    evdns_getaddrinfo_cancel(lookup->request);
}

static void close_socket(struct bt_kv_tcp_conn *conn) {
    if (conn->read)
        event_free(conn->read);
    if (conn->write)
        event_free(conn->write);
    conn->read = conn->write = NULL;
    bt_tls_stream_destroy(conn->tls);
    conn->tls = NULL;
    if (conn->fd >= 0)
        close(conn->fd);
    conn->fd = -1;
}

/* Begins to connect to the next address; dooms the connection where none is left. error is why the
 * last one failed. */
static void connect_next(struct bt_kv_tcp_conn *conn, int error) {
    while (conn->next_address < conn->n_addresses) {
        uint32_t i = conn->next_address++;
        const struct sockaddr *address = (const struct sockaddr *)&conn->addresses[i];
        close_socket(conn);
        conn->fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (conn->fd < 0) {
            error = errno;
            continue;
        }
        no_delay(conn->fd);
        if (connect(conn->fd, address, conn->address_bytes[i]) && errno != EINPROGRESS) {
            error = errno;
            continue;
        }
        if (!bt_kv_tcp_watch_socket(conn)) {
            error = ENOMEM;
            continue;
        }
        conn->state = BT_KV_TCP_CONNECTING;
        event_add(conn->write, NULL);
        return;
    }
    bt_kv_tcp_doom(conn, "connecting to %s failed: %s", conn->who, strerror(error));
}

void bt_kv_tcp_connected(struct bt_kv_tcp_conn *conn) {
    const struct bt_kv_links_config *config = &conn->set->config;
    int error = 0;
    socklen_t n = sizeof error;
    if (getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &n))
        error = errno;
    if (error) {
        connect_next(conn, error);
        return;
    }
    struct bt_kv_control join = {.type = BT_KV_CONTROL_JOIN,
                                 .join = {.incarnation = config->incarnation,
                                          .peer = conn->peer,
                                          .protocol_min = BT_KV_PROTOCOL_MIN,
                                          .protocol_max = BT_KV_PROTOCOL_MAX,
                                          .fingerprint = config->fingerprint}};
    memcpy(join.join.name, config->name, sizeof join.join.name);
    conn->state = BT_KV_TCP_EXCHANGE;
    if (!bt_kv_tcp_start_tls(conn)) {
        bt_kv_tcp_doom(conn, "no memory for TLS");
        return;
    }
    event_add(conn->read, NULL);
    bt_kv_tcp_queue(conn, &join);
}

static void take_addresses(struct bt_kv_tcp_conn *conn, const struct addrinfo *list) {
    for (; list && conn->n_addresses < BT_KV_TCP_ADDRESSES; list = list->ai_next) {
        if (list->ai_addrlen > sizeof conn->addresses[0])
            continue;
        memcpy(&conn->addresses[conn->n_addresses], list->ai_addr, list->ai_addrlen);
        conn->address_bytes[conn->n_addresses++] = list->ai_addrlen;
    }
    connect_next(conn, EADDRNOTAVAIL);
}

static void on_resolved(int result, struct evutil_addrinfo *list, void *arg) {
    struct bt_kv_tcp_lookup *lookup = arg;
    struct bt_kv_tcp_conn *conn = lookup->conn;
    free(lookup);
    if (conn) {
        struct bt_kv_links *set = conn->set;
        conn->lookup = NULL;
        if (result)
            bt_kv_tcp_doom(conn, "%s cannot be resolved: %s", conn->who,
                           evutil_gai_strerror(result));
        else
            take_addresses(conn, list);
        event_active(set->flush, 0, 0); /* this may run inside `dial` */
    }
    if (list)
        evutil_freeaddrinfo(list);
}

static bt_status resolve(struct bt_kv_tcp_conn *conn, const char *host, const char *port,
                         const struct addrinfo *hints, struct bt_error *err) {
    struct bt_kv_links *set = conn->set;
    if (!set->dns)
        set->dns = evdns_base_new(set->config.base, EVDNS_BASE_INITIALIZE_NAMESERVERS |
                                                        EVDNS_BASE_DISABLE_WHEN_INACTIVE);
    struct bt_kv_tcp_lookup *lookup = set->dns ? calloc(1, sizeof *lookup) : NULL;
    if (!lookup)
        return bt_fail(err, BT_E_UNAVAILABLE, "no resolver for %s", conn->who);
    lookup->conn = conn;
    conn->lookup = lookup;
    struct evdns_getaddrinfo_request *request =
        evdns_getaddrinfo(set->dns, host, port, hints, on_resolved, lookup);
    if (request)
        lookup->request = request; /* else it has answered already, and lookup is gone */
    return BT_OK;
}

static bt_status dial_start(struct bt_kv_tcp_conn *conn, const struct bt_address *address,
                            struct bt_error *err) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_protocol = IPPROTO_TCP,
                             .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    char port[8];
    snprintf(port, sizeof port, "%u", address->port);
    if (!getaddrinfo(address->host, port, &hints, &list)) {
        take_addresses(conn, list);
        freeaddrinfo(list);
        return BT_OK;
    }
    hints.ai_flags = AI_NUMERICSERV;
    return resolve(conn, address->host, port, &hints, err);
}

static bt_status tcp_dial(struct bt_kv_links *set, uint32_t link, const char *text,
                          struct bt_id peer, struct bt_error *err) {
    struct bt_address address;
    BT_ASSERT(set->config.prefill && link < BT_MAX_LINKS && !set->by_link[link]);
    BT_TRY(bt_address_parse(text, &address, err));
    if (!address.port)
        return bt_fail(err, BT_E_INVALID, "link address %s has port 0", text);
    struct bt_kv_tcp_conn *conn = conn_create(set, BT_KV_TCP_RESOLVING, link);
    if (!conn)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a KV link to %s", text);
    conn->peer = peer;
    snprintf(conn->who, sizeof conn->who, "%s", text);
    struct bt_error why;
    if (dial_start(conn, &address, &why) != BT_OK)
        bt_kv_tcp_doom(conn, "%s", why.text);
    return BT_OK;
}

/* ---- listening ---- */

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address,
                      int address_bytes, void *arg) {
    struct bt_kv_links *set = arg;
    struct bt_kv_tcp_conn *conn = NULL;
    (void)listener;
    if (set->n_pending < BT_KV_TCP_PENDING)
        conn = conn_create(set, BT_KV_TCP_EXCHANGE, BT_KV_NO_LINK);
    if (!conn) {
        BT_WARN("a KV link was closed at once: %u connections wait for their first exchange",
                set->n_pending);
        close(fd);
        return;
    }
    conn->fd = fd;
    char host[BT_NAME_BYTES - 8], port[8];
    if (getnameinfo(address, (socklen_t)address_bytes, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV))
        snprintf(conn->who, sizeof conn->who, "an unknown address");
    else
        snprintf(conn->who, sizeof conn->who, "%s:%s", host, port);
    no_delay(fd);
    if (!bt_kv_tcp_start_tls(conn) || !bt_kv_tcp_watch_socket(conn) || event_add(conn->read, NULL))
        bt_kv_tcp_doom(conn, "no memory for its events");
}

/* No descriptor left, most likely: a listener that stays on would spin. */
static void on_accept_failed(struct evconnlistener *listener, void *arg) {
    struct bt_kv_links *set = arg;
    BT_WARN("a KV link could not be accepted: %s", strerror(errno));
    set->is_paused = true;
    evconnlistener_disable(listener);
}

static bt_status listen_on(struct bt_kv_links *set, const char *text, struct bt_error *err) {
    struct bt_address address;
    int fd = -1;
    BT_TRY(bt_address_parse(text, &address, err));
    const struct bt_listen config = {
        .host = address.host, .port = address.port, .what = "KV links", .backlog = BT_MAX_LINKS};
    BT_TRY(bt_listen_open(&config, &fd, set->address, err));
    set->listener = evconnlistener_new(set->config.base, on_accept, set,
                                       LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, fd);
    if (!set->listener) {
        close(fd);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory to listen on %s", text);
    }
    evconnlistener_set_error_cb(set->listener, on_accept_failed);
    return BT_OK;
}

/* ---- the set ---- */

static void on_flush(evutil_socket_t fd, short what, void *arg) {
    struct bt_kv_links *set = arg;
    (void)fd, (void)what;
    for (struct bt_kv_tcp_conn *conn = set->conns; conn; conn = conn->next)
        bt_kv_tcp_write(conn);
    bt_kv_tcp_leave(set);
}

static void on_tick(evutil_socket_t fd, short what, void *arg) {
    struct bt_kv_links *set = arg;
    const struct bt_kv_control ping = {.type = BT_KV_CONTROL_PING};
    uint64_t now_us = bt_clock_us();
    bool was_stalled =
        now_us - set->ticked_us > (uint64_t)(BT_LINK_PING_MS + BT_KV_TCP_STALL_MS) * 1000;
    (void)fd, (void)what;
    set->ticked_us = now_us;
    if (was_stalled)
        set->stalled_us = now_us;
    for (struct bt_kv_tcp_conn *conn = set->conns; conn; conn = conn->next) {
        if (conn->state != BT_KV_TCP_UP || conn->is_doomed)
            continue;
        if (was_stalled)
            conn->heard_us = now_us; /* what it said may still stand in the socket */
        else if (now_us - conn->heard_us > BT_LINK_DEAD_MS * 1000)
            bt_kv_tcp_doom(conn, "the peer was silent for %llu ms",
                           (unsigned long long)(now_us - conn->heard_us) / 1000);
        /* What is on its way already is a sign of life; pings do not pile up behind it. */
        if (!conn->is_sending && !evbuffer_get_length(conn->control))
            bt_kv_tcp_queue(conn, &ping);
    }
    if (set->is_paused && set->listener) {
        set->is_paused = false;
        evconnlistener_enable(set->listener);
    }
    bt_kv_tcp_leave(set);
}

static void tcp_destroy(struct bt_kv_links *set) {
    if (!set)
        return;
    while (set->conns) {
        bt_kv_tcp_doom(set->conns, "the worker closes its links");
        bt_kv_tcp_bury(set->conns);
    }
    if (set->listener)
        evconnlistener_free(set->listener);
    if (set->dns)
        evdns_base_free(set->dns, 1);
    if (set->tick)
        event_free(set->tick);
    if (set->flush)
        event_free(set->flush);
    free(set);
}

static bt_status tcp_create(const struct bt_kv_links_config *config, struct bt_kv_links **out,
                            struct bt_error *err) {
    const struct timeval period = {.tv_usec = BT_LINK_PING_MS * 1000};
    struct bt_kv_links *set = calloc(1, sizeof *set);
    bt_status status = BT_OK;
    if (!set)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for KV links");
    set->config = *config;
    set->config.listen = NULL;
    set->ticked_us = bt_clock_us();
    set->tick = event_new(config->base, -1, EV_PERSIST, on_tick, set);
    set->flush = event_new(config->base, -1, 0, on_flush, set);
    if (!set->tick || !set->flush || event_add(set->tick, &period))
        BT_TRY_GOTO(bt_fail(err, BT_E_NO_MEMORY, "no memory for KV links"), fail);
    if (!config->prefill)
        BT_TRY_GOTO(listen_on(set, config->listen, err), fail);
    *out = set;
    return BT_OK;
fail:
    tcp_destroy(set);
    return status;
}

static const char *tcp_address(const struct bt_kv_links *set) {
    return set->address;
}

static void tcp_close(struct bt_kv_links *set, uint32_t link) {
    struct bt_kv_tcp_conn *conn = link < BT_MAX_LINKS ? set->by_link[link] : NULL;
    if (!conn || conn->is_doomed || conn->state == BT_KV_TCP_CLOSING)
        return;
    if (conn->state != BT_KV_TCP_UP) {
        bt_kv_tcp_doom(conn, "closed before it was up");
        return;
    }
    conn->state = BT_KV_TCP_CLOSING;
    bt_kv_tcp_set_deadline(conn, BT_KV_TCP_CLOSE_MS);
    event_active(set->flush, 0, 0);
}

static void tcp_send(struct bt_kv_links *set, uint32_t link, const struct bt_kv_msg *msg) {
    struct bt_kv_tcp_conn *conn = link < BT_MAX_LINKS ? set->by_link[link] : NULL;
    if (!conn || conn->is_doomed || conn->state != BT_KV_TCP_UP)
        return;
    const struct bt_kv_control control = {.type = BT_KV_CONTROL_MSG, .msg = *msg};
    bt_kv_tcp_queue(conn, &control);
}

static void tcp_pump(struct bt_kv_links *set, uint32_t link) {
    if (link < BT_MAX_LINKS && set->by_link[link])
        event_active(set->flush, 0, 0);
}

static void tcp_cut(struct bt_kv_links *set, uint32_t link, uint32_t lease) {
    if (link < BT_MAX_LINKS && set->by_link[link])
        bt_kv_reader_cut(&set->by_link[link]->reader, lease);
}

static uint64_t tcp_breaches(const struct bt_kv_links *set) {
    return set->n_breaches;
}

const struct bt_kv_link_ops bt_kv_link_tcp = {
    .name = "tcp",
    .create = tcp_create,
    .destroy = tcp_destroy,
    .address = tcp_address,
    .dial = tcp_dial,
    .close = tcp_close,
    .send = tcp_send,
    .pump = tcp_pump,
    .cut = tcp_cut,
    .breaches = tcp_breaches,
};

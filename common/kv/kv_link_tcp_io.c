/* The KV link over TCP: reads into pages, writes from pages, ends connections. */
#include "common/kv/kv_link_tcp.h"

#include <errno.h>
#include <event2/buffer.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/bytes.h"
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/tls.h"

void bt_kv_tcp_doom(struct bt_kv_tcp_conn *conn, const char *format, ...) {
    if (conn->is_doomed)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(conn->why, sizeof conn->why, format, args);
    va_end(args);
    conn->is_doomed = true;
    /* Where this comes from a call of the user's, and not from an event's handler. */
    event_active(conn->set->flush, 0, 0);
}

void bt_kv_tcp_turn(struct bt_kv_links *set) {
    if (set->in_turn)
        return;
    set->in_turn = true;
    set->config.user.turn(set->config.user.arg);
    set->in_turn = false;
}

void bt_kv_tcp_set_deadline(struct bt_kv_tcp_conn *conn, uint32_t ms) {
    struct timeval t = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    conn->deadline_set_us = bt_clock_us();
    event_add(conn->deadline, &t);
}

/* ---- ending ---- */

static void unlink_conn(struct bt_kv_tcp_conn *conn) {
    struct bt_kv_links *set = conn->set;
    struct bt_kv_tcp_conn **at = &set->conns;
    while (*at != conn)
        at = &(*at)->next;
    *at = conn->next;
    if (conn->link == BT_KV_NO_LINK)
        set->n_pending--;
    else
        set->by_link[conn->link] = NULL;
}

void bt_kv_tcp_bury(struct bt_kv_tcp_conn *conn) {
    struct bt_kv_links *set = conn->set;
    const struct bt_kv_link_user *user = &set->config.user;
    unlink_conn(conn);
    /* The socket first: nothing lands and nothing is read any more when the user hears of it. */
    struct event *events[] = {conn->read, conn->write, conn->deadline};
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
        if (events[i])
            event_free(events[i]);
    if (conn->tls)
        bt_tls_close(conn->tls);
    bt_tls_stream_destroy(conn->tls);
    if (conn->fd >= 0)
        close(conn->fd);
    if (conn->lookup)
        bt_kv_tcp_forget_lookup(conn->lookup);
    if (conn->reader.is_landing) {
        bt_kv_reader_stop(&conn->reader);
        bt_kv_tcp_turn(set);
    }
    if (conn->is_sending) {
        user->frame_done(user->arg, conn->link, conn->frame.id);
        bt_kv_tcp_turn(set);
    }
    if (conn->control)
        evbuffer_free(conn->control);
    if (conn->link != BT_KV_NO_LINK) {
        user->down(user->arg, conn->link, conn->why);
        bt_kv_tcp_turn(set);
    } else if (conn->state != BT_KV_TCP_CLOSING) { /* a refusal was logged with its reason */
        BT_INFO("a KV link from %s was not taken: %s", conn->who, conn->why);
    }
    free(conn);
}

static struct bt_kv_tcp_conn *first_doomed(const struct bt_kv_links *set) {
    struct bt_kv_tcp_conn *conn = set->conns;
    while (conn && !conn->is_doomed)
        conn = conn->next;
    return conn;
}

void bt_kv_tcp_leave(struct bt_kv_links *set) {
    struct bt_kv_tcp_conn *conn;
    while ((conn = first_doomed(set))) /* the user may doom others in `down` */
        bt_kv_tcp_bury(conn);
}

/* ---- writing ---- */

void bt_kv_tcp_queue(struct bt_kv_tcp_conn *conn, const struct bt_kv_control *control) {
    uint8_t unit[BT_KV_UNIT_BYTES_MAX];
    size_t n = bt_kv_control_pack(control, unit);
    if (evbuffer_get_length(conn->control) + n > BT_KV_TCP_QUEUE_BYTES)
        bt_kv_tcp_doom(conn,
                       "the peer does not read: %zu bytes of control messages wait, at most %d",
                       evbuffer_get_length(conn->control), BT_KV_TCP_QUEUE_BYTES);
    else if (evbuffer_add(conn->control, unit, n))
        bt_kv_tcp_doom(conn, "no memory for a control message of %zu bytes", n);
    event_active(conn->set->flush, 0, 0);
}

/* A frame for this link: header and sums are packed here, the pages are written from where they
 * are. */
static bool begin_frame(struct bt_kv_tcp_conn *conn) {
    const struct bt_kv_link_user *user = &conn->set->config.user;
    struct bt_kv_outgoing *out = &conn->frame;
    if (!conn->set->config.prefill || conn->state != BT_KV_TCP_UP ||
        !user->next_frame(user->arg, conn->link, out))
        return false;
    uint32_t n_sums = bt_kv_frame_sums(&out->frame, conn->set->config.page_bytes);
    bt_kv_header_pack_frame(&out->frame, conn->head);
    for (uint32_t i = 0; i < n_sums; i++)
        bt_store_u64(conn->head + BT_KV_HEADER_BYTES + 8 * i, out->sums[i]);
    conn->head_bytes = BT_KV_HEADER_BYTES + 8 * n_sums;
    conn->n_sent = 0;
    conn->is_sending = true;
    return true;
}

/* Entries for what of the frame was not sent yet. */
static int want_out(struct bt_kv_tcp_conn *conn, struct iovec *iov) {
    const struct bt_kv_links_config *config = &conn->set->config;
    const struct bt_kv_frame *frame = &conn->frame.frame;
    int n = 0;
    uint32_t sent = conn->n_sent;
    if (sent < conn->head_bytes) {
        iov[n++] = (struct iovec){conn->head + sent, conn->head_bytes - sent};
        sent = conn->head_bytes;
    }
    uint32_t at = frame->offset + (sent - conn->head_bytes), end = frame->offset + frame->length;
    while (at < end) {
        uint32_t i = at / config->page_bytes, in_page = at % config->page_bytes;
        uint32_t take = config->page_bytes - in_page;
        if (take > end - at)
            take = end - at;
        uint8_t *page = config->user.page(config->user.arg, frame->layer, conn->frame.pages[i]);
        iov[n++] = (struct iovec){page + in_page, take};
        at += take;
    }
    return n;
}

/* What came of an operation that was tried on the socket, for TLS and without it. */
struct moved {
    size_t n;
    bool is_blocked; /* the socket takes or has no more now */
    bool is_ended;   /* the peer has closed */
};

/* A connection that the peer broke during the exchange was not a plain-text one to it. */
static void doom_broken(struct bt_kv_tcp_conn *conn, const char *doing, int error) {
    bool may_want_tls = conn->state == BT_KV_TCP_EXCHANGE && conn->set->config.prefill;
    bt_kv_tcp_doom(conn, "%s the peer failed: %s%s", doing, strerror(error),
                   may_want_tls ? "; it may want TLS (--tls-cert, --tls-key, --tls-ca)" : "");
}

static struct moved send_plain(struct bt_kv_tcp_conn *conn, struct iovec *iov, int n_iov) {
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)n_iov};
    ssize_t n;
    do {
        n = sendmsg(conn->fd, &msg, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n >= 0)
        return (struct moved){.n = (size_t)n};
    if (errno != EAGAIN && errno != EWOULDBLOCK)
        doom_broken(conn, "writing to", errno);
    return (struct moved){.is_blocked = true};
}

static struct moved send_tls(struct bt_kv_tcp_conn *conn, const struct iovec *iov, int n_iov) {
    struct moved moved = {0};
    struct bt_error err;
    for (int i = 0; i < n_iov; i++) {
        const uint8_t *bytes = iov[i].iov_base;
        for (size_t at = 0, n; at < iov[i].iov_len; at += n, moved.n += n) {
            bt_status status = bt_tls_write(conn->tls, bytes + at, iov[i].iov_len - at, &n, &err);
            if (status == BT_OK)
                continue;
            if (status != BT_AGAIN)
                bt_kv_tcp_doom(conn, "writing to the peer failed: %s", err.text);
            moved.is_blocked = true;
            return moved;
        }
    }
    return moved;
}

/* Sends what it can; a failure dooms the connection. */
static struct moved send_some(struct bt_kv_tcp_conn *conn, struct iovec *iov, int n_iov) {
    return conn->tls ? send_tls(conn, iov, n_iov) : send_plain(conn, iov, n_iov);
}

static struct moved send_frame(struct bt_kv_tcp_conn *conn) {
    const struct bt_kv_link_user *user = &conn->set->config.user;
    struct iovec iov[BT_KV_FRAME_PAGES + 1];
    struct moved moved = send_some(conn, iov, want_out(conn, iov));
    conn->n_sent += (uint32_t)moved.n;
    if (conn->n_sent == conn->head_bytes + conn->frame.frame.length) {
        conn->is_sending = false;
        user->frame_done(user->arg, conn->link, conn->frame.id);
        bt_kv_tcp_turn(conn->set);
    }
    return moved;
}

static struct moved send_control(struct bt_kv_tcp_conn *conn) {
    struct evbuffer_iovec extents[16];
    struct iovec iov[16];
    int n_iov = evbuffer_peek(conn->control, -1, NULL, extents, 16);
    if (n_iov > 16)
        n_iov = 16;
    for (int i = 0; i < n_iov; i++)
        iov[i] = (struct iovec){extents[i].iov_base, extents[i].iov_len};
    struct moved moved = send_some(conn, iov, n_iov);
    evbuffer_drain(conn->control, moved.n);
    return moved;
}

/* Control goes before the next frame and never inside one. A frame is pulled only when everything
 * before it is in the socket (or collected by TLS in order), so that a commit that the core queues
 * stands behind its frames. True: all that there is was sent. */
static bool send_all(struct bt_kv_tcp_conn *conn) {
    size_t n_total = 0;
    while (!conn->is_doomed) {
        bool has_control = evbuffer_get_length(conn->control) > 0;
        if (!conn->is_sending && !has_control && !begin_frame(conn))
            return true;
        struct moved moved = conn->is_sending ? send_frame(conn) : send_control(conn);
        n_total += moved.n;
        /* TLS's handshake may wait for the peer: on_readable comes back here. */
        bool waits_for_peer = moved.is_blocked && conn->tls && !bt_tls_wants_write(conn->tls);
        /* Until it is writable, or for the next turn. */
        conn->is_waiting = !waits_for_peer && (moved.is_blocked || n_total >= BT_KV_TCP_TURN_BYTES);
        if (waits_for_peer || conn->is_waiting)
            return false;
    }
    return false;
}

/* False: some of what TLS has collected is still there. */
static bool flush_tls(struct bt_kv_tcp_conn *conn) {
    struct bt_error err;
    bt_status status = conn->tls && !conn->is_doomed ? bt_tls_flush(conn->tls, &err) : BT_OK;
    if (status < 0)
        bt_kv_tcp_doom(conn, "writing to the peer failed: %s", err.text);
    conn->is_waiting = conn->is_waiting || status == BT_AGAIN;
    return status == BT_OK;
}

void bt_kv_tcp_write(struct bt_kv_tcp_conn *conn) {
    if (conn->is_waiting || conn->state < BT_KV_TCP_EXCHANGE)
        return;
    bool sent = send_all(conn);
    bool flushed = flush_tls(conn);
    if (conn->is_waiting && !conn->is_doomed)
        event_add(conn->write, NULL);
    if (sent && flushed && conn->state == BT_KV_TCP_CLOSING && !conn->is_doomed && !conn->is_shut) {
        conn->is_shut = true;
        if (conn->tls)
            bt_tls_close(conn->tls);
        shutdown(conn->fd, SHUT_WR);
    }
}

/* ---- reading ---- */

static void on_end(struct bt_kv_tcp_conn *conn) {
    if (conn->state == BT_KV_TCP_CLOSING)
        bt_kv_tcp_doom(conn, "closed");
    else if (conn->state == BT_KV_TCP_EXCHANGE && conn->set->config.prefill && !conn->tls)
        bt_kv_tcp_doom(conn,
                       "the peer closed the connection during the first exchange; it may want "
                       "TLS (--tls-cert, --tls-key, --tls-ca)");
    else if (bt_kv_reader_is_inside(&conn->reader))
        bt_kv_tcp_doom(conn, "the peer closed the connection in the middle of a %s",
                       conn->reader.phase == BT_KV_READ_HEADER    ? "header"
                       : conn->reader.phase == BT_KV_READ_CONTROL ? "control message"
                                                                  : "frame");
    else
        bt_kv_tcp_doom(conn, "the peer closed the connection");
}

static size_t total(const struct iovec *iov, int n_iov) {
    size_t n = 0;
    for (int i = 0; i < n_iov; i++)
        n += iov[i].iov_len;
    return n;
}

static struct moved read_plain(struct bt_kv_tcp_conn *conn, struct iovec *iov, int n_iov) {
    ssize_t n;
    do {
        n = readv(conn->fd, iov, n_iov);
    } while (n < 0 && errno == EINTR);
    if (n >= 0)
        return (struct moved){.n = (size_t)n,
                              .is_ended = n == 0,
                              /* the socket is empty for now */
                              .is_blocked = (size_t)n < total(iov, n_iov)};
    if (errno != EAGAIN && errno != EWOULDBLOCK)
        doom_broken(conn, "reading from", errno);
    return (struct moved){.is_blocked = true};
}

/* One record's bytes at most, decrypted into where they belong. */
static struct moved read_tls(struct bt_kv_tcp_conn *conn, const struct iovec *iov) {
    struct moved moved = {0};
    struct bt_error err;
    bt_status status = bt_tls_read(conn->tls, iov->iov_base, iov->iov_len, &moved.n, &err);
    if (status == BT_OK)
        return moved;
    moved.n = 0;
    moved.is_blocked = true;
    if (status == BT_AGAIN) {
        conn->reads_on_write = bt_tls_wants_write(conn->tls);
        if (conn->reads_on_write)
            event_add(conn->write, NULL);
    } else if (status == BT_DONE || conn->state == BT_KV_TCP_CLOSING) {
        moved.is_ended = true;
    } else {
        bt_kv_tcp_doom(conn, "%s", err.text);
    }
    return moved;
}

static void on_breach(struct bt_kv_tcp_conn *conn, const struct bt_error *err) {
    struct bt_kv_links *set = conn->set;
    set->n_breaches += err->status == BT_E_PROTOCOL;
    if (conn->state == BT_KV_TCP_EXCHANGE && !set->config.prefill) {
        bt_kv_tcp_refuse(conn, err->text);
        event_del(conn->read);
    } else {
        bt_kv_tcp_doom(conn, "%s", err->text);
    }
}

static void read_some(struct bt_kv_tcp_conn *conn) {
    size_t n_total = 0;
    while (!conn->is_doomed && n_total < BT_KV_TCP_TURN_BYTES) {
        struct iovec iov[BT_KV_READER_IOVS];
        struct bt_error err;
        int n_iov = bt_kv_reader_want(&conn->reader, iov);
        struct moved moved = conn->tls ? read_tls(conn, iov) : read_plain(conn, iov, n_iov);
        if (moved.is_ended)
            on_end(conn);
        if (!moved.n)
            return;
        conn->heard_us = bt_clock_us();
        n_total += moved.n;
        if (bt_kv_reader_got(&conn->reader, moved.n, &err) < 0) {
            on_breach(conn, &err);
            return;
        }
        if (moved.is_blocked)
            return;
    }
    /* What stands in TLS's buffer does not make the socket readable. */
    if (conn->tls && !conn->is_doomed && bt_tls_has_pending(conn->tls))
        event_active(conn->read, EV_READ, 0);
}

static void on_readable(evutil_socket_t fd, short what, void *arg) {
    struct bt_kv_tcp_conn *conn = arg;
    struct bt_kv_links *set = conn->set;
    (void)fd, (void)what;
    read_some(conn);
    if (conn->tls && !conn->is_doomed)
        bt_kv_tcp_write(conn); /* it may have waited for the peer's part of the handshake */
    bt_kv_tcp_leave(set);
}

static void on_writable(evutil_socket_t fd, short what, void *arg) {
    struct bt_kv_tcp_conn *conn = arg;
    struct bt_kv_links *set = conn->set;
    (void)fd, (void)what;
    conn->is_waiting = false;
    if (conn->state == BT_KV_TCP_CONNECTING)
        bt_kv_tcp_connected(conn);
    if (conn->reads_on_write) {
        conn->reads_on_write = false;
        read_some(conn);
    }
    bt_kv_tcp_write(conn);
    bt_kv_tcp_leave(set);
}

static void on_frame_ended(void *arg) {
    bt_kv_tcp_turn(((struct bt_kv_tcp_conn *)arg)->set);
}

static void on_deadline(evutil_socket_t fd, short what, void *arg) {
    struct bt_kv_tcp_conn *conn = arg;
    struct bt_kv_links *set = conn->set;
    (void)fd, (void)what;
    if (set->stalled_us > conn->deadline_set_us)
        bt_kv_tcp_set_deadline(conn, BT_KV_TCP_EXCHANGE_MS); /* the time was ours, not the peer's */
    else if (conn->state == BT_KV_TCP_CLOSING)
        bt_kv_tcp_doom(conn, "closed; the peer did not close within %d ms", BT_KV_TCP_CLOSE_MS);
    else if (conn->state < BT_KV_TCP_EXCHANGE)
        bt_kv_tcp_doom(conn, "no connection within %d ms", BT_KV_TCP_EXCHANGE_MS);
    else
        bt_kv_tcp_doom(conn, "the peer did not finish the first exchange within %d ms",
                       BT_KV_TCP_EXCHANGE_MS);
    bt_kv_tcp_leave(set);
}

bool bt_kv_tcp_watch(struct bt_kv_tcp_conn *conn) {
    struct bt_kv_links *set = conn->set;
    conn->reader.user = &set->config.user;
    conn->reader.link = conn->link;
    conn->reader.page_bytes = set->config.page_bytes;
    conn->reader.control = bt_kv_tcp_control;
    conn->reader.frame_ended = on_frame_ended;
    conn->reader.arg = conn;
    conn->reader.scratch = set->scratch;
    conn->control = evbuffer_new();
    conn->deadline = evtimer_new(set->config.base, on_deadline, conn);
    return conn->control && conn->deadline;
}

bool bt_kv_tcp_start_tls(struct bt_kv_tcp_conn *conn) {
    const struct bt_kv_links_config *config = &conn->set->config;
    if (!config->tls)
        return true;
    conn->tls = config->prefill ? bt_tls_connect(config->tls, conn->fd, BT_TLS_DECODE, NULL)
                                : bt_tls_accept(config->tls, conn->fd, BT_TLS_PREFILL);
    return conn->tls && bt_tls_collect(conn->tls);
}

bool bt_kv_tcp_watch_socket(struct bt_kv_tcp_conn *conn) {
    struct event_base *base = conn->set->config.base;
    conn->read = event_new(base, conn->fd, EV_READ | EV_PERSIST, on_readable, conn);
    conn->write = event_new(base, conn->fd, EV_WRITE, on_writable, conn);
    return conn->read && conn->write;
}

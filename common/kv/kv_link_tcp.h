/* The KV link over TCP: one connection of a link set, shared by its two source files.
 *
 * kv_link_tcp.c opens connections, makes the first exchange and is the operation table;
 * kv_link_tcp_io.c reads, writes and buries them. Nothing else includes this. Everything runs on
 * the loop thread of config.base.
 *
 * A connection is ended by marking it (bt_kv_tcp_doom), at any depth of calls; it is taken away,
 * and the user told, in bt_kv_tcp_leave at the end of each event's handler, where no frame of its
 * own is on the stack. */
#pragma once
#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "common/kv/kv_link.h"
#include "common/kv/kv_wire.h"
#include "common/kv/kv_wire_read.h"

struct addrinfo;
struct bt_tls_stream;
struct evbuffer;
struct evconnlistener;
struct evdns_base;

enum {
    BT_KV_TCP_PENDING = 32,           /* connections without their first exchange, on D */
    BT_KV_TCP_ADDRESSES = 4,          /* of one name, tried one after another */
    BT_KV_TCP_EXCHANGE_MS = 1000,     /* connect and first exchange */
    BT_KV_TCP_CLOSE_MS = 1000,        /* to send what was queued */
    BT_KV_TCP_STALL_MS = 500,         /* our own loop was late: nobody is judged in that turn */
    BT_KV_TCP_TURN_BYTES = 4 << 20,   /* read or written in one turn of the loop, for one link */
    BT_KV_TCP_QUEUE_BYTES = 16 << 20, /* control that the peer does not read */
};
#define BT_KV_NO_LINK UINT32_MAX

enum bt_kv_tcp_state {
    BT_KV_TCP_RESOLVING,  /* P: the host's name is looked up */
    BT_KV_TCP_CONNECTING, /* P */
    BT_KV_TCP_EXCHANGE,   /* P: LinkJoin is queued; D: it is waited for (TLS's handshake first) */
    BT_KV_TCP_UP,
    BT_KV_TCP_CLOSING, /* in order: what is queued goes out, then the peer's end is waited for */
};

struct bt_kv_tcp_conn {
    struct bt_kv_links *set;
    struct bt_kv_tcp_conn *next;
    enum bt_kv_tcp_state state;
    int fd;                    /* -1: none yet */
    struct bt_tls_stream *tls; /* NULL: plain text */
    uint32_t link;             /* D: BT_KV_NO_LINK until up */
    bool was_up;
    bool is_shut;   /* CLOSING: our direction has been closed */
    bool is_doomed; /* to be buried */
    char why[BT_ERROR_TEXT_BYTES];
    struct bt_id peer;       /* its incarnation: dialled, or joined */
    char who[BT_NAME_BYTES]; /* its address, later its name: for the log */
    uint64_t heard_us;       /* last byte read */
    uint64_t deadline_set_us;
    struct event *read, *write, *deadline;
    /* P: the addresses to try. */
    struct bt_kv_tcp_lookup *lookup;
    struct sockaddr_storage addresses[BT_KV_TCP_ADDRESSES];
    socklen_t address_bytes[BT_KV_TCP_ADDRESSES];
    uint32_t n_addresses, next_address;
    struct bt_kv_reader reader;
    /* Going out: whole control units, then one frame at a time. */
    struct evbuffer *control;
    bool is_waiting;     /* for the write event: the socket is full or the turn's share is used */
    bool reads_on_write; /* TLS must write before it can read on */
    bool is_sending;
    struct bt_kv_outgoing frame;
    uint8_t head[BT_KV_HEADER_BYTES + 8 * BT_KV_FRAME_PAGES]; /* header and sums */
    uint32_t head_bytes;
    uint32_t n_sent; /* of head and payload together */
};

struct bt_kv_links {
    struct bt_kv_links_config config; /* listen points nowhere after create */
    char address[BT_ADDRESS_BYTES];
    struct evconnlistener *listener;
    bool is_paused; /* accept failed: tried again at the next tick */
    struct event *tick, *flush;
    struct evdns_base *dns;
    uint64_t ticked_us;
    uint64_t stalled_us; /* when the loop was last late: deadlines set before it are set again */
    struct bt_kv_tcp_conn *conns;
    uint32_t n_pending; /* D: conns that have no link number */
    struct bt_kv_tcp_conn *by_link[BT_MAX_LINKS];
    bool in_turn;
    uint64_t n_breaches;
    uint8_t scratch[BT_KV_FRAME_BYTES];
};

/* ---- kv_link_tcp.c ---- */

extern const struct bt_kv_link_ops bt_kv_link_tcp;

/* Control of the first exchange and after it; the reader's callback. */
bt_status bt_kv_tcp_control(void *arg, const struct bt_kv_control *control, struct bt_error *err);
/* P: the connection stands (or failed); begins the exchange. */
void bt_kv_tcp_connected(struct bt_kv_tcp_conn *conn);
/* D, before `up`: says why to the peer and closes in order. */
void bt_kv_tcp_refuse(struct bt_kv_tcp_conn *conn, const char *why);
/* Gives a name's lookup up. */
void bt_kv_tcp_forget_lookup(struct bt_kv_tcp_lookup *lookup);

/* ---- kv_link_tcp_io.c ---- */

/* Marks a connection to be ended, for the reason of the first such call. */
void bt_kv_tcp_doom(struct bt_kv_tcp_conn *conn, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Every event's handler ends with this: buries what is doomed. */
void bt_kv_tcp_leave(struct bt_kv_links *set);
void bt_kv_tcp_turn(struct bt_kv_links *set);
/* Queues a control message; the write follows in this turn of the loop. */
void bt_kv_tcp_queue(struct bt_kv_tcp_conn *conn, const struct bt_kv_control *control);
/* Prepares reader, queue and deadline; later the events of its socket. False: no memory. */
bool bt_kv_tcp_watch(struct bt_kv_tcp_conn *conn);
bool bt_kv_tcp_watch_socket(struct bt_kv_tcp_conn *conn);
void bt_kv_tcp_write(struct bt_kv_tcp_conn *conn);
/* Sets or moves the connection's deadline. */
void bt_kv_tcp_set_deadline(struct bt_kv_tcp_conn *conn, uint32_t ms);
/* Makes the connection's socket speak TLS, where the set has certificates. False: no memory. */
bool bt_kv_tcp_start_tls(struct bt_kv_tcp_conn *conn);
/* From any state: takes the connection out of the set, tells the user, frees it. */
void bt_kv_tcp_bury(struct bt_kv_tcp_conn *conn);

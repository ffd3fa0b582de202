/* The HTTP/1.1 port: listens, parses with libevent, hands checked requests to handlers.
 *
 * libevent parses; the listening socket, the strictness check (http_check.h), what happens while a
 * request waits, and the bytes of a streamed answer are ours. A client that leaves is seen within a
 * turn of the loop in every state, and one that goes on sending while it is answered is bounded: 64
 * KiB are kept, then it is cut. Everything runs on the loop thread. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/text/slice.h"
#include "router/text_buffer.h"

struct event_base;
struct bt_http_server;
struct bt_http_call; /* one request, from its last byte to the end of its answer */

typedef void bt_http_handler(void *arg, struct bt_http_call *call);

enum bt_http_method { BT_HTTP_GET = 1, BT_HTTP_POST = 2 }; /* HEAD goes to GET's handler */

struct bt_http_route {
    enum bt_http_method method;
    const char *path; /* ends with '/': everything below it */
    bt_http_handler *handler;
};

struct bt_http_server_config {
    const char *host; /* an address or a name */
    uint16_t port;    /* 0: chosen by the system */
    size_t header_bytes_max, body_bytes_max;
    uint32_t idle_s; /* a connection that sends nothing for so long is closed */
    const struct bt_http_route *routes;
    size_t n_routes;
    void *arg; /* of every handler */
};

/* BT_E_INVALID (host), BT_E_IO (cannot listen there), BT_E_NO_MEMORY. */
bt_status bt_http_server_start(struct event_base *base, const struct bt_http_server_config *config,
                               struct bt_http_server **out, struct bt_error *err);
/* "host:port" with the true port. */
const char *bt_http_server_address(const struct bt_http_server *server);
/* From now on each answer closes its connection. */
void bt_http_server_drain(struct bt_http_server *server);
/* Cuts what is open, without calling anybody. NULL is accepted. */
void bt_http_server_destroy(struct bt_http_server *server);

/* ---- a call; a handler answers it at once or keeps it (bt_http_call_keep) ---- */

/* Borrowed until the call ends or its body is dropped. */
struct bt_slice bt_http_call_body(struct bt_http_call *call);
void bt_http_call_drop_body(struct bt_http_call *call);
const char *bt_http_call_header(struct bt_http_call *call, const char *name); /* NULL: none */
/* The path without the query, percent signs decoded, from its byte `from` on; false where it does
 * not fit. */
bool bt_http_call_path(struct bt_http_call *call, size_t from, char *out, size_t out_bytes);
/* Value of a query parameter, decoded, into out; false where it is absent or does not fit. */
bool bt_http_call_query(struct bt_http_call *call, const char *name, char *out, size_t out_bytes);

/* Answers and ends the call. The body is copied. extra: further header lines, each ended by CRLF,
 * or NULL. */
void bt_http_call_reply(struct bt_http_call *call, int code, const char *content_type,
                        struct bt_slice body, const char *extra);

/* The call is answered later. on_gone(arg) is called once if the client goes away first, or sends
 * more than it may while it waits; the call is no more after it. */
void bt_http_call_keep(struct bt_http_call *call, void (*on_gone)(void *arg), void *arg);

/* For an answer that the caller writes himself, head included, of a kept call:
 * BT_OK: *n_sent bytes were taken, at least one. BT_AGAIN: none, there is no room now.
 * BT_E_PEER_GONE: the connection is broken, nothing more will be taken. */
bt_status bt_http_call_send(struct bt_http_call *call, const char *bytes, size_t n_bytes,
                            size_t *n_sent);
/* Whenever there is room, on_room(arg) is called, until the call ends or on_room is NULL.
 * BT_E_NO_MEMORY. */
bt_status bt_http_call_await_room(struct bt_http_call *call, void (*on_room)(void *arg), void *arg);
bool bt_http_call_is_chunked(const struct bt_http_call *call); /* HTTP/1.1: answer in chunks */
bool bt_http_call_closes(const struct bt_http_call *call); /* say "Connection: close" in the head */
/* All of it has been sent: the connection goes on to its next request, or is closed. */
void bt_http_call_finish(struct bt_http_call *call);
/* The connection is closed as it stands. */
void bt_http_call_cut(struct bt_http_call *call);

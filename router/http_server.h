/* The HTTP/1.1 port: listens, reads strictly, and hands checked requests to handlers.
 *
 * A client that leaves is seen within a turn of the loop in every state; one that goes on sending
 * while it is answered is bounded (64 KiB are kept, then it is cut); one that sends slowly is cut;
 * what all clients together may have sent without an answer is bounded (held_bytes_max: the one
 * that has taken longest goes), and so is the number of connections (the one that has been silent
 * longest makes room). Whoever is refused is told why in an OpenAI error object. Everything runs on
 * the loop thread. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/text/slice.h"
#include "router/api_keys.h"
#include "router/caller.h"
#include "router/text_buffer.h"

struct event_base;
struct bt_http_server;
struct bt_tls;
struct bt_http_call; /* one request, from the end of its head to the end of its answer */

typedef void bt_http_handler(void *arg, struct bt_http_call *call);

enum bt_http_method { BT_HTTP_GET = 1, BT_HTTP_POST = 2 }; /* HEAD goes to GET's handler */

struct bt_http_route {
    enum bt_http_method method;
    const char *path; /* ends with '/' and is longer: everything below it */
    bt_http_handler *handler;
    enum bt_api_right right;
};

struct bt_http_server_config {
    const char *host; /* an address or a name */
    uint16_t port;    /* 0: chosen by the system */
    size_t header_bytes_max, body_bytes_max;
    uint64_t held_bytes_max;  /* of requests that are still coming in, all together */
    uint32_t connections_max; /* open at once */
    uint32_t header_s;        /* a head, or a TLS handshake, must be there in so long */
    uint32_t idle_s;          /* between two requests of a connection */
    const char *cors_origin;  /* whose pages may call: an origin, "*", or NULL: nobody's */
    const struct bt_http_route *routes;
    size_t n_routes;
    const struct bt_api_keys *keys; /* NULL: nothing is asked */
    struct bt_tls *tls;             /* NULL: plain HTTP; borrowed */
    void *arg;                      /* of every handler */
};

struct bt_http_counters {
    uint64_t n_accepted;
    uint64_t n_slow;        /* cut: head, handshake or body did not come in time */
    uint64_t n_displaced;   /* cut: silent longest when there were too many connections */
    uint64_t n_turned_away; /* answered 503: too many connections, all busy */
    uint64_t n_over_memory; /* answered 503: took longest when requests held too much memory */
    uint64_t n_refused;     /* answered with an error before a handler saw them */
    uint64_t n_tls_failed;  /* handshakes */
};

/* BT_E_INVALID (host), BT_E_IO (cannot listen there), BT_E_NO_MEMORY. */
bt_status bt_http_server_start(struct event_base *base, const struct bt_http_server_config *config,
                               struct bt_http_server **out, struct bt_error *err);
/* "host:port" with the true port. */
const char *bt_http_server_address(const struct bt_http_server *server);
const struct bt_http_counters *bt_http_server_counters(const struct bt_http_server *server);
size_t bt_http_server_connections(const struct bt_http_server *server);
/* What the port may take of memory at most, streamed answers apart. */
uint64_t bt_http_server_bytes_max(const struct bt_http_server_config *config);
/* From now on each answer closes its connection. */
void bt_http_server_drain(struct bt_http_server *server);
/* Cuts what is open, without calling anybody. NULL is accepted. */
void bt_http_server_destroy(struct bt_http_server *server);

/* ---- a call; a handler answers it at once or keeps it (bt_http_call_keep) ---- */

/* Borrowed until the call ends or its body is dropped. */
struct bt_slice bt_http_call_body(struct bt_http_call *call);
void bt_http_call_drop_body(struct bt_http_call *call);
/* NULL: none. Of a kept call there is no head any more. */
const char *bt_http_call_header(struct bt_http_call *call, const char *name);
/* The path without the query, percent signs decoded, from its byte `from` on; false where it does
 * not fit. */
bool bt_http_call_path(struct bt_http_call *call, size_t from, char *out, size_t out_bytes);
/* Value of a query parameter, decoded, into out; false where it is absent or does not fit. */
bool bt_http_call_query(struct bt_http_call *call, const char *name, char *out, size_t out_bytes);
/* The name of the API key that was shown, and the X-Request-Id that the client gave, where it is 1
 * to 64 printable characters. */
struct bt_caller bt_http_call_caller(const struct bt_http_call *call);
/* Our own number of the request. Each answer says it as X-Request-Id, or as X-Baton-Request-Id
 * where the client gave an X-Request-Id, which is then said back. One is drawn where none is set.
 */
void bt_http_call_set_id(struct bt_http_call *call, uint64_t id);

/* Answers and ends the call. The body is copied. extra: further header lines, each ended by CRLF,
 * or NULL. */
void bt_http_call_reply(struct bt_http_call *call, int code, const char *content_type,
                        struct bt_slice body, const char *extra);

/* The call is answered later. on_gone(arg) is called once if the client goes away first, or sends
 * more than it may while it waits; the call is no more after it. */
void bt_http_call_keep(struct bt_http_call *call, void (*on_gone)(void *arg), void *arg);

/* ---- an answer that the caller writes himself, of a kept call ---- */

/* The head of an answer that goes on until bt_http_call_finish: in chunks where
 * bt_http_call_is_chunked, else until the connection closes. */
void bt_http_call_write_head(struct bt_http_call *call, struct bt_text_buffer *out, int code,
                             const char *content_type, const char *extra);
bool bt_http_call_is_chunked(const struct bt_http_call *call);
/* BT_OK: *n_sent bytes were taken, at least one. BT_AGAIN: none, there is no room now; offer the
 * same bytes again. BT_E_PEER_GONE: the connection is broken, nothing more will be taken. */
bt_status bt_http_call_send(struct bt_http_call *call, const char *bytes, size_t n_bytes,
                            size_t *n_sent);
/* Whenever there is room, on_room(arg) is called, until the call ends or on_room is NULL.
 * BT_E_NO_MEMORY. */
bt_status bt_http_call_await_room(struct bt_http_call *call, void (*on_room)(void *arg), void *arg);
/* All of it has been sent: the connection goes on to its next request, or is closed. */
void bt_http_call_finish(struct bt_http_call *call);
/* The connection is closed as it stands. */
void bt_http_call_cut(struct bt_http_call *call);

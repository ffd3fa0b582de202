/* What the files of the HTTP port share: the server, its connections, their calls.
 *
 * http_server.c listens, counts and looks at the clock; http_connection.c reads, writes and closes;
 * http_call.c finds the handler and answers. Nobody else includes this. */
#pragma once
#include <event2/event.h>
#include <event2/event_struct.h>

#include "common/base/limits.h"
#include "common/base/tls.h"
#include "router/http_parse.h"
#include "router/http_server.h"

enum {
    BT_HTTP_UNREAD_BYTES_MAX = 65536, /* kept of what a client sends while it is being answered */
    BT_HTTP_READ_BYTES = 16384, /* taken from a connection in one turn of the loop: with four times
                                   as much, everybody's first token waits for large bodies */
    BT_HTTP_LINGER_US = 1000000,
    BT_HTTP_LINGER_BYTES_MAX = 1 << 20,
    BT_HTTP_BODY_BYTES_PER_S = 65536, /* a body that comes slower than this is cut in time */
};

enum bt_http_state {
    BT_HTTP_HANDSHAKE,
    BT_HTTP_HEAD, /* the first bytes are awaited, or some have come */
    BT_HTTP_IDLE, /* between two requests */
    BT_HTTP_BODY,
    BT_HTTP_BUSY,     /* a handler has the call */
    BT_HTTP_REPLYING, /* the rest of an answer waits for room */
    BT_HTTP_LINGER,   /* answered for the last time: what still comes is thrown away, so that the
                         answer is not lost with it */
    BT_HTTP_DEAD,     /* closed, to be freed */
    BT_HTTP_STATES,
};

struct bt_http_connection {
    struct bt_http_server *server;
    int fd;
    enum bt_http_state state;
    uint64_t since_us;                          /* in this state, or since its last progress */
    uint64_t due_us;                            /* of a body */
    struct bt_http_connection *next, *previous; /* of the same state, oldest first */
    struct event read_event, write_event;
    struct bt_tls_stream *tls; /* NULL: plain */
    struct bt_text_buffer in;  /* read, not yet understood */
    size_t in_at;              /* of it, used up */
    struct bt_http_scan scan;  /* of in, from in_at on */
    struct bt_http_call *call; /* NULL before its head is there and after its end */
    struct bt_text_buffer out; /* while REPLYING */
    size_t n_out_sent;
    size_t n_lingered;
    bool is_local, close_after;
};

/* A head with its bytes, in one piece of memory. */
struct bt_http_call_head {
    struct bt_http_head fields; /* into bytes */
    size_t n_bytes;
    char bytes[];
};

struct bt_http_call {
    struct bt_http_connection *connection;
    struct bt_http_call_head *head; /* NULL: none came that could be read, or the call is kept */
    /* What an answer needs of it. */
    bool is_chunked, closes, is_head_only, is_cors;
    char client_id[BT_CALLER_ID_BYTES];
    struct bt_text_buffer body;
    struct bt_http_chunks chunks;
    const struct bt_http_route *route; /* NULL: refused */
    void (*on_gone)(void *arg);
    void *arg;
    void (*on_room)(void *arg);
    void *room_arg;
    bool is_kept;
    uint64_t id;
    char key_name[BT_API_NAME_BYTES];
};

struct bt_http_list {
    struct bt_http_connection *first, *last;
    size_t n;
};

struct bt_http_server {
    struct event_base *base;
    struct bt_http_server_config config;
    int fd;
    struct event *accept_event, *tick;
    struct bt_http_list lists[BT_HTTP_STATES];
    size_t n_connections; /* open ones */
    uint64_t held_bytes;  /* allocated for what clients have sent */
    uint64_t random;      /* state of the ids' generator */
    uint64_t now_us;
    struct bt_http_counters counters;
    bool draining, paused;
    char address[BT_ADDRESS_BYTES];
    char *scratch; /* BT_HTTP_READ_BYTES */
};

/* ---- http_server.c ---- */

/* At the start of each event: reads the clock, frees what was closed. */
void bt_http_server_begin(struct bt_http_server *server);
/* Cuts whoever has taken longest to send until what is held fits; maybe the connection at hand. */
void bt_http_server_make_room(struct bt_http_server *server);

/* ---- http_connection.c ---- */

/* Takes the socket over; NULL, and it is closed, where there is no memory. */
struct bt_http_connection *bt_http_connection_open(struct bt_http_server *server, int fd,
                                                   bool is_local);
/* Closes it; a call in a handler's hands is told. It is freed later (bt_http_server_begin). */
void bt_http_connection_close(struct bt_http_connection *connection);
void bt_http_connection_free(struct bt_http_connection *connection);
void bt_http_connection_set_state(struct bt_http_connection *connection, enum bt_http_state state);
/* BT_OK with at least one byte in *n, BT_AGAIN, or BT_E_PEER_GONE. */
bt_status bt_http_connection_write(struct bt_http_connection *connection, const char *bytes,
                                   size_t n_bytes, size_t *n);
/* Watches for room, or stops to. */
bool bt_http_connection_await_room(struct bt_http_connection *connection, bool wanted);
/* Sends `out`; then the connection goes on, or lingers and closes. */
void bt_http_connection_send_out(struct bt_http_connection *connection);
/* Its call has been answered. */
void bt_http_connection_answered(struct bt_http_connection *connection);

/* ---- http_call.c ---- */

/* NULL: no memory. */
struct bt_http_call *bt_http_call_create(struct bt_http_connection *connection);
/* Reads a whole head. A refusal has its HTTP status in *code. */
bt_status bt_http_call_read_head(struct bt_http_call *call, const char *bytes, size_t n_bytes,
                                 int *code, struct bt_error *err);
void bt_http_call_free(struct bt_http_call *call);
/* After the head: finds the route and looks at the caller's rights. False where it has answered. */
bool bt_http_call_route(struct bt_http_call *call);
/* After the body: calls the handler. */
void bt_http_call_handle(struct bt_http_call *call);
/* Answers with an error object and closes the connection. */
void bt_http_call_refuse(struct bt_http_call *call, int code, const char *message,
                         const char *extra);

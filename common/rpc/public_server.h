/* The gRPC server that strangers may call: methods by path, whole messages in and out.
 *
 * Two threads: the owner's loop thread calls everything here; a completion-queue thread inside
 * moves bytes. It knows neither protocol buffers nor what a method does, and it does not listen:
 * the owner accepts connections and hands their sockets over, since gRPC 1.51's own listener stops
 * for good when descriptors run out (CVE-2023-4785) and has no bound on connections.
 *
 * A loop turn looks like this (fd readable, or a timer):
 *     while (bt_public_next(server, &event)) { ...; bt_public_send(); bt_public_finish(); }
 *     bt_public_flush(server);
 *
 * No initial metadata leaves before the first message: a call that is refused has none, so that the
 * client's retry policy may try it again.
 *
 * Memory bounds: max_calls calls, each with BT_PUBLIC_FULL_BYTES (and what one turn adds) to be
 * sent; waiting_bytes_max of received messages that the loop has not taken, each message_bytes_max;
 * BT_PUBLIC_METADATA_BYTES of headers; what gRPC buffers is under one quota, past which it cancels
 * calls. Compressed messages are refused, since what they unpack to has no bound. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum {
    BT_PUBLIC_FULL_BYTES = 256 << 10,   /* waiting to be sent on a call: it is full */
    BT_PUBLIC_JOINED_BYTES = 256 << 10, /* messages are joined up to this size */
    BT_PUBLIC_METADATA_BYTES = 8 << 10, /* of one call */
    BT_PUBLIC_QUOTA_BYTES = 512 << 20,  /* gRPC's own buffers, all connections together */
    BT_PUBLIC_STREAMS_PER_CONNECTION = 1000,
    BT_PUBLIC_RECEIVE_MS = 10000, /* for a call's first message */
    BT_PUBLIC_ID_BYTES = 65,      /* a request id, its NUL included */
};

struct bt_public_method {
    const char *path;     /* "/package.Service/Method" */
    bool many_requests;   /* the client may send more than one message */
    bool joins_responses; /* what waits becomes one message (protocol buffers: concatenation merges)
                           */
};

struct bt_public_config {
    const struct bt_public_method *methods; /* borrowed until stop */
    uint32_t n_methods;
    uint32_t max_calls;         /* 0: 4096 */
    uint32_t message_bytes_max; /* received; 0: 4 MiB */
    size_t waiting_bytes_max;   /* past it calls are refused; 0: 128 MiB */
    uint32_t keepalive_ms;      /* an idle connection is asked; 0: 30,000 */
    uint32_t stuck_ms; /* a client that takes nothing for so long is cancelled; 0: 30,000 */
};

struct bt_public_server;
struct bt_public_call; /* loop thread: valid from STARTED until the bt_public_next after CLOSED */

/* Loop thread, after bt_rpc_init. BT_E_NO_MEMORY. */
bt_status bt_public_start(const struct bt_public_config *config, struct bt_public_server **out,
                          struct bt_error *err);
/* Cancels what is open (clients see UNAVAILABLE), ends the thread and frees all; no events come any
 * more. NULL is accepted. */
void bt_public_stop(struct bt_public_server *server);
/* A connected stream socket, plain HTTP/2; owned by the server from here on. */
void bt_public_add_connection(struct bt_public_server *server, int fd);

/* ---- events ---- */

enum bt_public_event_type {
    BT_PUBLIC_STARTED = 1, /* a call with its (first) message */
    BT_PUBLIC_MESSAGE,     /* many_requests: the next one, after bt_public_receive */
    BT_PUBLIC_HALF_CLOSED, /* many_requests: there is no next one */
    BT_PUBLIC_ROOM,        /* it was full and is not any more */
    BT_PUBLIC_CLOSED, /* the last event: finished, cancelled, past its deadline or disconnected */
};

struct bt_public_event {
    enum bt_public_event_type type;
    struct bt_public_call *call;
    uint32_t method;      /* index into the methods */
    const uint8_t *bytes; /* STARTED, MESSAGE: until the next bt_public_next */
    size_t n_bytes;
};

/* Readable when bt_public_next has something to give. */
int bt_public_fd(const struct bt_public_server *server);
bool bt_public_next(struct bt_public_server *server, struct bt_public_event *out);
/* Calls that have started and not closed. */
size_t bt_public_n_calls(const struct bt_public_server *server);

/* ---- a call; loop thread ---- */

/* The owner's pointer, NULL at first. */
void bt_public_set_user(struct bt_public_call *call, void *user);
void *bt_public_user(const struct bt_public_call *call);
/* Milliseconds until the caller's deadline, at least 1; 0: it has none. */
uint32_t bt_public_deadline_ms(const struct bt_public_call *call);
/* Metadata of the request: *value is borrowed while the call lives. The first of several. */
bool bt_public_header(const struct bt_public_call *call, const char *name, const char **value,
                      size_t *n_bytes);
/* What "x-request-id" is answered with, before anything was sent. */
void bt_public_set_request_id(struct bt_public_call *call, const char *id);

/* Asks for the next message; many_requests only, after each MESSAGE that was taken. */
void bt_public_receive(struct bt_public_call *call);
/* Adds a message to what is to be sent; it leaves with the flush. On a call that has ended nothing
 * happens. False: no memory; the call is cancelled. */
bool bt_public_send(struct bt_public_call *call, const void *bytes, size_t n_bytes);
/* BT_PUBLIC_FULL_BYTES wait: send no more until ROOM. */
bool bt_public_is_full(struct bt_public_call *call);

struct bt_public_end {
    int code;               /* grpc_status_code; 0: in order */
    const char *message;    /* a sentence; "" with code 0 */
    const uint8_t *details; /* google.rpc.Status, packed; NULL: none. Copied */
    size_t n_details;
};
/* Ends the call after what was sent on it. CLOSED follows. */
void bt_public_finish(struct bt_public_call *call, const struct bt_public_end *end);

/* Sends what is queued on every call touched since the last one; once per loop turn. */
void bt_public_flush(struct bt_public_server *server);
/* Cancels calls whose client does not read or does not send its message; from the loop's tick. */
void bt_public_sweep(struct bt_public_server *server, uint64_t now_us);

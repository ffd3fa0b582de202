/* Inside common/rpc: one call of the public server, and what the two threads share of it.
 *
 * The fields that gRPC's batches use are guarded by the call's lock, since both the loop thread and
 * the completion-queue thread start batches; order of locks: server, then call. Each accepted batch
 * holds one reference and gives it back with its tag; when the last is back, the completion-queue
 * thread pushes CLOSED, and from then on the call belongs to the loop thread. A call that the loop
 * never heard of is freed there and then. */
#pragma once
#include <grpc/grpc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/ring.h"
#include "common/rpc/public_server.h"
#include "common/rpc/rpc_call.h"

enum { BT_PUBLIC_EVENTS_PER_CALL = 5 }; /* STARTED, MESSAGE, HALF_CLOSED, ROOM, CLOSED: one each */

struct bt_public_call {
    struct bt_public_server *server;
    uint32_t method;
    grpc_call *grpc; /* valid until ended and the last tag is back */
    grpc_call_details details;
    grpc_metadata_array metadata;
    struct bt_rpc_tag on_start, on_receive, on_send, on_end, on_finish;
    uint64_t deadline_us;                   /* 0: none; written before STARTED */
    bool counted;                           /* of the server's max_calls, and in its list */
    struct bt_public_call *next, *previous; /* server->lock */

    pthread_mutex_t lock; /* guards all that follows, to the next comment of this kind */
    uint32_t n_refs;      /* batches whose tag is not back */
    bool sending, receiving;
    bool started;       /* the loop knows it */
    bool ended;         /* gRPC ended it: no batch may be started */
    bool metadata_sent; /* initial metadata */
    bool finish_given, finishing;
    bool wants_room, room_pushed;
    grpc_byte_buffer *received, *sent;
    struct bt_rpc_queue queue; /* messages, each after its size in four bytes */
    int code;
    char text[BT_RPC_TEXT_BYTES];
    uint8_t *detail_bytes; /* NULL: none */
    size_t n_detail_bytes;
    char request_id[BT_PUBLIC_ID_BYTES];

    int cancelled;             /* written by gRPC */
    _Atomic size_t n_queued;   /* bytes in queue, for the loop without the lock */
    _Atomic uint64_t since_us; /* the client is waited for since then; 0: it is not */

    /* Loop thread only. */
    struct bt_rpc_queue writer; /* what this turn said, in the same form */
    bool touched, over;         /* over: finished or cancelled by us; nothing more is sent */
    struct bt_public_call *next_touched;
    void *user;
};

/* From the completion-queue thread to the loop. */
struct bt_public_push {
    enum bt_public_event_type type;
    struct bt_public_call *call;
    uint8_t *bytes; /* STARTED, MESSAGE: owned by whoever has the event */
    size_t n_bytes;
};

struct bt_public_server {
    struct bt_public_config config;
    grpc_server *grpc;
    grpc_completion_queue *queue;
    grpc_server_credentials *plain;
    pthread_t thread;
    bool thread_runs;
    struct bt_ring ring;
    struct bt_rpc_tag on_down;

    pthread_mutex_t lock; /* guards the next two */
    struct bt_public_call *calls;
    uint32_t n_calls;
    bool has_lock;
    _Atomic bool down;        /* the queue takes no more work */
    _Atomic size_t n_waiting; /* bytes received that the loop has not taken */

    /* Loop thread only. */
    struct bt_public_call *touched;
    struct bt_public_call *closed; /* told, to be freed at the next event */
    uint8_t *reading;              /* bytes of the last event */
    size_t n_reading;
    size_t n_started;
    uint64_t sweep_at_us;
};

/* ---- public_call.c: either thread where nothing else is said ---- */

struct bt_public_call *bt_public_call_create(struct bt_public_server *server); /* NULL: no memory */
void bt_public_call_destroy(struct bt_public_call *call);
/* It counts no more; before destroy. */
void bt_public_call_uncount(struct bt_public_call *call);
/* gRPC has a new call for us: counts it and begins to read, or refuses. Completion-queue thread. */
void bt_public_call_accept(struct bt_public_call *call);
/* Gives a batch's reference back. Completion-queue thread; at the last the call may be gone. */
void bt_public_call_unref(struct bt_public_call *call);
void bt_public_call_receive_locked(struct bt_public_call *call);
/* Sends what waits, or, where nothing waits and it was asked for, the call's end. */
void bt_public_call_pump_locked(struct bt_public_call *call);
/* Cancels at once. */
void bt_public_call_break_locked(struct bt_public_call *call, grpc_status_code code,
                                 const char *why);
/* Puts a message in call->writer. Loop thread. False: no memory. */
bool bt_public_call_write(struct bt_public_call *call, const void *bytes, size_t n_bytes);

/* Inside common/rpc: one Attach call, and the thread that takes completions off the queue.
 *
 * A call is a stream's half that gRPC knows. Its fields are guarded by its lock, since both the
 * loop thread and the completion-queue thread start batches; order of locks: streams, then call.
 * Each accepted batch holds one reference and gives it back with its tag; when the last is back the
 * completion-queue thread pushes CLOSED, and from then on the call belongs to the loop thread. */
#pragma once
#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/log.h"
#include "common/base/ring.h"
#include "common/base/status.h"
#include "common/rpc/rpc_queue.h"
#include "common/rpc/rpc_stream.h"
#include "common/rpc/wire.h"

enum {
    BT_RPC_MESSAGES_WAITING = 16, /* received and not yet taken by the loop */
    BT_RPC_BYTES_WAITING = 512 << 10,
    BT_RPC_EVENTS_PER_SLOT = BT_RPC_MESSAGES_WAITING + 4, /* OPENED, HALF_CLOSED, CLOSED, spare */
    BT_RPC_SEND_BYTES_MAX = 16 << 20,
    BT_RPC_CLOSE_MS = 1000, /* for what is queued, and for the peer's end */
    BT_RPC_DIAL_MS = 2000,  /* from dial to the router's answer */
    BT_RPC_KEEPALIVE_MS = 3000,
    BT_RPC_KEEPALIVE_TIMEOUT_MS = 1000,
    BT_RPC_PING_MIN_MS = 1500, /* a client's pings may come this often */
    BT_RPC_CONNECT_MS = 300,
    BT_RPC_CONNECT_TLS_MS = 900, /* with the handshake, which computes */
    BT_RPC_TEXT_BYTES = 320,
};

#define BT_RPC_METHOD "/baton.v1.Registry/Attach"
/* Initial metadata of an Attach that was taken; a refused call has none. */
#define BT_RPC_ATTACHED_KEY "baton-attached"

/* What goes through the completion queue. */
struct bt_rpc_tag {
    void (*fn)(struct bt_rpc_tag *tag, bool ok);
    void *self;
};

struct bt_rpc_call {
    struct bt_rpc_streams *streams;
    uint32_t slot;
    bool has_slot;
    grpc_call *grpc; /* valid until ended and the last tag is back */
    grpc_channel *channel;
    grpc_call_details details;
    grpc_metadata_array metadata, trailing;
    struct bt_rpc_tag on_start, on_receive, on_send, on_end, on_finish, on_wake;
    char peer[BT_ADDRESS_BYTES * 2]; /* written before OPENED */
    uint32_t roles; /* server under TLS: what the caller's certificate names; before OPENED */

    pthread_mutex_t lock; /* guards all that follows */
    uint32_t n_refs;      /* batches whose tag is not back */
    bool sending, receiving;
    bool heard_all; /* the peer half-closed, or nothing more can come */
    bool opened;
    bool closing;   /* we end it: nothing more is taken from the peer or from the loop */
    bool finishing; /* the batch that says so to the peer was started */
    bool ended;     /* gRPC ended it: no batch may be started */
    grpc_byte_buffer *received, *sent;
    struct bt_rpc_queue queue; /* packed items, as in a bt_wire_writer */
    uint32_t n_waiting;        /* received messages that the loop has not taken */
    size_t bytes_waiting;
    uint64_t deadline_ns; /* of the dial or of closing; 0: none */
    bt_status close_status;
    char close_text[BT_RPC_TEXT_BYTES];

    int cancelled;         /* server; written by gRPC */
    grpc_status_code code; /* client; written by gRPC */
    grpc_slice detail;
    _Atomic size_t n_queued; /* bytes in queue, for the loop without the lock */
};

/* From the completion-queue thread to the loop. */
struct bt_rpc_push {
    enum bt_rpc_event_type type;
    struct bt_rpc_call *call;
    uint8_t *bytes; /* MESSAGE: owned by whoever has the event */
    size_t n_bytes;
};

/* Loop thread only. */
struct bt_rpc_slot {
    struct bt_rpc_call *call; /* NULL: free */
    bool open, closing, touched;
    struct bt_wire_writer writer;
    struct bt_wire_reader reader;
};

struct bt_rpc_streams {
    enum bt_wire_side side; /* who we are */
    struct bt_tls *tls;     /* shared; NULL: plain text */
    uint32_t n_slots;
    size_t send_bytes_max;
    grpc_completion_queue *queue;
    pthread_t thread;
    bool thread_runs;
    struct bt_ring ring;

    pthread_mutex_t lock;       /* guards the next three */
    struct bt_rpc_call **calls; /* by slot, until the loop has taken CLOSED */
    uint32_t n_live;            /* calls of slots that have not ended */
    bool stopping;
    bool has_lock;
    _Atomic uint32_t n_deadlines; /* calls with one */
    _Atomic bool down;            /* the queue takes no more work */

    /* Loop thread only. */
    struct bt_rpc_slot *slots;
    uint32_t *touched, n_touched;
    struct bt_wire_arena arena;
    struct bt_rpc_push reading; /* the MESSAGE that is being read; call NULL: none */
    struct bt_msg msg;
    char text[BT_RPC_TEXT_BYTES];
};

/* ---- rpc.c ---- */

/* A line that a stranger can cause: ten a second are written, and the same one not twice in a row
 * within ten seconds; the rest is counted. Any thread. */
void bt_rpc_log(enum bt_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Starts a thread that hears no signals: they are the owner's. BT_E_NO_MEMORY. */
bt_status bt_rpc_start_thread(void *(*run)(void *self), void *self, pthread_t *thread,
                              struct bt_error *err);

/* ---- rpc_call.c: either thread where nothing else is said ---- */

/* Zeroed call with its lock and tags; NULL: no memory. on_start is the caller's to set. */
struct bt_rpc_call *bt_rpc_call_create(struct bt_rpc_streams *streams);
/* No batch is out any more. */
void bt_rpc_call_destroy(struct bt_rpc_call *call);
/* Starts one batch; call->lock is held. False: the call has ended (its on_end is on its way). */
bool bt_rpc_call_batch(struct bt_rpc_call *call, const grpc_op *ops, size_t n_ops,
                       struct bt_rpc_tag *tag);
/* Gives a batch's reference back. Completion-queue thread; at the last the call may be gone. */
void bt_rpc_call_unref(struct bt_rpc_call *call);
void bt_rpc_call_receive_locked(struct bt_rpc_call *call);
/* Sends the next message of the queue, or, where that is empty and the call closing, its end. */
void bt_rpc_call_pump_locked(struct bt_rpc_call *call);
/* Puts a writer's bytes behind the queue. False: no memory. */
bool bt_rpc_call_queue_locked(struct bt_rpc_call *call, struct bt_wire_writer *writer);
/* Cancels at once, for the reason given unless one was given before. */
void bt_rpc_call_break_locked(struct bt_rpc_call *call, bt_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Copies a sentence without control characters. */
void bt_rpc_put_text(char to[BT_RPC_TEXT_BYTES], const char *from);
/* The bytes of a received message in memory of our own, to be freed; NULL: no memory. */
uint8_t *bt_rpc_copy_bytes(grpc_byte_buffer *buffer, size_t *n_bytes);
void bt_rpc_set_deadline_locked(struct bt_rpc_call *call, uint32_t ms);
/* Completion-queue thread. */
void bt_rpc_push_event(struct bt_rpc_call *call, enum bt_rpc_event_type type, uint8_t *bytes,
                       size_t n_bytes);

/* ---- rpc_stream.c: loop thread ---- */

/* streams is zeroed. Makes everything but the thread. tls: NULL or shared. */
bt_status bt_rpc_streams_init(struct bt_rpc_streams *streams, enum bt_wire_side side,
                              uint32_t n_slots, size_t send_bytes_max, struct bt_tls *tls,
                              struct bt_error *err);
bt_status bt_rpc_streams_start_thread(struct bt_rpc_streams *streams, struct bt_error *err);
/* The thread has ended (or never ran). */
void bt_rpc_streams_fini(struct bt_rpc_streams *streams);
/* Joins the thread, which ends when the queue is shut down and empty. */
void bt_rpc_streams_join(struct bt_rpc_streams *streams);
/* The thread's main function. */
void *bt_rpc_run(void *streams);

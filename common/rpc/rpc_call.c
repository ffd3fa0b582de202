/* Moves the bytes of one Attach call: what the tags of the completion queue do. */
#include "common/rpc/rpc_call.h"

#include <grpc/byte_buffer_reader.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/base/clock.h"
#include "common/rpc/rpc_seam.h"
#include "common/rpc/rpc_tls.h"

enum { QUEUE_KEEP_BYTES = 256 << 10 };

static void on_receive(struct bt_rpc_tag *tag, bool ok);
static void on_send(struct bt_rpc_tag *tag, bool ok);
static void on_end(struct bt_rpc_tag *tag, bool ok);
static void on_nothing(struct bt_rpc_tag *tag, bool ok);

struct bt_rpc_call *bt_rpc_call_create(struct bt_rpc_streams *streams) {
    struct bt_rpc_call *call = calloc(1, sizeof *call);
    if (!call)
        return NULL;
    if (pthread_mutex_init(&call->lock, NULL) != 0) {
        free(call);
        return NULL;
    }
    call->streams = streams;
    call->detail = grpc_empty_slice();
    grpc_call_details_init(&call->details);
    grpc_metadata_array_init(&call->metadata);
    grpc_metadata_array_init(&call->trailing);
    call->on_receive = (struct bt_rpc_tag){on_receive, call};
    call->on_send = (struct bt_rpc_tag){on_send, call};
    call->on_end = (struct bt_rpc_tag){on_end, call};
    call->on_finish = (struct bt_rpc_tag){on_nothing, call};
    call->on_wake = (struct bt_rpc_tag){on_nothing, call};
    return call;
}

/* What gRPC holds for the call; its thread does it, so that an end does not wait for the loop. */
static void release_grpc(struct bt_rpc_call *call) {
    if (call->grpc)
        grpc_call_unref(call->grpc);
    if (call->channel)
        grpc_channel_destroy(call->channel);
    call->grpc = NULL;
    call->channel = NULL;
}

void bt_rpc_call_destroy(struct bt_rpc_call *call) {
    if (!call)
        return;
    release_grpc(call);
    grpc_call_details_destroy(&call->details);
    grpc_metadata_array_destroy(&call->metadata);
    grpc_metadata_array_destroy(&call->trailing);
    grpc_slice_unref(call->detail);
    if (call->received)
        grpc_byte_buffer_destroy(call->received);
    if (call->sent)
        grpc_byte_buffer_destroy(call->sent);
    bt_rpc_queue_fini(&call->queue);
    pthread_mutex_destroy(&call->lock);
    free(call);
}

bool bt_rpc_call_batch(struct bt_rpc_call *call, const grpc_op *ops, size_t n_ops,
                       struct bt_rpc_tag *tag) {
    if (call->ended || atomic_load(&call->streams->down))
        return false;
    call->n_refs++;
    BT_RPC_GIVE(tag);
    grpc_call_error error = grpc_call_start_batch(call->grpc, ops, n_ops, tag, NULL);
    /* It refuses only what must not be asked (a second send, a client's operation on a server): a
     * call that is over takes the batch and gives its tag back without success. */
    BT_ASSERT(error == GRPC_CALL_OK);
    return true;
}

void bt_rpc_push_event(struct bt_rpc_call *call, enum bt_rpc_event_type type, uint8_t *bytes,
                       size_t n_bytes) {
    struct bt_rpc_push push = {.type = type, .call = call, .bytes = bytes, .n_bytes = n_bytes};
    bool pushed = bt_ring_push(&call->streams->ring, &push);
    BT_ASSERT(pushed); /* BT_RPC_EVENTS_PER_SLOT bounds what one slot can push */
}

void bt_rpc_call_unref(struct bt_rpc_call *call) {
    pthread_mutex_lock(&call->lock);
    bool last = --call->n_refs == 0;
    pthread_mutex_unlock(&call->lock);
    if (!last)
        return;
    if (!call->has_slot) {
        bt_rpc_call_destroy(call);
        return;
    }
    struct bt_rpc_streams *streams = call->streams;
    BT_ASSERT(call->ended);
    release_grpc(call);
    bt_rpc_push_event(call, BT_RPC_CLOSED, NULL, 0);
    pthread_mutex_lock(&streams->lock);
    streams->n_live--;
    /* A client's queue ends with its last call; a server's when the server says so. */
    bool over = streams->stopping && streams->n_live == 0 && streams->side == BT_WIRE_WORKER;
    pthread_mutex_unlock(&streams->lock);
    if (over) {
        atomic_store(&streams->down, true);
        grpc_completion_queue_shutdown(streams->queue);
    }
}

static void on_nothing(struct bt_rpc_tag *tag, bool ok) {
    (void)ok;
    bt_rpc_call_unref(tag->self);
}

void bt_rpc_put_text(char to[BT_RPC_TEXT_BYTES], const char *from) {
    size_t n = 0;
    for (; from && from[n] && n < BT_RPC_TEXT_BYTES - 1; n++)
        to[n] = (from[n] >= 0x20 && from[n] < 0x7f) ? from[n] : '?';
    to[n] = 0;
}

void bt_rpc_set_deadline_locked(struct bt_rpc_call *call, uint32_t ms) {
    uint64_t was = call->deadline_ns;
    call->deadline_ns = ms ? bt_clock_ns() + ms * 1000000ull : 0;
    if (call->deadline_ns && !was)
        atomic_fetch_add(&call->streams->n_deadlines, 1);
    else if (!call->deadline_ns && was)
        atomic_fetch_sub(&call->streams->n_deadlines, 1);
}

void bt_rpc_call_break_locked(struct bt_rpc_call *call, bt_status status, const char *format, ...) {
    char text[BT_RPC_TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!call->closing || call->close_status == BT_OK) {
        call->close_status = status;
        bt_rpc_put_text(call->close_text, text);
    }
    call->closing = true;
    bt_rpc_queue_clear(&call->queue);
    atomic_store(&call->n_queued, 0);
    if (call->ended)
        return;
    bt_rpc_set_deadline_locked(call, 0); /* a cancelled call ends without the peer */
    grpc_call_cancel_with_status(call->grpc, (grpc_status_code)bt_status_grpc(call->close_status),
                                 call->close_text, NULL);
}

/* ---- sending ---- */

bool bt_rpc_call_queue_locked(struct bt_rpc_call *call, struct bt_wire_writer *writer) {
    struct bt_rpc_queue said = {writer->bytes, 0, writer->n_bytes, writer->capacity};
    if (writer->n_bytes == 0)
        return true;
    if (!bt_rpc_queue_move(&call->queue, &said))
        return false;
    writer->bytes = said.bytes;
    writer->capacity = said.capacity;
    writer->n_bytes = 0;
    atomic_store(&call->n_queued, bt_rpc_queue_size(&call->queue));
    return true;
}

static void send_locked(struct bt_rpc_call *call) {
    const uint8_t *bytes = call->queue.bytes + call->queue.at;
    size_t n = bt_wire_message_bytes(bytes, bt_rpc_queue_size(&call->queue));
    grpc_slice slice = grpc_slice_malloc(n);
    memcpy(GRPC_SLICE_START_PTR(slice), bytes, n);
    call->sent = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    bt_rpc_queue_drop(&call->queue, n, QUEUE_KEEP_BYTES);
    atomic_store(&call->n_queued, bt_rpc_queue_size(&call->queue));
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};
    op.data.send_message.send_message = call->sent;
    call->sending = true;
    if (!bt_rpc_call_batch(call, &op, 1, &call->on_send)) {
        call->sending = false;
        grpc_byte_buffer_destroy(call->sent);
        call->sent = NULL;
    }
}

/* Says to the peer that we end the call. */
static void finish_locked(struct bt_rpc_call *call) {
    call->finishing = true;
    grpc_op op = {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
    grpc_slice text = grpc_slice_from_copied_string(call->close_text);
    if (call->streams->side == BT_WIRE_ROUTER) {
        op.op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        op.data.send_status_from_server.status =
            (grpc_status_code)bt_status_grpc(call->close_status);
        op.data.send_status_from_server.status_details = &text;
    }
    /* Where it has ended already there is nobody to tell. */
    bt_rpc_call_batch(call, &op, 1, &call->on_finish);
    grpc_slice_unref(text);
}

void bt_rpc_call_pump_locked(struct bt_rpc_call *call) {
    if (call->sending || call->ended || call->finishing)
        return;
    if (bt_rpc_queue_size(&call->queue))
        send_locked(call);
    else if (call->closing)
        finish_locked(call);
}

static void on_send(struct bt_rpc_tag *tag, bool ok) {
    struct bt_rpc_call *call = tag->self;
    pthread_mutex_lock(&call->lock);
    grpc_byte_buffer_destroy(call->sent);
    call->sent = NULL;
    call->sending = false;
    if (ok) /* else the call is ending, and on_end says why */
        bt_rpc_call_pump_locked(call);
    pthread_mutex_unlock(&call->lock);
    bt_rpc_call_unref(call);
}

/* ---- receiving ---- */

void bt_rpc_call_receive_locked(struct bt_rpc_call *call) {
    if (call->receiving || call->heard_all || call->ended)
        return;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &call->received;
    call->receiving = bt_rpc_call_batch(call, &op, 1, &call->on_receive);
}

uint8_t *bt_rpc_copy_bytes(grpc_byte_buffer *buffer, size_t *n_bytes) {
    size_t n = grpc_byte_buffer_length(buffer), at = 0;
    uint8_t *bytes = malloc(n + 1);
    grpc_byte_buffer_reader reader;
    if (!bytes || !grpc_byte_buffer_reader_init(&reader, buffer)) {
        free(bytes);
        return NULL;
    }
    grpc_slice slice;
    while (grpc_byte_buffer_reader_next(&reader, &slice)) {
        memcpy(bytes + at, GRPC_SLICE_START_PTR(slice), GRPC_SLICE_LENGTH(slice));
        at += GRPC_SLICE_LENGTH(slice);
        grpc_slice_unref(slice);
    }
    grpc_byte_buffer_reader_destroy(&reader);
    BT_ASSERT(at == n);
    *n_bytes = n;
    return bytes;
}

/* The peer will say nothing more: it half-closed, or the call is over. */
static void hear_end(struct bt_rpc_call *call, bool ok) {
    bool in_order = ok && !grpc_call_failed_before_recv_message(call->grpc);
    pthread_mutex_lock(&call->lock);
    call->receiving = false;
    call->heard_all = true;
    bool tell = in_order && !call->closing && !call->ended;
    pthread_mutex_unlock(&call->lock);
    if (tell && call->streams->side == BT_WIRE_ROUTER)
        bt_rpc_push_event(call, BT_RPC_HALF_CLOSED, NULL, 0);
}

static void on_receive(struct bt_rpc_tag *tag, bool ok) {
    struct bt_rpc_call *call = tag->self;
    grpc_byte_buffer *buffer = call->received;
    call->received = NULL;
    if (!ok || !buffer) {
        if (buffer)
            grpc_byte_buffer_destroy(buffer);
        hear_end(call, ok && !buffer);
        bt_rpc_call_unref(call);
        return;
    }
    bool plain = buffer->data.raw.compression == GRPC_COMPRESS_NONE;
    size_t n_bytes = 0;
    uint8_t *bytes = plain ? bt_rpc_copy_bytes(buffer, &n_bytes) : NULL;
    grpc_byte_buffer_destroy(buffer);
    pthread_mutex_lock(&call->lock);
    call->receiving = false;
    if (!bytes)
        bt_rpc_call_break_locked(call, plain ? BT_E_NO_MEMORY : BT_E_INVALID,
                                 plain ? "no memory for a message from %s"
                                       : "message from %s is compressed, must be plain",
                                 call->peer);
    bool taken = !call->closing;
    if (taken) {
        call->n_waiting++;
        call->bytes_waiting += n_bytes;
    }
    /* What comes after we closed is read and dropped: the peer's end stands behind it. */
    if (!taken ||
        (call->n_waiting < BT_RPC_MESSAGES_WAITING && call->bytes_waiting < BT_RPC_BYTES_WAITING))
        bt_rpc_call_receive_locked(call);
    pthread_mutex_unlock(&call->lock);
    if (taken)
        bt_rpc_push_event(call, BT_RPC_MESSAGE, bytes, n_bytes);
    else
        free(bytes);
    bt_rpc_call_unref(call);
}

/* ---- the end ---- */

/* Reads the one table of base/status.c backwards; the first row that fits wins. */
static bt_status status_of_code(grpc_status_code code) {
    static const bt_status candidates[] = {BT_E_INVALID,   BT_E_CANCELLED,       BT_E_DEADLINE,
                                           BT_E_FULL,      BT_E_NOT_FOUND,       BT_E_UNSUPPORTED,
                                           BT_E_PEER_GONE, BT_E_LAYOUT_MISMATCH, BT_E_PROTOCOL};
    for (size_t i = 0; i < sizeof candidates / sizeof candidates[0]; i++)
        if (bt_status_grpc(candidates[i]) == (int)code)
            return candidates[i];
    return BT_E_PEER_GONE;
}

static void set_end(struct bt_rpc_call *call, bt_status status, const char *format,
                    const char *detail) {
    char text[BT_RPC_TEXT_BYTES];
    snprintf(text, sizeof text, format, call->peer, detail);
    call->close_status = status;
    bt_rpc_put_text(call->close_text, text);
}

/* A reason of our own stands; else it is what gRPC says. */
static void explain_end_locked(struct bt_rpc_call *call) {
    bool server = call->streams->side == BT_WIRE_ROUTER;
    bool in_order = server ? !call->cancelled : call->code == GRPC_STATUS_OK;
    if (call->closing && (in_order || call->close_status != BT_OK))
        return;
    if (server) {
        set_end(call, BT_E_PEER_GONE, "the worker at %s broke the stream off%s", "");
        return;
    }
    if (in_order) {
        set_end(call, BT_OK, "the router at %s ended the stream in order%s", "");
        return;
    }
    char *detail = grpc_slice_to_c_string(call->detail), buffer[BT_RPC_TEXT_BYTES];
    const char *sentence = call->opened ? NULL
                                        : bt_rpc_tls_dial_sentence(call->streams->tls != NULL,
                                                                   detail, buffer, sizeof buffer);
    set_end(call, status_of_code(call->code),
            call->opened ? "the stream to the router at %s ended: %s"
                         : "cannot attach to the router at %s: %s",
            sentence    ? sentence
            : detail[0] ? detail
                        : "no reason given");
    gpr_free(detail);
}

static void on_end(struct bt_rpc_tag *tag, bool ok) {
    struct bt_rpc_call *call = tag->self;
    (void)ok; /* the status it carries is valid either way */
    pthread_mutex_lock(&call->lock);
    call->ended = true;
    bt_rpc_set_deadline_locked(call, 0);
    explain_end_locked(call);
    pthread_mutex_unlock(&call->lock);
    bt_rpc_call_unref(call);
}

/* ---- the thread ---- */

static void expire_locked(struct bt_rpc_call *call) {
    const char *who = call->streams->side == BT_WIRE_ROUTER ? "worker" : "router";
    if (call->closing)
        bt_rpc_call_break_locked(call, BT_E_PEER_GONE,
                                 "the %s at %s did not take the end of the stream within %d ms",
                                 who, call->peer, BT_RPC_CLOSE_MS);
    else
        bt_rpc_call_break_locked(call, BT_E_UNAVAILABLE,
                                 "cannot attach to the %s at %s: no answer within %d ms", who,
                                 call->peer, BT_RPC_DIAL_MS);
}

/* Breaks the calls whose deadline has passed; answers when to look again, 0 for not at all. */
static uint64_t check_deadlines(struct bt_rpc_streams *streams) {
    uint64_t now = bt_clock_ns(), next = 0;
    if (atomic_load(&streams->n_deadlines) == 0)
        return 0;
    pthread_mutex_lock(&streams->lock);
    for (uint32_t i = 0; i < streams->n_slots; i++) {
        struct bt_rpc_call *call = streams->calls[i];
        if (!call)
            continue;
        pthread_mutex_lock(&call->lock);
        if (call->deadline_ns && call->deadline_ns <= now)
            expire_locked(call);
        if (call->deadline_ns && (!next || call->deadline_ns < next))
            next = call->deadline_ns;
        pthread_mutex_unlock(&call->lock);
    }
    pthread_mutex_unlock(&streams->lock);
    return next;
}

void *bt_rpc_run(void *self) {
    struct bt_rpc_streams *streams = self;
    for (;;) {
        uint64_t next = check_deadlines(streams);
        /* A millisecond more, since the queue's wait is cut to whole ones. */
        gpr_timespec until =
            next ? gpr_time_add(
                       gpr_now(GPR_CLOCK_MONOTONIC),
                       gpr_time_from_nanos((int64_t)(next - bt_clock_ns()) + 1000000, GPR_TIMESPAN))
                 : gpr_inf_future(GPR_CLOCK_MONOTONIC);
        grpc_event event = grpc_completion_queue_next(streams->queue, until, NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (event.type == GRPC_QUEUE_TIMEOUT)
            continue;
        struct bt_rpc_tag *tag = event.tag;
        BT_RPC_TAKE(tag);
        tag->fn(tag, event.success);
    }
}

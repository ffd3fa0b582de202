/* Moves the messages of one public call: what the tags of the completion queue do. */
#include "common/rpc/public_call.h"

#include <grpc/byte_buffer.h>
#include <grpc/support/time.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/base/clock.h"
#include "common/rpc/public_status.h"
#include "common/rpc/rpc_seam.h"

enum { QUEUE_KEEP_BYTES = 16 << 10, RETRY_MS = 1000 };

static void on_receive(struct bt_rpc_tag *tag, bool ok);
static void on_send(struct bt_rpc_tag *tag, bool ok);
static void on_end(struct bt_rpc_tag *tag, bool ok);
static void on_finish(struct bt_rpc_tag *tag, bool ok);

struct bt_public_call *bt_public_call_create(struct bt_public_server *server) {
    struct bt_public_call *call = calloc(1, sizeof *call);
    if (!call)
        return NULL;
    if (pthread_mutex_init(&call->lock, NULL) != 0) {
        free(call);
        return NULL;
    }
    call->server = server;
    grpc_call_details_init(&call->details);
    grpc_metadata_array_init(&call->metadata);
    call->on_receive = (struct bt_rpc_tag){on_receive, call};
    call->on_send = (struct bt_rpc_tag){on_send, call};
    call->on_end = (struct bt_rpc_tag){on_end, call};
    call->on_finish = (struct bt_rpc_tag){on_finish, call};
    return call;
}

void bt_public_call_destroy(struct bt_public_call *call) {
    if (call->grpc)
        grpc_call_unref(call->grpc);
    grpc_call_details_destroy(&call->details);
    grpc_metadata_array_destroy(&call->metadata);
    if (call->received)
        grpc_byte_buffer_destroy(call->received);
    if (call->sent)
        grpc_byte_buffer_destroy(call->sent);
    bt_rpc_queue_fini(&call->queue);
    bt_rpc_queue_fini(&call->writer);
    free(call->detail_bytes);
    pthread_mutex_destroy(&call->lock);
    free(call);
}

/* ---- what waits ---- */

bool bt_public_call_write(struct bt_public_call *call, const void *bytes, size_t n_bytes) {
    BT_ASSERT(n_bytes <= UINT32_MAX);
    uint32_t size = (uint32_t)n_bytes;
    if (!bt_rpc_queue_reserve(&call->writer, sizeof size + n_bytes))
        return false;
    bt_rpc_queue_put(&call->writer, &size, sizeof size);
    bt_rpc_queue_put(&call->writer, bytes, n_bytes);
    return true;
}

static uint32_t size_at(const struct bt_rpc_queue *queue, size_t at) {
    uint32_t size;
    memcpy(&size, queue->bytes + at, sizeof size);
    return size;
}

/* Takes the first message, or as many as may be joined to one. */
static grpc_byte_buffer *take_message(struct bt_rpc_queue *queue, bool join) {
    size_t n = 0, end = queue->at;
    do {
        uint32_t size = size_at(queue, end);
        n += size;
        end += sizeof size + size;
    } while (join && end < queue->end && n + size_at(queue, end) <= BT_PUBLIC_JOINED_BYTES);
    grpc_slice slice = grpc_slice_malloc(n);
    uint8_t *out = GRPC_SLICE_START_PTR(slice);
    for (size_t at = queue->at; at < end;) {
        uint32_t size = size_at(queue, at);
        memcpy(out, queue->bytes + at + sizeof size, size);
        out += size;
        at += sizeof size + size;
    }
    bt_rpc_queue_drop(queue, end - queue->at, QUEUE_KEEP_BYTES);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

/* ---- batches ---- */

static bool start_batch(struct bt_public_call *call, const grpc_op *ops, size_t n_ops,
                        struct bt_rpc_tag *tag) {
    if (call->ended || atomic_load(&call->server->down))
        return false;
    call->n_refs++;
    BT_RPC_GIVE(tag);
    grpc_call_error error = grpc_call_start_batch(call->grpc, ops, n_ops, tag, NULL);
    /* It refuses only what must not be asked: a call that is over takes the batch and gives its tag
     * back without success. */
    BT_ASSERT(error == GRPC_CALL_OK);
    return true;
}

static void push(struct bt_public_call *call, enum bt_public_event_type type, uint8_t *bytes,
                 size_t n_bytes) {
    const struct bt_public_push event = {type, call, bytes, n_bytes};
    bool pushed = bt_ring_push(&call->server->ring, &event);
    BT_ASSERT(pushed); /* BT_PUBLIC_EVENTS_PER_CALL bounds what one call can push */
}

void bt_public_call_uncount(struct bt_public_call *call) {
    if (!call->counted)
        return;
    pthread_mutex_lock(&call->server->lock);
    call->server->n_calls--;
    pthread_mutex_unlock(&call->server->lock);
}

static void unlink_call(struct bt_public_call *call) {
    struct bt_public_server *server = call->server;
    if (!call->counted)
        return;
    pthread_mutex_lock(&server->lock);
    *(call->previous ? &call->previous->next : &server->calls) = call->next;
    if (call->next)
        call->next->previous = call->previous;
    pthread_mutex_unlock(&server->lock);
}

void bt_public_call_unref(struct bt_public_call *call) {
    pthread_mutex_lock(&call->lock);
    bool last = --call->n_refs == 0;
    pthread_mutex_unlock(&call->lock);
    if (!last)
        return;
    /* Out of the list first: the sweep cancels what is in it. */
    unlink_call(call);
    if (call->grpc) /* here, so that an end does not wait for the loop */
        grpc_call_unref(call->grpc);
    call->grpc = NULL;
    if (call->started) { /* from here on it is the loop's */
        push(call, BT_PUBLIC_CLOSED, NULL, 0);
        return;
    }
    bt_public_call_uncount(call);
    bt_public_call_destroy(call);
}

void bt_public_call_break_locked(struct bt_public_call *call, grpc_status_code code,
                                 const char *why) {
    if (call->ended)
        return;
    bt_rpc_queue_clear(&call->queue);
    atomic_store(&call->n_queued, 0);
    atomic_store(&call->since_us, 0);
    grpc_call_cancel_with_status(call->grpc, code, why, NULL);
}

/* ---- sending ---- */

/* The caller's request id comes back with the first bytes, wherever these are. */
static size_t add_id(const struct bt_public_call *call, grpc_metadata *out) {
    if (!call->request_id[0])
        return 0;
    out->key = grpc_slice_from_static_string("x-request-id");
    out->value = grpc_slice_from_copied_string(call->request_id);
    return 1;
}

static size_t add_details(const struct bt_public_call *call, grpc_metadata *out) {
    if (!call->detail_bytes)
        return 0;
    out->key = grpc_slice_from_static_string("grpc-status-details-bin");
    out->value =
        grpc_slice_from_copied_buffer((const char *)call->detail_bytes, call->n_detail_bytes);
    return 1;
}

static void drop(struct bt_public_call *call) {
    if (call->sent)
        grpc_byte_buffer_destroy(call->sent);
    call->sent = NULL;
    call->sending = false;
    atomic_store(&call->since_us, call->receiving ? bt_clock_us() : 0);
}

void bt_public_call_pump_locked(struct bt_public_call *call) {
    bool has = bt_rpc_queue_size(&call->queue) > 0;
    if (call->sending || call->ended || call->finishing || (!has && !call->finish_given))
        return;
    grpc_op ops[3];
    grpc_metadata initial[1], trailing[2];
    size_t n_ops = 0, n_initial = 0, n_trailing = 0;
    grpc_slice text = grpc_slice_from_copied_string(call->text);
    memset(ops, 0, sizeof ops);
    if (!call->metadata_sent) {
        /* With custom metadata a refusal would not be sent as trailers only, and then no client
         * retries it. */
        if (has)
            n_initial = add_id(call, initial);
        else
            n_trailing = add_id(call, trailing);
        ops[n_ops].op = GRPC_OP_SEND_INITIAL_METADATA;
        ops[n_ops].data.send_initial_metadata.count = n_initial;
        ops[n_ops++].data.send_initial_metadata.metadata = initial;
    }
    if (has) {
        call->sent =
            take_message(&call->queue, call->server->config.methods[call->method].joins_responses);
        atomic_store(&call->n_queued, bt_rpc_queue_size(&call->queue));
        atomic_store(&call->since_us, bt_clock_us());
        ops[n_ops].op = GRPC_OP_SEND_MESSAGE;
        ops[n_ops++].data.send_message.send_message = call->sent;
    }
    if (call->finish_given && bt_rpc_queue_size(&call->queue) == 0) {
        call->finishing = true;
        n_trailing += add_details(call, trailing + n_trailing);
        ops[n_ops].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        ops[n_ops].data.send_status_from_server.status = (grpc_status_code)call->code;
        ops[n_ops].data.send_status_from_server.status_details = &text;
        ops[n_ops].data.send_status_from_server.trailing_metadata_count = n_trailing;
        ops[n_ops++].data.send_status_from_server.trailing_metadata = trailing;
    }
    call->sending = has;
    call->metadata_sent = true;
    if (!start_batch(call, ops, n_ops, has ? &call->on_send : &call->on_finish))
        drop(call);
    grpc_slice_unref(text);
    for (size_t i = 0; i < n_initial; i++)
        grpc_slice_unref(initial[i].value);
    for (size_t i = 0; i < n_trailing; i++)
        grpc_slice_unref(trailing[i].value);
}

static void on_send(struct bt_rpc_tag *tag, bool ok) {
    struct bt_public_call *call = tag->self;
    pthread_mutex_lock(&call->lock);
    drop(call);
    if (ok) /* else the call is ending, and on_end says so */
        bt_public_call_pump_locked(call);
    if (ok && call->wants_room && bt_rpc_queue_size(&call->queue) <= BT_PUBLIC_FULL_BYTES / 2) {
        call->wants_room = false;
        if (!call->room_pushed)
            push(call, BT_PUBLIC_ROOM, NULL, 0);
        call->room_pushed = true;
    }
    pthread_mutex_unlock(&call->lock);
    bt_public_call_unref(call);
}

static void on_finish(struct bt_rpc_tag *tag, bool ok) {
    (void)ok;
    bt_public_call_unref(tag->self);
}

/* The completion-queue thread's own way to end a call. */
static void refuse_locked(struct bt_public_call *call, int code, uint32_t retry_ms,
                          const char *why) {
    uint8_t details[BT_PUBLIC_STATUS_BYTES];
    const struct bt_public_fault fault = {
        .code = code, .message = why, .reason = "", .field = "", .retry_ms = retry_ms};
    if (call->finish_given)
        return;
    size_t n = bt_public_status_pack(&fault, details);
    call->finish_given = true;
    call->code = code;
    bt_rpc_put_text(call->text, why);
    call->detail_bytes = malloc(n);
    if (call->detail_bytes) /* without memory for them the code and the sentence remain */
        memcpy(call->detail_bytes, details, n);
    call->n_detail_bytes = n;
    bt_public_call_pump_locked(call);
}

/* ---- receiving ---- */

void bt_public_call_receive_locked(struct bt_public_call *call) {
    if (call->receiving || call->ended)
        return;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &call->received;
    atomic_store(&call->since_us, bt_clock_us());
    call->receiving = start_batch(call, &op, 1, &call->on_receive);
}

/* The client will say nothing more. */
static void hear_end_locked(struct bt_public_call *call, bool in_order) {
    bool many = call->server->config.methods[call->method].many_requests;
    if (!in_order || call->ended)
        return;
    if (call->started) {
        push(call, BT_PUBLIC_HALF_CLOSED, NULL, 0);
        return;
    }
    if (!many) {
        refuse_locked(call, GRPC_STATUS_INVALID_ARGUMENT, 0, "the call has no message");
        return;
    }
    call->finish_given = true;
    bt_public_call_pump_locked(call);
}

/* At least one message is taken, however large. */
static bool has_room(struct bt_public_server *server, size_t n_bytes) {
    size_t n = atomic_load(&server->n_waiting);
    return !n || n + n_bytes <= server->config.waiting_bytes_max;
}

static void hear_message_locked(struct bt_public_call *call, uint8_t *bytes, size_t n_bytes) {
    enum bt_public_event_type type = call->started ? BT_PUBLIC_MESSAGE : BT_PUBLIC_STARTED;
    call->started = true;
    atomic_fetch_add(&call->server->n_waiting, n_bytes);
    push(call, type, bytes, n_bytes);
}

static void on_receive(struct bt_rpc_tag *tag, bool ok) {
    struct bt_public_call *call = tag->self;
    grpc_byte_buffer *buffer = call->received;
    call->received = NULL;
    bool plain = buffer && buffer->data.raw.compression == GRPC_COMPRESS_NONE;
    bool in_order = ok && !buffer && !grpc_call_failed_before_recv_message(call->grpc);
    size_t n_bytes = 0;
    bool fits = plain && ok && has_room(call->server, grpc_byte_buffer_length(buffer));
    uint8_t *bytes = fits ? bt_rpc_copy_bytes(buffer, &n_bytes) : NULL;
    pthread_mutex_lock(&call->lock);
    call->receiving = false;
    if (!call->sending)
        atomic_store(&call->since_us, 0);
    if (!buffer || !ok)
        hear_end_locked(call, in_order);
    else if (bytes)
        hear_message_locked(call, bytes, n_bytes);
    else if (plain)
        refuse_locked(call, GRPC_STATUS_RESOURCE_EXHAUSTED, RETRY_MS,
                      fits ? "no memory for a message" : "too much is being received at once");
    else
        refuse_locked(call, GRPC_STATUS_UNIMPLEMENTED, 0,
                      "the message is compressed, it must be plain");
    pthread_mutex_unlock(&call->lock);
    if (buffer)
        grpc_byte_buffer_destroy(buffer);
    bt_public_call_unref(call);
}

/* ---- begin and end ---- */

static void on_end(struct bt_rpc_tag *tag, bool ok) {
    struct bt_public_call *call = tag->self;
    (void)ok;
    pthread_mutex_lock(&call->lock);
    call->ended = true;
    atomic_store(&call->since_us, 0);
    pthread_mutex_unlock(&call->lock);
    bt_public_call_unref(call);
}

static bool find_method(struct bt_public_call *call) {
    const struct bt_public_config *config = &call->server->config;
    for (uint32_t i = 0; i < config->n_methods; i++) {
        if (grpc_slice_str_cmp(call->details.method, config->methods[i].path) != 0)
            continue;
        call->method = i;
        return true;
    }
    return false;
}

static bool count_call(struct bt_public_call *call) {
    struct bt_public_server *server = call->server;
    pthread_mutex_lock(&server->lock);
    call->counted = server->n_calls < server->config.max_calls;
    if (call->counted) {
        server->n_calls++;
        call->next = server->calls;
        if (call->next)
            call->next->previous = call;
        server->calls = call;
    }
    pthread_mutex_unlock(&server->lock);
    return call->counted;
}

static void read_deadline(struct bt_public_call *call) {
    gpr_timespec until = gpr_convert_clock_type(call->details.deadline, GPR_CLOCK_MONOTONIC);
    if (gpr_time_cmp(until, gpr_inf_future(GPR_CLOCK_MONOTONIC)) == 0)
        return;
    int64_t ms = gpr_time_to_millis(gpr_time_sub(until, gpr_now(GPR_CLOCK_MONOTONIC)));
    call->deadline_us = bt_clock_us() + (ms > 0 ? (uint64_t)ms * 1000 : 0);
}

void bt_public_call_accept(struct bt_public_call *call) {
    bool known = find_method(call);
    bool counted = known && count_call(call);
    read_deadline(call);
    pthread_mutex_lock(&call->lock);
    grpc_op end = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    end.data.recv_close_on_server.cancelled = &call->cancelled;
    start_batch(call, &end, 1, &call->on_end);
    if (counted)
        bt_public_call_receive_locked(call);
    else if (known)
        refuse_locked(call, GRPC_STATUS_RESOURCE_EXHAUSTED, RETRY_MS,
                      "too many calls are open, try again later");
    else
        refuse_locked(call, GRPC_STATUS_UNIMPLEMENTED, 0, "there is no such method");
    pthread_mutex_unlock(&call->lock);
}

/* What the loop thread does with Attach streams: takes events, queues and flushes, closes. */
#include "common/rpc/rpc_stream.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/base/tls.h"
#include "common/rpc/rpc_call.h"

/* ---- making and ending ---- */

bt_status bt_rpc_streams_init(struct bt_rpc_streams *streams, enum bt_wire_side side,
                              uint32_t n_slots, size_t send_bytes_max, struct bt_tls *tls,
                              struct bt_error *err) {
    streams->side = side;
    streams->tls = tls ? bt_tls_share(tls) : NULL;
    streams->n_slots = n_slots;
    streams->send_bytes_max = send_bytes_max ? send_bytes_max : BT_RPC_SEND_BYTES_MAX;
    bt_wire_arena_init(&streams->arena, BT_WIRE_ARENA_BYTES);
    streams->has_lock = pthread_mutex_init(&streams->lock, NULL) == 0;
    streams->calls = calloc(n_slots, sizeof(struct bt_rpc_call *));
    streams->slots = calloc(n_slots, sizeof *streams->slots);
    streams->touched = calloc(n_slots, sizeof *streams->touched);
    if (!streams->has_lock || !streams->calls || !streams->slots || !streams->touched)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u streams", n_slots);
    BT_TRY(bt_ring_init(&streams->ring, n_slots * BT_RPC_EVENTS_PER_SLOT,
                        sizeof(struct bt_rpc_push), err));
    streams->queue = grpc_completion_queue_create_for_next(NULL);
    return BT_OK;
}

bt_status bt_rpc_streams_start_thread(struct bt_rpc_streams *streams, struct bt_error *err) {
    BT_TRY(bt_rpc_start_thread(bt_rpc_run, streams, &streams->thread, err));
    streams->thread_runs = true;
    return BT_OK;
}

void bt_rpc_streams_join(struct bt_rpc_streams *streams) {
    if (streams->thread_runs)
        pthread_join(streams->thread, NULL);
    streams->thread_runs = false;
}

static bool is_last(const struct bt_rpc_push *push) {
    return push->type == BT_RPC_CLOSED;
}

void bt_rpc_streams_fini(struct bt_rpc_streams *streams) {
    struct bt_rpc_push push;
    free(streams->reading.bytes);
    while (streams->ring.elements && bt_ring_pop(&streams->ring, &push)) {
        free(push.bytes);
        if (is_last(&push))
            bt_rpc_call_destroy(push.call);
    }
    for (uint32_t i = 0; streams->slots && i < streams->n_slots; i++) {
        bt_wire_writer_fini(&streams->slots[i].writer);
        bt_wire_reader_fini(&streams->slots[i].reader);
    }
    if (streams->queue)
        grpc_completion_queue_destroy(streams->queue);
    bt_ring_fini(&streams->ring);
    bt_wire_arena_fini(&streams->arena);
    free(streams->calls);
    free(streams->slots);
    free(streams->touched);
    bt_tls_destroy(streams->tls);
    if (streams->has_lock)
        pthread_mutex_destroy(&streams->lock);
}

/* ---- events ---- */

int bt_rpc_fd(const struct bt_rpc_streams *streams) {
    return bt_ring_fd(&streams->ring);
}

/* The fd stays readable until the ring was seen empty after it was acknowledged. */
static bool pop(struct bt_rpc_streams *streams, struct bt_rpc_push *push) {
    if (bt_ring_pop(&streams->ring, push))
        return true;
    bt_ring_acknowledge(&streams->ring);
    return bt_ring_pop(&streams->ring, push);
}

/* The message was read to its end: the peer may send more. */
static void release_reading(struct bt_rpc_streams *streams) {
    struct bt_rpc_call *call = streams->reading.call;
    free(streams->reading.bytes);
    pthread_mutex_lock(&call->lock);
    call->n_waiting--;
    call->bytes_waiting -= streams->reading.n_bytes;
    /* From half the bounds on, so that a peer that is held back does not wake us for each message.
     */
    if (call->n_waiting <= BT_RPC_MESSAGES_WAITING / 2 &&
        call->bytes_waiting <= BT_RPC_BYTES_WAITING / 2)
        bt_rpc_call_receive_locked(call);
    pthread_mutex_unlock(&call->lock);
    memset(&streams->reading, 0, sizeof streams->reading);
}

/* A worker may join as what its certificate says, and as nothing else. */
static bt_status check_role(const struct bt_rpc_streams *streams, const struct bt_rpc_call *call,
                            const struct bt_msg *msg, struct bt_error *err) {
    if (!streams->tls || streams->side != BT_WIRE_ROUTER || msg->type != BT_MSG_JOIN)
        return BT_OK;
    uint32_t claimed = msg->join.role == BT_ROLE_PREFILL  ? BT_TLS_PREFILL
                       : msg->join.role == BT_ROLE_DECODE ? BT_TLS_DECODE
                                                          : 0;
    if (claimed & call->roles)
        return BT_OK;
    return bt_fail(err, BT_E_INVALID, "%s joins as %s, its certificate is for the role %s",
                   msg->join.name, bt_tls_role_name(claimed), bt_tls_role_name(call->roles));
}

/* Gives the next item of the message that is being read; false when it is through. */
static bool read_item(struct bt_rpc_streams *streams, struct bt_rpc_event *out) {
    uint32_t slot_i = streams->reading.call->slot;
    struct bt_rpc_slot *slot = &streams->slots[slot_i];
    struct bt_error err = {0};
    bt_status status =
        slot->closing ? BT_DONE
                      : bt_wire_reader_next(&slot->reader, &streams->arena, &streams->msg, &err);
    if (status == BT_OK)
        status = check_role(streams, streams->reading.call, &streams->msg, &err);
    if (status == BT_OK) {
        *out = (struct bt_rpc_event){.type = BT_RPC_MESSAGE, .slot = slot_i, .msg = &streams->msg};
        return true;
    }
    if (status < 0)
        bt_rpc_close(streams, slot_i, status, err.text);
    release_reading(streams);
    return false;
}

static void take_closed(struct bt_rpc_streams *streams, struct bt_rpc_call *call,
                        struct bt_rpc_event *out) {
    struct bt_rpc_slot *slot = &streams->slots[call->slot];
    memcpy(streams->text, call->close_text, sizeof streams->text);
    *out = (struct bt_rpc_event){.type = BT_RPC_CLOSED,
                                 .slot = call->slot,
                                 .status = call->close_status,
                                 .text = streams->text};
    bt_wire_writer_fini(&slot->writer);
    bt_wire_reader_fini(&slot->reader);
    slot->call = NULL;
    slot->open = slot->closing = false;
    pthread_mutex_lock(&streams->lock);
    streams->calls[call->slot] = NULL;
    pthread_mutex_unlock(&streams->lock);
    bt_rpc_call_destroy(call);
}

static bool take_event(struct bt_rpc_streams *streams, const struct bt_rpc_push *push,
                       struct bt_rpc_event *out) {
    struct bt_rpc_slot *slot = &streams->slots[push->call->slot];
    switch (push->type) {
    case BT_RPC_OPENED:
        slot->call = push->call;
        slot->open = true;
        bt_wire_writer_init(&slot->writer, streams->side);
        bt_wire_reader_init(&slot->reader,
                            streams->side == BT_WIRE_ROUTER ? BT_WIRE_WORKER : BT_WIRE_ROUTER);
        bt_rpc_put_text(streams->text, push->call->peer);
        *out = (struct bt_rpc_event){
            .type = BT_RPC_OPENED, .slot = push->call->slot, .text = streams->text};
        return true;
    case BT_RPC_MESSAGE:
        streams->reading = *push;
        bt_wire_reader_begin(&slot->reader, push->bytes, push->n_bytes);
        return false;
    case BT_RPC_HALF_CLOSED:
        *out = (struct bt_rpc_event){.type = BT_RPC_HALF_CLOSED, .slot = push->call->slot};
        return !slot->closing;
    case BT_RPC_CLOSED:
        take_closed(streams, push->call, out);
        return true;
    }
    return false;
}

bool bt_rpc_next(struct bt_rpc_streams *streams, struct bt_rpc_event *out) {
    for (;;) {
        struct bt_rpc_push push;
        if (streams->reading.call) {
            if (read_item(streams, out))
                return true;
        } else if (!pop(streams, &push)) {
            return false;
        } else if (take_event(streams, &push, out)) {
            return true;
        }
    }
}

/* ---- sending ---- */

static struct bt_rpc_slot *open_slot(struct bt_rpc_streams *streams, uint32_t slot_i) {
    BT_ASSERT(slot_i < streams->n_slots);
    struct bt_rpc_slot *slot = &streams->slots[slot_i];
    return slot->open && !slot->closing ? slot : NULL;
}

/* Cancels: nothing that waits can be sent any more. */
static void break_off(struct bt_rpc_slot *slot, bt_status status, const char *reason) {
    slot->closing = true;
    bt_wire_writer_clear(&slot->writer);
    pthread_mutex_lock(&slot->call->lock);
    bt_rpc_call_break_locked(slot->call, status, "%s", reason);
    bt_rpc_call_receive_locked(slot->call);
    pthread_mutex_unlock(&slot->call->lock);
}

bt_status bt_rpc_send(struct bt_rpc_streams *streams, uint32_t slot_i, const struct bt_msg *msg,
                      struct bt_error *err) {
    struct bt_rpc_slot *slot = open_slot(streams, slot_i);
    if (!slot)
        return bt_fail(err, BT_E_PEER_GONE, "stream %u is not open", slot_i);
    BT_TRY(bt_wire_writer_add(&slot->writer, msg, err));
    if (!slot->touched) {
        slot->touched = true;
        streams->touched[streams->n_touched++] = slot_i;
    }
    size_t n = bt_wire_writer_bytes(&slot->writer) + atomic_load(&slot->call->n_queued);
    if (n <= streams->send_bytes_max)
        return BT_OK;
    struct bt_error full = {0};
    bt_fail(&full, BT_E_FULL, "the peer at %s has not read %zu bytes, the bound is %zu",
            slot->call->peer, n, streams->send_bytes_max);
    break_off(slot, BT_E_FULL, full.text);
    return bt_fail(err, BT_E_FULL, "%s", full.text);
}

/* Hands what the loop has said on a stream to its call. */
static void hand_over(struct bt_rpc_slot *slot) {
    bt_wire_writer_finish(&slot->writer);
    struct bt_rpc_call *call = slot->call;
    pthread_mutex_lock(&call->lock);
    bool queued = call->closing || bt_rpc_call_queue_locked(call, &slot->writer);
    if (queued)
        bt_rpc_call_pump_locked(call);
    pthread_mutex_unlock(&call->lock);
    if (queued)
        bt_wire_writer_clear(&slot->writer);
    else
        break_off(slot, BT_E_NO_MEMORY, "no memory for what is to be sent");
}

void bt_rpc_flush(struct bt_rpc_streams *streams) {
    for (uint32_t i = 0; i < streams->n_touched; i++) {
        struct bt_rpc_slot *slot = &streams->slots[streams->touched[i]];
        slot->touched = false;
        if (slot->open && !slot->closing)
            hand_over(slot);
    }
    streams->n_touched = 0;
}

void bt_rpc_close(struct bt_rpc_streams *streams, uint32_t slot_i, bt_status status,
                  const char *reason) {
    struct bt_rpc_slot *slot = open_slot(streams, slot_i);
    if (!slot)
        return;
    hand_over(slot);
    if (slot->closing)
        return; /* no memory: it was broken off */
    slot->closing = true;
    struct bt_rpc_call *call = slot->call;
    pthread_mutex_lock(&call->lock);
    if (!call->closing) {
        call->closing = true;
        call->close_status = status > 0 ? BT_OK : status;
        bt_rpc_put_text(call->close_text, reason && reason[0] ? reason : "closed in order");
        if (!call->ended) {
            bt_rpc_set_deadline_locked(call, BT_RPC_CLOSE_MS);
            bt_rpc_call_receive_locked(call); /* the peer's end stands behind what it says */
            bt_rpc_call_pump_locked(call);
            /* An empty batch comes back at once: the thread wakes up and sees the deadline. */
            bt_rpc_call_batch(call, NULL, 0, &call->on_wake);
        }
    }
    pthread_mutex_unlock(&call->lock);
}

size_t bt_rpc_queued_bytes(struct bt_rpc_streams *streams, uint32_t slot_i) {
    struct bt_rpc_slot *slot = open_slot(streams, slot_i);
    return slot ? bt_wire_writer_bytes(&slot->writer) + atomic_load(&slot->call->n_queued) : 0;
}

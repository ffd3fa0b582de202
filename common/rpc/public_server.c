/* The public gRPC server's two ends: new calls in, and what the loop thread does with them. */
#include "common/rpc/public_server.h"

#include <grpc/compression.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <grpc/support/time.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/base/clock.h"
#include "common/rpc/public_call.h"
#include "common/rpc/rpc_seam.h"

enum {
    CALLS_ASKED_FOR = 64, /* what waits for us inside gRPC has no bound of its own */
    CALLS_STANDARD = 4096,
    CALLS_MAX = 1 << 16,
    MESSAGE_STANDARD = 4 << 20,
    WAITING_STANDARD = 128 << 20,
    WAIT_MS_STANDARD = 30000,
    KEEPALIVE_TIMEOUT_MS_MAX = 10000, /* for the answer; less where it is asked more often */
    PING_MIN_MS = 5000,               /* a client's pings may come this often */
    IDLE_MS = 300000, /* a connection without calls is closed in order; clients dial anew */
    WINDOW_BYTES = 64 << 10,
    SWEEP_US = 250000,
};

/* ---- completion-queue thread ---- */

static void ask_for_call(struct bt_public_server *server);

static void on_call(struct bt_rpc_tag *tag, bool ok) {
    struct bt_public_call *call = tag->self;
    if (ok) { /* else the server is shutting down */
        ask_for_call(call->server);
        bt_public_call_accept(call);
    }
    bt_public_call_unref(call);
}

/* Without memory for it the server goes on with fewer. */
static void ask_for_call(struct bt_public_server *server) {
    struct bt_public_call *call = bt_public_call_create(server);
    if (!call)
        return;
    call->on_start = (struct bt_rpc_tag){on_call, call};
    call->n_refs = 1;
    BT_RPC_GIVE(&call->on_start);
    if (grpc_server_request_call(server->grpc, &call->grpc, &call->details, &call->metadata,
                                 server->queue, server->queue, &call->on_start) != GRPC_CALL_OK)
        bt_public_call_destroy(call);
}

/* Every call has ended; tags that are still out come back without success. */
static void on_down(struct bt_rpc_tag *tag, bool ok) {
    struct bt_public_server *server = tag->self;
    (void)ok;
    atomic_store(&server->down, true);
    grpc_completion_queue_shutdown(server->queue);
}

static void *run(void *self) {
    struct bt_public_server *server = self;
    for (;;) {
        grpc_event event =
            grpc_completion_queue_next(server->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        struct bt_rpc_tag *tag = event.tag;
        BT_RPC_TAKE(tag);
        tag->fn(tag, event.success);
    }
}

/* ---- start and end ---- */

#define NUMBER(name, number) \
    { .type = GRPC_ARG_INTEGER, .key = (char *)(name), .value.integer = (int)(number) }

static grpc_server *create_grpc(const struct bt_public_config *config) {
    uint32_t timeout_ms = config->keepalive_ms < KEEPALIVE_TIMEOUT_MS_MAX
                              ? config->keepalive_ms
                              : KEEPALIVE_TIMEOUT_MS_MAX;
    grpc_resource_quota *quota = grpc_resource_quota_create("public");
    grpc_resource_quota_resize(quota, BT_PUBLIC_QUOTA_BYTES);
    grpc_arg args[] = {
        {.type = GRPC_ARG_POINTER,
         .key = (char *)GRPC_ARG_RESOURCE_QUOTA,
         .value.pointer = {quota, grpc_resource_quota_arg_vtable()}},
        NUMBER(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, config->message_bytes_max),
        NUMBER(GRPC_ARG_MAX_METADATA_SIZE, BT_PUBLIC_METADATA_BYTES),
        NUMBER(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
        NUMBER(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE),
        NUMBER(GRPC_ARG_HTTP2_BDP_PROBE, 0), /* a window that grows is memory without a bound */
        NUMBER(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, WINDOW_BYTES),
        NUMBER(GRPC_ARG_MAX_CONCURRENT_STREAMS, BT_PUBLIC_STREAMS_PER_CONNECTION),
        NUMBER(GRPC_ARG_MAX_CONNECTION_IDLE_MS, IDLE_MS),
        NUMBER(GRPC_ARG_KEEPALIVE_TIME_MS, config->keepalive_ms),
        NUMBER(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, timeout_ms),
        NUMBER(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        NUMBER(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        NUMBER(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, PING_MIN_MS),
    };
    grpc_channel_args list = {.num_args = sizeof args / sizeof args[0], .args = args};
    grpc_server *server = grpc_server_create(&list, NULL);
    grpc_resource_quota_unref(quota);
    return server;
}

bt_status bt_public_start(const struct bt_public_config *config, struct bt_public_server **out,
                          struct bt_error *err) {
    struct bt_public_server *server = calloc(1, sizeof *server);
    if (!server)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a server");
    struct bt_public_config *c = &server->config;
    *c = *config;
    c->max_calls = c->max_calls ? c->max_calls : CALLS_STANDARD;
    c->message_bytes_max = c->message_bytes_max ? c->message_bytes_max : MESSAGE_STANDARD;
    c->waiting_bytes_max = c->waiting_bytes_max ? c->waiting_bytes_max : WAITING_STANDARD;
    c->keepalive_ms = c->keepalive_ms ? c->keepalive_ms : WAIT_MS_STANDARD;
    c->stuck_ms = c->stuck_ms ? c->stuck_ms : WAIT_MS_STANDARD;
    BT_ASSERT(c->max_calls <= CALLS_MAX);
    server->on_down = (struct bt_rpc_tag){on_down, server};
    server->has_lock = pthread_mutex_init(&server->lock, NULL) == 0;
    bt_status status;
    BT_TRY_GOTO(server->has_lock ? BT_OK : bt_fail(err, BT_E_NO_MEMORY, "no memory for a lock"),
                fail);
    BT_TRY_GOTO(bt_ring_init(&server->ring, c->max_calls * BT_PUBLIC_EVENTS_PER_CALL,
                             sizeof(struct bt_public_push), err),
                fail);
    server->queue = grpc_completion_queue_create_for_next(NULL);
    server->plain = grpc_insecure_server_credentials_create();
    server->grpc = create_grpc(c);
    grpc_server_register_completion_queue(server->grpc, server->queue, NULL);
    grpc_server_start(server->grpc);
    for (int i = 0; i < CALLS_ASKED_FOR; i++)
        ask_for_call(server);
    BT_TRY_GOTO(bt_rpc_start_thread(run, server, &server->thread, err), fail);
    server->thread_runs = true;
    *out = server;
    return BT_OK;
fail:
    bt_public_stop(server);
    return status;
}

static void end_call(struct bt_public_call *call) {
    bt_public_call_uncount(call);
    bt_public_call_destroy(call);
}

static void stop_grpc(struct bt_public_server *server) {
    BT_RPC_GIVE(&server->on_down);
    grpc_server_shutdown_and_notify(server->grpc, server->queue, &server->on_down);
    grpc_server_cancel_all_calls(server->grpc);
    if (server->thread_runs)
        pthread_join(server->thread, NULL);
    else /* it could not be started: its work is done here */
        run(server);
    grpc_server_destroy(server->grpc);
    grpc_server_credentials_release(server->plain);
    grpc_completion_queue_destroy(server->queue);
}

void bt_public_stop(struct bt_public_server *server) {
    struct bt_public_push push;
    if (!server)
        return;
    if (server->grpc)
        stop_grpc(server);
    free(server->reading);
    if (server->closed)
        end_call(server->closed);
    while (server->ring.elements && bt_ring_pop(&server->ring, &push)) {
        free(push.bytes);
        if (push.type == BT_PUBLIC_CLOSED)
            end_call(push.call);
    }
    bt_ring_fini(&server->ring);
    if (server->has_lock)
        pthread_mutex_destroy(&server->lock);
    free(server);
}

void bt_public_add_connection(struct bt_public_server *server, int fd) {
    grpc_server_add_channel_from_fd(server->grpc, fd, server->plain);
}

/* ---- events ---- */

int bt_public_fd(const struct bt_public_server *server) {
    return bt_ring_fd(&server->ring);
}

size_t bt_public_n_calls(const struct bt_public_server *server) {
    return server->n_started;
}

/* The fd stays readable until the ring was seen empty after it was acknowledged. */
static bool pop(struct bt_public_server *server, struct bt_public_push *push) {
    if (bt_ring_pop(&server->ring, push))
        return true;
    bt_ring_acknowledge(&server->ring);
    return bt_ring_pop(&server->ring, push);
}

static void untouch(struct bt_public_server *server, struct bt_public_call *call) {
    if (!call->touched)
        return;
    struct bt_public_call **at = &server->touched;
    while (*at != call)
        at = &(*at)->next_touched;
    *at = call->next_touched;
    call->touched = false;
}

bool bt_public_next(struct bt_public_server *server, struct bt_public_event *out) {
    struct bt_public_push push;
    free(server->reading);
    atomic_fetch_sub(&server->n_waiting, server->n_reading);
    server->reading = NULL;
    server->n_reading = 0;
    if (server->closed) {
        untouch(server, server->closed);
        end_call(server->closed);
        server->closed = NULL;
    }
    if (!pop(server, &push))
        return false;
    *out = (struct bt_public_event){.type = push.type,
                                    .call = push.call,
                                    .method = push.call->method,
                                    .bytes = push.bytes,
                                    .n_bytes = push.n_bytes};
    server->reading = push.bytes;
    server->n_reading = push.n_bytes;
    if (push.type == BT_PUBLIC_STARTED)
        server->n_started++;
    if (push.type == BT_PUBLIC_ROOM) {
        pthread_mutex_lock(&push.call->lock);
        push.call->room_pushed = false;
        pthread_mutex_unlock(&push.call->lock);
    }
    if (push.type == BT_PUBLIC_CLOSED) {
        server->n_started--;
        server->closed = push.call;
        push.call->over = true;
    }
    return true;
}

/* ---- a call ---- */

void bt_public_set_user(struct bt_public_call *call, void *user) {
    call->user = user;
}

void *bt_public_user(const struct bt_public_call *call) {
    return call->user;
}

uint32_t bt_public_deadline_ms(const struct bt_public_call *call) {
    if (!call->deadline_us)
        return 0;
    uint64_t now = bt_clock_us();
    uint64_t left_ms = call->deadline_us > now ? (call->deadline_us - now) / 1000 : 0;
    return left_ms < 1 ? 1 : left_ms > UINT32_MAX ? UINT32_MAX : (uint32_t)left_ms;
}

bool bt_public_header(const struct bt_public_call *call, const char *name, const char **value,
                      size_t *n_bytes) {
    for (size_t i = 0; i < call->metadata.count; i++) {
        const grpc_metadata *m = &call->metadata.metadata[i];
        if (grpc_slice_str_cmp(m->key, name) != 0)
            continue;
        *value = (const char *)GRPC_SLICE_START_PTR(m->value);
        *n_bytes = GRPC_SLICE_LENGTH(m->value);
        return true;
    }
    return false;
}

void bt_public_set_request_id(struct bt_public_call *call, const char *id) {
    BT_ASSERT(strlen(id) < sizeof call->request_id);
    pthread_mutex_lock(&call->lock);
    memcpy(call->request_id, id, strlen(id) + 1);
    pthread_mutex_unlock(&call->lock);
}

void bt_public_receive(struct bt_public_call *call) {
    BT_ASSERT(call->server->config.methods[call->method].many_requests);
    pthread_mutex_lock(&call->lock);
    bt_public_call_receive_locked(call);
    pthread_mutex_unlock(&call->lock);
}

static void cancel(struct bt_public_call *call, grpc_status_code code, const char *why) {
    call->over = true;
    bt_rpc_queue_clear(&call->writer);
    pthread_mutex_lock(&call->lock);
    bt_public_call_break_locked(call, code, why);
    pthread_mutex_unlock(&call->lock);
}

bool bt_public_send(struct bt_public_call *call, const void *bytes, size_t n_bytes) {
    if (call->over)
        return true;
    if (!bt_public_call_write(call, bytes, n_bytes)) {
        cancel(call, GRPC_STATUS_RESOURCE_EXHAUSTED, "no memory for what is to be sent");
        return false;
    }
    if (!call->touched) {
        call->touched = true;
        call->next_touched = call->server->touched;
        call->server->touched = call;
    }
    return true;
}

bool bt_public_is_full(struct bt_public_call *call) {
    size_t n = bt_rpc_queue_size(&call->writer);
    if (call->over || n + atomic_load(&call->n_queued) < BT_PUBLIC_FULL_BYTES)
        return false;
    /* Looked at once more under the lock: what waits may just have left, and then no send would
     * come back that could say so. */
    pthread_mutex_lock(&call->lock);
    bool full = !call->ended && n + bt_rpc_queue_size(&call->queue) >= BT_PUBLIC_FULL_BYTES;
    call->wants_room = call->wants_room || full;
    pthread_mutex_unlock(&call->lock);
    return full;
}

/* Hands what this turn said to the call; false: no memory. */
static bool hand_over_locked(struct bt_public_call *call) {
    if (!bt_rpc_queue_size(&call->writer))
        return true;
    bool moved = bt_rpc_queue_move(&call->queue, &call->writer);
    atomic_store(&call->n_queued, bt_rpc_queue_size(&call->queue));
    return moved;
}

static void hand_over(struct bt_public_call *call, bool finish) {
    pthread_mutex_lock(&call->lock);
    if (call->ended) /* nobody will take it */
        bt_rpc_queue_clear(&call->writer);
    bool moved = hand_over_locked(call);
    call->finish_given = call->finish_given || (finish && moved);
    if (moved)
        bt_public_call_pump_locked(call);
    pthread_mutex_unlock(&call->lock);
    if (!moved)
        cancel(call, GRPC_STATUS_RESOURCE_EXHAUSTED, "no memory for what is to be sent");
}

void bt_public_finish(struct bt_public_call *call, const struct bt_public_end *end) {
    if (call->over)
        return;
    call->over = true;
    pthread_mutex_lock(&call->lock);
    if (!call->finish_given) {
        call->code = end->code;
        bt_rpc_put_text(call->text, end->message);
        call->detail_bytes = end->n_details ? malloc(end->n_details) : NULL;
        if (call->detail_bytes) { /* without memory for them the code and the sentence remain */
            memcpy(call->detail_bytes, end->details, end->n_details);
            call->n_detail_bytes = end->n_details;
        }
    }
    pthread_mutex_unlock(&call->lock);
    hand_over(call, true);
}

void bt_public_flush(struct bt_public_server *server) {
    while (server->touched) {
        struct bt_public_call *call = server->touched;
        server->touched = call->next_touched;
        call->touched = false;
        if (!call->over)
            hand_over(call, false);
    }
}

void bt_public_sweep(struct bt_public_server *server, uint64_t now_us) {
    if (now_us < server->sweep_at_us)
        return;
    server->sweep_at_us = now_us + SWEEP_US;
    pthread_mutex_lock(&server->lock);
    for (struct bt_public_call *call = server->calls; call; call = call->next) {
        uint64_t since = atomic_load(&call->since_us);
        if (!since || now_us < since)
            continue;
        pthread_mutex_lock(&call->lock);
        if (!call->started && now_us - since > (uint64_t)BT_PUBLIC_RECEIVE_MS * 1000)
            bt_public_call_break_locked(call, GRPC_STATUS_DEADLINE_EXCEEDED,
                                        "the call's message did not come in time");
        else if (call->started && now_us - since > (uint64_t)server->config.stuck_ms * 1000)
            bt_public_call_break_locked(call, GRPC_STATUS_CANCELLED,
                                        "the client was not heard of for too long");
        pthread_mutex_unlock(&call->lock);
    }
    pthread_mutex_unlock(&server->lock);
}

/* A bare gRPC client over one end of a socket pair, and the public server's loop: for the tests
 * here. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <cmocka.h>
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>

#include "common/rpc/public_server.h"
#include "common/rpc/rpc.h"

enum { CALLER_WAIT_MS = 20000, N_HEARD = 256, HEARD_BYTES = 64 };

struct caller {
    grpc_completion_queue *queue;
    grpc_channel *channel;
};

/* One call of it, with what came back. */
struct call {
    struct caller *caller;
    grpc_call *grpc;
    grpc_metadata_array initial, trailing;
    grpc_status_code code;
    grpc_slice detail;
    grpc_byte_buffer *received;
    uint32_t n_messages;
    size_t n_bytes;              /* of all messages */
    uint8_t first[HEARD_BYTES];  /* of the last message */
    bool over, receiving, reads; /* reads: asks for the next message by itself */
};

/* What the server's loop heard. */
struct heard {
    enum bt_public_event_type type;
    struct bt_public_call *call;
    uint32_t method;
    size_t n_bytes;
    uint8_t bytes[HEARD_BYTES];
};

struct pair {
    struct bt_public_server *server;
    struct caller caller;
    struct heard heard[N_HEARD];
    uint32_t n_heard;
    /* Sees each event while its call lives; may be NULL. */
    void (*on_event)(struct pair *pair, const struct bt_public_event *event);
    void *arg;
};

static inline uint64_t clock_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static inline void caller_open(struct caller *caller, struct bt_public_server *server) {
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    bt_public_add_connection(server, fds[0]);
    caller->queue = grpc_completion_queue_create_for_next(NULL);
    grpc_channel_credentials *plain = grpc_insecure_credentials_create();
    caller->channel = grpc_channel_create_from_fd("test", fds[1], plain, NULL);
    grpc_channel_credentials_release(plain);
    assert_non_null(caller->channel);
}

static inline void call_receive(struct call *call) {
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &call->received;
    call->receiving = true;
    assert_int_equal(grpc_call_start_batch(call->grpc, &op, 1, &call->received, NULL),
                     GRPC_CALL_OK);
}

/* Begins a call; bytes NULL: half-closed without a message. deadline_ms 0: none. */
static inline void call_start(struct caller *caller, struct call *call, const char *method,
                              const void *bytes, size_t n_bytes, uint32_t deadline_ms, bool end) {
    memset(call, 0, sizeof *call);
    call->caller = caller;
    gpr_timespec until = deadline_ms ? gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                                    gpr_time_from_millis(deadline_ms, GPR_TIMESPAN))
                                     : gpr_inf_future(GPR_CLOCK_MONOTONIC);
    grpc_slice path = grpc_slice_from_copied_string(method);
    call->grpc = grpc_channel_create_call(caller->channel, NULL, GRPC_PROPAGATE_DEFAULTS,
                                          caller->queue, path, NULL, until, NULL);
    grpc_slice_unref(path);
    grpc_metadata_array_init(&call->initial);
    grpc_metadata_array_init(&call->trailing);
    call->detail = grpc_empty_slice();
    grpc_metadata id = {.key = grpc_slice_from_static_string("x-request-id"),
                        .value = grpc_slice_from_static_string("from-test")};
    grpc_op ops[4] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}, {.op = GRPC_OP_RECV_INITIAL_METADATA}};
    size_t n = 2;
    ops[0].data.send_initial_metadata.metadata = &id;
    ops[0].data.send_initial_metadata.count = 1;
    ops[1].data.recv_initial_metadata.recv_initial_metadata = &call->initial;
    grpc_byte_buffer *sent = NULL;
    if (bytes) {
        grpc_slice slice = grpc_slice_from_copied_buffer(bytes, n_bytes);
        sent = grpc_raw_byte_buffer_create(&slice, 1);
        grpc_slice_unref(slice);
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = sent;
    }
    if (end)
        ops[n++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    assert_int_equal(grpc_call_start_batch(call->grpc, ops, n, call->grpc, NULL), GRPC_CALL_OK);
    if (sent)
        grpc_byte_buffer_destroy(sent);
    grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    status.data.recv_status_on_client.trailing_metadata = &call->trailing;
    status.data.recv_status_on_client.status = &call->code;
    status.data.recv_status_on_client.status_details = &call->detail;
    assert_int_equal(grpc_call_start_batch(call->grpc, &status, 1, call, NULL), GRPC_CALL_OK);
    call->reads = true;
}

static inline void call_take(struct call *call) {
    call->receiving = false;
    if (!call->received)
        return;
    grpc_byte_buffer_reader reader;
    assert_true(grpc_byte_buffer_reader_init(&reader, call->received));
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    size_t n = GRPC_SLICE_LENGTH(all);
    memcpy(call->first, GRPC_SLICE_START_PTR(all), n < HEARD_BYTES ? n : HEARD_BYTES);
    call->n_messages++;
    call->n_bytes += n;
    grpc_slice_unref(all);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(call->received);
    call->received = NULL;
}

/* One turn of both sides. calls: those whose tags may come. */
static inline void pair_turn(struct pair *pair, struct call *calls, size_t n_calls) {
    grpc_event event = grpc_completion_queue_next(
        pair->caller.queue,
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(1, GPR_TIMESPAN)), NULL);
    for (size_t i = 0; event.type == GRPC_OP_COMPLETE && i < n_calls; i++) {
        if (event.tag == &calls[i])
            calls[i].over = true;
        if (event.tag == &calls[i].received)
            call_take(&calls[i]);
    }
    for (size_t i = 0; i < n_calls; i++)
        if (calls[i].reads && !calls[i].receiving && !calls[i].over)
            call_receive(&calls[i]);
    struct bt_public_event got;
    while (pair->server && bt_public_next(pair->server, &got)) {
        assert_true(pair->n_heard < N_HEARD);
        if (pair->on_event)
            pair->on_event(pair, &got);
        struct heard *heard = &pair->heard[pair->n_heard++];
        *heard = (struct heard){got.type, got.call, got.method, got.n_bytes, {0}};
        if (got.bytes)
            memcpy(heard->bytes, got.bytes, got.n_bytes < HEARD_BYTES ? got.n_bytes : HEARD_BYTES);
    }
    if (pair->server) {
        bt_public_flush(pair->server);
        bt_public_sweep(pair->server, clock_ms() * 1000);
    }
}

#define PAIR_WAIT(pair, calls, n_calls, condition)     \
    do {                                               \
        uint64_t until_ = clock_ms() + CALLER_WAIT_MS; \
        while (!(condition)) {                         \
            assert_true(clock_ms() < until_);          \
            pair_turn(pair, calls, n_calls);           \
        }                                              \
    } while (0)

static inline const char *metadata_of(const grpc_metadata_array *array, const char *key) {
    static char value[128];
    for (size_t i = 0; i < array->count; i++) {
        if (grpc_slice_str_cmp(array->metadata[i].key, key) != 0)
            continue;
        size_t n = GRPC_SLICE_LENGTH(array->metadata[i].value);
        n = n < sizeof value - 1 ? n : sizeof value - 1;
        memcpy(value, GRPC_SLICE_START_PTR(array->metadata[i].value), n);
        value[n] = 0;
        return value;
    }
    return NULL;
}

static inline void call_fini(struct call *call) {
    if (call->received)
        grpc_byte_buffer_destroy(call->received);
    grpc_metadata_array_destroy(&call->initial);
    grpc_metadata_array_destroy(&call->trailing);
    grpc_slice_unref(call->detail);
    grpc_call_unref(call->grpc);
}

static inline void caller_close(struct caller *caller) {
    grpc_channel_destroy(caller->channel);
    grpc_completion_queue_shutdown(caller->queue);
    while (
        grpc_completion_queue_next(caller->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
        GRPC_QUEUE_SHUTDOWN) {
    }
    grpc_completion_queue_destroy(caller->queue);
}

/* A bare gRPC client that says what a worker of ours never would: for the tests here. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <grpc/byte_buffer.h>
#include <grpc/compression.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>

struct stranger {
    grpc_completion_queue *queue;
    grpc_channel *channel;
    grpc_call *call;
    grpc_metadata_array metadata, trailing;
    grpc_status_code code;
    grpc_slice detail;
    grpc_byte_buffer *sent, *received;
    uint32_t n_out; /* batches whose tag is not back */
};

/* Calls the method and sends one message of these bytes, compressed if asked to. */
static inline void stranger_start(struct stranger *s, const char *address, const char *method,
                                  const void *bytes, size_t n_bytes, bool compress) {
    memset(s, 0, sizeof *s);
    s->queue = grpc_completion_queue_create_for_next(NULL);
    grpc_channel_credentials *plain = grpc_insecure_credentials_create();
    s->channel = grpc_channel_create(address, plain, NULL);
    grpc_channel_credentials_release(plain);
    grpc_slice path = grpc_slice_from_copied_string(method);
    s->call = grpc_channel_create_call(
        s->channel, NULL, GRPC_PROPAGATE_DEFAULTS, s->queue, path, NULL,
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_seconds(20, GPR_TIMESPAN)), NULL);
    grpc_slice_unref(path);
    grpc_metadata_array_init(&s->metadata);
    grpc_metadata_array_init(&s->trailing);
    s->detail = grpc_empty_slice();
    grpc_metadata gzip = {
        .key = grpc_slice_from_static_string(GRPC_COMPRESSION_REQUEST_ALGORITHM_MD_KEY),
        .value = grpc_slice_from_static_string("gzip")};
    grpc_slice slice = grpc_slice_from_copied_buffer(bytes, n_bytes);
    s->sent = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    grpc_op ops[3] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                      {.op = GRPC_OP_RECV_INITIAL_METADATA},
                      {.op = GRPC_OP_SEND_MESSAGE}};
    ops[0].data.send_initial_metadata.metadata = &gzip;
    ops[0].data.send_initial_metadata.count = compress;
    ops[1].data.recv_initial_metadata.recv_initial_metadata = &s->metadata;
    ops[2].data.send_message.send_message = s->sent;
    grpc_op end = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    end.data.recv_status_on_client.trailing_metadata = &s->trailing;
    end.data.recv_status_on_client.status = &s->code;
    end.data.recv_status_on_client.status_details = &s->detail;
    grpc_call_start_batch(s->call, ops, 3, s->sent, NULL);
    grpc_call_start_batch(s->call, &end, 1, s, NULL);
    grpc_op receive = {.op = GRPC_OP_RECV_MESSAGE};
    receive.data.recv_message.recv_message = &s->received;
    grpc_call_start_batch(s->call, &receive, 1, &s->received, NULL);
    s->n_out = 3;
}

/* Takes what came back; true when all did and the call is over. */
static inline bool stranger_turn(struct stranger *s) {
    while (s->n_out) {
        grpc_event event =
            grpc_completion_queue_next(s->queue, gpr_inf_past(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type != GRPC_OP_COMPLETE)
            return false;
        s->n_out--;
    }
    return true;
}

static inline void stranger_fini(struct stranger *s) {
    grpc_byte_buffer_destroy(s->sent);
    if (s->received)
        grpc_byte_buffer_destroy(s->received);
    grpc_metadata_array_destroy(&s->metadata);
    grpc_metadata_array_destroy(&s->trailing);
    grpc_slice_unref(s->detail);
    grpc_call_unref(s->call);
    grpc_channel_destroy(s->channel);
    grpc_completion_queue_shutdown(s->queue);
    while (grpc_completion_queue_next(s->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN) {
    }
    grpc_completion_queue_destroy(s->queue);
}

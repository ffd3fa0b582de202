/* One unary call on a channel of its own. */
#include "common/rpc/health_client.h"

#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <string.h>

#include "proto/grpc/health/v1/health.pb-c.h"

enum { SERVICE_BYTES_MAX = 256 };

struct ask {
    grpc_completion_queue *queue;
    grpc_channel *channel;
    grpc_call *call;
    grpc_byte_buffer *request, *response;
    grpc_metadata_array initial, trailing;
    grpc_slice details;
    grpc_status_code code;
};

static grpc_byte_buffer *make_request(const char *service) {
    Grpc__Health__V1__HealthCheckRequest message = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    uint8_t bytes[SERVICE_BYTES_MAX + 16];
    message.service = (ProtobufCBinaryData){strlen(service), (uint8_t *)service};
    size_t n = grpc__health__v1__health_check_request__pack(&message, bytes);
    grpc_slice slice = grpc_slice_from_copied_buffer((const char *)bytes, n);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

/* False: the answer is no HealthCheckResponse. */
static bool read_response(grpc_byte_buffer *buffer, bool *serving) {
    grpc_byte_buffer_reader reader;
    if (!buffer || !grpc_byte_buffer_reader_init(&reader, buffer))
        return false;
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    Grpc__Health__V1__HealthCheckResponse *message =
        grpc__health__v1__health_check_response__unpack(NULL, GRPC_SLICE_LENGTH(all),
                                                        GRPC_SLICE_START_PTR(all));
    if (message)
        *serving =
            message->status == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    grpc_slice_unref(all);
    grpc_byte_buffer_reader_destroy(&reader);
    bool good = message != NULL;
    grpc__health__v1__health_check_response__free_unpacked(message, NULL);
    return good;
}

/* False: gRPC would not start it. */
static bool call(struct ask *ask) {
    grpc_op ops[6];
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = ask->request;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &ask->initial;
    ops[4].op = GRPC_OP_RECV_MESSAGE;
    ops[4].data.recv_message.recv_message = &ask->response;
    ops[5].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[5].data.recv_status_on_client.trailing_metadata = &ask->trailing;
    ops[5].data.recv_status_on_client.status = &ask->code;
    ops[5].data.recv_status_on_client.status_details = &ask->details;
    if (grpc_call_start_batch(ask->call, ops, 6, ask, NULL) != GRPC_CALL_OK)
        return false;
    /* The call has a deadline, so this ends. */
    grpc_completion_queue_next(ask->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    return true;
}

static void open_call(struct ask *ask, const char *address, uint32_t timeout_ms) {
    gpr_timespec deadline =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
    grpc_channel_credentials *plain = grpc_insecure_credentials_create();
    ask->queue = grpc_completion_queue_create_for_next(NULL);
    ask->channel = grpc_channel_create(address, plain, NULL);
    grpc_channel_credentials_release(plain);
    ask->call = grpc_channel_create_call(
        ask->channel, NULL, GRPC_PROPAGATE_DEFAULTS, ask->queue,
        grpc_slice_from_static_string("/grpc.health.v1.Health/Check"), NULL, deadline, NULL);
    grpc_metadata_array_init(&ask->initial);
    grpc_metadata_array_init(&ask->trailing);
    ask->details = grpc_empty_slice();
}

static void close_call(struct ask *ask) {
    grpc_call_unref(ask->call);
    grpc_channel_destroy(ask->channel);
    grpc_completion_queue_shutdown(ask->queue);
    while (grpc_completion_queue_next(ask->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN)
        continue;
    grpc_completion_queue_destroy(ask->queue);
    grpc_metadata_array_destroy(&ask->initial);
    grpc_metadata_array_destroy(&ask->trailing);
    grpc_slice_unref(ask->details);
    grpc_byte_buffer_destroy(ask->request);
    if (ask->response)
        grpc_byte_buffer_destroy(ask->response);
}

static bt_status judge(struct ask *ask, const char *address, const char *service, bool *serving,
                       struct bt_error *err) {
    if (ask->code == GRPC_STATUS_OK)
        return read_response(ask->response, serving)
                   ? BT_OK
                   : bt_fail(err, BT_E_PEER_GONE, "%.80s answered with no HealthCheckResponse",
                             address);
    if (ask->code == GRPC_STATUS_NOT_FOUND)
        return bt_fail(err, BT_E_NOT_FOUND, "%.80s knows no service \"%.80s\"", address, service);
    if (ask->code == GRPC_STATUS_DEADLINE_EXCEEDED)
        return bt_fail(err, BT_E_DEADLINE, "%.80s did not answer in time", address);
    char *text = grpc_slice_to_c_string(ask->details);
    bt_status status = bt_fail(err, BT_E_PEER_GONE, "%.80s: %.120s", address, text);
    gpr_free(text);
    return status;
}

bt_status bt_health_client_ask(const char *address, const char *service, uint32_t timeout_ms,
                               bool *serving, struct bt_error *err) {
    if (strlen(service) > SERVICE_BYTES_MAX)
        return bt_fail(err, BT_E_INVALID, "service has %zu bytes, at most %d", strlen(service),
                       SERVICE_BYTES_MAX);
    struct ask ask = {.request = make_request(service)};
    open_call(&ask, address, timeout_ms);
    bt_status status = call(&ask) ? judge(&ask, address, service, serving, err)
                                  : bt_fail(err, BT_E_INTERNAL, "gRPC would not start the call");
    close_call(&ask);
    return status;
}

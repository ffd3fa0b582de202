/* Packs google.rpc.Status for a failed call. */
#include "common/rpc/public_status.h"

#include <string.h>

#include "common/base/assert.h"
#include "common/rpc/rpc_call.h"
#include "proto/google/rpc/status.pb-c.h"

enum { WORD_BYTES = 64, DETAIL_BYTES = 480, DETAILS_MAX = 3 };

/* The names of https://grpc.github.io/grpc/core/md_doc_statuscodes.html. */
static const char *const code_names[] = {
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
};

struct details {
    Google__Rpc__Any any[DETAILS_MAX];
    Google__Rpc__Any *list[DETAILS_MAX];
    uint8_t bytes[DETAILS_MAX][DETAIL_BYTES];
    size_t n;
};

static ProtobufCBinaryData text_of(const char *text, size_t n_max) {
    return (ProtobufCBinaryData){strnlen(text, n_max), (uint8_t *)(uintptr_t)text};
}

static void add(struct details *details, const char *type, const ProtobufCMessage *message) {
    size_t i = details->n++, n = protobuf_c_message_get_packed_size(message);
    BT_ASSERT(i < DETAILS_MAX && n <= DETAIL_BYTES);
    protobuf_c_message_pack(message, details->bytes[i]);
    google__rpc__any__init(&details->any[i]);
    details->any[i].type_url = text_of(type, WORD_BYTES);
    details->any[i].value = (ProtobufCBinaryData){n, details->bytes[i]};
    details->list[i] = &details->any[i];
}

static void add_info(struct details *details, const struct bt_public_fault *fault) {
    Google__Rpc__ErrorInfo info = GOOGLE__RPC__ERROR_INFO__INIT;
    size_t code =
        (size_t)fault->code < sizeof code_names / sizeof code_names[0] ? (size_t)fault->code : 2;
    info.reason = text_of(fault->reason[0] ? fault->reason : code_names[code], WORD_BYTES);
    info.domain = text_of("baton", WORD_BYTES);
    add(details, "type.googleapis.com/google.rpc.ErrorInfo", &info.base);
}

static void add_field(struct details *details, const struct bt_public_fault *fault,
                      const char *text) {
    Google__Rpc__FieldViolation violation = GOOGLE__RPC__FIELD_VIOLATION__INIT;
    Google__Rpc__FieldViolation *violations[1] = {&violation};
    Google__Rpc__BadRequest bad = GOOGLE__RPC__BAD_REQUEST__INIT;
    violation.field = text_of(fault->field, WORD_BYTES);
    violation.description = text_of(text, BT_RPC_TEXT_BYTES);
    bad.n_field_violations = 1;
    bad.field_violations = violations;
    add(details, "type.googleapis.com/google.rpc.BadRequest", &bad.base);
}

static void add_retry(struct details *details, uint32_t retry_ms) {
    Google__Rpc__Duration delay = GOOGLE__RPC__DURATION__INIT;
    Google__Rpc__RetryInfo retry = GOOGLE__RPC__RETRY_INFO__INIT;
    delay.seconds = retry_ms / 1000;
    delay.nanos = (int32_t)(retry_ms % 1000) * 1000000;
    retry.retry_delay = &delay;
    add(details, "type.googleapis.com/google.rpc.RetryInfo", &retry.base);
}

size_t bt_public_status_pack(const struct bt_public_fault *fault,
                             uint8_t out[BT_PUBLIC_STATUS_BYTES]) {
    struct details details;
    char text[BT_RPC_TEXT_BYTES];
    details.n = 0;
    bt_rpc_put_text(text, fault->message);
    add_info(&details, fault);
    if (fault->field[0])
        add_field(&details, fault, text);
    if (fault->retry_ms)
        add_retry(&details, fault->retry_ms);
    Google__Rpc__Status status = GOOGLE__RPC__STATUS__INIT;
    status.code = fault->code;
    status.message = text_of(text, BT_RPC_TEXT_BYTES);
    status.n_details = details.n;
    status.details = details.list;
    BT_ASSERT(google__rpc__status__get_packed_size(&status) <= BT_PUBLIC_STATUS_BYTES);
    return google__rpc__status__pack(&status, out);
}

void bt_public_fail(struct bt_public_call *call, const struct bt_public_fault *fault) {
    uint8_t details[BT_PUBLIC_STATUS_BYTES];
    const struct bt_public_end end = {
        .code = fault->code,
        .message = fault->message,
        .details = details,
        .n_details = bt_public_status_pack(fault, details),
    };
    bt_public_finish(call, &end);
}

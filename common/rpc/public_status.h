/* What stands in "grpc-status-details-bin": why a call failed, for programs. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/rpc/public_server.h"

enum { BT_PUBLIC_STATUS_BYTES = 1536 };

struct bt_public_fault {
    int code;            /* grpc_status_code, not 0 */
    const char *message; /* a sentence; up to 300 bytes of it are sent */
    const char *reason;  /* ErrorInfo, UPPER_SNAKE_CASE; "": the code's own name */
    const char *field;   /* BadRequest; "": none */
    uint32_t retry_ms;   /* RetryInfo; 0: none */
};

/* Answers how many bytes of out are used. */
size_t bt_public_status_pack(const struct bt_public_fault *fault,
                             uint8_t out[BT_PUBLIC_STATUS_BYTES]);
/* Finishes the call with code, sentence and details. */
void bt_public_fail(struct bt_public_call *call, const struct bt_public_fault *fault);

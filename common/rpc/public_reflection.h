/* grpc.reflection v1 and v1alpha (the same on the wire): tells clients which services there are and
 * what their messages look like, so that grpcurl and the like need no .proto file. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/rpc/public_server.h"

/* Answers one request on the call's stream; loop thread. A message that is no request ends the
 * call. */
void bt_public_reflect(struct bt_public_call *call, const uint8_t *bytes, size_t n_bytes);

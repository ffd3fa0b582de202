/* From the public service's messages to what the router's front takes. */
#pragma once
#include <jansson.h>

#include "common/rpc/inference_wire.h"
#include "router/generate_request.h"

/* Owns what the generate request borrows, beside the message itself. */
struct bt_grpc_request {
    struct bt_generate_request generate;
    struct bt_generate_prompt prompt;
    json_t *messages;
    char model[BT_INFERENCE_MODEL_BYTES + 1];
};

/* Checks UTF-8 and roles; all else is bt_generate_request_check's. On failure *out is zeroed. */
bt_status bt_grpc_request_fill(const struct bt_inference_generate *from,
                               struct bt_grpc_request *out, const struct bt_generate_check *check);
bt_status bt_grpc_request_fill_prompt(const struct bt_inference_prompt *from,
                                      struct bt_inference_text model, struct bt_grpc_request *out,
                                      const struct bt_generate_check *check);
void bt_grpc_request_fini(struct bt_grpc_request *request);
/* The field's name in the .proto for one that OpenAI's names are used for: "temperature" is
 * "sampling.temperature". out has BT_INFERENCE_FIELD_BYTES. */
void bt_grpc_request_field(const char *param, const struct bt_inference_prompt *prompt,
                           char out[BT_INFERENCE_FIELD_BYTES]);

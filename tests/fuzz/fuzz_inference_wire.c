/* Feeds any bytes to the readers of the public gRPC service; what comes out must be within the
 * bounds that its users rely on. */
#include <string.h>

#include "common/base/assert.h"
#include "common/rpc/inference_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Reads every byte, so that the sanitizer sees each that is not there. */
static uint32_t touch(struct bt_inference_text text) {
    uint32_t sum = 0;
    for (size_t i = 0; i < text.n_bytes; i++)
        sum += (uint8_t)text.data[i];
    return sum;
}

static void check_prompt(const struct bt_inference_prompt *prompt) {
    BT_ASSERT(prompt->kind >= BT_INFERENCE_TEXT && prompt->kind <= BT_INFERENCE_CHAT);
    BT_ASSERT(prompt->n_messages <= BT_INFERENCE_MESSAGES);
    touch(prompt->text);
    for (uint32_t i = 0; i < prompt->n_ids; i++)
        BT_ASSERT(prompt->ids[i] >= 0);
    for (uint32_t i = 0; i < prompt->n_messages; i++) {
        touch(prompt->messages[i].role);
        touch(prompt->messages[i].content);
    }
}

static void check_generate(const struct bt_inference_generate *out) {
    const struct bt_sampling *s = &out->sampling;
    check_prompt(&out->prompt);
    BT_ASSERT(out->model.n_bytes <= BT_INFERENCE_MODEL_BYTES);
    BT_ASSERT(out->cache_salt.n_bytes < BT_NAME_BYTES);
    BT_ASSERT(!memchr(out->model.data, 0, out->model.n_bytes));
    BT_ASSERT(out->n_stops <= BT_STOP_STRINGS && s->n_stop_tokens <= BT_STOP_TOKENS);
    BT_ASSERT(s->n_bias <= BT_LOGIT_BIASES && s->top_k >= 0);
    BT_ASSERT(s->logprobs <= 1 + BT_TOP_LOGPROBS && s->prompt_logprobs <= 1 + BT_TOP_LOGPROBS);
    for (size_t i = 0; i < out->n_stops; i++) {
        BT_ASSERT(out->stops[i].n_bytes >= 1 && out->stops[i].n_bytes <= BT_STOP_BYTES);
        touch(out->stops[i]);
    }
    for (size_t i = 1; i < s->n_bias; i++)
        BT_ASSERT(s->bias[i - 1].token <= s->bias[i].token);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct bt_wire_arena arena;
    struct bt_inference_generate generate;
    struct bt_inference_tokenize tokenize;
    char field[BT_INFERENCE_FIELD_BYTES];
    struct bt_error err = {0};
    bt_wire_arena_init(&arena, BT_INFERENCE_ARENA_BYTES);
    bt_status status = bt_inference_read_generate(data, size, &arena, &generate, field, &err);
    if (status == BT_OK)
        check_generate(&generate);
    BT_ASSERT(status == BT_OK || err.text[0]);
    BT_ASSERT(memchr(field, 0, sizeof field));
    status = bt_inference_read_tokenize(data, size, &arena, &tokenize, field, &err);
    if (status == BT_OK)
        check_prompt(&tokenize.prompt);
    bt_wire_arena_fini(&arena);
    return 0;
}

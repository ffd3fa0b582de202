/* Fills a generate request from a message of the public service. */
#include "router/grpc_request.h"

#include <stdio.h>
#include <string.h>

#include "common/text/utf8.h"
#include "router/openai_messages.h"

static bt_status check_utf8(struct bt_inference_text text, const char *param,
                            const struct bt_generate_check *check) {
    if (bt_utf8_is_valid(text.data, text.n_bytes))
        return BT_OK;
    return bt_generate_refuse(check, BT_E_INVALID, param, "%s is not valid UTF-8", param);
}

/* As HTTP does: templates deal in text. */
static bt_status check_no_nul(struct bt_inference_text text, const char *param,
                              const struct bt_generate_check *check) {
    if (!memchr(text.data, 0, text.n_bytes))
        return BT_OK;
    return bt_generate_refuse(check, BT_E_INVALID, param, "%s has a NUL byte", param);
}

static struct bt_slice slice_of(struct bt_inference_text text) {
    return (struct bt_slice){text.data, text.n_bytes};
}

static bt_status no_memory(const struct bt_generate_check *check) {
    return bt_generate_refuse(check, BT_E_NO_MEMORY, "messages", "out of memory for messages");
}

static bt_status add_message(const struct bt_inference_message *from, size_t i, json_t *messages,
                             const struct bt_generate_check *check) {
    char where[64];
    snprintf(where, sizeof where, "messages[%zu].role", i);
    BT_TRY(check_utf8(from->role, where, check));
    BT_TRY(check_no_nul(from->role, where, check));
    snprintf(where, sizeof where, "messages[%zu].content", i);
    BT_TRY(check_utf8(from->content, where, check));
    BT_TRY(check_no_nul(from->content, where, check));
    json_t *message = json_object();
    int failed = !message;
    failed = failed || json_object_set_new(message, "role",
                                           json_stringn(from->role.data, from->role.n_bytes)) != 0;
    failed =
        failed || json_object_set_new(message, "content",
                                      json_stringn(from->content.data, from->content.n_bytes)) != 0;
    if (failed) {
        json_decref(message);
        return no_memory(check);
    }
    return json_array_append_new(messages, message) == 0 ? BT_OK : no_memory(check);
}

static bt_status fill_messages(const struct bt_inference_prompt *from, struct bt_grpc_request *out,
                               const struct bt_generate_check *check) {
    out->messages = json_array();
    if (!out->messages)
        return no_memory(check);
    for (uint32_t i = 0; i < from->n_messages; i++)
        BT_TRY(add_message(&from->messages[i], i, out->messages, check));
    BT_TRY(bt_openai_messages_check(check, out->messages, false));
    out->generate.messages = out->messages;
    out->generate.add_generation_prompt = from->add_generation_prompt;
    return BT_OK;
}

static bt_status fill_prompt(const struct bt_inference_prompt *from, struct bt_grpc_request *out,
                             const struct bt_generate_check *check) {
    out->generate.add_special_tokens = from->add_special_tokens;
    switch (from->kind) {
    case BT_INFERENCE_CHAT:
        return fill_messages(from, out, check);
    case BT_INFERENCE_TEXT:
        BT_TRY(check_utf8(from->text, "prompt", check));
        out->prompt.is_text = true;
        out->prompt.text = slice_of(from->text);
        break;
    case BT_INFERENCE_TOKENS:
        out->prompt.ids = from->ids;
        out->prompt.n_ids = from->n_ids;
        break;
    }
    out->generate.prompts = &out->prompt;
    out->generate.n_prompts = 1;
    return BT_OK;
}

bt_status bt_grpc_request_fill_prompt(const struct bt_inference_prompt *from,
                                      struct bt_inference_text model, struct bt_grpc_request *out,
                                      const struct bt_generate_check *check) {
    *out = (struct bt_grpc_request){0};
    bt_generate_request_init(&out->generate);
    if (model.n_bytes) {
        memcpy(out->model, model.data, model.n_bytes);
        out->generate.model = out->model;
    }
    bt_status status = fill_prompt(from, out, check);
    if (status < 0)
        bt_grpc_request_fini(out);
    return status;
}

static bt_status fill_rest(const struct bt_inference_generate *from, struct bt_grpc_request *out,
                           const struct bt_generate_check *check) {
    struct bt_generate_request *to = &out->generate;
    BT_TRY(check_utf8(from->cache_salt, "cache_salt", check));
    memcpy(to->tenant, from->cache_salt.data, from->cache_salt.n_bytes);
    to->sampling = from->sampling;
    to->max_tokens_given = from->max_tokens_given;
    to->seed_given = from->seed_given;
    to->n = from->n;
    to->skip_special_tokens = from->skip_special_tokens;
    to->include_stop = from->include_stop_text;
    to->n_stops = from->n_stops;
    for (size_t i = 0; i < from->n_stops; i++) {
        BT_TRY(check_utf8(from->stops[i], "stop", check));
        to->stops[i] = slice_of(from->stops[i]);
    }
    return BT_OK;
}

bt_status bt_grpc_request_fill(const struct bt_inference_generate *from,
                               struct bt_grpc_request *out, const struct bt_generate_check *check) {
    BT_TRY(bt_grpc_request_fill_prompt(&from->prompt, from->model, out, check));
    bt_status status = fill_rest(from, out, check);
    if (status < 0)
        bt_grpc_request_fini(out);
    return status;
}

void bt_grpc_request_fini(struct bt_grpc_request *request) {
    json_decref(request->messages);
    *request = (struct bt_grpc_request){0};
}

void bt_grpc_request_field(const char *param, const struct bt_inference_prompt *prompt,
                           char out[BT_INFERENCE_FIELD_BYTES]) {
    static const char *const own[] = {"", "model", "n", "cache_salt"};
    const char *message = "sampling.";
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        if (!strcmp(param, own[i]))
            message = "";
    if (!strncmp(param, "messages", strlen("messages"))) {
        message = "chat.";
    } else if (!strcmp(param, "prompt")) {
        message = "";
        param = prompt->kind == BT_INFERENCE_TOKENS ? "tokens.ids" : "text";
    }
    snprintf(out, BT_INFERENCE_FIELD_BYTES, "%s%.48s", message, param);
}

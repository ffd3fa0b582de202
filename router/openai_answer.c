/* Writes chunks, whole answers and error objects as OpenAI clients read them. */
#include "router/openai_answer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum { ID_DIGITS = 16, CREATED_DIGITS = 10 };

static void add_head(struct bt_text_buffer *out, enum bt_openai_kind kind, bool chunk,
                     const char *model_json, size_t *id_at, size_t *created_at) {
    bool chat = kind == BT_OPENAI_CHAT;
    bt_text_buffer_add_string(out, chat ? "{\"id\":\"chatcmpl-" : "{\"id\":\"cmpl-");
    *id_at = out->n_bytes;
    bt_text_buffer_add_literal(out, "0000000000000000\",\"object\":");
    bt_text_buffer_add_string(out, !chat   ? "\"text_completion\""
                                   : chunk ? "\"chat.completion.chunk\""
                                           : "\"chat.completion\"");
    bt_text_buffer_add_literal(out, ",\"created\":");
    *created_at = out->n_bytes;
    bt_text_buffer_add_literal(out, "0000000000,\"model\":");
    bt_text_buffer_add_string(out, model_json);
    bt_text_buffer_add_literal(out, ",\"choices\":[");
}

static void patch(char *head, size_t id_at, size_t created_at, uint64_t id, int64_t created_s) {
    for (size_t i = 0; i < ID_DIGITS; i++)
        head[id_at + i] = "0123456789abcdef"[id >> (60 - 4 * i) & 15];
    for (size_t i = CREATED_DIGITS; i-- > 0; created_s /= 10)
        head[created_at + i] = (char)('0' + created_s % 10);
}

bt_status bt_openai_skeletons_init(struct bt_openai_skeletons *skeletons, const char *model,
                                   struct bt_error *err) {
    struct bt_text_buffer json = {0};
    *skeletons = (struct bt_openai_skeletons){0};
    bt_text_buffer_add_json(&json, model);
    bt_text_buffer_add(&json, "", 1);
    skeletons->model_json = json.data;
    struct bt_openai_skeleton *chat = &skeletons->chat, *completion = &skeletons->completion;
    if (!json.failed) {
        bt_text_buffer_add_literal(&chat->prefix, "data: ");
        add_head(&chat->prefix, BT_OPENAI_CHAT, true, json.data, &chat->id_at, &chat->created_at);
        bt_text_buffer_add_literal(&completion->prefix, "data: ");
        add_head(&completion->prefix, BT_OPENAI_COMPLETION, true, json.data, &completion->id_at,
                 &completion->created_at);
    }
    if (json.failed || chat->prefix.failed || completion->prefix.failed) {
        bt_openai_skeletons_fini(skeletons);
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the answers' skeletons");
    }
    return BT_OK;
}

void bt_openai_skeletons_fini(struct bt_openai_skeletons *skeletons) {
    bt_text_buffer_fini(&skeletons->chat.prefix);
    bt_text_buffer_fini(&skeletons->completion.prefix);
    free(skeletons->model_json);
    *skeletons = (struct bt_openai_skeletons){0};
}

static void add_prefix(struct bt_text_buffer *out, const struct bt_openai_answer *answer) {
    const struct bt_openai_skeleton *skeleton =
        answer->kind == BT_OPENAI_CHAT ? &answer->skeletons->chat : &answer->skeletons->completion;
    if (!bt_text_buffer_reserve(out, skeleton->prefix.n_bytes))
        return;
    char *at = out->data + out->n_bytes;
    bt_text_buffer_add(out, skeleton->prefix.data, skeleton->prefix.n_bytes);
    patch(at, skeleton->id_at, skeleton->created_at, answer->id, answer->created_s);
}

static const char *finish_json(enum bt_finish finish) {
    return finish == BT_FINISH_STOP     ? "\"stop\""
           : finish == BT_FINISH_LENGTH ? "\"length\""
                                        : "null";
}

static void add_usage(struct bt_text_buffer *out, uint64_t n_prompt, uint64_t n_generated) {
    bt_text_buffer_add_literal(out, "{\"prompt_tokens\":");
    bt_text_buffer_add_u64(out, n_prompt);
    bt_text_buffer_add_literal(out, ",\"completion_tokens\":");
    bt_text_buffer_add_u64(out, n_generated);
    bt_text_buffer_add_literal(out, ",\"total_tokens\":");
    bt_text_buffer_add_u64(out, n_prompt + n_generated);
    bt_text_buffer_add_literal(out, "}");
}

void bt_openai_write_chunk(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                           const struct bt_piece *piece) {
    add_prefix(out, answer);
    if (answer->kind != BT_OPENAI_CHAT)
        bt_text_buffer_add_literal(out, "{\"index\":0,\"text\":\"");
    else if (piece->index == 0)
        bt_text_buffer_add_literal(out,
                                   "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"");
    else
        bt_text_buffer_add_literal(out, "{\"index\":0,\"delta\":{\"content\":\"");
    bt_text_buffer_add_escaped(out, piece->text.data, piece->text.n_bytes);
    if (answer->kind == BT_OPENAI_CHAT)
        bt_text_buffer_add_literal(out, "\"},\"logprobs\":null,\"finish_reason\":");
    else
        bt_text_buffer_add_literal(out, "\",\"logprobs\":null,\"finish_reason\":");
    bt_text_buffer_add_string(out, finish_json(piece->finish));
    if (answer->return_token_ids) {
        bt_text_buffer_add_literal(out, ",\"token_ids\":[");
        bt_text_buffer_add_i64(out, piece->token);
        bt_text_buffer_add_literal(out, "]");
    }
    if (answer->return_logits_hash) {
        bt_text_buffer_add_literal(out, ",\"logits_hashes\":[\"");
        bt_text_buffer_add_hex64(out, piece->hash);
        bt_text_buffer_add_literal(out, "\"]");
    }
    bt_text_buffer_add_literal(out, "}]");
    if (answer->continuous_usage) {
        bt_text_buffer_add_literal(out, ",\"usage\":");
        add_usage(out, answer->n_prompt, piece->index + 1);
    } else if (answer->include_usage) {
        bt_text_buffer_add_literal(out, ",\"usage\":null");
    }
    bt_text_buffer_add_literal(out, "}\n\n");
}

void bt_openai_write_last_chunk(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                                uint64_t n_generated, struct bt_slice extra) {
    add_prefix(out, answer);
    bt_text_buffer_add_literal(out, "]");
    if (answer->include_usage) {
        bt_text_buffer_add_literal(out, ",\"usage\":");
        add_usage(out, answer->n_prompt, n_generated);
    }
    bt_text_buffer_add(out, extra.data, extra.n_bytes);
    bt_text_buffer_add_literal(out, "}\n\n");
}

static void add_ids(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                    const struct bt_openai_whole *whole) {
    if (answer->return_token_ids) {
        bt_text_buffer_add_literal(out, ",\"token_ids\":[");
        for (uint32_t i = 0; i < whole->n_generated; i++) {
            bt_text_buffer_add(out, ",", i > 0);
            bt_text_buffer_add_i64(out, whole->tokens[i]);
        }
        bt_text_buffer_add_literal(out, "]");
    }
    if (answer->return_logits_hash) {
        bt_text_buffer_add_literal(out, ",\"logits_hashes\":[");
        for (uint32_t i = 0; i < whole->n_generated; i++) {
            bt_text_buffer_add_string(out, i ? ",\"" : "\"");
            bt_text_buffer_add_hex64(out, whole->hashes[i]);
            bt_text_buffer_add_literal(out, "\"");
        }
        bt_text_buffer_add_literal(out, "]");
    }
}

void bt_openai_write_whole(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                           const struct bt_openai_whole *whole, struct bt_slice extra) {
    size_t id_at, created_at; /* in the whole buffer */
    bool chat = answer->kind == BT_OPENAI_CHAT;
    add_head(out, answer->kind, false, answer->skeletons->model_json, &id_at, &created_at);
    if (out->failed)
        return;
    patch(out->data, id_at, created_at, answer->id, answer->created_s);
    bt_text_buffer_add_string(
        out, chat ? "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\""
                  : "{\"index\":0,\"text\":\"");
    bt_text_buffer_add_escaped(out, whole->text.data, whole->text.n_bytes);
    bt_text_buffer_add_string(out, chat ? "\",\"refusal\":null},\"logprobs\":null"
                                        : "\",\"logprobs\":null");
    bt_text_buffer_add_literal(out, ",\"finish_reason\":");
    bt_text_buffer_add_string(out, finish_json(whole->finish));
    add_ids(out, answer, whole);
    bt_text_buffer_add_literal(out, "}],\"usage\":");
    add_usage(out, answer->n_prompt, whole->n_generated);
    bt_text_buffer_add(out, extra.data, extra.n_bytes);
    bt_text_buffer_add_literal(out, "}");
}

static const struct {
    int http_status;
    const char *type, *code;
} errors[] = {
    {400, "invalid_request_error", "invalid_value"},
    {401, "invalid_request_error", "invalid_api_key"},
    {403, "invalid_request_error", "insufficient_permissions"},
    {404, "invalid_request_error", "not_found"},
    {405, "invalid_request_error", "method_not_allowed"},
    {408, "invalid_request_error", "request_timeout"},
    {413, "invalid_request_error", "request_too_large"},
    {431, "invalid_request_error", "headers_too_large"},
    {429, "rate_limit_error", "rate_limit_exceeded"},
    {499, "cancelled_error", "cancelled"},
    {503, "service_unavailable_error", "service_unavailable"},
    {504, "timeout_error", "deadline_exceeded"},
    {500, "server_error", "internal_error"}, /* the last one: everything else */
};

void bt_openai_write_error(struct bt_text_buffer *out, int http_status, const char *message,
                           const char *param, const char *code) {
    size_t i = 0;
    while (i < sizeof errors / sizeof errors[0] - 1 && errors[i].http_status != http_status)
        i++;
    bt_text_buffer_add_literal(out, "{\"error\":{\"message\":");
    bt_text_buffer_add_json(out, message);
    bt_text_buffer_add_literal(out, ",\"type\":");
    bt_text_buffer_add_json(out, errors[i].type);
    bt_text_buffer_add_literal(out, ",\"param\":");
    if (param && *param)
        bt_text_buffer_add_json(out, param);
    else
        bt_text_buffer_add_literal(out, "null");
    bt_text_buffer_add_literal(out, ",\"code\":");
    bt_text_buffer_add_json(out, code ? code : errors[i].code);
    bt_text_buffer_add_literal(out, "}}");
}

/* Answers about the model, its tokenizer, and whether this router serves. */
#include "router/model_pages.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/text/detokenizer.h"
#include "router/prompt.h"
#include "router/shell.h"

static void reply(struct bt_http_call *call, int code, struct bt_text_buffer *body) {
    if (body->failed) {
        body->n_bytes = 0;
        code = 503;
    }
    bt_http_call_reply(call, code, "application/json", (struct bt_slice){body->data, body->n_bytes},
                       NULL);
    bt_text_buffer_fini(body);
}

static void reply_error(struct bt_http_call *call, const struct bt_error *err, const char *param,
                        const char *code) {
    struct bt_text_buffer body = {0};
    int http = bt_status_http(err->status);
    bt_openai_write_error(&body, http, err->text, param, code);
    reply(call, http, &body);
}

static uint32_t context_tokens(const struct bt_shell *shell) {
    uint32_t context = bt_router_core_context(shell->core);
    return context ? context : shell->text.context_tokens;
}

static void add_model(struct bt_text_buffer *out, const struct bt_shell *shell) {
    bt_text_buffer_add_literal(out, "{\"id\":");
    bt_text_buffer_add_json(out, shell->model);
    bt_text_buffer_printf(out,
                          ",\"object\":\"model\",\"created\":%" PRId64
                          ",\"owned_by\":\"baton\",\"max_model_len\":%" PRIu32 "}",
                          shell->started_s, context_tokens(shell));
}

void bt_model_on_list(void *arg, struct bt_http_call *call) {
    struct bt_text_buffer body = {0};
    bt_text_buffer_add_literal(&body, "{\"object\":\"list\",\"data\":[");
    add_model(&body, arg);
    bt_text_buffer_add_literal(&body, "]}\n");
    reply(call, 200, &body);
}

void bt_model_on_one(void *arg, struct bt_http_call *call) {
    struct bt_shell *shell = arg;
    struct bt_text_buffer body = {0};
    char id[BT_OPENAI_MODEL_BYTES] = "?";
    if (bt_http_call_path(call, strlen("/v1/models/"), id, sizeof id) &&
        !strcmp(id, shell->model)) {
        add_model(&body, shell);
        reply(call, 200, &body);
        return;
    }
    struct bt_error err;
    bt_fail(&err, BT_E_NOT_FOUND, "the model \"%.100s\" is not served here, \"%.80s\" is", id,
            shell->model);
    reply_error(call, &err, "model", "model_not_found");
}

static bt_status parse(struct bt_shell *shell, struct bt_http_call *call, enum bt_openai_kind kind,
                       struct bt_openai_request *request, struct bt_generate_fault *fault,
                       struct bt_error *err) {
    bool join = !shell->text.chat || !bt_chat_template_reads_parts(shell->text.chat);
    return bt_openai_request_parse(kind, bt_http_call_body(call),
                                   bt_tokenizer_size(shell->text.tokenizer), join, request, fault,
                                   err);
}

void bt_model_on_tokenize(void *arg, struct bt_http_call *call) {
    struct bt_shell *shell = arg;
    struct bt_openai_request request;
    struct bt_generate_fault fault;
    struct bt_prompt prompt;
    struct bt_error err;
    struct bt_text_buffer body = {0};
    bt_status status = parse(shell, call, BT_OPENAI_TOKENIZE, &request, &fault, &err);
    bool parsed = status == BT_OK;
    /* An empty text has no tokens; that is an answer here, not an error. */
    bool empty =
        parsed && request.prompts && request.prompts->is_text && !request.prompts->text.n_bytes;
    const struct bt_generate_check check = {&fault, &err};
    if (parsed && !empty)
        status = bt_prompt_make(&shell->text, shell->scratch, &request.generate, 0,
                                (int64_t)time(NULL), &prompt, &check);
    if (status == BT_OK) {
        uint32_t n = empty ? 0 : prompt.n_ids;
        bt_text_buffer_printf(&body, "{\"count\":%" PRIu32 ",\"max_model_len\":%" PRIu32, n,
                              context_tokens(shell));
        bt_text_buffer_add_literal(&body, ",\"tokens\":[");
        for (uint32_t i = 0; i < n; i++) {
            bt_text_buffer_add(&body, ",", i > 0);
            bt_text_buffer_add_i64(&body, prompt.ids[i]);
        }
        bt_text_buffer_add_literal(&body, "]}\n");
        if (!empty)
            bt_prompt_fini(&prompt);
    }
    if (parsed)
        bt_openai_request_fini(&request);
    if (status == BT_OK)
        reply(call, 200, &body);
    else
        reply_error(call, &err, fault.param, fault.code);
}

void bt_model_on_detokenize(void *arg, struct bt_http_call *call) {
    struct bt_shell *shell = arg;
    struct bt_openai_request request;
    struct bt_generate_fault fault;
    struct bt_error err;
    struct bt_text_buffer body = {0};
    if (parse(shell, call, BT_OPENAI_DETOKENIZE, &request, &fault, &err) != BT_OK) {
        reply_error(call, &err, fault.param, fault.code);
        return;
    }
    struct bt_detokenizer detokenizer;
    char text[BT_TOKEN_TEXT_BYTES];
    bt_detokenizer_init(&detokenizer, shell->text.tokenizer, false);
    bt_text_buffer_add_literal(&body, "{\"prompt\":\"");
    for (uint32_t i = 0; i < request.prompts->n_ids; i++)
        bt_text_buffer_add_escaped(
            &body, text, bt_detokenizer_push(&detokenizer, request.prompts->ids[i], text));
    bt_text_buffer_add_escaped(&body, text, bt_detokenizer_flush(&detokenizer, text));
    bt_text_buffer_add_literal(&body, "\"}\n");
    bt_openai_request_fini(&request);
    reply(call, 200, &body);
}

void bt_model_on_health(void *arg, struct bt_http_call *call) {
    (void)arg;
    struct bt_text_buffer body = {0};
    bt_text_buffer_add_literal(&body, "{\"status\":\"ok\"}\n");
    reply(call, 200, &body);
}

void bt_model_on_ready(void *arg, struct bt_http_call *call) {
    struct bt_shell *shell = arg;
    struct bt_error err;
    struct bt_text_buffer body = {0};
    if (bt_router_core_ready(shell->core) && !shell->draining) {
        bt_text_buffer_add_literal(&body, "{\"status\":\"ready\"}\n");
        reply(call, 200, &body);
        return;
    }
    bt_fail(&err, BT_E_UNAVAILABLE,
            shell->draining ? "this router is leaving"
                            : "not every worker that serving needs is attached");
    reply_error(call, &err, NULL, NULL);
}

void bt_model_on_version(void *arg, struct bt_http_call *call) {
    (void)arg;
    struct bt_text_buffer body = {0};
    bt_text_buffer_add_literal(&body, "{\"version\":\"" BT_VERSION "\"}\n");
    reply(call, 200, &body);
}

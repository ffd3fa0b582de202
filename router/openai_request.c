/* Reads the body of an OpenAI request: prompt, sampling, limits, and what is refused by name. */
#include "router/openai_request.h"

#include <stdlib.h>
#include <string.h>

#include "common/text/utf8.h"
#include "router/openai_choice_fields.h"
#include "router/openai_fields.h"
#include "router/openai_messages.h"
#include "router/openai_prompts.h"

/* Fields that would change the answer and that nobody here acts on: refused unless they say what
 * happens anyway. */
enum neutral {
    NEUTRAL_NONE,   /* null or absent only */
    NEUTRAL_FALSE,  /* false */
    NEUTRAL_ONE,    /* 1 */
    NEUTRAL_EMPTY,  /* an empty array, object or string */
    NEUTRAL_TRUE,   /* true */
    NEUTRAL_NO_TOOL /* "none", or "auto" where no tool is given */
};

static const struct {
    const char *name;
    enum neutral neutral;
} unsupported[] = {
    {"suffix", NEUTRAL_EMPTY},
    {"tools", NEUTRAL_EMPTY},
    {"functions", NEUTRAL_EMPTY},
    {"tool_choice", NEUTRAL_NO_TOOL},
    {"function_call", NEUTRAL_NO_TOOL},
    {"allowed_token_ids", NEUTRAL_NONE},
    {"bad_words", NEUTRAL_EMPTY},
    {"logits_processors", NEUTRAL_EMPTY},
    {"structured_outputs", NEUTRAL_NONE},
    {"guided_json", NEUTRAL_NONE},
    {"guided_regex", NEUTRAL_NONE},
    {"guided_choice", NEUTRAL_NONE},
    {"guided_grammar", NEUTRAL_NONE},
    {"truncate_prompt_tokens", NEUTRAL_NONE},
    {"use_beam_search", NEUTRAL_FALSE},
    {"length_penalty", NEUTRAL_ONE},
    {"continue_final_message", NEUTRAL_FALSE},
    {"chat_template", NEUTRAL_NONE},
    {"documents", NEUTRAL_EMPTY},
    {"prompt_embeds", NEUTRAL_NONE},
    {"kv_transfer_params", NEUTRAL_NONE},
    {"web_search_options", NEUTRAL_NONE},
    {"audio", NEUTRAL_NONE},
    {"detokenize", NEUTRAL_TRUE},
};

static bool is_neutral(const json_t *value, enum neutral neutral) {
    switch (neutral) {
    case NEUTRAL_FALSE:
        return json_is_false(value);
    case NEUTRAL_ONE:
        return json_is_number(value) && json_number_value(value) == 1;
    case NEUTRAL_EMPTY:
        return (json_is_array(value) && !json_array_size(value)) ||
               (json_is_object(value) && !json_object_size(value)) ||
               (json_is_string(value) && !json_string_length(value));
    case NEUTRAL_TRUE:
        return json_is_true(value);
    case NEUTRAL_NO_TOOL:
        return json_is_string(value) && (!strcmp(json_string_value(value), "none") ||
                                         !strcmp(json_string_value(value), "auto"));
    default:
        return false;
    }
}

static bt_status check_unsupported(const struct bt_generate_check *check, const json_t *root) {
    for (size_t i = 0; i < sizeof unsupported / sizeof unsupported[0]; i++) {
        const json_t *value = bt_openai_get(root, unsupported[i].name);
        if (!value || is_neutral(value, unsupported[i].neutral))
            continue;
        check->fault->code = "unsupported_parameter";
        return bt_generate_refuse(check, BT_E_UNSUPPORTED, unsupported[i].name,
                                  "%s is not supported with this value, and without it the answer "
                                  "would be another one",
                                  unsupported[i].name);
    }
    const json_t *format = bt_openai_get(root, "response_format");
    const json_t *type = bt_openai_get(format, "type");
    if (format && !(json_is_string(type) && !strcmp(json_string_value(type), "text")))
        return bt_openai_refuse_unsupported(check, "response_format",
                                            "response_format is supported with type \"text\" only");
    const json_t *modalities = bt_openai_get(root, "modalities");
    const json_t *only = json_array_get(modalities, 0);
    if (modalities && !(json_array_size(modalities) == 1 && json_is_string(only) &&
                        !strcmp(json_string_value(only), "text")))
        return bt_openai_refuse_unsupported(check, "modalities",
                                            "modalities is supported as [\"text\"] only");
    return BT_OK;
}

static bt_status read_stops(const struct bt_generate_check *check,
                            struct bt_openai_request *request) {
    const json_t *stop = bt_openai_get(request->root, "stop");
    if (!stop)
        return BT_OK;
    size_t n = json_is_array(stop) ? json_array_size(stop) : 1;
    if (!json_is_array(stop) && !json_is_string(stop))
        return bt_openai_refuse_type(check, "stop", stop, "a string or a list of strings");
    if (n > BT_STOP_STRINGS)
        return bt_generate_refuse(check, BT_E_INVALID, "stop",
                                  "stop has %zu strings, it may have at most %d", n,
                                  BT_STOP_STRINGS);
    for (size_t i = 0; i < n; i++) {
        const json_t *text = json_is_array(stop) ? json_array_get(stop, i) : stop;
        if (!json_is_string(text))
            return bt_generate_refuse(check, BT_E_INVALID, "stop",
                                      "stop[%zu] must be a string, not %s", i,
                                      bt_openai_type_name(text));
        size_t bytes = json_string_length(text);
        if (!bytes || bytes > BT_STOP_BYTES)
            return bt_generate_refuse(check, BT_E_INVALID, "stop",
                                      "stop[%zu] has %zu bytes, it must have 1 to %d", i, bytes,
                                      BT_STOP_BYTES);
        request->generate.stops[i] = (struct bt_slice){json_string_value(text), bytes};
    }
    request->generate.n_stops = n;
    return BT_OK;
}

static bt_status read_stop_tokens(const struct bt_generate_check *check, uint32_t vocab_tokens,
                                  struct bt_openai_request *request) {
    const json_t *list = bt_openai_get(request->root, "stop_token_ids");
    if (!list)
        return BT_OK;
    if (!json_is_array(list))
        return bt_openai_refuse_type(check, "stop_token_ids", list, "an array");
    if (json_array_size(list) > BT_STOP_TOKENS)
        return bt_generate_refuse(check, BT_E_INVALID, "stop_token_ids",
                                  "stop_token_ids has %zu members, it may have at most %d",
                                  json_array_size(list), BT_STOP_TOKENS);
    BT_TRY(bt_openai_ids(check, "stop_token_ids", list, vocab_tokens,
                         request->generate.sampling.stop_tokens));
    request->generate.sampling.n_stop_tokens = (uint8_t)json_array_size(list);
    return BT_OK;
}

static bt_status read_limits(const struct bt_generate_check *check,
                             struct bt_openai_request *request) {
    const json_t *root = request->root;
    struct bt_sampling *sampling = &request->generate.sampling;
    int64_t max = BT_OPENAI_COMPLETION_TOKENS, min = 0, seed = 0;
    bool given, newer;
    int64_t least = request->kind == BT_OPENAI_COMPLETION ? 0 : 1;
    BT_TRY(bt_openai_integer(check, root, "max_tokens", least, BT_OPENAI_MAX_TOKENS, &max, &given));
    BT_TRY(bt_openai_integer(check, root, "max_completion_tokens", 1, BT_OPENAI_MAX_TOKENS, &max,
                             &newer));
    request->generate.max_tokens_given = given || newer || request->kind == BT_OPENAI_COMPLETION;
    sampling->max_tokens = request->generate.max_tokens_given ? (uint32_t)max : 1;
    BT_TRY(bt_openai_integer(check, root, "min_tokens", 0,
                             request->generate.max_tokens_given ? max : BT_OPENAI_MAX_TOKENS, &min,
                             NULL));
    sampling->min_tokens = (uint32_t)min;
    BT_TRY(bt_openai_integer(check, root, "seed", INT64_MIN, INT64_MAX, &seed,
                             &request->generate.seed_given));
    sampling->seed = (uint64_t)seed;
    return bt_openai_bool(check, root, "ignore_eos", &sampling->ignore_eos, NULL);
}

static bt_status read_sampling(const struct bt_generate_check *check, uint32_t vocab_tokens,
                               struct bt_openai_request *request) {
    const json_t *root = request->root;
    struct bt_sampling *s = &request->generate.sampling;
    int64_t top_k = 0;
    BT_TRY(bt_openai_number(check, root, "temperature", 0, 2, false, &s->temperature));
    BT_TRY(bt_openai_number(check, root, "top_p", 0, 1, true, &s->top_p));
    BT_TRY(bt_openai_number(check, root, "min_p", 0, 1, false, &s->min_p));
    BT_TRY(bt_openai_integer(check, root, "top_k", -1, INT32_MAX, &top_k, NULL));
    s->top_k = top_k < 0 ? 0 : (int32_t)top_k;
    BT_TRY(bt_openai_number(check, root, "frequency_penalty", -2, 2, false, &s->frequency_penalty));
    BT_TRY(bt_openai_number(check, root, "presence_penalty", -2, 2, false, &s->presence_penalty));
    BT_TRY(
        bt_openai_number(check, root, "repetition_penalty", 0, 10, true, &s->repetition_penalty));
    BT_TRY(read_limits(check, request));
    BT_TRY(read_stop_tokens(check, vocab_tokens, request));
    return read_stops(check, request);
}

static bt_status read_output(const struct bt_generate_check *check,
                             struct bt_openai_request *request) {
    const json_t *root = request->root;
    BT_TRY(bt_openai_bool(check, root, "stream", &request->stream, NULL));
    BT_TRY(bt_openai_bool(check, root, "return_token_ids", &request->return_token_ids, NULL));
    BT_TRY(bt_openai_bool(check, root, "return_logits_hash", &request->return_logits_hash, NULL));
    request->generate.sampling.want_hash = request->return_logits_hash;
    BT_TRY(bt_openai_bool(check, root, "include_stop_str_in_output",
                          &request->generate.include_stop, NULL));
    BT_TRY(bt_openai_bool(check, root, "skip_special_tokens",
                          &request->generate.skip_special_tokens, NULL));
    const json_t *options = bt_openai_get(root, "stream_options");
    if (options && !json_is_object(options))
        return bt_openai_refuse_type(check, "stream_options", options, "an object");
    if (options && !request->stream)
        return bt_generate_refuse(check, BT_E_INVALID, "stream_options",
                                  "stream_options is allowed with stream: true only");
    BT_TRY(bt_openai_bool(check, options, "include_usage", &request->include_usage, NULL));
    BT_TRY(
        bt_openai_bool(check, options, "continuous_usage_stats", &request->continuous_usage, NULL));
    const char *salt = "";
    BT_TRY(bt_openai_string(check, root, "cache_salt", &salt));
    if (strlen(salt) >= BT_NAME_BYTES)
        return bt_generate_refuse(check, BT_E_INVALID, "cache_salt",
                                  "cache_salt has %zu bytes, it may have at most %d", strlen(salt),
                                  BT_NAME_BYTES - 1);
    memcpy(request->generate.tenant, salt, strlen(salt) + 1);
    return BT_OK;
}

static bt_status read_messages(const struct bt_generate_check *check, bool join_parts,
                               struct bt_openai_request *request) {
    json_t *messages = json_object_get(request->root, "messages");
    BT_TRY(bt_openai_messages_check(check, messages, join_parts));
    request->generate.messages = messages;
    BT_TRY(bt_openai_bool(check, request->root, "add_generation_prompt",
                          &request->generate.add_generation_prompt, NULL));
    const json_t *vars = bt_openai_get(request->root, "chat_template_kwargs");
    if (vars && !json_is_object(vars))
        return bt_openai_refuse_type(check, "chat_template_kwargs", vars, "an object");
    request->generate.vars = vars;
    return BT_OK;
}

static bt_status read_all(const struct bt_generate_check *check, uint32_t vocab_tokens,
                          bool join_parts, struct bt_openai_request *request) {
    const json_t *root = request->root;
    BT_TRY(bt_openai_string(check, root, "model", &request->generate.model));
    BT_TRY(bt_openai_bool(check, root, "add_special_tokens", &request->generate.add_special_tokens,
                          NULL));
    if (request->kind == BT_OPENAI_CHAT || request->kind == BT_OPENAI_COMPLETION) {
        BT_TRY(check_unsupported(check, root));
        BT_TRY(read_sampling(check, vocab_tokens, request));
        BT_TRY(read_output(check, request));
    }
    bool chat = request->kind == BT_OPENAI_CHAT ||
                (request->kind == BT_OPENAI_TOKENIZE && bt_openai_get(root, "messages"));
    if (chat)
        BT_TRY(read_messages(check, join_parts, request));
    else
        BT_TRY(bt_openai_prompts_read(check,
                                      request->kind == BT_OPENAI_DETOKENIZE ? "tokens" : "prompt",
                                      vocab_tokens, request));
    if (request->kind == BT_OPENAI_CHAT || request->kind == BT_OPENAI_COMPLETION)
        return bt_openai_choice_fields_read(check, vocab_tokens, request);
    return BT_OK;
}

bt_status bt_openai_request_parse(enum bt_openai_kind kind, struct bt_slice body,
                                  uint32_t vocab_tokens, bool join_parts,
                                  struct bt_openai_request *request,
                                  struct bt_generate_fault *fault, struct bt_error *err) {
    const struct bt_generate_check check = {fault, err};
    json_error_t why;
    *fault = (struct bt_generate_fault){0};
    *request = (struct bt_openai_request){.kind = kind};
    bt_generate_request_init(&request->generate);
    bool utf8 = bt_utf8_is_valid(body.data, body.n_bytes);
    if (utf8)
        request->root =
            json_loadb(body.n_bytes ? body.data : "", body.n_bytes, JSON_REJECT_DUPLICATES, &why);
    bt_status status;
    if (!utf8)
        status = bt_generate_refuse(&check, BT_E_INVALID, "", "the body is not valid UTF-8");
    else if (!request->root)
        status = bt_generate_refuse(&check, BT_E_INVALID, "", "the body is not JSON: %s (line %d)",
                                    why.text, why.line);
    else if (!json_is_object(request->root))
        status =
            bt_generate_refuse(&check, BT_E_INVALID, "", "the body must be a JSON object, not %s",
                               bt_openai_type_name(request->root));
    else
        status = read_all(&check, vocab_tokens, join_parts, request);
    if (status < 0)
        bt_openai_request_fini(request);
    return status;
}

void bt_openai_request_fini(struct bt_openai_request *request) {
    free(request->prompts);
    free(request->ids);
    free(request->bias);
    json_decref(request->root);
    *request = (struct bt_openai_request){0};
}

/* Unpacks the requests of the public service, and checks their shape. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/rpc/inference_wire.h"
#include "proto/inference.pb-c.h"

/* Where a check failed. */
struct check {
    char *field; /* BT_INFERENCE_FIELD_BYTES */
    struct bt_error *err;
};

static void name_field(const struct check *check, const char *field) {
    snprintf(check->field, BT_INFERENCE_FIELD_BYTES, "%s", field);
}

static void *arena_alloc(void *arena, size_t n_bytes) {
    return bt_wire_arena_alloc(arena, n_bytes);
}

static void arena_free(void *arena, void *p) {
    (void)arena; /* all at once, at the reset */
    (void)p;
}

static bt_status no_memory(const struct check *check) {
    return bt_fail(check->err, BT_E_NO_MEMORY, "no memory to unpack a request");
}

static bt_status unpack(const ProtobufCMessageDescriptor *type, const uint8_t *bytes,
                        size_t n_bytes, struct bt_wire_arena *arena, const struct check *check,
                        ProtobufCMessage **out) {
    ProtobufCAllocator allocator = {arena_alloc, arena_free, arena};
    bt_wire_arena_reset(arena);
    check->field[0] = 0;
    *out = protobuf_c_message_unpack(type, &allocator, n_bytes, bytes);
    if (*out)
        return BT_OK;
    if (arena->over)
        return bt_fail(check->err, BT_E_TOO_LARGE,
                       "the message of %zu bytes takes more than %zu bytes to unpack, the bound",
                       n_bytes, arena->bytes_max);
    return bt_fail(check->err, BT_E_INVALID, "the message of %zu bytes is no well-formed %s",
                   n_bytes, type->short_name);
}

static struct bt_inference_text text_of(ProtobufCBinaryData text) {
    return (struct bt_inference_text){text.len ? (const char *)text.data : "", text.len};
}

static bt_status check_text(const char *field, ProtobufCBinaryData text, size_t max,
                            const struct check *check) {
    if (text.len <= max && (!text.len || !memchr(text.data, 0, text.len)))
        return BT_OK;
    name_field(check, field);
    if (text.len > max)
        return bt_fail(check->err, BT_E_INVALID, "%s has %zu bytes, it may have at most %zu", field,
                       text.len, max);
    return bt_fail(check->err, BT_E_INVALID, "%s has a NUL byte", field);
}

static bt_status check_count(const char *field, size_t n, size_t max, const struct check *check) {
    if (n <= max)
        return BT_OK;
    name_field(check, field);
    return bt_fail(check->err, BT_E_INVALID, "%s has %zu members, it may have at most %zu", field,
                   n, max);
}

static bt_status check_id(const char *field, size_t i, uint32_t id, const struct check *check) {
    if (id <= INT32_MAX)
        return BT_OK;
    name_field(check, field);
    return bt_fail(check->err, BT_E_INVALID,
                   "%s[%zu] is %" PRIu32 ", a token id is at most %" PRId32, field, i, id,
                   INT32_MAX);
}

/* ---- the prompt ---- */

static bt_status read_ids(const Baton__V1__TokenIds *tokens, const struct check *check,
                          struct bt_inference_prompt *out) {
    out->kind = BT_INFERENCE_TOKENS;
    BT_TRY(check_count("tokens.ids", tokens->n_ids, UINT32_MAX, check));
    for (size_t i = 0; i < tokens->n_ids; i++)
        BT_TRY(check_id("tokens.ids", i, tokens->ids[i], check));
    out->ids = (const int32_t *)tokens->ids;
    out->n_ids = (uint32_t)tokens->n_ids;
    return BT_OK;
}

static bt_status read_chat(const Baton__V1__Chat *chat, struct bt_wire_arena *arena,
                           const struct check *check, struct bt_inference_prompt *out) {
    out->kind = BT_INFERENCE_CHAT;
    BT_TRY(check_count("chat.messages", chat->n_messages, BT_INFERENCE_MESSAGES, check));
    struct bt_inference_message *messages =
        bt_wire_arena_alloc(arena, chat->n_messages * sizeof *messages + 1);
    if (!messages)
        return no_memory(check);
    for (size_t i = 0; i < chat->n_messages; i++) {
        messages[i].role = text_of(chat->messages[i]->role);
        messages[i].content = text_of(chat->messages[i]->content);
    }
    out->messages = messages;
    out->n_messages = (uint32_t)chat->n_messages;
    out->add_generation_prompt =
        chat->add_generation_prompt_opt_case !=
            BATON__V1__CHAT__ADD_GENERATION_PROMPT_OPT_ADD_GENERATION_PROMPT ||
        chat->add_generation_prompt;
    return BT_OK;
}

static bt_status no_prompt(const char *what, const struct check *check) {
    name_field(check, "prompt");
    return bt_fail(check->err, BT_E_INVALID, "prompt is missing: give %s", what);
}

/* ---- sampling ---- */

static bt_status read_stops(const Baton__V1__SamplingParams *s, const struct check *check,
                            struct bt_inference_generate *out) {
    BT_TRY(check_count("sampling.stop", s->n_stop, BT_STOP_STRINGS, check));
    out->n_stops = s->n_stop;
    for (size_t i = 0; i < s->n_stop; i++) {
        size_t n = s->stop[i].len;
        out->stops[i] = text_of(s->stop[i]);
        if (n && n <= BT_STOP_BYTES)
            continue;
        name_field(check, "sampling.stop");
        return bt_fail(check->err, BT_E_INVALID,
                       "sampling.stop[%zu] has %zu bytes, it must have 1 to %d", i, n,
                       BT_STOP_BYTES);
    }
    BT_TRY(check_count("sampling.stop_token_ids", s->n_stop_token_ids, BT_STOP_TOKENS, check));
    out->sampling.n_stop_tokens = (uint8_t)s->n_stop_token_ids;
    for (size_t i = 0; i < s->n_stop_token_ids; i++) {
        BT_TRY(check_id("sampling.stop_token_ids", i, s->stop_token_ids[i], check));
        out->sampling.stop_tokens[i] = (int32_t)s->stop_token_ids[i];
    }
    return BT_OK;
}

static int compare_bias(const void *a, const void *b) {
    const struct bt_logit_bias *x = a, *y = b;
    return (x->token > y->token) - (x->token < y->token);
}

static bt_status read_bias(const Baton__V1__SamplingParams *s, struct bt_wire_arena *arena,
                           const struct check *check, struct bt_sampling *out) {
    BT_TRY(check_count("sampling.logit_bias", s->n_logit_bias, BT_LOGIT_BIASES, check));
    struct bt_logit_bias *bias = bt_wire_arena_alloc(arena, s->n_logit_bias * sizeof *bias + 1);
    if (!bias)
        return no_memory(check);
    for (size_t i = 0; i < s->n_logit_bias; i++) {
        BT_TRY(check_id("sampling.logit_bias", i, s->logit_bias[i]->token, check));
        bias[i] = (struct bt_logit_bias){(int32_t)s->logit_bias[i]->token, s->logit_bias[i]->bias};
    }
    if (s->n_logit_bias)
        qsort(bias, s->n_logit_bias, sizeof *bias, compare_bias);
    out->bias = s->n_logit_bias ? bias : NULL;
    out->n_bias = (uint16_t)s->n_logit_bias;
    return BT_OK;
}

/* A count of likeliest tokens, as bt_sampling has it: 1 + k. */
static bt_status read_top(const char *field, bool given, uint32_t k, const struct check *check,
                          uint8_t *out) {
    *out = given && k <= BT_TOP_LOGPROBS ? (uint8_t)(k + 1) : 0;
    if (!given || k <= BT_TOP_LOGPROBS)
        return BT_OK;
    name_field(check, field);
    return bt_fail(check->err, BT_E_INVALID, "%s is %" PRIu32 ", it may be at most %d", field, k,
                   BT_TOP_LOGPROBS);
}

static bt_status read_sampling(const Baton__V1__SamplingParams *s, struct bt_wire_arena *arena,
                               const struct check *check, struct bt_inference_generate *out) {
    struct bt_sampling *to = &out->sampling;
    if (s->temperature_opt_case == BATON__V1__SAMPLING_PARAMS__TEMPERATURE_OPT_TEMPERATURE)
        to->temperature = s->temperature;
    if (s->top_p_opt_case == BATON__V1__SAMPLING_PARAMS__TOP_P_OPT_TOP_P)
        to->top_p = s->top_p;
    if (s->repetition_penalty_opt_case ==
        BATON__V1__SAMPLING_PARAMS__REPETITION_PENALTY_OPT_REPETITION_PENALTY)
        to->repetition_penalty = s->repetition_penalty;
    to->top_k = s->top_k > INT32_MAX ? 0 : (int32_t)s->top_k; /* more than any vocabulary: off */
    to->min_p = s->min_p;
    to->frequency_penalty = s->frequency_penalty;
    to->presence_penalty = s->presence_penalty;
    out->seed_given = s->seed_opt_case == BATON__V1__SAMPLING_PARAMS__SEED_OPT_SEED;
    to->seed = out->seed_given ? s->seed : 0;
    out->max_tokens_given =
        s->max_tokens_opt_case == BATON__V1__SAMPLING_PARAMS__MAX_TOKENS_OPT_MAX_TOKENS;
    to->max_tokens = out->max_tokens_given ? s->max_tokens : 1;
    to->min_tokens = s->min_tokens;
    to->ignore_eos = s->ignore_eos;
    BT_TRY(read_top("sampling.logprobs",
                    s->logprobs_opt_case == BATON__V1__SAMPLING_PARAMS__LOGPROBS_OPT_LOGPROBS,
                    s->logprobs, check, &to->logprobs));
    BT_TRY(read_top("sampling.prompt_logprobs",
                    s->prompt_logprobs_opt_case ==
                        BATON__V1__SAMPLING_PARAMS__PROMPT_LOGPROBS_OPT_PROMPT_LOGPROBS,
                    s->prompt_logprobs, check, &to->prompt_logprobs));
    BT_TRY(read_stops(s, check, out));
    return read_bias(s, arena, check, to);
}

/* ---- the messages ---- */

static bt_status read_generate_prompt(const Baton__V1__GenerateRequest *request,
                                      struct bt_wire_arena *arena, const struct check *check,
                                      struct bt_inference_prompt *out) {
    out->add_special_tokens =
        request->add_special_tokens_opt_case !=
            BATON__V1__GENERATE_REQUEST__ADD_SPECIAL_TOKENS_OPT_ADD_SPECIAL_TOKENS ||
        request->add_special_tokens;
    switch (request->prompt_case) {
    case BATON__V1__GENERATE_REQUEST__PROMPT_TEXT:
        out->kind = BT_INFERENCE_TEXT;
        out->text = text_of(request->text);
        return BT_OK;
    case BATON__V1__GENERATE_REQUEST__PROMPT_TOKENS:
        return read_ids(request->tokens, check, out);
    case BATON__V1__GENERATE_REQUEST__PROMPT_CHAT:
        return read_chat(request->chat, arena, check, out);
    default:
        return no_prompt("text, tokens or chat", check);
    }
}

bt_status bt_inference_read_generate(const uint8_t *bytes, size_t n_bytes,
                                     struct bt_wire_arena *arena, struct bt_inference_generate *out,
                                     char field[BT_INFERENCE_FIELD_BYTES], struct bt_error *err) {
    const struct check check = {field, err};
    ProtobufCMessage *message;
    *out = (struct bt_inference_generate){
        .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .max_tokens = 1}};
    BT_TRY(
        unpack(&baton__v1__generate_request__descriptor, bytes, n_bytes, arena, &check, &message));
    const Baton__V1__GenerateRequest *request = (const Baton__V1__GenerateRequest *)message;
    BT_TRY(check_text("model", request->model, BT_INFERENCE_MODEL_BYTES, &check));
    BT_TRY(check_text("cache_salt", request->cache_salt, BT_NAME_BYTES - 1, &check));
    BT_TRY(read_generate_prompt(request, arena, &check, &out->prompt));
    out->model = text_of(request->model);
    out->cache_salt = text_of(request->cache_salt);
    out->n = request->n_opt_case == BATON__V1__GENERATE_REQUEST__N_OPT_N ? request->n : 1;
    out->skip_special_tokens =
        request->skip_special_tokens_opt_case !=
            BATON__V1__GENERATE_REQUEST__SKIP_SPECIAL_TOKENS_OPT_SKIP_SPECIAL_TOKENS ||
        request->skip_special_tokens;
    out->include_stop_text = request->include_stop_text;
    out->sampling.want_hash = request->return_logits_hash;
    return request->sampling ? read_sampling(request->sampling, arena, &check, out) : BT_OK;
}

bt_status bt_inference_read_tokenize(const uint8_t *bytes, size_t n_bytes,
                                     struct bt_wire_arena *arena, struct bt_inference_tokenize *out,
                                     char field[BT_INFERENCE_FIELD_BYTES], struct bt_error *err) {
    const struct check check = {field, err};
    ProtobufCMessage *message;
    *out = (struct bt_inference_tokenize){0};
    BT_TRY(
        unpack(&baton__v1__tokenize_request__descriptor, bytes, n_bytes, arena, &check, &message));
    const Baton__V1__TokenizeRequest *request = (const Baton__V1__TokenizeRequest *)message;
    BT_TRY(check_text("model", request->model, BT_INFERENCE_MODEL_BYTES, &check));
    out->model = text_of(request->model);
    out->prompt.add_special_tokens =
        request->add_special_tokens_opt_case !=
            BATON__V1__TOKENIZE_REQUEST__ADD_SPECIAL_TOKENS_OPT_ADD_SPECIAL_TOKENS ||
        request->add_special_tokens;
    switch (request->prompt_case) {
    case BATON__V1__TOKENIZE_REQUEST__PROMPT_TEXT:
        out->prompt.kind = BT_INFERENCE_TEXT;
        out->prompt.text = text_of(request->text);
        return BT_OK;
    case BATON__V1__TOKENIZE_REQUEST__PROMPT_CHAT:
        return read_chat(request->chat, arena, &check, &out->prompt);
    default:
        return no_prompt("text or chat", &check);
    }
}

/* Checks what a client wants generated, whichever door it came through. */
#include "router/generate_request.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

bt_status bt_generate_refuse(const struct bt_generate_check *check, bt_status status,
                             const char *param, const char *format, ...) {
    snprintf(check->fault->param, sizeof check->fault->param, "%s", param);
    if (check->err) {
        va_list args;
        va_start(args, format);
        vsnprintf(check->err->text, sizeof check->err->text, format, args);
        va_end(args);
        check->err->status = status;
    }
    return status;
}

void bt_generate_request_init(struct bt_generate_request *request) {
    *request = (struct bt_generate_request){
        .add_generation_prompt = true,
        .add_special_tokens = true,
        .n = 1,
        .skip_special_tokens = true,
        .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .max_tokens = 1},
    };
}

uint32_t bt_generate_request_choices(const struct bt_generate_request *request) {
    return (request->messages ? 1 : request->n_prompts) * request->n;
}

/* A NaN is outside every range. */
static bt_status check_numbers(const struct bt_sampling *s, const struct bt_generate_check *check) {
    const struct {
        const char *name;
        double value, min, max;
        bool open; /* min itself is not in the range */
    } rows[] = {
        {"temperature", (double)s->temperature, 0, 2, false},
        {"top_p", (double)s->top_p, 0, 1, true},
        {"min_p", (double)s->min_p, 0, 1, false},
        {"top_k", s->top_k, 0, INT32_MAX, false},
        {"frequency_penalty", (double)s->frequency_penalty, -2, 2, false},
        {"presence_penalty", (double)s->presence_penalty, -2, 2, false},
        {"repetition_penalty", (double)s->repetition_penalty, 0, 10, true},
        {"max_tokens", s->max_tokens, 1, UINT32_MAX, false},
        {"logprobs", s->logprobs, 0, 1 + BT_TOP_LOGPROBS, false},
        {"prompt_logprobs", s->prompt_logprobs, 0, 1 + BT_TOP_LOGPROBS, false},
        {"stop_token_ids", s->n_stop_tokens, 0, BT_STOP_TOKENS, false},
        {"logit_bias", s->n_bias, 0, BT_LOGIT_BIASES, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        double value = rows[i].value, min = rows[i].min;
        if (!(rows[i].open ? value > min : value >= min) || !(value <= rows[i].max))
            return bt_generate_refuse(check, BT_E_INVALID, rows[i].name,
                                      "%s is %g, it must be %s %g and at most %g", rows[i].name,
                                      value, rows[i].open ? "above" : "at least", min, rows[i].max);
    }
    return BT_OK;
}

static bt_status check_id(const char *name, size_t i, int32_t id, uint32_t vocab_tokens,
                          const struct bt_generate_check *check) {
    if (id >= 0 && (uint32_t)id < vocab_tokens)
        return BT_OK;
    return bt_generate_refuse(check, BT_E_INVALID, name,
                              "%s[%zu] is %" PRId32 ", a token id must be from 0 to %" PRIu32, name,
                              i, id, vocab_tokens - 1);
}

static bt_status check_ids(const struct bt_sampling *s, uint32_t vocab_tokens,
                           const struct bt_generate_check *check) {
    for (size_t i = 0; i < s->n_stop_tokens; i++)
        BT_TRY(check_id("stop_token_ids", i, s->stop_tokens[i], vocab_tokens, check));
    for (size_t i = 0; i < s->n_bias; i++) {
        const struct bt_logit_bias *bias = &s->bias[i];
        BT_TRY(check_id("logit_bias", i, bias->token, vocab_tokens, check));
        if (!(bias->bias >= -100 && bias->bias <= 100))
            return bt_generate_refuse(check, BT_E_INVALID, "logit_bias",
                                      "logit_bias of token %" PRId32
                                      " is %g, it must be from -100 to 100",
                                      bias->token, (double)bias->bias);
        if (i && s->bias[i - 1].token >= bias->token)
            return bt_generate_refuse(check, BT_E_INVALID, "logit_bias",
                                      "logit_bias has token %" PRId32 " twice or out of order",
                                      bias->token);
    }
    return BT_OK;
}

static bt_status check_prompts(const struct bt_generate_request *request, uint32_t vocab_tokens,
                               const struct bt_generate_check *check) {
    if (request->messages)
        return BT_OK;
    if (!request->n_prompts)
        return bt_generate_refuse(check, BT_E_INVALID, "prompt", "prompt is missing");
    for (uint32_t p = 0; p < request->n_prompts; p++) {
        const struct bt_generate_prompt *prompt = &request->prompts[p];
        if (!prompt->is_text && !prompt->n_ids)
            return bt_generate_refuse(check, BT_E_INVALID, "prompt",
                                      "prompt is empty, it must have at least one token");
        for (uint32_t i = 0; !prompt->is_text && i < prompt->n_ids; i++)
            BT_TRY(check_id("prompt", i, prompt->ids[i], vocab_tokens, check));
    }
    return BT_OK;
}

bt_status bt_generate_request_check(const struct bt_generate_request *request,
                                    uint32_t vocab_tokens, const struct bt_generate_check *check) {
    BT_TRY(check_prompts(request, vocab_tokens, check));
    uint64_t n_prompts = request->messages ? 1 : request->n_prompts;
    if (!request->n || n_prompts * request->n > BT_CHOICES)
        return bt_generate_refuse(check, BT_E_INVALID, "n",
                                  "%" PRIu64 " prompts with n %" PRIu32 " are %" PRIu64
                                  " choices, one request may have 1 to %d",
                                  n_prompts, request->n, n_prompts * request->n, BT_CHOICES);
    BT_TRY(check_numbers(&request->sampling, check));
    if (request->max_tokens_given && request->sampling.min_tokens > request->sampling.max_tokens)
        return bt_generate_refuse(check, BT_E_INVALID, "min_tokens",
                                  "min_tokens is %" PRIu32 ", more than max_tokens %" PRIu32,
                                  request->sampling.min_tokens, request->sampling.max_tokens);
    if (request->n_stops > BT_STOP_STRINGS)
        return bt_generate_refuse(check, BT_E_INVALID, "stop",
                                  "stop has %zu strings, it may have at most %d", request->n_stops,
                                  BT_STOP_STRINGS);
    return check_ids(&request->sampling, vocab_tokens, check);
}

/* Reads how many answers an OpenAI request wants and what is to be told of their tokens. */
#include "router/openai_choice_fields.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- n, best_of ---- */

static bt_status read_n(const struct bt_generate_check *check, struct bt_openai_request *request) {
    const json_t *root = request->root;
    int64_t n = 1, best_of;
    bool given;
    BT_TRY(bt_openai_integer(check, root, "n", 1, BT_CHOICES, &n, NULL));
    best_of = n;
    BT_TRY(bt_openai_integer(check, root, "best_of", 1, BT_CHOICES, &best_of, &given));
    if (given && request->kind == BT_OPENAI_CHAT && best_of != n)
        return bt_openai_refuse_unsupported(check, "best_of",
                                            "best_of is a field of /v1/completions only");
    if (best_of < n)
        return bt_generate_refuse(check, BT_E_INVALID, "best_of",
                                  "best_of is %" PRId64 ", it must be at least n, %" PRId64,
                                  best_of, n);
    if (best_of > n && request->stream)
        return bt_generate_refuse(check, BT_E_INVALID, "best_of",
                                  "best_of is allowed without stream only: the best is known when "
                                  "all are complete");
    uint64_t n_prompts = request->prompts ? request->generate.n_prompts : 1;
    if (n_prompts * (uint64_t)best_of > BT_CHOICES)
        return bt_generate_refuse(check, BT_E_INVALID, given ? "best_of" : "n",
                                  "%" PRIu64 " prompts times %" PRId64 " choices are %" PRIu64
                                  ", one request may have at most %d",
                                  n_prompts, best_of, n_prompts * (uint64_t)best_of, BT_CHOICES);
    request->n_shown = (uint32_t)n;
    request->generate.n = (uint32_t)best_of;
    return BT_OK;
}

/* ---- logprobs: 0 is none, 1 + k the token's own and the k likeliest ---- */

static bt_status read_count(const struct bt_generate_check *check, const json_t *root,
                            const char *name, uint8_t *out) {
    int64_t n = 0;
    bool given = false;
    if (!json_is_false(bt_openai_get(root, name)))
        BT_TRY(bt_openai_integer(check, root, name, 0, BT_TOP_LOGPROBS, &n, &given));
    *out = given ? (uint8_t)(1 + n) : 0;
    return BT_OK;
}

static bt_status read_chat_logprobs(const struct bt_generate_check *check,
                                    struct bt_openai_request *request) {
    const json_t *root = request->root;
    bool wanted = false;
    int64_t n = 0;
    BT_TRY(bt_openai_bool(check, root, "logprobs", &wanted, NULL));
    BT_TRY(bt_openai_integer(check, root, "top_logprobs", 0, BT_TOP_LOGPROBS, &n, NULL));
    if (n && !wanted)
        return bt_generate_refuse(check, BT_E_INVALID, "top_logprobs",
                                  "top_logprobs is allowed with logprobs: true only");
    request->logprobs = wanted ? (uint8_t)(1 + n) : 0;
    return BT_OK;
}

static bt_status read_text_logprobs(const struct bt_generate_check *check,
                                    struct bt_openai_request *request) {
    uint8_t top;
    BT_TRY(read_count(check, request->root, "top_logprobs", &top));
    if (top > 1)
        return bt_openai_refuse_unsupported(
            check, "top_logprobs",
            "top_logprobs is a field of /v1/chat/completions; here logprobs is their number");
    return read_count(check, request->root, "logprobs", &request->logprobs);
}

static bt_status read_logprobs(const struct bt_generate_check *check,
                               struct bt_openai_request *request) {
    struct bt_sampling *sampling = &request->generate.sampling;
    if (request->kind == BT_OPENAI_CHAT)
        BT_TRY(read_chat_logprobs(check, request));
    else
        BT_TRY(read_text_logprobs(check, request));
    BT_TRY(read_count(check, request->root, "prompt_logprobs", &request->prompt_logprobs));
    if (request->prompt_logprobs && request->stream)
        return bt_generate_refuse(check, BT_E_INVALID, "prompt_logprobs",
                                  "prompt_logprobs is allowed without stream only; echo with "
                                  "logprobs streams them");
    sampling->logprobs = request->logprobs;
    /* The best are told by their logprobs. */
    if (request->n_shown < request->generate.n && !sampling->logprobs)
        sampling->logprobs = 1;
    sampling->prompt_logprobs = request->prompt_logprobs;
    if (request->echo && request->logprobs > sampling->prompt_logprobs)
        sampling->prompt_logprobs = request->logprobs;
    return BT_OK;
}

/* Of a completion that shows its prompt, or scores it, nothing may be generated. */
static bt_status read_prompt_only(const struct bt_generate_check *check,
                                  struct bt_openai_request *request) {
    struct bt_sampling *sampling = &request->generate.sampling;
    if (sampling->max_tokens)
        return BT_OK;
    if (!request->echo && !request->prompt_logprobs)
        return bt_generate_refuse(
            check, BT_E_INVALID, "max_tokens",
            "max_tokens is 0, which is allowed with echo or prompt_logprobs only");
    request->generate.prompt_only = true;
    sampling->max_tokens = 1;
    sampling->min_tokens = 0;
    return BT_OK;
}

/* ---- logit_bias ---- */

static bool parse_id(const char *text, uint32_t vocab_tokens, int32_t *out) {
    size_t n = strspn(text, "0123456789");
    if (!n || n > 9 || text[n] || (n > 1 && text[0] == '0'))
        return false;
    long id = strtol(text, NULL, 10);
    *out = (int32_t)id;
    return (uint32_t)id < vocab_tokens;
}

static int by_token(const void *a, const void *b) {
    const struct bt_logit_bias *x = a, *y = b;
    return (x->token > y->token) - (x->token < y->token);
}

static bt_status read_bias(const struct bt_generate_check *check, uint32_t vocab_tokens,
                           struct bt_openai_request *request) {
    const json_t *map = bt_openai_get(request->root, "logit_bias");
    if (!map)
        return BT_OK;
    if (!json_is_object(map))
        return bt_openai_refuse_type(check, "logit_bias", map, "an object of token ids");
    size_t n = json_object_size(map), i = 0;
    if (n > BT_LOGIT_BIASES)
        return bt_generate_refuse(check, BT_E_INVALID, "logit_bias",
                                  "logit_bias has %zu tokens, it may have at most %d", n,
                                  BT_LOGIT_BIASES);
    if (!n)
        return BT_OK;
    request->bias = calloc(n, sizeof *request->bias);
    if (!request->bias)
        return bt_generate_refuse(check, BT_E_NO_MEMORY, "logit_bias",
                                  "out of memory for logit_bias");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)map, key, value) {
        if (!parse_id(key, vocab_tokens, &request->bias[i].token))
            return bt_generate_refuse(check, BT_E_INVALID, "logit_bias",
                                      "logit_bias names \"%.40s\", a token id must be from 0 to "
                                      "%" PRIu32,
                                      key, vocab_tokens - 1);
        double bias = json_number_value(value);
        if (!json_is_number(value) || !(bias >= -100 && bias <= 100))
            return bt_generate_refuse(check, BT_E_INVALID, "logit_bias",
                                      "logit_bias of token %s must be a number from -100 to 100",
                                      key);
        request->bias[i++].bias = (float)bias;
    }
    qsort(request->bias, n, sizeof *request->bias, by_token);
    request->generate.sampling.bias = request->bias;
    request->generate.sampling.n_bias = (uint16_t)n;
    return BT_OK;
}

bt_status bt_openai_choice_fields_read(const struct bt_generate_check *check, uint32_t vocab_tokens,
                                       struct bt_openai_request *request) {
    BT_TRY(bt_openai_bool(check, request->root, "echo", &request->echo, NULL));
    if (request->echo && request->kind == BT_OPENAI_CHAT)
        return bt_openai_refuse_unsupported(check, "echo",
                                            "echo is a field of /v1/completions only");
    BT_TRY(read_n(check, request));
    BT_TRY(read_logprobs(check, request));
    BT_TRY(read_prompt_only(check, request));
    request->generate.keep_prompts = request->echo || request->prompt_logprobs;
    return read_bias(check, vocab_tokens, request);
}

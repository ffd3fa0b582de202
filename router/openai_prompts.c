/* Reads the prompts of an OpenAI request: a string, a list of token ids, or a list of either. */
#include "router/openai_prompts.h"

#include <stdlib.h>

/* What the elements of `prompt` are: prompts of their own, or the ids of one. */
static bool is_list_of_prompts(const json_t *prompt) {
    const json_t *first = json_array_get(prompt, 0);
    return json_is_string(first) || json_is_array(first);
}

static bt_status check_one(const struct bt_generate_check *check, const char *where,
                           const json_t *prompt, const struct bt_openai_request *request,
                           size_t *n_ids) {
    bool ids_only = request->kind == BT_OPENAI_DETOKENIZE;
    if (json_is_string(prompt) && !ids_only)
        return BT_OK;
    if (!json_is_array(prompt))
        return bt_openai_refuse_type(check, where, prompt,
                                     ids_only ? "a list of token ids"
                                              : "a string or a list of token ids");
    if (!json_array_size(prompt) && !ids_only)
        return bt_generate_refuse(check, BT_E_INVALID, where,
                                  "%s is empty, it must have at least one token", where);
    *n_ids += json_array_size(prompt);
    return BT_OK;
}

static bt_status check_count(const struct bt_generate_check *check, const char *name, size_t n,
                             const struct bt_openai_request *request) {
    bool generates = request->kind == BT_OPENAI_COMPLETION;
    size_t max = generates ? BT_CHOICES : 1;
    if (n <= max)
        return BT_OK;
    return bt_generate_refuse(check, generates ? BT_E_INVALID : BT_E_UNSUPPORTED, name,
                              "%s has %zu prompts, one request may have at most %zu", name, n, max);
}

bt_status bt_openai_prompts_read(const struct bt_generate_check *check, const char *name,
                                 uint32_t vocab_tokens, struct bt_openai_request *request) {
    const json_t *prompt = bt_openai_get(request->root, name);
    if (!prompt)
        return bt_openai_refuse_missing(check, name);
    bool many = is_list_of_prompts(prompt);
    size_t n = many ? json_array_size(prompt) : 1, n_ids = 0;
    BT_TRY(check_count(check, name, n, request));
    for (size_t i = 0; i < n; i++)
        BT_TRY(check_one(check, name, many ? json_array_get(prompt, i) : prompt, request, &n_ids));
    request->prompts = calloc(n, sizeof *request->prompts);
    request->ids = malloc((n_ids + !n_ids) * sizeof *request->ids);
    if (!request->prompts || !request->ids)
        return bt_generate_refuse(check, BT_E_NO_MEMORY, name, "out of memory for %zu tokens",
                                  n_ids);
    request->generate.prompts = request->prompts;
    request->generate.n_prompts = (uint32_t)n;
    int32_t *ids = request->ids;
    for (size_t i = 0; i < n; i++) {
        const json_t *given = many ? json_array_get(prompt, i) : prompt;
        struct bt_generate_prompt *out = &request->prompts[i];
        out->is_text = json_is_string(given);
        if (out->is_text) {
            out->text = (struct bt_slice){json_string_value(given), json_string_length(given)};
            continue;
        }
        BT_TRY(bt_openai_ids(check, name, given, vocab_tokens, ids));
        out->ids = ids;
        out->n_ids = (uint32_t)json_array_size(given);
        ids += out->n_ids;
    }
    return BT_OK;
}

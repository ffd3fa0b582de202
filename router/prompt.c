/* From text or a conversation to token ids. */
#include "router/prompt.h"

#include <stdlib.h>

enum { RENDERED_BYTES_MAX = 16 << 20 };

static bt_status encode(const struct bt_text_model *text, struct bt_encode_scratch *scratch,
                        struct bt_slice input, const struct bt_encode_options *options,
                        const char *param, struct bt_prompt *prompt,
                        const struct bt_generate_check *check) {
    size_t room = input.n_bytes + 2, n = 0; /* a token has a byte at least; BOS has none */
    prompt->tokens = malloc(room * sizeof *prompt->tokens);
    if (!prompt->tokens)
        return bt_generate_refuse(check, BT_E_NO_MEMORY, param, "out of memory for %zu tokens",
                                  room);
    bt_status status = bt_tokenizer_encode(text->tokenizer, scratch, input, options, prompt->tokens,
                                           room, &n, check->err);
    if (status == BT_OK && !n)
        status = bt_generate_refuse(check, BT_E_INVALID, param,
                                    "%s is empty, it must have at least one token", param);
    prompt->ids = prompt->tokens;
    prompt->n_ids = (uint32_t)n;
    return status;
}

static struct bt_slice token_text(const struct bt_tokenizer *tok, int32_t id) {
    return id < 0 ? (struct bt_slice){NULL, 0} : bt_tokenizer_bytes(tok, id);
}

static bt_status render(const struct bt_text_model *text, struct bt_encode_scratch *scratch,
                        const struct bt_generate_request *request, int64_t now_s,
                        struct bt_prompt *prompt, const struct bt_generate_check *check) {
    if (!text->chat)
        return bt_generate_refuse(check, BT_E_UNSUPPORTED, "messages",
                                  "this model has no chat template; use /v1/completions");
    const struct bt_chat_input input = {
        .messages = request->messages,
        .vars = request->vars,
        .bos = token_text(text->tokenizer, bt_tokenizer_bos(text->tokenizer)),
        .eos = token_text(text->tokenizer, bt_tokenizer_eos(text->tokenizer)),
        .add_generation_prompt = request->add_generation_prompt,
        .now_s = now_s,
        .max_output_bytes = RENDERED_BYTES_MAX,
    };
    struct bt_chat_text rendered;
    BT_TRY(bt_chat_template_render(text->chat, &input, &rendered, check->err));
    const struct bt_encode_options options = {.add_bos = false,
                                              .parse_specials = true,
                                              .untrusted = rendered.untrusted,
                                              .n_untrusted = rendered.n_untrusted};
    bt_status status = encode(text, scratch, (struct bt_slice){rendered.text, rendered.n_bytes},
                              &options, "messages", prompt, check);
    bt_chat_text_fini(&rendered);
    return status;
}

bt_status bt_prompt_make(const struct bt_text_model *text, struct bt_encode_scratch *scratch,
                         const struct bt_generate_request *request, uint32_t i, int64_t now_s,
                         struct bt_prompt *prompt, const struct bt_generate_check *check) {
    *prompt = (struct bt_prompt){0};
    bt_status status = BT_OK;
    if (request->messages) {
        status = render(text, scratch, request, now_s, prompt, check);
    } else if (request->prompts[i].is_text) {
        /* The writer of a raw prompt could as well send the ids: marks in it are marks. */
        const struct bt_encode_options options = {.add_bos = request->add_special_tokens,
                                                  .parse_specials = true};
        status = encode(text, scratch, request->prompts[i].text, &options, "prompt", prompt, check);
    } else {
        prompt->ids = request->prompts[i].ids;
        prompt->n_ids = request->prompts[i].n_ids;
    }
    if (status < 0)
        bt_prompt_fini(prompt);
    return status;
}

void bt_prompt_fini(struct bt_prompt *prompt) {
    free(prompt->tokens);
    *prompt = (struct bt_prompt){0};
}

/* Reads the body of an OpenAI request and checks every field of it.
 *
 * What is understood becomes sampling, limits and a prompt; a field that is not supported and would
 * change the answer is refused by name; all others are ignored, since clients send new ones all the
 * time. Every optional field may be null. Pure: bytes in, struct out. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <jansson.h>

#include "router/generate_request.h"

enum bt_openai_kind {
    BT_OPENAI_CHAT,       /* /v1/chat/completions */
    BT_OPENAI_COMPLETION, /* /v1/completions */
    BT_OPENAI_TOKENIZE,   /* /tokenize: a prompt or a conversation, nothing generated */
    BT_OPENAI_DETOKENIZE, /* /detokenize: token ids */
};

enum {
    BT_OPENAI_COMPLETION_TOKENS = 16, /* max_tokens of a completion that gives none */
    BT_OPENAI_MAX_TOKENS = 1 << 24,   /* largest max_tokens taken */
    BT_OPENAI_MODEL_BYTES = 256,      /* longest name served, its NUL included */
};

struct bt_openai_request {
    json_t *root;                       /* owns the strings and messages of `generate` */
    struct bt_generate_prompt *prompts; /* owned, borrowed by it; NULL: a conversation */
    int32_t *ids;                       /* owned: those of all prompts */
    struct bt_logit_bias *bias;         /* owned, borrowed by it; NULL: none */
    enum bt_openai_kind kind;
    bool stream, include_usage, continuous_usage, return_token_ids, return_logits_hash, echo;
    uint32_t n_shown;                  /* of generate.n choices the best so many are answered */
    uint8_t logprobs, prompt_logprobs; /* to be shown; 0: none, 1 + k: with the k likeliest */
    struct bt_generate_request generate;
};

/* vocab_tokens: ids must be below it. join_parts: the template does not read lists of content
 * parts, so their texts are joined with a newline. BT_E_INVALID or BT_E_UNSUPPORTED name the field,
 * the value and the bound. On failure *request is left zeroed. */
bt_status bt_openai_request_parse(enum bt_openai_kind kind, struct bt_slice body,
                                  uint32_t vocab_tokens, bool join_parts,
                                  struct bt_openai_request *request,
                                  struct bt_generate_fault *fault, struct bt_error *err);
void bt_openai_request_fini(struct bt_openai_request *request);

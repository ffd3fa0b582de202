/* Reads the prompts of an OpenAI request: a string, a list of token ids, or a list of either. */
#pragma once
#include "router/openai_fields.h"
#include "router/openai_request.h"

/* From the field `name` of request->root into request->prompts, ->ids and ->generate. /tokenize
 * takes one prompt, /detokenize one list of ids, which may be empty. */
bt_status bt_openai_prompts_read(const struct bt_generate_check *check, const char *name,
                                 uint32_t vocab_tokens, struct bt_openai_request *request);

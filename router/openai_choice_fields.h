/* The fields of an OpenAI request about how many answers there are and what is told of their
 * tokens: n, best_of, echo, logprobs, top_logprobs, prompt_logprobs, logit_bias. */
#pragma once
#include "router/openai_fields.h"
#include "router/openai_request.h"

/* Reads them into *request; prompts, stream and limits have been read. */
bt_status bt_openai_choice_fields_read(const struct bt_generate_check *check, uint32_t vocab_tokens,
                                       struct bt_openai_request *request);

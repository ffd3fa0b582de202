/* Writes logprobs as OpenAI clients read them: one object per token for chats, four lists for
 * completions, and vLLM's list for prompts.
 *
 * Numbers are written so that the same float always has the same digits and reads back as itself.
 * A token whose bytes are not UTF-8 is written as OpenAI does it, as "bytes:\xe2\x80". Pure but for
 * the buffers. */
#pragma once
#include <stdint.h>

#include "common/base/sampling.h"
#include "common/text/tokenizer.h"
#include "router/text_buffer.h"

/* A token where it stands. */
struct bt_openai_scored {
    int32_t token;
    const struct bt_logprobs *logprobs; /* NULL: nothing is known of it (a prompt's first) */
    uint64_t offset;                    /* code points of text before it */
};

/* The four lists of a completion: elements with commas between, without brackets. */
struct bt_openai_lists {
    struct bt_text_buffer tokens, logprobs, tops, offsets;
};

/* n_top: how many of the likeliest are shown; logprobs may hold more or fewer. */
void bt_openai_lists_add(struct bt_openai_lists *lists, const struct bt_tokenizer *tok,
                         uint32_t n_top, const struct bt_openai_scored *scored);
void bt_openai_lists_clear(struct bt_openai_lists *lists);
void bt_openai_lists_fini(struct bt_openai_lists *lists);
/* The object, of one list after the other; either may be NULL. */
void bt_openai_lists_write(struct bt_text_buffer *out, const struct bt_openai_lists *first,
                           const struct bt_openai_lists *second);

/* One element of a chat's logprobs.content. */
void bt_openai_write_logprob(struct bt_text_buffer *out, const struct bt_tokenizer *tok,
                             uint32_t n_top, const struct bt_openai_scored *scored);
/* One element of prompt_logprobs: {"id": {"logprob", "rank", "decoded_token"}, ...}. */
void bt_openai_write_prompt_logprob(struct bt_text_buffer *out, const struct bt_tokenizer *tok,
                                    uint32_t n_top, const struct bt_openai_scored *scored);

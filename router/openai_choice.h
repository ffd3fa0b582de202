/* One choice of an answer that is sent as one JSON object: collected token by token, then written.
 *
 * Pure but for the buffers, which remember an allocation that failed. */
#pragma once
#include <stdint.h>

#include "router/openai_answer.h"

struct bt_openai_choice {
    struct bt_text_buffer text;
    struct bt_openai_lists lists;   /* of a completion with logprobs */
    struct bt_text_buffer logprobs; /* of a chat with logprobs: elements with commas between */
    struct bt_text_buffer tokens;   /* ids, if asked for: the same */
    struct bt_text_buffer hashes;   /* logits hashes, if asked for: the same */
    uint32_t n_generated, n_rated;  /* tokens; those of them that came with logprobs */
    double sum;                     /* of their logprobs */
    enum bt_finish finish;
};

void bt_openai_choice_add(struct bt_openai_choice *choice, const struct bt_openai_answer *answer,
                          const struct bt_piece *piece);
void bt_openai_choice_fini(struct bt_openai_choice *choice);

/* The whole answer. choices: [answer->n_choices], as they are numbered; of each prompt the n_shown
 * with the highest mean logprob are written, best first, or all in their order. */
void bt_openai_write_whole(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                           const struct bt_openai_choice *choices, const struct bt_sink_end *end,
                           struct bt_slice extra);

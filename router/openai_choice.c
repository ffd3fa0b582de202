/* Collects the choices of an answer and writes them as one JSON object. */
#include "router/openai_choice.h"

#include "common/base/limits.h"

void bt_openai_choice_add(struct bt_openai_choice *choice, const struct bt_openai_answer *answer,
                          const struct bt_piece *piece) {
    if (piece->finish != BT_FINISH_NONE)
        choice->finish = piece->finish;
    if (piece->token < 0)
        return;
    size_t comma = choice->n_generated++ > 0;
    bt_text_buffer_add(&choice->text, piece->text.data, piece->text.n_bytes);
    if (piece->logprobs) {
        choice->n_rated++;
        choice->sum += (double)piece->logprobs->logprob;
    }
    if (answer->logprobs) {
        uint64_t before =
            answer->echo ? answer->prompts[piece->choice / answer->n_per_prompt].n_chars : 0;
        const struct bt_openai_scored scored = {piece->token, piece->logprobs,
                                                before + piece->offset};
        uint32_t n_top = answer->logprobs - 1u;
        if (answer->kind == BT_OPENAI_CHAT) {
            bt_text_buffer_add(&choice->logprobs, ",", comma);
            bt_openai_write_logprob(&choice->logprobs, answer->tok, n_top, &scored);
        } else {
            bt_openai_lists_add(&choice->lists, answer->tok, n_top, &scored);
        }
    }
    if (answer->return_token_ids) {
        bt_text_buffer_add(&choice->tokens, ",", comma);
        bt_text_buffer_add_i64(&choice->tokens, piece->token);
    }
    if (answer->return_logits_hash) {
        bt_text_buffer_add_string(&choice->hashes, comma ? ",\"" : "\"");
        bt_text_buffer_add_hex64(&choice->hashes, piece->hash);
        bt_text_buffer_add_literal(&choice->hashes, "\"");
    }
}

void bt_openai_choice_fini(struct bt_openai_choice *choice) {
    bt_text_buffer_fini(&choice->text);
    bt_openai_lists_fini(&choice->lists);
    bt_text_buffer_fini(&choice->logprobs);
    bt_text_buffer_fini(&choice->tokens);
    bt_text_buffer_fini(&choice->hashes);
}

/* ---- writing ---- */

/* A list that lost something makes the answer fail. */
static void add_list(struct bt_text_buffer *out, const char *head,
                     const struct bt_text_buffer *list) {
    bt_text_buffer_add_string(out, head);
    bt_text_buffer_add(out, list->data, list->n_bytes);
    bt_text_buffer_add_literal(out, "]");
    out->failed = out->failed || list->failed;
}

static void add_escaped(struct bt_text_buffer *out, const struct bt_text_buffer *text) {
    bt_text_buffer_add_escaped(out, text->data, text->n_bytes);
    out->failed = out->failed || text->failed;
}

static void add_logprobs(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                         const struct bt_openai_choice *choice, const struct bt_openai_echo *echo) {
    bt_text_buffer_add_literal(out, ",\"logprobs\":");
    if (!answer->logprobs) {
        bt_text_buffer_add_literal(out, "null");
    } else if (answer->kind == BT_OPENAI_CHAT) {
        add_list(out, "{\"content\":[", &choice->logprobs);
        bt_text_buffer_add_literal(out, ",\"refusal\":null}");
    } else {
        bt_openai_lists_write(out, answer->echo ? &echo->lists : NULL, &choice->lists);
    }
}

static void add_choice(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                       const struct bt_openai_choice *choice, uint32_t prompt, uint32_t index) {
    const struct bt_openai_echo *echo = &answer->prompts[prompt];
    bool chat = answer->kind == BT_OPENAI_CHAT;
    bt_text_buffer_add_string(out, index ? ",{\"index\":" : "{\"index\":");
    bt_text_buffer_add_u64(out, index);
    bt_text_buffer_add_string(out, chat ? ",\"message\":{\"role\":\"assistant\",\"content\":\""
                                        : ",\"text\":\"");
    if (answer->echo)
        add_escaped(out, &echo->text);
    add_escaped(out, &choice->text);
    bt_text_buffer_add_string(out, chat ? "\",\"refusal\":null}" : "\"");
    add_logprobs(out, answer, choice, echo);
    bt_text_buffer_add_literal(out, ",\"finish_reason\":");
    bt_text_buffer_add_string(out, bt_openai_finish_json(choice->finish));
    if (answer->return_token_ids)
        add_list(out, ",\"token_ids\":[", &choice->tokens);
    if (answer->return_logits_hash)
        add_list(out, ",\"logits_hashes\":[", &choice->hashes);
    if (answer->prompt_logprobs && !chat)
        add_list(out, ",\"prompt_logprobs\":[", &echo->scores);
    bt_text_buffer_add_literal(out, "}");
}

static double mean(const struct bt_openai_choice *choice) {
    return choice->n_rated ? choice->sum / choice->n_rated : 0;
}

/* The best first; equal ones as they are numbered. */
static void sort(const struct bt_openai_choice *choices, uint32_t n, uint32_t order[BT_CHOICES]) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = i;
        for (; at && mean(&choices[order[at - 1]]) < mean(&choices[i]); at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
}

void bt_openai_write_whole(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                           const struct bt_openai_choice *choices, const struct bt_sink_end *end,
                           struct bt_slice extra) {
    uint32_t order[BT_CHOICES];
    bt_openai_write_head(out, answer);
    for (uint32_t p = 0; p < answer->n_prompts; p++) {
        const struct bt_openai_choice *mine = choices + (size_t)p * answer->n_per_prompt;
        bool pick = answer->n_shown < answer->n_per_prompt;
        if (pick)
            sort(mine, answer->n_per_prompt, order);
        for (uint32_t k = 0; k < answer->n_shown; k++)
            add_choice(out, answer, &mine[pick ? order[k] : k], p, p * answer->n_shown + k);
    }
    bt_text_buffer_add_literal(out, "],\"usage\":");
    bt_openai_write_usage(out, end->n_prompt, end->n_generated, (int64_t)end->n_cached);
    if (answer->prompt_logprobs && answer->kind == BT_OPENAI_CHAT)
        add_list(out, ",\"prompt_logprobs\":[", &answer->prompts[0].scores);
    bt_text_buffer_add(out, extra.data, extra.n_bytes);
    bt_text_buffer_add_literal(out, "}");
    out->failed = out->failed || answer->failed;
}

/* Writes chunks, whole answers and error objects as OpenAI clients read them. */
#include "router/openai_answer.h"

#include <stdlib.h>

#include "common/text/utf8.h"

enum { ID_DIGITS = 16, CREATED_DIGITS = 10 };

static void add_head(struct bt_text_buffer *out, enum bt_openai_kind kind, bool chunk,
                     const char *model_json, size_t *id_at, size_t *created_at) {
    bool chat = kind == BT_OPENAI_CHAT;
    bt_text_buffer_add_string(out, chat ? "{\"id\":\"chatcmpl-" : "{\"id\":\"cmpl-");
    *id_at = out->n_bytes;
    bt_text_buffer_add_literal(out, "0000000000000000\",\"object\":");
    bt_text_buffer_add_string(out, !chat   ? "\"text_completion\""
                                   : chunk ? "\"chat.completion.chunk\""
                                           : "\"chat.completion\"");
    bt_text_buffer_add_literal(out, ",\"created\":");
    *created_at = out->n_bytes;
    bt_text_buffer_add_literal(out, "0000000000,\"model\":");
    bt_text_buffer_add_string(out, model_json);
    bt_text_buffer_add_literal(out, ",\"choices\":[");
}

static void patch(char *head, size_t id_at, size_t created_at, uint64_t id, int64_t created_s) {
    for (size_t i = 0; i < ID_DIGITS; i++)
        head[id_at + i] = "0123456789abcdef"[id >> (60 - 4 * i) & 15];
    for (size_t i = CREATED_DIGITS; i-- > 0; created_s /= 10)
        head[created_at + i] = (char)('0' + created_s % 10);
}

bt_status bt_openai_skeletons_init(struct bt_openai_skeletons *skeletons, const char *model,
                                   struct bt_error *err) {
    struct bt_text_buffer json = {0};
    *skeletons = (struct bt_openai_skeletons){0};
    bt_text_buffer_add_json(&json, model);
    bt_text_buffer_add(&json, "", 1);
    skeletons->model_json = json.data;
    struct bt_openai_skeleton *chat = &skeletons->chat, *completion = &skeletons->completion;
    if (!json.failed) {
        bt_text_buffer_add_literal(&chat->prefix, "data: ");
        add_head(&chat->prefix, BT_OPENAI_CHAT, true, json.data, &chat->id_at, &chat->created_at);
        bt_text_buffer_add_literal(&completion->prefix, "data: ");
        add_head(&completion->prefix, BT_OPENAI_COMPLETION, true, json.data, &completion->id_at,
                 &completion->created_at);
    }
    if (json.failed || chat->prefix.failed || completion->prefix.failed) {
        bt_openai_skeletons_fini(skeletons);
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the answers' skeletons");
    }
    return BT_OK;
}

void bt_openai_skeletons_fini(struct bt_openai_skeletons *skeletons) {
    bt_text_buffer_fini(&skeletons->chat.prefix);
    bt_text_buffer_fini(&skeletons->completion.prefix);
    free(skeletons->model_json);
    *skeletons = (struct bt_openai_skeletons){0};
}

static void add_prefix(struct bt_text_buffer *out, const struct bt_openai_answer *answer) {
    const struct bt_openai_skeleton *skeleton =
        answer->kind == BT_OPENAI_CHAT ? &answer->skeletons->chat : &answer->skeletons->completion;
    if (!bt_text_buffer_reserve(out, skeleton->prefix.n_bytes))
        return;
    char *at = out->data + out->n_bytes;
    bt_text_buffer_add(out, skeleton->prefix.data, skeleton->prefix.n_bytes);
    patch(at, skeleton->id_at, skeleton->created_at, answer->id, answer->created_s);
}

const char *bt_openai_finish_json(enum bt_finish finish) {
    return finish == BT_FINISH_STOP     ? "\"stop\""
           : finish == BT_FINISH_LENGTH ? "\"length\""
                                        : "null";
}

void bt_openai_write_usage(struct bt_text_buffer *out, uint64_t n_prompt, uint64_t n_generated,
                           int64_t n_cached) {
    bt_text_buffer_add_literal(out, "{\"prompt_tokens\":");
    bt_text_buffer_add_u64(out, n_prompt);
    bt_text_buffer_add_literal(out, ",\"completion_tokens\":");
    bt_text_buffer_add_u64(out, n_generated);
    bt_text_buffer_add_literal(out, ",\"total_tokens\":");
    bt_text_buffer_add_u64(out, n_prompt + n_generated);
    if (n_cached >= 0) {
        bt_text_buffer_add_literal(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
        bt_text_buffer_add_i64(out, n_cached);
        bt_text_buffer_add_literal(out, "}");
    }
    bt_text_buffer_add_literal(out, "}");
}

/* ---- the prompts ---- */

/* Lists of what is shown of a prompt token. */
static void add_score(struct bt_openai_answer *answer, struct bt_openai_echo *echo, uint32_t at,
                      const struct bt_logprobs *logprobs) {
    char text[BT_TOKEN_TEXT_BYTES];
    const struct bt_openai_scored scored = {echo->ids[at], logprobs, echo->n_scored_chars};
    if (answer->echo && answer->logprobs) {
        size_t n = bt_detokenizer_push(&echo->detokenizer, echo->ids[at], text);
        echo->n_scored_chars += bt_utf8_count(text, n);
        bt_openai_lists_add(&echo->lists, answer->tok, answer->logprobs - 1u, &scored);
    }
    if (answer->prompt_logprobs) {
        bt_text_buffer_add(&echo->scores, ",", at > 0);
        bt_openai_write_prompt_logprob(&echo->scores, answer->tok, answer->prompt_logprobs - 1u,
                                       &scored);
    }
}

static void begin_prompt(struct bt_openai_answer *answer, struct bt_openai_echo *echo,
                         const struct bt_prompt *prompt) {
    char text[BT_TOKEN_TEXT_BYTES];
    echo->ids = prompt->ids;
    echo->n_ids = prompt->n_ids;
    answer->n_prompt += prompt->n_ids;
    if (answer->echo) {
        bt_detokenizer_init(&echo->detokenizer, answer->tok, answer->skip_special_tokens);
        for (uint32_t i = 0; i < echo->n_ids; i++)
            bt_text_buffer_add(&echo->text, text,
                               bt_detokenizer_push(&echo->detokenizer, echo->ids[i], text));
        bt_text_buffer_add(&echo->text, text, bt_detokenizer_flush(&echo->detokenizer, text));
        echo->n_chars = bt_utf8_count(echo->text.data, echo->text.n_bytes);
        bt_detokenizer_init(&echo->detokenizer, answer->tok, answer->skip_special_tokens);
    }
    if ((answer->echo && answer->logprobs) || answer->prompt_logprobs)
        add_score(answer, echo, 0, NULL); /* nothing came before it that could have foretold it */
}

void bt_openai_answer_begin(struct bt_openai_answer *answer, const struct bt_sink_begin *begin) {
    answer->prompts = calloc(begin->n_prompts, sizeof *answer->prompts);
    if (!answer->prompts) {
        answer->failed = true;
        return;
    }
    answer->n_prompts = begin->n_prompts;
    answer->n_choices = begin->n_choices;
    for (uint32_t p = 0; p < begin->n_prompts; p++)
        begin_prompt(answer, &answer->prompts[p], &begin->prompts[p]);
}

void bt_openai_answer_scores(struct bt_openai_answer *answer, const struct bt_scores *scores) {
    if (answer->failed)
        return;
    struct bt_openai_echo *echo = &answer->prompts[scores->prompt];
    for (uint32_t i = 0; i < scores->n && scores->first + i < echo->n_ids; i++)
        add_score(answer, echo, scores->first + i, &scores->logprobs[i]);
}

void bt_openai_answer_fini(struct bt_openai_answer *answer) {
    for (uint32_t p = 0; p < answer->n_prompts; p++) {
        bt_text_buffer_fini(&answer->prompts[p].text);
        bt_text_buffer_fini(&answer->prompts[p].scores);
        bt_openai_lists_fini(&answer->prompts[p].lists);
    }
    free(answer->prompts);
    answer->prompts = NULL;
    answer->n_prompts = 0;
    bt_openai_lists_fini(&answer->one);
}

/* ---- a stream ---- */

/* The choice up to its text, quotes not closed. */
static void begin_choice(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                         const struct bt_piece *piece) {
    add_prefix(out, answer);
    bt_text_buffer_add_literal(out, "{\"index\":");
    bt_text_buffer_add_u64(out, piece->choice);
    if (answer->kind != BT_OPENAI_CHAT)
        bt_text_buffer_add_literal(out, ",\"text\":\"");
    else if (piece->index == 0)
        bt_text_buffer_add_literal(out, ",\"delta\":{\"role\":\"assistant\",\"content\":\"");
    else
        bt_text_buffer_add_literal(out, ",\"delta\":{\"content\":\"");
}

static void end_event(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                      const struct bt_piece *piece, uint32_t n_generated) {
    bt_text_buffer_add_literal(out, "}]");
    if (answer->continuous_usage) {
        bt_text_buffer_add_literal(out, ",\"usage\":");
        bt_openai_write_usage(out, answer->prompts[piece->choice / answer->n_per_prompt].n_ids,
                              n_generated, -1);
    } else if (answer->include_usage) {
        bt_text_buffer_add_literal(out, ",\"usage\":null");
    }
    bt_text_buffer_add_literal(out, "}\n\n");
}

static void write_echo(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                       const struct bt_piece *piece) {
    const struct bt_openai_echo *echo = &answer->prompts[piece->choice / answer->n_per_prompt];
    begin_choice(out, answer, piece);
    bt_text_buffer_add_escaped(out, echo->text.data, echo->text.n_bytes);
    bt_text_buffer_add_literal(out, "\",\"logprobs\":");
    if (answer->logprobs)
        bt_openai_lists_write(out, &echo->lists, NULL);
    else
        bt_text_buffer_add_literal(out, "null");
    bt_text_buffer_add_literal(out, ",\"finish_reason\":null");
    out->failed = out->failed || echo->text.failed;
    end_event(out, answer, piece, 0);
}

static void write_logprobs(struct bt_text_buffer *out, struct bt_openai_answer *answer,
                           const struct bt_piece *piece) {
    uint32_t n_top = answer->logprobs - 1u;
    const struct bt_openai_echo *echo = &answer->prompts[piece->choice / answer->n_per_prompt];
    const struct bt_openai_scored scored = {piece->token, piece->logprobs,
                                            echo->n_chars + piece->offset};
    if (answer->kind == BT_OPENAI_CHAT) {
        bt_text_buffer_add_literal(out, "{\"content\":[");
        bt_openai_write_logprob(out, answer->tok, n_top, &scored);
        bt_text_buffer_add_literal(out, "],\"refusal\":null}");
    } else {
        bt_openai_lists_clear(&answer->one);
        bt_openai_lists_add(&answer->one, answer->tok, n_top, &scored);
        bt_openai_lists_write(out, &answer->one, NULL);
    }
}

void bt_openai_write_chunk(struct bt_text_buffer *out, struct bt_openai_answer *answer,
                           const struct bt_piece *piece) {
    bool has_token = piece->token >= 0;
    if (answer->failed) {
        out->failed = true;
        return;
    }
    if (answer->echo && piece->index == 0)
        write_echo(out, answer, piece);
    begin_choice(out, answer, piece);
    bt_text_buffer_add_escaped(out, piece->text.data, piece->text.n_bytes);
    bt_text_buffer_add_string(out, answer->kind == BT_OPENAI_CHAT ? "\"},\"logprobs\":"
                                                                  : "\",\"logprobs\":");
    if (answer->logprobs && has_token)
        write_logprobs(out, answer, piece);
    else
        bt_text_buffer_add_literal(out, "null");
    bt_text_buffer_add_literal(out, ",\"finish_reason\":");
    bt_text_buffer_add_string(out, bt_openai_finish_json(piece->finish));
    if (answer->return_token_ids && has_token) {
        bt_text_buffer_add_literal(out, ",\"token_ids\":[");
        bt_text_buffer_add_i64(out, piece->token);
        bt_text_buffer_add_literal(out, "]");
    }
    if (answer->return_logits_hash && has_token) {
        bt_text_buffer_add_literal(out, ",\"logits_hashes\":[\"");
        bt_text_buffer_add_hex64(out, piece->hash);
        bt_text_buffer_add_literal(out, "\"]");
    }
    end_event(out, answer, piece, piece->index + has_token);
}

void bt_openai_write_last_chunk(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                                const struct bt_sink_end *end, struct bt_slice extra) {
    add_prefix(out, answer);
    bt_text_buffer_add_literal(out, "]");
    if (answer->include_usage) {
        bt_text_buffer_add_literal(out, ",\"usage\":");
        bt_openai_write_usage(out, end->n_prompt, end->n_generated, (int64_t)end->n_cached);
    }
    bt_text_buffer_add(out, extra.data, extra.n_bytes);
    bt_text_buffer_add_literal(out, "}\n\n");
}

/* ---- whole answers and errors ---- */

void bt_openai_write_head(struct bt_text_buffer *out, const struct bt_openai_answer *answer) {
    size_t id_at, created_at; /* in the whole buffer */
    add_head(out, answer->kind, false, answer->skeletons->model_json, &id_at, &created_at);
    if (!out->failed)
        patch(out->data, id_at, created_at, answer->id, answer->created_s);
}

static const struct {
    int http_status;
    const char *type, *code;
} errors[] = {
    {400, "invalid_request_error", "invalid_value"},
    {401, "invalid_request_error", "invalid_api_key"},
    {403, "invalid_request_error", "insufficient_permissions"},
    {404, "invalid_request_error", "not_found"},
    {405, "invalid_request_error", "method_not_allowed"},
    {408, "invalid_request_error", "request_timeout"},
    {413, "invalid_request_error", "request_too_large"},
    {431, "invalid_request_error", "headers_too_large"},
    {429, "rate_limit_error", "rate_limit_exceeded"},
    {499, "cancelled_error", "cancelled"},
    {503, "service_unavailable_error", "service_unavailable"},
    {504, "timeout_error", "deadline_exceeded"},
    {500, "server_error", "internal_error"}, /* the last one: everything else */
};

void bt_openai_write_error(struct bt_text_buffer *out, int http_status, const char *message,
                           const char *param, const char *code) {
    size_t i = 0;
    while (i < sizeof errors / sizeof errors[0] - 1 && errors[i].http_status != http_status)
        i++;
    bt_text_buffer_add_literal(out, "{\"error\":{\"message\":");
    bt_text_buffer_add_json(out, message);
    bt_text_buffer_add_literal(out, ",\"type\":");
    bt_text_buffer_add_json(out, errors[i].type);
    bt_text_buffer_add_literal(out, ",\"param\":");
    if (param && *param)
        bt_text_buffer_add_json(out, param);
    else
        bt_text_buffer_add_literal(out, "null");
    bt_text_buffer_add_literal(out, ",\"code\":");
    bt_text_buffer_add_json(out, code ? code : errors[i].code);
    bt_text_buffer_add_literal(out, "}}");
}

/* Writes logprobs as OpenAI clients read them. */
#include "router/openai_logprobs.h"

#include <string.h>

#include "common/text/utf8.h"

/* JSON has no infinities; what is never chosen is at this floor. */
enum { LOGPROB_FLOOR = -9999 };

static void add_number(struct bt_text_buffer *out, float logprob) {
    if (!(logprob > LOGPROB_FLOOR))
        logprob = LOGPROB_FLOOR;
    bt_text_buffer_printf(out, "%.9g", (double)logprob);
}

static void add_token(struct bt_text_buffer *out, const struct bt_tokenizer *tok, int32_t id) {
    struct bt_slice bytes = bt_tokenizer_bytes(tok, id);
    if (bt_utf8_is_valid(bytes.data, bytes.n_bytes)) {
        bt_text_buffer_add_literal(out, "\"");
        bt_text_buffer_add_escaped(out, bytes.data, bytes.n_bytes);
    } else {
        bt_text_buffer_add_literal(out, "\"bytes:");
        for (size_t i = 0; i < bytes.n_bytes; i++)
            bt_text_buffer_printf(out, "\\\\x%02x", (unsigned char)bytes.data[i]);
    }
    bt_text_buffer_add_literal(out, "\"");
}

static void add_bytes(struct bt_text_buffer *out, const struct bt_tokenizer *tok, int32_t id) {
    struct bt_slice bytes = bt_tokenizer_bytes(tok, id);
    bt_text_buffer_add_literal(out, "[");
    for (size_t i = 0; i < bytes.n_bytes; i++) {
        bt_text_buffer_add(out, ",", i > 0);
        bt_text_buffer_add_u64(out, (unsigned char)bytes.data[i]);
    }
    bt_text_buffer_add_literal(out, "]");
}

static uint32_t shown(const struct bt_logprobs *logprobs, uint32_t n_top) {
    return n_top < logprobs->n_top ? n_top : logprobs->n_top;
}

/* Place among the likeliest, from 0; n where it is not there. */
static uint32_t rank_of(const struct bt_logprobs *logprobs, uint32_t n, int32_t token) {
    uint32_t i = 0;
    while (i < n && logprobs->top[i].token != token)
        i++;
    return i;
}

/* ---- chat ---- */

static void add_candidate(struct bt_text_buffer *out, const struct bt_tokenizer *tok, int32_t token,
                          float logprob) {
    bt_text_buffer_add_literal(out, "{\"token\":");
    add_token(out, tok, token);
    bt_text_buffer_add_literal(out, ",\"logprob\":");
    add_number(out, logprob);
    bt_text_buffer_add_literal(out, ",\"bytes\":");
    add_bytes(out, tok, token);
}

void bt_openai_write_logprob(struct bt_text_buffer *out, const struct bt_tokenizer *tok,
                             uint32_t n_top, const struct bt_openai_scored *scored) {
    static const struct bt_logprobs unknown = {.logprob = LOGPROB_FLOOR};
    const struct bt_logprobs *logprobs = scored->logprobs ? scored->logprobs : &unknown;
    uint32_t n = shown(logprobs, n_top);
    add_candidate(out, tok, scored->token, logprobs->logprob);
    bt_text_buffer_add_literal(out, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < n; i++) {
        bt_text_buffer_add(out, ",", i > 0);
        add_candidate(out, tok, logprobs->top[i].token, logprobs->top[i].logprob);
        bt_text_buffer_add_literal(out, "}");
    }
    bt_text_buffer_add_literal(out, "]}");
}

/* ---- completions ---- */

static bool is_same_text(const struct bt_tokenizer *tok, int32_t a, int32_t b) {
    struct bt_slice x = bt_tokenizer_bytes(tok, a), y = bt_tokenizer_bytes(tok, b);
    return x.n_bytes == y.n_bytes && (!x.n_bytes || !memcmp(x.data, y.data, x.n_bytes));
}

/* Keys of an object must differ: of tokens with the same text the likeliest stands. The token
 * itself is always there. */
static void add_top(struct bt_text_buffer *out, const struct bt_tokenizer *tok, uint32_t n_top,
                    const struct bt_openai_scored *scored) {
    const struct bt_logprobs *logprobs = scored->logprobs;
    uint32_t n = shown(logprobs, n_top), n_written = 0;
    bool met = false; /* the token itself, or its text */
    bt_text_buffer_add_literal(out, "{");
    for (uint32_t i = 0; i < n; i++) {
        uint32_t before = 0;
        while (before < i &&
               !is_same_text(tok, logprobs->top[before].token, logprobs->top[i].token))
            before++;
        if (before < i)
            continue;
        met = met || is_same_text(tok, logprobs->top[i].token, scored->token);
        bt_text_buffer_add(out, ",", n_written++ > 0);
        add_token(out, tok, logprobs->top[i].token);
        bt_text_buffer_add_literal(out, ":");
        add_number(out, logprobs->top[i].logprob);
    }
    if (!met) {
        bt_text_buffer_add(out, ",", n_written > 0);
        add_token(out, tok, scored->token);
        bt_text_buffer_add_literal(out, ":");
        add_number(out, logprobs->logprob);
    }
    bt_text_buffer_add_literal(out, "}");
}

void bt_openai_lists_add(struct bt_openai_lists *lists, const struct bt_tokenizer *tok,
                         uint32_t n_top, const struct bt_openai_scored *scored) {
    size_t comma = lists->tokens.n_bytes > 0;
    bt_text_buffer_add(&lists->tokens, ",", comma);
    bt_text_buffer_add(&lists->logprobs, ",", comma);
    bt_text_buffer_add(&lists->tops, ",", comma);
    bt_text_buffer_add(&lists->offsets, ",", comma);
    add_token(&lists->tokens, tok, scored->token);
    bt_text_buffer_add_u64(&lists->offsets, scored->offset);
    if (scored->logprobs) {
        add_number(&lists->logprobs, scored->logprobs->logprob);
        add_top(&lists->tops, tok, n_top, scored);
    } else {
        bt_text_buffer_add_literal(&lists->logprobs, "null");
        bt_text_buffer_add_literal(&lists->tops, "null");
    }
}

void bt_openai_lists_clear(struct bt_openai_lists *lists) {
    lists->tokens.n_bytes = lists->logprobs.n_bytes = 0;
    lists->tops.n_bytes = lists->offsets.n_bytes = 0;
}

void bt_openai_lists_fini(struct bt_openai_lists *lists) {
    bt_text_buffer_fini(&lists->tokens);
    bt_text_buffer_fini(&lists->logprobs);
    bt_text_buffer_fini(&lists->tops);
    bt_text_buffer_fini(&lists->offsets);
}

static void add_list(struct bt_text_buffer *out, const char *name,
                     const struct bt_text_buffer *first, const struct bt_text_buffer *second) {
    bt_text_buffer_add_string(out, name);
    if (first)
        bt_text_buffer_add(out, first->data, first->n_bytes);
    bt_text_buffer_add(out, ",", first && second && first->n_bytes && second->n_bytes);
    if (second)
        bt_text_buffer_add(out, second->data, second->n_bytes);
    out->failed = out->failed || (first && first->failed) || (second && second->failed);
}

void bt_openai_lists_write(struct bt_text_buffer *out, const struct bt_openai_lists *first,
                           const struct bt_openai_lists *second) {
    const struct bt_openai_lists *a = first, *b = second;
    add_list(out, "{\"tokens\":[", a ? &a->tokens : NULL, b ? &b->tokens : NULL);
    add_list(out, "],\"token_logprobs\":[", a ? &a->logprobs : NULL, b ? &b->logprobs : NULL);
    add_list(out, "],\"top_logprobs\":[", a ? &a->tops : NULL, b ? &b->tops : NULL);
    add_list(out, "],\"text_offset\":[", a ? &a->offsets : NULL, b ? &b->offsets : NULL);
    bt_text_buffer_add_literal(out, "]}");
}

/* ---- prompts, as vLLM has them ---- */

static void add_ranked(struct bt_text_buffer *out, const struct bt_tokenizer *tok, int32_t token,
                       float logprob, uint32_t rank) {
    bt_text_buffer_add_literal(out, "\"");
    bt_text_buffer_add_i64(out, token);
    bt_text_buffer_add_literal(out, "\":{\"logprob\":");
    add_number(out, logprob);
    bt_text_buffer_add_literal(out, ",\"rank\":");
    if (rank)
        bt_text_buffer_add_u64(out, rank);
    else
        bt_text_buffer_add_literal(out, "null");
    bt_text_buffer_add_literal(out, ",\"decoded_token\":");
    add_token(out, tok, token);
    bt_text_buffer_add_literal(out, "}");
}

void bt_openai_write_prompt_logprob(struct bt_text_buffer *out, const struct bt_tokenizer *tok,
                                    uint32_t n_top, const struct bt_openai_scored *scored) {
    const struct bt_logprobs *logprobs = scored->logprobs;
    if (!logprobs) {
        bt_text_buffer_add_literal(out, "null");
        return;
    }
    uint32_t n = shown(logprobs, n_top);
    bt_text_buffer_add_literal(out, "{");
    for (uint32_t i = 0; i < n; i++) {
        bt_text_buffer_add(out, ",", i > 0);
        add_ranked(out, tok, logprobs->top[i].token, logprobs->top[i].logprob, i + 1);
    }
    if (rank_of(logprobs, n, scored->token) == n) {
        /* Its rank is known only where more were asked for than are shown here. */
        uint32_t rank = rank_of(logprobs, logprobs->n_top, scored->token);
        bt_text_buffer_add(out, ",", n > 0);
        add_ranked(out, tok, scored->token, logprobs->logprob,
                   rank < logprobs->n_top ? rank + 1 : 0);
    }
    bt_text_buffer_add_literal(out, "}");
}

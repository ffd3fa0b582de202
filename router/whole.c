/* Collects an answer and sends it as one JSON object. */
#include "router/whole.h"

#include <stdlib.h>

#include "router/prompt.h"

static struct bt_whole *of(struct bt_request_sink *sink) {
    return (struct bt_whole *)(void *)sink;
}

static void begin(struct bt_request_sink *sink, const struct bt_sink_begin *given) {
    struct bt_whole *whole = of(sink);
    for (uint32_t p = 0; p < given->n_prompts; p++)
        whole->answer->n_prompt += given->prompts[p].n_ids;
}

/* An answer is bounded by its max_tokens; it never waits for the client. */
static bool is_full(const struct bt_request_sink *sink) {
    (void)sink;
    return false;
}

static bool grow(struct bt_whole *whole) {
    if (whole->n_tokens < whole->capacity)
        return true;
    uint32_t capacity = whole->capacity ? 2 * whole->capacity : 64;
    int32_t *tokens = realloc(whole->tokens, capacity * sizeof *tokens);
    if (tokens)
        whole->tokens = tokens;
    uint64_t *hashes = realloc(whole->hashes, capacity * sizeof *hashes);
    if (hashes)
        whole->hashes = hashes;
    if (!tokens || !hashes)
        return false;
    whole->capacity = capacity;
    return true;
}

static void scores(struct bt_request_sink *sink, const struct bt_scores *given) {
    (void)sink, (void)given; /* no request asks for them yet */
}

static void piece(struct bt_request_sink *sink, const struct bt_piece *given) {
    struct bt_whole *whole = of(sink);
    if (!whole->call || whole->failed)
        return;
    bt_text_buffer_add(&whole->text, given->text.data, given->text.n_bytes);
    if (given->finish != BT_FINISH_NONE)
        whole->finish = given->finish;
    if (!whole->answer->return_token_ids && !whole->answer->return_logits_hash) {
        whole->n_tokens++;
        return;
    }
    if (!grow(whole)) {
        whole->failed = true;
        return;
    }
    whole->tokens[whole->n_tokens] = given->token;
    whole->hashes[whole->n_tokens++] = given->hash;
}

static void write_answer(struct bt_whole *whole, struct bt_text_buffer *body) {
    const struct bt_openai_whole all = {
        .text = {whole->text.data, whole->text.n_bytes},
        .tokens = whole->tokens,
        .hashes = whole->hashes,
        .n_generated = whole->n_tokens,
        .finish = whole->finish,
    };
    struct bt_text_buffer extra = {0};
    if (whole->add_extra)
        whole->add_extra(whole, &extra);
    bt_openai_write_whole(body, whole->answer, &all, (struct bt_slice){extra.data, extra.n_bytes});
    bt_text_buffer_fini(&extra);
}

static void end(struct bt_request_sink *sink, const struct bt_sink_end *given) {
    struct bt_whole *whole = of(sink);
    if (!whole->call)
        return;
    struct bt_text_buffer body = {0};
    int code = bt_status_http(given->status);
    if (given->status == BT_OK && !whole->failed && !whole->text.failed)
        write_answer(whole, &body);
    if (given->status == BT_OK && !body.n_bytes)
        code = bt_status_http(BT_E_NO_MEMORY);
    if (code != 200)
        bt_openai_write_error(&body, code, *given->reason ? given->reason : "out of memory", NULL,
                              NULL);
    struct bt_http_call *call = whole->call;
    whole->call = NULL;
    bt_http_call_set_id(call, whole->answer->id);
    bt_http_call_reply(call, code, "application/json", (struct bt_slice){body.data, body.n_bytes},
                       code == 429 || code == 503 ? "Retry-After: 1\r\n" : NULL);
    bt_text_buffer_fini(&body);
    whole->on_done(whole);
}

static const struct bt_request_sink_ops ops = {
    .begin = begin, .is_full = is_full, .scores = scores, .piece = piece, .end = end};

void bt_whole_init(struct bt_whole *whole, struct bt_http_call *call,
                   struct bt_openai_answer *answer, void (*on_done)(struct bt_whole *whole)) {
    *whole = (struct bt_whole){.base = {&ops}, .call = call, .answer = answer, .on_done = on_done};
}

void bt_whole_fini(struct bt_whole *whole) {
    bt_text_buffer_fini(&whole->text);
    free(whole->tokens);
    free(whole->hashes);
    whole->tokens = NULL;
    whole->hashes = NULL;
    whole->call = NULL;
}

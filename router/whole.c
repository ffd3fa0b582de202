/* Collects an answer and sends it as one JSON object. */
#include "router/whole.h"

#include <stdlib.h>

static struct bt_whole *of(struct bt_request_sink *sink) {
    return (struct bt_whole *)(void *)sink;
}

static void begin(struct bt_request_sink *sink, const struct bt_sink_begin *given) {
    struct bt_whole *whole = of(sink);
    bt_openai_answer_begin(whole->answer, given);
    whole->choices = calloc(given->n_choices, sizeof *whole->choices);
}

/* An answer is bounded by its max_tokens; it never waits for the client. */
static bool is_full(const struct bt_request_sink *sink) {
    (void)sink;
    return false;
}

static void scores(struct bt_request_sink *sink, const struct bt_scores *given) {
    bt_openai_answer_scores(of(sink)->answer, given);
}

static void piece(struct bt_request_sink *sink, const struct bt_piece *given) {
    struct bt_whole *whole = of(sink);
    if (whole->call && whole->choices && !whole->answer->failed)
        bt_openai_choice_add(&whole->choices[given->choice], whole->answer, given);
}

/* Nothing where memory was short. */
static void write_answer(struct bt_whole *whole, const struct bt_sink_end *end,
                         struct bt_text_buffer *body) {
    struct bt_text_buffer extra = {0};
    if (!whole->choices || whole->answer->failed)
        return;
    if (whole->add_extra)
        whole->add_extra(whole, &extra);
    bt_openai_write_whole(body, whole->answer, whole->choices, end,
                          (struct bt_slice){extra.data, extra.n_bytes});
    bt_text_buffer_fini(&extra);
    if (body->failed)
        bt_text_buffer_fini(body);
}

static void end(struct bt_request_sink *sink, const struct bt_sink_end *given) {
    struct bt_whole *whole = of(sink);
    if (!whole->call)
        return;
    struct bt_text_buffer body = {0};
    int code = bt_status_http(given->status);
    if (given->status == BT_OK)
        write_answer(whole, given, &body);
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
    for (uint32_t i = 0; whole->choices && i < whole->answer->n_choices; i++)
        bt_openai_choice_fini(&whole->choices[i]);
    free(whole->choices);
    whole->choices = NULL;
    whole->call = NULL;
}

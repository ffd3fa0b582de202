/* From token ids to pieces of text, with stop strings and back-pressure. */
#include "router/generation.h"

#include <stdlib.h>
#include <string.h>

void bt_generation_init(struct bt_generation *gen, const struct bt_tokenizer *tok,
                        bool skip_special_tokens, struct bt_stop_filter *stops,
                        struct bt_request_sink *sink, uint64_t now_us) {
    *gen = (struct bt_generation){.sink = sink, .stops = stops, .arrived_us = now_us};
    bt_detokenizer_init(&gen->detokenizer, tok, skip_special_tokens);
}

void bt_generation_fini(struct bt_generation *gen) {
    free(gen->stops);
    free(gen->held);
    free(gen->end_reason);
    gen->stops = NULL;
    gen->held = NULL;
    gen->end_reason = NULL;
}

/* Gives the sink one token's piece. True where a stop string is complete. */
static bool give(struct bt_generation *gen, const struct bt_held_token *token) {
    char text[2 * BT_TOKEN_TEXT_BYTES], shown[2 * BT_TOKEN_TEXT_BYTES + 2 * BT_STOP_BYTES];
    struct bt_piece piece = {.index = gen->n_generated,
                             .token = token->token,
                             .hash = token->hash,
                             .finish = token->finish};
    bool last = token->finish != BT_FINISH_NONE, matched = false;
    size_t n = bt_detokenizer_push(&gen->detokenizer, token->token, text);
    if (last)
        n += bt_detokenizer_flush(&gen->detokenizer, text + n);
    piece.text = (struct bt_slice){text, n};
    if (gen->stops) {
        size_t n_shown = 0;
        matched = bt_stop_filter_push(gen->stops, piece.text, shown, &n_shown) == BT_DONE;
        if (matched)
            piece.finish = BT_FINISH_STOP;
        else if (last)
            n_shown += bt_stop_filter_flush(gen->stops, shown + n_shown);
        piece.text = (struct bt_slice){shown, n_shown};
    }
    gen->n_generated++;
    gen->sink->ops->piece(gen->sink, &piece);
    gen->stopped = matched;
    return matched && !last;
}

static bool hold(struct bt_generation *gen, const struct bt_held_token *token) {
    if (gen->held_first + gen->n_held == gen->held_capacity) {
        uint32_t capacity = gen->held_capacity ? 2 * gen->held_capacity : 64;
        struct bt_held_token *held = realloc(gen->held, capacity * sizeof *held);
        if (!held)
            return false;
        gen->held = held;
        gen->held_capacity = capacity;
    }
    gen->held[gen->held_first + gen->n_held++] = *token;
    return true;
}

/* True where a stop string is complete. */
static bool give_held(struct bt_generation *gen, bool although_full) {
    bool matched = false;
    while (gen->n_held && !gen->stopped && (although_full || !gen->sink->ops->is_full(gen->sink))) {
        gen->n_held--;
        matched = give(gen, &gen->held[gen->held_first++]);
    }
    if (gen->stopped)
        gen->n_held = 0;
    if (!gen->n_held)
        gen->held_first = 0;
    return matched;
}

bool bt_generation_emit(struct bt_generation *gen, int32_t token, enum bt_finish finish,
                        uint64_t hash) {
    struct bt_held_token row = {token, finish, hash};
    if (gen->stopped)
        return false;
    if (!gen->n_held && !gen->sink->ops->is_full(gen->sink))
        return give(gen, &row);
    if (hold(gen, &row))
        return false;
    /* Without memory to hold it the sink takes all although it is full: no token is ever lost. */
    return give_held(gen, true) || (!gen->stopped && give(gen, &row));
}

static void finish(struct bt_generation *gen) {
    if (!gen->ended || gen->finished || gen->n_held)
        return;
    const struct bt_sink_end end = {gen->end_status, gen->end_reason ? gen->end_reason : "",
                                    gen->n_generated};
    gen->finished = true;
    gen->sink->ops->end(gen->sink, &end);
}

bool bt_generation_resume(struct bt_generation *gen) {
    bool matched = give_held(gen, false);
    finish(gen);
    return matched;
}

void bt_generation_end(struct bt_generation *gen, bt_status status, const char *reason) {
    gen->req = NULL;
    gen->ended = true;
    gen->end_status = status;
    /* Without memory for it the sentence is lost, not the status. */
    gen->end_reason = reason && *reason ? strdup(reason) : NULL;
    finish(gen);
}

/* From token ids to pieces of text, with stop strings and back-pressure. */
#include "router/generation.h"

#include <stdlib.h>

#include "common/text/utf8.h"

/* Logprobs are many bytes, and most requests ask for none: they are held apart. */
struct bt_held_token {
    int32_t token;
    enum bt_finish finish;
    uint64_t hash;
    struct bt_logprobs *logprobs; /* owned; NULL: none */
};

void bt_generation_init(struct bt_generation *gen, const struct bt_tokenizer *tok,
                        bool skip_special_tokens, struct bt_stop_filter *stops,
                        struct bt_request_sink *sink, uint32_t choice) {
    *gen = (struct bt_generation){.sink = sink, .stops = stops, .choice = choice};
    bt_detokenizer_init(&gen->detokenizer, tok, skip_special_tokens);
}

static void drop_held(struct bt_generation *gen) {
    for (; gen->n_held; gen->n_held--)
        free(gen->held[gen->held_first++].logprobs);
    gen->held_first = 0;
}

void bt_generation_fini(struct bt_generation *gen) {
    drop_held(gen);
    free(gen->stops);
    free(gen->held);
    gen->stops = NULL;
    gen->held = NULL;
}

/* Gives the sink one token's piece. True where a stop string is complete. */
static bool give(struct bt_generation *gen, const struct bt_emitted *emitted) {
    char text[2 * BT_TOKEN_TEXT_BYTES], shown[2 * BT_TOKEN_TEXT_BYTES + 2 * BT_STOP_BYTES];
    struct bt_piece piece = {.choice = gen->choice,
                             .index = gen->n_generated,
                             .token = emitted->token,
                             .hash = emitted->hash,
                             .logprobs = emitted->logprobs,
                             .offset = gen->n_chars,
                             .finish = emitted->finish,
                             .stop_string = -1};
    bool last = emitted->finish != BT_FINISH_NONE, matched = false;
    size_t n = bt_detokenizer_push(&gen->detokenizer, emitted->token, text);
    if (last)
        n += bt_detokenizer_flush(&gen->detokenizer, text + n);
    piece.text = (struct bt_slice){text, n};
    gen->n_chars += bt_utf8_count(text, n);
    if (gen->stops) {
        size_t n_shown = 0;
        matched = bt_stop_filter_push(gen->stops, piece.text, shown, &n_shown) == BT_DONE;
        if (matched) {
            piece.finish = BT_FINISH_STOP;
            piece.stop_string = gen->stops->matched;
        } else if (last)
            n_shown += bt_stop_filter_flush(gen->stops, shown + n_shown);
        piece.text = (struct bt_slice){shown, n_shown};
    }
    gen->n_generated++;
    gen->sink->ops->piece(gen->sink, &piece);
    gen->stopped = matched;
    return matched && !last;
}

/* The token that had to be generated ends the choice, without being shown. */
static void give_end_only(struct bt_generation *gen) {
    const struct bt_piece piece = {
        .choice = gen->choice, .token = -1, .finish = BT_FINISH_LENGTH, .stop_string = -1};
    gen->stopped = true;
    gen->sink->ops->piece(gen->sink, &piece);
}

static bool is_blocked(const struct bt_generation *gen) {
    return gen->waits || gen->sink->ops->is_full(gen->sink);
}

static bool hold(struct bt_generation *gen, const struct bt_emitted *emitted) {
    struct bt_held_token row = {emitted->token, emitted->finish, emitted->hash, NULL};
    if (gen->held_first + gen->n_held == gen->held_capacity) {
        uint32_t capacity = gen->held_capacity ? 2 * gen->held_capacity : 64;
        struct bt_held_token *held = realloc(gen->held, capacity * sizeof *held);
        if (!held)
            return false;
        gen->held = held;
        gen->held_capacity = capacity;
    }
    if (emitted->logprobs) {
        row.logprobs = malloc(sizeof *row.logprobs);
        if (!row.logprobs)
            return false;
        *row.logprobs = *emitted->logprobs;
    }
    gen->held[gen->held_first + gen->n_held++] = row;
    return true;
}

/* True where a stop string is complete. */
static bool give_held(struct bt_generation *gen, bool although_full) {
    bool matched = false;
    while (gen->n_held && !gen->stopped && (although_full || !is_blocked(gen))) {
        struct bt_held_token *row = &gen->held[gen->held_first++];
        const struct bt_emitted emitted = {row->token, row->finish, row->hash, row->logprobs};
        gen->n_held--;
        if (gen->prompt_only)
            give_end_only(gen);
        else
            matched = give(gen, &emitted);
        free(row->logprobs);
    }
    if (gen->stopped)
        drop_held(gen);
    if (!gen->n_held)
        gen->held_first = 0;
    return matched;
}

bool bt_generation_emit(struct bt_generation *gen, const struct bt_emitted *emitted) {
    if (gen->stopped || !gen->sink)
        return false;
    if (gen->n_held || is_blocked(gen)) {
        if (hold(gen, emitted))
            return false;
        /* Without memory to hold it the sink takes all although it is full: no token is ever lost.
         */
        if (give_held(gen, true))
            return true;
    }
    if (gen->stopped)
        return false;
    if (gen->prompt_only) {
        give_end_only(gen);
        return false;
    }
    return give(gen, emitted);
}

bool bt_generation_resume(struct bt_generation *gen) {
    return gen->sink && give_held(gen, false);
}

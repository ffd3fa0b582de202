/* The simulator's model: page contents and tokens as hashes of what went before. */
#include <string.h>

#include "common/base/assert.h"
#include "sim.h"

uint64_t sim_mix(uint64_t a, uint64_t b) {
    uint64_t x = a * UINT64_C(0x9e3779b97f4a7c15) ^ b;
    x ^= x >> 30;
    x *= UINT64_C(0xbf58476d1ce4e5b9);
    x ^= x >> 27;
    x *= UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

uint64_t sim_next(struct sim_random *random) {
    random->state += UINT64_C(0x9e3779b97f4a7c15);
    return sim_mix(random->state, 0x5eed);
}

uint32_t sim_below(struct sim_random *random, uint32_t n) {
    return (uint32_t)(sim_next(random) % n);
}

bool sim_chance(struct sim_random *random, uint32_t percent) {
    return sim_below(random, 100) < percent;
}

uint64_t sim_sum(uint64_t contents) {
    return sim_mix(contents, 0x5a);
}

/* What stands in a page after one more position: of the token, and of what attention saw before it,
 * which is the contents of the page of the position before. */
static uint64_t extend(uint64_t before, int32_t token, uint32_t position) {
    if (position % BT_PAGE_TOKENS == 0)
        before = sim_mix(before, 0x9a9e);
    return sim_mix(before, sim_mix((uint64_t)(uint32_t)token, position));
}

static void logprobs_of(uint64_t logits, int32_t token, uint32_t n_top, struct bt_logprobs *out) {
    *out = (struct bt_logprobs){.n_top = (uint8_t)n_top};
    out->logprob = -(float)(sim_mix(logits, (uint32_t)token) % 4096) / 64;
    for (uint32_t i = 0; i < n_top; i++) {
        out->top[i].token = (int32_t)(sim_mix(logits, i ^ 0x70) % SIM_VOCAB);
        out->top[i].logprob = -(float)i;
    }
}

/* Of the logits as they are; the bias bends what the token is drawn from. */
static void token_of(uint64_t seen, uint32_t n_tokens, uint32_t n_prompt,
                     const struct bt_sampling *sampling, struct bt_step_result *result) {
    uint64_t logits = sim_mix(seen, n_tokens), bent = logits;
    for (uint32_t i = 0; i < sampling->n_bias; i++) {
        uint32_t bits;
        memcpy(&bits, &sampling->bias[i].bias, sizeof bits);
        bent = sim_mix(bent, (uint64_t)(uint32_t)sampling->bias[i].token << 32 | bits);
    }
    int32_t token = (int32_t)(sim_mix(bent, sampling->seed) % SIM_VOCAB);
    uint32_t index = n_tokens - n_prompt;
    bool ends = token % SIM_EOS_MOD == 0 && !sampling->ignore_eos && index >= sampling->min_tokens;
    *result = (struct bt_step_result){.token = token,
                                      .finish = ends ? BT_FINISH_STOP : BT_FINISH_NONE,
                                      .hash = sampling->want_hash ? logits | 1 : 0};
    if (sampling->logprobs)
        logprobs_of(logits, token, sampling->logprobs - 1u, &result->logprobs);
}

static uint64_t seen_after(const int32_t *tokens, uint32_t n_tokens) {
    uint64_t seen = 1;
    for (uint32_t layer = 0; layer < SIM_LAYERS; layer++) {
        uint64_t contents = layer + 1;
        for (uint32_t i = 0; i < n_tokens; i++) {
            contents = extend(contents, tokens[i], i);
            if ((i + 1) % BT_PAGE_TOKENS == 0 || i + 1 == n_tokens) /* what a page then holds */
                seen = sim_mix(seen, contents);
        }
    }
    return seen;
}

void sim_oracle(const int32_t *tokens, uint32_t n_tokens, uint32_t n_prompt,
                const struct bt_sampling *sampling, struct bt_step_result *result) {
    token_of(seen_after(tokens, n_tokens), n_tokens, n_prompt, sampling, result);
    if (result->finish == BT_FINISH_NONE && n_tokens - n_prompt + 1 >= sampling->max_tokens)
        result->finish = BT_FINISH_LENGTH;
}

void sim_oracle_score(const int32_t *tokens, uint32_t position, uint32_t n_top,
                      struct bt_logprobs *out) {
    logprobs_of(sim_mix(seen_after(tokens, position), position), tokens[position], n_top, out);
}

bool sim_logprobs_equal(const struct bt_logprobs *a, const struct bt_logprobs *b) {
    bool equal = a->logprob == b->logprob && a->n_top == b->n_top;
    for (uint32_t i = 0; equal && i < a->n_top; i++)
        equal = a->top[i].token == b->top[i].token && a->top[i].logprob == b->top[i].logprob;
    return equal;
}

void sim_engine_layer(struct sim_node *node, uint32_t layer) {
    const struct bt_step *step = node->step;
    uint64_t *contents = node->contents + (size_t)layer * node->n_pages;
    BT_ASSERT(step->n_rows <= SIM_ROWS);
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct bt_step_seq *seq = &step->seqs[i];
        for (uint32_t row = 0; row < seq->n_rows; row++) {
            uint32_t position = seq->position + row;
            uint64_t before =
                position ? contents[seq->pages[(position - 1) / BT_PAGE_TOKENS]] : layer + 1;
            uint64_t after = extend(before, step->tokens[seq->first_row + row], position);
            contents[seq->pages[position / BT_PAGE_TOKENS]] = after;
            node->rows[layer][seq->first_row + row] = after;
        }
        for (uint32_t k = 0; k < seq->n_sums; k++)
            step->sums[(size_t)layer * step->n_sums + seq->sums_at + k] =
                sim_sum(contents[seq->pages[seq->first_sum + k]]);
    }
}

/* What a row sees: the pages before its own as they are, its own as it was after that row. */
static uint64_t seen_by_row(const struct sim_node *node, const struct bt_step_seq *seq,
                            uint32_t row) {
    uint64_t seen = 1;
    uint32_t last_page = (seq->position + row) / BT_PAGE_TOKENS;
    for (uint32_t layer = 0; layer < SIM_LAYERS; layer++) {
        for (uint32_t page = 0; page < last_page; page++)
            seen = sim_mix(seen, node->contents[(size_t)layer * node->n_pages + seq->pages[page]]);
        seen = sim_mix(seen, node->rows[layer][seq->first_row + row]);
    }
    return seen;
}

void sim_engine_results(struct sim_node *node, struct sim_random *random, bool nonfinite) {
    struct bt_step *step = node->step;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct bt_step_seq *seq = &step->seqs[i];
        struct bt_step_result *result = &step->results[i];
        *result = (struct bt_step_result){.token = -1};
        for (uint32_t row = 0; row < seq->n_scores; row++) {
            uint32_t position = seq->position + row + 1;
            logprobs_of(sim_mix(seen_by_row(node, seq, row), position), seq->next[row],
                        seq->score_top, &seq->scores[row]);
        }
        if (seq->sample)
            token_of(seen_by_row(node, seq, seq->n_rows - 1), seq->n_history, seq->n_prompt,
                     seq->sampling, result);
        if (nonfinite && (seq->sample || seq->n_scores) &&
            sim_chance(random, seq->index ? 5 : 20)) {
            result->finish = BT_FINISH_ERROR;
            result->token = -1;
        }
    }
}

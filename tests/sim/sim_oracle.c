/* The simulator's model: page contents and tokens as hashes of what went before. */
#include <string.h>

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

static int32_t token_of(uint64_t seen, uint32_t n_tokens, uint32_t n_prompt,
                        const struct bt_sampling *sampling, enum bt_finish *finish,
                        uint64_t *hash) {
    uint64_t logits = sim_mix(seen, n_tokens);
    int32_t token = (int32_t)(sim_mix(logits, sampling->seed) % SIM_VOCAB);
    uint32_t index = n_tokens - n_prompt;
    bool ends = token % SIM_EOS_MOD == 0 && !sampling->ignore_eos && index >= sampling->min_tokens;
    *finish = ends ? BT_FINISH_STOP : BT_FINISH_NONE;
    *hash = sampling->want_hash ? logits | 1 : 0;
    return token;
}

int32_t sim_oracle(const int32_t *tokens, uint32_t n_tokens, uint32_t n_prompt,
                   const struct bt_sampling *sampling, enum bt_finish *finish, uint64_t *hash) {
    uint64_t seen = 1;
    for (uint32_t layer = 0; layer < SIM_LAYERS; layer++) {
        uint64_t contents = layer + 1;
        for (uint32_t i = 0; i < n_tokens; i++) {
            contents = extend(contents, tokens[i], i);
            if ((i + 1) % BT_PAGE_TOKENS == 0 || i + 1 == n_tokens) /* what a page then holds */
                seen = sim_mix(seen, contents);
        }
    }
    int32_t token = token_of(seen, n_tokens, n_prompt, sampling, finish, hash);
    if (*finish == BT_FINISH_NONE && n_tokens - n_prompt + 1 >= sampling->max_tokens)
        *finish = BT_FINISH_LENGTH;
    return token;
}

void sim_engine_layer(struct sim_node *node, uint32_t layer) {
    const struct bt_step *step = node->step;
    uint64_t *contents = node->contents + (size_t)layer * node->n_pages;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct bt_step_seq *seq = &step->seqs[i];
        for (uint32_t row = 0; row < seq->n_rows; row++) {
            uint32_t position = seq->position + row;
            uint64_t before =
                position ? contents[seq->pages[(position - 1) / BT_PAGE_TOKENS]] : layer + 1;
            contents[seq->pages[position / BT_PAGE_TOKENS]] =
                extend(before, step->tokens[seq->first_row + row], position);
        }
        for (uint32_t k = 0; k < seq->n_sums; k++)
            step->sums[(size_t)layer * step->n_sums + seq->sums_at + k] =
                sim_sum(contents[seq->pages[seq->first_sum + k]]);
    }
}

void sim_engine_results(struct sim_node *node, struct sim_random *random, bool nonfinite) {
    struct bt_step *step = node->step;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct bt_step_seq *seq = &step->seqs[i];
        if (!seq->sample)
            continue;
        uint64_t seen = 1;
        for (uint32_t layer = 0; layer < SIM_LAYERS; layer++)
            for (uint32_t page = 0; page * BT_PAGE_TOKENS < seq->n_history; page++)
                seen =
                    sim_mix(seen, node->contents[(size_t)layer * node->n_pages + seq->pages[page]]);
        struct bt_step_result *result = &step->results[i];
        result->token = token_of(seen, seq->n_history, seq->n_prompt, seq->sampling,
                                 &result->finish, &result->hash);
        if (nonfinite && sim_chance(random, seq->index ? 5 : 20)) {
            result->finish = BT_FINISH_ERROR;
            result->token = -1;
        }
    }
}

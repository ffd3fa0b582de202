/* Puts the parts of several sequences together into one step for the engine: continuous batching.
 *
 * Pure. The cores decide who runs and how far; this fills struct bt_step within its bounds. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/engine/step.h"

struct bt_batch {
    struct bt_step step; /* what is posted; borrowed by the engine until its result */
    uint32_t max_rows, max_seqs, max_sums, max_scores, n_layers;
    int32_t *tokens;
    struct bt_logprobs *scores; /* [max_scores] */
    uint32_t n_scores;
};

/* max_sums: pages of one step whose sums may be wanted, over all sequences; max_scores: rows that
 * may be scored, as many. */
bt_status bt_batch_init(struct bt_batch *batch, uint32_t max_rows, uint32_t max_seqs,
                        uint32_t max_sums, uint32_t max_scores, uint32_t n_layers,
                        struct bt_error *err);
void bt_batch_fini(struct bt_batch *batch); /* accepts a zeroed one */

/* Empties it; the step gets the next number. */
void bt_batch_begin(struct bt_batch *batch);
/* Rows, sequences and sums that still fit. */
uint32_t bt_batch_rows_left(const struct bt_batch *batch);

/* Everything of a sequence that a step needs; pointers are borrowed until the step's result. */
struct bt_batch_part {
    uint32_t seq;
    const int32_t *tokens; /* the whole sequence */
    uint32_t n_tokens, n_prompt;
    uint32_t position, n_rows; /* run tokens [position .. + n_rows) */
    const uint32_t *pages;
    uint32_t first_sum, n_sums; /* pages whose sums are wanted */
    uint32_t n_scores;          /* logprobs of tokens [position + 1 .. + n_scores) are wanted */
    uint8_t score_top;          /* likeliest tokens with each */
    bool sample;                /* position + n_rows == n_tokens */
    const struct bt_sampling *sampling;
};
/* False, and nothing changed, where it does not fit. */
bool bt_batch_add(struct bt_batch *batch, const struct bt_batch_part *part);
/* The sums of one layer for seqs[i] of the step: n_sums of them. */
const uint64_t *bt_batch_sums(const struct bt_batch *batch, uint32_t layer, uint32_t i);

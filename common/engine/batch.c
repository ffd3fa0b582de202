/* Puts the parts of several sequences together into one step for the engine. */
#include "common/engine/batch.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"

bt_status bt_batch_init(struct bt_batch *batch, uint32_t max_rows, uint32_t max_seqs,
                        uint32_t max_sums, uint32_t max_scores, uint32_t n_layers,
                        struct bt_error *err) {
    BT_ASSERT(max_rows && max_seqs && n_layers);
    memset(batch, 0, sizeof *batch);
    batch->max_rows = max_rows;
    batch->max_seqs = max_seqs;
    batch->max_sums = max_sums;
    batch->max_scores = max_scores;
    batch->n_layers = n_layers;
    batch->tokens = calloc(max_rows, sizeof *batch->tokens);
    batch->step.tokens = batch->tokens;
    batch->step.seqs = calloc(max_seqs, sizeof *batch->step.seqs);
    batch->step.results = calloc(max_seqs, sizeof *batch->step.results);
    batch->step.sums = calloc((size_t)n_layers * max_sums + 1, sizeof *batch->step.sums);
    batch->scores = calloc((size_t)max_scores + 1, sizeof *batch->scores);
    if (!batch->tokens || !batch->scores || !batch->step.seqs || !batch->step.results ||
        !batch->step.sums) {
        bt_batch_fini(batch);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a batch of %u rows", max_rows);
    }
    return BT_OK;
}

void bt_batch_fini(struct bt_batch *batch) {
    free(batch->tokens);
    free(batch->scores);
    free(batch->step.seqs);
    free(batch->step.results);
    free(batch->step.sums);
    memset(batch, 0, sizeof *batch);
}

void bt_batch_begin(struct bt_batch *batch) {
    batch->step.id++;
    batch->step.n_rows = 0;
    batch->step.n_seqs = 0;
    batch->step.n_sums = 0;
    batch->n_scores = 0;
}

uint32_t bt_batch_rows_left(const struct bt_batch *batch) {
    return batch->step.n_seqs < batch->max_seqs ? batch->max_rows - batch->step.n_rows : 0;
}

bool bt_batch_add(struct bt_batch *batch, const struct bt_batch_part *part) {
    struct bt_step *step = &batch->step;
    BT_ASSERT(part->n_rows > 0 && part->position + part->n_rows <= part->n_tokens);
    BT_ASSERT(!part->sample || part->position + part->n_rows == part->n_tokens);
    BT_ASSERT(part->n_scores <= part->n_rows && part->position + part->n_scores < part->n_tokens);
    if (part->n_rows > bt_batch_rows_left(batch) || part->n_sums > batch->max_sums - step->n_sums ||
        part->n_scores > batch->max_scores - batch->n_scores)
        return false;
    struct bt_step_seq *seq = &step->seqs[step->n_seqs++];
    *seq = (struct bt_step_seq){
        .seq = part->seq,
        .first_row = step->n_rows,
        .n_rows = part->n_rows,
        .position = part->position,
        .pages = part->pages,
        .first_sum = part->first_sum,
        .n_sums = part->n_sums,
        .sums_at = step->n_sums,
        .sample = part->sample,
    };
    if (part->sample) {
        seq->index = part->n_tokens - part->n_prompt;
        seq->sampling = part->sampling;
        seq->history = part->tokens;
        seq->n_history = part->n_tokens;
        seq->n_prompt = part->n_prompt;
    }
    if (part->n_scores) {
        seq->scores = batch->scores + batch->n_scores;
        seq->next = part->tokens + part->position + 1;
        seq->n_scores = part->n_scores;
        seq->score_top = part->score_top;
        batch->n_scores += part->n_scores;
    }
    memcpy(batch->tokens + step->n_rows, part->tokens + part->position,
           part->n_rows * sizeof *part->tokens);
    step->n_rows += part->n_rows;
    step->n_sums += part->n_sums;
    return true;
}

const uint64_t *bt_batch_sums(const struct bt_batch *batch, uint32_t layer, uint32_t i) {
    const struct bt_step *step = &batch->step;
    BT_ASSERT(layer < batch->n_layers && i < step->n_seqs);
    return step->sums + (size_t)layer * step->n_sums + step->seqs[i].sums_at;
}

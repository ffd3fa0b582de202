/* One batch for the model: new tokens of several sequences, and what comes back.
 *
 * This is the seam between the pure cores (which choose what to run, by page ids) and the engine
 * (which runs it). Prefill, chunked prefill and decode are the same step with other row counts.
 *
 * Ownership: a core fills the step and lends it with its STEP action; from the post to the result
 * neither it, nor what it points to, nor any page that it names is changed or freed. The engine
 * writes only `sums` and `results`. One step is outstanding per worker. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/sampling.h"

/* One sequence's part of a step. */
struct bt_step_seq {
    uint32_t seq;       /* the core's slot; comes back untouched */
    uint32_t first_row; /* its tokens are tokens[first_row .. + n_rows) */
    uint32_t n_rows;    /* >= 1 */
    uint32_t position;  /* of the first new token in the sequence; all before it are in the pages */
    const uint32_t
        *pages; /* pages[i] holds positions 16 i .. 16 i + 15; covers position + n_rows */

    /* Pages whose XXH3-64 is wanted as soon as a layer has filled them: pages[first_sum .. +
     * n_sums). Their sums in layer l are step.sums[l * step.n_sums + sums_at + i]. A page's unused
     * tail is zero. n_sums = 0 where nothing will be sent. */
    uint32_t first_sum, n_sums, sums_at;

    /* The token after the last row is wanted. */
    bool sample;
    uint32_t index;                     /* among the request's generated tokens */
    const struct bt_sampling *sampling; /* NULL unless sample */
    const int32_t *history;             /* all tokens up to the last row, for the penalties */
    uint32_t n_history, n_prompt;       /* history[n_prompt ..] were generated */

    /* Logprobs of the tokens that follow its rows: of next[0] after the first row, and so on; where
     * scores is not NULL, n_scores <= n_rows of them are written. */
    struct bt_logprobs *scores;
    const int32_t *next;
    uint32_t n_scores;
    uint8_t score_top; /* likeliest tokens wanted with each */
};

struct bt_step_result {
    int32_t token;         /* -1 where none is sampled */
    enum bt_finish finish; /* STOP: the token is EOS or a stop token that counts; ERROR: a logit was
                              not finite, in the row that is sampled or in one that is scored: token
                              is -1; else NONE (LENGTH is the core's to decide) */
    uint64_t hash;         /* of the logits row, if sampling.want_hash; else 0 */
    struct bt_logprobs logprobs; /* if sampling.logprobs */
};

struct bt_step {
    uint64_t id; /* rises by one */
    const int32_t *tokens;
    uint32_t n_rows;
    struct bt_step_seq *seqs;
    uint32_t n_seqs;
    uint64_t *sums; /* [layers][n_sums]; row l is complete when layer l is reported done */
    uint32_t n_sums;
    struct bt_step_result *results; /* [n_seqs]; meaningful where seqs[i].sample or n_scores */
};

/* Chooses the next token from a row of logits: bias, masks, penalties, temperature, min_p, top_k,
 * top_p, then a draw that depends on nothing but (seed, token index). docs/numerics.md "Sampling".
 *
 * The stream of a request is therefore the same wherever it runs and however often it is moved. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/engine/step.h"
#include "kernels/kernels.h"

/* Candidates with like values. */
struct bt_sampler_bucket {
    double mass;
    uint32_t n;
};

/* Memory for one choice at a time, so one for each thread that samples. */
struct bt_sampler {
    const struct bt_kernels *kernels;
    uint32_t n_vocab;
    const int32_t *eos; /* borrowed */
    uint32_t n_eos;
    float *values;    /* [n_vocab] the row as it is changed, then exp of it */
    uint32_t *ids;    /* [n_vocab] candidates of one bucket */
    uint32_t *counts; /* [n_vocab] how often each token was generated; all 0 between calls */
    uint8_t *seen;    /* [n_vocab] whether a token is in the history; all 0 between calls */
    double *marks;    /* [blocks of the vocabulary] the candidates' mass up to the end of each */
    struct bt_sampler_bucket *buckets; /* [2][buckets of values] */
    void *memory;                      /* that the arrays lie in */
};

/* BT_E_NO_MEMORY. eos is borrowed. */
bt_status bt_sampler_init(struct bt_sampler *sampler, const struct bt_kernels *kernels,
                          uint32_t n_vocab, const int32_t *eos, uint32_t n_eos,
                          struct bt_error *err);
/* Accepts a zeroed struct. */
void bt_sampler_fini(struct bt_sampler *sampler);
size_t bt_sampler_bytes(uint32_t n_vocab);

/* The token that follows the last row of seq. `logits` is left as it is. A non-finite logit gives
 * token -1 and BT_FINISH_ERROR. Hash and logprobs are made of the raw row, if they are wanted. */
struct bt_step_result bt_sampler_sample(struct bt_sampler *sampler, const struct bt_step_seq *seq,
                                        const float *logits);

/* Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). */
void bt_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* Log-softmax of a row for one token and for the likeliest ones, without sorting the row. */
#include "common/engine/logprobs.h"

#include "common/base/assert.h"

enum { LANES = 16, BLOCK = 1024 };

static double tree(const double v[LANES]) {
    double a[8];
    for (int i = 0; i < 8; i++)
        a[i] = v[i] + v[i + 8];
    for (int i = 0; i < 4; i++)
        a[i] += a[i + 4];
    return (a[0] + a[2]) + (a[1] + a[3]);
}

/* log of the sum of exp(logit - highest): each exp in f32, summed in double in 16 lanes by id, so
 * that neither threads nor instruction sets change the order. At least 0. */
static double log_of_sum(const struct bt_kernels *kernels, const float *logits, uint32_t n,
                         float highest) {
    double lanes[LANES] = {0};
    float e[BLOCK];
    for (uint32_t at = 0; at < n; at += BLOCK) {
        uint32_t n_block = n - at < BLOCK ? n - at : BLOCK, i = 0;
        kernels->exp(logits + at, highest, n_block, e);
        for (; i + LANES <= n_block; i += LANES)
            for (uint32_t lane = 0; lane < LANES; lane++)
                lanes[lane] += (double)e[i + lane];
        for (uint32_t lane = 0; i + lane < n_block; lane++)
            lanes[lane] += (double)e[i + lane];
    }
    return bt_kernels_log(tree(lanes));
}

/* Puts an id behind those that are not less; what falls off the end is dropped. */
static void insert(const float *logits, uint32_t id, uint32_t n_top, uint32_t *ids, uint32_t *n) {
    uint32_t at = *n < n_top ? (*n)++ : n_top - 1;
    for (; at > 0 && logits[ids[at - 1]] < logits[id]; at--)
        ids[at] = ids[at - 1];
    ids[at] = id;
}

/* The n_top highest, ties by id: ids come in ascending order, so a later one that is no higher than
 * the last one kept is no candidate, and most blocks hold none. */
static uint32_t find_top(const struct bt_kernels *kernels, const float *logits, uint32_t n_vocab,
                         uint32_t n_top, uint32_t *ids) {
    uint32_t n = 0;
    for (uint32_t at = 0; n_top && at < n_vocab; at += BLOCK) {
        uint32_t end = n_vocab - at < BLOCK ? n_vocab : at + BLOCK;
        if (n == n_top && kernels->max(logits + at, end - at) <= logits[ids[n - 1]])
            continue;
        for (uint32_t id = at; id < end; id++)
            if (n < n_top || logits[id] > logits[ids[n - 1]])
                insert(logits, id, n_top, ids, &n);
    }
    return n;
}

void bt_logprobs_make(const struct bt_kernels *kernels, const float *logits, uint32_t n_vocab,
                      int32_t token, uint32_t n_top, struct bt_logprobs *out) {
    BT_ASSERT(token >= 0 && (uint32_t)token < n_vocab && n_top <= BT_TOP_LOGPROBS);
    uint32_t ids[BT_TOP_LOGPROBS + 1];
    float highest = kernels->max(logits, n_vocab);
    double log_sum = log_of_sum(kernels, logits, n_vocab, highest);
    *out = (struct bt_logprobs){0};
    out->n_top = (uint8_t)find_top(kernels, logits, n_vocab, n_top, ids);
    for (uint32_t i = 0; i <= out->n_top; i++) {
        int32_t id = i < out->n_top ? (int32_t)ids[i] : token;
        float logprob = (float)(((double)logits[id] - (double)highest) - log_sum);
        if (!(logprob > BT_LOGPROB_MIN))
            logprob = BT_LOGPROB_MIN;
        if (logprob > 0) /* a denormal beside a highest of 0 */
            logprob = 0;
        if (i < out->n_top)
            out->top[i] = (struct bt_logprob){id, logprob};
        else
            out->logprob = logprob;
    }
}

/* Chooses the next token from a row of logits. */
#include "common/engine/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/base/assert.h"
#include "common/engine/logprobs.h"

/* ---- Philox4x32-10 (Salmon et al. 2011, section 3.3 and table 2) ---- */

void bt_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* In [0, 1): 24 bits, so that it is exact in f32 and double alike. Choice and draw are 0: a
 * choice is a request of its own, and one number is drawn for each token. */
static double draw(uint64_t seed, uint32_t index) {
    const uint32_t counter[4] = {index, 0, 0, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t random[4];
    bt_philox(counter, key, random);
    return (double)(random[0] >> 8) * 0x1p-24;
}

/* ---- Memory ---- */

size_t bt_sampler_bytes(uint32_t n_vocab) {
    size_t padded = ((size_t)n_vocab + 63) & ~(size_t)63;
    return padded * (sizeof(float) + 2 * sizeof(uint32_t) + 1);
}

bt_status bt_sampler_init(struct bt_sampler *sampler, const struct bt_kernels *kernels,
                          uint32_t n_vocab, const int32_t *eos, uint32_t n_eos,
                          struct bt_error *err) {
    size_t bytes = bt_sampler_bytes(n_vocab), padded = ((size_t)n_vocab + 63) & ~(size_t)63;
    uint8_t *memory = aligned_alloc(64, bytes);
    if (!memory)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a sampler: %zu bytes", bytes);
    memset(memory, 0, bytes);
    *sampler = (struct bt_sampler){
        .kernels = kernels,
        .n_vocab = n_vocab,
        .eos = eos,
        .n_eos = n_eos,
        .values = (float *)memory,
        .ids = (uint32_t *)(memory + 4 * padded),
        .counts = (uint32_t *)(memory + 8 * padded),
        .seen = memory + 12 * padded,
        .memory = memory,
    };
    return BT_OK;
}

void bt_sampler_fini(struct bt_sampler *sampler) {
    free(sampler->memory);
    *sampler = (struct bt_sampler){0};
}

/* ---- The row: bias, masks, penalties, temperature ---- */

static bool is_stop(const struct bt_sampler *s, const struct bt_sampling *how, int32_t token) {
    for (uint32_t i = 0; !how->ignore_eos && i < s->n_eos; i++)
        if (s->eos[i] == token)
            return true;
    for (uint32_t i = 0; i < how->n_stop_tokens; i++)
        if (how->stop_tokens[i] == token)
            return true;
    return false;
}

/* Tokens that would end the answer too early get `value`. */
static void mask_stops(struct bt_sampler *s, const struct bt_sampling *how, float value) {
    for (uint32_t i = 0; i < s->n_eos; i++)
        s->values[s->eos[i]] = value;
    for (uint32_t i = 0; i < how->n_stop_tokens; i++)
        if ((uint32_t)how->stop_tokens[i] < s->n_vocab)
            s->values[how->stop_tokens[i]] = value;
}

static void add_bias(struct bt_sampler *s, const struct bt_sampling *how) {
    for (uint32_t i = 0; i < how->n_bias; i++) {
        BT_ASSERT((uint32_t)how->bias[i].token < s->n_vocab);
        s->values[how->bias[i].token] += how->bias[i].bias;
    }
}

static bool has_penalties(const struct bt_sampling *how) {
    return how->repetition_penalty != 1 || how->frequency_penalty != 0 ||
           how->presence_penalty != 0;
}

/* Repetition over prompt and answer, then frequency and presence over the answer; each token once.
 */
static void punish(struct bt_sampler *s, const struct bt_step_seq *seq) {
    const struct bt_sampling *how = seq->sampling;
    for (uint32_t i = seq->n_prompt; i < seq->n_history; i++)
        s->counts[seq->history[i]]++;
    for (uint32_t i = 0; i < seq->n_history; i++) {
        uint32_t id = (uint32_t)seq->history[i];
        BT_ASSERT(id < s->n_vocab);
        if (s->seen[id])
            continue;
        s->seen[id] = 1;
        float v = s->values[id];
        if (how->repetition_penalty != 1)
            v = v > 0 ? v / how->repetition_penalty : v * how->repetition_penalty;
        if (s->counts[id]) {
            v -= (float)s->counts[id] * how->frequency_penalty;
            v -= how->presence_penalty;
        }
        s->values[id] = v;
    }
    for (uint32_t i = 0; i < seq->n_history; i++) {
        s->seen[seq->history[i]] = 0;
        s->counts[seq->history[i]] = 0;
    }
}

/* ---- The candidates ----
 *
 * values[] now holds exp(logit - highest), 0 where masked. A candidate is an id whose value is at
 * least `floor` (> 0) and which does not stand behind `last` in the order of values. */

struct cut {
    float floor;
    uint32_t last; /* UINT32_MAX: no such bound */
};

/* Whether a stands before b: higher value, then lower id. */
static bool before(const float *values, uint32_t a, uint32_t b) {
    return values[a] > values[b] || (values[a] == values[b] && a < b);
}

/* All candidates into ids, ascending; their number. */
static uint32_t collect(struct bt_sampler *s, const struct cut *cut) {
    uint32_t n = 0;
    for (uint32_t id = 0; id < s->n_vocab; id++) {
        bool in = s->values[id] >= cut->floor;
        if (in && cut->last != UINT32_MAX)
            in = !before(s->values, cut->last, id);
        s->ids[n] = id;
        n += in;
    }
    return n;
}

static double sum(const struct bt_sampler *s, uint32_t n) {
    double total = 0;
    for (uint32_t i = 0; i < n; i++)
        total += (double)s->values[s->ids[i]];
    return total;
}

/* Restores a heap, the first in order on top, below `at`. */
static void sift(const float *values, uint32_t *heap, uint32_t n, uint32_t at) {
    uint32_t id = heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= n)
            break;
        if (child + 1 < n && before(values, heap[child + 1], heap[child]))
            child++;
        if (!before(values, heap[child], id))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = id;
}

/* The candidates among which the first n_max, or the first with the mass `enough`, must be: those
 * above a floor, tried from high to low, so that a heap is made of few. The margin covers that the
 * mass is summed here in another order. */
static uint32_t collect_first(struct bt_sampler *s, const struct cut *cut, uint32_t n_max,
                              double enough) {
    static const float floors[] = {0x1p-7f, 0x1p-14f};
    for (size_t i = 0; i < sizeof floors / sizeof *floors && floors[i] > cut->floor; i++) {
        struct cut high = {floors[i], cut->last};
        uint32_t n = collect(s, &high);
        if (n >= n_max || sum(s, n) >= enough * (1 + 0x1p-30))
            return n;
    }
    return collect(s, cut);
}

/* The id at which the first candidates in order are n_max, or reach the mass `enough`. */
static uint32_t find_last(struct bt_sampler *s, const struct cut *cut, uint32_t n_max,
                          double enough) {
    uint32_t n = collect_first(s, cut, n_max, enough);
    for (uint32_t i = n / 2; i-- > 0;)
        sift(s->values, s->ids, n, i);
    double mass = 0;
    for (uint32_t taken = 1;; taken++) {
        uint32_t id = s->ids[0];
        mass += (double)s->values[id];
        if (taken == n_max || mass >= enough || n == 1)
            return id;
        s->ids[0] = s->ids[--n];
        sift(s->values, s->ids, n, 0);
    }
}

static int32_t pick(struct bt_sampler *s, const struct bt_sampling *how, uint32_t index) {
    struct cut cut = {how->min_p * s->kernels->max(s->values, s->n_vocab), UINT32_MAX};
    if (!(cut.floor > 0))
        cut.floor = 0x1p-126f; /* everything that is not masked; our exp gives no less */
    uint32_t n = collect(s, &cut);
    if (how->top_k > 0 && (uint32_t)how->top_k < n) {
        cut.last = find_last(s, &cut, (uint32_t)how->top_k, INFINITY);
        n = collect(s, &cut);
    }
    if (how->top_p < 1) {
        cut.last = find_last(s, &cut, n, (double)how->top_p * sum(s, n));
        n = collect(s, &cut);
    }
    double reach = draw(how->seed, index) * sum(s, n), mass = 0;
    for (uint32_t i = 0; i < n; i++) {
        mass += (double)s->values[s->ids[i]];
        if (mass >= reach)
            return (int32_t)s->ids[i];
    }
    return (int32_t)s->ids[n - 1];
}

/* ---- One choice ---- */

/* Below this, temperature is 0: the quotient of a logit could leave the range of f32, and no second
 * token would have a chance. */
static const float TEMPERATURE_MIN = 0x1p-20f;

static int32_t choose(struct bt_sampler *s, const struct bt_step_seq *seq, const float *logits) {
    const struct bt_sampling *how = seq->sampling;
    bool greedy = how->temperature < TEMPERATURE_MIN;
    bool masked = seq->index < how->min_tokens;
    if (greedy && !masked && !how->n_bias && !has_penalties(how))
        return (int32_t)s->kernels->argmax(logits, s->n_vocab);
    memcpy(s->values, logits, s->n_vocab * sizeof *logits);
    add_bias(s, how);
    if (masked)
        mask_stops(s, how, -INFINITY);
    if (has_penalties(how))
        punish(s, seq);
    float highest = s->kernels->max(s->values, s->n_vocab);
    if (!isfinite(highest))
        return -1;
    if (greedy)
        return (int32_t)s->kernels->argmax(s->values, s->n_vocab);
    s->kernels->divide(s->values, s->n_vocab, how->temperature);
    highest = s->kernels->max(s->values, s->n_vocab);
    s->kernels->exp(s->values, highest, s->n_vocab, s->values);
    if (masked)
        mask_stops(s, how, 0);
    return pick(s, how, seq->index);
}

struct bt_step_result bt_sampler_sample(struct bt_sampler *sampler, const struct bt_step_seq *seq,
                                        const float *logits) {
    struct bt_step_result result = {.token = -1, .finish = BT_FINISH_ERROR};
    if (seq->sampling->want_hash)
        result.hash = XXH3_64bits(logits, sampler->n_vocab * sizeof *logits);
    if (!sampler->kernels->all_finite(logits, sampler->n_vocab))
        return result;
    result.token = choose(sampler, seq, logits);
    if (result.token < 0)
        return result;
    result.finish = is_stop(sampler, seq->sampling, result.token) ? BT_FINISH_STOP : BT_FINISH_NONE;
    if (seq->sampling->logprobs)
        bt_logprobs_make(sampler->kernels, logits, sampler->n_vocab, result.token,
                         seq->sampling->logprobs - 1u, &result.logprobs);
    return result;
}

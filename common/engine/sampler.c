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

enum {
    BLOCK = 1024,   /* ids between two marks of the running mass */
    BUCKETS = 1024, /* of candidates; a power of two, above the highest 12 bits of 1.0f */
};

/* Hands out pieces of one allocation; with no base it only adds up. */
static void *carve(uint8_t *base, size_t *at, size_t bytes) {
    void *piece = base ? base + *at : NULL;
    *at += (bytes + 63) & ~(size_t)63;
    return piece;
}

static size_t lay_out(struct bt_sampler *s, uint32_t n_vocab, uint8_t *base) {
    size_t at = 0, n = n_vocab;
    s->values = carve(base, &at, n * sizeof *s->values);
    s->ids = carve(base, &at, n * sizeof *s->ids);
    s->counts = carve(base, &at, n * sizeof *s->counts);
    s->seen = carve(base, &at, n);
    s->marks = carve(base, &at, (n + BLOCK - 1) / BLOCK * sizeof *s->marks);
    s->buckets = carve(base, &at, 2 * BUCKETS * sizeof *s->buckets);
    return at;
}

size_t bt_sampler_bytes(uint32_t n_vocab) {
    struct bt_sampler unused;
    return lay_out(&unused, n_vocab, NULL);
}

bt_status bt_sampler_init(struct bt_sampler *sampler, const struct bt_kernels *kernels,
                          uint32_t n_vocab, const int32_t *eos, uint32_t n_eos,
                          struct bt_error *err) {
    size_t bytes = bt_sampler_bytes(n_vocab);
    uint8_t *memory = aligned_alloc(64, bytes);
    if (!memory)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a sampler: %zu bytes", bytes);
    memset(memory, 0, bytes);
    *sampler = (struct bt_sampler){
        .kernels = kernels, .n_vocab = n_vocab, .eos = eos, .n_eos = n_eos, .memory = memory};
    lay_out(sampler, n_vocab, memory);
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
 * values[] now holds exp(logit - highest), 0 where masked: 0 to 1, so that their bits are in the
 * order of the values. In the order of candidates a higher value stands first, then a lower id. */

/* The candidates: all up to the id `last` whose value is at least `floor` (> 0), behind it at least
 * `floor_behind`, the next higher number. So a cut at a candidate is its value and its id. */
struct cut {
    float floor, floor_behind;
    uint32_t last;
};

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static struct cut cut_at(float value, uint32_t id) {
    return (struct cut){value, float_of(bits_of(value) + 1), id};
}

static bool is_in(const float *values, uint32_t id, const struct cut *cut) {
    return values[id] >= (id <= cut->last ? cut->floor : cut->floor_behind);
}

/* The value of a candidate, 0 for others; without a branch, which nobody could predict. */
static double mass_of(float value, float floor) {
    return (double)float_of(bits_of(value) & -(uint32_t)(value >= floor));
}

/* The mass of the candidates in [from, end), added to `mass` one by one, ids ascending; what is
 * none adds 0, which changes no bit. */
static double add_mass(const float *values, uint32_t from, uint32_t end, const struct cut *cut,
                       double mass) {
    uint32_t id = from;
    for (; id < end && id <= cut->last; id++)
        mass += mass_of(values[id], cut->floor);
    for (; id < end; id++)
        mass += mass_of(values[id], cut->floor_behind);
    return mass;
}

/* The mass of all candidates; marks[i] is that up to the end of block i. */
static double sum(struct bt_sampler *s, const struct cut *cut) {
    double mass = 0;
    for (uint32_t from = 0, block = 0; from < s->n_vocab; from += BLOCK, block++) {
        uint32_t end = s->n_vocab - from < BLOCK ? s->n_vocab : from + BLOCK;
        mass = s->marks[block] = add_mass(s->values, from, end, cut, mass);
    }
    return mass;
}

/* ---- Where the first candidates in order end ----
 *
 * Found without sorting: candidates are counted by the highest bits of their values, then those in
 * the bucket where the bound falls by the next bits, then by the last ones. */

enum { LEVELS = 3 };
static const uint32_t shifts[LEVELS] = {20, 10, 0};

static uint32_t bucket_of(float value, int level) {
    return bits_of(value) >> shifts[level] & (BUCKETS - 1);
}

/* What stands before a place in the order, and where the search ends: after n_max candidates, or
 * when their mass is `enough`. */
struct search {
    uint32_t n, n_max;
    double mass, enough;
};

static bool reaches(const struct search *at, uint32_t n, double mass) {
    return at->n + n >= at->n_max || at->mass + mass >= at->enough;
}

/* The highest bucket with which the bound is reached, and what stands before it into `at`; BUCKETS:
 * none. */
static uint32_t find_bucket(const struct bt_sampler *s, struct search *at) {
    for (uint32_t i = BUCKETS; i-- > 0;) {
        const struct bt_sampler_bucket *a = &s->buckets[i], *b = &s->buckets[BUCKETS + i];
        uint32_t n = a->n + b->n;
        if (n && reaches(at, n, a->mass + b->mass))
            return i;
        at->n += n;
        at->mass += a->mass + b->mass;
    }
    return BUCKETS;
}

static void clear_buckets(struct bt_sampler *s) {
    memset(s->buckets, 0, 2 * BUCKETS * sizeof *s->buckets);
}

/* With a branch: mostly nearly all are candidates, or hardly any. */
static void add_to_bucket(struct bt_sampler_bucket *buckets, float value, float floor) {
    if (value < floor)
        return;
    struct bt_sampler_bucket *bucket = &buckets[bucket_of(value, 0)];
    bucket->n++;
    bucket->mass += (double)value;
}

/* Neighbours go to different sets of buckets: one need not wait for the sum of the other. */
static void fill_buckets(struct bt_sampler *s, uint32_t from, uint32_t end, float floor) {
    uint32_t id = from;
    for (; id + 1 < end; id += 2) {
        add_to_bucket(s->buckets, s->values[id], floor);
        add_to_bucket(s->buckets + BUCKETS, s->values[id + 1], floor);
    }
    if (id < end)
        add_to_bucket(s->buckets, s->values[id], floor);
}

/* Those of [from, end) in a bucket into ids behind the n that stand there. */
static uint32_t collect(struct bt_sampler *s, uint32_t from, uint32_t end, float floor,
                        uint32_t bucket, uint32_t n) {
    for (uint32_t id = from; id < end; id++) {
        s->ids[n] = id;
        n += (uint32_t)(bucket_of(s->values[id], 0) == bucket) & (uint32_t)(s->values[id] >= floor);
    }
    return n;
}

/* The candidates into buckets, then those of the bucket where the bound falls into ids, ascending;
 * their number, 0: the bound is not reached. */
static uint32_t search_all(struct bt_sampler *s, const struct cut *cut, struct search *at) {
    clear_buckets(s);
    fill_buckets(s, 0, cut->last + 1, cut->floor);
    fill_buckets(s, cut->last + 1, s->n_vocab, cut->floor_behind);
    uint32_t bucket = find_bucket(s, at);
    if (bucket == BUCKETS)
        return 0;
    uint32_t n = collect(s, 0, cut->last + 1, cut->floor, bucket, 0);
    return collect(s, cut->last + 1, s->n_vocab, cut->floor_behind, bucket, n);
}

/* The same among ids[0 .. n), by the bits of a further level. */
static uint32_t search_among(struct bt_sampler *s, uint32_t n, int level, struct search *at) {
    clear_buckets(s);
    for (uint32_t i = 0; i < n; i++) {
        float value = s->values[s->ids[i]];
        struct bt_sampler_bucket *bucket = &s->buckets[bucket_of(value, level)];
        bucket->n++;
        bucket->mass += (double)value;
    }
    uint32_t bucket = find_bucket(s, at), kept = 0;
    for (uint32_t i = 0; bucket < BUCKETS && i < n; i++) {
        uint32_t id = s->ids[i];
        s->ids[kept] = id;
        kept += bucket_of(s->values[id], level) == bucket;
    }
    return kept;
}

/* Narrows the cut to the first candidates that `at` asks for and leaves in `at` what stands before
 * the last of them. False: the bound is not reached, the cut stays as it is. */
static bool narrow(struct bt_sampler *s, struct cut *cut, struct search *at) {
    uint32_t n = search_all(s, cut, at);
    for (int level = 1; level < LEVELS; level++)
        n = search_among(s, n, level, at);
    /* What is left has one value. */
    for (uint32_t i = 0; i < n; i++) {
        double value = (double)s->values[s->ids[i]];
        if (reaches(at, 1, value)) {
            *cut = cut_at(s->values[s->ids[i]], s->ids[i]);
            return true;
        }
        at->n++;
        at->mass += value;
    }
    return false;
}

static void keep_top_k(struct bt_sampler *s, struct cut *cut, uint32_t k) {
    struct search at = {.n_max = k, .enough = INFINITY};
    narrow(s, cut, &at);
}

/* ---- Mass ----
 *
 * Which candidate reaches the mass that top_p asks for is decided by adding one by one in their
 * order, in double. Sums of buckets may differ from that in the last bits; where that could change
 * the choice, it is done one by one. */

/* Whether a stands before b. */
static bool before(const float *values, uint32_t a, uint32_t b) {
    return values[a] > values[b] || (values[a] == values[b] && a < b);
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

/* The candidate with which the mass is `enough`, or the last one. */
static uint32_t add_one_by_one(struct bt_sampler *s, const struct cut *cut, double enough) {
    uint32_t n = 0;
    for (uint32_t id = 0; id < s->n_vocab; id++) {
        s->ids[n] = id;
        n += is_in(s->values, id, cut);
    }
    for (uint32_t i = n / 2; i-- > 0;)
        sift(s->values, s->ids, n, i);
    for (double mass = 0;;) {
        uint32_t id = s->ids[0];
        mass += (double)s->values[id];
        if (mass >= enough || n == 1)
            return id;
        s->ids[0] = s->ids[--n];
        sift(s->values, s->ids, n, 0);
    }
}

static void keep_top_p(struct bt_sampler *s, struct cut *cut, float top_p) {
    double total = sum(s, cut), enough = (double)top_p * total;
    struct cut narrowed = *cut;
    struct search at = {.n_max = UINT32_MAX, .enough = enough};
    /* Two sums of n values of one sign, in any two orders, are nearer than 2 n 2^-53 total; the
     * buckets' sums are added as well. Twice that, to be sure. */
    double margin = ((double)s->n_vocab + LEVELS * BUCKETS) * 0x1p-51 * total;
    bool is_sure = narrow(s, &narrowed, &at) && at.mass + margin < enough &&
                   at.mass + (double)narrowed.floor > enough + margin;
    if (!is_sure) {
        uint32_t last = add_one_by_one(s, cut, enough);
        narrowed = cut_at(s->values[last], last);
    }
    *cut = narrowed;
}

/* The first candidate, ids ascending, up to which the mass is `reach`; sum() was called last. */
static int32_t find_reach(const struct bt_sampler *s, const struct cut *cut, double reach) {
    uint32_t block = 0, n_blocks = (s->n_vocab + BLOCK - 1) / BLOCK, found = 0;
    while (block + 1 < n_blocks && s->marks[block] < reach)
        block++;
    double mass = block ? s->marks[block - 1] : 0;
    for (uint32_t id = block * BLOCK; id < s->n_vocab; id++) {
        if (!is_in(s->values, id, cut))
            continue;
        found = id;
        mass += (double)s->values[id];
        if (mass >= reach)
            break;
    }
    return (int32_t)found;
}

static int32_t pick(struct bt_sampler *s, const struct bt_sampling *how, uint32_t index) {
    float floor = how->min_p * s->kernels->max(s->values, s->n_vocab);
    /* 2^-126: everything that is not masked; our exp gives no less. */
    struct cut cut = cut_at(floor > 0 ? floor : 0x1p-126f, s->n_vocab - 1);
    if (how->top_k > 0)
        keep_top_k(s, &cut, (uint32_t)how->top_k);
    if (how->top_p < 1)
        keep_top_p(s, &cut, how->top_p);
    double total = sum(s, &cut);
    return find_reach(s, &cut, draw(how->seed, index) * total);
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

/* Compares a request's spans with what is usual and names the one that took most of the excess. */
#include "router/verdict.h"

void bt_verdict_init(struct bt_verdict_targets *targets, uint32_t ttft_target_ms,
                     uint32_t itl_target_us) {
    *targets = (struct bt_verdict_targets){.ttft_set_us = ttft_target_ms * 1000ull,
                                           .itl_set_us = itl_target_us};
}

static uint64_t less(uint64_t a, uint64_t b) {
    return a > b ? a - b : 0;
}

static uint64_t prompt_us(const struct bt_verdict_targets *targets, uint32_t n_tokens) {
    return targets->token_ns * n_tokens / 1000;
}

uint64_t bt_verdict_ttft_target_us(const struct bt_verdict_targets *targets, uint32_t n_tokens) {
    if (targets->ttft_set_us)
        return targets->ttft_set_us;
    if (targets->n_start < BT_VERDICT_SAMPLES)
        return 0;
    return BT_VERDICT_FACTOR * (targets->base_us + prompt_us(targets, n_tokens)) +
           BT_VERDICT_MARGIN_US;
}

uint64_t bt_verdict_itl_target_us(const struct bt_verdict_targets *targets) {
    if (targets->itl_set_us)
        return targets->itl_set_us;
    return targets->n_stream < BT_VERDICT_SAMPLES
               ? 0
               : BT_VERDICT_FACTOR * targets->itl_us + BT_VERDICT_TOKEN_MARGIN_US;
}

/* ---- what is usual ---- */

/* Prompt tokens that somebody computed for it: pages found in a cache are not among them, those
 * that a choice waited for are. */
static uint32_t computed_tokens(const struct bt_request_record *r) {
    if (r->placement == BT_PLACE_LOCAL_CHOICE)
        return r->prompt_tokens;
    uint32_t cached = r->placement == BT_PLACE_SPLIT ? r->pages_cached_p : r->pages_held;
    return (uint32_t)less(r->prompt_tokens, (uint64_t)cached * BT_PAGE_TOKENS);
}

/* How much a sample counts: the first ones in full, later ones an eighth, slow ones little. */
static uint64_t weight_of(uint32_t n, bool slow) {
    return slow ? 64 : n < 7 ? n + 1 : 8;
}

static void blend(uint64_t *mean, uint64_t sample, uint64_t weight) {
    *mean = (*mean * (weight - 1) + sample) / weight;
}

static void learn_start(struct bt_verdict_targets *t, const struct bt_request_record *r,
                        bool slow) {
    const uint64_t *start = r->start_us;
    uint64_t weight = weight_of(t->n_start, slow);
    uint64_t prefill_us = start[BT_SPAN_PREFILL];
    blend(&t->token_ns, prefill_us * 1000 / computed_tokens(r), weight);
    blend(&t->base_us, less(r->ttft_us, prefill_us), weight);
    blend(&t->placement_us, start[BT_SPAN_PLACEMENT], weight);
    blend(&t->wait_us, start[BT_SPAN_WAIT], weight);
    blend(&t->network_us, start[BT_SPAN_NETWORK], weight);
    t->n_start += t->n_start < 8;
}

static void learn_stream(struct bt_verdict_targets *t, const struct bt_request_record *r,
                         bool slow) {
    uint64_t weight = weight_of(t->n_stream, slow);
    uint64_t network_us = less(r->span_us[BT_SPAN_NETWORK], r->start_us[BT_SPAN_NETWORK]);
    blend(&t->itl_us, r->itl_mean_us, weight);
    blend(&t->step_us, r->d.decode_us / r->d.steps, weight);
    blend(&t->step_gap_us, network_us / (r->generated_tokens - 1), weight);
    blend(&t->join_us, r->span_us[BT_SPAN_JOIN], weight);
    t->n_stream += t->n_stream < 8;
    if (r->placement != BT_PLACE_SPLIT)
        return;
    blend(&t->transfer_us, r->span_us[BT_SPAN_TRANSFER], weight_of(t->n_split, slow));
    t->n_split += t->n_split < 8;
}

void bt_verdict_learn(struct bt_verdict_targets *targets, const struct bt_request_record *r) {
    bool slow = r->verdict.phase != BT_SLOW_NOT;
    /* With a target that somebody set, what misses it is nobody's idea of usual. */
    if (slow && (r->verdict.phase == BT_SLOW_START ? targets->ttft_set_us : targets->itl_set_us))
        return;
    if (r->ttft_us && r->start_us[BT_SPAN_PREFILL] && computed_tokens(r))
        learn_start(targets, r, slow);
    if (r->itl_mean_us && r->d.steps && r->generated_tokens >= 8)
        learn_stream(targets, r, slow);
}

/* ---- what was not ---- */

struct part {
    enum bt_slow_stage stage;
    uint64_t us, usual_us;
};

/* The part with the largest excess over what is usual; where that is less than a quarter of what
 * the target was missed by, what is usual misses the target: the longest part. Of two that took the
 * same the earlier one. */
static enum bt_slow_stage blame(const struct part *parts, uint32_t n, uint64_t missed_us) {
    const struct part *excess = &parts[0], *longest = &parts[0];
    for (uint32_t i = 1; i < n; i++) {
        if (less(parts[i].us, parts[i].usual_us) > less(excess->us, excess->usual_us))
            excess = &parts[i];
        if (parts[i].us > longest->us)
            longest = &parts[i];
    }
    const struct part *blamed =
        4 * less(excess->us, excess->usual_us) >= missed_us ? excess : longest;
    return blamed->us ? blamed->stage : BT_STAGE_NONE;
}

static uint64_t if_known(const struct bt_request_record *r, uint64_t network_us) {
    /* Without the workers' words nothing says that the network had it. */
    return r->unknown ? 0 : network_us;
}

static enum bt_slow_stage start_stage(const struct bt_verdict_targets *t,
                                      const struct bt_request_record *r, bool preempted,
                                      uint64_t missed_us) {
    const uint64_t *start = r->start_us;
    uint64_t transfer_us = start[BT_SPAN_TRANSFER];
    const struct part parts[] = {
        {BT_STAGE_QUEUE, start[BT_SPAN_QUEUE], 0},
        {BT_STAGE_PLACEMENT, start[BT_SPAN_PLACEMENT], t->placement_us},
        {BT_STAGE_WAIT, start[BT_SPAN_WAIT], t->wait_us},
        {BT_STAGE_PREFILL, start[BT_SPAN_PREFILL], prompt_us(t, computed_tokens(r))},
        {BT_STAGE_TRANSFER, transfer_us, t->transfer_us},
        {preempted ? BT_STAGE_MEMORY : BT_STAGE_MOVED, start[BT_SPAN_MOVED], 0},
        {BT_STAGE_NETWORK, if_known(r, start[BT_SPAN_NETWORK]), t->network_us},
    };
    return blame(parts, sizeof parts / sizeof parts[0], missed_us);
}

/* A step that many share is long for that reason, as far as that many single ones would be. */
static enum bt_slow_stage decode_stage(const struct bt_verdict_targets *t,
                                       const struct bt_request_record *r) {
    if (!r->d.steps)
        return BT_STAGE_STEP;
    uint64_t rows = r->d.batch_rows, steps = r->d.steps; /* rows >= steps: its own is among them */
    if (2 * rows < 3 * steps)
        return BT_STAGE_STEP;
    uint64_t excess_us = less(r->d.decode_us, steps * t->step_us);
    return t->step_us && 2 * less(rows, steps) * t->step_us < excess_us ? BT_STAGE_STEP
                                                                        : BT_STAGE_BATCH;
}

static enum bt_slow_stage stream_stage(const struct bt_verdict_targets *t,
                                       const struct bt_request_record *r, bool preempted,
                                       uint64_t missed_us) {
    const uint64_t *all = r->span_us, *start = r->start_us;
    uint64_t n_gaps = r->generated_tokens - 1;
    const struct part parts[] = {
        {BT_STAGE_TRANSFER, all[BT_SPAN_TRANSFER] - start[BT_SPAN_TRANSFER], t->transfer_us},
        {BT_STAGE_JOIN, all[BT_SPAN_JOIN], t->join_us},
        {decode_stage(t, r), all[BT_SPAN_DECODE], n_gaps * t->step_us},
        {preempted ? BT_STAGE_MEMORY : BT_STAGE_MOVED, all[BT_SPAN_MOVED] - start[BT_SPAN_MOVED],
         0},
        {BT_STAGE_NETWORK, if_known(r, all[BT_SPAN_NETWORK] - start[BT_SPAN_NETWORK]),
         n_gaps * t->step_gap_us},
    };
    return blame(parts, sizeof parts / sizeof parts[0], missed_us);
}

/* ---- what would help ---- */

static const char *prefill_advice(const struct bt_verdict_targets *t,
                                  const struct bt_request_record *r) {
    uint64_t usual_us = prompt_us(t, computed_tokens(r));
    return usual_us && 2 * r->start_us[BT_SPAN_PREFILL] > 3 * usual_us
               ? "the prompt was computed slower than usual: more prefill workers would help if "
                 "prompts share them, or look at what else uses that machine"
               : "nothing is wrong: the prompt is long; a faster prefill worker would help";
}

static const char *advice(const struct bt_verdict_targets *t, const struct bt_request_record *r,
                          enum bt_slow_phase phase, enum bt_slow_stage stage) {
    bool local = r->placement != BT_PLACE_SPLIT;
    switch (stage) {
    case BT_STAGE_QUEUE:
        return local ? "more decode workers would help: it waited for a place"
                     : "more prefill workers would help: it waited for a place";
    case BT_STAGE_PLACEMENT:
        return "the decode worker answered late: look at its load and at the network to it";
    case BT_STAGE_WAIT:
        return local ? "more decode workers would help: its prompt waited behind others there"
                     : "more prefill workers would help: its prompt waited behind others there";
    case BT_STAGE_PREFILL:
        return prefill_advice(t, r);
    case BT_STAGE_TRANSFER:
        return "a faster link would help, or a smaller cache (narrower KV type)";
    case BT_STAGE_JOIN:
        return "it waited for a running step to end: more decode workers would help, or smaller "
               "prompt chunks on them";
    case BT_STAGE_BATCH:
        return "more decode workers would help: steps are long because many sequences share them";
    case BT_STAGE_STEP:
        return "steps were long although few sequences shared them: look at what else uses the "
               "decode worker's memory bandwidth and cores";
    case BT_STAGE_MEMORY:
        return "more KV memory on decode workers would help, or a smaller cache";
    case BT_STAGE_MOVED:
        return "a worker was lost or drained while it ran: look at that worker";
    case BT_STAGE_NETWORK:
        return phase == BT_SLOW_START
                   ? "no worker accounts for it: look at the network and at the router's load"
                   : "no worker accounts for the gaps: look at the network to the decode worker";
    default:
        return phase == BT_SLOW_NOT ? "within its targets"
                                    : "its workers have not reported: nothing says where it was";
    }
}

static bool misses_stream(const struct bt_verdict_targets *t, const struct bt_request_record *r) {
    uint64_t target_us = bt_verdict_itl_target_us(t);
    if (!target_us || r->generated_tokens < 2 || r->itl_mean_us <= target_us)
        return false;
    /* A mean over few tokens is one hiccup. */
    uint64_t excess_us = less(r->itl_mean_us, BT_VERDICT_FACTOR * t->itl_us);
    return t->itl_set_us || excess_us * (r->generated_tokens - 1) > BT_VERDICT_MARGIN_US;
}

struct bt_verdict bt_verdict_of(const struct bt_verdict_targets *targets,
                                const struct bt_request_record *r, bool preempted) {
    struct bt_verdict verdict = {BT_SLOW_NOT, BT_STAGE_NONE, ""};
    uint64_t ttft_us = bt_verdict_ttft_target_us(targets, r->prompt_tokens);
    uint64_t itl_us = bt_verdict_itl_target_us(targets);
    /* One that ended before its first token has waited for it all the time. */
    uint64_t waited_us = r->ttft_us ? r->ttft_us : r->total_us;
    bool start = ttft_us && waited_us > ttft_us;
    bool stream = misses_stream(targets, r);
    /* Of two missed targets the one missed by the larger factor. */
    if (start && stream)
        start = (double)waited_us / (double)ttft_us >= (double)r->itl_mean_us / (double)itl_us;
    if (start) {
        verdict.phase = BT_SLOW_START;
        verdict.stage = start_stage(targets, r, preempted, waited_us - ttft_us);
    } else if (stream) {
        uint64_t missed_us = (r->itl_mean_us - itl_us) * (r->generated_tokens - 1);
        verdict.phase = BT_SLOW_STREAM;
        verdict.stage = stream_stage(targets, r, preempted, missed_us);
    }
    verdict.advice = advice(targets, r, verdict.phase, verdict.stage);
    return verdict;
}

/* Compares a request's stages with its targets and names the one that took most of the excess. */
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
    return BT_VERDICT_FACTOR * (targets->base_us + prompt_us(targets, n_tokens));
}

uint64_t bt_verdict_itl_target_us(const struct bt_verdict_targets *targets) {
    if (targets->itl_set_us)
        return targets->itl_set_us;
    return targets->n_stream < BT_VERDICT_SAMPLES ? 0 : BT_VERDICT_FACTOR * targets->itl_us;
}

/* The first samples count in full, later ones for an eighth. */
static uint64_t blend(uint64_t mean, uint64_t sample, uint32_t n) {
    uint64_t weight = n < 7 ? n + 1 : 8;
    return (mean * (weight - 1) + sample) / weight;
}

void bt_verdict_learn(struct bt_verdict_targets *targets, const struct bt_request_record *record) {
    uint64_t prefill_us = record->p.prefill_us ? record->p.prefill_us : record->d.prefill_us;
    uint32_t cached = record->p.prefill_us ? record->pages_cached_p : record->pages_held;
    uint32_t computed = (uint32_t)less(record->prompt_tokens, (uint64_t)cached * BT_PAGE_TOKENS);
    if (prefill_us && record->ttft_us && computed) {
        targets->token_ns =
            blend(targets->token_ns, prefill_us * 1000 / computed, targets->n_start);
        targets->base_us =
            blend(targets->base_us, less(record->ttft_us, prefill_us), targets->n_start);
        targets->n_start += targets->n_start < 8;
    }
    if (record->itl_mean_us && record->generated_tokens >= 8) {
        targets->itl_us = blend(targets->itl_us, record->itl_mean_us, targets->n_stream);
        targets->n_stream += targets->n_stream < 8;
    }
}

struct part {
    enum bt_slow_stage stage;
    uint64_t excess_us;
};

static enum bt_slow_stage largest(const struct part *parts, uint32_t n) {
    const struct part *best = &parts[0];
    for (uint32_t i = 1; i < n; i++)
        if (parts[i].excess_us > best->excess_us)
            best = &parts[i];
    return best->stage;
}

static enum bt_slow_stage start_stage(const struct bt_verdict_targets *targets,
                                      const struct bt_request_record *r, bool preempted) {
    uint64_t prefill_us = r->p.prefill_us ? r->p.prefill_us : r->d.prefill_us;
    uint64_t waited_us = r->queue_us + r->p.queue_us + r->p.grant_us;
    uint64_t rest_us = less(r->ttft_us, waited_us + prefill_us + targets->base_us);
    bool again = r->attempts > 1;
    const struct part parts[] = {
        {BT_STAGE_QUEUE, waited_us},
        {BT_STAGE_PREFILL, less(prefill_us, prompt_us(targets, r->prompt_tokens))},
        {!again      ? BT_STAGE_NETWORK
         : preempted ? BT_STAGE_MEMORY
                     : BT_STAGE_MOVED,
         rest_us},
    };
    return largest(parts, sizeof parts / sizeof parts[0]);
}

static enum bt_slow_stage stream_stage(const struct bt_request_record *r, uint64_t target_us,
                                       bool preempted) {
    uint64_t stream_us = r->itl_mean_us * (r->generated_tokens - 1);
    uint64_t handed_us = r->p.transfer_us + r->d.join_us;
    uint64_t known_us = r->replay_us + handed_us + r->d.decode_us;
    const struct part parts[] = {
        {BT_STAGE_BATCH, less(r->d.decode_us, r->d.steps * target_us)},
        {BT_STAGE_TRANSFER, less(handed_us, target_us)},
        {preempted ? BT_STAGE_MEMORY : BT_STAGE_MOVED, r->replay_us},
        /* Without D's report nothing says that the network had it. */
        {BT_STAGE_NETWORK, r->d.steps ? less(stream_us, known_us) : 0},
    };
    return largest(parts, sizeof parts / sizeof parts[0]);
}

static const char *advice(enum bt_slow_phase phase, enum bt_slow_stage stage, bool local) {
    switch (stage) {
    case BT_STAGE_QUEUE:
        return local ? "more decode workers would help: it waited for a place"
                     : "more prefill workers would help: it waited for a place";
    case BT_STAGE_PREFILL:
        return "nothing is wrong: the prompt is long; a faster prefill worker would help";
    case BT_STAGE_TRANSFER:
        return "a faster link would help, or a smaller cache (narrower KV type)";
    case BT_STAGE_BATCH:
        return "more decode workers would help: steps are long because many sequences share them";
    case BT_STAGE_MEMORY:
        return "more KV memory on decode workers would help, or a smaller cache";
    case BT_STAGE_MOVED:
        return "a worker was lost or drained while it ran: look at that worker";
    case BT_STAGE_NETWORK:
        return phase == BT_SLOW_START
                   ? "no worker accounts for it: look at the network and at the router's load"
                   : "no worker accounts for the gaps: look at the network to the decode worker";
    default:
        return "within its targets";
    }
}

struct bt_verdict bt_verdict_of(const struct bt_verdict_targets *targets,
                                const struct bt_request_record *r, bool preempted) {
    struct bt_verdict verdict = {BT_SLOW_NOT, BT_STAGE_NONE, ""};
    uint64_t ttft_us = bt_verdict_ttft_target_us(targets, r->prompt_tokens);
    uint64_t itl_us = bt_verdict_itl_target_us(targets);
    bool start = ttft_us && r->ttft_us > ttft_us;
    bool stream = itl_us && r->generated_tokens > 1 && r->itl_mean_us > itl_us;
    /* Of two missed targets the one missed by the larger factor. */
    if (start && stream)
        start = (double)r->ttft_us / (double)ttft_us >= (double)r->itl_mean_us / (double)itl_us;
    if (start) {
        verdict.phase = BT_SLOW_START;
        verdict.stage = start_stage(targets, r, preempted);
    } else if (stream) {
        verdict.phase = BT_SLOW_STREAM;
        verdict.stage = stream_stage(r, itl_us, preempted);
    }
    verdict.advice = advice(verdict.phase, verdict.stage, r->placement != BT_PLACE_SPLIT);
    return verdict;
}

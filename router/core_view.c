/* What the shell may read of the core: counters, workers, requests, coverage. */
#include <string.h>

#include "router/admission.h"
#include "router/core_state.h"

static bool any_at_work(const struct bt_router_core *core, enum bt_role role) {
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++) {
        const struct bt_worker *worker = &core->workers.workers[i];
        bool alive = worker->state == BT_WORKER_UP || worker->state == BT_WORKER_SUSPECT;
        if (alive && worker->role == role && !worker->status.draining)
            return true;
    }
    return false;
}

bool bt_router_core_ready(const struct bt_router_core *core) {
    return !core->draining && any_at_work(core, BT_ROLE_DECODE) &&
           (core->config.disaggregate == BT_DISAGGREGATE_NEVER ||
            any_at_work(core, BT_ROLE_PREFILL));
}

uint32_t bt_router_core_context(const struct bt_router_core *core) {
    return bt_admission_context(core);
}

const struct bt_router_counters *bt_router_core_counters(struct bt_router_core *core) {
    struct bt_router_counters *c = &core->counters;
    c->live = bt_core_live(core);
    c->queued = core->n_in[BT_REQUEST_QUEUED];
    c->streaming = core->n_in[BT_REQUEST_STREAMING] + core->n_in[BT_REQUEST_TRANSFERRING];
    c->tokens_stored = (uint64_t)bt_token_store_used(&core->tokens) * BT_CHUNK_TOKENS;
    c->token_budget = core->config.token_budget;
    c->prefix_blocks = core->prefix.n_used;
    c->prefix_dropped = core->prefix.n_dropped;
    return c;
}

bool bt_router_core_worker(const struct bt_router_core *core, uint64_t now_us, uint32_t i,
                           struct bt_worker_view *out) {
    if (i >= BT_MAX_WORKERS || core->workers.workers[i].state == BT_WORKER_NONE)
        return false;
    const struct bt_worker *worker = &core->workers.workers[i];
    *out = (struct bt_worker_view){.name = worker->name,
                                   .link_address = worker->link_address,
                                   .incarnation = worker->incarnation,
                                   .role = worker->role,
                                   .state = worker->state,
                                   .max_context = worker->max_context,
                                   .max_seqs = worker->max_seqs,
                                   .status = worker->status,
                                   .requests = worker->n_requests,
                                   .silent_us =
                                       now_us > worker->heard_us ? now_us - worker->heard_us : 0};
    return true;
}

static struct bt_span_facts facts_of(uint64_t now_us, const struct bt_request *req) {
    struct bt_span_facts facts = {
        .queue_us = req->queue_total_us,
        .followed_us = req->followed_us,
        .wasted_us = req->wasted_us,
        .replay_us = req->replay_total_us,
        .decoded_us = req->decoded_us,
        .p_reported = req->p_reported,
        .d_reported = req->d_reported,
        .first_from_d = req->first_from_d,
        .start_kept = req->start_kept,
    };
    if (req->lost_us)
        facts.replay_us += now_us - req->lost_us;
    else if (req->state == BT_REQUEST_QUEUED)
        facts.queue_us += now_us - req->queued_us;
    if (req->accepted_us)
        facts.placement_us = req->accepted_us - req->placed_us;
    else if (req->state == BT_REQUEST_RESERVING)
        facts.placement_us = now_us - req->placed_us;
    memcpy(facts.kept_us, req->start_us, sizeof facts.kept_us);
    return facts;
}

void bt_core_describe(const struct bt_router_core *core, uint64_t now_us,
                      const struct bt_request *req, struct bt_record *out) {
    uint32_t n_generated = bt_core_next_index(req);
    now_us = now_us > core->now_us ? now_us : core->now_us;
    *out = (struct bt_record){
        .attempt = req->attempt, .preempted = req->preempted, .facts = facts_of(now_us, req)};
    out->pub = (struct bt_request_record){
        .id = req->id,
        .state = req->state,
        .status = req->status,
        .finish = req->finish,
        .placement = req->placement,
        .prompt_tokens = req->n_prompt,
        .generated_tokens = n_generated,
        .attempts = req->attempt,
        .moves = req->moves,
        .retries = req->retries,
        .pages = req->pages,
        .pages_held = req->pages_held,
        .pages_cached_p = req->pages_cached_p,
        .kv_bytes = req->kv_bytes,
        .age_us = now_us - req->arrived_us,
        .total_us = now_us - req->arrived_us,
        .itl_max_us = req->itl_max_us,
        .p = req->p_stages,
        .d = req->d_stages,
        .verdict = {.advice = ""},
    };
    if (req->first_token_us)
        out->pub.ttft_us = req->first_token_us - req->arrived_us;
    if (n_generated > 1)
        out->pub.itl_mean_us = (req->last_token_us - req->first_token_us) / (n_generated - 1);
    out->pub.caller = req->caller;
    memcpy(out->pub.tenant, req->tenant, sizeof out->pub.tenant);
    memcpy(out->pub.p_name, req->p_name, sizeof out->pub.p_name);
    memcpy(out->pub.d_name, req->d_name, sizeof out->pub.d_name);
}

bool bt_router_core_record(const struct bt_router_core *core, uint64_t now_us, uint32_t i,
                           struct bt_request_record *out) {
    const struct bt_record *record = bt_record_get(&core->records, i);
    if (!record)
        return false;
    struct bt_record judged = *record;
    /* With all reports in it is judged before it is counted. */
    if (!record->p_expected && !record->d_expected)
        bt_record_judge(&judged, &core->targets);
    *out = judged.pub;
    out->state = BT_REQUEST_ENDED;
    out->age_us = now_us > record->ended_us ? now_us - record->ended_us : 0;
    return true;
}

void bt_router_core_record_of(const struct bt_router_core *core, const struct bt_request *req,
                              struct bt_request_record *out) {
    struct bt_record record;
    bt_core_describe(core, core->now_us, req, &record);
    bt_record_judge(&record, &core->targets);
    *out = record.pub;
}

bool bt_router_core_live(const struct bt_router_core *core, uint64_t now_us, uint32_t *cursor,
                         struct bt_request_record *out) {
    while (*cursor < core->n_touched) {
        const struct bt_request *req = &core->requests[(*cursor)++];
        if (req->state == BT_REQUEST_FREE || req->state >= BT_REQUEST_SERVED)
            continue;
        struct bt_record record;
        bt_core_describe(core, now_us, req, &record);
        bt_spans_divide(&record.pub, &record.facts);
        *out = record.pub;
        return true;
    }
    return false;
}

uint64_t bt_router_core_ttft_target_us(const struct bt_router_core *core, uint32_t n_tokens) {
    return bt_verdict_ttft_target_us(&core->targets, n_tokens);
}

uint64_t bt_router_core_itl_target_us(const struct bt_router_core *core) {
    return bt_verdict_itl_target_us(&core->targets);
}

const uint32_t *bt_router_core_coverage(const struct bt_router_core *core, uint32_t *n_pairs) {
    *n_pairs = BT_PAIRS;
    return core->coverage;
}

bool bt_router_core_pair(uint32_t i, struct bt_pair_view *out) {
    if (i >= BT_PAIRS)
        return false;
    if (i < BT_LIFECYCLE_PAIRS)
        bt_lifecycle_pair(i, out);
    else
        bt_worker_pair(i - BT_LIFECYCLE_PAIRS, out);
    return true;
}

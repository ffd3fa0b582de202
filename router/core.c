/* Creates the core, frames each event, and turns the shell's events into the request's. */
#include "router/core.h"

#include <stdlib.h>

#include "common/base/assert.h"
#include "router/admission.h"
#include "router/core_attempt.h"
#include "router/core_state.h"
#include "router/core_workers.h"
#include "router/dispatch.h"
#include "router/ticket.h"

void bt_router_config_default(struct bt_router_config *config) {
    config->max_requests = 16384;
    config->max_queued = 4096;
    config->token_budget = 32ull << 20;
    config->max_context = 0;
    config->queue_ms = BT_QUEUE_DEADLINE_MS;
    config->deadline_ms = BT_REQUEST_DEADLINE_MS;
    config->disaggregate = BT_DISAGGREGATE_AUTO;
    config->short_prompt_tokens = 2 * BT_PAGE_TOKENS;
    config->prefill_backlog_tokens = 2048;
    config->prefix_slots = 1u << 20;
    config->n_records = 1024;
    config->ttft_target_ms = config->itl_target_us = 0;
    config->text_hash = 0;
}

static bt_status check(const struct bt_router_config *config, struct bt_error *err) {
    const struct {
        const char *name;
        uint64_t value, min, max;
    } bounds[] = {
        {"max_requests", config->max_requests, 1, (1u << BT_SLOT_BITS) - 1},
        {"max_queued", config->max_queued, 1, UINT32_MAX},
        {"queue_ms", config->queue_ms, 1, 86400000},
        {"deadline_ms", config->deadline_ms, 1, 86400000},
        {"disaggregate", config->disaggregate, 0, BT_DISAGGREGATE_NEVER},
        {"prefill_backlog_tokens", config->prefill_backlog_tokens, 1, UINT32_MAX},
    };
    for (size_t i = 0; i < sizeof bounds / sizeof bounds[0]; i++)
        if (bounds[i].value < bounds[i].min || bounds[i].value > bounds[i].max)
            return bt_fail(err, BT_E_INVALID, "%s is %llu, must be %llu to %llu", bounds[i].name,
                           (unsigned long long)bounds[i].value, (unsigned long long)bounds[i].min,
                           (unsigned long long)bounds[i].max);
    if (bt_id_is_zero(config->incarnation) || bt_id_is_zero(config->seed))
        return bt_fail(err, BT_E_INVALID, "incarnation and seed must be drawn, both are not 0");
    return BT_OK;
}

static bt_status init(struct bt_router_core *core, struct bt_error *err) {
    const struct bt_router_config *config = &core->config;
    uint32_t n = config->max_requests;
    core->requests = calloc(n, sizeof *core->requests);
    core->scratch = calloc(BT_SEQUENCE_MAX, sizeof *core->scratch);
    core->seen = calloc(BT_MAX_WORKERS, sizeof *core->seen);
    if (!core->requests || !core->scratch || !core->seen)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u requests", n);
    core->first_free = core->first_ended = BT_NO_REQUEST;
    BT_TRY(bt_request_heap_init(&core->timers, core->requests, n, BT_ORDER_TIMER, err));
    BT_TRY(bt_request_heap_init(&core->queue, core->requests, n, BT_ORDER_AGE, err));
    BT_TRY(bt_token_store_init(&core->tokens, config->token_budget, err));
    BT_TRY(bt_fence_init(&core->fence, BT_FENCE_ROWS, err));
    BT_TRY(bt_prefix_table_init(&core->prefix, config->prefix_slots, err));
    BT_TRY(bt_core_actions_init(&core->actions, err));
    BT_TRY(bt_record_init(&core->records, config->n_records, err));
    bt_worker_table_init(&core->workers, config->text_hash);
    bt_verdict_init(&core->targets, config->ttft_target_ms, config->itl_target_us);
    return BT_OK;
}

struct bt_router_core *bt_router_core_create(const struct bt_router_config *config,
                                             struct bt_error *err) {
    if (check(config, err) != BT_OK)
        return NULL;
    struct bt_router_core *core = calloc(1, sizeof *core);
    if (!core) {
        bt_fail(err, BT_E_NO_MEMORY, "no memory for the router");
        return NULL;
    }
    core->config = *config;
    if (init(core, err) != BT_OK) {
        bt_router_core_destroy(core);
        return NULL;
    }
    return core;
}

void bt_router_core_destroy(struct bt_router_core *core) {
    if (!core)
        return;
    bt_record_fini(&core->records);
    bt_core_actions_fini(&core->actions);
    bt_prefix_table_fini(&core->prefix);
    bt_fence_fini(&core->fence);
    bt_token_store_fini(&core->tokens);
    bt_request_heap_fini(&core->queue);
    bt_request_heap_fini(&core->timers);
    free(core->seen);
    free(core->scratch);
    free(core->requests);
    free(core);
}

/* ---- small things that the other files share ---- */

uint32_t bt_core_index(const struct bt_router_core *core, const struct bt_request *req) {
    return (uint32_t)(req - core->requests);
}

struct bt_request *bt_core_find(struct bt_router_core *core, uint64_t id) {
    uint32_t i = (uint32_t)id & ((1u << BT_SLOT_BITS) - 1);
    if (i >= core->n_touched || core->requests[i].id != id)
        return NULL;
    enum bt_request_state state = core->requests[i].state;
    return state == BT_REQUEST_ENDED || state == BT_REQUEST_FREE ? NULL : &core->requests[i];
}

void bt_core_set_state(struct bt_router_core *core, struct bt_request *req,
                       enum bt_request_state state) {
    BT_ASSERT(core->n_in[req->state]);
    core->n_in[req->state]--;
    core->n_in[state]++;
    req->state = state;
}

uint32_t bt_core_live(const struct bt_router_core *core) {
    uint32_t n = 0;
    for (int state = BT_REQUEST_QUEUED; state < BT_REQUEST_SERVED; state++)
        n += core->n_in[state];
    return n;
}

uint32_t bt_core_next_index(const struct bt_request *req) {
    return req->n_tokens - req->n_prompt;
}

bool bt_core_wants_scores(const struct bt_request *req) {
    return req->sampling.prompt_logprobs && req->n_scored + 1 < req->n_prompt;
}

uint32_t bt_core_bias_words(const struct bt_sampling *sampling) {
    return sampling->n_bias * (uint32_t)(sizeof(struct bt_logit_bias) / sizeof(int32_t));
}

void bt_core_arm(struct bt_router_core *core, struct bt_request *req) {
    req->timer_us = req->deadline_us;
    if (req->state == BT_REQUEST_QUEUED) {
        if (req->queue_deadline_us < req->timer_us)
            req->timer_us = req->queue_deadline_us;
        if (!bt_request_heap_has(&core->queue, req) && req->leader == BT_NO_REQUEST &&
            req->not_before_us < req->timer_us)
            req->timer_us = req->not_before_us;
    }
    bt_request_heap_put(&core->timers, req);
}

struct bt_id bt_core_draw(struct bt_router_core *core) {
    return bt_ticket_draw(core->config.seed, core->n_draws++);
}

struct bt_record_sums bt_core_sums(struct bt_router_core *core) {
    return (struct bt_record_sums){&core->targets, &core->counters};
}

/* ---- the frame of an event ---- */

/* Frees what ended before: its END was given out. */
static void reap(struct bt_router_core *core) {
    while (core->first_ended != BT_NO_REQUEST) {
        struct bt_request *req = &core->requests[core->first_ended];
        core->first_ended = req->live_next;
        uint32_t n_bias_words = bt_core_bias_words(&req->sampling);
        uint32_t n_bias_chunks = bt_token_store_chunks_for(n_bias_words);
        bt_token_store_release(&core->tokens, req->first_bias, req->last_bias, n_bias_words,
                               n_bias_chunks);
        bt_token_store_release(&core->tokens, req->first_chunk, req->last_chunk, req->n_tokens,
                               req->chunks_reserved - n_bias_chunks);
        core->n_in[BT_REQUEST_ENDED]--;
        req->state = BT_REQUEST_FREE;
        req->live_next = core->first_free;
        core->first_free = bt_core_index(core, req);
    }
}

void bt_core_enter(struct bt_router_core *core, uint64_t now_us) {
    if (core->clock_known && now_us > core->now_us + BT_STALL_MS * 1000ull) {
        core->counters.stalls++;
        bt_core_workers_excuse(core, now_us);
    }
    /* A clock that steps back would make durations wrap. */
    if (!core->clock_known || now_us > core->now_us)
        core->now_us = now_us;
    core->clock_known = true;
    if (bt_core_actions_empty(&core->actions))
        reap(core);
}

void bt_core_leave(struct bt_router_core *core) {
    bt_core_workers_clean(core);
    bt_core_workers_tell_peers(core);
    bt_dispatch_run(core);
}

/* ---- events ---- */

static bool has_ended(const struct bt_request *req) {
    return req->state == BT_REQUEST_ENDED || req->state == BT_REQUEST_SERVED;
}

void bt_router_core_cancel(struct bt_router_core *core, uint64_t now_us, struct bt_request *req) {
    /* Before the frame, which may free an ended one. */
    bool ended = has_ended(req);
    if (ended)
        bt_lifecycle_event(core, req, BT_LIFE_CANCEL, (struct bt_life_cause){0});
    bt_core_enter(core, now_us);
    if (!ended && req->state != BT_REQUEST_FREE)
        bt_lifecycle_event(core, req, BT_LIFE_CANCEL, (struct bt_life_cause){0});
    bt_core_leave(core);
}

void bt_router_core_stop(struct bt_router_core *core, uint64_t now_us, struct bt_request *req) {
    bool ended = has_ended(req);
    if (ended)
        bt_lifecycle_event(core, req, BT_LIFE_STOP, (struct bt_life_cause){0});
    bt_core_enter(core, now_us);
    if (!ended && req->state != BT_REQUEST_FREE)
        bt_lifecycle_event(core, req, BT_LIFE_STOP, (struct bt_life_cause){0});
    bt_core_leave(core);
}

static void look_at(struct bt_router_core *core, struct bt_request *req) {
    struct bt_life_cause none = {0};
    if (req->deadline_us <= core->now_us)
        bt_lifecycle_event(core, req, BT_LIFE_DEADLINE, none);
    else if (req->state == BT_REQUEST_QUEUED && req->queue_deadline_us <= core->now_us)
        bt_lifecycle_event(core, req, BT_LIFE_QUEUE_TIMEOUT, none);
    else if (req->state == BT_REQUEST_QUEUED && req->leader == BT_NO_REQUEST &&
             !bt_request_heap_has(&core->queue, req))
        bt_lifecycle_event(core, req, BT_LIFE_BACKOFF_OVER, none);
    else
        bt_core_arm(core, req);
}

void bt_router_core_tick(struct bt_router_core *core, uint64_t now_us) {
    bt_core_enter(core, now_us);
    for (int n = 0; n < BT_TIMER_SLICE; n++) {
        struct bt_request *req = bt_request_heap_first(&core->timers);
        if (!req || req->timer_us > core->now_us)
            break;
        look_at(core, req);
    }
    bt_core_workers_tick(core);
    bt_record_settle(&core->records, core->now_us, bt_core_sums(core));
    core->dispatch_due |= core->queue.n > 0;
    bt_core_leave(core);
}

uint64_t bt_router_core_next_tick_us(const struct bt_router_core *core) {
    if (core->n_dead || (core->dispatch_due && !core->held))
        return core->now_us;
    uint64_t next_us = core->now_us + BT_ROUTER_TICK_MS * 1000ull;
    const struct bt_request *first = bt_request_heap_first(&core->timers);
    if (first && first->timer_us < next_us)
        next_us = first->timer_us;
    uint64_t workers_us = bt_core_workers_due_us(core);
    return workers_us < next_us ? workers_us : next_us;
}

void bt_router_core_drain(struct bt_router_core *core, uint64_t now_us) {
    bt_core_enter(core, now_us);
    core->draining = true;
    bt_core_leave(core);
}

void bt_router_core_hold(struct bt_router_core *core, uint64_t now_us, bool held) {
    bt_core_enter(core, now_us);
    core->held = held;
    core->dispatch_due |= !held && core->queue.n;
    bt_core_leave(core);
}

void bt_router_core_flush(struct bt_router_core *core, uint64_t now_us) {
    bt_core_enter(core, now_us);
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++)
        if (bt_worker_is_known(&core->workers.workers[i]))
            bt_core_actions_send(core, i, BT_MSG_FLUSH, NULL);
    bt_core_leave(core);
}

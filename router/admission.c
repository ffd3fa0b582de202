/* The checks and bounds of submit, and the request as it enters the queue. */
#include "router/admission.h"

#include <string.h>

#include "router/core_attempt.h"
#include "router/core_state.h"
#include "router/followers.h"

/* The largest of that role; 0 when there is none that could take work. */
static uint32_t largest(const struct bt_router_core *core, enum bt_role role) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++) {
        const struct bt_worker *worker = &core->workers.workers[i];
        uint32_t capacity = bt_worker_capacity(worker);
        if (bt_worker_is_known(worker) && worker->role == role && !worker->status.draining &&
            capacity > most)
            most = capacity;
    }
    return most;
}

uint32_t bt_admission_context(const struct bt_router_core *core) {
    uint32_t context = largest(core, BT_ROLE_DECODE);
    uint32_t p = largest(core, BT_ROLE_PREFILL);
    /* A replay must fit a prefill worker too, unless decode workers prefill anyway. */
    if (core->config.disaggregate == BT_DISAGGREGATE_ALWAYS ||
        (core->config.disaggregate == BT_DISAGGREGATE_AUTO && p))
        context = p < context ? p : context;
    if (core->config.max_context && core->config.max_context < context)
        context = core->config.max_context;
    return context < BT_SEQUENCE_MAX ? context : BT_SEQUENCE_MAX;
}

static bt_status refuse_unavailable(struct bt_router_core *core, struct bt_error *err) {
    bt_status status;
    if (core->draining)
        status = bt_fail(err, BT_E_UNAVAILABLE, "the router is shutting down");
    else if (!largest(core, BT_ROLE_DECODE))
        status = bt_fail(err, BT_E_UNAVAILABLE, "no decode worker is attached");
    else if (core->config.disaggregate == BT_DISAGGREGATE_ALWAYS && !largest(core, BT_ROLE_PREFILL))
        status = bt_fail(err, BT_E_UNAVAILABLE,
                         "no prefill worker is attached, and prompts are never prefilled on decode "
                         "workers (--disaggregate always)");
    else
        return BT_OK;
    core->counters.refused_unavailable++;
    return status;
}

/* Fills *max_tokens; the request must fit the context whole. */
static bt_status refuse_invalid(struct bt_router_core *core, const struct bt_submit *submit,
                                uint32_t *max_tokens, struct bt_error *err) {
    uint32_t context = bt_admission_context(core), n = submit->n_tokens;
    *max_tokens = submit->max_tokens_given ? submit->sampling.max_tokens
                  : n < context            ? context - n
                                           : 1;
    bt_status status = BT_OK;
    if (!n)
        status = bt_fail(err, BT_E_INVALID, "the prompt has no token, at least 1 is needed");
    else if (!*max_tokens)
        status = bt_fail(err, BT_E_INVALID, "max_tokens is 0, must be at least 1");
    else if (strnlen(submit->tenant, BT_NAME_BYTES) == BT_NAME_BYTES)
        status = bt_fail(err, BT_E_INVALID, "the tenant's name has more than %d bytes",
                         BT_NAME_BYTES - 1);
    else if (submit->sampling.n_bias > BT_LOGIT_BIASES)
        status = bt_fail(err, BT_E_INVALID, "logit_bias names %u tokens, the limit is %d",
                         submit->sampling.n_bias, BT_LOGIT_BIASES);
    else if ((uint64_t)n + *max_tokens > context)
        status = bt_fail(err, BT_E_TOO_LARGE,
                         "the prompt has %u tokens and %u more are asked for, together %llu; the "
                         "limit is %u",
                         n, *max_tokens, (unsigned long long)n + *max_tokens, context);
    core->counters.refused_invalid += status != BT_OK;
    return status;
}

static bt_status refuse_full(struct bt_router_core *core, uint32_t n_chunks, struct bt_error *err) {
    const struct bt_router_config *config = &core->config;
    bt_status status = BT_OK;
    uint32_t n_queued = core->n_in[BT_REQUEST_QUEUED];
    if (n_queued >= config->max_queued)
        status = bt_fail(err, BT_E_FULL, "%u requests wait already, the limit is %u", n_queued,
                         config->max_queued);
    else if (core->first_free == BT_NO_REQUEST && core->n_touched == config->max_requests)
        status =
            bt_fail(err, BT_E_FULL, "the router has %u requests, its limit", config->max_requests);
    else if (!bt_token_store_reserve(&core->tokens, n_chunks))
        status = bt_fail(err, BT_E_FULL,
                         "the prompts and answers of all requests now reach the router's budget of "
                         "%llu tokens",
                         (unsigned long long)config->token_budget);
    core->counters.refused_full += status != BT_OK;
    return status;
}

static struct bt_request *take_request(struct bt_router_core *core) {
    uint32_t i = core->first_free;
    if (i == BT_NO_REQUEST)
        i = core->n_touched++;
    else
        core->first_free = core->requests[i].live_next;
    struct bt_request *req = &core->requests[i];
    *req = (struct bt_request){.id = ++core->n_ids << BT_SLOT_BITS | i,
                               .p = BT_NO_WORKER,
                               .d = BT_NO_WORKER,
                               .leader = BT_NO_REQUEST,
                               .first_follower = BT_NO_REQUEST,
                               .follow_next = BT_NO_REQUEST,
                               .follow_prev = BT_NO_REQUEST};
    return req;
}

/* The bias is borrowed for this call only: its entries go to the token store as words. */
static void keep_bias(struct bt_router_core *core, struct bt_request *req) {
    const struct bt_logit_bias *bias = req->sampling.bias;
    uint32_t n_words = 0;
    for (uint32_t i = 0; i < req->sampling.n_bias; i++) {
        int32_t words[sizeof *bias / sizeof(int32_t)];
        memcpy(words, &bias[i], sizeof words);
        for (size_t w = 0; w < sizeof words / sizeof *words; w++)
            bt_token_store_append(&core->tokens, &req->first_bias, &req->last_bias, n_words++,
                                  words[w]);
    }
    req->sampling.bias = NULL;
}

static void fill(struct bt_router_core *core, struct bt_request *req,
                 const struct bt_submit *submit, uint32_t max_tokens, uint32_t n_chunks) {
    uint64_t now_us = core->now_us;
    uint32_t deadline_ms = submit->deadline_ms ? submit->deadline_ms : core->config.deadline_ms;
    req->user = submit->user;
    strncpy(req->tenant, submit->tenant, sizeof req->tenant - 1);
    if (submit->caller)
        req->caller = *submit->caller;
    req->sampling = submit->sampling;
    req->sampling.max_tokens = max_tokens;
    if (!submit->seed_given)
        req->sampling.seed = bt_core_draw(core).lo;
    req->n_prompt = submit->n_tokens;
    req->chunks_reserved = n_chunks;
    keep_bias(core, req);
    for (uint32_t i = 0; i < submit->n_tokens; i++)
        bt_token_store_append(&core->tokens, &req->first_chunk, &req->last_chunk, i,
                              submit->tokens[i]);
    req->n_tokens = submit->n_tokens;
    req->arrived_us = req->queued_us = now_us;
    req->deadline_us = now_us + deadline_ms * 1000ull;
    req->queue_deadline_us = now_us + core->config.queue_ms * 1000ull;
}

bt_status bt_router_core_submit(struct bt_router_core *core, uint64_t now_us,
                                const struct bt_submit *submit, struct bt_request **out,
                                struct bt_error *err) {
    bt_core_enter(core, now_us);
    uint32_t max_tokens = 0;
    BT_TRY(refuse_unavailable(core, err));
    BT_TRY(refuse_invalid(core, submit, &max_tokens, err));
    uint32_t n_chunks = bt_token_store_chunks_for((uint64_t)submit->n_tokens + max_tokens) +
                        bt_token_store_chunks_for(bt_core_bias_words(&submit->sampling));
    BT_TRY(refuse_full(core, n_chunks, err));
    struct bt_request *req = take_request(core);
    fill(core, req, submit, max_tokens, n_chunks);
    core->counters.submitted++;
    core->counters.prompt_tokens += req->n_prompt;
    core->n_in[BT_REQUEST_FREE]++; /* set_state takes it out again */
    bt_core_set_state(core, req, BT_REQUEST_QUEUED);
    if (!submit->leader || !bt_followers_join(core, req, submit->leader)) {
        bt_request_heap_put(&core->queue, req);
        core->dispatch_due = true;
    }
    bt_core_arm(core, req);
    *out = req;
    bt_core_leave(core);
    return BT_OK;
}

uint32_t bt_router_core_retry_after_ms(const struct bt_router_core *core) {
    /* What is queued now, at the pace of late; never less than a second, which is what the header
     * can say. */
    uint64_t ms = core->place_interval_us * (core->n_in[BT_REQUEST_QUEUED] + 1ull) / 1000;
    uint64_t most = core->config.queue_ms > 1000 ? core->config.queue_ms : 1000;
    return (uint32_t)(ms < 1000 ? 1000 : ms > most ? most : ms);
}

/* The queue's head goes when a pair has room for it; a retry also needs room in the retry budget.
 */
#include "router/dispatch.h"

#include "router/core_state.h"
#include "router/lifecycle.h"
#include "router/placement.h"

/* Retries run beside at most a tenth of the live requests; one always may. */
static bool budget_has_room(const struct bt_router_core *core) {
    uint32_t budget = bt_core_live(core) / 10;
    return core->n_retrying < (budget ? budget : 1);
}

/* Takes the head out of the queue for a while, so that others may pass. */
static void set_aside(struct bt_router_core *core, struct bt_request *req, uint32_t ms) {
    bt_request_heap_remove(&core->queue, req);
    req->not_before_us = core->now_us + ms * 1000ull;
    bt_core_arm(core, req);
}

/* Where the cache is that it waited for; before its first attempt only: a lost one is placed like
 * any other. */
static int find_choice(const struct bt_router_core *core, const struct bt_request *req) {
    if (req->attempt || !req->released_us)
        return BT_NO_WORKER;
    for (int i = 0; i < BT_MAX_WORKERS; i++) {
        const struct bt_worker *worker = &core->workers.workers[i];
        if (bt_worker_is_known(worker) && bt_id_equal(worker->incarnation, req->prompt_d))
            return i;
    }
    return BT_NO_WORKER;
}

static enum bt_placement_answer choose(struct bt_router_core *core, struct bt_request *req,
                                       struct bt_placement_choice *choice) {
    const struct bt_router_config *config = &core->config;
    const struct bt_placement_rules rules = {.mode = config->disaggregate,
                                             .short_prompt_tokens = config->short_prompt_tokens,
                                             .prefill_backlog_tokens =
                                                 config->prefill_backlog_tokens,
                                             .worker_requests_max = BT_WORKER_REQUESTS_MAX};
    bt_token_store_copy(&core->tokens, req->first_chunk, req->n_tokens, core->scratch);
    const struct bt_placement_ask ask = {.tokens = core->scratch,
                                         .n_tokens = req->n_tokens,
                                         .n_total = req->n_prompt + req->sampling.max_tokens,
                                         .tenant = req->tenant,
                                         .scores = bt_core_wants_scores(req),
                                         .choice_d = find_choice(core, req),
                                         .choice_fresh = core->now_us - req->released_us <
                                                         BT_CHOICE_FRESH_MS * 1000ull};
    return bt_placement_choose(&core->workers, &core->prefix, &rules, core->now_us, &ask, choice);
}

/* The mean time between two placements while others wait: what Retry-After is made of. */
static void note_pace(struct bt_router_core *core) {
    if (core->queue.n > 1 && core->placed_us)
        core->place_interval_us =
            (core->place_interval_us * 7 + (core->now_us - core->placed_us)) / 8;
    core->placed_us = core->now_us;
}

/* Requests that wait for a prefill worker while decode workers have room: those behind them that
 * need none go first. They take no room that these wait for. */
struct passed {
    struct bt_request *reqs[BT_PASSED_MAX];
    uint32_t n;
};

/* False when the head must wait, and all behind it. */
static bool place_head(struct bt_router_core *core, struct bt_request *req, struct passed *passed) {
    struct bt_placement_choice choice;
    switch (choose(core, req, &choice)) {
    case BT_PLACEMENT_FOUND:
        note_pace(core);
        bt_lifecycle_event(core, req, BT_LIFE_PLACE, (struct bt_life_cause){.choice = &choice});
        return true;
    case BT_PLACEMENT_ASIDE:
        set_aside(core, req, BT_ASIDE_MS);
        return true;
    case BT_PLACEMENT_WAIT_P:
        if (core->config.disaggregate != BT_DISAGGREGATE_AUTO || passed->n == BT_PASSED_MAX)
            return false;
        bt_request_heap_remove(&core->queue, req);
        passed->reqs[passed->n++] = req;
        return true;
    case BT_PLACEMENT_WAIT:
        break;
    }
    return false;
}

void bt_dispatch_run(struct bt_router_core *core) {
    if (!core->dispatch_due || core->held)
        return;
    core->dispatch_due = false;
    struct passed passed = {.n = 0};
    struct bt_request *req;
    for (int n = 0; (req = bt_request_heap_first(&core->queue)); n++) {
        if (n == BT_DISPATCH_SLICE) {
            core->dispatch_due = true;
            break;
        }
        if (req->retry_due && !budget_has_room(core)) {
            core->counters.retries_held_back += !req->held_back;
            req->held_back = true;
            set_aside(core, req, BT_HOLD_MS);
        } else if (!place_head(core, req, &passed)) {
            break;
        }
    }
    while (passed.n)
        bt_request_heap_put(&core->queue, passed.reqs[--passed.n]);
}

/* Adds everything up: the simulator calls this after each event. */
#include "router/core_state.h"

#include <string.h>

struct sums {
    uint32_t n_in[BT_REQUEST_STATE_COUNT];
    uint32_t n_timers, n_queue, n_retrying, n_held, n_waiting, n_following;
    uint64_t chunks_used, chunks_reserved;
    uint32_t requests[BT_MAX_WORKERS], pages_asked[BT_MAX_WORKERS], backlog[BT_MAX_WORKERS];
};

static bool is_running(enum bt_request_state state) {
    return state >= BT_REQUEST_RESERVING && state <= BT_REQUEST_ASKING;
}

/* An open part is on a worker of the right role that has not been cleaned up. */
static bool part_is_valid(const struct bt_router_core *core, bool open, int16_t worker_i,
                          enum bt_role role) {
    if (!open)
        return worker_i == BT_NO_WORKER;
    if (worker_i < 0 || worker_i >= BT_MAX_WORKERS)
        return false;
    const struct bt_worker *worker = &core->workers.workers[worker_i];
    return worker->state != BT_WORKER_NONE && worker->role == role;
}

/* Followers wait for one that will have the cache and does not wait itself; the ring of its
 * followers holds each of them once. */
static bool followers_are_valid(const struct bt_router_core *core, const struct bt_request *req,
                                uint32_t *n_following) {
    uint32_t me = bt_core_index(core, req), first = req->first_follower, n = 0;
    if (req->leader != BT_NO_REQUEST &&
        (req->state != BT_REQUEST_QUEUED || first != BT_NO_REQUEST ||
         req->leader >= core->n_touched || req->attempt || bt_request_heap_has(&core->queue, req)))
        return false;
    if (first == BT_NO_REQUEST)
        return !req->n_followers;
    if (req->from_d || req->state < BT_REQUEST_QUEUED || req->state > BT_REQUEST_SERVED)
        return false;
    uint32_t r = first;
    do {
        if (r >= core->n_touched || ++n > req->n_followers)
            return false;
        const struct bt_request *follower = &core->requests[r];
        uint32_t next = follower->follow_next;
        if (follower->leader != me || next >= core->n_touched ||
            core->requests[next].follow_prev != r)
            return false;
        r = next;
    } while (r != first);
    *n_following += n;
    return n == req->n_followers && n <= BT_CHOICES;
}

/* What each state means, said as a condition. */
static bool state_is_valid(const struct bt_router_core *core, const struct bt_request *req) {
    bool in_queue = bt_request_heap_has(&core->queue, req);
    bool in_timers = bt_request_heap_has(&core->timers, req);
    bool split = req->placement == BT_PLACE_SPLIT;
    bool fresh = bt_core_next_index(req) == req->attempt_first;
    switch (req->state) {
    case BT_REQUEST_QUEUED:
        return in_timers && !req->p_open && !req->d_open && !req->window && !req->retrying &&
               (in_queue || req->not_before_us || req->leader != BT_NO_REQUEST);
    case BT_REQUEST_RESERVING:
    case BT_REQUEST_PREFILLING:
        /* No token of this attempt yet: P's own part can only be over by a hand-off. */
        return in_timers && !in_queue && req->d_open && !req->from_d && fresh &&
               (split || !req->p_open);
    case BT_REQUEST_TRANSFERRING:
        return in_timers && !in_queue && req->d_open && !req->from_d && split && !fresh;
    case BT_REQUEST_STREAMING:
        return in_timers && !in_queue && req->d_open && req->from_d;
    case BT_REQUEST_ASKING:
        return in_timers && !in_queue && req->d_open && !req->p_open && !req->from_d && split;
    case BT_REQUEST_SERVED:
        return in_timers && !in_queue && req->d_open && !req->p_open && !req->from_d && split &&
               !fresh && !req->window;
    case BT_REQUEST_ENDED:
        return !in_timers && !in_queue && !req->p_open && !req->d_open && !req->window;
    default:
        return false;
    }
}

static bool request_is_valid(const struct bt_router_core *core, const struct bt_request *req,
                             struct sums *sums) {
    uint32_t n_held = bt_fence_length(&core->fence, req->window);
    if (!state_is_valid(core, req) || n_held > BT_FENCE_WINDOW ||
        !part_is_valid(core, req->p_open, req->p, BT_ROLE_PREFILL) ||
        !part_is_valid(core, req->d_open, req->d, BT_ROLE_DECODE))
        return false;
    /* Nothing held may be due, nothing above the bound. */
    if (req->window && core->fence.rows[req->window].index <= bt_core_next_index(req))
        return false;
    if (bt_core_next_index(req) > req->sampling.max_tokens ||
        (req->state < BT_REQUEST_SERVED && bt_core_next_index(req) == req->sampling.max_tokens))
        return false;
    /* Logprobs of the prompt come once, and all of them before a token. */
    if (req->n_scored >= req->n_prompt || (bt_core_wants_scores(req) && bt_core_next_index(req)))
        return false;
    sums->n_waiting += req->leader != BT_NO_REQUEST;
    if (!followers_are_valid(core, req, &sums->n_following))
        return false;
    uint32_t n_chunks = bt_token_store_chunks_for(req->n_tokens) +
                        bt_token_store_chunks_for(bt_core_bias_words(&req->sampling));
    if (n_chunks > req->chunks_reserved || req->n_prompt < 1 || req->n_tokens < req->n_prompt)
        return false;
    if (!req->d_open && req->pages_asked)
        return false;
    if (!req->p_open && req->backlog_tokens)
        return false;
    uint64_t due_us = req->deadline_us;
    if (is_running(req->state) && req->timer_us != due_us)
        return false;
    if (req->state == BT_REQUEST_QUEUED && req->timer_us > due_us)
        return false;
    sums->n_timers += bt_request_heap_has(&core->timers, req);
    sums->n_queue += bt_request_heap_has(&core->queue, req);
    sums->n_retrying += req->retrying;
    sums->n_held += n_held;
    sums->chunks_used += n_chunks;
    sums->chunks_reserved += req->chunks_reserved;
    if (req->p_open) {
        sums->requests[req->p]++;
        sums->backlog[req->p] += req->backlog_tokens;
    }
    if (req->d_open) {
        sums->requests[req->d]++;
        sums->pages_asked[req->d] += req->pages_asked;
    }
    return true;
}

/* The list holds exactly the requests that name this worker, linked both ways. */
static bool list_is_valid(const struct bt_router_core *core, uint32_t i) {
    const struct bt_worker *worker = &core->workers.workers[i];
    bool is_p = worker->role == BT_ROLE_PREFILL;
    uint32_t n = 0, prev = BT_NO_REQUEST;
    for (uint32_t r = worker->first_request; r != BT_NO_REQUEST; n++) {
        if (r >= core->n_touched || n > worker->n_requests)
            return false;
        const struct bt_request *req = &core->requests[r];
        bool here = is_p ? req->p_open && req->p == (int)i : req->d_open && req->d == (int)i;
        bool works = is_running(req->state) || req->state == BT_REQUEST_SERVED;
        if (!here || !works || (is_p ? req->p_prev : req->live_prev) != prev)
            return false;
        prev = r;
        r = is_p ? req->p_next : req->live_next;
    }
    return n == worker->n_requests;
}

static bool worker_is_valid(const struct bt_router_core *core, uint32_t i,
                            const struct sums *sums) {
    const struct bt_worker *worker = &core->workers.workers[i];
    if (sums->requests[i] != worker->n_requests || sums->pages_asked[i] != worker->pages_asked ||
        sums->backlog[i] != worker->backlog_tokens || worker->n_seen >= BT_SEEN_MAX ||
        worker->n_requests > BT_WORKER_REQUESTS_MAX || !list_is_valid(core, i))
        return false;
    bool on_stream = worker->slot != BT_NO_SLOT;
    if (on_stream != (worker->state == BT_WORKER_UP || worker->state == BT_WORKER_SUSPECT))
        return false;
    if (on_stream && core->workers.slots[worker->slot].worker != (int32_t)i)
        return false;
    if (worker->state == BT_WORKER_NONE)
        return !worker->n_requests && !core->prefix.n_of[i];
    if (!bt_worker_is_known(worker))
        return true;
    for (uint32_t j = 0; j < i; j++)
        if (bt_worker_is_known(&core->workers.workers[j]) &&
            !strcmp(core->workers.workers[j].name, worker->name))
            return false;
    return true;
}

static bool slots_are_valid(const struct bt_router_core *core) {
    uint32_t n_dead = 0;
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++)
        n_dead += core->workers.workers[i].state == BT_WORKER_DEAD;
    for (uint32_t i = 0; i < BT_ROUTER_SLOTS; i++) {
        const struct bt_worker_slot *slot = &core->workers.slots[i];
        if (slot->worker == BT_NO_WORKER)
            continue;
        if (!slot->open || slot->closing || core->workers.workers[slot->worker].slot != (int32_t)i)
            return false;
    }
    return n_dead == core->n_dead;
}

static bool chains_are_valid(const struct bt_router_core *core, const struct sums *sums) {
    uint32_t n_free = 0, n_ended = 0;
    for (uint32_t r = core->first_free; r != BT_NO_REQUEST; r = core->requests[r].live_next)
        if (core->requests[r].state != BT_REQUEST_FREE || n_free++ > core->n_touched)
            return false;
    for (uint32_t r = core->first_ended; r != BT_NO_REQUEST; r = core->requests[r].live_next)
        if (core->requests[r].state != BT_REQUEST_ENDED || n_ended++ > core->n_touched)
            return false;
    return n_free == sums->n_in[BT_REQUEST_FREE] && n_ended == sums->n_in[BT_REQUEST_ENDED];
}

static bool totals_are_valid(const struct bt_router_core *core, const struct sums *sums) {
    for (int state = BT_REQUEST_QUEUED; state < BT_REQUEST_STATE_COUNT; state++)
        if (sums->n_in[state] != core->n_in[state])
            return false;
    const struct bt_router_counters *c = &core->counters;
    uint64_t ended = c->ended_ok + c->ended_cancelled + c->ended_deadline + c->ended_failed;
    return sums->n_timers == core->timers.n && sums->n_queue == core->queue.n &&
           sums->n_waiting == sums->n_following && sums->n_retrying == core->n_retrying &&
           sums->n_held == core->fence.n_held &&
           sums->chunks_used == bt_token_store_used(&core->tokens) &&
           sums->chunks_reserved == core->tokens.pool.n_reserved &&
           core->tokens.pool.n_reserved <= core->tokens.pool.n_chunks &&
           core->actions.n_given <= core->actions.n &&
           /* Each request ends exactly once. */
           c->submitted == ended + bt_core_live(core) && core->records.n_ended == ended;
}

bool bt_router_core_is_valid(const struct bt_router_core *core) {
    struct sums sums;
    memset(&sums, 0, sizeof sums);
    for (uint32_t i = 0; i < core->n_touched; i++) {
        const struct bt_request *req = &core->requests[i];
        sums.n_in[req->state]++;
        if (req->state != BT_REQUEST_FREE && !request_is_valid(core, req, &sums))
            return false;
    }
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++)
        if (!worker_is_valid(core, i, &sums))
            return false;
    return slots_are_valid(core) && chains_are_valid(core, &sums) &&
           totals_are_valid(core, &sums) && bt_request_heap_is_valid(&core->timers) &&
           bt_request_heap_is_valid(&core->queue) && bt_prefix_table_is_valid(&core->prefix);
}

/* Opens and closes an attempt's parts, and decides what the loss of one costs. */
#include "router/core_attempt.h"

#include <string.h>

#include "common/base/assert.h"
#include "router/core_state.h"
#include "router/followers.h"

/* ---- the lists of a worker's requests ---- */

static void link_request(struct bt_router_core *core, int worker_i, struct bt_request *req,
                         bool is_p) {
    struct bt_worker *worker = &core->workers.workers[worker_i];
    uint32_t me = bt_core_index(core, req), next = worker->first_request;
    *(is_p ? &req->p_next : &req->live_next) = next;
    *(is_p ? &req->p_prev : &req->live_prev) = BT_NO_REQUEST;
    if (next != BT_NO_REQUEST)
        *(is_p ? &core->requests[next].p_prev : &core->requests[next].live_prev) = me;
    worker->first_request = me;
    worker->n_requests++;
}

static void unlink_request(struct bt_router_core *core, int worker_i, struct bt_request *req,
                           bool is_p) {
    struct bt_worker *worker = &core->workers.workers[worker_i];
    uint32_t next = is_p ? req->p_next : req->live_next;
    uint32_t prev = is_p ? req->p_prev : req->live_prev;
    if (next != BT_NO_REQUEST)
        *(is_p ? &core->requests[next].p_prev : &core->requests[next].live_prev) = prev;
    if (prev != BT_NO_REQUEST)
        *(is_p ? &core->requests[prev].p_next : &core->requests[prev].live_next) = next;
    else
        worker->first_request = next;
    BT_ASSERT(worker->n_requests);
    worker->n_requests--;
    core->dispatch_due = true;
}

/* ---- open ---- */

static void open_part(struct bt_router_core *core, struct bt_request *req, int worker_i,
                      bool is_p) {
    const struct bt_worker *worker = &core->workers.workers[worker_i];
    link_request(core, worker_i, req, is_p);
    memcpy(is_p ? req->p_name : req->d_name, worker->name, BT_NAME_BYTES);
    *(is_p ? &req->p : &req->d) = (int16_t)worker_i;
    *(is_p ? &req->p_open : &req->d_open) = true;
}

/* A wait of a stream that was lost counts as its replay. */
static void leave_queue(struct bt_router_core *core, struct bt_request *req) {
    if (!req->lost_us)
        req->queue_total_us += core->now_us - req->queued_us;
}

void bt_core_attempt_open(struct bt_router_core *core, struct bt_request *req,
                          const struct bt_placement_choice *choice) {
    struct bt_worker *workers = core->workers.workers;
    req->attempt++;
    req->ticket = bt_core_draw(core);
    req->attempt_first = bt_core_next_index(req);
    req->from_d = false;
    req->p_end = 0;
    req->placement = choice->why;
    req->placed_us = core->now_us;
    leave_queue(core, req);
    req->accepted_us = req->resumed_us = 0;
    req->p_stages = req->d_stages = (struct bt_stages){0};
    req->p_reported = req->d_reported = false;
    req->p_name[0] = 0;
    if (req->retry_due) {
        req->retrying = true;
        core->n_retrying++;
        core->counters.retries++;
    }
    req->retry_due = req->held_back = false;
    core->counters.attempts++;
    core->counters.placed[choice->why]++;

    open_part(core, req, choice->d, false);
    req->prompt_d = workers[choice->d].incarnation;
    req->pages_asked = choice->pages;
    workers[choice->d].pages_asked += choice->pages;
    if (choice->p != BT_NO_WORKER) {
        open_part(core, req, choice->p, true);
        req->backlog_tokens = choice->backlog_tokens;
        workers[choice->p].backlog_tokens += choice->backlog_tokens;
    }
    bt_request_heap_remove(&core->queue, req);
    bt_core_set_state(core, req, BT_REQUEST_RESERVING);
    bt_core_arm(core, req);
    bt_core_actions_send(core, (uint32_t)choice->d, BT_MSG_RESERVE, req);
    if (choice->p != BT_NO_WORKER)
        bt_core_actions_send(core, (uint32_t)choice->p, BT_MSG_PREFILL, req);
}

/* ---- close ---- */

void bt_core_attempt_computed(struct bt_router_core *core, struct bt_request *req) {
    if (!req->backlog_tokens)
        return;
    core->workers.workers[req->p].backlog_tokens -= req->backlog_tokens;
    req->backlog_tokens = 0;
    core->dispatch_due = true;
}

void bt_core_attempt_answered(struct bt_router_core *core, struct bt_request *req, bool accepted) {
    struct bt_worker *worker = &core->workers.workers[req->d];
    worker->pages_asked -= req->pages_asked;
    if (accepted)
        worker->pages_accepted += req->pages_asked;
    if (accepted && !req->accepted_us)
        req->accepted_us = core->now_us;
    req->pages_asked = 0;
    req->was_placed |= accepted;
}

void bt_core_attempt_close_p(struct bt_router_core *core, struct bt_request *req) {
    if (!req->p_open)
        return;
    bt_core_attempt_computed(core, req);
    unlink_request(core, req->p, req, true);
    req->p_open = false;
    req->p = BT_NO_WORKER;
}

void bt_core_attempt_close_d(struct bt_router_core *core, struct bt_request *req) {
    if (!req->d_open)
        return;
    bt_core_attempt_answered(core, req, false);
    unlink_request(core, req->d, req, false);
    req->d_open = false;
    req->d = BT_NO_WORKER;
}

void bt_core_attempt_cancel(struct bt_router_core *core, struct bt_request *req) {
    if (req->d_open)
        bt_core_actions_send(core, (uint32_t)req->d, BT_MSG_CANCEL, req);
    if (req->p_open)
        bt_core_actions_send(core, (uint32_t)req->p, BT_MSG_CANCEL, req);
    bt_core_attempt_close_p(core, req);
    bt_core_attempt_close_d(core, req);
}

static void leave_attempt(struct bt_router_core *core, struct bt_request *req) {
    bt_fence_drop(&core->fence, &req->window);
    if (req->retrying) {
        req->retrying = false;
        core->n_retrying--;
    }
}

/* ---- lose ---- */

/* What each loss costs. Retries are paid from the budget and wait a little; moves are only paced by
 * the room that others have. Failures are retries without an excuse: they are few. */
static const struct {
    bool retry, failure;
    size_t counter; /* in struct bt_router_counters; 0: retries count when they start */
    const char *word;
} losses[BT_LOSS_COUNT] = {
    [BT_LOSS_DEATH] = {false, false, offsetof(struct bt_router_counters, moved_death), "death"},
    [BT_LOSS_PREEMPTED] = {false, false, offsetof(struct bt_router_counters, moved_preempted),
                           "preempted"},
    [BT_LOSS_DRAINED] = {false, false, offsetof(struct bt_router_counters, moved_drained),
                         "drained"},
    [BT_LOSS_LINK] = {false, false, offsetof(struct bt_router_counters, moved_link), "link lost"},
    [BT_LOSS_FULL] = {true, false, 0, "full"},
    [BT_LOSS_FAILED] = {true, true, 0, "failed"},
};

enum bt_loss bt_core_attempt_loss_of(enum bt_end end) {
    switch (end) {
    case BT_END_FULL:
        return BT_LOSS_FULL;
    case BT_END_PREEMPTED:
        return BT_LOSS_PREEMPTED;
    case BT_END_LINK:
        return BT_LOSS_LINK;
    case BT_END_DRAINING:
        return BT_LOSS_DRAINED;
    default:
        return BT_LOSS_FAILED;
    }
}

static void bump(uint8_t *n) {
    if (*n < UINT8_MAX)
        ++*n;
}

static void count_loss(struct bt_router_core *core, struct bt_request *req, enum bt_loss loss) {
    if (losses[loss].counter)
        ++*(uint64_t *)((char *)&core->counters + losses[loss].counter);
    if (losses[loss].retry) {
        bump(&req->retries);
        if (losses[loss].failure)
            bump(&req->failures);
    } else {
        bump(&req->moves);
        req->preempted |= loss == BT_LOSS_PREEMPTED;
        req->moved |= loss != BT_LOSS_PREEMPTED;
    }
}

/* What the lost attempt took, and what it was good for. */
static void keep_spans(struct bt_router_core *core, struct bt_request *req) {
    if (!bt_core_next_index(req)) {
        req->wasted_us += core->now_us - req->placed_us;
        return;
    }
    if (!req->resumed_us)
        return; /* it was to continue a stream, and has not: that is one long replay */
    if (req->attempt_first == 0) {
        struct bt_record record;
        bt_core_describe(core, core->now_us, req, &record);
        bt_spans_of_start(&record.facts, &record.pub, req->start_us);
        req->start_kept = true;
    }
    req->decoded_us += req->last_token_us - req->resumed_us;
    req->lost_us = req->last_token_us;
}

static uint64_t backoff_us(struct bt_router_core *core, const struct bt_request *req) {
    uint32_t doublings = req->retries < 6 ? req->retries : 6;
    uint64_t us = BT_BACKOFF_MS * 500ull << doublings;
    if (us > BT_BACKOFF_MS_MAX * 1000ull)
        us = BT_BACKOFF_MS_MAX * 1000ull;
    /* Half of it is drawn, so that requests refused together do not come back together. */
    return us / 2 + bt_core_draw(core).lo % (us / 2);
}

/* Those that wait for its cache have the same prompt: they are not tried either. */
static void end_poisoned(struct bt_router_core *core, struct bt_request *req) {
    const char *reason = bt_core_actions_reason(
        &core->actions,
        "%u workers died while this request was on them; it is not tried on another", req->deaths);
    while (req->first_follower != BT_NO_REQUEST) {
        core->counters.poisoned++;
        bt_core_attempt_end(core, &core->requests[req->first_follower], BT_E_PEER_GONE,
                            BT_FINISH_NONE, reason);
    }
    core->counters.poisoned++;
    bt_core_attempt_end(core, req, BT_E_PEER_GONE, BT_FINISH_NONE, reason);
}

void bt_core_attempt_lose(struct bt_router_core *core, struct bt_request *req, enum bt_loss loss,
                          enum bt_end end) {
    bt_core_attempt_cancel(core, req);
    leave_attempt(core, req);
    count_loss(core, req, loss);
    keep_spans(core, req);
    if (req->deaths >= BT_DEATHS_MAX && loss == BT_LOSS_DEATH) {
        end_poisoned(core, req);
        return;
    }
    if (req->failures >= BT_FAILURES_MAX) {
        bt_core_attempt_end(core, req, BT_E_UNAVAILABLE, BT_FINISH_NONE,
                            bt_core_actions_reason(
                                &core->actions, "%u attempts failed, the limit; the last one: %s",
                                req->failures, bt_lifecycle_end_name(end)));
        return;
    }
    req->from_d = false;
    req->queued_us = core->now_us;
    if (req->was_placed)
        req->queue_deadline_us = core->now_us + core->config.queue_ms * 1000ull;
    req->retry_due = losses[loss].retry;
    req->not_before_us = losses[loss].retry ? core->now_us + backoff_us(core, req) : 0;
    bt_core_set_state(core, req, BT_REQUEST_QUEUED);
    if (!req->not_before_us)
        bt_request_heap_put(&core->queue, req);
    bt_core_arm(core, req);
    core->dispatch_due = true;
}

/* ---- end ---- */

static void put_record(struct bt_router_core *core, struct bt_request *req, bool p_expected,
                       bool d_expected) {
    struct bt_record record;
    bt_core_describe(core, core->now_us, req, &record);
    record.ended_us = core->now_us;
    record.p_expected = p_expected;
    record.d_expected = d_expected;
    /* A choice has met the others, though it may be the last to end. */
    record.alone = bt_core_live(core) <= 1 && req->placement != BT_PLACE_LOCAL_CHOICE;
    bt_record_judge(&record, &core->targets);
    req->verdict = record.pub.verdict;
    bt_record_put(&core->records, &record, bt_core_sums(core));
}

/* The client's part of the end: the record, the counters, END. */
static void end_for_client(struct bt_router_core *core, struct bt_request *req, bt_status status,
                           enum bt_finish finish_reason, const char *reason, bool served) {
    bool p_expected = served && req->p_open;
    bool d_expected = served && req->d_open && !req->d_reported;
    if (req->state == BT_REQUEST_QUEUED) {
        leave_queue(core, req);
        req->queued_us = core->now_us;
    }
    if (req->lost_us)
        req->replay_total_us += core->now_us - req->lost_us;
    req->lost_us = 0;
    req->status = status;
    req->finish = finish_reason;
    struct bt_router_counters *counters = &core->counters;
    ++*(status == BT_OK            ? &counters->ended_ok
        : status == BT_E_CANCELLED ? &counters->ended_cancelled
        : status == BT_E_DEADLINE  ? &counters->ended_deadline
                                   : &counters->ended_failed);
    put_record(core, req, p_expected, d_expected);
    bt_core_actions_end(core, req, reason);
}

/* Nothing is left to do for it; followers that still wait go on without it. */
static void leave_table(struct bt_router_core *core, struct bt_request *req) {
    leave_attempt(core, req);
    bt_request_heap_remove(&core->queue, req);
    bt_request_heap_remove(&core->timers, req);
    bt_core_set_state(core, req, BT_REQUEST_ENDED);
    bt_followers_leave(core, req);
    bt_followers_hand_over(core, req);
    req->live_next = core->first_ended;
    core->first_ended = bt_core_index(core, req);
    core->dispatch_due = true;
}

void bt_core_attempt_serve(struct bt_router_core *core, struct bt_request *req,
                           enum bt_finish finish_reason) {
    end_for_client(core, req, BT_OK, finish_reason, "", true);
    bt_core_attempt_close_p(core, req);
    /* P gave the last token, and D will have the cache soon. */
    if (req->first_follower != BT_NO_REQUEST && req->d_open && !req->from_d) {
        leave_attempt(core, req);
        bt_core_set_state(core, req, BT_REQUEST_SERVED);
        return;
    }
    bt_core_attempt_close_d(core, req);
    leave_table(core, req);
}

void bt_core_attempt_retire(struct bt_router_core *core, struct bt_request *req) {
    bt_core_attempt_close_d(core, req);
    leave_table(core, req);
}

void bt_core_attempt_end(struct bt_router_core *core, struct bt_request *req, bt_status status,
                         enum bt_finish finish_reason, const char *reason) {
    bt_core_attempt_cancel(core, req);
    end_for_client(core, req, status, finish_reason, reason, false);
    leave_table(core, req);
}

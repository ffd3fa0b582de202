/* Joins workers, reads their messages, notices their silence and cleans up after the dead. */
#include "router/core_workers.h"

#include "common/base/assert.h"
#include "router/core_attempt.h"
#include "router/core_state.h"

enum { FULL_AVOID_MS = 50 }; /* a Status in the meantime says better */

static struct bt_worker *get(struct bt_router_core *core, uint32_t i) {
    return &core->workers.workers[i];
}

static bool step(struct bt_router_core *core, uint32_t i, enum bt_worker_event event) {
    return bt_worker_step(get(core, i), event, core->coverage + BT_LIFECYCLE_PAIRS);
}

static const char *role_name(enum bt_role role) {
    return role == BT_ROLE_PREFILL ? "prefill" : "decode";
}

/* ---- streams ---- */

/* The worker is no longer on its stream. */
static void leave_slot(struct bt_router_core *core, uint32_t i) {
    struct bt_worker *worker = get(core, i);
    if (worker->slot != BT_NO_SLOT)
        core->workers.slots[worker->slot].worker = BT_NO_WORKER;
    worker->slot = BT_NO_SLOT;
}

static void detach(struct bt_router_core *core, uint32_t i) {
    get(core, i)->ended_us = core->now_us;
    leave_slot(core, i);
    step(core, i, BT_WORKER_STREAM_END);
}

/* Ends a stream for a reason; what still comes on it is not read. */
static void close_slot(struct bt_router_core *core, uint32_t slot, const char *reason) {
    struct bt_worker_slot *s = &core->workers.slots[slot];
    if (s->worker != BT_NO_WORKER)
        detach(core, (uint32_t)s->worker);
    s->closing = true;
    bt_core_actions_close(core, slot, reason);
}

static void die(struct bt_router_core *core, uint32_t i, enum bt_worker_event event) {
    struct bt_worker *worker = get(core, i);
    /* It had said that it drains, nothing of ours was there, and it ended its stream. */
    bool left = event == BT_WORKER_LOST && worker->state == BT_WORKER_DETACHED &&
                worker->status.draining && !worker->n_requests;
    const char *reason = bt_core_actions_reason(
        &core->actions, "%s worker %s %s: %s", role_name(worker->role), worker->name,
        left ? "has left" : "is dead",
        left                                  ? "it was drained"
        : event == BT_WORKER_REPLACED         ? "its name attached again as another process"
        : worker->state == BT_WORKER_DETACHED ? "its stream ended and it did not come back"
                                              : "it was silent too long");
    int32_t slot = worker->slot;
    leave_slot(core, i);
    step(core, i, event);
    if (slot != BT_NO_SLOT) {
        core->workers.slots[slot].closing = true;
        bt_core_actions_close(core, (uint32_t)slot, reason);
    }
    bt_core_actions_log(core, reason);
    bt_prefix_table_forget(&core->prefix, i);
    worker->n_seen = 0;
    core->workers.peers_changed |= worker->role == BT_ROLE_DECODE;
    ++*(left ? &core->counters.leaves : &core->counters.deaths);
    core->n_dead++;
}

void bt_router_core_worker_opened(struct bt_router_core *core, uint64_t now_us, uint32_t slot) {
    bt_core_enter(core, now_us);
    BT_ASSERT(slot < BT_ROUTER_SLOTS && !core->workers.slots[slot].open);
    core->workers.slots[slot] = (struct bt_worker_slot){.open = true, .worker = BT_NO_WORKER};
    bt_core_leave(core);
}

void bt_router_core_worker_closed(struct bt_router_core *core, uint64_t now_us, uint32_t slot) {
    bt_core_enter(core, now_us);
    BT_ASSERT(slot < BT_ROUTER_SLOTS);
    struct bt_worker_slot *s = &core->workers.slots[slot];
    if (s->worker != BT_NO_WORKER)
        detach(core, (uint32_t)s->worker);
    *s = (struct bt_worker_slot){.worker = BT_NO_WORKER};
    bt_core_leave(core);
}

/* ---- joining ---- */

/* What we hold with this worker, as rows; then what we had asked it. */
static void send_resume(struct bt_router_core *core, uint32_t i) {
    const struct bt_worker *worker = get(core, i);
    bool is_p = worker->role == BT_ROLE_PREFILL;
    uint32_t n = 0;
    for (uint32_t r = worker->first_request; r != BT_NO_REQUEST;) {
        const struct bt_request *req = &core->requests[r];
        BT_ASSERT(n < BT_RESUME_MAX);
        core->actions.resume[n++] = (struct bt_resume){.key = {req->id, req->attempt},
                                                       .ticket = req->ticket,
                                                       .next_index = bt_core_next_index(req)};
        r = is_p ? req->p_next : req->live_next;
    }
    core->actions.n_resume = n;
    bt_core_actions_send(core, i, BT_MSG_RESUME, NULL);
    if (is_p)
        return;
    for (uint32_t r = worker->first_request; r != BT_NO_REQUEST;) {
        struct bt_request *req = &core->requests[r];
        r = req->live_next;
        bt_lifecycle_event(core, req, BT_LIFE_D_ATTACHED, (struct bt_life_cause){0});
    }
}

static void on_join(struct bt_router_core *core, uint32_t slot, const struct bt_msg_join *join) {
    struct bt_error err = {0};
    uint32_t i = 0, old = 0;
    enum bt_join answer = bt_worker_table_check(&core->workers, join, &i, &old, &err);
    if (answer == BT_JOIN_REFUSED || answer == BT_JOIN_LATER) {
        core->counters.joins_refused++;
        const char *reason = bt_core_actions_reason(&core->actions, "%s", err.text);
        bt_core_actions_refuse(core, slot, reason, answer == BT_JOIN_REFUSED);
        close_slot(core, slot, reason);
        return;
    }
    if (answer == BT_JOIN_REPLACE)
        die(core, old, BT_WORKER_REPLACED);
    if (answer == BT_JOIN_RESUME && get(core, i)->slot != BT_NO_SLOT) {
        uint32_t stale = (uint32_t)get(core, i)->slot;
        leave_slot(core, i);
        close_slot(core, stale, "the worker has attached again on another stream");
    }
    bt_worker_table_enter(&core->workers, core->now_us, i, slot, join);
    step(core, i, answer == BT_JOIN_RESUME ? BT_WORKER_RESUMED : BT_WORKER_JOINED);
    core->counters.joins++;
    core->dispatch_due = true;
    bt_core_actions_send(core, i, BT_MSG_WELCOME, NULL);
    if (join->role == BT_ROLE_PREFILL)
        bt_core_actions_send(core, i, BT_MSG_PEERS, NULL);
    send_resume(core, i);
    bt_core_actions_log(
        core, bt_core_actions_reason(&core->actions, "%s worker %s %s: %u requests here, %u pages",
                                     role_name(join->role), join->name,
                                     answer == BT_JOIN_RESUME ? "is back" : "joined",
                                     get(core, i)->n_requests, join->census.total));
}

/* ---- messages ---- */

static void on_status(struct bt_router_core *core, uint32_t i, const struct bt_msg_status *status) {
    struct bt_worker *worker = get(core, i);
    worker->status = *status;
    worker->pages_accepted = 0; /* what D accepted before it said this is in the census */
    worker->full_until_us = 0;
    core->dispatch_due |= core->queue.n > 0;
}

static void on_blocks(struct bt_router_core *core, uint32_t i, const struct bt_msg_blocks *blocks) {
    struct bt_worker *worker = get(core, i);
    if (worker->blocks_known && blocks->sequence != worker->blocks_sequence)
        core->counters.prefix_holes++;
    worker->blocks_known = true;
    worker->blocks_sequence = blocks->sequence + 1;
    if (blocks->census_first)
        bt_prefix_table_forget(&core->prefix, i);
    for (uint32_t n = 0; n < blocks->n_evicted; n++)
        bt_prefix_table_remove(&core->prefix, blocks->evicted[n], i);
    for (uint32_t n = 0; n < blocks->n_added; n++)
        bt_prefix_table_add(&core->prefix, blocks->added[n], i);
}

/* The request, if this is of its attempt and this worker's part of it is open. */
static struct bt_request *find_part(struct bt_router_core *core, uint32_t i, struct bt_attempt key,
                                    bool *from_p) {
    struct bt_request *req = bt_core_find(core, key.request);
    if (!req || req->attempt != key.attempt)
        return NULL;
    *from_p = req->p_open && req->p == (int)i;
    return *from_p || (req->d_open && req->d == (int)i) ? req : NULL;
}

static void on_reserved(struct bt_router_core *core, uint32_t i,
                        const struct bt_msg_reserved *reserved) {
    bool from_p = false;
    struct bt_request *req = find_part(core, i, reserved->key, &from_p);
    if (!req || from_p)
        return;
    if (reserved->accepted) {
        if (req->pages_asked) {
            core->counters.pages_prompt += reserved->pages;
            core->counters.pages_held += reserved->pages_held;
        }
        req->pages = reserved->pages;
        req->pages_held = reserved->pages_held;
        bt_core_attempt_answered(core, req, true);
        bt_lifecycle_event(core, req, BT_LIFE_RESERVED, (struct bt_life_cause){0});
        return;
    }
    struct bt_life_cause cause = {.end = reserved->reason};
    if (cause.end != BT_END_DRAINING && cause.end != BT_END_INVALID &&
        cause.end != BT_END_DEADLINE) {
        cause.end = BT_END_FULL;
        get(core, i)->full_until_us = core->now_us + FULL_AVOID_MS * 1000ull;
    }
    if (cause.end == BT_END_DRAINING)
        get(core, i)->status.draining = true;
    enum bt_request_state state = req->state;
    bt_core_attempt_close_d(core, req);
    /* A D that takes its word back has lost the attempt like any other end of its part. */
    bool first = state == BT_REQUEST_RESERVING || state == BT_REQUEST_ASKING;
    bt_lifecycle_event(core, req, first ? BT_LIFE_REFUSED : BT_LIFE_D_FAILED, cause);
}

static void note_report(struct bt_router_core *core, struct bt_request *req,
                        const struct bt_msg_ended *ended, bool from_p) {
    *(from_p ? &req->p_stages : &req->d_stages) = ended->stages;
    if (from_p)
        req->pages_cached_p = ended->pages_cached_p;
    if (from_p)
        req->p_reported = true;
    else if (ended->reason == BT_END_DONE)
        req->d_reported = true;
    if (ended->pages) {
        req->pages = ended->pages;
        req->pages_held = ended->pages_held;
    }
    if (ended->kv_bytes > req->kv_bytes) {
        core->counters.kv_bytes += ended->kv_bytes - req->kv_bytes;
        req->kv_bytes = ended->kv_bytes;
    }
}

static void on_ended(struct bt_router_core *core, uint32_t i, const struct bt_msg_ended *ended) {
    struct bt_worker *worker = get(core, i);
    core->seen[i][worker->n_seen++] = ended->key;
    if (worker->n_seen == BT_SEEN_MAX)
        bt_core_actions_send(core, i, BT_MSG_SEEN, NULL);
    bool from_p = worker->role == BT_ROLE_PREFILL;
    struct bt_request *req = find_part(core, i, ended->key, &from_p);
    bool served = req && req->state == BT_REQUEST_SERVED;
    if (!req || served)
        bt_record_report(&core->records, ended, from_p, bt_core_sums(core));
    if (!req)
        return;
    if (!served)
        note_report(core, req, ended, from_p);
    core->counters.incomplete += ended->reason == BT_END_DONE && !from_p && !served;
    if (ended->reason == BT_END_LINK && req->p != BT_NO_WORKER && req->d != BT_NO_WORKER)
        core->workers.avoid_until_us[req->p][req->d] = core->now_us + BT_PAIR_AVOID_MS * 1000ull;
    if (ended->reason == BT_END_DRAINING)
        worker->status.draining = true; /* its Status will say the same */
    if (ended->reason == BT_END_FULL || ended->reason == BT_END_PREEMPTED)
        worker->full_until_us = core->now_us + FULL_AVOID_MS * 1000ull;
    if (!from_p && ended->reason != BT_END_UNKNOWN)
        bt_lifecycle_imply_reserved(core, req);
    if (from_p)
        bt_core_attempt_close_p(core, req);
    else
        bt_core_attempt_close_d(core, req);
    bt_lifecycle_event(core, req, bt_lifecycle_event_of_end(req->state, ended->reason, from_p),
                       (struct bt_life_cause){.end = ended->reason});
}

/* Its stages so far, before the tokens that they belong to: what the client is told with its last
 * token is then known. */
static void on_report(struct bt_router_core *core, uint32_t i, const struct bt_msg_ended *report) {
    bool from_p = false;
    struct bt_request *req = find_part(core, i, report->key, &from_p);
    if (req && req->state != BT_REQUEST_SERVED) /* the record of that one waits for Ended */
        note_report(core, req, report, from_p);
}

static void on_live(struct bt_router_core *core, uint32_t i, const struct bt_msg_live *live) {
    bool from_p = false;
    struct bt_request *req = find_part(core, i, live->key, &from_p);
    if (req && !from_p)
        bt_lifecycle_event(core, req, BT_LIFE_D_LIVE, (struct bt_life_cause){0});
}

/* The worker breaks the protocol: what it says is not read on. */
static void close_fault(struct bt_router_core *core, uint32_t slot, const struct bt_error *err) {
    close_slot(core, slot, bt_core_actions_reason(&core->actions, "%s", err->text));
}

static void on_tokens(struct bt_router_core *core, uint32_t slot, uint32_t i,
                      const struct bt_msg_tokens *tokens) {
    struct bt_error err = {0};
    bool ok = tokens->n_rows <= BT_ROUTER_TOKEN_ROWS;
    if (!ok)
        bt_fail(&err, BT_E_PROTOCOL, "one Tokens has %u rows, the limit is %u", tokens->n_rows,
                (unsigned)BT_ROUTER_TOKEN_ROWS);
    for (uint32_t r = 0; ok && r < tokens->n_rows; r++)
        ok = bt_lifecycle_token(core, i, &tokens->rows[r], &err);
    if (!ok)
        close_fault(core, slot, &err);
}

static void on_scores(struct bt_router_core *core, uint32_t slot, uint32_t i,
                      const struct bt_msg_scores *scores) {
    struct bt_error err = {0};
    bool ok = scores->n_rows <= BT_ROUTER_TOKEN_ROWS;
    if (!ok)
        bt_fail(&err, BT_E_PROTOCOL, "one Scores has %u rows, the limit is %u", scores->n_rows,
                (unsigned)BT_ROUTER_TOKEN_ROWS);
    ok = ok && bt_lifecycle_scores(core, i, scores, &err);
    if (!ok)
        close_fault(core, slot, &err);
}

static void on_message(struct bt_router_core *core, uint32_t slot, uint32_t i,
                       const struct bt_msg *msg) {
    switch (msg->type) {
    case BT_MSG_STATUS:
        on_status(core, i, &msg->status);
        break;
    case BT_MSG_BLOCKS:
        on_blocks(core, i, &msg->blocks);
        break;
    case BT_MSG_RESERVED:
        on_reserved(core, i, &msg->reserved);
        break;
    case BT_MSG_LIVE:
        on_live(core, i, &msg->live);
        break;
    case BT_MSG_TOKENS:
        on_tokens(core, slot, i, &msg->tokens);
        break;
    case BT_MSG_SCORES:
        on_scores(core, slot, i, &msg->scores);
        break;
    case BT_MSG_ENDED:
        on_ended(core, i, &msg->ended);
        break;
    case BT_MSG_REPORT:
        on_report(core, i, &msg->ended);
        break;
    default:
        close_slot(core, slot,
                   bt_core_actions_reason(&core->actions,
                                          "message type %d is not one that a joined worker sends",
                                          (int)msg->type));
    }
}

void bt_router_core_worker_message(struct bt_router_core *core, uint64_t now_us, uint32_t slot,
                                   const struct bt_msg *msg) {
    bt_core_enter(core, now_us);
    BT_ASSERT(slot < BT_ROUTER_SLOTS && core->workers.slots[slot].open);
    const struct bt_worker_slot *s = &core->workers.slots[slot];
    if (s->closing) {
        /* Its stream is on the way out; what matters of it comes again on the next one. */
    } else if (s->worker != BT_NO_WORKER) {
        uint32_t i = (uint32_t)s->worker;
        get(core, i)->heard_us = core->now_us;
        core->dispatch_due |= step(core, i, BT_WORKER_HEARD);
        on_message(core, slot, i, msg);
    } else if (msg->type == BT_MSG_JOIN) {
        on_join(core, slot, &msg->join);
    } else {
        close_slot(core, slot, "the first message on a stream must be Join");
    }
    bt_core_leave(core);
}

/* ---- time ---- */

void bt_core_workers_excuse(struct bt_router_core *core, uint64_t now_us) {
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++)
        get(core, i)->heard_us = get(core, i)->ended_us = now_us;
}

static void judge(struct bt_router_core *core, uint32_t i) {
    struct bt_worker *worker = get(core, i);
    while (bt_worker_due_us(worker) <= core->now_us) {
        if (worker->state != BT_WORKER_UP) {
            die(core, i, BT_WORKER_LOST);
            return;
        }
        step(core, i, BT_WORKER_SILENT);
        core->counters.suspects++;
        bt_core_actions_log(core, bt_core_actions_reason(
                                      &core->actions, "%s worker %s is silent: no new work for it",
                                      role_name(worker->role), worker->name));
    }
}

void bt_core_workers_tick(struct bt_router_core *core) {
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++) {
        struct bt_worker *worker = get(core, i);
        if (!bt_worker_is_known(worker))
            continue;
        judge(core, i);
        if (worker->slot == BT_NO_SLOT)
            continue;
        if (worker->n_seen)
            bt_core_actions_send(core, i, BT_MSG_SEEN, NULL);
        if (core->now_us - worker->pulsed_us >= BT_HEARTBEAT_MS * 1000ull) {
            worker->pulsed_us = core->now_us;
            bt_core_actions_send(core, i, BT_MSG_PULSE, NULL);
        }
    }
}

uint64_t bt_core_workers_due_us(const struct bt_router_core *core) {
    uint64_t next_us = UINT64_MAX;
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++) {
        const struct bt_worker *worker = &core->workers.workers[i];
        if (!bt_worker_is_known(worker))
            continue;
        uint64_t due_us = bt_worker_due_us(worker);
        uint64_t pulse_us =
            worker->slot == BT_NO_SLOT ? UINT64_MAX : worker->pulsed_us + BT_HEARTBEAT_MS * 1000ull;
        next_us = due_us < next_us ? due_us : next_us;
        next_us = pulse_us < next_us ? pulse_us : next_us;
    }
    return next_us;
}

/* ---- after a death ---- */

static void take_off(struct bt_router_core *core, uint32_t i) {
    struct bt_worker *worker = get(core, i);
    struct bt_request *req = &core->requests[worker->first_request];
    if (worker->role == BT_ROLE_PREFILL) {
        /* With D's tokens here P's death cost nothing: it is no mark against the request. */
        req->deaths += !req->from_d;
        bt_core_attempt_close_p(core, req);
        bt_lifecycle_event(core, req, BT_LIFE_P_DEAD, (struct bt_life_cause){0});
    } else {
        req->deaths++;
        bt_core_attempt_close_d(core, req);
        bt_lifecycle_event(core, req, BT_LIFE_D_DEAD, (struct bt_life_cause){0});
    }
}

void bt_core_workers_clean(struct bt_router_core *core) {
    int n = 0;
    for (uint32_t i = 0; core->n_dead && i < BT_MAX_WORKERS; i++) {
        struct bt_worker *worker = get(core, i);
        if (worker->state != BT_WORKER_DEAD)
            continue;
        while (worker->first_request != BT_NO_REQUEST && n++ < BT_CLEANUP_SLICE)
            take_off(core, i);
        if (worker->first_request != BT_NO_REQUEST)
            return;
        step(core, i, BT_WORKER_CLEANED);
        bt_worker_table_free(&core->workers, i);
        core->n_dead--;
    }
}

void bt_core_workers_tell_peers(struct bt_router_core *core) {
    if (!core->workers.peers_changed)
        return;
    core->workers.peers_changed = false;
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++)
        if (bt_worker_is_known(get(core, i)) && get(core, i)->role == BT_ROLE_PREFILL)
            bt_core_actions_send(core, i, BT_MSG_PEERS, NULL);
}

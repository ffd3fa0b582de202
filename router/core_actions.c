/* Fills the action list, and puts the messages together as they are given out. */
#include "router/core_actions.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "router/core_state.h"

bt_status bt_core_actions_init(struct bt_core_actions *actions, struct bt_error *err) {
    memset(actions, 0, sizeof *actions);
    actions->list = calloc(BT_ACTIONS_MAX, sizeof *actions->list);
    actions->reasons = calloc(BT_REASONS_MAX, sizeof *actions->reasons);
    actions->resume = calloc(BT_RESUME_MAX, sizeof *actions->resume);
    actions->logprobs = calloc(BT_ACTIONS_LOGPROBS, sizeof *actions->logprobs);
    if (!actions->list || !actions->reasons || !actions->resume || !actions->logprobs)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for the router's actions");
    return BT_OK;
}

void bt_core_actions_fini(struct bt_core_actions *actions) {
    free(actions->list);
    free(actions->reasons);
    free(actions->resume);
    free(actions->logprobs);
    memset(actions, 0, sizeof *actions);
}

bool bt_core_actions_empty(const struct bt_core_actions *actions) {
    return actions->n_given == actions->n;
}

const char *bt_core_actions_reason(struct bt_core_actions *actions, const char *format, ...) {
    /* The slices keep an event far from this bound; a sentence less would not be worth an end. */
    if (actions->n_reasons == BT_REASONS_MAX)
        return "too much happened at once to say why";
    char *text = actions->reasons[actions->n_reasons++];
    va_list args;
    va_start(args, format);
    vsnprintf(text, BT_ROUTER_REASON_BYTES, format, args);
    va_end(args);
    return text;
}

static struct bt_core_action *push(struct bt_router_core *core, enum bt_router_action_type type) {
    struct bt_core_actions *actions = &core->actions;
    BT_ASSERT(actions->n < BT_ACTIONS_MAX);
    struct bt_core_action *action = &actions->list[actions->n++];
    *action = (struct bt_core_action){.type = type, .reason = ""};
    return action;
}

/* Copies, which live until the list is drained. */
static const struct bt_logprobs *keep_logprobs(struct bt_core_actions *actions,
                                               const struct bt_logprobs *logprobs, uint32_t n) {
    BT_ASSERT(n <= BT_ACTIONS_LOGPROBS - actions->n_logprobs);
    struct bt_logprobs *kept = &actions->logprobs[actions->n_logprobs];
    memcpy(kept, logprobs, n * sizeof *kept);
    actions->n_logprobs += n;
    return kept;
}

void bt_core_actions_scores(struct bt_router_core *core, struct bt_request *req, uint32_t first,
                            const struct bt_logprobs *logprobs, uint32_t n) {
    struct bt_core_action *action = push(core, BT_ROUTER_SCORES);
    action->request = bt_core_index(core, req);
    action->index = first;
    action->n_scores = n;
    action->logprobs = keep_logprobs(&core->actions, logprobs, n);
}

void bt_core_actions_emit(struct bt_router_core *core, struct bt_request *req, uint32_t index,
                          int32_t token, enum bt_finish finish, uint64_t hash,
                          const struct bt_logprobs *logprobs) {
    struct bt_core_action *action = push(core, BT_ROUTER_EMIT);
    action->request = bt_core_index(core, req);
    action->index = index;
    action->token = token;
    action->finish = finish;
    action->hash = hash;
    if (logprobs)
        action->logprobs = keep_logprobs(&core->actions, logprobs, 1);
}

void bt_core_actions_end(struct bt_router_core *core, struct bt_request *req, const char *reason) {
    struct bt_core_action *action = push(core, BT_ROUTER_END);
    action->request = bt_core_index(core, req);
    action->status = req->status;
    action->finish = req->finish;
    action->reason = reason;
}

void bt_core_actions_log(struct bt_router_core *core, const char *reason) {
    push(core, BT_ROUTER_LOG)->reason = reason;
}

void bt_core_actions_close(struct bt_router_core *core, uint32_t slot, const char *reason) {
    struct bt_core_action *action = push(core, BT_ROUTER_CLOSE);
    action->slot = slot;
    action->reason = reason;
}

void bt_core_actions_refuse(struct bt_router_core *core, uint32_t slot, const char *reason,
                            bool final) {
    struct bt_core_action *action = push(core, BT_ROUTER_SEND);
    action->slot = slot;
    action->msg_type = BT_MSG_REFUSED;
    action->reason = reason;
    action->index = final;
}

void bt_core_actions_send(struct bt_router_core *core, uint32_t worker_i, enum bt_msg_type type,
                          const struct bt_request *req) {
    struct bt_worker *worker = &core->workers.workers[worker_i];
    if (worker->slot == BT_NO_SLOT)
        return;
    struct bt_core_action *action = push(core, BT_ROUTER_SEND);
    action->slot = (uint32_t)worker->slot;
    action->msg_type = type;
    action->index = worker_i;
    if (type == BT_MSG_RESUME)
        action->hash = core->actions.n_resume;
    if (type == BT_MSG_SEEN) {
        action->hash = worker->n_seen;
        worker->n_seen = 0; /* the rows stay until the next event writes there */
    }
    if (req) {
        action->request = bt_core_index(core, req);
        action->key = (struct bt_attempt){req->id, req->attempt};
        action->ticket = req->ticket;
    }
}

/* ---- giving out ---- */

static uint32_t ms_until(uint64_t from_us, uint64_t to_us) {
    uint64_t ms = to_us > from_us ? (to_us - from_us) / 1000 : 0;
    return ms > 86400000 ? 86400000 : (uint32_t)ms; /* the wire's bound is a day */
}

static void fill_work(struct bt_router_core *core, const struct bt_core_action *action,
                      struct bt_msg_work *work) {
    const struct bt_request *req = &core->requests[action->request];
    const struct bt_worker *workers = core->workers.workers;
    bt_token_store_copy(&core->tokens, req->first_chunk, req->n_tokens, core->scratch);
    *work = (struct bt_msg_work){.key = action->key,
                                 .ticket = action->ticket,
                                 .tokens = core->scratch,
                                 .n_tokens = req->n_tokens,
                                 .n_prompt = req->n_prompt,
                                 .sampling = req->sampling,
                                 .remaining_ms = ms_until(core->now_us, req->deadline_us),
                                 .elapsed_ms = ms_until(req->arrived_us, core->now_us),
                                 .prefill_here = action->msg_type == BT_MSG_RESERVE &&
                                                 req->placement != BT_PLACE_SPLIT};
    /* Scores come once: an attempt after them is like any other. */
    if (req->placement != BT_PLACE_LOCAL_SCORES)
        work->sampling.prompt_logprobs = 0;
    if (req->sampling.n_bias) {
        bt_token_store_copy(&core->tokens, req->first_bias, bt_core_bias_words(&req->sampling),
                            (int32_t *)core->bias);
        work->sampling.bias = core->bias;
    }
    memcpy(work->tenant, req->tenant, sizeof work->tenant);
    int peer = action->msg_type == BT_MSG_RESERVE ? req->p : req->d;
    if (peer != BT_NO_WORKER)
        work->peer = workers[peer].incarnation;
}

static void fill_peers(struct bt_router_core *core, struct bt_msg_peers *out) {
    struct bt_peer *peers = core->actions.peers;
    uint32_t n = 0;
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++) {
        const struct bt_worker *worker = &core->workers.workers[i];
        if (!bt_worker_is_known(worker) || worker->role != BT_ROLE_DECODE)
            continue;
        memcpy(peers[n].name, worker->name, sizeof peers[n].name);
        memcpy(peers[n].link_address, worker->link_address, sizeof peers[n].link_address);
        peers[n++].incarnation = worker->incarnation;
    }
    *out = (struct bt_msg_peers){peers, n};
}

static void fill(struct bt_router_core *core, const struct bt_core_action *action,
                 struct bt_msg *msg) {
    memset(msg, 0, sizeof *msg);
    msg->type = action->msg_type;
    switch (action->msg_type) {
    case BT_MSG_WELCOME:
        msg->welcome = (struct bt_msg_welcome){core->config.incarnation, BT_PROTOCOL_MAX};
        break;
    case BT_MSG_REFUSED:
        snprintf(msg->refused.reason, sizeof msg->refused.reason, "%s", action->reason);
        msg->refused.final = action->index;
        break;
    case BT_MSG_PEERS:
        fill_peers(core, &msg->peers);
        break;
    case BT_MSG_RESUME:
        msg->resume = (struct bt_msg_resume){core->actions.resume, (uint32_t)action->hash};
        break;
    case BT_MSG_RESERVE:
    case BT_MSG_PREFILL:
        fill_work(core, action, &msg->work);
        break;
    case BT_MSG_CANCEL:
        msg->cancel = (struct bt_msg_cancel){action->key, action->ticket};
        break;
    case BT_MSG_PGONE:
        msg->pgone = (struct bt_msg_pgone){action->key, action->ticket};
        break;
    case BT_MSG_SEEN:
        msg->seen = (struct bt_msg_seen){core->seen[action->index], (uint32_t)action->hash};
        break;
    default:
        BT_ASSERT(action->msg_type == BT_MSG_PULSE || action->msg_type == BT_MSG_FLUSH);
    }
}

bool bt_router_core_next(struct bt_router_core *core, struct bt_router_action *out) {
    struct bt_core_actions *actions = &core->actions;
    while (actions->n_given < actions->n) {
        const struct bt_core_action *action = &actions->list[actions->n_given++];
        bool is_output = action->type == BT_ROUTER_EMIT || action->type == BT_ROUTER_SCORES;
        if (is_output && core->requests[action->request].muted)
            continue;
        *out = (struct bt_router_action){.type = action->type,
                                         .slot = action->slot,
                                         .index = action->index,
                                         .token = action->token,
                                         .finish = action->finish,
                                         .hash = action->hash,
                                         .logprobs = action->logprobs,
                                         .n_scores = action->n_scores,
                                         .status = action->status,
                                         .reason = action->reason};
        if (action->type == BT_ROUTER_SCORES)
            out->first_score = action->index;
        if (is_output || action->type == BT_ROUTER_END)
            out->req = &core->requests[action->request];
        if (action->type == BT_ROUTER_SEND) {
            fill(core, action, &actions->msg);
            out->msg = &actions->msg;
        }
        return true;
    }
    actions->n = actions->n_given = actions->n_reasons = actions->n_logprobs = 0;
    return false;
}

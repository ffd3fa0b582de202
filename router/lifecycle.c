/* The life of a request: the table of (state, event), and what each handled pair does. */
#include "router/lifecycle.h"

#include "common/base/assert.h"
#include "router/core_attempt.h"
#include "router/core_state.h"
#include "router/followers.h"

/* ---- reactions ---- */

typedef void (*reaction)(struct bt_router_core *core, struct bt_request *req,
                         struct bt_life_cause cause);

static void place(struct bt_router_core *core, struct bt_request *req, struct bt_life_cause cause) {
    bt_core_attempt_open(core, req, cause.choice);
}

static void backoff_over(struct bt_router_core *core, struct bt_request *req,
                         struct bt_life_cause cause) {
    (void)cause;
    req->not_before_us = 0;
    bt_request_heap_put(&core->queue, req);
    bt_core_arm(core, req);
    core->dispatch_due = true;
}

static void released(struct bt_router_core *core, struct bt_request *req,
                     struct bt_life_cause cause) {
    (void)cause;
    bt_request_heap_put(&core->queue, req);
    bt_core_arm(core, req);
    core->dispatch_due = true;
}

static bool any_worker(const struct bt_router_core *core, enum bt_role role) {
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++)
        if (bt_worker_is_known(&core->workers.workers[i]) && core->workers.workers[i].role == role)
            return true;
    return false;
}

static void queue_timeout(struct bt_router_core *core, struct bt_request *req,
                          struct bt_life_cause cause) {
    (void)cause;
    bool leader_has_place = req->leader != BT_NO_REQUEST && core->requests[req->leader].was_placed;
    if (leader_has_place) { /* it waits for a prompt, which its deadline alone bounds */
        req->queue_deadline_us = core->now_us + core->config.queue_ms * 1000ull;
        bt_core_arm(core, req);
        return;
    }
    if (!req->was_placed) {
        bt_core_attempt_end(core, req, BT_E_DEADLINE, BT_FINISH_NONE,
                            bt_core_actions_reason(&core->actions,
                                                   "no place was free for %u ms, the limit",
                                                   core->config.queue_ms));
        return;
    }
    /* It had a place and lost it: it waits on while there is somebody to wait for. */
    if (!any_worker(core, BT_ROLE_DECODE) || (core->config.disaggregate == BT_DISAGGREGATE_ALWAYS &&
                                              !any_worker(core, BT_ROLE_PREFILL))) {
        bt_core_attempt_end(core, req, BT_E_UNAVAILABLE, BT_FINISH_NONE,
                            bt_core_actions_reason(&core->actions,
                                                   "its worker was lost and none came for %u ms",
                                                   core->config.queue_ms));
        return;
    }
    req->queue_deadline_us = core->now_us + core->config.queue_ms * 1000ull;
    bt_core_arm(core, req);
}

static void end_deadline(struct bt_router_core *core, struct bt_request *req,
                         struct bt_life_cause cause) {
    (void)cause;
    bt_core_attempt_end(
        core, req, BT_E_DEADLINE, BT_FINISH_NONE,
        bt_core_actions_reason(&core->actions, "the deadline of %llu ms passed while it was %s",
                               (unsigned long long)(req->deadline_us - req->arrived_us) / 1000,
                               bt_request_state_name(req->state)));
}

static void end_cancelled(struct bt_router_core *core, struct bt_request *req,
                          struct bt_life_cause cause) {
    (void)cause;
    req->muted = true;
    bt_core_attempt_end(core, req, BT_E_CANCELLED, BT_FINISH_NONE, "the client has gone");
}

static void end_stopped(struct bt_router_core *core, struct bt_request *req,
                        struct bt_life_cause cause) {
    (void)cause;
    req->muted = true;
    bt_core_attempt_end(core, req, BT_OK, BT_FINISH_STOP, "");
}

static void end_fatal(struct bt_router_core *core, struct bt_request *req,
                      struct bt_life_cause cause) {
    if (cause.end == BT_END_INVALID)
        bt_core_attempt_end(
            core, req, BT_E_TOO_LARGE, BT_FINISH_NONE,
            "the worker can never run this request: too long, or a token its model lacks");
    else
        bt_core_attempt_end(core, req, BT_E_INTERNAL, BT_FINISH_ERROR,
                            "the model computed a logit that is not a number");
}

static void accepted(struct bt_router_core *core, struct bt_request *req,
                     struct bt_life_cause cause) {
    (void)cause;
    bt_core_set_state(core, req, BT_REQUEST_PREFILLING);
}

static void p_token(struct bt_router_core *core, struct bt_request *req,
                    struct bt_life_cause cause) {
    (void)cause;
    bt_core_set_state(core, req, BT_REQUEST_TRANSFERRING);
#if BT_MUTANT_choice_before_commit
    /* The planted defect: P's token is taken for the cache. */
    bt_followers_release(core, req);
#endif
}

static void d_token(struct bt_router_core *core, struct bt_request *req,
                    struct bt_life_cause cause) {
    (void)cause;
    req->from_d = true;
    bt_core_set_state(core, req, BT_REQUEST_STREAMING);
    bt_followers_release(core, req);
}

static void give_scores(struct bt_router_core *core, struct bt_request *req,
                        struct bt_life_cause cause) {
    const struct bt_msg_scores *scores = cause.scores;
    uint32_t next = req->n_scored + 1, end = scores->first + scores->n_rows;
    if (end <= next) /* an earlier attempt or stream brought them */
        return;
    bt_core_actions_scores(core, req, next, scores->rows + (next - scores->first), end - next);
    req->n_scored = end - 1;
}

/* D has the cache of a request that P's token ended, or will not have it. */
static void served_cached(struct bt_router_core *core, struct bt_request *req,
                          struct bt_life_cause cause) {
    (void)cause;
    bt_followers_release(core, req);
    bt_core_attempt_retire(core, req);
}

static void served_lost(struct bt_router_core *core, struct bt_request *req,
                        struct bt_life_cause cause) {
    (void)cause;
    bt_core_attempt_retire(core, req);
}

/* D's part has ended, or D refused. Where P's end had brought the question, P's end is the cause.
 */
static void d_lost(struct bt_router_core *core, struct bt_request *req,
                   struct bt_life_cause cause) {
    if (cause.end == BT_END_INVALID) { /* so it says, whoever computed */
        end_fatal(core, req, cause);
        return;
    }
    enum bt_end end = cause.end;
    enum bt_loss loss = bt_core_attempt_loss_of(end);
    bool asked = req->state == BT_REQUEST_ASKING;
    if (asked && (end == BT_END_PEER_GONE || end == BT_END_UNKNOWN || end == BT_END_LINK)) {
        end = req->p_end;
        loss = end ? bt_core_attempt_loss_of(end) : BT_LOSS_DEATH;
    }
    bt_core_attempt_lose(core, req, loss, end);
}

static void d_dead(struct bt_router_core *core, struct bt_request *req,
                   struct bt_life_cause cause) {
    bt_core_attempt_lose(core, req, BT_LOSS_DEATH, cause.end);
}

/* P's part is over without a hand-off that we know of. D alone knows whether it has the cache. */
static void ask(struct bt_router_core *core, struct bt_request *req, struct bt_life_cause cause) {
    req->p_end = cause.end;
    core->counters.pgone_asked++;
    bt_core_set_state(core, req, BT_REQUEST_ASKING);
    bt_core_actions_send(core, (uint32_t)req->d, BT_MSG_PGONE, req);
}

static void p_dead(struct bt_router_core *core, struct bt_request *req,
                   struct bt_life_cause cause) {
#if BT_MUTANT_p_death_without_asking
    /* The planted defect: D is taken for lost with P, and told nothing. */
    bt_core_attempt_close_d(core, req);
    bt_core_attempt_lose(core, req, BT_LOSS_DEATH, cause.end);
    return;
#endif
    ask(core, req, cause);
}

static void ask_again(struct bt_router_core *core, struct bt_request *req,
                      struct bt_life_cause cause) {
    (void)cause;
    bt_core_actions_send(core, (uint32_t)req->d, BT_MSG_PGONE, req);
}

static void committed(struct bt_router_core *core, struct bt_request *req,
                      struct bt_life_cause cause) {
    core->counters.pgone_live++;
    d_token(core, req, cause);
}

/* ---- the table ---- */

struct pair {
    enum bt_pair_kind kind;
    reaction react;
    const char *why;
};

#define DOES(function) \
    { BT_PAIR_HANDLED, function, "" }
#define IGNORED(why) \
    { BT_PAIR_IGNORED, NULL, why }

/* In each state in which workers have parts of it. */
#define EVERY_RUNNING_STATE                                                          \
    [BT_LIFE_DEADLINE] = DOES(end_deadline), [BT_LIFE_CANCEL] = DOES(end_cancelled), \
    [BT_LIFE_STOP] = DOES(end_stopped), [BT_LIFE_D_FAILED] = DOES(d_lost),           \
    [BT_LIFE_D_DEAD] = DOES(d_dead)

#define RESUME_SAYS_IT [BT_LIFE_D_ATTACHED] = IGNORED("its row in Resume says all that D must know")
#define NOBODY_ASKED [BT_LIFE_D_LIVE] = IGNORED("nobody asked this D")

/* What is not written is impossible. */
static const struct pair pairs[BT_REQUEST_STATE_COUNT][BT_LIFE_EVENT_COUNT] =
    {
        [BT_REQUEST_QUEUED] =
            {
                [BT_LIFE_PLACE] = DOES(place),
                [BT_LIFE_BACKOFF_OVER] = DOES(backoff_over),
                [BT_LIFE_RELEASED] = DOES(released),
                [BT_LIFE_QUEUE_TIMEOUT] = DOES(queue_timeout),
                [BT_LIFE_DEADLINE] = DOES(end_deadline),
                [BT_LIFE_CANCEL] = DOES(end_cancelled),
                [BT_LIFE_STOP] = DOES(end_stopped),
            },
        [BT_REQUEST_RESERVING] =
            {
                EVERY_RUNNING_STATE,
                RESUME_SAYS_IT,
                NOBODY_ASKED,
                [BT_LIFE_RESERVED] = DOES(accepted),
                [BT_LIFE_REFUSED] = DOES(d_lost),
                [BT_LIFE_P_TOKEN] = DOES(p_token), /* P's stream was faster than D's */
                [BT_LIFE_P_HANDED] = IGNORED("D's tokens say the same"),
                [BT_LIFE_P_FAILED] = DOES(ask),
                [BT_LIFE_P_FATAL] = DOES(end_fatal),
                [BT_LIFE_P_DEAD] = DOES(p_dead),
            },
        [BT_REQUEST_PREFILLING] =
            {
                EVERY_RUNNING_STATE,
                RESUME_SAYS_IT,
                NOBODY_ASKED,
                [BT_LIFE_D_MOVED] = DOES(d_lost),
                [BT_LIFE_D_FATAL] = DOES(end_fatal),
                [BT_LIFE_RESERVED] = IGNORED("D said so before"),
                [BT_LIFE_P_TOKEN] = DOES(p_token),
                [BT_LIFE_D_TOKEN] = DOES(d_token),
                [BT_LIFE_D_SCORES] = DOES(give_scores),
                [BT_LIFE_P_HANDED] = IGNORED("D's tokens say the same"),
                [BT_LIFE_P_FAILED] = DOES(ask),
                [BT_LIFE_P_FATAL] = DOES(end_fatal),
                [BT_LIFE_P_DEAD] = DOES(p_dead),
            },
        [BT_REQUEST_TRANSFERRING] =
            {
                EVERY_RUNNING_STATE,
                RESUME_SAYS_IT,
                NOBODY_ASKED,
                [BT_LIFE_D_MOVED] = DOES(d_lost),
                [BT_LIFE_RESERVED] = IGNORED("P's token said so before"),
                [BT_LIFE_P_TOKEN] = IGNORED("a copy sent again after Resume"),
                [BT_LIFE_D_TOKEN] = DOES(d_token),
                [BT_LIFE_P_HANDED] = IGNORED("D's tokens say the same"),
                [BT_LIFE_P_FAILED] = DOES(ask),
                [BT_LIFE_P_DEAD] = DOES(p_dead),
            },
        [BT_REQUEST_STREAMING] =
            {
                EVERY_RUNNING_STATE,
                RESUME_SAYS_IT,
                [BT_LIFE_D_MOVED] = DOES(d_lost),
                [BT_LIFE_D_FATAL] = DOES(end_fatal),
                [BT_LIFE_RESERVED] = IGNORED("D's tokens said so before"),
                [BT_LIFE_P_TOKEN] = IGNORED("D has the cache; the fence drops the copy"),
                [BT_LIFE_D_TOKEN] = IGNORED("the stream goes on: only the fence is asked"),
                [BT_LIFE_D_SCORES] = IGNORED("all came before its tokens: a copy after Resume"),
                [BT_LIFE_P_HANDED] = IGNORED("D has the cache: P's part was done"),
                [BT_LIFE_P_FAILED] = IGNORED("D has the cache: P is not needed"),
                [BT_LIFE_P_DEAD] = IGNORED("D has the cache: P is not needed"),
                [BT_LIFE_D_LIVE] = IGNORED("its tokens were faster than its answer"),
            },
        [BT_REQUEST_ASKING] =
            {
                EVERY_RUNNING_STATE,
                [BT_LIFE_RESERVED] = IGNORED("D answers Reserve first; the question is on its way"),
                [BT_LIFE_REFUSED] = DOES(d_lost),
                [BT_LIFE_D_MOVED] = DOES(d_lost),
                [BT_LIFE_D_TOKEN] = DOES(d_token), /* committed before P was gone */
                [BT_LIFE_D_LIVE] = DOES(committed),
                [BT_LIFE_D_ATTACHED] = DOES(ask_again),
            },
        [BT_REQUEST_SERVED] =
            {
                RESUME_SAYS_IT,
                NOBODY_ASKED,
                [BT_LIFE_DEADLINE] = DOES(served_lost),
                [BT_LIFE_CANCEL] = IGNORED("the request has ended"),
                [BT_LIFE_STOP] = IGNORED("the request has ended"),
                [BT_LIFE_RESERVED] = IGNORED("P's token said so before"),
                [BT_LIFE_D_TOKEN] = DOES(served_cached),
                [BT_LIFE_D_FAILED] = DOES(served_lost),
                [BT_LIFE_D_DEAD] = DOES(served_lost),
            },
        [BT_REQUEST_ENDED] =
            {
                [BT_LIFE_CANCEL] = IGNORED("the request has ended"),
                [BT_LIFE_STOP] = IGNORED("the request has ended"),
            },
};

void bt_lifecycle_event(struct bt_router_core *core, struct bt_request *req,
                        enum bt_request_event event, struct bt_life_cause cause) {
    const struct pair *pair = &pairs[req->state][event];
    core->coverage[req->state * BT_LIFE_EVENT_COUNT + event]++;
    BT_ASSERT(pair->kind != BT_PAIR_IMPOSSIBLE);
    if (pair->kind == BT_PAIR_HANDLED)
        pair->react(core, req, cause);
}

void bt_lifecycle_pair(uint32_t i, struct bt_pair_view *out) {
    static const char *const events[BT_LIFE_EVENT_COUNT] = {
        "place",    "backoff_over", "released", "queue_timeout", "deadline", "cancel",
        "stop",     "reserved",     "refused",  "p_token",       "d_token",  "d_scores",
        "p_handed", "p_failed",     "p_fatal",  "p_dead",        "d_failed", "d_moved",
        "d_fatal",  "d_dead",       "d_live",   "d_attached"};
    const struct pair *pair = &pairs[i / BT_LIFE_EVENT_COUNT][i % BT_LIFE_EVENT_COUNT];
    *out = (struct bt_pair_view){
        .machine = "request",
        .state = bt_request_state_name((enum bt_request_state)(i / BT_LIFE_EVENT_COUNT)),
        .event = events[i % BT_LIFE_EVENT_COUNT],
        .kind = pair->kind,
        .why = pair->why ? pair->why : ""};
}

/* ---- what a worker's end means ---- */

static const struct {
    const char *name;
    enum bt_request_event p, d;
} ends[BT_END_COUNT] = {
    /* The last token ends a request before this comes: on a live one a token is missing. */
    [BT_END_DONE] = {"done", BT_LIFE_P_FAILED, BT_LIFE_D_FAILED},
    [BT_END_HANDED] = {"handed", BT_LIFE_P_HANDED, BT_LIFE_D_FAILED},
    [BT_END_FULL] = {"full", BT_LIFE_P_FAILED, BT_LIFE_D_FAILED},
    [BT_END_PREEMPTED] = {"preempted", BT_LIFE_P_FAILED, BT_LIFE_D_MOVED},
    [BT_END_LINK] = {"link lost", BT_LIFE_P_FAILED, BT_LIFE_D_FAILED},
    [BT_END_PEER_GONE] = {"peer gone", BT_LIFE_P_FAILED, BT_LIFE_D_FAILED},
    [BT_END_REFUSED] = {"hello refused", BT_LIFE_P_FAILED, BT_LIFE_D_FAILED},
    [BT_END_CHECKSUM] = {"checksum", BT_LIFE_P_FAILED, BT_LIFE_D_FAILED},
    [BT_END_UNKNOWN] = {"unknown ticket", BT_LIFE_P_FAILED, BT_LIFE_D_FAILED},
    /* The router's clock alone decides what the client sees: the worker's copy may be early. */
    [BT_END_DEADLINE] = {"worker's deadline", BT_LIFE_P_FAILED, BT_LIFE_D_FAILED},
    [BT_END_NONFINITE] = {"logit not finite", BT_LIFE_P_FATAL, BT_LIFE_D_FATAL},
    [BT_END_DRAINING] = {"draining", BT_LIFE_P_FAILED, BT_LIFE_D_MOVED},
    [BT_END_INVALID] = {"too long for the worker", BT_LIFE_P_FATAL, BT_LIFE_D_FATAL},
    [BT_END_INTERNAL] = {"worker's internal error", BT_LIFE_P_FAILED, BT_LIFE_D_FAILED},
};

enum bt_request_event bt_lifecycle_event_of_end(enum bt_request_state state, enum bt_end end,
                                                bool from_p) {
    /* The wire lets no other value through; one would be a worker's error like any other. */
    if (end <= 0 || end >= BT_END_COUNT)
        end = BT_END_INTERNAL;
    if (state == BT_REQUEST_SERVED) /* having done its last token, D had the cache */
        return end == BT_END_DONE ? BT_LIFE_D_TOKEN : BT_LIFE_D_FAILED;
    enum bt_request_event event = from_p ? ends[end].p : ends[end].d;
    /* A fatal end is believed of the worker that computes: P before its token, D where it prefills
     * or decodes. Another attempt will find out about the others. */
    if (event == BT_LIFE_P_FATAL && state != BT_REQUEST_RESERVING && state != BT_REQUEST_PREFILLING)
        return BT_LIFE_P_FAILED;
    if (event == BT_LIFE_D_FATAL && state != BT_REQUEST_PREFILLING && state != BT_REQUEST_STREAMING)
        return BT_LIFE_D_FAILED;
    return event;
}

void bt_lifecycle_imply_reserved(struct bt_router_core *core, struct bt_request *req) {
    if (req->state != BT_REQUEST_RESERVING)
        return;
    bt_core_attempt_answered(core, req, true);
    bt_lifecycle_event(core, req, BT_LIFE_RESERVED, (struct bt_life_cause){0});
}

const char *bt_lifecycle_end_name(enum bt_end end) {
    return end > 0 && end < BT_END_COUNT ? ends[end].name : "worker lost";
}

/* ---- tokens ---- */

static void stamp(struct bt_router_core *core, struct bt_request *req) {
    uint64_t now_us = core->now_us;
    if (!req->first_token_us)
        req->first_token_us = now_us;
    else if (now_us - req->last_token_us > req->itl_max_us)
        req->itl_max_us = now_us - req->last_token_us;
    req->last_token_us = now_us;
    if (!req->resumed_us)
        req->resumed_us = now_us;
    if (req->lost_us) {
        req->replay_total_us += now_us - req->lost_us;
        req->lost_us = 0;
    }
    if (req->retrying) {
        req->retrying = false;
        core->n_retrying--;
    }
}

/* What the client gets of one row, at once or out of the fence. */
struct row {
    int32_t token;
    enum bt_finish finish;
    uint64_t hash;
    const struct bt_logprobs *logprobs;
};

/* Gives the client its next token; the last one ends the request. */
static void emit(struct bt_router_core *core, struct bt_request *req, struct row row) {
    if (row.finish == BT_FINISH_ERROR) {
        end_fatal(core, req, (struct bt_life_cause){.end = BT_END_NONFINITE});
        return;
    }
    uint32_t index = bt_core_next_index(req);
    /* A worker that goes on past the bound is stopped here: the token store has no more room. */
    bool over = row.finish == BT_FINISH_NONE && index + 1 == req->sampling.max_tokens;
    if (over)
        row.finish = BT_FINISH_LENGTH;
    bt_token_store_append(&core->tokens, &req->first_chunk, &req->last_chunk, req->n_tokens,
                          row.token);
    req->n_tokens++;
    core->counters.generated_tokens++;
    stamp(core, req);
    bt_core_actions_emit(core, req, index, row.token, row.finish, row.hash,
                         req->sampling.logprobs ? row.logprobs : NULL);
    if (over)
        bt_core_attempt_end(core, req, BT_OK, row.finish, "");
    else if (row.finish != BT_FINISH_NONE)
        bt_core_attempt_serve(core, req, row.finish);
}

static void offer(struct bt_router_core *core, struct bt_request *req, const struct bt_token *token,
                  bool from_p) {
    struct bt_fence_row held;
    switch (bt_fence_offer(&core->fence, &req->window, bt_core_next_index(req), token, from_p)) {
    case BT_FENCE_NEXT:
        emit(core, req, (struct row){token->token, token->finish, token->hash, token->logprobs});
        while (req->state < BT_REQUEST_SERVED &&
               bt_fence_take(&core->fence, &req->window, bt_core_next_index(req), &held))
            emit(core, req,
                 (struct row){held.token, held.finish, held.hash,
                              held.has_logprobs ? &held.logprobs : NULL});
        break;
    case BT_FENCE_HELD:
        core->counters.tokens_held++;
        break;
    case BT_FENCE_DUPLICATE:
        core->counters.tokens_duplicate++;
        break;
    case BT_FENCE_FULL:
        /* The gap will not close: what D sends is lost to us, so the attempt is. */
        core->counters.incomplete++;
        bt_lifecycle_event(core, req, BT_LIFE_D_FAILED,
                           (struct bt_life_cause){.end = BT_END_INTERNAL});
        break;
    }
}

/* What its request asked for must have come with the token, or before it. */
static bool is_whole(const struct bt_request *req, const struct bt_token *token,
                     struct bt_error *err) {
    if (token->finish == BT_FINISH_ERROR) /* it is no token */
        return true;
    if (req->sampling.logprobs && !token->logprobs) {
        bt_fail(err, BT_E_PROTOCOL, "token %u of request %llu.%u has no logprobs, it must have",
                token->index, (unsigned long long)req->id, req->attempt);
        return false;
    }
    if (bt_core_wants_scores(req)) {
        bt_fail(err, BT_E_PROTOCOL,
                "token %u of request %llu.%u came before logprobs of its prompt: %u of %u",
                token->index, (unsigned long long)req->id, req->attempt, req->n_scored,
                req->n_prompt - 1);
        return false;
    }
    return true;
}

bool bt_lifecycle_token(struct bt_router_core *core, uint32_t worker, const struct bt_token *token,
                        struct bt_error *err) {
    struct bt_request *req = bt_core_find(core, token->key.request);
    bool from_p = req && req->p_open && req->p == (int)worker;
    bool from_d = req && req->d_open && req->d == (int)worker;
    if ((!from_p && !from_d) || token->key.attempt != req->attempt ||
        (from_p && token->index != req->attempt_first)) {
        core->counters.tokens_stale++;
        return true;
    }
    if (!is_whole(req, token, err))
        return false;
    if (from_d)
        bt_lifecycle_imply_reserved(core, req);
    bt_lifecycle_event(core, req, from_p ? BT_LIFE_P_TOKEN : BT_LIFE_D_TOKEN,
                       (struct bt_life_cause){0});
    if (req->state == BT_REQUEST_ENDED) { /* its client has had this token from P */
        core->counters.tokens_duplicate++;
        return true;
    }
    req->was_placed = true;
    if (token->index == 0 && bt_core_next_index(req) == 0)
        req->first_from_d = from_d && req->placement == BT_PLACE_SPLIT;
    if (from_p)
        bt_core_attempt_computed(core, req);
#if BT_MUTANT_token0_one_side
    /* The planted defect: D's copy of the first token is not taken. */
    if (from_d && token->index == req->attempt_first && req->placement == BT_PLACE_SPLIT)
        return true;
#endif
    offer(core, req, token, from_p);
    return true;
}

bool bt_lifecycle_scores(struct bt_router_core *core, uint32_t worker,
                         const struct bt_msg_scores *scores, struct bt_error *err) {
    struct bt_request *req = bt_core_find(core, scores->key.request);
    bool from_d = req && req->d_open && req->d == (int)worker;
    bool from_p = req && req->p_open && req->p == (int)worker;
    if ((!from_p && !from_d) || scores->key.attempt != req->attempt)
        return true;
    unsigned long long id = req->id;
    bt_status status = BT_OK;
    if (from_p || req->placement != BT_PLACE_LOCAL_SCORES)
        status = bt_fail(err, BT_E_PROTOCOL,
                         "logprobs of the prompt of request %llu.%u were not asked for", id,
                         req->attempt);
    else if (!scores->first || (uint64_t)scores->first + scores->n_rows > req->n_prompt)
        status = bt_fail(err, BT_E_PROTOCOL,
                         "logprobs of request %llu.%u are of positions %u to %llu, the prompt has "
                         "1 to %u",
                         id, req->attempt, scores->first,
                         (unsigned long long)scores->first + scores->n_rows - 1, req->n_prompt - 1);
    else if (scores->first > req->n_scored + 1)
        status = bt_fail(err, BT_E_PROTOCOL,
                         "logprobs of request %llu.%u go on at position %u of the prompt, %u is "
                         "next",
                         id, req->attempt, scores->first, req->n_scored + 1);
    if (status != BT_OK)
        return false;
    bt_lifecycle_imply_reserved(core, req);
    bt_lifecycle_event(core, req, BT_LIFE_D_SCORES, (struct bt_life_cause){.scores = scores});
    return true;
}

/* What a worker has to say to its routers now, derived from what it holds for them. */
#include "common/base/assert.h"
#include "common/rpc/ledger_state.h"

void bt_ledger_close_(struct bt_ledger *ledger, uint32_t slot, const char *reason) {
    struct bt_ledger_stream *stream = &ledger->streams[slot];
    if (!stream->open || stream->closing)
        return;
    stream->close_owed = true;
    stream->reason = reason;
}

static void push_refusal(struct bt_ledger *ledger, const struct bt_ledger_refusal *refusal) {
    if (ledger->n_refusals == BT_LEDGER_REFUSALS) {
        bt_ledger_close_(ledger, refusal->slot, "the router asks faster than it reads answers");
        return;
    }
    ledger->refusals[(ledger->refusal_at + ledger->n_refusals++) % BT_LEDGER_REFUSALS] = *refusal;
}

void bt_ledger_refuse_key_(struct bt_ledger *ledger, uint32_t slot, struct bt_attempt key) {
    push_refusal(ledger,
                 &(struct bt_ledger_refusal){.slot = slot, .key = key, .reason = BT_END_UNKNOWN});
}

void bt_ledger_refuse(struct bt_ledger *ledger, uint32_t slot, const struct bt_msg *msg) {
    BT_ASSERT(msg->type == BT_MSG_RESERVED || msg->type == BT_MSG_ENDED);
    bool reserve = msg->type == BT_MSG_RESERVED;
    push_refusal(ledger, &(struct bt_ledger_refusal){
                             .slot = slot,
                             .reserve = reserve,
                             .key = reserve ? msg->reserved.key : msg->ended.key,
                             .reason = reserve ? msg->reserved.reason : msg->ended.reason,
                         });
}

static bool is_same_census(const struct bt_census *a, const struct bt_census *b) {
    return a->total == b->total && a->free == b->free && a->cached == b->cached &&
           a->reserved == b->reserved && a->filling == b->filling && a->armed == b->armed &&
           a->landed == b->landed && a->live == b->live && a->quarantined == b->quarantined;
}

static bool is_same_status(const struct bt_msg_status *a, const struct bt_msg_status *b) {
    return is_same_census(&a->census, &b->census) && a->running == b->running &&
           a->backlog_tokens == b->backlog_tokens && a->step_us == b->step_us &&
           a->draining == b->draining && a->kv_bytes == b->kv_bytes &&
           a->refused_frames == b->refused_frames && a->links == b->links &&
           a->step_p50_us == b->step_p50_us && a->step_p99_us == b->step_p99_us;
}

void bt_ledger_set_status(struct bt_ledger *ledger, const struct bt_msg_status *status) {
    if (is_same_status(&ledger->status, status))
        return;
    bool leaves = status->draining && !ledger->status.draining;
    ledger->status = *status;
    for (uint32_t i = 0; i < BT_MAX_ROUTERS; i++) {
        ledger->streams[i].status_changed = true;
        if (leaves) /* it may be its last word: at once */
            ledger->streams[i].status_us = 0;
    }
}

/* ---- the prefix index ---- */

void bt_ledger_census_lost(struct bt_ledger *ledger) {
    for (uint32_t i = 0; i < BT_MAX_ROUTERS; i++) {
        ledger->streams[i].wants_census = ledger->streams[i].router != BT_LEDGER_ROUTERS;
        ledger->streams[i].changes_told = 0;
    }
    ledger->n_changes = 0;
}

void bt_ledger_block(struct bt_ledger *ledger, bool added, uint64_t hash) {
    if (ledger->n_changes == BT_LEDGER_BLOCKS)
        bt_ledger_census_lost(ledger);
    ledger->changes[ledger->n_changes++] = (struct bt_ledger_change){added, hash};
}

bool bt_ledger_wants_census(const struct bt_ledger *ledger, uint32_t *slot) {
    for (uint32_t i = 0; i < BT_MAX_ROUTERS; i++)
        if (ledger->streams[i].open && !ledger->streams[i].closing &&
            ledger->streams[i].wants_census) {
            *slot = i;
            return true;
        }
    return false;
}

void bt_ledger_census(struct bt_ledger *ledger, uint32_t slot, const uint64_t *hashes, uint32_t n) {
    struct bt_ledger_stream *stream = &ledger->streams[slot];
    BT_ASSERT(stream->open && stream->wants_census);
    stream->wants_census = false;
    stream->census = hashes;
    stream->n_census = n;
    stream->census_told = 0;
    stream->changes_told = ledger->n_changes; /* the census has them */
}

static bool say_census(struct bt_ledger *ledger, struct bt_ledger_stream *stream) {
    if (!stream->census)
        return false;
    uint32_t n = stream->n_census - stream->census_told;
    if (n > BT_LEDGER_BLOCKS)
        n = BT_LEDGER_BLOCKS;
    ledger->msg = (struct bt_msg){
        .type = BT_MSG_BLOCKS,
        .blocks = {.sequence = ++stream->blocks_sequence,
                   .census_first = stream->census_told == 0,
                   .census_last = stream->census_told + n == stream->n_census,
                   .added = stream->census + stream->census_told,
                   .n_added = n},
    };
    stream->census_told += n;
    if (stream->census_told == stream->n_census)
        stream->census = NULL;
    return true;
}

/* One run of changes of one kind, so that their order is kept. */
static bool say_changes(struct bt_ledger *ledger, struct bt_ledger_stream *stream) {
    if (stream->wants_census || stream->census || stream->changes_told == ledger->n_changes)
        return false;
    bool added = ledger->changes[stream->changes_told].added;
    uint32_t n = 0;
    while (stream->changes_told < ledger->n_changes &&
           ledger->changes[stream->changes_told].added == added)
        ledger->hashes_out[n++] = ledger->changes[stream->changes_told++].hash;
    ledger->msg =
        (struct bt_msg){.type = BT_MSG_BLOCKS, .blocks = {.sequence = ++stream->blocks_sequence}};
    if (added) {
        ledger->msg.blocks.added = ledger->hashes_out;
        ledger->msg.blocks.n_added = n;
    } else {
        ledger->msg.blocks.evicted = ledger->hashes_out;
        ledger->msg.blocks.n_evicted = n;
    }
    return true;
}

/* Changes that everybody has been told are dropped. */
static void drop_told_changes(struct bt_ledger *ledger) {
    for (uint32_t i = 0; i < BT_MAX_ROUTERS; i++) {
        const struct bt_ledger_stream *stream = &ledger->streams[i];
        if (stream->router != BT_LEDGER_ROUTERS && !stream->closing && !stream->wants_census &&
            stream->changes_told != ledger->n_changes)
            return;
    }
    for (uint32_t i = 0; i < BT_MAX_ROUTERS; i++)
        ledger->streams[i].changes_told = 0;
    ledger->n_changes = 0;
}

/* ---- jobs ---- */

static uint32_t slot_of(const struct bt_ledger *ledger, const struct bt_job *job) {
    const struct bt_ledger_router *router = &ledger->routers[job->router];
    if (!router->attached || router->resume_pending || ledger->streams[router->slot].closing)
        return BT_MAX_ROUTERS;
    return router->slot;
}

/* Prompt positions come before everything of the job's own. */
static bool owes_scores(const struct bt_job *job) {
    return job->scores.n_read < job->scores.n_rows;
}

static void say_scores(struct bt_ledger *ledger, struct bt_job *job) {
    uint32_t first = 1 + job->scores.n_read, n = 0;
    while (owes_scores(job) && n < BT_SCORE_ROWS)
        bt_logprob_store_read(&ledger->logprobs, &job->scores, &ledger->shown[n++]);
    ledger->msg =
        (struct bt_msg){.type = BT_MSG_SCORES, .scores = {job->key, first, ledger->shown, n}};
}

/* Tokens of this job and of those after it that go to the same router. */
static void say_tokens(struct bt_ledger *ledger, struct bt_job *first) {
    uint32_t n = 0;
    for (uint32_t i = first->id; i != BT_NO_JOB && n < BT_LEDGER_ROWS; i = ledger->jobs[i].next) {
        struct bt_job *job = &ledger->jobs[i];
        if (job->router != first->router || job->answer_owed || owes_scores(job))
            continue;
        while (job->n_told < job->n_tokens && n < BT_LEDGER_ROWS) {
            uint32_t at = job->n_told++;
            struct bt_logprobs *logprobs = job->logprobs.is_open ? &ledger->shown[n] : NULL;
            if (logprobs)
                bt_logprob_store_read(&ledger->logprobs, &job->logprobs, logprobs);
            ledger->rows[n++] = (struct bt_token){
                .key = job->key,
                .index = at - job->n_prompt,
                .token = job->tokens[at],
                .finish = job->n_told == job->n_tokens ? job->finish : BT_FINISH_NONE,
                .hash = job->hashes[at],
                .logprobs = logprobs,
            };
        }
    }
    ledger->msg =
        (struct bt_msg){.type = BT_MSG_TOKENS, .tokens = {.rows = ledger->rows, .n_rows = n}};
}

/* One message takes the tokens of many jobs: what is to stand before any of them goes first. */
static bool say_report(struct bt_ledger *ledger, uint32_t *slot) {
    for (uint32_t i = ledger->first_listed; i != BT_NO_JOB; i = ledger->jobs[i].next) {
        struct bt_job *job = &ledger->jobs[i];
        if (!job->report_owed || job->answer_owed)
            continue;
        job->report_owed = false;
        *slot = slot_of(ledger, job);
        if (*slot == BT_MAX_ROUTERS)
            continue; /* its end says the same when the router is back */
        ledger->msg = (struct bt_msg){.type = BT_MSG_REPORT, .ended = job->report};
        return true;
    }
    return false;
}

static bool say_of_job(struct bt_ledger *ledger, struct bt_job *job) {
    if (job->answer_owed) {
        job->answer_owed = false;
        ledger->msg = (struct bt_msg){.type = BT_MSG_RESERVED, .reserved = job->reserved};
    } else if (owes_scores(job)) {
        say_scores(ledger, job);
    } else if (job->n_told < job->n_tokens) {
        say_tokens(ledger, job);
    } else if (job->live_owed) {
        job->live_owed = false;
        ledger->msg = (struct bt_msg){.type = BT_MSG_LIVE, .live = {job->key}};
    } else if (job->end_owed) {
        job->end_owed = false;
        ledger->msg = (struct bt_msg){.type = BT_MSG_ENDED, .ended = job->end};
    } else {
        return false;
    }
    return true;
}

static bool say_jobs(struct bt_ledger *ledger, uint32_t *slot) {
    if (say_report(ledger, slot))
        return true;
    while (ledger->first_listed != BT_NO_JOB) {
        struct bt_job *job = &ledger->jobs[ledger->first_listed];
        *slot = slot_of(ledger, job);
        /* A router that is away is told again from where it stands when it comes back. */
        if (*slot != BT_MAX_ROUTERS && say_of_job(ledger, job))
            return true;
        bt_ledger_unlist_(ledger, job);
    }
    return false;
}

static bool say_refusal(struct bt_ledger *ledger, uint32_t *slot) {
    while (ledger->n_refusals) {
        const struct bt_ledger_refusal *refusal = &ledger->refusals[ledger->refusal_at];
        ledger->refusal_at = (ledger->refusal_at + 1) % BT_LEDGER_REFUSALS;
        ledger->n_refusals--;
        *slot = refusal->slot;
        if (!ledger->streams[*slot].open || ledger->streams[*slot].closing)
            continue;
        if (refusal->reserve)
            ledger->msg =
                (struct bt_msg){.type = BT_MSG_RESERVED,
                                .reserved = {.key = refusal->key, .reason = refusal->reason}};
        else
            ledger->msg = (struct bt_msg){
                .type = BT_MSG_ENDED, .ended = {.key = refusal->key, .reason = refusal->reason}};
        return true;
    }
    return false;
}

static bool say_status(struct bt_ledger *ledger, uint64_t now_us, struct bt_ledger_stream *stream) {
    uint64_t since_us = now_us - stream->status_us;
    if (!(stream->status_changed && since_us >= BT_LEDGER_STATUS_MS * 1000) &&
        now_us - stream->said_us < BT_HEARTBEAT_MS * 1000)
        return false;
    stream->status_us = now_us;
    stream->status_changed = false;
    ledger->msg = (struct bt_msg){.type = BT_MSG_STATUS, .status = ledger->status};
    return true;
}

/* What concerns one stream and no single job. */
static bool say_on_stream(struct bt_ledger *ledger, uint64_t now_us,
                          struct bt_ledger_stream *stream) {
    if (stream->join_owed) {
        stream->join_owed = false;
        ledger->msg = (struct bt_msg){.type = BT_MSG_JOIN, .join = ledger->config.join};
        ledger->msg.join.census = ledger->status.census;
        return true;
    }
    if (stream->router == BT_LEDGER_ROUTERS)
        return false;
    return say_census(ledger, stream) || say_changes(ledger, stream) ||
           say_status(ledger, now_us, stream);
}

bool bt_ledger_next(struct bt_ledger *ledger, uint64_t now_us, struct bt_ledger_action *out) {
    *out = (struct bt_ledger_action){.type = BT_LEDGER_SEND, .msg = &ledger->msg};
    if (ledger->quit) {
        ledger->quit = false;
        *out = (struct bt_ledger_action){.type = BT_LEDGER_QUIT, .reason = ledger->reason};
        return true;
    }
    for (uint32_t i = 0; i < BT_MAX_ROUTERS; i++) {
        struct bt_ledger_stream *stream = &ledger->streams[i];
        if (!stream->close_owed)
            continue;
        stream->close_owed = false;
        stream->closing = true;
        *out =
            (struct bt_ledger_action){.type = BT_LEDGER_CLOSE, .slot = i, .reason = stream->reason};
        return true;
    }
    bool said = say_refusal(ledger, &out->slot) || say_jobs(ledger, &out->slot);
    for (uint32_t i = 0; !said && i < BT_MAX_ROUTERS; i++) {
        if (!ledger->streams[i].open || ledger->streams[i].closing)
            continue;
        out->slot = i;
        said = say_on_stream(ledger, now_us, &ledger->streams[i]);
    }
    if (said)
        ledger->streams[out->slot].said_us = now_us;
    else
        drop_told_changes(ledger);
    return said;
}

/* What a worker owes its routers: attachment, jobs, and the life of both. What is said:
 * ledger_say.c. */
#include "common/rpc/ledger.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/rpc/ledger_state.h"

/* Rows that a job's own tokens can come to, this one's. */
static uint32_t most_own_tokens(const struct bt_ledger *ledger, const struct bt_msg_work *work) {
    if (ledger->config.join.role == BT_ROLE_PREFILL)
        return 1;
    uint64_t n = (uint64_t)work->n_prompt + work->sampling.max_tokens;
    uint32_t max = ledger->config.join.max_context + 1;
    n = n < max ? n : max;
    return n > work->n_tokens ? (uint32_t)n - work->n_tokens : 0;
}

/* Room for the logprobs of all sequences at once, five likeliest each, but not more than 64 MiB;
 * always for one sequence with the widest. */
static uint64_t logprob_chunks(const struct bt_ledger_config *config) {
    enum { CHUNKS_MAX = (64 << 20) / (4 * (1 + BT_LOGPROB_CHUNK_WORDS)) };
    if (config->join.role == BT_ROLE_PREFILL)
        return config->max_jobs;
    uint64_t n_rows = (uint64_t)config->join.max_context + 1;
    uint64_t one = (uint64_t)bt_logprob_store_chunks_for(n_rows, BT_TOP_LOGPROBS) + 1;
    uint64_t all = (uint64_t)config->join.max_seqs * bt_logprob_store_chunks_for(n_rows, 5);
    all = all < CHUNKS_MAX ? all : CHUNKS_MAX;
    return one > all ? one : all;
}

bt_status bt_ledger_create(const struct bt_ledger_config *config, struct bt_ledger **out,
                           struct bt_error *err) {
    BT_ASSERT(config->max_jobs && config->join.max_context);
    size_t n_tokens = (size_t)config->join.max_context + 1;
    struct bt_ledger *ledger = calloc(1, sizeof *ledger);
    if (!ledger)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for the ledger");
    ledger->config = *config;
    ledger->first_listed = ledger->last_listed = BT_NO_JOB;
    ledger->jobs = calloc(config->max_jobs, sizeof *ledger->jobs);
    ledger->tokens = calloc(config->max_jobs * n_tokens, sizeof *ledger->tokens);
    ledger->hashes = calloc(config->max_jobs * n_tokens, sizeof *ledger->hashes);
    ledger->biases = calloc((size_t)config->max_jobs * BT_LOGIT_BIASES, sizeof *ledger->biases);
    ledger->refusals = calloc(BT_LEDGER_REFUSALS, sizeof *ledger->refusals);
    ledger->changes = calloc(BT_LEDGER_BLOCKS, sizeof *ledger->changes);
    if (!ledger->jobs || !ledger->tokens || !ledger->hashes || !ledger->biases ||
        !ledger->refusals || !ledger->changes ||
        bt_logprob_store_init(&ledger->logprobs, logprob_chunks(config), err) < 0) {
        bt_ledger_destroy(ledger);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u jobs of %u tokens", config->max_jobs,
                       config->join.max_context);
    }
    for (uint32_t i = 0; i < config->max_jobs; i++) {
        ledger->jobs[i].id = i;
        ledger->jobs[i].tokens = ledger->tokens + i * n_tokens;
        ledger->jobs[i].hashes = ledger->hashes + i * n_tokens;
        ledger->jobs[i].bias = ledger->biases + (size_t)i * BT_LOGIT_BIASES;
    }
    for (uint32_t i = 0; i < BT_MAX_ROUTERS; i++)
        ledger->streams[i].router = BT_LEDGER_ROUTERS;
    *out = ledger;
    return BT_OK;
}

void bt_ledger_destroy(struct bt_ledger *ledger) {
    if (!ledger)
        return;
    free(ledger->jobs);
    free(ledger->tokens);
    free(ledger->hashes);
    free(ledger->biases);
    bt_logprob_store_fini(&ledger->logprobs);
    free(ledger->refusals);
    free(ledger->changes);
    free(ledger);
}

/* ---- jobs ---- */

struct bt_job *bt_ledger_job(struct bt_ledger *ledger, uint32_t id) {
    BT_ASSERT(id < ledger->config.max_jobs);
    return &ledger->jobs[id];
}

static struct bt_job *find(struct bt_ledger *ledger, uint32_t router, struct bt_attempt key) {
    for (uint32_t i = 0; i < ledger->config.max_jobs; i++) {
        struct bt_job *job = &ledger->jobs[i];
        if (job->used && job->router == router && job->key.request == key.request &&
            job->key.attempt == key.attempt)
            return job;
    }
    return NULL;
}

struct bt_job *bt_ledger_find(struct bt_ledger *ledger, uint32_t slot, struct bt_attempt key) {
    BT_ASSERT(slot < BT_MAX_ROUTERS);
    uint32_t router = ledger->streams[slot].router;
    return router == BT_LEDGER_ROUTERS ? NULL : find(ledger, router, key);
}

static void unlist(struct bt_ledger *ledger, struct bt_job *job) {
    if (!job->listed)
        return;
    if (job->previous == BT_NO_JOB)
        ledger->first_listed = job->next;
    else
        ledger->jobs[job->previous].next = job->next;
    if (job->next == BT_NO_JOB)
        ledger->last_listed = job->previous;
    else
        ledger->jobs[job->next].previous = job->previous;
    job->listed = false;
}

void bt_ledger_list_(struct bt_ledger *ledger, struct bt_job *job) {
    if (job->listed)
        return;
    job->listed = true;
    job->previous = ledger->last_listed;
    job->next = BT_NO_JOB;
    if (job->previous == BT_NO_JOB)
        ledger->first_listed = job->id;
    else
        ledger->jobs[job->previous].next = job->id;
    ledger->last_listed = job->id;
}

void bt_ledger_unlist_(struct bt_ledger *ledger, struct bt_job *job) {
    unlist(ledger, job);
}

/* A job is free once the core has let go and its end need not be remembered. */
static void forget(struct bt_ledger *ledger, struct bt_job *job) {
    BT_ASSERT(job->used && !job->held);
    unlist(ledger, job);
    bt_logprob_store_close(&ledger->logprobs, &job->logprobs);
    bt_logprob_store_close(&ledger->logprobs, &job->scores);
    if (job->lost)
        ledger->n_lost--;
    ledger->routers[job->router].n_jobs--;
    job->used = job->lost = false;
}

static void lose(struct bt_ledger *ledger, struct bt_job *job) {
    if (!job->held) {
        forget(ledger, job);
    } else if (!job->lost) {
        job->lost = true;
        ledger->n_lost++;
    }
}

static void lose_all(struct bt_ledger *ledger, uint32_t router, bool also_confirmed) {
    for (uint32_t i = 0; i < ledger->config.max_jobs; i++) {
        struct bt_job *job = &ledger->jobs[i];
        if (job->used && job->router == router && (also_confirmed || !job->confirmed))
            lose(ledger, job);
    }
}

uint32_t bt_ledger_take_lost(struct bt_ledger *ledger) {
    for (uint32_t i = 0; ledger->n_lost && i < ledger->config.max_jobs; i++)
        if (ledger->jobs[i].used && ledger->jobs[i].lost) {
            ledger->jobs[i].lost = false;
            ledger->jobs[i].given_up = true;
            ledger->jobs[i].ended = false; /* nothing is remembered of it */
            ledger->n_lost--;
            return i;
        }
    return BT_NO_JOB;
}

/* Forgets the oldest of those that have ended; NULL: there is none. */
static struct bt_job *forget_oldest(struct bt_ledger *ledger) {
    struct bt_job *oldest = NULL;
    for (uint32_t i = 0; i < ledger->config.max_jobs; i++) {
        struct bt_job *job = &ledger->jobs[i];
        if (job->used && job->ended && !job->held && (!oldest || job->ended_us < oldest->ended_us))
            oldest = job;
    }
    if (oldest)
        forget(ledger, oldest);
    return oldest;
}

static struct bt_job *take_free(struct bt_ledger *ledger) {
    for (uint32_t i = 0; i < ledger->config.max_jobs; i++)
        if (!ledger->jobs[i].used)
            return &ledger->jobs[i];
    return forget_oldest(ledger);
}

/* What the logprobs of its prompt are on the wire, at most: proto/registry.proto, Logprobs. */
static uint64_t score_bytes(const struct bt_msg_work *work) {
    uint64_t row = 1 + 4 + 9 * (work->sampling.prompt_logprobs - 1u);
    return bt_work_wants_scores(work) ? (work->n_prompt - 1) * row : 0;
}

/* Promises what the job's logprobs may come to; false: no room now, nothing promised. */
static bool open_chains(struct bt_ledger *ledger, struct bt_job *job,
                        const struct bt_msg_work *work) {
    const struct bt_sampling *how = &work->sampling;
    if (how->logprobs && !bt_logprob_store_open(&ledger->logprobs, &job->logprobs,
                                                most_own_tokens(ledger, work), how->logprobs - 1u))
        return false;
    if (!bt_work_wants_scores(work) ||
        bt_logprob_store_open(&ledger->logprobs, &job->scores, work->n_prompt - 1,
                              how->prompt_logprobs - 1u))
        return true;
    bt_logprob_store_close(&ledger->logprobs, &job->logprobs);
    return false;
}

bt_status bt_ledger_open(struct bt_ledger *ledger, uint64_t now_us, uint32_t slot,
                         const struct bt_msg_work *work, struct bt_job **out,
                         struct bt_error *err) {
    uint32_t router = ledger->streams[slot].router;
    BT_ASSERT(router != BT_LEDGER_ROUTERS);
    if (find(ledger, router, work->key))
        return bt_fail(err, BT_E_INVALID, "request %llu attempt %u is here already",
                       (unsigned long long)work->key.request, work->key.attempt);
    uint32_t max_context = ledger->config.join.max_context;
    if (work->n_tokens > max_context)
        return bt_fail(err, BT_E_INVALID, "%u tokens exceed the context of %u", work->n_tokens,
                       max_context);
    uint64_t n_bytes = score_bytes(work); /* told in one go to a router that comes back */
    if (n_bytes > BT_LEDGER_SCORE_BYTES)
        return bt_fail(err, BT_E_INVALID,
                       "logprobs of %u prompt tokens take %llu bytes, must be at most %d",
                       work->n_prompt, (unsigned long long)n_bytes, BT_LEDGER_SCORE_BYTES);
    struct bt_job *job = take_free(ledger);
    if (!job)
        return bt_fail(err, BT_E_FULL, "all %u jobs are in use", ledger->config.max_jobs);
    while (!open_chains(ledger, job, work))
        if (!forget_oldest(ledger))
            return bt_fail(err, BT_E_FULL, "of %u chunks for logprobs %u are promised",
                           ledger->logprobs.pool.n_chunks, ledger->logprobs.pool.n_reserved);
    *job = (struct bt_job){
        .id = job->id,
        .used = true,
        .held = true,
        .confirmed = true,
        .router = router,
        .key = work->key,
        .ticket = work->ticket,
        .sampling = work->sampling,
        .tokens = job->tokens,
        .hashes = job->hashes,
        .bias = job->bias,
        .logprobs = job->logprobs,
        .scores = job->scores,
        .n_tokens = work->n_tokens,
        .n_prompt = work->n_prompt,
        .n_start = work->n_tokens,
        .n_told = work->n_tokens,
        .received_us = now_us,
        .arrived_us = now_us - (uint64_t)work->elapsed_ms * 1000,
        .deadline_us = now_us + (uint64_t)work->remaining_ms * 1000,
    };
    memcpy(job->tokens, work->tokens, work->n_tokens * sizeof *job->tokens);
    job->sampling.bias = work->sampling.n_bias ? job->bias : NULL;
    if (work->sampling.n_bias)
        memcpy(job->bias, work->sampling.bias, work->sampling.n_bias * sizeof *job->bias);
    ledger->routers[router].n_jobs++;
    *out = job;
    return BT_OK;
}

void bt_ledger_token(struct bt_ledger *ledger, struct bt_job *job, int32_t token,
                     enum bt_finish finish, uint64_t hash, const struct bt_logprobs *logprobs) {
    BT_ASSERT(job->held && !job->ended && job->finish == BT_FINISH_NONE);
    BT_ASSERT(job->n_tokens <= ledger->config.join.max_context);
    BT_ASSERT(job->scores.n_rows == bt_ledger_n_scores(job));
    if (job->logprobs.is_open)
        bt_logprob_store_append(&ledger->logprobs, &job->logprobs, logprobs);
    job->tokens[job->n_tokens] = token;
    job->hashes[job->n_tokens] = hash;
    job->n_tokens++;
    job->finish = finish;
    bt_ledger_list_(ledger, job);
}

uint32_t bt_ledger_n_scores(const struct bt_job *job) {
    return job->scores.is_open ? job->n_prompt - 1 : 0;
}

void bt_ledger_scores(struct bt_ledger *ledger, struct bt_job *job, const struct bt_logprobs *rows,
                      uint32_t n) {
    BT_ASSERT(job->held && !job->ended && job->n_tokens == job->n_start);
    BT_ASSERT(job->scores.n_rows + n <= bt_ledger_n_scores(job));
    for (uint32_t i = 0; i < n; i++)
        bt_logprob_store_append(&ledger->logprobs, &job->scores, &rows[i]);
    bt_ledger_list_(ledger, job);
}

void bt_ledger_answer(struct bt_ledger *ledger, struct bt_job *job,
                      const struct bt_msg_reserved *reserved) {
    BT_ASSERT(job->held);
    job->reserved = *reserved;
    job->reserved.key = job->key;
    job->answer_owed = true;
    bt_ledger_list_(ledger, job);
}

void bt_ledger_live(struct bt_ledger *ledger, struct bt_job *job) {
    job->live_owed = true;
    bt_ledger_list_(ledger, job);
}

void bt_ledger_report(struct bt_ledger *ledger, struct bt_job *job,
                      const struct bt_msg_ended *report) {
    BT_ASSERT(job->held && !job->ended);
    job->report = *report;
    job->report.key = job->key;
    job->report.next_index = job->n_tokens - job->n_prompt;
    job->report_owed = true;
    bt_ledger_list_(ledger, job);
}

void bt_ledger_end(struct bt_ledger *ledger, uint64_t now_us, struct bt_job *job,
                   const struct bt_msg_ended *end) {
    BT_ASSERT(job->held && !job->ended);
    job->ended = true;
    job->ended_us = now_us;
    job->end = *end;
    job->end.key = job->key;
    job->end.next_index = job->n_tokens - job->n_prompt;
    job->end_owed = true;
    bt_ledger_list_(ledger, job);
}

void bt_ledger_end_again(struct bt_ledger *ledger, struct bt_job *job) {
    BT_ASSERT(job->ended);
    job->end_owed = true;
    bt_ledger_list_(ledger, job);
}

void bt_ledger_drop(struct bt_ledger *ledger, struct bt_job *job) {
    BT_ASSERT(job->used && job->held);
    job->held = false;
    if (!job->ended || job->lost)
        forget(ledger, job);
}

/* ---- events ---- */

void bt_ledger_opened(struct bt_ledger *ledger, uint64_t now_us, uint32_t slot) {
    BT_ASSERT(slot < BT_MAX_ROUTERS && !ledger->streams[slot].open);
    ledger->streams[slot] = (struct bt_ledger_stream){
        .open = true,
        .join_owed = true,
        .router = BT_LEDGER_ROUTERS,
        .heard_us = now_us,
        .said_us = now_us,
    };
}

void bt_ledger_closed(struct bt_ledger *ledger, uint64_t now_us, uint32_t slot) {
    BT_ASSERT(slot < BT_MAX_ROUTERS);
    (void)now_us;
    struct bt_ledger_stream *stream = &ledger->streams[slot];
    if (stream->router != BT_LEDGER_ROUTERS && ledger->routers[stream->router].slot == slot)
        ledger->routers[stream->router].attached = false;
    *stream = (struct bt_ledger_stream){.router = BT_LEDGER_ROUTERS};
}

/* The incarnation's entry, made where it is new. */
static uint32_t router_of(struct bt_ledger *ledger, struct bt_id incarnation) {
    uint32_t empty = BT_LEDGER_ROUTERS;
    for (uint32_t i = 0; i < BT_LEDGER_ROUTERS; i++) {
        struct bt_ledger_router *router = &ledger->routers[i];
        if (router->used && bt_id_equal(router->incarnation, incarnation))
            return i;
        if (empty == BT_LEDGER_ROUTERS && (!router->used || (!router->attached && !router->n_jobs)))
            empty = i;
    }
    if (empty != BT_LEDGER_ROUTERS)
        ledger->routers[empty] =
            (struct bt_ledger_router){.used = true, .incarnation = incarnation};
    return empty;
}

static bt_status on_welcome(struct bt_ledger *ledger, uint64_t now_us, uint32_t slot,
                            const struct bt_msg_welcome *welcome, struct bt_error *err) {
    struct bt_ledger_stream *stream = &ledger->streams[slot];
    if (stream->router != BT_LEDGER_ROUTERS)
        return bt_fail(err, BT_E_PROTOCOL, "the router said welcome twice");
    uint32_t i = router_of(ledger, welcome->incarnation);
    if (i == BT_LEDGER_ROUTERS)
        return bt_fail(err, BT_E_FULL, "jobs of %d lost routers are still held", BT_LEDGER_ROUTERS);
    struct bt_ledger_router *router = &ledger->routers[i];
    if (router->attached) /* two streams to one router: the new one counts */
        bt_ledger_close_(ledger, router->slot, "the router was dialled again");
    router->attached = true;
    router->slot = slot;
    router->heard_us = now_us;
    router->resume_pending = true;
    for (uint32_t k = 0; k < ledger->config.max_jobs; k++)
        if (ledger->jobs[k].used && ledger->jobs[k].router == i)
            ledger->jobs[k].confirmed = false;
    stream->router = i;
    stream->wants_census = true;
    stream->status_changed = true;
    return BT_DONE;
}

static void on_resume(struct bt_ledger *ledger, uint32_t slot, uint32_t router,
                      const struct bt_msg_resume *resume) {
    for (uint32_t i = 0; i < resume->n_rows; i++) {
        const struct bt_resume *row = &resume->rows[i];
        struct bt_job *job = find(ledger, router, row->key);
        if (!job || job->given_up || !bt_id_equal(job->ticket, row->ticket)) {
            bt_ledger_refuse_key_(ledger, slot, row->key);
            continue;
        }
        job->confirmed = true;
        uint64_t next = (uint64_t)job->n_prompt + row->next_index;
        job->n_told = next < job->n_start    ? job->n_start
                      : next < job->n_tokens ? (uint32_t)next
                                             : job->n_tokens;
        if (job->logprobs.is_open)
            bt_logprob_store_seek(&ledger->logprobs, &job->logprobs, job->n_told - job->n_start);
#if !BT_MUTANT_scores_told_once
        if (job->scores.is_open) /* who has token 0 has them all */
            bt_logprob_store_seek(&ledger->logprobs, &job->scores,
                                  job->n_told > job->n_start ? job->scores.n_rows : 0);
#endif
        job->answer_owed = job->reserved.pages > 0;
        job->end_owed = job->ended;
        bt_ledger_list_(ledger, job);
    }
    lose_all(ledger, router, false);
    ledger->routers[router].resume_pending = false;
}

static void on_seen(struct bt_ledger *ledger, uint32_t router, const struct bt_msg_seen *seen) {
    for (uint32_t i = 0; i < seen->n_keys; i++) {
        struct bt_job *job = find(ledger, router, seen->keys[i]);
        if (job && job->ended && !job->held)
            forget(ledger, job);
    }
}

bt_status bt_ledger_message(struct bt_ledger *ledger, uint64_t now_us, uint32_t slot,
                            const struct bt_msg *msg, struct bt_error *err) {
    BT_ASSERT(slot < BT_MAX_ROUTERS && ledger->streams[slot].open);
    struct bt_ledger_stream *stream = &ledger->streams[slot];
    stream->heard_us = now_us;
    if (msg->type == BT_MSG_WELCOME)
        return on_welcome(ledger, now_us, slot, &msg->welcome, err);
    if (msg->type == BT_MSG_REFUSED) {
        if (msg->refused.final)
            ledger->quit = true;
        memcpy(ledger->reason, msg->refused.reason, sizeof ledger->reason);
        bt_ledger_close_(ledger, slot, ledger->reason);
        return BT_DONE;
    }
    uint32_t router = stream->router;
    if (router == BT_LEDGER_ROUTERS)
        return bt_fail(err, BT_E_PROTOCOL, "the router sent message %d before its welcome",
                       (int)msg->type);
    ledger->routers[router].heard_us = now_us;
    if (msg->type == BT_MSG_RESUME) {
        if (!ledger->routers[router].resume_pending)
            return bt_fail(err, BT_E_PROTOCOL, "the router sent Resume in mid-stream");
        on_resume(ledger, slot, router, &msg->resume);
        return BT_DONE;
    }
    if (msg->type != BT_MSG_PEERS && ledger->routers[router].resume_pending) {
        /* It holds nothing here, or it would have said so before anything else. */
        lose_all(ledger, router, false);
        ledger->routers[router].resume_pending = false;
    }
    switch (msg->type) {
    case BT_MSG_SEEN:
        on_seen(ledger, router, &msg->seen);
        return BT_DONE;
    case BT_MSG_PULSE:
        return BT_DONE;
    case BT_MSG_PEERS:
    case BT_MSG_RESERVE:
    case BT_MSG_PREFILL:
    case BT_MSG_CANCEL:
    case BT_MSG_PGONE:
    case BT_MSG_FLUSH:
        return BT_OK;
    default:
        return bt_fail(err, BT_E_PROTOCOL, "a router does not send message %d", (int)msg->type);
    }
}

void bt_ledger_tick(struct bt_ledger *ledger, uint64_t now_us) {
    for (uint32_t i = 0; i < BT_LEDGER_ROUTERS; i++) {
        struct bt_ledger_router *router = &ledger->routers[i];
        if (!router->used)
            continue;
#if !BT_MUTANT_no_router_lease
        if (router->n_jobs && now_us - router->heard_us > (uint64_t)BT_LEASE_MS * 1000)
            lose_all(ledger, i, true);
#endif
        if (!router->attached && !router->n_jobs)
            router->used = false;
    }
    for (uint32_t i = 0; i < BT_MAX_ROUTERS; i++) {
        struct bt_ledger_stream *stream = &ledger->streams[i];
        if (stream->open && now_us - stream->heard_us > (uint64_t)BT_ROUTER_SILENT_MS * 1000)
            bt_ledger_close_(ledger, i, "the router was silent for 1 s");
    }
    for (uint32_t i = 0; i < ledger->config.max_jobs; i++) {
        struct bt_job *job = &ledger->jobs[i];
        if (job->used && job->ended && !job->held &&
            now_us - job->ended_us > (uint64_t)BT_LEASE_MS * 1000)
            forget(ledger, job);
    }
}

/* ---- introspection ---- */

uint32_t bt_ledger_n_attached(const struct bt_ledger *ledger) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < BT_LEDGER_ROUTERS; i++)
        n += ledger->routers[i].used && ledger->routers[i].attached;
    return n;
}

uint32_t bt_ledger_router(const struct bt_ledger *ledger, uint32_t slot) {
    BT_ASSERT(slot < BT_MAX_ROUTERS);
    return ledger->streams[slot].router;
}

uint32_t bt_ledger_routers(const struct bt_ledger *ledger) {
    uint32_t routers = 0;
    for (uint32_t i = 0; i < BT_LEDGER_ROUTERS; i++)
        routers |= (uint32_t)ledger->routers[i].used << i;
    return routers;
}

bool bt_ledger_is_quiet(const struct bt_ledger *ledger) {
    for (uint32_t i = 0; i < ledger->config.max_jobs; i++)
        if (ledger->jobs[i].used)
            return false;
    return true;
}

static bool is_valid_logprobs(const struct bt_job *job) {
    uint32_t n_own = job->n_tokens - job->n_start;
    return job->logprobs.is_open == (job->sampling.logprobs > 0) &&
           (!job->logprobs.is_open || (job->logprobs.n_rows == n_own &&
                                       job->logprobs.n_read == job->n_told - job->n_start)) &&
           job->scores.n_rows <= bt_ledger_n_scores(job) &&
           (!n_own || job->scores.n_rows == bt_ledger_n_scores(job));
}

bool bt_ledger_is_valid(const struct bt_ledger *ledger) {
    uint32_t n_jobs[BT_LEDGER_ROUTERS] = {0}, n_lost = 0, n_listed = 0, n_reserved = 0;
    for (uint32_t i = 0; i < ledger->config.max_jobs; i++) {
        const struct bt_job *job = &ledger->jobs[i];
        if (!job->used) {
            if (job->listed || job->lost || job->logprobs.is_open || job->scores.is_open)
                return false;
            continue;
        }
        if (!ledger->routers[job->router].used || job->n_start > job->n_tokens ||
            job->n_told > job->n_tokens || job->n_prompt > job->n_start ||
            job->n_tokens > ledger->config.join.max_context + 1 || (!job->held && !job->ended) ||
            !is_valid_logprobs(job))
            return false;
        n_reserved += job->logprobs.n_reserved + job->scores.n_reserved;
        n_jobs[job->router]++;
        n_lost += job->lost;
        n_listed += job->listed;
    }
    for (uint32_t i = 0; i < BT_LEDGER_ROUTERS; i++)
        if (ledger->routers[i].n_jobs != n_jobs[i])
            return false;
    for (uint32_t i = ledger->first_listed; i != BT_NO_JOB; i = ledger->jobs[i].next)
        if (!ledger->jobs[i].listed || !n_listed--)
            return false;
    return n_listed == 0 && n_lost == ledger->n_lost &&
           n_reserved == ledger->logprobs.pool.n_reserved &&
           n_reserved <= ledger->logprobs.pool.n_chunks;
}

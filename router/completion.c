/* One client request for generated text: checked, tokenized, its choices given to the core, and
 * their tokens given to its sink. */
#include "router/completion.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "router/generation.h"
#include "router/prompt.h"
#include "router/shell.h"

struct bt_choice {
    struct bt_completion *completion;
    struct bt_generation gen;
    struct bt_request *req; /* NULL before submit and after END */
    uint64_t arrived_us, last_us;
    bool told; /* the core knows that it is to end */
};

struct bt_completion {
    struct bt_shell *shell;
    struct bt_request_sink *sink; /* NULL: it has ended, or the client is gone */
    struct bt_completion **handle;
    struct bt_prompt *prompts;
    uint32_t n_prompts, n_per_prompt;
    uint32_t *n_scored; /* [n_prompts]: positions given to the sink; NULL: no scores asked for */
    uint64_t n_prompt_tokens, n_cached;
    bt_status status; /* of the first choice that failed */
    char *reason;     /* owned; NULL: none */
    bool starting;    /* not all are submitted yet */
    bool telling, ended;
    struct bt_completion *next_telling, *next_ended;
    struct bt_completion *next, *previous; /* all of the shell's */
    struct bt_choice_end *ends;            /* [n_choices] */
    uint32_t n_choices, n_live;
    struct bt_choice choices[];
};

/* ---- the shell's lists ---- */

static void link_completion(struct bt_completion *c) {
    struct bt_shell *shell = c->shell;
    c->next = shell->completions;
    if (c->next)
        c->next->previous = c;
    shell->completions = c;
    shell->n_completions++;
}

static void unlink_completion(struct bt_completion *c) {
    *(c->previous ? &c->previous->next : &c->shell->completions) = c->next;
    if (c->next)
        c->next->previous = c->previous;
    c->shell->n_completions--;
}

static void free_completion(struct bt_completion *c) {
    for (uint32_t i = 0; i < c->n_choices; i++)
        bt_generation_fini(&c->choices[i].gen);
    for (uint32_t p = 0; c->prompts && p < c->n_prompts; p++)
        bt_prompt_fini(&c->prompts[p]);
    free(c->prompts);
    free(c->n_scored);
    free(c->ends);
    free(c->reason);
    free(c);
}

/* It is freed at the end of the turn: whoever called us may still hold it. */
static void retire(struct bt_completion *c) {
    if (c->ended)
        return;
    c->ended = true;
    c->next_ended = c->shell->ended;
    c->shell->ended = c;
}

static void queue_telling(struct bt_completion *c) {
    if (c->telling)
        return;
    c->telling = true;
    c->next_telling = c->shell->telling;
    c->shell->telling = c;
}

/* ---- the end ---- */

static void drop_sink(struct bt_completion *c) {
    c->sink = NULL;
    for (uint32_t i = 0; i < c->n_choices; i++)
        c->choices[i].gen.sink = NULL;
    if (c->handle)
        *c->handle = NULL;
    c->handle = NULL;
}

static void end_if_over(struct bt_completion *c) {
    if (c->n_live || c->starting)
        return;
    struct bt_sink_end end = {.status = c->status,
                              .reason = c->reason ? c->reason : "",
                              .choices = c->ends,
                              .n_choices = c->n_choices,
                              .n_prompt = c->n_prompt_tokens,
                              .n_cached = c->n_cached};
    for (uint32_t i = 0; i < c->n_choices; i++) {
        /* A stop string in what was held needs no telling: the choice is over in the core. */
        if (c->sink && c->choices[i].gen.n_held)
            bt_generation_resume(&c->choices[i].gen);
        if (c->sink && c->choices[i].gen.n_held)
            return;
        c->ends[i].n_generated = c->choices[i].gen.n_generated;
        end.n_generated += c->ends[i].n_generated;
    }
    struct bt_request_sink *sink = c->sink;
    drop_sink(c);
    if (sink)
        sink->ops->end(sink, &end);
    retire(c);
}

/* The first failure speaks for all. */
static void fail(struct bt_completion *c, bt_status status, const char *reason) {
    if (c->status != BT_OK)
        return;
    c->status = status;
    /* Without memory for it the sentence is lost, not the status. */
    c->reason = *reason ? strdup(reason) : NULL;
    for (uint32_t i = 0; i < c->n_choices; i++)
        c->choices[i].gen.waits = false; /* scores may never come now */
    queue_telling(c);
}

void bt_completion_cancel(struct bt_completion *c) {
    drop_sink(c);
    fail(c, BT_E_CANCELLED, "");
    end_if_over(c);
    bt_shell_drain(c->shell); /* the choices' ENDs come here */
}

void bt_completion_resume(struct bt_completion *c) {
    for (uint32_t i = 0; i < c->n_choices; i++)
        if (bt_generation_resume(&c->choices[i].gen))
            queue_telling(c);
    end_if_over(c);
    bt_shell_drain(c->shell);
}

uint64_t bt_completion_id(const struct bt_completion *c) {
    return c->ends[0].id;
}

/* ---- the core's actions ---- */

void bt_completion_emit(struct bt_choice *choice, const struct bt_router_action *action) {
    struct bt_shell *shell = choice->completion->shell;
    uint64_t since = choice->last_us ? choice->last_us : choice->arrived_us;
    bt_histogram_record(choice->last_us ? &shell->times.itl : &shell->times.ttft,
                        shell->now_us - since);
    bt_stats_window_token(&shell->stats.window, shell->now_us,
                          choice->last_us ? BT_STATS_ITL : BT_STATS_TTFT, shell->now_us - since);
    choice->last_us = shell->now_us;
    const struct bt_emitted emitted = {action->token, action->finish, action->hash,
                                       action->logprobs};
    if (bt_generation_emit(&choice->gen, &emitted))
        queue_telling(choice->completion);
}

void bt_completion_scores(struct bt_choice *choice, const struct bt_router_action *action) {
    struct bt_completion *c = choice->completion;
    if (!c->sink || !action->n_scores)
        return;
    uint32_t p = choice->gen.choice / c->n_per_prompt;
    const struct bt_scores scores = {p, action->first_score, action->n_scores, action->logprobs};
    c->sink->ops->scores(c->sink, &scores);
    c->n_scored[p] += action->n_scores;
    if (c->n_scored[p] + 1 < c->prompts[p].n_ids)
        return;
    for (uint32_t k = 0; k < c->n_per_prompt; k++) {
        struct bt_generation *gen = &c->choices[p * c->n_per_prompt + k].gen;
        gen->waits = false;
        if (bt_generation_resume(gen))
            queue_telling(c);
    }
}

void bt_completion_end(struct bt_choice *choice, const struct bt_router_action *action) {
    struct bt_completion *c = choice->completion;
    const struct bt_request *req = choice->req;
    if (choice->gen.choice % c->n_per_prompt == 0) {
        uint64_t pages =
            req->pages_held > req->pages_cached_p ? req->pages_held : req->pages_cached_p;
        uint64_t tokens = pages * BT_PAGE_TOKENS;
        c->n_cached += tokens < req->n_prompt ? tokens : req->n_prompt;
    }
    choice->req = NULL;
    c->n_live--;
    if (action->status != BT_OK)
        fail(c, action->status, action->reason);
    else if (choice->gen.waits && choice->gen.choice % c->n_per_prompt == 0)
        fail(c, BT_E_INTERNAL, "the prompt's logprobs did not come");
    end_if_over(c);
}

bool bt_completion_tell_core(struct bt_shell *shell) {
    while (shell->telling) {
        struct bt_completion *c = shell->telling;
        for (uint32_t i = 0; i < c->n_choices; i++) {
            struct bt_choice *choice = &c->choices[i];
            bool failed = c->status != BT_OK;
            if (!choice->req || choice->told || !(failed || choice->gen.stopped))
                continue;
            choice->told = true;
            if (failed)
                bt_router_core_cancel(shell->core, shell->now_us, choice->req);
            else
                bt_router_core_stop(shell->core, shell->now_us, choice->req);
            return true;
        }
        shell->telling = c->next_telling;
        c->telling = false;
    }
    return false;
}

void bt_completion_free_ended(struct bt_shell *shell) {
    while (shell->ended) {
        struct bt_completion *c = shell->ended;
        shell->ended = c->next_ended;
        unlink_completion(c);
        free_completion(c);
    }
}

void bt_completion_free_all(struct bt_shell *shell) {
    shell->ended = shell->telling = NULL;
    for (struct bt_completion *c = shell->completions, *next; c; c = next) {
        next = c->next;
        free_completion(c);
    }
    shell->completions = NULL;
    shell->n_completions = 0;
}

/* ---- the start ---- */

static bt_status check_model(const struct bt_shell *shell,
                             const struct bt_generate_request *request,
                             const struct bt_generate_check *check) {
    if (!request->model || !strcmp(request->model, shell->model))
        return BT_OK;
    check->fault->code = "model_not_found";
    return bt_generate_refuse(check, BT_E_NOT_FOUND, "model",
                              "the model \"%.100s\" is not served here, \"%.80s\" is",
                              request->model, shell->model);
}

/* The words that clients look for. */
static bt_status check_context(const struct bt_shell *shell,
                               const struct bt_generate_request *request, uint32_t n_prompt,
                               const struct bt_generate_check *check) {
    uint32_t context = bt_router_core_context(shell->core);
    uint64_t answer = request->max_tokens_given ? request->sampling.max_tokens : 1;
    if (!context || n_prompt + answer <= context)
        return BT_OK;
    check->fault->code = "context_length_exceeded";
    return bt_generate_refuse(check, BT_E_TOO_LARGE, request->messages ? "messages" : "prompt",
                              "This model's maximum context length is %" PRIu32
                              " tokens, but this request asks for %" PRIu64 " (%" PRIu32
                              " in the prompt, %" PRIu64 " to generate)",
                              context, n_prompt + answer, n_prompt, answer);
}

static bt_status make_prompts(struct bt_completion *c, const struct bt_generate_request *request,
                              const struct bt_generate_check *check) {
    int64_t now_s = (int64_t)time(NULL);
    for (uint32_t p = 0; p < c->n_prompts; p++) {
        BT_TRY(bt_prompt_make(&c->shell->text, c->shell->scratch, request, p, now_s, &c->prompts[p],
                              check));
        BT_TRY(check_context(c->shell, request, c->prompts[p].n_ids, check));
        c->n_prompt_tokens += c->prompts[p].n_ids;
    }
    return BT_OK;
}

static bt_status make_choices(struct bt_completion *c, const struct bt_generate_request *request,
                              struct bt_error *err) {
    const struct bt_shell *shell = c->shell;
    for (uint32_t i = 0; i < c->n_choices; i++) {
        struct bt_choice *choice = &c->choices[i];
        struct bt_stop_filter *stops = NULL;
        if (request->n_stops && !(stops = malloc(sizeof *stops)))
            return bt_fail(err, BT_E_NO_MEMORY, "out of memory for stop strings");
        bt_generation_init(&choice->gen, shell->text.tokenizer, request->skip_special_tokens, stops,
                           c->sink, i);
        if (stops)
            BT_TRY(bt_stop_filter_init(stops, request->stops, request->n_stops,
                                       request->include_stop, err));
        choice->completion = c;
        choice->arrived_us = shell->now_us;
        choice->gen.prompt_only = request->prompt_only;
        choice->gen.waits = c->n_scored && c->prompts[i / c->n_per_prompt].n_ids > 1;
    }
    return BT_OK;
}

/* Followers share the leader's scores: they are asked for once per prompt. */
static bt_status submit_choice(struct bt_completion *c, const struct bt_generate_request *request,
                               uint32_t i, struct bt_error *err) {
    struct bt_shell *shell = c->shell;
    struct bt_choice *choice = &c->choices[i];
    uint32_t p = i / c->n_per_prompt, k = i % c->n_per_prompt;
    const struct bt_choice *leader = &c->choices[i - k];
    struct bt_submit what = {
        .tokens = c->prompts[p].ids,
        .n_tokens = c->prompts[p].n_ids,
        .sampling = request->sampling,
        .seed_given = request->seed_given,
        .max_tokens_given = request->max_tokens_given,
        .deadline_ms = request->deadline_ms,
        .tenant = request->tenant,
        .caller = &request->caller,
        .leader = k ? leader->req : NULL,
        .user = choice,
    };
    what.sampling.seed += k;
    if (k)
        what.sampling.prompt_logprobs = 0;
    BT_TRY(bt_router_core_submit(shell->core, shell->now_us, &what, &choice->req, err));
    c->ends[i].id = choice->req->id;
    c->n_live++;
    bt_stats_window_request(&shell->stats.window, shell->now_us, k ? 0 : what.n_tokens);
    return BT_OK;
}

/* All or none. The core's actions are carried out after each. */
static bt_status submit_all(struct bt_completion *c, const struct bt_generate_request *request,
                            struct bt_error *err) {
    bt_status status = BT_OK;
    for (uint32_t i = 0; i < c->n_choices && status == BT_OK; i++) {
        if (i)
            bt_shell_drain(c->shell);
        if (c->status != BT_OK)
            status = bt_fail(err, c->status, "%s", c->reason ? c->reason : "out of memory");
        else
            status = submit_choice(c, request, i, err);
    }
    c->starting = false;
    return status;
}

/* Ids that are the request's own are copied where they are wanted after it. */
static bt_status keep_prompts(struct bt_completion *c, struct bt_error *err) {
    for (uint32_t p = 0; p < c->n_prompts; p++) {
        struct bt_prompt *prompt = &c->prompts[p];
        if (prompt->tokens)
            continue;
        prompt->tokens = malloc(prompt->n_ids * sizeof *prompt->tokens);
        if (!prompt->tokens)
            return bt_fail(err, BT_E_NO_MEMORY, "out of memory for %" PRIu32 " tokens",
                           prompt->n_ids);
        memcpy(prompt->tokens, prompt->ids, prompt->n_ids * sizeof *prompt->tokens);
        prompt->ids = prompt->tokens;
    }
    return BT_OK;
}

/* The core has its own copy. Their sizes stay. */
static void drop_ids(struct bt_completion *c) {
    for (uint32_t p = 0; p < c->n_prompts; p++) {
        free(c->prompts[p].tokens);
        c->prompts[p].tokens = NULL;
        c->prompts[p].ids = NULL;
    }
}

static struct bt_completion *create(struct bt_shell *shell,
                                    const struct bt_generate_request *request,
                                    struct bt_request_sink *sink, struct bt_error *err) {
    uint32_t n_choices = bt_generate_request_choices(request);
    struct bt_completion *c = calloc(1, sizeof *c + n_choices * sizeof c->choices[0]);
    if (c) {
        c->shell = shell;
        c->sink = sink;
        c->starting = true;
        c->n_choices = n_choices;
        c->n_per_prompt = request->n;
        c->n_prompts = n_choices / request->n;
        c->prompts = calloc(c->n_prompts, sizeof *c->prompts);
        c->ends = calloc(n_choices, sizeof *c->ends);
        if (request->sampling.prompt_logprobs)
            c->n_scored = calloc(c->n_prompts, sizeof *c->n_scored);
        if (c->prompts && c->ends && (c->n_scored || !request->sampling.prompt_logprobs))
            return c;
        free_completion(c);
    }
    bt_fail(err, BT_E_NO_MEMORY, "out of memory for a request");
    return NULL;
}

bt_status bt_completion_start(struct bt_shell *shell, const struct bt_generate_request *request,
                              struct bt_request_sink *sink, struct bt_completion **out,
                              struct bt_generate_fault *fault, struct bt_error *err) {
    const struct bt_generate_check check = {fault, err};
    *fault = (struct bt_generate_fault){0};
    *out = NULL;
    BT_TRY(check_model(shell, request, &check));
    BT_TRY(bt_generate_request_check(request, bt_tokenizer_size(shell->text.tokenizer), &check));
    struct bt_completion *c = create(shell, request, sink, err);
    if (!c)
        return err->status;
    bt_status status = make_prompts(c, request, &check);
    if (status == BT_OK)
        status = make_choices(c, request, err);
    if (status == BT_OK && request->keep_prompts)
        status = keep_prompts(c, err);
    if (status < 0) {
        free_completion(c);
        return status;
    }
    const struct bt_sink_begin begin = {c->prompts, c->n_prompts, c->n_choices};
    sink->ops->begin(sink, &begin);
    link_completion(c);
    status = submit_all(c, request, err);
    if (!request->keep_prompts)
        drop_ids(c);
    if (status < 0) {
        drop_sink(c);
        fail(c, status, "");
        end_if_over(c);
        return status;
    }
    c->handle = out;
    *out = c;
    return BT_OK;
}

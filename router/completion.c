/* One client request for generated text: checked, tokenized, given to the core, and its tokens sent
 * back. */
#include "router/completion.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "router/debug_pages.h"
#include "router/generation.h"
#include "router/prompt.h"
#include "router/shell.h"
#include "router/sse.h"
#include "router/whole.h"

struct bt_completion {
    struct bt_shell *shell;
    struct bt_generation gen;
    struct bt_openai_answer answer;
    union { /* the sink of gen */
        struct bt_sse sse;
        struct bt_whole whole;
    };
    bool stream, stopping, ended;
    struct bt_completion *next_stopping, *next_ended;
    struct bt_completion *next, *previous; /* all of the shell's */
};

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
    if (c->stream)
        bt_sse_fini(&c->sse);
    else
        bt_whole_fini(&c->whole);
    bt_generation_fini(&c->gen);
    free(c);
}

/* It is freed at the end of the turn: the core and the stream writer may still hold it. */
static void retire(struct bt_completion *c) {
    if (c->ended)
        return;
    c->ended = true;
    c->next_ended = c->shell->ended;
    c->shell->ended = c;
}

/* The client will not take any more of it. */
static void abandon(struct bt_completion *c) {
    if (!c->gen.req) {
        retire(c);
        return;
    }
    bt_router_core_cancel(c->shell->core, bt_shell_now(c->shell), c->gen.req);
    bt_shell_drain(c->shell); /* END comes here */
}

/* ---- what the sinks say ---- */

static void queue_stop(struct bt_completion *c) {
    if (c->stopping)
        return;
    c->stopping = true;
    c->next_stopping = c->shell->stopping;
    c->shell->stopping = c;
}

static struct bt_completion *of_sse(struct bt_sse *sse) {
    return (struct bt_completion *)(void *)((char *)sse - offsetof(struct bt_completion, sse));
}

static struct bt_completion *of_whole(struct bt_whole *whole) {
    return (struct bt_completion *)(void *)((char *)whole - offsetof(struct bt_completion, whole));
}

static void on_sse(struct bt_sse *sse, enum bt_sse_event event) {
    struct bt_completion *c = of_sse(sse);
    if (event == BT_SSE_ROOM) {
        if (bt_generation_resume(&c->gen)) {
            queue_stop(c);
            bt_shell_drain(c->shell);
        }
    } else {
        abandon(c);
    }
}

static void on_whole(struct bt_whole *whole) {
    abandon(of_whole(whole));
}

static void on_gone(void *arg) {
    struct bt_completion *c = arg;
    if (c->stream)
        c->sse.call = NULL;
    else
        c->whole.call = NULL;
    abandon(c);
}

/* ,"baton":{...}: the record of this request, for clients that ask by X-Baton-Timings. */
static void add_record(struct bt_completion *c, struct bt_text_buffer *out) {
    struct bt_request_record record;
    if (!bt_debug_find(c->shell, c->answer.id, &record))
        return;
    bt_text_buffer_add_literal(out, ",\"baton\":");
    bt_debug_write_record(out, &record);
}

static void sse_extra(struct bt_sse *sse, struct bt_text_buffer *out) {
    add_record(of_sse(sse), out);
}

static void whole_extra(struct bt_whole *whole, struct bt_text_buffer *out) {
    add_record(of_whole(whole), out);
}

/* ---- the core's actions ---- */

void bt_completion_emit(struct bt_completion *c, const struct bt_router_action *action) {
    struct bt_shell *shell = c->shell;
    uint64_t since = c->gen.last_us ? c->gen.last_us : c->gen.arrived_us;
    bt_histogram_record(c->gen.last_us ? &shell->itl : &shell->ttft, shell->now_us - since);
    c->gen.last_us = shell->now_us;
    if (bt_generation_emit(&c->gen, action->token, action->finish, action->hash))
        queue_stop(c);
}

void bt_completion_end(struct bt_completion *c, const struct bt_router_action *action) {
    bt_generation_end(&c->gen, action->status, action->reason);
    bool gone = c->stream ? !c->sse.call && !c->sse.replied : !c->whole.call;
    if (gone)
        retire(c);
}

bool bt_completion_tell_stops(struct bt_shell *shell) {
    bool told = false;
    while (shell->stopping && !told) {
        struct bt_completion *c = shell->stopping;
        shell->stopping = c->next_stopping;
        c->stopping = false;
        if (!c->gen.req)
            continue; /* it ended meanwhile */
        bt_router_core_stop(shell->core, shell->now_us, c->gen.req);
        told = true;
    }
    return told;
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
    shell->ended = shell->stopping = NULL;
    for (struct bt_completion *c = shell->completions, *next; c; c = next) {
        next = c->next;
        free_completion(c);
    }
    shell->completions = NULL;
    shell->n_completions = 0;
}

/* ---- arrival ---- */

static void refuse(struct bt_shell *shell, struct bt_http_call *call, const struct bt_error *err,
                   const struct bt_openai_fault *fault) {
    struct bt_text_buffer body = {0};
    int code = bt_status_http(err->status);
    char extra[64] = "";
    if (code == 429 || code == 503)
        snprintf(extra, sizeof extra, "Retry-After: %" PRIu32 "\r\n",
                 (bt_router_core_retry_after_ms(shell->core) + 999) / 1000);
    shell->n_http_refused++;
    bt_openai_write_error(&body, code, err->text, fault->param, fault->code);
    bt_http_call_reply(call, code, "application/json", (struct bt_slice){body.data, body.n_bytes},
                       extra);
    bt_text_buffer_fini(&body);
}

static bt_status check_model(const struct bt_shell *shell, const struct bt_openai_request *request,
                             struct bt_openai_fault *fault, struct bt_error *err) {
    if (!request->model || !strcmp(request->model, shell->model))
        return BT_OK;
    snprintf(fault->param, sizeof fault->param, "model");
    fault->code = "model_not_found";
    return bt_fail(err, BT_E_NOT_FOUND, "the model \"%.100s\" is not served here, \"%.80s\" is",
                   request->model, shell->model);
}

/* The words that clients look for. */
static bt_status check_context(const struct bt_shell *shell,
                               const struct bt_openai_request *request, uint32_t n_prompt,
                               struct bt_openai_fault *fault, struct bt_error *err) {
    uint32_t context = bt_router_core_context(shell->core);
    uint64_t answer = request->max_tokens_given ? request->sampling.max_tokens : 1;
    if (!context || n_prompt + answer <= context)
        return BT_OK;
    snprintf(fault->param, sizeof fault->param, "%s", request->messages ? "messages" : "prompt");
    fault->code = "context_length_exceeded";
    return bt_fail(err, BT_E_TOO_LARGE,
                   "This model's maximum context length is %" PRIu32
                   " tokens, but this request asks for %" PRIu64 " (%" PRIu32
                   " in the prompt, %" PRIu64 " to generate)",
                   context, n_prompt + answer, n_prompt, answer);
}

static bt_status make_stops(const struct bt_openai_request *request, struct bt_stop_filter **out,
                            struct bt_error *err) {
    if (!request->n_stops)
        return BT_OK;
    struct bt_stop_filter *stops = malloc(sizeof *stops);
    if (!stops)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for stop strings");
    bt_status status =
        bt_stop_filter_init(stops, request->stops, request->n_stops, request->include_stop, err);
    if (status < 0)
        free(stops);
    else
        *out = stops;
    return status;
}

static void attach_call(struct bt_completion *c, struct bt_http_call *call,
                        const struct bt_openai_request *request, struct bt_stop_filter *stops) {
    struct bt_shell *shell = c->shell;
    const char *timings = bt_http_call_header(call, "X-Baton-Timings");
    bool timed = timings && !strcmp(timings, "1");
    c->stream = request->stream;
    if (c->stream) {
        bt_sse_init(&c->sse, &shell->sse, call, &c->answer, on_sse);
        c->sse.add_extra = timed ? sse_extra : NULL;
    } else {
        bt_whole_init(&c->whole, call, &c->answer, on_whole);
        c->whole.add_extra = timed ? whole_extra : NULL;
    }
    bt_generation_init(&c->gen, shell->text.tokenizer, request->skip_special_tokens, stops,
                       c->stream ? &c->sse.base : &c->whole.base, shell->now_us);
}

/* BT_OK: the call is answered later, by the core's actions. */
static bt_status submit(struct bt_shell *shell, struct bt_http_call *call,
                        const struct bt_openai_request *request, const struct bt_prompt *prompt,
                        struct bt_error *err) {
    struct bt_stop_filter *stops = NULL;
    BT_TRY(make_stops(request, &stops, err));
    struct bt_completion *c = calloc(1, sizeof *c);
    if (!c) {
        free(stops);
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for a request");
    }
    c->shell = shell;
    c->answer = (struct bt_openai_answer){
        .skeletons = &shell->skeletons,
        .kind = request->kind,
        .include_usage = request->include_usage,
        .continuous_usage = request->continuous_usage,
        .return_token_ids = request->return_token_ids,
        .return_logits_hash = request->return_logits_hash,
        .n_prompt = prompt->n_ids,
        .created_s = (int64_t)time(NULL),
    };
    attach_call(c, call, request, stops);
    const struct bt_submit what = {
        .tokens = prompt->ids,
        .n_tokens = prompt->n_ids,
        .sampling = request->sampling,
        .seed_given = request->seed_given,
        .max_tokens_given = request->max_tokens_given,
        .tenant = request->tenant,
        .user = c,
    };
    bt_status status = bt_router_core_submit(shell->core, shell->now_us, &what, &c->gen.req, err);
    if (status != BT_OK) {
        free_completion(c);
        return status;
    }
    c->answer.id = c->gen.req->id;
    link_completion(c);
    bt_http_call_drop_body(call);
    bt_http_call_keep(call, on_gone, c);
    return BT_OK;
}

static void serve(struct bt_shell *shell, struct bt_http_call *call, enum bt_openai_kind kind) {
    struct bt_openai_request request;
    struct bt_openai_fault fault;
    struct bt_error err;
    struct bt_prompt prompt = {0};
    shell->n_http_requests++;
    bt_shell_now(shell);
    bt_status status = bt_openai_request_parse(
        kind, bt_http_call_body(call), bt_tokenizer_size(shell->text.tokenizer),
        !shell->text.chat || !bt_chat_template_reads_parts(shell->text.chat), &request, &fault,
        &err);
    bool parsed = status == BT_OK;
    if (status == BT_OK)
        status = check_model(shell, &request, &fault, &err);
    if (status == BT_OK)
        status = bt_prompt_make(&shell->text, shell->scratch, &request, (int64_t)time(NULL),
                                &prompt, &fault, &err);
    if (status == BT_OK)
        status = check_context(shell, &request, prompt.n_ids, &fault, &err);
    if (status == BT_OK)
        status = submit(shell, call, &request, &prompt, &err);
    bt_prompt_fini(&prompt);
    if (parsed)
        bt_openai_request_fini(&request);
    if (status < 0)
        refuse(shell, call, &err, &fault);
    /* A refused submit may have left actions too. */
    bt_shell_drain(shell);
}

void bt_completion_on_chat(void *arg, struct bt_http_call *call) {
    serve(arg, call, BT_OPENAI_CHAT);
}

void bt_completion_on_text(void *arg, struct bt_http_call *call) {
    serve(arg, call, BT_OPENAI_COMPLETION);
}

/* Reads OpenAI requests, starts their completions, and carries the answers to HTTP. */
#include "router/openai_handlers.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "router/completion.h"
#include "router/debug_pages.h"
#include "router/openai_request.h"
#include "router/shell.h"
#include "router/sse.h"
#include "router/whole.h"

struct bt_openai_call {
    struct bt_shell *shell;
    struct bt_completion *completion; /* NULL once it has ended: only bytes are left to send */
    struct bt_openai_answer answer;
    union { /* the completion's sink */
        struct bt_sse sse;
        struct bt_whole whole;
    };
    bool stream, ended;
    struct bt_openai_call *next_ended;
    struct bt_openai_call *next, *previous; /* all of the shell's */
};

static void link_call(struct bt_openai_call *c) {
    struct bt_shell *shell = c->shell;
    c->next = shell->calls;
    if (c->next)
        c->next->previous = c;
    shell->calls = c;
    shell->n_calls++;
}

static void unlink_call(struct bt_openai_call *c) {
    *(c->previous ? &c->previous->next : &c->shell->calls) = c->next;
    if (c->next)
        c->next->previous = c->previous;
    c->shell->n_calls--;
}

static void free_call(struct bt_openai_call *c) {
    if (c->stream)
        bt_sse_fini(&c->sse);
    else
        bt_whole_fini(&c->whole);
    bt_openai_answer_fini(&c->answer);
    free(c);
}

/* Nobody will take any more of it. It is freed at the end of the turn: the stream writer may still
 * hold it. */
static void retire(struct bt_openai_call *c) {
    if (c->completion)
        bt_completion_cancel(c->completion);
    if (c->ended)
        return;
    c->ended = true;
    c->next_ended = c->shell->ended_calls;
    c->shell->ended_calls = c;
}

void bt_openai_free_ended(struct bt_shell *shell) {
    while (shell->ended_calls) {
        struct bt_openai_call *c = shell->ended_calls;
        shell->ended_calls = c->next_ended;
        unlink_call(c);
        free_call(c);
    }
}

void bt_openai_free_all(struct bt_shell *shell) {
    shell->ended_calls = NULL;
    for (struct bt_openai_call *c = shell->calls, *next; c; c = next) {
        next = c->next;
        free_call(c);
    }
    shell->calls = NULL;
    shell->n_calls = 0;
}

/* ---- what the sinks and the connection say ---- */

static struct bt_openai_call *of_sse(struct bt_sse *sse) {
    return (struct bt_openai_call *)(void *)((char *)sse - offsetof(struct bt_openai_call, sse));
}

static struct bt_openai_call *of_whole(struct bt_whole *whole) {
    return (struct bt_openai_call *)(void *)((char *)whole -
                                             offsetof(struct bt_openai_call, whole));
}

static void on_sse(struct bt_sse *sse, enum bt_sse_event event) {
    struct bt_openai_call *c = of_sse(sse);
    if (event != BT_SSE_ROOM)
        retire(c);
    else if (c->completion)
        bt_completion_resume(c->completion);
}

static void on_whole(struct bt_whole *whole) {
    retire(of_whole(whole));
}

static void on_gone(void *arg) {
    struct bt_openai_call *c = arg;
    if (c->stream)
        c->sse.call = NULL;
    else
        c->whole.call = NULL;
    retire(c);
}

/* ,"baton":{...}: the record of this request, for clients that ask by X-Baton-Timings. */
static void add_record(struct bt_openai_call *c, struct bt_text_buffer *out) {
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

/* ---- arrival ---- */

static void refuse(struct bt_shell *shell, struct bt_http_call *call, const struct bt_error *err,
                   const struct bt_generate_fault *fault) {
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

static struct bt_openai_call *create_call(struct bt_shell *shell, struct bt_http_call *call,
                                          const struct bt_openai_request *request) {
    struct bt_openai_call *c = calloc(1, sizeof *c);
    const char *timings = bt_http_call_header(call, "X-Baton-Timings");
    bool timed = timings && !strcmp(timings, "1");
    if (!c)
        return NULL;
    c->shell = shell;
    c->answer = (struct bt_openai_answer){
        .skeletons = &shell->skeletons,
        .tok = shell->text.tokenizer,
        .kind = request->kind,
        .include_usage = request->include_usage,
        .continuous_usage = request->continuous_usage,
        .return_token_ids = request->return_token_ids,
        .return_logits_hash = request->return_logits_hash,
        .echo = request->echo,
        .skip_special_tokens = request->generate.skip_special_tokens,
        .logprobs = request->logprobs,
        .prompt_logprobs = request->prompt_logprobs,
        .n_shown = request->n_shown,
        .n_per_prompt = request->generate.n,
        .created_s = (int64_t)time(NULL),
    };
    c->stream = request->stream;
    if (c->stream) {
        bt_sse_init(&c->sse, &shell->sse, call, &c->answer, on_sse);
        c->sse.add_extra = timed ? sse_extra : NULL;
    } else {
        bt_whole_init(&c->whole, call, &c->answer, on_whole);
        c->whole.add_extra = timed ? whole_extra : NULL;
    }
    return c;
}

/* BT_OK: the call is answered later, by its sink. */
static bt_status start(struct bt_shell *shell, struct bt_http_call *call,
                       const struct bt_openai_request *request, struct bt_generate_fault *fault,
                       struct bt_error *err) {
    struct bt_openai_call *c = create_call(shell, call, request);
    if (!c)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for a request");
    struct bt_request_sink *sink = c->stream ? &c->sse.base : &c->whole.base;
    bt_status status =
        bt_completion_start(shell, &request->generate, sink, &c->completion, fault, err);
    if (status < 0) {
        free_call(c);
        return status;
    }
    c->answer.id = bt_completion_id(c->completion);
    link_call(c);
    bt_http_call_drop_body(call);
    bt_http_call_keep(call, on_gone, c);
    return BT_OK;
}

static void serve(struct bt_shell *shell, struct bt_http_call *call, enum bt_openai_kind kind) {
    struct bt_openai_request request;
    struct bt_generate_fault fault;
    struct bt_error err;
    bool join = !shell->text.chat || !bt_chat_template_reads_parts(shell->text.chat);
    shell->n_http_requests++;
    bt_shell_now(shell);
    bt_status status = bt_openai_request_parse(kind, bt_http_call_body(call),
                                               bt_tokenizer_size(shell->text.tokenizer), join,
                                               &request, &fault, &err);
    if (status == BT_OK) {
        request.generate.caller = bt_http_call_caller(call);
        status = start(shell, call, &request, &fault, &err);
        bt_openai_request_fini(&request);
    }
    if (status < 0)
        refuse(shell, call, &err, &fault);
    /* A refused start may have left actions too. */
    bt_shell_drain(shell);
}

void bt_openai_on_chat(void *arg, struct bt_http_call *call) {
    serve(arg, call, BT_OPENAI_CHAT);
}

void bt_openai_on_completion(void *arg, struct bt_http_call *call) {
    serve(arg, call, BT_OPENAI_COMPLETION);
}

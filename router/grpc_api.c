/* Takes calls of the public gRPC door and answers them, or starts their completions. */
#include "router/grpc_api.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/rpc/public_reflection.h"
#include "common/rpc/public_status.h"
#include "router/api_keys.h"
#include "router/completion.h"
#include "router/grpc_request.h"
#include "router/grpc_sink.h"
#include "router/prompt.h"
#include "router/shell.h"

enum method { GENERATE, TOKENIZE, LIST_MODELS, CHECK, WATCH, REFLECT, REFLECT_ALPHA, METHODS };
_Static_assert((int)METHODS == (int)BT_GRPC_METHODS, "each method has its row");

const struct bt_public_method bt_grpc_methods[BT_GRPC_METHODS] = {
    [GENERATE] = {.path = BT_INFERENCE_GENERATE, .joins_responses = true},
    [TOKENIZE] = {.path = BT_INFERENCE_TOKENIZE},
    [LIST_MODELS] = {.path = BT_INFERENCE_LIST_MODELS},
    [CHECK] = {.path = "/grpc.health.v1.Health/Check"},
    [WATCH] = {.path = "/grpc.health.v1.Health/Watch"},
    [REFLECT] = {.path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                 .many_requests = true},
    [REFLECT_ALPHA] = {.path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                       .many_requests = true},
};

/* ---- refusals ---- */

void bt_grpc_api_refuse(struct bt_grpc_api *api, struct bt_public_call *call, bt_status status,
                        const char *why, const struct bt_generate_fault *fault,
                        const struct bt_inference_prompt *prompt) {
    const struct bt_inference_prompt none = {.kind = BT_INFERENCE_TEXT};
    char field[BT_INFERENCE_FIELD_BYTES], reason[64] = "";
    int code = bt_status_grpc(status);
    bool again = code == bt_status_grpc(BT_E_FULL) || code == bt_status_grpc(BT_E_UNAVAILABLE);
    bt_grpc_request_field(fault->param, prompt ? prompt : &none, field);
    /* OpenAI's words for a fault, as ErrorInfo writes them. */
    for (size_t i = 0; fault->code && fault->code[i] && i < sizeof reason - 1; i++)
        reason[i] = (char)toupper((unsigned char)fault->code[i]);
    api->n_refused++;
    bt_public_fail(call,
                   &(struct bt_public_fault){
                       .code = code,
                       .message = why,
                       .reason = reason,
                       .field = field,
                       .retry_ms = again ? bt_router_core_retry_after_ms(api->shell->core) : 0});
}

/* A message whose shape is wrong: the field is named as in the .proto already. */
static void refuse_shape(struct bt_grpc_api *api, struct bt_public_call *call,
                         const struct bt_error *err, const char *field) {
    api->n_refused++;
    bt_public_fail(call, &(struct bt_public_fault){.code = bt_status_grpc(err->status),
                                                   .message = err->text,
                                                   .reason = "",
                                                   .field = field});
}

/* ---- who calls ---- */

/* The one place where keys are looked at. */
static bool may_call(struct bt_grpc_api *api, struct bt_public_call *call) {
    char authorization[BT_API_KEY_BYTES_MAX + 16] = "";
    struct bt_generate_fault fault = {0};
    struct bt_error err;
    const char *value;
    size_t n;
    bool given = bt_public_header(call, "authorization", &value, &n);
    /* What does not fit is no key of ours; its beginning is none either. */
    if (given)
        snprintf(authorization, sizeof authorization, "%.*s",
                 (int)(n < sizeof authorization ? n : sizeof authorization - 1), value);
    const struct bt_api_caller caller = {.authorization = given ? authorization : NULL};
    api->caller = (struct bt_caller){.key = ""};
    if (bt_api_keys_check(api->shell->keys, &caller, BT_API_CLIENT, api->caller.key, &err) == BT_OK)
        return true;
    bt_grpc_api_refuse(api, call, err.status, err.text, &fault, NULL);
    return false;
}

/* The caller's own id where it can be sent back as it is. True: it was set. */
static bool set_client_id(struct bt_grpc_api *api, struct bt_public_call *call) {
    char *id = api->caller.id;
    const char *value;
    size_t n;
    if (!bt_public_header(call, "x-request-id", &value, &n) || !n || n >= sizeof api->caller.id ||
        n >= BT_PUBLIC_ID_BYTES)
        return false;
    for (size_t i = 0; i < n; i++)
        if (value[i] <= 0x20 || value[i] >= 0x7f)
            return false;
    memcpy(id, value, n); /* its end is zeroed already */
    bt_public_set_request_id(call, id);
    return true;
}

/* ---- Generate ---- */

static uint32_t deadline_ms(const struct bt_grpc_api *api, const struct bt_public_call *call) {
    uint32_t ms = bt_public_deadline_ms(call);
    return ms && ms < api->shell->options->deadline_ms ? ms : 0;
}

static void link_call(struct bt_grpc_call *call) {
    struct bt_grpc_api *api = call->api;
    call->next = api->calls;
    if (call->next)
        call->next->previous = call;
    api->calls = call;
    api->n_calls++;
}

void bt_grpc_api_end_call(struct bt_grpc_call *call) {
    struct bt_grpc_api *api = call->api;
    *(call->previous ? &call->previous->next : &api->calls) = call->next;
    if (call->next)
        call->next->previous = call->previous;
    api->n_calls--;
    bt_grpc_call_destroy(call);
}

/* BT_OK: the call is answered by its sink. */
static bt_status start(struct bt_grpc_api *api, struct bt_public_call *public,
                       const struct bt_generate_request *request, bool has_id,
                       const struct bt_generate_check *check) {
    /* Before anything is sized by it. */
    BT_TRY(
        bt_generate_request_check(request, bt_tokenizer_size(api->shell->text.tokenizer), check));
    struct bt_grpc_call *call = bt_grpc_call_create(api, public, request);
    if (!call)
        return bt_fail(check->err, BT_E_NO_MEMORY, "out of memory for a request");
    bt_status status = bt_completion_start(api->shell, request, &call->base, &call->completion,
                                           check->fault, check->err);
    if (status < 0) {
        bt_grpc_call_destroy(call);
        return status;
    }
    char id[BT_PUBLIC_ID_BYTES];
    call->id = bt_completion_id(call->completion);
    snprintf(id, sizeof id, "%016" PRIx64, call->id);
    if (!has_id)
        bt_public_set_request_id(public, id);
    bt_public_set_user(public, call);
    link_call(call);
    return BT_OK;
}

static void generate(struct bt_grpc_api *api, const struct bt_public_event *event) {
    struct bt_inference_generate message;
    struct bt_grpc_request request;
    struct bt_generate_fault fault = {0};
    struct bt_error err;
    const struct bt_generate_check check = {&fault, &err};
    char field[BT_INFERENCE_FIELD_BYTES];
    bool has_id = set_client_id(api, event->call);
    if (bt_inference_read_generate(event->bytes, event->n_bytes, &api->arena, &message, field,
                                   &err) < 0) {
        refuse_shape(api, event->call, &err, field);
        return;
    }
    bt_status status = bt_grpc_request_fill(&message, &request, &check);
    if (status == BT_OK) {
        request.generate.deadline_ms = deadline_ms(api, event->call);
        request.generate.caller = api->caller;
        status = start(api, event->call, &request.generate, has_id, &check);
        bt_grpc_request_fini(&request);
    }
    if (status < 0)
        bt_grpc_api_refuse(api, event->call, status, err.text, &fault, &message.prompt);
}

/* ---- Tokenize and ListModels ---- */

static uint32_t max_context(const struct bt_shell *shell) {
    uint32_t context = bt_router_core_context(shell->core);
    return context ? context : shell->text.context_tokens;
}

static void answer(struct bt_grpc_api *api, struct bt_public_call *call, bool packed) {
    struct bt_generate_fault fault = {0};
    if (packed && bt_public_send(call, api->buffer.bytes, api->buffer.n_bytes))
        bt_public_finish(call, &(struct bt_public_end){.message = ""});
    else
        bt_grpc_api_refuse(api, call, BT_E_NO_MEMORY, "no memory for an answer", &fault, NULL);
}

static bt_status make_ids(struct bt_grpc_api *api, const struct bt_inference_tokenize *message,
                          struct bt_prompt *prompt, const struct bt_generate_check *check) {
    struct bt_shell *shell = api->shell;
    struct bt_grpc_request request;
    *prompt = (struct bt_prompt){0};
    BT_TRY(bt_grpc_request_fill_prompt(&message->prompt, message->model, &request, check));
    bt_status status = BT_OK;
    if (request.generate.model && strcmp(request.generate.model, shell->model) != 0) {
        check->fault->code = "model_not_found";
        status = bt_generate_refuse(check, BT_E_NOT_FOUND, "model",
                                    "the model \"%.100s\" is not served here, \"%.80s\" is",
                                    request.generate.model, shell->model);
    } else if (message->prompt.kind == BT_INFERENCE_CHAT || message->prompt.text.n_bytes) {
        /* An empty text has no tokens; that is an answer here, not an error. */
        status = bt_prompt_make(&shell->text, shell->scratch, &request.generate, 0,
                                (int64_t)time(NULL), prompt, check);
    }
    bt_grpc_request_fini(&request);
    return status;
}

static void tokenize(struct bt_grpc_api *api, const struct bt_public_event *event) {
    struct bt_inference_tokenize message;
    struct bt_generate_fault fault = {0};
    struct bt_error err;
    const struct bt_generate_check check = {&fault, &err};
    struct bt_prompt prompt;
    char field[BT_INFERENCE_FIELD_BYTES];
    set_client_id(api, event->call);
    if (bt_inference_read_tokenize(event->bytes, event->n_bytes, &api->arena, &message, field,
                                   &err) < 0) {
        refuse_shape(api, event->call, &err, field);
        return;
    }
    bt_status status = make_ids(api, &message, &prompt, &check);
    if (status == BT_OK)
        answer(
            api, event->call,
            bt_inference_pack_ids(&api->buffer, prompt.ids, prompt.n_ids, max_context(api->shell)));
    else
        bt_grpc_api_refuse(api, event->call, status, err.text, &fault, &message.prompt);
    bt_prompt_fini(&prompt);
}

static void list_models(struct bt_grpc_api *api, const struct bt_public_event *event) {
    const struct bt_shell *shell = api->shell;
    set_client_id(api, event->call);
    answer(
        api, event->call,
        bt_inference_pack_model(&api->buffer, shell->model, max_context(shell), shell->started_s));
}

/* ---- events ---- */

static void on_started(struct bt_grpc_api *api, const struct bt_public_event *event) {
    static void (*const handlers[METHODS])(struct bt_grpc_api *, const struct bt_public_event *) = {
        [GENERATE] = generate, [TOKENIZE] = tokenize, [LIST_MODELS] = list_models};
    switch ((enum method)event->method) {
    case CHECK:
        bt_public_health_check(&api->health, event->call, event->bytes, event->n_bytes);
        return;
    case WATCH:
        bt_public_health_watch(&api->health, event->call, event->bytes, event->n_bytes);
        return;
    case REFLECT:
    case REFLECT_ALPHA:
        bt_public_reflect(event->call, event->bytes, event->n_bytes);
        if (!bt_public_is_full(event->call)) /* else when there is room */
            bt_public_receive(event->call);
        return;
    default:
        api->n_requests++;
        if (may_call(api, event->call))
            handlers[event->method](api, event);
        bt_wire_arena_reset(&api->arena);
    }
}

static void on_room(const struct bt_public_event *event) {
    struct bt_grpc_call *call = bt_public_user(event->call);
    if (event->method == GENERATE && call && call->completion)
        bt_completion_resume(call->completion);
    else if (bt_grpc_methods[event->method].many_requests)
        bt_public_receive(event->call);
}

static void on_closed(struct bt_grpc_api *api, const struct bt_public_event *event) {
    struct bt_grpc_call *call = bt_public_user(event->call);
    if (event->method == WATCH)
        bt_public_health_closed(&api->health, event->call);
    if (event->method != GENERATE || !call)
        return;
    if (call->completion) /* the client has left, or did not read, or its deadline has passed */
        bt_completion_cancel(call->completion);
    bt_grpc_api_end_call(call);
}

static void on_event(struct bt_grpc_api *api, const struct bt_public_event *event) {
    switch (event->type) {
    case BT_PUBLIC_STARTED:
    case BT_PUBLIC_MESSAGE:
        on_started(api, event);
        break;
    case BT_PUBLIC_HALF_CLOSED:
        bt_public_finish(event->call, &(struct bt_public_end){.message = ""});
        break;
    case BT_PUBLIC_ROOM:
        on_room(event);
        break;
    case BT_PUBLIC_CLOSED:
        on_closed(api, event);
        break;
    }
}

void bt_grpc_api_turn(struct bt_grpc_api *api) {
    struct bt_public_event event;
    while (bt_public_next(api->server, &event)) {
        bt_shell_now(api->shell);
        on_event(api, &event);
        bt_shell_drain(api->shell); /* at the end of the turn comes the flush */
    }
}

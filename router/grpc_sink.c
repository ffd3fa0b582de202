/* Packs tokens, scores and the end of one Generate call. */
#include "router/grpc_sink.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "router/debug_pages.h"
#include "router/grpc_api.h"
#include "router/shell.h"

static struct bt_grpc_call *of(struct bt_request_sink *sink) {
    return (struct bt_grpc_call *)(void *)sink;
}

static struct bt_inference_text text_of(struct bt_slice slice) {
    return (struct bt_inference_text){slice.data, slice.n_bytes};
}

/* CLOSED comes back, and then the completion is cancelled. */
static void fail(struct bt_grpc_call *call, bt_status status, const char *reason) {
    struct bt_generate_fault fault = {0};
    bt_grpc_api_refuse(call->api, call->public, status, reason, &fault, NULL);
}

static void send_buffer(struct bt_grpc_call *call, bool packed) {
    const struct bt_inference_buffer *buffer = &call->api->buffer;
    if (packed)
        bt_public_send(call->public, buffer->bytes, buffer->n_bytes);
    else
        fail(call, BT_E_NO_MEMORY, "no memory for what is to be sent");
}

static void fill_logprobs(const struct bt_grpc_call *call, const struct bt_logprobs *values,
                          struct bt_inference_logprobs *out) {
    const struct bt_tokenizer *tokenizer = call->api->shell->text.tokenizer;
    out->values = values;
    for (size_t i = 0; values && i < values->n_top; i++)
        out->top_bytes[i] = text_of(bt_tokenizer_bytes(tokenizer, values->top[i].token));
}

/* ---- the sink ---- */

static void begin(struct bt_request_sink *sink, const struct bt_sink_begin *begin_) {
    (void)sink, (void)begin_; /* nothing is sent before admission */
}

static bool is_full(const struct bt_request_sink *sink) {
    return bt_public_is_full(((const struct bt_grpc_call *)(const void *)sink)->public);
}

static void scores(struct bt_request_sink *sink, const struct bt_scores *given) {
    struct bt_grpc_call *call = of(sink);
    struct bt_inference_logprobs logprobs;
    for (uint32_t i = 0; i < given->n; i++) {
        fill_logprobs(call, &given->logprobs[i], &logprobs);
        send_buffer(call, bt_inference_pack_score(&call->api->buffer, given->first + i, &logprobs));
    }
}

static void piece(struct bt_request_sink *sink, const struct bt_piece *given) {
    struct bt_grpc_call *call = of(sink);
    struct bt_grpc_choice *choice = &call->choices[given->choice];
    struct bt_inference_token token = {
        .choice = given->choice,
        .index = given->index,
        .id = given->token,
        .text = text_of(given->text),
        .finish = given->finish,
        .hash = given->hash,
    };
    fill_logprobs(call, given->logprobs, &token.logprobs);
    if (given->finish != BT_FINISH_NONE) {
        choice->finish = given->finish;
        choice->last_token = given->token;
        choice->stop = given->stop_string;
    }
    send_buffer(call, bt_inference_pack_token(&call->api->buffer, &token));
}

/* ---- the end ---- */

static void fill_choice(const struct bt_grpc_call *call, uint32_t i, uint32_t n_generated,
                        struct bt_inference_choice *out) {
    const struct bt_grpc_choice *choice = &call->choices[i];
    *out = (struct bt_inference_choice){
        .finish = choice->finish, .stop_token = -1, .n_generated = n_generated};
    if (choice->finish != BT_FINISH_STOP)
        return;
    if (choice->stop >= 0) {
        out->stop =
            (struct bt_inference_text){call->stops[choice->stop], call->stop_bytes[choice->stop]};
        return;
    }
    for (uint8_t t = 0; t < call->n_stop_tokens; t++)
        if (call->stop_tokens[t] == choice->last_token)
            out->stop_token = choice->last_token;
}

static void fill_record(const struct bt_request_record *record, struct bt_inference_end *out) {
    const uint64_t *span_us = record->span_us;
    bool slow = record->verdict.phase != BT_SLOW_NOT;
    out->total_us = record->total_us;
    out->ttft_us = record->ttft_us;
    out->itl_mean_us = record->itl_mean_us;
    out->itl_max_us = record->itl_max_us;
    out->queue_us = span_us[BT_SPAN_QUEUE];
    out->placement_us = span_us[BT_SPAN_PLACEMENT];
    out->prefill_wait_us = span_us[BT_SPAN_WAIT];
    out->prefill_us = span_us[BT_SPAN_PREFILL];
    out->transfer_us = span_us[BT_SPAN_TRANSFER];
    out->join_us = span_us[BT_SPAN_JOIN];
    out->decode_us = span_us[BT_SPAN_DECODE];
    out->moved_us = span_us[BT_SPAN_MOVED];
    out->network_us = span_us[BT_SPAN_NETWORK];
    out->complete = record->unknown == 0;
    out->kv_bytes = record->kv_bytes;
    out->verdict_phase = slow ? bt_slow_phase_name(record->verdict.phase) : "ok";
    out->verdict_stage = slow ? bt_slow_stage_name(record->verdict.stage) : "";
    out->verdict_advice = slow && record->verdict.advice ? record->verdict.advice : "";
    out->placement = bt_placement_name(record->placement);
    out->prefill_worker = record->p_name;
    out->decode_worker = record->d_name;
    out->resumed = record->moves;
}

static void end_well(struct bt_grpc_call *call, const struct bt_sink_end *given) {
    struct bt_inference_choice choices[BT_CHOICES];
    struct bt_request_record record;
    char id[BT_PUBLIC_ID_BYTES];
    struct bt_inference_end out = {
        .request_id = id,
        .choices = choices,
        .n_choices = given->n_choices,
        .prompt_tokens = given->n_prompt,
        .cached_tokens = given->n_cached,
        .completion_tokens = given->n_generated,
    };
    BT_ASSERT(given->n_choices == call->n_choices);
    for (uint32_t i = 0; i < given->n_choices; i++)
        fill_choice(call, i, given->choices[i].n_generated, &choices[i]);
    snprintf(id, sizeof id, "%016" PRIx64, call->id);
    if (!bt_debug_find(call->api->shell, call->id, &record))
        record = (struct bt_request_record){.unknown = 1}; /* it was pushed out of the records */
    fill_record(&record, &out);
    send_buffer(call, bt_inference_pack_end(&call->api->buffer, &out));
    bt_public_finish(call->public, &(struct bt_public_end){.message = ""});
}

static void end(struct bt_request_sink *sink, const struct bt_sink_end *given) {
    struct bt_grpc_call *call = of(sink);
    if (given->status == BT_OK)
        end_well(call, given);
    else
        fail(call, given->status, *given->reason ? given->reason : bt_status_name(given->status));
}

static const struct bt_request_sink_ops ops = {
    .begin = begin, .is_full = is_full, .scores = scores, .piece = piece, .end = end};

struct bt_grpc_call *bt_grpc_call_create(struct bt_grpc_api *api, struct bt_public_call *public,
                                         const struct bt_generate_request *request) {
    uint32_t n_choices = bt_generate_request_choices(request);
    struct bt_grpc_call *call = calloc(1, sizeof *call + n_choices * sizeof call->choices[0]);
    if (!call)
        return NULL;
    call->base.ops = &ops;
    call->api = api;
    call->public = public;
    call->n_choices = n_choices;
    call->n_stop_tokens = request->sampling.n_stop_tokens;
    memcpy(call->stop_tokens, request->sampling.stop_tokens, sizeof call->stop_tokens);
    call->n_stops = request->n_stops;
    for (size_t i = 0; i < request->n_stops; i++) {
        call->stop_bytes[i] = (uint16_t)request->stops[i].n_bytes;
        memcpy(call->stops[i], request->stops[i].data, request->stops[i].n_bytes);
    }
    for (uint32_t i = 0; i < n_choices; i++)
        call->choices[i].stop = -1;
    return call;
}

void bt_grpc_call_destroy(struct bt_grpc_call *call) {
    free(call);
}

/* Packs the answers of the public service. */
#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/rpc/inference_wire.h"
#include "proto/inference.pb-c.h"

/* A message of protobuf-c that lives on the stack, with its members. */
struct logprobs_message {
    Baton__V1__TokenLogprobs base;
    Baton__V1__TopLogprob top[BT_TOP_LOGPROBS];
    Baton__V1__TopLogprob *pointers[BT_TOP_LOGPROBS];
};

void bt_inference_buffer_fini(struct bt_inference_buffer *buffer) {
    free(buffer->bytes);
    *buffer = (struct bt_inference_buffer){0};
}

static bool pack(struct bt_inference_buffer *buffer, const ProtobufCMessage *message) {
    size_t n = protobuf_c_message_get_packed_size(message);
    if (n > buffer->capacity) {
        uint8_t *bytes = realloc(buffer->bytes, 2 * n);
        if (!bytes)
            return false;
        buffer->bytes = bytes;
        buffer->capacity = 2 * n;
    }
    buffer->n_bytes = n ? protobuf_c_message_pack(message, buffer->bytes) : 0;
    return true;
}

static ProtobufCBinaryData bytes_of(struct bt_inference_text text) {
    return (ProtobufCBinaryData){text.n_bytes, (uint8_t *)(uintptr_t)text.data};
}

static ProtobufCBinaryData string_of(const char *text) {
    return (ProtobufCBinaryData){strlen(text), (uint8_t *)(uintptr_t)text};
}

static Baton__V1__FinishReason reason_of(enum bt_finish finish) {
    switch (finish) {
    case BT_FINISH_STOP:
        return BATON__V1__FINISH_REASON__FINISH_REASON_STOP;
    case BT_FINISH_LENGTH:
        return BATON__V1__FINISH_REASON__FINISH_REASON_LENGTH;
    default: /* it goes on, or the call's status says what is wrong */
        return BATON__V1__FINISH_REASON__FINISH_REASON_UNSPECIFIED;
    }
}

static Baton__V1__TokenLogprobs *fill_logprobs(struct logprobs_message *out,
                                               const struct bt_inference_logprobs *from) {
    if (!from->values)
        return NULL;
    baton__v1__token_logprobs__init(&out->base);
    out->base.logprob = from->values->logprob;
    out->base.n_top = from->values->n_top;
    out->base.top = out->pointers;
    for (size_t i = 0; i < from->values->n_top; i++) {
        baton__v1__top_logprob__init(&out->top[i]);
        out->top[i].id = (uint32_t)from->values->top[i].token;
        out->top[i].logprob = from->values->top[i].logprob;
        out->top[i].token = bytes_of(from->top_bytes[i]);
        out->pointers[i] = &out->top[i];
    }
    return &out->base;
}

bool bt_inference_pack_token(struct bt_inference_buffer *buffer,
                             const struct bt_inference_token *given) {
    struct logprobs_message logprobs;
    Baton__V1__GenerateResponse response = BATON__V1__GENERATE_RESPONSE__INIT;
    Baton__V1__Token token = BATON__V1__TOKEN__INIT, *tokens[1] = {&token};
    token.choice = given->choice;
    token.index = given->index;
    token.id = (uint32_t)given->id;
    token.text = bytes_of(given->text);
    token.finish_reason = reason_of(given->finish);
    token.logits_hash = given->hash;
    token.logprobs = fill_logprobs(&logprobs, &given->logprobs);
    response.n_tokens = 1;
    response.tokens = tokens;
    return pack(buffer, &response.base);
}

bool bt_inference_pack_score(struct bt_inference_buffer *buffer, uint32_t position,
                             const struct bt_inference_logprobs *given) {
    struct logprobs_message logprobs;
    Baton__V1__GenerateResponse response = BATON__V1__GENERATE_RESPONSE__INIT;
    Baton__V1__PromptScore score = BATON__V1__PROMPT_SCORE__INIT, *scores[1] = {&score};
    score.position = position;
    score.logprobs = fill_logprobs(&logprobs, given);
    response.n_prompt_scores = 1;
    response.prompt_scores = scores;
    return pack(buffer, &response.base);
}

static void fill_choice(Baton__V1__Choice *out, uint32_t i,
                        const struct bt_inference_choice *from) {
    baton__v1__choice__init(out);
    out->choice = i;
    out->finish_reason = reason_of(from->finish);
    out->completion_tokens = from->n_generated;
    if (from->stop.data) {
        out->matched_stop_case = BATON__V1__CHOICE__MATCHED_STOP_STOP;
        out->stop = bytes_of(from->stop);
    } else if (from->stop_token >= 0) {
        out->matched_stop_case = BATON__V1__CHOICE__MATCHED_STOP_STOP_TOKEN_ID;
        out->stop_token_id = (uint32_t)from->stop_token;
    }
}

static void fill_stages(Baton__V1__StageTimes *out, const struct bt_inference_end *from) {
    baton__v1__stage_times__init(out);
    out->total_us = from->total_us;
    out->ttft_us = from->ttft_us;
    out->itl_mean_us = from->itl_mean_us;
    out->itl_max_us = from->itl_max_us;
    out->queue_us = from->queue_us;
    out->placement_us = from->placement_us;
    out->prefill_wait_us = from->prefill_wait_us;
    out->prefill_us = from->prefill_us;
    out->transfer_us = from->transfer_us;
    out->join_us = from->join_us;
    out->decode_us = from->decode_us;
    out->moved_us = from->moved_us;
    out->network_us = from->network_us;
    out->complete = from->complete;
    out->kv_bytes = from->kv_bytes;
}

bool bt_inference_pack_end(struct bt_inference_buffer *buffer,
                           const struct bt_inference_end *from) {
    Baton__V1__GenerateResponse response = BATON__V1__GENERATE_RESPONSE__INIT;
    Baton__V1__GenerateEnd end = BATON__V1__GENERATE_END__INIT;
    Baton__V1__Usage usage = BATON__V1__USAGE__INIT;
    Baton__V1__Verdict verdict = BATON__V1__VERDICT__INIT;
    Baton__V1__StageTimes stages;
    Baton__V1__Choice choices[BT_CHOICES], *pointers[BT_CHOICES];
    BT_ASSERT(from->n_choices <= BT_CHOICES);
    for (uint32_t i = 0; i < from->n_choices; i++) {
        fill_choice(&choices[i], i, &from->choices[i]);
        pointers[i] = &choices[i];
    }
    fill_stages(&stages, from);
    usage.prompt_tokens = (uint32_t)from->prompt_tokens;
    usage.cached_tokens = (uint32_t)from->cached_tokens;
    usage.completion_tokens = (uint32_t)from->completion_tokens;
    verdict.phase = string_of(from->verdict_phase);
    verdict.stage = string_of(from->verdict_stage);
    verdict.advice = string_of(from->verdict_advice);
    end.request_id = string_of(from->request_id);
    end.n_choices = from->n_choices;
    end.choices = pointers;
    end.usage = &usage;
    end.stages = &stages;
    end.verdict = &verdict;
    end.placement = string_of(from->placement);
    end.prefill_worker = string_of(from->prefill_worker);
    end.decode_worker = string_of(from->decode_worker);
    end.resumed = from->resumed;
    /* docs/numerics.md: every worker computes the same bits, so a move never shows in the tokens.
     */
    end.exactness = BATON__V1__EXACTNESS__EXACTNESS_SAME_BITS;
    response.end = &end;
    return pack(buffer, &response.base);
}

bool bt_inference_pack_ids(struct bt_inference_buffer *buffer, const int32_t *ids, uint32_t n_ids,
                           uint32_t max_context) {
    Baton__V1__TokenizeResponse response = BATON__V1__TOKENIZE_RESPONSE__INIT;
    response.n_ids = n_ids;
    response.ids = (uint32_t *)(uintptr_t)ids;
    response.max_context = max_context;
    return pack(buffer, &response.base);
}

bool bt_inference_pack_model(struct bt_inference_buffer *buffer, const char *id,
                             uint32_t max_context, int64_t created_s) {
    Baton__V1__ListModelsResponse response = BATON__V1__LIST_MODELS_RESPONSE__INIT;
    Baton__V1__Model model = BATON__V1__MODEL__INIT, *models[1] = {&model};
    model.id = string_of(id);
    model.max_context = max_context;
    model.created = created_s;
    response.n_models = 1;
    response.models = models;
    return pack(buffer, &response.base);
}

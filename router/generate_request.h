/* What a client wants generated, whichever door it came through: prompts, sampling, stop strings,
 * number of choices.
 *
 * Everything in it is borrowed from what filled it in (the OpenAI parser, the gRPC door) and needed
 * until bt_completion_start returns. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <jansson.h>

#include "common/base/limits.h"
#include "common/base/sampling.h"
#include "common/base/status.h"
#include "common/text/slice.h"
#include "router/caller.h"

/* Which field is at fault, beside the sentence. */
struct bt_generate_fault {
    char param[64];   /* its name; empty: none */
    const char *code; /* OpenAI's word for it, static storage; NULL: none */
};

/* Where a check failed; walks through all that reads a request. */
struct bt_generate_check {
    struct bt_generate_fault *fault;
    struct bt_error *err; /* may be NULL */
};

/* Records the field and the sentence; returns status. */
bt_status bt_generate_refuse(const struct bt_generate_check *check, bt_status status,
                             const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* One prompt of a request that is no conversation. */
struct bt_generate_prompt {
    bool is_text;
    struct bt_slice text; /* where it is text */
    const int32_t *ids;   /* where it is token ids */
    uint32_t n_ids;
};

struct bt_generate_request {
    const char *model; /* NULL: whichever is served */

    /* Either a conversation: an array of checked messages, variables of the template beside
     * (NULL: none) ... */
    const json_t *messages;
    const json_t *vars;
    bool add_generation_prompt;
    /* ... or prompts. */
    const struct bt_generate_prompt *prompts;
    uint32_t n_prompts;
    bool add_special_tokens; /* BOS before a prompt that is text */

    uint32_t n;        /* choices per prompt, >= 1; seeds are seed, seed + 1, ... */
    bool prompt_only;  /* nothing is generated: each choice ends with one piece without a token */
    bool keep_prompts; /* the sink reads the prompts' ids until the end */
    size_t n_stops;
    struct bt_slice stops[BT_STOP_STRINGS];
    bool include_stop;        /* in the text */
    bool skip_special_tokens; /* in the text */
    struct bt_sampling sampling;
    bool max_tokens_given, seed_given;
    uint32_t deadline_ms;       /* 0: the configured one */
    char tenant[BT_NAME_BYTES]; /* whose prefix cache is shared; "" for all */
    struct bt_caller caller;
};

/* What most clients mean who say nothing: one choice, temperature 1, an answer as long as the
 * context allows. */
void bt_generate_request_init(struct bt_generate_request *request);

/* Ranges of all numbers, ids below vocab_tokens, at least one prompt. BT_E_INVALID names the field
 * as OpenAI does. */
bt_status bt_generate_request_check(const struct bt_generate_request *request,
                                    uint32_t vocab_tokens, const struct bt_generate_check *check);
/* Choices of all prompts together. */
uint32_t bt_generate_request_choices(const struct bt_generate_request *request);

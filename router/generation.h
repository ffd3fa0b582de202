/* Turns the token ids of one choice into pieces of text: detokenizes, looks for stop strings, and
 * holds tokens back while the sink is full.
 *
 * Embedded in the completion's choice; lives on the loop thread. Says when a stop string has
 * matched; telling the core, and the sink when all is over, is the completion's part. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/text/detokenizer.h"
#include "common/text/stop_filter.h"
#include "router/request_sink.h"

/* A token as the core gives it. */
struct bt_emitted {
    int32_t token;
    enum bt_finish finish;
    uint64_t hash;
    const struct bt_logprobs *logprobs; /* NULL: none; borrowed for the call */
};

struct bt_held_token;

struct bt_generation {
    struct bt_request_sink *sink; /* NULL: the client is gone, what comes is dropped */
    uint32_t choice;
    struct bt_detokenizer detokenizer;
    struct bt_stop_filter *stops; /* NULL: no stop strings */
    struct bt_held_token *held;   /* tokens that wait for the sink; NULL: never was full */
    uint32_t n_held, held_first, held_capacity;
    uint32_t n_generated; /* pieces given to the sink, but for prompt_only's */
    uint64_t n_chars;     /* code points of their text, before stop strings are cut off */
    bool waits;           /* for the scores of its prompt: holds tokens as if the sink were full */
    bool prompt_only;     /* its one token is not shown */
    bool stopped;         /* a stop string has matched: later tokens are dropped */
};

/* stops may be NULL; owned from here on. */
void bt_generation_init(struct bt_generation *gen, const struct bt_tokenizer *tok,
                        bool skip_special_tokens, struct bt_stop_filter *stops,
                        struct bt_request_sink *sink, uint32_t choice);
void bt_generation_fini(struct bt_generation *gen);

/* The core's EMIT. True: a stop string is complete, the core must be told. */
bool bt_generation_emit(struct bt_generation *gen, const struct bt_emitted *emitted);
/* The sink has room again: gives it what was held back. True as for emit. */
bool bt_generation_resume(struct bt_generation *gen);

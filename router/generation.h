/* Turns a request's token ids into pieces of text: detokenizes, looks for stop strings, and holds
 * tokens back while the sink is full.
 *
 * Embedded in the shell's object for one client request; lives on the loop thread. Says when a stop
 * string has matched; telling the core is the shell's part. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/text/detokenizer.h"
#include "common/text/stop_filter.h"
#include "router/request.h"
#include "router/request_sink.h"

struct bt_held_token {
    int32_t token;
    enum bt_finish finish;
    uint64_t hash;
};

struct bt_generation {
    struct bt_request *req; /* NULL before submit and after END */
    struct bt_request_sink *sink;
    struct bt_detokenizer detokenizer;
    struct bt_stop_filter *stops; /* NULL: no stop strings */
    struct bt_held_token *held;   /* tokens that wait for the sink; NULL: never was full */
    uint32_t n_held, held_first, held_capacity;
    uint32_t n_generated; /* pieces given to the sink */
    uint64_t arrived_us, last_us;
    bool stopped;  /* a stop string has matched: later tokens are dropped */
    bool ended;    /* END has come */
    bool finished; /* and the sink knows */
    bt_status end_status;
    char *end_reason; /* owned; NULL: none */
};

/* stops may be NULL; owned from here on. */
void bt_generation_init(struct bt_generation *gen, const struct bt_tokenizer *tok,
                        bool skip_special_tokens, struct bt_stop_filter *stops,
                        struct bt_request_sink *sink, uint64_t now_us);
void bt_generation_fini(struct bt_generation *gen);

/* The core's EMIT. True: a stop string is complete, the core must be told. */
bool bt_generation_emit(struct bt_generation *gen, int32_t token, enum bt_finish finish,
                        uint64_t hash);
/* The core's END. */
void bt_generation_end(struct bt_generation *gen, bt_status status, const char *reason);
/* The sink has room again: gives it what was held back. True as for emit. */
bool bt_generation_resume(struct bt_generation *gen);

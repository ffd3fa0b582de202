/* How the tokens of one request are chosen; walks from the API through both workers unchanged. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/limits.h"

struct bt_logit_bias {
    int32_t token;
    float bias; /* -100..100, added to the token's logit before everything else */
};

/* A logprob is this to 0: what is below it is shown as it, so that there is no infinity. */
#define BT_LOGPROB_MIN (-9999.0f)

/* Natural logarithms of softmax over the raw f32 logits (before bias, penalties, temperature) of
 * one position; what is likeliest first, ties by id. */
struct bt_logprobs {
    float logprob; /* of the token that stands there */
    uint8_t n_top; /* as many as were asked for, fewer in a smaller vocabulary */
    struct bt_logprob {
        int32_t token;
        float logprob;
    } top[BT_TOP_LOGPROBS];
};

/* docs/numerics.md "Sampling". Ranges are checked where the request is parsed and again where it
 * arrives on a worker. */
struct bt_sampling {
    float temperature;        /* 0..2; 0 = greedy */
    float top_p;              /* (0, 1]; 1 = off */
    float min_p;              /* [0, 1]; 0 = off */
    int32_t top_k;            /* 0 = off */
    float frequency_penalty;  /* -2..2, over generated tokens */
    float presence_penalty;   /* -2..2, over generated tokens */
    float repetition_penalty; /* (0, 10], over prompt and generated tokens; 1 = off */
    uint64_t seed; /* drawn by the router where the client gave none: the same for all attempts */
    uint32_t max_tokens; /* generated tokens allowed, >= 1 */
    uint32_t min_tokens; /* EOS and stop tokens are masked before this many */
    bool ignore_eos;
    bool want_hash; /* a logits hash with each token */
    /* 0: none; 1 + k: of the token and of the k likeliest, k at most BT_TOP_LOGPROBS. */
    uint8_t logprobs;                 /* of each generated token */
    uint8_t prompt_logprobs;          /* of each prompt token after the first */
    uint16_t n_bias;                  /* at most BT_LOGIT_BIASES, each token once, ids rising */
    const struct bt_logit_bias *bias; /* borrowed from what holds the request; NULL: none */
    uint8_t n_stop_tokens;
    int32_t stop_tokens[BT_STOP_TOKENS];
};

/* Why a choice ended. */
enum bt_finish {
    BT_FINISH_NONE,   /* it goes on */
    BT_FINISH_STOP,   /* EOS or a stop token (workers), a stop string (router) */
    BT_FINISH_LENGTH, /* max_tokens or the context's end */
    BT_FINISH_ERROR,  /* non-finite logits */
};

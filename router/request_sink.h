/* Where a request's tokens go: the one table between the generation and what carries it to the
 * client (server-sent events, one JSON object, gRPC messages).
 *
 * A request has n choices of each of its prompts; they are numbered prompt * n + k, and their
 * pieces come interleaved. All on the loop thread. A sink is embedded in what implements it. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/sampling.h"
#include "common/base/status.h"
#include "common/text/slice.h"

struct bt_prompt;

struct bt_sink_begin {
    /* prompt.h; valid until end returns. Its ids are so only where the request says keep_prompts,
     * else for the call. */
    const struct bt_prompt *prompts;
    uint32_t n_prompts, n_choices;
};

/* Logprobs of prompt tokens, all but the first one of the prompt, which has none. */
struct bt_scores {
    uint32_t prompt;
    uint32_t first, n; /* positions in that prompt, first >= 1 */
    const struct bt_logprobs *logprobs;
};

/* One token as the client gets it. */
struct bt_piece {
    uint32_t choice;
    uint32_t index;                     /* among the choice's tokens */
    int32_t token;                      /* -1: none, the choice only ends here */
    uint64_t hash;                      /* logits hash or 0 */
    struct bt_slice text;               /* what is certain and may be shown; often empty */
    uint64_t offset;                    /* code points of the choice's text before this token's */
    const struct bt_logprobs *logprobs; /* NULL unless asked for */
    enum bt_finish finish;              /* not NONE on the choice's last */
    int8_t stop_string;                 /* on the last: which of the request's matched; -1: none */
};

struct bt_choice_end {
    uint64_t id;          /* of its request in the core */
    uint32_t n_generated; /* pieces with a token */
};

struct bt_sink_end {
    bt_status status;
    const char *reason;                  /* a sentence, "" for BT_OK */
    const struct bt_choice_end *choices; /* [n_choices] */
    uint32_t n_choices;
    uint64_t n_prompt;    /* tokens of all prompts */
    uint64_t n_generated; /* of all choices */
    uint64_t n_cached;    /* prompt tokens that a worker's cache held already */
};

struct bt_request_sink;

struct bt_request_sink_ops {
    /* Once, before everything else, inside bt_completion_start; if that fails, nothing follows. */
    void (*begin)(struct bt_request_sink *sink, const struct bt_sink_begin *begin);
    /* The client does not read: give no more pieces until it asks for them. */
    bool (*is_full)(const struct bt_request_sink *sink);
    /* Of each prompt in order, each position once, before the first piece of its choices. Borrowed
     * for the call. */
    void (*scores)(struct bt_request_sink *sink, const struct bt_scores *scores);
    /* Of each choice in order, each index once. Borrowed for the call. */
    void (*piece)(struct bt_request_sink *sink, const struct bt_piece *piece);
    /* Once, after the last piece of the last choice, or when one choice has failed. */
    void (*end)(struct bt_request_sink *sink, const struct bt_sink_end *end);
};

struct bt_request_sink {
    const struct bt_request_sink_ops *ops;
};

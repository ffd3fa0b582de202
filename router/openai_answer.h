/* Writes what OpenAI clients read: chunks of a stream, whole answers, error objects.
 *
 * The part of a chunk that is the same for all tokens is made once per process, and a token's chunk
 * is copied together from it without printf. Pure but for the buffers. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/sampling.h"
#include "common/text/detokenizer.h"
#include "common/text/slice.h"
#include "router/openai_logprobs.h"
#include "router/openai_request.h"
#include "router/prompt.h"
#include "router/request_sink.h"
#include "router/text_buffer.h"

/* The beginning of every chunk of one kind, with room for the id and the time. */
struct bt_openai_skeleton {
    struct bt_text_buffer prefix;
    size_t id_at, created_at;
};

struct bt_openai_skeletons {
    struct bt_openai_skeleton chat, completion;
    char *model_json; /* with quotes */
};

bt_status bt_openai_skeletons_init(struct bt_openai_skeletons *skeletons, const char *model,
                                   struct bt_error *err);
void bt_openai_skeletons_fini(struct bt_openai_skeletons *skeletons);

/* What is shown of one prompt. */
struct bt_openai_echo {
    const int32_t *ids; /* borrowed; not valid unless something of the prompt is shown */
    uint32_t n_ids;
    struct bt_text_buffer text;   /* where it is echoed */
    struct bt_openai_lists lists; /* where it is echoed with logprobs */
    struct bt_text_buffer scores; /* prompt_logprobs: elements with commas between */
    uint64_t n_chars;             /* code points of text */
    /* How far the lists have come. */
    struct bt_detokenizer detokenizer;
    uint64_t n_scored_chars;
};

/* All that the chunks of one answer share. Filled in by the handler but for the last part. */
struct bt_openai_answer {
    const struct bt_openai_skeletons *skeletons;
    const struct bt_tokenizer *tok;
    enum bt_openai_kind kind;
    bool include_usage, continuous_usage, return_token_ids, return_logits_hash;
    bool echo, skip_special_tokens;
    uint8_t logprobs, prompt_logprobs; /* 0: not shown; 1 + k: with the k likeliest */
    uint32_t n_shown, n_per_prompt;    /* choices of each prompt; shown are the best */
    uint64_t id;
    int64_t created_s;

    struct bt_openai_echo *prompts; /* [n_prompts] */
    uint32_t n_prompts, n_choices;
    uint64_t n_prompt;          /* tokens of all prompts */
    struct bt_openai_lists one; /* of the chunk that is being written */
    bool failed;                /* out of memory: what is written is not complete */
};

void bt_openai_answer_begin(struct bt_openai_answer *answer, const struct bt_sink_begin *begin);
void bt_openai_answer_scores(struct bt_openai_answer *answer, const struct bt_scores *scores);
void bt_openai_answer_fini(struct bt_openai_answer *answer);

/* "stop", "length" or null, as JSON. */
const char *bt_openai_finish_json(enum bt_finish finish);
/* {"prompt_tokens": ...}, n_cached where it is known (else -1). */
void bt_openai_write_usage(struct bt_text_buffer *out, uint64_t n_prompt, uint64_t n_generated,
                           int64_t n_cached);
/* The beginning of a whole answer, up to its list of choices. */
void bt_openai_write_head(struct bt_text_buffer *out, const struct bt_openai_answer *answer);

/* The piece's events, each from "data: " to the empty line: one, or two where it is a choice's
 * first and the prompt is echoed. */
void bt_openai_write_chunk(struct bt_text_buffer *out, struct bt_openai_answer *answer,
                           const struct bt_piece *piece);
/* The event without choices at the end: usage (if asked for) and `extra`, members of the object
 * that begin with a comma, or empty. */
void bt_openai_write_last_chunk(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                                const struct bt_sink_end *end, struct bt_slice extra);

/* {"error": {...}}. param and code may be NULL; without a code the HTTP status gives one. */
void bt_openai_write_error(struct bt_text_buffer *out, int http_status, const char *message,
                           const char *param, const char *code);

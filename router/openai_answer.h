/* Writes what OpenAI clients read: chunks of a stream, whole answers, error objects.
 *
 * The part of a chunk that is the same for all tokens is made once per process, and a token's chunk
 * is copied together from it without printf. Pure but for the buffers. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/sampling.h"
#include "common/text/slice.h"
#include "router/openai_request.h"
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

/* What all chunks of one answer share. */
struct bt_openai_answer {
    const struct bt_openai_skeletons *skeletons;
    enum bt_openai_kind kind;
    bool include_usage, continuous_usage, return_token_ids, return_logits_hash;
    uint64_t n_prompt; /* tokens of all prompts */
    uint64_t id;
    int64_t created_s;
};

/* One event, from "data: " to the empty line. */
void bt_openai_write_chunk(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                           const struct bt_piece *piece);
/* The event without choices at the end: usage (if asked for) and `extra`, members of the object
 * that begin with a comma, or empty. */
void bt_openai_write_last_chunk(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                                uint64_t n_generated, struct bt_slice extra);

/* A whole answer. */
struct bt_openai_whole {
    struct bt_slice text;
    const int32_t *tokens;  /* [n_generated] if asked for */
    const uint64_t *hashes; /* [n_generated] if asked for */
    uint32_t n_generated;
    enum bt_finish finish;
};
void bt_openai_write_whole(struct bt_text_buffer *out, const struct bt_openai_answer *answer,
                           const struct bt_openai_whole *whole, struct bt_slice extra);

/* {"error": {...}}. param and code may be NULL; without a code the HTTP status gives one. */
void bt_openai_write_error(struct bt_text_buffer *out, int http_status, const char *message,
                           const char *param, const char *code);

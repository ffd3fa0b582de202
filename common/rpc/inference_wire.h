/* proto/inference.proto as plain structs: what clients of the public service say and hear.
 *
 * Reading checks what the message's shape can break (counts, sizes, ids that are no 31-bit number);
 * ranges of numbers, the vocabulary and UTF-8 are the router's to check, for both doors alike. What
 * a hostile message takes to unpack is bounded by the arena. Pure. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/limits.h"
#include "common/base/sampling.h"
#include "common/base/status.h"
#include "common/rpc/wire_arena.h"

enum {
    BT_INFERENCE_FIELD_BYTES = 64,
    BT_INFERENCE_ARENA_BYTES =
        64 << 20,                  /* for one message; 4 MiB of them are the most that comes */
    BT_INFERENCE_MESSAGES = 65536, /* of one conversation */
    BT_INFERENCE_MODEL_BYTES = 255,
};

#define BT_INFERENCE_GENERATE "/baton.v1.Inference/Generate"
#define BT_INFERENCE_TOKENIZE "/baton.v1.Inference/Tokenize"
#define BT_INFERENCE_LIST_MODELS "/baton.v1.Inference/ListModels"

/* Bytes of the message; may contain NUL, has none behind it. */
struct bt_inference_text {
    const char *data;
    size_t n_bytes;
};

/* ---- what clients say; all borrowed from the arena and the message's bytes ---- */

struct bt_inference_message {
    struct bt_inference_text role, content;
};

struct bt_inference_prompt {
    enum { BT_INFERENCE_TEXT = 1, BT_INFERENCE_TOKENS, BT_INFERENCE_CHAT } kind;
    struct bt_inference_text text;
    const int32_t *ids;
    uint32_t n_ids;
    const struct bt_inference_message *messages;
    uint32_t n_messages;
    bool add_generation_prompt;
    bool add_special_tokens;
};

struct bt_inference_generate {
    struct bt_inference_text model; /* empty: whichever is served */
    struct bt_inference_prompt prompt;
    struct bt_sampling sampling;
    bool max_tokens_given, seed_given;
    uint32_t n;
    size_t n_stops;
    struct bt_inference_text stops[BT_STOP_STRINGS];
    bool skip_special_tokens, include_stop_text;
    struct bt_inference_text cache_salt; /* at most BT_NAME_BYTES - 1, without NUL */
};

struct bt_inference_tokenize {
    struct bt_inference_text model;
    struct bt_inference_prompt prompt; /* no TOKENS */
};

/* The arena is reset. Refusals name the field (as it stands in the .proto) in `field`, "" where it
 * is the message itself. BT_E_INVALID, BT_E_TOO_LARGE, BT_E_NO_MEMORY. */
bt_status bt_inference_read_generate(const uint8_t *bytes, size_t n_bytes,
                                     struct bt_wire_arena *arena, struct bt_inference_generate *out,
                                     char field[BT_INFERENCE_FIELD_BYTES], struct bt_error *err);
bt_status bt_inference_read_tokenize(const uint8_t *bytes, size_t n_bytes,
                                     struct bt_wire_arena *arena, struct bt_inference_tokenize *out,
                                     char field[BT_INFERENCE_FIELD_BYTES], struct bt_error *err);

/* ---- what they hear ---- */

/* One message, packed; grows. Zeroed is empty. */
struct bt_inference_buffer {
    uint8_t *bytes;
    size_t n_bytes, capacity;
};

void bt_inference_buffer_fini(struct bt_inference_buffer *buffer);

struct bt_inference_logprobs {
    const struct bt_logprobs *values;                    /* NULL: none */
    struct bt_inference_text top_bytes[BT_TOP_LOGPROBS]; /* [values->n_top] */
};

struct bt_inference_token {
    uint32_t choice, index;
    int32_t id;
    struct bt_inference_text text;
    enum bt_finish finish;
    uint64_t hash;
    struct bt_inference_logprobs logprobs;
};

struct bt_inference_choice {
    enum bt_finish finish;
    struct bt_inference_text stop; /* the stop string that matched; data NULL: none */
    int32_t stop_token;            /* that matched; -1: none */
    uint32_t n_generated;
};

struct bt_inference_end {
    const char *request_id;
    const struct bt_inference_choice *choices; /* [n_choices], at most BT_CHOICES */
    uint32_t n_choices;
    uint64_t prompt_tokens, cached_tokens, completion_tokens;
    uint64_t total_us, ttft_us, itl_mean_us, itl_max_us, queue_us, placement_us, prefill_wait_us;
    uint64_t prefill_us, transfer_us, join_us, decode_us, moved_us, network_us, kv_bytes;
    bool complete; /* every worker has reported */
    const char *verdict_phase, *verdict_stage, *verdict_advice;
    const char *placement, *prefill_worker, *decode_worker;
    uint32_t resumed;
};

/* Each replaces what is in the buffer. False: no memory. */
bool bt_inference_pack_token(struct bt_inference_buffer *buffer,
                             const struct bt_inference_token *token);
bool bt_inference_pack_score(struct bt_inference_buffer *buffer, uint32_t position,
                             const struct bt_inference_logprobs *logprobs);
bool bt_inference_pack_end(struct bt_inference_buffer *buffer, const struct bt_inference_end *end);
bool bt_inference_pack_ids(struct bt_inference_buffer *buffer, const int32_t *ids, uint32_t n_ids,
                           uint32_t max_context);
bool bt_inference_pack_model(struct bt_inference_buffer *buffer, const char *id,
                             uint32_t max_context, int64_t created_s);

/* Turns text into token ids and ids into bytes: byte-level BPE with a model's own vocabulary.
 *
 * A tokenizer is immutable after creation and may be read by any thread; each encoding thread
 * brings a scratch of its own. Made from plain arrays, so that any model file can feed it
 * (text_model.h reads GGUF). */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/text/slice.h"

enum {
    BT_TOKEN_BYTES = 1024, /* longest token accepted in a vocabulary */
    BT_VOCAB_TOKENS = 1 << 21,
};

/* Values of tokenizer.ggml.token_type. */
enum bt_token_type {
    BT_TOKEN_NORMAL = 1,
    BT_TOKEN_UNKNOWN = 2,
    BT_TOKEN_CONTROL = 3,      /* recognised in trusted text only */
    BT_TOKEN_USER_DEFINED = 4, /* recognised in all text */
    BT_TOKEN_UNUSED = 5,
    BT_TOKEN_BYTE = 6,
};

/* What a tokenizer is made of. All of it is borrowed, and copied by bt_tokenizer_create. */
struct bt_vocab_source {
    struct bt_slice model; /* tokenizer.ggml.model; only "gpt2" is supported */
    struct bt_slice pre;   /* tokenizer.ggml.pre: how text is cut into words; empty = "default" */
    uint32_t n_tokens;
    uint32_t n_merges;
    const struct bt_slice *tokens; /* [n_tokens], in the byte alphabet of GPT-2 */
    const int32_t *types;          /* [n_tokens] enum bt_token_type, or NULL: all normal */
    const struct bt_slice *merges; /* [n_merges] "left right", best first */
    int32_t bos_id;                /* -1: none */
    int32_t eos_id;                /* -1: none */
    bool add_bos;
};

struct bt_tokenizer;
struct bt_encode_scratch;

/* BT_E_UNSUPPORTED names an unknown `model` or `pre`; BT_E_INVALID names the token or merge that is
 * malformed. */
bt_status bt_tokenizer_create(const struct bt_vocab_source *source, struct bt_tokenizer **out,
                              struct bt_error *err);
void bt_tokenizer_destroy(struct bt_tokenizer *tok);

uint32_t bt_tokenizer_size(const struct bt_tokenizer *tok);
int32_t bt_tokenizer_bos(const struct bt_tokenizer *tok); /* -1: none */
int32_t bt_tokenizer_eos(const struct bt_tokenizer *tok); /* -1: none */

/* The bytes that a token stands for (a part of a character, perhaps); empty for an id outside the
 * vocabulary. Borrowed from tok. */
struct bt_slice bt_tokenizer_bytes(const struct bt_tokenizer *tok, int32_t id);
/* Whether the token is a mark such as <|im_end|> and not text (control or unknown). */
bool bt_tokenizer_is_control(const struct bt_tokenizer *tok, int32_t id);
/* Id of the token whose bytes in the vocabulary's own alphabet are `text`, or -1. */
int32_t bt_tokenizer_find(const struct bt_tokenizer *tok, struct bt_slice text);

/* Working memory of one encoding thread; grows with the longest word seen, up to max_input_bytes *
 * 40 bytes. */
bt_status bt_encode_scratch_create(const struct bt_tokenizer *tok, size_t max_input_bytes,
                                   struct bt_encode_scratch **out, struct bt_error *err);
void bt_encode_scratch_destroy(struct bt_encode_scratch *scratch);

struct bt_encode_options {
    bool add_bos;        /* begin with BOS if the model wants one and the text does not bring it */
    bool parse_specials; /* recognise control tokens in the text, outside the untrusted spans */
    /* Parts of the text in which no control token is recognised, in order and apart; they do not
     * change how words are cut or merged. */
    const struct bt_text_span *untrusted;
    size_t n_untrusted;
};

/* Writes the ids of text into ids[max_ids]; *n_ids only on success. Bytes that are not UTF-8 are
 * read as U+FFFD (WHATWG: one for each maximal invalid part); bytes for which the vocabulary has no
 * token are dropped. options may be NULL: no BOS, no specials.
 * BT_E_TOO_LARGE where the text is longer than the scratch allows or needs more than max_ids. */
bt_status bt_tokenizer_encode(const struct bt_tokenizer *tok, struct bt_encode_scratch *scratch,
                              struct bt_slice text, const struct bt_encode_options *options,
                              int32_t *ids, size_t max_ids, size_t *n_ids, struct bt_error *err);

/* The tokens of a vocabulary: their texts, the bytes they stand for, and look-up by text. */
#pragma once
#include <stdint.h>

#include "common/base/status.h"
#include "common/text/slice.h"
#include "common/text/tokenizer.h"

/* Immutable once filled. All texts are in one block of memory. */
struct bt_vocab {
    uint32_t n_tokens;
    uint8_t *types;     /* [n_tokens] enum bt_token_type */
    uint32_t *text_at;  /* [n_tokens + 1] into texts: the vocabulary's own alphabet */
    uint32_t *bytes_at; /* [n_tokens + 1] into bytes: what the token stands for */
    char *texts;
    char *bytes;
    int32_t *slots; /* hash table of ids by text, -1: empty */
    uint32_t mask;
    int32_t byte_ids[256]; /* token of each single byte, -1: the vocabulary lacks it */
};

/* BT_E_INVALID names the token that is empty, too long or of unknown type. Of two tokens with the
 * same text the first is found. */
bt_status bt_vocab_init(struct bt_vocab *vocab, const struct bt_vocab_source *source,
                        struct bt_error *err);
void bt_vocab_fini(struct bt_vocab *vocab);

int32_t bt_vocab_find(const struct bt_vocab *vocab, struct bt_slice text); /* -1: not there */
struct bt_slice bt_vocab_text(const struct bt_vocab *vocab, int32_t id);
struct bt_slice bt_vocab_bytes(const struct bt_vocab *vocab, int32_t id);

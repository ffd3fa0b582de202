/* Turns a stream of token ids into text, one token at a time, without ever cutting a character.
 *
 * A plain value in the request; no allocation. One per choice. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/text/tokenizer.h"

/* Room that one push or flush may need: each byte may become U+FFFD (3 bytes). */
enum { BT_TOKEN_TEXT_BYTES = 3 * (BT_TOKEN_BYTES + 4) };

struct bt_detokenizer {
    const struct bt_tokenizer *tok; /* borrowed */
    bool skip_control;              /* control tokens give no text */
    uint8_t n_held;
    char held[4]; /* a character that has begun and not ended */
};

void bt_detokenizer_init(struct bt_detokenizer *d, const struct bt_tokenizer *tok,
                         bool skip_control);
/* Writes the text that is certain after token id into out, always whole UTF-8 characters, and
 * returns its size in bytes (0 is common). Invalid bytes become U+FFFD, one for each maximal
 * invalid part (WHATWG). An id outside the vocabulary gives nothing. */
size_t bt_detokenizer_push(struct bt_detokenizer *d, int32_t id, char out[BT_TOKEN_TEXT_BYTES]);
/* At the end of the stream: U+FFFD if a character was left unfinished. */
size_t bt_detokenizer_flush(struct bt_detokenizer *d, char out[BT_TOKEN_TEXT_BYTES]);

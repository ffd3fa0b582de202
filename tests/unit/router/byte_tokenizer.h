/* A tokenizer for tests whose tokens are the 256 bytes and the control token <end>. */
#pragma once
#include "common/text/tokenizer.h"

/* Ids 0 to 255 are the bytes, 256 ends a text. */
enum { N_TOKENS = 257 };

static struct bt_tokenizer *tok;

static int set_up(void **state) {
    (void)state;
    static char texts[256][3];
    static struct bt_slice tokens[N_TOKENS];
    static int32_t types[N_TOKENS];
    int next = 0; /* GPT-2's alphabet: bytes that do not print move behind U+0100 */
    for (int b = 0; b < 256; b++) {
        bool prints = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        int code = prints ? b : 256 + next++;
        size_t n = 0;
        if (code < 0x80) {
            texts[b][n++] = (char)code;
        } else {
            texts[b][n++] = (char)(0xc0 | code >> 6);
            texts[b][n++] = (char)(0x80 | (code & 63));
        }
        tokens[b] = (struct bt_slice){texts[b], n};
        types[b] = BT_TOKEN_NORMAL;
    }
    tokens[256] = (struct bt_slice){"<end>", 5};
    types[256] = BT_TOKEN_CONTROL;
    const struct bt_vocab_source source = {.model = {"gpt2", 4},
                                           .n_tokens = N_TOKENS,
                                           .tokens = tokens,
                                           .types = types,
                                           .bos_id = -1,
                                           .eos_id = 256};
    return bt_tokenizer_create(&source, &tok, NULL) == BT_OK ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    bt_tokenizer_destroy(tok);
    return 0;
}

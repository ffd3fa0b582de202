/* Fuzzes the tokenizer: a small vocabulary made from the input's head, its tail encoded, with
 * specials and spans, and decoded back. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/detokenizer.h"
#include "common/text/tokenizer.h"
#include "common/text/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TOKENS_MAX = 300, TEXT_MAX = 2048 };

static char alphabet[256][4];
static struct bt_slice tokens[TOKENS_MAX];
static int32_t types[TOKENS_MAX];

/* All 256 bytes, so that every text can be encoded and must come back. */
static uint32_t byte_tokens(void) {
    uint32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; byte++) {
        int printable =
            (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        tokens[byte] = (struct bt_slice){alphabet[byte],
                                         bt_utf8_encode(printable ? byte : next++, alphabet[byte])};
        types[byte] = BT_TOKEN_NORMAL;
    }
    return 256;
}

static void check(const struct bt_tokenizer *tok, struct bt_slice text, size_t span_start) {
    struct bt_encode_scratch *scratch;
    static int32_t ids[3 * TEXT_MAX + 1];
    static char expected[3 * TEXT_MAX], decoded[3 * TEXT_MAX + BT_TOKEN_TEXT_BYTES];
    size_t n, n_decoded = 0;
    struct bt_text_span span = {span_start < text.n_bytes ? span_start : text.n_bytes,
                                text.n_bytes};
    struct bt_encode_options options = {
        .parse_specials = true, .untrusted = &span, .n_untrusted = span.start < span.end};
    if (bt_encode_scratch_create(tok, TEXT_MAX, &scratch, NULL) != BT_OK)
        abort();
    if (bt_tokenizer_encode(tok, scratch, text, &options, ids, 3 * TEXT_MAX + 1, &n, NULL) != BT_OK)
        abort();
    struct bt_detokenizer d;
    bt_detokenizer_init(&d, tok, false);
    for (size_t i = 0; i < n; i++)
        n_decoded += bt_detokenizer_push(&d, ids[i], decoded + n_decoded);
    n_decoded += bt_detokenizer_flush(&d, decoded + n_decoded);
    size_t n_expected = bt_utf8_replace(text.data, text.n_bytes, expected);
    /* Where a special's text is not UTF-8, it may join with what stands around it. */
    if (bt_utf8_is_valid(text.data, text.n_bytes) &&
        (n_decoded != n_expected || memcmp(decoded, expected, n_expected)))
        abort();
    bt_encode_scratch_destroy(scratch);
}

/* Input: a NUL-separated list of words, an empty one, then the text. A word beginning with '!' is a
 * control token, with '?' a user-defined one, one with a blank in it is a merge. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct bt_slice merges[32];
    uint32_t n_tokens = byte_tokens(), n_merges = 0;
    size_t at = 0;
    while (at < size && data[at] && n_tokens < TOKENS_MAX && n_merges < 32) {
        const uint8_t *end = memchr(data + at, 0, size - at);
        size_t n = (end ? (size_t)(end - data) : size) - at;
        struct bt_slice word = {(const char *)data + at, n};
        if (memchr(word.data, ' ', n)) {
            merges[n_merges++] = word;
        } else {
            types[n_tokens] = *word.data == '!'   ? BT_TOKEN_CONTROL
                              : *word.data == '?' ? BT_TOKEN_USER_DEFINED
                                                  : BT_TOKEN_NORMAL;
            tokens[n_tokens++] = word;
        }
        at += n + (end != NULL);
    }
    at += at < size;
    struct bt_vocab_source source = {.model = {"gpt2", 4},
                                     .pre = {size % 2 ? "smollm" : "gpt-2", size % 2 ? 6 : 5},
                                     .n_tokens = n_tokens,
                                     .n_merges = n_merges,
                                     .tokens = tokens,
                                     .types = types,
                                     .merges = merges,
                                     .bos_id = -1,
                                     .eos_id = -1};
    struct bt_tokenizer *tok;
    if (size - at > TEXT_MAX || bt_tokenizer_create(&source, &tok, NULL) != BT_OK)
        return 0;
    check(tok, (struct bt_slice){(const char *)data + at, size - at}, size % 17);
    bt_tokenizer_destroy(tok);
    return 0;
}

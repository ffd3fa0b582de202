/* Token texts, GPT-2's byte alphabet, and the hash table that finds a token by its text. */
#include "common/text/vocab.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/text/utf8.h"

/* GPT-2 writes each byte as one printable character: the printable bytes of Latin-1 as themselves,
 * the other 68 as U+0100 and on (bytes_to_unicode in OpenAI's gpt-2/src/encoder.py). */
enum { ALPHABET_END = 0x144 };

static bool is_printable(unsigned byte) {
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

static void fill_alphabet(uint16_t of_byte[256], int16_t of_char[ALPHABET_END]) {
    uint16_t next = 0x100;
    for (unsigned c = 0; c < ALPHABET_END; c++)
        of_char[c] = -1;
    for (unsigned byte = 0; byte < 256; byte++) {
        of_byte[byte] = is_printable(byte) ? (uint16_t)byte : next++;
        of_char[of_byte[byte]] = (int16_t)byte;
    }
}

/* Writes the bytes that a token text stands for; a text with characters outside the alphabet stands
 * for itself. */
static uint32_t decode(struct bt_slice text, const int16_t of_char[ALPHABET_END], char *out) {
    uint32_t n_out = 0;
    for (size_t i = 0; i < text.n_bytes;) {
        struct bt_utf8_step step = bt_utf8_next(text.data + i, text.n_bytes - i);
        if (step.kind != BT_UTF8_VALID || step.code_point >= ALPHABET_END ||
            of_char[step.code_point] < 0) {
            memcpy(out, text.data, text.n_bytes);
            return (uint32_t)text.n_bytes;
        }
        out[n_out++] = (char)of_char[step.code_point];
        i += step.n_bytes;
    }
    return n_out;
}

static uint32_t slot_of(const struct bt_vocab *vocab, struct bt_slice text) {
    uint32_t i = (uint32_t)XXH3_64bits(text.data, text.n_bytes) & vocab->mask;
    for (; vocab->slots[i] >= 0; i = (i + 1) & vocab->mask) {
        struct bt_slice other = bt_vocab_text(vocab, vocab->slots[i]);
        if (other.n_bytes == text.n_bytes && !memcmp(other.data, text.data, text.n_bytes))
            break;
    }
    return i;
}

static bt_status check(const struct bt_vocab_source *source, size_t *total, struct bt_error *err) {
    if (!source->n_tokens || source->n_tokens > BT_VOCAB_TOKENS)
        return bt_fail(err, BT_E_INVALID, "the vocabulary has %u tokens, allowed 1 to %d",
                       source->n_tokens, BT_VOCAB_TOKENS);
    for (uint32_t i = 0; i < source->n_tokens; i++) {
        size_t n = source->tokens[i].n_bytes;
        if (!n || n > BT_TOKEN_BYTES)
            return bt_fail(err, BT_E_INVALID, "token %u has %zu bytes, allowed 1 to %d", i, n,
                           BT_TOKEN_BYTES);
        if (source->types &&
            (source->types[i] < BT_TOKEN_NORMAL || source->types[i] > BT_TOKEN_BYTE))
            return bt_fail(err, BT_E_INVALID, "token %u has type %d, allowed 1 to 6", i,
                           source->types[i]);
        *total += n;
    }
    if (*total > UINT32_MAX)
        return bt_fail(err, BT_E_INVALID, "the vocabulary has %zu bytes, allowed 4 GiB", *total);
    return BT_OK;
}

static bt_status allocate(struct bt_vocab *vocab, size_t total, struct bt_error *err) {
    uint32_t n = vocab->n_tokens, n_slots = 16;
    while (n_slots < 2 * (uint64_t)n)
        n_slots *= 2;
    vocab->mask = n_slots - 1;
    vocab->types = malloc(n);
    vocab->text_at = malloc((n + 1) * sizeof *vocab->text_at);
    vocab->bytes_at = malloc((n + 1) * sizeof *vocab->bytes_at);
    vocab->texts = malloc(total);
    vocab->bytes = malloc(total);
    vocab->slots = malloc(n_slots * sizeof *vocab->slots);
    if (!vocab->types || !vocab->text_at || !vocab->bytes_at || !vocab->texts || !vocab->bytes ||
        !vocab->slots)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a vocabulary of %u tokens", n);
    memset(vocab->slots, 0xff, n_slots * sizeof *vocab->slots);
    return BT_OK;
}

bt_status bt_vocab_init(struct bt_vocab *vocab, const struct bt_vocab_source *source,
                        struct bt_error *err) {
    size_t total = 0;
    bt_status status;
    *vocab = (struct bt_vocab){.n_tokens = source->n_tokens};
    BT_TRY_GOTO(check(source, &total, err), fail);
    BT_TRY_GOTO(allocate(vocab, total, err), fail);

    uint16_t of_byte[256];
    int16_t of_char[ALPHABET_END];
    fill_alphabet(of_byte, of_char);
    uint32_t text_at = 0, bytes_at = 0;
    for (uint32_t i = 0; i < source->n_tokens; i++) {
        struct bt_slice text = source->tokens[i];
        int32_t type = source->types ? source->types[i] : BT_TOKEN_NORMAL;
        vocab->types[i] = (uint8_t)type;
        vocab->text_at[i] = text_at;
        vocab->bytes_at[i] = bytes_at;
        memcpy(vocab->texts + text_at, text.data, text.n_bytes);
        uint32_t n_bytes = (uint32_t)text.n_bytes;
        if (type == BT_TOKEN_CONTROL || type == BT_TOKEN_USER_DEFINED || type == BT_TOKEN_UNKNOWN)
            memcpy(vocab->bytes + bytes_at, text.data, text.n_bytes);
        else
            n_bytes = decode(text, of_char, vocab->bytes + bytes_at);
        text_at += (uint32_t)text.n_bytes;
        bytes_at += n_bytes;
        vocab->text_at[i + 1] = text_at;
        vocab->bytes_at[i + 1] = bytes_at;
        uint32_t slot = slot_of(vocab, text);
        if (vocab->slots[slot] < 0)
            vocab->slots[slot] = (int32_t)i;
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[4];
        size_t n = bt_utf8_encode(of_byte[byte], text);
        vocab->byte_ids[byte] = bt_vocab_find(vocab, (struct bt_slice){text, n});
    }
    return BT_OK;
fail:
    bt_vocab_fini(vocab);
    return status;
}

void bt_vocab_fini(struct bt_vocab *vocab) {
    free(vocab->types);
    free(vocab->text_at);
    free(vocab->bytes_at);
    free(vocab->texts);
    free(vocab->bytes);
    free(vocab->slots);
    *vocab = (struct bt_vocab){0};
}

int32_t bt_vocab_find(const struct bt_vocab *vocab, struct bt_slice text) {
    return vocab->slots[slot_of(vocab, text)];
}

struct bt_slice bt_vocab_text(const struct bt_vocab *vocab, int32_t id) {
    return (struct bt_slice){vocab->texts + vocab->text_at[id],
                             vocab->text_at[id + 1] - vocab->text_at[id]};
}

struct bt_slice bt_vocab_bytes(const struct bt_vocab *vocab, int32_t id) {
    return (struct bt_slice){vocab->bytes + vocab->bytes_at[id],
                             vocab->bytes_at[id + 1] - vocab->bytes_at[id]};
}

/* Text -> special tokens -> words -> merged byte tokens -> ids. */
#include "common/text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "common/text/bpe.h"
#include "common/text/pretokenizer.h"
#include "common/text/special_finder.h"
#include "common/text/utf8.h"
#include "common/text/vocab.h"

struct bt_tokenizer {
    struct bt_vocab vocab;
    struct bt_bpe bpe;
    struct bt_special_finder specials;
    struct bt_pretokenizer *pre;
    int32_t bos_id, eos_id;
    bool add_bos;
};

struct bt_encode_scratch {
    size_t max_input_bytes;
    struct bt_word_cursor *cursor;
    struct bt_bpe_scratch bpe;
    int32_t *word; /* byte tokens of one word */
    size_t word_capacity;
    char *clean; /* text whose invalid UTF-8 has been replaced */
    size_t clean_capacity;
};

/* Where ids are written. */
struct output {
    int32_t *ids;
    size_t n, max;
};

static bt_status fill_merges(struct bt_tokenizer *tok, const struct bt_vocab_source *source,
                             struct bt_error *err) {
    BT_TRY(bt_bpe_init(&tok->bpe, source->n_merges, err));
    for (uint32_t i = 0; i < source->n_merges; i++) {
        struct bt_slice merge = source->merges[i];
        char joined[2 * BT_TOKEN_BYTES];
        /* A part may not be empty, and neither alphabet has a blank in it. */
        const char *blank =
            merge.n_bytes > 2 ? memchr(merge.data + 1, ' ', merge.n_bytes - 2) : NULL;
        if (!blank || merge.n_bytes > sizeof joined)
            return bt_fail(err, BT_E_INVALID, "merge %u is not two tokens: \"%.*s\"", i,
                           (int)(merge.n_bytes < 64 ? merge.n_bytes : 64), merge.data);
        size_t n_left = (size_t)(blank - merge.data), n_right = merge.n_bytes - n_left - 1;
        memcpy(joined, merge.data, n_left);
        memcpy(joined + n_left, blank + 1, n_right);
        int32_t left = bt_vocab_find(&tok->vocab, (struct bt_slice){joined, n_left});
        int32_t right = bt_vocab_find(&tok->vocab, (struct bt_slice){joined + n_left, n_right});
        int32_t both = bt_vocab_find(&tok->vocab, (struct bt_slice){joined, n_left + n_right});
        if (left < 0 || right < 0 || both < 0)
            return bt_fail(err, BT_E_INVALID, "merge %u names what is not a token: \"%.*s\"", i,
                           (int)(merge.n_bytes < 64 ? merge.n_bytes : 64), merge.data);
        bt_bpe_add(&tok->bpe, left, right, both, i);
    }
    return BT_OK;
}

static bt_status check_id(const struct bt_vocab_source *source, const char *name, int32_t id,
                          struct bt_error *err) {
    if (id < -1 || id >= (int64_t)source->n_tokens)
        return bt_fail(err, BT_E_INVALID, "%s is %d, the vocabulary has %u tokens", name, id,
                       source->n_tokens);
    return BT_OK;
}

bt_status bt_tokenizer_create(const struct bt_vocab_source *source, struct bt_tokenizer **out,
                              struct bt_error *err) {
    if (source->model.n_bytes != 4 || memcmp(source->model.data, "gpt2", 4))
        return bt_fail(err, BT_E_UNSUPPORTED, "tokenizer.ggml.model is \"%.*s\", supported: gpt2",
                       (int)(source->model.n_bytes < 64 ? source->model.n_bytes : 64),
                       source->model.data ? source->model.data : "");
    if (source->n_merges >= BT_BPE_NONE)
        return bt_fail(err, BT_E_INVALID, "the vocabulary has %u merges, allowed %d",
                       source->n_merges, BT_BPE_NONE - 1);
    BT_TRY(check_id(source, "bos_token_id", source->bos_id, err));
    BT_TRY(check_id(source, "eos_token_id", source->eos_id, err));
    struct bt_tokenizer *tok = calloc(1, sizeof *tok);
    if (!tok)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a tokenizer");
    bt_status status;
    tok->bos_id = source->bos_id;
    tok->eos_id = source->eos_id;
    tok->add_bos = source->add_bos && source->bos_id >= 0;
    BT_TRY_GOTO(bt_pretokenizer_create(source->pre, &tok->pre, err), fail);
    BT_TRY_GOTO(bt_vocab_init(&tok->vocab, source, err), fail);
    BT_TRY_GOTO(fill_merges(tok, source, err), fail);
    BT_TRY_GOTO(bt_special_finder_init(&tok->specials, &tok->vocab, err), fail);
    *out = tok;
    return BT_OK;
fail:
    bt_tokenizer_destroy(tok);
    return status;
}

void bt_tokenizer_destroy(struct bt_tokenizer *tok) {
    if (!tok)
        return;
    bt_special_finder_fini(&tok->specials);
    bt_bpe_fini(&tok->bpe);
    bt_vocab_fini(&tok->vocab);
    bt_pretokenizer_destroy(tok->pre);
    free(tok);
}

uint32_t bt_tokenizer_size(const struct bt_tokenizer *tok) {
    return tok->vocab.n_tokens;
}

int32_t bt_tokenizer_bos(const struct bt_tokenizer *tok) {
    return tok->bos_id;
}

int32_t bt_tokenizer_eos(const struct bt_tokenizer *tok) {
    return tok->eos_id;
}

static bool is_known(const struct bt_tokenizer *tok, int32_t id) {
    return id >= 0 && (uint32_t)id < tok->vocab.n_tokens;
}

struct bt_slice bt_tokenizer_bytes(const struct bt_tokenizer *tok, int32_t id) {
    return is_known(tok, id) ? bt_vocab_bytes(&tok->vocab, id) : (struct bt_slice){0};
}

bool bt_tokenizer_is_control(const struct bt_tokenizer *tok, int32_t id) {
    return is_known(tok, id) &&
           (tok->vocab.types[id] == BT_TOKEN_CONTROL || tok->vocab.types[id] == BT_TOKEN_UNKNOWN);
}

int32_t bt_tokenizer_find(const struct bt_tokenizer *tok, struct bt_slice text) {
    return bt_vocab_find(&tok->vocab, text);
}

bt_status bt_encode_scratch_create(const struct bt_tokenizer *tok, size_t max_input_bytes,
                                   struct bt_encode_scratch **out, struct bt_error *err) {
    if (max_input_bytes > INT32_MAX / 4)
        return bt_fail(err, BT_E_INVALID, "texts of %zu bytes to encode, allowed %d",
                       max_input_bytes, INT32_MAX / 4);
    struct bt_encode_scratch *scratch = calloc(1, sizeof *scratch);
    if (!scratch)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for encoding");
    scratch->max_input_bytes = max_input_bytes;
    bt_status status = bt_word_cursor_create(tok->pre, &scratch->cursor, err);
    if (status < 0) {
        bt_encode_scratch_destroy(scratch);
        return status;
    }
    *out = scratch;
    return BT_OK;
}

void bt_encode_scratch_destroy(struct bt_encode_scratch *scratch) {
    if (!scratch)
        return;
    bt_word_cursor_destroy(scratch->cursor);
    bt_bpe_scratch_fini(&scratch->bpe);
    free(scratch->word);
    free(scratch->clean);
    free(scratch);
}

/* Makes *buffer hold n items, without keeping what is in it. */
static bt_status reserve(void **buffer, size_t *capacity, size_t n, size_t item_bytes,
                         struct bt_error *err) {
    if (n <= *capacity)
        return BT_OK;
    size_t grown = 256;
    while (grown < n)
        grown *= 2;
    free(*buffer);
    *capacity = 0;
    *buffer = malloc(grown * item_bytes);
    if (!*buffer)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for encoding %zu bytes", n);
    *capacity = grown;
    return BT_OK;
}

static bt_status put_ids(struct output *out, const int32_t *ids, size_t n, struct bt_error *err) {
    if (n > out->max - out->n)
        return bt_fail(err, BT_E_TOO_LARGE, "the text has more than %zu tokens", out->max);
    memcpy(out->ids + out->n, ids, n * sizeof *ids);
    out->n += n;
    return BT_OK;
}

static bt_status encode_word(const struct bt_tokenizer *tok, struct bt_encode_scratch *scratch,
                             struct bt_slice word, struct output *out, struct bt_error *err) {
    BT_TRY(reserve((void **)&scratch->word, &scratch->word_capacity, word.n_bytes,
                   sizeof *scratch->word, err));
    BT_TRY(bt_bpe_scratch_reserve(&scratch->bpe, word.n_bytes, err));
    size_t n = 0;
    for (size_t i = 0; i < word.n_bytes; i++) {
        int32_t id = tok->vocab.byte_ids[(uint8_t)word.data[i]];
        if (id >= 0) /* a byte without a token is dropped before merging, as `tokenizers` does */
            scratch->word[n++] = id;
    }
    n = bt_bpe_run(&tok->bpe, &scratch->bpe, scratch->word, n);
    return put_ids(out, scratch->word, n, err);
}

/* Encodes text that has no special token in it. */
static bt_status encode_plain(const struct bt_tokenizer *tok, struct bt_encode_scratch *scratch,
                              struct bt_slice text, struct output *out, struct bt_error *err) {
    if (!bt_utf8_is_valid(text.data, text.n_bytes)) {
        BT_TRY(
            reserve((void **)&scratch->clean, &scratch->clean_capacity, 3 * text.n_bytes, 1, err));
        text.n_bytes = bt_utf8_replace(text.data, text.n_bytes, scratch->clean);
        text.data = scratch->clean;
    }
    bt_word_cursor_start(scratch->cursor, text);
    for (;;) {
        struct bt_slice word;
        bt_status status = bt_word_cursor_next(scratch->cursor, &word, err);
        if (status != BT_OK)
            return status < 0 ? status : BT_OK;
        BT_TRY(encode_word(tok, scratch, word, out, err));
    }
}

bt_status bt_tokenizer_encode(const struct bt_tokenizer *tok, struct bt_encode_scratch *scratch,
                              struct bt_slice text, const struct bt_encode_options *options,
                              int32_t *ids, size_t max_ids, size_t *n_ids, struct bt_error *err) {
    static const struct bt_encode_options none;
    if (!options)
        options = &none;
    if (text.n_bytes > scratch->max_input_bytes)
        return bt_fail(err, BT_E_TOO_LARGE, "the text has %zu bytes, allowed %zu", text.n_bytes,
                       scratch->max_input_bytes);
    struct output out = {.ids = ids, .max = max_ids};
    struct bt_special_limits limits = {options->parse_specials, options->untrusted,
                                       options->n_untrusted};
    bool bos_added = options->add_bos && tok->add_bos;
    if (bos_added)
        BT_TRY(put_ids(&out, &tok->bos_id, 1, err));
    for (size_t at = 0; at < text.n_bytes;) {
        struct bt_special_match match = bt_special_finder_next(&tok->specials, text, at, &limits);
        struct bt_slice plain = {text.data + at, match.span.start - at};
        BT_TRY(encode_plain(tok, scratch, plain, &out, err));
        bool is_second_bos = bos_added && match.span.start == 0 && match.id == tok->bos_id;
        if (match.id >= 0 && !is_second_bos)
            BT_TRY(put_ids(&out, &match.id, 1, err));
        at = match.span.end;
    }
    *n_ids = out.n;
    return BT_OK;
}

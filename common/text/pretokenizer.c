/* Splits by PCRE2 (JIT where the machine allows it); each regex cuts the pieces of the one before.
 */
#include "common/text/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    STAGES_MAX = 2,
    MATCH_LIMIT = 10000000, /* PCRE2's own default, made explicit */
    HEAP_LIMIT_KIB = 65536, /* for the interpreter, used only where JIT is forbidden */
};

/* Unicode White_Space. Not \s: with PCRE2_UCP that takes in U+180E, which tokenizers do not. */
#define BLANK                                                                         \
    "\\t-\\r\\x20\\x{85}\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}" \
    "\\x{205f}\\x{3000}"
/* GPT-2's regex; contractions are lower-case only. */
#define GPT2                                                                          \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" BLANK "\\p{L}\\p{N}]+|[" BLANK \
    "]+(?![^" BLANK "])|[" BLANK "]+"

struct row {
    const char *name;
    const char *regex[STAGES_MAX]; /* applied one after the other; NULL: no more */
};

static const struct row rows[] = {
    {"default", {GPT2}},
    {"gpt-2", {GPT2}},
    {"smollm", {"\\p{N}", GPT2}}, /* digits apart first, so " 1" is [space][1] */
};

struct bt_pretokenizer {
    int n_stages;
    pcre2_code *code[STAGES_MAX];
};

/* What is left to cut at one stage, and the match already found there. */
struct stage {
    size_t at, end;
    size_t match_start, match_end; /* valid where match_end > at; match_start == end: no match */
    pcre2_match_data *match;
};

struct bt_word_cursor {
    const struct bt_pretokenizer *pre;
    const char *text;
    pcre2_match_context *context;
    int at_stage;
    struct stage stage[STAGES_MAX];
};

bt_status bt_pretokenizer_create(struct bt_slice name, struct bt_pretokenizer **out,
                                 struct bt_error *err) {
    if (!name.n_bytes)
        name = (struct bt_slice){"default", 7};
    const struct row *row = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (strlen(rows[i].name) == name.n_bytes && !memcmp(rows[i].name, name.data, name.n_bytes))
            row = &rows[i];
    if (!row)
        return bt_fail(err, BT_E_UNSUPPORTED,
                       "tokenizer.ggml.pre is \"%.*s\", supported: default, "
                       "gpt-2, smollm",
                       (int)(name.n_bytes < 64 ? name.n_bytes : 64), name.data);
    struct bt_pretokenizer *pre = calloc(1, sizeof *pre);
    if (!pre)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a pre-tokenizer");
    for (int i = 0; i < STAGES_MAX && row->regex[i]; i++) {
        int error;
        PCRE2_SIZE offset;
        pre->code[i] = pcre2_compile((PCRE2_SPTR)row->regex[i], PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_UCP, &error, &offset, NULL);
        if (!pre->code[i]) {
            bt_pretokenizer_destroy(pre);
            return bt_fail(err, BT_E_INTERNAL, "PCRE2 refuses the regex of \"%s\": error %d at %zu",
                           row->name, error, offset);
        }
        /* Where no executable memory is to be had, matching falls back to the interpreter. */
        (void)pcre2_jit_compile(pre->code[i], PCRE2_JIT_COMPLETE);
        pre->n_stages = i + 1;
    }
    *out = pre;
    return BT_OK;
}

void bt_pretokenizer_destroy(struct bt_pretokenizer *pre) {
    if (!pre)
        return;
    for (int i = 0; i < STAGES_MAX; i++)
        pcre2_code_free(pre->code[i]);
    free(pre);
}

bt_status bt_word_cursor_create(const struct bt_pretokenizer *pre, struct bt_word_cursor **out,
                                struct bt_error *err) {
    struct bt_word_cursor *cursor = calloc(1, sizeof *cursor);
    if (!cursor)
        goto fail;
    cursor->pre = pre;
    cursor->context = pcre2_match_context_create(NULL);
    if (!cursor->context)
        goto fail;
    pcre2_set_match_limit(cursor->context, MATCH_LIMIT);
    pcre2_set_heap_limit(cursor->context, HEAP_LIMIT_KIB);
    for (int i = 0; i < pre->n_stages; i++) {
        cursor->stage[i].match = pcre2_match_data_create(1, NULL);
        if (!cursor->stage[i].match)
            goto fail;
    }
    *out = cursor;
    return BT_OK;
fail:
    bt_word_cursor_destroy(cursor);
    return bt_fail(err, BT_E_NO_MEMORY, "no memory for a pre-tokenizer's cursor");
}

void bt_word_cursor_destroy(struct bt_word_cursor *cursor) {
    if (!cursor)
        return;
    for (int i = 0; i < STAGES_MAX; i++)
        pcre2_match_data_free(cursor->stage[i].match);
    pcre2_match_context_free(cursor->context);
    free(cursor);
}

static void start_stage(struct bt_word_cursor *cursor, int i, size_t at, size_t end) {
    cursor->at_stage = i;
    cursor->stage[i].at = at;
    cursor->stage[i].end = end;
    cursor->stage[i].match_end = at;
}

void bt_word_cursor_start(struct bt_word_cursor *cursor, struct bt_slice text) {
    cursor->text = text.data;
    start_stage(cursor, 0, 0, text.n_bytes);
}

/* Finds the next match of stage i; what is matched against ends where the stage ends, so that a
 * look-ahead sees nothing behind it. */
static bt_status find_match(struct bt_word_cursor *cursor, int i, struct bt_error *err) {
    struct stage *s = &cursor->stage[i];
    int n = pcre2_match(cursor->pre->code[i], (PCRE2_SPTR)(cursor->text + s->at), s->end - s->at, 0,
                        PCRE2_NO_UTF_CHECK, s->match, cursor->context);
    if (n == PCRE2_ERROR_NOMATCH) {
        s->match_start = s->match_end = s->end;
        return BT_OK;
    }
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(s->match);
    if (n < 0 || span[1] <= span[0])
        return bt_fail(err, BT_E_INTERNAL, "cutting the text into words failed: PCRE2 error %d", n);
    s->match_start = s->at + span[0];
    s->match_end = s->at + span[1];
    return BT_OK;
}

bt_status bt_word_cursor_next(struct bt_word_cursor *cursor, struct bt_slice *word,
                              struct bt_error *err) {
    while (cursor->stage[cursor->at_stage].at == cursor->stage[cursor->at_stage].end) {
        if (cursor->at_stage == 0)
            return BT_DONE;
        cursor->at_stage--;
    }
    for (;;) {
        int i = cursor->at_stage;
        struct stage *s = &cursor->stage[i];
        if (s->match_end <= s->at)
            BT_TRY(find_match(cursor, i, err));
        size_t start = s->at;
        s->at =
            start < s->match_start ? s->match_start : s->match_end; /* the gap, then the match */
        if (i + 1 == cursor->pre->n_stages) {
            *word = (struct bt_slice){cursor->text + start, s->at - start};
            return BT_OK;
        }
        start_stage(cursor, i + 1, start, s->at);
    }
}

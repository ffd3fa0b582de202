/* Jinja 3's lexer with trim_blocks and lstrip_blocks on, as chat templates are rendered with. */
#include "common/text/jinja_lexer.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/jinja_string.h"
#include "common/text/utf8.h"

struct lexer {
    char *src; /* line ends are \n only, the last one is gone */
    size_t n, at;
    uint32_t line;
    size_t line_counted; /* `line` is right for this place */
    bool line_starts;    /* what was read last ended a line */
    struct bt_arena *arena;
    struct bt_error *err;
    struct bt_jtoken *tokens;
    size_t n_tokens, capacity;
};

static uint32_t line_at(struct lexer *l, size_t at) {
    for (; l->line_counted < at; l->line_counted++)
        l->line += l->src[l->line_counted] == '\n';
    return l->line;
}

static bt_status refuse(struct lexer *l, size_t at, const char *what) {
    return bt_fail(l->err, BT_E_INVALID, "chat template line %u: %s", line_at(l, at), what);
}

static bt_status push(struct lexer *l, struct bt_jtoken token, size_t at) {
    if (l->n_tokens == l->capacity) {
        size_t capacity = 2 * l->capacity + 64;
        struct bt_jtoken *grown = bt_arena_take(l->arena, capacity * sizeof *grown);
        if (!grown)
            return bt_fail(l->err, BT_E_NO_MEMORY, "no memory for a chat template");
        if (l->n_tokens)
            memcpy(grown, l->tokens, l->n_tokens * sizeof *grown);
        l->tokens = grown;
        l->capacity = capacity;
    }
    token.line = line_at(l, at);
    l->tokens[l->n_tokens++] = token;
    return BT_OK;
}

static bool stands(const struct lexer *l, size_t at, const char *what) {
    size_t n = strlen(what);
    return n <= l->n - at && !memcmp(l->src + at, what, n);
}

/* Behind the blanks at `at`. */
static size_t skip_blanks(const struct lexer *l, size_t at) {
    while (at < l->n) {
        struct bt_utf8_step step = bt_utf8_next(l->src + at, l->n - at);
        if (!bt_jinja_is_blank(step.code_point))
            break;
        at += step.n_bytes;
    }
    return at;
}

/* Before the blanks that end at `end`, not below `start`. */
static size_t strip_blanks(const struct lexer *l, size_t start, size_t end) {
    while (end > start) {
        size_t at = end - 1;
        while (at > start && ((uint8_t)l->src[at] & 0xc0) == 0x80)
            at--;
        if (!bt_jinja_is_blank(bt_utf8_next(l->src + at, end - at).code_point))
            break;
        end = at;
    }
    return end;
}

/* Emits the text [start, end) before a tag: '-' strips all blanks before the tag; lstrip_blocks
 * those between the line's start and a tag that is not {{, unless there is a '+'. */
static bt_status push_text(struct lexer *l, size_t start, size_t end, char sign, bool is_output) {
    if (sign == '-') {
        end = strip_blanks(l, start, end);
    } else if (sign != '+' && !is_output) {
        size_t line = end;
        while (line > start && l->src[line - 1] != '\n')
            line--;
        if ((line > start || l->line_starts) && strip_blanks(l, line, end) == line)
            end = line;
    }
    if (end == start)
        return BT_OK;
    return push(l, (struct bt_jtoken){BT_JTOKEN_TEXT, .text = {l->src + start, end - start}},
                start);
}

/* Steps behind the end of a tag (n bytes at `at`, with a sign before it or 0): '-' takes all blanks
 * along, trim_blocks one line end. */
static void step_behind(struct lexer *l, size_t at, size_t n, char sign, bool trims) {
    l->at = at + n;
    if (sign == '-')
        l->at = skip_blanks(l, l->at);
    else if (trims && sign != '+' && l->at < l->n && l->src[l->at] == '\n')
        l->at++;
    l->line_starts = l->src[l->at - 1] == '\n';
}

static bt_status comment(struct lexer *l, size_t begin) {
    for (size_t at = begin; at + 2 <= l->n; at++) {
        if (!stands(l, at, "#}"))
            continue;
        char sign = at > begin ? l->src[at - 1] : 0;
        step_behind(l, at, 2, sign == '-' || sign == '+' ? sign : 0, true);
        return BT_OK;
    }
    return refuse(l, begin, "a comment has no end");
}

/* Whether a tag of one word stands at `at` (behind "{%" and its sign); *end is behind its "%}". */
static bool one_word_tag(const struct lexer *l, size_t at, const char *word, size_t *end,
                         char *end_sign) {
    at = skip_blanks(l, at);
    if (!stands(l, at, word))
        return false;
    at = skip_blanks(l, at + strlen(word));
    *end_sign = 0;
    if (at < l->n && (l->src[at] == '-' || l->src[at] == '+'))
        *end_sign = l->src[at++];
    *end = at + 2;
    return stands(l, at, "%}");
}

static bt_status raw(struct lexer *l, size_t begin) {
    for (size_t at = begin; at + 2 <= l->n; at++) {
        size_t end;
        char sign = 0, end_sign;
        if (!stands(l, at, "{%"))
            continue;
        size_t word = at + 2;
        if (word < l->n && (l->src[word] == '-' || l->src[word] == '+'))
            sign = l->src[word++];
        if (!one_word_tag(l, word, "endraw", &end, &end_sign))
            continue;
        BT_TRY(push_text(l, begin, at, sign, false));
        step_behind(l, end - 2, 2, end_sign, true);
        return BT_OK;
    }
    return refuse(l, begin, "{% raw %} has no end");
}

static bt_status number(struct lexer *l) {
    size_t start = l->at, at = start;
    char text[64];
    size_t n = 0;
    bool is_real = false, after_dot = l->n_tokens &&
                                      l->tokens[l->n_tokens - 1].kind == BT_JTOKEN_OPERATOR &&
                                      l->tokens[l->n_tokens - 1].text.data[0] == '.';
    for (; at < l->n && n + 1 < sizeof text; at++) {
        char c = l->src[at];
        bool digit_next = at + 1 < l->n && isdigit((unsigned char)l->src[at + 1]);
        if (c == '_' && digit_next)
            continue;
        if (isdigit((unsigned char)c)) {
            text[n++] = c;
        } else if (!after_dot && ((c == '.' && digit_next && !is_real) ||
                                  ((c == 'e' || c == 'E') &&
                                   (digit_next || (at + 2 < l->n && strchr("+-", l->src[at + 1]) &&
                                                   isdigit((unsigned char)l->src[at + 2])))))) {
            is_real = true;
            text[n++] = c;
            if (c != '.' && !digit_next)
                text[n++] = l->src[++at];
        } else {
            break;
        }
    }
    text[n] = 0;
    char *end;
    errno = 0;
    struct bt_jtoken token = {.kind = is_real ? BT_JTOKEN_FLOAT : BT_JTOKEN_INT};
    if (is_real)
        token.real = strtod(text, &end);
    else
        token.integer = strtoll(text, &end, 10);
    if (*end || errno || (at < l->n && (isalnum((unsigned char)l->src[at]) || l->src[at] == '_')))
        return refuse(l, start, "a malformed number");
    l->at = at;
    return push(l, token, start);
}

/* Resolves the escape behind a backslash at *at; writes UTF-8 into out; 0: malformed. */
static size_t escape(const struct lexer *l, size_t *at, char out[4]) {
    static const char plain[] = "ntrabfv\\'\"", meaning[] = "\n\t\r\a\b\f\v\\'\"";
    char c = l->src[*at];
    const char *found = c ? strchr(plain, c) : NULL;
    (*at)++;
    if (found) {
        out[0] = meaning[found - plain];
        return 1;
    }
    size_t n_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (!n_digits) { /* Python leaves an unknown escape as it is; octal and \N are not known here */
        out[0] = '\\';
        out[1] = c;
        return isdigit((unsigned char)c) || c == 'N' || (uint8_t)c >= 0x80 ? 0 : 2;
    }
    uint32_t code_point = 0;
    for (size_t i = 0; i < n_digits; i++, (*at)++) {
        if (*at >= l->n || !isxdigit((unsigned char)l->src[*at]))
            return 0;
        char digit[2] = {l->src[*at], 0};
        code_point = code_point << 4 | (uint32_t)strtoul(digit, NULL, 16);
    }
    if (code_point > 0x10ffff || (code_point >= 0xd800 && code_point < 0xe000))
        return 0;
    return bt_utf8_encode(code_point, out);
}

static bt_status string(struct lexer *l) {
    size_t start = l->at, n = 0;
    char quote = l->src[l->at++];
    size_t end = l->at;
    while (end < l->n && l->src[end] != quote)
        end += l->src[end] == '\\' ? 2 : 1;
    if (end >= l->n)
        return refuse(l, start, "a string has no end");
    /* An escape is never shorter than what it stands for. */
    char *text = bt_arena_take(l->arena, end - l->at + 4);
    if (!text)
        return bt_fail(l->err, BT_E_NO_MEMORY, "no memory for a chat template");
    while (l->at < end) {
        if (l->src[l->at] != '\\') {
            text[n++] = l->src[l->at++];
            continue;
        }
        l->at++;
        if (l->src[l->at] == '\n') { /* an escaped line end is nothing */
            l->at++;
            continue;
        }
        size_t n_escape = escape(l, &l->at, text + n);
        if (!n_escape)
            return refuse(l, l->at, "a string has an escape that is malformed or not supported");
        n += n_escape;
    }
    l->at = end + 1;
    return push(l, (struct bt_jtoken){BT_JTOKEN_STRING, .text = {text, n}}, start);
}

static bt_status operator_token(struct lexer *l, int *balance) {
    static const char *const two[] = {"//", "**", "==", "!=", "<=", ">="};
    static const char one[] = "+-/*%~[](){}<>=.:|,";
    size_t n = 0;
    for (size_t i = 0; !n && i < sizeof two / sizeof two[0]; i++)
        n = stands(l, l->at, two[i]) ? 2 : 0;
    char c = l->src[l->at];
    if (!n && c && strchr(one, c))
        n = 1;
    if (!n)
        return refuse(l, l->at, "a character that no expression can have");
    if (strchr("[({", c))
        ++*balance;
    if (strchr("])}", c) && --*balance < 0)
        return refuse(l, l->at, "a closing bracket without its opening one");
    struct bt_jtoken token = {BT_JTOKEN_OPERATOR, .text = {l->src + l->at, n}};
    l->at += n;
    return push(l, token, l->at - n);
}

/* Reads the tokens of a tag up to its end, which is no end inside of brackets. */
static bt_status tag(struct lexer *l, bool is_output) {
    const char *ending = is_output ? "}}" : "%}";
    int balance = 0;
    size_t begin = l->at;
    for (;;) {
        l->at = skip_blanks(l, l->at);
        if (l->at >= l->n)
            return refuse(l, begin, is_output ? "{{ has no end" : "{% has no end");
        char c = l->src[l->at];
        bool has_sign = c == '-' || (c == '+' && !is_output);
        if (balance == 0 && stands(l, l->at + has_sign, ending)) {
            size_t at = l->at + has_sign;
            BT_TRY(push(l,
                        (struct bt_jtoken){is_output ? BT_JTOKEN_OUTPUT_END : BT_JTOKEN_BLOCK_END,
                                           .text = {ending, 2}},
                        at));
            step_behind(l, at, 2, has_sign ? c : 0, !is_output);
            return BT_OK;
        }
        if (isdigit((unsigned char)c)) {
            BT_TRY(number(l));
        } else if (c == '"' || c == '\'') {
            BT_TRY(string(l));
        } else if (isalpha((unsigned char)c) || c == '_') {
            size_t start = l->at;
            while (l->at < l->n && (isalnum((unsigned char)l->src[l->at]) || l->src[l->at] == '_'))
                l->at++;
            BT_TRY(push(l,
                        (struct bt_jtoken){BT_JTOKEN_NAME, .text = {l->src + start, l->at - start}},
                        start));
        } else {
            BT_TRY(operator_token(l, &balance));
        }
    }
}

/* Copies the source with \r\n and \r as \n, and without its last line end. */
static bt_status normalise(struct lexer *l, struct bt_slice source) {
    l->src = bt_arena_take(l->arena, source.n_bytes + 1);
    if (!l->src)
        return bt_fail(l->err, BT_E_NO_MEMORY, "no memory for a chat template");
    for (size_t i = 0; i < source.n_bytes; i++) {
        char c = source.data[i];
        if (c == '\r' && i + 1 < source.n_bytes && source.data[i + 1] == '\n')
            continue;
        l->src[l->n++] = c == '\r' ? '\n' : c;
    }
    if (l->n && l->src[l->n - 1] == '\n')
        l->n--;
    if (l->n && memchr(l->src, 0, l->n))
        return bt_fail(l->err, BT_E_INVALID, "the chat template has a NUL byte");
    return BT_OK;
}

bt_status bt_jinja_lexer_run(struct bt_slice source, struct bt_arena *arena,
                             struct bt_jtoken **tokens, struct bt_error *err) {
    struct lexer l = {.line = 1, .line_starts = true, .arena = arena, .err = err};
    if (!bt_utf8_is_valid(source.data, source.n_bytes))
        return bt_fail(err, BT_E_INVALID, "the chat template is not valid UTF-8");
    BT_TRY(normalise(&l, source));
    while (l.at < l.n) {
        size_t start = l.at, at = start;
        while (at < l.n && !(l.src[at] == '{' && at + 1 < l.n && strchr("{%#", l.src[at + 1])))
            at++;
        char kind = at < l.n ? l.src[at + 1] : 0, sign = 0;
        if (!kind) {
            BT_TRY(push(&l,
                        (struct bt_jtoken){BT_JTOKEN_TEXT, .text = {l.src + start, l.n - start}},
                        start));
            l.at = l.n;
            break;
        }
        size_t inner = at + 2;
        if (inner < l.n && (l.src[inner] == '-' || l.src[inner] == '+'))
            sign = l.src[inner++];
        BT_TRY(push_text(&l, start, at, sign, kind == '{'));
        l.at = inner;
        size_t end;
        char end_sign;
        if (kind == '#') {
            BT_TRY(comment(&l, inner));
        } else if (kind == '%' && one_word_tag(&l, inner, "raw", &end, &end_sign)) {
            step_behind(&l, end - 2, 2, end_sign, false);
            BT_TRY(raw(&l, l.at));
        } else {
            BT_TRY(push(
                &l,
                (struct bt_jtoken){kind == '{' ? BT_JTOKEN_OUTPUT_BEGIN : BT_JTOKEN_BLOCK_BEGIN,
                                   .text = {l.src + at, 2}},
                at));
            BT_TRY(tag(&l, kind == '{'));
        }
    }
    BT_TRY(push(&l, (struct bt_jtoken){BT_JTOKEN_END, .text = {"the end", 7}}, l.n));
    *tokens = l.tokens;
    return BT_OK;
}

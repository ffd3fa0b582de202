/* String operations; each carries the origin of every byte along. */
#include "common/text/jinja_string.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "common/base/assert.h"
#include "common/text/utf8.h"

struct bt_jstring bt_jstring_part(const struct bt_jstring *s, size_t start, size_t end) {
    return (struct bt_jstring){.data = s->data ? s->data + start : NULL,
                               .n_bytes = end - start,
                               .mask = s->mask ? s->mask + start : NULL,
                               .tainted = s->tainted};
}

bool bt_jstring_find(const struct bt_jstring *s, const struct bt_jstring *what, size_t at,
                     size_t *place) {
    if (what->n_bytes > s->n_bytes - at)
        return false;
    if (!what->n_bytes) {
        *place = at;
        return true;
    }
    BT_ASSERT(s->data);
    const char *found = memmem(s->data + at, s->n_bytes - at, what->data, what->n_bytes);
    if (found)
        *place = (size_t)(found - s->data);
    return found != NULL;
}

static bool stands_at(const struct bt_jstring *s, const struct bt_jstring *what, size_t at) {
    return !what->n_bytes || !memcmp(s->data + at, what->data, what->n_bytes);
}

bool bt_jstring_starts(const struct bt_jstring *s, const struct bt_jstring *what) {
    return what->n_bytes <= s->n_bytes && stands_at(s, what, 0);
}

bool bt_jstring_ends(const struct bt_jstring *s, const struct bt_jstring *what) {
    return what->n_bytes <= s->n_bytes && stands_at(s, what, s->n_bytes - what->n_bytes);
}

/* Copies s without blanks around it into text, a C string; false if it does not fit. */
static bool number_text(const struct bt_jstring *s, char *text, size_t text_bytes) {
    size_t start = 0, end = s->n_bytes;
    while (start < end && isspace((unsigned char)s->data[start]))
        start++;
    while (end > start && isspace((unsigned char)s->data[end - 1]))
        end--;
    if (start == end || end - start >= text_bytes)
        return false;
    memcpy(text, s->data + start, end - start);
    text[end - start] = 0;
    return strlen(text) == end - start;
}

bool bt_jstring_to_int(const struct bt_jstring *s, int64_t *out) {
    char text[32], *end;
    if (!number_text(s, text, sizeof text))
        return false;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || *end)
        return false;
    *out = value;
    return true;
}

bool bt_jstring_to_real(const struct bt_jstring *s, double *out) {
    char text[64], *end;
    if (!number_text(s, text, sizeof text) || strpbrk(text, "xXpPnN"))
        return false;
    double value = strtod(text, &end);
    if (*end)
        return false;
    *out = value;
    return true;
}

bool bt_jinja_is_blank(uint32_t c) {
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Whether the character at p is to be stripped. */
static bool is_stripped(const struct bt_jstring *chars, const char *p, size_t n,
                        uint32_t code_point) {
    if (!chars)
        return bt_jinja_is_blank(code_point);
    for (size_t at = 0; at < chars->n_bytes;) {
        struct bt_utf8_step step = bt_utf8_next(chars->data + at, chars->n_bytes - at);
        if (step.n_bytes == n && !memcmp(chars->data + at, p, n))
            return true;
        at += step.n_bytes;
    }
    return false;
}

bt_status bt_jinja_strip(struct bt_jinja *j, const struct bt_jstring *s,
                         const struct bt_jstring *chars, bool left, bool right,
                         struct bt_jvalue *out) {
    size_t start = 0, end = s->n_bytes, cost = chars ? 1 + chars->n_bytes : 1;
    while (left && start < end) {
        struct bt_utf8_step step = bt_utf8_next(s->data + start, end - start);
        BT_TRY(bt_jinja_spend(j, cost / 8));
        if (!is_stripped(chars, s->data + start, step.n_bytes, step.code_point))
            break;
        start += step.n_bytes;
    }
    while (right && start < end) {
        size_t at = end - 1;
        while (at > start && ((uint8_t)s->data[at] & 0xc0) == 0x80)
            at--;
        struct bt_utf8_step step = bt_utf8_next(s->data + at, end - at);
        BT_TRY(bt_jinja_spend(j, cost / 8));
        if (!is_stripped(chars, s->data + at, step.n_bytes, step.code_point))
            break;
        end = at;
    }
    return bt_jinja_string(j, bt_jstring_part(s, start, end), out);
}

bt_status bt_jinja_change_case(struct bt_jinja *j, const struct bt_jstring *s, enum bt_jcase how,
                               struct bt_jvalue *out) {
    struct bt_jbuffer b;
    BT_TRY(bt_jbuffer_init(j, &b, BT_JINJA_MEMORY_BYTES));
    bool in_word = false;
    for (size_t at = 0; at < s->n_bytes;) {
        struct bt_utf8_step step = bt_utf8_next(s->data + at, s->n_bytes - at);
        bool upper = how == BT_JCASE_UPPER || (how == BT_JCASE_CAPITALIZE && at == 0) ||
                     (how == BT_JCASE_TITLE && !in_word);
        int32_t c = (int32_t)step.code_point;
        int32_t changed = upper ? utf8proc_toupper(c) : utf8proc_tolower(c);
        utf8proc_category_t category = utf8proc_category(c);
        in_word = category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
        char text[4];
        size_t n = bt_utf8_encode((uint32_t)changed, text);
        BT_TRY(bt_jbuffer_add_bytes(j, &b, text, n, s->mask ? s->mask[at] : s->tainted));
        at += step.n_bytes;
    }
    BT_TRY(bt_jinja_spend(j, s->n_bytes / 8));
    return bt_jinja_string(j, bt_jbuffer_string(&b), out);
}

bt_status bt_jinja_replace(struct bt_jinja *j, const struct bt_jstring *s,
                           const struct bt_jstring *from, const struct bt_jstring *to, int64_t max,
                           struct bt_jvalue *out) {
    struct bt_jbuffer b;
    if (!from->n_bytes)
        return bt_jinja_fail(j, BT_E_UNSUPPORTED, "replacing an empty string");
    BT_TRY(bt_jbuffer_init(j, &b, BT_JINJA_MEMORY_BYTES));
    BT_TRY(bt_jinja_spend(j, s->n_bytes / 64));
    size_t at = 0, place;
    for (; max != 0 && bt_jstring_find(s, from, at, &place); max--) {
        struct bt_jstring before = bt_jstring_part(s, at, place);
        BT_TRY(bt_jinja_spend(j, 1));
        BT_TRY(bt_jbuffer_add(j, &b, &before));
        BT_TRY(bt_jbuffer_add(j, &b, to));
        at = place + from->n_bytes;
    }
    struct bt_jstring rest = bt_jstring_part(s, at, s->n_bytes);
    BT_TRY(bt_jbuffer_add(j, &b, &rest));
    return bt_jinja_string(j, bt_jbuffer_string(&b), out);
}

/* Next separator in [start, end), seen from the side where splitting begins; false: none. */
static bool next_separator(const struct bt_jstring *s, const struct bt_jstring *sep, size_t start,
                           size_t end, bool from_right, size_t *place) {
    struct bt_jstring part = bt_jstring_part(s, start, end);
    if (!from_right) {
        if (!bt_jstring_find(&part, sep, 0, place))
            return false;
        *place += start;
        return true;
    }
    for (size_t at = part.n_bytes; part.data && at >= sep->n_bytes; at--) {
        if (!memcmp(part.data + at - sep->n_bytes, sep->data, sep->n_bytes)) {
            *place = start + at - sep->n_bytes;
            return true;
        }
    }
    return false;
}

/* Parts found, before they become a list. */
struct parts {
    struct bt_text_span *spans;
    size_t n, capacity;
};

static bt_status add_part(struct bt_jinja *j, struct parts *parts, size_t start, size_t end) {
    BT_TRY(bt_jinja_spend(j, 1));
    if (parts->n == parts->capacity) {
        void *memory = NULL;
        size_t capacity = 2 * parts->capacity + 8;
        BT_TRY(bt_jinja_take(j, capacity * sizeof *parts->spans, &memory));
        if (parts->n)
            memcpy(memory, parts->spans, parts->n * sizeof *parts->spans);
        parts->spans = memory;
        parts->capacity = capacity;
    }
    parts->spans[parts->n++] = (struct bt_text_span){start, end};
    return BT_OK;
}

static size_t skip_blanks(const struct bt_jstring *s, size_t at, bool blank) {
    while (at < s->n_bytes) {
        struct bt_utf8_step step = bt_utf8_next(s->data + at, s->n_bytes - at);
        if (bt_jinja_is_blank(step.code_point) != blank)
            break;
        at += step.n_bytes;
    }
    return at;
}

static bt_status split_at_blanks(struct bt_jinja *j, const struct bt_jstring *s, int64_t max,
                                 struct parts *parts) {
    for (size_t at = skip_blanks(s, 0, true); at < s->n_bytes; max--) {
        size_t end = max == 0 ? s->n_bytes : skip_blanks(s, at, false);
        BT_TRY(add_part(j, parts, at, end));
        at = skip_blanks(s, end, true);
    }
    return BT_OK;
}

bt_status bt_jinja_split(struct bt_jinja *j, const struct bt_jstring *s,
                         const struct bt_jstring *sep, int64_t max, bool from_right,
                         struct bt_jvalue *out) {
    struct parts parts = {0};
    struct bt_jvalue *items;
    size_t start = 0, end = s->n_bytes, place;
    BT_TRY(bt_jinja_spend(j, s->n_bytes / 64));
    if (!sep) {
        if (from_right && max >= 0)
            return bt_jinja_fail(j, BT_E_UNSUPPORTED, "rsplit at blanks with a limit");
        BT_TRY(split_at_blanks(j, s, max, &parts));
    } else if (!sep->n_bytes) {
        return bt_jinja_fail(j, BT_E_INVALID, "split by an empty separator");
    } else {
        for (; max != 0 && next_separator(s, sep, start, end, from_right, &place); max--) {
            if (from_right) {
                BT_TRY(add_part(j, &parts, place + sep->n_bytes, end));
                end = place;
            } else {
                BT_TRY(add_part(j, &parts, start, place));
                start = place + sep->n_bytes;
            }
        }
        BT_TRY(add_part(j, &parts, start, end));
    }
    BT_TRY(bt_jinja_list(j, parts.n, &items, out));
    for (size_t i = 0; i < parts.n; i++) {
        struct bt_text_span span = parts.spans[from_right && sep ? parts.n - 1 - i : i];
        BT_TRY(bt_jinja_string(j, bt_jstring_part(s, span.start, span.end), &items[i]));
    }
    return BT_OK;
}

bt_status bt_jbuffer_init(struct bt_jinja *j, struct bt_jbuffer *b, size_t limit) {
    (void)j;
    *b = (struct bt_jbuffer){.limit = limit};
    return BT_OK;
}

static bt_status grow(struct bt_jinja *j, struct bt_jbuffer *b, size_t n_bytes) {
    if (n_bytes > b->limit - b->n_bytes)
        return bt_jinja_fail(j, BT_E_TOO_LARGE, "the text is longer than the %zu bytes allowed",
                             b->limit);
    size_t needed = b->n_bytes + n_bytes;
    if (needed <= b->capacity)
        return BT_OK;
    size_t capacity = b->capacity ? b->capacity : 64;
    while (capacity < needed)
        capacity *= 2;
    void *data = NULL, *mask = NULL;
    BT_TRY(bt_jinja_take(j, capacity, &data));
    BT_TRY(bt_jinja_take(j, capacity, &mask));
    if (b->n_bytes) {
        memcpy(data, b->data, b->n_bytes);
        memcpy(mask, b->mask, b->n_bytes);
    }
    b->data = data;
    b->mask = mask;
    b->capacity = capacity;
    return BT_OK;
}

bt_status bt_jbuffer_add(struct bt_jinja *j, struct bt_jbuffer *b, const struct bt_jstring *s) {
    if (!s->n_bytes)
        return BT_OK;
    if (!s->mask)
        return bt_jbuffer_add_bytes(j, b, s->data, s->n_bytes, s->tainted);
    BT_ASSERT(s->data);
    BT_TRY(grow(j, b, s->n_bytes));
    memcpy(b->data + b->n_bytes, s->data, s->n_bytes);
    memcpy(b->mask + b->n_bytes, s->mask, s->n_bytes);
    /* A part of a mixed string may be all of one kind; to take it as mixed costs only memory. */
    b->has_trusted = b->has_tainted = true;
    b->n_bytes += s->n_bytes;
    return BT_OK;
}

bt_status bt_jbuffer_add_bytes(struct bt_jinja *j, struct bt_jbuffer *b, const char *bytes,
                               size_t n_bytes, bool tainted) {
    if (!n_bytes)
        return BT_OK;
    BT_ASSERT(bytes);
    BT_TRY(grow(j, b, n_bytes));
    memcpy(b->data + b->n_bytes, bytes, n_bytes);
    memset(b->mask + b->n_bytes, tainted, n_bytes);
    b->has_trusted |= !tainted;
    b->has_tainted |= tainted;
    b->n_bytes += n_bytes;
    return BT_OK;
}

struct bt_jstring bt_jbuffer_string(const struct bt_jbuffer *b) {
    bool is_mixed = b->has_trusted && b->has_tainted;
    return (struct bt_jstring){.data = b->data,
                               .n_bytes = b->n_bytes,
                               .mask = is_mixed ? b->mask : NULL,
                               .tainted = b->has_tainted};
}

/* Writes values as Python's str(), repr() and json.dumps() do. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/jinja_string.h"
#include "common/text/utf8.h"

void bt_jinja_real_text(double value, char out[40]) {
    if (isnan(value) || isinf(value)) {
        snprintf(out, 40, "%s", isnan(value) ? "nan" : value < 0 ? "-inf" : "inf");
        return;
    }
    char digits[32];
    int precision = 0; /* digits behind the first */
    for (; precision < 17; precision++) {
        snprintf(digits, sizeof digits, "%.*e", precision, value);
        double back = strtod(digits, NULL);
        if (!(back < value) && !(back > value))
            break;
    }
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16) { /* digits is "1.5e+20", which is Python's form too */
        snprintf(out, 40, "%s", digits);
        return;
    }
    int behind = precision - exponent;
    snprintf(out, 40, "%.*f", behind > 0 ? behind : 0, value);
    if (behind <= 0)
        strcat(out, ".0");
}

static bt_status add_text(struct bt_jinja *j, struct bt_jbuffer *b, const char *text,
                          bool tainted) {
    return bt_jbuffer_add_bytes(j, b, text, strlen(text), tainted);
}

/* Scalars that all three forms share but for their names. */
static bt_status add_number(struct bt_jinja *j, struct bt_jbuffer *b,
                            const struct bt_jvalue *value) {
    char text[40];
    if (value->kind == BT_J_INT)
        snprintf(text, sizeof text, "%lld", (long long)value->integer);
    else
        bt_jinja_real_text(value->real, text);
    return add_text(j, b, text, value->tainted);
}

static bt_status too_deep(struct bt_jinja *j) {
    return bt_jinja_fail(j, BT_E_TOO_LARGE, "values nested deeper than %d", BT_JINJA_DATA_DEPTH);
}

/* repr of a string: Python prefers single quotes, and double ones around a single one. */
static bt_status add_quoted(struct bt_jinja *j, struct bt_jbuffer *b, const struct bt_jstring *s) {
    bool has_single = s->n_bytes && memchr(s->data, '\'', s->n_bytes);
    bool has_double = s->n_bytes && memchr(s->data, '"', s->n_bytes);
    char quote = has_single && !has_double ? '"' : '\'';
    bool tainted = s->mask || s->tainted;
    BT_TRY(bt_jinja_spend(j, 1 + s->n_bytes / 8));
    BT_TRY(bt_jbuffer_add_bytes(j, b, &quote, 1, tainted));
    for (size_t i = 0; i < s->n_bytes; i++) {
        char text[8];
        unsigned char c = (unsigned char)s->data[i];
        if (c == '\\' || c == (unsigned char)quote)
            snprintf(text, sizeof text, "\\%c", c);
        else if (c == '\n' || c == '\r' || c == '\t')
            snprintf(text, sizeof text, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (c < 0x20 || c == 0x7f)
            snprintf(text, sizeof text, "\\x%02x", c);
        else
            snprintf(text, sizeof text, "%c", c);
        BT_TRY(add_text(j, b, text, tainted));
    }
    return bt_jbuffer_add_bytes(j, b, &quote, 1, tainted);
}

/* NOLINTBEGIN(misc-no-recursion): data nests at most BT_JINJA_DATA_DEPTH deep, counted here. */
static bt_status repr_at(struct bt_jinja *j, struct bt_jbuffer *b, const struct bt_jvalue *value,
                         int depth) {
    BT_TRY(bt_jinja_spend(j, 1));
    if (depth == BT_JINJA_DATA_DEPTH)
        return too_deep(j);
    bool t = value->tainted;
    switch (value->kind) {
    case BT_J_NONE:
        return add_text(j, b, "None", t);
    case BT_J_BOOL:
        return add_text(j, b, value->boolean ? "True" : "False", t);
    case BT_J_INT:
    case BT_J_FLOAT:
        return add_number(j, b, value);
    case BT_J_STRING:
        return add_quoted(j, b, value->string);
    case BT_J_LIST:
        BT_TRY(add_text(j, b, value->is_tuple ? "(" : "[", t));
        for (size_t i = 0; i < value->list->n_items; i++) {
            BT_TRY(add_text(j, b, i ? ", " : "", t));
            BT_TRY(repr_at(j, b, &value->list->items[i], depth + 1));
        }
        if (value->is_tuple)
            return add_text(j, b, value->list->n_items == 1 ? ",)" : ")", t);
        return add_text(j, b, "]", t);
    case BT_J_DICT:
        BT_TRY(add_text(j, b, "{", t));
        for (size_t i = 0; i < value->dict->n_entries; i++) {
            BT_TRY(add_text(j, b, i ? ", " : "", t));
            BT_TRY(repr_at(j, b, &value->dict->entries[i].key, depth + 1));
            BT_TRY(add_text(j, b, ": ", t));
            BT_TRY(repr_at(j, b, &value->dict->entries[i].value, depth + 1));
        }
        return add_text(j, b, "}", t);
    case BT_J_UNDEFINED:
        return add_text(j, b, depth ? "Undefined" : "", t);
    default:
        return bt_jinja_fail(j, BT_E_INVALID, "a %s cannot be written", bt_jvalue_type_name(value));
    }
}
/* NOLINTEND(misc-no-recursion) */

bt_status bt_jinja_repr(struct bt_jinja *j, struct bt_jbuffer *b, const struct bt_jvalue *value) {
    return repr_at(j, b, value, 0);
}

bt_status bt_jinja_print(struct bt_jinja *j, struct bt_jbuffer *b, const struct bt_jvalue *value) {
    if (value->kind == BT_J_STRING)
        return bt_jbuffer_add(j, b, value->string);
    return repr_at(j, b, value, 0);
}

bt_status bt_jinja_str(struct bt_jinja *j, const struct bt_jvalue *value,
                       const struct bt_jstring **out) {
    struct bt_jbuffer b;
    struct bt_jvalue made;
    if (value->kind == BT_J_STRING) {
        *out = value->string;
        return BT_OK;
    }
    BT_TRY(bt_jbuffer_init(j, &b, BT_JINJA_MEMORY_BYTES));
    BT_TRY(repr_at(j, &b, value, 0));
    BT_TRY(bt_jinja_string(j, bt_jbuffer_string(&b), &made));
    *out = made.string;
    return BT_OK;
}

static bt_status add_json_string(struct bt_jinja *j, struct bt_jbuffer *b,
                                 const struct bt_jstring *s, bool ascii) {
    bool t = s->mask || s->tainted;
    static const char plain[] = "\"\\\n\r\t\b\f", escaped[] = "\"\\nrtbf";
    BT_TRY(bt_jinja_spend(j, 1 + s->n_bytes / 8));
    BT_TRY(add_text(j, b, "\"", t));
    for (size_t at = 0; at < s->n_bytes;) {
        struct bt_utf8_step step = bt_utf8_next(s->data + at, s->n_bytes - at);
        uint32_t c = step.code_point;
        const char *special = c && c < 0x80 ? strchr(plain, (int)c) : NULL;
        char text[16];
        if (special)
            snprintf(text, sizeof text, "\\%c", escaped[special - plain]);
        else if (c < 0x20 || (ascii && c >= 0x7f && c < 0x10000 && c != 0x7f))
            snprintf(text, sizeof text, "\\u%04x", c);
        else if (ascii && c >= 0x10000)
            snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10),
                     0xdc00 + ((c - 0x10000) & 0x3ff));
        else
            snprintf(text, sizeof text, "%.*s", step.n_bytes, s->data + at);
        BT_TRY(add_text(j, b, text, t));
        at += step.n_bytes;
    }
    return add_text(j, b, "\"", t);
}

/* A line end and the indentation of `depth`, where the style is indented. */
static bt_status add_break(struct bt_jinja *j, struct bt_jbuffer *b,
                           const struct bt_jjson_style *style, int depth, bool t) {
    if (style->indent < 0)
        return BT_OK;
    BT_TRY(add_text(j, b, "\n", t));
    for (int64_t i = 0; i < style->indent * depth; i++)
        BT_TRY(add_text(j, b, " ", t));
    return BT_OK;
}

static bt_status add_separator(struct bt_jinja *j, struct bt_jbuffer *b,
                               const struct bt_jstring *own, const char *standard, bool t) {
    return own ? bt_jbuffer_add(j, b, own) : add_text(j, b, standard, t);
}

static int by_key(const void *a, const void *b) {
    const struct bt_jvalue *x = &((const struct bt_jentry *)a)->key;
    const struct bt_jvalue *y = &((const struct bt_jentry *)b)->key;
    size_t n = x->string->n_bytes < y->string->n_bytes ? x->string->n_bytes : y->string->n_bytes;
    int order = n ? memcmp(x->string->data, y->string->data, n) : 0;
    return order ? order
                 : (x->string->n_bytes > y->string->n_bytes) -
                       (x->string->n_bytes < y->string->n_bytes);
}

/* The entries, sorted by key where the style says so. */
static bt_status entries_of(struct bt_jinja *j, const struct bt_jdict *dict, bool sort,
                            const struct bt_jentry **out) {
    *out = dict->entries;
    if (!sort || !dict->n_entries)
        return BT_OK;
    void *copy = NULL;
    BT_TRY(bt_jinja_take(j, dict->n_entries * sizeof **out, &copy));
    memcpy(copy, dict->entries, dict->n_entries * sizeof **out);
    for (size_t i = 0; i < dict->n_entries; i++)
        if (dict->entries[i].key.kind != BT_J_STRING)
            return bt_jinja_fail(j, BT_E_UNSUPPORTED, "sorting keys that are not strings");
    qsort(copy, dict->n_entries, sizeof **out, by_key);
    *out = copy;
    return BT_OK;
}

static bt_status add_scalar(struct bt_jinja *j, struct bt_jbuffer *b, const struct bt_jvalue *value,
                            bool ascii) {
    switch (value->kind) {
    case BT_J_NONE:
        return add_text(j, b, "null", value->tainted);
    case BT_J_BOOL:
        return add_text(j, b, value->boolean ? "true" : "false", value->tainted);
    case BT_J_INT:
    case BT_J_FLOAT:
        return add_number(j, b, value);
    case BT_J_STRING:
        return add_json_string(j, b, value->string, ascii);
    default:
        return bt_jinja_fail(j, BT_E_INVALID, "a value of type %s cannot be written as JSON",
                             bt_jvalue_type_name(value));
    }
}

/* A key is a string in JSON, whatever it was. */
static bt_status add_key(struct bt_jinja *j, struct bt_jbuffer *b, const struct bt_jvalue *key,
                         bool ascii) {
    if (key->kind == BT_J_STRING)
        return add_json_string(j, b, key->string, ascii);
    BT_TRY(add_text(j, b, "\"", key->tainted));
    BT_TRY(add_scalar(j, b, key, ascii));
    return add_text(j, b, "\"", key->tainted);
}

/* NOLINTBEGIN(misc-no-recursion): data nests at most BT_JINJA_DATA_DEPTH deep, counted here. */
static bt_status json_at(struct bt_jinja *j, struct bt_jbuffer *b, const struct bt_jvalue *value,
                         const struct bt_jjson_style *style, int depth) {
    BT_TRY(bt_jinja_spend(j, 1));
    if (depth == BT_JINJA_DATA_DEPTH)
        return too_deep(j);
    bool t = value->tainted, is_dict = value->kind == BT_J_DICT;
    if (value->kind != BT_J_LIST && !is_dict)
        return add_scalar(j, b, value, style->ensure_ascii);
    const struct bt_jentry *entries = NULL;
    size_t n = is_dict ? value->dict->n_entries : value->list->n_items;
    if (is_dict)
        BT_TRY(entries_of(j, value->dict, style->sort_keys, &entries));
    BT_TRY(add_text(j, b, is_dict ? "{" : "[", t));
    for (size_t i = 0; i < n; i++) {
        if (i)
            BT_TRY(add_separator(j, b, style->item_separator, style->indent < 0 ? ", " : ",", t));
        BT_TRY(add_break(j, b, style, depth + 1, t));
        if (is_dict) {
            BT_TRY(add_key(j, b, &entries[i].key, style->ensure_ascii));
            BT_TRY(add_separator(j, b, style->key_separator, ": ", t));
        }
        BT_TRY(
            json_at(j, b, is_dict ? &entries[i].value : &value->list->items[i], style, depth + 1));
    }
    if (n)
        BT_TRY(add_break(j, b, style, depth, t));
    return add_text(j, b, is_dict ? "}" : "]", t);
}
/* NOLINTEND(misc-no-recursion) */

bt_status bt_jinja_json(struct bt_jinja *j, struct bt_jbuffer *b, const struct bt_jvalue *value,
                        const struct bt_jjson_style *style) {
    return json_at(j, b, value, style, 0);
}

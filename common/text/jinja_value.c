/* Making, comparing and searching the values of a chat template. */
#include "common/text/jinja_value.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/text/jinja_string.h"
#include "common/text/utf8.h"

void bt_jinja_explain(const struct bt_jinja *j, bt_status status, const char *format, ...) {
    char text[BT_ERROR_TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    (void)bt_fail(j->err, status, "chat template line %u: %s", j->line, text);
}

bt_status bt_jinja_spend(struct bt_jinja *j, size_t steps) {
    if (steps > INT32_MAX || (j->steps_left -= (int64_t)steps) < 0)
        return bt_jinja_fail(j, BT_E_TOO_LARGE, "the conversation needs more work than is allowed");
    return BT_OK;
}

struct bt_jvalue bt_jvalue_bool(bool value) {
    return (struct bt_jvalue){.kind = BT_J_BOOL, .boolean = value};
}

struct bt_jvalue bt_jvalue_int(int64_t value) {
    return (struct bt_jvalue){.kind = BT_J_INT, .integer = value};
}

bt_status bt_jinja_string(struct bt_jinja *j, struct bt_jstring string, struct bt_jvalue *out) {
    void *memory = NULL;
    BT_TRY(bt_jinja_take(j, sizeof string, &memory));
    memcpy(memory, &string, sizeof string);
    *out = (struct bt_jvalue){.kind = BT_J_STRING, .string = memory};
    return BT_OK;
}

bt_status bt_jinja_literal(struct bt_jinja *j, const char *text, struct bt_jvalue *out) {
    return bt_jinja_string(j, (struct bt_jstring){.data = text, .n_bytes = strlen(text)}, out);
}

bt_status bt_jinja_list(struct bt_jinja *j, size_t n, struct bt_jvalue **items,
                        struct bt_jvalue *out) {
    void *memory = NULL, *list_memory = NULL;
    if (n > BT_JINJA_MEMORY_BYTES / sizeof **items)
        return bt_jinja_fail(j, BT_E_TOO_LARGE, "a list of %zu items", n);
    BT_TRY(bt_jinja_take(j, sizeof(struct bt_jlist), &list_memory));
    BT_TRY(bt_jinja_take(j, n * sizeof **items, &memory));
    BT_TRY(bt_jinja_spend(j, n / 8));
    struct bt_jlist *list = list_memory;
    list->items = *items = memory;
    list->n_items = n;
    *out = (struct bt_jvalue){.kind = BT_J_LIST, .list = list};
    return BT_OK;
}

bt_status bt_jinja_dict(struct bt_jinja *j, size_t capacity, struct bt_jvalue *out) {
    void *memory = NULL, *entries = NULL;
    if (capacity > BT_JINJA_MEMORY_BYTES / sizeof(struct bt_jentry))
        return bt_jinja_fail(j, BT_E_TOO_LARGE, "a dict of %zu entries", capacity);
    BT_TRY(bt_jinja_take(j, sizeof(struct bt_jdict), &memory));
    BT_TRY(bt_jinja_take(j, capacity * sizeof(struct bt_jentry), &entries));
    struct bt_jdict *dict = memory;
    dict->entries = entries;
    dict->capacity = capacity;
    *out = (struct bt_jvalue){.kind = BT_J_DICT, .dict = dict};
    return BT_OK;
}

bt_status bt_jinja_dict_set(struct bt_jinja *j, struct bt_jdict *dict, struct bt_jvalue key,
                            struct bt_jvalue value) {
    struct bt_jentry *entry;
    if (key.kind != BT_J_STRING && !bt_jvalue_is_number(&key) && key.kind != BT_J_NONE)
        return bt_jinja_fail(j, BT_E_INVALID, "a %s cannot be a key", bt_jvalue_type_name(&key));
    BT_TRY(bt_jvalue_find(j, dict, &key, &entry));
    if (entry) {
        entry->value = value;
        return BT_OK;
    }
    if (dict->n_entries == dict->capacity) {
        size_t capacity = 2 * dict->capacity + 4;
        void *memory = NULL;
        BT_TRY(bt_jinja_take(j, capacity * sizeof *entry, &memory));
        if (dict->n_entries)
            memcpy(memory, dict->entries, dict->n_entries * sizeof *entry);
        dict->entries = memory;
        dict->capacity = capacity;
    }
    dict->entries[dict->n_entries++] = (struct bt_jentry){key, value};
    return BT_OK;
}

const char *bt_jvalue_type_name(const struct bt_jvalue *value) {
    static const char *const names[] = {
        [BT_J_MISSING] = "missing",     [BT_J_UNDEFINED] = "undefined", [BT_J_NONE] = "none",
        [BT_J_BOOL] = "boolean",        [BT_J_INT] = "integer",         [BT_J_FLOAT] = "float",
        [BT_J_STRING] = "string",       [BT_J_LIST] = "list",           [BT_J_DICT] = "mapping",
        [BT_J_NAMESPACE] = "namespace", [BT_J_LOOP] = "loop",           [BT_J_MACRO] = "macro",
        [BT_J_METHOD] = "method",       [BT_J_FUNCTION] = "function",
    };
    return names[value->kind];
}

bool bt_jvalue_is_string(const struct bt_jvalue *value, const char *text) {
    return value->kind == BT_J_STRING && value->string->n_bytes == strlen(text) &&
           !memcmp(value->string->data, text, value->string->n_bytes);
}

bool bt_jvalue_truth(const struct bt_jvalue *value) {
    switch (value->kind) {
    case BT_J_MISSING:
    case BT_J_UNDEFINED:
    case BT_J_NONE:
        return false;
    case BT_J_BOOL:
        return value->boolean;
    case BT_J_INT:
        return value->integer != 0;
    case BT_J_FLOAT:
        return value->real < 0 || value->real > 0;
    case BT_J_STRING:
        return value->string->n_bytes > 0;
    case BT_J_LIST:
        return value->list->n_items > 0;
    case BT_J_DICT:
        return value->dict->n_entries > 0;
    case BT_J_NAMESPACE:
    case BT_J_LOOP:
    case BT_J_MACRO:
    case BT_J_METHOD:
    case BT_J_FUNCTION:
        break;
    }
    return true;
}

bool bt_jvalue_is_number(const struct bt_jvalue *value) {
    return value->kind == BT_J_BOOL || value->kind == BT_J_INT || value->kind == BT_J_FLOAT;
}

double bt_jvalue_real(const struct bt_jvalue *value) {
    return value->kind == BT_J_FLOAT ? value->real : (double)bt_jvalue_integer(value);
}

int64_t bt_jvalue_integer(const struct bt_jvalue *value) {
    return value->kind == BT_J_BOOL ? value->boolean : value->integer;
}

/* NOLINTBEGIN(misc-no-recursion): data nests at most BT_JINJA_DATA_DEPTH deep, counted here. */
static bt_status equal_at(struct bt_jinja *j, const struct bt_jvalue *a, const struct bt_jvalue *b,
                          int depth, bool *out) {
    BT_TRY(bt_jinja_spend(j, 1));
    if (depth == BT_JINJA_DATA_DEPTH)
        return bt_jinja_fail(j, BT_E_TOO_LARGE, "values nested deeper than %d",
                             BT_JINJA_DATA_DEPTH);
    *out = false;
    if (bt_jvalue_is_number(a) && bt_jvalue_is_number(b)) {
        if (a->kind == BT_J_FLOAT || b->kind == BT_J_FLOAT) {
            double x = bt_jvalue_real(a), y = bt_jvalue_real(b);
            *out = x >= y && x <= y;
        } else {
            *out = bt_jvalue_integer(a) == bt_jvalue_integer(b);
        }
        return BT_OK;
    }
    if (a->kind != b->kind)
        return BT_OK;
    if (a->kind == BT_J_STRING) {
        *out = a->string->n_bytes == b->string->n_bytes &&
               (a->string->n_bytes == 0 ||
                !memcmp(a->string->data, b->string->data, a->string->n_bytes));
        return bt_jinja_spend(j, *out ? a->string->n_bytes / 64 : 0);
    }
    if (a->kind == BT_J_LIST) {
        *out = a->list->n_items == b->list->n_items;
        for (size_t i = 0; *out && i < a->list->n_items; i++)
            BT_TRY(equal_at(j, &a->list->items[i], &b->list->items[i], depth + 1, out));
        return BT_OK;
    }
    if (a->kind == BT_J_DICT) {
        *out = a->dict->n_entries == b->dict->n_entries;
        for (size_t i = 0; *out && i < a->dict->n_entries; i++) {
            struct bt_jentry *entry;
            BT_TRY(bt_jvalue_find(j, b->dict, &a->dict->entries[i].key, &entry));
            *out = entry != NULL;
            if (entry)
                BT_TRY(equal_at(j, &a->dict->entries[i].value, &entry->value, depth + 1, out));
        }
        return BT_OK;
    }
    *out = a->kind == BT_J_NONE || a->kind == BT_J_UNDEFINED ||
           (a->kind == BT_J_NAMESPACE && a->dict == b->dict);
    return BT_OK;
}
/* NOLINTEND(misc-no-recursion) */

bt_status bt_jvalue_equal(struct bt_jinja *j, const struct bt_jvalue *a, const struct bt_jvalue *b,
                          bool *out) {
    return equal_at(j, a, b, 0, out);
}

bt_status bt_jvalue_order(struct bt_jinja *j, const struct bt_jvalue *a, const struct bt_jvalue *b,
                          int *out) {
    if (bt_jvalue_is_number(a) && bt_jvalue_is_number(b)) {
        if (a->kind != BT_J_FLOAT && b->kind != BT_J_FLOAT) {
            int64_t x = bt_jvalue_integer(a), y = bt_jvalue_integer(b);
            *out = (x > y) - (x < y);
        } else {
            double x = bt_jvalue_real(a), y = bt_jvalue_real(b);
            *out = (x > y) - (x < y);
        }
        return BT_OK;
    }
    if (a->kind != BT_J_STRING || b->kind != BT_J_STRING)
        return bt_jinja_fail(j, BT_E_INVALID, "%s and %s have no order", bt_jvalue_type_name(a),
                             bt_jvalue_type_name(b));
    /* The order of UTF-8 bytes is the order of code points. */
    size_t x = a->string->n_bytes, y = b->string->n_bytes, both = x < y ? x : y;
    int order = both ? memcmp(a->string->data, b->string->data, both) : 0;
    *out = order ? order : (x > y) - (x < y);
    return bt_jinja_spend(j, 1 + both / 64);
}

bt_status bt_jvalue_length(struct bt_jinja *j, const struct bt_jvalue *value, size_t *out) {
    *out = 0;
    if (value->kind == BT_J_STRING)
        *out = bt_utf8_count(value->string->data, value->string->n_bytes);
    else if (value->kind == BT_J_LIST)
        *out = value->list->n_items;
    else if (value->kind == BT_J_DICT)
        *out = value->dict->n_entries;
    else if (value->kind != BT_J_UNDEFINED)
        return bt_jinja_fail(j, BT_E_INVALID, "a value of type %s has no length",
                             bt_jvalue_type_name(value));
    return bt_jinja_spend(j, value->kind == BT_J_STRING ? 1 + value->string->n_bytes / 64 : 1);
}

static bt_status characters(struct bt_jinja *j, const struct bt_jstring *string,
                            const struct bt_jlist **out) {
    struct bt_jvalue list, *items;
    BT_TRY(bt_jinja_list(j, bt_utf8_count(string->data, string->n_bytes), &items, &list));
    for (size_t at = 0, i = 0; at < string->n_bytes; i++) {
        struct bt_utf8_step step = bt_utf8_next(string->data + at, string->n_bytes - at);
        BT_TRY(bt_jinja_spend(j, 1));
        BT_TRY(bt_jinja_string(j, bt_jstring_part(string, at, at + step.n_bytes), &items[i]));
        at += step.n_bytes;
    }
    *out = list.list;
    return BT_OK;
}

bt_status bt_jvalue_iterate(struct bt_jinja *j, const struct bt_jvalue *value,
                            const struct bt_jlist **out) {
    static const struct bt_jlist nothing;
    struct bt_jvalue list, *items;
    switch (value->kind) {
    case BT_J_LIST:
        *out = value->list;
        return BT_OK;
    case BT_J_UNDEFINED:
        *out = &nothing;
        return BT_OK;
    case BT_J_STRING:
        return characters(j, value->string, out);
    case BT_J_DICT:
        BT_TRY(bt_jinja_list(j, value->dict->n_entries, &items, &list));
        for (size_t i = 0; i < value->dict->n_entries; i++)
            items[i] = value->dict->entries[i].key;
        *out = list.list;
        return BT_OK;
    default:
        return bt_jinja_fail(j, BT_E_INVALID, "a value of type %s is not iterable",
                             bt_jvalue_type_name(value));
    }
}

bt_status bt_jvalue_find(struct bt_jinja *j, const struct bt_jdict *dict,
                         const struct bt_jvalue *key, struct bt_jentry **out) {
    *out = NULL;
    for (size_t i = 0; i < dict->n_entries; i++) {
        struct bt_jentry *entry = &dict->entries[i];
        bool same = false;
        if (key->kind == BT_J_STRING && entry->key.kind == BT_J_STRING)
            same = key->string->n_bytes == entry->key.string->n_bytes &&
                   (!key->string->n_bytes ||
                    !memcmp(key->string->data, entry->key.string->data, key->string->n_bytes));
        else if (key->kind == BT_J_NONE)
            same = entry->key.kind == BT_J_NONE;
        else if (bt_jvalue_is_number(key) && bt_jvalue_is_number(&entry->key))
            same = !(bt_jvalue_real(key) < bt_jvalue_real(&entry->key)) &&
                   !(bt_jvalue_real(key) > bt_jvalue_real(&entry->key));
        if (same) {
            *out = entry;
            break;
        }
    }
    return bt_jinja_spend(j, 1 + dict->n_entries / 8);
}

/* The place that Python's index i means among n; false: outside. */
static bool place_of(int64_t i, size_t n, size_t *out) {
    if (i < 0)
        i += (int64_t)n;
    if (i < 0 || (uint64_t)i >= n)
        return false;
    *out = (size_t)i;
    return true;
}

bt_status bt_jvalue_item(struct bt_jinja *j, const struct bt_jvalue *value,
                         const struct bt_jvalue *key, struct bt_jvalue *out) {
    *out = (struct bt_jvalue){.kind = BT_J_UNDEFINED};
    size_t place;
    bool is_index = key->kind == BT_J_INT || key->kind == BT_J_BOOL;
    if (value->kind == BT_J_UNDEFINED)
        return bt_jinja_fail(j, BT_E_INVALID, "%.*s is undefined",
                             value->name ? (int)value->name->n_bytes : 10,
                             value->name ? value->name->data : "the object");
    if (value->kind == BT_J_DICT || value->kind == BT_J_NAMESPACE) {
        struct bt_jentry *entry;
        BT_TRY(bt_jvalue_find(j, value->dict, key, &entry));
        if (entry)
            *out = entry->value;
    } else if (value->kind == BT_J_LIST && is_index) {
        if (place_of(bt_jvalue_integer(key), value->list->n_items, &place))
            *out = value->list->items[place];
    } else if (value->kind == BT_J_STRING && is_index) {
        const struct bt_jlist *list;
        BT_TRY(characters(j, value->string, &list));
        if (place_of(bt_jvalue_integer(key), list->n_items, &place))
            *out = list->items[place];
    }
    return BT_OK;
}

bt_status bt_jvalue_path(struct bt_jinja *j, const struct bt_jvalue *value,
                         const struct bt_jvalue *path, struct bt_jvalue *out) {
    *out = *value;
    if (path->kind != BT_J_STRING)
        return bt_jvalue_item(j, value, path, out);
    const struct bt_jstring *s = path->string;
    for (size_t start = 0; start <= s->n_bytes;) {
        size_t end = start;
        while (end < s->n_bytes && s->data[end] != '.')
            end++;
        struct bt_jvalue part, key, here = *out;
        BT_TRY(bt_jinja_string(j, bt_jstring_part(s, start, end), &part));
        key = part;
        int64_t number;
        if (bt_jstring_to_int(part.string, &number))
            key = bt_jvalue_int(number);
        BT_TRY(bt_jvalue_item(j, &here, here.kind == BT_J_LIST ? &key : &part, out));
        start = end + 1;
    }
    return BT_OK;
}

bt_status bt_jvalue_contains(struct bt_jinja *j, const struct bt_jvalue *container,
                             const struct bt_jvalue *item, bool *out) {
    *out = false;
    if (container->kind == BT_J_STRING) {
        size_t at;
        if (item->kind != BT_J_STRING)
            return bt_jinja_fail(j, BT_E_INVALID, "%s in a string", bt_jvalue_type_name(item));
        *out = bt_jstring_find(container->string, item->string, 0, &at);
        return bt_jinja_spend(j, 1 + container->string->n_bytes / 64);
    }
    if (container->kind == BT_J_DICT) {
        struct bt_jentry *entry;
        BT_TRY(bt_jvalue_find(j, container->dict, item, &entry));
        *out = entry != NULL;
        return BT_OK;
    }
    const struct bt_jlist *list;
    BT_TRY(bt_jvalue_iterate(j, container, &list));
    for (size_t i = 0; !*out && i < list->n_items; i++)
        BT_TRY(bt_jvalue_equal(j, &list->items[i], item, out));
    return BT_OK;
}

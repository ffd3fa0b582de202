/* Methods of strings, lists and dicts, and the functions that every template may call. */
#include <string.h>
#include <time.h>

#include "common/text/jinja_builtins.h"
#include "common/text/jinja_eval.h"
#include "common/text/jinja_string.h"
#include "common/text/utf8.h"

#define METHOD(name)                                                        \
    static bt_status name(struct bt_jinja *j, const struct bt_jvalue *self, \
                          const struct bt_jvalue argv[BT_JPARAMS_MAX], struct bt_jvalue *out)

/* An optional string: NULL where it was not given or is none. */
static bt_status optional_string(struct bt_jinja *j, const struct bt_jvalue *arg,
                                 const struct bt_jstring **out) {
    *out = NULL;
    if (arg->kind == BT_J_MISSING || arg->kind == BT_J_NONE)
        return BT_OK;
    return bt_jarg_string(j, arg, out);
}

static bt_status strip(struct bt_jinja *j, const struct bt_jvalue *self,
                       const struct bt_jvalue argv[BT_JPARAMS_MAX], bool left, bool right,
                       struct bt_jvalue *out) {
    const struct bt_jstring *chars;
    BT_TRY(optional_string(j, &argv[0], &chars));
    return bt_jinja_strip(j, self->string, chars, left, right, out);
}

METHOD(method_strip) {
    return strip(j, self, argv, true, true, out);
}

METHOD(method_lstrip) {
    return strip(j, self, argv, true, false, out);
}

METHOD(method_rstrip) {
    return strip(j, self, argv, false, true, out);
}

static bt_status split(struct bt_jinja *j, const struct bt_jvalue *self,
                       const struct bt_jvalue argv[BT_JPARAMS_MAX], bool from_right,
                       struct bt_jvalue *out) {
    const struct bt_jstring *sep;
    int64_t max;
    BT_TRY(optional_string(j, &argv[0], &sep));
    BT_TRY(bt_jarg_int(j, &argv[1], -1, &max));
    return bt_jinja_split(j, self->string, sep, max, from_right, out);
}

METHOD(method_split) {
    return split(j, self, argv, false, out);
}

METHOD(method_rsplit) {
    return split(j, self, argv, true, out);
}

METHOD(method_splitlines) {
    (void)argv;
    static const struct bt_jstring line_end = {.data = "\n", .n_bytes = 1};
    struct bt_jstring s = *self->string;
    if (s.n_bytes && s.data[s.n_bytes - 1] == '\n')
        s.n_bytes--;
    if (!self->string->n_bytes) {
        struct bt_jvalue *items;
        return bt_jinja_list(j, 0, &items, out);
    }
    return bt_jinja_split(j, &s, &line_end, -1, false, out);
}

/* One string, or a tuple of which one must fit. */
static bt_status fits(struct bt_jinja *j, const struct bt_jstring *s, const struct bt_jvalue *arg,
                      bool at_end, struct bt_jvalue *out) {
    size_t n = arg->kind == BT_J_LIST ? arg->list->n_items : 1;
    bool found = false;
    for (size_t i = 0; i < n && !found; i++) {
        const struct bt_jstring *what;
        BT_TRY(bt_jarg_string(j, arg->kind == BT_J_LIST ? &arg->list->items[i] : arg, &what));
        found = at_end ? bt_jstring_ends(s, what) : bt_jstring_starts(s, what);
    }
    *out = bt_jvalue_bool(found);
    return bt_jinja_spend(j, n);
}

METHOD(method_startswith) {
    return fits(j, self->string, &argv[0], false, out);
}

METHOD(method_endswith) {
    return fits(j, self->string, &argv[0], true, out);
}

METHOD(method_upper) {
    (void)argv;
    return bt_jinja_change_case(j, self->string, BT_JCASE_UPPER, out);
}

METHOD(method_lower) {
    (void)argv;
    return bt_jinja_change_case(j, self->string, BT_JCASE_LOWER, out);
}

METHOD(method_capitalize) {
    (void)argv;
    return bt_jinja_change_case(j, self->string, BT_JCASE_CAPITALIZE, out);
}

METHOD(method_title) {
    (void)argv;
    return bt_jinja_change_case(j, self->string, BT_JCASE_TITLE, out);
}

METHOD(method_replace) {
    const struct bt_jstring *from, *to;
    int64_t max;
    BT_TRY(bt_jarg_string(j, &argv[0], &from));
    BT_TRY(bt_jarg_string(j, &argv[1], &to));
    BT_TRY(bt_jarg_int(j, &argv[2], -1, &max));
    return bt_jinja_replace(j, self->string, from, to, max, out);
}

static bt_status find(struct bt_jinja *j, const struct bt_jvalue *self, const struct bt_jvalue *arg,
                      bool last, struct bt_jvalue *out) {
    const struct bt_jstring *what;
    size_t place = 0, next, at = 0;
    bool found = false;
    BT_TRY(bt_jarg_string(j, arg, &what));
    while (bt_jstring_find(self->string, what, at, &next)) {
        BT_TRY(bt_jinja_spend(j, 1));
        place = next;
        found = true;
        at = next + 1;
        if (!last || at > self->string->n_bytes)
            break;
    }
    int64_t n = found ? (int64_t)bt_utf8_count(self->string->data, place) : -1;
    *out = bt_jvalue_int(n);
    return bt_jinja_spend(j, 1 + self->string->n_bytes / 64);
}

METHOD(method_find) {
    return find(j, self, &argv[0], false, out);
}

METHOD(method_rfind) {
    return find(j, self, &argv[0], true, out);
}

METHOD(method_count) {
    int64_t n = 0;
    if (self->kind == BT_J_STRING) {
        const struct bt_jstring *what;
        size_t at = 0, place;
        BT_TRY(bt_jarg_string(j, &argv[0], &what));
        if (!what->n_bytes)
            return bt_jinja_fail(j, BT_E_UNSUPPORTED, "count of an empty string");
        for (; bt_jstring_find(self->string, what, at, &place); n++) {
            BT_TRY(bt_jinja_spend(j, 1));
            at = place + what->n_bytes;
        }
    } else {
        for (size_t i = 0; i < self->list->n_items; i++) {
            bool same;
            BT_TRY(bt_jvalue_equal(j, &self->list->items[i], &argv[0], &same));
            n += same;
        }
    }
    *out = bt_jvalue_int(n);
    return BT_OK;
}

METHOD(method_removeprefix) {
    const struct bt_jstring *what;
    BT_TRY(bt_jarg_string(j, &argv[0], &what));
    size_t start = bt_jstring_starts(self->string, what) ? what->n_bytes : 0;
    return bt_jinja_string(j, bt_jstring_part(self->string, start, self->string->n_bytes), out);
}

METHOD(method_removesuffix) {
    const struct bt_jstring *what;
    BT_TRY(bt_jarg_string(j, &argv[0], &what));
    size_t less = bt_jstring_ends(self->string, what) ? what->n_bytes : 0;
    return bt_jinja_string(j, bt_jstring_part(self->string, 0, self->string->n_bytes - less), out);
}

METHOD(method_isdigit) {
    (void)argv;
    bool all = self->string->n_bytes > 0;
    for (size_t i = 0; i < self->string->n_bytes; i++)
        all = all && self->string->data[i] >= '0' && self->string->data[i] <= '9';
    *out = bt_jvalue_bool(all);
    return bt_jinja_spend(j, self->string->n_bytes / 64);
}

METHOD(method_isspace) {
    (void)argv;
    struct bt_jvalue stripped;
    BT_TRY(bt_jinja_strip(j, self->string, NULL, true, false, &stripped));
    *out = bt_jvalue_bool(self->string->n_bytes && !stripped.string->n_bytes);
    return BT_OK;
}

METHOD(method_join) {
    const struct bt_jlist *list;
    struct bt_jbuffer b;
    BT_TRY(bt_jvalue_iterate(j, &argv[0], &list));
    BT_TRY(bt_jbuffer_init(j, &b, BT_JINJA_MEMORY_BYTES));
    for (size_t i = 0; i < list->n_items; i++) {
        const struct bt_jstring *part;
        BT_TRY(bt_jinja_spend(j, 1));
        BT_TRY(bt_jarg_string(j, &list->items[i], &part));
        if (i)
            BT_TRY(bt_jbuffer_add(j, &b, self->string));
        BT_TRY(bt_jbuffer_add(j, &b, part));
    }
    return bt_jinja_string(j, bt_jbuffer_string(&b), out);
}

METHOD(method_get) {
    struct bt_jentry *entry;
    BT_TRY(bt_jvalue_find(j, self->dict, &argv[0], &entry));
    *out = argv[1];
    if (argv[1].kind == BT_J_MISSING)
        *out = (struct bt_jvalue){.kind = BT_J_NONE};
    if (entry)
        *out = entry->value;
    return BT_OK;
}

/* The keys (0), the values (1) or pairs of both (2) of a dict. */
static bt_status dict_list(struct bt_jinja *j, const struct bt_jvalue *self, int what,
                           struct bt_jvalue *out) {
    struct bt_jvalue *items, *pair;
    BT_TRY(bt_jinja_list(j, self->dict->n_entries, &items, out));
    out->tainted = self->tainted;
    for (size_t i = 0; i < self->dict->n_entries; i++) {
        const struct bt_jentry *entry = &self->dict->entries[i];
        items[i] = what ? entry->value : entry->key;
        if (what < 2)
            continue;
        BT_TRY(bt_jinja_list(j, 2, &pair, &items[i]));
        pair[0] = entry->key;
        pair[1] = entry->value;
        items[i].is_tuple = true;
    }
    return BT_OK;
}

METHOD(method_keys) {
    (void)argv;
    return dict_list(j, self, 0, out);
}

METHOD(method_values) {
    (void)argv;
    return dict_list(j, self, 1, out);
}

METHOD(method_items) {
    (void)argv;
    return dict_list(j, self, 2, out);
}

METHOD(method_copy) {
    (void)j;
    (void)argv;
    *out = *self; /* lists and dicts are never changed */
    return BT_OK;
}

static const struct bt_jbuiltin string_methods[] = {
    {"capitalize", "", method_capitalize},
    {"count", "sub", method_count},
    {"endswith", "suffix", method_endswith},
    {"find", "sub", method_find},
    {"isdigit", "", method_isdigit},
    {"isspace", "", method_isspace},
    {"join", "iterable", method_join},
    {"lower", "", method_lower},
    {"lstrip", "chars", method_lstrip},
    {"removeprefix", "prefix", method_removeprefix},
    {"removesuffix", "suffix", method_removesuffix},
    {"replace", "old new count", method_replace},
    {"rfind", "sub", method_rfind},
    {"rsplit", "sep maxsplit", method_rsplit},
    {"rstrip", "chars", method_rstrip},
    {"split", "sep maxsplit", method_split},
    {"splitlines", "", method_splitlines},
    {"startswith", "prefix", method_startswith},
    {"strip", "chars", method_strip},
    {"title", "", method_title},
    {"upper", "", method_upper},
};

static const struct bt_jbuiltin dict_methods[] = {
    {"copy", "", method_copy}, {"get", "key default", method_get}, {"items", "", method_items},
    {"keys", "", method_keys}, {"values", "", method_values},
};

enum {
    N_STRING_METHODS = sizeof string_methods / sizeof string_methods[0],
    N_DICT_METHODS = sizeof dict_methods / sizeof dict_methods[0],
};

const struct bt_jbuiltin *bt_jinja_find_method(struct bt_slice name) {
    const struct bt_jbuiltin *method = bt_jinja_find(string_methods, N_STRING_METHODS, name);
    return method ? method : bt_jinja_find(dict_methods, N_DICT_METHODS, name);
}

bool bt_jinja_has_method(const struct bt_jbuiltin *method, enum bt_jkind kind) {
    bool of_strings = method >= string_methods && method < string_methods + N_STRING_METHODS;
    if (kind == BT_J_LIST)
        return method->run == method_count;
    return of_strings ? kind == BT_J_STRING : kind == BT_J_DICT;
}

METHOD(raise_exception) {
    (void)self;
    (void)out;
    const struct bt_jstring *message;
    BT_TRY(bt_jinja_str(j, &argv[0], &message));
    return bt_jinja_fail(j, BT_E_INVALID, "%.*s",
                         (int)(message->n_bytes < 180 ? message->n_bytes : 180),
                         message->data ? message->data : "");
}

METHOD(strftime_now) {
    (void)self;
    const struct bt_jstring *format;
    char text[256], pattern[128];
    struct tm utc;
    time_t now = (time_t)j->now_s;
    BT_TRY(bt_jarg_string(j, &argv[0], &format));
    if (format->n_bytes >= sizeof pattern || !format->n_bytes || !gmtime_r(&now, &utc))
        return bt_jinja_fail(j, BT_E_INVALID, "strftime_now with a format of %zu bytes",
                             format->n_bytes);
    memcpy(pattern, format->data, format->n_bytes);
    pattern[format->n_bytes] = 0;
    size_t n = strftime(text, sizeof text, pattern, &utc);
    struct bt_jbuffer b;
    BT_TRY(bt_jbuffer_init(j, &b, sizeof text));
    BT_TRY(bt_jbuffer_add_bytes(j, &b, text, n, format->mask || format->tainted));
    return bt_jinja_string(j, bt_jbuffer_string(&b), out);
}

METHOD(range) {
    (void)self;
    int64_t start = 0, stop, step;
    struct bt_jvalue *items;
    BT_TRY(bt_jarg_int(j, &argv[0], 0, &stop));
    if (argv[1].kind != BT_J_MISSING) {
        start = stop;
        BT_TRY(bt_jarg_int(j, &argv[1], 0, &stop));
    }
    BT_TRY(bt_jarg_int(j, &argv[2], 1, &step));
    const int64_t far = (int64_t)1 << 40;
    if (step == 0 || start > far || start < -far || stop > far || stop < -far || step > far ||
        step < -far)
        return bt_jinja_fail(j, BT_E_INVALID, "range from %lld to %lld by %lld", (long long)start,
                             (long long)stop, (long long)step);
    int64_t length = step > 0 ? stop - start : start - stop, stride = step > 0 ? step : -step;
    int64_t n = length > 0 ? (length + stride - 1) / stride : 0;
    if (n > 100000) /* the sandbox's own bound: MAX_RANGE in jinja2/sandbox.py */
        return bt_jinja_fail(j, BT_E_TOO_LARGE, "a range of %lld numbers, allowed 100000",
                             (long long)n);
    BT_TRY(bt_jinja_list(j, (size_t)n, &items, out));
    for (int64_t i = 0; i < n; i++)
        items[i] = bt_jvalue_int(start + i * step);
    return BT_OK;
}

/* Never reached: the evaluator collects the keywords of these itself. */
METHOD(collected) {
    (void)self;
    (void)argv;
    (void)out;
    return bt_jinja_fail(j, BT_E_INTERNAL, "a function with any keywords was called by position");
}

static const struct bt_jbuiltin functions[] = {
    {"dict", "", collected},
    {"namespace", "", collected},
    {"raise_exception", "message", raise_exception},
    {"range", "start stop step", range},
    {"strftime_now", "format", strftime_now},
};

const struct bt_jbuiltin *bt_jinja_find_function(struct bt_slice name) {
    return bt_jinja_find(functions, sizeof functions / sizeof functions[0], name);
}

bool bt_jinja_takes_any(const struct bt_jbuiltin *function) {
    return function->run == collected;
}

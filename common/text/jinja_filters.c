/* Filters on one value: text, numbers, JSON. */
#include <math.h>
#include <string.h>

#include "common/text/jinja_builtins.h"
#include "common/text/jinja_eval.h"
#include "common/text/jinja_string.h"
#include "common/text/utf8.h"

#define FILTER(name)                                                        \
    static bt_status name(struct bt_jinja *j, const struct bt_jvalue *self, \
                          const struct bt_jvalue argv[BT_JPARAMS_MAX], struct bt_jvalue *out)

bt_status bt_jarg_int(struct bt_jinja *j, const struct bt_jvalue *arg, int64_t standard,
                      int64_t *out) {
    if (arg->kind == BT_J_INT || arg->kind == BT_J_BOOL)
        *out = bt_jvalue_integer(arg);
    else if (arg->kind == BT_J_MISSING || arg->kind == BT_J_NONE)
        *out = standard;
    else
        return bt_jinja_fail(j, BT_E_INVALID, "an argument of type %s where an integer belongs",
                             bt_jvalue_type_name(arg));
    return BT_OK;
}

bool bt_jarg_flag(const struct bt_jvalue *arg, bool standard) {
    return arg->kind == BT_J_MISSING ? standard : bt_jvalue_truth(arg);
}

bt_status bt_jarg_string(struct bt_jinja *j, const struct bt_jvalue *arg,
                         const struct bt_jstring **out) {
    if (arg->kind != BT_J_STRING)
        return bt_jinja_fail(j, BT_E_INVALID, "an argument of type %s where a string belongs",
                             bt_jvalue_type_name(arg));
    *out = arg->string;
    return BT_OK;
}

FILTER(filter_abs) {
    (void)argv;
    if (!bt_jvalue_is_number(self))
        return bt_jinja_fail(j, BT_E_INVALID, "abs of a value of type %s",
                             bt_jvalue_type_name(self));
    if (bt_jvalue_real(self) < 0)
        return bt_jinja_negate(j, self, out);
    *out = *self;
    if (self->kind == BT_J_BOOL)
        *out = bt_jvalue_int(self->boolean);
    return BT_OK;
}

static bt_status change_case(struct bt_jinja *j, const struct bt_jvalue *self, enum bt_jcase how,
                             struct bt_jvalue *out) {
    const struct bt_jstring *s;
    BT_TRY(bt_jinja_str(j, self, &s));
    return bt_jinja_change_case(j, s, how, out);
}

FILTER(filter_upper) {
    (void)argv;
    return change_case(j, self, BT_JCASE_UPPER, out);
}

FILTER(filter_lower) {
    (void)argv;
    return change_case(j, self, BT_JCASE_LOWER, out);
}

FILTER(filter_capitalize) {
    (void)argv;
    return change_case(j, self, BT_JCASE_CAPITALIZE, out);
}

/* Jinja's title keeps what stands inside a word together: words end at blanks and -({[<. */
FILTER(filter_title) {
    (void)argv;
    const struct bt_jstring *s;
    struct bt_jbuffer b;
    BT_TRY(bt_jinja_str(j, self, &s));
    BT_TRY(bt_jbuffer_init(j, &b, BT_JINJA_MEMORY_BYTES));
    for (size_t start = 0; start < s->n_bytes;) {
        size_t end = start;
        bool ended = false;
        while (end < s->n_bytes && !ended) {
            struct bt_utf8_step step = bt_utf8_next(s->data + end, s->n_bytes - end);
            ended = bt_jinja_is_blank(step.code_point) ||
                    (step.code_point < 0x80 && memchr("-({[<", (int)step.code_point, 5));
            end += step.n_bytes;
        }
        struct bt_jstring word = bt_jstring_part(s, start, end);
        struct bt_jvalue changed;
        BT_TRY(bt_jinja_change_case(j, &word, BT_JCASE_CAPITALIZE, &changed));
        BT_TRY(bt_jbuffer_add(j, &b, changed.string));
        start = end;
    }
    return bt_jinja_string(j, bt_jbuffer_string(&b), out);
}

FILTER(filter_trim) {
    const struct bt_jstring *s, *chars = NULL;
    BT_TRY(bt_jinja_str(j, self, &s));
    if (argv[0].kind != BT_J_MISSING && argv[0].kind != BT_J_NONE)
        BT_TRY(bt_jarg_string(j, &argv[0], &chars));
    return bt_jinja_strip(j, s, chars, true, true, out);
}

FILTER(filter_string) {
    (void)argv;
    const struct bt_jstring *s;
    BT_TRY(bt_jinja_str(j, self, &s));
    return bt_jinja_string(j, *s, out);
}

FILTER(filter_replace) {
    const struct bt_jstring *s, *from, *to;
    int64_t max;
    BT_TRY(bt_jinja_str(j, self, &s));
    BT_TRY(bt_jinja_str(j, &argv[0], &from));
    BT_TRY(bt_jinja_str(j, &argv[1], &to));
    BT_TRY(bt_jarg_int(j, &argv[2], -1, &max));
    return bt_jinja_replace(j, s, from, to, max, out);
}

FILTER(filter_default) {
    bool falls_back =
        self->kind == BT_J_UNDEFINED || (bt_jarg_flag(&argv[1], false) && !bt_jvalue_truth(self));
    if (!falls_back) {
        *out = *self;
        return BT_OK;
    }
    if (argv[0].kind == BT_J_MISSING)
        return bt_jinja_literal(j, "", out);
    *out = argv[0];
    return BT_OK;
}

FILTER(filter_length) {
    (void)argv;
    size_t n;
    BT_TRY(bt_jvalue_length(j, self, &n));
    *out = bt_jvalue_int((int64_t)n);
    return BT_OK;
}

/* Numbers and their texts; other values give the default, but what is undefined is refused. */
static bt_status check_defined(struct bt_jinja *j, const struct bt_jvalue *self) {
    if (self->kind == BT_J_UNDEFINED)
        return bt_jinja_fail(j, BT_E_INVALID, "%.*s is undefined and no number",
                             self->name ? (int)(self->name->n_bytes < 60 ? self->name->n_bytes : 60)
                                        : 9,
                             self->name ? self->name->data : "the value");
    return BT_OK;
}

FILTER(filter_int) {
    int64_t base;
    double real = 0;
    BT_TRY(check_defined(j, self));
    *out = argv[0].kind == BT_J_MISSING ? bt_jvalue_int(0) : argv[0];
    BT_TRY(bt_jarg_int(j, &argv[1], 10, &base));
    if (base != 10)
        return bt_jinja_fail(j, BT_E_UNSUPPORTED, "the filter int with base %lld", (long long)base);
    if (self->kind == BT_J_INT || self->kind == BT_J_BOOL) {
        *out = bt_jvalue_int(bt_jvalue_integer(self));
        out->tainted = self->tainted;
        return BT_OK;
    }
    int64_t integer;
    if (self->kind == BT_J_STRING && bt_jstring_to_int(self->string, &integer)) {
        *out = bt_jvalue_int(integer);
        out->tainted = true;
        return BT_OK;
    }
    bool is_real = self->kind == BT_J_FLOAT ||
                   (self->kind == BT_J_STRING && bt_jstring_to_real(self->string, &real));
    if (self->kind == BT_J_FLOAT)
        real = self->real;
    if (is_real && fabs(real) < 9e18) {
        *out = bt_jvalue_int((int64_t)real);
        out->tainted = true;
    }
    return BT_OK;
}

FILTER(filter_float) {
    double real = 0;
    BT_TRY(check_defined(j, self));
    bool reads = bt_jvalue_is_number(self) ||
                 (self->kind == BT_J_STRING && bt_jstring_to_real(self->string, &real));
    if (bt_jvalue_is_number(self))
        real = bt_jvalue_real(self);
    *out = (struct bt_jvalue){.kind = BT_J_FLOAT, .real = real, .tainted = true};
    if (!reads && argv[0].kind != BT_J_MISSING)
        *out = argv[0];
    return BT_OK;
}

FILTER(filter_round) {
    int64_t precision;
    BT_TRY(bt_jarg_int(j, &argv[0], 0, &precision));
    if (!bt_jvalue_is_number(self) || precision < 0 || precision > 15)
        return bt_jinja_fail(j, BT_E_INVALID, "round of a value of type %s to %lld places",
                             bt_jvalue_type_name(self), (long long)precision);
    double factor = 1, value = bt_jvalue_real(self);
    for (int64_t i = 0; i < precision; i++)
        factor *= 10;
    bool is_common = argv[1].kind == BT_J_MISSING || bt_jvalue_is_string(&argv[1], "common");
    if (is_common && self->kind != BT_J_FLOAT) { /* an integer stays one */
        *out = bt_jvalue_int(bt_jvalue_integer(self));
        out->tainted = self->tainted;
        return BT_OK;
    }
    if (is_common)
        value = nearbyint(value * factor) / factor;
    else if (bt_jvalue_is_string(&argv[1], "floor"))
        value = floor(value * factor) / factor;
    else if (bt_jvalue_is_string(&argv[1], "ceil"))
        value = ceil(value * factor) / factor;
    else
        return bt_jinja_fail(j, BT_E_INVALID, "round by an unknown method");
    *out = (struct bt_jvalue){.kind = BT_J_FLOAT, .real = value, .tainted = self->tainted};
    return BT_OK;
}

FILTER(filter_format) {
    const struct bt_jstring *s;
    size_t n = 0;
    BT_TRY(bt_jinja_str(j, self, &s));
    while (n < BT_JPARAMS_MAX && argv[n].kind != BT_J_MISSING)
        n++;
    return bt_jinja_format(j, s, argv, n, out);
}

/* Lines after the first are indented, empty ones only with `blank`. */
FILTER(filter_indent) {
    const struct bt_jstring *s, *indent;
    int64_t width = 4;
    struct bt_jbuffer b;
    struct bt_jvalue made;
    BT_TRY(bt_jarg_string(j, self, &s));
    BT_TRY(bt_jbuffer_init(j, &b, BT_JINJA_MEMORY_BYTES));
    if (argv[0].kind == BT_J_STRING) {
        indent = argv[0].string;
    } else {
        static const char blanks[] = "                                ";
        BT_TRY(bt_jarg_int(j, &argv[0], 4, &width));
        if (width < 0 || width > 32)
            return bt_jinja_fail(j, BT_E_UNSUPPORTED, "indent by %lld", (long long)width);
        BT_TRY(bt_jinja_string(j, (struct bt_jstring){.data = blanks, .n_bytes = (size_t)width},
                               &made));
        indent = made.string;
    }
    bool first = bt_jarg_flag(&argv[1], false), blank = bt_jarg_flag(&argv[2], false);
    for (size_t start = 0; start <= s->n_bytes;) {
        const char *found =
            start < s->n_bytes ? memchr(s->data + start, '\n', s->n_bytes - start) : NULL;
        size_t end = found ? (size_t)(found - s->data) + 1 : s->n_bytes;
        struct bt_jstring line = bt_jstring_part(s, start, end);
        bool is_empty = end - start == (found ? 1 : 0);
        if (start ? !is_empty || blank : first)
            BT_TRY(bt_jbuffer_add(j, &b, indent));
        BT_TRY(bt_jbuffer_add(j, &b, &line));
        start = found ? end : s->n_bytes + 1;
    }
    BT_TRY(bt_jinja_spend(j, s->n_bytes / 16));
    return bt_jinja_string(j, bt_jbuffer_string(&b), out);
}

FILTER(filter_tojson) {
    struct bt_jbuffer b;
    struct bt_jjson_style style = {.sort_keys = bt_jarg_flag(&argv[3], false),
                                   .ensure_ascii = bt_jarg_flag(&argv[1], false)};
    BT_TRY(bt_jbuffer_init(j, &b, BT_JINJA_MEMORY_BYTES));
    BT_TRY(bt_jarg_int(j, &argv[0], -1, &style.indent));
    if (style.indent > 32)
        return bt_jinja_fail(j, BT_E_UNSUPPORTED, "tojson with indent %lld",
                             (long long)style.indent);
    if (argv[2].kind == BT_J_LIST && argv[2].list->n_items == 2) {
        BT_TRY(bt_jarg_string(j, &argv[2].list->items[0], &style.item_separator));
        BT_TRY(bt_jarg_string(j, &argv[2].list->items[1], &style.key_separator));
    } else if (argv[2].kind != BT_J_MISSING && argv[2].kind != BT_J_NONE) {
        return bt_jinja_fail(j, BT_E_INVALID, "tojson with separators that are not a pair");
    }
    BT_TRY(bt_jinja_json(j, &b, self, &style));
    return bt_jinja_string(j, bt_jbuffer_string(&b), out);
}

FILTER(filter_safe) {
    (void)j;
    (void)argv;
    *out = *self; /* nothing is escaped on output, so nothing is to be marked */
    return BT_OK;
}

static const struct bt_jbuiltin filters[] = {
    {"abs", "", filter_abs},
    {"capitalize", "", filter_capitalize},
    {"count", "", filter_length},
    {"d", "default_value boolean", filter_default},
    {"default", "default_value boolean", filter_default},
    {"float", "default", filter_float},
    {"format", "a b c d e f", filter_format},
    {"indent", "width first blank", filter_indent},
    {"int", "default base", filter_int},
    {"length", "", filter_length},
    {"lower", "", filter_lower},
    {"replace", "old new count", filter_replace},
    {"round", "precision method", filter_round},
    {"safe", "", filter_safe},
    {"string", "", filter_string},
    {"title", "", filter_title},
    {"tojson", "indent ensure_ascii separators sort_keys", filter_tojson},
    {"trim", "chars", filter_trim},
    {"upper", "", filter_upper},
};

const struct bt_jbuiltin *bt_jinja_find(const struct bt_jbuiltin *table, size_t n,
                                        struct bt_slice name) {
    for (size_t i = 0; i < n; i++)
        if (strlen(table[i].name) == name.n_bytes &&
            !memcmp(table[i].name, name.data, name.n_bytes))
            return &table[i];
    return NULL;
}

const struct bt_jbuiltin *bt_jinja_find_filter(struct bt_slice name) {
    struct bt_jtable lists = bt_jinja_list_filters();
    const struct bt_jbuiltin *filter =
        bt_jinja_find(filters, sizeof filters / sizeof filters[0], name);
    return filter ? filter : bt_jinja_find(lists.rows, lists.n, name);
}

int bt_jinja_n_params(const struct bt_jbuiltin *builtin) {
    int n = builtin->params[0] != 0;
    for (const char *c = builtin->params; *c; c++)
        n += *c == ' ';
    return n;
}

int bt_jinja_param(const struct bt_jbuiltin *builtin, struct bt_slice name) {
    const char *at = builtin->params;
    for (int i = 0; *at; i++) {
        size_t n = strcspn(at, " ");
        if (n == name.n_bytes && !memcmp(at, name.data, n))
            return i;
        at += n + (at[n] == ' ');
    }
    return -1;
}

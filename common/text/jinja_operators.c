/* Arithmetic, comparison, slices and % of template values, as Python has them. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/text/jinja_eval.h"
#include "common/text/jinja_string.h"
#include "common/text/utf8.h"

static bt_status bad_operands(struct bt_jinja *j, const char *op, const struct bt_jvalue *a,
                              const struct bt_jvalue *b) {
    const struct bt_jvalue *undefined = a->kind == BT_J_UNDEFINED ? a : b;
    if (undefined->kind == BT_J_UNDEFINED && undefined->name)
        return bt_jinja_fail(j, BT_E_INVALID, "\"%.*s\" is undefined",
                             (int)(undefined->name->n_bytes < 60 ? undefined->name->n_bytes : 60),
                             undefined->name->data);
    return bt_jinja_fail(j, BT_E_INVALID, "%s %s %s is not possible", bt_jvalue_type_name(a), op,
                         bt_jvalue_type_name(b));
}

static bt_status join_strings(struct bt_jinja *j, const struct bt_jstring *a,
                              const struct bt_jstring *b, struct bt_jvalue *out) {
    struct bt_jbuffer buffer;
    BT_TRY(bt_jbuffer_init(j, &buffer, BT_JINJA_MEMORY_BYTES));
    BT_TRY(bt_jbuffer_add(j, &buffer, a));
    BT_TRY(bt_jbuffer_add(j, &buffer, b));
    BT_TRY(bt_jinja_spend(j, buffer.n_bytes / 256));
    return bt_jinja_string(j, bt_jbuffer_string(&buffer), out);
}

static bt_status join_lists(struct bt_jinja *j, const struct bt_jvalue *a,
                            const struct bt_jvalue *b, struct bt_jvalue *out) {
    struct bt_jvalue *items;
    size_t n = a->list->n_items, n_b = b->list->n_items;
    BT_TRY(bt_jinja_list(j, n + n_b, &items, out));
    if (n)
        memcpy(items, a->list->items, n * sizeof *items);
    if (n_b)
        memcpy(items + n, b->list->items, n_b * sizeof *items);
    out->is_tuple = a->is_tuple;
    out->tainted = a->tainted || b->tainted;
    return BT_OK;
}

/* A string or list, `times` times. */
static bt_status repeat(struct bt_jinja *j, const struct bt_jvalue *a, int64_t times,
                        struct bt_jvalue *out) {
    if (a->kind == BT_J_STRING) {
        struct bt_jbuffer buffer;
        BT_TRY(bt_jbuffer_init(j, &buffer, BT_JINJA_MEMORY_BYTES));
        for (int64_t i = 0; i < times && a->string->n_bytes; i++) {
            BT_TRY(bt_jinja_spend(j, 1));
            BT_TRY(bt_jbuffer_add(j, &buffer, a->string));
        }
        return bt_jinja_string(j, bt_jbuffer_string(&buffer), out);
    }
    size_t n = a->list->n_items;
    struct bt_jvalue *items;
    if (times < 0 || !n)
        times = 0;
    if ((uint64_t)times > BT_JINJA_MEMORY_BYTES)
        return bt_jinja_fail(j, BT_E_TOO_LARGE, "a list repeated %lld times", (long long)times);
    BT_TRY(bt_jinja_list(j, n * (size_t)times, &items, out));
    for (size_t i = 0; i < n * (size_t)times; i++)
        items[i] = a->list->items[i % n];
    out->tainted = a->tainted;
    out->is_tuple = a->is_tuple;
    return BT_OK;
}

static bt_status too_large(struct bt_jinja *j) {
    return bt_jinja_fail(j, BT_E_TOO_LARGE, "an integer of more than 64 bits");
}

static bt_status power(struct bt_jinja *j, int64_t a, int64_t b, int64_t *out) {
    int64_t result = 1;
    for (; b > 0; b >>= 1) {
        if ((b & 1) && __builtin_mul_overflow(result, a, &result))
            return too_large(j);
        if (b > 1 && __builtin_mul_overflow(a, a, &a))
            return too_large(j);
    }
    *out = result;
    return BT_OK;
}

static bt_status integers(struct bt_jinja *j, enum bt_jop op, int64_t a, int64_t b, int64_t *out) {
    bool overflow = false;
    switch (op) {
    case BT_JOP_ADD:
        overflow = __builtin_add_overflow(a, b, out);
        break;
    case BT_JOP_SUB:
        overflow = __builtin_sub_overflow(a, b, out);
        break;
    case BT_JOP_MUL:
        overflow = __builtin_mul_overflow(a, b, out);
        break;
    case BT_JOP_POW:
        return power(j, a, b, out);
    default: /* FLOOR_DIV and MOD round towards minus infinity */
        if (b == 0)
            return bt_jinja_fail(j, BT_E_INVALID, "division by zero");
        if (b == -1) {
            overflow = op == BT_JOP_FLOOR_DIV && __builtin_sub_overflow((int64_t)0, a, out);
            if (op == BT_JOP_MOD)
                *out = 0;
            break;
        }
        int64_t quotient = a / b, rest = a % b;
        if (rest && (rest < 0) != (b < 0)) {
            quotient--;
            rest += b;
        }
        *out = op == BT_JOP_MOD ? rest : quotient;
    }
    return overflow ? too_large(j) : BT_OK;
}

static bt_status reals(struct bt_jinja *j, enum bt_jop op, double a, double b, double *out) {
    bool divides = op == BT_JOP_DIV || op == BT_JOP_FLOOR_DIV || op == BT_JOP_MOD;
    if (divides && !(b < 0) && !(b > 0))
        return bt_jinja_fail(j, BT_E_INVALID, "division by zero");
    switch (op) {
    case BT_JOP_ADD:
        *out = a + b;
        break;
    case BT_JOP_SUB:
        *out = a - b;
        break;
    case BT_JOP_MUL:
        *out = a * b;
        break;
    case BT_JOP_DIV:
        *out = a / b;
        break;
    case BT_JOP_FLOOR_DIV:
        *out = floor(a / b);
        break;
    case BT_JOP_POW:
        *out = pow(a, b);
        break;
    default:
        *out = a - b * floor(a / b);
    }
    return BT_OK;
}

bt_status bt_jinja_binary(struct bt_jinja *j, enum bt_jop op, const struct bt_jvalue *a,
                          const struct bt_jvalue *b, struct bt_jvalue *out) {
    static const char *const names[] = {"+", "-", "*", "/", "//", "%", "**"};
    bool a_repeats = a->kind == BT_J_STRING || a->kind == BT_J_LIST;
    bool b_repeats = b->kind == BT_J_STRING || b->kind == BT_J_LIST;
    if (bt_jvalue_is_number(a) && bt_jvalue_is_number(b)) {
        bool tainted = a->tainted || b->tainted;
        if (a->kind != BT_J_FLOAT && b->kind != BT_J_FLOAT && op != BT_JOP_DIV &&
            !(op == BT_JOP_POW && bt_jvalue_integer(b) < 0)) {
            *out = bt_jvalue_int(0);
            BT_TRY(integers(j, op, bt_jvalue_integer(a), bt_jvalue_integer(b), &out->integer));
        } else {
            *out = (struct bt_jvalue){.kind = BT_J_FLOAT};
            BT_TRY(reals(j, op, bt_jvalue_real(a), bt_jvalue_real(b), &out->real));
        }
        out->tainted = tainted;
        return BT_OK;
    }
    if (op == BT_JOP_ADD && a->kind == BT_J_STRING && b->kind == BT_J_STRING)
        return join_strings(j, a->string, b->string, out);
    if (op == BT_JOP_ADD && a->kind == BT_J_LIST && b->kind == BT_J_LIST &&
        a->is_tuple == b->is_tuple)
        return join_lists(j, a, b, out);
    if (op == BT_JOP_MUL && a_repeats && (b->kind == BT_J_INT || b->kind == BT_J_BOOL))
        return repeat(j, a, bt_jvalue_integer(b), out);
    if (op == BT_JOP_MUL && b_repeats && (a->kind == BT_J_INT || a->kind == BT_J_BOOL))
        return repeat(j, b, bt_jvalue_integer(a), out);
    if (op == BT_JOP_MOD && a->kind == BT_J_STRING) {
        bool is_tuple = b->kind == BT_J_LIST && b->is_tuple;
        /* What could be looked into by name may also not be used at all. */
        bool is_idle = !is_tuple && (b->kind == BT_J_LIST || b->kind == BT_J_DICT) &&
                       !(a->string->n_bytes && memchr(a->string->data, '%', a->string->n_bytes));
        return bt_jinja_format(j, a->string, is_tuple ? b->list->items : b,
                               is_tuple ? b->list->n_items : !is_idle, out);
    }
    return bad_operands(j, names[op], a, b);
}

bt_status bt_jinja_compare(struct bt_jinja *j, enum bt_jop op, const struct bt_jvalue *a,
                           const struct bt_jvalue *b, bool *out) {
    int order = 0;
    switch (op) {
    case BT_JOP_EQ:
        return bt_jvalue_equal(j, a, b, out);
    case BT_JOP_NE:
        BT_TRY(bt_jvalue_equal(j, a, b, out));
        *out = !*out;
        return BT_OK;
    case BT_JOP_IN:
        return bt_jvalue_contains(j, b, a, out);
    case BT_JOP_NOT_IN:
        BT_TRY(bt_jvalue_contains(j, b, a, out));
        *out = !*out;
        return BT_OK;
    default:
        BT_TRY(bt_jvalue_order(j, a, b, &order));
        *out = op == BT_JOP_LT   ? order < 0
               : op == BT_JOP_LE ? order <= 0
               : op == BT_JOP_GT ? order > 0
                                 : order >= 0;
        return BT_OK;
    }
}

bt_status bt_jinja_negate(struct bt_jinja *j, const struct bt_jvalue *a, struct bt_jvalue *out) {
    struct bt_jvalue zero = bt_jvalue_int(0);
    if (a->kind == BT_J_FLOAT) {
        *out = *a;
        out->real = -a->real;
        return BT_OK;
    }
    if (!bt_jvalue_is_number(a))
        return bt_jinja_fail(j, BT_E_INVALID, "- before a value of type %s",
                             bt_jvalue_type_name(a));
    return bt_jinja_binary(j, BT_JOP_SUB, &zero, a, out);
}

/* One bound of a slice: clipped to [low, high]; negative ones count from the end. */
static bt_status bound(struct bt_jinja *j, const struct bt_jvalue *value, int64_t n, int64_t low,
                       int64_t high, int64_t standard, int64_t *out) {
    if (value->kind == BT_J_NONE) {
        *out = standard;
        return BT_OK;
    }
    if (value->kind != BT_J_INT && value->kind != BT_J_BOOL)
        return bt_jinja_fail(j, BT_E_INVALID, "a slice by a value of type %s",
                             bt_jvalue_type_name(value));
    int64_t i = bt_jvalue_integer(value);
    if (i < 0)
        i += n;
    *out = i < low ? low : i > high ? high : i;
    return BT_OK;
}

bt_status bt_jinja_slice(struct bt_jinja *j, const struct bt_jvalue *object,
                         const struct bt_jvalue bounds[3], struct bt_jvalue *out) {
    const struct bt_jlist *list;
    int64_t start, stop, step = 1;
    if (object->kind != BT_J_STRING && object->kind != BT_J_LIST)
        return bt_jinja_fail(j, BT_E_INVALID, "a slice of a value of type %s",
                             bt_jvalue_type_name(object));
    BT_TRY(bt_jvalue_iterate(j, object, &list));
    int64_t n = (int64_t)list->n_items;
    if (bounds[2].kind == BT_J_INT)
        step = bounds[2].integer;
    else if (bounds[2].kind != BT_J_NONE)
        return bt_jinja_fail(j, BT_E_INVALID, "a slice's step is of type %s",
                             bt_jvalue_type_name(&bounds[2]));
    if (step == 0 || step > INT32_MAX || step < INT32_MIN)
        return bt_jinja_fail(j, BT_E_INVALID, "a slice's step is %lld", (long long)step);
    bool back = step < 0;
    BT_TRY(bound(j, &bounds[0], n, back ? -1 : 0, back ? n - 1 : n, back ? n - 1 : 0, &start));
    BT_TRY(bound(j, &bounds[1], n, back ? -1 : 0, back ? n - 1 : n, back ? -1 : n, &stop));
    int64_t length = back ? start - stop : stop - start, stride = back ? -step : step;
    size_t n_out = length > 0 ? (size_t)((length + stride - 1) / stride) : 0;
    struct bt_jvalue picked, *items;
    BT_TRY(bt_jinja_list(j, n_out, &items, &picked));
    for (size_t i = 0; i < n_out; i++)
        items[i] = list->items[start + (int64_t)i * step];
    if (object->kind == BT_J_LIST) {
        *out = picked;
        out->tainted = object->tainted;
        out->is_tuple = object->is_tuple;
        return BT_OK;
    }
    struct bt_jbuffer buffer;
    BT_TRY(bt_jbuffer_init(j, &buffer, BT_JINJA_MEMORY_BYTES));
    for (size_t i = 0; i < n_out; i++)
        BT_TRY(bt_jbuffer_add(j, &buffer, items[i].string));
    return bt_jinja_string(j, bt_jbuffer_string(&buffer), out);
}

/* One conversion; spec is "%.2f" and the like, checked by the caller. */
static bt_status convert(struct bt_jinja *j, struct bt_jbuffer *b, const char *spec, char kind,
                         const struct bt_jvalue *value) {
    char text[400];
    if (kind == 's' || kind == 'r') {
        const struct bt_jstring *s;
        if (kind == 'r')
            return bt_jinja_repr(j, b, value);
        BT_TRY(bt_jinja_str(j, value, &s));
        return bt_jbuffer_add(j, b, s);
    }
    if (!bt_jvalue_is_number(value))
        return bt_jinja_fail(j, BT_E_INVALID, "%%%c of a value of type %s", kind,
                             bt_jvalue_type_name(value));
    int precision = spec[0] == '.' ? spec[1] - '0' : 6;
    double real = bt_jvalue_real(value);
    if (kind == 'f' && (fabs(real) > 1e300 || isnan(real)))
        return bt_jinja_fail(j, BT_E_INVALID, "%%f of a number that is not finite or too large");
    if (kind == 'f')
        snprintf(text, sizeof text, "%.*f", precision, real);
    else if (value->kind == BT_J_FLOAT && !(fabs(real) < 9e18))
        return bt_jinja_fail(j, BT_E_INVALID, "%%d of a number that is not finite or too large");
    else
        snprintf(text, sizeof text, kind == 'x' ? "%llx" : "%lld",
                 value->kind == BT_J_FLOAT ? (long long)real : (long long)bt_jvalue_integer(value));
    return bt_jbuffer_add_bytes(j, b, text, strlen(text), value->tainted);
}

bt_status bt_jinja_format(struct bt_jinja *j, const struct bt_jstring *format,
                          const struct bt_jvalue *values, size_t n_values, struct bt_jvalue *out) {
    struct bt_jbuffer b;
    size_t used = 0;
    BT_TRY(bt_jbuffer_init(j, &b, BT_JINJA_MEMORY_BYTES));
    BT_TRY(bt_jinja_spend(j, format->n_bytes / 16));
    for (size_t at = 0; at < format->n_bytes;) {
        size_t end = at;
        while (end < format->n_bytes && format->data[end] != '%')
            end++;
        struct bt_jstring plain = bt_jstring_part(format, at, end);
        BT_TRY(bt_jbuffer_add(j, &b, &plain));
        if (end == format->n_bytes)
            break;
        char spec[3] = "";
        at = end + 1;
        if (at + 1 < format->n_bytes && format->data[at] == '.' && format->data[at + 1] >= '0' &&
            format->data[at + 1] <= '9') {
            memcpy(spec, format->data + at, 2);
            at += 2;
        }
        char kind = at < format->n_bytes ? format->data[at++] : 0;
        if (kind == '%' && !spec[0]) {
            struct bt_jstring percent = bt_jstring_part(format, at - 1, at);
            BT_TRY(bt_jbuffer_add(j, &b, &percent));
            continue;
        }
        kind = kind == 'i' ? 'd' : kind;
        if (!kind || !strchr("srdfx", kind) || (spec[0] && kind != 'f'))
            return bt_jinja_fail(j, BT_E_UNSUPPORTED, "a format other than %%s %%r %%d %%f %%x");
        if (used == n_values)
            return bt_jinja_fail(j, BT_E_INVALID, "a format with more than %zu values", n_values);
        BT_TRY(convert(j, &b, spec, kind, &values[used++]));
    }
    if (used < n_values)
        return bt_jinja_fail(j, BT_E_INVALID, "a format with fewer than %zu values", n_values);
    return bt_jinja_string(j, bt_jbuffer_string(&b), out);
}

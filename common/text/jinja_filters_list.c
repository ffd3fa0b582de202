/* Filters on lists and dicts. */
#include <string.h>

#include "common/text/jinja_builtins.h"
#include "common/text/jinja_eval.h"
#include "common/text/jinja_string.h"

#define FILTER(name)                                                        \
    static bt_status name(struct bt_jinja *j, const struct bt_jvalue *self, \
                          const struct bt_jvalue argv[BT_JPARAMS_MAX], struct bt_jvalue *out)

/* The value itself, or what `path` leads to in it. */
static bt_status key_of(struct bt_jinja *j, const struct bt_jvalue *value,
                        const struct bt_jvalue *path, struct bt_jvalue *out) {
    *out = *value;
    if (path->kind == BT_J_MISSING || path->kind == BT_J_NONE)
        return BT_OK;
    return bt_jvalue_path(j, value, path, out);
}

/* Text is compared without regard to case, unless asked for. */
static bt_status fold(struct bt_jinja *j, struct bt_jvalue *value, bool case_sensitive) {
    if (case_sensitive || value->kind != BT_J_STRING)
        return BT_OK;
    struct bt_jvalue folded;
    BT_TRY(bt_jinja_change_case(j, value->string, BT_JCASE_LOWER, &folded));
    *value = folded;
    return BT_OK;
}

FILTER(filter_list) {
    (void)argv;
    const struct bt_jlist *list;
    BT_TRY(bt_jvalue_iterate(j, self, &list));
    *out = (struct bt_jvalue){.kind = BT_J_LIST, .list = list, .tainted = self->tainted};
    return BT_OK;
}

static bt_status edge(struct bt_jinja *j, const struct bt_jvalue *self, bool last,
                      struct bt_jvalue *out) {
    const struct bt_jlist *list;
    BT_TRY(bt_jvalue_iterate(j, self, &list));
    *out = (struct bt_jvalue){.kind = BT_J_UNDEFINED};
    if (list->n_items)
        *out = list->items[last ? list->n_items - 1 : 0];
    return BT_OK;
}

FILTER(filter_first) {
    (void)argv;
    return edge(j, self, false, out);
}

FILTER(filter_last) {
    (void)argv;
    return edge(j, self, true, out);
}

FILTER(filter_join) {
    const struct bt_jlist *list;
    const struct bt_jstring *separator = NULL;
    struct bt_jbuffer b;
    BT_TRY(bt_jvalue_iterate(j, self, &list));
    if (argv[0].kind != BT_J_MISSING)
        BT_TRY(bt_jinja_str(j, &argv[0], &separator));
    BT_TRY(bt_jbuffer_init(j, &b, BT_JINJA_MEMORY_BYTES));
    for (size_t i = 0; i < list->n_items; i++) {
        struct bt_jvalue item;
        BT_TRY(bt_jinja_spend(j, 1));
        if (i && separator)
            BT_TRY(bt_jbuffer_add(j, &b, separator));
        BT_TRY(key_of(j, &list->items[i], &argv[1], &item));
        BT_TRY(bt_jinja_print(j, &b, &item));
    }
    return bt_jinja_string(j, bt_jbuffer_string(&b), out);
}

FILTER(filter_reverse) {
    (void)argv;
    const struct bt_jvalue backwards[3] = {
        {.kind = BT_J_NONE}, {.kind = BT_J_NONE}, bt_jvalue_int(-1)};
    struct bt_jvalue list = *self;
    if (self->kind != BT_J_STRING)
        BT_TRY(filter_list(j, self, argv, &list));
    return bt_jinja_slice(j, &list, backwards, out);
}

/* (key, value) pairs of a dict; nothing for what is undefined. */
FILTER(filter_items) {
    (void)argv;
    struct bt_jvalue *items, *pair;
    if (self->kind != BT_J_DICT && self->kind != BT_J_UNDEFINED)
        return bt_jinja_fail(j, BT_E_INVALID, "items of a value of type %s",
                             bt_jvalue_type_name(self));
    size_t n = self->kind == BT_J_DICT ? self->dict->n_entries : 0;
    BT_TRY(bt_jinja_list(j, n, &items, out));
    out->tainted = self->tainted;
    for (size_t i = 0; i < n; i++) {
        BT_TRY(bt_jinja_list(j, 2, &pair, &items[i]));
        pair[0] = self->dict->entries[i].key;
        pair[1] = self->dict->entries[i].value;
        items[i].is_tuple = true;
    }
    return BT_OK;
}

/* Sorts indices of keys by merging runs of 1, 2, 4...: stable, and every comparison may fail. */
static bt_status sort_keys(struct bt_jinja *j, const struct bt_jvalue *keys, size_t n, bool reverse,
                           size_t *order, size_t *scratch) {
    for (size_t i = 0; i < n; i++)
        order[i] = i;
    for (size_t run = 1; run < n; run *= 2) {
        for (size_t start = 0; start < n; start += 2 * run) {
            size_t middle = start + run < n ? start + run : n;
            size_t end = start + 2 * run < n ? start + 2 * run : n;
            size_t left = start, right = middle;
            for (size_t at = start; at < end; at++) {
                int compared = 0;
                if (left < middle && right < end)
                    BT_TRY(bt_jvalue_order(j, &keys[order[left]], &keys[order[right]], &compared));
                if (reverse)
                    compared = -compared;
                bool take_left = right == end || (left < middle && compared <= 0);
                scratch[at] = take_left ? order[left++] : order[right++];
            }
        }
        memcpy(order, scratch, n * sizeof *order);
    }
    return BT_OK;
}

/* The items in the order of their keys, as a new list. */
static bt_status sorted(struct bt_jinja *j, const struct bt_jlist *list,
                        const struct bt_jvalue *keys, bool reverse, struct bt_jvalue *out) {
    void *order = NULL, *scratch = NULL;
    struct bt_jvalue *items;
    BT_TRY(bt_jinja_take(j, list->n_items * sizeof(size_t), &order));
    BT_TRY(bt_jinja_take(j, list->n_items * sizeof(size_t), &scratch));
    BT_TRY(sort_keys(j, keys, list->n_items, reverse, order, scratch));
    BT_TRY(bt_jinja_list(j, list->n_items, &items, out));
    for (size_t i = 0; i < list->n_items; i++)
        items[i] = list->items[((const size_t *)order)[i]];
    return BT_OK;
}

/* The keys by which a list is sorted or made unique. */
static bt_status keys_of(struct bt_jinja *j, const struct bt_jlist *list,
                         const struct bt_jvalue *path, bool case_sensitive,
                         struct bt_jvalue **keys) {
    struct bt_jvalue made;
    BT_TRY(bt_jinja_list(j, list->n_items, keys, &made));
    for (size_t i = 0; i < list->n_items; i++) {
        BT_TRY(key_of(j, &list->items[i], path, &(*keys)[i]));
        BT_TRY(fold(j, &(*keys)[i], case_sensitive));
    }
    return BT_OK;
}

FILTER(filter_sort) {
    const struct bt_jlist *list;
    struct bt_jvalue *keys;
    BT_TRY(bt_jvalue_iterate(j, self, &list));
    BT_TRY(keys_of(j, list, &argv[2], bt_jarg_flag(&argv[1], false), &keys));
    BT_TRY(sorted(j, list, keys, bt_jarg_flag(&argv[0], false), out));
    out->tainted = self->tainted;
    return BT_OK;
}

FILTER(filter_dictsort) {
    struct bt_jvalue pairs, *keys;
    bool by_value = bt_jvalue_is_string(&argv[1], "value");
    if (self->kind != BT_J_DICT)
        return bt_jinja_fail(j, BT_E_INVALID, "dictsort of a value of type %s",
                             bt_jvalue_type_name(self));
    BT_TRY(filter_items(j, self, argv, &pairs));
    struct bt_jvalue index = bt_jvalue_int(by_value);
    BT_TRY(keys_of(j, pairs.list, &index, bt_jarg_flag(&argv[0], false), &keys));
    BT_TRY(sorted(j, pairs.list, keys, bt_jarg_flag(&argv[2], false), out));
    out->tainted = self->tainted;
    return BT_OK;
}

FILTER(filter_unique) {
    const struct bt_jlist *list;
    struct bt_jvalue *keys, *items;
    size_t n = 0;
    BT_TRY(bt_jvalue_iterate(j, self, &list));
    BT_TRY(keys_of(j, list, &argv[1], bt_jarg_flag(&argv[0], false), &keys));
    BT_TRY(bt_jinja_list(j, list->n_items, &items, out));
    struct bt_jlist *kept = (struct bt_jlist *)out->list;
    for (size_t i = 0; i < list->n_items; i++) {
        bool seen = false;
        for (size_t k = 0; !seen && k < i; k++)
            BT_TRY(bt_jvalue_equal(j, &keys[k], &keys[i], &seen));
        if (!seen)
            items[n++] = list->items[i];
    }
    kept->n_items = n;
    out->tainted = self->tainted;
    return BT_OK;
}

static bt_status extreme(struct bt_jinja *j, const struct bt_jvalue *self,
                         const struct bt_jvalue argv[BT_JPARAMS_MAX], int sign,
                         struct bt_jvalue *out) {
    const struct bt_jlist *list;
    struct bt_jvalue *keys;
    size_t best = 0;
    BT_TRY(bt_jvalue_iterate(j, self, &list));
    BT_TRY(keys_of(j, list, &argv[1], bt_jarg_flag(&argv[0], false), &keys));
    *out = (struct bt_jvalue){.kind = BT_J_UNDEFINED};
    for (size_t i = 1; i < list->n_items; i++) {
        int order;
        BT_TRY(bt_jvalue_order(j, &keys[i], &keys[best], &order));
        if (order * sign > 0)
            best = i;
    }
    if (list->n_items)
        *out = list->items[best];
    return BT_OK;
}

FILTER(filter_max) {
    return extreme(j, self, argv, 1, out);
}

FILTER(filter_min) {
    return extreme(j, self, argv, -1, out);
}

FILTER(filter_sum) {
    const struct bt_jlist *list;
    BT_TRY(bt_jvalue_iterate(j, self, &list));
    *out = argv[1].kind == BT_J_MISSING ? bt_jvalue_int(0) : argv[1];
    for (size_t i = 0; i < list->n_items; i++) {
        struct bt_jvalue item, so_far = *out;
        BT_TRY(key_of(j, &list->items[i], &argv[0], &item));
        BT_TRY(bt_jinja_binary(j, BT_JOP_ADD, &so_far, &item, out));
    }
    return BT_OK;
}

/* What map, select and reject go through: nothing at all where the value is false in any way. */
static bt_status iterate_if_true(struct bt_jinja *j, const struct bt_jvalue *value,
                                 const struct bt_jlist **out) {
    static const struct bt_jlist nothing;
    *out = &nothing;
    return bt_jvalue_truth(value) ? bt_jvalue_iterate(j, value, out) : BT_OK;
}

/* map(attribute='a') or map('filter', arguments...). */
FILTER(filter_map) {
    const struct bt_jlist *list;
    const struct bt_jbuiltin *filter = NULL;
    struct bt_jvalue *items, arguments[BT_JPARAMS_MAX] = {0};
    BT_TRY(iterate_if_true(j, self, &list));
    if (argv[0].kind == BT_J_STRING)
        filter =
            bt_jinja_find_filter((struct bt_slice){argv[0].string->data, argv[0].string->n_bytes});
    if (!filter && argv[4].kind == BT_J_MISSING)
        return bt_jinja_fail(j, BT_E_UNSUPPORTED,
                             "map needs attribute= or the name of a filter that is supported");
    memcpy(arguments, &argv[1], 3 * sizeof *arguments);
    BT_TRY(bt_jinja_list(j, list->n_items, &items, out));
    out->tainted = self->tainted;
    for (size_t i = 0; i < list->n_items; i++) {
        BT_TRY(bt_jinja_spend(j, 1));
        if (filter) {
            BT_TRY(filter->run(j, &list->items[i], arguments, &items[i]));
            continue;
        }
        BT_TRY(bt_jvalue_path(j, &list->items[i], &argv[4], &items[i]));
        if (items[i].kind == BT_J_UNDEFINED && argv[5].kind != BT_J_MISSING)
            items[i] = argv[5];
    }
    return BT_OK;
}

/* The items, or what `path` leads to in them, that pass a test (wanted) or do not. */
static bt_status pick(struct bt_jinja *j, const struct bt_jvalue *self,
                      const struct bt_jvalue *path, const struct bt_jvalue *name,
                      const struct bt_jvalue *arguments, bool wanted, struct bt_jvalue *out) {
    const struct bt_jlist *list;
    const struct bt_jbuiltin *test = NULL;
    struct bt_jvalue *items, argv[BT_JPARAMS_MAX] = {0};
    size_t n = 0;
    BT_TRY(iterate_if_true(j, self, &list));
    if (name->kind == BT_J_STRING)
        test = bt_jinja_find_test((struct bt_slice){name->string->data, name->string->n_bytes});
    if (name->kind != BT_J_MISSING && !test)
        return bt_jinja_fail(j, BT_E_UNSUPPORTED, "a test that is not supported is named");
    memcpy(argv, arguments, 2 * sizeof *argv);
    BT_TRY(bt_jinja_list(j, list->n_items, &items, out));
    for (size_t i = 0; i < list->n_items; i++) {
        struct bt_jvalue value, passed;
        BT_TRY(bt_jinja_spend(j, 1));
        BT_TRY(key_of(j, &list->items[i], path, &value));
        passed = bt_jvalue_bool(bt_jvalue_truth(&value));
        if (test)
            BT_TRY(test->run(j, &value, argv, &passed));
        if (bt_jvalue_truth(&passed) == wanted)
            items[n++] = list->items[i];
    }
    ((struct bt_jlist *)out->list)->n_items = n;
    out->tainted = self->tainted;
    return BT_OK;
}

static const struct bt_jvalue no_path = {.kind = BT_J_MISSING};

FILTER(filter_select) {
    return pick(j, self, &no_path, &argv[0], &argv[1], true, out);
}

FILTER(filter_reject) {
    return pick(j, self, &no_path, &argv[0], &argv[1], false, out);
}

FILTER(filter_selectattr) {
    return pick(j, self, &argv[0], &argv[1], &argv[2], true, out);
}

FILTER(filter_rejectattr) {
    return pick(j, self, &argv[0], &argv[1], &argv[2], false, out);
}

static const struct bt_jbuiltin filters[] = {
    {"dictsort", "case_sensitive by reverse", filter_dictsort},
    {"first", "", filter_first},
    {"items", "", filter_items},
    {"join", "d attribute", filter_join},
    {"last", "", filter_last},
    {"list", "", filter_list},
    {"map", "filter a b c attribute default", filter_map},
    {"max", "case_sensitive attribute", filter_max},
    {"min", "case_sensitive attribute", filter_min},
    {"reject", "test a b", filter_reject},
    {"rejectattr", "attribute test a b", filter_rejectattr},
    {"reverse", "", filter_reverse},
    {"select", "test a b", filter_select},
    {"selectattr", "attribute test a b", filter_selectattr},
    {"sort", "reverse case_sensitive attribute", filter_sort},
    {"sum", "attribute start", filter_sum},
    {"unique", "case_sensitive attribute", filter_unique},
};

struct bt_jtable bt_jinja_list_filters(void) {
    return (struct bt_jtable){filters, sizeof filters / sizeof filters[0]};
}

/* Evaluates expressions. */
#include "common/text/jinja_eval.h"

#include <string.h>

#include "common/text/jinja_string.h"

struct bt_jbinding {
    struct bt_slice name;
    struct bt_jvalue value;
    struct bt_jbinding *next;
};

static bool same_name(struct bt_slice a, struct bt_slice b) {
    return a.n_bytes == b.n_bytes && !memcmp(a.data, b.data, a.n_bytes);
}

bt_status bt_jinja_push_scope(struct bt_jinja *j, struct bt_jscope *parent) {
    void *memory = NULL;
    BT_TRY(bt_jinja_take(j, sizeof *j->scope, &memory));
    j->scope = memory;
    j->scope->parent = parent;
    return BT_OK;
}

bt_status bt_jinja_bind(struct bt_jinja *j, struct bt_slice name, struct bt_jvalue value) {
    for (struct bt_jbinding *b = j->scope->bindings; b; b = b->next) {
        BT_TRY(bt_jinja_spend(j, 1));
        if (same_name(b->name, name)) {
            b->value = value;
            return BT_OK;
        }
    }
    void *memory = NULL;
    BT_TRY(bt_jinja_take(j, sizeof(struct bt_jbinding), &memory));
    struct bt_jbinding *binding = memory;
    *binding = (struct bt_jbinding){name, value, j->scope->bindings};
    j->scope->bindings = binding;
    return BT_OK;
}

bt_status bt_jinja_look_up(struct bt_jinja *j, const struct bt_slice *name, struct bt_jvalue *out) {
    size_t n_seen = 0;
    for (const struct bt_jscope *scope = j->scope; scope; scope = scope->parent) {
        for (const struct bt_jbinding *b = scope->bindings; b; b = b->next, n_seen++) {
            if (same_name(b->name, *name)) {
                *out = b->value;
                return bt_jinja_spend(j, n_seen / 4);
            }
        }
    }
    const struct bt_jbuiltin *function = bt_jinja_find_function(*name);
    if (function)
        *out = (struct bt_jvalue){.kind = BT_J_FUNCTION, .function = function};
    else
        *out = (struct bt_jvalue){.kind = BT_J_UNDEFINED, .name = name};
    return bt_jinja_spend(j, n_seen / 4);
}

bt_status bt_jinja_enter(struct bt_jinja *j, const struct bt_jnode *node) {
    j->line = node->line;
    if (++j->depth > BT_JINJA_EVAL_DEPTH)
        return bt_jinja_fail(j, BT_E_TOO_LARGE, "evaluation nested deeper than %d",
                             BT_JINJA_EVAL_DEPTH);
    return bt_jinja_spend(j, 1);
}

static bt_status loop_attribute(struct bt_jinja *j, const struct bt_jloop *loop,
                                struct bt_slice name, struct bt_jvalue *out) {
    int64_t i = (int64_t)loop->index, n = (int64_t)loop->items->n_items;
    const struct {
        const char *name;
        struct bt_jvalue value;
    } attributes[] = {
        {"index", bt_jvalue_int(i + 1)},
        {"index0", bt_jvalue_int(i)},
        {"revindex", bt_jvalue_int(n - i)},
        {"revindex0", bt_jvalue_int(n - i - 1)},
        {"first", bt_jvalue_bool(i == 0)},
        {"last", bt_jvalue_bool(i == n - 1)},
        {"length", bt_jvalue_int(n)},
        {"depth", bt_jvalue_int(1)}, /* more in recursive loops only, which are not supported */
        {"depth0", bt_jvalue_int(0)},
        {"previtem", i ? loop->items->items[i - 1] : (struct bt_jvalue){.kind = BT_J_UNDEFINED}},
        {"nextitem",
         i + 1 < n ? loop->items->items[i + 1] : (struct bt_jvalue){.kind = BT_J_UNDEFINED}},
    };
    for (size_t a = 0; a < sizeof attributes / sizeof attributes[0]; a++) {
        if (same_name(name, (struct bt_slice){attributes[a].name, strlen(attributes[a].name)})) {
            *out = attributes[a].value;
            return BT_OK;
        }
    }
    return bt_jinja_fail(j, BT_E_UNSUPPORTED, "loop.%.*s is not supported",
                         (int)(name.n_bytes < 40 ? name.n_bytes : 40), name.data);
}

/* NOLINTBEGIN(misc-no-recursion): depth is counted by bt_jinja_enter, up to BT_JINJA_EVAL_DEPTH. */

static bt_status attribute(struct bt_jinja *j, const struct bt_jnode *node,
                           const struct bt_jvalue *object, struct bt_jvalue *out) {
    if (object->kind == BT_J_LOOP)
        return loop_attribute(j, object->loop, node->name, out);
    if (node->builtin && bt_jinja_has_method(node->builtin, object->kind)) {
        void *memory = NULL;
        BT_TRY(bt_jinja_take(j, sizeof(struct bt_jmethod), &memory));
        struct bt_jmethod *method = memory;
        *method = (struct bt_jmethod){*object, node->builtin};
        *out = (struct bt_jvalue){.kind = BT_J_METHOD, .method = method};
        return BT_OK;
    }
    const struct bt_jstring string = {.data = node->name.data, .n_bytes = node->name.n_bytes};
    const struct bt_jvalue key = {.kind = BT_J_STRING, .string = &string};
    BT_TRY(bt_jvalue_item(j, object, &key, out));
    if (out->kind == BT_J_UNDEFINED)
        out->name = &node->name;
    return BT_OK;
}

/* Puts the arguments in the order of the parameters. */
static bt_status sort_arguments(struct bt_jinja *j, const struct bt_jbuiltin *builtin,
                                const struct bt_jnode *args,
                                struct bt_jvalue argv[BT_JPARAMS_MAX]) {
    int n = 0;
    memset(argv, 0, BT_JPARAMS_MAX * sizeof *argv);
    for (; args; args = args->next) {
        bool named = args->kind == BT_JNODE_KEYWORD;
        int place = named ? bt_jinja_param(builtin, args->name) : n++;
        if (place < 0 || place >= bt_jinja_n_params(builtin) || argv[place].kind != BT_J_MISSING)
            return bt_jinja_fail(j, BT_E_INVALID, "%s with an argument too many or given twice",
                                 builtin->name);
        BT_TRY(bt_jinja_eval(j, named ? args->first : args, &argv[place]));
    }
    return BT_OK;
}

static bt_status run_builtin(struct bt_jinja *j, const struct bt_jbuiltin *builtin,
                             const struct bt_jvalue *self, const struct bt_jnode *node,
                             struct bt_jvalue *out) {
    struct bt_jvalue argv[BT_JPARAMS_MAX];
    BT_TRY(sort_arguments(j, builtin, node->args, argv));
    j->line = node->line;
    return builtin->run(j, self, argv, out);
}

/* namespace(a=1, ...) and dict(a=1, ...). */
static bt_status collect(struct bt_jinja *j, const struct bt_jbuiltin *function,
                         const struct bt_jnode *args, struct bt_jvalue *out) {
    BT_TRY(bt_jinja_dict(j, 4, out));
    if (function->name[0] == 'n')
        out->kind = BT_J_NAMESPACE;
    for (; args; args = args->next) {
        struct bt_jvalue key, value;
        BT_TRY(bt_jinja_eval(j, args->kind == BT_JNODE_KEYWORD ? args->first : args, &value));
        if (args->kind == BT_JNODE_KEYWORD) {
            BT_TRY(bt_jinja_string(
                j, (struct bt_jstring){.data = args->name.data, .n_bytes = args->name.n_bytes},
                &key));
            BT_TRY(bt_jinja_dict_set(j, out->dict, key, value));
            continue;
        }
        if (value.kind != BT_J_DICT)
            return bt_jinja_fail(j, BT_E_INVALID, "%s of a value of type %s", function->name,
                                 bt_jvalue_type_name(&value));
        for (size_t i = 0; i < value.dict->n_entries; i++)
            BT_TRY(bt_jinja_dict_set(j, out->dict, value.dict->entries[i].key,
                                     value.dict->entries[i].value));
    }
    return BT_OK;
}

static bt_status call(struct bt_jinja *j, const struct bt_jnode *node, struct bt_jvalue *out) {
    struct bt_jvalue callee, self = {.kind = BT_J_MISSING};
    BT_TRY(bt_jinja_eval(j, node->first, &callee));
    j->line = node->line;
    if (callee.kind == BT_J_METHOD)
        return run_builtin(j, callee.method->builtin, &callee.method->self, node, out);
    if (callee.kind == BT_J_MACRO)
        return bt_jinja_call_macro(j, callee.macro, node, NULL, out);
    if (callee.kind == BT_J_FUNCTION && bt_jinja_takes_any(callee.function))
        return collect(j, callee.function, node->args, out);
    if (callee.kind == BT_J_FUNCTION)
        return run_builtin(j, callee.function, &self, node, out);
    struct bt_slice name = node->first->name;
    return bt_jinja_fail(j, BT_E_INVALID, "%.*s is %s and cannot be called",
                         name.data ? (int)(name.n_bytes < 40 ? name.n_bytes : 40) : 5,
                         name.data ? name.data : "a value", bt_jvalue_type_name(&callee));
}

static bt_status eval_list(struct bt_jinja *j, const struct bt_jnode *node, struct bt_jvalue *out) {
    size_t n = 0;
    struct bt_jvalue *items;
    for (const struct bt_jnode *arg = node->args; arg; arg = arg->next)
        n++;
    BT_TRY(bt_jinja_list(j, n, &items, out));
    out->is_tuple = node->kind == BT_JNODE_TUPLE;
    for (const struct bt_jnode *arg = node->args; arg; arg = arg->next)
        BT_TRY(bt_jinja_eval(j, arg, items++));
    return BT_OK;
}

static bt_status eval_dict(struct bt_jinja *j, const struct bt_jnode *node, struct bt_jvalue *out) {
    BT_TRY(bt_jinja_dict(j, 4, out));
    for (const struct bt_jnode *arg = node->args; arg; arg = arg->next->next) {
        struct bt_jvalue key, value;
        BT_TRY(bt_jinja_eval(j, arg, &key));
        BT_TRY(bt_jinja_eval(j, arg->next, &value));
        BT_TRY(bt_jinja_dict_set(j, out->dict, key, value));
    }
    return BT_OK;
}

static bt_status eval_concat(struct bt_jinja *j, const struct bt_jnode *node,
                             struct bt_jvalue *out) {
    struct bt_jbuffer b;
    BT_TRY(bt_jbuffer_init(j, &b, BT_JINJA_MEMORY_BYTES));
    for (const struct bt_jnode *arg = node->args; arg; arg = arg->next) {
        struct bt_jvalue value;
        BT_TRY(bt_jinja_eval(j, arg, &value));
        BT_TRY(bt_jinja_print(j, &b, &value));
    }
    return bt_jinja_string(j, bt_jbuffer_string(&b), out);
}

static bt_status eval_compare(struct bt_jinja *j, const struct bt_jnode *node,
                              struct bt_jvalue *out) {
    struct bt_jvalue left, right;
    bool holds = true;
    BT_TRY(bt_jinja_eval(j, node->first, &left));
    for (const struct bt_jnode *part = node->args; holds && part; part = part->next) {
        BT_TRY(bt_jinja_eval(j, part->first, &right));
        j->line = node->line;
        BT_TRY(bt_jinja_compare(j, part->op, &left, &right, &holds));
        left = right;
    }
    *out = bt_jvalue_bool(holds);
    return BT_OK;
}

static bt_status eval_slice(struct bt_jinja *j, const struct bt_jnode *node,
                            struct bt_jvalue *out) {
    struct bt_jvalue object, bounds[3];
    const struct bt_jnode *arg = node->args;
    BT_TRY(bt_jinja_eval(j, node->first, &object));
    for (int i = 0; i < 3; i++, arg = arg->next)
        BT_TRY(bt_jinja_eval(j, arg, &bounds[i]));
    j->line = node->line;
    return bt_jinja_slice(j, &object, bounds, out);
}

/* Operators with one or two operands, and attributes and items. */
static bt_status eval_operands(struct bt_jinja *j, const struct bt_jnode *node,
                               struct bt_jvalue *out) {
    struct bt_jvalue a, b;
    BT_TRY(bt_jinja_eval(j, node->first, &a));
    bool short_cut = (node->kind == BT_JNODE_AND && !bt_jvalue_truth(&a)) ||
                     (node->kind == BT_JNODE_OR && bt_jvalue_truth(&a));
    if (short_cut) {
        *out = a;
        return BT_OK;
    }
    if (node->second)
        BT_TRY(bt_jinja_eval(j, node->second, &b));
    j->line = node->line;
    switch (node->kind) {
    case BT_JNODE_NOT:
        *out = bt_jvalue_bool(!bt_jvalue_truth(&a));
        return BT_OK;
    case BT_JNODE_NEGATE:
        return bt_jinja_negate(j, &a, out);
    case BT_JNODE_BINARY:
        return bt_jinja_binary(j, node->op, &a, &b, out);
    case BT_JNODE_ATTR:
        return attribute(j, node, &a, out);
    case BT_JNODE_ITEM:
        return bt_jvalue_item(j, &a, &b, out);
    case BT_JNODE_FILTER:
    case BT_JNODE_TEST:
        return run_builtin(j, node->builtin, &a, node, out);
    default: /* AND, OR */
        *out = b;
        return BT_OK;
    }
}

static bt_status eval_condition(struct bt_jinja *j, const struct bt_jnode *node,
                                struct bt_jvalue *out) {
    struct bt_jvalue condition;
    BT_TRY(bt_jinja_eval(j, node->first, &condition));
    if (bt_jvalue_truth(&condition))
        return bt_jinja_eval(j, node->second, out);
    if (node->third)
        return bt_jinja_eval(j, node->third, out);
    *out = (struct bt_jvalue){.kind = BT_J_UNDEFINED};
    return BT_OK;
}

static bt_status eval_node(struct bt_jinja *j, const struct bt_jnode *node, struct bt_jvalue *out) {
    switch (node->kind) {
    case BT_JNODE_CONST:
        *out = node->value;
        return BT_OK;
    case BT_JNODE_CAPTURED:
        *out = j->captured;
        return BT_OK;
    case BT_JNODE_NAME:
        return bt_jinja_look_up(j, &node->name, out);
    case BT_JNODE_LIST:
    case BT_JNODE_TUPLE:
        return eval_list(j, node, out);
    case BT_JNODE_DICT:
        return eval_dict(j, node, out);
    case BT_JNODE_CONCAT:
        return eval_concat(j, node, out);
    case BT_JNODE_COMPARE:
        return eval_compare(j, node, out);
    case BT_JNODE_SLICE:
        return eval_slice(j, node, out);
    case BT_JNODE_COND:
        return eval_condition(j, node, out);
    case BT_JNODE_CALL:
        return call(j, node, out);
    default:
        return eval_operands(j, node, out);
    }
}

bt_status bt_jinja_eval(struct bt_jinja *j, const struct bt_jnode *node, struct bt_jvalue *out) {
    struct bt_jvalue value = {.kind = BT_J_UNDEFINED};
    BT_TRY(bt_jinja_enter(j, node));
    BT_TRY(eval_node(j, node, &value));
    j->depth--;
    *out = value;
    return BT_OK;
}
/* NOLINTEND(misc-no-recursion) */

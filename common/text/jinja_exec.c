/* Runs statements: output, if, for, set, macros and blocks. */
#include <string.h>

#include "common/text/jinja_eval.h"
#include "common/text/jinja_string.h"

/* NOLINTBEGIN(misc-no-recursion): depth is counted by bt_jinja_enter, up to BT_JINJA_EVAL_DEPTH. */

/* Runs statements in a scope of their own and takes their output as a string. */
static bt_status capture(struct bt_jinja *j, const struct bt_jnode *body, struct bt_jscope *parent,
                         struct bt_jvalue *out) {
    struct bt_jbuffer buffer, *around = j->out;
    struct bt_jscope *scope = j->scope;
    BT_TRY(bt_jbuffer_init(j, &buffer, BT_JINJA_MEMORY_BYTES));
    if (parent)
        BT_TRY(bt_jinja_push_scope(j, parent));
    j->out = &buffer;
    BT_TRY(bt_jinja_exec(j, body));
    j->out = around;
    j->scope = scope;
    return bt_jinja_string(j, bt_jbuffer_string(&buffer), out);
}

/* Binds the parameters of a macro in the new scope j->scope; arguments are evaluated in `from`. */
static bt_status bind_parameters(struct bt_jinja *j, const struct bt_jmacro *macro,
                                 const struct bt_jnode *call, struct bt_jscope *from) {
    struct bt_jscope *inside = j->scope;
    const struct bt_jnode *arg = call->args;
    size_t n_used = 0, n_given = 0;
    for (const struct bt_jnode *a = call->args; a; a = a->next)
        n_given++;
    for (const struct bt_jnode *param = macro->node->args; param; param = param->next) {
        const struct bt_jnode *given = NULL;
        if (arg && arg->kind != BT_JNODE_KEYWORD) {
            given = arg;
            arg = arg->next;
        } else {
            for (const struct bt_jnode *a = arg; a && !given; a = a->next)
                if (a->name.n_bytes == param->name.n_bytes &&
                    !memcmp(a->name.data, param->name.data, a->name.n_bytes))
                    given = a->first;
        }
        struct bt_jvalue value = {.kind = BT_J_UNDEFINED, .name = &param->name};
        n_used += given != NULL;
        if (given) {
            j->scope = from;
            BT_TRY(bt_jinja_eval(j, given, &value));
            j->scope = inside;
        } else if (param->first) {
            BT_TRY(bt_jinja_eval(j, param->first, &value));
        }
        BT_TRY(bt_jinja_bind(j, param->name, value));
    }
    if (n_used < n_given)
        return bt_jinja_fail(j, BT_E_INVALID, "%.*s() with arguments that it has no parameters for",
                             macro->node->name.data ? (int)macro->node->name.n_bytes : 6,
                             macro->node->name.data ? macro->node->name.data : "caller");
    return BT_OK;
}

bt_status bt_jinja_call_macro(struct bt_jinja *j, const struct bt_jmacro *macro,
                              const struct bt_jnode *call, const struct bt_jmacro *caller,
                              struct bt_jvalue *out) {
    struct bt_jscope *from = j->scope;
    BT_TRY(bt_jinja_push_scope(j, macro->scope));
    BT_TRY(bind_parameters(j, macro, call, from));
    if (caller)
        BT_TRY(bt_jinja_bind(j, (struct bt_slice){"caller", 6},
                             (struct bt_jvalue){.kind = BT_J_MACRO, .macro = caller}));
    BT_TRY(capture(j, macro->node->body, NULL, out));
    j->scope = from;
    return BT_OK;
}

static bt_status make_macro(struct bt_jinja *j, const struct bt_jnode *node,
                            const struct bt_jmacro **out) {
    void *memory = NULL;
    BT_TRY(bt_jinja_take(j, sizeof(struct bt_jmacro), &memory));
    struct bt_jmacro *macro = memory;
    *macro = (struct bt_jmacro){node, j->scope};
    *out = macro;
    return BT_OK;
}

static bt_status assign(struct bt_jinja *j, const struct bt_jnode *target, struct bt_jvalue value) {
    if (target->kind == BT_JNODE_NAME)
        return bt_jinja_bind(j, target->name, value);
    if (target->kind == BT_JNODE_ATTR) {
        struct bt_jvalue object, key;
        BT_TRY(bt_jinja_eval(j, target->first, &object));
        if (object.kind != BT_J_NAMESPACE)
            return bt_jinja_fail(j, BT_E_INVALID, "%.*s is not a namespace",
                                 (int)target->first->name.n_bytes, target->first->name.data);
        struct bt_jstring name = {.data = target->name.data, .n_bytes = target->name.n_bytes};
        BT_TRY(bt_jinja_string(j, name, &key));
        return bt_jinja_dict_set(j, object.dict, key, value);
    }
    const struct bt_jlist *list;
    size_t n = 0, i = 0;
    BT_TRY(bt_jvalue_iterate(j, &value, &list));
    for (const struct bt_jnode *name = target->args; name; name = name->next)
        n++;
    if (n != list->n_items)
        return bt_jinja_fail(j, BT_E_INVALID, "%zu values for %zu names", list->n_items, n);
    for (const struct bt_jnode *name = target->args; name; name = name->next)
        BT_TRY(bt_jinja_bind(j, name->name, list->items[i++]));
    return BT_OK;
}

/* The items for which the loop's own condition holds. */
static bt_status choose(struct bt_jinja *j, const struct bt_jnode *node,
                        const struct bt_jlist **list) {
    struct bt_jvalue chosen, *items, holds;
    size_t n = 0;
    BT_TRY(bt_jinja_list(j, (*list)->n_items, &items, &chosen));
    for (size_t i = 0; i < (*list)->n_items; i++) {
        struct bt_jscope *around = j->scope;
        BT_TRY(bt_jinja_push_scope(j, around));
        BT_TRY(assign(j, node->first, (*list)->items[i]));
        BT_TRY(bt_jinja_eval(j, node->third, &holds));
        j->scope = around;
        if (bt_jvalue_truth(&holds))
            items[n++] = (*list)->items[i];
    }
    void *memory = NULL;
    BT_TRY(bt_jinja_take(j, sizeof **list, &memory));
    struct bt_jlist *shortened = memory;
    *shortened = (struct bt_jlist){items, n};
    *list = shortened;
    return BT_OK;
}

static bt_status exec_for(struct bt_jinja *j, const struct bt_jnode *node) {
    struct bt_jvalue value;
    const struct bt_jlist *list;
    void *memory = NULL;
    BT_TRY(bt_jinja_eval(j, node->second, &value));
    j->line = node->line;
    BT_TRY(bt_jvalue_iterate(j, &value, &list));
    if (node->third)
        BT_TRY(choose(j, node, &list));
    BT_TRY(bt_jinja_take(j, sizeof(struct bt_jloop), &memory));
    struct bt_jloop *loop = memory;
    *loop = (struct bt_jloop){.items = list};
    struct bt_jscope *around = j->scope;
    bool completed = false;
    for (size_t i = 0; i < list->n_items && j->flow != BT_JFLOW_BREAK; i++) {
        loop->index = i;
        j->flow = BT_JFLOW_ON;
        BT_TRY(bt_jinja_spend(j, 1));
        BT_TRY(bt_jinja_push_scope(j, around));
        BT_TRY(assign(j, node->first, list->items[i]));
        BT_TRY(bt_jinja_bind(j, (struct bt_slice){"loop", 4},
                             (struct bt_jvalue){.kind = BT_J_LOOP, .loop = loop}));
        BT_TRY(bt_jinja_exec(j, node->body));
        completed = completed || j->flow == BT_JFLOW_ON;
    }
    j->flow = BT_JFLOW_ON;
    j->scope = around;
    /* As Jinja compiles it: else runs where no pass came to the body's end, not only for no items.
     */
    return completed ? BT_OK : bt_jinja_exec(j, node->other);
}

static bt_status exec_if(struct bt_jinja *j, const struct bt_jnode *node) {
    struct bt_jvalue condition;
    for (;;) {
        BT_TRY(bt_jinja_eval(j, node->first, &condition));
        if (bt_jvalue_truth(&condition))
            return bt_jinja_exec(j, node->body);
        const struct bt_jnode *other = node->other;
        if (!other || other->kind != BT_JNODE_IF || other->next)
            return bt_jinja_exec(j, other);
        node = other; /* elif */
        BT_TRY(bt_jinja_spend(j, 1));
    }
}

/* {% set %} and {% filter %} with a body: second or first is evaluated with the body's text. */
static bt_status exec_block(struct bt_jinja *j, const struct bt_jnode *node) {
    struct bt_jvalue text, value, around = j->captured;
    BT_TRY(capture(j, node->body, j->scope, &text));
    j->captured = text;
    bool is_set = node->kind == BT_JNODE_SET_BLOCK;
    BT_TRY(bt_jinja_eval(j, is_set ? node->second : node->first, &value));
    j->captured = around;
    return is_set ? assign(j, node->first, value) : bt_jinja_print(j, j->out, &value);
}

static bt_status exec_call(struct bt_jinja *j, const struct bt_jnode *node) {
    struct bt_jvalue callee, value;
    const struct bt_jmacro *caller;
    BT_TRY(bt_jinja_eval(j, node->second->first, &callee));
    if (callee.kind != BT_J_MACRO)
        return bt_jinja_fail(j, BT_E_INVALID, "{%% call %%} of a %s", bt_jvalue_type_name(&callee));
    BT_TRY(make_macro(j, node, &caller));
    BT_TRY(bt_jinja_call_macro(j, callee.macro, node->second, caller, &value));
    return bt_jinja_print(j, j->out, &value);
}

static bt_status exec_node(struct bt_jinja *j, const struct bt_jnode *node) {
    struct bt_jvalue value;
    const struct bt_jmacro *macro;
    switch (node->kind) {
    case BT_JNODE_TEXT:
        return bt_jbuffer_add(j, j->out, node->value.string);
    case BT_JNODE_OUTPUT:
        BT_TRY(bt_jinja_eval(j, node->first, &value));
        j->line = node->line;
        return bt_jinja_print(j, j->out, &value);
    case BT_JNODE_IF:
        return exec_if(j, node);
    case BT_JNODE_FOR:
        return exec_for(j, node);
    case BT_JNODE_SET:
        BT_TRY(bt_jinja_eval(j, node->second, &value));
        j->line = node->line;
        return assign(j, node->first, value);
    case BT_JNODE_SET_BLOCK:
    case BT_JNODE_FILTER_BLOCK:
        return exec_block(j, node);
    case BT_JNODE_MACRO:
        BT_TRY(make_macro(j, node, &macro));
        return bt_jinja_bind(j, node->name, (struct bt_jvalue){.kind = BT_J_MACRO, .macro = macro});
    case BT_JNODE_CALL_BLOCK:
        return exec_call(j, node);
    case BT_JNODE_GROUP: {
        struct bt_jscope *around = j->scope;
        BT_TRY(bt_jinja_push_scope(j, around));
        BT_TRY(bt_jinja_exec(j, node->body));
        j->scope = around;
        return BT_OK;
    }
    case BT_JNODE_BREAK:
        j->flow = BT_JFLOW_BREAK;
        return BT_OK;
    case BT_JNODE_CONTINUE:
        j->flow = BT_JFLOW_CONTINUE;
        return BT_OK;
    default:
        return bt_jinja_fail(j, BT_E_INTERNAL, "node kind %d is no statement", (int)node->kind);
    }
}

bt_status bt_jinja_exec(struct bt_jinja *j, const struct bt_jnode *list) {
    for (; list && j->flow == BT_JFLOW_ON; list = list->next) {
        BT_TRY(bt_jinja_enter(j, list));
        BT_TRY(exec_node(j, list));
        j->depth--;
    }
    return BT_OK;
}
/* NOLINTEND(misc-no-recursion) */

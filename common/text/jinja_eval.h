/* Runs a parsed chat template. */
#pragma once
#include "common/text/jinja_node.h"

/* Names and their values; a for, a macro and a block have a scope of their own, an if has not. */
struct bt_jscope {
    struct bt_jscope *parent;
    struct bt_jbinding *bindings;
};

struct bt_jmacro {
    const struct bt_jnode *node; /* MACRO or CALL_BLOCK */
    struct bt_jscope *scope;     /* where it was defined */
};

/* A new scope inside of j->scope becomes j->scope. */
bt_status bt_jinja_push_scope(struct bt_jinja *j, struct bt_jscope *parent);
/* Sets a name in the innermost scope. */
bt_status bt_jinja_bind(struct bt_jinja *j, struct bt_slice name, struct bt_jvalue value);
/* Undefined where no scope and no function has the name. */
bt_status bt_jinja_look_up(struct bt_jinja *j, const struct bt_slice *name, struct bt_jvalue *out);

bt_status bt_jinja_eval(struct bt_jinja *j, const struct bt_jnode *node, struct bt_jvalue *out);
/* Statements, one after the other; stops where j->flow is no longer ON. */
bt_status bt_jinja_exec(struct bt_jinja *j, const struct bt_jnode *list);
/* Calls a macro with the CALL node's arguments; caller may be NULL. */
bt_status bt_jinja_call_macro(struct bt_jinja *j, const struct bt_jmacro *macro,
                              const struct bt_jnode *call, const struct bt_jmacro *caller,
                              struct bt_jvalue *out);
/* Counts the depth of evaluation; the caller takes one off j->depth when it is through. */
bt_status bt_jinja_enter(struct bt_jinja *j, const struct bt_jnode *node);

bt_status bt_jinja_binary(struct bt_jinja *j, enum bt_jop op, const struct bt_jvalue *a,
                          const struct bt_jvalue *b, struct bt_jvalue *out);
bt_status bt_jinja_compare(struct bt_jinja *j, enum bt_jop op, const struct bt_jvalue *a,
                           const struct bt_jvalue *b, bool *out);
bt_status bt_jinja_negate(struct bt_jinja *j, const struct bt_jvalue *a, struct bt_jvalue *out);
/* object[start:stop:step]; each of the three is none or an integer. */
bt_status bt_jinja_slice(struct bt_jinja *j, const struct bt_jvalue *object,
                         const struct bt_jvalue bounds[3], struct bt_jvalue *out);
/* Python's format % values. */
bt_status bt_jinja_format(struct bt_jinja *j, const struct bt_jstring *format,
                          const struct bt_jvalue *values, size_t n_values, struct bt_jvalue *out);

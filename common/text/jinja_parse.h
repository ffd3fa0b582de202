/* What the two halves of the parser, statements and expressions, share. */
#pragma once
#include <stdbool.h>

#include "common/text/jinja_lexer.h"
#include "common/text/jinja_node.h"

struct bt_jparser {
    const struct bt_jtoken *at;
    struct bt_arena *arena;
    struct bt_error *err;
    int depth; /* of statements and brackets; at most BT_JINJA_PARSE_DEPTH */
    int n_loops;
};

/* Writes "chat template line N: ..." into p->err. */
void bt_jparse_explain(const struct bt_jparser *p, bt_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same, and is `status`: a constant, so that every reader sees that it is a failure. */
#define bt_jparse_fail(p, status, ...) (bt_jparse_explain((p), (status), __VA_ARGS__), (status))
bt_status bt_jparse_node(struct bt_jparser *p, enum bt_jnode_kind kind, struct bt_jnode **out);
bt_status bt_jparse_enter(struct bt_jparser *p);
bool bt_jparse_is(const struct bt_jparser *p, const char *operator_or_name);
/* Steps over the token if it is this operator or name. */
bool bt_jparse_skip(struct bt_jparser *p, const char *operator_or_name);
bt_status bt_jparse_expect(struct bt_jparser *p, const char *operator_or_name);
bt_status bt_jparse_name(struct bt_jparser *p, struct bt_slice *out);

bt_status bt_jparse_expression(struct bt_jparser *p, struct bt_jnode **out);
/* An expression, or several with commas between: a tuple. conditional: `x if y` may be part of it.
 */
bt_status bt_jparse_tuple(struct bt_jparser *p, bool conditional, struct bt_jnode **out);
/* The target of set and for: a name, a name with attribute (attributes), or names with commas. */
bt_status bt_jparse_target(struct bt_jparser *p, bool attributes, struct bt_jnode **out);
/* "|filter(args)|..." behind first; starts at a name where the | was already read. */
bt_status bt_jparse_filters(struct bt_jparser *p, bool at_name, struct bt_jnode **node);
/* Callee and arguments behind {% call %}. */
bt_status bt_jparse_postfix(struct bt_jparser *p, struct bt_jnode **node);
bt_status bt_jparse_primary(struct bt_jparser *p, struct bt_jnode **out);

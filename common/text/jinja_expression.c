/* Parses expressions with Jinja's precedence: if-else, or, and, not, comparisons, + -, ~, * / // %,
 * **, signs with filters and tests, then calls, attributes and items. */
#include <string.h>

#include "common/text/jinja_parse.h"

/* NOLINTBEGIN(misc-no-recursion): brackets nest at most BT_JINJA_PARSE_DEPTH deep, counted in
 * bt_jparse_expression, signs and `not` in the functions themselves. */

/* A node over one or two others; its height bounds the evaluator's depth. */
static bt_status over(struct bt_jparser *p, enum bt_jnode_kind kind, struct bt_jnode *first,
                      struct bt_jnode *second, struct bt_jnode **out) {
    struct bt_jnode *node = NULL;
    BT_TRY(bt_jparse_node(p, kind, &node));
    node->first = first;
    node->second = second;
    uint32_t height = first ? first->height : 0;
    if (second && second->height > height)
        height = second->height;
    node->height = height + 1;
    if (node->height > BT_JINJA_HEIGHT)
        return bt_jparse_fail(p, BT_E_UNSUPPORTED, "an expression of more than %d parts in a row",
                              BT_JINJA_HEIGHT);
    *out = node;
    return BT_OK;
}

static bt_status append(struct bt_jparser *p, struct bt_jnode *parent, struct bt_jnode ***tail,
                        struct bt_jnode *node) {
    **tail = node;
    *tail = &node->next;
    if (node->height + 1 > parent->height)
        parent->height = node->height + 1;
    if (parent->height > BT_JINJA_HEIGHT)
        return bt_jparse_fail(p, BT_E_UNSUPPORTED, "an expression nested deeper than %d",
                              BT_JINJA_HEIGHT);
    return BT_OK;
}

/* The same node may not stand in two lists, so a literal none is made for each use. */
static bt_status none_node(struct bt_jparser *p, struct bt_jnode **out) {
    BT_TRY(bt_jparse_node(p, BT_JNODE_CONST, out));
    (*out)->value = (struct bt_jvalue){.kind = BT_J_NONE};
    return BT_OK;
}

static bt_status string_node(struct bt_jparser *p, struct bt_slice text, struct bt_jnode **out) {
    struct bt_jstring *string = bt_arena_take(p->arena, sizeof *string);
    if (!string)
        return bt_jparse_fail(p, BT_E_NO_MEMORY, "no memory for a chat template");
    *string = (struct bt_jstring){.data = text.data, .n_bytes = text.n_bytes};
    BT_TRY(bt_jparse_node(p, BT_JNODE_CONST, out));
    (*out)->value = (struct bt_jvalue){.kind = BT_J_STRING, .string = string};
    return BT_OK;
}

/* Strings side by side are one. */
static bt_status strings(struct bt_jparser *p, struct bt_jnode **out) {
    size_t n = 0;
    const struct bt_jtoken *first = p->at;
    for (; p->at->kind == BT_JTOKEN_STRING; p->at++)
        n += p->at->text.n_bytes;
    char *text = bt_arena_take(p->arena, n);
    if (!text)
        return bt_jparse_fail(p, BT_E_NO_MEMORY, "no memory for a chat template");
    n = 0;
    for (const struct bt_jtoken *token = first; token < p->at; token++) {
        memcpy(text + n, token->text.data, token->text.n_bytes);
        n += token->text.n_bytes;
    }
    return string_node(p, (struct bt_slice){text, n}, out);
}

static bt_status list_until(struct bt_jparser *p, const char *end, struct bt_jnode *node) {
    struct bt_jnode **tail = &node->args, *item;
    while (!bt_jparse_is(p, end)) {
        BT_TRY(bt_jparse_expression(p, &item));
        BT_TRY(append(p, node, &tail, item));
        if (node->kind == BT_JNODE_DICT) {
            BT_TRY(bt_jparse_expect(p, ":"));
            BT_TRY(bt_jparse_expression(p, &item));
            BT_TRY(append(p, node, &tail, item));
        }
        if (!bt_jparse_skip(p, ","))
            break;
    }
    return bt_jparse_expect(p, end);
}

static bt_status name_or_word(struct bt_jparser *p, struct bt_jnode **out) {
    struct bt_slice name = p->at->text;
    static const struct {
        const char *word;
        struct bt_jvalue value;
    } words[] = {
        {"true", {.kind = BT_J_BOOL, .boolean = true}},
        {"false", {.kind = BT_J_BOOL}},
        {"True", {.kind = BT_J_BOOL, .boolean = true}},
        {"False", {.kind = BT_J_BOOL}},
        {"none", {.kind = BT_J_NONE}},
        {"None", {.kind = BT_J_NONE}},
    };
    BT_TRY(bt_jparse_node(p, BT_JNODE_NAME, out));
    (*out)->name = name;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (bt_jparse_is(p, words[i].word)) {
            (*out)->kind = BT_JNODE_CONST;
            (*out)->value = words[i].value;
        }
    }
    p->at++;
    return BT_OK;
}

bt_status bt_jparse_primary(struct bt_jparser *p, struct bt_jnode **out) {
    const struct bt_jtoken *token = p->at;
    switch (token->kind) {
    case BT_JTOKEN_NAME:
        return name_or_word(p, out);
    case BT_JTOKEN_STRING:
        return strings(p, out);
    case BT_JTOKEN_INT:
    case BT_JTOKEN_FLOAT:
        BT_TRY(bt_jparse_node(p, BT_JNODE_CONST, out));
        (*out)->value = token->kind == BT_JTOKEN_INT
                            ? bt_jvalue_int(token->integer)
                            : (struct bt_jvalue){.kind = BT_J_FLOAT, .real = token->real};
        p->at++;
        return BT_OK;
    default:
        break;
    }
    if (bt_jparse_skip(p, "(")) {
        if (bt_jparse_skip(p, ")"))
            return bt_jparse_node(p, BT_JNODE_TUPLE, out);
        BT_TRY(bt_jparse_tuple(p, true, out));
        return bt_jparse_expect(p, ")");
    }
    if (bt_jparse_skip(p, "[")) {
        BT_TRY(bt_jparse_node(p, BT_JNODE_LIST, out));
        return list_until(p, "]", *out);
    }
    if (bt_jparse_skip(p, "{")) {
        BT_TRY(bt_jparse_node(p, BT_JNODE_DICT, out));
        return list_until(p, "}", *out);
    }
    return bt_jparse_fail(p, BT_E_INVALID, "expected an expression, found \"%.*s\"",
                          (int)(token->text.n_bytes < 40 ? token->text.n_bytes : 40),
                          token->text.data);
}

/* Arguments behind "(": positions first, then name=value. */
static bt_status arguments(struct bt_jparser *p, struct bt_jnode *node) {
    struct bt_jnode **tail = &node->args, *item, *value;
    bool named = false;
    while (!bt_jparse_is(p, ")")) {
        if (bt_jparse_is(p, "*") || bt_jparse_is(p, "**"))
            return bt_jparse_fail(p, BT_E_UNSUPPORTED, "arguments by * or ** are not supported");
        if (p->at->kind == BT_JTOKEN_NAME && p->at[1].kind == BT_JTOKEN_OPERATOR &&
            p->at[1].text.n_bytes == 1 && p->at[1].text.data[0] == '=') {
            struct bt_slice name = p->at->text;
            p->at += 2;
            BT_TRY(bt_jparse_expression(p, &value));
            BT_TRY(over(p, BT_JNODE_KEYWORD, value, NULL, &item));
            item->name = name;
            named = true;
        } else if (named) {
            return bt_jparse_fail(p, BT_E_INVALID, "an argument without a name behind named ones");
        } else {
            BT_TRY(bt_jparse_expression(p, &item));
        }
        BT_TRY(append(p, node, &tail, item));
        if (!bt_jparse_skip(p, ","))
            break;
    }
    return bt_jparse_expect(p, ")");
}

/* Checks the arguments of a filter, test, method or function against its parameters. */
static bt_status check_arguments(struct bt_jparser *p, const char *what,
                                 const struct bt_jbuiltin *builtin, const struct bt_jnode *node) {
    int n = 0;
    for (const struct bt_jnode *arg = node->args; arg; arg = arg->next) {
        if (arg->kind == BT_JNODE_KEYWORD && bt_jinja_param(builtin, arg->name) < 0)
            return bt_jparse_fail(
                p, BT_E_UNSUPPORTED, "the %s %s with %.*s= is not supported", what, builtin->name,
                (int)(arg->name.n_bytes < 40 ? arg->name.n_bytes : 40), arg->name.data);
        if (arg->kind != BT_JNODE_KEYWORD && n++ == bt_jinja_n_params(builtin))
            return bt_jparse_fail(p, BT_E_UNSUPPORTED,
                                  "the %s %s with more than %d arguments is not supported", what,
                                  builtin->name, bt_jinja_n_params(builtin));
    }
    return BT_OK;
}

static bt_status call(struct bt_jparser *p, struct bt_jnode **node) {
    struct bt_jnode *callee = *node;
    BT_TRY(over(p, BT_JNODE_CALL, callee, NULL, node));
    BT_TRY(arguments(p, *node));
    bool is_loop = callee->kind == BT_JNODE_ATTR && callee->first->kind == BT_JNODE_NAME &&
                   callee->first->name.n_bytes == 4 && !memcmp(callee->first->name.data, "loop", 4);
    if (callee->kind == BT_JNODE_ATTR && (!callee->builtin || is_loop))
        return bt_jparse_fail(
            p, BT_E_UNSUPPORTED, "the method %s%.*s() is not supported", is_loop ? "loop." : "",
            (int)(callee->name.n_bytes < 40 ? callee->name.n_bytes : 40), callee->name.data);
    if (callee->kind == BT_JNODE_ATTR)
        return check_arguments(p, "method", callee->builtin, *node);
    return BT_OK;
}

/* What stands in "[...]": an index or a slice. */
static bt_status item(struct bt_jparser *p, struct bt_jnode **node) {
    struct bt_jnode *parts[3] = {0}, *object = *node;
    int n = 0;
    bool is_slice = false;
    for (;; n++) {
        if (!bt_jparse_is(p, ":") && !bt_jparse_is(p, "]"))
            BT_TRY(bt_jparse_expression(p, &parts[n]));
        if (n == 2 || !bt_jparse_skip(p, ":"))
            break;
        is_slice = true;
    }
    BT_TRY(bt_jparse_expect(p, "]"));
    if (!is_slice) {
        if (!parts[0])
            return bt_jparse_fail(p, BT_E_INVALID, "[] without an index");
        return over(p, BT_JNODE_ITEM, object, parts[0], node);
    }
    BT_TRY(over(p, BT_JNODE_SLICE, object, NULL, node));
    struct bt_jnode **tail = &(*node)->args;
    for (n = 0; n < 3; n++) {
        if (!parts[n])
            BT_TRY(none_node(p, &parts[n]));
        BT_TRY(append(p, *node, &tail, parts[n]));
    }
    return BT_OK;
}

bt_status bt_jparse_postfix(struct bt_jparser *p, struct bt_jnode **node) {
    for (;;) {
        if (bt_jparse_skip(p, ".")) {
            if (p->at->kind == BT_JTOKEN_INT) {
                struct bt_jnode *index;
                BT_TRY(bt_jparse_primary(p, &index));
                BT_TRY(over(p, BT_JNODE_ITEM, *node, index, node));
                continue;
            }
            struct bt_slice name;
            BT_TRY(bt_jparse_name(p, &name));
            BT_TRY(over(p, BT_JNODE_ATTR, *node, NULL, node));
            (*node)->name = name;
            (*node)->builtin = bt_jinja_find_method(name);
        } else if (bt_jparse_skip(p, "[")) {
            BT_TRY(item(p, node));
        } else if (bt_jparse_skip(p, "(")) {
            BT_TRY(call(p, node));
        } else {
            return BT_OK;
        }
    }
}

bt_status bt_jparse_filters(struct bt_jparser *p, bool at_name, struct bt_jnode **node) {
    while (at_name || bt_jparse_skip(p, "|")) {
        struct bt_slice name;
        at_name = false;
        BT_TRY(bt_jparse_name(p, &name));
        const struct bt_jbuiltin *filter = bt_jinja_find_filter(name);
        if (!filter)
            return bt_jparse_fail(p, BT_E_UNSUPPORTED, "the filter %.*s is not supported",
                                  (int)(name.n_bytes < 40 ? name.n_bytes : 40), name.data);
        BT_TRY(over(p, BT_JNODE_FILTER, *node, NULL, node));
        (*node)->builtin = filter;
        if (bt_jparse_skip(p, "("))
            BT_TRY(arguments(p, *node));
        BT_TRY(check_arguments(p, "filter", filter, *node));
    }
    return BT_OK;
}

/* Whether a test's argument may begin here without a bracket: "is divisibleby 3". */
static bool begins_argument(const struct bt_jparser *p) {
    static const char *const words[] = {"else", "or", "and", "if", "is", "in", "not", "recursive"};
    switch (p->at->kind) {
    case BT_JTOKEN_STRING:
    case BT_JTOKEN_INT:
    case BT_JTOKEN_FLOAT:
        return true;
    case BT_JTOKEN_NAME:
        for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
            if (bt_jparse_is(p, words[i]))
                return false;
        return true;
    default:
        return bt_jparse_is(p, "[") || bt_jparse_is(p, "{");
    }
}

static bt_status test(struct bt_jparser *p, struct bt_jnode **node) {
    bool negated = bt_jparse_skip(p, "not");
    struct bt_slice name;
    BT_TRY(bt_jparse_name(p, &name));
    const struct bt_jbuiltin *builtin = bt_jinja_find_test(name);
    if (!builtin)
        return bt_jparse_fail(p, BT_E_UNSUPPORTED, "the test \"is %.*s\" is not supported",
                              (int)(name.n_bytes < 40 ? name.n_bytes : 40), name.data);
    BT_TRY(over(p, BT_JNODE_TEST, *node, NULL, node));
    (*node)->builtin = builtin;
    if (bt_jparse_skip(p, "(")) {
        BT_TRY(arguments(p, *node));
    } else if (bt_jinja_n_params(builtin) && begins_argument(p)) {
        struct bt_jnode *argument, **tail = &(*node)->args;
        BT_TRY(bt_jparse_primary(p, &argument));
        BT_TRY(bt_jparse_postfix(p, &argument));
        BT_TRY(append(p, *node, &tail, argument));
    }
    BT_TRY(check_arguments(p, "test", builtin, *node));
    return negated ? over(p, BT_JNODE_NOT, *node, NULL, node) : BT_OK;
}

/* A sign binds tighter than filters: -3|abs is 3. */
static bt_status unary(struct bt_jparser *p, struct bt_jnode **node) {
    int n_minus = 0;
    bool has_sign = false;
    for (; bt_jparse_is(p, "-") || bt_jparse_is(p, "+"); has_sign = true)
        n_minus += bt_jparse_skip(p, "-") || !bt_jparse_skip(p, "+");
    BT_TRY(bt_jparse_primary(p, node));
    BT_TRY(bt_jparse_postfix(p, node));
    if (has_sign && n_minus % 2)
        BT_TRY(over(p, BT_JNODE_NEGATE, *node, NULL, node));
    for (;;) {
        if (bt_jparse_is(p, "|")) {
            BT_TRY(bt_jparse_filters(p, false, node));
        } else if (bt_jparse_skip(p, "is")) {
            BT_TRY(test(p, node));
        } else if (bt_jparse_skip(p, "(")) {
            BT_TRY(call(p, node));
        } else {
            return BT_OK;
        }
    }
}

struct level {
    const char *operator;
    enum bt_jop op;
};

typedef bt_status parse_level(struct bt_jparser *p, struct bt_jnode **node);

/* Operands with operators of one level between, from the left. */
static bt_status binary(struct bt_jparser *p, parse_level *operand, const struct level *levels,
                        size_t n_levels, struct bt_jnode **node) {
    BT_TRY(operand(p, node));
    for (;;) {
        size_t i = 0;
        while (i < n_levels && !bt_jparse_skip(p, levels[i].operator))
            i++;
        if (i == n_levels)
            return BT_OK;
        struct bt_jnode *right;
        BT_TRY(operand(p, &right));
        BT_TRY(over(p, BT_JNODE_BINARY, *node, right, node));
        (*node)->op = levels[i].op;
    }
}

static bt_status power(struct bt_jparser *p, struct bt_jnode **node) {
    static const struct level levels[] = {{"**", BT_JOP_POW}};
    return binary(p, unary, levels, 1, node);
}

static bt_status product(struct bt_jparser *p, struct bt_jnode **node) {
    static const struct level levels[] = {
        {"*", BT_JOP_MUL}, {"/", BT_JOP_DIV}, {"//", BT_JOP_FLOOR_DIV}, {"%", BT_JOP_MOD}};
    return binary(p, power, levels, 4, node);
}

static bt_status concat(struct bt_jparser *p, struct bt_jnode **node) {
    struct bt_jnode *first, *next;
    BT_TRY(product(p, &first));
    *node = first;
    if (!bt_jparse_is(p, "~"))
        return BT_OK;
    BT_TRY(bt_jparse_node(p, BT_JNODE_CONCAT, node));
    struct bt_jnode **tail = &(*node)->args;
    BT_TRY(append(p, *node, &tail, first));
    while (bt_jparse_skip(p, "~")) {
        BT_TRY(product(p, &next));
        BT_TRY(append(p, *node, &tail, next));
    }
    return BT_OK;
}

static bt_status sum(struct bt_jparser *p, struct bt_jnode **node) {
    static const struct level levels[] = {{"+", BT_JOP_ADD}, {"-", BT_JOP_SUB}};
    return binary(p, concat, levels, 2, node);
}

/* The comparison that stands here, if one does; steps over it. */
static bool comparison(struct bt_jparser *p, enum bt_jop *op) {
    static const struct level levels[] = {{"==", BT_JOP_EQ}, {"!=", BT_JOP_NE}, {"<=", BT_JOP_LE},
                                          {">=", BT_JOP_GE}, {"<", BT_JOP_LT},  {">", BT_JOP_GT},
                                          {"in", BT_JOP_IN}};
    for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++) {
        if (bt_jparse_skip(p, levels[i].operator)) {
            *op = levels[i].op;
            return true;
        }
    }
    if (bt_jparse_is(p, "not") && p->at[1].kind == BT_JTOKEN_NAME && p->at[1].text.n_bytes == 2 &&
        !memcmp(p->at[1].text.data, "in", 2)) {
        p->at += 2;
        *op = BT_JOP_NOT_IN;
        return true;
    }
    return false;
}

static bt_status compare(struct bt_jparser *p, struct bt_jnode **node) {
    enum bt_jop op;
    BT_TRY(sum(p, node));
    if (!comparison(p, &op))
        return BT_OK;
    BT_TRY(over(p, BT_JNODE_COMPARE, *node, NULL, node));
    struct bt_jnode **tail = &(*node)->args;
    do {
        /* The operand may be of a kind that uses its own op, so the comparison is put over it. */
        struct bt_jnode *right, *part;
        BT_TRY(sum(p, &right));
        BT_TRY(over(p, BT_JNODE_COMPARE, right, NULL, &part));
        part->op = op;
        BT_TRY(append(p, *node, &tail, part));
    } while (comparison(p, &op));
    return BT_OK;
}

static bt_status negation(struct bt_jparser *p, struct bt_jnode **node) {
    bool negated = false, any = false;
    for (; bt_jparse_skip(p, "not"); any = true)
        negated = !negated;
    BT_TRY(compare(p, node));
    if (any)
        BT_TRY(over(p, BT_JNODE_NOT, *node, NULL, node));
    return any && !negated ? over(p, BT_JNODE_NOT, *node, NULL, node) : BT_OK;
}

static bt_status conjunction(struct bt_jparser *p, struct bt_jnode **node) {
    struct bt_jnode *right;
    BT_TRY(negation(p, node));
    while (bt_jparse_skip(p, "and")) {
        BT_TRY(negation(p, &right));
        BT_TRY(over(p, BT_JNODE_AND, *node, right, node));
    }
    return BT_OK;
}

static bt_status disjunction(struct bt_jparser *p, struct bt_jnode **node) {
    struct bt_jnode *right;
    BT_TRY(conjunction(p, node));
    while (bt_jparse_skip(p, "or")) {
        BT_TRY(conjunction(p, &right));
        BT_TRY(over(p, BT_JNODE_OR, *node, right, node));
    }
    return BT_OK;
}

bt_status bt_jparse_expression(struct bt_jparser *p, struct bt_jnode **out) {
    struct bt_jnode *condition, *other = NULL;
    BT_TRY(bt_jparse_enter(p));
    BT_TRY(disjunction(p, out));
    while (bt_jparse_skip(p, "if")) {
        BT_TRY(disjunction(p, &condition));
        if (bt_jparse_skip(p, "else"))
            BT_TRY(bt_jparse_expression(p, &other));
        struct bt_jnode *value = *out;
        BT_TRY(over(p, BT_JNODE_COND, condition, value, out));
        (*out)->third = other;
        if (other && other->height >= (*out)->height)
            (*out)->height = other->height + 1;
        other = NULL;
    }
    p->depth--;
    return BT_OK;
}

bt_status bt_jparse_tuple(struct bt_jparser *p, bool conditional, struct bt_jnode **out) {
    struct bt_jnode *first, *next;
    BT_TRY(conditional ? bt_jparse_expression(p, &first) : disjunction(p, &first));
    *out = first;
    if (!bt_jparse_is(p, ","))
        return BT_OK;
    BT_TRY(bt_jparse_node(p, BT_JNODE_TUPLE, out));
    struct bt_jnode **tail = &(*out)->args;
    BT_TRY(append(p, *out, &tail, first));
    while (bt_jparse_skip(p, ",")) {
        if (bt_jparse_is(p, ")") || bt_jparse_is(p, "=") || p->at->kind == BT_JTOKEN_BLOCK_END ||
            p->at->kind == BT_JTOKEN_OUTPUT_END)
            break;
        BT_TRY(conditional ? bt_jparse_expression(p, &next) : disjunction(p, &next));
        BT_TRY(append(p, *out, &tail, next));
    }
    return BT_OK;
}
/* NOLINTEND(misc-no-recursion) */

static bt_status one_target(struct bt_jparser *p, struct bt_jnode **out) {
    BT_TRY(bt_jparse_node(p, BT_JNODE_NAME, out));
    return bt_jparse_name(p, &(*out)->name);
}

bt_status bt_jparse_target(struct bt_jparser *p, bool attributes, struct bt_jnode **out) {
    struct bt_jnode *first, *next;
    bool bracket = bt_jparse_skip(p, "(");
    BT_TRY(one_target(p, &first));
    *out = first;
    if (attributes && bt_jparse_skip(p, ".")) {
        BT_TRY(over(p, BT_JNODE_ATTR, first, NULL, out));
        BT_TRY(bt_jparse_name(p, &(*out)->name));
    } else if (bt_jparse_is(p, ",")) {
        BT_TRY(bt_jparse_node(p, BT_JNODE_TUPLE, out));
        struct bt_jnode **tail = &(*out)->args;
        BT_TRY(append(p, *out, &tail, first));
        while (bt_jparse_skip(p, ",") && p->at->kind == BT_JTOKEN_NAME && !bt_jparse_is(p, "in")) {
            BT_TRY(one_target(p, &next));
            BT_TRY(append(p, *out, &tail, next));
        }
    }
    return bracket ? bt_jparse_expect(p, ")") : BT_OK;
}

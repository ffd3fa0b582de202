/* Parses the statements of a chat template. */
#include "common/text/jinja_parser.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/text/jinja_parse.h"

void bt_jparse_explain(const struct bt_jparser *p, bt_status status, const char *format, ...) {
    char text[BT_ERROR_TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    (void)bt_fail(p->err, status, "chat template line %u: %s", p->at->line, text);
}

bt_status bt_jparse_node(struct bt_jparser *p, enum bt_jnode_kind kind, struct bt_jnode **out) {
    struct bt_jnode *node = bt_arena_take(p->arena, sizeof *node);
    if (!node)
        return bt_jparse_fail(p, BT_E_NO_MEMORY, "no memory for a chat template");
    node->kind = kind;
    node->line = p->at->line;
    node->height = 1;
    *out = node;
    return BT_OK;
}

bt_status bt_jparse_enter(struct bt_jparser *p) {
    if (++p->depth > BT_JINJA_PARSE_DEPTH)
        return bt_jparse_fail(p, BT_E_UNSUPPORTED, "nested deeper than %d", BT_JINJA_PARSE_DEPTH);
    return BT_OK;
}

bool bt_jparse_is(const struct bt_jparser *p, const char *operator_or_name) {
    return (p->at->kind == BT_JTOKEN_NAME || p->at->kind == BT_JTOKEN_OPERATOR) &&
           p->at->text.n_bytes == strlen(operator_or_name) &&
           !memcmp(p->at->text.data, operator_or_name, p->at->text.n_bytes);
}

bool bt_jparse_skip(struct bt_jparser *p, const char *operator_or_name) {
    bool is = bt_jparse_is(p, operator_or_name);
    p->at += is;
    return is;
}

static bt_status unexpected(struct bt_jparser *p, const char *expected) {
    return bt_jparse_fail(p, BT_E_INVALID, "expected %s, found \"%.*s\"", expected,
                          (int)(p->at->text.n_bytes < 40 ? p->at->text.n_bytes : 40),
                          p->at->text.data ? p->at->text.data : "");
}

bt_status bt_jparse_expect(struct bt_jparser *p, const char *operator_or_name) {
    return bt_jparse_skip(p, operator_or_name) ? BT_OK : unexpected(p, operator_or_name);
}

bt_status bt_jparse_name(struct bt_jparser *p, struct bt_slice *out) {
    if (p->at->kind != BT_JTOKEN_NAME)
        return unexpected(p, "a name");
    *out = p->at->text;
    p->at++;
    return BT_OK;
}

static bt_status expect_end_of_tag(struct bt_jparser *p) {
    if (p->at->kind != BT_JTOKEN_BLOCK_END)
        return unexpected(p, "%}");
    p->at++;
    return BT_OK;
}

/* NOLINTBEGIN(misc-no-recursion): statements nest at most BT_JINJA_PARSE_DEPTH deep, counted in
 * statements(). */
static bt_status statements(struct bt_jparser *p, const char *const *ends, struct bt_jnode **out);

/* The body of a statement up to {% end %}, which is read. */
static bt_status body_until(struct bt_jparser *p, const char *end, struct bt_jnode **out) {
    const char *const ends[] = {end, NULL};
    BT_TRY(expect_end_of_tag(p));
    BT_TRY(statements(p, ends, out));
    p->at += 2; /* {% end: statements() stopped there */
    return expect_end_of_tag(p);
}

static bt_status parse_if(struct bt_jparser *p, struct bt_jnode **out) {
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct bt_jnode **place = out;
    for (;;) {
        struct bt_jnode *node = NULL;
        BT_TRY(bt_jparse_node(p, BT_JNODE_IF, &node));
        BT_TRY(bt_jparse_tuple(p, true, &node->first));
        BT_TRY(expect_end_of_tag(p));
        BT_TRY(statements(p, ends, &node->body));
        *place = node;
        p->at++;
        if (bt_jparse_skip(p, "elif")) {
            place = &node->other;
            continue;
        }
        if (bt_jparse_skip(p, "else"))
            return body_until(p, "endif", &node->other);
        p->at++;
        return expect_end_of_tag(p);
    }
}

static bt_status parse_for(struct bt_jparser *p, struct bt_jnode **out) {
    static const char *const ends[] = {"else", "endfor", NULL};
    struct bt_jnode *node = NULL;
    BT_TRY(bt_jparse_node(p, BT_JNODE_FOR, &node));
    BT_TRY(bt_jparse_target(p, false, &node->first));
    BT_TRY(bt_jparse_expect(p, "in"));
    BT_TRY(bt_jparse_tuple(p, false, &node->second));
    if (bt_jparse_skip(p, "if"))
        BT_TRY(bt_jparse_expression(p, &node->third));
    if (bt_jparse_is(p, "recursive"))
        return bt_jparse_fail(p, BT_E_UNSUPPORTED, "a recursive for is not supported");
    BT_TRY(expect_end_of_tag(p));
    p->n_loops++;
    BT_TRY(statements(p, ends, &node->body));
    p->n_loops--;
    *out = node;
    p->at++;
    if (bt_jparse_skip(p, "else"))
        return body_until(p, "endfor", &node->other);
    p->at++;
    return expect_end_of_tag(p);
}

static bt_status parse_set(struct bt_jparser *p, struct bt_jnode **out) {
    struct bt_jnode *node = NULL;
    BT_TRY(bt_jparse_node(p, BT_JNODE_SET, &node));
    BT_TRY(bt_jparse_target(p, true, &node->first));
    *out = node;
    if (bt_jparse_skip(p, "=")) {
        BT_TRY(bt_jparse_tuple(p, true, &node->second));
        return expect_end_of_tag(p);
    }
    node->kind = BT_JNODE_SET_BLOCK;
    BT_TRY(bt_jparse_node(p, BT_JNODE_CAPTURED, &node->second));
    BT_TRY(bt_jparse_filters(p, false, &node->second));
    return body_until(p, "endset", &node->body);
}

/* Parameters in brackets, each with or without a default. */
static bt_status parameters(struct bt_jparser *p, struct bt_jnode *node) {
    struct bt_jnode **tail = &node->args;
    BT_TRY(bt_jparse_expect(p, "("));
    while (!bt_jparse_is(p, ")")) {
        struct bt_jnode *param = NULL;
        BT_TRY(bt_jparse_node(p, BT_JNODE_KEYWORD, &param));
        BT_TRY(bt_jparse_name(p, &param->name));
        if (bt_jparse_skip(p, "="))
            BT_TRY(bt_jparse_expression(p, &param->first));
        *tail = param;
        tail = &param->next;
        if (!bt_jparse_skip(p, ","))
            break;
    }
    return bt_jparse_expect(p, ")");
}

static bt_status parse_macro(struct bt_jparser *p, struct bt_jnode **out) {
    struct bt_jnode *node = NULL;
    int n_loops = p->n_loops;
    BT_TRY(bt_jparse_node(p, BT_JNODE_MACRO, &node));
    BT_TRY(bt_jparse_name(p, &node->name));
    BT_TRY(parameters(p, node));
    *out = node;
    p->n_loops = 0; /* a break inside does not end a loop around the macro */
    BT_TRY(body_until(p, "endmacro", &node->body));
    p->n_loops = n_loops;
    return BT_OK;
}

static bt_status parse_call(struct bt_jparser *p, struct bt_jnode **out) {
    struct bt_jnode *node = NULL;
    int n_loops = p->n_loops;
    BT_TRY(bt_jparse_node(p, BT_JNODE_CALL_BLOCK, &node));
    if (bt_jparse_is(p, "("))
        BT_TRY(parameters(p, node));
    BT_TRY(bt_jparse_primary(p, &node->second));
    BT_TRY(bt_jparse_postfix(p, &node->second));
    if (node->second->kind != BT_JNODE_CALL)
        return bt_jparse_fail(p, BT_E_INVALID, "{%% call %%} needs a call");
    *out = node;
    p->n_loops = 0;
    BT_TRY(body_until(p, "endcall", &node->body));
    p->n_loops = n_loops;
    return BT_OK;
}

static bt_status parse_filter(struct bt_jparser *p, struct bt_jnode **out) {
    struct bt_jnode *node = NULL;
    BT_TRY(bt_jparse_node(p, BT_JNODE_FILTER_BLOCK, &node));
    BT_TRY(bt_jparse_node(p, BT_JNODE_CAPTURED, &node->first));
    BT_TRY(bt_jparse_filters(p, true, &node->first));
    *out = node;
    return body_until(p, "endfilter", &node->body);
}

static bt_status parse_statement(struct bt_jparser *p, struct bt_jnode **out) {
    struct bt_slice name = p->at->text;
    if (bt_jparse_skip(p, "if"))
        return parse_if(p, out);
    if (bt_jparse_skip(p, "for"))
        return parse_for(p, out);
    if (bt_jparse_skip(p, "set"))
        return parse_set(p, out);
    if (bt_jparse_skip(p, "macro"))
        return parse_macro(p, out);
    if (bt_jparse_skip(p, "call"))
        return parse_call(p, out);
    if (bt_jparse_skip(p, "filter"))
        return parse_filter(p, out);
    if (bt_jparse_skip(p, "generation")) { /* marks text for training; nothing when rendering */
        BT_TRY(bt_jparse_node(p, BT_JNODE_GROUP, out));
        return body_until(p, "endgeneration", &(*out)->body);
    }
    if (bt_jparse_is(p, "break") || bt_jparse_is(p, "continue")) {
        if (!p->n_loops)
            return bt_jparse_fail(p, BT_E_INVALID, "%.*s outside of a loop", (int)name.n_bytes,
                                  name.data);
        BT_TRY(bt_jparse_node(p, name.n_bytes == 5 ? BT_JNODE_BREAK : BT_JNODE_CONTINUE, out));
        p->at++;
        return expect_end_of_tag(p);
    }
    static const char *const known[] = {"include", "extends", "import", "from",      "block",
                                        "with",    "do",      "trans",  "autoescape"};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (bt_jparse_is(p, known[i]))
            return bt_jparse_fail(p, BT_E_UNSUPPORTED, "{%% %s %%} is not supported", known[i]);
    return bt_jparse_fail(p, BT_E_INVALID, "{%% %.*s %%} is not a statement that may stand here",
                          (int)(name.n_bytes < 40 ? name.n_bytes : 40), name.data);
}

/* Whether {% and one of the words in `ends` stands here. */
static bool at_end(const struct bt_jparser *p, const char *const *ends) {
    struct bt_jparser behind = *p;
    behind.at++;
    for (; *ends; ends++)
        if (bt_jparse_is(&behind, *ends))
            return true;
    return false;
}

/* Reads statements up to, not including, a {% with one of `ends`; NULL: up to the template's end.
 */
static bt_status statements(struct bt_jparser *p, const char *const *ends, struct bt_jnode **out) {
    struct bt_jnode **tail = out;
    BT_TRY(bt_jparse_enter(p));
    for (;;) {
        struct bt_jnode *node = NULL;
        switch (p->at->kind) {
        case BT_JTOKEN_TEXT: {
            BT_TRY(bt_jparse_node(p, BT_JNODE_TEXT, &node));
            struct bt_jstring *string = bt_arena_take(p->arena, sizeof *string);
            if (!string)
                return bt_jparse_fail(p, BT_E_NO_MEMORY, "no memory for a chat template");
            *string = (struct bt_jstring){.data = p->at->text.data, .n_bytes = p->at->text.n_bytes};
            node->value = (struct bt_jvalue){.kind = BT_J_STRING, .string = string};
            p->at++;
            break;
        }
        case BT_JTOKEN_OUTPUT_BEGIN:
            p->at++;
            BT_TRY(bt_jparse_node(p, BT_JNODE_OUTPUT, &node));
            BT_TRY(bt_jparse_tuple(p, true, &node->first));
            if (p->at->kind != BT_JTOKEN_OUTPUT_END)
                return unexpected(p, "}}");
            p->at++;
            break;
        case BT_JTOKEN_BLOCK_BEGIN:
            if (ends && at_end(p, ends)) {
                p->depth--;
                return BT_OK;
            }
            p->at++;
            BT_TRY(parse_statement(p, &node));
            break;
        default: /* the lexer ends every tag, so only the end is left */
            if (ends)
                return bt_jparse_fail(p, BT_E_INVALID, "the template ends before {%% %s %%}",
                                      ends[ends[1] ? (ends[2] ? 2 : 1) : 0]);
            p->depth--;
            return BT_OK;
        }
        *tail = node;
        tail = &node->next;
    }
}
/* NOLINTEND(misc-no-recursion) */

bt_status bt_jinja_parse(struct bt_slice source, struct bt_arena *arena, struct bt_jnode **out,
                         struct bt_error *err) {
    struct bt_jtoken *tokens;
    BT_TRY(bt_jinja_lexer_run(source, arena, &tokens, err));
    struct bt_jparser p = {.at = tokens, .arena = arena, .err = err};
    *out = NULL;
    return statements(&p, NULL, out);
}

/* A parsed chat template: a tree of statements and expressions. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/text/jinja_value.h"

enum bt_jnode_kind {
    /* Expressions. */
    BT_JNODE_CONST,   /* value */
    BT_JNODE_NAME,    /* name */
    BT_JNODE_LIST,    /* args */
    BT_JNODE_TUPLE,   /* args; also a target */
    BT_JNODE_DICT,    /* args: key, value, key, value... */
    BT_JNODE_ATTR,    /* first.name; `builtin`: the method of that name, if there is one */
    BT_JNODE_ITEM,    /* first[second] */
    BT_JNODE_SLICE,   /* first[args: start, stop, step], a constant none where not given */
    BT_JNODE_CALL,    /* first(args) */
    BT_JNODE_KEYWORD, /* name=first among args */
    BT_JNODE_FILTER,  /* first|builtin(args), args by parameter, NULL kind where not given */
    BT_JNODE_TEST,    /* first is builtin(args) */
    BT_JNODE_NOT,
    BT_JNODE_AND,
    BT_JNODE_OR,
    BT_JNODE_NEGATE,
    BT_JNODE_BINARY,   /* first op second */
    BT_JNODE_CONCAT,   /* args, joined by ~ */
    BT_JNODE_COMPARE,  /* first, then args, each with its op */
    BT_JNODE_COND,     /* second if first else third; third may be NULL */
    BT_JNODE_CAPTURED, /* the text of the block that is being filtered */
    /* Statements. */
    BT_JNODE_TEXT,         /* value */
    BT_JNODE_OUTPUT,       /* {{ first }} */
    BT_JNODE_IF,           /* first, body, other */
    BT_JNODE_FOR,          /* for first in second if third: body, else other */
    BT_JNODE_SET,          /* first = second */
    BT_JNODE_SET_BLOCK,    /* first = second with body as CAPTURED */
    BT_JNODE_MACRO,        /* name, args: KEYWORDs, first: default or NULL; body */
    BT_JNODE_CALL_BLOCK,   /* second(caller = macro of args and body) */
    BT_JNODE_FILTER_BLOCK, /* {{ first }} with body as CAPTURED */
    BT_JNODE_GROUP,        /* body */
    BT_JNODE_BREAK,
    BT_JNODE_CONTINUE,
};

enum bt_jop {
    BT_JOP_ADD,
    BT_JOP_SUB,
    BT_JOP_MUL,
    BT_JOP_DIV,
    BT_JOP_FLOOR_DIV,
    BT_JOP_MOD,
    BT_JOP_POW,
    BT_JOP_EQ,
    BT_JOP_NE,
    BT_JOP_LT,
    BT_JOP_LE,
    BT_JOP_GT,
    BT_JOP_GE,
    BT_JOP_IN,
    BT_JOP_NOT_IN,
};

struct bt_jnode {
    enum bt_jnode_kind kind;
    enum bt_jop op;
    uint32_t line;
    uint32_t height; /* expressions: nodes on the longest way down */
    struct bt_slice name;
    struct bt_jvalue value;
    const struct bt_jbuiltin *builtin;
    struct bt_jnode *first, *second, *third;
    struct bt_jnode *args; /* list by `next` */
    struct bt_jnode *body, *other;
    struct bt_jnode *next;
};

enum { BT_JPARAMS_MAX = 6, BT_JINJA_PARSE_DEPTH = 64, BT_JINJA_HEIGHT = 150 };

/* A filter, test, method or function. */
struct bt_jbuiltin {
    const char *name;
    const char *params; /* names with a blank between; at most BT_JPARAMS_MAX */
    /* argv[i]: the i-th parameter, MISSING where it was not given. */
    bt_status (*run)(struct bt_jinja *j, const struct bt_jvalue *self,
                     const struct bt_jvalue argv[BT_JPARAMS_MAX], struct bt_jvalue *out);
};

const struct bt_jbuiltin *bt_jinja_find_filter(struct bt_slice name);
const struct bt_jbuiltin *bt_jinja_find_test(struct bt_slice name);
const struct bt_jbuiltin *bt_jinja_find_method(struct bt_slice name);
const struct bt_jbuiltin *bt_jinja_find_function(struct bt_slice name);
/* Whether the method exists for values of this kind. */
bool bt_jinja_has_method(const struct bt_jbuiltin *method, enum bt_jkind kind);
/* The row of `name` in a table, or NULL. */
const struct bt_jbuiltin *bt_jinja_find(const struct bt_jbuiltin *table, size_t n,
                                        struct bt_slice name);
/* Place of parameter `name`, -1: there is none. */
int bt_jinja_param(const struct bt_jbuiltin *builtin, struct bt_slice name);
int bt_jinja_n_params(const struct bt_jbuiltin *builtin);

/* Functions whose keywords are anything: called by the evaluator itself. */
bool bt_jinja_takes_any(const struct bt_jbuiltin *function);

/* The values that a chat template computes with, and where their bytes came from.
 *
 * Values are small and copied; what they point to lies in the rendering's arena (or the template's,
 * for literals) and is not changed once made, except for a namespace. Every string knows of each of
 * its bytes whether the client sent it ("tainted"); numbers, lists and dicts know it as a whole. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/text/arena.h"
#include "common/text/slice.h"

enum bt_jkind {
    BT_J_MISSING, /* an argument that was not given */
    BT_J_UNDEFINED,
    BT_J_NONE,
    BT_J_BOOL,
    BT_J_INT,
    BT_J_FLOAT,
    BT_J_STRING,
    BT_J_LIST, /* also tuples and what would be generators */
    BT_J_DICT,
    BT_J_NAMESPACE, /* a dict whose entries can be set */
    BT_J_LOOP,      /* `loop` inside of a for */
    BT_J_MACRO,
    BT_J_METHOD,   /* x.split: a method and its object */
    BT_J_FUNCTION, /* raise_exception, range... */
};

struct bt_jstring {
    const char *data;
    size_t n_bytes;
    const uint8_t *mask; /* [n_bytes] 1: tainted; NULL: all bytes are as `tainted` says */
    bool tainted;
};

struct bt_jvalue {
    enum bt_jkind kind;
    bool tainted;  /* not of strings, which know it byte by byte */
    bool is_tuple; /* of a list: shows in its printed form only */
    union {
        bool boolean;
        int64_t integer;
        double real;
        const struct bt_jstring *string;
        const struct bt_jlist *list;
        struct bt_jdict *dict; /* also of a namespace */
        const struct bt_jloop *loop;
        const struct bt_jmacro *macro;
        const struct bt_jmethod *method;
        const struct bt_jbuiltin *function;
        const struct bt_slice *name; /* of what is undefined; may be NULL */
    };
};

struct bt_jlist {
    struct bt_jvalue *items;
    size_t n_items;
};

struct bt_jentry {
    struct bt_jvalue key, value;
};

struct bt_jdict {
    struct bt_jentry *entries; /* in the order of insertion */
    size_t n_entries, capacity;
};

/* The state of one for loop, as its body sees it. */
struct bt_jloop {
    const struct bt_jlist *items;
    size_t index;
};

struct bt_jmethod {
    struct bt_jvalue self;
    const struct bt_jbuiltin *builtin;
};

enum {
    BT_JINJA_EVAL_DEPTH =
        400,                  /* expressions and statements inside of each other, macros included */
    BT_JINJA_DATA_DEPTH = 64, /* lists and dicts inside of each other */
    BT_JINJA_MEMORY_BYTES = 64 << 20, /* of one rendering, besides its output */
};

/* One rendering under way: one thread, never kept. */
struct bt_jinja {
    struct bt_arena arena;
    struct bt_error *err;
    uint32_t line; /* of the template, for errors */
    uint32_t depth;
    int64_t steps_left;
    int64_t now_s;
    struct bt_jbuffer *out;
    struct bt_jscope *scope;
    struct bt_jvalue captured; /* the text of a {% filter %} or {% set %} block */
    enum { BT_JFLOW_ON, BT_JFLOW_BREAK, BT_JFLOW_CONTINUE } flow;
};

/* Text that grows; bytes and their origin side by side. */
struct bt_jbuffer {
    char *data;
    uint8_t *mask;
    size_t n_bytes, capacity, limit;
    bool has_trusted, has_tainted;
};

/* Writes "chat template line N: ..." into j->err. */
void bt_jinja_explain(const struct bt_jinja *j, bt_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same, and is `status`: a constant, so that every reader sees that it is a failure. */
#define bt_jinja_fail(j, status, ...) (bt_jinja_explain((j), (status), __VA_ARGS__), (status))
/* Counts work against the bound; BT_E_TOO_LARGE past it. */
bt_status bt_jinja_spend(struct bt_jinja *j, size_t steps);
/* Arena memory, or BT_E_TOO_LARGE and NULL. */
static inline bt_status bt_jinja_take(struct bt_jinja *j, size_t n_bytes, void **out) {
    *out = bt_arena_take(&j->arena, n_bytes);
    if (!*out)
        return bt_jinja_fail(j, BT_E_TOO_LARGE, "rendering needs more than %zu MiB of memory",
                             j->arena.limit >> 20);
    return BT_OK;
}

/* Making values. */
struct bt_jvalue bt_jvalue_bool(bool value);
struct bt_jvalue bt_jvalue_int(int64_t value);
bt_status bt_jinja_string(struct bt_jinja *j, struct bt_jstring string, struct bt_jvalue *out);
/* A trusted string of a C literal, which is borrowed. */
bt_status bt_jinja_literal(struct bt_jinja *j, const char *text, struct bt_jvalue *out);
/* A list with room for n items, all of them MISSING; *items is where to write them. */
bt_status bt_jinja_list(struct bt_jinja *j, size_t n, struct bt_jvalue **items,
                        struct bt_jvalue *out);
bt_status bt_jinja_dict(struct bt_jinja *j, size_t capacity, struct bt_jvalue *out);
/* Replaces or appends; the key must be hashable. */
bt_status bt_jinja_dict_set(struct bt_jinja *j, struct bt_jdict *dict, struct bt_jvalue key,
                            struct bt_jvalue value);

/* Looking at values. */
const char *bt_jvalue_type_name(const struct bt_jvalue *value);
bool bt_jvalue_is_string(const struct bt_jvalue *value, const char *text);
bool bt_jvalue_truth(const struct bt_jvalue *value);
bool bt_jvalue_is_number(const struct bt_jvalue *value);  /* bool, int or float */
double bt_jvalue_real(const struct bt_jvalue *value);     /* of a number */
int64_t bt_jvalue_integer(const struct bt_jvalue *value); /* of a bool or int */
bt_status bt_jvalue_equal(struct bt_jinja *j, const struct bt_jvalue *a, const struct bt_jvalue *b,
                          bool *out);
/* *out < 0, 0 or > 0; refused between kinds that have no order. */
bt_status bt_jvalue_order(struct bt_jinja *j, const struct bt_jvalue *a, const struct bt_jvalue *b,
                          int *out);
bt_status bt_jvalue_length(struct bt_jinja *j, const struct bt_jvalue *value, size_t *out);
/* What a for loop would see: characters of a string, keys of a dict, nothing of what is undefined.
 */
bt_status bt_jvalue_iterate(struct bt_jinja *j, const struct bt_jvalue *value,
                            const struct bt_jlist **out);
/* The entry of `key`, or NULL. */
bt_status bt_jvalue_find(struct bt_jinja *j, const struct bt_jdict *dict,
                         const struct bt_jvalue *key, struct bt_jentry **out);
/* value[key] by Jinja's rules: undefined where it is not there. */
bt_status bt_jvalue_item(struct bt_jinja *j, const struct bt_jvalue *value,
                         const struct bt_jvalue *key, struct bt_jvalue *out);
/* Follows "a.b.0" through dicts and lists. */
bt_status bt_jvalue_path(struct bt_jinja *j, const struct bt_jvalue *value,
                         const struct bt_jvalue *path, struct bt_jvalue *out);
bt_status bt_jvalue_contains(struct bt_jinja *j, const struct bt_jvalue *container,
                             const struct bt_jvalue *item, bool *out);

/* What the tables of filters, tests and methods share. */
#pragma once
#include "common/text/jinja_node.h"

struct bt_jtable {
    const struct bt_jbuiltin *rows;
    size_t n;
};

/* The filters that work on lists; the others and the look-up are in jinja_filters.c. */
struct bt_jtable bt_jinja_list_filters(void);

/* An optional parameter: `standard` where it was not given. */
bt_status bt_jarg_int(struct bt_jinja *j, const struct bt_jvalue *arg, int64_t standard,
                      int64_t *out);
bool bt_jarg_flag(const struct bt_jvalue *arg, bool standard);
/* A string that must be given. */
bt_status bt_jarg_string(struct bt_jinja *j, const struct bt_jvalue *arg,
                         const struct bt_jstring **out);

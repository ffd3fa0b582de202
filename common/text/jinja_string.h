/* Text with the origin of each byte: buffers that grow, and the operations that templates use. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/text/jinja_value.h"

/* Bytes [start, end) of s, borrowed from it. */
struct bt_jstring bt_jstring_part(const struct bt_jstring *s, size_t start, size_t end);
/* First place at or behind `at` where `what` stands. */
bool bt_jstring_find(const struct bt_jstring *s, const struct bt_jstring *what, size_t at,
                     size_t *place);
bool bt_jstring_starts(const struct bt_jstring *s, const struct bt_jstring *what);
bool bt_jstring_ends(const struct bt_jstring *s, const struct bt_jstring *what);
/* A decimal integer, blanks around it allowed, as Python's int() reads it. */
bool bt_jstring_to_int(const struct bt_jstring *s, int64_t *out);
bool bt_jstring_to_real(const struct bt_jstring *s, double *out);
/* What Python's str.isspace says. */
bool bt_jinja_is_blank(uint32_t code_point);

/* Without the characters of `chars` (NULL: blanks) at the left, at the right. */
bt_status bt_jinja_strip(struct bt_jinja *j, const struct bt_jstring *s,
                         const struct bt_jstring *chars, bool left, bool right,
                         struct bt_jvalue *out);
enum bt_jcase { BT_JCASE_UPPER, BT_JCASE_LOWER, BT_JCASE_CAPITALIZE, BT_JCASE_TITLE };
bt_status bt_jinja_change_case(struct bt_jinja *j, const struct bt_jstring *s, enum bt_jcase how,
                               struct bt_jvalue *out);
/* max < 0: all. An empty `from` is refused. */
bt_status bt_jinja_replace(struct bt_jinja *j, const struct bt_jstring *s,
                           const struct bt_jstring *from, const struct bt_jstring *to, int64_t max,
                           struct bt_jvalue *out);
/* sep NULL: at blanks, without empty parts. max < 0: all. */
bt_status bt_jinja_split(struct bt_jinja *j, const struct bt_jstring *s,
                         const struct bt_jstring *sep, int64_t max, bool from_right,
                         struct bt_jvalue *out);

/* The buffer lives in j's arena. limit: most bytes, BT_E_TOO_LARGE past it. */
bt_status bt_jbuffer_init(struct bt_jinja *j, struct bt_jbuffer *b, size_t limit);
bt_status bt_jbuffer_add(struct bt_jinja *j, struct bt_jbuffer *b, const struct bt_jstring *s);
bt_status bt_jbuffer_add_bytes(struct bt_jinja *j, struct bt_jbuffer *b, const char *bytes,
                               size_t n_bytes, bool tainted);
/* Borrowed from the buffer, which must not grow any more. */
struct bt_jstring bt_jbuffer_string(const struct bt_jbuffer *b);

/* Python's str(), repr() and json.dumps(). */
bt_status bt_jinja_print(struct bt_jinja *j, struct bt_jbuffer *b, const struct bt_jvalue *value);
bt_status bt_jinja_str(struct bt_jinja *j, const struct bt_jvalue *value,
                       const struct bt_jstring **out);
bt_status bt_jinja_repr(struct bt_jinja *j, struct bt_jbuffer *b, const struct bt_jvalue *value);
struct bt_jjson_style {
    int64_t indent; /* < 0: on one line */
    bool ensure_ascii, sort_keys;
    const struct bt_jstring *item_separator, *key_separator; /* NULL: Python's own */
};
bt_status bt_jinja_json(struct bt_jinja *j, struct bt_jbuffer *b, const struct bt_jvalue *value,
                        const struct bt_jjson_style *style);
/* The shortest form that reads back as the same number, as Python writes it. */
void bt_jinja_real_text(double value, char out[40]);

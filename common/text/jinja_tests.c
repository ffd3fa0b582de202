/* The tests behind "is". */
#include <math.h>

#include "common/text/jinja_builtins.h"
#include "common/text/jinja_eval.h"
#include "common/text/jinja_string.h"

#define TEST(name, holds)                                                                       \
    static bt_status name(struct bt_jinja *j, const struct bt_jvalue *self,                     \
                          const struct bt_jvalue argv[BT_JPARAMS_MAX], struct bt_jvalue *out) { \
        (void)j;                                                                                \
        (void)argv;                                                                             \
        *out = bt_jvalue_bool(holds);                                                           \
        return BT_OK;                                                                           \
    }

#define COMPARISON(name, op)                                                                    \
    static bt_status name(struct bt_jinja *j, const struct bt_jvalue *self,                     \
                          const struct bt_jvalue argv[BT_JPARAMS_MAX], struct bt_jvalue *out) { \
        bool holds;                                                                             \
        BT_TRY(bt_jinja_compare(j, op, self, &argv[0], &holds));                                \
        *out = bt_jvalue_bool(holds);                                                           \
        return BT_OK;                                                                           \
    }

static bool is_integer(const struct bt_jvalue *value) {
    return value->kind == BT_J_INT || value->kind == BT_J_BOOL;
}

static bool is_callable(const struct bt_jvalue *value) {
    /* In Python what is undefined has a __call__ too; it raises. */
    return value->kind == BT_J_MACRO || value->kind == BT_J_METHOD ||
           value->kind == BT_J_FUNCTION || value->kind == BT_J_UNDEFINED;
}

static bool is_iterable(const struct bt_jvalue *value) {
    return value->kind == BT_J_STRING || value->kind == BT_J_LIST || value->kind == BT_J_DICT ||
           value->kind == BT_J_UNDEFINED;
}

TEST(test_defined, self->kind != BT_J_UNDEFINED)
TEST(test_undefined, self->kind == BT_J_UNDEFINED)
TEST(test_none, self->kind == BT_J_NONE)
TEST(test_string, self->kind == BT_J_STRING)
TEST(test_number, bt_jvalue_is_number(self))
TEST(test_integer, self->kind == BT_J_INT)
TEST(test_float, self->kind == BT_J_FLOAT)
TEST(test_boolean, self->kind == BT_J_BOOL)
TEST(test_true, self->kind == BT_J_BOOL && self->boolean)
TEST(test_false, self->kind == BT_J_BOOL && !self->boolean)
TEST(test_mapping, self->kind == BT_J_DICT)
TEST(test_iterable, is_iterable(self))
TEST(test_sequence, is_iterable(self))
TEST(test_callable, is_callable(self))
COMPARISON(test_eq, BT_JOP_EQ)
COMPARISON(test_ne, BT_JOP_NE)
COMPARISON(test_lt, BT_JOP_LT)
COMPARISON(test_le, BT_JOP_LE)
COMPARISON(test_gt, BT_JOP_GT)
COMPARISON(test_ge, BT_JOP_GE)
COMPARISON(test_in, BT_JOP_IN)

/* The same object in Python; for the constants that templates compare with, kind and value. */
static bt_status test_sameas(struct bt_jinja *j, const struct bt_jvalue *self,
                             const struct bt_jvalue argv[BT_JPARAMS_MAX], struct bt_jvalue *out) {
    bool holds = false;
    if (self->kind == argv[0].kind)
        BT_TRY(bt_jvalue_equal(j, self, &argv[0], &holds));
    *out = bt_jvalue_bool(holds);
    return BT_OK;
}

static bt_status divides(struct bt_jinja *j, const struct bt_jvalue *self, int64_t by,
                         int64_t wanted, struct bt_jvalue *out) {
    if (!bt_jvalue_is_number(self) || by == 0)
        return bt_jinja_fail(j, BT_E_INVALID, "a value of type %s divided by %lld",
                             bt_jvalue_type_name(self), (long long)by);
    if (self->kind == BT_J_FLOAT) {
        double real_rest = fabs(fmod(self->real, (double)by));
        *out = bt_jvalue_bool(real_rest >= (double)wanted && real_rest <= (double)wanted);
        return BT_OK;
    }
    int64_t rest = by == -1 ? 0 : bt_jvalue_integer(self) % by;
    *out = bt_jvalue_bool((rest < 0 ? -rest : rest) == wanted);
    return BT_OK;
}

static bt_status test_even(struct bt_jinja *j, const struct bt_jvalue *self,
                           const struct bt_jvalue argv[BT_JPARAMS_MAX], struct bt_jvalue *out) {
    (void)argv;
    return divides(j, self, 2, 0, out);
}

static bt_status test_odd(struct bt_jinja *j, const struct bt_jvalue *self,
                          const struct bt_jvalue argv[BT_JPARAMS_MAX], struct bt_jvalue *out) {
    (void)argv;
    return divides(j, self, 2, 1, out);
}

static bt_status test_divisibleby(struct bt_jinja *j, const struct bt_jvalue *self,
                                  const struct bt_jvalue argv[BT_JPARAMS_MAX],
                                  struct bt_jvalue *out) {
    return divides(j, self, is_integer(&argv[0]) ? bt_jvalue_integer(&argv[0]) : 0, 0, out);
}

static const struct bt_jbuiltin tests[] = {
    {"boolean", "", test_boolean},
    {"callable", "", test_callable},
    {"defined", "", test_defined},
    {"divisibleby", "num", test_divisibleby},
    {"eq", "other", test_eq},
    {"==", "other", test_eq},
    {"equalto", "other", test_eq},
    {"even", "", test_even},
    {"false", "", test_false},
    {"float", "", test_float},
    {"ge", "other", test_ge},
    {">=", "other", test_ge},
    {"greaterthan", "other", test_gt},
    {"gt", "other", test_gt},
    {">", "other", test_gt},
    {"in", "seq", test_in},
    {"integer", "", test_integer},
    {"iterable", "", test_iterable},
    {"le", "other", test_le},
    {"<=", "other", test_le},
    {"lessthan", "other", test_lt},
    {"lt", "other", test_lt},
    {"<", "other", test_lt},
    {"mapping", "", test_mapping},
    {"ne", "other", test_ne},
    {"!=", "other", test_ne},
    {"none", "", test_none},
    {"number", "", test_number},
    {"odd", "", test_odd},
    {"sameas", "other", test_sameas},
    {"sequence", "", test_sequence},
    {"string", "", test_string},
    {"true", "", test_true},
    {"undefined", "", test_undefined},
};

const struct bt_jbuiltin *bt_jinja_find_test(struct bt_slice name) {
    return bt_jinja_find(tests, sizeof tests / sizeof tests[0], name);
}

/* Typed look-ups in a JSON object, with refusals that name field, value and bound. */
#include "router/openai_fields.h"

#include <inttypes.h>

const json_t *bt_openai_get(const json_t *object, const char *name) {
    const json_t *value = json_object_get(object, name);
    return value && !json_is_null(value) ? value : NULL;
}

const char *bt_openai_type_name(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction or exponent";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    default:
        return "null";
    }
}

static bt_status wrong_type(const struct bt_generate_check *check, const char *name,
                            const json_t *value, const char *expected) {
    return bt_generate_refuse(check, BT_E_INVALID, name, "%s must be %s, not %s", name, expected,
                              bt_openai_type_name(value));
}

bt_status bt_openai_bool(const struct bt_generate_check *check, const json_t *object,
                         const char *name, bool *out, bool *given) {
    const json_t *value = bt_openai_get(object, name);
    if (given)
        *given = value != NULL;
    if (!value)
        return BT_OK;
    if (!json_is_boolean(value))
        return wrong_type(check, name, value, "true or false");
    *out = json_is_true(value);
    return BT_OK;
}

bt_status bt_openai_string(const struct bt_generate_check *check, const json_t *object,
                           const char *name, const char **out) {
    const json_t *value = bt_openai_get(object, name);
    if (!value)
        return BT_OK;
    if (!json_is_string(value))
        return wrong_type(check, name, value, "a string");
    *out = json_string_value(value);
    return BT_OK;
}

bt_status bt_openai_integer(const struct bt_generate_check *check, const json_t *object,
                            const char *name, int64_t min, int64_t max, int64_t *out, bool *given) {
    const json_t *value = bt_openai_get(object, name);
    if (given)
        *given = value != NULL;
    if (!value)
        return BT_OK;
    if (!json_is_integer(value))
        return wrong_type(check, name, value, "an integer");
    int64_t number = json_integer_value(value);
    if (number < min || number > max)
        return bt_generate_refuse(check, BT_E_INVALID, name,
                                  "%s is %" PRId64 ", it must be from %" PRId64 " to %" PRId64,
                                  name, number, min, max);
    *out = number;
    return BT_OK;
}

bt_status bt_openai_number(const struct bt_generate_check *check, const json_t *object,
                           const char *name, double min, double max, bool open, float *out) {
    const json_t *value = bt_openai_get(object, name);
    if (!value)
        return BT_OK;
    if (!json_is_number(value))
        return wrong_type(check, name, value, "a number");
    double number = json_number_value(value);
    /* A float that rounds to the open bound would pass for it: compare what will be used. */
    float rounded = (float)number;
    if (!(open ? number > min && rounded > (float)min : number >= min) || !(number <= max))
        return bt_generate_refuse(check, BT_E_INVALID, name,
                                  "%s is %g, it must be %s %g and at most %g", name, number,
                                  open ? "above" : "at least", min, max);
    *out = rounded;
    return BT_OK;
}

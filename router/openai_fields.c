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

bt_status bt_openai_refuse_type(const struct bt_generate_check *check, const char *name,
                                const json_t *value, const char *expected) {
    check->fault->code = "invalid_type";
    return bt_generate_refuse(check, BT_E_INVALID, name, "%s must be %s, not %s", name, expected,
                              bt_openai_type_name(value));
}

bt_status bt_openai_refuse_missing(const struct bt_generate_check *check, const char *name) {
    check->fault->code = "missing_required_parameter";
    return bt_generate_refuse(check, BT_E_INVALID, name, "%s is missing", name);
}

bt_status bt_openai_refuse_unsupported(const struct bt_generate_check *check, const char *name,
                                       const char *sentence) {
    check->fault->code = "unsupported_parameter";
    return bt_generate_refuse(check, BT_E_UNSUPPORTED, name, "%s", sentence);
}

bt_status bt_openai_bool(const struct bt_generate_check *check, const json_t *object,
                         const char *name, bool *out, bool *given) {
    const json_t *value = bt_openai_get(object, name);
    if (given)
        *given = value != NULL;
    if (!value)
        return BT_OK;
    if (!json_is_boolean(value))
        return bt_openai_refuse_type(check, name, value, "true or false");
    *out = json_is_true(value);
    return BT_OK;
}

bt_status bt_openai_string(const struct bt_generate_check *check, const json_t *object,
                           const char *name, const char **out) {
    const json_t *value = bt_openai_get(object, name);
    if (!value)
        return BT_OK;
    if (!json_is_string(value))
        return bt_openai_refuse_type(check, name, value, "a string");
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
        return bt_openai_refuse_type(check, name, value, "an integer");
    int64_t number = json_integer_value(value);
    if (number < min || number > max) {
        check->fault->code = number < min ? "integer_below_min_value" : "integer_above_max_value";
        return bt_generate_refuse(check, BT_E_INVALID, name,
                                  "%s is %" PRId64 ", it must be from %" PRId64 " to %" PRId64,
                                  name, number, min, max);
    }
    *out = number;
    return BT_OK;
}

bt_status bt_openai_number(const struct bt_generate_check *check, const json_t *object,
                           const char *name, double min, double max, bool open, float *out) {
    const json_t *value = bt_openai_get(object, name);
    if (!value)
        return BT_OK;
    if (!json_is_number(value))
        return bt_openai_refuse_type(check, name, value, "a number");
    double number = json_number_value(value);
    /* A float that rounds to the open bound would pass for it: compare what will be used. */
    float rounded = (float)number;
    bool low = !(open ? number > min && rounded > (float)min : number >= min);
    if (low || !(number <= max)) {
        check->fault->code = low ? "decimal_below_min_value" : "decimal_above_max_value";
        return bt_generate_refuse(check, BT_E_INVALID, name,
                                  "%s is %g, it must be %s %g and at most %g", name, number,
                                  open ? "above" : "at least", min, max);
    }
    *out = rounded;
    return BT_OK;
}

bt_status bt_openai_ids(const struct bt_generate_check *check, const char *name, const json_t *list,
                        uint32_t vocab_tokens, int32_t *out) {
    size_t i;
    const json_t *id;
    json_array_foreach((json_t *)list, i, id) {
        if (!json_is_integer(id))
            return bt_generate_refuse(check, BT_E_INVALID, name,
                                      "%s[%zu] must be a token id, not %s", name, i,
                                      bt_openai_type_name(id));
        json_int_t value = json_integer_value(id);
        if (value < 0 || value >= vocab_tokens)
            return bt_generate_refuse(check, BT_E_INVALID, name,
                                      "%s[%zu] is %" JSON_INTEGER_FORMAT
                                      ", a token id must be from 0 to %" PRIu32,
                                      name, i, value, vocab_tokens - 1);
        out[i] = (int32_t)value;
    }
    return BT_OK;
}

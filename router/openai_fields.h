/* Typed look-ups in a JSON object; each refuses another type or range by the field's name.
 *
 * A field that is absent or null leaves *out alone. Shared by the parts of the request parser. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

#include "common/base/status.h"
#include "router/generate_request.h"

/* The member, or NULL where it is absent or null. */
const json_t *bt_openai_get(const json_t *object, const char *name);
/* "an array", "true": for sentences. */
const char *bt_openai_type_name(const json_t *value);

/* Refusals that many fields share; each returns its status. */
bt_status bt_openai_refuse_type(const struct bt_generate_check *check, const char *name,
                                const json_t *value, const char *expected);
bt_status bt_openai_refuse_missing(const struct bt_generate_check *check, const char *name);
bt_status bt_openai_refuse_unsupported(const struct bt_generate_check *check, const char *name,
                                       const char *sentence);

bt_status bt_openai_bool(const struct bt_generate_check *check, const json_t *object,
                         const char *name, bool *out, bool *given);
bt_status bt_openai_string(const struct bt_generate_check *check, const json_t *object,
                           const char *name, const char **out);
bt_status bt_openai_integer(const struct bt_generate_check *check, const json_t *object,
                            const char *name, int64_t min, int64_t max, int64_t *out, bool *given);
/* min <= value <= max, or min < value where `open`. */
bt_status bt_openai_number(const struct bt_generate_check *check, const json_t *object,
                           const char *name, double min, double max, bool open, float *out);
/* list: an array of token ids below vocab_tokens, into out. */
bt_status bt_openai_ids(const struct bt_generate_check *check, const char *name, const json_t *list,
                        uint32_t vocab_tokens, int32_t *out);

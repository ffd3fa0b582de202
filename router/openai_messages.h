/* Checks the messages of a chat request before a template sees them. */
#pragma once
#include <stdbool.h>
#include <jansson.h>

#include "router/openai_fields.h"

/* messages: an array of objects with a known role and content that is text, null or a list of text
 * parts. Where join_parts, such lists are replaced by their texts joined with a newline. */
bt_status bt_openai_messages_check(const struct bt_generate_check *check, json_t *messages,
                                   bool join_parts);

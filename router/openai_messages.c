/* Checks roles and content of chat messages, and joins lists of text parts where the template wants
 * plain text. */
#include "router/openai_messages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const roles[] = {"system", "developer", "user", "assistant", "tool", "function"};
enum { N_ROLES = sizeof roles / sizeof roles[0] };

/* Refuses parts other than text; *n_bytes is the size of the texts and the newlines between. */
static bt_status check_parts(const struct bt_generate_check *check, const char *where,
                             const json_t *parts, size_t *n_bytes) {
    size_t i;
    const json_t *part;
    *n_bytes = 0;
    json_array_foreach((json_t *)parts, i, part) {
        const json_t *type = bt_openai_get(part, "type"), *text = bt_openai_get(part, "text");
        if (!json_is_string(type))
            return bt_generate_refuse(check, BT_E_INVALID, where,
                                      "%s[%zu] must be an object with a type", where, i);
        if (strcmp(json_string_value(type), "text") != 0)
            return bt_generate_refuse(
                check, BT_E_UNSUPPORTED, where,
                "%s[%zu] is of type \"%.40s\"; only text is supported by this model", where, i,
                json_string_value(type));
        if (!json_is_string(text))
            return bt_generate_refuse(check, BT_E_INVALID, where, "%s[%zu].text must be a string",
                                      where, i);
        *n_bytes += json_string_length(text) + (i > 0);
    }
    return BT_OK;
}

static bt_status join(const struct bt_generate_check *check, const char *where, json_t *message,
                      const json_t *parts, size_t n_bytes) {
    char *text = malloc(n_bytes + 1);
    size_t at = 0, i;
    const json_t *part;
    if (text) {
        json_array_foreach((json_t *)parts, i, part) {
            const json_t *piece = json_object_get(part, "text");
            if (i)
                text[at++] = '\n';
            memcpy(text + at, json_string_value(piece), json_string_length(piece));
            at += json_string_length(piece);
        }
    }
    int failed =
        !text || json_object_set_new(message, "content", json_stringn_nocheck(text, at)) != 0;
    free(text);
    return failed ? bt_generate_refuse(check, BT_E_NO_MEMORY, where, "out of memory for %s", where)
                  : BT_OK;
}

static bt_status check_role(const struct bt_generate_check *check, size_t i,
                            const json_t *message) {
    char where[64];
    snprintf(where, sizeof where, "messages[%zu].role", i);
    const json_t *role = json_is_object(message) ? json_object_get(message, "role") : NULL;
    if (!json_is_object(message))
        return bt_generate_refuse(check, BT_E_INVALID, "messages",
                                  "messages[%zu] must be an object, not %s", i,
                                  bt_openai_type_name(message));
    if (!json_is_string(role))
        return bt_generate_refuse(check, BT_E_INVALID, where, "%s must be a string", where);
    for (size_t r = 0; r < N_ROLES; r++)
        if (!strcmp(json_string_value(role), roles[r]))
            return BT_OK;
    return bt_generate_refuse(
        check, BT_E_INVALID, where,
        "%s is \"%.40s\", it must be system, developer, user, assistant, tool or function", where,
        json_string_value(role));
}

static bt_status check_message(const struct bt_generate_check *check, size_t i, json_t *message,
                               bool join_parts) {
    char where[64];
    snprintf(where, sizeof where, "messages[%zu].content", i);
    BT_TRY(check_role(check, i, message));
    const json_t *content = bt_openai_get(message, "content");
    if (!content) {
        /* Only an assistant's turn may be without text: it may have called a tool instead. */
        if (strcmp(json_string_value(json_object_get(message, "role")), "assistant") != 0)
            return bt_openai_refuse_missing(check, where);
        return BT_OK;
    }
    if (json_is_string(content))
        return BT_OK;
    if (!json_is_array(content))
        return bt_openai_refuse_type(check, where, content, "a string or a list of parts");
    size_t n_bytes;
    BT_TRY(check_parts(check, where, content, &n_bytes));
    return join_parts ? join(check, where, message, content, n_bytes) : BT_OK;
}

bt_status bt_openai_messages_check(const struct bt_generate_check *check, json_t *messages,
                                   bool join_parts) {
    if (!messages || json_is_null(messages))
        return bt_openai_refuse_missing(check, "messages");
    if (!json_is_array(messages))
        return bt_generate_refuse(check, BT_E_INVALID, "messages",
                                  "messages must be an array, not %s",
                                  bt_openai_type_name(messages));
    if (!json_array_size(messages))
        return bt_generate_refuse(check, BT_E_INVALID, "messages",
                                  "messages is empty, it must have at least one member");
    size_t i;
    json_t *message;
    json_array_foreach(messages, i, message) BT_TRY(check_message(check, i, message, join_parts));
    return BT_OK;
}

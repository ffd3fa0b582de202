/* Renders a conversation as the prompt text that a model was trained on, by the model's own Jinja
 * template.
 *
 * A template is parsed once, is immutable, and may be rendered by any thread. Rendering is bounded
 * in steps, depth and memory. Every byte that came from the client (messages, tools, variables) is
 * tracked through the template's string operations and reported as untrusted, so that the tokenizer
 * recognises no control token in it. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <jansson.h>

#include "common/base/status.h"
#include "common/text/slice.h"

enum {
    BT_CHAT_TEMPLATE_BYTES = 1 << 18, /* longest template source accepted */
    BT_CHAT_STEPS = 4000000,          /* evaluation steps in one rendering */
};

struct bt_chat_template;

/* BT_E_INVALID: malformed; BT_E_UNSUPPORTED: a construct that is not implemented. Both with the
 * line number. */
bt_status bt_chat_template_create(struct bt_slice source, struct bt_chat_template **out,
                                  struct bt_error *err);
void bt_chat_template_destroy(struct bt_chat_template *tpl);
/* Whether the template looks into lists of content parts itself. Where false, the caller joins the
 * text parts with a newline before rendering (as vLLM does). */
bool bt_chat_template_reads_parts(const struct bt_chat_template *tpl);

struct bt_chat_input {
    const json_t *messages; /* array, borrowed */
    /* Object of further variables (tools, documents, chat_template_kwargs), borrowed; may be NULL.
     * A key here wins over the fields below. */
    const json_t *vars;
    struct bt_slice bos; /* texts of the model's own tokens: trusted */
    struct bt_slice eos;
    bool add_generation_prompt;
    int64_t now_s;           /* UNIX time, for strftime_now (in UTC) */
    size_t max_output_bytes; /* of the rendered text */
};

/* Rendered text and the parts of it that came from the client. */
struct bt_chat_text {
    char *text; /* not NUL terminated */
    size_t n_bytes;
    struct bt_text_span *untrusted; /* in order, apart, not empty */
    size_t n_untrusted;
};

/* BT_E_INVALID: the template refused the conversation (the text says why, with the line);
 * BT_E_TOO_LARGE: a bound was met. *out is written on success only and is released by
 * bt_chat_text_fini. */
bt_status bt_chat_template_render(const struct bt_chat_template *tpl,
                                  const struct bt_chat_input *in, struct bt_chat_text *out,
                                  struct bt_error *err);
void bt_chat_text_fini(struct bt_chat_text *text);

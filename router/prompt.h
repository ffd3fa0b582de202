/* Makes a checked request's prompt into token ids: text, ids as they are, or a conversation by the
 * model's template. */
#pragma once
#include <stdint.h>

#include "common/text/text_model.h"
#include "router/generate_request.h"

struct bt_prompt {
    int32_t *tokens; /* owned; NULL where the request's own ids are used */
    const int32_t *ids;
    uint32_t n_ids;
};

/* Prompt i of the request (0 for a conversation). now_s: UNIX time for templates that ask.
 * BT_E_INVALID, BT_E_TOO_LARGE, BT_E_UNSUPPORTED (the model has no template), BT_E_NO_MEMORY. On
 * failure *prompt is zeroed. */
bt_status bt_prompt_make(const struct bt_text_model *text, struct bt_encode_scratch *scratch,
                         const struct bt_generate_request *request, uint32_t i, int64_t now_s,
                         struct bt_prompt *prompt, const struct bt_generate_check *check);
void bt_prompt_fini(struct bt_prompt *prompt);

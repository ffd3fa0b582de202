/* Cuts a chat template into texts and the tokens of its tags, whitespace control applied. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/text/arena.h"
#include "common/text/slice.h"

enum bt_jtoken_kind {
    BT_JTOKEN_TEXT,
    BT_JTOKEN_OUTPUT_BEGIN, /* {{ */
    BT_JTOKEN_OUTPUT_END,
    BT_JTOKEN_BLOCK_BEGIN, /* {% */
    BT_JTOKEN_BLOCK_END,
    BT_JTOKEN_NAME,
    BT_JTOKEN_INT,
    BT_JTOKEN_FLOAT,
    BT_JTOKEN_STRING, /* text: without quotes, escapes resolved */
    BT_JTOKEN_OPERATOR,
    BT_JTOKEN_END,
};

struct bt_jtoken {
    enum bt_jtoken_kind kind;
    uint32_t line;
    struct bt_slice text;
    int64_t integer;
    double real;
};

/* All memory is the arena's; the source need not outlive the call. The list ends with END. */
bt_status bt_jinja_lexer_run(struct bt_slice source, struct bt_arena *arena,
                             struct bt_jtoken **tokens, struct bt_error *err);

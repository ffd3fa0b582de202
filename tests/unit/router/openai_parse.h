/* One OpenAI body parsed for a model of 100 tokens, with what was said of it. */
#pragma once
#include <string.h>

#include "router/openai_request.h"

enum { VOCAB = 100 };

struct parsed {
    bt_status status;
    struct bt_openai_request request;
    struct bt_generate_fault fault;
    struct bt_error err;
};

static inline struct parsed parse(enum bt_openai_kind kind, const char *body) {
    struct parsed p = {0};
    p.status = bt_openai_request_parse(kind, (struct bt_slice){body, strlen(body)}, VOCAB, true,
                                       &p.request, &p.fault, &p.err);
    return p;
}

/* The sink of requests without `stream`: collects the answer and sends it as one JSON object. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "router/http_server.h"
#include "router/openai_choice.h"
#include "router/request_sink.h"
#include "router/text_buffer.h"

struct bt_whole {
    struct bt_request_sink base;
    struct bt_http_call *call; /* NULL once it has ended */
    struct bt_openai_answer *answer;
    void (*on_done)(struct bt_whole *whole); /* answered, well or with an error */
    /* Adds members to the answer's object: a comma, then them. NULL: none. */
    void (*add_extra)(struct bt_whole *whole, struct bt_text_buffer *out);
    struct bt_openai_choice *choices; /* [answer->n_choices]; NULL: out of memory */
};

void bt_whole_init(struct bt_whole *whole, struct bt_http_call *call,
                   struct bt_openai_answer *answer, void (*on_done)(struct bt_whole *whole));
void bt_whole_fini(struct bt_whole *whole); /* the call is the caller's business */

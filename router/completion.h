/* One client request for generated text: from its HTTP call to the core, and its tokens back. */
#pragma once
#include <stdint.h>

#include "router/core.h"
#include "router/http_server.h"

struct bt_shell;
struct bt_completion;

/* Handlers; arg is the shell. */
void bt_completion_on_chat(void *arg, struct bt_http_call *call);
void bt_completion_on_text(void *arg, struct bt_http_call *call);

/* The core's actions for the completion that is req->user. */
void bt_completion_emit(struct bt_completion *completion, const struct bt_router_action *action);
void bt_completion_end(struct bt_completion *completion, const struct bt_router_action *action);
/* Tells the core of matched stop strings, if any; true where it did (its actions wait then). */
bool bt_completion_tell_stops(struct bt_shell *shell);
/* Frees those that have ended. */
void bt_completion_free_ended(struct bt_shell *shell);
/* Frees all, when the process ends before they do; nobody is told. */
void bt_completion_free_all(struct bt_shell *shell);

/* The HTTP door of generations: /v1/chat/completions and /v1/completions, from the call to its
 * answer. */
#pragma once
#include "router/http_server.h"

struct bt_shell;
struct bt_openai_call;

/* Handlers; arg is the shell. */
void bt_openai_on_chat(void *arg, struct bt_http_call *call);
void bt_openai_on_completion(void *arg, struct bt_http_call *call);

/* Frees those that have been answered. */
void bt_openai_free_ended(struct bt_shell *shell);
/* Frees all, when the process ends before they are answered. */
void bt_openai_free_all(struct bt_shell *shell);

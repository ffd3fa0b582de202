/* One client request for generated text, whichever door it came through: its choices in the core,
 * and their tokens on the way to one sink.
 *
 * Each choice is a request of its own in the core; all are admitted or none. When one fails the
 * others are cancelled and the whole fails. Everything runs on the loop thread. */
#pragma once
#include <stdint.h>

#include "router/core.h"
#include "router/generate_request.h"
#include "router/request_sink.h"

struct bt_shell;
struct bt_choice;
struct bt_completion;

/* Checks, tokenizes and submits. BT_OK: the sink is called from now on, first with begin inside
 * this call, and *out is set to NULL just before it is called with end. sink and out must live
 * until then or until bt_completion_cancel. Else the sink is not called any more, and fault and err
 * say why: BT_E_INVALID, BT_E_UNSUPPORTED, BT_E_NOT_FOUND (model), BT_E_TOO_LARGE, BT_E_FULL,
 * BT_E_UNAVAILABLE, BT_E_NO_MEMORY.
 * Called at the top of a turn, after bt_shell_now and before bt_shell_drain, which is due after it
 * in both cases. */
bt_status bt_completion_start(struct bt_shell *shell, const struct bt_generate_request *request,
                              struct bt_request_sink *sink, struct bt_completion **out,
                              struct bt_generate_fault *fault, struct bt_error *err);
/* The client is gone: the sink is not called any more, *out is NULL. Not from within a sink. */
void bt_completion_cancel(struct bt_completion *completion);
/* The sink has room again: it gets the pieces that were held back. Not from within a sink. */
void bt_completion_resume(struct bt_completion *completion);
/* Names the request to the client and in /debug/requests: its first choice's. */
uint64_t bt_completion_id(const struct bt_completion *completion);

/* The core's actions for the choice that is req->user. */
void bt_completion_emit(struct bt_choice *choice, const struct bt_router_action *action);
void bt_completion_scores(struct bt_choice *choice, const struct bt_router_action *action);
void bt_completion_end(struct bt_choice *choice, const struct bt_router_action *action);
/* Tells the core of one choice that is to end before its time (a stop string has matched, another
 * choice has failed); true where it did (its actions wait then). */
bool bt_completion_tell_core(struct bt_shell *shell);
/* Frees those that have ended. */
void bt_completion_free_ended(struct bt_shell *shell);
/* Frees all, when the process ends before they do; nobody is told. */
void bt_completion_free_all(struct bt_shell *shell);

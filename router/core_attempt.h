/* One attempt at a request: its parts on workers are opened, closed and cancelled here, and here it
 * is lost or the request ends. Every end of anything goes through these few functions. */
#pragma once
#include <stdbool.h>

#include "common/base/status.h"
#include "common/rpc/registry_msg.h"
#include "router/placement.h"
#include "router/request.h"

struct bt_router_core;

/* Why an attempt is lost; core_attempt.c says for each what it costs. */
enum bt_loss {
    BT_LOSS_DEATH,
    BT_LOSS_PREEMPTED,
    BT_LOSS_DRAINED,
    BT_LOSS_LINK,
    BT_LOSS_FULL,
    BT_LOSS_FAILED,
    BT_LOSS_COUNT,
};

void bt_core_attempt_open(struct bt_router_core *core, struct bt_request *req,
                          const struct bt_placement_choice *choice);
/* That worker's part is over, or nobody can reach it: it is taken off the worker's load. Harmless
 * when it is closed. */
void bt_core_attempt_close_p(struct bt_router_core *core, struct bt_request *req);
void bt_core_attempt_close_d(struct bt_router_core *core, struct bt_request *req);
/* The prompt is computed: it no longer counts in P's backlog. */
void bt_core_attempt_computed(struct bt_router_core *core, struct bt_request *req);
/* D has answered Reserve. */
void bt_core_attempt_answered(struct bt_router_core *core, struct bt_request *req, bool accepted);
/* Cancel to each open part, which is closed. */
void bt_core_attempt_cancel(struct bt_router_core *core, struct bt_request *req);

enum bt_loss bt_core_attempt_loss_of(enum bt_end end);
/* The attempt is over and the request not: back to the queue, or its end when it has had enough.
 * end is the worker's word, 0 when it died. */
void bt_core_attempt_lose(struct bt_router_core *core, struct bt_request *req, enum bt_loss loss,
                          enum bt_end end);

/* The client was given its last token: what the workers still have to do is theirs, their reports
 * go to the record. SERVED, while followers wait for the cache that D is about to have. */
void bt_core_attempt_serve(struct bt_router_core *core, struct bt_request *req,
                           enum bt_finish finish);
/* One that was SERVED so: what its followers waited for has come, or will not. */
void bt_core_attempt_retire(struct bt_router_core *core, struct bt_request *req);
/* Any other end: both workers are told. reason: "" for BT_OK. */
void bt_core_attempt_end(struct bt_router_core *core, struct bt_request *req, bt_status status,
                         enum bt_finish finish, const char *reason);

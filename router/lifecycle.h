/* What happens to a request: its events, and one table that says what each does in each state. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/rpc/registry_msg.h"
#include "router/placement.h"
#include "router/request.h"

struct bt_router_core;
struct bt_pair_view;

/* Workers' events are of the request's own attempt and of a part that is open: what is of others is
 * dropped before it gets here. */
enum bt_request_event {
    BT_LIFE_PLACE,         /* dispatch found a pair */
    BT_LIFE_BACKOFF_OVER,  /* it may be placed again */
    BT_LIFE_RELEASED,      /* its leader's cache is on D, or its leader is gone */
    BT_LIFE_QUEUE_TIMEOUT, /* waited too long for a place */
    BT_LIFE_DEADLINE,
    BT_LIFE_CANCEL, /* the client is gone */
    BT_LIFE_STOP,   /* a stop string matched */
    BT_LIFE_RESERVED,
    BT_LIFE_REFUSED,  /* D has no room for it */
    BT_LIFE_P_TOKEN,  /* any copy of this attempt's first token from P */
    BT_LIFE_D_TOKEN,  /* any token from D; it has answered Reserve */
    BT_LIFE_D_SCORES, /* logprobs of its prompt; D has answered Reserve */
    BT_LIFE_P_HANDED, /* P: D committed */
    BT_LIFE_P_FAILED, /* P's part ended otherwise, another attempt may do better */
    BT_LIFE_P_FATAL,  /* P's part ended for a reason that every attempt will meet */
    BT_LIFE_P_DEAD,
    BT_LIFE_D_FAILED, /* D's part ended before its last token */
    BT_LIFE_D_MOVED,  /* preempted or drained: nobody's fault */
    BT_LIFE_D_FATAL,
    BT_LIFE_D_DEAD,
    BT_LIFE_D_LIVE,     /* D's answer: committed */
    BT_LIFE_D_ATTACHED, /* D's stream was replaced: what we asked may be lost */
    BT_LIFE_EVENT_COUNT,
};

enum { BT_LIFECYCLE_PAIRS = BT_REQUEST_STATE_COUNT * BT_LIFE_EVENT_COUNT };

struct bt_life_cause {
    enum bt_end end;                          /* of the part that ended, or D's refusal */
    const struct bt_placement_choice *choice; /* PLACE */
    const struct bt_msg_scores *scores;       /* D_SCORES: checked */
};

/* Looks the pair up, counts it, and does what the table says. Asserts on pairs that cannot be. */
void bt_lifecycle_event(struct bt_router_core *core, struct bt_request *req,
                        enum bt_request_event event, struct bt_life_cause cause);
void bt_lifecycle_pair(uint32_t i, struct bt_pair_view *out);

/* What a worker's Ended means for a request that is live: one row per reason. */
enum bt_request_event bt_lifecycle_event_of_end(enum bt_request_state state, enum bt_end end,
                                                bool from_p);
/* D speaks of a part whose Reserve it has not answered: its answer is implied. */
void bt_lifecycle_imply_reserved(struct bt_router_core *core, struct bt_request *req);
const char *bt_lifecycle_end_name(enum bt_end end);

/* One row of a worker's tokens: gate, fence, client. False: the worker breaks the protocol with it,
 * err says how, and nothing happened. */
bool bt_lifecycle_token(struct bt_router_core *core, uint32_t worker, const struct bt_token *token,
                        struct bt_error *err);
/* A worker's logprobs of a prompt: gate, order, client. False as above. */
bool bt_lifecycle_scores(struct bt_router_core *core, uint32_t worker,
                         const struct bt_msg_scores *scores, struct bt_error *err);

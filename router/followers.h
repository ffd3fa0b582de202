/* Requests of one prompt: those that wait until their leader's cache is on its decode worker, so
 * that one prefill and one transfer serve all.
 *
 * A follower is QUEUED, in no heap but the timers', and in its leader's list. It holds nothing of
 * any worker, so it keeps nobody waiting. */
#pragma once
#include <stdbool.h>

#include "router/request.h"

struct bt_router_core;

/* Puts a new request behind that one, or behind whom that one waits for itself. True: it waits.
 * False: it is one like any other, as that one has ended, has its cache on D or enough followers.
 */
bool bt_followers_join(struct bt_router_core *core, struct bt_request *req,
                       const struct bt_request *leader);
/* It waits no longer. Harmless when it does not. */
void bt_followers_leave(struct bt_router_core *core, struct bt_request *req);
/* The leader's cache is on its D: all that waited may go there. */
void bt_followers_release(struct bt_router_core *core, struct bt_request *leader);
/* The leader will not bring it there: the first of them takes its place, the others wait on. */
void bt_followers_hand_over(struct bt_router_core *core, struct bt_request *leader);

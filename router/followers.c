/* The lists of followers: joined at submit, released by the leader's commit, handed on by its end.
 */
#include "router/followers.h"

#include "router/core_state.h"
#include "router/lifecycle.h"

static void link_behind(struct bt_router_core *core, struct bt_request *req,
                        struct bt_request *leader) {
    /* The list is a ring through its first one, so that the last is found at once: the order in
     * which they came is the order in which they go. */
    uint32_t me = bt_core_index(core, req), first = leader->first_follower;
    req->leader = bt_core_index(core, leader);
    leader->n_followers++;
    if (first == BT_NO_REQUEST) {
        leader->first_follower = req->follow_next = req->follow_prev = me;
        return;
    }
    uint32_t last = core->requests[first].follow_prev;
    req->follow_prev = last;
    req->follow_next = first;
    core->requests[last].follow_next = core->requests[first].follow_prev = me;
}

bool bt_followers_join(struct bt_router_core *core, struct bt_request *req,
                       const struct bt_request *leader) {
    uint32_t head = bt_core_index(core, leader);
    if (leader->leader != BT_NO_REQUEST)
        head = leader->leader;
    struct bt_request *ahead = &core->requests[head];
    if (ahead == req) /* it had ended, and its place in the table is used again */
        return false;
    if (ahead->state < BT_REQUEST_QUEUED || ahead->state > BT_REQUEST_SERVED)
        return false;
    if (ahead->from_d) {
        req->prompt_d = ahead->prompt_d;
        req->released_us = core->now_us;
        return false;
    }
    if (ahead->n_followers == BT_CHOICES) /* what ends with one request is bounded */
        return false;
    link_behind(core, req, ahead);
    return true;
}

void bt_followers_leave(struct bt_router_core *core, struct bt_request *req) {
    if (req->leader == BT_NO_REQUEST)
        return;
    struct bt_request *leader = &core->requests[req->leader];
    uint32_t me = bt_core_index(core, req);
    leader->n_followers--;
    core->requests[req->follow_prev].follow_next = req->follow_next;
    core->requests[req->follow_next].follow_prev = req->follow_prev;
    if (leader->first_follower == me)
        leader->first_follower = req->follow_next == me ? BT_NO_REQUEST : req->follow_next;
    req->leader = req->follow_next = req->follow_prev = BT_NO_REQUEST;
}

static void let_go(struct bt_router_core *core, const struct bt_request *leader,
                   struct bt_request *req) {
    /* What its leader waited for a place, it waited too; computing the prompt is no such wait. */
    uint64_t waited_us = core->now_us - req->queued_us;
    uint64_t queue_us = leader->queue_total_us < waited_us ? leader->queue_total_us : waited_us;
    req->queue_total_us += queue_us;
    req->followed_us += waited_us - queue_us;
    req->queued_us = core->now_us;
    if (leader->was_placed)
        req->queue_deadline_us = core->now_us + core->config.queue_ms * 1000ull;
    bt_followers_leave(core, req);
    bt_lifecycle_event(core, req, BT_LIFE_RELEASED, (struct bt_life_cause){0});
}

void bt_followers_release(struct bt_router_core *core, struct bt_request *leader) {
    while (leader->first_follower != BT_NO_REQUEST) {
        struct bt_request *req = &core->requests[leader->first_follower];
        req->prompt_d = leader->prompt_d;
        req->released_us = core->now_us;
        let_go(core, leader, req);
    }
}

void bt_followers_hand_over(struct bt_router_core *core, struct bt_request *leader) {
    if (leader->first_follower == BT_NO_REQUEST)
        return;
    struct bt_request *heir = &core->requests[leader->first_follower];
    let_go(core, leader, heir);
    while (leader->first_follower != BT_NO_REQUEST) {
        struct bt_request *req = &core->requests[leader->first_follower];
        bt_followers_leave(core, req);
        link_behind(core, req, heir);
    }
}

/* Lets what is placed, and what workers are sent, wait: a test's delay in one stage. */
#include "router/shell_hold.h"

#include <event2/event.h>

#include "common/base/failpoint.h"
#include "router/shell.h"

static void arm(struct event *timer, uint64_t us, bool *waits) {
    const struct timeval wait = {(time_t)(us / 1000000), (suseconds_t)(us % 1000000)};
    *waits = event_add(timer, &wait) == 0;
}

/* All that waits is placed, then nothing again. */
static void on_queue(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_shell *shell = arg;
    shell->hold.queue_waits = false;
    bt_router_core_hold(shell->core, bt_shell_now(shell), false);
    bt_shell_drain(shell);
    bt_router_core_hold(shell->core, shell->now_us, true);
    bt_shell_drain(shell);
}

static void on_placement(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_shell *shell = arg;
    shell->hold.placement_waits = false;
    bt_shell_now(shell);
    bt_shell_drain(shell); /* the turn's end sends */
}

bt_status bt_shell_hold_init(struct bt_shell *shell, struct bt_error *err) {
    BT_TRY(bt_failpoint_check(err));
    struct bt_shell_hold *hold = &shell->hold;
    if (bt_failpoint_us(BT_FAILPOINT_QUEUE)) {
        hold->queue = evtimer_new(shell->base, on_queue, shell);
        bt_router_core_hold(shell->core, bt_shell_now(shell), true);
    }
    if (bt_failpoint_us(BT_FAILPOINT_PLACEMENT))
        hold->placement = evtimer_new(shell->base, on_placement, shell);
    return BT_OK;
}

void bt_shell_hold_fini(struct bt_shell *shell) {
    if (shell->hold.queue)
        event_free(shell->hold.queue);
    if (shell->hold.placement)
        event_free(shell->hold.placement);
    shell->hold = (struct bt_shell_hold){0};
}

void bt_shell_hold_on_send(struct bt_shell *shell, const struct bt_msg *msg) {
    struct bt_shell_hold *hold = &shell->hold;
    if (hold->placement && !hold->placement_waits && msg->type == BT_MSG_RESERVE)
        arm(hold->placement, bt_failpoint_us(BT_FAILPOINT_PLACEMENT), &hold->placement_waits);
}

bool bt_shell_hold_on_flush(struct bt_shell *shell) {
    struct bt_shell_hold *hold = &shell->hold;
    if (hold->queue && !hold->queue_waits && bt_router_core_counters(shell->core)->queued)
        arm(hold->queue, bt_failpoint_us(BT_FAILPOINT_QUEUE), &hold->queue_waits);
    return hold->placement_waits;
}

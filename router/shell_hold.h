/* The router's failpoints: what is placed, and what workers are sent, waits for a while. */
#pragma once
#include <stdbool.h>

#include "common/base/status.h"
#include "common/rpc/registry_msg.h"

struct bt_shell;
struct event;

struct bt_shell_hold {
    struct event *queue, *placement; /* timers; NULL in builds and runs without these failpoints */
    bool queue_waits, placement_waits;
};

bt_status bt_shell_hold_init(struct bt_shell *shell, struct bt_error *err);
void bt_shell_hold_fini(struct bt_shell *shell); /* accepts a half-built one */
/* A message is on its way to a worker. */
void bt_shell_hold_on_send(struct bt_shell *shell, const struct bt_msg *msg);
/* At a turn's end; true where workers are not to be sent anything now. */
bool bt_shell_hold_on_flush(struct bt_shell *shell);

/* Takes waiting requests to workers, oldest first, as far as there is room. */
#pragma once

struct bt_router_core;

/* Places at most BT_DISPATCH_SLICE requests; the rest goes on at the next event or tick. Called at
 * the end of each event. */
void bt_dispatch_run(struct bt_router_core *core);

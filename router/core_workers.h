/* What streams and workers do to the core: joining, messages, silence, death. */
#pragma once
#include <stdint.h>

struct bt_router_core;

/* Our own loop stood still: everybody's silence starts anew. */
void bt_core_workers_excuse(struct bt_router_core *core, uint64_t now_us);
/* Liveness, Pulse and Seen. */
void bt_core_workers_tick(struct bt_router_core *core);
/* When the tick has something to do here. */
uint64_t bt_core_workers_due_us(const struct bt_router_core *core);
/* Takes requests off dead workers, at most BT_CLEANUP_SLICE of them. */
void bt_core_workers_clean(struct bt_router_core *core);
/* Sends Peers to prefill workers when a decode worker came or went. */
void bt_core_workers_tell_peers(struct bt_router_core *core);

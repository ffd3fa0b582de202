/* GET /debug/stats: what the router and its pools do now, as one small JSON object; what the live
 * page and `baton top` show. */
#pragma once
#include <stdint.h>

#include "common/base/limits.h"
#include "router/http_server.h"
#include "router/stats_window.h"

struct bt_shell;

/* The shell's memory of the last minute. */
struct bt_stats {
    struct bt_stats_window window;
    struct bt_stats_growth links[BT_MAX_WORKERS]; /* KV bytes of the worker in that place */
    uint64_t read_us;                             /* when they were read last */
};

void bt_stats_init(struct bt_stats *stats, uint64_t now_us);
/* Reads the workers' link counters once a second; with each tick. */
void bt_stats_tick(struct bt_shell *shell);

void bt_stats_on_page(void *arg, struct bt_http_call *call); /* arg: the shell */

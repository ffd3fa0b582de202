/* The prefill worker's process: the core between its routers, its KV links and the engine. */
#pragma once
#include "common/engine/worker_options.h"

/* Runs until drained (SIGTERM), refused or told to end. Prints one line on standard output once a
 * router has welcomed it: "ready: name=NAME". Returns the process's exit code: 0 in order, 2 where
 * the model, an address or the cluster does not fit, 1 else. */
int bt_prefill_worker_run(const struct bt_worker_options *options);

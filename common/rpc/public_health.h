/* grpc.health.v1: what probes and load balancers ask. Loop thread only.
 *
 * "", "readiness" and "baton.v1.Inference" follow whether the router serves; "liveness" and the
 * services about the server itself are SERVING as long as it answers. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/rpc/public_server.h"

enum { BT_PUBLIC_WATCHERS = 256 }; /* more are refused */

struct bt_public_watcher {
    struct bt_public_call *call; /* NULL: free */
    int status;                  /* the last one said */
    bool follows;                /* readiness */
};

/* Zeroed is ready for use, not serving. */
struct bt_public_health {
    bool serving;
    uint32_t n_watchers;
    struct bt_public_watcher watchers[BT_PUBLIC_WATCHERS];
};

/* STARTED of Check and of Watch; bytes is the call's message. */
void bt_public_health_check(struct bt_public_health *health, struct bt_public_call *call,
                            const uint8_t *bytes, size_t n_bytes);
void bt_public_health_watch(struct bt_public_health *health, struct bt_public_call *call,
                            const uint8_t *bytes, size_t n_bytes);
/* CLOSED of Watch. */
void bt_public_health_closed(struct bt_public_health *health, struct bt_public_call *call);
/* Tells the watchers where it has changed. */
void bt_public_health_set(struct bt_public_health *health, bool serving);

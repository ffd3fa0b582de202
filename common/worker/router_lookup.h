/* Looks the names of routers up again and again, without holding the loop.
 *
 * By libevent's resolver, from /etc/hosts and /etc/resolv.conf as they are at each lookup. Where a
 * name has IPv4 addresses only those count, so that a router with two families is one. Owned by the
 * loop thread. */
#pragma once
#include <stdint.h>

#include "common/base/limits.h"
#include "common/base/status.h"

struct event_base;

enum { BT_LOOKUP_ADDRESSES = 32 }; /* of one name; further ones are not looked at */

struct bt_router_lookup;

struct bt_router_lookup_user {
    void *arg;
    /* IP addresses in text, in order, no two of them equal; at least one. */
    void (*found)(void *arg, uint32_t name, const char (*hosts)[BT_ADDRESS_BYTES],
                  uint32_t n_hosts);
    void (*failed)(void *arg, uint32_t name, const char *why);
};

bt_status bt_router_lookup_create(struct event_base *base, const struct bt_router_lookup_user *user,
                                  struct bt_router_lookup **out, struct bt_error *err);
/* Nothing is told any more; where a lookup is under way the loop must run once more before it is
 * freed, so that the resolver lets go. NULL is accepted. */
void bt_router_lookup_destroy(struct bt_router_lookup *lookup);
/* Begins to look name (a number of the caller's, below BT_MAX_ROUTERS) up; found or failed follows,
 * perhaps from inside. Nothing happens where it is being looked up. */
void bt_router_lookup_start(struct bt_router_lookup *lookup, uint32_t name, const char *host);

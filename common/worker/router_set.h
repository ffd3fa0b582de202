/* Which routers a worker attaches to: the addresses it was given, and those that its names stand
 * for now.
 *
 * A name with several addresses is several routers, each with a slot of its own (the slot of its
 * stream); an address, and "localhost", is one router and keeps its slot. An address that has left
 * its name is not dialled again, but its stream goes on until it ends. Then the slot rests for one
 * lease, since the worker may still hold something for that router. Pure: told the time, and what a
 * lookup found. Owned by the loop thread. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/address.h"
#include "common/base/limits.h"

struct bt_router_set {
    uint32_t n_names;
    struct {
        struct bt_address address;
        bool is_fixed; /* not looked up */
    } names[BT_MAX_ROUTERS];
    struct {
        char address[BT_ADDRESS_BYTES];
        uint32_t name;
        bool is_used;   /* has an address */
        bool is_wanted; /* the address is still one of its name's: it is dialled */
        uint64_t free_from_us;
    } slots[BT_MAX_ROUTERS];
};

/* routers: "host:port" each, well-formed. */
void bt_router_set_init(struct bt_router_set *set, const char *const *routers, uint32_t n_routers);
/* What a lookup of a name (not fixed) found: IP addresses, no two of them equal. A name that could
 * not be looked up is not told: what it stood for stays. busy: bit i is set where slot i is dialled
 * or has a stream. Answers the addresses that found no slot; bits of slots that have a new address
 * are set in *fresh. */
uint32_t bt_router_set_found(struct bt_router_set *set, uint32_t name,
                             const char (*hosts)[BT_ADDRESS_BYTES], uint32_t n_hosts, uint32_t busy,
                             uint64_t now_us, uint32_t *fresh);
/* The stream or dial of a slot has ended. */
void bt_router_set_closed(struct bt_router_set *set, uint32_t slot, uint64_t now_us);
/* Whether a slot's address may be dialled. */
bool bt_router_set_may_dial(const struct bt_router_set *set, uint32_t slot);
/* Whether a name stands for any address now. */
bool bt_router_set_has(const struct bt_router_set *set, uint32_t name);

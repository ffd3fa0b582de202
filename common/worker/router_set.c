/* Which routers a worker attaches to: the addresses it was given, and those of its names now. */
#include "common/worker/router_set.h"

#include <string.h>

#include "common/base/assert.h"

static bool is_ip(const char *host) {
    return strchr(host, ':') || strspn(host, "0123456789.") == strlen(host);
}

static void use_slot(struct bt_router_set *set, uint32_t slot, uint32_t name,
                     const struct bt_address *address) {
    bt_address_format(address, set->slots[slot].address);
    set->slots[slot].name = name;
    set->slots[slot].is_used = set->slots[slot].is_wanted = true;
}

void bt_router_set_init(struct bt_router_set *set, const char *const *routers, uint32_t n_routers) {
    BT_ASSERT(n_routers <= BT_MAX_ROUTERS);
    memset(set, 0, sizeof *set);
    set->n_names = n_routers;
    for (uint32_t i = 0; i < n_routers; i++) {
        bt_status status = bt_address_parse(routers[i], &set->names[i].address, NULL);
        BT_ASSERT(status == BT_OK); /* the command line was checked */
        set->names[i].is_fixed =
            is_ip(set->names[i].address.host) || bt_address_is_loopback(&set->names[i].address);
    }
    uint32_t slot = 0;
    for (uint32_t i = 0; i < n_routers; i++)
        if (set->names[i].is_fixed)
            use_slot(set, slot++, i, &set->names[i].address);
}

static void release(struct bt_router_set *set, uint32_t slot, uint64_t now_us) {
    set->slots[slot].is_used = set->slots[slot].is_wanted = false;
    set->slots[slot].free_from_us = now_us + BT_LEASE_MS * 1000;
}

/* The slot of an address; BT_MAX_ROUTERS: none. */
static uint32_t find(const struct bt_router_set *set, const char *address) {
    uint32_t slot = 0;
    while (slot < BT_MAX_ROUTERS &&
           !(set->slots[slot].is_used && !strcmp(set->slots[slot].address, address)))
        slot++;
    return slot;
}

static uint32_t find_free(const struct bt_router_set *set, uint64_t now_us) {
    uint32_t slot = 0;
    while (slot < BT_MAX_ROUTERS &&
           (set->slots[slot].is_used || now_us < set->slots[slot].free_from_us))
        slot++;
    return slot;
}

uint32_t bt_router_set_found(struct bt_router_set *set, uint32_t name,
                             const char (*hosts)[BT_ADDRESS_BYTES], uint32_t n_hosts, uint32_t busy,
                             uint64_t now_us, uint32_t *fresh) {
    BT_ASSERT(name < set->n_names && !set->names[name].is_fixed);
    struct bt_address address = set->names[name].address;
    char text[BT_ADDRESS_BYTES];
    uint32_t n_left_out = 0;
    *fresh = 0;
    for (uint32_t slot = 0; slot < BT_MAX_ROUTERS; slot++)
        if (set->slots[slot].is_used && set->slots[slot].name == name)
            set->slots[slot].is_wanted = false;
    for (uint32_t i = 0; i < n_hosts; i++) {
        memcpy(address.host, hosts[i], sizeof address.host);
        bt_address_format(&address, text);
        uint32_t slot = find(set, text);
        if (slot < BT_MAX_ROUTERS && set->slots[slot].name == name)
            set->slots[slot].is_wanted = true;
    }
    for (uint32_t slot = 0; slot < BT_MAX_ROUTERS; slot++)
        if (set->slots[slot].is_used && !set->slots[slot].is_wanted && !(busy & 1u << slot))
            release(set, slot, now_us);
    for (uint32_t i = 0; i < n_hosts; i++) {
        memcpy(address.host, hosts[i], sizeof address.host);
        bt_address_format(&address, text);
        if (find(set, text) < BT_MAX_ROUTERS)
            continue; /* this name's, or one that another name stands for as well */
        uint32_t slot = find_free(set, now_us);
        if (slot == BT_MAX_ROUTERS) {
            n_left_out++;
            continue;
        }
        use_slot(set, slot, name, &address);
        *fresh |= 1u << slot;
    }
    return n_left_out;
}

void bt_router_set_closed(struct bt_router_set *set, uint32_t slot, uint64_t now_us) {
    BT_ASSERT(slot < BT_MAX_ROUTERS && set->slots[slot].is_used);
    if (!set->slots[slot].is_wanted)
        release(set, slot, now_us);
}

bool bt_router_set_may_dial(const struct bt_router_set *set, uint32_t slot) {
    return set->slots[slot].is_used && set->slots[slot].is_wanted;
}

bool bt_router_set_has(const struct bt_router_set *set, uint32_t name) {
    for (uint32_t slot = 0; slot < BT_MAX_ROUTERS; slot++)
        if (set->slots[slot].is_used && set->slots[slot].name == name)
            return true;
    return false;
}

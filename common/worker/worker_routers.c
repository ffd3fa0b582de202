/* A worker's streams to its routers: looks names up, dials what is due, says why it cannot. */
#include <event2/event.h>
#include <stdio.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/worker/worker_host.h"

enum {
    LASTING_US = 1000000,
    SAY_AGAIN_US = 2000000,
    LOOK_AGAIN_US = 5000000, /* a router that has come is found within this */
    LOOK_SOON_US = 1000000,  /* while a name stands for nothing */
};

const char *bt_worker_router(const struct bt_worker_host *host, uint32_t slot) {
    BT_ASSERT(slot < BT_MAX_ROUTERS);
    return host->set.slots[slot].address;
}

/* xorshift64: spreads redials, nothing else. */
static uint64_t next_random(struct bt_worker_host *host) {
    uint64_t x = host->random | 1;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return host->random = x;
}

/* ---- names ---- */

static uint32_t busy_slots(const struct bt_worker_host *host) {
    uint32_t busy = 0;
    for (uint32_t i = 0; i < BT_MAX_ROUTERS; i++)
        busy |= host->routers[i].busy ? 1u << i : 0;
    return busy;
}

static void on_found(void *arg, uint32_t name, const char (*hosts)[BT_ADDRESS_BYTES],
                     uint32_t n_hosts) {
    struct bt_worker_host *host = arg;
    uint64_t now_us = bt_clock_us();
    uint32_t fresh, n_left_out = bt_router_set_found(&host->set, name, hosts, n_hosts,
                                                     busy_slots(host), now_us, &fresh);
    for (uint32_t i = 0; i < BT_MAX_ROUTERS; i++)
        if (fresh & 1u << i) {
            memset(&host->routers[i], 0, sizeof host->routers[i]);
            BT_INFO("router %s: %s has the address %s", host->options->routers[name],
                    host->set.names[name].address.host, bt_worker_router(host, i));
        }
    /* Slots rest for a lease, so a change may leave some out for one lookup or two. */
    if (n_left_out && host->names[name].n_left_out != n_left_out)
        BT_WARN("router %s: %u of its %u addresses are left out, a worker attaches to %d routers "
                "at most",
                host->options->routers[name], n_left_out, n_hosts, BT_MAX_ROUTERS);
    host->names[name].n_left_out = n_left_out;
    host->names[name].failed = false;
    if (fresh)
        event_active(host->tick, EV_TIMEOUT, 0); /* a turn, which dials them */
}

static void on_not_found(void *arg, uint32_t name, const char *why) {
    struct bt_worker_host *host = arg;
    if (!host->names[name].failed)
        BT_WARN("router %s cannot be looked up: %s", host->options->routers[name], why);
    host->names[name].failed = true;
}

static void look_up_due(struct bt_worker_host *host, uint64_t now_us) {
    for (uint32_t i = 0; i < host->set.n_names; i++) {
        if (host->set.names[i].is_fixed || now_us < host->names[i].look_us)
            continue;
        host->names[i].look_us =
            now_us + (bt_router_set_has(&host->set, i) ? LOOK_AGAIN_US : LOOK_SOON_US);
        bt_router_lookup_start(host->lookup, i, host->set.names[i].address.host);
    }
}

bt_status bt_worker_routers_init(struct bt_worker_host *host, struct bt_error *err) {
    const struct bt_router_lookup_user user = {host, on_found, on_not_found};
    bt_router_set_init(&host->set, host->options->routers, host->options->n_routers);
    return bt_router_lookup_create(host->base, &user, &host->lookup, err);
}

/* ---- streams ---- */

static void dial_due(struct bt_worker_host *host, uint64_t now_us) {
    for (uint32_t i = 0; i < BT_MAX_ROUTERS; i++) {
        if (host->routers[i].busy || now_us < host->routers[i].dial_us ||
            !bt_router_set_may_dial(&host->set, i))
            continue;
        struct bt_error err;
        if (bt_rpc_client_dial(host->rpc, i, bt_worker_router(host, i), 0, &err) == BT_OK) {
            host->routers[i].busy = true;
            continue;
        }
        BT_WARN("cannot dial router %s: %s", bt_worker_router(host, i), err.text);
        host->routers[i].dial_us =
            now_us +
            (uint64_t)bt_rpc_redial_ms(++host->routers[i].failures, next_random(host)) * 1000;
    }
}

/* A router that is not there yet is said once, not at each try; that another thing is wrong now is
 * said too, but not more often than every few seconds. */
static bool is_news(struct bt_worker_host *host, uint32_t i, uint64_t now_us, const char *text) {
    size_t n = sizeof host->routers[i].said - 1;
    if (host->routers[i].failures > 0 && (!strncmp(host->routers[i].said, text, n) ||
                                          now_us - host->routers[i].said_us < SAY_AGAIN_US))
        return false;
    host->routers[i].said_us = now_us;
    snprintf(host->routers[i].said, n + 1, "%s", text);
    return true;
}

static void on_closed(struct bt_worker_host *host, uint64_t now_us,
                      const struct bt_rpc_event *event) {
    uint32_t i = event->slot;
    /* Only a stream that lasted is dialled again at once: one that is taken and refused each time
     * would spin. */
    if (host->routers[i].welcome_us && now_us - host->routers[i].welcome_us >= LASTING_US)
        host->routers[i].failures = 0;
    host->routers[i].welcome_us = 0;
    if (is_news(host, i, now_us, event->text))
        BT_INFO("router %s: %s", bt_worker_router(host, i), event->text);
    else
        BT_DEBUG("router %s: %s", bt_worker_router(host, i), event->text);
    host->routers[i].busy = false;
    bt_router_set_closed(&host->set, i, now_us);
    host->routers[i].dial_us =
        now_us + (uint64_t)bt_rpc_redial_ms(host->routers[i].failures++, next_random(host)) * 1000;
}

bool bt_worker_next_router_event(struct bt_worker_host *host, uint64_t now_us,
                                 struct bt_rpc_event *event) {
    if (host->n_signals < 2) {
        look_up_due(host, now_us);
        dial_due(host, now_us);
    }
    if (!bt_rpc_next(host->streams, event))
        return false;
    BT_ASSERT(event->slot < BT_MAX_ROUTERS);
    if (event->type == BT_RPC_MESSAGE && event->msg->type == BT_MSG_WELCOME)
        host->routers[event->slot].welcome_us = now_us;
    else if (event->type == BT_RPC_CLOSED)
        on_closed(host, now_us, event);
    return true;
}

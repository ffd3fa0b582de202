/* The decode workers that a prefill worker can hand to: which there are, and the links to them. */
#include <string.h>

#include "common/base/assert.h"
#include "prefill_worker/prefill_state.h"

enum { REDIAL_MS_MIN = 100, REDIAL_MS_MAX = 500 };

_Static_assert(BT_LEDGER_ROUTERS <= 32, "a link's routers are one 32-bit word");

static struct bt_prefill_link *find(struct bt_prefill_core *core, struct bt_id incarnation) {
    for (uint32_t i = 0; i < BT_MAX_LINKS; i++)
        if (core->links[i].state != BT_PREFILL_LINK_FREE &&
            bt_id_equal(core->links[i].incarnation, incarnation))
            return &core->links[i];
    return NULL;
}

static struct bt_prefill_link *take_free(struct bt_prefill_core *core) {
    for (uint32_t i = 0; i < BT_MAX_LINKS; i++)
        if (core->links[i].state == BT_PREFILL_LINK_FREE)
            return &core->links[i];
    return NULL;
}

void bt_prefill_on_peers(struct bt_prefill_core *core, uint64_t now_us, uint32_t slot,
                         const struct bt_msg_peers *peers) {
    uint32_t bit = 1u << bt_ledger_router(core->ledger, slot);
    for (uint32_t i = 0; i < BT_MAX_LINKS; i++)
        core->links[i].routers &= ~bit;
    for (uint32_t i = 0; i < peers->n_peers; i++) {
        struct bt_prefill_link *link = find(core, peers->peers[i].incarnation);
        if (!link) {
            link = take_free(core);
            if (!link) /* requests for it end with LINK: the router places them elsewhere */
                continue;
            *link = (struct bt_prefill_link){.state = BT_PREFILL_LINK_DOWN, .redial_us = now_us};
            link->incarnation = peers->peers[i].incarnation;
            memcpy(link->address, peers->peers[i].link_address, sizeof link->address);
        }
        link->routers |= bit;
    }
}

uint32_t bt_prefill_link_to(const struct bt_prefill_core *core, struct bt_id incarnation) {
    for (uint32_t i = 0; i < BT_MAX_LINKS; i++)
        if (core->links[i].state == BT_PREFILL_LINK_UP &&
            bt_id_equal(core->links[i].incarnation, incarnation))
            return i;
    return BT_MAX_LINKS;
}

uint32_t bt_prefill_links_up(const struct bt_prefill_core *core) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < BT_MAX_LINKS; i++)
        n += core->links[i].state == BT_PREFILL_LINK_UP;
    return n;
}

void bt_prefill_core_link_up(struct bt_prefill_core *core, uint64_t now_us, uint32_t link) {
    BT_ASSERT(link < BT_MAX_LINKS);
    if (core->links[link].state != BT_PREFILL_LINK_DIALING)
        return; /* it was given up while it came up: down follows */
    core->links[link].state = BT_PREFILL_LINK_UP;
    core->links[link].failures = 0;
    bt_kv_send_link_up(core->send, now_us, link);
}

void bt_prefill_core_link_down(struct bt_prefill_core *core, uint64_t now_us, uint32_t i) {
    BT_ASSERT(i < BT_MAX_LINKS);
    struct bt_prefill_link *link = &core->links[i];
    BT_ASSERT(link->state == BT_PREFILL_LINK_DIALING || link->state == BT_PREFILL_LINK_UP ||
              link->state == BT_PREFILL_LINK_LEAVING);
    if (link->state != BT_PREFILL_LINK_DIALING)
        bt_kv_send_link_down(core->send, now_us, i);
    uint32_t wait_ms = REDIAL_MS_MIN << (link->failures < 3 ? link->failures : 3);
    link->failures++;
    link->state = BT_PREFILL_LINK_DOWN;
    link->redial_us = now_us + (uint64_t)(wait_ms < REDIAL_MS_MAX ? wait_ms : REDIAL_MS_MAX) * 1000;
}

static bool is_wanted(const struct bt_prefill_core *core, const struct bt_prefill_link *link) {
    if (link->routers & bt_ledger_routers(core->ledger))
        return true;
    for (uint32_t i = 0; core->n_active && i < core->n_seqs; i++)
        if (core->seqs[i].sending && bt_id_equal(core->seqs[i].peer, link->incarnation))
            return true;
    return false;
}

bool bt_prefill_next_link_action(struct bt_prefill_core *core, uint64_t now_us,
                                 struct bt_prefill_action *out) {
    for (uint32_t i = 0; i < BT_MAX_LINKS; i++) {
        struct bt_prefill_link *link = &core->links[i];
        switch (link->state) {
        case BT_PREFILL_LINK_FREE:
        case BT_PREFILL_LINK_LEAVING:
            break;
        case BT_PREFILL_LINK_DOWN:
            if (!is_wanted(core, link)) {
                link->state = BT_PREFILL_LINK_FREE;
            } else if (now_us >= link->redial_us) {
                link->state = BT_PREFILL_LINK_DIALING;
                *out = (struct bt_prefill_action){.type = BT_PREFILL_LINK_DIAL,
                                                  .link = i,
                                                  .address = link->address,
                                                  .peer = link->incarnation};
                return true;
            }
            break;
        case BT_PREFILL_LINK_DIALING:
            break;
        case BT_PREFILL_LINK_UP:
            if (!is_wanted(core, link)) {
                link->state = BT_PREFILL_LINK_LEAVING;
                *out = (struct bt_prefill_action){.type = BT_PREFILL_LINK_CLOSE, .link = i};
                return true;
            }
            break;
        }
    }
    return false;
}

/* What the files of the receiving half share: leases, the table of states and events, actions. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/kv/kv_recv.h"
#include "common/kv/kv_recv_tickets.h"

/* What D knows of a ticket; the three in the middle are a lease's. */
enum bt_kv_recv_state {
    BT_KV_RECV_NONE, /* nothing (the state of a free lease slot) */
    BT_KV_RECV_PARKED,
    BT_KV_RECV_EXPECTED,
    BT_KV_RECV_ARMED,
    BT_KV_RECV_COMMITTING,
    BT_KV_RECV_ENDED,
    BT_KV_RECV_STATE_COUNT,
};

enum bt_kv_recv_event {
    BT_KV_RECV_ON_EXPECT,
    BT_KV_RECV_ON_ABORT,
    BT_KV_RECV_ON_FORBID,
    BT_KV_RECV_ON_HELLO,
    BT_KV_RECV_ON_COMMIT,
    BT_KV_RECV_ON_WITHDRAWN,
    BT_KV_RECV_ON_FRAME,
    BT_KV_RECV_ON_FRAME_END,
    BT_KV_RECV_ON_LINK_DOWN,
    BT_KV_RECV_ON_EXPIRE,
    BT_KV_RECV_EVENT_COUNT,
};

struct bt_kv_lease {
    enum bt_kv_recv_state state;
    uint64_t generation; /* of the grant; 0 while EXPECTED */
    struct bt_kv_expect expect;
    uint32_t link;
    uint32_t pages_held;
    uint32_t n_landed; /* pages */
    uint32_t receives; /* frames in flight */
    uint64_t bytes;
    struct bt_kv_msg commit; /* COMMITTING */
};

/* How far one (layer, page) has come, by page of our pool. */
struct bt_kv_progress {
    uint32_t begun; /* bytes whose receive has begun */
    uint32_t ended; /* bytes whose receive has ended whole */
};

struct bt_kv_recv {
    struct bt_kv_recv_config config;
    struct bt_kv_lease *leases;      /* [max_leases] */
    struct bt_kv_progress *progress; /* [pages of the pool][n_layers] */
    uint32_t *verified;              /* [pages of the pool], layers */
    struct bt_kv_recv_action *actions;
    uint32_t max_actions, n_actions, next_action;
    struct bt_kv_tickets tickets;
    struct {
        bool up;
        struct bt_id peer;
    } links[BT_MAX_LINKS];
    uint64_t generation;
    struct bt_kv_recv_counters counters;
    uint32_t coverage[BT_KV_RECV_STATE_COUNT * BT_KV_RECV_EVENT_COUNT];
};

/* Counts the pair and says whether it is handled; an impossible one is asserted. */
bool bt_kv_recv_enter(struct bt_kv_recv *recv, enum bt_kv_recv_state state,
                      enum bt_kv_recv_event event);
void bt_kv_recv_act(struct bt_kv_recv *recv, const struct bt_kv_recv_action *action);
/* The one end of a lease without commit. tell_peer: an ABORTED message to P if it was granted;
 * tell_user: an ABORTED action. */
void bt_kv_recv_end(struct bt_kv_recv *recv, uint64_t now_us, uint32_t lease,
                    enum bt_kv_reason reason, bool tell_peer, bool tell_user);
/* Whether a generation that a peer named is that of the lease. */
bool bt_kv_recv_fits(const struct bt_kv_lease *lease, uint64_t generation);
/* Nothing is in flight any more: compares what landed with lease->commit, commits or aborts. */
void bt_kv_recv_finish(struct bt_kv_recv *recv, uint64_t now_us, uint32_t lease);

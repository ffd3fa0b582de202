/* Who is attached: workers by name and incarnation, the streams they are on, what they can take.
 *
 * Plain data and the rules of joining and liveness; what follows from a change (requests that move,
 * messages) is done in core_workers.c. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/fingerprint.h"
#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/rpc/registry_msg.h"
#include "router/core.h"

enum { BT_NO_SLOT = -1 };

struct bt_worker {
    enum bt_worker_state state;
    char name[BT_NAME_BYTES];
    char link_address[BT_ADDRESS_BYTES];
    struct bt_id incarnation;
    enum bt_role role;
    int32_t slot; /* the stream it is on, or BT_NO_SLOT */
    uint32_t max_context, max_seqs;
    struct bt_msg_status status; /* the last one */

    uint64_t heard_us;  /* its last message */
    uint64_t ended_us;  /* when its stream ended, while DETACHED */
    uint64_t pulsed_us; /* our last Pulse to it */

    /* Requests of this router with a part here: D's through live_next, P's through p_next. */
    uint32_t first_request;
    uint32_t n_requests;

    /* What we gave it and its last Status may not show yet. */
    uint32_t pages_asked;    /* D: in Reserves that it has not answered */
    uint32_t pages_accepted; /* D: accepted since its last Status */
    uint32_t backlog_tokens; /* P: prompts that we sent and no token came of */
    uint64_t full_until_us;  /* it refused for lack of room: ask others first */

    uint64_t blocks_sequence; /* of the next Blocks on this stream */
    bool blocks_known;        /* one came */
    uint32_t n_seen;          /* ends to confirm, in the core's table */
};

struct bt_worker_slot {
    bool open;
    bool closing;   /* CLOSE was given: what still comes is not read */
    int32_t worker; /* or BT_NO_WORKER: not joined */
};

struct bt_worker_table {
    struct bt_worker workers[BT_MAX_WORKERS];
    struct bt_worker_slot slots[BT_ROUTER_SLOTS];
    uint64_t avoid_until_us[BT_MAX_WORKERS][BT_MAX_WORKERS]; /* [p][d], after a link was lost */
    struct bt_fingerprint fingerprint;                       /* of all workers, the first one's */
    uint64_t fingerprint_hash;
    uint64_t text_hash; /* 0: not known yet */
    bool fingerprint_known;
    bool peers_changed;
};

/* What becomes of a Join. */
enum bt_join {
    BT_JOIN_NEW,     /* a free entry */
    BT_JOIN_RESUME,  /* the same incarnation is back: its entry */
    BT_JOIN_REPLACE, /* another incarnation of that name: the old one is dead, a free entry */
    BT_JOIN_REFUSED, /* for good: another model, text or protocol */
    BT_JOIN_LATER,   /* the name is taken, or the table is full: it may try again */
};

void bt_worker_table_init(struct bt_worker_table *table, uint64_t text_hash);

/* Decides; changes nothing. *entry is where it goes, *old the entry that REPLACE makes dead. err
 * says why it is refused. */
enum bt_join bt_worker_table_check(const struct bt_worker_table *table,
                                   const struct bt_msg_join *join, uint32_t *entry, uint32_t *old,
                                   struct bt_error *err);
/* Fills a free entry, or brings a resumed one up to date. */
void bt_worker_table_enter(struct bt_worker_table *table, uint64_t now_us, uint32_t entry,
                           uint32_t slot, const struct bt_msg_join *join);
/* Frees a dead entry without requests. When the last is gone, another model may join. */
void bt_worker_table_free(struct bt_worker_table *table, uint32_t entry);

/* UP, not draining: it may get new work. */
bool bt_worker_takes_work(const struct bt_worker *worker);
/* Neither gone nor dead: it may come back. */
bool bt_worker_is_known(const struct bt_worker *worker);
/* Pages that a new request may count on, as far as we know. */
uint32_t bt_worker_pages_free(const struct bt_worker *worker);
/* Prompt tokens ahead of a new one. */
uint32_t bt_worker_backlog(const struct bt_worker *worker);
/* Tokens of the longest sequence that it can ever hold. */
uint32_t bt_worker_capacity(const struct bt_worker *worker);
/* When silence next changes its state; UINT64_MAX when it does not. */
uint64_t bt_worker_due_us(const struct bt_worker *worker);

/* What can happen to a worker's entry. The reaction to each in each state is the table in
 * worker_table.c. */
enum bt_worker_event {
    BT_WORKER_JOINED,     /* a new worker takes the entry */
    BT_WORKER_RESUMED,    /* the same incarnation attached again */
    BT_WORKER_REPLACED,   /* its name attached with another incarnation */
    BT_WORKER_HEARD,      /* any message on its stream */
    BT_WORKER_STREAM_END, /* its stream ended */
    BT_WORKER_SILENT,     /* BT_SUSPECT_MS without a message */
    BT_WORKER_LOST,       /* BT_DEAD_MS without a message, or not back in BT_REATTACH_MS */
    BT_WORKER_CLEANED,    /* no request is left on a dead one */
    BT_WORKER_EVENT_COUNT,
};

enum { BT_WORKER_PAIRS = BT_WORKER_STATE_COUNT * BT_WORKER_EVENT_COUNT };

/* Moves the entry to its next state and counts the pair. False: the event is ignored there. Asserts
 * on pairs that cannot be. */
bool bt_worker_step(struct bt_worker *worker, enum bt_worker_event event,
                    uint32_t counts[BT_WORKER_PAIRS]);
void bt_worker_pair(uint32_t i, struct bt_pair_view *out);

/* The rules of joining, and the worker's life as a table of (state, event). */
#include "router/worker_table.h"

#include <string.h>

#include "common/base/assert.h"

/* ---- the table ---- */

struct row {
    enum bt_pair_kind kind;
    enum bt_worker_state next;
    const char *why;
};

#define TO(state) \
    { BT_PAIR_HANDLED, state, "" }
#define IGNORED(state, why) \
    { BT_PAIR_IGNORED, state, why }

/* What is not written is impossible. */
static const struct row rows[BT_WORKER_STATE_COUNT][BT_WORKER_EVENT_COUNT] = {
    [BT_WORKER_NONE] =
        {
            [BT_WORKER_JOINED] = TO(BT_WORKER_UP),
        },
    [BT_WORKER_UP] =
        {
            [BT_WORKER_RESUMED] = TO(BT_WORKER_UP),
            [BT_WORKER_HEARD] = IGNORED(BT_WORKER_UP, "it is up: only the time is noted"),
            [BT_WORKER_STREAM_END] = TO(BT_WORKER_DETACHED),
            [BT_WORKER_SILENT] = TO(BT_WORKER_SUSPECT),
        },
    [BT_WORKER_SUSPECT] =
        {
            [BT_WORKER_RESUMED] = TO(BT_WORKER_UP),
            [BT_WORKER_REPLACED] = TO(BT_WORKER_DEAD),
            [BT_WORKER_HEARD] = TO(BT_WORKER_UP),
            [BT_WORKER_STREAM_END] = TO(BT_WORKER_DETACHED),
            [BT_WORKER_LOST] = TO(BT_WORKER_DEAD),
        },
    [BT_WORKER_DETACHED] =
        {
            [BT_WORKER_RESUMED] = TO(BT_WORKER_UP),
            [BT_WORKER_REPLACED] = TO(BT_WORKER_DEAD),
            [BT_WORKER_LOST] = TO(BT_WORKER_DEAD),
        },
    [BT_WORKER_DEAD] =
        {
            [BT_WORKER_CLEANED] = TO(BT_WORKER_NONE),
        },
};

bool bt_worker_step(struct bt_worker *worker, enum bt_worker_event event,
                    uint32_t counts[BT_WORKER_PAIRS]) {
    const struct row *row = &rows[worker->state][event];
    counts[worker->state * BT_WORKER_EVENT_COUNT + event]++;
    BT_ASSERT(row->kind != BT_PAIR_IMPOSSIBLE);
    worker->state = row->next;
    return row->kind == BT_PAIR_HANDLED;
}

void bt_worker_pair(uint32_t i, struct bt_pair_view *out) {
    static const char *const events[BT_WORKER_EVENT_COUNT] = {
        "joined", "resumed", "replaced", "heard", "stream_end", "silent", "lost", "cleaned"};
    const struct row *row = &rows[i / BT_WORKER_EVENT_COUNT][i % BT_WORKER_EVENT_COUNT];
    *out = (struct bt_pair_view){
        .machine = "worker",
        .state = bt_worker_state_name((enum bt_worker_state)(i / BT_WORKER_EVENT_COUNT)),
        .event = events[i % BT_WORKER_EVENT_COUNT],
        .kind = row->kind,
        .why = row->why ? row->why : ""};
}

const char *bt_worker_state_name(enum bt_worker_state state) {
    static const char *const names[BT_WORKER_STATE_COUNT] = {"none", "up", "suspect", "detached",
                                                             "dead"};
    return (unsigned)state < BT_WORKER_STATE_COUNT ? names[state] : "unknown";
}

/* ---- joining ---- */

void bt_worker_table_init(struct bt_worker_table *table, uint64_t text_hash) {
    memset(table, 0, sizeof *table);
    table->text_hash = text_hash;
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++) {
        table->workers[i].slot = BT_NO_SLOT;
        table->workers[i].first_request = BT_NO_REQUEST;
    }
    for (uint32_t i = 0; i < BT_ROUTER_SLOTS; i++)
        table->slots[i].worker = BT_NO_WORKER;
}

static bt_status check_kind(const struct bt_worker_table *table, const struct bt_msg_join *join,
                            struct bt_error *err) {
    if (join->protocol_min > BT_PROTOCOL_MAX || join->protocol_max < BT_PROTOCOL_MIN)
        return bt_fail(err, BT_E_PROTOCOL,
                       "worker %s speaks protocol %u to %u, the router speaks %u to %u", join->name,
                       join->protocol_min, join->protocol_max, (unsigned)BT_PROTOCOL_MIN,
                       (unsigned)BT_PROTOCOL_MAX);
    if (join->role == BT_ROLE_DECODE && !join->link_address[0])
        return bt_fail(err, BT_E_PROTOCOL,
                       "decode worker %s names no link address for prefill workers to dial",
                       join->name);
    if (table->text_hash && table->text_hash != join->text_hash)
        return bt_fail(err, BT_E_LAYOUT_MISMATCH,
                       "worker %s has another tokenizer or chat template: text_hash is %016llx, "
                       "the router's is %016llx",
                       join->name, (unsigned long long)join->text_hash,
                       (unsigned long long)table->text_hash);
    struct bt_error layout;
    if (table->fingerprint_known &&
        bt_fingerprint_compare(&table->fingerprint, &join->fingerprint, &layout) != BT_OK)
        return bt_fail(err, layout.status, "worker %s cannot join this cluster: %.180s", join->name,
                       layout.text);
    return BT_OK;
}

enum bt_join bt_worker_table_check(const struct bt_worker_table *table,
                                   const struct bt_msg_join *join, uint32_t *entry, uint32_t *old,
                                   struct bt_error *err) {
    if (check_kind(table, join, err) != BT_OK)
        return BT_JOIN_REFUSED;
    enum bt_join answer = BT_JOIN_NEW;
    uint32_t free_entry = BT_MAX_WORKERS;
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++) {
        const struct bt_worker *worker = &table->workers[i];
        if (worker->state == BT_WORKER_NONE && free_entry == BT_MAX_WORKERS)
            free_entry = i;
        if (!bt_worker_is_known(worker) || strcmp(worker->name, join->name) != 0)
            continue;
        if (bt_id_equal(worker->incarnation, join->incarnation) && worker->role == join->role) {
            *entry = i;
            return BT_JOIN_RESUME;
        }
        /* One that talks to us is alive: the newcomer is a second worker of the same name. One that
         * is silent or gone was restarted. */
        if (worker->state == BT_WORKER_UP) {
            bt_fail(err, BT_E_PEER_BUSY,
                    "the name %s is taken by another worker that is attached: give each its own",
                    join->name);
            return BT_JOIN_LATER;
        }
        *old = i;
        answer = BT_JOIN_REPLACE;
    }
    if (free_entry == BT_MAX_WORKERS) {
        bt_fail(err, BT_E_FULL, "the router has %u workers, its limit", (unsigned)BT_MAX_WORKERS);
        return BT_JOIN_LATER;
    }
    *entry = free_entry;
    return answer;
}

void bt_worker_table_enter(struct bt_worker_table *table, uint64_t now_us, uint32_t entry,
                           uint32_t slot, const struct bt_msg_join *join) {
    struct bt_worker *worker = &table->workers[entry];
    if (worker->state == BT_WORKER_NONE) {
        *worker = (struct bt_worker){.first_request = BT_NO_REQUEST};
        for (uint32_t i = 0; i < BT_MAX_WORKERS; i++)
            table->avoid_until_us[entry][i] = table->avoid_until_us[i][entry] = 0;
    }
    memcpy(worker->name, join->name, sizeof worker->name);
    memcpy(worker->link_address, join->link_address, sizeof worker->link_address);
    worker->incarnation = join->incarnation;
    worker->role = join->role;
    worker->slot = (int32_t)slot;
    worker->max_context = join->max_context;
    worker->max_seqs = join->max_seqs;
    worker->status.census = join->census;
    worker->pages_accepted = 0;
    worker->heard_us = worker->pulsed_us = now_us;
    worker->full_until_us = 0;
    worker->blocks_known = false;
    table->slots[slot].worker = (int32_t)entry;
    if (!table->fingerprint_known) {
        table->fingerprint = join->fingerprint;
        table->fingerprint_hash = bt_fingerprint_hash(&join->fingerprint);
        table->fingerprint_known = true;
    }
    if (!table->text_hash)
        table->text_hash = join->text_hash;
    if (join->role == BT_ROLE_DECODE)
        table->peers_changed = true;
}

void bt_worker_table_free(struct bt_worker_table *table, uint32_t entry) {
    struct bt_worker *worker = &table->workers[entry];
    BT_ASSERT(!worker->n_requests && worker->slot == BT_NO_SLOT);
    *worker = (struct bt_worker){.slot = BT_NO_SLOT, .first_request = BT_NO_REQUEST};
    bool any = false;
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++)
        any |= table->workers[i].state != BT_WORKER_NONE;
    if (!any)
        table->fingerprint_known = false;
}

/* ---- what it can take ---- */

bool bt_worker_takes_work(const struct bt_worker *worker) {
    return worker->state == BT_WORKER_UP && !worker->status.draining;
}

bool bt_worker_is_known(const struct bt_worker *worker) {
    return worker->state == BT_WORKER_UP || worker->state == BT_WORKER_SUSPECT ||
           worker->state == BT_WORKER_DETACHED;
}

uint32_t bt_worker_pages_free(const struct bt_worker *worker) {
    uint64_t free = (uint64_t)worker->status.census.free + worker->status.census.cached;
    uint64_t given = (uint64_t)worker->pages_asked + worker->pages_accepted;
    return free > given ? (uint32_t)(free - given) : 0;
}

uint32_t bt_worker_backlog(const struct bt_worker *worker) {
    return worker->status.backlog_tokens > worker->backlog_tokens ? worker->status.backlog_tokens
                                                                  : worker->backlog_tokens;
}

uint32_t bt_worker_capacity(const struct bt_worker *worker) {
    uint64_t pool = (uint64_t)worker->status.census.total * BT_PAGE_TOKENS;
    return pool < worker->max_context ? (uint32_t)pool : worker->max_context;
}

uint64_t bt_worker_due_us(const struct bt_worker *worker) {
    uint64_t dead = worker->heard_us + BT_DEAD_MS * 1000ull;
    uint64_t gone = worker->ended_us + BT_REATTACH_MS * 1000ull;
    switch (worker->state) {
    case BT_WORKER_UP:
        return worker->heard_us + BT_SUSPECT_MS * 1000ull;
    case BT_WORKER_SUSPECT:
        return dead;
    case BT_WORKER_DETACHED:
        return dead < gone ? dead : gone;
    default:
        return UINT64_MAX;
    }
}

/* The tickets that have no lease: hellos that came before their Reserve, and tickets that ended.
 *
 * A part of the receiving half (kv_recv.c). Both tables are bounded. A parked hello is kept for
 * BT_LEASE_MS, an ended ticket for two of these; where more end, the oldest is forgotten first: its
 * late hello is then parked, meets no Reserve and expires, and nothing is granted. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/id.h"
#include "common/base/status.h"
#include "common/kv/kv_msg.h"

struct bt_kv_parked {
    struct bt_id ticket, chain;
    uint64_t expires_us;
    uint32_t link;
    uint32_t n_tokens;
};

struct bt_kv_ended {
    struct bt_id ticket;
    uint64_t expires_us;
    enum bt_kv_reason reason; /* 0: it was committed */
    uint32_t next_in_bucket;
};

struct bt_kv_tickets {
    struct bt_kv_parked *parked; /* [max_parked], the first n_parked in order of coming */
    uint32_t max_parked, n_parked;
    struct bt_kv_ended *ended; /* [max_ended], a ring in order of ending */
    uint32_t *buckets;         /* [n_buckets], a power of two; index in ended */
    uint32_t max_ended, n_ended, first_ended, n_buckets;
};

bt_status bt_kv_tickets_init(struct bt_kv_tickets *tickets, uint32_t max_parked, uint32_t max_ended,
                             struct bt_error *err);
void bt_kv_tickets_fini(struct bt_kv_tickets *tickets);

/* BT_AGAIN: this ticket is parked for this link already. BT_E_FULL: no room. */
bt_status bt_kv_tickets_park(struct bt_kv_tickets *tickets, uint64_t now_us, uint32_t link,
                             const struct bt_kv_msg *hello);
/* Takes the first hello that fits out: of this ticket (or any, if NULL), of this link (or any, if
 * UINT32_MAX), expired at now_us (or not asked, if 0). */
bool bt_kv_tickets_take_parked(struct bt_kv_tickets *tickets, const struct bt_id *ticket,
                               uint32_t link, uint64_t now_us, struct bt_kv_parked *out);
bool bt_kv_tickets_is_parked(const struct bt_kv_tickets *tickets, struct bt_id ticket);

/* Remembers; a ticket that is there already stays as it is. */
void bt_kv_tickets_end(struct bt_kv_tickets *tickets, uint64_t now_us, struct bt_id ticket,
                       enum bt_kv_reason reason);
/* NULL: not known as ended. */
const struct bt_kv_ended *bt_kv_tickets_find_ended(const struct bt_kv_tickets *tickets,
                                                   struct bt_id ticket);
/* Forgets the oldest ended ticket if its time is over. */
bool bt_kv_tickets_forget(struct bt_kv_tickets *tickets, uint64_t now_us);

bool bt_kv_tickets_is_valid(const struct bt_kv_tickets *tickets);

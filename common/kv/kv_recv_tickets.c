/* Keeps parked hellos in a short list and ended tickets in a ring with a hash table. */
#include "common/kv/kv_recv_tickets.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"

enum { NONE = UINT32_MAX, TABLE_MAX = 1 << 20 };

static const uint64_t park_us = BT_LEASE_MS * 1000ull, end_us = 2 * BT_LEASE_MS * 1000ull;

bt_status bt_kv_tickets_init(struct bt_kv_tickets *tickets, uint32_t max_parked, uint32_t max_ended,
                             struct bt_error *err) {
    memset(tickets, 0, sizeof *tickets);
    if (max_parked < 1 || max_parked > TABLE_MAX)
        return bt_fail(err, BT_E_INVALID, "room for %u early hellos, must be 1 to %d", max_parked,
                       TABLE_MAX);
    if (max_ended < 1 || max_ended > TABLE_MAX)
        return bt_fail(err, BT_E_INVALID, "room for %u ended tickets, must be 1 to %d", max_ended,
                       TABLE_MAX);
    tickets->n_buckets = 1;
    while (tickets->n_buckets < max_ended)
        tickets->n_buckets *= 2;
    tickets->parked = calloc(max_parked, sizeof *tickets->parked);
    tickets->ended = calloc(max_ended, sizeof *tickets->ended);
    tickets->buckets = calloc(tickets->n_buckets, sizeof *tickets->buckets);
    if (!tickets->parked || !tickets->ended || !tickets->buckets) {
        bt_kv_tickets_fini(tickets);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u parked and %u ended tickets",
                       max_parked, max_ended);
    }
    for (uint32_t i = 0; i < tickets->n_buckets; i++)
        tickets->buckets[i] = NONE;
    tickets->max_parked = max_parked;
    tickets->max_ended = max_ended;
    return BT_OK;
}

void bt_kv_tickets_fini(struct bt_kv_tickets *tickets) {
    free(tickets->parked);
    free(tickets->ended);
    free(tickets->buckets);
    memset(tickets, 0, sizeof *tickets);
}

/* ---- parked hellos ---- */

bt_status bt_kv_tickets_park(struct bt_kv_tickets *tickets, uint64_t now_us, uint32_t link,
                             const struct bt_kv_msg *hello) {
    for (uint32_t i = 0; i < tickets->n_parked; i++)
        if (tickets->parked[i].link == link &&
            bt_id_equal(tickets->parked[i].ticket, hello->ticket))
            return BT_AGAIN;
    if (tickets->n_parked == tickets->max_parked)
        return BT_E_FULL;
    tickets->parked[tickets->n_parked++] = (struct bt_kv_parked){
        .ticket = hello->ticket,
        .chain = hello->chain,
        .expires_us = now_us + park_us,
        .link = link,
        .n_tokens = hello->n_tokens,
    };
    return BT_OK;
}

bool bt_kv_tickets_take_parked(struct bt_kv_tickets *tickets, const struct bt_id *ticket,
                               uint32_t link, uint64_t now_us, struct bt_kv_parked *out) {
    for (uint32_t i = 0; i < tickets->n_parked; i++) {
        struct bt_kv_parked *parked = &tickets->parked[i];
        if ((ticket && !bt_id_equal(parked->ticket, *ticket)) ||
            (link != UINT32_MAX && parked->link != link) || (now_us && parked->expires_us > now_us))
            continue;
        *out = *parked;
        tickets->n_parked--;
        memmove(parked, parked + 1, (tickets->n_parked - i) * sizeof *parked);
        return true;
    }
    return false;
}

bool bt_kv_tickets_is_parked(const struct bt_kv_tickets *tickets, struct bt_id ticket) {
    for (uint32_t i = 0; i < tickets->n_parked; i++)
        if (bt_id_equal(tickets->parked[i].ticket, ticket))
            return true;
    return false;
}

/* ---- ended tickets ---- */

static uint32_t *bucket_of(const struct bt_kv_tickets *tickets, struct bt_id ticket) {
    return &tickets->buckets[(ticket.lo ^ ticket.hi) & (tickets->n_buckets - 1)];
}

static void forget_oldest(struct bt_kv_tickets *tickets) {
    uint32_t oldest = tickets->first_ended;
    uint32_t *at = bucket_of(tickets, tickets->ended[oldest].ticket);
    while (*at != oldest) {
        BT_ASSERT(*at != NONE);
        at = &tickets->ended[*at].next_in_bucket;
    }
    *at = tickets->ended[oldest].next_in_bucket;
    tickets->first_ended = (oldest + 1) % tickets->max_ended;
    tickets->n_ended--;
}

const struct bt_kv_ended *bt_kv_tickets_find_ended(const struct bt_kv_tickets *tickets,
                                                   struct bt_id ticket) {
    for (uint32_t i = *bucket_of(tickets, ticket); i != NONE; i = tickets->ended[i].next_in_bucket)
        if (bt_id_equal(tickets->ended[i].ticket, ticket))
            return &tickets->ended[i];
    return NULL;
}

void bt_kv_tickets_end(struct bt_kv_tickets *tickets, uint64_t now_us, struct bt_id ticket,
                       enum bt_kv_reason reason) {
#if BT_MUTANT_ended_forgotten
    return; /* a planted defect */
#endif
    if (bt_kv_tickets_find_ended(tickets, ticket))
        return;
    if (tickets->n_ended == tickets->max_ended)
        forget_oldest(tickets);
    uint32_t i = (tickets->first_ended + tickets->n_ended++) % tickets->max_ended;
    uint32_t *bucket = bucket_of(tickets, ticket);
    tickets->ended[i] = (struct bt_kv_ended){
        .ticket = ticket,
        .expires_us = now_us + end_us,
        .reason = reason,
        .next_in_bucket = *bucket,
    };
    *bucket = i;
}

bool bt_kv_tickets_forget(struct bt_kv_tickets *tickets, uint64_t now_us) {
    if (!tickets->n_ended || tickets->ended[tickets->first_ended].expires_us > now_us)
        return false;
    forget_oldest(tickets);
    return true;
}

/* Only tickets that are remembered, each in its own bucket. */
static bool chain_is_valid(const struct bt_kv_tickets *tickets, const uint32_t *bucket) {
    uint32_t n = 0;
    for (uint32_t i = *bucket; i != NONE; i = tickets->ended[i].next_in_bucket) {
        uint32_t age = (i + tickets->max_ended - tickets->first_ended) % tickets->max_ended;
        if (i >= tickets->max_ended || age >= tickets->n_ended || ++n > tickets->n_ended ||
            bucket_of(tickets, tickets->ended[i].ticket) != bucket)
            return false;
    }
    return true;
}

bool bt_kv_tickets_is_valid(const struct bt_kv_tickets *tickets) {
    if (tickets->n_parked > tickets->max_parked || tickets->n_ended > tickets->max_ended)
        return false;
    for (uint32_t i = 0; i < tickets->n_parked; i++)
        if (tickets->parked[i].link >= BT_MAX_LINKS || bt_id_is_zero(tickets->parked[i].ticket))
            return false;
    for (uint32_t i = 0; i < tickets->n_ended; i++) {
        uint32_t at = (tickets->first_ended + i) % tickets->max_ended;
        if (bt_kv_tickets_find_ended(tickets, tickets->ended[at].ticket) != &tickets->ended[at] ||
            !chain_is_valid(tickets, bucket_of(tickets, tickets->ended[at].ticket)))
            return false;
    }
    return true;
}

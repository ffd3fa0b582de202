/* Counts the last minute's events into slots of a second and reads quantiles and rates off them. */
#include "router/stats_window.h"

#include <stdbool.h>

#include "common/base/assert.h"

enum { SECOND_US = 1000000 };

void bt_stats_window_init(struct bt_stats_window *window, uint64_t now_us) {
    *window = (struct bt_stats_window){.started_us = now_us};
    for (uint32_t i = 0; i < BT_STATS_SLOTS; i++)
        window->slots[i].second = UINT64_MAX;
}

static struct bt_stats_slot *slot_of(struct bt_stats_window *window, uint64_t now_us) {
    uint64_t second = now_us / SECOND_US;
    struct bt_stats_slot *slot = &window->slots[second % BT_STATS_SLOTS];
    if (slot->second != second)
        *slot = (struct bt_stats_slot){.second = second};
    return slot;
}

/* Below 16 us each duration has its own bucket; above, each power of two has sixteen. */
static uint32_t bucket_of(uint64_t us) {
    if (us < 16)
        return (uint32_t)us;
    uint32_t octave = 59 - (uint32_t)__builtin_clzll(us); /* 16..31 us is octave 0 */
    if (octave >= BT_STATS_OCTAVES)
        return BT_STATS_BUCKETS - 1;
    return 16 * (octave + 1) + (uint32_t)(us >> octave) - 16;
}

/* The middle of a bucket. */
static double bucket_us(uint32_t bucket) {
    if (bucket < 16)
        return bucket;
    uint32_t octave = bucket / 16 - 1;
    return ((double)(16 + bucket % 16) + 0.5 * (octave > 0)) * (double)(1ull << octave);
}

void bt_stats_window_request(struct bt_stats_window *window, uint64_t now_us,
                             uint32_t n_prompt_tokens) {
    struct bt_stats_slot *slot = slot_of(window, now_us);
    slot->n_requests++;
    slot->n_prompt_tokens += n_prompt_tokens;
}

void bt_stats_window_token(struct bt_stats_window *window, uint64_t now_us, enum bt_stats_kind kind,
                           uint64_t since_us) {
    BT_ASSERT(kind < BT_STATS_KINDS);
    struct bt_stats_slot *slot = slot_of(window, now_us);
    slot->n_tokens++;
    slot->n_in[kind][bucket_of(since_us)]++;
}

/* Whether a slot holds one of the last n whole seconds, or the present one. */
static bool is_recent(const struct bt_stats_slot *slot, uint64_t now_us, uint64_t n) {
    uint64_t now = now_us / SECOND_US;
    return slot->second != UINT64_MAX && slot->second <= now && now - slot->second <= n;
}

static double quantile(const uint64_t sums[BT_STATS_BUCKETS], uint64_t n, uint32_t percent) {
    uint64_t wanted = (n * percent + 99) / 100, seen = 0; /* the wanted-th smallest */
    for (uint32_t i = 0; i < BT_STATS_BUCKETS && n; i++) {
        seen += sums[i];
        if (seen >= wanted)
            return bucket_us(i);
    }
    return 0;
}

struct bt_stats_quantiles bt_stats_window_quantiles(const struct bt_stats_window *window,
                                                    uint64_t now_us, enum bt_stats_kind kind) {
    uint64_t sums[BT_STATS_BUCKETS] = {0}, n = 0;
    BT_ASSERT(kind < BT_STATS_KINDS);
    for (uint32_t i = 0; i < BT_STATS_SLOTS; i++) {
        const struct bt_stats_slot *slot = &window->slots[i];
        if (!is_recent(slot, now_us, BT_STATS_SECONDS))
            continue;
        for (uint32_t b = 0; b < BT_STATS_BUCKETS; b++) {
            sums[b] += slot->n_in[kind][b];
            n += slot->n_in[kind][b];
        }
    }
    return (struct bt_stats_quantiles){
        .n = n,
        .p50_us = quantile(sums, n, 50),
        .p95_us = quantile(sums, n, 95),
        .p99_us = quantile(sums, n, 99),
    };
}

struct bt_stats_rates bt_stats_window_rates(const struct bt_stats_window *window, uint64_t now_us) {
    struct bt_stats_rates sums = {0};
    uint64_t now = now_us / SECOND_US, seconds = now - window->started_us / SECOND_US;
    if (seconds > BT_STATS_RATE_SECONDS)
        seconds = BT_STATS_RATE_SECONDS;
    if (!seconds)
        return sums;
    for (uint32_t i = 0; i < BT_STATS_SLOTS; i++) {
        const struct bt_stats_slot *slot = &window->slots[i];
        /* The present second is not whole. */
        if (!is_recent(slot, now_us, seconds) || slot->second == now)
            continue;
        sums.requests += (double)slot->n_requests;
        sums.prompt_tokens += (double)slot->n_prompt_tokens;
        sums.tokens += (double)slot->n_tokens;
    }
    sums.requests /= (double)seconds;
    sums.prompt_tokens /= (double)seconds;
    sums.tokens /= (double)seconds;
    return sums;
}

void bt_stats_growth_read(struct bt_stats_growth *growth, uint64_t now_us, uint64_t owner_hi,
                          uint64_t owner_lo, uint64_t value) {
    uint32_t last = growth->n ? (growth->n - 1) % BT_STATS_RATE_SECONDS : 0;
    if (growth->n && (growth->owner[0] != owner_hi || growth->owner[1] != owner_lo ||
                      value < growth->readings[last].value))
        growth->n = 0;
    if (growth->n && now_us - growth->readings[last].at_us < SECOND_US)
        return;
    growth->owner[0] = owner_hi;
    growth->owner[1] = owner_lo;
    uint32_t i = growth->n++ % BT_STATS_RATE_SECONDS;
    growth->readings[i].at_us = now_us;
    growth->readings[i].value = value;
}

double bt_stats_growth_per_second(const struct bt_stats_growth *growth) {
    if (growth->n < 2)
        return 0;
    uint32_t last = (growth->n - 1) % BT_STATS_RATE_SECONDS;
    uint32_t first = growth->n > BT_STATS_RATE_SECONDS ? growth->n % BT_STATS_RATE_SECONDS : 0;
    double bytes = (double)(growth->readings[last].value - growth->readings[first].value);
    return bytes * SECOND_US /
           (double)(growth->readings[last].at_us - growth->readings[first].at_us);
}

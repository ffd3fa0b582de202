/* What happened in the last minute: rates, and the durations that shares of it did not exceed.
 *
 * A ring of one slot per second. Durations go into buckets whose width is 1/16 of their size (so a
 * quantile is off by 3 % at most), because the tokens of a busy minute are millions: keeping
 * samples would mean keeping a part of them, and a late one weighs as much as an early one only
 * this way. Sized at compile time, told the time, owned by one thread. */
#pragma once
#include <stdint.h>

enum {
    BT_STATS_SECONDS = 60,      /* quantiles are over so many whole seconds and the present one */
    BT_STATS_RATE_SECONDS = 10, /* rates are over so many whole seconds */
    BT_STATS_SLOTS = BT_STATS_SECONDS + 1,
    BT_STATS_OCTAVES = 28, /* up to 2^32 us, 71 minutes */
    BT_STATS_BUCKETS = 16 * (BT_STATS_OCTAVES + 1),
};

enum bt_stats_kind { BT_STATS_TTFT, BT_STATS_ITL, BT_STATS_KINDS };

struct bt_stats_slot {
    uint64_t second; /* of the clock; UINT64_MAX: never used */
    uint64_t n_requests, n_prompt_tokens, n_tokens;
    uint32_t n_in[BT_STATS_KINDS][BT_STATS_BUCKETS];
};

struct bt_stats_window {
    uint64_t started_us;
    struct bt_stats_slot slots[BT_STATS_SLOTS];
};

struct bt_stats_quantiles {
    uint64_t n;                    /* durations in the window */
    double p50_us, p95_us, p99_us; /* 0 where there is none */
};

struct bt_stats_rates {
    double requests, prompt_tokens, tokens; /* per second */
};

void bt_stats_window_init(struct bt_stats_window *window, uint64_t now_us);

/* A request was accepted. */
void bt_stats_window_request(struct bt_stats_window *window, uint64_t now_us,
                             uint32_t n_prompt_tokens);
/* A token went to a client: its first, since_us after its request came, or one since_us after the
 * one before. */
void bt_stats_window_token(struct bt_stats_window *window, uint64_t now_us, enum bt_stats_kind kind,
                           uint64_t since_us);

struct bt_stats_quantiles bt_stats_window_quantiles(const struct bt_stats_window *window,
                                                    uint64_t now_us, enum bt_stats_kind kind);
/* Over the whole seconds since start where those are fewer than BT_STATS_RATE_SECONDS. */
struct bt_stats_rates bt_stats_window_rates(const struct bt_stats_window *window, uint64_t now_us);

/* ---- a count that only grows, read now and then: how fast it grew ---- */

struct bt_stats_growth {
    uint64_t owner[2]; /* whose count it is; another owner starts anew */
    uint32_t n;        /* readings taken */
    struct {
        uint64_t at_us, value;
    } readings[BT_STATS_RATE_SECONDS];
};

/* Takes a reading, at most one a second; a count that fell starts anew. */
void bt_stats_growth_read(struct bt_stats_growth *growth, uint64_t now_us, uint64_t owner_hi,
                          uint64_t owner_lo, uint64_t value);
/* Growth per second since the oldest reading kept; 0 before there are two. */
double bt_stats_growth_per_second(const struct bt_stats_growth *growth);

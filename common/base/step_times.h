/* How long the last steps of a worker took, and which duration half and 99 % of them stay within.
 *
 * Part of a worker's pure core: told the time, no malloc. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum {
    BT_STEP_TIMES = 1024,        /* steps that are remembered */
    BT_STEP_TIMES_FRESH_MS = 50, /* quantiles are made anew this often at most */
};

struct bt_step_times {
    uint32_t n;                        /* of them there are so far, at most BT_STEP_TIMES */
    uint32_t at;                       /* where the next one goes */
    uint32_t us[BT_STEP_TIMES];        /* ring */
    uint32_t selection[BT_STEP_TIMES]; /* scratch: a copy, partly ordered */
    uint32_t mean_us;                  /* of the last eight or so */
    /* As they were when they were last made. */
    uint32_t p50_us, p99_us;
    uint64_t made_us; /* when */
    bool is_stale;    /* steps have come since */
};

/* A zeroed struct is an empty one. Durations over UINT32_MAX count as that. */
void bt_step_times_add(struct bt_step_times *times, uint64_t us);
/* Makes p50_us and p99_us anew (nearest rank: the smallest duration that half, or 99 %, of the
 * steps do not exceed; 0 without steps) unless that was done less than BT_STEP_TIMES_FRESH_MS ago
 * or nothing has changed. */
void bt_step_times_refresh(struct bt_step_times *times, uint64_t now_us);

/* How long the last steps of a worker took: a ring and its quantiles by selection. */
#include "common/base/step_times.h"

#include <string.h>

void bt_step_times_add(struct bt_step_times *times, uint64_t us) {
    uint32_t step_us = us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
    times->mean_us = times->n ? (uint32_t)((7 * (uint64_t)times->mean_us + step_us) / 8) : step_us;
    times->us[times->at] = step_us;
    times->is_stale = true;
    times->at = (times->at + 1) % BT_STEP_TIMES;
    if (times->n < BT_STEP_TIMES)
        times->n++;
}

static void swap(uint32_t *a, uint32_t *b) {
    uint32_t t = *a;
    *a = *b;
    *b = t;
}

/* The value of rank k (from 0) of v[first .. n); what is below k stands before it then, what is
 * above it behind. Hoare's selection with the middle element as pivot. */
static uint32_t select_rank(uint32_t *v, uint32_t first, uint32_t n, uint32_t k) {
    int64_t low = first, high = (int64_t)n - 1;
    while (low < high) {
        uint32_t pivot = v[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (v[i] < pivot)
                i++;
            while (v[j] > pivot)
                j--;
            if (i <= j)
                swap(&v[i++], &v[j--]);
        }
        if (k <= j)
            high = j;
        else if (k >= i)
            low = i;
        else
            break;
    }
    return v[k];
}

void bt_step_times_refresh(struct bt_step_times *times, uint64_t now_us) {
    if (!times->is_stale ||
        (times->made_us && now_us - times->made_us < (uint64_t)BT_STEP_TIMES_FRESH_MS * 1000))
        return;
    times->is_stale = false;
    uint32_t n = times->n, half = (n + 1) / 2 - 1, most = (99 * n + 99) / 100 - 1;
    memcpy(times->selection, times->us, n * sizeof times->us[0]);
    times->p50_us = select_rank(times->selection, 0, n, half);
    times->p99_us = select_rank(times->selection, half, n, most);
    times->made_us = now_us;
}

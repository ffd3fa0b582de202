/* Counts requests' durations into buckets and writes them as Prometheus histograms. */
#include "router/request_times.h"

/* vLLM's, so that boards fit. */
static const uint64_t ttft_us[] = {
    1000,   5000,    10000,   20000,   40000,   60000,    80000,    100000,   250000,   500000,
    750000, 1000000, 2500000, 5000000, 7500000, 10000000, 20000000, 40000000, 80000000, 160000000};
/* vLLM's begin at 10 ms, which a small model is ten times below. */
static const uint64_t itl_us[] = {
    100,   200,   500,   1000,  2000,   3000,   5000,   7500,   10000,  15000,   20000,   25000,
    30000, 40000, 50000, 75000, 100000, 150000, 200000, 300000, 500000, 1000000, 2500000, 10000000};
static const uint64_t total_us[] = {10000,     50000,     100000,    300000,   500000,   800000,
                                    1000000,   1500000,   2000000,   2500000,  5000000,  10000000,
                                    15000000,  20000000,  30000000,  40000000, 50000000, 60000000,
                                    120000000, 240000000, 480000000, 960000000};
static const uint64_t stage_us[] = {100,    300,     1000,    3000,     10000,    30000,    100000,
                                    300000, 1000000, 3000000, 10000000, 30000000, 100000000};

#define INIT(h, bounds) bt_histogram_init(h, bounds, sizeof bounds / sizeof bounds[0])

void bt_request_times_init(struct bt_request_times *times) {
    INIT(&times->ttft, ttft_us);
    INIT(&times->itl, itl_us);
    INIT(&times->total, total_us);
    INIT(&times->per_token, itl_us);
    for (int i = 0; i < BT_SPAN_COUNT; i++)
        INIT(&times->stages[i], stage_us);
}

void bt_request_times_add(struct bt_request_times *times, const struct bt_request_record *record) {
    if (record->status != BT_OK)
        return;
    bt_histogram_record(&times->total, record->total_us);
    if (record->itl_mean_us)
        bt_histogram_record(&times->per_token, record->itl_mean_us);
    for (int i = 0; i < BT_SPAN_COUNT; i++)
        if (!(record->unknown & 1u << i))
            bt_histogram_record(&times->stages[i], record->span_us[i]);
}

static void write_one(struct evbuffer *out, const char *name, const char *help,
                      const struct bt_histogram *h) {
    bt_metrics_family(out, name, BT_METRIC_HISTOGRAM, help);
    bt_metrics_histogram(out, name, NULL, 0, h);
}

void bt_request_times_write(struct evbuffer *out, const struct bt_request_times *times) {
    write_one(out, "baton_time_to_first_token_seconds",
              "From a request's arrival to its first token on the way to the client.",
              &times->ttft);
    write_one(out, "baton_inter_token_latency_seconds",
              "Between two tokens on the way to the client.", &times->itl);
    write_one(out, "baton_time_per_output_token_seconds",
              "Mean time between the tokens of one request that ended well.", &times->per_token);
    write_one(out, "baton_request_duration_seconds",
              "From arrival to the last token, of requests that ended well.", &times->total);
    bt_metrics_family(
        out, "baton_request_stage_seconds", BT_METRIC_HISTOGRAM,
        "Time of a request that ended well in each stage; they add up to its duration. "
        "A stage that was not reported does not count.");
    for (int i = 0; i < BT_SPAN_COUNT; i++) {
        const struct bt_label labels[] = {{"stage", bt_span_name((enum bt_span)i)}};
        bt_metrics_histogram(out, "baton_request_stage_seconds", labels, 1, &times->stages[i]);
    }
}

/* Counters, gauges and histograms as Prometheus text (exposition format 0.0.4).
 *
 * There is no registry: counters and gauges are plain numbers in the struct that owns them, and an
 * exporter writes them family by family into a libevent buffer when it is asked. A histogram is the
 * one kind that needs a struct. All of it belongs to one thread. */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct evbuffer;

enum { BT_HISTOGRAM_BUCKETS = 24 };

/* Durations counted into buckets of at most `bounds_us[i]` microseconds, ascending; one more bucket
 * takes the rest. */
struct bt_histogram {
    const uint64_t *bounds_us; /* [n_bounds], static */
    uint32_t n_bounds;         /* <= BT_HISTOGRAM_BUCKETS */
    uint64_t n_in[BT_HISTOGRAM_BUCKETS + 1];
    uint64_t sum_us;
    uint64_t n;
};

/* bounds_us must outlive the histogram and be ascending. */
void bt_histogram_init(struct bt_histogram *h, const uint64_t *bounds_us, uint32_t n_bounds);
void bt_histogram_record(struct bt_histogram *h, uint64_t us);

struct bt_label {
    const char *name;  /* a literal of ours */
    const char *value; /* any text; escaped when it is written */
};

enum bt_metric_kind {
    BT_METRIC_COUNTER,
    BT_METRIC_GAUGE,
    BT_METRIC_HISTOGRAM,
    BT_METRIC_SUMMARY, /* samples with a label `quantile` */
};

/* Begins a family: its HELP and TYPE lines. Every sample of it must follow before the next family.
 */
void bt_metrics_family(struct evbuffer *out, const char *name, enum bt_metric_kind kind,
                       const char *help);
/* One sample; labels may be NULL where n_labels is 0. */
void bt_metrics_u64(struct evbuffer *out, const char *name, const struct bt_label *labels,
                    size_t n_labels, uint64_t value);
void bt_metrics_double(struct evbuffer *out, const char *name, const struct bt_label *labels,
                       size_t n_labels, double value);
/* The buckets, sum and count of a histogram, in seconds. */
void bt_metrics_histogram(struct evbuffer *out, const char *name, const struct bt_label *labels,
                          size_t n_labels, const struct bt_histogram *h);

/* Writes counters, gauges and histograms as Prometheus text. */
#include "common/base/metrics.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <event2/buffer.h>

#include "common/base/assert.h"

void bt_histogram_init(struct bt_histogram *h, const uint64_t *bounds_us, uint32_t n_bounds) {
    BT_ASSERT(n_bounds <= BT_HISTOGRAM_BUCKETS);
    memset(h, 0, sizeof *h);
    h->bounds_us = bounds_us;
    h->n_bounds = n_bounds;
}

void bt_histogram_record(struct bt_histogram *h, uint64_t us) {
    uint32_t i = 0;
    while (i < h->n_bounds && us > h->bounds_us[i])
        i++;
    h->n_in[i]++;
    h->sum_us += us;
    h->n++;
}

void bt_metrics_family(struct evbuffer *out, const char *name, enum bt_metric_kind kind,
                       const char *help) {
    static const char *const kinds[] = {"counter", "gauge", "histogram", "summary"};
    evbuffer_add_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kinds[kind]);
}

/* A label value may hold any text but must escape backslash, quote and line feed. */
static void add_escaped(struct evbuffer *out, const char *value) {
    for (const char *p = value; *p;) {
        size_t plain = strcspn(p, "\\\"\n");
        evbuffer_add(out, p, plain);
        p += plain;
        if (*p) {
            const char pair[2] = {'\\', *p == '\n' ? 'n' : *p};
            evbuffer_add(out, pair, 2);
            p++;
        }
    }
}

/* Leaves the label list open where `more` labels follow. */
static void add_labels(struct evbuffer *out, const struct bt_label *labels, size_t n_labels,
                       bool more) {
    if (!n_labels && !more)
        return;
    evbuffer_add(out, "{", 1);
    for (size_t i = 0; i < n_labels; i++) {
        evbuffer_add_printf(out, "%s%s=\"", i ? "," : "", labels[i].name);
        add_escaped(out, labels[i].value);
        evbuffer_add(out, "\"", 1);
    }
    if (!more)
        evbuffer_add(out, "}", 1);
    else if (n_labels)
        evbuffer_add(out, ",", 1);
}

void bt_metrics_u64(struct evbuffer *out, const char *name, const struct bt_label *labels,
                    size_t n_labels, uint64_t value) {
    evbuffer_add_printf(out, "%s", name);
    add_labels(out, labels, n_labels, false);
    evbuffer_add_printf(out, " %" PRIu64 "\n", value);
}

void bt_metrics_double(struct evbuffer *out, const char *name, const struct bt_label *labels,
                       size_t n_labels, double value) {
    evbuffer_add_printf(out, "%s", name);
    add_labels(out, labels, n_labels, false);
    evbuffer_add_printf(out, " %.9g\n", value);
}

void bt_metrics_histogram(struct evbuffer *out, const char *name, const struct bt_label *labels,
                          size_t n_labels, const struct bt_histogram *h) {
    uint64_t below = 0;
    for (uint32_t i = 0; i <= h->n_bounds; i++) {
        below += h->n_in[i];
        evbuffer_add_printf(out, "%s_bucket", name);
        add_labels(out, labels, n_labels, true);
        if (i < h->n_bounds)
            evbuffer_add_printf(out, "le=\"%.9g\"} %" PRIu64 "\n", (double)h->bounds_us[i] / 1e6,
                                below);
        else
            evbuffer_add_printf(out, "le=\"+Inf\"} %" PRIu64 "\n", below);
    }
    evbuffer_add_printf(out, "%s_sum", name);
    add_labels(out, labels, n_labels, false);
    evbuffer_add_printf(out, " %.6f\n%s_count", (double)h->sum_us / 1e6, name);
    add_labels(out, labels, n_labels, false);
    evbuffer_add_printf(out, " %" PRIu64 "\n", h->n);
}

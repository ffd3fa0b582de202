/* Turns a load's results into percentiles, goodput, text, JSON and an SVG picture. */
#pragma once
#include <stdio.h>

#include "cli/bench_load.h"

struct bt_bench_slo { /* 0: no bound */
    double ttft_ms;
    double itl_ms;     /* of a request's mean time per output token after the first */
    double itl_p99_ms; /* of the p99 of a request's gaps between tokens */
    double e2e_ms;
};

struct bt_bench_spread { /* milliseconds */
    uint64_t n;
    double mean, p50, p90, p99, max;
};

struct bt_bench_class_report {
    uint32_t n_requests, n_ok, n_in_slo;
    struct bt_bench_spread ttft, itl, itl_p99; /* itl_p99: of each request's own */
};

struct bt_bench_report {
    uint32_t n_requests, n_ok, n_failed;
    uint32_t n_in_slo; /* ok and within every bound of the SLO */
    double took_s;
    double requests_per_s, goodput_per_s, output_tokens_per_s, total_tokens_per_s;
    double mean_prompt_tokens, mean_output_tokens;
    struct bt_bench_spread ttft, itl, itl_p99, tpot, e2e, lag;  /* lag: sent after its time */
    struct bt_bench_class_report classes[BT_BENCH_CLASSES_MAX]; /* by number; where there are two */
};

/* n_warmup: the first so many requests do not count, nor their gaps. False: no memory. */
bool bt_bench_report_make(const struct bt_bench_load *load, const struct bt_bench_slo *slo,
                          uint32_t n_warmup, struct bt_bench_report *out);
void bt_bench_report_print(FILE *out, const struct bt_bench_load *load,
                           const struct bt_bench_slo *slo, const struct bt_bench_report *report);
/* BT_E_IO names the file. */
bt_status bt_bench_report_json(const char *path, const struct bt_bench_load *load,
                               const struct bt_bench_slo *slo, const struct bt_bench_report *report,
                               struct bt_error *err);
bt_status bt_bench_report_svg(const char *path, const struct bt_bench_load *load,
                              const struct bt_bench_slo *slo, const struct bt_bench_report *report,
                              struct bt_error *err);
/* Nearest rank; values are sorted. */
double bt_bench_percentile(const double *sorted, uint64_t n, double share);
bool bt_bench_in_slo(const struct bt_bench_result *result, const struct bt_bench_slo *slo);

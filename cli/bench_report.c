/* Percentiles and goodput of a load, as text and JSON. */
#include "cli/bench_report.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { REASONS_SHOWN = 5 };

/* ---- numbers ---- */

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bt_bench_percentile(const double *sorted, uint64_t n, double share) {
    if (!n)
        return 0;
    uint64_t rank = (uint64_t)(share * (double)n + 0.999999);
    return sorted[rank < 1 ? 0 : rank > n ? n - 1 : rank - 1];
}

static struct bt_bench_spread spread_of(double *values, uint64_t n) {
    struct bt_bench_spread spread = {.n = n};
    if (!n)
        return spread;
    qsort(values, n, sizeof *values, compare);
    for (uint64_t i = 0; i < n; i++)
        spread.mean += values[i] / (double)n;
    spread.p50 = bt_bench_percentile(values, n, 0.5);
    spread.p90 = bt_bench_percentile(values, n, 0.9);
    spread.p99 = bt_bench_percentile(values, n, 0.99);
    spread.max = values[n - 1];
    return spread;
}

static double ttft_ms(const struct bt_bench_result *r) {
    return (double)(r->first_us - r->sent_us) / 1e3;
}

static double tpot_ms(const struct bt_bench_result *r) {
    return r->completion_tokens > 1
               ? (double)(r->last_us - r->first_us) / 1e3 / (r->completion_tokens - 1)
               : 0;
}

static double e2e_ms(const struct bt_bench_result *r) {
    return (double)(r->end_us - r->sent_us) / 1e3;
}

static double itl_p99_ms(const struct bt_bench_result *r) {
    return r->itl_p99_us / 1e3;
}

static double lag_ms(const struct bt_bench_result *r) {
    return r->sent_us > r->due_us ? (double)(r->sent_us - r->due_us) / 1e3 : 0;
}

bool bt_bench_in_slo(const struct bt_bench_result *r, const struct bt_bench_slo *slo) {
    return r->ok && (slo->ttft_ms <= 0 || ttft_ms(r) <= slo->ttft_ms) &&
           (slo->itl_ms <= 0 || tpot_ms(r) <= slo->itl_ms) &&
           (slo->itl_p99_ms <= 0 || itl_p99_ms(r) <= slo->itl_p99_ms) &&
           (slo->e2e_ms <= 0 || e2e_ms(r) <= slo->e2e_ms);
}

/* The requests that figures are of. */
struct part {
    const struct bt_bench_load *load;
    uint32_t from;     /* those before it warm up */
    uint32_t class_id; /* or EVERY_CLASS */
    double *scratch;   /* a number of each request, or of each gap */
};
enum { EVERY_CLASS = UINT32_MAX >> 1 };

static bool is_in(const struct part *part, uint32_t request) {
    return request >= part->from && (part->class_id == EVERY_CLASS ||
                                     part->load->plan->items[request].class_id == part->class_id);
}

/* One number of each request that is ok. */
static struct bt_bench_spread spread_by(const struct part *part,
                                        double (*number)(const struct bt_bench_result *),
                                        uint32_t tokens_min) {
    const struct bt_bench_load *load = part->load;
    uint64_t n = 0;
    for (uint32_t i = part->from; i < load->plan->n_items; i++)
        if (is_in(part, i) && load->results[i].ok &&
            load->results[i].completion_tokens >= tokens_min)
            part->scratch[n++] = number(&load->results[i]);
    return spread_of(part->scratch, n);
}

static struct bt_bench_spread spread_of_gaps(const struct part *part) {
    const struct bt_bench_gaps *gaps = &part->load->gaps;
    uint64_t n = 0;
    for (uint64_t i = 0; i < gaps->n; i++)
        if (is_in(part, gaps->all[i].request))
            part->scratch[n++] = gaps->all[i].us / 1e3;
    return spread_of(part->scratch, n);
}

static void report_class(const struct part *part, const struct bt_bench_slo *slo,
                         struct bt_bench_class_report *out) {
    const struct bt_bench_load *load = part->load;
    for (uint32_t i = part->from; i < load->plan->n_items; i++) {
        if (!is_in(part, i))
            continue;
        out->n_requests++;
        out->n_ok += load->results[i].ok;
        out->n_in_slo += bt_bench_in_slo(&load->results[i], slo);
    }
    out->ttft = spread_by(part, ttft_ms, 0);
    out->itl = spread_of_gaps(part);
    out->itl_p99 = spread_by(part, itl_p99_ms, 2);
}

static void count(const struct bt_bench_load *load, const struct bt_bench_slo *slo, uint32_t from,
                  struct bt_bench_report *out) {
    uint64_t prompt = 0, output = 0, first_us = UINT64_MAX, last_us = 0;
    for (uint32_t i = from; i < load->plan->n_items; i++) {
        const struct bt_bench_result *r = &load->results[i];
        out->n_requests++;
        if (r->sent_us && r->due_us < first_us)
            first_us = r->due_us;
        if (r->end_us > last_us)
            last_us = r->end_us;
        if (!r->ok) {
            out->n_failed++;
            continue;
        }
        out->n_ok++;
        out->n_in_slo += bt_bench_in_slo(r, slo);
        prompt += r->prompt_tokens;
        output += r->completion_tokens;
    }
    out->took_s = last_us > first_us ? (double)(last_us - first_us) / 1e6 : 0;
    if (out->took_s > 0) {
        out->requests_per_s = out->n_ok / out->took_s;
        out->goodput_per_s = out->n_in_slo / out->took_s;
        out->output_tokens_per_s = (double)output / out->took_s;
        out->total_tokens_per_s = (double)(prompt + output) / out->took_s;
    }
    if (out->n_ok) {
        out->mean_prompt_tokens = (double)prompt / out->n_ok;
        out->mean_output_tokens = (double)output / out->n_ok;
    }
}

bool bt_bench_report_make(const struct bt_bench_load *load, const struct bt_bench_slo *slo,
                          uint32_t n_warmup, struct bt_bench_report *out) {
    *out = (struct bt_bench_report){0};
    uint64_t n = load->gaps.n > load->plan->n_items ? load->gaps.n : load->plan->n_items;
    double *scratch = malloc(n * sizeof *scratch);
    if (!scratch)
        return false;
    count(load, slo, n_warmup, out);
    struct part part = {load, n_warmup, EVERY_CLASS, scratch};
    out->ttft = spread_by(&part, ttft_ms, 0);
    out->itl = spread_of_gaps(&part);
    out->itl_p99 = spread_by(&part, itl_p99_ms, 2);
    out->tpot = spread_by(&part, tpot_ms, 2);
    out->e2e = spread_by(&part, e2e_ms, 0);
    out->lag = spread_by(&part, lag_ms, 0);
    for (part.class_id = 0; part.class_id < load->plan->n_classes; part.class_id++)
        report_class(&part, slo, &out->classes[part.class_id]);
    free(scratch);
    return true;
}

/* ---- text ---- */

static void print_row(FILE *out, const char *name, const struct bt_bench_spread *s) {
    fprintf(out, "  %-26s%10.2f %10.2f %10.2f %10.2f %10.2f\n", name, s->mean, s->p50, s->p90,
            s->p99, s->max);
}

/* Where there is one class only, it is what stands above. */
static void print_classes(FILE *out, const struct bt_bench_load *load,
                          const struct bt_bench_report *r) {
    const struct bt_bench_plan *plan = load->plan;
    for (uint32_t i = 0; plan->n_classes > 1 && i < plan->n_classes; i++) {
        const struct bt_bench_class_report *c = &r->classes[i];
        fprintf(out, "\n  class %s: %" PRIu32 " requests, %" PRIu32 " ok, %" PRIu32 " good\n",
                plan->classes[i], c->n_requests, c->n_ok, c->n_in_slo);
        print_row(out, "time to first token", &c->ttft);
        print_row(out, "inter-token latency", &c->itl);
        print_row(out, "each request's p99 of it", &c->itl_p99);
    }
}

/* The most frequent reasons of failures would need a table; the first few different ones will do.
 */
static void print_reasons(FILE *out, const struct bt_bench_load *load) {
    const char *shown[REASONS_SHOWN];
    size_t n_shown = 0;
    for (uint32_t i = 0; i < load->plan->n_items && n_shown < REASONS_SHOWN; i++) {
        const char *reason = load->results[i].reason;
        bool known = load->results[i].ok;
        for (size_t j = 0; j < n_shown && !known; j++)
            known = !strcmp(shown[j], reason);
        if (!known)
            fprintf(out, "  failed: %s\n", shown[n_shown++] = reason);
    }
}

void bt_bench_report_print(FILE *out, const struct bt_bench_load *load,
                           const struct bt_bench_slo *slo, const struct bt_bench_report *r) {
    fprintf(out, "\n%s, model %s\n", load->server.url, load->model);
    fprintf(out, "  %" PRIu32 " requests in %.1f s: %" PRIu32 " ok, %" PRIu32 " failed\n",
            r->n_requests, r->took_s, r->n_ok, r->n_failed);
    print_reasons(out, load);
    fprintf(out, "  %.2f requests/s, %.1f output tokens/s, %.1f tokens/s in and out\n",
            r->requests_per_s, r->output_tokens_per_s, r->total_tokens_per_s);
    fprintf(out, "  on average %.0f tokens in the prompt, %.0f in the answer\n",
            r->mean_prompt_tokens, r->mean_output_tokens);
    fprintf(out, "\n  %-26s%10s %10s %10s %10s %10s\n", "ms", "mean", "p50", "p90", "p99", "max");
    print_row(out, "time to first token", &r->ttft);
    print_row(out, "inter-token latency", &r->itl);
    print_row(out, "each request's p99 of it", &r->itl_p99);
    print_row(out, "time per output token", &r->tpot);
    print_row(out, "end to end", &r->e2e);
    print_row(out, "sent late by (this tool)", &r->lag);
    print_classes(out, load, r);
    if (slo->ttft_ms <= 0 && slo->itl_ms <= 0 && slo->itl_p99_ms <= 0 && slo->e2e_ms <= 0)
        return;
    fprintf(out, "\n  goodput %.2f requests/s: %" PRIu32 " of %" PRIu32 " (%.1f %%) within",
            r->goodput_per_s, r->n_in_slo, r->n_requests,
            r->n_requests ? 100.0 * r->n_in_slo / r->n_requests : 0);
    if (slo->ttft_ms > 0)
        fprintf(out, " TTFT %g ms", slo->ttft_ms);
    if (slo->itl_ms > 0)
        fprintf(out, " time per output token %g ms", slo->itl_ms);
    if (slo->itl_p99_ms > 0)
        fprintf(out, " p99 of the gaps %g ms", slo->itl_p99_ms);
    if (slo->e2e_ms > 0)
        fprintf(out, " end to end %g ms", slo->e2e_ms);
    fprintf(out, "\n");
}

/* ---- JSON ---- */

static json_t *spread_json(const struct bt_bench_spread *s) {
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f}", "n", (json_int_t)s->n, "mean", s->mean,
                     "p50", s->p50, "p90", s->p90, "p99", s->p99, "max", s->max);
}

static json_t *results_json(const struct bt_bench_load *load) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < load->plan->n_items; i++) {
        const struct bt_bench_result *r = &load->results[i];
        json_t *row = json_pack("{s:f, s:b, s:i, s:i, s:i}", "at_ms", (double)r->due_us / 1e3, "ok",
                                r->ok, "status", r->code, "prompt_tokens", (int)r->prompt_tokens,
                                "output_tokens", (int)r->completion_tokens);
        if (r->ok) {
            json_object_set_new(row, "ttft_ms", json_real(ttft_ms(r)));
            json_object_set_new(row, "tpot_ms", json_real(tpot_ms(r)));
            json_object_set_new(row, "itl_p99_ms", json_real(itl_p99_ms(r)));
            json_object_set_new(row, "e2e_ms", json_real(e2e_ms(r)));
        } else {
            json_object_set_new(row, "reason", json_string(r->reason));
        }
        if (load->plan->n_classes)
            json_object_set_new(row, "class",
                                json_string(load->plan->classes[load->plan->items[i].class_id]));
        json_array_append_new(list, row);
    }
    return list;
}

static json_t *classes_json(const struct bt_bench_load *load, const struct bt_bench_report *r) {
    json_t *classes = json_object();
    for (uint32_t i = 0; i < load->plan->n_classes; i++) {
        const struct bt_bench_class_report *c = &r->classes[i];
        json_object_set_new(
            classes, load->plan->classes[i],
            json_pack("{s:i, s:i, s:i, s:o, s:o, s:o}", "requests", (int)c->n_requests, "ok",
                      (int)c->n_ok, "in_slo", (int)c->n_in_slo, "ttft_ms", spread_json(&c->ttft),
                      "itl_ms", spread_json(&c->itl), "itl_p99_ms", spread_json(&c->itl_p99)));
    }
    return classes;
}

bt_status bt_bench_report_json(const char *path, const struct bt_bench_load *load,
                               const struct bt_bench_slo *slo, const struct bt_bench_report *r,
                               struct bt_error *err) {
    json_t *root = json_pack(
        "{s:s, s:s, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "url",
        load->server.url, "model", load->model, "requests", (int)r->n_requests, "ok", (int)r->n_ok,
        "failed", (int)r->n_failed, "in_slo", (int)r->n_in_slo, "seconds", r->took_s,
        "requests_per_s", r->requests_per_s, "goodput_per_s", r->goodput_per_s,
        "output_tokens_per_s", r->output_tokens_per_s, "total_tokens_per_s", r->total_tokens_per_s,
        "mean_prompt_tokens", r->mean_prompt_tokens, "mean_output_tokens", r->mean_output_tokens);
    if (!root)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the report");
    json_object_set_new(root, "slo",
                        json_pack("{s:f, s:f, s:f, s:f}", "ttft_ms", slo->ttft_ms, "tpot_ms",
                                  slo->itl_ms, "itl_p99_ms", slo->itl_p99_ms, "e2e_ms",
                                  slo->e2e_ms));
    json_object_set_new(root, "ttft_ms", spread_json(&r->ttft));
    json_object_set_new(root, "itl_ms", spread_json(&r->itl));
    json_object_set_new(root, "itl_p99_ms", spread_json(&r->itl_p99));
    json_object_set_new(root, "tpot_ms", spread_json(&r->tpot));
    json_object_set_new(root, "e2e_ms", spread_json(&r->e2e));
    json_object_set_new(root, "lag_ms", spread_json(&r->lag));
    json_object_set_new(root, "classes", classes_json(load, r));
    json_object_set_new(root, "results", results_json(load));
    int failed = json_dump_file(root, path, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    json_decref(root);
    return failed ? bt_fail(err, BT_E_IO, "cannot write %.200s: %s", path, strerror(errno)) : BT_OK;
}

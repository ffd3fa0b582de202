/* Draws a load: the time to first token of each request over time, and how latencies are spread. */
#include "cli/bench_report.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    WIDTH = 960,
    HEIGHT = 430,
    LEFT = 64,
    TOP = 84,
    PLOT_WIDTH = 380,
    PLOT_HEIGHT = 280,
    GAP = 96
};
enum { TICKS = 4, CURVE_POINTS = 200 };

/* The smallest of 1, 2, 5 times a power of ten that is not below x. */
static double round_up(double x) {
    if (!(x > 0))
        return 1;
    double power = pow(10, floor(log10(x)));
    static const double steps[] = {1, 2, 5, 10};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++)
        if (steps[i] * power >= x * 0.999999)
            return steps[i] * power;
    return 10 * power;
}

struct plot {
    FILE *out;
    double left;
    double x_max, y_max;
};

static double at_x(const struct plot *p, double x) {
    return p->left + PLOT_WIDTH * fmin(x, p->x_max) / p->x_max;
}

static double at_y(const struct plot *p, double y) {
    return TOP + PLOT_HEIGHT * (1 - fmin(y, p->y_max) / p->y_max);
}

static void text(FILE *out, double x, double y, const char *anchor, const char *kind,
                 const char *words) {
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\">", x, y, anchor,
            kind);
    for (; *words; words++) {
        if (*words == '<' || *words == '&' || *words == '>')
            fprintf(out, "&#%d;", *words);
        else if ((unsigned char)*words >= 32)
            fputc(*words, out);
    }
    fprintf(out, "</text>\n");
}

static void draw_frame(const struct plot *p, const char *title, const char *x_name) {
    char words[40];
    text(p->out, p->left, TOP - 16, "start", "title", title);
    for (int i = 0; i <= TICKS; i++) {
        double x = p->x_max * i / TICKS, y = p->y_max * i / TICKS;
        fprintf(p->out, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                p->left, p->left + PLOT_WIDTH, at_y(p, y), at_y(p, y));
        snprintf(words, sizeof words, "%g", y);
        text(p->out, p->left - 8, at_y(p, y) + 4, "end", "tick", words);
        snprintf(words, sizeof words, "%g", x);
        text(p->out, at_x(p, x), TOP + PLOT_HEIGHT + 18, "middle", "tick", words);
    }
    text(p->out, p->left + PLOT_WIDTH / 2.0, TOP + PLOT_HEIGHT + 40, "middle", "name", x_name);
}

static void draw_requests(FILE *out, const struct bt_bench_load *load,
                          const struct bt_bench_slo *slo, const struct bt_bench_report *r) {
    struct plot p = {.out = out, .left = LEFT};
    double last_s = (double)load->plan->items[load->plan->n_items - 1].at_us / 1e6;
    p.x_max = round_up(last_s);
    p.y_max = round_up(fmax(r->ttft.max, slo->ttft_ms));
    draw_frame(&p, "Time to first token of each request, ms", "sent after, s");
    if (slo->ttft_ms > 0)
        fprintf(out, "<line class=\"slo\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                p.left, p.left + PLOT_WIDTH, at_y(&p, slo->ttft_ms), at_y(&p, slo->ttft_ms));
    for (uint32_t i = 0; i < load->plan->n_items; i++) {
        const struct bt_bench_result *result = &load->results[i];
        double x = at_x(&p, (double)result->due_us / 1e6);
        if (result->ok)
            fprintf(out, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.2\"/>\n",
                    bt_bench_in_slo(result, slo) ? "good" : "late", x,
                    at_y(&p, (double)(result->first_us - result->sent_us) / 1e3));
        else if (result->sent_us)
            fprintf(out, "<path class=\"failed\" d=\"M%.1f %d l5 5 m0 -5 l-5 5\"/>\n", x - 2.5,
                    TOP);
    }
}

/* The share of gaps that are at most so long. */
static void draw_spread(FILE *out, const struct bt_bench_load *load,
                        const struct bt_bench_report *r) {
    struct plot p = {.out = out, .left = LEFT + PLOT_WIDTH + GAP, .y_max = 100};
    p.x_max = round_up(r->itl.p99 * 1.2);
    draw_frame(&p, "Inter-token latency: share of tokens, %", "at most, ms");
    double *sorted = malloc((load->gaps.n + 1) * sizeof *sorted);
    if (!sorted || !load->gaps.n) {
        free(sorted);
        return;
    }
    for (uint64_t i = 0; i < load->gaps.n; i++)
        sorted[i] = load->gaps.all[i].us / 1e3;
    fprintf(out, "<polyline class=\"curve\" points=\"");
    for (int i = 0; i <= CURVE_POINTS; i++) {
        double share = (double)i / CURVE_POINTS;
        double ms = bt_bench_percentile(sorted, load->gaps.n, share);
        if (ms <= p.x_max)
            fprintf(out, "%.1f,%.1f ", at_x(&p, ms), at_y(&p, 100 * share));
    }
    fprintf(out, "\"/>\n");
    free(sorted);
    const struct {
        const char *name;
        double ms, share;
    } marks[] = {{"p50", r->itl.p50, 50}, {"p90", r->itl.p90, 90}, {"p99", r->itl.p99, 99}};
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++) {
        char words[60];
        snprintf(words, sizeof words, "%s %.2f ms", marks[i].name, marks[i].ms);
        fprintf(out, "<circle class=\"mark\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>\n",
                at_x(&p, marks[i].ms), at_y(&p, marks[i].share));
        text(out, p.left + PLOT_WIDTH - 4, TOP + PLOT_HEIGHT - 60 + 20 * (double)i, "end", "tick",
             words);
    }
}

static const char style[] =
    "<style>svg{background:#fff}text{font-family:system-ui,sans-serif;fill:#222}"
    ".head{font-size:18px;font-weight:600}.title{font-size:14px;font-weight:600}"
    ".name,.tick,.sub{font-size:12px;fill:#555}.grid{stroke:#ddd;stroke-width:1}"
    ".slo{stroke:#b26a00;stroke-width:1.5;stroke-dasharray:5 4}.good{fill:#1b6e8c;fill-opacity:.7}"
    ".late{fill:#c2571a;fill-opacity:.8}.failed{stroke:#b3261e;stroke-width:1.5;fill:none}"
    ".curve{fill:none;stroke:#1b6e8c;stroke-width:2}.mark{fill:#1b6e8c}"
    "@media (prefers-color-scheme:dark){svg{background:#14181b}text{fill:#e8e8e8}"
    ".name,.tick,.sub{fill:#aab}.grid{stroke:#333}.good,.mark{fill:#5cb8d6}.curve{stroke:#5cb8d6}"
    ".late{fill:#f0914f}.slo{stroke:#e0a040}.failed{stroke:#ff8a80}}</style>\n";

bt_status bt_bench_report_svg(const char *path, const struct bt_bench_load *load,
                              const struct bt_bench_slo *slo, const struct bt_bench_report *r,
                              struct bt_error *err) {
    FILE *out = fopen(path, "w");
    if (!out)
        return bt_fail(err, BT_E_IO, "cannot write %.200s: %s", path, strerror(errno));
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
            "height=\"%d\" role=\"img\">\n%s",
            WIDTH, HEIGHT, WIDTH, HEIGHT, style);
    char words[400];
    snprintf(words, sizeof words,
             "%.2f requests/s, %.0f output tokens/s: %" PRIu32 " of %" PRIu32
             " requests within the bounds",
             r->requests_per_s, r->output_tokens_per_s, r->n_in_slo, r->n_requests);
    text(out, LEFT, 28, "start", "head", words);
    snprintf(
        words, sizeof words,
        "TTFT p50 %.1f, p99 %.1f ms; time per output token p50 %.2f, p99 %.2f ms; model %.120s",
        r->ttft.p50, r->ttft.p99, r->tpot.p50, r->tpot.p99, load->model);
    text(out, LEFT, 48, "start", "sub", words);
    draw_requests(out, load, slo, r);
    draw_spread(out, load, r);
    fprintf(out, "</svg>\n");
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed)
        return bt_fail(err, BT_E_IO, "cannot write %.200s: %s", path, strerror(errno));
    return BT_OK;
}

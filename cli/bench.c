/* Reads the options of a bench, shows its progress, prints its report. */
#include "cli/bench.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/bench_load.h"
#include "cli/bench_report.h"
#include "common/base/config.h"
#include "common/base/file.h"

enum {
    OPTIONS = 32,
    BAR_CELLS = 24,
    TRACE_BYTES_MAX = 1 << 30,
    EXIT_FAILED = 1,
    EXIT_REFUSED = 2,
};

struct bench {
    struct bt_bench_server server;
    struct bt_bench_slo slo;
    struct bt_bench_rate rate;
    struct bt_bench_plan plan;
    const char *rate_text, *slo_ttft, *slo_itl, *slo_itl_p99, *slo_e2e, *trace, *trace_speed, *json,
        *svg;
    uint32_t endpoint, arrival, seconds, warmup, progress, seed, shared_tokens, n_requests;
    double goodput_min;
    const char *goodput_text;
    bool no_ignore_eos;
};

enum progress { PROGRESS_AUTO, PROGRESS_ON, PROGRESS_OFF };

static size_t fill_options(struct bench *b, struct bt_option out[OPTIONS]) {
    struct bt_bench_server *s = &b->server;
    const struct bt_option options[] = {
        {"url", BT_OPTION_STRING, &s->url, "http://127.0.0.1:8000", .argument = "URL",
         .help = "The server: http[s]://host[:port][/path]; a /v1 at its end is left out."},
        {"model", BT_OPTION_STRING, &s->model, .argument = "NAME",
         .help = "Default: the first that the server lists."},
        {"api-key", BT_OPTION_STRING, &s->api_key, .argument = "KEY",
         .help = "Sent as a bearer token; better given as BATON_API_KEY."},
        {"ca-file", BT_OPTION_STRING, &s->ca_file, .argument = "FILE",
         .help = "Certificates that an https server's is checked against; default: the system's."},
        {"endpoint", BT_OPTION_CHOICE, &b->endpoint, "completions",
         .choices = {"completions", "chat"}, .argument = "KIND",
         .help = "/v1/completions or /v1/chat/completions."},
        {"rate", BT_OPTION_STRING, &b->rate_text, "2", .argument = "R",
         .help = "Requests a second. They go out when their time has come, whatever the server "
                 "does (open loop)."},
        {"arrival", BT_OPTION_CHOICE, &b->arrival, "poisson", .choices = {"poisson", "constant"},
         .argument = "KIND", .help = "How gaps between requests are drawn."},
        {"requests", BT_OPTION_U32, &b->n_requests, "0", 0, BT_BENCH_REQUESTS_MAX, .argument = "N",
         .help = "How many; default: 100, or what --seconds takes, or all of the trace."},
        {"seconds", BT_OPTION_U32, &b->seconds, "0", 0, 86400, .argument = "S",
         .help = "Send for so long instead of so many."},
        {"warmup", BT_OPTION_U32, &b->warmup, "0", 0, BT_BENCH_REQUESTS_MAX, .argument = "N",
         .help = "The first N requests do not count."},
        {"prompt-tokens", BT_OPTION_U32, &b->rate.prompt_tokens, "256", 1, BT_BENCH_TOKENS_MAX,
         .argument = "N", .help = "Words in each prompt, about one token each; all differ."},
        {"shared-tokens", BT_OPTION_U32, &b->shared_tokens, "0", 0, BT_BENCH_TOKENS_MAX,
         .argument = "N",
         .help = "The first N words are the same in all prompts, as a system prompt is."},
        {"output-tokens", BT_OPTION_U32, &b->rate.max_tokens, "128", 1, BT_BENCH_TOKENS_MAX,
         .argument = "N", .help = "Tokens of each answer (max_tokens)."},
        {"no-ignore-eos", BT_OPTION_FLAG, &b->no_ignore_eos, "no",
         .help = "Let answers end where the model ends them. Else the field ignore_eos asks for "
                 "full length; servers that do not know it refuse or ignore it."},
        {"temperature", BT_OPTION_STRING, &s->temperature, "0", .argument = "T",
         .help = "Sampling temperature."},
        {"trace", BT_OPTION_STRING, &b->trace, .argument = "FILE",
         .help =
             "Arrivals and lengths from JSON lines {\"timestamp\": ms, \"input_length\": n, "
             "\"output_length\": n} instead of --rate; a field \"class\" names kinds of requests "
             "that are reported apart."},
        {"trace-speed", BT_OPTION_STRING, &b->trace_speed, "1", .argument = "X",
         .help = "Plays the trace X times as fast."},
        {"slo-ttft-ms", BT_OPTION_STRING, &b->slo_ttft, "0", .argument = "MS",
         .help = "Goodput counts requests whose first token came within MS."},
        {"slo-itl-ms", BT_OPTION_STRING, &b->slo_itl, "0", .argument = "MS",
         .help = "... and whose mean time per further token is at most MS."},
        {"slo-itl-p99-ms", BT_OPTION_STRING, &b->slo_itl_p99, "0", .argument = "MS",
         .help = "... and of whose times between two tokens 99 % are at most MS."},
        {"slo-e2e-ms", BT_OPTION_STRING, &b->slo_e2e, "0", .argument = "MS",
         .help = "... and that ended within MS."},
        {"min-goodput", BT_OPTION_STRING, &b->goodput_text, "0", .argument = "SHARE",
         .help = "Exit code 1 where less than this share (0 to 1) of the requests is good."},
        {"timeout-s", BT_OPTION_U32, &s->timeout_s, "600", 1, 86400, .argument = "S",
         .help = "A request that is silent for so long has failed."},
        {"seed", BT_OPTION_U32, &b->seed, "1", 0, UINT32_MAX, .argument = "N",
         .help = "Of arrivals and prompts: the same seed is the same load."},
        {"json", BT_OPTION_STRING, &b->json, .argument = "FILE",
         .help = "Writes the figures and every request's times."},
        {"svg", BT_OPTION_STRING, &b->svg, .argument = "FILE", .help = "Draws them."},
        {"progress", BT_OPTION_CHOICE, &b->progress, "auto", .choices = {"auto", "on", "off"},
         .argument = "WHEN", .help = "A bar on stderr; auto: where that is a terminal."},
    };
    _Static_assert(sizeof options / sizeof options[0] <= OPTIONS, "room for every option");
    memcpy(out, options, sizeof options);
    return sizeof options / sizeof options[0];
}

static bt_status read_number(const char *name, const char *text, double min, double max,
                             double *out, struct bt_error *err) {
    char *end = NULL;
    errno = 0;
    *out = strtod(text, &end);
    if (end == text || *end || errno || !isfinite(*out) || *out < min || *out > max)
        return bt_fail(err, BT_E_INVALID, "%s is \"%.40s\", must be a number from %g to %g", name,
                       text, min, max);
    return BT_OK;
}

/* ---- the plan ---- */

static bt_status plan_trace(struct bench *b, struct bt_error *err) {
    double speed = 1;
    char *text = NULL;
    size_t n = 0;
    BT_TRY(read_number("trace-speed", b->trace_speed, 1e-6, 1e6, &speed, err));
    BT_TRY(bt_file_read("trace", b->trace, TRACE_BYTES_MAX, &text, &n, err));
    struct bt_error why;
    bt_status status =
        bt_bench_plan_trace(&b->plan, (struct bt_slice){text, n}, speed,
                            b->n_requests ? b->n_requests : BT_BENCH_REQUESTS_MAX, &why);
    free(text);
    return status < 0 ? bt_fail(err, status, "trace \"%.100s\": %.150s", b->trace, why.text)
                      : BT_OK;
}

static bt_status plan(struct bench *b, struct bt_error *err) {
    b->plan.seed = b->seed;
    b->plan.shared_tokens = b->shared_tokens;
    double unused;
    BT_TRY(read_number("slo-ttft-ms", b->slo_ttft, 0, 1e9, &b->slo.ttft_ms, err));
    BT_TRY(read_number("slo-itl-ms", b->slo_itl, 0, 1e9, &b->slo.itl_ms, err));
    BT_TRY(read_number("slo-itl-p99-ms", b->slo_itl_p99, 0, 1e9, &b->slo.itl_p99_ms, err));
    BT_TRY(read_number("slo-e2e-ms", b->slo_e2e, 0, 1e9, &b->slo.e2e_ms, err));
    BT_TRY(read_number("min-goodput", b->goodput_text, 0, 1, &b->goodput_min, err));
    BT_TRY(read_number("temperature", b->server.temperature, 0, 2, &unused, err));
    if (b->trace)
        return plan_trace(b, err);
    BT_TRY(read_number("rate", b->rate_text, 1e-3, 1e6, &b->rate.per_s, err));
    b->rate.arrival = (enum bt_bench_arrival)b->arrival;
    double n = b->n_requests ? b->n_requests : b->seconds ? b->seconds * b->rate.per_s : 100;
    b->rate.n_requests = n < 1                       ? 1
                         : n > BT_BENCH_REQUESTS_MAX ? BT_BENCH_REQUESTS_MAX
                                                     : (uint32_t)n;
    BT_TRY(bt_bench_plan_rate(&b->plan, &b->rate, err));
    if (b->warmup >= b->plan.n_items)
        return bt_fail(err, BT_E_INVALID,
                       "warmup is %" PRIu32 ", must be below the %" PRIu32 " requests", b->warmup,
                       b->plan.n_items);
    return BT_OK;
}

/* ---- progress ---- */

static void show_progress(void *arg, const struct bt_bench_progress *p) {
    (void)arg;
    char bar[BAR_CELLS + 1];
    uint32_t filled = (uint32_t)((uint64_t)p->n_ended * BAR_CELLS / p->n_total);
    for (uint32_t i = 0; i < BAR_CELLS; i++)
        bar[i] = i < filled ? '#' : '.';
    bar[BAR_CELLS] = 0;
    fprintf(stderr,
            "\r[%s] %" PRIu32 "/%" PRIu32 " done, %" PRIu32 " in flight, %" PRIu32
            " failed, %.0f s \033[K",
            bar, p->n_ended, p->n_total, p->n_in_flight, p->n_failed, (double)p->elapsed_us / 1e6);
    fflush(stderr);
}

/* ---- the command ---- */

static int report(const struct bench *b, const struct bt_bench_load *load) {
    struct bt_bench_report r;
    struct bt_error err;
    bt_status status = BT_OK;
    if (!bt_bench_report_make(load, &b->slo, b->warmup, &r)) {
        fprintf(stderr, "baton bench: out of memory for the report\n");
        return EXIT_FAILED;
    }
    bt_bench_report_print(stdout, load, &b->slo, &r);
    if (b->json)
        status = bt_bench_report_json(b->json, load, &b->slo, &r, &err);
    if (status == BT_OK && b->svg)
        status = bt_bench_report_svg(b->svg, load, &b->slo, &r, &err);
    if (status < 0) {
        fprintf(stderr, "baton bench: %s\n", err.text);
        return EXIT_REFUSED;
    }
    if (load->stopped)
        fprintf(stderr, "baton bench: ended early by Ctrl-C\n");
    bool good = r.n_ok && (double)r.n_in_slo >= b->goodput_min * r.n_requests;
    return good && !load->stopped ? 0 : EXIT_FAILED;
}

static int run(struct bench *b) {
    struct bt_error err;
    b->server.chat = b->endpoint == 1;
    b->server.ignore_eos = !b->no_ignore_eos;
    struct bt_bench_load load = {.server = b->server, .plan = &b->plan};
    bool shown = b->progress == PROGRESS_ON || (b->progress == PROGRESS_AUTO && isatty(2));
    if (shown)
        load.on_progress = show_progress;
    bt_status status = plan(b, &err);
    if (status == BT_OK)
        status = bt_bench_load_run(&load, &err);
    if (shown && load.results)
        fprintf(stderr, "\n");
    int code = EXIT_REFUSED;
    if (status == BT_OK)
        code = report(b, &load);
    else
        fprintf(stderr, "baton bench: %s\n", err.text);
    bt_bench_load_fini(&load);
    bt_bench_plan_fini(&b->plan);
    return code;
}

int bt_bench_main(int argc, char **argv) {
    struct bench b = {0};
    struct bt_option options[OPTIONS];
    const struct bt_command command = {
        .name = "bench",
        .usage = "baton bench [--url URL] [--rate R] [--requests N]",
        .summary =
            "Sends requests to an OpenAI-compatible server at their own pace and says how long "
            "they took:\n"
            "time to first token, inter-token latency, end to end (mean, p50, p90, p99), and "
            "goodput under bounds.\n"
            "Ctrl-C ends it early and reports what there is.",
        .example = "  baton bench --rate 4 --seconds 30 --slo-ttft-ms 500 --slo-itl-ms 25 "
                   "--svg load.svg\n"
                   "  baton bench --url https://host:8000 --trace trace.jsonl --json load.json",
        .options = options,
        .n_options = fill_options(&b, options),
    };
    struct bt_error err;
    bt_status status = bt_config_parse(&command, argc, argv, &err);
    if (status == BT_DONE)
        return 0;
    if (status < 0) {
        fprintf(stderr, "baton bench: %s\n", err.text);
        return EXIT_REFUSED;
    }
    return run(&b);
}

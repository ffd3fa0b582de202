/* Draws the router, both pools and the last requests into lines of text. */
#include "cli/top_frame.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cli/bars.h"

enum {
    PUT_BYTES = 1024,
    WORKER_LINES = 3,
    LABEL_CELLS = 6,
    STAGE_CELLS = 16,
    REQUEST_LINES_MIN = 5, /* pools leave the requests so much */
};

struct frame {
    char *out;
    size_t n;
    unsigned columns, rows, column, row, limit; /* limit: nothing is put past this column */
    bool unicode, terminal, full;
};

/* ---- writing ---- */

static void raw(struct frame *f, const char *text) {
    size_t n = strlen(text);
    if (f->n + n >= BT_TOP_BYTES)
        return;
    memcpy(f->out + f->n, text, n + 1);
    f->n += n;
}

static void style(struct frame *f, const char *code) {
    if (f->terminal && !f->full)
        raw(f, code);
}

/* The bytes of the character at s, 1 for what is none. */
static size_t character(const char *s) {
    unsigned char c = (unsigned char)*s;
    size_t n = c < 0x80 ? 1 : c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
    for (size_t i = 1; i < n; i++)
        if (((unsigned char)s[i] & 0xc0) != 0x80)
            return 1;
    return n;
}

/* A name from the network may hold anything: only what fills one cell of this terminal passes. */
static void put(struct frame *f, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(struct frame *f, const char *format, ...) {
    char text[PUT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (const char *s = text; *s && f->column < f->limit && !f->full;) {
        char one[8] = "?";
        size_t n = character(s);
        unsigned char c = (unsigned char)*s;
        if (c >= 0x20 && c != 0x7f && (c < 0x80 || (f->unicode && n > 1 && c != 0xc2))) {
            memcpy(one, s, n);
            one[n] = 0;
        }
        raw(f, one);
        f->column++;
        s += n;
    }
}

static void to_column(struct frame *f, unsigned column) {
    while (f->column < column && f->column < f->columns && !f->full) {
        raw(f, " ");
        f->column++;
    }
}

static void end_line(struct frame *f) {
    if (f->full)
        return;
    style(f, "\033[0m\033[K");
    f->column = 0;
    f->limit = f->columns;
    if (++f->row == f->rows)
        f->full = true;
    else
        raw(f, "\n");
}

/* ---- numbers ---- */

static double number(const json_t *object, const char *key) {
    double value = json_number_value(json_object_get(object, key));
    return isfinite(value) && value > 0 ? value < 1e15 ? value : 1e15 : 0;
}

static const char *string(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static const char *ms_text(double ms, char out[32]) {
    if (ms <= 0)
        snprintf(out, 32, "-");
    else if (ms < 0.1)
        snprintf(out, 32, "<0.1 ms");
    else if (ms < 1000)
        snprintf(out, 32, ms < 10 ? "%.1f ms" : "%.0f ms", ms);
    else
        snprintf(out, 32, "%.2f s", ms / 1000);
    return out;
}

static const char *span_text(double s, char out[32]) {
    if (s < 60)
        snprintf(out, 32, "%.0f s", s);
    else if (s < 3600)
        snprintf(out, 32, "%.0f min", floor(s / 60));
    else
        snprintf(out, 32, "%.0f h", floor(s / 3600));
    return out;
}

/* ---- the top ---- */

static void put_title(struct frame *f, const json_t *s, bool lost) {
    char uptime[32];
    bool ready = json_is_true(json_object_get(s, "ready"));
    const char *state = lost                                            ? "no contact"
                        : json_is_true(json_object_get(s, "draining"))  ? "draining"
                        : ready                                         ? "serving"
                        : json_array_size(json_object_get(s, "decode")) ? "no prefill worker"
                                                                        : "no decode worker";
    style(f, "\033[1m");
    put(f, "Baton  %s", string(s, "model"));
    style(f, "\033[0m");
    char right[128];
    snprintf(right, sizeof right, "%s, up %s, %.0f served, %.40s", s ? state : "connecting",
             span_text(number(s, "uptime_s"), uptime), number(s, "ended_ok"), string(s, "version"));
    unsigned n = (unsigned)strlen(right);
    if (f->column + 2 + n <= f->columns) {
        to_column(f, f->columns - n);
        put(f, "%s", right);
    } else {
        put(f, "  %s", right);
    }
    end_line(f);
}

static void put_latency(struct frame *f, const char *name, const json_t *q) {
    static const char *const keys[] = {"p50", "p95", "p99"};
    char text[32];
    style(f, "\033[1m");
    put(f, "%-5s", name);
    style(f, "\033[0m");
    for (size_t i = 0; i < 3; i++)
        put(f, "%s %-8s", keys[i], ms_text(number(q, keys[i]), text));
}

static void put_numbers(struct frame *f, const json_t *s) {
    put_latency(f, "TTFT", json_object_get(s, "ttft_ms"));
    put(f, "%7.1f requests/s  queue %.0f", number(s, "requests_per_s"), number(s, "queued"));
    end_line(f);
    put_latency(f, "ITL", json_object_get(s, "itl_ms"));
    put(f, "%7.0f tokens/s  streaming %.0f of %.0f", number(s, "tokens_per_s"),
        number(s, "streaming"), number(s, "live"));
    end_line(f);
}

/* ---- pools ---- */

struct pool {
    const json_t *workers, *stats;
    const char *role;
    unsigned n_shown;
};

static void put_empty(struct frame *f, const struct pool *pool, unsigned line) {
    bool always = !strcmp(string(pool->stats, "disaggregate"), "always");
    if (line == 0)
        put(f, "none attached");
    else if (line == 1 && pool->role[0] == 'd')
        put(f, "nothing can be served; start one:");
    else if (line == 1)
        put(f,
            always ? "nothing can be served; start one:" : "decode workers compute the prompts;");
    else if (line == 2)
        put(f, "baton %s --router %s", pool->role, string(pool->stats, "registry"));
}

static void put_load(struct frame *f, const struct pool *pool, const json_t *w, unsigned cells) {
    char bar[BT_BAR_BYTES];
    bool prefill = pool->role[0] == 'p';
    double load = number(w, prefill ? "backlog_tokens" : "running");
    double most = prefill ? number(pool->stats, "prefill_backlog_tokens") : number(w, "max_seqs");
    put(f, "load  %s %.0f", bt_bar(bar, most > 0 ? load / most : 0, cells, true, f->unicode), load);
    put(f, prefill ? " tokens" : " of %.0f", most);
}

static void put_pages(struct frame *f, const json_t *w, unsigned cells) {
    char bar[BT_BAR_BYTES], size[32];
    const json_t *p = json_object_get(w, "pages");
    double total = number(p, "total");
    const double shares[] = {total > 0 ? number(p, "active") / total : 0,
                             total > 0 ? number(p, "cached") / total : 0,
                             total > 0 ? number(p, "free") / total : 0};
    put(f, "pages %s %.0f%% ", bt_bar_parts(bar, shares, 3, cells, f->unicode),
        total > 0 ? 100 * number(p, "active") / total : 0);
    put(f, "%s/s", bt_size_text(number(w, "link_bytes_per_s"), size));
}

static void put_worker(struct frame *f, const struct pool *pool, const json_t *w, unsigned line,
                       unsigned width) {
    unsigned cells = width > LABEL_CELLS + 15 ? width - LABEL_CELLS - 15 : 4;
    char p50[32], p99[32];
    if (line == 0) {
        const char *state =
            json_is_true(json_object_get(w, "draining")) ? "draining" : string(w, "state");
        style(f, "\033[1m");
        put(f, "%.*s", 16, string(w, "name"));
        style(f, "\033[0m");
        put(f, " %s, step %s (p99 %s)", state, ms_text(number(w, "step_p50_ms"), p50),
            ms_text(number(w, "step_p99_ms"), p99));
    } else if (line == 1) {
        put_load(f, pool, w, cells);
    } else {
        put_pages(f, w, cells);
    }
}

/* Line `line` of a pool: its title, then three for each worker. */
static void put_pool_line(struct frame *f, const struct pool *pool, unsigned line, unsigned from,
                          unsigned width) {
    size_t n = json_array_size(pool->workers);
    to_column(f, from);
    f->limit = from + width < f->columns ? from + width : f->columns;
    unsigned i = line ? (line - 1) / WORKER_LINES : 0;
    if (line == 0) {
        style(f, "\033[1m");
        put(f, pool->role[0] == 'p' ? "PREFILL computes prompts (arithmetic)"
                                    : "DECODE makes tokens (memory)");
        style(f, "\033[0m");
        if (n > pool->n_shown)
            put(f, ", %zu more", n - pool->n_shown);
    } else if (!n) {
        put_empty(f, pool, line - 1);
    } else if (i < n && i < pool->n_shown) {
        put_worker(f, pool, json_array_get(pool->workers, i), (line - 1) % WORKER_LINES, width);
    }
    f->limit = f->columns;
}

/* So many workers of each pool have room. */
static unsigned room_for_workers(const struct frame *f, unsigned stacked) {
    unsigned used = f->row + REQUEST_LINES_MIN + 1;
    unsigned left = f->rows > used ? (f->rows - used) / stacked : 0;
    return left > WORKER_LINES ? (left - 1) / WORKER_LINES : 1;
}

static void put_pools(struct frame *f, const json_t *s) {
    struct pool pools[] = {{json_object_get(s, "prefill"), s, "prefill", 1},
                           {json_object_get(s, "decode"), s, "decode", 1}};
    bool beside = f->columns >= 76;
    unsigned lines = 0, room = room_for_workers(f, beside ? 1 : 2);
    for (size_t p = 0; p < 2; p++) {
        size_t n = json_array_size(pools[p].workers);
        pools[p].n_shown = n < room ? n ? (unsigned)n : 1 : room;
        unsigned needed = 1 + WORKER_LINES * pools[p].n_shown;
        lines = needed > lines ? needed : lines;
    }
    unsigned width = beside ? f->columns / 2 - 1 : f->columns;
    for (size_t p = 0; p < (beside ? 1u : 2u); p++) {
        unsigned n = beside ? lines : 1 + WORKER_LINES * pools[p].n_shown;
        for (unsigned line = 0; line < n; line++) {
            put_pool_line(f, &pools[p], line, 0, width);
            if (beside)
                put_pool_line(f, &pools[1], line, f->columns / 2 + 1, width);
            end_line(f);
        }
    }
}

/* ---- requests ---- */

/* In the order in which a request meets them. */
static const struct {
    const char *key;
    char letter;
} stages[] = {{"queue_ms", 'q'},   {"placement_ms", 'a'}, {"prefill_wait_ms", 'w'},
              {"prefill_ms", 'P'}, {"transfer_ms", 't'},  {"join_ms", 'j'},
              {"decode_ms", 'd'},  {"moved_ms", 'm'},     {"network_ms", 'n'}};
enum { N_STAGES = sizeof stages / sizeof stages[0] };

static const char legend[] =
    "q:queue a:place w:wait P:prefill t:transfer j:join d:decode m:moved n:network";

/* Each cell shows the stage that it belongs to; the whole bar is the whole request. */
static void put_stages(struct frame *f, const json_t *record) {
    char bar[STAGE_CELLS + 1];
    const json_t *times = json_object_get(record, "stages");
    double sum = 0, before = 0;
    unsigned used = 0;
    /* Of a live request the network's share is not known: it is the remainder. */
    size_t n = strcmp(string(record, "state"), "ended") == 0 ? N_STAGES : N_STAGES - 1;
    for (size_t i = 0; i < n; i++)
        sum += number(times, stages[i].key);
    for (size_t i = 0; i < n && sum > 0; i++) {
        before += number(times, stages[i].key);
        unsigned end = (unsigned)(before / sum * STAGE_CELLS + 0.5);
        for (; used < end && used < STAGE_CELLS; used++)
            bar[used] = stages[i].letter;
    }
    bar[used] = 0;
    put(f, "%-*s", STAGE_CELLS, bar);
}

static void put_request(struct frame *f, const json_t *r) {
    char ttft[32], itl[32], age[32];
    const char *state = string(r, "state"), *status = string(r, "status");
    bool ended = !strcmp(state, "ended");
    const json_t *verdict = json_object_get(r, "verdict");
    put(f, "%-7s%5.0f>%-5.0f%8s %7s  ", ended ? span_text(number(r, "age_us") / 1e6, age) : "now",
        number(r, "prompt_tokens"), number(r, "generated_tokens"),
        ms_text(number(r, "ttft_us") / 1e3, ttft), ms_text(number(r, "itl_mean_us") / 1e3, itl));
    put_stages(f, r);
    put(f, "  %s", !ended ? state : strcmp(status, "ok") != 0 ? status : string(verdict, "text"));
    end_line(f);
}

static void put_requests(struct frame *f, const json_t *requests) {
    const json_t *list = json_object_get(requests, "requests");
    style(f, "\033[2m");
    put(f, "%-7s%-11s%8s %7s  %-*s  %s", "ago", "  tokens", "TTFT", "ITL", STAGE_CELLS, "stages",
        "verdict");
    end_line(f);
    if (!json_array_size(list)) {
        put(f, "no request yet: baton chat \"What is a KV cache?\"");
        end_line(f);
    }
    for (size_t i = 0; i < json_array_size(list) && f->row + 1 < f->rows; i++)
        put_request(f, json_array_get(list, i));
    style(f, "\033[2m");
    put(f, "%s", legend);
    end_line(f);
}

size_t bt_top_frame(const struct bt_top_view *view, const json_t *stats, const json_t *requests,
                    char out[BT_TOP_BYTES]) {
    struct frame f = {
        .out = out,
        .columns = view->columns < BT_TOP_COLUMNS_MAX ? view->columns : BT_TOP_COLUMNS_MAX,
        .rows = view->rows < BT_TOP_ROWS_MAX ? view->rows : BT_TOP_ROWS_MAX,
        .unicode = view->unicode,
        .terminal = view->terminal,
    };
    f.limit = f.columns;
    f.full = !f.rows || !f.columns;
    out[0] = 0;
    put_title(&f, stats, view->notice != NULL);
    if (view->notice)
        put(&f, "%s", view->notice);
    end_line(&f);
    if (stats) {
        put_numbers(&f, stats);
        end_line(&f);
        put_pools(&f, stats);
        end_line(&f);
        put_requests(&f, requests);
    }
    return f.n;
}

/* Writes the present state of the router and of both pools as JSON. */
#include "router/stats_page.h"

#include <inttypes.h>
#include <time.h>

#include "router/shell.h"

enum { READ_US = 1000000 };

void bt_stats_init(struct bt_stats *stats, uint64_t now_us) {
    *stats = (struct bt_stats){0};
    bt_stats_window_init(&stats->window, now_us);
}

void bt_stats_tick(struct bt_shell *shell) {
    struct bt_stats *stats = &shell->stats;
    struct bt_worker_view view;
    if (shell->now_us - stats->read_us < READ_US)
        return;
    stats->read_us = shell->now_us;
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++)
        if (bt_router_core_worker(shell->core, shell->now_us, i, &view))
            bt_stats_growth_read(&stats->links[i], shell->now_us, view.incarnation.hi,
                                 view.incarnation.lo, view.status.kv_bytes);
}

static void add_ms(struct bt_text_buffer *out, const char *key, double us) {
    bt_text_buffer_printf(out, ",\"%s\":%.3f", key, us / 1e3);
}

static void add_quantiles(struct bt_text_buffer *out, const char *key, const struct bt_shell *shell,
                          enum bt_stats_kind kind) {
    struct bt_stats_quantiles q =
        bt_stats_window_quantiles(&shell->stats.window, shell->now_us, kind);
    bt_text_buffer_printf(out, ",\"%s\":{\"n\":%" PRIu64, key, q.n);
    add_ms(out, "p50", q.p50_us);
    add_ms(out, "p95", q.p95_us);
    add_ms(out, "p99", q.p99_us);
    bt_text_buffer_add_literal(out, "}");
}

static void add_latency(struct bt_text_buffer *out, const struct bt_shell *shell) {
    struct bt_stats_rates rates = bt_stats_window_rates(&shell->stats.window, shell->now_us);
    const struct bt_router_counters *c = bt_router_core_counters(shell->core);
    uint32_t mean_prompt = c->submitted ? (uint32_t)(c->prompt_tokens / c->submitted) : 1;
    bt_text_buffer_printf(out,
                          ",\"requests_per_s\":%.2f,\"prompt_tokens_per_s\":%.1f"
                          ",\"tokens_per_s\":%.1f",
                          rates.requests, rates.prompt_tokens, rates.tokens);
    add_quantiles(out, "ttft_ms", shell, BT_STATS_TTFT);
    add_quantiles(out, "itl_ms", shell, BT_STATS_ITL);
    /* 0 while nothing is set and nothing learnt. */
    add_ms(out, "ttft_target_ms", (double)bt_router_core_ttft_target_us(shell->core, mean_prompt));
    add_ms(out, "itl_target_ms", (double)bt_router_core_itl_target_us(shell->core));
}

static void add_counts(struct bt_text_buffer *out, const struct bt_shell *shell) {
    const struct bt_router_counters *c = bt_router_core_counters(shell->core);
    bt_text_buffer_printf(out,
                          ",\"live\":%" PRIu64 ",\"queued\":%" PRIu64 ",\"streaming\":%" PRIu64,
                          c->live, c->queued, c->streaming);
    bt_text_buffer_printf(
        out,
        ",\"ended_ok\":%" PRIu64 ",\"ended_cancelled\":%" PRIu64 ",\"ended_failed\":%" PRIu64
        ",\"moved\":%" PRIu64 ",\"retries\":%" PRIu64,
        c->ended_ok, c->ended_cancelled, c->ended_failed + c->ended_deadline,
        c->moved_preempted + c->moved_drained + c->moved_death + c->moved_link, c->retries);
    bt_text_buffer_printf(out, ",\"prompt_pages\":%" PRIu64 ",\"prompt_pages_held\":%" PRIu64,
                          c->pages_prompt, c->pages_held);
}

static void add_pages(struct bt_text_buffer *out, const struct bt_census *c) {
    bt_text_buffer_printf(out,
                          ",\"pages\":{\"total\":%" PRIu32 ",\"active\":%" PRIu32
                          ",\"cached\":%" PRIu32 ",\"free\":%" PRIu32 ",\"reserved\":%" PRIu32
                          ",\"filling\":%" PRIu32 ",\"armed\":%" PRIu32 ",\"landed\":%" PRIu32
                          ",\"live\":%" PRIu32 ",\"quarantined\":%" PRIu32 "}",
                          c->total, c->total - c->free - c->cached, c->cached, c->free, c->reserved,
                          c->filling, c->armed, c->landed, c->live, c->quarantined);
}

static void add_worker(struct bt_text_buffer *out, const struct bt_worker_view *w,
                       double link_bytes_per_s) {
    const struct bt_msg_status *s = &w->status;
    bt_text_buffer_add_literal(out, "{\"name\":");
    bt_text_buffer_add_json(out, w->name);
    bt_text_buffer_printf(out, ",\"state\":\"%s\",\"draining\":%s", bt_worker_state_name(w->state),
                          s->draining ? "true" : "false");
    bt_text_buffer_printf(out,
                          ",\"requests\":%" PRIu32 ",\"running\":%" PRIu32 ",\"max_seqs\":%" PRIu32
                          ",\"backlog_tokens\":%" PRIu32 ",\"links\":%" PRIu32,
                          w->requests, s->running, w->max_seqs, s->backlog_tokens, s->links);
    add_ms(out, "step_ms", s->step_us);
    add_ms(out, "step_p50_ms", s->step_p50_us);
    add_ms(out, "step_p99_ms", s->step_p99_us);
    add_ms(out, "silent_ms", (double)w->silent_us);
    bt_text_buffer_printf(out, ",\"link_bytes_per_s\":%.0f", link_bytes_per_s);
    add_pages(out, &s->census);
    bt_text_buffer_add_literal(out, "}");
}

static void add_pool(struct bt_text_buffer *out, const struct bt_shell *shell, enum bt_role role) {
    struct bt_worker_view view;
    uint32_t n = 0;
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++) {
        if (!bt_router_core_worker(shell->core, shell->now_us, i, &view) || view.role != role)
            continue;
        bt_text_buffer_add(out, ",", n++ > 0);
        add_worker(out, &view, bt_stats_growth_per_second(&shell->stats.links[i]));
    }
}

static void add_router(struct bt_text_buffer *out, const struct bt_shell *shell) {
    static const char *const modes[] = {"auto", "always", "never"};
    const struct bt_router_options *o = shell->options;
    bool ready = bt_router_core_ready(shell->core) && !shell->draining;
    bt_text_buffer_add_literal(out, "\"version\":\"" BT_VERSION "\",\"model\":");
    bt_text_buffer_add_json(out, shell->model);
    /* Without a template questions go to /v1/completions. */
    bt_text_buffer_printf(out, ",\"chat\":%s", shell->text.chat ? "true" : "false");
    bt_text_buffer_printf(out,
                          ",\"started_s\":%" PRId64 ",\"uptime_s\":%" PRId64
                          ",\"ready\":%s,\"draining\":%s,\"disaggregate\":\"%s\"",
                          shell->started_s, (int64_t)time(NULL) - shell->started_s,
                          ready ? "true" : "false", shell->draining ? "true" : "false",
                          modes[o->disaggregate]);
    bt_text_buffer_printf(out, ",\"max_queued\":%" PRIu32 ",\"prefill_backlog_tokens\":%" PRIu32,
                          o->max_queued, o->prefill_backlog_tokens);
    /* Where workers attach, so that a page without any can say how to start one. */
    bt_text_buffer_add_literal(out, ",\"registry\":");
    bt_text_buffer_add_json(out, bt_rpc_server_address(shell->rpc));
}

void bt_stats_on_page(void *arg, struct bt_http_call *call) {
    struct bt_shell *shell = arg;
    struct bt_text_buffer body = {0};
    bt_shell_now(shell);
    bt_text_buffer_add_literal(&body, "{");
    add_router(&body, shell);
    add_latency(&body, shell);
    add_counts(&body, shell);
    bt_text_buffer_add_literal(&body, ",\"prefill\":[");
    add_pool(&body, shell, BT_ROLE_PREFILL);
    bt_text_buffer_add_literal(&body, "],\"decode\":[");
    add_pool(&body, shell, BT_ROLE_DECODE);
    bt_text_buffer_add_literal(&body, "]}\n");
    bt_http_call_reply(call, body.failed ? 503 : 200, "application/json",
                       (struct bt_slice){body.data, body.failed ? 0 : body.n_bytes}, NULL);
    bt_text_buffer_fini(&body);
}

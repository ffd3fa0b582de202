/* Writes the core's counters, the workers' page states and the client's latencies as Prometheus
 * text. */
#include "router/metrics_export.h"

#include <event2/buffer.h>

#include "common/base/metrics.h"
#include "router/grpc_door.h"
#include "router/http_door.h"
#include "router/shell.h"

static const char *role_name(enum bt_role role) {
    return role == BT_ROLE_PREFILL ? "prefill" : "decode";
}

struct views {
    struct bt_worker_view rows[BT_MAX_WORKERS];
    size_t n;
};

static void collect(const struct bt_shell *shell, struct views *views) {
    views->n = 0;
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++)
        if (bt_router_core_worker(shell->core, shell->now_us, i, &views->rows[views->n]))
            views->n++;
}

static void write_pages(struct evbuffer *out, const struct views *views) {
    bt_metrics_family(out, "baton_kv_pages", BT_METRIC_GAUGE,
                      "Pages of a worker's KV cache by state; they add up to its pool.");
    for (size_t i = 0; i < views->n; i++) {
        const struct bt_worker_view *w = &views->rows[i];
        const struct bt_census *c = &w->status.census;
        const struct {
            const char *name;
            uint32_t pages;
        } states[] = {{"free", c->free},         {"cached", c->cached},
                      {"reserved", c->reserved}, {"filling", c->filling},
                      {"armed", c->armed},       {"landed", c->landed},
                      {"live", c->live},         {"quarantined", c->quarantined}};
        for (size_t s = 0; s < sizeof states / sizeof states[0]; s++) {
            const struct bt_label labels[] = {
                {"worker", w->name}, {"role", role_name(w->role)}, {"state", states[s].name}};
            bt_metrics_u64(out, "baton_kv_pages", labels, 3, states[s].pages);
        }
    }
}

enum worker_value {
    W_KV_BYTES,
    W_RUNNING,
    W_BACKLOG,
    W_STEP,
    W_REFUSED,
    W_LINKS,
    W_UP,
    W_REQUESTS
};

static void write_worker_value(struct evbuffer *out, const struct views *views, const char *name,
                               enum bt_metric_kind kind, const char *help,
                               enum worker_value which) {
    bt_metrics_family(out, name, kind, help);
    for (size_t i = 0; i < views->n; i++) {
        const struct bt_worker_view *w = &views->rows[i];
        const struct bt_label labels[] = {{"worker", w->name}, {"role", role_name(w->role)}};
        const struct bt_msg_status *s = &w->status;
        const uint64_t values[] = {
            s->kv_bytes,       s->running, s->backlog_tokens,        s->step_us,
            s->refused_frames, s->links,   w->state == BT_WORKER_UP, w->requests};
        if (which == W_STEP)
            bt_metrics_double(out, name, labels, 2, (double)s->step_us / 1e6);
        else
            bt_metrics_u64(out, name, labels, 2, values[which]);
    }
}

static void write_step_quantiles(struct evbuffer *out, const struct views *views) {
    bt_metrics_family(out, "baton_step_seconds", BT_METRIC_SUMMARY,
                      "Duration that this share of a worker's last 1,024 steps does not exceed.");
    for (size_t i = 0; i < views->n; i++) {
        const struct bt_worker_view *w = &views->rows[i];
        const struct {
            const char *quantile;
            uint32_t us;
        } rows[] = {{"0.5", w->status.step_p50_us}, {"0.99", w->status.step_p99_us}};
        for (size_t r = 0; r < 2; r++) {
            const struct bt_label labels[] = {
                {"worker", w->name}, {"role", role_name(w->role)}, {"quantile", rows[r].quantile}};
            bt_metrics_double(out, "baton_step_seconds", labels, 3, (double)rows[r].us / 1e6);
        }
    }
}

static void write_workers(struct evbuffer *out, const struct views *views) {
    write_pages(out, views);
    write_worker_value(out, views, "baton_kv_transfer_bytes_total", BT_METRIC_COUNTER,
                       "KV bytes received (decode) or sent (prefill) on links.", W_KV_BYTES);
    write_worker_value(out, views, "baton_link_refused_total", BT_METRIC_COUNTER,
                       "Link frames and messages refused.", W_REFUSED);
    write_worker_value(out, views, "baton_links", BT_METRIC_GAUGE, "KV links up.", W_LINKS);
    write_worker_value(out, views, "baton_worker_up", BT_METRIC_GAUGE,
                       "1 where the worker is attached and speaks.", W_UP);
    write_worker_value(out, views, "baton_worker_requests", BT_METRIC_GAUGE,
                       "Requests of this router with a part on the worker.", W_REQUESTS);
    write_worker_value(out, views, "baton_worker_running", BT_METRIC_GAUGE,
                       "Sequences in the worker's batch.", W_RUNNING);
    write_worker_value(out, views, "baton_worker_backlog_tokens", BT_METRIC_GAUGE,
                       "Prompt tokens accepted and not yet computed.", W_BACKLOG);
    write_worker_value(out, views, "baton_worker_step_seconds", BT_METRIC_GAUGE,
                       "Mean duration of the last steps.", W_STEP);
    write_step_quantiles(out, views);
}

struct row {
    const char *name, *help;
    enum bt_metric_kind kind;
    uint64_t value;
};

static void write_rows(struct evbuffer *out, const struct row *rows, size_t n_rows) {
    for (size_t i = 0; i < n_rows; i++) {
        bt_metrics_family(out, rows[i].name, rows[i].kind, rows[i].help);
        bt_metrics_u64(out, rows[i].name, NULL, 0, rows[i].value);
    }
}

static void write_core(struct evbuffer *out, const struct bt_router_counters *c) {
    const struct row rows[] = {
        {"baton_requests_live", "Requests in the router.", BT_METRIC_GAUGE, c->live},
        {"baton_requests_queued", "Of them, waiting for a place.", BT_METRIC_GAUGE, c->queued},
        {"baton_requests_streaming", "Of them, decoding.", BT_METRIC_GAUGE, c->streaming},
        {"baton_tokens_stored", "Tokens of live requests.", BT_METRIC_GAUGE, c->tokens_stored},
        {"baton_token_budget", "Tokens that live requests may have.", BT_METRIC_GAUGE,
         c->token_budget},
        {"baton_prefix_blocks", "Blocks known to be cached on workers.", BT_METRIC_GAUGE,
         c->prefix_blocks},
        {"baton_requests_total", "Requests accepted.", BT_METRIC_COUNTER, c->submitted},
        {"baton_prompt_tokens_total", "Prompt tokens accepted.", BT_METRIC_COUNTER,
         c->prompt_tokens},
        {"baton_generated_tokens_total", "Tokens given to clients.", BT_METRIC_COUNTER,
         c->generated_tokens},
        {"baton_attempts_total", "Placements of requests.", BT_METRIC_COUNTER, c->attempts},
        {"baton_retries_total", "Refusals and failures tried again.", BT_METRIC_COUNTER,
         c->retries},
        {"baton_retries_held_back_total", "Of them, made to wait for the retry budget.",
         BT_METRIC_COUNTER, c->retries_held_back},
        {"baton_requests_poisoned_total", "Failed because two workers died under them.",
         BT_METRIC_COUNTER, c->poisoned},
        {"baton_tokens_duplicate_total", "Second copies dropped.", BT_METRIC_COUNTER,
         c->tokens_duplicate},
        {"baton_tokens_stale_total", "Tokens of other attempts dropped.", BT_METRIC_COUNTER,
         c->tokens_stale},
        {"baton_tokens_held_total", "Tokens that came before their turn.", BT_METRIC_COUNTER,
         c->tokens_held},
        {"baton_tokens_missing_total",
         "Attempts given up because the decode worker left a token out.", BT_METRIC_COUNTER,
         c->incomplete},
        {"baton_worker_joins_total", "Workers that joined.", BT_METRIC_COUNTER, c->joins},
        {"baton_worker_joins_refused_total", "Workers refused at join.", BT_METRIC_COUNTER,
         c->joins_refused},
        {"baton_worker_deaths_total", "Workers found dead.", BT_METRIC_COUNTER, c->deaths},
        {"baton_worker_leaves_total", "Workers that left after their drain.", BT_METRIC_COUNTER,
         c->leaves},
        {"baton_worker_suspects_total", "Workers found silent.", BT_METRIC_COUNTER, c->suspects},
        {"baton_loop_stalls_total", "Times this router's own loop stood still.", BT_METRIC_COUNTER,
         c->stalls},
        {"baton_prefill_lost_asked_total", "Decode workers asked after a prefill worker's loss.",
         BT_METRIC_COUNTER, c->pgone_asked},
        {"baton_prefill_lost_live_total", "Of them, with nothing lost.", BT_METRIC_COUNTER,
         c->pgone_live},
        {"baton_prefix_dropped_total", "Blocks that the prefix table had no room for.",
         BT_METRIC_COUNTER, c->prefix_dropped},
        {"baton_prefix_holes_total", "Workers' block reports with a gap.", BT_METRIC_COUNTER,
         c->prefix_holes},
        {"baton_prompt_pages_total", "Prompt pages of placed requests.", BT_METRIC_COUNTER,
         c->pages_prompt},
        {"baton_prompt_pages_held_total", "Of them, found on the decode worker.", BT_METRIC_COUNTER,
         c->pages_held},
        {"baton_request_kv_bytes_total", "KV bytes moved for requests that ended.",
         BT_METRIC_COUNTER, c->kv_bytes},
    };
    write_rows(out, rows, sizeof rows / sizeof rows[0]);
}

static void write_shell(struct evbuffer *out, const struct bt_shell *shell) {
    const struct row rows[] = {
        {"baton_streams_blocked", "Streams whose client does not read.", BT_METRIC_GAUGE,
         shell->sse.n_blocked},
        {"baton_http_requests_total", "Requests for generated text.", BT_METRIC_COUNTER,
         shell->n_http_requests},
        {"baton_http_refused_total", "Of them, refused.", BT_METRIC_COUNTER, shell->n_http_refused},
        {"baton_sse_sends_total", "send() calls on streams.", BT_METRIC_COUNTER,
         shell->sse.n_sends},
        {"baton_sse_bytes_total", "Bytes sent on streams.", BT_METRIC_COUNTER, shell->sse.n_bytes},
        {"baton_sse_stuck_total", "Streams cut because the client did not read.", BT_METRIC_COUNTER,
         shell->sse.n_stuck},
    };
    write_rows(out, rows, sizeof rows / sizeof rows[0]);
}

struct labelled {
    const char *value;
    uint64_t n;
};

static void write_labelled(struct evbuffer *out, const char *name, const char *help,
                           const char *label, const struct labelled *rows, size_t n_rows) {
    bt_metrics_family(out, name, BT_METRIC_COUNTER, help);
    for (size_t i = 0; i < n_rows; i++) {
        const struct bt_label labels[] = {{label, rows[i].value}};
        bt_metrics_u64(out, name, labels, 1, rows[i].n);
    }
}

static void write_reasons(struct evbuffer *out, const struct bt_router_counters *c) {
    const struct labelled refused[] = {{"full", c->refused_full},
                                       {"invalid", c->refused_invalid},
                                       {"unavailable", c->refused_unavailable}};
    const struct labelled ended[] = {{"ok", c->ended_ok},
                                     {"cancelled", c->ended_cancelled},
                                     {"deadline", c->ended_deadline},
                                     {"failed", c->ended_failed}};
    const struct labelled moved[] = {{"preempted", c->moved_preempted},
                                     {"drained", c->moved_drained},
                                     {"death", c->moved_death},
                                     {"link", c->moved_link}};
    struct labelled placed[BT_PLACEMENT_COUNT];
    for (size_t i = 0; i < BT_PLACEMENT_COUNT; i++)
        placed[i] = (struct labelled){bt_placement_name((enum bt_placement)i), c->placed[i]};
    write_labelled(out, "baton_requests_refused_total", "Requests the router did not take.",
                   "reason", refused, 3);
    write_labelled(out, "baton_requests_ended_total", "Requests that ended.", "reason", ended, 4);
    write_labelled(out, "baton_requests_moved_total", "Requests that went on elsewhere.", "reason",
                   moved, 4);
    write_labelled(out, "baton_placements_total", "Placements by reason.", "placement", placed,
                   BT_PLACEMENT_COUNT);
    bt_metrics_family(out, "baton_requests_slow_total", BT_METRIC_COUNTER,
                      "Requests that missed a target, by phase and the stage that took most.");
    for (size_t p = 1; p < BT_SLOW_PHASE_COUNT; p++) {
        for (size_t s = 1; s < BT_SLOW_STAGE_COUNT; s++) {
            const struct bt_label labels[] = {{"phase", bt_slow_phase_name((enum bt_slow_phase)p)},
                                              {"stage", bt_slow_stage_name((enum bt_slow_stage)s)}};
            bt_metrics_u64(out, "baton_requests_slow_total", labels, 2, c->slow[p][s]);
        }
    }
}

void bt_metrics_on_page(void *arg, struct bt_http_call *call) {
    struct bt_shell *shell = arg;
    struct views views;
    struct evbuffer *out = evbuffer_new();
    bt_shell_now(shell);
    collect(shell, &views);
    if (out) {
        const struct bt_router_counters *counters = bt_router_core_counters(shell->core);
        write_core(out, counters);
        write_shell(out, shell);
        bt_http_door_write_metrics(shell, out);
        bt_grpc_door_write_metrics(shell, out);
        write_reasons(out, counters);
        bt_request_times_write(out, &shell->times);
        write_workers(out, &views);
    }
    size_t n = out ? evbuffer_get_length(out) : 0;
    const char *text = n ? (const char *)evbuffer_pullup(out, -1) : NULL;
    bt_http_call_reply(call, text ? 200 : 503, "text/plain; version=0.0.4; charset=utf-8",
                       (struct bt_slice){text ? text : "", text ? n : 0}, NULL);
    if (out)
        evbuffer_free(out);
}

/* Writes what the core remembers of requests and workers as JSON. */
#include "router/debug_pages.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/shell.h"

enum { RECORDS_SHOWN = 100 };

bool bt_debug_find(const struct bt_shell *shell, uint64_t id, struct bt_request_record *out) {
    uint32_t cursor = 0;
    while (bt_router_core_live(shell->core, shell->now_us, &cursor, out))
        if (out->id == id)
            return true;
    for (uint32_t i = 0; bt_router_core_record(shell->core, shell->now_us, i, out); i++)
        if (out->id == id)
            return true;
    return false;
}

struct duration {
    const char *name;
    uint64_t us;
};

static void add_durations(struct bt_text_buffer *out, const struct duration *list, size_t n) {
    for (size_t i = 0; i < n; i++)
        bt_text_buffer_printf(out, ",\"%s_us\":%" PRIu64, list[i].name, list[i].us);
}

void bt_debug_write_stages(struct bt_text_buffer *out, const struct bt_request_record *r) {
    bt_text_buffer_add_literal(out, "{");
    for (int i = 0; i < BT_SPAN_COUNT; i++) {
        bt_text_buffer_printf(out, "\"%s_ms\":", bt_span_name((enum bt_span)i));
        if (r->unknown & 1u << i)
            bt_text_buffer_add_literal(out, "null,");
        else
            bt_text_buffer_printf(out, "%.3f,", (double)r->span_us[i] / 1e3);
    }
    bt_text_buffer_printf(out, "\"total_ms\":%.3f}", (double)r->total_us / 1e3);
}

static void add_name(struct bt_text_buffer *out, const char *key, const char *name) {
    bt_text_buffer_printf(out, ",\"%s\":", key);
    if (*name)
        bt_text_buffer_add_json(out, name);
    else
        bt_text_buffer_add_literal(out, "null");
}

const char *bt_debug_verdict_word(const struct bt_verdict *verdict) {
    static const char *const words[BT_SLOW_PHASE_COUNT] = {"ok", "slow to start", "slow to stream"};
    return words[verdict->phase < BT_SLOW_PHASE_COUNT ? verdict->phase : 0];
}

static void add_verdict(struct bt_text_buffer *out, const struct bt_verdict *verdict) {
    const char *phase = bt_slow_phase_name(verdict->phase),
               *stage = bt_slow_stage_name(verdict->stage);
    const char *advice = verdict->advice ? verdict->advice : "";
    bt_text_buffer_add_literal(out, ",\"verdict\":{\"phase\":");
    bt_text_buffer_add_json(out, phase);
    bt_text_buffer_add_literal(out, ",\"stage\":");
    bt_text_buffer_add_json(out, stage);
    bt_text_buffer_add_literal(out, ",\"advice\":");
    bt_text_buffer_add_json(out, advice);
    bt_text_buffer_add_literal(out, ",\"text\":\"");
    bt_text_buffer_add_string(out, bt_debug_verdict_word(verdict));
    if (verdict->phase != BT_SLOW_NOT) {
        bt_text_buffer_add_literal(out, " (");
        bt_text_buffer_add_escaped(out, stage, strlen(stage));
        bt_text_buffer_add_literal(out, ")");
    }
    if (*advice && verdict->phase != BT_SLOW_NOT) {
        bt_text_buffer_add_literal(out, ": ");
        bt_text_buffer_add_escaped(out, advice, strlen(advice));
    }
    bt_text_buffer_add_literal(out, "\"}");
}

static const char *finish_name(enum bt_finish finish) {
    static const char *const names[] = {"none", "stop", "length", "error"};
    return finish <= BT_FINISH_ERROR ? names[finish] : "none";
}

/* Why a placement is chosen, in words. */
static const char *const reasons[BT_PLACEMENT_COUNT] = {
    [BT_PLACE_NONE] = "not placed",
    [BT_PLACE_SPLIT] = "prefill and decode on workers of their own",
    [BT_PLACE_LOCAL_SHORT] = "little to compute: the decode worker prefills",
    [BT_PLACE_LOCAL_PREFIX] = "the decode worker holds the prompt's prefix: it prefills the rest",
    [BT_PLACE_LOCAL_NEVER] = "the router was told never to disaggregate",
    [BT_PLACE_LOCAL_NO_PREFILL] = "no prefill worker is alive: the decode worker prefills",
    [BT_PLACE_LOCAL_SCORES] = "logprobs of the prompt are wanted: the decode worker makes both",
    [BT_PLACE_LOCAL_CHOICE] = "a further choice: it runs where the first one's prompt is",
    [BT_PLACE_LOCAL_PAIR_BROKEN] =
        "the links to this decode worker were lost just now: it prefills",
};

void bt_debug_write_record(struct bt_text_buffer *out, const struct bt_request_record *r) {
    const struct duration durations[] = {
        {"age", r->age_us},           {"total", r->total_us},     {"ttft", r->ttft_us},
        {"itl_mean", r->itl_mean_us}, {"itl_max", r->itl_max_us},
    };
    const struct duration workers[] = {
        {"prefill_queue", r->p.queue_us},
        {"prefill_grant", r->p.grant_us},
        {"prefill", r->p.prefill_us},
        {"prefill_transfer", r->p.transfer_us},
        {"decode_queue", r->d.queue_us},
        {"decode_prefill", r->d.prefill_us},
        {"decode_transfer", r->d.transfer_us},
        {"decode_join", r->d.join_us},
        {"decode", r->d.decode_us},
    };
    bt_text_buffer_printf(out, "{\"id\":\"%016" PRIx64 "\",\"state\":\"%s\",\"status\":\"%s\"",
                          r->id, bt_request_state_name(r->state), bt_status_name(r->status));
    bt_text_buffer_printf(out, ",\"finish\":\"%s\",\"placement\":\"%s\"", finish_name(r->finish),
                          bt_placement_name(r->placement));
    add_name(out, "reason", reasons[r->placement < BT_PLACEMENT_COUNT ? r->placement : 0]);
    add_name(out, "tenant", r->tenant);
    add_name(out, "key", r->caller.key);
    add_name(out, "client_id", r->caller.id);
    add_name(out, "prefill_worker", r->p_name);
    add_name(out, "decode_worker", r->d_name);
    bt_text_buffer_printf(out,
                          ",\"prompt_tokens\":%" PRIu32 ",\"generated_tokens\":%" PRIu32
                          ",\"attempts\":%" PRIu32 ",\"moves\":%" PRIu32 ",\"retries\":%" PRIu32,
                          r->prompt_tokens, r->generated_tokens, r->attempts, r->moves, r->retries);
    bt_text_buffer_printf(out,
                          ",\"pages\":%" PRIu32 ",\"pages_held\":%" PRIu32
                          ",\"pages_cached_prefill\":%" PRIu32 ",\"kv_bytes\":%" PRIu64
                          ",\"decode_steps\":%" PRIu32 ",\"decode_batch\":%.2f",
                          r->pages, r->pages_held, r->pages_cached_p, r->kv_bytes, r->d.steps,
                          r->d.steps ? (double)r->d.batch_rows / r->d.steps : 0.0);
    add_durations(out, durations, sizeof durations / sizeof durations[0]);
    add_durations(out, workers, sizeof workers / sizeof workers[0]);
    bt_text_buffer_add_literal(out, ",\"stages\":");
    bt_debug_write_stages(out, r);
    add_verdict(out, &r->verdict);
    bt_text_buffer_add_literal(out, "}");
}

static void reply(struct bt_http_call *call, int code, struct bt_text_buffer *body) {
    if (body->failed) {
        body->n_bytes = 0;
        code = 503;
    }
    bt_http_call_reply(call, code, "application/json", (struct bt_slice){body->data, body->n_bytes},
                       NULL);
    bt_text_buffer_fini(body);
}

/* "chatcmpl-0123456789abcdef", "cmpl-...", or the digits alone. */
static bool read_id(const char *text, uint64_t *id) {
    const char *dash = strrchr(text, '-');
    const char *digits = dash ? dash + 1 : text;
    if (strlen(digits) != 16 || strspn(digits, "0123456789abcdef") != 16)
        return false;
    *id = strtoull(digits, NULL, 16);
    return true;
}

static void write_one(struct bt_shell *shell, struct bt_http_call *call, const char *text) {
    struct bt_text_buffer body = {0};
    struct bt_request_record record;
    char message[128];
    uint64_t id;
    if (!read_id(text, &id)) {
        snprintf(message, sizeof message, "id is \"%.40s\", it must end with 16 hex digits", text);
        bt_openai_write_error(&body, 400, message, "id", NULL);
        reply(call, 400, &body);
    } else if (!bt_debug_find(shell, id, &record)) {
        snprintf(message, sizeof message, "no record of request %016" PRIx64, id);
        bt_openai_write_error(&body, 404, message, "id", NULL);
        reply(call, 404, &body);
    } else {
        bt_text_buffer_add_literal(&body, "{\"requests\":[");
        bt_debug_write_record(&body, &record);
        bt_text_buffer_add_literal(&body, "]}\n");
        reply(call, 200, &body);
    }
}

void bt_debug_on_requests(void *arg, struct bt_http_call *call) {
    struct bt_shell *shell = arg;
    struct bt_text_buffer body = {0};
    struct bt_request_record record;
    char text[64];
    uint32_t n = 0, cursor = 0;
    bt_shell_now(shell);
    if (bt_http_call_query(call, "id", text, sizeof text)) {
        write_one(shell, call, text);
        return;
    }
    uint32_t limit = RECORDS_SHOWN;
    if (bt_http_call_query(call, "limit", text, sizeof text))
        limit = (uint32_t)strtoul(text, NULL, 10);
    bt_text_buffer_add_literal(&body, "{\"requests\":[");
    while (n < limit && bt_router_core_live(shell->core, shell->now_us, &cursor, &record)) {
        bt_text_buffer_add(&body, ",", n++ > 0);
        bt_debug_write_record(&body, &record);
    }
    for (uint32_t i = 0; n < limit && bt_router_core_record(shell->core, shell->now_us, i, &record);
         i++) {
        bt_text_buffer_add(&body, ",", n++ > 0);
        bt_debug_write_record(&body, &record);
    }
    bt_text_buffer_add_literal(&body, "]}\n");
    reply(call, 200, &body);
}

static void write_worker(struct bt_text_buffer *out, const struct bt_worker_view *w) {
    const struct bt_msg_status *s = &w->status;
    bt_text_buffer_add_literal(out, "{\"name\":");
    bt_text_buffer_add_json(out, w->name);
    bt_text_buffer_printf(out, ",\"role\":\"%s\",\"state\":\"%s\",\"draining\":%s",
                          w->role == BT_ROLE_PREFILL ? "prefill" : "decode",
                          bt_worker_state_name(w->state), s->draining ? "true" : "false");
    add_name(out, "link", w->link_address ? w->link_address : "");
    bt_text_buffer_printf(out,
                          ",\"incarnation\":\"%016" PRIx64 "%016" PRIx64
                          "\",\"max_context\":%" PRIu32 ",\"max_seqs\":%" PRIu32
                          ",\"requests\":%" PRIu32 ",\"silent_us\":%" PRIu64,
                          w->incarnation.hi, w->incarnation.lo, w->max_context, w->max_seqs,
                          w->requests, w->silent_us);
    bt_text_buffer_printf(out,
                          ",\"running\":%" PRIu32 ",\"backlog_tokens\":%" PRIu32
                          ",\"step_us\":%" PRIu32 ",\"step_p50_us\":%" PRIu32
                          ",\"step_p99_us\":%" PRIu32 ",\"links\":%" PRIu32 ",\"kv_bytes\":%" PRIu64
                          ",\"refused_frames\":%" PRIu64,
                          s->running, s->backlog_tokens, s->step_us, s->step_p50_us, s->step_p99_us,
                          s->links, s->kv_bytes, s->refused_frames);
    const struct bt_census *c = &s->census;
    bt_text_buffer_printf(out,
                          ",\"pages\":{\"total\":%" PRIu32 ",\"free\":%" PRIu32
                          ",\"cached\":%" PRIu32 ",\"reserved\":%" PRIu32 ",\"filling\":%" PRIu32
                          ",\"armed\":%" PRIu32 ",\"landed\":%" PRIu32 ",\"live\":%" PRIu32
                          ",\"quarantined\":%" PRIu32 "}}",
                          c->total, c->free, c->cached, c->reserved, c->filling, c->armed,
                          c->landed, c->live, c->quarantined);
}

void bt_debug_on_workers(void *arg, struct bt_http_call *call) {
    struct bt_shell *shell = arg;
    struct bt_text_buffer body = {0};
    struct bt_worker_view view;
    uint64_t now_us = bt_shell_now(shell);
    uint32_t n = 0;
    bt_text_buffer_add_literal(&body, "{\"workers\":[");
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++) {
        if (!bt_router_core_worker(shell->core, now_us, i, &view))
            continue;
        bt_text_buffer_add(&body, ",", n++ > 0);
        write_worker(&body, &view);
    }
    bt_text_buffer_add_literal(&body, "]}\n");
    reply(call, 200, &body);
}

void bt_debug_on_flush(void *arg, struct bt_http_call *call) {
    struct bt_shell *shell = arg;
    struct bt_text_buffer body = {0};
    bt_router_core_flush(shell->core, bt_shell_now(shell));
    bt_shell_drain(shell);
    bt_text_buffer_add_literal(&body, "{\"status\":\"asked\"}\n");
    reply(call, 200, &body);
}

/* Writes the line of one request, for people or as one JSON object. */
#include "router/request_log.h"

#include <inttypes.h>
#include <stdio.h>

#include "common/base/log.h"
#include "router/debug_pages.h"
#include "router/text_buffer.h"

static double ms(uint64_t us) {
    return (double)us / 1e3;
}

static void add_text(struct bt_text_buffer *out, const struct bt_request_record *r,
                     const char *reason) {
    bt_text_buffer_printf(out, "request %016" PRIx64 " %s", r->id, bt_status_name(r->status));
    if (*r->caller.key)
        bt_text_buffer_printf(out, " for %s", r->caller.key);
    if (*r->caller.id)
        bt_text_buffer_printf(out, " as %s", r->caller.id);
    if (*reason)
        bt_text_buffer_printf(out, " (%s)", reason);
    bt_text_buffer_printf(out,
                          ": %" PRIu32 " tokens after %" PRIu32 " in %.1f ms, the first in %.1f, "
                          "then %.2f each; %s",
                          r->generated_tokens, r->prompt_tokens, ms(r->total_us), ms(r->ttft_us),
                          ms(r->itl_mean_us), bt_placement_name(r->placement));
    if (*r->p_name)
        bt_text_buffer_printf(out, " %s ->", r->p_name);
    if (*r->d_name)
        bt_text_buffer_printf(out, " %s", r->d_name);
    const char *comma = ";";
    for (int i = 0; i < BT_SPAN_COUNT; i++) {
        if (r->unknown & 1u << i)
            bt_text_buffer_printf(out, "%s %s unknown", comma, bt_span_name((enum bt_span)i));
        else if (r->span_us[i] >= 50) /* shown as 0.1 ms */
            bt_text_buffer_printf(out, "%s %s %.1f", comma, bt_span_name((enum bt_span)i),
                                  ms(r->span_us[i]));
        else
            continue;
        comma = ",";
    }
    bt_text_buffer_printf(out, "; %s", bt_debug_verdict_word(&r->verdict));
    if (r->verdict.phase != BT_SLOW_NOT)
        bt_text_buffer_printf(out, " (%s): %s", bt_slow_stage_name(r->verdict.stage),
                              r->verdict.advice);
}

static void add_name(struct bt_text_buffer *out, const char *key, const char *name) {
    if (!*name)
        return;
    bt_text_buffer_printf(out, ",\"%s\":", key);
    bt_text_buffer_add_json(out, name);
}

static void add_members(struct bt_text_buffer *out, const struct bt_request_record *r,
                        const char *reason) {
    bt_text_buffer_printf(out, ",\"request\":\"%016" PRIx64 "\",\"status\":\"%s\"", r->id,
                          bt_status_name(r->status));
    if (*reason) {
        bt_text_buffer_add_literal(out, ",\"reason\":");
        bt_text_buffer_add_json(out, reason);
    }
    bt_text_buffer_printf(out,
                          ",\"prompt_tokens\":%" PRIu32 ",\"generated_tokens\":%" PRIu32
                          ",\"attempts\":%" PRIu32 ",\"placement\":\"%s\"",
                          r->prompt_tokens, r->generated_tokens, r->attempts,
                          bt_placement_name(r->placement));
    add_name(out, "key", r->caller.key);
    add_name(out, "client_id", r->caller.id);
    add_name(out, "prefill_worker", r->p_name);
    add_name(out, "decode_worker", r->d_name);
    bt_text_buffer_printf(out, ",\"ttft_ms\":%.3f,\"itl_mean_ms\":%.3f,\"itl_max_ms\":%.3f",
                          ms(r->ttft_us), ms(r->itl_mean_us), ms(r->itl_max_us));
    bt_text_buffer_add_literal(out, ",\"stages\":");
    bt_debug_write_stages(out, r);
    bt_text_buffer_printf(out, ",\"verdict\":\"%s\",\"stage\":\"%s\",\"advice\":\"%s\"",
                          bt_debug_verdict_word(&r->verdict), bt_slow_stage_name(r->verdict.stage),
                          r->verdict.advice);
}

void bt_request_log(const struct bt_request_record *record, const char *reason) {
    bool ours = record->status == BT_E_INTERNAL || record->status == BT_E_PEER_GONE;
    enum bt_log_level level = ours ? BT_LOG_WARN : BT_LOG_INFO;
    if (level > bt_log_level())
        return;
    struct bt_text_buffer line = {0};
    if (bt_log_is_json())
        add_members(&line, record, reason);
    else
        add_text(&line, record, reason);
    bt_text_buffer_add(&line, "", 1);
    if (!line.failed)
        bt_log_event(level, line.data, "request", line.data);
    bt_text_buffer_fini(&line);
}

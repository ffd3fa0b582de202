/* The pages that say what happened: /debug/requests, /debug/workers, /debug/flush. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "router/core.h"
#include "router/http_server.h"
#include "router/text_buffer.h"

struct bt_shell;

/* The record of a request, ended or live. */
bool bt_debug_find(const struct bt_shell *shell, uint64_t id, struct bt_request_record *out);
/* One record as a JSON object. */
void bt_debug_write_record(struct bt_text_buffer *out, const struct bt_request_record *record);

/* "ok", "slow to start" or "slow to stream". */
const char *bt_debug_verdict_word(const struct bt_verdict *verdict);
/* Where its time went, {"queue_ms": ..., "total_ms": ...}; null for what was not reported. */
void bt_debug_write_stages(struct bt_text_buffer *out, const struct bt_request_record *record);

/* Handlers; arg is the shell. */
void bt_debug_on_requests(void *arg, struct bt_http_call *call);
void bt_debug_on_workers(void *arg, struct bt_http_call *call);
void bt_debug_on_flush(void *arg, struct bt_http_call *call);

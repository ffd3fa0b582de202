/* The names of a request's states, placements and verdicts, as logs and /debug/requests show them.
 */
#include "router/request.h"

static const char *pick(const char *const *names, unsigned n, unsigned i) {
    return i < n ? names[i] : "unknown";
}

const char *bt_request_state_name(enum bt_request_state state) {
    static const char *const names[BT_REQUEST_STATE_COUNT] = {
        "free",      "queued", "reserving", "prefilling", "transferring",
        "streaming", "asking", "served",    "ended"};
    return pick(names, BT_REQUEST_STATE_COUNT, state);
}

const char *bt_placement_name(enum bt_placement placement) {
    static const char *const names[BT_PLACEMENT_COUNT] = {
        "none",         "split",        "local_short",
        "local_prefix", "local_never",  "local_no_prefill",
        "local_scores", "local_choice", "local_pair_broken"};
    return pick(names, BT_PLACEMENT_COUNT, placement);
}

const char *bt_slow_phase_name(enum bt_slow_phase phase) {
    static const char *const names[BT_SLOW_PHASE_COUNT] = {"none", "start", "stream"};
    return pick(names, BT_SLOW_PHASE_COUNT, phase);
}

const char *bt_slow_stage_name(enum bt_slow_stage stage) {
    static const char *const names[BT_SLOW_STAGE_COUNT] = {
        "none", "queue", "placement", "prefill_wait", "prefill", "transfer",
        "join", "batch", "step",      "memory",       "moved",   "network"};
    return pick(names, BT_SLOW_STAGE_COUNT, stage);
}

const char *bt_span_name(enum bt_span span) {
    static const char *const names[BT_SPAN_COUNT] = {"queue",   "placement", "prefill_wait",
                                                     "prefill", "transfer",  "join",
                                                     "decode",  "moved",     "network"};
    return pick(names, BT_SPAN_COUNT, span);
}

/* Divides a request's total time among the stages of its life, so that they add up.
 *
 * What the router measures itself (queue, placement, moves, tokens) and what workers report of
 * their part on their own clocks (struct bt_stages) meet here. Nobody compares clocks: durations
 * are cut where they would exceed what the router saw pass, and what nobody accounts for is the
 * network. The start (to the first token) and the stream (after it) are divided apart. Pure. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "router/core.h"

/* What the router itself knows of a request, microseconds. */
struct bt_span_facts {
    uint64_t queue_us;     /* waiting for a place before the first token */
    uint64_t followed_us;  /* a choice: waiting for its leader's prompt, which counts as prefill */
    uint64_t wasted_us;    /* attempts lost before the first token */
    uint64_t placement_us; /* of the last attempt: Reserve sent to accepted */
    uint64_t replay_us;  /* after the first token: from the last token before a loss to the next */
    uint64_t decoded_us; /* first to last token of attempts that were lost later */
    bool p_reported, d_reported; /* the last attempt's workers have told their stages */
    bool first_from_d;           /* token 0 came from D, after the transfer */
    bool start_kept; /* another attempt gave token 0, and this is what was known of its start */
    uint64_t kept_us[BT_SPAN_COUNT];
};

/* The start of the last attempt as it is known: placement, wait, prefill, and the transfer where
 * token 0 came after it. Not cut. */
void bt_spans_of_start(const struct bt_span_facts *facts, const struct bt_request_record *record,
                       uint64_t start_us[BT_SPAN_COUNT]);
/* Fills span_us, start_us and unknown from the record's other fields and the facts. */
void bt_spans_divide(struct bt_request_record *record, const struct bt_span_facts *facts);

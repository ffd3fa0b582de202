/* Divides a request's total time among the stages of its life, so that they add up. */
#include "router/spans.h"

#include <string.h>

static uint64_t less(uint64_t a, uint64_t b) {
    return a > b ? a - b : 0;
}

/* P's word is exact. D's covers the compute as well, and comes first where the answer is short. */
static uint64_t transfer_of(const struct bt_request_record *r) {
    if (r->placement != BT_PLACE_SPLIT)
        return 0;
    if (r->p.transfer_us)
        return r->p.transfer_us;
    return less(r->d.transfer_us, r->d.prefill_us);
}

void bt_spans_of_start(const struct bt_span_facts *facts, const struct bt_request_record *r,
                       uint64_t start_us[BT_SPAN_COUNT]) {
    memset(start_us, 0, BT_SPAN_COUNT * sizeof *start_us);
    start_us[BT_SPAN_PLACEMENT] = facts->placement_us;
    if (r->placement == BT_PLACE_SPLIT) {
        /* Prefill is sent with Reserve, and P is granted nothing before D has accepted: the wait
         * begins with that. */
        uint64_t wait_us =
            facts->p_reported ? r->p.queue_us + r->p.grant_us : r->d.queue_us; /* P's, told by D */
        start_us[BT_SPAN_WAIT] = less(wait_us, facts->placement_us);
        start_us[BT_SPAN_PREFILL] = facts->p_reported ? r->p.prefill_us : r->d.prefill_us;
    } else {
        start_us[BT_SPAN_WAIT] = r->d.queue_us;
        start_us[BT_SPAN_PREFILL] = r->d.prefill_us;
    }
    if (facts->first_from_d)
        start_us[BT_SPAN_TRANSFER] = transfer_of(r);
}

static uint32_t unknown_of(const struct bt_request_record *r, const struct bt_span_facts *facts) {
    enum {
        START = 1 << BT_SPAN_WAIT | 1 << BT_SPAN_PREFILL,
        STREAM = 1 << BT_SPAN_JOIN | 1 << BT_SPAN_DECODE,
        TRANSFER = 1 << BT_SPAN_TRANSFER
    };
    if (r->placement == BT_PLACE_NONE)
        return 0;
    bool split = r->placement == BT_PLACE_SPLIT;
    bool told = (split && facts->p_reported) || facts->d_reported || r->d.prefill_us;
    uint32_t unknown = !facts->start_kept && !told ? START : 0;
    if (r->generated_tokens > 1 && !facts->d_reported)
        unknown |= STREAM;
    if (split && (r->generated_tokens > 1 || facts->first_from_d) && !r->p.transfer_us &&
        !r->d.transfer_us)
        unknown |= TRANSFER;
    return unknown;
}

static uint64_t take(uint64_t *left_us, uint64_t us) {
    us = us < *left_us ? us : *left_us;
    *left_us -= us;
    return us;
}

static void divide_start(struct bt_request_record *r, const struct bt_span_facts *facts) {
    /* The way of D's answer may lie beside P's work: what really worked counts first. */
    static const enum bt_span order[] = {BT_SPAN_QUEUE,    BT_SPAN_MOVED,     BT_SPAN_PREFILL,
                                         BT_SPAN_TRANSFER, BT_SPAN_PLACEMENT, BT_SPAN_WAIT};
    uint64_t known_us[BT_SPAN_COUNT];
    uint64_t left_us = r->ttft_us ? r->ttft_us : r->total_us;
    if (facts->start_kept)
        memcpy(known_us, facts->kept_us, sizeof known_us);
    else
        bt_spans_of_start(facts, r, known_us);
    known_us[BT_SPAN_QUEUE] = facts->queue_us;
    known_us[BT_SPAN_PREFILL] += facts->followed_us;
    known_us[BT_SPAN_MOVED] = facts->wasted_us;
    memset(r->start_us, 0, sizeof r->start_us);
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++)
        r->start_us[order[i]] = take(&left_us, known_us[order[i]]);
    r->start_us[BT_SPAN_NETWORK] = left_us;
}

void bt_spans_divide(struct bt_request_record *r, const struct bt_span_facts *facts) {
    uint64_t *all = r->span_us;
    divide_start(r, facts);
    memcpy(all, r->start_us, sizeof r->span_us);
    uint64_t left_us = r->ttft_us ? less(r->total_us, r->ttft_us) : 0;
    all[BT_SPAN_MOVED] += take(&left_us, facts->replay_us);
    all[BT_SPAN_DECODE] = take(&left_us, facts->decoded_us);
    if (!facts->first_from_d || facts->start_kept)
        all[BT_SPAN_TRANSFER] += take(&left_us, transfer_of(r));
    all[BT_SPAN_JOIN] = take(&left_us, r->d.join_us);
    all[BT_SPAN_DECODE] += take(&left_us, r->d.decode_us);
    all[BT_SPAN_NETWORK] += left_us;
    r->unknown = unknown_of(r, facts);
}

/* The last ended requests, for /debug/requests and the counts by verdict.
 *
 * A worker's report (its Ended) may come after the client was served: it is added to the record
 * here, and the request counts by its verdict when both reports are in or after a second. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/rpc/registry_msg.h"
#include "router/core.h"
#include "router/spans.h"
#include "router/verdict.h"

enum { BT_RECORD_WAIT_US = 1000000 };

struct bt_record {
    struct bt_request_record pub;
    struct bt_span_facts facts;
    uint64_t ended_us;
    uint32_t attempt;
    bool p_expected, d_expected; /* that report has not come */
    bool preempted;
    bool alone; /* it met no other request: the targets may learn from it */
};

struct bt_record_ring {
    struct bt_record *records;
    uint32_t n;
    uint64_t n_ended;   /* record i is at i % n */
    uint64_t n_counted; /* of them, settled: verdict counted */
};

/* What a settled record adds to. */
struct bt_record_sums {
    struct bt_verdict_targets *targets;
    struct bt_router_counters *counters;
};

bt_status bt_record_init(struct bt_record_ring *ring, uint32_t n, struct bt_error *err);
void bt_record_fini(struct bt_record_ring *ring);

/* Takes the record in; the oldest one goes. */
void bt_record_put(struct bt_record_ring *ring, const struct bt_record *record,
                   struct bt_record_sums sums);
/* A report about a request that has ended. False when no record waits for it. */
bool bt_record_report(struct bt_record_ring *ring, const struct bt_msg_ended *ended, bool from_p,
                      struct bt_record_sums sums);
/* Settles what is complete or has waited long enough. */
void bt_record_settle(struct bt_record_ring *ring, uint64_t now_us, struct bt_record_sums sums);
/* What is known of it now, its spans divided and judged. */
void bt_record_judge(struct bt_record *record, const struct bt_verdict_targets *targets);
/* i = 0 is the newest; NULL past the end. */
const struct bt_record *bt_record_get(const struct bt_record_ring *ring, uint32_t i);

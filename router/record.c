/* Keeps the last ended requests and settles their verdicts. */
#include "router/record.h"

#include <stdlib.h>

bt_status bt_record_init(struct bt_record_ring *ring, uint32_t n, struct bt_error *err) {
    *ring = (struct bt_record_ring){.n = n};
    if (!n || n > 1u << 20)
        return bt_fail(err, BT_E_INVALID, "n_records is %u, must be 1 to %u", n, 1u << 20);
    ring->records = calloc(n, sizeof *ring->records);
    return ring->records ? BT_OK : bt_fail(err, BT_E_NO_MEMORY, "no memory for %u records", n);
}

void bt_record_fini(struct bt_record_ring *ring) {
    free(ring->records);
    *ring = (struct bt_record_ring){0};
}

void bt_record_judge(struct bt_record *record, const struct bt_verdict_targets *targets) {
    bt_spans_divide(&record->pub, &record->facts);
    record->pub.verdict = bt_verdict_of(targets, &record->pub, record->preempted);
}

static void settle_one(struct bt_record_ring *ring, struct bt_record_sums sums) {
    struct bt_record *record = &ring->records[ring->n_counted++ % ring->n];
    const struct bt_request_record *pub = &record->pub;
    bt_record_judge(record, sums.targets);
    sums.counters->slow[pub->verdict.phase][pub->verdict.stage]++;
    if (pub->status == BT_OK && record->alone && pub->attempts == 1 && !pub->unknown)
        bt_verdict_learn(sums.targets, pub);
}

void bt_record_put(struct bt_record_ring *ring, const struct bt_record *record,
                   struct bt_record_sums sums) {
    if (ring->n_ended - ring->n_counted == ring->n)
        settle_one(ring, sums);
    ring->records[ring->n_ended++ % ring->n] = *record;
}

void bt_record_settle(struct bt_record_ring *ring, uint64_t now_us, struct bt_record_sums sums) {
    while (ring->n_counted < ring->n_ended) {
        const struct bt_record *record = &ring->records[ring->n_counted % ring->n];
        if ((record->p_expected || record->d_expected) &&
            now_us - record->ended_us < BT_RECORD_WAIT_US)
            return;
        settle_one(ring, sums);
    }
}

static void add(struct bt_record *record, const struct bt_msg_ended *ended, bool from_p) {
    struct bt_request_record *pub = &record->pub;
    if (from_p) {
        pub->p = ended->stages;
        pub->pages_cached_p = ended->pages_cached_p;
        record->facts.p_reported = true;
    } else {
        pub->d = ended->stages;
        record->facts.d_reported = true;
    }
    if (ended->pages) {
        pub->pages = ended->pages;
        pub->pages_held = ended->pages_held;
    }
    /* Both ends count the same payload. */
    if (ended->kv_bytes > pub->kv_bytes)
        pub->kv_bytes = ended->kv_bytes;
}

bool bt_record_report(struct bt_record_ring *ring, const struct bt_msg_ended *ended, bool from_p,
                      struct bt_record_sums sums) {
    /* Reports come within milliseconds of the end: the newest unsettled ones are looked at first.
     */
    for (uint64_t i = ring->n_ended; i-- > ring->n_counted;) {
        struct bt_record *record = &ring->records[i % ring->n];
        bool *expected = from_p ? &record->p_expected : &record->d_expected;
        if (record->pub.id != ended->key.request)
            continue;
        if (record->attempt != ended->key.attempt || !*expected)
            return false;
        uint64_t kv_bytes = record->pub.kv_bytes;
        add(record, ended, from_p);
        sums.counters->kv_bytes += record->pub.kv_bytes - kv_bytes;
        *expected = false;
        return true;
    }
    return false;
}

const struct bt_record *bt_record_get(const struct bt_record_ring *ring, uint32_t i) {
    uint64_t n = ring->n_ended < ring->n ? ring->n_ended : ring->n;
    return i < n ? &ring->records[(ring->n_ended - 1 - i) % ring->n] : NULL;
}

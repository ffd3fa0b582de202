/* Pages for the tokens that a decode worker makes, and who gives way when there are none. */
#include "common/base/assert.h"
#include "decode_worker/decode_state.h"

/* Who arrived later at its router is younger; of two that came together the one with the later key.
 * A moved request keeps its age, so this order is the same on every worker that it comes to. */
static bool is_younger(const struct bt_decode_seq *a, const struct bt_decode_seq *b) {
#if BT_MUTANT_victim_oldest
    const struct bt_decode_seq *swap = a;
    a = b;
    b = swap;
#endif
    if (a->job->arrived_us != b->job->arrived_us)
        return a->job->arrived_us > b->job->arrived_us;
    if (a->job->router != b->job->router)
        return a->job->router > b->job->router;
    return a->job->key.request > b->job->key.request;
}

/* The youngest sequence that could give pages to `asker`: not older than it, leases before those
 * that run (a lease has computed nothing yet); the asker itself where nobody else is. */
static struct bt_decode_seq *victim_for(struct bt_decode_core *core, struct bt_decode_seq *asker) {
    struct bt_decode_seq *victim = asker;
    bool lease = false;
    for (uint32_t i = 0; i < core->n_seqs; i++) {
        struct bt_decode_seq *seq = &core->seqs[i];
        if (seq->state == BT_DECODE_FREE || seq->state == BT_DECODE_CLOSING || seq == asker ||
            !is_younger(seq, asker) || !bt_kv_hold_gain(core->pool, &seq->hold))
            continue;
        bool is_lease = seq->state == BT_DECODE_RESERVED;
        if (is_lease == lease ? victim == asker || is_younger(seq, victim) : is_lease) {
            victim = seq;
            lease = is_lease;
        }
    }
    return victim;
}

bool bt_decode_grow(struct bt_decode_core *core, uint64_t now_us, struct bt_decode_seq *seq) {
    uint32_t n_pages = bt_pages_of(seq->n_computed + 1);
    if (seq->hold.n_pages >= n_pages)
        return true;
    BT_ASSERT(seq->hold.n_pages + 1 == n_pages);
    while (!seq->hold.n_reserved && !bt_kv_hold_reserve(core->pool, &seq->hold, 1)) {
#if BT_MUTANT_no_preemption
        return false;
#endif
        struct bt_decode_seq *victim = victim_for(core, seq);
        if (bt_decode_handles(core, victim, BT_DECODE_ON_PREEMPT))
            bt_decode_end(core, now_us, victim, BT_END_PREEMPTED, true);
        if (victim == seq)
            return false;
    }
    bt_kv_hold_bind(core->pool, &seq->hold, 1, BT_PAGE_FILLING);
    return true;
}

/* The prompts that wait on a prefill worker, and how each ends: accept, hello, pages, every end. */
#include "common/base/assert.h"
#include "prefill_worker/prefill_state.h"

enum { NO_LINK_MS = 1000 }; /* a prompt whose D cannot be reached is given back after this */

static void refuse(struct bt_prefill_core *core, uint32_t slot, const struct bt_msg_work *work,
                   enum bt_end reason) {
    bt_ledger_refuse(
        core->ledger, slot,
        &(struct bt_msg){.type = BT_MSG_ENDED, .ended = {.key = work->key, .reason = reason}});
}

static enum bt_end refusal_of(const struct bt_prefill_core *core, const struct bt_msg_work *work) {
    if (core->draining)
        return BT_END_DRAINING;
    if (!work->remaining_ms)
        return BT_END_DEADLINE;
    if (bt_pages_of(work->n_tokens) > core->config.n_pages ||
        work->n_tokens - work->n_prompt >= work->sampling.max_tokens || bt_work_wants_scores(work))
        return BT_END_INVALID;
    for (uint32_t i = 0; i < work->sampling.n_bias; i++)
        if ((uint32_t)work->sampling.bias[i].token >= core->config.n_vocab)
            return BT_END_INVALID;
    for (uint32_t i = 0; i < work->n_tokens; i++)
        if (work->tokens[i] < 0 || (uint32_t)work->tokens[i] >= core->config.n_vocab)
            return BT_END_INVALID;
    return core->n_active >= core->config.join.max_seqs ? BT_END_FULL : 0;
}

void bt_prefill_accept(struct bt_prefill_core *core, uint64_t now_us, uint32_t slot,
                       const struct bt_msg_work *work) {
    if (bt_ledger_find(core->ledger, slot, work->key))
        return; /* it is here: its router knows or is told */
    enum bt_end reason = refusal_of(core, work);
    struct bt_job *job = NULL;
    struct bt_error err;
    if (!reason) {
        bt_status status = bt_ledger_open(core->ledger, now_us, slot, work, &job, &err);
        reason = status == BT_OK ? 0 : status == BT_E_FULL ? BT_END_FULL : BT_END_INVALID;
    }
    if (reason) {
        refuse(core, slot, work, reason);
        return;
    }
    struct bt_prefill_seq *seq = &core->seqs[job->id];
    BT_ASSERT(seq->state == BT_PREFILL_FREE && !seq->hold.n_pages && !seq->hold.n_reserved);
    *seq = (struct bt_prefill_seq){
        .state = BT_PREFILL_QUEUED,
        .job = job,
        .root = bt_block_root(work->tenant, bt_fingerprint_hash(&core->config.join.fingerprint)),
        .peer = work->peer,
        .hold = seq->hold,
        .n_pages = bt_pages_of(job->n_tokens),
    };
    core->n_active++;
}

/* Of the sequences in that state, in the order (due, id), the first or the one after; NULL: none.
 */
static struct bt_prefill_seq *next_in(struct bt_prefill_core *core, enum bt_prefill_state state,
                                      const struct bt_prefill_seq *after) {
    struct bt_prefill_seq *next = NULL;
    for (uint32_t i = 0; i < core->n_seqs; i++) {
        struct bt_prefill_seq *seq = &core->seqs[i];
        if (seq->state != state)
            continue;
        uint64_t due_us = bt_job_due_us(seq->job);
        if (after && (due_us < bt_job_due_us(after->job) ||
                      (due_us == bt_job_due_us(after->job) && seq->job->id <= after->job->id)))
            continue;
        if (!next || due_us < bt_job_due_us(next->job))
            next = seq;
    }
    return next;
}

/* Takes all pages of the prompt, those found here included; false: not enough now. */
static bool take_pages(struct bt_prefill_core *core, struct bt_prefill_seq *seq) {
    const struct bt_job *job = seq->job;
    uint32_t cached = bt_kv_hold_pin(core->pool, &seq->hold, seq->root, job->tokens,
                                     (job->n_tokens - 1) / BT_PAGE_TOKENS);
    if (!bt_kv_hold_reserve(core->pool, &seq->hold, seq->n_pages - cached)) {
        bt_kv_hold_release(core->pool, &seq->hold);
        return false;
    }
    bt_kv_hold_bind(core->pool, &seq->hold, seq->n_pages - cached, BT_PAGE_FILLING);
    seq->n_pages_cached = cached;
    seq->n_blocks = cached;
    seq->n_computed = cached * BT_PAGE_TOKENS;
    seq->chain = seq->root;
    for (uint32_t i = 0; i < cached; i++)
        seq->chain = bt_block_next(seq->chain, job->tokens + (size_t)i * BT_PAGE_TOKENS);
    return true;
}

static bool say_hello(struct bt_prefill_core *core, uint64_t now_us, struct bt_prefill_seq *seq,
                      uint32_t link) {
    const struct bt_job *job = seq->job;
#if BT_MUTANT_pages_before_grant
    if (!take_pages(core, seq))
        return false;
#endif
    bt_status status = bt_kv_send_offer(
        core->send, now_us,
        &(struct bt_kv_offer){.ticket = job->ticket,
                              .chain = bt_block_prompt(seq->root, job->tokens, job->n_tokens),
                              .n_tokens = job->n_tokens,
                              .n_pages = seq->n_pages,
                              .link = link,
                              .deadline_us = bt_job_due_us(job),
                              .user = job->id},
        &seq->send);
    if (status < 0) {
        bt_kv_hold_release(core->pool, &seq->hold);
        return false;
    }
    seq->state = BT_PREFILL_OFFERED;
    seq->sending = true;
    seq->offered_us = now_us;
    return true;
}

void bt_prefill_offer(struct bt_prefill_core *core, uint64_t now_us) {
    uint32_t n_waiting = 0;
    for (uint32_t i = 0; i < core->n_seqs; i++)
        n_waiting +=
            core->seqs[i].state == BT_PREFILL_OFFERED || core->seqs[i].state == BT_PREFILL_GRANTED;
    struct bt_prefill_seq *seq = next_in(core, BT_PREFILL_QUEUED, NULL);
    while (seq) {
        struct bt_prefill_seq *next = next_in(core, BT_PREFILL_QUEUED, seq);
        uint32_t link = bt_prefill_link_to(core, seq->peer);
        if (link == BT_MAX_LINKS) {
            if (now_us - seq->job->received_us >= NO_LINK_MS * 1000 &&
                bt_prefill_handles(core, seq, BT_PREFILL_ON_NO_LINK))
                bt_prefill_end(core, now_us, seq, BT_END_LINK, true);
        } else if (n_waiting < core->config.max_offers) {
            n_waiting += say_hello(core, now_us, seq, link);
        }
        seq = next;
    }
}

void bt_prefill_take_pages(struct bt_prefill_core *core, uint64_t now_us) {
    struct bt_prefill_seq *seq;
    /* The first waits for its pages in front of the others, or it would wait for ever. */
    while ((seq = next_in(core, BT_PREFILL_GRANTED, NULL))) {
#if !BT_MUTANT_pages_before_grant
        if (!take_pages(core, seq))
            return;
#endif
        seq->state = BT_PREFILL_COMPUTING;
        bt_kv_send_bind(core->send, seq->send, &seq->hold);
        for (uint32_t layer = 0; seq->n_pages_cached && layer < core->config.n_layers; layer++)
            bt_kv_send_ready(core->send, now_us, seq->send, layer, seq->n_pages_cached);
    }
}

/* ---- ends ---- */

static struct bt_msg_ended report_of(const struct bt_prefill_core *core,
                                     const struct bt_prefill_seq *seq, enum bt_end reason) {
    struct bt_msg_ended end = {
        .reason = reason,
        .pages = seq->n_pages,
        .pages_held = seq->n_pages_held,
        .pages_cached_p = seq->n_pages_cached,
        .kv_bytes = seq->sending ? bt_kv_send_bytes(core->send, seq->send) : 0,
    };
    if (seq->offered_us)
        end.stages.queue_us = seq->offered_us - seq->job->received_us;
    if (seq->computing_us)
        end.stages.grant_us = seq->computing_us - seq->offered_us;
    if (seq->computed_us)
        end.stages.prefill_us = seq->computed_us - seq->computing_us;
    return end;
}

void bt_prefill_report(struct bt_prefill_core *core, struct bt_prefill_seq *seq) {
    struct bt_msg_ended report = report_of(core, seq, 0);
    bt_ledger_report(core->ledger, seq->job, &report);
}

static void tell_end(struct bt_prefill_core *core, uint64_t now_us, struct bt_prefill_seq *seq,
                     enum bt_end reason) {
    struct bt_msg_ended end = report_of(core, seq, reason);
    if (seq->computed_us)
        end.stages.transfer_us = now_us - seq->computed_us;
    bt_ledger_end(core->ledger, now_us, seq->job, &end);
}

static enum bt_kv_reason kv_reason_of(enum bt_end reason, bool told) {
    switch (reason) {
    case BT_END_DEADLINE:
        return BT_KV_REASON_DEADLINE;
    case BT_END_NONFINITE:
    case BT_END_DRAINING:
        return BT_KV_REASON_PEER;
    default:
        return told ? BT_KV_REASON_PEER : BT_KV_REASON_CANCELLED;
    }
}

void bt_prefill_end(struct bt_prefill_core *core, uint64_t now_us, struct bt_prefill_seq *seq,
                    enum bt_end reason, bool told) {
    BT_ASSERT(seq->state != BT_PREFILL_FREE && seq->state != BT_PREFILL_CLOSING);
    if (told)
        tell_end(core, now_us, seq, reason);
    seq->state = BT_PREFILL_CLOSING;
    /* Where D or the link has ended it, kv_send knows and RELEASED is on its way. */
    if (seq->sending && reason != BT_END_HANDED && reason != BT_END_LINK &&
        reason != BT_END_REFUSED && reason != BT_END_CHECKSUM)
        bt_kv_send_cancel(core->send, now_us, seq->send, kv_reason_of(reason, told));
    bt_prefill_let_go(core, seq);
}

void bt_prefill_let_go(struct bt_prefill_core *core, struct bt_prefill_seq *seq) {
    BT_ASSERT(seq->state == BT_PREFILL_CLOSING);
    if (seq->in_step || seq->sending)
        return;
    bt_kv_hold_release(core->pool, &seq->hold);
    bt_ledger_drop(core->ledger, seq->job);
    seq->state = BT_PREFILL_FREE;
    core->n_active--;
}

/* How a sequence comes to a decode worker and how it ends there: Reserve, commit, every end. */

#include "common/base/assert.h"
#include "decode_worker/decode_state.h"

static void refuse(struct bt_decode_core *core, uint32_t slot, const struct bt_msg_work *work,
                   enum bt_end reason) {
    bt_ledger_refuse(core->ledger, slot,
                     &(struct bt_msg){.type = BT_MSG_RESERVED,
                                      .reserved = {.key = work->key, .reason = reason}});
}

/* Pins the prefix and promises the rest; false: no room, nothing held. */
static bool take_pages(struct bt_decode_core *core, struct bt_decode_seq *seq, struct bt_id root) {
    const struct bt_job *job = seq->job;
    uint32_t n_pages = bt_pages_of(job->n_tokens);
    /* The last token is always computed: its logits are wanted. So are those of all where the
     * prompt's logprobs are asked for. */
    uint32_t n_blocks = bt_ledger_n_scores(job) ? 0 : (job->n_tokens - 1) / BT_PAGE_TOKENS;
    uint32_t held = bt_kv_hold_pin(core->pool, &seq->hold, root, job->tokens, n_blocks);
    uint32_t growth = bt_pages_of(job->n_prompt + job->sampling.max_tokens) - n_pages;
    if (growth > BT_GROWTH_PAGES)
        growth = BT_GROWTH_PAGES;
    if (!bt_kv_hold_reserve(core->pool, &seq->hold, n_pages - held + growth)) {
        bt_kv_hold_release(core->pool, &seq->hold);
        return false;
    }
    seq->n_pages_prompt = n_pages;
    seq->n_pages_held = held;
    seq->n_blocks = held;
    seq->n_computed = held * BT_PAGE_TOKENS;
    seq->chain = root;
    for (uint32_t i = 0; i < held; i++)
        seq->chain = bt_block_next(seq->chain, job->tokens + (size_t)i * BT_PAGE_TOKENS);
    return true;
}

static void start(struct bt_decode_core *core, struct bt_job *job) {
    struct bt_decode_seq *seq = bt_decode_seq_of(core, job);
    BT_ASSERT(seq->state == BT_DECODE_FREE && !seq->hold.n_pages && !seq->hold.n_reserved);
    struct bt_kv_hold hold = seq->hold;
    *seq = (struct bt_decode_seq){.job = job, .hold = hold, .lease = BT_NO_JOB};
}

/* Whether it could ever run here, and whether there is a place now; 0: yes. */
static enum bt_end refusal_of(const struct bt_decode_core *core, const struct bt_msg_work *work) {
    uint64_t n_all = (uint64_t)work->n_prompt + work->sampling.max_tokens;
    if (core->draining)
        return BT_END_DRAINING;
    if (!work->remaining_ms)
        return BT_END_DEADLINE;
    if (n_all > core->config.join.max_context ||
        bt_pages_of((uint32_t)n_all) > core->config.n_pages)
        return BT_END_INVALID;
    if (work->n_tokens - work->n_prompt >= work->sampling.max_tokens)
        return BT_END_INVALID;
    if (bt_work_wants_scores(work) && !work->prefill_here)
        return BT_END_INVALID;
    for (uint32_t i = 0; i < work->sampling.n_bias; i++)
        if ((uint32_t)work->sampling.bias[i].token >= core->config.n_vocab)
            return BT_END_INVALID;
    for (uint32_t i = 0; i < work->n_tokens; i++)
        if (work->tokens[i] < 0 || (uint32_t)work->tokens[i] >= core->config.n_vocab)
            return BT_END_INVALID;
    return core->n_active >= core->config.join.max_seqs ? BT_END_FULL : 0;
}

void bt_decode_reserve(struct bt_decode_core *core, uint64_t now_us, uint32_t slot,
                       const struct bt_msg_work *work) {
    struct bt_job *known = bt_ledger_find(core->ledger, slot, work->key);
    if (known && known->reserved.pages) { /* asked again: told again */
        bt_ledger_answer(core->ledger, known,
                         &(struct bt_msg_reserved){.accepted = true,
                                                   .pages = known->reserved.pages,
                                                   .pages_held = known->reserved.pages_held});
        return;
    }
    enum bt_end reason = refusal_of(core, work);
    struct bt_job *job = NULL;
    struct bt_error err;
    if (!reason && bt_kv_recv_is_ended(core->recv, work->ticket))
        reason = BT_END_INVALID;
    if (!reason) {
        bt_status status = bt_ledger_open(core->ledger, now_us, slot, work, &job, &err);
        reason = status == BT_OK ? 0 : status == BT_E_FULL ? BT_END_FULL : BT_END_INVALID;
    }
    if (reason) {
        refuse(core, slot, work, reason);
        return;
    }
    start(core, job);
    struct bt_decode_seq *seq = bt_decode_seq_of(core, job);
    struct bt_id root =
        bt_block_root(work->tenant, bt_fingerprint_hash(&core->config.join.fingerprint));
    if (!take_pages(core, seq, root)) {
        bt_ledger_drop(core->ledger, job);
        refuse(core, slot, work, BT_END_FULL);
        return;
    }
    if (work->prefill_here) {
        bt_kv_hold_bind(core->pool, &seq->hold, seq->n_pages_prompt - seq->n_pages_held,
                        BT_PAGE_FILLING);
        seq->state = BT_DECODE_PREFILL;
    } else {
        bt_status status = bt_kv_recv_expect(
            core->recv, now_us,
            &(struct bt_kv_expect){.ticket = work->ticket,
                                   .peer = work->peer,
                                   .chain = bt_block_prompt(root, job->tokens, job->n_tokens),
                                   .n_tokens = job->n_tokens,
                                   .n_pages = seq->n_pages_prompt,
                                   .hold = &seq->hold,
                                   .user = job->id},
            &seq->lease);
        if (status < 0) {
            bt_kv_hold_release(core->pool, &seq->hold);
            bt_ledger_drop(core->ledger, job);
            refuse(core, slot, work, status == BT_E_FULL ? BT_END_FULL : BT_END_INVALID);
            return;
        }
        seq->state = BT_DECODE_RESERVED;
    }
    core->n_active++;
    bt_ledger_answer(core->ledger, job,
                     &(struct bt_msg_reserved){.accepted = true,
                                               .pages = seq->n_pages_prompt,
                                               .pages_held = seq->n_pages_held});
}

/* Whether what the prefill worker says of the first token is what was asked, within the vocabulary.
 */
static bool is_valid_first(const struct bt_decode_core *core, const struct bt_job *job,
                           const struct bt_kv_msg *commit) {
    const struct bt_logprobs *logprobs = &commit->logprobs;
    if (commit->token < 0 || (uint32_t)commit->token >= core->config.n_vocab ||
        commit->has_logprobs != (job->sampling.logprobs > 0) ||
        (commit->has_logprobs && logprobs->n_top >= job->sampling.logprobs))
        return false;
    for (uint32_t i = 0; commit->has_logprobs && i < logprobs->n_top; i++)
        if ((uint32_t)logprobs->top[i].token >= core->config.n_vocab)
            return false;
    return true;
}

void bt_decode_on_committed(struct bt_decode_core *core, uint64_t now_us, struct bt_decode_seq *seq,
                            const struct bt_kv_msg *commit) {
    struct bt_job *job = seq->job;
    seq->kv_bytes = (uint64_t)(seq->n_pages_prompt - seq->n_pages_held) * core->config.n_layers *
                    core->config.page_bytes;
    seq->lease = BT_NO_JOB;
    seq->state = BT_DECODE_RUNNING;
    seq->p_wait_us = commit->wait_us;
    seq->p_prefill_us = commit->prefill_us;
    seq->joined_us = now_us;
    seq->n_computed = job->n_tokens;
    if (job->n_tokens % BT_PAGE_TOKENS) /* its own tokens go on in the prompt's last page */
        bt_kv_page_move(core->pool, seq->hold.pages[seq->n_pages_prompt - 1], BT_PAGE_FILLING);
    bt_decode_publish(core, seq);
    if (!is_valid_first(core, job, commit)) {
        bt_decode_end(core, now_us, seq, BT_END_CHECKSUM, true);
        return;
    }
    bt_decode_take_token(core, now_us, seq,
                         &(struct bt_step_result){.token = commit->token,
                                                  .finish = commit->finish,
                                                  .hash = commit->logits_hash,
                                                  .logprobs = commit->logprobs});
}

static struct bt_msg_ended report_of(const struct bt_decode_seq *seq, enum bt_end reason) {
    const struct bt_job *job = seq->job;
    struct bt_msg_ended end = {
        .reason = reason,
        .pages = seq->n_pages_prompt,
        .pages_held = seq->n_pages_held,
        .kv_bytes = seq->kv_bytes,
        .stages = {.queue_us = seq->p_wait_us,
                   .prefill_us = seq->p_prefill_us,
                   .steps = seq->n_steps,
                   .batch_rows = seq->batch_rows},
    };
    if (seq->granted_us && seq->joined_us)
        end.stages.transfer_us = seq->joined_us - seq->granted_us;
    if (seq->computing_us && seq->joined_us) /* computed here */
        end.stages.prefill_us = seq->joined_us - seq->computing_us;
    if (seq->computing_us)
        end.stages.queue_us = seq->computing_us - job->received_us;
    if (seq->joined_us && seq->first_step_us)
        end.stages.join_us = seq->first_step_us - seq->joined_us;
    if (seq->first_step_us)
        end.stages.decode_us = seq->last_step_us - seq->first_step_us;
    return end;
}

void bt_decode_report(struct bt_decode_core *core, struct bt_decode_seq *seq, enum bt_end reason) {
    struct bt_msg_ended report = report_of(seq, reason);
    bt_ledger_report(core->ledger, seq->job, &report);
}

static void tell_end(struct bt_decode_core *core, uint64_t now_us, struct bt_decode_seq *seq,
                     enum bt_end reason) {
    struct bt_msg_ended end = report_of(seq, reason);
    if (reason == BT_END_DONE)
        bt_decode_report(core, seq, reason);
    bt_ledger_end(core->ledger, now_us, seq->job, &end);
}

static enum bt_kv_reason kv_reason_of(enum bt_end reason, bool told) {
    switch (reason) {
    case BT_END_PREEMPTED:
        return BT_KV_REASON_PREEMPTED;
    case BT_END_DEADLINE:
        return BT_KV_REASON_DEADLINE;
    case BT_END_PEER_GONE:
        return BT_KV_REASON_PEER;
    default:
        return told ? BT_KV_REASON_LEASE : BT_KV_REASON_CANCELLED;
    }
}

void bt_decode_end(struct bt_decode_core *core, uint64_t now_us, struct bt_decode_seq *seq,
                   enum bt_end reason, bool told) {
    BT_ASSERT(seq->state != BT_DECODE_FREE && seq->state != BT_DECODE_CLOSING);
    if (told)
        tell_end(core, now_us, seq, reason);
    if (seq->state == BT_DECODE_RESERVED && seq->lease != BT_NO_JOB)
        bt_kv_recv_abort(core->recv, now_us, seq->lease, kv_reason_of(reason, told));
    else
        bt_kv_recv_forbid(core->recv, now_us, seq->job->ticket);
    seq->lease = BT_NO_JOB;
    if (seq->in_step) { /* the engine reads and writes its pages: they go when the step is back */
        seq->state = BT_DECODE_CLOSING;
        return;
    }
    bt_kv_hold_release(core->pool, &seq->hold);
    bt_ledger_drop(core->ledger, seq->job);
    seq->state = BT_DECODE_FREE;
    core->n_active--;
}

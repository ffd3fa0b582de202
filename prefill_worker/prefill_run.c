/* One prefill step: chunks of prompts, their pages on the way as each layer is done, token 0. */
#include "common/base/assert.h"
#include "prefill_worker/prefill_state.h"

static struct bt_prefill_seq *first_to_run(struct bt_prefill_core *core) {
    struct bt_prefill_seq *first = NULL;
    for (uint32_t i = 0; i < core->n_seqs; i++) {
        struct bt_prefill_seq *seq = &core->seqs[i];
        if (seq->state == BT_PREFILL_COMPUTING && !seq->in_step &&
            (!first || bt_job_due_us(seq->job) < bt_job_due_us(first->job)))
            first = seq;
    }
    return first;
}

bool bt_prefill_compose(struct bt_prefill_core *core, uint64_t now_us) {
    bt_batch_begin(&core->batch);
    core->n_layers_done = 0;
    struct bt_prefill_seq *seq;
    while (bt_batch_rows_left(&core->batch) && (seq = first_to_run(core))) {
        const struct bt_job *job = seq->job;
        uint32_t n_rows = job->n_tokens - seq->n_computed;
        uint32_t left = bt_batch_rows_left(&core->batch);
        if (n_rows > left)
            n_rows = left;
        uint32_t end = seq->n_computed + n_rows;
        bool last = end == job->n_tokens;
        /* Pages that this chunk completes; the prompt's last one counts as complete. */
        uint32_t first = seq->n_computed / BT_PAGE_TOKENS;
        uint32_t n_sums = (last ? seq->n_pages : end / BT_PAGE_TOKENS) - first;
        bool added = bt_batch_add(&core->batch, &(struct bt_batch_part){
                                                    .seq = job->id,
                                                    .tokens = job->tokens,
                                                    .n_tokens = job->n_tokens,
                                                    .n_prompt = job->n_prompt,
                                                    .position = seq->n_computed,
                                                    .n_rows = n_rows,
                                                    .pages = seq->hold.pages,
                                                    .first_sum = first,
                                                    .n_sums = n_sums,
                                                    .sample = last,
                                                    .sampling = &job->sampling,
                                                });
        BT_ASSERT(added);
        seq->in_step = true;
        if (!seq->computing_us)
            seq->computing_us = now_us;
    }
    return core->batch.step.n_seqs > 0;
}

/* The sums of the layer are kept with the pages; what the layer has completed may go. */
static void on_layer(struct bt_prefill_core *core, uint64_t now_us, uint32_t layer) {
    const struct bt_step *step = &core->batch.step;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct bt_step_seq *part = &step->seqs[i];
        struct bt_prefill_seq *seq = &core->seqs[part->seq];
        if (!bt_prefill_handles(core, seq, BT_PREFILL_ON_LAYER) || !part->n_sums)
            continue;
        const uint64_t *sums = bt_batch_sums(&core->batch, layer, i);
        for (uint32_t k = 0; k < part->n_sums; k++)
            *bt_kv_page_sum(core->pool, layer, seq->hold.pages[part->first_sum + k]) = sums[k];
        bt_kv_send_ready(core->send, now_us, seq->send, layer, part->first_sum + part->n_sums);
    }
}

void bt_prefill_on_layers(struct bt_prefill_core *core, uint64_t now_us, uint32_t n_layers_done) {
    BT_ASSERT(n_layers_done <= core->config.n_layers);
    while (core->n_layers_done < n_layers_done)
        on_layer(core, now_us, core->n_layers_done++);
}

/* Complete blocks are entered in the index; after the last chunk every page may be read only. */
static void publish(struct bt_prefill_core *core, struct bt_prefill_seq *seq) {
    const struct bt_job *job = seq->job;
    while ((seq->n_blocks + 1) * BT_PAGE_TOKENS <= seq->n_computed) {
        const int32_t *tokens = job->tokens + (size_t)seq->n_blocks * BT_PAGE_TOKENS;
        bt_kv_page_move(core->pool, seq->hold.pages[seq->n_blocks], BT_PAGE_LIVE);
        bt_kv_pool_publish(core->pool, &seq->hold, seq->n_blocks, seq->chain, tokens);
        seq->chain = bt_block_next(seq->chain, tokens);
        seq->n_blocks++;
    }
    if (seq->n_computed == job->n_tokens && job->n_tokens % BT_PAGE_TOKENS)
        bt_kv_page_move(core->pool, seq->hold.pages[seq->n_pages - 1], BT_PAGE_LIVE);
}

static void take_token(struct bt_prefill_core *core, uint64_t now_us, struct bt_prefill_seq *seq,
                       const struct bt_step_result *result) {
    struct bt_job *job = seq->job;
    seq->computed_us = now_us;
    if (result->finish == BT_FINISH_ERROR) {
        bt_prefill_end(core, now_us, seq, BT_END_NONFINITE, true);
        return;
    }
    enum bt_finish finish = result->finish;
    if (finish == BT_FINISH_NONE && job->n_tokens - job->n_prompt + 1 >= job->sampling.max_tokens)
        finish = BT_FINISH_LENGTH;
    seq->state = BT_PREFILL_HANDING;
    bt_prefill_report(core, seq);
    bt_kv_send_took(core->send, seq->send, seq->computing_us - job->received_us,
                    now_us - seq->computing_us);
    bt_ledger_token(core->ledger, job, result->token, finish, result->hash, &result->logprobs);
    bt_kv_send_finish(core->send, now_us, seq->send, result->token, finish, result->hash,
                      job->sampling.logprobs ? &result->logprobs : NULL);
}

void bt_prefill_on_step(struct bt_prefill_core *core, uint64_t now_us) {
    const struct bt_step *step = &core->batch.step;
    bt_prefill_on_layers(core, now_us, core->config.n_layers);
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct bt_step_seq *part = &step->seqs[i];
        struct bt_prefill_seq *seq = &core->seqs[part->seq];
        BT_ASSERT(seq->in_step);
        seq->in_step = false;
        if (!bt_prefill_handles(core, seq, BT_PREFILL_ON_STEP))
            continue;
        if (seq->state == BT_PREFILL_CLOSING) {
            bt_prefill_let_go(core, seq);
            continue;
        }
        seq->n_computed += part->n_rows;
        publish(core, seq);
        if (part->sample)
            take_token(core, now_us, seq, &step->results[i]);
    }
}

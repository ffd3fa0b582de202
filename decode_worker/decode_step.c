/* One decode step: who is in it, and what its results mean. */
#include "common/base/assert.h"
#include "decode_worker/decode_state.h"

static void add(struct bt_decode_core *core, uint64_t now_us, struct bt_decode_seq *seq,
                uint32_t n_rows) {
    const struct bt_job *job = seq->job;
    /* Behind the prompt's last token stands none whose logprob could be told. */
    uint32_t n_scores = bt_ledger_n_scores(job) - job->scores.n_rows;
    bool added = bt_batch_add(&core->batch, &(struct bt_batch_part){
                                                .seq = job->id,
                                                .tokens = job->tokens,
                                                .n_tokens = job->n_tokens,
                                                .n_prompt = job->n_prompt,
                                                .position = seq->n_computed,
                                                .n_rows = n_rows,
                                                .pages = seq->hold.pages,
                                                .n_scores = n_scores < n_rows ? n_scores : n_rows,
                                                .score_top = job->scores.n_top,
                                                .sample = seq->n_computed + n_rows == job->n_tokens,
                                                .sampling = &job->sampling,
                                            });
    BT_ASSERT(added);
    seq->in_step = true;
    if (seq->state == BT_DECODE_RUNNING) {
        if (!seq->first_step_us)
            seq->first_step_us = now_us;
    } else if (!seq->computing_us) {
        seq->computing_us = now_us;
    }
}

/* Prompt tokens that the step may have: beside sequences that decode so many that it is expected to
 * stay within step_us, by what rows took lately, and a few in any case, so that prompts end. */
static uint32_t prompt_budget(const struct bt_decode_core *core) {
    enum { LEAST = 8 };
    uint32_t most = core->config.chunk_tokens, n_decoding = core->batch.step.n_rows;
    if (!core->config.step_us || !n_decoding)
        return most;
    uint32_t least = most < LEAST ? most : LEAST;
    if (!core->row_ns)
        return least;
    uint64_t rows = core->config.step_us * 1000ull / core->row_ns;
    if (rows <= (uint64_t)n_decoding + least)
        return least;
    return rows - n_decoding < most ? (uint32_t)rows - n_decoding : most;
}

void bt_decode_note_step(struct bt_decode_core *core, uint64_t took_us) {
    enum { ROW_NS_MAX = 1 << 28 }; /* a quarter of a second: the sum below fits */
    uint32_t n_rows = core->batch.step.n_rows;
    if (!core->n_decoding || n_rows == core->n_decoding)
        return;
    uint64_t row_ns = took_us * 1000 / n_rows;
    if (row_ns > ROW_NS_MAX)
        row_ns = ROW_NS_MAX;
    if (row_ns < 1)
        row_ns = 1;
    core->row_ns =
        core->row_ns ? (uint32_t)((3ull * core->row_ns + row_ns + 3) / 4) : (uint32_t)row_ns;
}

/* Prompts that are computed here ride along, those due first, in chunks: what bounds the step is
 * what bounds the time between the others' tokens. */
static void add_prompts(struct bt_decode_core *core, uint64_t now_us) {
    uint32_t budget = prompt_budget(core);
    while (budget && bt_batch_rows_left(&core->batch)) {
        struct bt_decode_seq *first = NULL;
        for (uint32_t i = 0; i < core->n_seqs; i++) {
            struct bt_decode_seq *seq = &core->seqs[i];
            if (seq->state == BT_DECODE_PREFILL && !seq->in_step &&
                (!first || bt_job_due_us(seq->job) < bt_job_due_us(first->job)))
                first = seq;
        }
        if (!first)
            return;
        uint32_t n = first->job->n_tokens - first->n_computed;
        uint32_t left = bt_batch_rows_left(&core->batch);
        n = n < budget ? n : budget;
        n = n < left ? n : left;
        add(core, now_us, first, n);
        budget -= n;
    }
}

bool bt_decode_compose(struct bt_decode_core *core, uint64_t now_us) {
    bt_batch_begin(&core->batch);
    /* Growth first, for all: it may preempt sequences that stand before or after. */
    for (uint32_t i = 0; i < core->n_seqs; i++)
        if (core->seqs[i].state == BT_DECODE_RUNNING)
            bt_decode_grow(core, now_us, &core->seqs[i]);
    for (uint32_t i = 0; i < core->n_seqs; i++) {
        struct bt_decode_seq *seq = &core->seqs[i];
        if (seq->state == BT_DECODE_RUNNING && seq->n_computed < seq->hold.n_pages * BT_PAGE_TOKENS)
            add(core, now_us, seq, 1);
    }
    core->n_decoding = core->batch.step.n_rows;
    add_prompts(core, now_us);
    return core->batch.step.n_seqs > 0;
}

void bt_decode_publish(struct bt_decode_core *core, struct bt_decode_seq *seq) {
    while ((seq->n_blocks + 1) * BT_PAGE_TOKENS <= seq->n_computed) {
        const int32_t *tokens = seq->job->tokens + (size_t)seq->n_blocks * BT_PAGE_TOKENS;
        uint32_t page = seq->hold.pages[seq->n_blocks];
        if (bt_kv_page_state(core->pool, page) == BT_PAGE_FILLING)
            bt_kv_page_move(core->pool, page, BT_PAGE_LIVE);
        bt_kv_pool_publish(core->pool, &seq->hold, seq->n_blocks, seq->chain, tokens);
        seq->chain = bt_block_next(seq->chain, tokens);
        seq->n_blocks++;
    }
}

void bt_decode_take_token(struct bt_decode_core *core, uint64_t now_us, struct bt_decode_seq *seq,
                          const struct bt_step_result *result) {
    struct bt_job *job = seq->job;
    if (result->finish == BT_FINISH_ERROR) {
        bt_decode_end(core, now_us, seq, BT_END_NONFINITE, true);
        return;
    }
    uint32_t n_generated = job->n_tokens - job->n_prompt + 1;
    enum bt_finish finish = result->finish;
    if (finish == BT_FINISH_NONE && n_generated >= job->sampling.max_tokens)
        finish = BT_FINISH_LENGTH;
    bt_ledger_token(core->ledger, job, result->token, finish, result->hash, &result->logprobs);
    if (finish != BT_FINISH_NONE)
        bt_decode_end(core, now_us, seq, BT_END_DONE, true);
}

void bt_decode_on_step(struct bt_decode_core *core, uint64_t now_us) {
    const struct bt_step *step = &core->batch.step;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct bt_step_seq *part = &step->seqs[i];
        struct bt_decode_seq *seq = &core->seqs[part->seq];
        BT_ASSERT(seq->in_step);
        seq->in_step = false;
        if (!bt_decode_handles(core, seq, BT_DECODE_ON_STEP))
            continue;
        if (seq->state == BT_DECODE_CLOSING) {
            bt_kv_hold_release(core->pool, &seq->hold);
            bt_ledger_drop(core->ledger, seq->job);
            seq->state = BT_DECODE_FREE;
            core->n_active--;
            continue;
        }
        seq->n_computed += part->n_rows;
        bt_decode_publish(core, seq);
        if (seq->state == BT_DECODE_RUNNING) {
            seq->n_steps++;
            seq->batch_rows += step->n_rows;
            seq->last_step_us = now_us;
        } else if (part->sample) {
            seq->state = BT_DECODE_RUNNING;
            seq->joined_us = now_us;
            bt_decode_report(core, seq, 0);
        }
        if (part->n_scores && step->results[i].finish == BT_FINISH_ERROR) {
            bt_decode_end(core, now_us, seq, BT_END_NONFINITE, true);
            continue;
        }
        if (part->n_scores)
            bt_ledger_scores(core->ledger, seq->job, part->scores, part->n_scores);
        if (part->sample)
            bt_decode_take_token(core, now_us, seq, &step->results[i]);
    }
}

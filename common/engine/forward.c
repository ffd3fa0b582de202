/* The forward pass of a Llama-type model over one step: buffers, the step cut into jobs, sampling.
 */
#include "common/engine/forward.h"

#include <math.h>
#include <stdlib.h>

#include "common/base/assert.h"
#include "common/base/limits.h"
#include "common/base/page.h"
#include "common/device/device.h"
#include "common/engine/forward_state.h"
#include "common/engine/logprobs.h"

enum bt_kv_type bt_forward_kv_type(enum bt_profile profile, enum bt_kv_type asked) {
    if (profile == BT_PROFILE_EXACT)
        return asked == BT_KV_BY_PROFILE || asked == BT_KV_F32 ? BT_KV_F32 : BT_KV_BY_PROFILE;
    if (asked > BT_KV_INT8)
        return BT_KV_BY_PROFILE;
    return asked == BT_KV_BY_PROFILE ? BT_KV_BF16 : asked;
}

enum bt_cache_type bt_forward_cache_type(enum bt_kv_type kv_type) {
    return kv_type == BT_KV_INT8  ? BT_CACHE_INT8
           : kv_type == BT_KV_F32 ? BT_CACHE_F32
                                  : BT_CACHE_BF16;
}

/* ---- Memory ---- */

/* Hands out pieces of one allocation; with no base it only adds up. */
struct carver {
    uint8_t *base;
    size_t at;
};

static void *carve(struct carver *c, size_t bytes) {
    void *piece = c->base ? c->base + c->at : NULL;
    c->at += (bytes + 63) & ~(size_t)63;
    return piece;
}

/* Room for n_rows in each form that one of the matrices eats. */
static void carve_prepared(const struct bt_forward *f, struct carver *c, uint32_t n_rows,
                           uint32_t n_in, uint32_t forms, struct bt_prepared_rows *rows) {
    for (int form = 0; form < BT_PREPARED_COUNT; form++)
        if (forms & 1u << form)
            rows->form[form] =
                carve(c, f->kernels->prepared_bytes((enum bt_prepared)form, n_rows, n_in));
}

static uint32_t form_of(const struct bt_forward *f, const struct bt_matrix *m) {
    return 1u << f->kernels->prepared_for(m->pack);
}

static void carve_buffers(struct bt_forward *f, struct carver *c) {
    const struct bt_model_shape *s = &f->shape;
    const struct bt_weights *w = f->p.weights;
    /* Rows of the head are prepared in the same buffers; a multiple of ROWS leaves kernels room to
     * work in whole groups. */
    uint32_t n = f->p.max_rows > f->p.max_seqs ? f->p.max_rows : f->p.max_seqs;
    n = (n + BT_KERNELS_ROWS - 1) / BT_KERNELS_ROWS * BT_KERNELS_ROWS;
    size_t rows = n, q_dim = bt_forward_q_dim(f), qkv_dim = bt_forward_qkv_dim(f);
    uint32_t dim_forms = form_of(f, &w->output), attn_forms = 0, ffn_forms = 0;
    for (uint32_t l = 0; l < s->n_layers; l++) {
        const struct bt_layer_weights *layer = &w->layers[l];
        dim_forms |= form_of(f, &layer->wq) | form_of(f, &layer->wk) | form_of(f, &layer->wv) |
                     form_of(f, &layer->w_gate) | form_of(f, &layer->w_up);
        attn_forms |= form_of(f, &layer->wo);
        ffn_forms |= form_of(f, &layer->w_down);
    }
    size_t table = (size_t)f->p.max_context * (s->n_rot / 2) * sizeof(float);
    f->cos = carve(c, table);
    f->sin = carve(c, table);
    f->x = carve(c, rows * s->dim * sizeof(float));
    f->normed = carve(c, rows * s->dim * sizeof(float));
    /* The layers are done with these when the head begins: logits lie over them. */
    size_t of_layers = c->at;
    f->qkv = carve(c, rows * qkv_dim * sizeof(float));
    f->attended = carve(c, rows * q_dim * sizeof(float));
    f->gate = carve(c, rows * s->ffn_dim * sizeof(float));
    f->up = carve(c, rows * s->ffn_dim * sizeof(float));
    size_t end = c->at;
    c->at = of_layers;
    f->logits = carve(c, (size_t)f->p.max_seqs * s->n_vocab * sizeof(float));
    c->at = c->at > end ? c->at : end;
    carve_prepared(f, c, n, s->dim, dim_forms, &f->in_dim);
    carve_prepared(f, c, n, (uint32_t)q_dim, attn_forms, &f->in_attn);
    carve_prepared(f, c, n, s->ffn_dim, ffn_forms, &f->in_ffn);
    f->n_page_pointers = bt_pages_of(f->p.max_context);
    f->page_pointers = carve(c, f->n_threads * f->n_page_pointers * sizeof(void *));
    f->page_jobs = carve(c, rows * sizeof *f->page_jobs);
    f->queries = carve(c, rows * sizeof *f->queries);
    f->attend_jobs_max = bt_forward_attend_jobs_max(f, n);
    f->attend_jobs = carve(c, f->attend_jobs_max * sizeof *f->attend_jobs);
    f->n_partials = bt_forward_partial_floats(f);
    f->partials = carve(c, f->n_partials * sizeof *f->partials);
    f->sampled_seqs = carve(c, f->p.max_seqs * sizeof *f->sampled_seqs);
    f->sampled_rows = carve(c, f->p.max_seqs * sizeof *f->sampled_rows);
    f->scores = carve(c, rows * sizeof *f->scores);
    f->logit_rows = carve(c, f->p.max_seqs * sizeof *f->logit_rows);
}

static bt_status take_memory(struct bt_forward *f, struct bt_error *err) {
    struct carver c = {0};
    carve_buffers(f, &c);
    f->memory = bt_device_alloc(f->p.device, c.at);
    if (!f->memory)
        return bt_fail(err, BT_E_NO_MEMORY,
                       "no memory for steps of %u rows and %u sequences: %zu bytes", f->p.max_rows,
                       f->p.max_seqs, c.at);
    f->memory_bytes = c.at;
    c = (struct carver){f->memory, 0};
    carve_buffers(f, &c);
    f->samplers = calloc(f->n_threads, sizeof *f->samplers);
    if (!f->samplers)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u samplers", f->n_threads);
    for (uint32_t i = 0; i < f->n_threads; i++)
        BT_TRY(bt_sampler_init(&f->samplers[i], f->kernels, f->shape.n_vocab, f->p.model->eos,
                               f->p.model->n_eos, err));
    return BT_OK;
}

/* The positions' table costs some milliseconds for each thousand, so all threads make it. */
enum { TABLE_POSITIONS = 64 };

static void make_table(void *arg, uint32_t task, uint32_t thread) {
    (void)thread;
    struct bt_forward *f = arg;
    size_t half = f->shape.n_rot / 2;
    uint32_t first = task * TABLE_POSITIONS, n = f->p.max_context - first;
    const struct bt_rope_params params = {.base = (double)f->shape.rope_base,
                                          .scale = 1,
                                          .n_rot = f->shape.n_rot,
                                          .freq_factors = f->p.weights->rope_freqs};
    bt_kernels_rope_table(&params, first, n < TABLE_POSITIONS ? n : TABLE_POSITIONS,
                          f->cos + first * half, f->sin + first * half);
}

bt_status bt_forward_create(const struct bt_forward_params *params, struct bt_forward **out,
                            struct bt_error *err) {
    const struct bt_model_shape *s = &params->model->shape;
    if (!params->max_rows || !params->max_seqs || !params->max_context ||
        params->max_context > s->context)
        return bt_fail(err, BT_E_INVALID,
                       "rows (%u) and sequences (%u) of a step must be 1 or more, and the context "
                       "(%u) 1 to the model's, %u",
                       params->max_rows, params->max_seqs, params->max_context, s->context);
    enum bt_kv_type kv_type = bt_forward_kv_type(params->profile, params->kv_type);
    if (kv_type == BT_KV_BY_PROFILE)
        return bt_fail(err, BT_E_INVALID, "profile %s cannot have a KV cache of type %s",
                       bt_profile_name(params->profile), bt_kv_type_name(params->kv_type));
    struct bt_forward *f = calloc(1, sizeof *f);
    if (!f)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a forward pass");
    f->p = *params;
    f->shape = *s;
    f->kernels = bt_device_kernels(params->device);
    f->cache = bt_forward_cache_type(kv_type);
    f->n_threads = bt_device_threads(params->device);
    f->scale = 1.0f / sqrtf((float)s->head_dim);
    bt_status status = take_memory(f, err);
    if (status < 0) {
        bt_forward_destroy(f);
        return status;
    }
    bt_device_run(params->device, (params->max_context + TABLE_POSITIONS - 1) / TABLE_POSITIONS,
                  make_table, f);
    *out = f;
    return BT_OK;
}

void bt_forward_destroy(struct bt_forward *f) {
    if (!f)
        return;
    for (uint32_t i = 0; f->samplers && i < f->n_threads; i++)
        bt_sampler_fini(&f->samplers[i]);
    free(f->samplers);
    if (f->memory)
        bt_device_free(f->p.device, f->memory, f->memory_bytes);
    free(f);
}

size_t bt_forward_scratch_bytes(const struct bt_forward *f) {
    return f->memory_bytes + f->n_threads * bt_sampler_bytes(f->shape.n_vocab);
}

void bt_forward_set_profile(struct bt_forward *f, struct bt_forward_profile *profile) {
    BT_ASSERT(!profile || profile->n_threads == f->n_threads);
    f->profile = profile;
}

void bt_forward_keep_all_rows(struct bt_forward *f, bool keep) {
    f->keep_all_rows = keep;
}

/* ---- One step ---- */

static uint64_t all_busy_ns(const struct bt_forward_profile *profile) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < profile->n_threads; i++)
        sum += profile->threads[i].total_ns;
    return sum;
}

static void run_tasks(struct bt_forward *f, uint32_t n_tasks, bt_device_task *fn) {
    if (n_tasks == 1)
        fn(f, 0, 0);
    else
        bt_device_run(f->p.device, n_tasks, fn, f);
}

void bt_forward_run_tasks(struct bt_forward *f, enum bt_forward_op op, uint32_t n_tasks,
                          bt_device_task *fn) {
    struct bt_forward_profile *profile = f->profile;
    if (!profile) {
        run_tasks(f, n_tasks, fn);
        return;
    }
    uint64_t busy = all_busy_ns(profile), start = bt_clock_ns();
    run_tasks(f, n_tasks, fn);
    uint64_t all = f->n_threads * (bt_clock_ns() - start);
    busy = all_busy_ns(profile) - busy;
    profile->waiting_ns[op] += all > busy ? all - busy : 0;
    profile->n_runs += n_tasks > 1;
}

static void cut_into_pages(struct bt_forward *f, uint32_t i) {
    const struct bt_step_seq *seq = &f->step->seqs[i];
    for (uint32_t done = 0; done < seq->n_rows;) {
        uint32_t position = seq->position + done, slot = position % BT_PAGE_TOKENS;
        uint32_t n = BT_PAGE_TOKENS - slot;
        if (n > seq->n_rows - done)
            n = seq->n_rows - done;
        f->page_jobs[f->n_page_jobs++] =
            (struct bt_page_job){i, position / BT_PAGE_TOKENS, seq->first_row + done, n, slot};
        done += n;
    }
}

/* Where the logits of a sequence will be wanted. */
static void note_wanted_rows(struct bt_forward *f, uint32_t i) {
    const struct bt_step_seq *seq = &f->step->seqs[i];
    BT_ASSERT(seq->n_scores <= seq->n_rows && seq->score_top <= BT_TOP_LOGPROBS);
    if (seq->sample) {
        f->sampled_rows[f->n_sampled] = seq->first_row + seq->n_rows - 1;
        f->sampled_seqs[f->n_sampled++] = i;
    }
    for (uint32_t k = 0; k < seq->n_scores; k++) {
        BT_ASSERT(seq->next[k] >= 0 && (uint32_t)seq->next[k] < f->shape.n_vocab);
        f->scores[f->n_scores++] =
            (struct bt_score_job){.seq = i, .index = k, .row = seq->first_row + k};
    }
}

/* Checks what the cores promise, and cuts the step into jobs. */
static void begin(struct bt_forward *f, const struct bt_step *step) {
    BT_ASSERT(step->n_rows >= 1 && step->n_rows <= f->p.max_rows);
    BT_ASSERT(step->n_seqs >= 1 && step->n_seqs <= f->p.max_seqs);
    f->step = step;
    f->n_rows = step->n_rows;
    f->n_page_jobs = f->n_queries = f->n_sampled = f->n_scores = f->n_logits = 0;
    uint32_t row = 0;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct bt_step_seq *seq = &step->seqs[i];
        BT_ASSERT(seq->first_row == row && seq->n_rows >= 1);
        BT_ASSERT(seq->position < f->p.max_context &&
                  seq->n_rows <= f->p.max_context - seq->position);
        BT_ASSERT(seq->sums_at + seq->n_sums <= step->n_sums);
        row += seq->n_rows;
        cut_into_pages(f, i);
        f->queries[f->n_queries++] = (struct bt_query){.seq = i,
                                                       .row = seq->first_row,
                                                       .out_row = seq->first_row,
                                                       .n_rows = seq->n_rows,
                                                       .position = seq->position};
        note_wanted_rows(f, i);
    }
    BT_ASSERT(row == step->n_rows);
    for (uint32_t i = 0; i < step->n_rows; i++)
        BT_ASSERT(step->tokens[i] >= 0 && (uint32_t)step->tokens[i] < f->shape.n_vocab);
}

static void sample(void *arg, uint32_t task, uint32_t thread) {
    struct bt_forward *f = arg;
    struct bt_laps laps = bt_laps_begin(f, thread);
    uint32_t seq = f->sampled_seqs[task];
    f->step->results[seq] = bt_sampler_sample(&f->samplers[thread], &f->step->seqs[seq],
                                              f->logits + (size_t)task * f->shape.n_vocab);
    bt_lap(&laps, BT_OP_SAMPLE);
}

static void sample_all(struct bt_forward *f) {
    for (uint32_t i = 0; i < f->n_sampled; i++)
        f->logit_rows[i] = f->sampled_rows[i];
    f->n_logits = f->n_sampled;
    bt_forward_head(f);
    bt_forward_run_tasks(f, BT_OP_SAMPLE, f->n_sampled, sample);
}

static void score(void *arg, uint32_t task, uint32_t thread) {
    struct bt_forward *f = arg;
    struct bt_laps laps = bt_laps_begin(f, thread);
    struct bt_score_job *job = &f->scores[f->first_score + task];
    const struct bt_step_seq *seq = &f->step->seqs[job->seq];
    const float *logits = f->logits + (size_t)task * f->shape.n_vocab;
    job->is_bad = !f->kernels->all_finite(logits, f->shape.n_vocab);
    if (job->is_bad)
        seq->scores[job->index] = (struct bt_logprobs){.logprob = BT_LOGPROB_MIN};
    else
        bt_logprobs_make(f->kernels, logits, f->shape.n_vocab, seq->next[job->index],
                         seq->score_top, &seq->scores[job->index]);
    bt_lap(&laps, BT_OP_SAMPLE);
}

/* Scored rows pass the head as many at a time as there is room for logits. */
static void score_all(struct bt_forward *f) {
    for (uint32_t at = 0; at < f->n_scores; at += f->n_logits) {
        f->first_score = at;
        f->n_logits = f->n_scores - at < f->p.max_seqs ? f->n_scores - at : f->p.max_seqs;
        for (uint32_t i = 0; i < f->n_logits; i++)
            f->logit_rows[i] = f->scores[at + i].row;
        bt_forward_head(f);
        bt_forward_run_tasks(f, BT_OP_SAMPLE, f->n_logits, score);
    }
    for (uint32_t i = 0; i < f->n_scores; i++)
        if (f->scores[i].is_bad)
            f->step->results[f->scores[i].seq] =
                (struct bt_step_result){.token = -1, .finish = BT_FINISH_ERROR};
}

/* Rows of the embedding are read from the mapped file, and each brings 64 KB of it into this
 * process's memory (measured: 17 MB for a few hundred tokens of SmolLM2, which its packed copy for
 * the head holds already). Letting go costs some microseconds, once in so many rows. */
enum { EMBEDDED_ROWS_MAX = 64 };

static void let_go_of_embeddings(struct bt_forward *f) {
    f->n_embedded += f->step->n_rows;
    if (f->n_embedded < EMBEDDED_ROWS_MAX)
        return;
    f->n_embedded = 0;
    bt_gguf_release(f->p.model->gguf);
}

void bt_forward_run(struct bt_forward *f, const struct bt_step *step,
                    bt_forward_layer_done *layer_done, void *arg) {
    uint64_t start = f->profile ? bt_clock_ns() : 0;
    begin(f, step);
    bt_forward_layers(f, layer_done, arg);
    let_go_of_embeddings(f);
    for (uint32_t i = 0; f->n_scores && i < step->n_seqs; i++)
        step->results[i] = (struct bt_step_result){.token = -1};
    if (f->n_sampled)
        sample_all(f);
    score_all(f);
    if (f->profile) {
        f->profile->n_steps++;
        f->profile->wall_ns += bt_clock_ns() - start;
    }
}

const float *bt_forward_logits(struct bt_forward *f, const uint32_t *rows, uint32_t n_rows) {
    BT_ASSERT(f->keep_all_rows && n_rows >= 1 && n_rows <= f->p.max_seqs);
    for (uint32_t i = 0; i < n_rows; i++) {
        BT_ASSERT(rows[i] < f->n_rows);
        f->logit_rows[i] = rows[i];
    }
    f->n_logits = n_rows;
    bt_forward_head(f);
    return f->logits;
}

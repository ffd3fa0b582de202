/* The layers of a Llama-type model, phase by phase, and the two ways to spread them over threads.
 *
 * Many rows: each task carries a block of rows through all phases that need no other row, so that a
 * layer has two barriers (before the cache is written, and after). Few rows: each phase is cut by
 * columns, so that all threads stream the weights together. The cut changes no bit: every output
 * element is computed whole by one task, in the order that the numerics contract fixes. */
#include <string.h>
#include <xxhash.h>

#include "common/base/assert.h"
#include "common/base/limits.h"
#include "common/device/device.h"
#include "common/engine/forward_state.h"

_Static_assert((int)BT_PAGE_TOKENS == (int)BT_KERNELS_PAGE_TOKENS,
               "pages of cache and kernels are the same");

enum {
    BLOCK_ROWS_MAX = 16, /* the kernels' best group of rows; small enough for even shares */
    BLOCK_ROWS_MIN = 8,  /* fewer rows for each thread: cut by columns instead */
    TILES_OF_A_PART = 4, /* at least, where a phase is cut by columns; 2 where rows are many */
    ROWS_OF_A_TILE = 8,  /* from here on 2 tiles are enough work */
    ROWS_PER_TASK = 4,   /* of phases that go row by row, where rows are few */
};

_Static_assert((int)BLOCK_ROWS_MAX % (int)BT_KERNELS_ROWS == 0, "blocks start where kernels may");

/* Rows [first, end) of x, and part `part` of `n_parts` of every matrix's columns. */
struct span {
    uint32_t first, end;
    uint32_t part, n_parts;
};

/* y = W x for one of the matrices that read the same rows. */
struct product {
    const struct bt_matrix *matrix;
    float *y;
    size_t y_stride;
};

static const struct bt_layer_weights *layer_weights(const struct bt_forward *f) {
    return &f->p.weights->layers[f->layer];
}

/* ---- Products ---- */

/* Makes the rows ready for every matrix that will read them; mixed files need two forms. */
static void prepare(const struct bt_forward *f, const struct bt_prepared_rows *rows,
                    const struct product *products, uint32_t n_products, const float *x,
                    uint32_t n_in, const struct span *s) {
    uint32_t done = 0;
    for (uint32_t i = 0; i < n_products; i++) {
        enum bt_prepared form = f->kernels->prepared_for(products[i].matrix->pack);
        if (done & 1u << form)
            continue;
        done |= 1u << form;
        f->kernels->prepare(form, x, n_in, s->first, s->end, n_in, rows->form[form]);
    }
}

static uint32_t n_tiles(const struct bt_matrix *m) {
    return (m->n_out + BT_KERNELS_TILE - 1) / BT_KERNELS_TILE;
}

static uint32_t all_tiles(const struct product *products, uint32_t n_products) {
    uint32_t total = 0;
    for (uint32_t i = 0; i < n_products; i++)
        total += n_tiles(products[i].matrix);
    return total;
}

/* How many parts a phase of `total` column tiles has. They shrink: each thread first gets its share
 * of one half, then of half of the rest, and so on, so that there are few, and yet the last ones
 * are small and threads end together. */
static uint32_t count_parts(const struct bt_forward *f, uint32_t total, uint32_t n_rows) {
    uint32_t least = f->n_threads * (n_rows < ROWS_OF_A_TILE ? TILES_OF_A_PART : 2), levels = 1;
    if (f->n_threads == 1)
        return 1;
    while (total >> levels >= least)
        levels++;
    return levels * f->n_threads;
}

static uint32_t part_start(const struct bt_forward *f, uint32_t total, const struct span *s,
                           uint32_t part) {
    if (part == s->n_parts)
        return total;
    uint32_t level = part / f->n_threads, here = total >> level;
    if ((level + 1) * f->n_threads < s->n_parts)
        here -= total >> (level + 1);
    return total - (total >> level) +
           (uint32_t)((uint64_t)here * (part % f->n_threads) / f->n_threads);
}

/* The products stand side by side in one row of column tiles; a part is a range of it. */
static void multiply(const struct bt_forward *f, const struct bt_prepared_rows *rows,
                     const struct product *products, uint32_t n_products, bool add,
                     const struct span *s) {
    uint32_t total = all_tiles(products, n_products);
    uint32_t first = part_start(f, total, s, s->part);
    uint32_t end = part_start(f, total, s, s->part + 1);
    for (uint32_t i = 0, at = 0; i < n_products; at += n_tiles(products[i++].matrix)) {
        const struct bt_matrix *m = products[i].matrix;
        uint32_t tile_first = first > at ? first - at : 0;
        uint32_t tile_end = end > at ? end - at : 0;
        if (tile_end > n_tiles(m))
            tile_end = n_tiles(m);
        if (tile_first >= tile_end)
            continue;
        uint32_t col_end = tile_end * BT_KERNELS_TILE;
        f->kernels->linear(&(struct bt_linear){
            .pack = m->pack,
            .weights = m->packed,
            .n_in = m->n_in,
            .n_out = m->n_out,
            .x = rows->form[f->kernels->prepared_for(m->pack)],
            .row_first = s->first,
            .row_end = s->end,
            .col_first = tile_first * BT_KERNELS_TILE,
            .col_end = col_end < m->n_out ? col_end : m->n_out,
            .y = products[i].y,
            .y_stride = products[i].y_stride,
            .add = add,
        });
    }
}

enum { N_QKV = 3, N_GATE_UP = 2 };

static void qkv_products(const struct bt_forward *f, struct product out[N_QKV]) {
    const struct bt_layer_weights *w = layer_weights(f);
    out[0] = (struct product){&w->wq, f->qkv, bt_forward_qkv_dim(f)};
    out[1] = (struct product){&w->wk, f->qkv + bt_forward_q_dim(f), bt_forward_qkv_dim(f)};
    out[2] = (struct product){&w->wv, f->qkv + bt_forward_q_dim(f) + bt_forward_kv_dim(f),
                              bt_forward_qkv_dim(f)};
}

static struct product out_product(const struct bt_forward *f) {
    return (struct product){&layer_weights(f)->wo, f->x, f->shape.dim};
}

static void gate_up_products(const struct bt_forward *f, struct product out[N_GATE_UP]) {
    const struct bt_layer_weights *w = layer_weights(f);
    out[0] = (struct product){&w->w_gate, f->gate, f->shape.ffn_dim};
    out[1] = (struct product){&w->w_up, f->up, f->shape.ffn_dim};
}

static struct product down_product(const struct bt_forward *f) {
    return (struct product){&layer_weights(f)->w_down, f->x, f->shape.dim};
}

/* ---- The phases of a layer, in the order of the paper (Touvron et al. 2023) ---- */

/* x = embedding of the tokens. */
static void embed(const struct bt_forward *f, const struct span *s) {
    const struct bt_gguf_tensor *t = f->p.model->token_embd;
    size_t row_bytes = (size_t)(t->n_bytes / f->shape.n_vocab);
    for (uint32_t row = s->first; row < s->end; row++) {
        uint32_t token = (uint32_t)f->step->tokens[row];
        int result =
            f->kernels->dequantise((enum bt_tensor_type)t->type, t->data + token * row_bytes,
                                   f->shape.dim, f->x + (size_t)row * f->shape.dim);
        BT_ASSERT(result == 0); /* the model's types and shapes were checked */
    }
}

static void normalise(const struct bt_forward *f, const float *weight, const struct span *s) {
    size_t dim = f->shape.dim;
    for (uint32_t row = s->first; row < s->end; row++)
        f->kernels->rmsnorm(f->x + row * dim, weight, f->shape.dim, f->shape.norm_eps,
                            f->normed + row * dim);
}

static void norm_before_attention(const struct bt_forward *f, const struct span *s) {
    struct product products[N_QKV];
    qkv_products(f, products);
    normalise(f, layer_weights(f)->attn_norm, s);
    prepare(f, &f->in_dim, products, N_QKV, f->normed, f->shape.dim, s);
}

/* q, k, v = W normed x. */
static void project_qkv(const struct bt_forward *f, const struct span *s) {
    struct product products[N_QKV];
    qkv_products(f, products);
    multiply(f, &f->in_dim, products, N_QKV, false, s);
}

/* Rotates q and k of the rows in one page, puts k and v into it, and sums it if that is wanted. */
static void write_page(const struct bt_forward *f, const struct bt_page_job *job) {
    const struct bt_model_shape *shape = &f->shape;
    const struct bt_step_seq *seq = &f->step->seqs[job->seq];
    size_t stride = bt_forward_qkv_dim(f), half = shape->n_rot / 2;
    float *q = f->qkv + job->first_row * stride;
    for (uint32_t i = 0; i < job->n_rows; i++) {
        size_t position = (size_t)job->page * BT_PAGE_TOKENS + job->slot + i;
        f->kernels->rope(q + i * stride, shape->n_heads + shape->n_kv_heads, shape->head_dim,
                         shape->n_rot, f->cos + position * half, f->sin + position * half, 0);
    }
    void *page = bt_kv_memory_page(f->p.kv, f->layer, seq->pages[job->page]);
    f->kernels->cache_write(&(struct bt_cache_write){
        .cache = f->cache,
        .page = page,
        .slot = job->slot,
        .n_tokens = job->n_rows,
        .n_kv_heads = shape->n_kv_heads,
        .head_dim = shape->head_dim,
        .k = q + bt_forward_q_dim(f),
        .v = q + bt_forward_q_dim(f) + bt_forward_kv_dim(f),
        .stride = stride,
    });
    uint32_t end = job->slot + job->n_rows;
    if (end < BT_PAGE_TOKENS)
        f->kernels->zero_tail(f->cache, page, end, shape->n_kv_heads, shape->head_dim);
    uint32_t sum = job->page - seq->first_sum; /* wraps where the page stands before them */
    if (sum < seq->n_sums)
        f->step->sums[(size_t)f->layer * f->step->n_sums + seq->sums_at + sum] =
            XXH3_64bits(page, f->p.kv->page_bytes);
}

/* Sums of pages that were wanted, but that this step does not write. */
static void sum_other_pages(const struct bt_forward *f) {
    for (uint32_t i = 0; i < f->step->n_seqs; i++) {
        const struct bt_step_seq *seq = &f->step->seqs[i];
        uint32_t first = seq->position / BT_PAGE_TOKENS;
        uint32_t last = (seq->position + seq->n_rows - 1) / BT_PAGE_TOKENS;
        for (uint32_t j = 0; j < seq->n_sums; j++) {
            uint32_t page = seq->first_sum + j;
            if (page < first || page > last)
                f->step->sums[(size_t)f->layer * f->step->n_sums + seq->sums_at + j] = XXH3_64bits(
                    bt_kv_memory_page(f->p.kv, f->layer, seq->pages[page]), f->p.kv->page_bytes);
        }
    }
}

static void prepare_attended(const struct bt_forward *f, const struct span *s) {
    struct product product = out_product(f);
    prepare(f, &f->in_attn, &product, 1, f->attended, bt_forward_q_dim(f), s);
}

/* Where tasks have shared the keys of a row, their results become one. */
static void merge_attended(const struct bt_forward *f, const struct span *s) {
    bt_forward_merge_attended(f, s->first, s->end);
    prepare_attended(f, s);
}

/* x = x + Wo attended. */
static void project_out(const struct bt_forward *f, const struct span *s) {
    struct product product = out_product(f);
    multiply(f, &f->in_attn, &product, 1, true, s);
}

static void norm_before_ffn(const struct bt_forward *f, const struct span *s) {
    struct product products[N_GATE_UP];
    gate_up_products(f, products);
    normalise(f, layer_weights(f)->ffn_norm, s);
    prepare(f, &f->in_dim, products, N_GATE_UP, f->normed, f->shape.dim, s);
}

static void project_gate_up(const struct bt_forward *f, const struct span *s) {
    struct product products[N_GATE_UP];
    gate_up_products(f, products);
    multiply(f, &f->in_dim, products, N_GATE_UP, false, s);
}

/* gate = silu(gate) * up. */
static void activate(const struct bt_forward *f, const struct span *s) {
    struct product product = down_product(f);
    size_t at = (size_t)s->first * f->shape.ffn_dim;
    f->kernels->silu_mul(f->gate + at, f->up + at, (size_t)(s->end - s->first) * f->shape.ffn_dim,
                         f->gate + at);
    prepare(f, &f->in_ffn, &product, 1, f->gate, f->shape.ffn_dim, s);
}

/* x = x + Wdown gate. */
static void project_down(const struct bt_forward *f, const struct span *s) {
    struct product product = down_product(f);
    multiply(f, &f->in_ffn, &product, 1, true, s);
}

/* ---- Many rows: tasks are blocks of rows ---- */

/* The last rows come first: where there is one sequence they have the most keys to look at. */
static struct span block_span(const struct bt_forward *f, uint32_t task) {
    uint32_t block = (f->n_rows - 1) / f->block_rows - task;
    uint32_t first = block * f->block_rows, end = first + f->block_rows;
    return (struct span){first, end < f->n_rows ? end : f->n_rows, 0, 1};
}

static void block_before_attention(struct bt_forward *f, const struct span *s,
                                   struct bt_laps *laps) {
    norm_before_attention(f, s);
    bt_lap(laps, BT_OP_NORM);
    project_qkv(f, s);
    bt_lap(laps, BT_OP_QKV);
}

static void block_first(void *arg, uint32_t task, uint32_t thread) {
    struct bt_forward *f = arg;
    struct bt_laps laps = bt_laps_begin(f, thread);
    struct span s = block_span(f, task);
    embed(f, &s);
    bt_lap(&laps, BT_OP_EMBED);
    block_before_attention(f, &s, &laps);
}

static void task_write_page(void *arg, uint32_t task, uint32_t thread) {
    const struct bt_forward *f = arg;
    struct bt_laps laps = bt_laps_begin(f, thread);
    write_page(f, &f->page_jobs[task]);
    bt_lap(&laps, BT_OP_CACHE);
}

static void block_attend(const struct bt_forward *f, const struct span *s, uint32_t thread) {
    for (uint32_t i = 0; i < f->n_queries; i++) {
        const struct bt_query *query = &f->queries[i];
        uint32_t query_end = query->out_row + query->n_rows;
        if (query_end <= s->first || query->out_row >= s->end)
            continue;
        uint32_t first = s->first > query->out_row ? s->first - query->out_row : 0;
        uint32_t end = (s->end < query_end ? s->end : query_end) - query->out_row;
        for (uint32_t kv_head = 0; kv_head < f->shape.n_kv_heads; kv_head++)
            bt_forward_attend(f, query, first, end, kv_head, thread);
    }
}

/* From this layer's cache to the next layer's q, k and v. */
static void block_rest(void *arg, uint32_t task, uint32_t thread) {
    struct bt_forward *f = arg;
    struct span s = block_span(f, task);
    struct bt_laps laps = bt_laps_begin(f, thread);
    block_attend(f, &s, thread);
    bt_lap(&laps, BT_OP_ATTENTION);
    prepare_attended(f, &s);
    bt_lap(&laps, BT_OP_PREPARE_OUT);
    project_out(f, &s);
    bt_lap(&laps, BT_OP_OUT);
    norm_before_ffn(f, &s);
    bt_lap(&laps, BT_OP_FFN_NORM);
    project_gate_up(f, &s);
    bt_lap(&laps, BT_OP_GATE_UP);
    activate(f, &s);
    bt_lap(&laps, BT_OP_ACTIVATE);
    project_down(f, &s);
    bt_lap(&laps, BT_OP_DOWN);
    if (f->layer + 1 < f->shape.n_layers) {
        struct bt_forward next = *f;
        next.layer++;
        block_before_attention(&next, &s, &laps);
    }
}

/* ---- Few rows: tasks are parts of a phase ---- */

static struct span row_span(const struct bt_forward *f, uint32_t task) {
    uint32_t first = task * ROWS_PER_TASK, end = first + ROWS_PER_TASK;
    return (struct span){first, end < f->n_rows ? end : f->n_rows, 0, 1};
}

static struct span part_span(const struct bt_forward *f, uint32_t task) {
    return (struct span){0, f->n_rows, task, f->n_parts};
}

/* Each phase as a task of bt_device_run: by rows or by columns. */
#define PHASE_TASK(phase, op, span_of)                                    \
    static void task_##phase(void *arg, uint32_t task, uint32_t thread) { \
        struct bt_laps laps = bt_laps_begin(arg, thread);                 \
        struct span s = span_of(arg, task);                               \
        phase(arg, &s);                                                   \
        bt_lap(&laps, op);                                                \
    }
PHASE_TASK(embed, BT_OP_EMBED, row_span)
PHASE_TASK(norm_before_attention, BT_OP_NORM, row_span)
PHASE_TASK(project_qkv, BT_OP_QKV, part_span)
PHASE_TASK(merge_attended, BT_OP_PREPARE_OUT, row_span)
PHASE_TASK(project_out, BT_OP_OUT, part_span)
PHASE_TASK(norm_before_ffn, BT_OP_FFN_NORM, row_span)
PHASE_TASK(project_gate_up, BT_OP_GATE_UP, part_span)
PHASE_TASK(activate, BT_OP_ACTIVATE, row_span)
PHASE_TASK(project_down, BT_OP_DOWN, part_span)

static void run_by_rows(struct bt_forward *f, enum bt_forward_op op, bt_device_task *fn) {
    bt_forward_run_tasks(f, op, (f->n_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK, fn);
}

/* `products` are those that the phase multiplies with, for n_rows rows. */
static void run_by_parts(struct bt_forward *f, enum bt_forward_op op, bt_device_task *fn,
                         const struct product *products, uint32_t n_products, uint32_t n_rows) {
    f->n_parts = count_parts(f, all_tiles(products, n_products), n_rows);
    bt_forward_run_tasks(f, op, f->n_parts, fn);
}

static void few_rows_before_attention(struct bt_forward *f) {
    struct product qkv[N_QKV];
    qkv_products(f, qkv);
    run_by_rows(f, BT_OP_NORM, task_norm_before_attention);
    run_by_parts(f, BT_OP_QKV, task_project_qkv, qkv, N_QKV, f->n_rows);
}

static void few_rows_rest(struct bt_forward *f) {
    struct product gate_up[N_GATE_UP], out = out_product(f), down = down_product(f);
    gate_up_products(f, gate_up);
    bt_forward_run_tasks(f, BT_OP_ATTENTION, f->n_attend_jobs, bt_forward_attend_job);
    run_by_rows(f, BT_OP_PREPARE_OUT, task_merge_attended);
    run_by_parts(f, BT_OP_OUT, task_project_out, &out, 1, f->n_rows);
    run_by_rows(f, BT_OP_FFN_NORM, task_norm_before_ffn);
    run_by_parts(f, BT_OP_GATE_UP, task_project_gate_up, gate_up, N_GATE_UP, f->n_rows);
    run_by_rows(f, BT_OP_ACTIVATE, task_activate);
    run_by_parts(f, BT_OP_DOWN, task_project_down, &down, 1, f->n_rows);
}

/* ---- The whole ---- */

/* Chooses how the rows alive are spread; 0 blocks: by columns. */
static uint32_t choose_blocks(struct bt_forward *f) {
    if (f->n_rows < f->n_threads * BLOCK_ROWS_MIN)
        return 0;
    uint32_t rounds =
        (f->n_rows + f->n_threads * BLOCK_ROWS_MAX - 1) / (f->n_threads * BLOCK_ROWS_MAX);
    uint32_t rows = (f->n_rows + f->n_threads * rounds - 1) / (f->n_threads * rounds);
    uint32_t unit = rounds > 1 ? BLOCK_ROWS_MAX : BT_KERNELS_ROWS;
    f->block_rows = (rows + unit - 1) / unit * unit;
    return (f->n_rows + f->block_rows - 1) / f->block_rows;
}

/* Keeps n rows of a sequence, from its row `first`: they move up to those that were kept before. */
static void keep_rows(struct bt_forward *f, uint32_t i, uint32_t first, uint32_t n) {
    const struct bt_step_seq *seq = &f->step->seqs[i];
    size_t dim = f->shape.dim;
    uint32_t row = seq->first_row + first;
    if (!n)
        return;
    if (row != f->n_rows)
        memmove(f->x + f->n_rows * dim, f->x + row * dim, n * dim * sizeof *f->x);
    f->queries[f->n_queries++] = (struct bt_query){
        .seq = i, .row = row, .out_row = f->n_rows, .n_rows = n, .position = seq->position + first};
    f->n_rows += n;
}

/* After the last cache write, only rows whose logits are wanted matter: they move together. */
static void drop_unwanted_rows(struct bt_forward *f) {
    uint32_t n_sampled = 0, n_scores = 0;
    f->n_queries = f->n_rows = 0;
    for (uint32_t i = 0; i < f->step->n_seqs; i++) {
        const struct bt_step_seq *seq = &f->step->seqs[i];
        for (uint32_t k = 0; k < seq->n_scores; k++)
            f->scores[n_scores++].row = f->n_rows + k;
        keep_rows(f, i, 0, seq->n_scores);
        if (!seq->sample)
            continue;
        if (seq->n_scores < seq->n_rows)
            keep_rows(f, i, seq->n_rows - 1, 1);
        f->sampled_rows[n_sampled++] = f->n_rows - 1;
    }
}

void bt_forward_layers(struct bt_forward *f, bt_forward_layer_done *layer_done, void *arg) {
    uint32_t n_blocks = choose_blocks(f);
    if (!n_blocks)
        bt_forward_plan_attention(f);
    f->layer = 0;
    if (f->profile)
        bt_forward_count_embed(f);
    if (n_blocks)
        bt_forward_run_tasks(f, BT_OP_BLOCKS, n_blocks, block_first);
    else
        run_by_rows(f, BT_OP_EMBED, task_embed);
    for (; f->layer < f->shape.n_layers; f->layer++) {
        bool last = f->layer + 1 == f->shape.n_layers;
        if (!n_blocks)
            few_rows_before_attention(f);
        if (f->profile)
            bt_forward_count_cache(f);
        bt_forward_run_tasks(f, BT_OP_CACHE, f->n_page_jobs, task_write_page);
        if (f->step->n_sums)
            sum_other_pages(f);
        if (layer_done)
            layer_done(arg, f->layer);
        if (last && !f->keep_all_rows) {
            drop_unwanted_rows(f);
            if (!f->n_rows)
                return;
            n_blocks = choose_blocks(f);
            if (!n_blocks)
                bt_forward_plan_attention(f);
        }
        if (f->profile)
            bt_forward_count_rest(f);
        if (n_blocks)
            bt_forward_run_tasks(f, BT_OP_BLOCKS, n_blocks, block_rest);
        else
            few_rows_rest(f);
    }
}

static struct product head_product(const struct bt_forward *f) {
    return (struct product){&f->p.weights->output, f->logits, f->shape.n_vocab};
}

static void project_head(const struct bt_forward *f, const struct span *s) {
    struct product product = head_product(f);
    struct span rows = {0, f->n_logits, s->part, s->n_parts};
    multiply(f, &f->in_dim, &product, 1, false, &rows);
}
PHASE_TASK(project_head, BT_OP_HEAD, part_span)

static void norm_before_head(const struct bt_forward *f) {
    size_t dim = f->shape.dim;
    struct product product = head_product(f);
    struct span rows = {0, f->n_logits, 0, 1};
    struct bt_laps laps = bt_laps_begin(f, 0);
    for (uint32_t i = 0; i < f->n_logits; i++)
        f->kernels->rmsnorm(f->x + f->logit_rows[i] * dim, f->p.weights->output_norm, f->shape.dim,
                            f->shape.norm_eps, f->normed + i * dim);
    prepare(f, &f->in_dim, &product, 1, f->normed, f->shape.dim, &rows);
    bt_lap(&laps, BT_OP_HEAD_NORM);
}

void bt_forward_head(struct bt_forward *f) {
    if (f->profile)
        bt_forward_count_head(f);
    norm_before_head(f);
    struct product head = head_product(f);
    run_by_parts(f, BT_OP_HEAD, task_project_head, &head, 1, f->n_logits);
}

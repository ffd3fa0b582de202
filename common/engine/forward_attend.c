/* Attention over the cache, and how the attention of few rows is shared out: by query and kv head,
 * and, where that makes too few tasks, by pieces of the keys too.
 *
 * A piece's results depend on nothing but its keys, and they are merged in ascending order whoever
 * computed them, so the cut changes no bit. */
#include "common/base/assert.h"
#include "common/base/limits.h"
#include "common/base/page.h"
#include "common/engine/forward_state.h"

enum {
    SPLIT_SHARES = 4,     /* a task above 1 / SPLIT_SHARES of a thread's work is cut ... */
    GRAINS = 8,           /* ... into tasks of 1 / GRAINS of it */
    SPLIT_PIECES = 2,     /* fewer pieces are not worth a merge */
    SPLIT_TASKS_MAX = 64, /* room in the partials, in tasks over the whole context */
    PIECE_PAGES = BT_KERNELS_PIECE_TOKENS / BT_KERNELS_PAGE_TOKENS,
};

static uint32_t n_group(const struct bt_forward *f) {
    return f->shape.n_heads / f->shape.n_kv_heads;
}

static uint32_t pieces_of(uint32_t n_positions) {
    return (n_positions + BT_KERNELS_PIECE_TOKENS - 1) / BT_KERNELS_PIECE_TOKENS;
}

/* Of those that the query's rows see. */
static uint32_t first_piece(const struct bt_forward *f, const struct bt_query *query) {
    uint32_t window = f->shape.window, seen = query->position + 1;
    return window && seen > window ? (seen - window) / BT_KERNELS_PIECE_TOKENS : 0;
}

static uint32_t query_pieces(const struct bt_forward *f, const struct bt_query *query) {
    return pieces_of(query->position + query->n_rows) - first_piece(f, query);
}

/* Floats that one kv head's results of one piece take, and those of all its pieces. */
static size_t piece_floats(const struct bt_forward *f, const struct bt_query *query) {
    return (size_t)query->n_rows * n_group(f) * BT_KERNELS_PARTIAL_FLOATS(f->shape.head_dim);
}

static size_t head_floats(const struct bt_forward *f, const struct bt_query *query) {
    return query_pieces(f, query) * piece_floats(f, query);
}

size_t bt_forward_partial_floats(const struct bt_forward *f) {
    size_t tasks = f->n_threads * SPLIT_SHARES;
    if (f->n_threads == 1)
        return 0;
    tasks = tasks < SPLIT_TASKS_MAX ? tasks : SPLIT_TASKS_MAX;
    return tasks * pieces_of(f->p.max_context) * n_group(f) *
           BT_KERNELS_PARTIAL_FLOATS(f->shape.head_dim);
}

uint32_t bt_forward_attend_jobs_max(const struct bt_forward *f, uint32_t n_rows) {
    return n_rows * f->shape.n_kv_heads + f->n_threads * GRAINS;
}

/* Rows [first, end) of a query; the caller adds whose pages, and what to do with them. */
static struct bt_attention attention_args(const struct bt_forward *f, const struct bt_query *query,
                                          uint32_t first, uint32_t end, uint32_t kv_head) {
    size_t q_dim = bt_forward_q_dim(f), q_stride = bt_forward_qkv_dim(f);
    return (struct bt_attention){
        .cache = f->cache,
        .kv_head = kv_head,
        .n_group = n_group(f),
        .head_dim = f->shape.head_dim,
        .position = query->position + first,
        .n_rows = end - first,
        .window = f->shape.window,
        .scale = f->scale,
        .q = f->qkv + (query->row + first) * q_stride,
        .q_stride = q_stride,
        .out = f->attended + (query->out_row + first) * q_dim,
        .out_stride = q_dim,
    };
}

/* Where this layer's pages [first, end) of the query's sequence stand, for one thread. */
static const void *const *find_pages(const struct bt_forward *f, const struct bt_query *query,
                                     uint32_t first, uint32_t end, uint32_t thread) {
    const struct bt_step_seq *seq = &f->step->seqs[query->seq];
    const void **pages = f->page_pointers + thread * f->n_page_pointers;
    for (uint32_t i = first; i < end; i++)
        pages[i] = bt_kv_memory_page(f->p.kv, f->layer, seq->pages[i]);
    return pages;
}

void bt_forward_attend(const struct bt_forward *f, const struct bt_query *query, uint32_t first,
                       uint32_t end, uint32_t kv_head, uint32_t thread) {
    struct bt_attention args = attention_args(f, query, first, end, kv_head);
    args.pages = find_pages(f, query, 0, bt_pages_of(query->position + end), thread);
    f->kernels->attention(&args);
}

/* Some pieces of a query whose keys tasks share. */
static void attend_pieces(const struct bt_forward *f, const struct bt_attend_job *job,
                          uint32_t thread) {
    const struct bt_query *query = &f->queries[job->query];
    struct bt_attention args = attention_args(f, query, 0, query->n_rows, job->kv_head);
    uint32_t n_pages = bt_pages_of(query->position + query->n_rows);
    uint32_t end = job->piece_end * PIECE_PAGES;
    args.pages =
        find_pages(f, query, job->piece_first * PIECE_PAGES, end < n_pages ? end : n_pages, thread);
    args.partials_stride = piece_floats(f, query);
    args.partials = query->partials + job->kv_head * head_floats(f, query) +
                    (job->piece_first - first_piece(f, query)) * args.partials_stride;
    args.piece_first = job->piece_first;
    args.piece_end = job->piece_end;
    f->kernels->attention(&args);
}

void bt_forward_attend_job(void *arg, uint32_t task, uint32_t thread) {
    const struct bt_forward *f = arg;
    struct bt_laps laps = bt_laps_begin(f, thread);
    const struct bt_attend_job *job = &f->attend_jobs[task];
    const struct bt_query *query = &f->queries[job->query];
    if (query->partials)
        attend_pieces(f, job, thread);
    else
        bt_forward_attend(f, query, 0, query->n_rows, job->kv_head, thread);
    bt_lap(&laps, BT_OP_ATTENTION);
}

void bt_forward_merge_attended(const struct bt_forward *f, uint32_t first, uint32_t end) {
    for (uint32_t i = 0; i < f->n_queries; i++) {
        const struct bt_query *query = &f->queries[i];
        uint32_t query_end = query->out_row + query->n_rows;
        if (!query->partials || query_end <= first || query->out_row >= end)
            continue;
        uint32_t from = first > query->out_row ? first - query->out_row : 0;
        uint32_t to = (end < query_end ? end : query_end) - query->out_row;
        for (uint32_t kv_head = 0; kv_head < f->shape.n_kv_heads; kv_head++) {
            struct bt_attention args = attention_args(f, query, from, to, kv_head);
            args.partials_stride = piece_floats(f, query);
            args.partials =
                query->partials + kv_head * head_floats(f, query) +
                (size_t)from * n_group(f) * BT_KERNELS_PARTIAL_FLOATS(f->shape.head_dim);
            args.piece_first = first_piece(f, query);
            args.piece_end = args.piece_first + query_pieces(f, query);
            f->kernels->attention_merge(&args);
        }
    }
}

/* Work of one kv head, in pieces of one row. */
static uint64_t query_cost(const struct bt_forward *f, const struct bt_query *query) {
    return (uint64_t)query->n_rows * query_pieces(f, query);
}

/* Gives a query its place in the partials if its tasks are too large beside a thread's work. */
static void choose_split(struct bt_forward *f, struct bt_query *query, uint64_t total,
                         size_t *floats_used) {
    uint64_t cost = query_cost(f, query);
    size_t floats = head_floats(f, query) * f->shape.n_kv_heads;
    query->partials = NULL;
    if (query_pieces(f, query) < SPLIT_PIECES || cost * f->n_threads * SPLIT_SHARES <= total ||
        floats > f->n_partials - *floats_used)
        return;
    query->partials = f->partials + *floats_used;
    *floats_used += floats;
}

static void add_jobs(struct bt_forward *f, uint32_t query_i, uint32_t n_cuts) {
    const struct bt_query *query = &f->queries[query_i];
    uint32_t first = first_piece(f, query), n = query_pieces(f, query);
    for (uint32_t cut = 0; cut < n_cuts; cut++)
        for (uint32_t kv_head = 0; kv_head < f->shape.n_kv_heads; kv_head++) {
            BT_ASSERT(f->n_attend_jobs < f->attend_jobs_max);
            f->attend_jobs[f->n_attend_jobs++] = (struct bt_attend_job){
                query_i, kv_head, first + cut * n / n_cuts, first + (cut + 1) * n / n_cuts};
        }
}

void bt_forward_plan_attention(struct bt_forward *f) {
    uint64_t total = 0;
    size_t floats_used = 0;
    for (uint32_t i = 0; i < f->n_queries; i++)
        total += query_cost(f, &f->queries[i]) * f->shape.n_kv_heads;
    f->n_attend_jobs = 0;
    /* Whole queries first: small tasks at the end leave no thread waiting for long. */
    for (uint32_t i = 0; i < f->n_queries; i++) {
        choose_split(f, &f->queries[i], total, &floats_used);
        if (!f->queries[i].partials)
            add_jobs(f, i, 1);
    }
    for (uint32_t i = 0; i < f->n_queries; i++) {
        const struct bt_query *query = &f->queries[i];
        uint64_t n_cuts = query_cost(f, query) * f->n_threads * GRAINS / total;
        if (query->partials)
            add_jobs(f, i,
                     n_cuts < query_pieces(f, query) ? (uint32_t)n_cuts : query_pieces(f, query));
    }
}

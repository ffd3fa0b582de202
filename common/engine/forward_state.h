/* What the forward pass keeps between its parts: buffers, and the step cut into jobs. Private to
 * the files forward*.c. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/clock.h"
#include "common/device/device.h"
#include "common/engine/forward.h"
#include "common/engine/forward_profile.h"
#include "common/engine/sampler.h"
#include "kernels/kernels.h"

/* Rows of activations in the forms that the matrices eat which read them; NULL where none does. */
struct bt_prepared_rows {
    void *form[BT_PREPARED_COUNT];
};

/* Rows of one sequence that stand in one page: they are rotated and written by one task. */
struct bt_page_job {
    uint32_t seq;
    uint32_t page; /* index in the sequence's pages */
    uint32_t first_row, n_rows;
    uint32_t slot; /* of the first row in the page */
};

/* Neighbouring rows of one sequence that ask the cache. */
struct bt_query {
    uint32_t seq;
    uint32_t row;     /* of q */
    uint32_t out_row; /* of the result; differs from row only in the last layer */
    uint32_t n_rows;
    uint32_t position; /* of the first row */
    float *partials;   /* (kv heads, pieces, packed rows) if tasks share its keys, else NULL */
};

/* A task of attention where few rows are alive: one query and kv head, and which pieces. */
struct bt_attend_job {
    uint32_t query, kv_head;
    uint32_t piece_first, piece_end; /* all, if the query is not shared */
};

/* A row whose logits give the logprobs of the token after it. */
struct bt_score_job {
    uint32_t seq, index; /* of step.seqs[seq].scores */
    uint32_t row;        /* of x after the last layer */
    bool is_bad;         /* its logits are not all finite */
};

struct bt_forward {
    struct bt_forward_params p;
    struct bt_model_shape shape;
    const struct bt_kernels *kernels;
    enum bt_cache_type cache;
    float scale; /* of a score: 1 / sqrt(Dh) */
    uint32_t n_threads;
    bool keep_all_rows;
    struct bt_forward_profile *profile; /* NULL: nobody asks where the time goes */

    /* Buffers; T = max_rows. */
    uint8_t *memory;
    size_t memory_bytes;
    float *cos, *sin;                /* (max_context, n_rot / 2) */
    float *x;                        /* (T, D) the residual stream */
    float *normed;                   /* (T, D) */
    float *qkv;                      /* (T, H Dh + 2 K Dh) */
    float *attended;                 /* (T, H Dh) */
    float *gate, *up;                /* (T, F) */
    float *logits;                   /* (max_seqs, V); over qkv, attended, gate and up */
    struct bt_prepared_rows in_dim;  /* (T, D) */
    struct bt_prepared_rows in_attn; /* (T, H Dh) */
    struct bt_prepared_rows in_ffn;  /* (T, F) */
    const void **page_pointers;      /* (threads, pages of max_context) */
    size_t n_page_pointers;          /* of one thread */
    struct bt_page_job *page_jobs;   /* [T] */
    struct bt_query *queries;        /* [max(T, max_seqs)] */
    struct bt_attend_job *attend_jobs;
    uint32_t attend_jobs_max;
    float *partials; /* results of pieces that wait for the merge */
    size_t n_partials;
    uint32_t *sampled_seqs;      /* [max_seqs] */
    uint32_t *sampled_rows;      /* [max_seqs] of x after the last layer */
    struct bt_score_job *scores; /* [T] */
    uint32_t *logit_rows;        /* [max_seqs] rows of x, one for each row of logits */
    struct bt_sampler *samplers; /* [threads] */

    uint32_t n_embedded; /* rows read from the file since its memory was let go */

    /* The step that runs. */
    const struct bt_step *step;
    uint32_t n_rows; /* of x that are alive */
    uint32_t n_page_jobs, n_queries, n_attend_jobs, n_sampled, n_scores, n_logits;
    uint32_t first_score; /* the one whose logits stand in row 0 */
    uint32_t layer;
    uint32_t block_rows; /* of a task that carries its rows through many phases */
    uint32_t n_parts;    /* into which the columns of a phase are cut */
};

/* Floats of a row's queries, of its keys (or values), and of q, k and v together. */
static inline uint32_t bt_forward_q_dim(const struct bt_forward *fwd) {
    return fwd->shape.n_heads * fwd->shape.head_dim;
}

static inline uint32_t bt_forward_kv_dim(const struct bt_forward *fwd) {
    return fwd->shape.n_kv_heads * fwd->shape.head_dim;
}

static inline uint32_t bt_forward_qkv_dim(const struct bt_forward *fwd) {
    return bt_forward_q_dim(fwd) + 2 * bt_forward_kv_dim(fwd);
}

/* All layers; x holds the last residual after it. */
void bt_forward_layers(struct bt_forward *fwd, bt_forward_layer_done *layer_done, void *arg);
/* The head for the rows in logit_rows. */
void bt_forward_head(struct bt_forward *fwd);

/* Calls fn(fwd, task, thread) for all tasks, on this thread where there is only one. `op` is what a
 * profile calls the run. */
void bt_forward_run_tasks(struct bt_forward *fwd, enum bt_forward_op op, uint32_t n_tasks,
                          bt_device_task *fn);

/* ---- Profile ---- */

/* Add what the step's rows, and those of the current layer, take; only where there is a profile. */
void bt_forward_count_embed(const struct bt_forward *fwd);
void bt_forward_count_cache(const struct bt_forward *fwd); /* q, k, v and the cache's write */
void bt_forward_count_rest(const struct bt_forward *fwd);  /* of the layer */
void bt_forward_count_head(const struct bt_forward *fwd);

/* Times the ops that a task goes through, one after the other; nothing without a profile. */
struct bt_laps {
    struct bt_op_times *times;
    uint64_t at;
};

static inline struct bt_laps bt_laps_begin(const struct bt_forward *fwd, uint32_t thread) {
    if (!fwd->profile)
        return (struct bt_laps){0};
    return (struct bt_laps){&fwd->profile->threads[thread], bt_clock_ns()};
}

/* What was done since the last lap was `op`. */
static inline void bt_lap(struct bt_laps *laps, enum bt_forward_op op) {
    if (!laps->times)
        return;
    uint64_t now = bt_clock_ns();
    laps->times->busy_ns[op] += now - laps->at;
    laps->times->total_ns += now - laps->at;
    laps->at = now;
}

/* ---- Attention ---- */

/* attended = softmax(q k / sqrt(Dh)) v, for rows [first, end) of one query and one kv head. */
void bt_forward_attend(const struct bt_forward *f, const struct bt_query *query, uint32_t first,
                       uint32_t end, uint32_t kv_head, uint32_t thread);
/* The same for few rows: the plan cuts the queries alive into n_attend_jobs tasks, once for all
 * layers; after all of them the rows [first, end) of attended must be merged. */
void bt_forward_plan_attention(struct bt_forward *f);
void bt_forward_attend_job(void *arg, uint32_t task, uint32_t thread);
void bt_forward_merge_attended(const struct bt_forward *f, uint32_t first, uint32_t end);
/* What the plan needs at most: floats of partials, and jobs for n_rows rows. */
size_t bt_forward_partial_floats(const struct bt_forward *f);
uint32_t bt_forward_attend_jobs_max(const struct bt_forward *f, uint32_t n_rows);

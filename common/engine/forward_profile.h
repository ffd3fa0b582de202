/* Where the time of steps goes, op by op: what each thread spent on it, what was waited for it, and
 * how many bytes and operations it took.
 *
 * The forward pass fills it while it is set (bt_engine_set_profile); without one a task costs a
 * comparison more. Belongs to whoever created it, who reads it between steps. */
#pragma once
#include <stdint.h>

#include "common/base/status.h"

enum bt_forward_op {
    BT_OP_EMBED,
    BT_OP_NORM, /* and preparing the rows for the product that follows; so below */
    BT_OP_QKV,
    BT_OP_CACHE, /* RoPE, cache write, checksums of pages */
    BT_OP_ATTENTION,
    BT_OP_PREPARE_OUT,
    BT_OP_OUT,
    BT_OP_FFN_NORM,
    BT_OP_GATE_UP,
    BT_OP_ACTIVATE,
    BT_OP_DOWN,
    BT_OP_HEAD_NORM,
    BT_OP_HEAD,
    BT_OP_SAMPLE, /* and scores of prompt tokens */
    BT_OP_BLOCKS, /* only waited for: the end of blocks of rows, which go through many ops */
    BT_OP_COUNT
};

/* One thread's; each on its own cache lines. */
struct bt_op_times {
    _Alignas(64) uint64_t busy_ns[BT_OP_COUNT];
    uint64_t total_ns;
};

/* Sums over all layers, steps and threads since create or reset. Bytes are those that a step must
 * read at least: weights, cache and embeddings once each, whatever is read again. */
struct bt_forward_profile {
    struct bt_op_times *threads; /* [n_threads] */
    uint32_t n_threads;
    uint64_t n_steps, wall_ns;        /* of whole steps */
    uint64_t n_runs;                  /* runs of tasks that all threads joined */
    uint64_t waiting_ns[BT_OP_COUNT]; /* threads without a task while a run of this op ends */
    uint64_t bytes[BT_OP_COUNT];      /* read, or written for BT_OP_CACHE */
    uint64_t operations[BT_OP_COUNT]; /* multiplications and additions of products and
                                         attention */
};

bt_status bt_forward_profile_init(struct bt_forward_profile *profile, uint32_t n_threads,
                                  struct bt_error *err);
void bt_forward_profile_reset(struct bt_forward_profile *profile);
/* Accepts a zeroed struct. */
void bt_forward_profile_fini(struct bt_forward_profile *profile);

/* "qkv", "attention" and so on. */
const char *bt_forward_op_name(enum bt_forward_op op);
/* Of all threads together. */
uint64_t bt_forward_profile_busy_ns(const struct bt_forward_profile *profile,
                                    enum bt_forward_op op);

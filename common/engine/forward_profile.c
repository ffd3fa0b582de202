/* Keeps what a profile of the forward pass adds up, and counts each op's bytes and operations. */
#include "common/engine/forward_profile.h"

#include <stdlib.h>
#include <string.h>

#include "common/engine/forward_state.h"

bt_status bt_forward_profile_init(struct bt_forward_profile *profile, uint32_t n_threads,
                                  struct bt_error *err) {
    *profile = (struct bt_forward_profile){.n_threads = n_threads};
    profile->threads = aligned_alloc(64, n_threads * sizeof *profile->threads);
    if (!profile->threads)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a profile of %u threads", n_threads);
    bt_forward_profile_reset(profile);
    return BT_OK;
}

void bt_forward_profile_reset(struct bt_forward_profile *profile) {
    memset(profile->threads, 0, profile->n_threads * sizeof *profile->threads);
    *profile =
        (struct bt_forward_profile){.threads = profile->threads, .n_threads = profile->n_threads};
}

void bt_forward_profile_fini(struct bt_forward_profile *profile) {
    free(profile->threads);
    *profile = (struct bt_forward_profile){0};
}

const char *bt_forward_op_name(enum bt_forward_op op) {
    static const char *const names[BT_OP_COUNT] = {
        [BT_OP_EMBED] = "embed",
        [BT_OP_NORM] = "norm",
        [BT_OP_QKV] = "qkv",
        [BT_OP_CACHE] = "cache write",
        [BT_OP_ATTENTION] = "attention",
        [BT_OP_PREPARE_OUT] = "prepare out",
        [BT_OP_OUT] = "out",
        [BT_OP_FFN_NORM] = "ffn norm",
        [BT_OP_GATE_UP] = "gate up",
        [BT_OP_ACTIVATE] = "activate",
        [BT_OP_DOWN] = "down",
        [BT_OP_HEAD_NORM] = "head norm",
        [BT_OP_HEAD] = "head",
        [BT_OP_SAMPLE] = "sample",
        [BT_OP_BLOCKS] = "ends of blocks",
    };
    return names[op];
}

uint64_t bt_forward_profile_busy_ns(const struct bt_forward_profile *profile,
                                    enum bt_forward_op op) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < profile->n_threads; i++)
        sum += profile->threads[i].busy_ns[op];
    return sum;
}

/* ---- What the ops of a step take ---- */

static void count_product(const struct bt_forward *f, enum bt_forward_op op,
                          const struct bt_matrix *m, uint64_t n_rows) {
    f->profile->bytes[op] += f->kernels->packed_bytes(m->pack, m->n_out, m->n_in);
    f->profile->operations[op] += 2 * n_rows * m->n_in * m->n_out;
}

/* A token's K and V in one layer. */
static uint64_t token_bytes(const struct bt_forward *f) {
    return f->p.kv->page_bytes / BT_KERNELS_PAGE_TOKENS;
}

void bt_forward_count_embed(const struct bt_forward *f) {
    const struct bt_gguf_tensor *t = f->p.model->token_embd;
    f->profile->bytes[BT_OP_EMBED] += t->n_bytes / f->shape.n_vocab * f->n_rows;
}

void bt_forward_count_cache(const struct bt_forward *f) {
    const struct bt_layer_weights *w = &f->p.weights->layers[f->layer];
    count_product(f, BT_OP_QKV, &w->wq, f->n_rows);
    count_product(f, BT_OP_QKV, &w->wk, f->n_rows);
    count_product(f, BT_OP_QKV, &w->wv, f->n_rows);
    f->profile->bytes[BT_OP_CACHE] += token_bytes(f) * f->n_rows;
}

void bt_forward_count_rest(const struct bt_forward *f) {
    const struct bt_layer_weights *w = &f->p.weights->layers[f->layer];
    for (uint32_t i = 0; i < f->n_queries; i++) {
        const struct bt_query *q = &f->queries[i];
        uint64_t last = (uint64_t)q->position + q->n_rows, n = q->n_rows;
        uint64_t pairs = n * last - n * (n - 1) / 2; /* of a row and a key that it sees */
        f->profile->bytes[BT_OP_ATTENTION] += last * token_bytes(f);
        f->profile->operations[BT_OP_ATTENTION] += 4 * pairs * f->shape.n_heads * f->shape.head_dim;
    }
    count_product(f, BT_OP_OUT, &w->wo, f->n_rows);
    count_product(f, BT_OP_GATE_UP, &w->w_gate, f->n_rows);
    count_product(f, BT_OP_GATE_UP, &w->w_up, f->n_rows);
    count_product(f, BT_OP_DOWN, &w->w_down, f->n_rows);
}

void bt_forward_count_head(const struct bt_forward *f) {
    count_product(f, BT_OP_HEAD, &f->p.weights->output, f->n_logits);
}

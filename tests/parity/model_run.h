/* A model opened for a test: sequences with pages of their own, fed in steps of any shape. */
#pragma once
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/base/limits.h"
#include "common/device/device.h"
#include "common/engine/forward.h"
#include "tests/parity/golden.h"

enum { RUN_ROWS = 512, RUN_SEQS = 64 };

struct model_run {
    struct bt_device *device;
    struct bt_model model;
    struct bt_weights weights;
    struct bt_kv_memory kv;
    struct bt_forward *forward;
    uint32_t n_pages, next_page;
    uint64_t next_step;
};

/* One sequence; its pages are taken as it grows, each second one from the other end of the memory,
 * so that nothing depends on neighbouring pages. */
struct run_seq {
    uint32_t *pages;
    uint32_t n_pages;
    uint32_t position;
};

/* What the bits depend on. */
struct arithmetic {
    const char *name;
    enum bt_profile profile;
    enum bt_kv_type kv_type;
};
static const struct arithmetic FAST = {"fast", BT_PROFILE_FAST, BT_KV_BY_PROFILE},
                               FAST_INT8 = {"fast, int8 cache", BT_PROFILE_FAST, BT_KV_INT8},
                               BF16 = {"bf16", BT_PROFILE_BF16, BT_KV_BY_PROFILE},
                               EXACT = {"exact", BT_PROFILE_EXACT, BT_KV_BY_PROFILE};

struct run_options {
    const char *path; /* model file */
    enum bt_profile profile;
    enum bt_kv_type kv_type; /* 0: the profile's */
    const char *cpu;         /* kernels; NULL: the fastest */
    uint32_t n_threads;
    uint32_t max_context;
    uint32_t n_pages;
};

static inline void run_open(struct model_run *run, const struct run_options *o) {
    struct bt_error err = {0};
    char remark[BT_ERROR_TEXT_BYTES];
    *run = (struct model_run){.n_pages = o->n_pages};
    const struct bt_device_params device = {
        .kind = "cpu", .path = o->cpu, .n_threads = o->n_threads};
    if (bt_device_open(&device, &run->device, remark, &err) < 0 ||
        bt_model_open(o->path, &run->model, &err) < 0 ||
        bt_weights_load(&run->weights, &run->model, o->profile, run->device, NULL, NULL, &err) < 0)
        fail_msg("%s", err.text);
    const struct bt_model_shape *s = &run->model.shape;
    enum bt_cache_type cache = bt_forward_cache_type(bt_forward_kv_type(o->profile, o->kv_type));
    size_t page_bytes =
        bt_device_kernels(run->device)->page_bytes(cache, s->n_kv_heads, s->head_dim);
    if (bt_kv_memory_init(&run->kv, run->device, s->n_layers, o->n_pages, page_bytes, &err) < 0)
        fail_msg("%s", err.text);
    const struct bt_forward_params params = {
        .device = run->device,
        .model = &run->model,
        .weights = &run->weights,
        .kv = &run->kv,
        .profile = o->profile,
        .kv_type = o->kv_type,
        .max_rows = RUN_ROWS,
        .max_seqs = RUN_SEQS,
        .max_context = o->max_context < s->context ? o->max_context : s->context,
    };
    if (bt_forward_create(&params, &run->forward, &err) < 0)
        fail_msg("%s", err.text);
    bt_forward_keep_all_rows(run->forward, true);
}

static inline void run_close(struct model_run *run) {
    bt_forward_destroy(run->forward);
    bt_kv_memory_fini(&run->kv);
    bt_weights_fini(&run->weights);
    bt_model_close(&run->model);
    bt_device_close(run->device);
}

static inline void run_seq_init(struct model_run *run, struct run_seq *seq) {
    *seq = (struct run_seq){.pages = calloc(run->n_pages, sizeof *seq->pages)};
    assert_non_null(seq->pages);
}

static inline void run_seq_fini(struct run_seq *seq) {
    free(seq->pages);
    *seq = (struct run_seq){0};
}

/* All pages are free again; sequences must be initialised anew. */
static inline void run_forget_pages(struct model_run *run) {
    run->next_page = 0;
}

static inline void run_cover(struct model_run *run, struct run_seq *seq, uint32_t positions) {
    while (seq->n_pages * BT_PAGE_TOKENS < positions) {
        assert_true(run->next_page < run->n_pages);
        uint32_t i = run->next_page++;
        seq->pages[seq->n_pages++] = i % 2 ? run->n_pages - 1 - i / 2 : i / 2;
    }
}

/* One sequence's rows in a step. */
struct run_rows {
    struct run_seq *seq;
    const int32_t *tokens;
    uint32_t n;
};

/* One step over all of them; nothing is sampled. Afterwards bt_forward_logits gives any row. */
static inline void run_step(struct model_run *run, const struct run_rows *rows, uint32_t n_seqs) {
    int32_t tokens[RUN_ROWS];
    struct bt_step_seq seqs[RUN_SEQS];
    struct bt_step_result results[RUN_SEQS];
    struct bt_step step = {
        .id = ++run->next_step, .tokens = tokens, .seqs = seqs, .results = results};
    for (uint32_t i = 0; i < n_seqs; i++) {
        struct run_seq *seq = rows[i].seq;
        run_cover(run, seq, seq->position + rows[i].n);
        seqs[step.n_seqs++] = (struct bt_step_seq){.seq = i,
                                                   .first_row = step.n_rows,
                                                   .n_rows = rows[i].n,
                                                   .position = seq->position,
                                                   .pages = seq->pages};
        assert_true(step.n_rows + rows[i].n <= RUN_ROWS);
        memcpy(tokens + step.n_rows, rows[i].tokens, rows[i].n * sizeof *tokens);
        step.n_rows += rows[i].n;
        seq->position += rows[i].n;
    }
    bt_forward_run(run->forward, &step, NULL, NULL);
}

/* Logits of one row of the last step. */
static inline const float *run_logits(struct model_run *run, uint32_t row) {
    return bt_forward_logits(run->forward, &row, 1);
}

static inline uint64_t row_hash(const float *logits, uint32_t n_vocab) {
    return XXH3_64bits(logits, n_vocab * sizeof *logits);
}

static inline uint32_t row_argmax(const float *row, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (row[i] > row[best])
            best = i;
    return best;
}

static inline bool test_is_long(void) {
    const char *value = getenv("BATON_TEST_LONG");
    return value && *value && strcmp(value, "0") != 0;
}

/* Where scripts/get-model puts the default model; false where it is not. */
static inline bool find_smollm2(char path[4096]) {
    const char *cache = getenv("BATON_CACHE"), *home = getenv("HOME");
    snprintf(path, 4096, "%s%s/SmolLM2-135M-Instruct.Q4_1.gguf",
             cache  ? cache
             : home ? home
                    : "",
             cache ? "" : "/.cache/baton");
    return access(path, R_OK) == 0;
}

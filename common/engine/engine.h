/* The model behind a worker's event loop: takes one step at a time, answers by events.
 *
 * Created and destroyed by the worker's loop thread, and only that thread calls what stands here.
 * Inside are one compute thread, which runs the forward pass, and the device's threads, which it
 * drives. While a step runs the loop is free; results come as events through a ring whose
 * descriptor the loop watches. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/fingerprint.h"
#include "common/base/status.h"
#include "common/engine/step.h"

struct bt_engine;
struct bt_forward_profile;
struct bt_kv_memory;

struct bt_engine_params {
    const char *model_path;
    const char *device; /* "cpu"; NULL: cpu */
    const char *path;   /* kernels, as in BATON_CPU; NULL: that variable, else the fastest */
    uint32_t n_threads; /* that compute; 0: one per CPU that this process is given */
    bool pin;           /* one CPU for each of them */
    uint32_t pin_first_cpu;
    enum bt_profile profile;
    enum bt_kv_type kv_type; /* of the cache; BY_PROFILE: bf16, in profile exact f32, the only one
                                there */
    /* Pages of the KV cache: at most n_pages (0: no such bound) and what kv_bytes_max holds (0: no
     * such bound); not both 0. bt_engine_info says how many they became. */
    uint32_t n_pages;
    uint64_t kv_bytes_max;
    uint32_t max_rows;    /* rows in a step */
    uint32_t max_seqs;    /* sequences in a step */
    uint32_t max_context; /* positions of a sequence; 0, or more than the model has: the model's */
    /* Called while weights are packed, on a thread of the engine while create waits; may be NULL.
     */
    void (*progress)(void *arg, uint64_t bytes_done, uint64_t bytes_total);
    void *progress_arg;
};

enum { BT_ENGINE_EOS_MAX = 4, BT_ENGINE_NAME_BYTES = 128 };

/* What was loaded; constant until bt_engine_destroy. */
struct bt_engine_info {
    struct bt_fingerprint fingerprint;
    char model_name[BT_ENGINE_NAME_BYTES]; /* general.name, or "" */
    uint32_t n_layers;
    uint32_t n_vocab;     /* tokens in a step must be below it: refuse others where they arrive */
    uint32_t max_context; /* positions of a sequence, as limited by params, model and pages */
    uint32_t n_pages;     /* ids 0 .. n_pages - 1 */
    uint32_t n_threads;
    const char *cpus;    /* which bound on this process's CPUs applied, for the log */
    const char *kernels; /* "avx512"... */
    int32_t eos[BT_ENGINE_EOS_MAX];
    uint32_t n_eos;
    size_t page_bytes;                /* of one layer's page: what one (layer, page) is on a link */
    uint64_t weight_bytes;            /* packed */
    uint64_t cache_bytes;             /* n_layers x n_pages x page_bytes */
    uint64_t scratch_bytes;           /* of the forward pass and the sampler */
    char remark[BT_ERROR_TEXT_BYTES]; /* about the CPU, for the log; or "" */
};

/* Loads the model, takes all memory that steps will ever need, starts the threads. Refuses with a
 * sentence a file that cannot be read or is not supported, and numbers out of range: max_rows,
 * max_seqs and the pages at least 1. */
bt_status bt_engine_create(const struct bt_engine_params *params, struct bt_engine **out,
                           struct bt_error *err);
/* Waits for the step that runs, joins the threads, frees. NULL is accepted. */
void bt_engine_destroy(struct bt_engine *engine);

const struct bt_engine_info *bt_engine_info(const struct bt_engine *engine);

/* Where the pages lie. The loop and its links may read and write a page only as its state allows
 * (common/kv/kv_pool.h). Any thread may call bt_kv_memory_page. */
struct bt_kv_memory *bt_engine_kv_memory(struct bt_engine *engine);

/* Starts a step, lent until its STEP_DONE is taken; see step.h. One at a time: there must be none
 * outstanding. Its ids, rows and pages must be within the bounds of `params`. */
void bt_engine_post(struct bt_engine *engine, struct bt_step *step);
bool bt_engine_busy(const struct bt_engine *engine);
/* Steps posted from now on are added up in profile (common/engine/forward_profile.h, of the info's
 * n_threads), which is the engine's until another or NULL is set. No step may be outstanding. */
void bt_engine_set_profile(struct bt_engine *engine, struct bt_forward_profile *profile);

enum bt_engine_event_kind {
    BT_ENGINE_LAYER_DONE, /* pages and sums of `layer` are complete; only where step->n_sums > 0 */
    BT_ENGINE_STEP_DONE,  /* results are there, the step is the caller's again */
};

struct bt_engine_event {
    enum bt_engine_event_kind kind;
    uint32_t layer; /* LAYER_DONE */
    uint64_t step;  /* step->id */
};

/* Readable while there may be an event. When it is, call bt_engine_next until it answers false. */
int bt_engine_fd(const struct bt_engine *engine);
bool bt_engine_next(struct bt_engine *engine, struct bt_engine_event *event);

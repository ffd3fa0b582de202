/* The forward pass of a Llama-type model over one step: new tokens of several sequences, paged
 * cache.
 *
 * Prefill, chunked prefill and decode are this one pass with other row counts, and every token's
 * logits are the same bits in all of them. Runs on the thread that owns the device. All memory is
 * taken at create. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/base/fingerprint.h"
#include "common/base/status.h"
#include "common/engine/forward_profile.h"
#include "common/engine/kv_memory.h"
#include "common/engine/model.h"
#include "common/engine/step.h"
#include "common/engine/weights.h"

struct bt_device;
struct bt_forward;

struct bt_forward_params {
    struct bt_device *device;
    const struct bt_model *model;
    const struct bt_weights *weights;
    const struct bt_kv_memory *kv;
    enum bt_profile profile;
    enum bt_kv_type kv_type; /* of the cache; BY_PROFILE: as bt_forward_kv_type says */
    uint32_t max_rows, max_seqs;
    uint32_t max_context; /* positions of a sequence; at most the model's */
};

/* What is borrowed in params must outlive it. */
bt_status bt_forward_create(const struct bt_forward_params *params, struct bt_forward **out,
                            struct bt_error *err);
/* Accepts NULL. */
void bt_forward_destroy(struct bt_forward *fwd);
size_t bt_forward_scratch_bytes(const struct bt_forward *fwd);

/* bt_forward_run calls this when a layer's pages and sums are complete, layers ascending. */
typedef void bt_forward_layer_done(void *arg, uint32_t layer);

/* Runs a step to its end: pages, sums and results are written. layer_done may be NULL. */
void bt_forward_run(struct bt_forward *fwd, const struct bt_step *step,
                    bt_forward_layer_done *layer_done, void *arg);

/* Steps are added up in profile, which has the device's number of threads; NULL: no longer. */
void bt_forward_set_profile(struct bt_forward *fwd, struct bt_forward_profile *profile);

/* Keeps every row's residual to the end of the pass, so that bt_forward_logits may be asked for any
 * of them (rows that nobody samples are otherwise left out of the last layer). */
void bt_forward_keep_all_rows(struct bt_forward *fwd, bool keep);
/* Logits [n_rows][n_vocab] of rows of the last run, n_rows <= max_seqs; borrowed until the next
 * call on fwd. */
const float *bt_forward_logits(struct bt_forward *fwd, const uint32_t *rows, uint32_t n_rows);

/* The cache's type where `asked` is wanted: by profile it is bf16, in profile exact f32, where no
 * other is allowed: 0 is the answer then. */
enum bt_kv_type bt_forward_kv_type(enum bt_profile profile, enum bt_kv_type asked);
/* What kernels call it. */
enum bt_cache_type bt_forward_cache_type(enum bt_kv_type kv_type);

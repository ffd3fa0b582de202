/* The model's weights as the kernels eat them, packed from the file when the model is loaded. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/base/fingerprint.h"
#include "common/base/status.h"
#include "common/engine/model.h"
#include "kernels/kernels.h"

struct bt_device;

/* One packed matrix: y = W x. */
struct bt_matrix {
    enum bt_pack pack;
    uint32_t n_in, n_out;
    void *packed;
};

struct bt_layer_weights {
    const float *attn_norm; /* (D) */
    struct bt_matrix wq, wk, wv, wo;
    const float *ffn_norm; /* (D) */
    struct bt_matrix w_gate, w_up, w_down;
};

struct bt_weights {
    struct bt_layer_weights *layers; /* [n_layers] */
    const float *output_norm;        /* (D) */
    struct bt_matrix output;         /* (V, D) */
    const float *rope_freqs;         /* (n_rot / 2), or NULL */
    uint64_t model_hash;             /* of the architecture's numbers and every tensor's bytes */

    struct bt_device *device; /* that the memory was taken from */
    uint8_t *memory;
    size_t memory_bytes;
};

typedef void bt_weights_progress(void *arg, uint64_t bytes_done, uint64_t bytes_total);

/* Packs on all of the device's threads and hashes what it reads; the hash is the same for every
 * device, CPU path, profile and thread count. `progress` may be NULL; it is called on this thread.
 * Refuses a tensor that the profile's packing cannot take. */
bt_status bt_weights_load(struct bt_weights *weights, const struct bt_model *model,
                          enum bt_profile profile, struct bt_device *device,
                          bt_weights_progress *progress, void *progress_arg, struct bt_error *err);
/* Accepts a zeroed or half-built struct. */
void bt_weights_fini(struct bt_weights *weights);

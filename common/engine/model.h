/* What a model file says about its architecture: numbers, and which tensor plays which part.
 *
 * Reads architecture "llama" from GGUF. Everything that would change the answer and is not computed
 * here is refused by name: keys, tensors, types, shapes. Belongs to whoever opened it; constant
 * after open. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/gguf.h"
#include "common/base/status.h"

enum { BT_MODEL_EOS_MAX = 4, BT_MODEL_LAYERS_MAX = 1024, BT_MODEL_NAME_BYTES = 128 };

/* Symbols as in ARCHITECTURE's table: L, D, H, K, Dh, F, V. */
struct bt_model_shape {
    uint32_t n_layers;   /* L */
    uint32_t dim;        /* D: the residual stream */
    uint32_t n_heads;    /* H */
    uint32_t n_kv_heads; /* K; H is a multiple */
    uint32_t head_dim;   /* Dh: a multiple of 16, at most 256 */
    uint32_t n_rot;      /* rotated dims of each head, even */
    uint32_t ffn_dim;    /* F */
    uint32_t n_vocab;    /* V */
    uint32_t context;    /* positions the model was trained for */
    uint32_t window;     /* newest positions that a token sees, its own included; 0: all */
    float norm_eps;
    float rope_base;
};

/* One layer's tensors, all present. */
struct bt_model_layer {
    const struct bt_gguf_tensor *attn_norm;              /* (D) */
    const struct bt_gguf_tensor *wq, *wk, *wv;           /* (H Dh, D), (K Dh, D), (K Dh, D) */
    const struct bt_gguf_tensor *wo;                     /* (D, H Dh) */
    const struct bt_gguf_tensor *ffn_norm;               /* (D) */
    const struct bt_gguf_tensor *w_gate, *w_up, *w_down; /* (F, D), (F, D), (D, F) */
};

struct bt_model {
    struct bt_gguf *gguf; /* stays open: embedding rows are read from it */
    struct bt_model_shape shape;
    char name[BT_MODEL_NAME_BYTES];
    int32_t eos[BT_MODEL_EOS_MAX];
    uint32_t n_eos;
    const struct bt_gguf_tensor *token_embd;  /* (V, D) */
    const struct bt_gguf_tensor *output_norm; /* (D) */
    const struct bt_gguf_tensor *output;      /* (V, D); token_embd where the file ties them */
    const struct bt_gguf_tensor *rope_freqs;  /* (n_rot / 2) divisors, or NULL */
    struct bt_model_layer *layers;            /* [n_layers] */
};

/* BT_E_INVALID, BT_E_UNSUPPORTED, BT_E_NOT_FOUND with a sentence that names the field, its value
 * and its bound. */
bt_status bt_model_open(const char *path, struct bt_model *model, struct bt_error *err);
/* The same for bytes in memory, borrowed until bt_model_close. */
bt_status bt_model_open_memory(const uint8_t *bytes, size_t n_bytes, struct bt_model *model,
                               struct bt_error *err);
/* Accepts a zeroed or half-built struct. */
void bt_model_close(struct bt_model *model);

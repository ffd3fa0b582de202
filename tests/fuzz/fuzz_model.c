/* Fuzz target: opens bytes as a model, and checks that an accepted one keeps what is promised. */
#include <stdint.h>
#include <stdlib.h>

#include "common/engine/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void demand(int condition) {
    if (!condition)
        abort();
}

/* Every matrix has the rows and columns that the forward pass will take from it. */
static void check_matrix(const struct bt_gguf_tensor *t, uint64_t n_in, uint64_t n_out,
                         const uint8_t *data, size_t size) {
    demand(t && t->dims[0] == n_in && t->dims[1] == n_out && t->n_elements == n_in * n_out);
    demand(t->data >= data && t->n_bytes <= size && t->data - data <= (long)(size - t->n_bytes));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct bt_model model = {0};
    struct bt_error err = {0};
    if (bt_model_open_memory(data, size, &model, &err) < 0) {
        demand(err.text[0] && !model.gguf && !model.layers);
        return 0;
    }
    const struct bt_model_shape *s = &model.shape;
    uint64_t q_dim = (uint64_t)s->n_heads * s->head_dim,
             kv_dim = (uint64_t)s->n_kv_heads * s->head_dim;
    demand(s->n_heads % s->n_kv_heads == 0 && s->head_dim % 16 == 0 && s->head_dim <= 256);
    demand(s->n_rot % 2 == 0 && s->n_rot <= s->head_dim && s->dim % 2 == 0 && s->ffn_dim % 2 == 0);
    for (uint32_t i = 0; i < model.n_eos; i++)
        demand(model.eos[i] >= 0 && (uint32_t)model.eos[i] < s->n_vocab);
    check_matrix(model.token_embd, s->dim, s->n_vocab, data, size);
    check_matrix(model.output, s->dim, s->n_vocab, data, size);
    check_matrix(model.output_norm, s->dim, 1, data, size);
    for (uint32_t l = 0; l < s->n_layers; l++) {
        const struct bt_model_layer *layer = &model.layers[l];
        check_matrix(layer->attn_norm, s->dim, 1, data, size);
        check_matrix(layer->wq, s->dim, q_dim, data, size);
        check_matrix(layer->wk, s->dim, kv_dim, data, size);
        check_matrix(layer->wv, s->dim, kv_dim, data, size);
        check_matrix(layer->wo, q_dim, s->dim, data, size);
        check_matrix(layer->ffn_norm, s->dim, 1, data, size);
        check_matrix(layer->w_gate, s->dim, s->ffn_dim, data, size);
        check_matrix(layer->w_up, s->dim, s->ffn_dim, data, size);
        check_matrix(layer->w_down, s->ffn_dim, s->dim, data, size);
    }
    bt_model_close(&model);
    return 0;
}

/* What a model file says about its architecture: numbers, and which tensor plays which part. */
#include "common/engine/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

enum {
    DIM_MAX = 1 << 17,
    HEADS_MAX = 1024,
    FFN_DIM_MAX = 1 << 20,
    VOCAB_MAX = 1 << 21,
    CONTEXT_MAX = 1 << 24,
    KEY_BYTES = 96,
};

/* Keys of architecture llama that are read below, or that change nothing. Any other is refused: a
 * number that we do not know may change the answer. */
static const char *const known_keys[] = {
    "llama.block_count",
    "llama.context_length",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.attention.layer_norm_rms_epsilon",
    "llama.attention.sliding_window",
    "llama.attention.causal",
    "llama.rope.dimension_count",
    "llama.rope.freq_base",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.rope.scale_linear",
    "llama.rope.scaling.original_context_length",
    "llama.rope.scaling.finetuned",
    "llama.vocab_size",
    "llama.expert_count",
    "llama.expert_used_count",
    "llama.tensor_data_layout",
};

static bool is_known_key(struct bt_gguf_string name) {
    for (size_t i = 0; i < sizeof known_keys / sizeof *known_keys; i++)
        if (bt_gguf_string_is(name, known_keys[i]))
            return true;
    return false;
}

static bt_status refuse_unknown_keys(const struct bt_gguf *gguf, struct bt_error *err) {
    for (uint32_t i = 0; i < bt_gguf_n_keys(gguf); i++) {
        struct bt_gguf_string name = bt_gguf_key_at(gguf, i)->name;
        if (name.n_bytes > 6 && memcmp(name.text, "llama.", 6) == 0 && !is_known_key(name))
            return bt_fail(err, BT_E_UNSUPPORTED, "the model sets %.*s, which is not supported",
                           (int)(name.n_bytes < 96 ? name.n_bytes : 96), name.text);
    }
    return BT_OK;
}

/* ---- Numbers ---- */

static bt_status bounded(const char *key, uint64_t v, uint32_t min, uint32_t max,
                         struct bt_error *err) {
    if (v < min || v > max)
        return bt_fail(err, BT_E_INVALID, "%s is %llu, must be %u to %u", key,
                       (unsigned long long)v, min, max);
    return BT_OK;
}

static bt_status read_bounded(const struct bt_gguf *gguf, const char *key, uint32_t min,
                              uint32_t max, uint32_t *out, struct bt_error *err) {
    uint64_t v;
    BT_TRY(bt_gguf_get_u64(gguf, key, &v, err));
    BT_TRY(bounded(key, v, min, max, err));
    *out = (uint32_t)v;
    return BT_OK;
}

/* An absent key leaves *out as it is. */
static bt_status read_optional(const struct bt_gguf *gguf, const char *key, uint32_t min,
                               uint32_t max, uint32_t *out, struct bt_error *err) {
    return bt_gguf_find_key(gguf, key) ? read_bounded(gguf, key, min, max, out, err) : BT_OK;
}

static bt_status read_optional_f32(const struct bt_gguf *gguf, const char *key, float *out,
                                   struct bt_error *err) {
    return bt_gguf_find_key(gguf, key) ? bt_gguf_get_f32(gguf, key, out, err) : BT_OK;
}

static bt_status refuse_what_changes_attention(const struct bt_gguf *gguf, struct bt_error *err) {
    uint32_t n_experts = 0;
    BT_TRY(read_optional(gguf, "llama.expert_count", 0, UINT32_MAX, &n_experts, err));
    if (n_experts)
        return bt_fail(err, BT_E_UNSUPPORTED,
                       "llama.expert_count is %u, mixtures of experts are not supported",
                       n_experts);
    bool causal = true;
    if (bt_gguf_find_key(gguf, "llama.attention.causal"))
        BT_TRY(bt_gguf_get_bool(gguf, "llama.attention.causal", &causal, err));
    if (!causal)
        return bt_fail(err, BT_E_UNSUPPORTED,
                       "llama.attention.causal is false, only causal models are supported");
    return BT_OK;
}

static bt_status refuse_rope_scaling(const struct bt_gguf *gguf, struct bt_error *err) {
    struct bt_gguf_string type = {"none", 4};
    float factor = 1, linear = 1;
    if (bt_gguf_find_key(gguf, "llama.rope.scaling.type"))
        BT_TRY(bt_gguf_get_string(gguf, "llama.rope.scaling.type", &type, err));
    if (!bt_gguf_string_is(type, "none"))
        return bt_fail(err, BT_E_UNSUPPORTED,
                       "llama.rope.scaling.type is \"%.*s\", only \"none\" is supported",
                       (int)(type.n_bytes < 32 ? type.n_bytes : 32), type.text);
    BT_TRY(read_optional_f32(gguf, "llama.rope.scaling.factor", &factor, err));
    BT_TRY(read_optional_f32(gguf, "llama.rope.scale_linear", &linear, err));
    /* A factor without a type would mean linear scaling; 0 means that there is none. */
    if (factor != 1 && factor != 0)
        return bt_fail(err, BT_E_UNSUPPORTED,
                       "llama.rope.scaling.factor is %g, scaled positions are not supported",
                       (double)factor);
    if (linear != 1 && linear != 0)
        return bt_fail(err, BT_E_UNSUPPORTED,
                       "llama.rope.scale_linear is %g, scaled positions are not supported",
                       (double)linear);
    return BT_OK;
}

static bt_status read_heads(const struct bt_gguf *gguf, struct bt_model_shape *s,
                            struct bt_error *err) {
    BT_TRY(read_bounded(gguf, "llama.attention.head_count", 1, HEADS_MAX, &s->n_heads, err));
    s->n_kv_heads = s->n_heads;
    BT_TRY(read_optional(gguf, "llama.attention.head_count_kv", 1, HEADS_MAX, &s->n_kv_heads, err));
    if (s->n_heads % s->n_kv_heads)
        return bt_fail(err, BT_E_INVALID,
                       "llama.attention.head_count is %u, must be a multiple of head_count_kv, %u",
                       s->n_heads, s->n_kv_heads);
    uint32_t key_dim = s->dim / s->n_heads;
    if (!bt_gguf_find_key(gguf, "llama.attention.key_length") && s->dim % s->n_heads)
        return bt_fail(err, BT_E_INVALID,
                       "llama.embedding_length is %u, must be a multiple of head_count, %u", s->dim,
                       s->n_heads);
    BT_TRY(read_optional(gguf, "llama.attention.key_length", 1, DIM_MAX, &key_dim, err));
    uint32_t value_dim = key_dim;
    BT_TRY(read_optional(gguf, "llama.attention.value_length", 1, DIM_MAX, &value_dim, err));
    if (key_dim != value_dim)
        return bt_fail(err, BT_E_UNSUPPORTED,
                       "llama.attention.value_length is %u, must equal key_length, %u", value_dim,
                       key_dim);
    if (!key_dim || key_dim % 16 || key_dim > BT_KERNELS_HEAD_DIM_MAX)
        return bt_fail(err, BT_E_UNSUPPORTED,
                       "the head dimension is %u, must be a multiple of 16 up to %d", key_dim,
                       BT_KERNELS_HEAD_DIM_MAX);
    s->head_dim = key_dim;
    s->n_rot = key_dim;
    BT_TRY(read_optional(gguf, "llama.rope.dimension_count", 2, key_dim, &s->n_rot, err));
    if (s->n_rot % 2)
        return bt_fail(err, BT_E_INVALID, "llama.rope.dimension_count is %u, must be even",
                       s->n_rot);
    return BT_OK;
}

static bt_status read_shape(const struct bt_gguf *gguf, struct bt_model_shape *s,
                            struct bt_error *err) {
    struct bt_gguf_string arch;
    BT_TRY(bt_gguf_get_string(gguf, "general.architecture", &arch, err));
    if (!bt_gguf_string_is(arch, "llama"))
        return bt_fail(err, BT_E_UNSUPPORTED,
                       "general.architecture is \"%.*s\", only \"llama\" is supported",
                       (int)(arch.n_bytes < 64 ? arch.n_bytes : 64), arch.text);
    BT_TRY(refuse_unknown_keys(gguf, err));
    BT_TRY(read_bounded(gguf, "llama.block_count", 1, BT_MODEL_LAYERS_MAX, &s->n_layers, err));
    BT_TRY(read_bounded(gguf, "llama.context_length", 1, CONTEXT_MAX, &s->context, err));
    BT_TRY(read_bounded(gguf, "llama.embedding_length", 2, DIM_MAX, &s->dim, err));
    BT_TRY(read_bounded(gguf, "llama.feed_forward_length", 2, FFN_DIM_MAX, &s->ffn_dim, err));
    if (s->dim % 2 || s->ffn_dim % 2)
        return bt_fail(err, BT_E_UNSUPPORTED,
                       "llama.embedding_length is %u and feed_forward_length %u, must be even",
                       s->dim, s->ffn_dim);
    BT_TRY(read_heads(gguf, s, err));
    BT_TRY(bt_gguf_get_f32(gguf, "llama.attention.layer_norm_rms_epsilon", &s->norm_eps, err));
    if (!(s->norm_eps >= 0 && s->norm_eps <= 1))
        return bt_fail(err, BT_E_INVALID,
                       "llama.attention.layer_norm_rms_epsilon is %g, must be 0 to 1",
                       (double)s->norm_eps);
    s->rope_base = 10000;
    BT_TRY(read_optional_f32(gguf, "llama.rope.freq_base", &s->rope_base, err));
    if (!(s->rope_base >= 1 && s->rope_base <= 1e12f))
        return bt_fail(err, BT_E_INVALID, "llama.rope.freq_base is %g, must be 1 to 1e12",
                       (double)s->rope_base);
    BT_TRY(refuse_rope_scaling(gguf, err));
    /* One window for every layer, as Mistral 7B has it; one that the context fits is none. */
    BT_TRY(read_optional(gguf, "llama.attention.sliding_window", 0, UINT32_MAX, &s->window, err));
    if (s->window >= s->context)
        s->window = 0;
    return refuse_what_changes_attention(gguf, err);
}

/* The end-of-sequence tokens: of the text, of the turn, of a message to a tool. */
static bt_status read_eos(struct bt_model *model, struct bt_error *err) {
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        uint32_t id = UINT32_MAX;
        BT_TRY(read_optional(model->gguf, keys[i], 0, model->shape.n_vocab - 1, &id, err));
        bool is_new = id != UINT32_MAX;
        for (uint32_t j = 0; j < model->n_eos; j++)
            is_new &= model->eos[j] != (int32_t)id;
        if (is_new)
            model->eos[model->n_eos++] = (int32_t)id;
    }
    return BT_OK;
}

static void read_model_name(struct bt_model *model) {
    struct bt_gguf_string name;
    if (bt_gguf_get_string(model->gguf, "general.name", &name, NULL) < 0)
        return; /* It is only shown. */
    size_t n = 0;
    for (size_t i = 0; i < name.n_bytes && n + 1 < sizeof model->name; i++)
        if ((uint8_t)name.text[i] >= 0x20 && name.text[i] != 0x7f)
            model->name[n++] = name.text[i];
    model->name[n] = 0;
}

/* ---- Tensors ---- */

/* Looks tensors up and counts them, so that one which nobody asked for is found. */
struct tensor_finder {
    const struct bt_gguf *gguf;
    uint8_t *taken; /* [n_tensors] */
};

static bool is_supported_type(uint32_t type) {
    return type == BT_TENSOR_F32 || type == BT_TENSOR_F16 || type == BT_TENSOR_BF16 ||
           type == BT_TENSOR_Q4_0 || type == BT_TENSOR_Q4_1 || type == BT_TENSOR_Q8_0;
}

/* A tensor of n_out rows of n_in values; n_out 0: a vector. */
static bt_status take_tensor(struct tensor_finder *finder, const char *name, uint32_t n_in,
                             uint32_t n_out, const struct bt_gguf_tensor **out,
                             struct bt_error *err) {
    const struct bt_gguf_tensor *t = bt_gguf_find_tensor(finder->gguf, name);
    if (!t)
        return bt_fail(err, BT_E_NOT_FOUND, "the model has no tensor \"%s\"", name);
    if (!is_supported_type(t->type))
        return bt_fail(err, BT_E_UNSUPPORTED,
                       "tensor \"%s\" is stored as %s; supported are F32, F16, BF16, Q4_0, Q4_1 "
                       "and Q8_0",
                       name, bt_gguf_tensor_type_name(t->type));
    uint32_t n_dims = n_out ? 2 : 1;
    if (t->n_dims != n_dims || t->dims[0] != n_in || t->dims[1] != (n_out ? n_out : 1))
        return bt_fail(err, BT_E_INVALID,
                       "tensor \"%s\" has %u dimensions, %llu x %llu; must be %u, %u x %u", name,
                       t->n_dims, (unsigned long long)t->dims[0], (unsigned long long)t->dims[1],
                       n_dims, n_in, n_out ? n_out : 1);
    finder->taken[t - bt_gguf_tensor_at(finder->gguf, 0)] = 1;
    *out = t;
    return BT_OK;
}

static bt_status take_layer_tensor(struct tensor_finder *finder, uint32_t layer, const char *part,
                                   uint32_t n_in, uint32_t n_out, const struct bt_gguf_tensor **out,
                                   struct bt_error *err) {
    char name[KEY_BYTES];
    snprintf(name, sizeof name, "blk.%u.%s.weight", layer, part);
    return take_tensor(finder, name, n_in, n_out, out, err);
}

static bt_status take_layer(struct tensor_finder *f, const struct bt_model_shape *s, uint32_t l,
                            struct bt_model_layer *layer, struct bt_error *err) {
    uint32_t q_dim = s->n_heads * s->head_dim, kv_dim = s->n_kv_heads * s->head_dim;
    BT_TRY(take_layer_tensor(f, l, "attn_norm", s->dim, 0, &layer->attn_norm, err));
    BT_TRY(take_layer_tensor(f, l, "attn_q", s->dim, q_dim, &layer->wq, err));
    BT_TRY(take_layer_tensor(f, l, "attn_k", s->dim, kv_dim, &layer->wk, err));
    BT_TRY(take_layer_tensor(f, l, "attn_v", s->dim, kv_dim, &layer->wv, err));
    BT_TRY(take_layer_tensor(f, l, "attn_output", q_dim, s->dim, &layer->wo, err));
    BT_TRY(take_layer_tensor(f, l, "ffn_norm", s->dim, 0, &layer->ffn_norm, err));
    BT_TRY(take_layer_tensor(f, l, "ffn_gate", s->dim, s->ffn_dim, &layer->w_gate, err));
    BT_TRY(take_layer_tensor(f, l, "ffn_up", s->dim, s->ffn_dim, &layer->w_up, err));
    return take_layer_tensor(f, l, "ffn_down", s->ffn_dim, s->dim, &layer->w_down, err);
}

/* The vocabulary's size is that of the embedding; a key that says otherwise is a broken file. */
static bt_status read_vocab(struct bt_model *model, struct bt_error *err) {
    const struct bt_gguf_tensor *t = bt_gguf_find_tensor(model->gguf, "token_embd.weight");
    if (!t)
        return bt_fail(err, BT_E_NOT_FOUND, "the model has no tensor \"token_embd.weight\"");
    BT_TRY(bounded("the number of rows of token_embd.weight", t->dims[1], 1, VOCAB_MAX, err));
    model->shape.n_vocab = (uint32_t)t->dims[1];
    uint32_t said = model->shape.n_vocab;
    BT_TRY(read_optional(model->gguf, "llama.vocab_size", 1, UINT32_MAX, &said, err));
    if (said != model->shape.n_vocab)
        return bt_fail(err, BT_E_INVALID,
                       "llama.vocab_size is %u, but token_embd.weight has %u rows", said,
                       model->shape.n_vocab);
    return BT_OK;
}

static bt_status take_tensors(struct bt_model *m, struct tensor_finder *f, struct bt_error *err) {
    const struct bt_model_shape *s = &m->shape;
    BT_TRY(take_tensor(f, "token_embd.weight", s->dim, s->n_vocab, &m->token_embd, err));
    BT_TRY(take_tensor(f, "output_norm.weight", s->dim, 0, &m->output_norm, err));
    m->output = m->token_embd;
    if (bt_gguf_find_tensor(m->gguf, "output.weight"))
        BT_TRY(take_tensor(f, "output.weight", s->dim, s->n_vocab, &m->output, err));
    if (bt_gguf_find_tensor(m->gguf, "rope_freqs.weight"))
        BT_TRY(take_tensor(f, "rope_freqs.weight", s->n_rot / 2, 0, &m->rope_freqs, err));
    for (uint32_t l = 0; l < s->n_layers; l++)
        BT_TRY(take_layer(f, s, l, &m->layers[l], err));
    for (uint32_t i = 0; i < bt_gguf_n_tensors(m->gguf); i++) {
        struct bt_gguf_string name = bt_gguf_tensor_at(m->gguf, i)->name;
        if (!f->taken[i])
            return bt_fail(err, BT_E_UNSUPPORTED,
                           "the model has the tensor \"%.*s\", which is not supported",
                           (int)(name.n_bytes < 96 ? name.n_bytes : 96), name.text);
    }
    return BT_OK;
}

static bt_status read_model(struct bt_model *model, struct bt_error *err) {
    BT_TRY(read_shape(model->gguf, &model->shape, err));
    BT_TRY(read_vocab(model, err));
    BT_TRY(read_eos(model, err));
    read_model_name(model);
    uint32_t n_tensors = bt_gguf_n_tensors(model->gguf);
    struct tensor_finder finder = {model->gguf, calloc(n_tensors, 1)};
    model->layers = calloc(model->shape.n_layers, sizeof *model->layers);
    bt_status status = finder.taken && model->layers
                           ? take_tensors(model, &finder, err)
                           : bt_fail(err, BT_E_NO_MEMORY, "no memory for %u tensors", n_tensors);
    free(finder.taken);
    return status;
}

static bt_status finish_open(struct bt_gguf *gguf, struct bt_model *model, struct bt_error *err) {
    *model = (struct bt_model){.gguf = gguf};
    bt_status status = read_model(model, err);
    if (status < 0)
        bt_model_close(model);
    return status;
}

bt_status bt_model_open(const char *path, struct bt_model *model, struct bt_error *err) {
    struct bt_gguf *gguf;
    BT_TRY(bt_gguf_open(path, &gguf, err));
    return finish_open(gguf, model, err);
}

bt_status bt_model_open_memory(const uint8_t *bytes, size_t n_bytes, struct bt_model *model,
                               struct bt_error *err) {
    struct bt_gguf *gguf;
    BT_TRY(bt_gguf_open_memory(bytes, n_bytes, &gguf, err));
    return finish_open(gguf, model, err);
}

void bt_model_close(struct bt_model *model) {
    free(model->layers);
    bt_gguf_close(model->gguf);
    *model = (struct bt_model){0};
}

/* The model's weights as the kernels eat them, packed from the file when the model is loaded. */
#include "common/engine/weights.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/base/assert.h"
#include "common/base/bytes.h"
#include "common/device/device.h"

/* Bytes of the file that one task packs and hashes. The hash of a model is made of the hashes of
 * these pieces, so this number is part of it. */
enum { PIECE_BYTES = 256 * 1024 };

/* Between two calls of the progress callback. */
enum { PIECES_PER_RUN = 64 };

/* One tensor on its way into memory. Exactly one of matrix and vector is set, or neither where the
 * file's bytes are only hashed. */
struct part {
    const struct bt_gguf_tensor *tensor;
    struct bt_matrix *matrix;
    const float **vector;
    size_t offset, n_bytes; /* in the weights' memory */
    uint32_t n_in, n_rows;
    size_t row_bytes; /* in the file */
    uint32_t piece_rows;
};

struct piece {
    uint32_t part;
    uint32_t row_first, row_end;
    uint64_t hash;
};

struct loading {
    struct bt_weights *weights;
    const struct bt_kernels *kernels;
    struct part *parts;
    uint32_t n_parts, n_parts_max;
    struct piece *pieces;
    uint32_t n_pieces;
    uint32_t first_piece;         /* of this run */
    _Atomic uint32_t failed_part; /* + 1; 0: none */
};

static enum bt_pack choose_pack(enum bt_profile profile, uint32_t type) {
    if (profile == BT_PROFILE_EXACT)
        return BT_PACK_F32;
    if (profile == BT_PROFILE_FAST) {
        if (type == BT_TENSOR_Q4_1)
            return BT_PACK_Q4_1;
        if (type == BT_TENSOR_Q4_0)
            return BT_PACK_Q4_0;
        if (type == BT_TENSOR_Q8_0)
            return BT_PACK_Q8_0;
    }
    return BT_PACK_BF16;
}

/* ---- What to load ---- */

static struct part *add_part(struct loading *ld, const struct bt_gguf_tensor *t) {
    BT_ASSERT(ld->n_parts < ld->n_parts_max);
    struct part *part = &ld->parts[ld->n_parts++];
    /* The model's shape is checked: dims are below 2^32. */
    *part =
        (struct part){.tensor = t, .n_in = (uint32_t)t->dims[0], .n_rows = (uint32_t)t->dims[1]};
    part->row_bytes = (size_t)(t->n_bytes / part->n_rows);
    size_t rows = PIECE_BYTES / part->row_bytes / BT_KERNELS_TILE * BT_KERNELS_TILE;
    part->piece_rows = rows ? (uint32_t)rows : BT_KERNELS_TILE;
    part->offset = ld->weights->memory_bytes;
    return part;
}

static void reserve(struct loading *ld, struct part *part, size_t n_bytes) {
    part->n_bytes = (n_bytes + 63) & ~(size_t)63;
    ld->weights->memory_bytes += part->n_bytes;
}

static void add_matrix(struct loading *ld, enum bt_profile profile, const struct bt_gguf_tensor *t,
                       struct bt_matrix *matrix) {
    struct part *part = add_part(ld, t);
    *matrix = (struct bt_matrix){choose_pack(profile, t->type), part->n_in, part->n_rows, NULL};
    part->matrix = matrix;
    reserve(ld, part, ld->kernels->packed_bytes(matrix->pack, matrix->n_out, matrix->n_in));
}

static void add_vector(struct loading *ld, const struct bt_gguf_tensor *t, const float **vector) {
    struct part *part = add_part(ld, t);
    part->vector = vector;
    reserve(ld, part, part->n_in * sizeof(float));
}

/* The order is part of the model's hash. */
static void plan(struct loading *ld, const struct bt_model *model, enum bt_profile profile) {
    struct bt_weights *w = ld->weights;
    for (uint32_t l = 0; l < model->shape.n_layers; l++) {
        const struct bt_model_layer *from = &model->layers[l];
        struct bt_layer_weights *to = &w->layers[l];
        add_vector(ld, from->attn_norm, &to->attn_norm);
        add_matrix(ld, profile, from->wq, &to->wq);
        add_matrix(ld, profile, from->wk, &to->wk);
        add_matrix(ld, profile, from->wv, &to->wv);
        add_matrix(ld, profile, from->wo, &to->wo);
        add_vector(ld, from->ffn_norm, &to->ffn_norm);
        add_matrix(ld, profile, from->w_gate, &to->w_gate);
        add_matrix(ld, profile, from->w_up, &to->w_up);
        add_matrix(ld, profile, from->w_down, &to->w_down);
    }
    add_vector(ld, model->output_norm, &w->output_norm);
    add_matrix(ld, profile, model->output, &w->output);
    if (model->rope_freqs)
        add_vector(ld, model->rope_freqs, &w->rope_freqs);
    if (model->token_embd != model->output)
        add_part(ld, model->token_embd); /* its rows are read from the file, one by one */
}

static void count_pieces(struct loading *ld, struct piece *pieces) {
    ld->n_pieces = 0;
    for (uint32_t p = 0; p < ld->n_parts; p++)
        for (uint32_t row = 0; row < ld->parts[p].n_rows; row += ld->parts[p].piece_rows) {
            uint32_t left = ld->parts[p].n_rows - row;
            uint32_t n = left < ld->parts[p].piece_rows ? left : ld->parts[p].piece_rows;
            if (pieces)
                pieces[ld->n_pieces] = (struct piece){p, row, row + n, 0};
            ld->n_pieces++;
        }
}

/* ---- Loading ---- */

static void load_piece(void *arg, uint32_t task, uint32_t thread) {
    (void)thread;
    struct loading *ld = arg;
    struct piece *piece = &ld->pieces[ld->first_piece + task];
    const struct part *part = &ld->parts[piece->part];
    const uint8_t *rows = part->tensor->data + piece->row_first * part->row_bytes;
    piece->hash = XXH3_64bits(rows, (piece->row_end - piece->row_first) * part->row_bytes);
    uint8_t *to = ld->weights->memory + part->offset;
    int result = 0;
    if (part->matrix)
        result = ld->kernels->repack(part->matrix->pack, (enum bt_tensor_type)part->tensor->type,
                                     part->tensor->data, part->n_rows, part->n_in, piece->row_first,
                                     piece->row_end, to);
    else if (part->vector)
        result = ld->kernels->dequantise((enum bt_tensor_type)part->tensor->type, rows, part->n_in,
                                         (float *)to);
    if (result != 0)
        atomic_store(&ld->failed_part, piece->part + 1);
}

static uint64_t piece_bytes(const struct loading *ld, uint32_t i) {
    const struct piece *piece = &ld->pieces[i];
    return (uint64_t)(piece->row_end - piece->row_first) * ld->parts[piece->part].row_bytes;
}

static bt_status load_pieces(struct loading *ld, bt_weights_progress *progress, void *progress_arg,
                             struct bt_error *err) {
    uint64_t total = 0, done = 0;
    for (uint32_t i = 0; i < ld->n_pieces; i++)
        total += piece_bytes(ld, i);
    for (uint32_t i = 0; i < ld->n_pieces; i += PIECES_PER_RUN) {
        uint32_t n = ld->n_pieces - i < PIECES_PER_RUN ? ld->n_pieces - i : PIECES_PER_RUN;
        ld->first_piece = i;
        bt_device_run(ld->weights->device, n, load_piece, ld);
        for (uint32_t j = i; j < i + n; j++)
            done += piece_bytes(ld, j);
        if (progress)
            progress(progress_arg, done, total);
    }
    uint32_t failed = atomic_load(&ld->failed_part);
    if (failed) {
        const struct bt_gguf_tensor *t = ld->parts[failed - 1].tensor;
        return bt_fail(err, BT_E_UNSUPPORTED,
                       "tensor \"%.*s\" (%s, rows of %llu) cannot be packed for this profile",
                       (int)(t->name.n_bytes < 96 ? t->name.n_bytes : 96), t->name.text,
                       bt_gguf_tensor_type_name(t->type), (unsigned long long)t->dims[0]);
    }
    return BT_OK;
}

static void hash_u32(XXH3_state_t *state, uint32_t v) {
    uint8_t bytes[4];
    bt_store_u32(bytes, v);
    XXH3_64bits_update(state, bytes, sizeof bytes);
}

static void hash_f32(XXH3_state_t *state, float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    hash_u32(state, bits);
}

static bt_status hash_model(struct loading *ld, const struct bt_model_shape *s, uint64_t *out,
                            struct bt_error *err) {
    XXH3_state_t *state = XXH3_createState();
    if (!state)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a hash");
    XXH3_64bits_reset(state);
    const uint32_t numbers[] = {s->n_layers, s->dim,     s->n_heads, s->n_kv_heads, s->head_dim,
                                s->n_rot,    s->ffn_dim, s->n_vocab, s->window};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        hash_u32(state, numbers[i]);
    hash_f32(state, s->norm_eps);
    hash_f32(state, s->rope_base);
    uint32_t part = UINT32_MAX;
    for (uint32_t i = 0; i < ld->n_pieces; i++) {
        if (ld->pieces[i].part != part) {
            part = ld->pieces[i].part;
            hash_u32(state, ld->parts[part].tensor->type);
            hash_u32(state, ld->parts[part].n_rows);
            hash_u32(state, ld->parts[part].n_in);
        }
        uint8_t bytes[8];
        bt_store_u64(bytes, ld->pieces[i].hash);
        XXH3_64bits_update(state, bytes, sizeof bytes);
    }
    *out = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return BT_OK;
}

static bt_status take_memory(struct loading *ld, struct bt_error *err) {
    struct bt_weights *w = ld->weights;
    count_pieces(ld, NULL);
    ld->pieces = calloc(ld->n_pieces, sizeof *ld->pieces);
    w->memory = bt_device_alloc(w->device, w->memory_bytes);
    if (!ld->pieces || !w->memory)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for the weights: %zu bytes",
                       w->memory_bytes);
    count_pieces(ld, ld->pieces);
    for (uint32_t i = 0; i < ld->n_parts; i++) {
        uint8_t *at = w->memory + ld->parts[i].offset;
        if (ld->parts[i].matrix)
            ld->parts[i].matrix->packed = at;
        else if (ld->parts[i].vector)
            *ld->parts[i].vector = (const float *)at;
    }
    return BT_OK;
}

bt_status bt_weights_load(struct bt_weights *weights, const struct bt_model *model,
                          enum bt_profile profile, struct bt_device *device,
                          bt_weights_progress *progress, void *progress_arg, struct bt_error *err) {
    uint32_t n_layers = model->shape.n_layers;
    *weights = (struct bt_weights){.device = device};
    struct loading ld = {
        .weights = weights, .kernels = bt_device_kernels(device), .n_parts_max = 9 * n_layers + 4};
    bt_status status;
    weights->layers = calloc(n_layers, sizeof *weights->layers);
    ld.parts = calloc(ld.n_parts_max, sizeof *ld.parts);
    if (!weights->layers || !ld.parts) {
        status = bt_fail(err, BT_E_NO_MEMORY, "no memory for %u layers", n_layers);
        goto out;
    }
    plan(&ld, model, profile);
    BT_TRY_GOTO(take_memory(&ld, err), out);
    BT_TRY_GOTO(load_pieces(&ld, progress, progress_arg, err), out);
    BT_TRY_GOTO(hash_model(&ld, &model->shape, &weights->model_hash, err), out);
out:
    free(ld.parts);
    free(ld.pieces);
    if (status < 0)
        bt_weights_fini(weights);
    return status;
}

void bt_weights_fini(struct bt_weights *weights) {
    if (weights->memory)
        bt_device_free(weights->device, weights->memory, weights->memory_bytes);
    free(weights->layers);
    *weights = (struct bt_weights){0};
}

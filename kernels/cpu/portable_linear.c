/* Portable linear layers: the int8, bf16 and exact rules, one output element at a time. */
#include "kernels/cpu/layout.h"
#include "kernels/cpu/portable.h"
#include "kernels/cpu/scalar.h"

/* One row's group: s = max|x| / 127; if that is zero (or not finite) q = 0, else q = RNE(x / s). */
static void prepare_int8_group(const float *x, struct int8_group *to, uint32_t row) {
    float s = symmetric_scale(x, GROUP, 127.0f);
    int32_t sum = 0;
    int usable = scale_is_usable(s);
    for (int i = 0; i < GROUP; i++) {
        int32_t q = usable ? round_f32(x[i] / s) : 0;
        to->q[i / 4][row][i % 4] = (int8_t)q;
        sum += q;
    }
    to->s[row] = s;
    to->t[row] = s * (float)sum;
    to->offset[row] = -128 * sum;
}

static void prepare_row(enum bt_prepared form, const float *x, uint32_t row, uint32_t n_in,
                        uint8_t *block) {
    if (form == BT_PREPARED_INT8) {
        struct int8_group *groups = (struct int8_group *)(void *)block;
        for (uint32_t g = 0; g < n_in / GROUP; g++)
            prepare_int8_group(x + (size_t)g * GROUP, groups + g, row);
    } else if (form == BT_PREPARED_BF16) {
        uint16_t *to = (uint16_t *)(void *)block;
        for (uint32_t k = 0; k < n_in; k++)
            to[((size_t)(k / 2) * ROWS + row) * 2 + k % 2] = f32_to_bf16(x[k]);
    } else {
        float *to = (float *)(void *)block;
        for (uint32_t k = 0; k < n_in; k++)
            to[(size_t)k * ROWS + row] = x[k];
    }
}

void NAME(prepare)(enum bt_prepared form, const float *x, size_t x_stride, uint32_t row_first,
                   uint32_t row_end, uint32_t n_in, void *prepared) {
    for (uint32_t row = row_first; row < row_end; row++)
        prepare_row(form, x + row * x_stride, row % ROWS, n_in,
                    (uint8_t *)prepared + row / ROWS * row_block_bytes(form, n_in));
}

/* The exact int32 products of a group for the 16 outputs of a tile. */
static void dot_q4(const uint8_t *quants, const struct int8_group *x, uint32_t row,
                   int32_t dot[TILE]) {
    for (int lane = 0; lane < TILE; lane++)
        dot[lane] = 0;
    for (int i = 0; i < 4; i++) {
        const int8_t *low = x->q[i][row], *high = x->q[i + 4][row];
        for (int lane = 0; lane < TILE; lane++)
            for (int kk = 0; kk < 4; kk++) {
                uint8_t byte = quants[i * 64 + lane * 4 + kk];
                dot[lane] += (byte & 15) * low[kk] + (byte >> 4) * high[kk];
            }
    }
}

static void dot_q8(const uint8_t *quants, const struct int8_group *x, uint32_t row,
                   int32_t dot[TILE]) {
    for (int lane = 0; lane < TILE; lane++)
        dot[lane] = x->offset[row];
    for (int i = 0; i < 8; i++)
        for (int lane = 0; lane < TILE; lane++)
            for (int kk = 0; kk < 4; kk++)
                dot[lane] += quants[i * 64 + lane * 4 + kk] * x->q[i][row][kk];
}

static void tile_int8(const struct bt_linear *args, const uint8_t *tile, const uint8_t *block,
                      uint32_t row, float acc[TILE]) {
    enum bt_pack pack = args->pack;
    size_t bytes = block_bytes(pack), quants = pack == BT_PACK_Q8_0 ? Q8_QUANTS : Q4_QUANTS;
    const struct int8_group *x = (const struct int8_group *)(const void *)block;
    for (int lane = 0; lane < TILE; lane++)
        acc[lane] = 0.0f;
    for (uint32_t g = 0; g < args->n_in / GROUP; g++, tile += bytes, x++) {
        const uint16_t *d = (const uint16_t *)(const void *)(tile + quants);
        int32_t dot[TILE];
        if (pack == BT_PACK_Q8_0)
            dot_q8(tile, x, row, dot);
        else
            dot_q4(tile, x, row, dot);
        for (int lane = 0; lane < TILE; lane++)
            acc[lane] = fused((float)dot[lane], f16_to_f32(d[lane]) * x->s[row], acc[lane]);
        if (pack == BT_PACK_Q8_0)
            continue;
        for (int lane = 0; lane < TILE; lane++) {
            float m =
                pack == BT_PACK_Q4_1 ? f16_to_f32(d[TILE + lane]) : -8.0f * f16_to_f32(d[lane]);
            acc[lane] = fused(m, x->t[row], acc[lane]);
        }
    }
}

static void tile_bf16(const struct bt_linear *args, const uint8_t *tile, const uint8_t *block,
                      uint32_t row, float acc[TILE]) {
    const uint16_t *w = (const uint16_t *)(const void *)tile;
    const uint16_t *x = (const uint16_t *)(const void *)block + row * 2;
    for (int lane = 0; lane < TILE; lane++)
        acc[lane] = 0.0f;
    for (uint32_t k = 0; k < args->n_in / 2; k++, w += TILE * 2, x += ROWS * 2) {
        float even = bf16_to_f32(x[0]), odd = bf16_to_f32(x[1]);
        for (int lane = 0; lane < TILE; lane++) {
            acc[lane] = fused_bf16(bf16_to_f32(w[2 * lane + 1]), odd, acc[lane]);
            acc[lane] = fused_bf16(bf16_to_f32(w[2 * lane]), even, acc[lane]);
        }
    }
}

static void tile_f32(const struct bt_linear *args, const uint8_t *tile, const uint8_t *block,
                     uint32_t row, float acc[TILE]) {
    const float *w = (const float *)(const void *)tile;
    const float *x = (const float *)(const void *)block + row;
    for (int lane = 0; lane < TILE; lane++)
        acc[lane] = 0.0f;
    for (uint32_t k = 0; k < args->n_in; k++, w += TILE, x += ROWS)
        for (int lane = 0; lane < TILE; lane++)
            acc[lane] = acc[lane] + w[lane] * x[0];
}

void NAME(linear)(const struct bt_linear *args) {
    size_t bytes = tile_bytes(args->pack, args->n_in);
    size_t block = row_block_bytes(args->pack == BT_PACK_BF16  ? BT_PREPARED_BF16
                                   : args->pack == BT_PACK_F32 ? BT_PREPARED_F32
                                                               : BT_PREPARED_INT8,
                                   args->n_in);
    float acc[TILE];
    for (uint32_t col = args->col_first; col < args->col_end; col += TILE) {
        const uint8_t *tile = (const uint8_t *)args->weights + col / TILE * bytes;
        uint32_t n_lanes = args->col_end - col < TILE ? args->col_end - col : TILE;
        for (uint32_t row = args->row_first; row < args->row_end; row++) {
            const uint8_t *x = (const uint8_t *)args->x + row / ROWS * block;
            if (args->pack == BT_PACK_BF16)
                tile_bf16(args, tile, x, row % ROWS, acc);
            else if (args->pack == BT_PACK_F32)
                tile_f32(args, tile, x, row % ROWS, acc);
            else
                tile_int8(args, tile, x, row % ROWS, acc);
            float *y = args->y + row * args->y_stride + col;
            for (uint32_t lane = 0; lane < n_lanes; lane++) {
                float result = args->bias ? acc[lane] + args->bias[col + lane] : acc[lane];
                y[lane] = args->add ? y[lane] + result : result;
            }
        }
    }
}

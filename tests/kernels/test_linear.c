/* Linear layers: every path gives portable's bits, however rows and columns are cut; portable is
 * near plain double arithmetic. */
#include <math.h>

#include "tests/kernels/paths.h"

struct format {
    enum bt_pack pack;
    enum bt_tensor_type type;
};

static const struct format FORMATS[] = {
    {BT_PACK_Q4_1, BT_TENSOR_Q4_1}, {BT_PACK_Q4_0, BT_TENSOR_Q4_0}, {BT_PACK_Q8_0, BT_TENSOR_Q8_0},
    {BT_PACK_BF16, BT_TENSOR_F16},  {BT_PACK_BF16, BT_TENSOR_BF16}, {BT_PACK_BF16, BT_TENSOR_F32},
    {BT_PACK_BF16, BT_TENSOR_Q4_1}, {BT_PACK_BF16, BT_TENSOR_Q4_0}, {BT_PACK_BF16, BT_TENSOR_Q8_0},
    {BT_PACK_F32, BT_TENSOR_Q4_1},  {BT_PACK_F32, BT_TENSOR_F32},   {BT_PACK_F32, BT_TENSOR_F16},
};
enum { N_FORMATS = sizeof FORMATS / sizeof FORMATS[0] };

/* One layer with its inputs, packed and prepared by one path. */
struct layer {
    struct format format;
    uint32_t n_out, n_in, n_rows;
    uint8_t *tensor, *packed;
    float *x, *bias;
    void *prepared;
};

static void layer_init(struct layer *l, struct format format, uint32_t n_out, uint32_t n_in,
                       uint32_t n_rows) {
    const struct bt_kernels *k = portable_path();
    *l = (struct layer){.format = format, .n_out = n_out, .n_in = n_in, .n_rows = n_rows};
    l->tensor = aligned_bytes(k->row_bytes(format.type, n_in) * n_out);
    fill_tensor(format.type, l->tensor, (size_t)n_out * n_in);
    l->packed = aligned_bytes(k->packed_bytes(format.pack, n_out, n_in));
    assert_int_equal(
        k->repack(format.pack, format.type, l->tensor, n_out, n_in, 0, n_out, l->packed), 0);
    l->x = aligned_bytes((size_t)n_rows * n_in * 4);
    fill(l->x, (size_t)n_rows * n_in, 3.0f);
    l->bias = aligned_bytes((size_t)n_out * 4);
    fill(l->bias, n_out, 1.0f);
    size_t bytes = k->prepared_bytes(k->prepared_for(format.pack), n_rows, n_in);
    l->prepared = aligned_bytes(bytes);
    memset(l->prepared, 0xff, bytes); /* rows that are not there hold NaN */
}

static void layer_fini(struct layer *l) {
    free(l->tensor);
    free(l->packed);
    free(l->x);
    free(l->bias);
    free(l->prepared);
}

static void compute(const struct layer *l, const struct bt_kernels *k, uint32_t col_step,
                    uint32_t row_step, int add, float *y) {
    k->prepare(k->prepared_for(l->format.pack), l->x, l->n_in, 0, l->n_rows, l->n_in, l->prepared);
    struct bt_linear args = {.pack = l->format.pack,
                             .weights = l->packed,
                             .n_in = l->n_in,
                             .n_out = l->n_out,
                             .x = l->prepared,
                             .y = y,
                             .y_stride = l->n_out + 3,
                             .bias = add ? l->bias : NULL,
                             .add = add};
    for (uint32_t c = 0; c < l->n_out; c += col_step)
        for (uint32_t r = 0; r < l->n_rows; r += row_step) {
            args.col_first = c;
            args.col_end = c + col_step < l->n_out ? c + col_step : l->n_out;
            args.row_first = r;
            args.row_end = r + row_step < l->n_rows ? r + row_step : l->n_rows;
            k->linear(&args);
        }
}

/* y has a gap of 3 after each row, which must stay as it was. */
static void compare(struct layer *l, const struct bt_kernels *k, uint32_t col_step,
                    uint32_t row_step, int add) {
    size_t n = (size_t)l->n_rows * (l->n_out + 3);
    float *want = aligned_bytes(n * 4), *got = aligned_bytes(n * 4);
    char what[160];
    for (size_t i = 0; i < n; i++)
        want[i] = got[i] = 0.5f;
    compute(l, portable_path(), l->n_out, l->n_rows, add, want);
    compute(l, k, col_step, row_step, add, got);
    snprintf(what, sizeof what, "pack %d type %d, %u rows x %u in x %u out, steps %u %u",
             l->format.pack, l->format.type, l->n_rows, l->n_in, l->n_out, col_step, row_step);
    assert_same(what, k->name, want, got, n);
    free(want);
    free(got);
}

static void test_paths_agree(void **state) {
    (void)state;
    /* Every number of rows that fits one call of a kernel, and some that are cut into several. */
    static const uint32_t SHAPES[][2] = {{16, 32}, {48, 96},  {50, 64},
                                         {7, 160}, {80, 576}, {33, 1536}};
    portable_path();
    for (int p = 0; p < N_PATHS; p++) {
        const struct bt_kernels *k = path_or_note(PATHS[p]);
        for (int f = 0; k && f < N_FORMATS; f++)
            for (size_t s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; s++)
                for (uint32_t rows = 1; rows <= 70; rows = rows < 20 ? rows + 1 : rows + 5) {
                    struct layer l;
                    layer_init(&l, FORMATS[f], SHAPES[s][0], SHAPES[s][1], rows);
                    compare(&l, k, l.n_out, rows, 0);
                    compare(&l, k, 16, 8, 1);
                    layer_fini(&l);
                }
    }
}

/* Rows of zeros, denormals, huge and non-finite numbers; odd sizes of the float rules. */
static void test_corners_agree(void **state) {
    (void)state;
    portable_path();
    for (int p = 0; p < N_PATHS; p++) {
        const struct bt_kernels *k = path_or_note(PATHS[p]);
        for (int f = 0; k && f < N_FORMATS; f++)
            for (int round = 0; round < 20; round++) {
                struct layer l;
                layer_init(&l, FORMATS[f], 37, 64, 9);
                for (uint32_t i = 0; i < 9 * 64; i++) {
                    uint32_t row = i / 64;
                    if (row == 0)
                        l.x[i] = 0.0f;
                    else if (row < 4)
                        l.x[i] = corner_f32(1) * (row == 3 ? 0x1p-120f : 1.0f);
                    else if (row < 6 && random_u64() % 8 == 0)
                        l.x[i] = corner_f32(0);
                    else if (row == 6)
                        l.x[i] *= 0x1p-124f; /* scales underflow */
                    else if (row == 7)
                        l.x[i] = (float)((int)(random_u64() % 255) - 127) / 2.0f; /* ties */
                }
                compare(&l, k, 16, 4, round % 2);
                layer_fini(&l);
            }
    }
}

static void test_odd_sizes_of_float_rules(void **state) {
    (void)state;
    static const uint32_t SIZES[] = {1, 2, 3, 6, 17, 34};
    portable_path();
    for (int p = 0; p < N_PATHS; p++) {
        const struct bt_kernels *k = path_or_note(PATHS[p]);
        for (size_t s = 0; k && s < sizeof SIZES / sizeof SIZES[0]; s++)
            for (int bf16 = 0; bf16 <= (SIZES[s] % 2 == 0); bf16++) {
                struct format format = {bf16 ? BT_PACK_BF16 : BT_PACK_F32, BT_TENSOR_F32};
                struct layer l;
                layer_init(&l, format, 19, SIZES[s], 5);
                compare(&l, k, 16, 4, 0);
                layer_fini(&l);
            }
    }
}

/* The rules against double: the error of each is bounded by what it rounds. */
static void test_portable_is_near_double(void **state) {
    (void)state;
    const struct bt_kernels *k = portable_path();
    for (int f = 0; f < N_FORMATS; f++) {
        struct layer l;
        layer_init(&l, FORMATS[f], 33, 256, 3);
        float y[3 * 36], w[256];
        compute(&l, k, 33, 3, 0, y);
        /* Activations to 1/254 of the group's maximum, bf16 both sides 2^-8, f32 sums 2^-24. */
        double unit = FORMATS[f].pack == BT_PACK_F32    ? 1e-5
                      : FORMATS[f].pack == BT_PACK_BF16 ? 0x1p-7
                                                        : 1.0 / 200;
        for (uint32_t o = 0; o < 33; o++) {
            k->dequantise(FORMATS[f].type, l.tensor + o * k->row_bytes(FORMATS[f].type, 256), 256,
                          w);
            for (uint32_t r = 0; r < 3; r++) {
                double sum = 0, size = 0;
                for (uint32_t i = 0; i < 256; i++) {
                    sum += (double)w[i] * (double)l.x[r * 256 + i];
                    size += fabs((double)w[i]) * 3.0;
                }
                double error = fabs((double)y[r * 36 + o] - sum);
                if (error > unit * size)
                    fail_msg("pack %d type %d: output %u of row %u is off by %g of %g",
                             FORMATS[f].pack, FORMATS[f].type, o, r, error, size);
            }
        }
        layer_fini(&l);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths_agree),
        cmocka_unit_test(test_corners_agree),
        cmocka_unit_test(test_odd_sizes_of_float_rules),
        cmocka_unit_test(test_portable_is_near_double),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

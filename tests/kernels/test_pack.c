/* File formats: blocks written out by hand give the values that the formats define; what does not
 * fit is refused; any cut into row ranges packs the same bytes. */
#include "tests/kernels/paths.h"

enum { N = 32 };

/* d = 0.5 (f16 0x3800), m = -3 (f16 0xc200). */
static void hand_block(enum bt_tensor_type type, uint8_t *block) {
    static const uint8_t D[] = {0x00, 0x38}, M[] = {0x00, 0xc2};
    memcpy(block, D, 2);
    if (type == BT_TENSOR_Q4_1)
        memcpy(block + 2, M, 2);
    uint8_t *quants = block + (type == BT_TENSOR_Q4_1 ? 4 : 2);
    int is_q8 = type == BT_TENSOR_Q8_0;
    for (int i = 0; i < (is_q8 ? 32 : 16); i++) {
        int byte = is_q8 ? i * 8 - 128 : i | (15 - i) << 4;
        quants[i] = (uint8_t)(byte & 0xff);
    }
}

/* Low nibbles are values 0 .. 15, high nibbles 16 .. 31. */
static float hand_value(enum bt_tensor_type type, int i) {
    int nibble = i < 16 ? i : 31 - i;
    if (type == BT_TENSOR_Q8_0)
        return 0.5f * (float)(i * 8 - 128);
    return type == BT_TENSOR_Q4_1 ? 0.5f * (float)nibble - 3.0f : 0.5f * (float)(nibble - 8);
}

static void test_quantised_blocks(void **state) {
    (void)state;
    static const enum bt_tensor_type TYPES[] = {BT_TENSOR_Q4_0, BT_TENSOR_Q4_1, BT_TENSOR_Q8_0};
    static const size_t BYTES[] = {18, 20, 34};
    const struct bt_kernels *k = portable_path();
    for (int t = 0; t < 3; t++) {
        uint8_t block[34];
        float out[N];
        assert_int_equal(k->row_bytes(TYPES[t], N), BYTES[t]);
        hand_block(TYPES[t], block);
        assert_int_equal(k->dequantise(TYPES[t], block, N, out), 0);
        for (int i = 0; i < N; i++)
            if (out[i] != hand_value(TYPES[t], i))
                fail_msg("type %d: value %d is %g", TYPES[t], i, (double)out[i]);
    }
}

/* Halves: 1, -2, the largest, the smallest denormal, infinity, and bf16 likewise. */
static void test_halves(void **state) {
    (void)state;
    static const uint8_t F16[] = {0x00, 0x3c, 0x00, 0xc0, 0xff, 0x7b, 0x01, 0x00, 0x00, 0x7c};
    static const float F16_VALUES[] = {1.0f, -2.0f, 65504.0f, 0x1p-24f, __builtin_inff()};
    static const uint8_t BF16[] = {0x80, 0x3f, 0x40, 0xc0, 0x7f, 0x7f};
    static const float BF16_VALUES[] = {1.0f, -3.0f, 0x1.fep+127f};
    const struct bt_kernels *k = portable_path();
    float out[5];
    assert_int_equal(k->dequantise(BT_TENSOR_F16, F16, 5, out), 0);
    for (int i = 0; i < 5; i++)
        assert_true(out[i] == F16_VALUES[i]);
    assert_int_equal(k->dequantise(BT_TENSOR_BF16, BF16, 3, out), 0);
    for (int i = 0; i < 3; i++)
        assert_true(out[i] == BF16_VALUES[i]);
    static const uint8_t NAN_F16[] = {0x01, 0xfc};
    assert_int_equal(k->dequantise(BT_TENSOR_F16, NAN_F16, 1, out), 0);
    assert_true(out[0] != out[0]);
}

static void test_refusals(void **state) {
    (void)state;
    const struct bt_kernels *k = portable_path();
    static const uint8_t ROW[256] = {0};
    static uint8_t packed[65536];
    float out[64];
    assert_int_equal(k->row_bytes((enum bt_tensor_type)12, 256), 0);
    assert_int_equal(k->row_bytes(BT_TENSOR_Q4_0, 33), 0);
    assert_int_equal(k->dequantise((enum bt_tensor_type)12, ROW, 32, out), -1);
    assert_int_equal(k->dequantise(BT_TENSOR_Q8_0, ROW, 31, out), -1);
    assert_int_equal(k->repack(BT_PACK_Q4_1, BT_TENSOR_Q4_0, ROW, 1, 32, 0, 1, packed), -1);
    assert_int_equal(k->repack(BT_PACK_Q8_0, BT_TENSOR_F16, ROW, 1, 32, 0, 1, packed), -1);
    assert_int_equal(k->repack(BT_PACK_Q4_0, BT_TENSOR_Q4_0, ROW, 1, 48, 0, 1, packed), -1);
    assert_int_equal(k->repack(BT_PACK_BF16, BT_TENSOR_F32, ROW, 1, 3, 0, 1, packed), -1);
    assert_int_equal(k->repack(BT_PACK_F32, (enum bt_tensor_type)12, ROW, 1, 32, 0, 1, packed), -1);
}

static void test_any_cut_packs_the_same(void **state) {
    (void)state;
    static const struct {
        enum bt_pack pack;
        enum bt_tensor_type type;
    } FORMATS[] = {{BT_PACK_Q4_1, BT_TENSOR_Q4_1},
                   {BT_PACK_Q4_0, BT_TENSOR_Q4_0},
                   {BT_PACK_Q8_0, BT_TENSOR_Q8_0},
                   {BT_PACK_BF16, BT_TENSOR_Q4_1},
                   {BT_PACK_F32, BT_TENSOR_F16}};
    const struct bt_kernels *k = portable_path();
    enum { N_OUT = 75, N_IN = 64 };
    for (int f = 0; f < 5; f++) {
        enum bt_pack pack = FORMATS[f].pack;
        enum bt_tensor_type type = FORMATS[f].type;
        uint8_t *tensor = aligned_bytes(k->row_bytes(type, N_IN) * N_OUT);
        size_t bytes = k->packed_bytes(pack, N_OUT, N_IN);
        uint8_t *whole = aligned_bytes(bytes), *cut = aligned_bytes(bytes);
        memset(whole, 0, bytes);
        memset(cut, 0, bytes);
        fill_tensor(type, tensor, (size_t)N_OUT * N_IN);
        assert_int_equal(k->repack(pack, type, tensor, N_OUT, N_IN, 0, N_OUT, whole), 0);
        for (uint32_t row = 0; row < N_OUT; row += 32) {
            uint32_t first = 64 - row, end = first + 32 < N_OUT ? first + 32 : N_OUT;
            assert_int_equal(k->repack(pack, type, tensor, N_OUT, N_IN, first, end, cut), 0);
        }
        assert_memory_equal(whole, cut, bytes);
        free(tensor);
        free(whole);
        free(cut);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantised_blocks),
        cmocka_unit_test(test_halves),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_any_cut_packs_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Layout fingerprints: what differs is named, what cannot be is refused; block hashes chain. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/block_hash.h"
#include "common/base/fingerprint.h"

static struct bt_fingerprint sample(void) {
    return (struct bt_fingerprint){.model_hash = 0x0123456789abcdefull,
                                   .n_layers = 30,
                                   .n_kv_heads = 3,
                                   .head_dim = 64,
                                   .page_tokens = BT_PAGE_TOKENS,
                                   .kv_type = BT_KV_BF16,
                                   .wire_type = BT_KV_BF16,
                                   .inner_order = BT_KV_INNER_ORDER_CPU,
                                   .profile = BT_PROFILE_FAST,
                                   .contract = BT_NUMERICS_CONTRACT};
}

static void test_the_field_that_differs_is_named(void **state) {
    (void)state;
    struct bt_fingerprint a = sample(), b = sample();
    struct bt_error err = {0};
    assert_int_equal(bt_fingerprint_compare(&a, &b, &err), BT_OK);
    b.head_dim = 128;
    assert_int_equal(bt_fingerprint_compare(&a, &b, &err), BT_E_LAYOUT_MISMATCH);
    assert_non_null(strstr(err.text, "head_dim differs: ours is 64, theirs is 128"));
    b = sample();
    b.kv_type = BT_KV_INT8;
    assert_int_equal(bt_fingerprint_compare(&a, &b, &err), BT_E_LAYOUT_MISMATCH);
    assert_non_null(strstr(err.text, "kv_type differs: ours is bf16, theirs is int8"));
    assert_int_not_equal(bt_fingerprint_hash(&a), bt_fingerprint_hash(&b));
    b = sample();
    b.wire_type = BT_KV_F32;
    assert_int_equal(bt_fingerprint_compare(&b, &a, &err), BT_E_LAYOUT_MISMATCH);
    assert_non_null(strstr(err.text, "wire_type differs: ours is f32, theirs is bf16"));
    b = sample();
    b.profile = BT_PROFILE_EXACT;
    assert_int_equal(bt_fingerprint_compare(&a, &b, &err), BT_E_LAYOUT_MISMATCH);
    assert_non_null(strstr(err.text, "profile differs: ours is fast, theirs is exact"));
    b = sample();
    b.model_hash++;
    assert_int_equal(bt_fingerprint_compare(&a, &b, &err), BT_E_LAYOUT_MISMATCH);
    assert_non_null(strstr(err.text, "model_hash"));
    assert_int_not_equal(bt_fingerprint_hash(&a), bt_fingerprint_hash(&b));
}

static void test_packed_form_survives_and_is_checked(void **state) {
    (void)state;
    struct bt_fingerprint a = sample(), b;
    struct bt_error err = {0};
    uint8_t bytes[BT_FINGERPRINT_BYTES];
    bt_fingerprint_pack(&a, bytes);
    assert_int_equal(bt_fingerprint_unpack(bytes, sizeof bytes, &b, &err), BT_OK);
    assert_int_equal(bt_fingerprint_compare(&a, &b, &err), BT_OK);
    assert_int_equal(bt_fingerprint_unpack(bytes, sizeof bytes - 1, &b, &err), BT_E_PROTOCOL);
    for (uint32_t type = 0; type <= BT_KV_INT8 + 1; type++) { /* no cache is "by profile" */
        struct bt_fingerprint typed = sample();
        uint8_t packed[BT_FINGERPRINT_BYTES];
        typed.kv_type = typed.wire_type = type;
        bt_fingerprint_pack(&typed, packed);
        assert_int_equal(bt_fingerprint_unpack(packed, sizeof packed, &b, &err),
                         type >= BT_KV_BF16 && type <= BT_KV_INT8 ? BT_OK : BT_E_PROTOCOL);
    }
    for (size_t i = 8; i < sizeof bytes; i++) {
        uint8_t was = bytes[i];
        bytes[i] = 0xff;
        /* 0xff in a low byte of a wide field may be a legal value; in a high byte or the padding it
         * never is. */
        bt_status status = bt_fingerprint_unpack(bytes, sizeof bytes, &b, &err);
        if ((i - 8) % 4 >= 2 || i >= 44)
            assert_int_equal(status, BT_E_PROTOCOL);
        bytes[i] = was;
    }
}

static void test_block_hashes_depend_on_all_before_them(void **state) {
    (void)state;
    int32_t tokens[40];
    for (int i = 0; i < 40; i++)
        tokens[i] = i * 7;
    struct bt_id root = bt_block_root("", 1), other = bt_block_root("tenant", 1),
                 numerics = bt_block_root("", 2);
    assert_false(bt_id_equal(root, other));
    assert_false(bt_id_equal(root, numerics));
    struct bt_id first = bt_block_next(root, tokens), second = bt_block_next(first, tokens + 16);
    assert_true(bt_id_equal(bt_block_prompt(root, tokens, 32), second));
    assert_false(bt_id_equal(bt_block_prompt(root, tokens, 33), second));
    assert_false(bt_id_equal(bt_block_prompt(root, tokens, 31), bt_block_prompt(root, tokens, 32)));
    tokens[0]++;
    assert_false(bt_id_equal(bt_block_prompt(root, tokens, 32), second));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_field_that_differs_is_named),
        cmocka_unit_test(test_packed_form_survives_and_is_checked),
        cmocka_unit_test(test_block_hashes_depend_on_all_before_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

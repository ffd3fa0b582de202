/* Streams of tokens cut anywhere give the same text as their bytes joined and decoded at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/text/detokenizer.h"
#include "common/text/utf8.h"

#define SLICE(literal) ((struct bt_slice){"" literal, sizeof(literal) - 1})

/* One token per byte, a few of several bytes, one control token. */
struct fixture {
    struct bt_tokenizer *tok;
    int32_t control;
};

static int create(void **state) {
    static struct fixture f;
    static char texts[256][4];
    static struct bt_slice tokens[260];
    static int32_t types[260];
    uint32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; byte++) {
        bool printable =
            (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        size_t n = bt_utf8_encode(printable ? byte : next++, texts[byte]);
        tokens[byte] = (struct bt_slice){texts[byte], n};
        types[byte] = BT_TOKEN_NORMAL;
    }
    tokens[256] = SLICE("\xc3\xb0\xc5\x81"); /* f0 9f: half of an emoji */
    tokens[257] = SLICE("ok");
    tokens[258] = SLICE("<|end|>");
    types[256] = types[257] = BT_TOKEN_NORMAL;
    types[258] = BT_TOKEN_CONTROL;
    struct bt_vocab_source source = {.model = SLICE("gpt2"),
                                     .n_tokens = 259,
                                     .tokens = tokens,
                                     .types = types,
                                     .bos_id = -1,
                                     .eos_id = 258};
    f.control = 258;
    *state = &f;
    return bt_tokenizer_create(&source, &f.tok, NULL) == BT_OK ? 0 : -1;
}

static int destroy(void **state) {
    struct fixture *f = *state;
    bt_tokenizer_destroy(f->tok);
    return 0;
}

static void test_bytes_of_tokens(void **state) {
    struct fixture *f = *state;
    for (int byte = 0; byte < 256; byte++) {
        struct bt_slice bytes = bt_tokenizer_bytes(f->tok, byte);
        assert_int_equal(bytes.n_bytes, 1);
        assert_int_equal((uint8_t)bytes.data[0], byte);
    }
    assert_memory_equal(bt_tokenizer_bytes(f->tok, 256).data, "\xf0\x9f", 2);
    assert_memory_equal(bt_tokenizer_bytes(f->tok, 258).data, "<|end|>", 7);
}

static void test_random_streams(void **state) {
    struct fixture *f = *state;
    /* Bytes that begin, continue and break characters are likelier than others. */
    static const uint8_t pool[] = {0xf0, 0x9f, 0x98, 0x80, 0xe2, 0x82, 0xac, 0xc3, 0xa9, 'a',
                                   0xed, 0xa0, 0xf4, 0x90, 0xc0, 0xff, 0xe0, 0xa0, 0xbf, ' '};
    uint32_t seed = 1;
    for (int round = 0; round < 20000; round++) {
        struct bt_detokenizer d;
        bt_detokenizer_init(&d, f->tok, true);
        char joined[128], streamed[8 * BT_TOKEN_TEXT_BYTES], expected[3 * sizeof joined];
        size_t n_joined = 0, n_streamed = 0;
        for (int i = 0; i < 12; i++) {
            seed = seed * 1664525 + 1013904223;
            int32_t id = seed >> 28 == 0   ? 256
                         : seed >> 28 == 1 ? 257
                         : seed >> 28 == 2 ? f->control
                         : seed >> 28 == 3 ? 1000 /* not in the vocabulary */
                                           : pool[(seed >> 8) % sizeof pool];
            if (id < 258) {
                struct bt_slice bytes = bt_tokenizer_bytes(f->tok, id);
                memcpy(joined + n_joined, bytes.data, bytes.n_bytes);
                n_joined += bytes.n_bytes;
            }
            char out[BT_TOKEN_TEXT_BYTES];
            size_t n = bt_detokenizer_push(&d, id, out);
            assert_true(bt_utf8_is_valid(out, n));
            memcpy(streamed + n_streamed, out, n);
            n_streamed += n;
            assert_true(d.n_held <= 3);
        }
        n_streamed += bt_detokenizer_flush(&d, streamed + n_streamed);
        size_t n_expected = bt_utf8_replace(joined, n_joined, expected);
        assert_int_equal(n_streamed, n_expected);
        assert_memory_equal(streamed, expected, n_expected);
        assert_int_equal(bt_detokenizer_flush(&d, streamed), 0);
    }
}

static void test_control_tokens(void **state) {
    struct fixture *f = *state;
    struct bt_detokenizer d;
    char out[BT_TOKEN_TEXT_BYTES];
    bt_detokenizer_init(&d, f->tok, true);
    assert_int_equal(bt_detokenizer_push(&d, f->control, out), 0);
    bt_detokenizer_init(&d, f->tok, false);
    assert_int_equal(bt_detokenizer_push(&d, f->control, out), 7);
    assert_memory_equal(out, "<|end|>", 7);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_of_tokens),
        cmocka_unit_test(test_random_streams),
        cmocka_unit_test(test_control_tokens),
    };
    return cmocka_run_group_tests(tests, create, destroy);
}

/* The UTF-8 decoder against a table of the standard's own well-formed sequences. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/text/utf8.h"

static void test_every_scalar_value(void **state) {
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++) {
        if (c >= 0xd800 && c < 0xe000)
            continue;
        char bytes[4];
        size_t n = bt_utf8_encode(c, bytes);
        struct bt_utf8_step step = bt_utf8_next(bytes, n);
        if (step.kind != BT_UTF8_VALID || step.code_point != c || step.n_bytes != n)
            fail_msg("U+%04X: kind %d, U+%04X, %u bytes", c, step.kind, step.code_point,
                     step.n_bytes);
        /* Each proper beginning may become a character. */
        for (size_t k = 1; k < n; k++) {
            step = bt_utf8_next(bytes, k);
            if (step.kind != BT_UTF8_PARTIAL || step.n_bytes != k)
                fail_msg("U+%04X: the first %zu bytes have kind %d", c, k, step.kind);
        }
    }
}

/* Unicode 15, table 3-7: which byte may follow which. */
static bool is_beginning(const uint8_t *b, size_t n) {
    if (b[0] < 0x80)
        return n == 1;
    size_t size = b[0] >= 0xc2 && b[0] <= 0xdf   ? 2
                  : b[0] >= 0xe0 && b[0] <= 0xef ? 3
                  : b[0] >= 0xf0 && b[0] <= 0xf4 ? 4
                                                 : 0;
    if (n > size)
        return false;
    for (size_t i = 1; i < n; i++)
        if ((b[i] & 0xc0) != 0x80)
            return false;
    if (n >= 2) {
        if ((b[0] == 0xe0 && b[1] < 0xa0) || (b[0] == 0xed && b[1] > 0x9f) ||
            (b[0] == 0xf0 && b[1] < 0x90) || (b[0] == 0xf4 && b[1] > 0x8f))
            return false;
    }
    return true;
}

/* All pairs of bytes, each followed by an ASCII letter: the invalid part ends where it must. */
static void test_maximal_invalid_parts(void **state) {
    (void)state;
    for (unsigned x = 0; x < 0x10000; x++) {
        const uint8_t b[3] = {(uint8_t)(x >> 8), (uint8_t)x, 'a'};
        size_t n = 0;
        while (n < 3 && is_beginning(b, n + 1))
            n++;
        struct bt_utf8_step step = bt_utf8_next((const char *)b, 3);
        assert_int_equal(step.n_bytes, n ? n : 1);
    }
}

static void test_replace(void **state) {
    (void)state;
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"", ""},
        {"plain ascii of more than eight bytes", "plain ascii of more than eight bytes"},
        {"\xff", "\xef\xbf\xbd"},
        {"a\x80z", "a\xef\xbf\xbdz"},
        {"\xe2\x82", "\xef\xbf\xbd"},
        {"\xf0\x9f\x98(", "\xef\xbf\xbd("},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"12345678\xc3\xa9", "12345678\xc3\xa9"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[256];
        size_t n = strlen(cases[i].in), n_out = bt_utf8_replace(cases[i].in, n, out);
        assert_int_equal(n_out, strlen(cases[i].out));
        assert_memory_equal(out, cases[i].out, n_out);
        assert_int_equal(bt_utf8_is_valid(cases[i].in, n), !strcmp(cases[i].in, cases[i].out));
    }
}

static void test_count(void **state) {
    (void)state;
    assert_int_equal(bt_utf8_count("", 0), 0);
    assert_int_equal(bt_utf8_count("a\xc3\xa9\xf0\x9f\x98\x80", 7), 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_scalar_value),
        cmocka_unit_test(test_maximal_invalid_parts),
        cmocka_unit_test(test_replace),
        cmocka_unit_test(test_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The stop filter against a naive model that keeps all text, on random strings of few letters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/text/stop_filter.h"

enum { TEXT_MAX = 4096 };

static uint32_t draw(uint32_t *seed, uint32_t n) {
    *seed = *seed * 1664525 + 1013904223;
    return (*seed >> 12) % n;
}

/* First byte position at which some string is complete; of those the longest. */
static bool find(const char *text, size_t n, const struct bt_slice *strings, size_t n_strings,
                 size_t *end, int *which) {
    for (*end = 1; *end <= n; (*end)++) {
        *which = -1;
        for (size_t s = 0; s < n_strings; s++)
            if (strings[s].n_bytes <= *end &&
                !memcmp(text + *end - strings[s].n_bytes, strings[s].data, strings[s].n_bytes) &&
                (*which < 0 || strings[s].n_bytes > strings[*which].n_bytes))
                *which = (int)s;
        if (*which >= 0)
            return true;
    }
    return false;
}

/* Size of the longest end of text that is a proper beginning of some string. */
static size_t held(const char *text, size_t n, const struct bt_slice *strings, size_t n_strings) {
    size_t longest = 0;
    for (size_t s = 0; s < n_strings; s++)
        for (size_t k = 1; k < strings[s].n_bytes && k <= n; k++)
            if (k > longest && !memcmp(text + n - k, strings[s].data, k))
                longest = k;
    return longest;
}

static void one_round(uint32_t seed) {
    char storage[BT_STOP_STRINGS][8], text[TEXT_MAX], shown[TEXT_MAX];
    struct bt_slice strings[BT_STOP_STRINGS];
    size_t n_strings = draw(&seed, BT_STOP_STRINGS + 1);
    uint32_t letters = 1 + draw(&seed, 3);
    for (size_t s = 0; s < n_strings; s++) {
        strings[s] = (struct bt_slice){storage[s], 1 + draw(&seed, 8)};
        for (size_t i = 0; i < strings[s].n_bytes; i++)
            storage[s][i] = (char)('a' + draw(&seed, letters));
    }
    bool include = draw(&seed, 2);
    struct bt_stop_filter f;
    assert_int_equal(bt_stop_filter_init(&f, strings, n_strings, include, NULL), BT_OK);
    size_t n_text = 0, n_shown = 0, end;
    int which;
    for (int push = 0; push < 12; push++) {
        size_t n = draw(&seed, 10);
        for (size_t i = 0; i < n; i++)
            text[n_text + i] = (char)('a' + draw(&seed, letters + 1));
        char out[10 + BT_STOP_BYTES];
        size_t n_out;
        bt_status status =
            bt_stop_filter_push(&f, (struct bt_slice){text + n_text, n}, out, &n_out);
        n_text += n;
        memcpy(shown + n_shown, out, n_out);
        n_shown += n_out;
        if (find(text, n_text, strings, n_strings, &end, &which)) {
            assert_int_equal(status, BT_DONE);
            assert_int_equal(f.matched, which);
            size_t expected = include ? end : end - strings[which].n_bytes;
            assert_int_equal(n_shown, expected);
            assert_memory_equal(shown, text, expected);
            return;
        }
        assert_int_equal(status, BT_OK);
        assert_int_equal(n_shown, n_text - held(text, n_text, strings, n_strings));
        assert_memory_equal(shown, text, n_shown);
    }
    n_shown += bt_stop_filter_flush(&f, shown + n_shown);
    assert_int_equal(n_shown, n_text);
    assert_memory_equal(shown, text, n_text);
}

static void test_against_the_naive_model(void **state) {
    (void)state;
    for (uint32_t seed = 0; seed < 200000; seed++)
        one_round(seed * 2654435761u);
}

static void test_bounds(void **state) {
    (void)state;
    struct bt_stop_filter f;
    struct bt_error err;
    char longest[BT_STOP_BYTES + 1];
    memset(longest, 'x', sizeof longest);
    struct bt_slice many[BT_STOP_STRINGS + 1];
    for (size_t i = 0; i < BT_STOP_STRINGS + 1; i++)
        many[i] = (struct bt_slice){longest, BT_STOP_BYTES};
    assert_int_equal(bt_stop_filter_init(&f, many, BT_STOP_STRINGS + 1, false, &err), BT_E_INVALID);
    assert_int_equal(bt_stop_filter_init(&f, many, BT_STOP_STRINGS, false, &err), BT_OK);
    many[1].n_bytes = 0;
    assert_int_equal(bt_stop_filter_init(&f, many, 2, false, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "stop string 1"));
    many[1].n_bytes = BT_STOP_BYTES + 1;
    assert_int_equal(bt_stop_filter_init(&f, many, 2, false, &err), BT_E_INVALID);
    /* The longest string, byte by byte. */
    assert_int_equal(bt_stop_filter_init(&f, many, 1, false, NULL), BT_OK);
    char out[1 + BT_STOP_BYTES];
    size_t n;
    for (int i = 0; i < BT_STOP_BYTES; i++) {
        bt_status status = bt_stop_filter_push(&f, (struct bt_slice){"x", 1}, out, &n);
        assert_int_equal(status, i + 1 < BT_STOP_BYTES ? BT_OK : BT_DONE);
        assert_int_equal(n, 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_the_naive_model),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What `baton profile` says of a tiny model: every op, its work counted exactly, times that add up.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cli/profile.h"
#include "tests/unit/cli/capture.h"

#define MODEL "--model=" BT_FIXTURES "/tiny_gguf/tiny-llama-Q4_1.gguf"

static char text[CAPTURE_BYTES];

/* The number after `"name": ` behind the first `after` (in the part that stands at from). */
static double number(const char *from, const char *after, const char *name) {
    const char *at = strstr(from, after);
    char key[64];
    snprintf(key, sizeof key, "\"%s\": ", name);
    at = at ? strstr(at, key) : NULL;
    if (!at)
        fail_msg("no %s after %s in %s", name, after, text);
    return strtod(at + strlen(key), NULL);
}

static double sum_of_ops(const char *part, const char *end) {
    double sum = 0;
    for (const char *at = part; (at = strstr(at, "{\"op\"")) && (!end || at < end); at++)
        sum += number(at, "{\"op\"", "ms");
    return sum;
}

static void adds_up(const char *part, const char *end) {
    double ms = number(part, "", "ms");
    double all =
        sum_of_ops(part, end) + number(part, "", "waiting_ms") + number(part, "", "other_ms");
    assert_true(ms > 0);
    if (all < ms * 0.98 - 0.01 || all > ms * 1.02 + 0.01)
        fail_msg("ops, waiting and other are %g ms of %g", all, ms);
}

static void test_work_is_counted_and_times_add_up(void **state) {
    (void)state;
    char *argv[] = {"profile",
                    MODEL,
                    "--threads=2",
                    "--pin=no",
                    "--prompt-tokens=40",
                    "--chunk-tokens=32",
                    "--prefills=2",
                    "--sequences=3",
                    "--depth=4",
                    "--steps=2",
                    "--json",
                    NULL};
    assert_int_equal(capture(STDOUT_FILENO, bt_profile_main, argv, text), 0);
    const char *prefill = strstr(text, "\"prefill\""), *decode = strstr(text, "\"decode\"");
    assert_non_null(prefill);
    assert_non_null(decode);
    assert_true(number(text, "", "memory_read_gb_per_s") > 0);
    adds_up(prefill, decode);
    adds_up(decode, NULL);
    /* Products of 256 x 256: 40 rows in the first of 2 layers; in the last one only the row that is
     * sampled, of each of the two chunks. */
    assert_true(number(prefill, "\"out\"", "operations") == 2.0 * 256 * 256 * (40 + 2));
    assert_true(number(decode, "\"out\"", "operations") == 2.0 * 256 * 256 * 2 * 3);
    assert_true(number(decode, "\"head\"", "operations") == 2.0 * 256 * 512 * 3);
    /* Keys seen by a row at depth 5 and 6 (after one step to warm up), itself included: 6.5 in the
     * mean, in 2 layers, 3 sequences, 8 heads of 32. */
    assert_true(number(decode, "\"attention\"", "operations") == 4 * 6.5 * 2 * 3 * 8 * 32);
    assert_true(number(decode, "\"attention\"", "bytes") == 6.5 * 2 * 3 * 2 * 2 * 32 * 2);
}

static void test_tables(void **state) {
    (void)state;
    char *argv[] = {"profile", MODEL, "--threads=1", "--pin=no", "--prompt-tokens=0", NULL};
    assert_int_equal(capture(STDOUT_FILENO, bt_profile_main, argv, text), 0);
    assert_null(strstr(text, "prefill:"));
    assert_non_null(strstr(text, "\ndecode: "));
    static const char *const rows[] = {"  qkv ",  "  attention ", "  gate up ", "  down ",
                                       "  head ", "  sample ",    "  waiting ", "  other "};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_non_null(strstr(text, rows[i]));
}

static void test_refusals(void **state) {
    (void)state;
    char *longer[] = {"profile", MODEL, "--pin=no", "--depth=1000000", NULL};
    assert_int_equal(capture(STDERR_FILENO, bt_profile_main, longer, text), 2);
    assert_non_null(strstr(text, "1000065 tokens were asked for"));
    char *nothing[] = {"profile", "--model=" BT_FIXTURES "/tiny_gguf/none.gguf", NULL};
    assert_int_equal(capture(STDERR_FILENO, bt_profile_main, nothing, text), 2);
    assert_non_null(strstr(text, "none.gguf"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_work_is_counted_and_times_add_up),
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What `baton inspect` says of a tiny model, and how it refuses what is none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cli/inspect.h"
#include "tests/unit/cli/capture.h"

static char text[CAPTURE_BYTES];

static void says(const char *label, const char *value) {
    const char *line = strstr(text, label);
    char found[200] = "";
    if (line)
        snprintf(found, sizeof found, "%.*s", (int)strcspn(line, "\n"), line);
    if (!strstr(found, value))
        fail_msg("\"%s\", expected \"%s\" with \"%s\"", found, label, value);
}

static void test_a_tiny_model(void **state) {
    (void)state;
    char *argv[] = {"inspect", BT_FIXTURES "/tiny_gguf/tiny-llama-Q4_1.gguf", NULL};
    assert_int_equal(capture(STDOUT_FILENO, bt_inspect_main, argv, text), 0);
    says("architecture ", "llama");
    says("layers ", " 2");
    says("width ", " 256");
    says("attention heads ", " 8");
    says("KV heads ", " 2");
    says("head size ", " 32");
    says("vocabulary ", " 512 tokens");
    says("Q4_1 ", "tensors");
    /* 2 layers x 2 heads x (32 + 32) values, of 2 or 4 bytes. */
    says("KV cache, bf16 ", " 512 bytes per token, 2.1 MB at 4096 tokens");
    /* One byte a value, and 2 layers x 2 heads x 2 scales of 4. */
    says("KV cache, int8 ", " 288 bytes per token, 1.2 MB at 4096 tokens");
    says("KV cache, f32 (exact) ", " 1024 bytes per token, 4.2 MB at 4096 tokens");
    says("weights read ", "per token");
}

static void test_growth_of_a_model(void **state) {
    (void)state;
    char *argv[] = {"inspect", "--memory=1000000", BT_FIXTURES "/tiny_gguf/tiny-llama-Q4_1.gguf",
                    NULL};
    assert_int_equal(capture(STDOUT_FILENO, bt_inspect_main, argv, text), 0);
    says("  bf16    ", "2 (K and V) x 2 layers x 2 KV heads x 32 x 2 bytes = 512 bytes a token");
    says("  int8    ", "x 32 x 1 byte and a scale of 4 each = 288 bytes a token");
    says("  f32     ", "x 4 bytes = 1,024 bytes a token (1.02 kB)");
    says("with a KV head for each of the 8 heads", "4 times");
    says("         256 ", "   131 kB    73.7 kB     262 kB          7         13          3");
    says("         512  ", "   262 kB     147 kB     524 kB          3          6          1");
    says("       1,024 ", "   524 kB     295 kB    1.05 MB          1          3       none");
    says("(fit: ", "1.00 MB of KV cache");
    assert_null(strstr(text, "2,048")); /* past its context */
}

/* The figures that primers give: 13 billion parameters with full heads. */
static void test_growth_of_a_shape(void **state) {
    (void)state;
    char *argv[] = {"inspect", "--shape=layers=40,heads=40,kv-heads=40,head-dim=128,bytes=2",
                    "--memory", "16g", NULL};
    assert_int_equal(capture(STDOUT_FILENO, bt_inspect_main, argv, text), 0);
    says("  16 bit", "2 (K and V) x 40 layers x 40 KV heads x 128 x 2 bytes = 819,200 bytes a "
                     "token (819 kB)");
    says("         256 ", "  210 MB         81");
    says("       4,096 ", "3.36 GB          5");
    says("      32,768 ", "26.8 GB       none");
    assert_null(strstr(text, "65,536"));
    assert_null(strstr(text, "times that"));
}

/* Bars: twice the text, twice the length, and the last one is whole. */
static void test_the_picture(void **state) {
    (void)state;
    setenv("LC_ALL", "C", 1);
    char *argv[] = {"inspect", "--shape=layers=1,kv-heads=1,head-dim=64,bytes=1,context=2048",
                    NULL};
    assert_int_equal(capture(STDOUT_FILENO, bt_inspect_main, argv, text), 0);
    const struct {
        const char *tokens;
        size_t cells;
    } rows[] = {{"\n           256 ", 4},
                {"\n           512 ", 8},
                {"\n         1,024 ", 16},
                {"\n         2,048 ", 32}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const char *row = strstr(text, rows[i].tokens);
        assert_non_null(row);
        row += strcspn(row, "#");
        assert_int_equal(strspn(row, "#"), rows[i].cells);
        assert_int_equal(row[rows[i].cells], '\n');
    }
    setenv("LC_ALL", "C.UTF-8", 1);
    assert_int_equal(capture(STDOUT_FILENO, bt_inspect_main, argv, text), 0);
    assert_non_null(strstr(text, "████\n"));
    assert_null(strchr(text, '#'));
}

static void shape_refused(const char *shape, const char *words) {
    char *argv[] = {"inspect", "--shape", (char *)shape, NULL};
    assert_int_equal(capture(STDERR_FILENO, bt_inspect_main, argv, text), 2);
    if (!strstr(text, words) || strchr(text, '\n') != text + strlen(text) - 1)
        fail_msg("\"%s\", expected one line with \"%s\"", text, words);
}

static void test_shapes_refused(void **state) {
    (void)state;
    shape_refused("layers=40,heads=40", "head-dim is missing");
    shape_refused("heads=40,head-dim=128", "layers is missing");
    shape_refused("layers=40,head-dim=128", "kv-heads (or heads) is missing");
    shape_refused("layers=40,layers=41", "layers is given twice");
    shape_refused("layers=0", "layers=0 is not a number from 1 to 65536");
    shape_refused("layers=65537", "from 1 to 65536");
    shape_refused("layers=4x", "layers=4x is not a number");
    shape_refused("layers=-4", "layers=-4 is not a number");
    shape_refused("layers=99999999999999999999999", "is not a number");
    shape_refused("layers", "layers is not a number");
    shape_refused("layers=", "layers= is not a number");
    shape_refused("depth=4", "there is no \"depth\"");
    shape_refused("", "there is no \"\"");
    shape_refused("layers=1,", "there is no \"\"");
    shape_refused("layers=1,heads=2,kv-heads=4,head-dim=8", "at most heads, 2");
    shape_refused("layers=1,heads=2,head-dim=8,bytes=9", "from 1 to 8 for bytes");
    char *both[] = {"inspect", "--shape", "layers=1", "file.gguf", NULL};
    assert_int_equal(capture(STDERR_FILENO, bt_inspect_main, both, text), 2);
    assert_non_null(strstr(text, "both a file and --shape"));
}

/* Nothing overflows at the bounds. */
static void test_the_largest_shape(void **state) {
    (void)state;
    char *argv[] = {"inspect",
                    "--shape=layers=65536,kv-heads=65536,head-dim=65536,bytes=8,context=4294967295",
                    "--memory=1g", NULL};
    assert_int_equal(capture(STDOUT_FILENO, bt_inspect_main, argv, text), 0);
    says("  size", "= 4,503,599,627,370,496 bytes a token (4.50 PB)");
    says(" 4,294,967,295 ", "none");
}

static void refused(const char *path, const char *words) {
    char *argv[] = {"inspect", (char *)path, NULL};
    assert_int_equal(capture(STDERR_FILENO, bt_inspect_main, argv, text), 2);
    if (!strstr(text, words) || strchr(text, '\n') != text + strlen(text) - 1)
        fail_msg("\"%s\", expected one line with \"%s\"", text, words);
}

static void test_refusals(void **state) {
    (void)state;
    refused("/nonexistent.gguf", "/nonexistent.gguf");
    refused("/tmp", "not a regular file");
    refused(BT_FIXTURES "/chat/cases.json", "cases.json: the file does not begin with");
    char path[] = "/tmp/baton-inspect-XXXXXX";
    int fd = mkstemp(path);
    FILE *whole = fopen(BT_FIXTURES "/tiny_gguf/tiny-llama-Q4_1.gguf", "rb");
    static char head[100000];
    assert_true(fd >= 0 && whole);
    assert_int_equal(fread(head, 1, sizeof head, whole), sizeof head);
    assert_int_equal(write(fd, head, sizeof head), sizeof head);
    refused(path, "end of the file");
    close(fd);
    fclose(whole);
    unlink(path);
    char *nothing[] = {"inspect", NULL};
    assert_int_equal(capture(STDERR_FILENO, bt_inspect_main, nothing, text), 2);
    assert_non_null(strstr(text, "no file given"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_tiny_model),      cmocka_unit_test(test_growth_of_a_model),
        cmocka_unit_test(test_growth_of_a_shape), cmocka_unit_test(test_the_picture),
        cmocka_unit_test(test_shapes_refused),    cmocka_unit_test(test_the_largest_shape),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

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
    says("KV cache, fast ", " 512 bytes per token, 2.1 MB at 4096 tokens");
    says("KV cache, bf16 ", " 512 bytes");
    says("KV cache, exact ", " 1024 bytes per token, 4.2 MB at 4096 tokens");
    says("weights read ", "per token");
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
        cmocka_unit_test(test_a_tiny_model),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

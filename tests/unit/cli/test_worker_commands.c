/* What the workers' command lines refuse, in which words, before anything is opened. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "cli/roles.h"
#include "tests/unit/cli/capture.h"

#define GOOD "--model", "m.gguf", "--router", "127.0.0.1:8400"

static void refused(int (*run)(int, char **), char **argv, const char *words) {
    static char text[CAPTURE_BYTES];
    int code = capture(STDERR_FILENO, run, argv, text);
    if (code != 2 || !strstr(text, words))
        fail_msg("exit code %d, \"%s\"; expected 2 with \"%s\"", code, text, words);
}

static void test_refusals_of_both(void **state) {
    (void)state;
    static char long_name[80];
    memset(long_name, 'n', sizeof long_name - 1);
    static char *const bad[][12] = {
        {"x", "--router", "127.0.0.1:1", NULL},
        {"x", "--model", "m", NULL},
        {"x", "--model", "m", "--router", "nonsense", NULL},
        {"x", "--model", "m", "--router", "127.0.0.1:0", NULL},
        {"x", "--model", "m", "--router", "127.0.0.1:1,10.1.2.3:1", NULL},
        {"x", GOOD, "--kv-tokens", "100", "--kv-memory", "1m", NULL},
        {"x", GOOD, "--name", long_name, NULL},
        {"x", GOOD, "--name", "a b", NULL},
        {"x", GOOD, "--precision", "fp8", NULL},
        {"x", GOOD, "--kv-cache-dtype", "fp8", NULL},
        {"x", GOOD, "--precision", "exact", "--kv-cache-dtype", "int8", NULL},
        {"x", GOOD, "--precision", "exact", "--kv-cache-dtype", "bf16", NULL},
        {"x", GOOD, "--threads", "257", NULL},
        {"x", GOOD, "--chunk-tokens", "15", NULL},
        {"x", GOOD, "--max-seqs", "0", NULL},
        {"x", GOOD, "surprise", NULL},
        {"x", GOOD, "--model", "/nonexistent.gguf", NULL},
        {"x", "--model", "m", "--router",
         "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3,127.0.0.1:4,"
         "127.0.0.1:5,127.0.0.1:6,127.0.0.1:7,127.0.0.1:8,127.0.0.1:9",
         NULL},
    };
    static const char *const words[] = {
        "--model is required",
        "--router is required",
        "router: address \"nonsense\"",
        "port 0",
        "\"10.1.2.3:1\" is not on this machine",
        "only one of them",
        "has 79 bytes, allowed 1 to 63",
        "\"a b\" may have letters",
        "fast, bf16, exact",
        "auto, bf16, f32, int8",
        "kv-cache-dtype is int8: with precision exact the KV cache is f32",
        "kv-cache-dtype is bf16: with precision exact the KV cache is f32",
        "from 0 to 256",
        "from 16 to 8192",
        "from 1 to 1024",
        "unexpected word \"surprise\"",
        "/nonexistent.gguf",
        "9 addresses, allowed 1 to 8",
    };
    _Static_assert(sizeof bad / sizeof bad[0] == sizeof words / sizeof words[0], "one each");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        refused(bt_prefill_command, (char **)bad[i], words[i]);
        refused(bt_decode_command, (char **)bad[i], words[i]);
    }
}

static void test_link_addresses(void **state) {
    (void)state;
    refused(bt_prefill_command, (char *[]){"x", GOOD, "--link-listen", "127.0.0.1:0", NULL},
            "unknown option --link-listen");
    refused(bt_decode_command, (char *[]){"x", GOOD, "--link-listen", "0.0.0.0:0", NULL},
            "--insecure");
    refused(bt_decode_command, (char *[]){"x", GOOD, "--link-advertise", "127.0.0.1:0", NULL},
            "link-advertise: \"127.0.0.1:0\" has port 0");
    refused(bt_decode_command, (char *[]){"x", GOOD, "--tls-cert", "/nonexistent.pem", NULL},
            "must be given together: tls-key is missing");
    /* Allowed under TLS: then it is the certificate that is missing. */
    refused(bt_decode_command,
            (char *[]){"x", GOOD, "--link-listen", "0.0.0.0:0", "--tls-cert", "/nonexistent.pem",
                       "--tls-key", "k", "--tls-ca", "c", NULL},
            "cannot be opened: No such file");
    /* Allowed with --insecure: then it is the model file that is missing. */
    refused(bt_decode_command,
            (char *[]){"x", GOOD, "--link-listen", "0.0.0.0:0", "--insecure", "--model",
                       "/nonexistent.gguf", NULL},
            "/nonexistent.gguf");
}

static void test_help(void **state) {
    (void)state;
    static char text[CAPTURE_BYTES];
    assert_int_equal(
        capture(STDOUT_FILENO, bt_decode_command, (char *[]){"x", "--help", NULL}, text), 0);
    assert_non_null(strstr(text, "--link-listen"));
    assert_non_null(strstr(text, "BATON_"));
    assert_int_equal(
        capture(STDOUT_FILENO, bt_prefill_command, (char *[]){"x", "--help", NULL}, text), 0);
    assert_null(strstr(text, "--link-listen"));
    assert_non_null(strstr(text, "--precision"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals_of_both),
        cmocka_unit_test(test_link_addresses),
        cmocka_unit_test(test_help),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

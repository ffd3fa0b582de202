/* Options: precedence, bounds, the sentence of each refusal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/base/config.h"

struct values {
    const char *model;
    uint32_t threads, mode;
    uint64_t memory;
    bool insecure;
    struct bt_option_list routers;
    const char *words[2];
    size_t n_words;
};

static bt_status parse(struct values *v, struct bt_error *err, int argc, char **argv) {
    memset(v, 0, sizeof *v);
    struct bt_option options[] = {
        {"model", BT_OPTION_STRING, &v->model, NULL, .argument = "FILE", .help = "Model.",
         .required = true},
        {"threads", BT_OPTION_U32, &v->threads, "2", 1, 64, .argument = "N", .help = "Threads."},
        {"mode", BT_OPTION_CHOICE, &v->mode, "auto", .choices = {"auto", "always", "never"},
         .help = "Mode."},
        {"kv-memory", BT_OPTION_BYTES, &v->memory, "64m", 1024, 1ull << 40, .argument = "BYTES",
         .help = "Memory."},
        {"insecure", BT_OPTION_FLAG, &v->insecure, "no", .help = "Insecure."},
        {"router", BT_OPTION_LIST, &v->routers, NULL, .argument = "ADDRESS", .help = "Routers."},
    };
    struct bt_command command = {.name = "test",
                                 .usage = "baton test",
                                 .summary = "Test.",
                                 .options = options,
                                 .n_options = sizeof options / sizeof options[0],
                                 .words = v->words,
                                 .n_words_max = 2,
                                 .n_words = &v->n_words};
    return bt_config_parse(&command, argc, argv, err);
}

#define PARSE(v, err, ...)                                                      \
    parse(v, err, (int)(sizeof((char *[]){"x", __VA_ARGS__}) / sizeof(char *)), \
          (char *[]){"x", __VA_ARGS__})

static void test_defaults_and_flags(void **state) {
    (void)state;
    struct values v;
    struct bt_error err = {0};
    assert_int_equal(PARSE(&v, &err, "--model", "a.gguf"), BT_OK);
    assert_string_equal(v.model, "a.gguf");
    assert_int_equal(v.threads, 2);
    assert_int_equal(v.mode, 0);
    assert_int_equal(v.memory, 64u << 20);
    assert_false(v.insecure);
    assert_int_equal(PARSE(&v, &err, "--model=b", "--threads=64", "--mode", "never", "--kv-memory",
                           "1.5GiB", "--insecure", "--router", "a:1,b:2", "--router", "c:3",
                           "word"),
                     BT_OK);
    assert_int_equal(v.threads, 64);
    assert_int_equal(v.mode, 2);
    assert_int_equal(v.memory, 3ull << 29);
    assert_true(v.insecure);
    assert_int_equal(v.routers.n_items, 3);
    assert_string_equal(v.routers.items[2], "c:3");
    assert_int_equal(v.n_words, 1);
    assert_int_equal(PARSE(&v, &err, "--model=m", "--", "--help"), BT_OK);
    assert_string_equal(v.words[0], "--help");
}

static void test_refusals_name_thing_value_and_bound(void **state) {
    (void)state;
    struct values v;
    struct bt_error err = {0};
    assert_int_equal(PARSE(&v, &err, "--threads", "2"), BT_E_INVALID);
    assert_non_null(strstr(err.text, "--model is required"));
    static const char *const bad[][3] = {
        {"--threads", "65", "from 1 to 64"},
        {"--threads", "0", "from 1 to 64"},
        {"--threads", "-1", "from 1 to 64"},
        {"--threads", "2x", "from 1 to 64"},
        {"--threads", "99999999999999999999999", "from 1 to 64"},
        {"--mode", "maybe", "auto, always, never"},
        {"--kv-memory", "1", "from 1024"},
        {"--kv-memory", "9e30", "from 1024"},
        {"--kv-memory", "nan", "from 1024"},
        {"--router", "a,,b", "empty item"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        err.text[0] = 0;
        assert_int_equal(PARSE(&v, &err, "--model", "m", (char *)bad[i][0], (char *)bad[i][1]),
                         BT_E_INVALID);
        assert_non_null(strstr(err.text, bad[i][2]));
        assert_non_null(strstr(err.text, bad[i][1]));
        assert_non_null(strstr(err.text, bad[i][0] + 2));
    }
    assert_int_equal(PARSE(&v, &err, "--model", "m", "--nonsense"), BT_E_INVALID);
    assert_non_null(strstr(err.text, "--nonsense"));
    assert_int_equal(PARSE(&v, &err, "--model"), BT_E_INVALID);
    assert_non_null(strstr(err.text, "needs a value"));
    assert_int_equal(PARSE(&v, &err, "--model", "m", "1", "2", "3"), BT_E_INVALID);
}

static void test_flag_over_environment_over_file(void **state) {
    (void)state;
    char path[] = "/tmp/baton-config-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    static const char text[] = "# a comment\n\n model = from-file \nthreads=3\nkv-memory = 2k\n";
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    close(fd);
    setenv("BATON_THREADS", "5", 1);
    setenv("BATON_KV_MEMORY", "4k", 1);
    struct values v;
    struct bt_error err = {0};
    assert_int_equal(PARSE(&v, &err, "--config", path, "--kv-memory", "8k"), BT_OK);
    assert_string_equal(v.model, "from-file");
    assert_int_equal(v.threads, 5);
    assert_int_equal(v.memory, 8192);
    setenv("BATON_THREADS", "x", 1);
    assert_int_equal(PARSE(&v, &err, "--config", path), BT_E_INVALID);
    assert_non_null(strstr(err.text, "BATON_THREADS"));
    unsetenv("BATON_THREADS");
    unsetenv("BATON_KV_MEMORY");
    FILE *file = fopen(path, "a");
    fputs("nonsense = 1\n", file);
    fclose(file);
    assert_int_equal(PARSE(&v, &err, "--config", path), BT_E_INVALID);
    assert_non_null(strstr(err.text, "line 6"));
    unlink(path);
    assert_int_equal(PARSE(&v, &err, "--config", path), BT_E_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_and_flags),
        cmocka_unit_test(test_refusals_name_thing_value_and_bound),
        cmocka_unit_test(test_flag_over_environment_over_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

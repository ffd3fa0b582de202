/* Tests the file of API keys: what it refuses, and who may ask what. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "router/api_keys.h"

/* printf 'salt-1bt-secret' | sha256sum, printf 'plain' | sha256sum */
#define SECRET "89c1b134668b295a2c795dc3165fdd2c1fcf3381da5d4e9180501a6c31db3a53"
#define PLAIN "a116c9ed46d6207734a43317d30fd88f52ac8634c37d904bbf4e41d865f90475"

static const char good[] = "# keys\n"
                           "alice:" SECRET ":salt-1\r\n"
                           "\n"
                           "ops:" PLAIN "::operator";

static const struct {
    const char *text, *words;
} bad[] = {
    {"", "no key in it"},
    {"# nothing\n\n", "no key in it"},
    {"alice\n", "keys:1: a line must be NAME:SHA256"},
    {"\n\nalice:" SECRET ":a:operator:b\n", "keys:3: a line must be"},
    {":" SECRET "\n", "keys:1: a name must be"},
    {"al ice:" SECRET "\n", "a name must be"},
    {"alice:abc\n", "64 hex digits"},
    {"alice:" SECRET "0\n", "64 hex digits"},
    {"alice:" SECRET ":sa/lt\n", "a salt must be"},
    {"alice:" SECRET "::root\n", "may only be \"operator\""},
};

static struct bt_api_keys *parse(const char *text) {
    struct bt_api_keys *keys = NULL;
    struct bt_error err = {.text = ""};
    if (bt_api_keys_parse("keys", text, strlen(text), &keys, &err) != BT_OK)
        fail_msg("%s", err.text);
    return keys;
}

static void bad_files_are_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct bt_api_keys *keys = NULL;
        struct bt_error err = {.text = ""};
        assert_int_equal(bt_api_keys_parse("keys", bad[i].text, strlen(bad[i].text), &keys, &err),
                         BT_E_INVALID);
        assert_null(keys);
        if (!strstr(err.text, bad[i].words))
            fail_msg("\"%s\" does not say \"%s\"", err.text, bad[i].words);
    }
}

static void bounds(void **state) {
    (void)state;
    static char text[(BT_API_KEYS_MAX + 1) * 128];
    struct bt_error err;
    struct bt_api_keys *keys = NULL;
    size_t n = 0;
    for (int i = 0; i <= BT_API_KEYS_MAX; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "key%d:" SECRET ":s\n", i);
    assert_int_equal(bt_api_keys_parse("keys", text, n, &keys, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "keys:4097: more than 4096 keys"));
    n = 0;
    for (int i = 0; i <= BT_API_SALTS_MAX; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "key%d:" SECRET ":s%d\n", i, i);
    assert_int_equal(bt_api_keys_parse("keys", text, n, &keys, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "keys:17: more than 16 different salts"));
}

static const struct {
    const char *authorization;
    bool is_local;
    enum bt_api_right right;
    bt_status status;
    const char *name;
} callers[] = {
    {NULL, false, BT_API_OPEN, BT_OK, ""},
    {"Bearer bt-secret", false, BT_API_OPEN, BT_OK, "alice"},
    {NULL, false, BT_API_CLIENT, BT_E_UNAUTHENTICATED, ""},
    {NULL, true, BT_API_CLIENT, BT_E_UNAUTHENTICATED, ""},
    {"Bearer bt-secret", false, BT_API_CLIENT, BT_OK, "alice"},
    {"bearer  bt-secret", false, BT_API_CLIENT, BT_OK, "alice"},
    {"Bearer bt-secre", false, BT_API_CLIENT, BT_E_UNAUTHENTICATED, ""},
    {"Bearer bt-secret ", false, BT_API_CLIENT, BT_E_UNAUTHENTICATED, ""},
    {"Bearer", false, BT_API_CLIENT, BT_E_UNAUTHENTICATED, ""},
    {"Bearer ", false, BT_API_CLIENT, BT_E_UNAUTHENTICATED, ""},
    {"Basic bt-secret", false, BT_API_CLIENT, BT_E_UNAUTHENTICATED, ""},
    {"bt-secret", false, BT_API_CLIENT, BT_E_UNAUTHENTICATED, ""},
    {"Bearer " SECRET, false, BT_API_CLIENT, BT_E_UNAUTHENTICATED, ""},
    {"Bearer salt-1bt-secret", false, BT_API_CLIENT, BT_E_UNAUTHENTICATED, ""},
    {"Bearer plain", false, BT_API_CLIENT, BT_OK, "ops"},
    {"Bearer plain", false, BT_API_OPERATOR, BT_OK, "ops"},
    {"Bearer bt-secret", false, BT_API_OPERATOR, BT_E_FORBIDDEN, "alice"},
    {"Bearer bt-secret", true, BT_API_OPERATOR, BT_OK, "alice"},
    {NULL, true, BT_API_OPERATOR, BT_OK, ""},
    {NULL, false, BT_API_OPERATOR, BT_E_UNAUTHENTICATED, ""},
};

static void every_caller(void **state) {
    (void)state;
    struct bt_api_keys *keys = parse(good);
    assert_int_equal(bt_api_keys_count(keys), 2);
    for (size_t i = 0; i < sizeof callers / sizeof callers[0]; i++) {
        char name[BT_API_NAME_BYTES] = "?";
        struct bt_error err = {.text = ""};
        const struct bt_api_caller caller = {callers[i].authorization, callers[i].is_local};
        bt_status status = bt_api_keys_check(keys, &caller, callers[i].right, name, &err);
        if (status != callers[i].status || strcmp(name, callers[i].name) != 0)
            fail_msg("row %zu: %s, name \"%s\"", i, bt_status_name(status), name);
        if (status < 0)
            assert_true(err.text[0] && !strstr(err.text, "secret"));
    }
    bt_api_keys_close(keys);
}

static void no_file_asks_nothing(void **state) {
    (void)state;
    char name[BT_API_NAME_BYTES] = "?";
    const struct bt_api_caller caller = {NULL, false};
    assert_int_equal(bt_api_keys_check(NULL, &caller, BT_API_OPERATOR, name, NULL), BT_OK);
    assert_string_equal(name, "");
}

static void long_keys_are_refused(void **state) {
    (void)state;
    char shown[BT_API_KEY_BYTES_MAX + 32] = "Bearer ";
    memset(shown + 7, 'k', BT_API_KEY_BYTES_MAX + 1);
    struct bt_api_keys *keys = parse(good);
    char name[BT_API_NAME_BYTES];
    struct bt_error err;
    const struct bt_api_caller caller = {shown, false};
    assert_int_equal(bt_api_keys_check(keys, &caller, BT_API_CLIENT, name, &err),
                     BT_E_UNAUTHENTICATED);
    bt_api_keys_close(keys);
}

static void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    fclose(file);
}

static void reload_keeps_the_old_keys(void **state) {
    (void)state;
    char path[] = "/tmp/test_api_keys_XXXXXX", name[BT_API_NAME_BYTES];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct bt_api_keys *keys = NULL;
    struct bt_error err;
    const struct bt_api_caller alice = {"Bearer bt-secret", false};
    write_file(path, "alice:" SECRET ":salt-1\n");
    assert_int_equal(bt_api_keys_open(path, &keys, &err), BT_OK);
    write_file(path, "alice:" SECRET ":salt-1\nbob:12\n");
    assert_int_equal(bt_api_keys_reload(keys, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, ":2: "));
    assert_int_equal(bt_api_keys_check(keys, &alice, BT_API_CLIENT, name, &err), BT_OK);
    write_file(path, "ops:" PLAIN "\n");
    assert_int_equal(bt_api_keys_reload(keys, &err), BT_OK);
    assert_int_equal(bt_api_keys_check(keys, &alice, BT_API_CLIENT, name, &err),
                     BT_E_UNAUTHENTICATED);
    unlink(path);
    assert_int_equal(bt_api_keys_reload(keys, &err), BT_E_IO);
    bt_api_keys_close(keys);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_files_are_refused), cmocka_unit_test(bounds),
        cmocka_unit_test(every_caller),          cmocka_unit_test(no_file_asks_nothing),
        cmocka_unit_test(long_keys_are_refused), cmocka_unit_test(reload_keeps_the_old_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

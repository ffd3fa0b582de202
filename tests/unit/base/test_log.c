/* Each log line is one line, whatever is in it, and in JSON one object that any parser reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/base/log.h"

/* What reaches stderr meanwhile goes to a file; the file's text comes back. */
static int saved;
static FILE *file;

static void capture(void) {
    fflush(stderr);
    saved = dup(STDERR_FILENO);
    file = tmpfile();
    assert_non_null(file);
    assert_true(dup2(fileno(file), STDERR_FILENO) >= 0);
}

static const char *captured(void) {
    static char text[65536];
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    close(saved);
    rewind(file);
    size_t n = fread(text, 1, sizeof text - 1, file);
    text[n] = 0;
    fclose(file);
    return text;
}

static void test_text(void **state) {
    (void)state;
    bt_log_set_role("decode-0");
    bt_log_set_format(BT_LOG_TEXT);
    capture();
    BT_INFO("%d pages", 7);
    bt_log_event(BT_LOG_WARN, "for people", "message", ",\"n\":1");
    BT_DEBUG("not at this level");
    const char *text = captured();
    assert_int_equal(strlen(strstr(text, " info  decode-0: 7 pages\n")), strlen(text) - 12);
    assert_non_null(strstr(text, " warn  decode-0: for people\n"));
    assert_null(strstr(text, "\"n\""));
    assert_null(strstr(text, "level"));
}

static void test_json(void **state) {
    (void)state;
    bt_log_set_role("decode-0");
    bt_log_set_format(BT_LOG_JSON);
    assert_true(bt_log_is_json());
    capture();
    BT_ERROR("a \"quote\", a \\, a\nline, a \x01, gr\xc3\xbc\xc3\x9f, cut \xc3 and \xff");
    bt_log_event(BT_LOG_INFO, "for people", "request", ",\"n\":1,\"s\":{\"a\":2}");
    const char *text = captured();
    assert_non_null(strstr(text, "Z\",\"level\":\"error\",\"role\":\"decode-0\",\"message\":\"a "
                                 "\\\"quote\\\", a \\\\, a\\u000aline, a \\u0001, "
                                 "gr\xc3\xbc\xc3\x9f, cut \\ufffd and \\ufffd\"}\n"));
    assert_non_null(strstr(text, "\"level\":\"info\",\"role\":\"decode-0\",\"message\":\"request\","
                                 "\"n\":1,\"s\":{\"a\":2}}\n"));
    assert_memory_equal(text, "{\"time\":\"20", 11);
}

/* The longest line of either kind fits, and is whole. */
static void test_long_lines(void **state) {
    (void)state;
    char *message = malloc(5001), *members = malloc(5001);
    memset(message, 1, 5000);
    memset(members, 'x', 5000);
    message[5000] = members[5000] = 0;
    bt_log_set_format(BT_LOG_JSON);
    capture();
    bt_log_event(BT_LOG_INFO, "", message, "");
    members[3000] = 0;
    bt_log_event(BT_LOG_INFO, "", "m", members);
    const char *text = captured();
    const char *second = strchr(text, '\n') + 1;
    assert_memory_equal(second - 9, "\\u0001\"}\n", 9);
    assert_int_equal(second[strlen(second) - 2], '}');
    assert_true(strlen(second) > 3000);
    bt_log_set_format(BT_LOG_TEXT);
    capture();
    BT_INFO("%s", message);
    text = captured();
    assert_int_equal(strlen(text), 1000);
    assert_int_equal(text[999], '\n');
    free(message);
    free(members);
}

/* Standard error is no terminal here. */
static void test_auto(void **state) {
    (void)state;
    capture();
    bt_log_set_format(BT_LOG_AUTO);
    bool json = bt_log_is_json();
    captured();
    assert_true(json);
    bt_log_set_format(BT_LOG_TEXT);
    assert_false(bt_log_is_json());
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_text), cmocka_unit_test(test_json),
                                       cmocka_unit_test(test_long_lines),
                                       cmocka_unit_test(test_auto)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

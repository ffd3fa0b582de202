/* gRPC's log lines come out as ours, at most ten a second, and what was left out is counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include <grpc/support/log.h>

#include "common/base/log.h"
#include "common/rpc/rpc.h"

static int64_t second_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

/* What is written to stderr while the lines from `first` on are logged; free it. */
static char *log_lines(int first, int n_lines, gpr_log_severity severity, int64_t *seconds) {
    char path[] = "/tmp/baton-test-log-XXXXXX";
    int file = mkstemp(path), before = dup(STDERR_FILENO);
    assert_true(file >= 0 && before >= 0);
    unlink(path);
    dup2(file, STDERR_FILENO);
    int64_t t0 = second_now();
    for (int i = first; i < first + n_lines; i++)
        gpr_log("some/where/noise.cc", 7, severity, "line %d of a stranger", i);
    *seconds = second_now() - t0 + 1;
    dup2(before, STDERR_FILENO);
    close(before);
    off_t n = lseek(file, 0, SEEK_END);
    char *text = calloc(1, (size_t)n + 1);
    assert_non_null(text);
    assert_int_equal(pread(file, text, (size_t)n, 0), n);
    close(file);
    return text;
}

static int count(const char *text, const char *what) {
    int n = 0;
    while ((text = strstr(text, what))) {
        n++;
        text += strlen(what);
    }
    return n;
}

static void wait_for_the_next_second(void) {
    int64_t now = second_now();
    while (second_now() == now)
        usleep(1000);
}

static void test_a_flood_of_lines_is_cut(void **state) {
    (void)state;
    int64_t seconds;
    wait_for_the_next_second();
    char *text = log_lines(0, 500, GPR_LOG_SEVERITY_ERROR, &seconds);
    int n = count(text, "\n");
    assert_in_range(n, 10, 10 * seconds);
    assert_int_equal(count(text, "warn  "), n);
    assert_non_null(strstr(text, "grpc: noise.cc:7: line 0 of a stranger"));
    free(text);
    wait_for_the_next_second();
    text = log_lines(500, 1, GPR_LOG_SEVERITY_ERROR, &seconds);
    assert_non_null(strstr(text, "lines before it were left out)"));
    free(text);
    wait_for_the_next_second();
    text = log_lines(501, 1, GPR_LOG_SEVERITY_ERROR, &seconds);
    assert_non_null(strstr(text, "line 501 of a stranger"));
    assert_null(strstr(text, "left out")); /* counted once */
    free(text);
}

static void test_the_same_line_is_written_once(void **state) {
    (void)state;
    int64_t seconds;
    wait_for_the_next_second();
    for (int i = 0; i < 3; i++) {
        char *text = log_lines(700, 1, GPR_LOG_SEVERITY_ERROR, &seconds);
        assert_int_equal(count(text, "line 700 of a stranger"), i == 0);
        free(text);
    }
    char *text = log_lines(701, 1, GPR_LOG_SEVERITY_ERROR, &seconds);
    assert_non_null(strstr(text, "line 701 of a stranger (2 lines before it were left out)"));
    free(text);
}

static void test_details_stay_below_the_level(void **state) {
    (void)state;
    int64_t seconds;
    wait_for_the_next_second();
    char *text = log_lines(0, 5, GPR_LOG_SEVERITY_INFO, &seconds);
    assert_string_equal(text, "");
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_flood_of_lines_is_cut),
        cmocka_unit_test(test_the_same_line_is_written_once),
        cmocka_unit_test(test_details_stay_below_the_level),
    };
    bt_rpc_init();
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    bt_rpc_fini();
    return n_failed;
}

/* Children are this very program: it prints what a role would print, and its parent reads it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "cli/children.h"

static int be_child(int argc, char **argv) {
    sigset_t blocked;
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    printf("hello\nready: http=127.0.0.1:80 registry=[::1]:81 mask=%d",
           sigismember(&blocked, SIGTERM));
    printf(" args=%d group=%d\n", argc, getpgrp() == getpid());
    fflush(stdout);
    if (argc > 2 && !strcmp(argv[2], "long")) {
        for (int i = 0; i < 3000; i++)
            putchar('x');
        printf("\nno end");
    }
    return 7;
}

/* Reads until the child has closed its output; its exit code. */
static int drain(struct bt_child *child) {
    struct pollfd fd = {.fd = child->out, .events = POLLIN};
    do {
        assert_int_equal(poll(&fd, 1, 60000), 1);
    } while (bt_child_read(child));
    int status;
    assert_int_equal(waitpid(child->pid, &status, 0), child->pid);
    child->pid = 0;
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void test_ready_line(void **state) {
    (void)state;
    struct bt_child child;
    struct bt_error err;
    char value[64];
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL); /* what the parent blocks, the child must not */
    bt_child_init(&child, "router-0");
    bt_child_arg(&child, "--be-child");
    bt_child_arg(&child, "n=%d %s", 3, "with blanks");
    assert_int_equal(bt_child_start(&child, true, &err), BT_OK);
    assert_int_equal(drain(&child), 7);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    assert_true(bt_child_ready_value(&child, "http", value, sizeof value));
    assert_string_equal(value, "127.0.0.1:80");
    assert_true(bt_child_ready_value(&child, "registry", value, sizeof value));
    assert_string_equal(value, "[::1]:81");
    assert_true(bt_child_ready_value(&child, "mask", value, sizeof value));
    assert_string_equal(value, "0");
    assert_true(bt_child_ready_value(&child, "args", value, sizeof value));
    assert_string_equal(value, "3");
    assert_true(bt_child_ready_value(&child, "group", value, sizeof value));
    assert_string_equal(value, "1");
    assert_false(bt_child_ready_value(&child, "htt", value, sizeof value));
    assert_false(bt_child_ready_value(&child, "link", value, sizeof value));
    /* The same child again: what it said before is forgotten. */
    assert_int_equal(bt_child_start(&child, true, &err), BT_OK);
    assert_false(bt_child_ready_value(&child, "http", value, sizeof value));
    assert_int_equal(drain(&child), 7);
    assert_true(bt_child_ready_value(&child, "http", value, sizeof value));
    bt_child_fini(&child);
}

static void test_long_and_unfinished_lines(void **state) {
    (void)state;
    struct bt_child child;
    bt_child_init(&child, "noisy");
    bt_child_arg(&child, "--be-child");
    bt_child_arg(&child, "long");
    assert_int_equal(bt_child_start(&child, true, NULL), BT_OK);
    assert_int_equal(drain(&child), 7);
    assert_int_equal(child.line_bytes, strlen("no end"));
    bt_child_fini(&child);
    bt_child_fini(&child); /* nothing is left: twice does no harm */
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--be-child"))
        return be_child(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ready_line),
        cmocka_unit_test(test_long_and_unfinished_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

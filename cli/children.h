/* The processes that `baton up` starts: each is this program again with another command.
 *
 * Started by posix_spawn of the running binary, before any RPC library is touched (a fork after
 * gRPC's start is not safe). Each child is in a process group of its own, so that Ctrl-C reaches
 * only the parent, which ends them in order, and is told to die with its parent. Main thread only.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "common/base/status.h"

enum { BT_CHILD_ARGS_MAX = 48, BT_CHILD_LINE_BYTES = 512 };

struct bt_child {
    char name[32];                 /* "decode-0" */
    char *args[BT_CHILD_ARGS_MAX]; /* NULL-terminated; owned */
    size_t n_args;
    pid_t pid;                      /* 0: not running */
    int out;                        /* reading end of its standard output, -1: closed */
    char line[BT_CHILD_LINE_BYTES]; /* an unfinished line of it */
    size_t line_bytes;
    char ready[BT_CHILD_LINE_BYTES]; /* what stood behind "ready: ", empty until it came */
    int n_restarts;
    double restart_at_ms; /* when it may start again; 0: it runs or is not to */
};

/* Zeroes the child and gives it the name and argv[0]. */
void bt_child_init(struct bt_child *child, const char *name);
/* Appends a copy of an argument (printf format). */
void bt_child_arg(struct bt_child *child, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Starts it; with `quiet` false its standard output is the terminal's and `ready` stays empty. */
bt_status bt_child_start(struct bt_child *child, bool quiet, struct bt_error *err);
/* Reads what the child wrote; copies lines other than "ready: ..." to standard output. False once
 * it has closed it. */
bool bt_child_read(struct bt_child *child);
/* The value of a `key=` word in the child's ready line, copied into out; false if it is not there.
 */
bool bt_child_ready_value(const struct bt_child *child, const char *key, char *out,
                          size_t out_bytes);
void bt_child_fini(struct bt_child *child);

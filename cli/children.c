/* Starts this program again with another command, and reads its ready line. */
#include "cli/children.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/assert.h"

extern char **environ;

void bt_child_init(struct bt_child *child, const char *name) {
    *child = (struct bt_child){.out = -1};
    snprintf(child->name, sizeof child->name, "%s", name);
    bt_child_arg(child, "baton");
}

void bt_child_arg(struct bt_child *child, const char *format, ...) {
    BT_ASSERT(child->n_args + 1 < BT_CHILD_ARGS_MAX);
    va_list args;
    va_start(args, format);
    if (vasprintf(&child->args[child->n_args], format, args) < 0) {
        fprintf(stderr, "baton: out of memory while starting %s\n", child->name);
        exit(1);
    }
    va_end(args);
    child->n_args++;
}

static int spawn(struct bt_child *child, int out) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes,
                               &none); /* the parent blocks what it reads by signalfd */
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    if (out >= 0)
        posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    int error =
        posix_spawn(&child->pid, "/proc/self/exe", &actions, &attributes, child->args, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

bt_status bt_child_start(struct bt_child *child, bool quiet, struct bt_error *err) {
    int ends[2] = {-1, -1};
    if (quiet && pipe2(ends, O_CLOEXEC) != 0)
        return bt_fail(err, BT_E_IO, "cannot make a pipe for %s: %s", child->name, strerror(errno));
    int error = spawn(child, ends[1]);
    if (ends[1] >= 0)
        close(ends[1]);
    if (error) {
        child->pid = 0;
        if (ends[0] >= 0)
            close(ends[0]);
        return bt_fail(err, BT_E_IO, "cannot start %s: %s", child->name, strerror(error));
    }
    if (ends[0] >= 0)
        fcntl(ends[0], F_SETFL, O_NONBLOCK);
    if (child->out >= 0)
        close(child->out);
    child->out = ends[0];
    child->line_bytes = 0;
    child->ready[0] = 0;
    child->restart_at_ms = 0;
    return BT_OK;
}

static void take_line(struct bt_child *child) {
    static const char ready[] = "ready: ";
    child->line[child->line_bytes] = 0;
    if (!strncmp(child->line, ready, sizeof ready - 1))
        snprintf(child->ready, sizeof child->ready, "%s", child->line + sizeof ready - 1);
    else
        printf("%s: %s\n", child->name, child->line);
    child->line_bytes = 0;
}

bool bt_child_read(struct bt_child *child) {
    char bytes[4096];
    for (;;) {
        ssize_t n = read(child->out, bytes, sizeof bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n <= 0) {
            close(child->out);
            child->out = -1;
            return false;
        }
        for (ssize_t i = 0; i < n; i++) {
            if (bytes[i] == '\n' || child->line_bytes == sizeof child->line - 1)
                take_line(child);
            if (bytes[i] != '\n')
                child->line[child->line_bytes++] = bytes[i];
        }
    }
}

bool bt_child_ready_value(const struct bt_child *child, const char *key, char *out,
                          size_t out_bytes) {
    size_t n = strlen(key);
    for (const char *word = child->ready; *word; word += strspn(word, " ")) {
        size_t length = strcspn(word, " ");
        if (!strncmp(word, key, n) && word[n] == '=') {
            snprintf(out, out_bytes, "%.*s", (int)(length - n - 1), word + n + 1);
            return true;
        }
        word += length;
    }
    return false;
}

void bt_child_fini(struct bt_child *child) {
    for (size_t i = 0; i < child->n_args; i++)
        free(child->args[i]);
    child->n_args = 0;
    if (child->out >= 0)
        close(child->out);
    child->out = -1;
}

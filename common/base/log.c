/* Writes log lines to stderr, each with one write() so that lines of threads and processes do not
 * mix. */
#include "common/base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 1000 };

static _Atomic int level_max = BT_LOG_INFO;
static char role_name[32] = "baton";

void bt_log_set_level(enum bt_log_level level) {
    atomic_store(&level_max, (int)level);
}

enum bt_log_level bt_log_level(void) {
    return (enum bt_log_level)atomic_load_explicit(&level_max, memory_order_relaxed);
}

void bt_log_set_role(const char *role) {
    snprintf(role_name, sizeof role_name, "%s", role);
}

void bt_log_write(enum bt_log_level level, const char *format, ...) {
    static const char *const names[] = {"error", "warn", "info", "debug"};
    if (level > bt_log_level())
        return;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm parts;
    gmtime_r(&now.tv_sec, &parts);
    char line[LINE_BYTES + 2];
    int n = snprintf(line, LINE_BYTES, "%02d:%02d:%02d.%03ld %-5s %s: ", parts.tm_hour,
                     parts.tm_min, parts.tm_sec, now.tv_nsec / 1000000, names[level], role_name);
    va_list args;
    va_start(args, format);
    int m = vsnprintf(line + n, (size_t)(LINE_BYTES - n), format, args);
    va_end(args);
    size_t length = m < 0 ? (size_t)n : (size_t)n + (size_t)m;
    if (length > LINE_BYTES - 1)
        length = LINE_BYTES - 1;
    line[length++] = '\n';
    /* A log that cannot be written (full disk, closed pipe) must not stop serving: the line is
     * lost, nothing else. */
    ssize_t written = write(STDERR_FILENO, line, length);
    (void)written;
}

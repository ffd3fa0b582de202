/* Writes log lines to stderr, each with one write() so that lines of threads and processes do not
 * mix. */
#include "common/base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 1000, MEMBERS_BYTES = 3000, JSON_BYTES = 6 * LINE_BYTES + MEMBERS_BYTES };

static _Atomic int level_max = BT_LOG_INFO;
static bool json;
static char role_name[32] = "baton";

void bt_log_set_level(enum bt_log_level level) {
    atomic_store(&level_max, (int)level);
}

enum bt_log_level bt_log_level(void) {
    return (enum bt_log_level)atomic_load_explicit(&level_max, memory_order_relaxed);
}

void bt_log_set_format(enum bt_log_format format) {
    json = format == BT_LOG_JSON || (format == BT_LOG_AUTO && !isatty(STDERR_FILENO));
}

bool bt_log_is_json(void) {
    return json;
}

void bt_log_set_role(const char *role) {
    snprintf(role_name, sizeof role_name, "%s", role);
}

static const char *level_name(enum bt_log_level level) {
    static const char *const names[] = {"error", "warn", "info", "debug"};
    return names[level];
}

/* A log that cannot be written (full disk, closed pipe) must not stop serving: the line is lost,
 * nothing else. */
static void put(const char *line, size_t n_bytes) {
    ssize_t written = write(STDERR_FILENO, line, n_bytes);
    (void)written;
}

static void put_text(enum bt_log_level level, const char *text) {
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    char line[LINE_BYTES + 2];
    int n =
        snprintf(line, LINE_BYTES, "%02d:%02d:%02d.%03ld %-5s %s: %s", parts.tm_hour, parts.tm_min,
                 parts.tm_sec, now.tv_nsec / 1000000, level_name(level), role_name, text);
    size_t length = n < LINE_BYTES ? (size_t)n : LINE_BYTES - 1;
    line[length++] = '\n';
    put(line, length);
}

/* Bytes of the UTF-8 sequence at text (Unicode 15, table 3-7, without its finer rules for the
 * second byte); 0: it is none. */
static size_t sequence(const unsigned char *text) {
    size_t n = text[0] < 0x80   ? 1
               : text[0] < 0xc2 ? 0
               : text[0] < 0xe0 ? 2
               : text[0] < 0xf0 ? 3
               : text[0] < 0xf5 ? 4
                                : 0;
    for (size_t i = 1; i < n; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    return n;
}

/* The inside of a JSON string (RFC 8259, 7); at most 6 bytes for each of text. */
static size_t escape(const char *text, char *out) {
    size_t n = 0;
    for (const unsigned char *at = (const unsigned char *)text; *at;) {
        size_t length = sequence(at);
        if (length > 1) {
            memcpy(out + n, at, length);
            n += length;
        } else if (length == 0) {
            memcpy(out + n, "\\ufffd", 6);
            n += 6;
            length = 1;
        } else if (*at == '"' || *at == '\\') {
            out[n++] = '\\';
            out[n++] = (char)*at;
        } else if (*at < 0x20 || *at == 0x7f) {
            n += (size_t)sprintf(out + n, "\\u%04x", (unsigned)*at);
        } else {
            out[n++] = (char)*at;
        }
        at += length;
    }
    return n;
}

static void put_json(enum bt_log_level level, const char *message, const char *members) {
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    char line[JSON_BYTES + 512], cut[LINE_BYTES], role[6 * sizeof role_name];
    role[escape(role_name, role)] = 0;
    int head = snprintf(line, sizeof line,
                        "{\"time\":\"%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ\",\"level\":\"%s\","
                        "\"role\":\"%s\",\"message\":\"",
                        parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday, parts.tm_hour,
                        parts.tm_min, parts.tm_sec, now.tv_nsec / 1000000, level_name(level), role);
    size_t n = (size_t)head, n_members = strlen(members);
    snprintf(cut, sizeof cut, "%s", message);
    n += escape(cut, line + n);
    line[n++] = '"';
    if (n_members <= MEMBERS_BYTES) {
        memcpy(line + n, members, n_members);
        n += n_members;
    }
    line[n++] = '}';
    line[n++] = '\n';
    put(line, n);
}

void bt_log_event(enum bt_log_level level, const char *text, const char *message,
                  const char *members) {
    if (level > bt_log_level())
        return;
    if (json)
        put_json(level, message, members);
    else
        put_text(level, text);
}

void bt_log_write(enum bt_log_level level, const char *format, ...) {
    if (level > bt_log_level())
        return;
    char text[LINE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    bt_log_event(level, text, text, "");
}

/* One line per event on stderr: time, level, role, text. The level is one of the program's two
 * globals. */
#pragma once

enum bt_log_level { BT_LOG_ERROR, BT_LOG_WARN, BT_LOG_INFO, BT_LOG_DEBUG };

void bt_log_set_level(enum bt_log_level level);
enum bt_log_level bt_log_level(void);
/* Sets the name that stands in each line, for example "decode-0"; call once at start, before
 * threads exist. */
void bt_log_set_role(const char *role);
/* Any thread. A line longer than 1,000 bytes is cut. */
void bt_log_write(enum bt_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#define BT_ERROR(...) bt_log_write(BT_LOG_ERROR, __VA_ARGS__)
#define BT_WARN(...) bt_log_write(BT_LOG_WARN, __VA_ARGS__)
#define BT_INFO(...) bt_log_write(BT_LOG_INFO, __VA_ARGS__)
#define BT_DEBUG(...)                                \
    do {                                             \
        if (bt_log_level() >= BT_LOG_DEBUG)          \
            bt_log_write(BT_LOG_DEBUG, __VA_ARGS__); \
    } while (0)

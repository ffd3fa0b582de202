/* One line per event on stderr: for people (time, level, role, text) or one JSON object for
 * programs. The level and the format are of the whole program. */
#pragma once
#include <stdbool.h>

enum bt_log_level { BT_LOG_ERROR, BT_LOG_WARN, BT_LOG_INFO, BT_LOG_DEBUG };
enum bt_log_format {
    BT_LOG_AUTO, /* TEXT where stderr is a terminal, else JSON */
    BT_LOG_TEXT, /* the format before anything is set */
    BT_LOG_JSON, /* {"time": ISO 8601, "level": ..., "role": ..., "message": ...} */
};

void bt_log_set_level(enum bt_log_level level);
enum bt_log_level bt_log_level(void);
/* Call once at start, before threads exist. */
void bt_log_set_format(enum bt_log_format format);
bool bt_log_is_json(void);
/* Sets the name that stands in each line, for example "decode-0"; call once at start, before
 * threads exist. */
void bt_log_set_role(const char *role);
/* Any thread. A line longer than 1,000 bytes is cut. */
void bt_log_write(enum bt_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* A line with more members: text where the format is TEXT; else the object of bt_log_write with
 * this message and then members, which begin with a comma. At most 3,000 bytes of members. */
void bt_log_event(enum bt_log_level level, const char *text, const char *message,
                  const char *members);

#define BT_ERROR(...) bt_log_write(BT_LOG_ERROR, __VA_ARGS__)
#define BT_WARN(...) bt_log_write(BT_LOG_WARN, __VA_ARGS__)
#define BT_INFO(...) bt_log_write(BT_LOG_INFO, __VA_ARGS__)
#define BT_DEBUG(...)                                \
    do {                                             \
        if (bt_log_level() >= BT_LOG_DEBUG)          \
            bt_log_write(BT_LOG_DEBUG, __VA_ARGS__); \
    } while (0)

/* One picture of a router and its pools for a terminal, from what /debug/stats and /debug/requests
 * answer.
 *
 * Pure: no terminal, no clock. Whatever the JSON holds, no line is longer than the columns and
 * there are no more lines than rows. */
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

enum {
    BT_TOP_COLUMNS_MAX = 240,
    BT_TOP_ROWS_MAX = 120,
    BT_TOP_BYTES = BT_TOP_COLUMNS_MAX * BT_TOP_ROWS_MAX * 4,
};

struct bt_top_view {
    unsigned columns, rows; /* cut to the bounds above; below 20 and 4 nothing useful fits */
    bool unicode;           /* block characters, else ASCII */
    bool terminal;          /* with escape codes: bold, dim, and each line cleared to its end */
    const char *notice;     /* why there is no contact, a line of its own; NULL: there is */
};

/* Writes the picture, each line ended by '\n' but the last; NUL-terminated. stats and requests are
 * the two answers, NULL where there is none yet. Answers the bytes written. */
size_t bt_top_frame(const struct bt_top_view *view, const json_t *stats, const json_t *requests,
                    char out[BT_TOP_BYTES]);

/* Holds back text that may be the beginning of a stop string, and says when one is complete.
 *
 * A plain value in the request; no allocation. One per choice. What is held back is always a
 * beginning of one of the strings, so it costs no buffer. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/text/slice.h"

struct bt_stop_filter {
    uint8_t n_strings;
    bool include;   /* a stop string that matched is part of the text */
    int8_t matched; /* index of the string that matched, -1: none yet */
    uint16_t n_bytes[BT_STOP_STRINGS];
    uint16_t n_matching[BT_STOP_STRINGS]; /* bytes of string i that the text ends with */
    char text[BT_STOP_STRINGS][BT_STOP_BYTES];
    uint16_t fallback[BT_STOP_STRINGS][BT_STOP_BYTES]; /* Knuth-Morris-Pratt failure table */
};

/* BT_E_INVALID: more than BT_STOP_STRINGS strings, an empty one, or one longer than BT_STOP_BYTES.
 */
bt_status bt_stop_filter_init(struct bt_stop_filter *f, const struct bt_slice *strings,
                              size_t n_strings, bool include, struct bt_error *err);
/* Takes the next text and writes what may be shown into out, which has room for text.n_bytes +
 * BT_STOP_BYTES; *n_out is its size. BT_OK: go on. BT_DONE: a stop string is complete (f->matched);
 * the text before it (and itself, if `include`) has been written and the rest is dropped; of
 * strings that end at the same byte the longest wins. Not to be called again after BT_DONE. */
bt_status bt_stop_filter_push(struct bt_stop_filter *f, struct bt_slice text, char *out,
                              size_t *n_out);
/* At the end of the stream: writes what is held back. Returns its size, at most BT_STOP_BYTES. */
size_t bt_stop_filter_flush(struct bt_stop_filter *f, char out[BT_STOP_BYTES]);

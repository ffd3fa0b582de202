/* Matches up to four stop strings at once, byte by byte (Knuth, Morris, Pratt). */
#include "common/text/stop_filter.h"

#include <string.h>

bt_status bt_stop_filter_init(struct bt_stop_filter *f, const struct bt_slice *strings,
                              size_t n_strings, bool include, struct bt_error *err) {
    if (n_strings > BT_STOP_STRINGS)
        return bt_fail(err, BT_E_INVALID, "%zu stop strings, allowed %d", n_strings,
                       BT_STOP_STRINGS);
    for (size_t i = 0; i < n_strings; i++)
        if (!strings[i].n_bytes || strings[i].n_bytes > BT_STOP_BYTES)
            return bt_fail(err, BT_E_INVALID, "stop string %zu has %zu bytes, allowed 1 to %d", i,
                           strings[i].n_bytes, BT_STOP_BYTES);
    memset(f, 0, sizeof *f);
    f->n_strings = (uint8_t)n_strings;
    f->include = include;
    f->matched = -1;
    for (size_t s = 0; s < n_strings; s++) {
        uint16_t n = (uint16_t)strings[s].n_bytes, k = 0;
        const char *text = strings[s].data;
        f->n_bytes[s] = n;
        memcpy(f->text[s], text, n);
        /* fallback[i]: size of the longest proper beginning of text[0..i] that is also its end. */
        for (uint16_t i = 1; i < n; i++) {
            while (k && text[i] != text[k])
                k = f->fallback[s][k - 1];
            k = (uint16_t)(k + (text[i] == text[k]));
            f->fallback[s][i] = k;
        }
    }
    return BT_OK;
}

/* Feeds one byte to string s; true if the string is complete. */
static bool advance(struct bt_stop_filter *f, int s, char byte) {
    uint16_t k = f->n_matching[s];
    while (k && f->text[s][k] != byte)
        k = f->fallback[s][k - 1];
    k = (uint16_t)(k + (f->text[s][k] == byte));
    f->n_matching[s] = k;
    return k == f->n_bytes[s];
}

/* The string that the text ends with the longest beginning of: what is held back. */
static int held_string(const struct bt_stop_filter *f) {
    int best = 0;
    for (int s = 1; s < f->n_strings; s++)
        if (f->n_matching[s] > f->n_matching[best])
            best = s;
    return best;
}

/* Writes the first n bytes of (what was held, then text). */
static void emit(const char *held, size_t n_held, const char *text, size_t n, char *out) {
    size_t from_held = n < n_held ? n : n_held;
    memcpy(out, held, from_held);
    if (n > from_held)
        memcpy(out + from_held, text, n - from_held);
}

bt_status bt_stop_filter_push(struct bt_stop_filter *f, struct bt_slice text, char *out,
                              size_t *n_out) {
    int held = held_string(f);
    size_t n_held = f->n_matching[held];
    for (size_t i = 0; i < text.n_bytes; i++) {
        for (int s = 0; s < f->n_strings; s++)
            if (advance(f, s, text.data[i]) &&
                (f->matched < 0 || f->n_bytes[s] > f->n_bytes[f->matched]))
                f->matched = (int8_t)s;
        if (f->matched >= 0) {
            *n_out = n_held + i + 1 - (f->include ? 0 : f->n_bytes[f->matched]);
            emit(f->text[held], n_held, text.data, *n_out, out);
            return BT_DONE;
        }
    }
    *n_out = n_held + text.n_bytes - f->n_matching[held_string(f)];
    emit(f->text[held], n_held, text.data, *n_out, out);
    return BT_OK;
}

size_t bt_stop_filter_flush(struct bt_stop_filter *f, char out[BT_STOP_BYTES]) {
    int held = held_string(f);
    size_t n = f->n_matching[held];
    memcpy(out, f->text[held], n);
    memset(f->n_matching, 0, sizeof f->n_matching);
    return n;
}

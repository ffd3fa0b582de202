/* Steps through bytes as UTF-8, invalid ones included. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum bt_utf8_kind {
    BT_UTF8_VALID,
    BT_UTF8_INVALID, /* no character can begin like this */
    BT_UTF8_PARTIAL, /* the bytes end inside of what may become a character */
};

struct bt_utf8_step {
    enum bt_utf8_kind kind;
    uint8_t n_bytes;     /* of the character, or of the maximal invalid part (>= 1) */
    uint32_t code_point; /* valid only */
};

/* Looks at the n >= 1 bytes at p. Follows the decoder of the WHATWG Encoding standard (4.2 UTF-8),
 * which replaces each maximal invalid part by one U+FFFD. */
struct bt_utf8_step bt_utf8_next(const char *p, size_t n);

bool bt_utf8_is_valid(const char *p, size_t n);
/* Writes the n bytes at p with invalid parts replaced by U+FFFD into out (room for 3 * n bytes).
 * Returns the size. */
size_t bt_utf8_replace(const char *p, size_t n, char *out);
/* Writes code_point (a scalar value) into out; returns its 1 to 4 bytes. */
size_t bt_utf8_encode(uint32_t code_point, char out[4]);
/* Number of characters in valid UTF-8. */
size_t bt_utf8_count(const char *p, size_t n);

/* The UTF-8 decoder that input, token streams and templates share. */
#include "common/text/utf8.h"

#include <string.h>

struct bt_utf8_step bt_utf8_next(const char *p, size_t n) {
    const uint8_t *b = (const uint8_t *)p;
    struct bt_utf8_step step = {.kind = BT_UTF8_VALID, .n_bytes = 1, .code_point = b[0]};
    if (b[0] < 0x80)
        return step;
    uint8_t low = 0x80, high = 0xbf;
    unsigned n_more;
    if (b[0] >= 0xc2 && b[0] <= 0xdf) {
        n_more = 1;
        step.code_point = b[0] & 0x1fu;
    } else if (b[0] >= 0xe0 && b[0] <= 0xef) {
        n_more = 2;
        step.code_point = b[0] & 0x0fu;
        low = b[0] == 0xe0 ? 0xa0 : 0x80;
        high = b[0] == 0xed ? 0x9f : 0xbf;
    } else if (b[0] >= 0xf0 && b[0] <= 0xf4) {
        n_more = 3;
        step.code_point = b[0] & 0x07u;
        low = b[0] == 0xf0 ? 0x90 : 0x80;
        high = b[0] == 0xf4 ? 0x8f : 0xbf;
    } else {
        step.kind = BT_UTF8_INVALID;
        return step;
    }
    for (unsigned i = 1; i <= n_more; i++) {
        if (i == n || b[i] < low || b[i] > high) {
            step.kind = i == n ? BT_UTF8_PARTIAL : BT_UTF8_INVALID;
            step.n_bytes = (uint8_t)i;
            return step;
        }
        step.code_point = step.code_point << 6 | (b[i] & 0x3fu);
        low = 0x80;
        high = 0xbf;
    }
    step.n_bytes = (uint8_t)(n_more + 1);
    return step;
}

/* Bytes at the front of p that are ASCII, in steps of eight; the caller looks at the rest. */
static size_t skip_ascii(const char *p, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t word;
        memcpy(&word, p + i, 8);
        if (word & 0x8080808080808080u)
            break;
    }
    return i;
}

bool bt_utf8_is_valid(const char *p, size_t n) {
    for (size_t i = 0; i < n;) {
        i += skip_ascii(p + i, n - i);
        if (i == n)
            break;
        struct bt_utf8_step step = bt_utf8_next(p + i, n - i);
        if (step.kind != BT_UTF8_VALID)
            return false;
        i += step.n_bytes;
    }
    return true;
}

size_t bt_utf8_replace(const char *p, size_t n, char *out) {
    size_t n_out = 0;
    for (size_t i = 0; i < n;) {
        struct bt_utf8_step step = bt_utf8_next(p + i, n - i);
        if (step.kind == BT_UTF8_VALID) {
            memcpy(out + n_out, p + i, step.n_bytes);
            n_out += step.n_bytes;
        } else {
            n_out += bt_utf8_encode(0xfffd, out + n_out);
        }
        i += step.n_bytes;
    }
    return n_out;
}

size_t bt_utf8_encode(uint32_t code_point, char out[4]) {
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    if (code_point < 0x800) {
        out[0] = (char)(0xc0 | code_point >> 6);
        out[1] = (char)(0x80 | (code_point & 0x3f));
        return 2;
    }
    if (code_point < 0x10000) {
        out[0] = (char)(0xe0 | code_point >> 12);
        out[1] = (char)(0x80 | (code_point >> 6 & 0x3f));
        out[2] = (char)(0x80 | (code_point & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | code_point >> 18);
    out[1] = (char)(0x80 | (code_point >> 12 & 0x3f));
    out[2] = (char)(0x80 | (code_point >> 6 & 0x3f));
    out[3] = (char)(0x80 | (code_point & 0x3f));
    return 4;
}

size_t bt_utf8_count(const char *p, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((uint8_t)p[i] & 0xc0) != 0x80;
    return count;
}

/* Grows, and writes numbers and JSON strings without going through printf. */
#include "router/text_buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { FIRST_BYTES = 1024 };

void bt_text_buffer_fini(struct bt_text_buffer *buffer) {
    free(buffer->data);
    *buffer = (struct bt_text_buffer){0};
}

bool bt_text_buffer_reserve(struct bt_text_buffer *buffer, size_t n) {
    if (buffer->capacity - buffer->n_bytes >= n)
        return true;
    size_t capacity = buffer->capacity ? buffer->capacity : FIRST_BYTES;
    while (capacity - buffer->n_bytes < n) {
        if (capacity > SIZE_MAX / 2) {
            buffer->failed = true;
            return false;
        }
        capacity *= 2;
    }
    char *data = realloc(buffer->data, capacity);
    if (!data) {
        buffer->failed = true;
        return false;
    }
    buffer->data = data;
    buffer->capacity = capacity;
    return true;
}

void bt_text_buffer_add_string(struct bt_text_buffer *buffer, const char *text) {
    bt_text_buffer_add(buffer, text, strlen(text));
}

void bt_text_buffer_add_u64(struct bt_text_buffer *buffer, uint64_t value) {
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    bt_text_buffer_add(buffer, digits + at, sizeof digits - at);
}

void bt_text_buffer_add_i64(struct bt_text_buffer *buffer, int64_t value) {
    if (value < 0)
        bt_text_buffer_add_literal(buffer, "-");
    bt_text_buffer_add_u64(buffer, value < 0 ? 0 - (uint64_t)value : (uint64_t)value);
}

void bt_text_buffer_add_hex64(struct bt_text_buffer *buffer, uint64_t value) {
    char digits[16];
    for (size_t i = 0; i < sizeof digits; i++)
        digits[i] = "0123456789abcdef"[value >> (60 - 4 * i) & 15];
    bt_text_buffer_add(buffer, digits, sizeof digits);
}

static void add_escape(struct bt_text_buffer *buffer, unsigned char c) {
    static const char letters[] = "\"\"\\\\\bb\ff\nn\rr\tt";
    char out[6] = {'\\', 'u', '0', '0', "0123456789abcdef"[c >> 4], "0123456789abcdef"[c & 15]};
    for (size_t i = 0; i < sizeof letters - 1; i += 2) {
        if ((unsigned char)letters[i] == c) {
            out[1] = letters[i + 1];
            bt_text_buffer_add(buffer, out, 2);
            return;
        }
    }
    bt_text_buffer_add(buffer, out, sizeof out);
}

void bt_text_buffer_add_escaped(struct bt_text_buffer *buffer, const char *text, size_t n) {
    size_t plain = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        bt_text_buffer_add(buffer, text + plain, i - plain);
        add_escape(buffer, c);
        plain = i + 1;
    }
    bt_text_buffer_add(buffer, text + plain, n - plain);
}

void bt_text_buffer_add_json(struct bt_text_buffer *buffer, const char *text) {
    bt_text_buffer_add_literal(buffer, "\"");
    bt_text_buffer_add_escaped(buffer, text, strlen(text));
    bt_text_buffer_add_literal(buffer, "\"");
}

void bt_text_buffer_printf(struct bt_text_buffer *buffer, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0 || !bt_text_buffer_reserve(buffer, (size_t)n + 1)) {
        buffer->failed = true;
        return;
    }
    va_start(args, format);
    vsnprintf(buffer->data + buffer->n_bytes, (size_t)n + 1, format, args);
    va_end(args);
    buffer->n_bytes += (size_t)n;
}

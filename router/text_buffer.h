/* A growing byte buffer for what is sent to clients: plain bytes, numbers and JSON strings.
 *
 * Owned by one thread. An allocation that fails is remembered in `failed` and what would not fit is
 * dropped, so that a writer checks once, at the end. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct bt_text_buffer {
    char *data;
    size_t n_bytes, capacity;
    bool failed;
};

void bt_text_buffer_fini(struct bt_text_buffer *buffer);
/* Room for n more bytes; false (and `failed`) where there is none. */
bool bt_text_buffer_reserve(struct bt_text_buffer *buffer, size_t n);

static inline void bt_text_buffer_add(struct bt_text_buffer *buffer, const char *data, size_t n) {
    if (buffer->capacity - buffer->n_bytes < n && !bt_text_buffer_reserve(buffer, n))
        return;
    if (n)
        memcpy(buffer->data + buffer->n_bytes, data, n);
    buffer->n_bytes += n;
}

/* A string literal. */
#define bt_text_buffer_add_literal(buffer, literal) \
    bt_text_buffer_add(buffer, "" literal, sizeof(literal) - 1)

void bt_text_buffer_add_string(struct bt_text_buffer *buffer, const char *text);
void bt_text_buffer_add_u64(struct bt_text_buffer *buffer, uint64_t value);
void bt_text_buffer_add_i64(struct bt_text_buffer *buffer, int64_t value);
/* 16 hex digits. */
void bt_text_buffer_add_hex64(struct bt_text_buffer *buffer, uint64_t value);
/* The text as the inside of a JSON string (RFC 8259, 7), without its quotes. Must be UTF-8. */
void bt_text_buffer_add_escaped(struct bt_text_buffer *buffer, const char *text, size_t n);
/* The text as a JSON string, with quotes. */
void bt_text_buffer_add_json(struct bt_text_buffer *buffer, const char *text);
void bt_text_buffer_printf(struct bt_text_buffer *buffer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

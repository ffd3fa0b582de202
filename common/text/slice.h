/* Borrowed bytes, and byte ranges of a text. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* n_bytes bytes at data, not NUL terminated; data may be NULL where n_bytes is 0. */
struct bt_slice {
    const char *data;
    size_t n_bytes;
};

/* Bytes [start, end) of a text. */
struct bt_text_span {
    size_t start, end;
};

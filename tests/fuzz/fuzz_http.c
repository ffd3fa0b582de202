/* Fuzzes the reader of HTTP heads and chunked bodies: whole and byte by byte must agree. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "router/http_parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CHUNK_BYTES_MAX = 1 << 20 };

static bt_status scan_slowly(const char *bytes, size_t n, size_t *end) {
    struct bt_http_scan scan = {0};
    for (size_t i = 1; i <= n; i++) {
        bt_status status = bt_http_scan_head(&scan, bytes, i, NULL);
        *end = scan.at;
        if (status != BT_AGAIN)
            return status;
    }
    return BT_AGAIN;
}

/* Reads a body, `step` bytes at most at a time; what came of it, and its bytes. */
static bt_status read_body(const char *bytes, size_t n, size_t step, char *body, size_t *n_body) {
    struct bt_http_chunks chunks = {0};
    struct bt_error err = {.text = ""};
    *n_body = 0;
    for (size_t at = 0; at < n;) {
        size_t n_used = 0, here = n - at < step ? n - at : step;
        struct bt_slice part;
        bt_status status =
            bt_http_read_chunks(&chunks, bytes + at, here, CHUNK_BYTES_MAX, &n_used, &part, &err);
        if (status < 0 && !err.text[0])
            abort();
        if (status < 0)
            return status;
        if (n_used > here || (!n_used && status != BT_DONE) || *n_body + part.n_bytes > n)
            abort();
        memcpy(body + *n_body, part.data, part.n_bytes);
        *n_body += part.n_bytes;
        at += n_used;
        if (status == BT_DONE)
            return status;
    }
    return BT_AGAIN;
}

static void check_body(const char *bytes, size_t n) {
    char *once = malloc(n + 1), *slow = malloc(n + 1);
    size_t n_once = 0, n_slow = 0;
    if (!once || !slow)
        abort();
    bt_status status = read_body(bytes, n, SIZE_MAX, once, &n_once);
    if (status != read_body(bytes, n, 1, slow, &n_slow))
        abort();
    if (status >= 0 && (n_once != n_slow || memcmp(once, slow, n_once) != 0))
        abort();
    free(once);
    free(slow);
}

static void check_head(const char *bytes, size_t n) {
    char *head = malloc(n);
    struct bt_http_head out;
    struct bt_error err = {.text = ""};
    int code = 0;
    if (!head)
        abort();
    memcpy(head, bytes, n);
    if (bt_http_parse_head(head, n, &out, &code, &err) == BT_OK) {
        char text[64];
        if (!out.method || !out.path || (out.version != 10 && out.version != 11) ||
            out.n_headers > BT_HTTP_HEADERS_MAX)
            abort();
        bt_http_decode(out.path, strlen(out.path), false, text, sizeof text);
        bt_http_query_value(out.query, "id", text, sizeof text);
        bt_http_has_word(bt_http_find_header(&out, "Connection"), "close");
    } else if (!err.text[0] || (code != 400 && code != 431 && code != 505)) {
        abort();
    }
    free(head);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *bytes = (const char *)data;
    struct bt_http_scan scan = {0};
    size_t slow_end = 0;
    bt_status status = bt_http_scan_head(&scan, bytes, size, NULL);
    if (status != scan_slowly(bytes, size, &slow_end) || (status == BT_OK && slow_end != scan.at))
        abort();
    if (status != BT_OK)
        return 0;
    check_head(bytes, scan.at);
    check_body(bytes + scan.at, size - scan.at);
    return 0;
}

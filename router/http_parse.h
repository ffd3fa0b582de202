/* Reads HTTP/1.x requests: where a head ends, what it says, and bodies in chunks (RFC 9112).
 *
 * Strict where two parsers could differ: lines end with CRLF, no line is folded, no byte below 0x20
 * stands in a head, the framing headers are checked (http_check.h). Pure; nothing is allocated. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/text/slice.h"
#include "router/http_check.h"

enum { BT_HTTP_HEADERS_MAX = 128 };

struct bt_http_head {
    const char *method, *path, *query; /* as they stand; query is NULL where there is none */
    int version;                       /* 10 or 11 */
    struct bt_http_header headers[BT_HTTP_HEADERS_MAX];
    size_t n_headers;
    uint64_t body_bytes; /* of Content-Length */
    bool has_body, is_chunked, closes, expects_continue;
};

/* How far the search for a head's end has come; begins zeroed. */
struct bt_http_scan {
    size_t at, line_from;
};

/* BT_OK: the head ends at scan->at. BT_AGAIN: it is not all there. BT_E_INVALID: it never can be.
 * `bytes` are the same as at the last call, and more. */
bt_status bt_http_scan_head(struct bt_http_scan *scan, const char *bytes, size_t n_bytes,
                            struct bt_error *err);

/* Reads a whole head of n_bytes (its last are CRLF CRLF). Names and values are ended by NUL in
 * place: `head` is written to, must have n_bytes, and must outlive *out. A refusal has its HTTP
 * status in *code: 400, 431 (too many headers) or 505. */
bt_status bt_http_parse_head(char *head, size_t n_bytes, struct bt_http_head *out, int *code,
                             struct bt_error *err);
/* The value of the first header of that name, or NULL. */
const char *bt_http_find_header(const struct bt_http_head *head, const char *name);
/* Whether a comma-separated list has the word, letters of either case. */
bool bt_http_has_word(const char *list, const char *word);

/* A body in chunks; begins zeroed. */
struct bt_http_chunks {
    enum {
        BT_CHUNK_SIZE,
        BT_CHUNK_EXTENSION,
        BT_CHUNK_SIZE_LF,
        BT_CHUNK_DATA,
        BT_CHUNK_DATA_CR,
        BT_CHUNK_DATA_LF,
        BT_CHUNK_TRAILER,
        BT_CHUNK_TRAILER_LF,
        BT_CHUNK_END
    } state;
    uint64_t left; /* of this chunk */
    size_t n_digits, n_line, n_extra;
};

/* Takes some of the bytes (*n_used). BT_OK: *data are the next bytes of the body, maybe none, and
 * there may be more in what was not used. BT_DONE: the body has ended. BT_E_INVALID. A chunk has at
 * most chunk_bytes_max. */
bt_status bt_http_read_chunks(struct bt_http_chunks *chunks, const char *bytes, size_t n_bytes,
                              uint64_t chunk_bytes_max, size_t *n_used, struct bt_slice *data,
                              struct bt_error *err);

/* Percent signs decoded, ended by NUL; plus: '+' is a space. False where it does not fit, has a NUL
 * or a bad percent sign. */
bool bt_http_decode(const char *text, size_t n_bytes, bool plus, char *out, size_t out_bytes);
/* The same of the value of a query's parameter; false where there is none too. */
bool bt_http_query_value(const char *query, const char *name, char *out, size_t out_bytes);

/* A strict reader of HTTP/1.x heads and chunked bodies. */
#include "router/http_parse.h"

#include <string.h>
#include <strings.h>

enum {
    EXTRA_BYTES_MAX = 4096, /* chunk extensions and trailers of one body, all thrown away */
    SIZE_DIGITS_MAX = 8,
};

/* ---- the head ---- */

bt_status bt_http_scan_head(struct bt_http_scan *scan, const char *bytes, size_t n_bytes,
                            struct bt_error *err) {
    while (scan->at < n_bytes) {
        const char *newline = memchr(bytes + scan->at, '\n', n_bytes - scan->at);
        if (!newline) {
            scan->at = n_bytes;
            break;
        }
        size_t end = (size_t)(newline - bytes);
        if (end == 0 || bytes[end - 1] != '\r')
            return bt_fail(err, BT_E_INVALID, "a line of the head ends with LF, without CR");
        bool is_empty = end - scan->line_from == 1;
        scan->line_from = scan->at = end + 1;
        if (is_empty)
            return BT_OK;
    }
    return BT_AGAIN;
}

const char *bt_http_find_header(const struct bt_http_head *head, const char *name) {
    for (size_t i = 0; i < head->n_headers; i++)
        if (!strcasecmp(head->headers[i].name, name))
            return head->headers[i].value;
    return NULL;
}

bool bt_http_has_word(const char *list, const char *word) {
    size_t n = strlen(word);
    for (const char *at = list; at && *at;) {
        at += strspn(at, " \t,");
        size_t length = strcspn(at, ",");
        size_t end = length;
        while (end && (at[end - 1] == ' ' || at[end - 1] == '\t'))
            end--;
        if (end == n && !strncasecmp(at, word, n))
            return true;
        at += length;
    }
    return false;
}

static bt_status parse_target(char *target, struct bt_http_head *out, struct bt_error *err) {
    for (const char *p = target; *p; p++)
        if (*p <= 0x20 || *p == 0x7f || *p == '#')
            return bt_fail(err, BT_E_INVALID, "the request's target has the byte 0x%02x",
                           (unsigned char)*p);
    /* The absolute form, which a client sends to what it takes for a proxy (RFC 9112, 3.2.2). */
    if (!strncasecmp(target, "http://", 7) || !strncasecmp(target, "https://", 8)) {
        char *host = strchr(target, ':') + 3;
        target = host + strcspn(host, "/?");
        if (*target != '/')
            return bt_fail(err, BT_E_INVALID, "the request's target has no path");
    }
    if (*target != '/' && strcmp(target, "*") != 0)
        return bt_fail(err, BT_E_INVALID, "the request's target must begin with '/'");
    char *query = strchr(target, '?');
    if (query)
        *query++ = 0;
    out->path = target;
    out->query = query;
    return BT_OK;
}

static bt_status parse_request_line(char *line, struct bt_http_head *out, int *code,
                                    struct bt_error *err) {
    char *target = strchr(line, ' '), *version = target ? strchr(target + 1, ' ') : NULL;
    if (!version || target == line || version == target + 1 || strchr(version + 1, ' '))
        return bt_fail(
            err, BT_E_INVALID,
            "the first line must be a method, a target and a version, one space between");
    *target++ = 0;
    *version++ = 0;
    if (strncmp(version, "HTTP/", 5) != 0)
        return bt_fail(err, BT_E_INVALID, "\"%.16s\" is not a version of HTTP", version);
    if (strcmp(version, "HTTP/1.1") != 0 && strcmp(version, "HTTP/1.0") != 0) {
        *code = 505;
        return bt_fail(err, BT_E_INVALID, "%.16s is not spoken here, HTTP/1.1 is", version);
    }
    if (!bt_http_is_token(line))
        return bt_fail(err, BT_E_INVALID, "\"%.16s\" is not a method", line);
    out->method = line;
    out->version = version[7] == '1' ? 11 : 10;
    return parse_target(target, out, err);
}

static bt_status parse_header(char *line, struct bt_http_head *out, int *code,
                              struct bt_error *err) {
    if (*line == ' ' || *line == '\t')
        return bt_fail(err, BT_E_INVALID, "a header is folded over two lines");
    char *colon = strchr(line, ':');
    if (!colon)
        return bt_fail(err, BT_E_INVALID, "a header line has no colon: \"%.40s\"", line);
    if (out->n_headers == BT_HTTP_HEADERS_MAX) {
        *code = 431;
        return bt_fail(err, BT_E_INVALID, "more than %d headers", BT_HTTP_HEADERS_MAX);
    }
    *colon = 0;
    char *value = colon + 1 + strspn(colon + 1, " \t");
    for (size_t n = strlen(value); n && (value[n - 1] == ' ' || value[n - 1] == '\t');)
        value[--n] = 0;
    out->headers[out->n_headers++] = (struct bt_http_header){line, value};
    return BT_OK;
}

/* What the headers say about body and connection; they are checked already. */
static void read_framing(struct bt_http_head *out) {
    const char *length = bt_http_find_header(out, "Content-Length");
    for (const char *p = length; p && *p; p++)
        out->body_bytes = out->body_bytes * 10 + (uint64_t)(*p - '0');
    out->is_chunked = bt_http_find_header(out, "Transfer-Encoding") != NULL;
    out->has_body = out->is_chunked || out->body_bytes;
    out->closes =
        out->version < 11 || bt_http_has_word(bt_http_find_header(out, "Connection"), "close");
    const char *expect = bt_http_find_header(out, "Expect");
    out->expects_continue = out->version >= 11 && expect && !strcasecmp(expect, "100-continue");
}

bt_status bt_http_parse_head(char *head, size_t n_bytes, struct bt_http_head *out, int *code,
                             struct bt_error *err) {
    *out = (struct bt_http_head){0};
    *code = 400;
    if (memchr(head, 0, n_bytes))
        return bt_fail(err, BT_E_INVALID, "a NUL stands in the head");
    char *end = head + n_bytes - 2; /* the empty line */
    bool is_first = true;
    for (char *line = head; line < end;) {
        char *newline = memchr(line, '\n', (size_t)(end - line));
        newline[-1] = 0;
        if (is_first)
            BT_TRY(parse_request_line(line, out, code, err));
        else
            BT_TRY(parse_header(line, out, code, err));
        is_first = false;
        line = newline + 1;
    }
    if (is_first)
        return bt_fail(err, BT_E_INVALID, "a request must not begin with an empty line");
    BT_TRY(bt_http_check_headers(out->headers, out->n_headers, out->version, err));
    read_framing(out);
    return BT_OK;
}

/* ---- chunks ---- */

static int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static bt_status bad_chunk(struct bt_error *err) {
    return bt_fail(err, BT_E_INVALID, "the body's chunks are malformed");
}

static bt_status read_size(struct bt_http_chunks *chunks, char c, uint64_t chunk_bytes_max,
                           struct bt_error *err) {
    int digit = hex_digit(c);
    if (digit >= 0) {
        chunks->left = chunks->left * 16 + (uint64_t)digit;
        if (++chunks->n_digits > SIZE_DIGITS_MAX)
            return bad_chunk(err);
        return BT_OK;
    }
    if (!chunks->n_digits || (c != '\r' && c != ';'))
        return bad_chunk(err);
    if (chunks->left > chunk_bytes_max)
        return bt_fail(err, BT_E_TOO_LARGE, "a chunk of the body has more than %llu bytes",
                       (unsigned long long)chunk_bytes_max);
    chunks->state = c == ';' ? BT_CHUNK_EXTENSION : BT_CHUNK_SIZE_LF;
    return BT_OK;
}

/* Extensions and trailers: thrown away, up to a bound. */
static bt_status skip(struct bt_http_chunks *chunks, char c, struct bt_error *err) {
    bool is_trailer = chunks->state == BT_CHUNK_TRAILER;
    if (c == '\r') {
        chunks->state = is_trailer ? BT_CHUNK_TRAILER_LF : BT_CHUNK_SIZE_LF;
        return BT_OK;
    }
    chunks->n_line++;
    if (((unsigned char)c < 0x20 && c != '\t') || ++chunks->n_extra > EXTRA_BYTES_MAX)
        return bad_chunk(err);
    return BT_OK;
}

/* One byte that is not data. */
static bt_status read_byte(struct bt_http_chunks *chunks, char c, uint64_t chunk_bytes_max,
                           struct bt_error *err) {
    switch (chunks->state) {
    case BT_CHUNK_SIZE:
        return read_size(chunks, c, chunk_bytes_max, err);
    case BT_CHUNK_EXTENSION:
    case BT_CHUNK_TRAILER:
        return skip(chunks, c, err);
    case BT_CHUNK_SIZE_LF:
        chunks->state = chunks->left ? BT_CHUNK_DATA : BT_CHUNK_TRAILER;
        chunks->n_line = 0;
        return c == '\n' ? BT_OK : bad_chunk(err);
    case BT_CHUNK_DATA_CR:
        chunks->state = BT_CHUNK_DATA_LF;
        return c == '\r' ? BT_OK : bad_chunk(err);
    case BT_CHUNK_DATA_LF:
        chunks->state = BT_CHUNK_SIZE;
        chunks->n_digits = 0;
        return c == '\n' ? BT_OK : bad_chunk(err);
    case BT_CHUNK_TRAILER_LF:
        chunks->state = chunks->n_line ? BT_CHUNK_TRAILER : BT_CHUNK_END;
        chunks->n_line = 0;
        return c == '\n' ? BT_OK : bad_chunk(err);
    case BT_CHUNK_DATA:
    case BT_CHUNK_END:
        break;
    }
    return BT_OK;
}

bt_status bt_http_read_chunks(struct bt_http_chunks *chunks, const char *bytes, size_t n_bytes,
                              uint64_t chunk_bytes_max, size_t *n_used, struct bt_slice *data,
                              struct bt_error *err) {
    size_t at = 0;
    *data = (struct bt_slice){bytes, 0};
    while (at < n_bytes && chunks->state != BT_CHUNK_DATA && chunks->state != BT_CHUNK_END)
        BT_TRY(read_byte(chunks, bytes[at++], chunk_bytes_max, err));
    if (chunks->state == BT_CHUNK_DATA && at < n_bytes) {
        uint64_t here = n_bytes - at;
        size_t n = (size_t)(here < chunks->left ? here : chunks->left);
        *data = (struct bt_slice){bytes + at, n};
        at += n;
        chunks->left -= n;
        if (!chunks->left)
            chunks->state = BT_CHUNK_DATA_CR;
    }
    *n_used = at;
    return chunks->state == BT_CHUNK_END ? BT_DONE : BT_OK;
}

/* ---- the target ---- */

bool bt_http_decode(const char *text, size_t n_bytes, bool plus, char *out, size_t out_bytes) {
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        char c = text[i];
        if (c == '%') {
            int high = -1, low = -1;
            if (n_bytes - i > 2) {
                high = hex_digit(text[i + 1]);
                low = hex_digit(text[i + 2]);
            }
            if (high < 0 || low < 0 || (high == 0 && low == 0))
                return false;
            c = (char)(high * 16 + low);
            i += 2;
        } else if (plus && c == '+') {
            c = ' ';
        }
        if (n + 1 >= out_bytes)
            return false;
        out[n++] = c;
    }
    out[n] = 0;
    return true;
}

bool bt_http_query_value(const char *query, const char *name, char *out, size_t out_bytes) {
    size_t n_name = strlen(name);
    for (const char *at = query; at && *at;) {
        size_t length = strcspn(at, "&");
        if (length > n_name && !strncmp(at, name, n_name) && at[n_name] == '=')
            return bt_http_decode(at + n_name + 1, length - n_name - 1, true, out, out_bytes);
        at += length + (at[length] == '&');
    }
    return false;
}

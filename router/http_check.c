/* The strictness that keeps two parsers in agreement. */
#include "router/http_check.h"

#include <string.h>
#include <strings.h>

bool bt_http_is_token(const char *text) {
    if (!*text)
        return false;
    for (const char *p = text; *p; p++) {
        unsigned char c = (unsigned char)*p;
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!letter && !strchr("!#$%&'*+-.^_`|~", c))
            return false;
    }
    return true;
}

static bool is_length(const char *value) {
    size_t n = strspn(value, "0123456789");
    return n > 0 && n <= 18 && !value[n];
}

/* No control character but the tab (RFC 9110, 5.5). */
static bool is_value(const char *value) {
    for (const char *p = value; *p; p++)
        if (((unsigned char)*p < 0x20 && *p != '\t') || *p == 0x7f)
            return false;
    return true;
}

bt_status bt_http_check_headers(const struct bt_http_header *headers, size_t n_headers, int version,
                                struct bt_error *err) {
    size_t n_lengths = 0, n_encodings = 0, n_hosts = 0;
    for (size_t i = 0; i < n_headers; i++) {
        const char *name = headers[i].name, *value = headers[i].value;
        if (!bt_http_is_token(name))
            return bt_fail(err, BT_E_INVALID,
                           "header name \"%.40s\" has a character that no name may have", name);
        if (!is_value(value))
            return bt_fail(err, BT_E_INVALID, "header %.40s has a control character in its value",
                           name);
        if (!strcasecmp(name, "Content-Length")) {
            n_lengths++;
            if (!is_length(value))
                return bt_fail(err, BT_E_INVALID,
                               "Content-Length is \"%.40s\", it must be 1 to 18 digits", value);
        } else if (!strcasecmp(name, "Transfer-Encoding")) {
            n_encodings++;
            if (strcasecmp(value, "chunked") != 0)
                return bt_fail(err, BT_E_INVALID,
                               "Transfer-Encoding is \"%.40s\", only \"chunked\" is taken", value);
        } else if (!strcasecmp(name, "Host")) {
            n_hosts++;
        }
    }
    if (n_lengths > 1)
        return bt_fail(err, BT_E_INVALID, "Content-Length stands %zu times, it may stand once",
                       n_lengths);
    if (n_encodings > 1 || (n_encodings && n_lengths))
        return bt_fail(err, BT_E_INVALID,
                       "Transfer-Encoding may stand once, and not beside Content-Length");
    if (n_encodings && version < 11)
        return bt_fail(err, BT_E_INVALID, "Transfer-Encoding needs HTTP/1.1");
    if (n_hosts > 1 || (version >= 11 && n_hosts != 1))
        return bt_fail(err, BT_E_INVALID, "Host stands %zu times, it must stand once", n_hosts);
    return BT_OK;
}

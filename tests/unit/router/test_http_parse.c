/* Tests the reader of HTTP requests: heads in any pieces, chunked bodies, targets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "router/http_parse.h"

static bt_status parse(const char *text, char *bytes, struct bt_http_head *head, int *code,
                       struct bt_error *err) {
    struct bt_http_scan scan = {0};
    size_t n = strlen(text);
    memcpy(bytes, text, n + 1);
    bt_status status = bt_http_scan_head(&scan, bytes, n, err);
    *code = 400;
    if (status != BT_OK)
        return status;
    assert_int_equal(scan.at, n);
    return bt_http_parse_head(bytes, n, head, code, err);
}

static void a_head_is_read(void **state) {
    (void)state;
    char bytes[512];
    struct bt_http_head head;
    struct bt_error err;
    int code;
    assert_int_equal(parse("POST /a/b?x=1&y HTTP/1.1\r\nHost: h\r\nX-Thing: \t a b \t\r\n"
                           "Content-Length: 12\r\nExpect: 100-Continue\r\nEmpty:\r\n\r\n",
                           bytes, &head, &code, &err),
                     BT_OK);
    assert_string_equal(head.method, "POST");
    assert_string_equal(head.path, "/a/b");
    assert_string_equal(head.query, "x=1&y");
    assert_int_equal(head.version, 11);
    assert_int_equal(head.n_headers, 5);
    assert_string_equal(bt_http_find_header(&head, "x-thing"), "a b");
    assert_string_equal(bt_http_find_header(&head, "empty"), "");
    assert_null(bt_http_find_header(&head, "x"));
    assert_int_equal(head.body_bytes, 12);
    assert_true(head.has_body && !head.is_chunked && !head.closes && head.expects_continue);
    assert_int_equal(parse("GET http://host:1/p HTTP/1.0\r\n\r\n", bytes, &head, &code, &err),
                     BT_OK);
    assert_string_equal(head.path, "/p");
    assert_true(head.closes && !head.has_body && !head.query);
    assert_int_equal(parse("GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive , CLOSE\r\n\r\n",
                           bytes, &head, &code, &err),
                     BT_OK);
    assert_true(head.closes);
}

static const struct {
    const char *text, *words;
    int code;
} bad[] = {
    {"GET / HTTP/1.1\nHost: h\n\n", "without CR", 400},
    {"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", NULL, 400},
    {"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", "one space", 400},
    {"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", "one space", 400},
    {"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", "one space", 400},
    {"GET /\r\n\r\n", "a version", 400},
    {"GET / FTP/1.1\r\nHost: h\r\n\r\n", "not a version of HTTP", 400},
    {"GET / HTTP/2.0\r\nHost: h\r\n\r\n", "HTTP/2.0 is not spoken", 505},
    {"GET / HTTP/1.2\r\nHost: h\r\n\r\n", "HTTP/1.2 is not spoken", 505},
    {"G(T / HTTP/1.1\r\nHost: h\r\n\r\n", "not a method", 400},
    {"GET a HTTP/1.1\r\nHost: h\r\n\r\n", "begin with '/'", 400},
    {"GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n", "byte 0x01", 400},
    {"GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", "byte 0xc3", 400},
    {"GET /#a HTTP/1.1\r\nHost: h\r\n\r\n", "byte 0x23", 400},
    {"GET http://h HTTP/1.1\r\nHost: h\r\n\r\n", "no path", 400},
    {"GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n", "folded", 400},
    {"GET / HTTP/1.1\r\nHost: h\r\nnothing\r\n\r\n", "no colon", 400},
    {"GET / HTTP/1.1\r\nHost : h\r\n\r\n", "\"Host \"", 400},
};

static void bad_heads_are_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char bytes[512];
        struct bt_http_head head;
        struct bt_http_scan scan = {0};
        struct bt_error err = {.text = ""};
        int code = 400;
        size_t n = strlen(bad[i].text);
        memcpy(bytes, bad[i].text, n + 1);
        bt_status status = bt_http_scan_head(&scan, bytes, n, &err);
        if (status == BT_OK)
            status = bt_http_parse_head(bytes, scan.at, &head, &code, &err);
        if (status != BT_E_INVALID || code != bad[i].code)
            fail_msg("row %zu: %s, %d", i, bt_status_name(status), code);
        if (bad[i].words && !strstr(err.text, bad[i].words))
            fail_msg("row %zu: \"%s\" does not say \"%s\"", i, err.text, bad[i].words);
    }
}

static void nul_and_too_many(void **state) {
    (void)state;
    static char bytes[8192];
    struct bt_http_head head;
    struct bt_error err;
    int code = 0;
    char with_nul[] = "GET / HTTP/1.1\r\nHost: h\0h\r\n\r\n";
    assert_int_equal(bt_http_parse_head(with_nul, sizeof with_nul - 1, &head, &code, &err),
                     BT_E_INVALID);
    assert_non_null(strstr(err.text, "NUL"));
    for (int extra = 0; extra < 2; extra++) {
        size_t n = (size_t)snprintf(bytes, sizeof bytes, "GET / HTTP/1.1\r\nHost: h\r\n");
        for (int i = 1; i < BT_HTTP_HEADERS_MAX + extra; i++)
            n += (size_t)snprintf(bytes + n, sizeof bytes - n, "a: b\r\n");
        n += (size_t)snprintf(bytes + n, sizeof bytes - n, "\r\n");
        bt_status status = bt_http_parse_head(bytes, n, &head, &code, &err);
        assert_int_equal(status, extra ? BT_E_INVALID : BT_OK);
    }
    assert_int_equal(code, 431);
}

static void a_head_comes_in_pieces(void **state) {
    (void)state;
    static const char text[] = "GET / HTTP/1.1\r\nHost: h\r\n\r\nrest";
    size_t end = strlen(text) - 4;
    struct bt_http_scan scan = {0};
    for (size_t n = 0; n < end; n++)
        assert_int_equal(bt_http_scan_head(&scan, text, n, NULL), BT_AGAIN);
    assert_int_equal(bt_http_scan_head(&scan, text, end + 2, NULL), BT_OK);
    assert_int_equal(scan.at, end);
}

static const struct {
    const char *text, *body; /* NULL: refused */
    bool is_whole;
} bodies[] = {
    {"5\r\nhello\r\n0\r\n\r\n", "hello", true},
    {"5;x=\"y\"\r\nhello\r\n1\r\n!\r\n0\r\nT: a\r\nU: b\r\n\r\n", "hello!", true},
    {"A\r\n0123456789\r\n0\r\n\r\n", "0123456789", true},
    {"5\r\nhello\r\n", "hello", false},
    {"5\r\nhelloX\r\n", NULL, false},
    {"0x3\r\nabc\r\n", NULL, false},
    {"-1\r\n", NULL, false},
    {"\r\n", NULL, false},
    {"3 \r\nabc\r\n", NULL, false},
    {"3\nabc\r\n", NULL, false},
    {"000000003\r\n", NULL, false},
    {"65\r\n", NULL, false}, /* 101 bytes, 100 are allowed */
};

static void chunked_bodies(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        for (size_t step = 1; step <= 64; step *= 8) {
            struct bt_http_chunks chunks = {0};
            char got[64] = "";
            size_t at = 0, n_got = 0, n = strlen(bodies[i].text);
            bt_status status = BT_OK;
            while (status == BT_OK && at < n) {
                size_t n_used = 0, here = n - at < step ? n - at : step;
                struct bt_slice data;
                status = bt_http_read_chunks(&chunks, bodies[i].text + at, here, 100, &n_used,
                                             &data, NULL);
                if (status < 0)
                    break;
                memcpy(got + n_got, data.data, data.n_bytes);
                n_got += data.n_bytes;
                at += n_used;
            }
            if ((status < 0) != !bodies[i].body || (status == BT_DONE) != bodies[i].is_whole)
                fail_msg("row %zu, step %zu: %s", i, step, bt_status_name(status));
            if (bodies[i].body)
                assert_string_equal(got, bodies[i].body);
        }
    }
}

static void trailers_are_bounded(void **state) {
    (void)state;
    struct bt_http_chunks chunks = {0};
    struct bt_slice data;
    size_t n_used;
    bt_status status = bt_http_read_chunks(&chunks, "0\r\n", 3, 100, &n_used, &data, NULL);
    int n = 0;
    for (; status == BT_OK && n < 10000; n++)
        status = bt_http_read_chunks(&chunks, "a: b\r\n", 6, 100, &n_used, &data, NULL);
    assert_int_equal(status, BT_E_INVALID);
    assert_true(n < 1100);
}

static void targets(void **state) {
    (void)state;
    char out[8];
    assert_true(bt_http_decode("a%2fb+", 6, false, out, sizeof out));
    assert_string_equal(out, "a/b+");
    assert_true(bt_http_decode("a+b", 3, true, out, sizeof out));
    assert_string_equal(out, "a b");
    assert_false(bt_http_decode("%00", 3, false, out, sizeof out));
    assert_false(bt_http_decode("%4", 2, false, out, sizeof out));
    assert_false(bt_http_decode("%zz", 3, false, out, sizeof out));
    assert_true(bt_http_decode("1234567", 7, false, out, sizeof out));
    assert_false(bt_http_decode("12345678", 8, false, out, sizeof out));
    assert_true(bt_http_query_value("a=1&id=x%20y&id=z", "id", out, sizeof out));
    assert_string_equal(out, "x y");
    assert_false(bt_http_query_value("aid=1&id", "id", out, sizeof out));
    assert_false(bt_http_query_value(NULL, "id", out, sizeof out));
    assert_true(bt_http_has_word("a, close ,b", "Close"));
    assert_false(bt_http_has_word("closed, enclose", "close"));
    assert_false(bt_http_has_word(NULL, "close"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_head_is_read),   cmocka_unit_test(bad_heads_are_refused),
        cmocka_unit_test(nul_and_too_many), cmocka_unit_test(a_head_comes_in_pieces),
        cmocka_unit_test(chunked_bodies),   cmocka_unit_test(trailers_are_bounded),
        cmocka_unit_test(targets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

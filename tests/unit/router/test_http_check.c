/* Tests the strictness check: what two parsers could read in two ways is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#include "router/http_check.h"

enum { HEADERS = 4 };

struct row {
    struct bt_http_header headers[HEADERS]; /* ended by a NULL name */
    int version;
    const char *words; /* NULL: taken */
};

static const struct row rows[] = {
    {{{"Host", "x"}, {"Content-Length", "3"}}, 11, NULL},
    {{{"Host", "x"}, {"Transfer-Encoding", "chunked"}}, 11, NULL},
    {{{"Host", "x"}, {"transfer-encoding", "Chunked"}}, 11, NULL},
    {{{"Host", "x"}, {"X-Thing", "a\tb"}}, 11, NULL},
    {{{"Content-Length", "3"}}, 10, NULL},
    {{{"Content-Length", "3"}}, 11, "Host"},
    {{{"Host", "x"}, {"Host", "y"}}, 11, "Host stands 2 times"},
    {{{"Host", "x"}, {"Host", "y"}}, 10, "Host stands 2 times"},
    {{{"Host", "x"}, {"Content-Length", "3"}, {"Content-Length", "5"}}, 11, "stands 2 times"},
    {{{"Host", "x"}, {"Content-Length", "3"}, {"content-length", "3"}}, 11, "stands 2 times"},
    {{{"Host", "x"}, {"Content-Length", "+3"}}, 11, "\"+3\""},
    {{{"Host", "x"}, {"Content-Length", "-1"}}, 11, "\"-1\""},
    {{{"Host", "x"}, {"Content-Length", ""}}, 11, "1 to 18 digits"},
    {{{"Host", "x"}, {"Content-Length", "3 "}}, 11, "digits"},
    {{{"Host", "x"}, {"Content-Length", "0x3"}}, 11, "digits"},
    {{{"Host", "x"}, {"Content-Length", "9999999999999999999"}}, 11, "digits"},
    {{{"Host", "x"}, {"Transfer-Encoding", "xchunked"}}, 11, "xchunked"},
    {{{"Host", "x"}, {"Transfer-Encoding", "gzip, chunked"}}, 11, "gzip"},
    {{{"Host", "x"}, {"Transfer-Encoding", "chunked"}, {"Transfer-Encoding", "chunked"}},
     11,
     "may stand once"},
    {{{"Host", "x"}, {"Transfer-Encoding", "chunked"}, {"Content-Length", "3"}},
     11,
     "beside Content-Length"},
    {{{"Transfer-Encoding", "chunked"}}, 10, "HTTP/1.1"},
    {{{"Host", "x"}, {"Content-Length ", "3"}}, 11, "Content-Length "},
    {{{"Host", "x"}, {" X", "3"}}, 11, "no name may have"},
    {{{"Host", "x"}, {"", "3"}}, 11, "no name may have"},
    {{{"Host", "x"}, {"X", "a\rb"}}, 11, "control character"},
    {{{"Host", "x\x7f"}}, 11, "control character"},
};

static void every_row(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t n = 0;
        while (n < HEADERS && rows[i].headers[n].name)
            n++;
        struct bt_error err = {0};
        bt_status status = bt_http_check_headers(rows[i].headers, n, rows[i].version, &err);
        if ((status == BT_OK) != !rows[i].words)
            fail_msg("row %zu: %s", i, status == BT_OK ? "taken" : err.text);
        if (rows[i].words && !strstr(err.text, rows[i].words))
            fail_msg("row %zu: \"%s\" does not say \"%s\"", i, err.text, rows[i].words);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_row)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

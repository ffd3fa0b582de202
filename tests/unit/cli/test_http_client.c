/* The tools' HTTP client against a server that answers canned bytes, whole and cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "cli/http_client.h"

/* Listens on a port that the system chooses. */
static int listen_somewhere(uint16_t *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    *port = ntohs(address.sin_port);
    return fd;
}

/* In a process of its own: takes one connection, reads a request up to its last byte `until`,
 * answers, closes. Its exit code says whether the request had `word` in it. */
static pid_t serve(int listener, const char *until, const char *word, const char *answer) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid)
        return pid;
    char request[8192] = "";
    size_t n = 0;
    int fd = accept(listener, NULL, NULL);
    while (fd >= 0 && !strstr(request, until)) {
        ssize_t got = read(fd, request + n, sizeof request - 1 - n);
        if (got <= 0)
            _exit(3);
        n += (size_t)got;
        request[n] = 0;
    }
    for (size_t at = 0; at < strlen(answer);) {
        size_t piece = strlen(answer) - at < 7 ? strlen(answer) - at : 7;
        ssize_t sent = send(fd, answer + at, piece, MSG_NOSIGNAL); /* the reader may be gone */
        if (sent <= 0)
            _exit(4);
        at += (size_t)sent;
    }
    close(fd);
    _exit(strstr(request, word) ? 0 : 5);
}

struct lines {
    char text[1024];
    int n, n_max;
};

static bool on_line(void *arg, const char *line, size_t length) {
    struct lines *lines = arg;
    assert_int_equal(strlen(line), length);
    snprintf(lines->text + strlen(lines->text), sizeof lines->text - strlen(lines->text), "[%s]",
             line);
    return ++lines->n != lines->n_max;
}

static bt_status ask(const char *answer, int n_lines_max, struct lines *lines,
                     struct bt_http_answer *out, struct bt_error *err) {
    uint16_t port;
    int listener = listen_somewhere(&port), status;
    pid_t pid = serve(listener, "{\"a\":1}", "\r\nX-Baton-Timings: 1\r\n", answer);
    char url[64];
    struct bt_http_client *client;
    snprintf(url, sizeof url, "http://127.0.0.1:%d", port);
    *lines = (struct lines){.n_max = n_lines_max};
    assert_int_equal(bt_http_client_create(url, &client, err), BT_OK);
    const struct bt_http_request request = {.path = "/v1/x",
                                            .body = "{\"a\":1}",
                                            .header_name = "X-Baton-Timings",
                                            .header_value = "1"};
    bt_status result = bt_http_client_request(client, &request, on_line, lines, out, err);
    bt_http_client_destroy(client);
    close(listener);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (result == BT_OK)
        assert_int_equal(WEXITSTATUS(status), 0);
    return result;
}

#define CHUNKED "HTTP/1.1 200 OK\r\nX-Request-Id: 12ab\r\nTransfer-Encoding: chunked\r\n\r\n"

static void test_lines_of_a_stream(void **state) {
    (void)state;
    struct lines lines;
    struct bt_http_answer answer;
    struct bt_error err;
    assert_int_equal(ask(CHUNKED "a\r\ndata: one\n\r\n8\r\n\ndata: t\r\n4\r\nwo\n\n\r\n3\r\nend\r\n"
                                 "0\r\n\r\n",
                         0, &lines, &answer, &err),
                     BT_OK);
    assert_string_equal(lines.text, "[data: one][][data: two][][end]");
    assert_int_equal(answer.code, 200);
    assert_string_equal(answer.request_id, "12ab");
}

static void test_an_error_with_a_body(void **state) {
    (void)state;
    struct lines lines;
    struct bt_http_answer answer;
    struct bt_error err;
    assert_int_equal(ask("HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n{\"e\": 1}\n", 0,
                         &lines, &answer, &err),
                     BT_OK);
    assert_string_equal(lines.text, "[{\"e\": 1}]");
    assert_int_equal(answer.code, 404);
}

static void test_a_stream_that_is_cut(void **state) {
    (void)state;
    struct lines lines;
    struct bt_http_answer answer;
    struct bt_error err;
    assert_int_equal(ask(CHUNKED "a\r\ndata: one\n\r\n", 0, &lines, &answer, &err), BT_E_PEER_GONE);
    assert_string_equal(lines.text, "[data: one]");
    assert_non_null(strstr(err.text, "cut off"));
    assert_int_equal(ask("HTTP/1.1 200", 0, &lines, &answer, &err), BT_E_PEER_GONE);
    assert_non_null(strstr(err.text, "no answer"));
}

static void test_the_reader_ends_it(void **state) {
    (void)state;
    struct lines lines;
    struct bt_http_answer answer;
    struct bt_error err;
    assert_int_equal(ask(CHUNKED "4\r\na\nb\n\r\n2\r\nc\n\r\n0\r\n\r\n", 2, &lines, &answer, &err),
                     BT_E_CANCELLED);
    assert_string_equal(lines.text, "[a][b]");
}

static void test_nobody_listens(void **state) {
    (void)state;
    uint16_t port;
    close(listen_somewhere(&port));
    char url[64];
    struct bt_http_client *client;
    struct bt_http_answer answer;
    struct bt_error err;
    struct lines lines = {0};
    const struct bt_http_request request = {.path = "/"};
    snprintf(url, sizeof url, "http://127.0.0.1:%d/", port);
    assert_int_equal(bt_http_client_create(url, &client, &err), BT_OK);
    assert_int_equal(bt_http_client_request(client, &request, on_line, &lines, &answer, &err),
                     BT_E_PEER_GONE);
    assert_non_null(strstr(err.text, "is a router running there?"));
    bt_http_client_destroy(client);
}

static void test_urls(void **state) {
    (void)state;
    static const char *const bad[] = {"",        "127.0.0.1:80", "ftp://a",       "http://a:0",
                                      "http://", "http://a/b",   "http://a:99999"};
    struct bt_http_client *client = NULL;
    struct bt_error err;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(bt_http_client_create(bad[i], &client, &err), BT_E_INVALID);
        assert_non_null(strstr(err.text, bad[i]));
    }
    assert_null(client);
    assert_int_equal(bt_http_client_create("http://[::1]:8000", &client, &err), BT_OK);
    bt_http_client_destroy(client);
    assert_int_equal(bt_http_client_create("https://a", &client, &err), BT_OK);
    assert_int_equal(bt_http_client_trust(client, "/nothing-there", false, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "/nothing-there"));
    bt_http_client_destroy(client);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines_of_a_stream),    cmocka_unit_test(test_an_error_with_a_body),
        cmocka_unit_test(test_a_stream_that_is_cut), cmocka_unit_test(test_the_reader_ends_it),
        cmocka_unit_test(test_nobody_listens),       cmocka_unit_test(test_urls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

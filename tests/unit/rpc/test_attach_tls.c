/* Registry.Attach under TLS: who may attach as what, refusals in one sentence, new certificates. */
#include "tests/unit/rpc/ends.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <arpa/inet.h>

#include "common/base/address.h"
#include "common/base/fingerprint.h"
#include "tests/unit/certs.h"

static void expect_text(const char *text, const char *part) {
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in: %s", part, text);
}

static void start_tls_server(struct ends *ends, struct bt_tls *tls) {
    struct bt_rpc_server_config config = {.listen = "127.0.0.1:0", .max_streams = 4, .tls = tls};
    struct bt_error err = {0};
    if (bt_rpc_server_start(&config, &ends->server, &err) != BT_OK)
        fail_msg("%s", err.text);
    ends->end[ROUTER].streams = bt_rpc_server_streams(ends->server);
}

static void start_tls_client(struct ends *ends, struct bt_tls *tls) {
    struct bt_rpc_client_config config = {.tls = tls};
    struct bt_error err = {0};
    if (bt_rpc_client_start(&config, &ends->client, &err) != BT_OK)
        fail_msg("%s", err.text);
    ends->end[WORKER].streams = bt_rpc_client_streams(ends->client);
}

/* A file that takes what is written to stderr until end_capture. */
struct capture {
    FILE *file;
    int before;
};

static void begin_capture(struct capture *capture) {
    capture->file = tmpfile();
    capture->before = dup(STDERR_FILENO);
    assert_non_null(capture->file);
    dup2(fileno(capture->file), STDERR_FILENO);
}

static void end_capture(struct capture *capture) {
    dup2(capture->before, STDERR_FILENO);
    close(capture->before);
    fclose(capture->file);
}

static void wait_captured(struct ends *ends, struct capture *capture, const char *part) {
    static char text[1 << 16];
    for (uint64_t until = now_ms() + WAIT_MS; now_ms() < until; turn_for(ends, 50)) {
        ssize_t n = pread(fileno(capture->file), text, sizeof text - 1, 0);
        text[n > 0 ? n : 0] = 0;
        if (strstr(text, part))
            return;
    }
    end_capture(capture);
    fail_msg("\"%s\" is not in: %s", part, text);
}

static void test_a_worker_attaches_and_speaks(void **state) {
    (void)state;
    struct certs certs;
    certs_open(&certs);
    certs_issue_roles(&certs);
    struct ends *ends = calloc(1, sizeof *ends);
    struct bt_tls *router = certs_tls(&certs, "router", NULL, BT_TLS_ROUTER);
    struct bt_tls *decode = certs_tls(&certs, "decode", NULL, BT_TLS_DECODE);
    start_tls_server(ends, router);
    start_tls_client(ends, decode);
    dial(ends, 0);
    TURN_UNTIL(ends, heard_type(&ends->end[WORKER], BT_RPC_OPENED) &&
                         heard_type(&ends->end[ROUTER], BT_RPC_OPENED));
    for (uint64_t i = 1; i <= 300; i++) {
        assert_int_equal(send_status(ends, i), BT_OK);
        assert_int_equal(send_cancel(ends, i), BT_OK);
    }
    TURN_UNTIL(ends, ends->end[WORKER].n_messages == 300 && ends->end[ROUTER].n_messages == 300);
    close_ends(ends);
    bt_tls_destroy(router);
    bt_tls_destroy(decode);
    certs_close(&certs);
}

/* One dial that must fail within the time that a caller would wait; what the worker hears, and what
 * stands in the log. */
static void expect_dial_fails(struct bt_tls *router, struct bt_tls *worker, const char *heard,
                              const char *logged) {
    struct ends *ends = calloc(1, sizeof *ends);
    struct capture capture;
    begin_capture(&capture);
    start_tls_server(ends, router);
    start_tls_client(ends, worker);
    dial(ends, 0);
    TURN_UNTIL(ends, find_closed(&ends->end[WORKER]));
    if (logged)
        wait_captured(ends, &capture, logged);
    end_capture(&capture);
    expect_text(find_closed(&ends->end[WORKER])->text, heard);
    assert_false(heard_type(&ends->end[ROUTER], BT_RPC_OPENED));
    close_ends(ends);
}

static void test_refusals_are_sentences(void **state) {
    (void)state;
    struct certs certs, others;
    certs_open(&certs);
    certs_open(&others);
    certs_issue_roles(&certs);
    certs_issue_roles(&others);
    certs_issue(&others, "trusting", "decode.baton", -60, 3600);
    char command[1024], both[CERTS_PATH_BYTES];
    snprintf(both, sizeof both, "%s/both-ca.pem", others.dir);
    snprintf(command, sizeof command, "cat %s %s > %s", certs.ca_path, others.ca_path, both);
    assert_int_equal(system(command), 0);
    struct bt_tls *router = certs_tls(&certs, "router", NULL, BT_TLS_ROUTER);
    struct bt_tls *decode = certs_tls(&certs, "decode", NULL, BT_TLS_DECODE);
    struct bt_tls *foreign = certs_tls(&others, "decode", NULL, BT_TLS_DECODE);
    struct bt_tls *trusting = certs_tls(&others, "trusting", both, BT_TLS_DECODE);
    struct bt_tls *self = certs_tls(&certs, "router", NULL, BT_TLS_ROUTER);
    /* The server is no router; the CA is another's, seen by the worker, then by the router. */
    expect_dial_fails(decode, decode, "is for the role decode, must be for router", NULL);
    expect_dial_fails(router, foreign, "(\"router\") is not signed by a CA of /tmp", NULL);
    expect_dial_fails(
        router, trusting, "the router closed the connection",
        "a connection to the registry was refused: the peer's certificate (\"trusting\") "
        "is not signed by a CA of");
    /* A router that attaches as a worker. */
    expect_dial_fails(router, self, "the router closed the connection",
                      "is for the role router, must be for prefill or decode");
    /* One side without TLS. */
    expect_dial_fails(router, NULL, "the router closed the connection",
                      "a TLS handshake failed: the peer does not speak TLS");
    expect_dial_fails(NULL, decode, "does not speak TLS", NULL);
    bt_tls_destroy(self);
    bt_tls_destroy(trusting);
    bt_tls_destroy(foreign);
    bt_tls_destroy(decode);
    bt_tls_destroy(router);
    certs_close(&others);
    certs_close(&certs);
}

/* A TLS client that is none of ours; what it gets before the connection ends. */
static void knock(struct ends *ends, const struct certs *certs, const char *name, int version) {
    struct bt_address address;
    struct bt_error err;
    char path[CERTS_PATH_BYTES], byte;
    assert_int_equal(bt_address_parse(bt_rpc_server_address(ends->server), &address, &err), BT_OK);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(address.port)};
    inet_pton(AF_INET, address.host, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_max_proto_version(ctx, version);
    SSL_CTX_set_alpn_protos(ctx, (const unsigned char *)"\x02h2", 3);
    if (name) {
        snprintf(path, sizeof path, "%s/%s.pem", certs->dir, name);
        assert_int_equal(SSL_CTX_use_certificate_chain_file(ctx, path), 1);
        snprintf(path, sizeof path, "%s/%s-key.pem", certs->dir, name);
        assert_int_equal(SSL_CTX_use_PrivateKey_file(ctx, path, SSL_FILETYPE_PEM), 1);
    }
    SSL *ssl = SSL_new(ctx);
    SSL_set_fd(ssl, fd);
    if (SSL_connect(ssl) == 1) /* in TLS 1.3 a client is done before it is judged */
        assert_true(SSL_read(ssl, &byte, 1) <= 0); /* not a byte of HTTP/2 */
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    ERR_clear_error();
    close(fd);
}

static void test_strangers_hear_no_http2(void **state) {
    (void)state;
    struct certs certs;
    struct capture capture;
    static const struct {
        const char *name;
        int version;
        const char *logged;
    } cases[] = {
        {NULL, 0, "was refused: the peer showed no certificate"},
        {"old", 0, "was refused: the peer's certificate (\"old\") expired at 20"},
        {"young", 0, "was refused: the peer's certificate (\"young\") is not valid before 20"},
        {"host", 0, "is for the role none, must be for prefill or decode"},
        {"decode", TLS1_2_VERSION, "a TLS handshake failed: the peer does not speak TLS 1.3"},
    };
    certs_open(&certs);
    certs_issue_roles(&certs);
    certs_issue(&certs, "old", "decode.baton", -3600, -60);
    certs_issue(&certs, "young", "decode.baton", 3600, 7200);
    certs_issue(&certs, "host", "decode.example", -60, 3600);
    struct ends *ends = calloc(1, sizeof *ends);
    struct bt_tls *router = certs_tls(&certs, "router", NULL, BT_TLS_ROUTER);
    start_tls_server(ends, router);
    begin_capture(&capture);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        knock(ends, &certs, cases[i].name, cases[i].version);
        wait_captured(ends, &capture, cases[i].logged);
    }
    end_capture(&capture);
    assert_false(heard_type(&ends->end[ROUTER], BT_RPC_OPENED));
    stop_server(ends);
    free(ends);
    bt_tls_destroy(router);
    certs_close(&certs);
}

static void test_a_worker_joins_only_as_what_its_certificate_says(void **state) {
    (void)state;
    struct certs certs;
    certs_open(&certs);
    certs_issue_roles(&certs);
    struct ends *ends = calloc(1, sizeof *ends);
    struct bt_tls *router = certs_tls(&certs, "router", NULL, BT_TLS_ROUTER);
    struct bt_tls *prefill = certs_tls(&certs, "prefill", NULL, BT_TLS_PREFILL);
    struct bt_msg join = {
        .type = BT_MSG_JOIN,
        .join = {.role = BT_ROLE_PREFILL,
                 .name = "worker-7",
                 .incarnation = {1, 2},
                 .protocol_min = 1,
                 .protocol_max = 1,
                 .fingerprint = {1, 30, 3, 64, BT_PAGE_TOKENS, BT_KV_BF16, BT_KV_BF16,
                                 BT_KV_INNER_ORDER_CPU, BT_PROFILE_FAST, BT_NUMERICS_CONTRACT},
                 .max_context = 1000,
                 .max_seqs = 4}};
    struct bt_error err = {0};
    start_tls_server(ends, router);
    start_tls_client(ends, prefill);
    dial(ends, 0);
    TURN_UNTIL(ends, heard_type(&ends->end[WORKER], BT_RPC_OPENED));
    if (bt_rpc_send(ends->end[WORKER].streams, 0, &join, &err) != BT_OK)
        fail_msg("%s", err.text);
    TURN_UNTIL(ends, ends->end[ROUTER].n_messages == 1);
    join.join.role = BT_ROLE_DECODE;
    snprintf(join.join.link_address, sizeof join.join.link_address, "127.0.0.1:7000");
    if (bt_rpc_send(ends->end[WORKER].streams, 0, &join, &err) != BT_OK)
        fail_msg("%s", err.text);
    TURN_UNTIL(ends, find_closed(&ends->end[WORKER]) && find_closed(&ends->end[ROUTER]));
    assert_int_equal(ends->end[ROUTER].n_messages, 1);
    expect_text(find_closed(&ends->end[WORKER])->text,
                "worker-7 joins as decode, its certificate is for the role prefill");
    close_ends(ends);
    bt_tls_destroy(router);
    bt_tls_destroy(prefill);
    certs_close(&certs);
}

/* One attach; whether it opened. */
static bool try_attach(struct ends *ends, struct bt_tls *worker) {
    memset(ends->end, 0, sizeof ends->end);
    ends->end[ROUTER].streams = bt_rpc_server_streams(ends->server);
    start_tls_client(ends, worker);
    dial(ends, 0);
    TURN_UNTIL(ends,
               heard_type(&ends->end[WORKER], BT_RPC_OPENED) || find_closed(&ends->end[WORKER]));
    bool opened = heard_type(&ends->end[WORKER], BT_RPC_OPENED);
    stop_client(ends);
    turn(ends);
    return opened;
}

static void test_a_server_takes_new_certificates(void **state) {
    (void)state;
    struct certs certs, next;
    struct bt_error err = {0};
    char command[1024];
    certs_open(&certs);
    certs_open(&next);
    certs_issue_roles(&certs);
    certs_issue_roles(&next);
    struct ends *ends = calloc(1, sizeof *ends);
    struct bt_tls *router = certs_tls(&certs, "router", NULL, BT_TLS_ROUTER);
    struct bt_tls *old = certs_tls(&certs, "decode", NULL, BT_TLS_DECODE);
    struct bt_tls *fresh = certs_tls(&next, "decode", NULL, BT_TLS_DECODE);
    start_tls_server(ends, router);
    assert_true(try_attach(ends, old));
    assert_false(try_attach(ends, fresh));
    snprintf(command, sizeof command, "cp %s/ca.pem %s/router.pem %s/router-key.pem %s", next.dir,
             next.dir, next.dir, certs.dir);
    assert_int_equal(system(command), 0);
    assert_int_equal(bt_tls_reload(router, &err), BT_OK);
    assert_int_equal(bt_rpc_server_reload(ends->server, &err), BT_OK);
    uint64_t until = now_ms() + WAIT_MS;
    while (!try_attach(ends, fresh) && now_ms() < until)
        turn_for(ends, 50);
    assert_true(try_attach(ends, fresh));
    assert_false(try_attach(ends, old));
    stop_server(ends);
    free(ends);
    bt_tls_destroy(fresh);
    bt_tls_destroy(old);
    bt_tls_destroy(router);
    certs_close(&next);
    certs_close(&certs);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_worker_attaches_and_speaks),
        cmocka_unit_test(test_refusals_are_sentences),
        cmocka_unit_test(test_strangers_hear_no_http2),
        cmocka_unit_test(test_a_worker_joins_only_as_what_its_certificate_says),
        cmocka_unit_test(test_a_server_takes_new_certificates),
    };
    bt_rpc_init();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bt_rpc_fini();
    return failed;
}

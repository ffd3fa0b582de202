/* TLS: files that are refused, handshakes over a socket pair, each refusal in one sentence. */
#include <signal.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>

#include "tests/unit/certs.h"

static void expect_text(const char *text, const char *part) {
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in: %s", part, text);
}

/* ---- files ---- */

static void refuse_files(const struct certs *certs, const char *name, const char *ca, uint32_t role,
                         const char *part) {
    struct bt_tls *tls;
    struct bt_error err = {0};
    assert_true(certs_try_tls(certs, name, ca, role, &tls, &err) < 0);
    expect_text(err.text, part);
    expect_text(err.text, certs->dir); /* the file is named */
}

static void copy_file(const struct certs *certs, const char *from, const char *to) {
    char command[1024];
    snprintf(command, sizeof command, "cd %s && cp %s %s", certs->dir, from, to);
    assert_int_equal(system(command), 0);
}

static void test_bad_files_are_refused_by_name(void **state) {
    (void)state;
    struct certs certs, others;
    certs_open(&certs);
    certs_open(&others);
    certs_issue_roles(&certs);
    certs_issue(&certs, "old", "router.baton", -3600, -60);
    certs_issue(&certs, "young", "router.baton", 3600, 7200);
    refuse_files(&certs, "none", NULL, 0, "cannot be opened: No such file");
    refuse_files(&certs, "old", NULL, BT_TLS_ROUTER, "expired at 20");
    refuse_files(&certs, "old", "", 0, "expired at 20"); /* at a public door too */
    refuse_files(&certs, "young", NULL, BT_TLS_ROUTER, "is not valid before 20");
    refuse_files(&certs, "router", others.ca_path, BT_TLS_ROUTER, "is not signed by a CA of /tmp");
    refuse_files(&certs, "decode", NULL, BT_TLS_PREFILL,
                 "is for the role decode, must be for prefill");
    copy_file(&certs, "router.pem", "mixed.pem");
    copy_file(&certs, "decode-key.pem", "mixed-key.pem");
    refuse_files(&certs, "mixed", NULL, BT_TLS_ROUTER, "does not belong to tls-cert");
    certs_write(&certs, "text.pem", "not a certificate\n");
    certs_write(&certs, "text-key.pem", "not a key\n");
    refuse_files(&certs, "text", NULL, 0, "has no certificate in PEM");
    copy_file(&certs, "router.pem", "nokey.pem");
    certs_write(&certs, "nokey-key.pem", "not a key\n");
    refuse_files(&certs, "nokey", NULL, 0, "has no private key in PEM");
    char path[CERTS_PATH_BYTES];
    snprintf(path, sizeof path, "%s/text.pem", certs.dir);
    refuse_files(&certs, "router", path, BT_TLS_ROUTER, "tls-ca");
    char command[1024];
    snprintf(command, sizeof command,
             "cd %s && cp router.pem locked.pem && openssl pkcs8 -topk8 -in router-key.pem -out "
             "locked-key.pem -passout pass:x 2>/dev/null",
             certs.dir);
    if (system(command) == 0)
        refuse_files(&certs, "locked", NULL, BT_TLS_ROUTER, "is locked by a passphrase");
    certs_close(&others);
    certs_close(&certs);
}

/* ---- two ends ---- */

struct ends {
    int fds[2];
    struct bt_tls_stream *server, *client;
    bt_status server_status, client_status;
    struct bt_error server_err, client_err;
};

static void ends_open(struct ends *ends) {
    *ends = (struct ends){.server_status = BT_AGAIN, .client_status = BT_AGAIN};
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends->fds),
                     0);
}

/* A refused client hears of it in its first read, so each side reads after its handshake. */
static bt_status step(struct bt_tls_stream *stream, struct bt_error *err) {
    uint8_t byte;
    size_t n;
    bt_status status = bt_tls_handshake(stream, err);
    return status == BT_OK ? bt_tls_read(stream, &byte, 1, &n, err) : status;
}

static void ends_shake(struct ends *ends) {
    for (int i = 0; i < 100; i++) {
        if (ends->client && ends->client_status == BT_AGAIN)
            ends->client_status = step(ends->client, &ends->client_err);
        if (ends->server && ends->server_status == BT_AGAIN)
            ends->server_status = step(ends->server, &ends->server_err);
        if (ends->server && ends->server_status < 0)
            shutdown(ends->fds[0], SHUT_WR);
        if (ends->client && ends->client_status < 0)
            shutdown(ends->fds[1], SHUT_WR);
    }
}

static void ends_close(struct ends *ends) {
    bt_tls_stream_destroy(ends->server);
    bt_tls_stream_destroy(ends->client);
    close(ends->fds[0]);
    close(ends->fds[1]);
}

static void shake(struct ends *ends, struct bt_tls *server, uint32_t wants_of_client,
                  struct bt_tls *client, uint32_t wants_of_server, const char *host) {
    ends_open(ends);
    ends->server = bt_tls_accept(server, ends->fds[0], wants_of_client);
    ends->client = bt_tls_connect(client, ends->fds[1], wants_of_server, host);
    assert_true(ends->server && ends->client);
    ends_shake(ends);
}

/* More than the socket takes: what was refused goes on from where it stood. */
static void send_much(struct ends *ends, bool collects) {
    enum { BYTES = 3 << 20 };
    uint8_t *from = malloc(BYTES), *to = malloc(BYTES);
    assert_true(from && to);
    for (size_t i = 0; i < BYTES; i++)
        from[i] = (uint8_t)(i * 31 + i / 251);
    size_t n_out = 0, n_in = 0, n_blocked = 0, n = 0;
    while (n_in < BYTES) {
        bt_status status = BT_OK;
        while (n_out < BYTES && status == BT_OK) {
            status = bt_tls_write(ends->client, from + n_out, BYTES - n_out, &n, &ends->client_err);
            n_out += status == BT_OK ? n : 0;
        }
        assert_true(status == BT_OK || (status == BT_AGAIN && bt_tls_wants_write(ends->client)));
        n_blocked += status == BT_AGAIN;
        status = bt_tls_flush(ends->client, &ends->client_err);
        assert_true(status == BT_OK || (status == BT_AGAIN && bt_tls_wants_write(ends->client)));
        assert_true(collects || status == BT_OK);
        while (n_in < BYTES &&
               bt_tls_read(ends->server, to + n_in, BYTES - n_in, &n, &ends->server_err) == BT_OK)
            n_in += n;
    }
    assert_true(n_blocked > 0);
    assert_memory_equal(from, to, BYTES);
    free(from);
    free(to);
}

static void test_two_workers_speak(void **state) {
    (void)state;
    struct certs certs;
    struct ends ends;
    uint8_t byte = 0;
    size_t n;
    certs_open(&certs);
    certs_issue_roles(&certs);
    struct bt_tls *d = certs_tls(&certs, "decode", NULL, BT_TLS_DECODE);
    struct bt_tls *p = certs_tls(&certs, "prefill", NULL, BT_TLS_PREFILL);
    for (int collects = 0; collects < 2; collects++) {
        ends_open(&ends);
        ends.server = bt_tls_accept(d, ends.fds[0], BT_TLS_PREFILL);
        ends.client = bt_tls_connect(p, ends.fds[1], BT_TLS_DECODE, NULL);
        assert_true(!collects || (bt_tls_collect(ends.client) && bt_tls_collect(ends.server)));
        ends_shake(&ends);
        assert_int_equal(ends.server_status, BT_AGAIN); /* open, nothing to read */
        assert_int_equal(ends.client_status, BT_AGAIN);
        assert_string_equal(SSL_get_version(bt_tls_stream_ssl(ends.server)), "TLSv1.3");
        send_much(&ends, collects);
        /* What is collected leaves with a flush, the end by itself. */
        assert_int_equal(bt_tls_write(ends.client, &byte, 1, &n, &ends.client_err), BT_OK);
        assert_int_equal(bt_tls_read(ends.server, &byte, 1, &n, &ends.server_err),
                         collects ? BT_AGAIN : BT_OK);
        assert_int_equal(bt_tls_flush(ends.client, &ends.client_err), BT_OK);
        if (collects)
            assert_int_equal(bt_tls_read(ends.server, &byte, 1, &n, &ends.server_err), BT_OK);
        bt_tls_close(ends.client);
        assert_int_equal(bt_tls_read(ends.server, &byte, 1, &n, &ends.server_err), BT_DONE);
        ends_close(&ends);
    }
    bt_tls_destroy(d);
    bt_tls_destroy(p);
    certs_close(&certs);
}

static void expect_refusal(struct ends *ends, bool by_server, const char *ours,
                           const char *theirs) {
    bt_status refuser = by_server ? ends->server_status : ends->client_status;
    bt_status refused = by_server ? ends->client_status : ends->server_status;
    assert_int_equal(refuser, BT_E_PROTOCOL);
    expect_text(by_server ? ends->server_err.text : ends->client_err.text, ours);
    assert_true(refused < 0);
    expect_text(by_server ? ends->client_err.text : ends->server_err.text, theirs);
    ends_close(ends);
}

static void test_a_refused_certificate_is_said_on_both_sides(void **state) {
    (void)state;
    struct certs certs, others;
    struct ends ends;
    certs_open(&certs);
    certs_open(&others);
    certs_issue_roles(&certs);
    certs_issue_roles(&others);
    struct bt_tls *d = certs_tls(&certs, "decode", NULL, BT_TLS_DECODE);
    struct bt_tls *p = certs_tls(&certs, "prefill", NULL, BT_TLS_PREFILL);
    struct bt_tls *foreign = certs_tls(&others, "prefill", NULL, BT_TLS_PREFILL);
    shake(&ends, d, BT_TLS_ROUTER, p, BT_TLS_DECODE, NULL);
    expect_refusal(&ends, true, "(\"prefill\") is for the role prefill, must be for router",
                   "refuses our certificate: it is for another role");
    shake(&ends, d, BT_TLS_PREFILL, p, BT_TLS_ROUTER, NULL);
    expect_refusal(&ends, false, "(\"decode\") is for the role decode, must be for router",
                   "refuses our certificate: it is for another role");
    shake(&ends, d, BT_TLS_PREFILL, foreign, BT_TLS_DECODE, NULL);
    expect_refusal(&ends, false, "(\"decode\") is not signed by a CA of /tmp",
                   "refuses our certificate: it does not know the CA that signed it");
    bt_tls_destroy(foreign);
    /* One that knows both CAs, so that the server is the one who refuses. */
    char command[1024], both[CERTS_PATH_BYTES];
    snprintf(command, sizeof command, "cat %s %s > %s/both.pem", certs.ca_path, others.ca_path,
             others.dir);
    assert_int_equal(system(command), 0);
    snprintf(both, sizeof both, "%s/both.pem", others.dir);
    foreign = certs_tls(&others, "prefill", both, BT_TLS_PREFILL);
    shake(&ends, d, BT_TLS_PREFILL, foreign, BT_TLS_DECODE, NULL);
    expect_refusal(&ends, true, "(\"prefill\") is not signed by a CA of /tmp",
                   "refuses our certificate: it does not know the CA that signed it");
    bt_tls_destroy(foreign);
    bt_tls_destroy(p);
    bt_tls_destroy(d);
    certs_close(&others);
    certs_close(&certs);
}

/* A peer that is not ours: OpenSSL itself, without the checks that ours makes at start. */
static SSL *stranger(const struct certs *certs, const char *name, int fd, int version) {
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    char path[CERTS_PATH_BYTES];
    SSL_CTX_set_max_proto_version(ctx, version);
    if (name) {
        snprintf(path, sizeof path, "%s/%s.pem", certs->dir, name);
        assert_int_equal(SSL_CTX_use_certificate_chain_file(ctx, path), 1);
        snprintf(path, sizeof path, "%s/%s-key.pem", certs->dir, name);
        assert_int_equal(SSL_CTX_use_PrivateKey_file(ctx, path, SSL_FILETYPE_PEM), 1);
    }
    SSL *ssl = SSL_new(ctx);
    SSL_CTX_free(ctx);
    SSL_set_fd(ssl, fd);
    SSL_set_connect_state(ssl);
    return ssl;
}

static void expect_stranger_refused(const struct certs *certs, struct bt_tls *server,
                                    const char *name, int version, const char *text) {
    struct ends ends;
    ends_open(&ends);
    ends.server = bt_tls_accept(server, ends.fds[0], BT_TLS_PREFILL);
    SSL *ssl = stranger(certs, name, ends.fds[1], version);
    for (int i = 0; i < 20; i++) {
        SSL_do_handshake(ssl);
        ends_shake(&ends);
    }
    assert_int_equal(ends.server_status, BT_E_PROTOCOL);
    expect_text(ends.server_err.text, text);
    SSL_free(ssl);
    ends_close(&ends);
}

static void test_strangers_are_refused_in_a_sentence(void **state) {
    (void)state;
    struct certs certs;
    certs_open(&certs);
    certs_issue_roles(&certs);
    certs_issue(&certs, "old", "prefill.baton", -3600, -60);
    certs_issue(&certs, "young", "prefill.baton", 3600, 7200);
    certs_issue(&certs, "host", "prefill.example", -60, 3600);
    struct bt_tls *d = certs_tls(&certs, "decode", NULL, BT_TLS_DECODE);
    expect_stranger_refused(&certs, d, NULL, 0, "the peer showed no certificate");
    expect_stranger_refused(&certs, d, "old", 0, "(\"old\") expired at 20");
    expect_stranger_refused(&certs, d, "young", 0, "(\"young\") is not valid before 20");
    expect_stranger_refused(&certs, d, "host", 0, "is for the role none, must be for prefill");
    expect_stranger_refused(&certs, d, "prefill", TLS1_2_VERSION, "does not speak TLS 1.3");
    bt_tls_destroy(d);
    certs_close(&certs);
}

static void expect_plain_refused(struct bt_tls *tls, bool we_serve, const char *bytes,
                                 const char *text) {
    struct ends ends;
    ends_open(&ends);
    if (we_serve)
        ends.server = bt_tls_accept(tls, ends.fds[0], 0);
    else
        ends.client = bt_tls_connect(tls, ends.fds[1], 0, NULL);
    int peer = we_serve ? ends.fds[1] : ends.fds[0];
    assert_int_equal(write(peer, bytes, strlen(bytes)), strlen(bytes));
    if (!bytes[0])
        shutdown(peer, SHUT_WR);
    ends_shake(&ends);
    assert_true((we_serve ? ends.server_status : ends.client_status) < 0);
    expect_text(we_serve ? ends.server_err.text : ends.client_err.text, text);
    ends_close(&ends);
}

static void test_plain_bytes_are_no_tls(void **state) {
    (void)state;
    struct certs certs;
    certs_open(&certs);
    certs_issue_roles(&certs);
    struct bt_tls *d = certs_tls(&certs, "decode", NULL, BT_TLS_DECODE);
    for (int we_serve = 0; we_serve < 2; we_serve++) {
        expect_plain_refused(d, we_serve, "BTKV and some more bytes of a link's first message",
                             "the peer does not speak TLS");
        expect_plain_refused(d, we_serve, "", "closed the connection during the TLS handshake");
    }
    expect_plain_refused(d, true, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "does not speak TLS");
    expect_plain_refused(d, true, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "does not speak TLS");
    bt_tls_destroy(d);
    certs_close(&certs);
}

static void test_a_stream_outlives_its_context_and_needs_no_reason(void **state) {
    (void)state;
    struct certs certs, others;
    struct ends ends;
    uint8_t byte;
    size_t n;
    certs_open(&certs);
    certs_open(&others);
    certs_issue_roles(&certs);
    certs_issue_roles(&others);
    struct bt_tls *d = certs_tls(&certs, "decode", NULL, BT_TLS_DECODE);
    struct bt_tls *p = certs_tls(&others, "prefill", NULL, BT_TLS_PREFILL);
    ends_open(&ends);
    ends.server = bt_tls_accept(d, ends.fds[0], BT_TLS_PREFILL);
    ends.client = bt_tls_connect(p, ends.fds[1], BT_TLS_DECODE, NULL);
    bt_tls_destroy(d);
    bt_tls_destroy(p);
    ends_shake(&ends);
    expect_refusal(&ends, false, "is not signed by a CA of /tmp", "refuses our certificate");
    /* The same where nobody asks why: a peer that sends what is no TLS, and one that just goes. */
    for (int goes = 0; goes < 2; goes++) {
        d = certs_tls(&certs, "decode", NULL, BT_TLS_DECODE);
        p = certs_tls(&certs, "prefill", NULL, BT_TLS_PREFILL);
        shake(&ends, d, BT_TLS_PREFILL, p, BT_TLS_DECODE, NULL);
        assert_int_equal(ends.server_status, BT_AGAIN);
        if (!goes)
            assert_int_equal(write(ends.fds[1], "no TLS at all", 13), 13);
        shutdown(ends.fds[1], SHUT_WR);
        assert_true(bt_tls_read(ends.server, &byte, 1, &n, NULL) < 0);
        assert_true(bt_tls_read(ends.server, &byte, 1, &n, NULL) < 0);
        assert_true(bt_tls_write(ends.server, &byte, 1, &n, NULL) < 0);
        ends_close(&ends);
        bt_tls_destroy(d);
        bt_tls_destroy(p);
    }
    certs_close(&others);
    certs_close(&certs);
}

/* ---- public doors ---- */

static void test_a_public_door_shows_its_host(void **state) {
    (void)state;
    struct certs certs;
    struct ends ends;
    struct bt_error err;
    struct bt_tls *client;
    certs_open(&certs);
    certs_issue(&certs, "http", "127.0.0.1", -60, 3600);
    certs_issue(&certs, "named", "door.example", -60, 3600);
    struct bt_tls_config config = {.ca = certs.ca_path};
    assert_int_equal(bt_tls_create(&config, &client, &err), BT_OK);
    struct bt_tls *door = certs_tls(&certs, "http", "", 0);
    shake(&ends, door, 0, client, 0, "127.0.0.1");
    assert_int_equal(ends.server_status, BT_AGAIN);
    assert_int_equal(ends.client_status, BT_AGAIN);
    ends_close(&ends);
    shake(&ends, door, 0, client, 0, "127.0.0.2");
    expect_refusal(&ends, false, "is not made out to the host", "refuses our certificate");
    bt_tls_destroy(door);
    door = certs_tls(&certs, "named", "", 0);
    shake(&ends, door, 0, client, 0, "door.example");
    assert_int_equal(ends.client_status, BT_AGAIN);
    ends_close(&ends);
    shake(&ends, door, 0, client, 0, "other.example");
    expect_refusal(&ends, false, "is not made out to the host", "refuses our certificate");
    /* The server's choice of protocol, and none where the client offers another. */
    static const char *const offers[] = {"\x02h2\x08http/1.1", "\x02h2"};
    for (int i = 0; i < 2; i++) {
        const unsigned char *chosen;
        unsigned n;
        ends_open(&ends);
        ends.server = bt_tls_accept(door, ends.fds[0], 0);
        ends.client = bt_tls_connect(client, ends.fds[1], 0, NULL);
        SSL_set_alpn_protos(bt_tls_stream_ssl(ends.client), (const unsigned char *)offers[i],
                            (unsigned)strlen(offers[i]));
        ends_shake(&ends);
        assert_int_equal(ends.client_status, BT_AGAIN);
        SSL_get0_alpn_selected(bt_tls_stream_ssl(ends.client), &chosen, &n);
        assert_int_equal(n, i == 0 ? 8 : 0);
        ends_close(&ends);
    }
    bt_tls_destroy(door);
    bt_tls_destroy(client);
    certs_close(&certs);
}

/* ---- reading again ---- */

static const char *subject_of_server(struct ends *ends) {
    static char name[64];
    X509 *cert = SSL_get1_peer_certificate(bt_tls_stream_ssl(ends->client));
    X509_NAME_get_text_by_NID(X509_get_subject_name(cert), NID_commonName, name, sizeof name);
    X509_free(cert);
    return name;
}

static void test_new_files_are_for_new_streams(void **state) {
    (void)state;
    struct certs certs;
    struct ends before, after;
    struct bt_error err = {0};
    certs_open(&certs);
    certs_issue_roles(&certs);
    certs_issue(&certs, "second", "decode.baton", -60, 3600);
    struct bt_tls *d = certs_tls(&certs, "decode", NULL, BT_TLS_DECODE);
    struct bt_tls *p = certs_tls(&certs, "prefill", NULL, BT_TLS_PREFILL);
    shake(&before, d, BT_TLS_PREFILL, p, BT_TLS_DECODE, NULL);
    copy_file(&certs, "second.pem", "decode.pem"); /* the key is missing still */
    assert_int_equal(bt_tls_reload(d, &err), BT_E_INVALID);
    expect_text(err.text, "does not belong to");
    shake(&after, d, BT_TLS_PREFILL, p, BT_TLS_DECODE, NULL);
    assert_string_equal(subject_of_server(&after), "decode");
    ends_close(&after);
    copy_file(&certs, "second-key.pem", "decode-key.pem");
    assert_int_equal(bt_tls_reload(d, &err), BT_OK);
    shake(&after, d, BT_TLS_PREFILL, p, BT_TLS_DECODE, NULL);
    assert_string_equal(subject_of_server(&after), "second");
    ends_close(&after);
    /* The old stream goes on, even without its context. */
    bt_tls_destroy(d);
    uint8_t byte = 7;
    size_t n;
    assert_int_equal(bt_tls_write(before.server, &byte, 1, &n, &err), BT_OK);
    byte = 0;
    assert_int_equal(bt_tls_read(before.client, &byte, 1, &n, &err), BT_OK);
    assert_int_equal(byte, 7);
    ends_close(&before);
    bt_tls_destroy(p);
    certs_close(&certs);
}

/* ---- for a library with handshakes of its own ---- */

static void check_peer(struct bt_tls *tls, const struct certs *certs, const char *name, bool client,
                       uint32_t roles, const char *text) {
    char path[CERTS_PATH_BYTES], pem[4096];
    struct bt_error err = {0};
    uint32_t named = 0;
    snprintf(path, sizeof path, "%s/%s.pem", certs->dir, name);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    pem[fread(pem, 1, sizeof pem - 1, file)] = 0;
    fclose(file);
    bt_status status = bt_tls_check_peer(tls, pem, NULL, client, roles, &named, &err);
    if (text) {
        assert_int_equal(status, BT_E_PROTOCOL);
        expect_text(err.text, text);
    } else {
        assert_int_equal(status, BT_OK);
        assert_int_equal(named, bt_tls_pem_roles(pem));
        assert_true(named & roles);
    }
}

static void test_a_certificate_is_judged_without_a_stream(void **state) {
    (void)state;
    struct certs certs, others;
    struct bt_error err = {0};
    certs_open(&certs);
    certs_open(&others);
    certs_issue_roles(&certs);
    certs_issue_roles(&others);
    certs_issue(&certs, "old", "decode.baton", -3600, -60);
    struct bt_tls *router = certs_tls(&certs, "router", NULL, BT_TLS_ROUTER);
    uint32_t workers = BT_TLS_PREFILL | BT_TLS_DECODE;
    check_peer(router, &certs, "prefill", true, workers, NULL);
    check_peer(router, &certs, "decode", true, workers, NULL);
    check_peer(router, &certs, "router", true, workers,
               "is for the role router, must be for prefill or decode");
    check_peer(router, &certs, "old", true, workers, "expired at");
    check_peer(router, &others, "decode", true, workers, "is not signed by a CA of");
    assert_int_equal(bt_tls_check_peer(router, NULL, NULL, true, workers, NULL, &err),
                     BT_E_PROTOCOL);
    expect_text(err.text, "showed no certificate");
    assert_int_equal(bt_tls_check_peer(router, "rubbish", NULL, true, workers, NULL, &err),
                     BT_E_PROTOCOL);
    expect_text(err.text, "cannot be read");
    char *cert, *key;
    assert_int_equal(bt_tls_copy_pem(router, &cert, &key, &err), BT_OK);
    assert_int_equal(bt_tls_pem_roles(cert), BT_TLS_ROUTER);
    assert_non_null(strstr(key, "PRIVATE KEY"));
    free(cert);
    free(key);
    bt_tls_destroy(router);
    certs_close(&others);
    certs_close(&certs);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_files_are_refused_by_name),
        cmocka_unit_test(test_two_workers_speak),
        cmocka_unit_test(test_a_refused_certificate_is_said_on_both_sides),
        cmocka_unit_test(test_strangers_are_refused_in_a_sentence),
        cmocka_unit_test(test_plain_bytes_are_no_tls),
        cmocka_unit_test(test_a_stream_outlives_its_context_and_needs_no_reason),
        cmocka_unit_test(test_a_public_door_shows_its_host),
        cmocka_unit_test(test_new_files_are_for_new_streams),
        cmocka_unit_test(test_a_certificate_is_judged_without_a_stream),
    };
    signal(SIGPIPE, SIG_IGN); /* as common/base/tls.h asks */
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* TLS over one non-blocking socket, and a sentence for each way in which it fails. */
#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/base/tls_inner.h"

enum { COLLECT_BYTES = 128 << 10 };

struct bt_tls_stream {
    struct bt_tls_verdict verdict; /* the SSL object's application data */
    struct bt_tls_material *material;
    SSL *ssl;
    bool wants_write, is_open, is_broken, is_closed;
};

static struct bt_tls_stream *stream_create(struct bt_tls *tls, int fd, uint32_t roles) {
    struct bt_tls_stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return NULL;
    stream->material = bt_tls_take_material(tls);
    stream->verdict.roles = roles;
    stream->ssl = SSL_new(stream->material->ctx);
    if (!stream->ssl || !SSL_set_fd(stream->ssl, fd)) {
        bt_tls_stream_destroy(stream);
        return NULL;
    }
    SSL_set_app_data(stream->ssl, &stream->verdict);
    return stream;
}

struct bt_tls_stream *bt_tls_accept(struct bt_tls *tls, int fd, uint32_t roles) {
    struct bt_tls_stream *stream = stream_create(tls, fd, roles);
    if (stream)
        SSL_set_accept_state(stream->ssl);
    return stream;
}

struct bt_tls_stream *bt_tls_connect(struct bt_tls *tls, int fd, uint32_t roles, const char *host) {
    struct bt_tls_stream *stream = stream_create(tls, fd, roles);
    if (!stream)
        return NULL;
    SSL_set_connect_state(stream->ssl);
    bool named = true;
    if (host && !X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(stream->ssl), host))
        named = SSL_set1_host(stream->ssl, host) && SSL_set_tlsext_host_name(stream->ssl, host);
    ERR_clear_error();
    if (!named) {
        bt_tls_stream_destroy(stream);
        return NULL;
    }
    return stream;
}

void bt_tls_stream_destroy(struct bt_tls_stream *stream) {
    if (!stream)
        return;
    SSL_free(stream->ssl);
    bt_tls_put_material(stream->material);
    free(stream);
}

static bt_status refuse_broken(struct bt_error *err) {
    return bt_fail(err, BT_E_PEER_GONE, "the TLS connection has failed before");
}

bool bt_tls_collect(struct bt_tls_stream *stream) {
    BIO *collected = BIO_new(BIO_f_buffer());
    BIO *socket = BIO_new_socket(SSL_get_fd(stream->ssl), BIO_NOCLOSE);
    if (!collected || !socket || !BIO_set_write_buffer_size(collected, COLLECT_BYTES)) {
        BIO_free(collected);
        BIO_free(socket);
        return false;
    }
    SSL_set0_wbio(stream->ssl, BIO_push(collected, socket));
    SSL_set_read_ahead(stream->ssl, 1);
    SSL_set_default_read_buffer_len(stream->ssl, COLLECT_BYTES);
    return true;
}

bt_status bt_tls_flush(struct bt_tls_stream *stream, struct bt_error *err) {
    BIO *out = SSL_get_wbio(stream->ssl);
    if (stream->is_broken)
        return refuse_broken(err);
    errno = 0;
    if (!stream->is_open || BIO_flush(out) > 0)
        return BT_OK; /* the handshake flushes for itself */
    stream->wants_write = BIO_should_retry(out);
    if (stream->wants_write)
        return BT_AGAIN;
    int error = errno;
    stream->is_broken = true;
    ERR_clear_error();
    return bt_fail(err, BT_E_PEER_GONE, "the connection broke: %s", strerror(error));
}

struct ssl_st *bt_tls_stream_ssl(struct bt_tls_stream *stream) {
    return stream->ssl;
}

bool bt_tls_wants_write(const struct bt_tls_stream *stream) {
    return stream->wants_write;
}

bool bt_tls_has_pending(const struct bt_tls_stream *stream) {
    return SSL_has_pending(stream->ssl);
}

/* ---- why it failed ---- */

/* A peer's alert arrives as a reason above this (RFC 8446, section 6). */
static const char *alert_sentence(int reason) {
    switch (reason - SSL_AD_REASON_OFFSET) {
    case SSL_AD_UNKNOWN_CA:
        return "the peer refuses our certificate: it does not know the CA that signed it";
    case SSL_AD_CERTIFICATE_EXPIRED:
        return "the peer refuses our certificate: it has expired";
    case SSL_AD_UNSUPPORTED_CERTIFICATE:
        return "the peer refuses our certificate: it is for another role";
    case SSL_AD_BAD_CERTIFICATE:
    case SSL_AD_CERTIFICATE_REVOKED:
    case SSL_AD_CERTIFICATE_UNKNOWN:
    case SSL_AD_ACCESS_DENIED:
        return "the peer refuses our certificate; its log says why";
    case SSL_AD_CERTIFICATE_REQUIRED:
        return "the peer wants a certificate and we showed none";
    case SSL_AD_PROTOCOL_VERSION:
        return "the peer does not speak TLS 1.3";
    case SSL_AD_UNRECOGNIZED_NAME:
        return "the peer does not serve the host that was asked for";
    default:
        return NULL;
    }
}

static const char *reason_sentence(int reason) {
    switch (reason) {
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_HTTPS_PROXY_REQUEST:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
    case SSL_R_BAD_RECORD_TYPE:
        return "the peer does not speak TLS";
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_VERSION_TOO_LOW:
    case SSL_R_NO_SHARED_CIPHER:
        return "the peer does not speak TLS 1.3";
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        return "the peer showed no certificate";
    default:
        return NULL;
    }
}

const char *bt_tls_reason_sentence(unsigned long openssl_error) {
    int reason = ERR_GET_REASON(openssl_error);
    const char *sentence = reason_sentence(reason);
    return sentence ? sentence : alert_sentence(reason);
}

static bt_status explain(const struct bt_tls_stream *stream, unsigned long openssl_error,
                         struct bt_error *err) {
    if (stream->verdict.err.status < 0)
        return bt_fail(err, stream->verdict.err.status, "%s", stream->verdict.err.text);
    if (ERR_GET_REASON(openssl_error) == SSL_R_UNEXPECTED_EOF_WHILE_READING)
        return bt_fail(err, BT_E_PEER_GONE,
                       stream->is_open ? "the peer closed the connection without TLS's end"
                                       : "the peer closed the connection during the TLS handshake");
    const char *sentence = bt_tls_reason_sentence(openssl_error);
    if (sentence)
        return bt_fail(err, BT_E_PROTOCOL, "%s", sentence);
    const char *text = ERR_reason_error_string(openssl_error);
    return bt_fail(err, BT_E_PROTOCOL, "TLS failed: %s", text ? text : "no reason given");
}

/* What an operation that gave `result` means. */
static bt_status judge(struct bt_tls_stream *stream, int result, int system_error,
                       struct bt_error *err) {
    int code = SSL_get_error(stream->ssl, result);
    stream->wants_write = code == SSL_ERROR_WANT_WRITE;
    if (code == SSL_ERROR_WANT_READ || code == SSL_ERROR_WANT_WRITE)
        return BT_AGAIN;
    if (code == SSL_ERROR_ZERO_RETURN)
        return BT_DONE;
    stream->is_broken = true;
    bt_status status = code == SSL_ERROR_SYSCALL
                           ? bt_fail(err, BT_E_PEER_GONE, "the connection broke: %s",
                                     system_error ? strerror(system_error) : "it was closed")
                           : explain(stream, ERR_peek_last_error(), err);
    ERR_clear_error();
    return status;
}

/* ---- the stream ---- */

bt_status bt_tls_handshake(struct bt_tls_stream *stream, struct bt_error *err) {
    if (stream->is_broken)
        return refuse_broken(err);
    if (stream->is_open)
        return BT_OK;
    ERR_clear_error();
    errno = 0;
    int result = SSL_do_handshake(stream->ssl);
    if (result == 1) {
        stream->is_open = true;
        stream->wants_write = false;
        return BT_OK;
    }
    bt_status status = judge(stream, result, errno, err);
    if (status != BT_DONE)
        return status;
    stream->is_broken = true;
    return bt_fail(err, BT_E_PEER_GONE, "the peer closed the connection during the TLS handshake");
}

bt_status bt_tls_read(struct bt_tls_stream *stream, void *to, size_t n_bytes, size_t *n_read,
                      struct bt_error *err) {
    bt_status status = bt_tls_handshake(stream, err);
    if (status != BT_OK)
        return status;
    ERR_clear_error();
    errno = 0;
    int result = SSL_read_ex(stream->ssl, to, n_bytes, n_read);
    return result == 1 ? BT_OK : judge(stream, result, errno, err);
}

bt_status bt_tls_write(struct bt_tls_stream *stream, const void *from, size_t n_bytes,
                       size_t *n_written, struct bt_error *err) {
    BT_ASSERT(n_bytes > 0);
    bt_status status = bt_tls_handshake(stream, err);
    if (status != BT_OK)
        return status;
    ERR_clear_error();
    errno = 0;
    int result = SSL_write_ex(stream->ssl, from, n_bytes, n_written);
    if (result == 1)
        return BT_OK;
    status = judge(stream, result, errno, err);
    return status == BT_DONE ? bt_fail(err, BT_E_PEER_GONE, "the peer has closed the connection")
                             : status;
}

void bt_tls_close(struct bt_tls_stream *stream) {
    if (!stream->is_open || stream->is_broken || stream->is_closed)
        return;
    stream->is_closed = true;
    ERR_clear_error();
    SSL_shutdown(stream->ssl); /* where the socket is full the peer sees the connection's end */
    BIO_flush(SSL_get_wbio(stream->ssl));
    ERR_clear_error();
}

/* Reads certificate, key and CAs into a context that new connections use, and reads them again. */
#include "common/base/tls.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/base/file.h"
#include "common/base/tls_inner.h"

enum { FILE_BYTES_MAX = 1 << 20 };

/* AES-128 first: of the three it moves the most bytes a second, and a peer can still choose. */
#define CIPHERS "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
#define CIPHERS_1_2 "ECDHE+AESGCM:ECDHE+CHACHA20"

/* ---- files ---- */

static bt_status read_file(const char *option, const char *path, char **out, struct bt_error *err) {
    size_t n;
    return bt_file_read(option, path, FILE_BYTES_MAX, out, &n, err);
}

/* Nobody is asked for a passphrase: a server has no terminal. */
static int no_passphrase(char *to, int n_bytes, int writing, void *asked) {
    (void)to, (void)n_bytes, (void)writing;
    *(bool *)asked = true;
    return -1;
}

static bt_status use_key(SSL_CTX *ctx, const struct bt_tls_config *config, const char *pem,
                         struct bt_error *err) {
    bool asked = false;
    BIO *bio = BIO_new_mem_buf(pem, -1);
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, &asked) : NULL;
    BIO_free(bio);
    bt_status status = BT_OK;
    if (!key)
        status = bt_fail(err, BT_E_INVALID,
                         asked ? "tls-key \"%.120s\" is locked by a passphrase, must be without"
                               : "tls-key \"%.120s\" has no private key in PEM",
                         config->key);
    else if (!X509_check_private_key(SSL_CTX_get0_certificate(ctx), key))
        status =
            bt_fail(err, BT_E_INVALID, "tls-key \"%.90s\" does not belong to tls-cert \"%.90s\"",
                    config->key, config->cert);
    else if (!SSL_CTX_use_PrivateKey(ctx, key))
        status = bt_fail(err, BT_E_INVALID, "tls-key \"%.120s\" is of a kind that TLS does not use",
                         config->key);
    EVP_PKEY_free(key);
    return status;
}

static bt_status use_certificates(SSL_CTX *ctx, const char *path, const char *pem,
                                  struct bt_error *err) {
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509 *cert = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL, *next;
    bt_status status = BT_OK;
    if (!cert)
        status = bt_fail(err, BT_E_INVALID, "tls-cert \"%.120s\" has no certificate in PEM", path);
    else if (!SSL_CTX_use_certificate(ctx, cert))
        status = bt_fail(err, BT_E_INVALID, "tls-cert \"%.120s\" has a certificate that is refused",
                         path);
    while (status == BT_OK && (next = PEM_read_bio_X509(bio, NULL, NULL, NULL)))
        if (!SSL_CTX_add0_chain_cert(ctx, next)) {
            X509_free(next);
            status = bt_fail(err, BT_E_INVALID, "tls-cert \"%.120s\": its chain is refused", path);
        }
    X509_free(cert);
    BIO_free(bio);
    return status;
}

static bt_status use_ca(SSL_CTX *ctx, const char *path, struct bt_error *err) {
    char *pem = NULL;
    BT_TRY(read_file("tls-ca", path, &pem, err));
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509 *ca;
    int n = 0;
    while (bio && (ca = PEM_read_bio_X509(bio, NULL, NULL, NULL))) {
        n += X509_STORE_add_cert(SSL_CTX_get_cert_store(ctx), ca);
        X509_free(ca);
    }
    BIO_free(bio);
    free(pem);
    if (!n)
        return bt_fail(err, BT_E_INVALID, "tls-ca \"%.120s\" has no certificate in PEM", path);
    return BT_OK;
}

/* ---- our own certificate ---- */

/* Behind an own CA: its signature, dates and role. At a public door the CA is the clients' business
 * and only the dates count: the certificate then stands for its own CA. */
static bt_status check_own(SSL_CTX *ctx, const struct bt_tls_config *config, struct bt_error *err) {
    X509 *cert = SSL_CTX_get0_certificate(ctx);
    STACK_OF(X509) *chain = NULL, *itself = sk_X509_new_null();
    X509_STORE_CTX *store = X509_STORE_CTX_new();
    bt_status status = BT_OK;
    char who[160];
    snprintf(who, sizeof who, "tls-cert \"%.120s\"", config->cert);
    SSL_CTX_get0_chain_certs(ctx, &chain);
    if (!store || !itself || !sk_X509_push(itself, cert) ||
        !X509_STORE_CTX_init(store, SSL_CTX_get_cert_store(ctx), cert, chain))
        status = bt_fail(err, BT_E_NO_MEMORY, "no memory to check %s", who);
    if (status == BT_OK && !config->ca) {
        X509_STORE_CTX_set0_trusted_stack(store, itself);
        X509_STORE_CTX_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN);
    }
    if (status == BT_OK &&
        bt_tls_judge(store, who, config->ca ? config->ca : "", config->role, err) < 0)
        status = err->status = BT_E_INVALID;
    X509_STORE_CTX_free(store);
    sk_X509_free(itself);
    return status;
}

/* ---- a reading ---- */

/* The server's choice among what the client offers; one that offers something else is served as if
 * it had offered nothing. */
static int on_alpn(SSL *ssl, const unsigned char **out, unsigned char *n_out,
                   const unsigned char *offered, unsigned int n_offered, void *wanted) {
    size_t n = strlen(wanted);
    (void)ssl;
    for (unsigned int i = 0; i < n_offered && i + offered[i] < n_offered; i += 1u + offered[i])
        if (offered[i] == n && !memcmp(offered + i + 1, wanted, n)) {
            *out = offered + i + 1;
            *n_out = offered[i];
            return SSL_TLSEXT_ERR_OK;
        }
    return SSL_TLSEXT_ERR_NOACK;
}

static bt_status make_ctx(struct bt_tls_material *material, const struct bt_tls_config *config,
                          struct bt_error *err) {
    SSL_CTX *ctx = material->ctx = SSL_CTX_new(TLS_method());
    material->ca = config->ca ? strdup(config->ca) : NULL;
    material->alpn = config->alpn ? strdup(config->alpn) : NULL;
    int oldest = config->takes_1_2 ? TLS1_2_VERSION : TLS1_3_VERSION;
    if (!ctx || !material->ca != !config->ca || !material->alpn != !config->alpn ||
        !SSL_CTX_set_min_proto_version(ctx, oldest) || !SSL_CTX_set_ciphersuites(ctx, CIPHERS) ||
        !SSL_CTX_set_cipher_list(ctx, CIPHERS_1_2))
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for TLS");
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    /* No session is resumed: each connection shows its certificate anew. */
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_verify(
        ctx, config->ca ? SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT : SSL_VERIFY_NONE,
        NULL);
    SSL_CTX_set_cert_verify_callback(ctx, bt_tls_on_verify, material->ca);
    if (!config->ca) /* thousands of clients that say little: no buffers while they wait */
        SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS);
    if (config->alpn)
        SSL_CTX_set_alpn_select_cb(ctx, on_alpn, material->alpn);
    return BT_OK;
}

static void destroy_material(struct bt_tls_material *material) {
    SSL_CTX_free(material->ctx);
    free(material->cert_pem);
    if (material->key_pem)
        OPENSSL_cleanse(material->key_pem, strlen(material->key_pem));
    free(material->key_pem);
    free(material->ca);
    free(material->alpn);
    free(material);
}

static bt_status read_material(const struct bt_tls_config *config, struct bt_tls_material **out,
                               struct bt_error *err) {
    struct bt_tls_material *m = calloc(1, sizeof *m);
    bt_status status;
    if (!m)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for TLS");
    atomic_store(&m->n_refs, 1);
    BT_TRY_GOTO(make_ctx(m, config, err), fail);
    if (config->ca)
        BT_TRY_GOTO(use_ca(m->ctx, config->ca, err), fail);
    if (config->cert) {
        BT_TRY_GOTO(read_file("tls-cert", config->cert, &m->cert_pem, err), fail);
        BT_TRY_GOTO(read_file("tls-key", config->key, &m->key_pem, err), fail);
        BT_TRY_GOTO(use_certificates(m->ctx, config->cert, m->cert_pem, err), fail);
        BT_TRY_GOTO(use_key(m->ctx, config, m->key_pem, err), fail);
        BT_TRY_GOTO(check_own(m->ctx, config, err), fail);
    }
    ERR_clear_error();
    *out = m;
    return BT_OK;
fail:
    ERR_clear_error();
    destroy_material(m);
    return status;
}

struct bt_tls_material *bt_tls_take_material(struct bt_tls *tls) {
    pthread_mutex_lock(&tls->lock);
    struct bt_tls_material *material = tls->material;
    atomic_fetch_add(&material->n_refs, 1);
    pthread_mutex_unlock(&tls->lock);
    return material;
}

void bt_tls_put_material(struct bt_tls_material *material) {
    if (material && atomic_fetch_sub(&material->n_refs, 1) == 1)
        destroy_material(material);
}

/* ---- the context ---- */

static bool copy_string(const char *from, const char **to) {
    *to = from ? strdup(from) : NULL;
    return !from || *to;
}

bt_status bt_tls_create(const struct bt_tls_config *config, struct bt_tls **out,
                        struct bt_error *err) {
    BT_ASSERT(!config->cert == !config->key && (config->cert || config->ca));
    struct bt_tls *tls = calloc(1, sizeof *tls);
    if (!tls || pthread_mutex_init(&tls->lock, NULL) != 0) {
        free(tls);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for TLS");
    }
    bt_status status;
    tls->config.role = config->role;
    tls->config.takes_1_2 = config->takes_1_2;
    atomic_store(&tls->n_owners, 1);
    if (!copy_string(config->cert, &tls->config.cert) ||
        !copy_string(config->key, &tls->config.key) || !copy_string(config->ca, &tls->config.ca) ||
        !copy_string(config->alpn, &tls->config.alpn))
        BT_TRY_GOTO(bt_fail(err, BT_E_NO_MEMORY, "no memory for TLS"), fail);
    BT_TRY_GOTO(read_material(&tls->config, &tls->material, err), fail);
    *out = tls;
    return BT_OK;
fail:
    bt_tls_destroy(tls);
    return status;
}

bt_status bt_tls_reload(struct bt_tls *tls, struct bt_error *err) {
    struct bt_tls_material *fresh = NULL;
    BT_TRY(read_material(&tls->config, &fresh, err));
    pthread_mutex_lock(&tls->lock);
    struct bt_tls_material *old = tls->material;
    tls->material = fresh;
    pthread_mutex_unlock(&tls->lock);
    bt_tls_put_material(old);
    return BT_OK;
}

struct bt_tls *bt_tls_share(struct bt_tls *tls) {
    atomic_fetch_add(&tls->n_owners, 1);
    return tls;
}

void bt_tls_destroy(struct bt_tls *tls) {
    if (!tls || atomic_fetch_sub(&tls->n_owners, 1) > 1)
        return;
    bt_tls_put_material(tls->material);
    pthread_mutex_destroy(&tls->lock);
    free((char *)tls->config.cert);
    free((char *)tls->config.key);
    free((char *)tls->config.ca);
    free((char *)tls->config.alpn);
    free(tls);
}

bt_status bt_tls_copy_pem(struct bt_tls *tls, char **cert, char **key, struct bt_error *err) {
    BT_ASSERT(tls->config.cert);
    struct bt_tls_material *material = bt_tls_take_material(tls);
    char *cert_copy = strdup(material->cert_pem), *key_copy = strdup(material->key_pem);
    bt_tls_put_material(material);
    if (!cert_copy || !key_copy) {
        free(cert_copy);
        free(key_copy);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a certificate");
    }
    *cert = cert_copy;
    *key = key_copy;
    return BT_OK;
}

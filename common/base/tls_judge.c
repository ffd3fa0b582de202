/* Judges a certificate: its CA, its dates, its role; one sentence for each refusal. */
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/base/tls_inner.h"

static const struct {
    uint32_t role;
    const char *name, *dns;
} roles_known[] = {{BT_TLS_ROUTER, "router", "router.baton"},
                   {BT_TLS_PREFILL, "prefill", "prefill.baton"},
                   {BT_TLS_DECODE, "decode", "decode.baton"}};
enum { N_ROLES = sizeof roles_known / sizeof roles_known[0], WHO_BYTES = 100, DATE_BYTES = 40 };

const char *bt_tls_role_name(uint32_t roles) {
    for (size_t i = 0; i < N_ROLES; i++)
        if (roles_known[i].role == roles)
            return roles_known[i].name;
    return roles == (BT_TLS_PREFILL | BT_TLS_DECODE)                   ? "prefill or decode"
           : roles == (BT_TLS_ROUTER | BT_TLS_PREFILL | BT_TLS_DECODE) ? "router, prefill or decode"
           : roles                                                     ? "several"
                                                                       : "none";
}

const char *bt_tls_role_dns(uint32_t role) {
    for (size_t i = 0; i < N_ROLES; i++)
        if (roles_known[i].role == role)
            return roles_known[i].dns;
    return "";
}

static uint32_t role_of_dns(const ASN1_STRING *text) {
    const char *bytes = (const char *)ASN1_STRING_get0_data(text);
    int n = ASN1_STRING_length(text);
    for (size_t i = 0; i < N_ROLES; i++)
        if ((size_t)n == strlen(roles_known[i].dns) &&
            !strncasecmp(bytes, roles_known[i].dns, (size_t)n))
            return roles_known[i].role;
    return 0;
}

uint32_t bt_tls_cert_roles(X509 *cert) {
    GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    uint32_t roles = 0;
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        if (name->type == GEN_DNS)
            roles |= role_of_dns(name->d.dNSName);
    }
    GENERAL_NAMES_free(names);
    return roles;
}

/* The subject's common name between quotes, its control characters replaced. */
static void name_subject(X509 *cert, char out[WHO_BYTES]) {
    char name[64] = "";
    if (X509_NAME_get_text_by_NID(X509_get_subject_name(cert), NID_commonName, name, sizeof name) <=
        0)
        snprintf(name, sizeof name, "no name");
    for (char *c = name; *c; c++)
        if (*c < 0x20 || *c > 0x7e)
            *c = '?';
    snprintf(out, WHO_BYTES, "the peer's certificate (\"%s\")", name);
}

static void print_date(const ASN1_TIME *date, char out[DATE_BYTES]) {
    struct tm tm;
    if (!date || !ASN1_TIME_to_tm(date, &tm) ||
        !strftime(out, DATE_BYTES, "%Y-%m-%d %H:%M:%S UTC", &tm))
        snprintf(out, DATE_BYTES, "an unreadable date");
}

static bt_status say_invalid(X509_STORE_CTX *store, const char *who, const char *ca,
                             struct bt_error *err) {
    int code = X509_STORE_CTX_get_error(store);
    X509 *at = X509_STORE_CTX_get_current_cert(store);
    const char *of = X509_STORE_CTX_get_error_depth(store) > 0 ? "the CA of " : "";
    char date[DATE_BYTES];
    switch (code) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        print_date(at ? X509_get0_notAfter(at) : NULL, date);
        return bt_fail(err, BT_E_PROTOCOL, "%s%s expired at %s", of, who, date);
    case X509_V_ERR_CERT_NOT_YET_VALID:
        print_date(at ? X509_get0_notBefore(at) : NULL, date);
        return bt_fail(err, BT_E_PROTOCOL, "%s%s is not valid before %s", of, who, date);
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
        return bt_fail(err, BT_E_PROTOCOL, "%s is not signed by a CA of %.100s", who, ca);
    case X509_V_ERR_INVALID_PURPOSE:
        return bt_fail(err, BT_E_PROTOCOL, "%s%s may not be used for this side of a TLS connection",
                       of, who);
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
        return bt_fail(err, BT_E_PROTOCOL, "%s is not made out to the host that was asked for",
                       who);
    default:
        return bt_fail(err, BT_E_PROTOCOL, "%s%s is refused: %s", of, who,
                       X509_verify_cert_error_string(code));
    }
}

bt_status bt_tls_judge(X509_STORE_CTX *store, const char *who, const char *ca, uint32_t roles,
                       struct bt_error *err) {
    X509 *leaf = X509_STORE_CTX_get0_cert(store);
    char subject[WHO_BYTES];
    if (!who) {
        name_subject(leaf, subject);
        who = subject;
    }
    bool valid = X509_verify_cert(store) > 0;
    ERR_clear_error(); /* what was found out stands in `store` */
    if (!valid)
        return say_invalid(store, who, ca, err);
    uint32_t named = bt_tls_cert_roles(leaf);
    if (roles && !(named & roles)) {
        /* The peer is told "unsupported certificate", the alert of a certificate of another use. */
        X509_STORE_CTX_set_error(store, X509_V_ERR_INVALID_PURPOSE);
        return bt_fail(err, BT_E_PROTOCOL, "%s is for the role %s, must be for %s", who,
                       bt_tls_role_name(named), bt_tls_role_name(roles));
    }
    return BT_OK;
}

int bt_tls_on_verify(X509_STORE_CTX *store, void *ca) {
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct bt_tls_verdict *verdict = SSL_get_app_data(ssl);
    return bt_tls_judge(store, NULL, ca, verdict->roles, &verdict->err) == BT_OK;
}

/* ---- a peer that another library shook hands with ---- */

static X509 *read_one(const char *pem) {
    BIO *bio = pem ? BIO_new_mem_buf(pem, -1) : NULL;
    X509 *cert = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
    BIO_free(bio);
    ERR_clear_error();
    return cert;
}

static STACK_OF(X509) * read_all(const char *pem) {
    BIO *bio = pem ? BIO_new_mem_buf(pem, -1) : NULL;
    STACK_OF(X509) *all = sk_X509_new_null();
    X509 *cert;
    while (bio && all && (cert = PEM_read_bio_X509(bio, NULL, NULL, NULL)))
        if (!sk_X509_push(all, cert))
            X509_free(cert);
    BIO_free(bio);
    ERR_clear_error(); /* the end of the text is an error to OpenSSL */
    return all;
}

uint32_t bt_tls_pem_roles(const char *leaf) {
    X509 *cert = read_one(leaf);
    uint32_t roles = cert ? bt_tls_cert_roles(cert) : 0;
    X509_free(cert);
    return roles;
}

bt_status bt_tls_check_peer(struct bt_tls *tls, const char *leaf, const char *chain, bool is_client,
                            uint32_t roles, uint32_t *named, struct bt_error *err) {
    X509 *cert = read_one(leaf);
    if (!cert)
        return bt_fail(err, BT_E_PROTOCOL,
                       leaf ? "the peer's certificate cannot be read"
                            : "the peer showed no certificate");
    struct bt_tls_material *material = bt_tls_take_material(tls);
    STACK_OF(X509) *others = read_all(chain);
    X509_STORE_CTX *store = X509_STORE_CTX_new();
    bt_status status;
    if (store && others &&
        X509_STORE_CTX_init(store, SSL_CTX_get_cert_store(material->ctx), cert, others) &&
        X509_STORE_CTX_set_default(store, is_client ? "ssl_client" : "ssl_server"))
        status = bt_tls_judge(store, NULL, tls->config.ca, roles, err);
    else
        status = bt_fail(err, BT_E_NO_MEMORY, "no memory to check a certificate");
    if (status == BT_OK && named)
        *named = bt_tls_cert_roles(cert);
    X509_STORE_CTX_free(store);
    sk_X509_pop_free(others, X509_free);
    bt_tls_put_material(material);
    X509_free(cert);
    return status;
}

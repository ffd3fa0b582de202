/* Makes a certificate authority of one's own, and certificates that it signs. */
#include "common/base/cert_maker.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>

#define ALNUM "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

struct bt_ca {
    X509 *cert;
    EVP_PKEY *key;
};

/* Why OpenSSL said no, in its own words. */
static bt_status fail_openssl(struct bt_error *err, const char *doing) {
    const char *why = ERR_reason_error_string(ERR_peek_last_error());
    bt_fail(err, BT_E_NO_MEMORY, "%s failed: %s", doing, why ? why : "no reason given");
    ERR_clear_error();
    return err ? err->status : BT_E_NO_MEMORY;
}

/* ---- PEM ---- */

static char *take_text(BIO *bio) {
    char *bytes = NULL;
    long n = BIO_get_mem_data(bio, &bytes);
    char *text = n > 0 ? malloc((size_t)n + 1) : NULL;
    if (text) {
        memcpy(text, bytes, (size_t)n);
        text[n] = 0;
    }
    return text;
}

static bt_status write_pem(X509 *cert, EVP_PKEY *key, char **cert_pem, char **key_pem,
                           struct bt_error *err) {
    BIO *of_cert = BIO_new(BIO_s_mem()), *of_key = BIO_new(BIO_s_secmem());
    bool written = of_cert && of_key && PEM_write_bio_X509(of_cert, cert) &&
                   PEM_write_bio_PKCS8PrivateKey(of_key, key, NULL, NULL, 0, NULL, NULL);
    char *cert_text = written ? take_text(of_cert) : NULL;
    char *key_text = written ? take_text(of_key) : NULL;
    BIO_free(of_cert);
    BIO_free(of_key);
    if (!cert_text || !key_text) {
        free(cert_text);
        free(key_text);
        return fail_openssl(err, "writing a certificate");
    }
    *cert_pem = cert_text;
    *key_pem = key_text;
    return BT_OK;
}

/* ---- parts of a certificate ---- */

static bool add_extension(X509 *cert, X509 *issuer, int nid, const char *value) {
    X509V3_CTX ctx;
    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    bool added = extension && X509_add_ext(cert, extension, -1);
    X509_EXTENSION_free(extension);
    return added;
}

static GENERAL_NAME *make_name(const char *text) {
    GENERAL_NAME *name = GENERAL_NAME_new();
    ASN1_OCTET_STRING *ip = a2i_IPADDRESS(text);
    ERR_clear_error(); /* where it is no IP address */
    if (name && ip) {
        GENERAL_NAME_set0_value(name, GEN_IPADD, ip);
        return name;
    }
    ASN1_IA5STRING *dns = ASN1_IA5STRING_new();
    if (name && dns && ASN1_STRING_set(dns, text, -1)) {
        GENERAL_NAME_set0_value(name, GEN_DNS, dns);
        return name;
    }
    ASN1_OCTET_STRING_free(ip);
    ASN1_IA5STRING_free(dns);
    GENERAL_NAME_free(name);
    return NULL;
}

static bt_status check_name(const char *text, struct bt_error *err) {
    ASN1_OCTET_STRING *ip = a2i_IPADDRESS(text);
    bool good = ip || (text[0] && strlen(text) < 254 && strspn(text, ALNUM ".-_*") == strlen(text));
    ASN1_OCTET_STRING_free(ip);
    ERR_clear_error();
    if (!good)
        return bt_fail(err, BT_E_INVALID,
                       "\"%.100s\" is no IP address and no host name of letters, digits, '.', '-', "
                       "'_', '*'",
                       text);
    return BT_OK;
}

static bt_status add_names(X509 *cert, const struct bt_cert_wish *wish, struct bt_error *err) {
    GENERAL_NAMES *names = sk_GENERAL_NAME_new_null();
    bt_status status = names ? BT_OK : fail_openssl(err, "naming a certificate");
    for (int i = 0; status == BT_OK && i < BT_CERT_NAMES_MAX && wish->names[i]; i++) {
        status = check_name(wish->names[i], err);
        GENERAL_NAME *name = status == BT_OK ? make_name(wish->names[i]) : NULL;
        if (status == BT_OK && (!name || !sk_GENERAL_NAME_push(names, name))) {
            GENERAL_NAME_free(name);
            status = fail_openssl(err, "naming a certificate");
        }
    }
    if (status == BT_OK && sk_GENERAL_NAME_num(names) > 0 &&
        X509_add1_ext_i2d(cert, NID_subject_alt_name, names, 0, 0) != 1)
        status = fail_openssl(err, "naming a certificate");
    sk_GENERAL_NAME_pop_free(names, GENERAL_NAME_free);
    return status;
}

static bool set_body(X509 *cert, const struct bt_cert_wish *wish, EVP_PKEY *key) {
    uint64_t serial = 0;
    X509_NAME *subject = X509_get_subject_name(cert);
    return RAND_bytes((unsigned char *)&serial, sizeof serial) == 1 &&
           ASN1_INTEGER_set_uint64(X509_get_serialNumber(cert), serial >> 1 | 1) &&
           X509_set_version(cert, X509_VERSION_3) &&
           X509_NAME_add_entry_by_NID(subject, NID_commonName, MBSTRING_UTF8,
                                      (const unsigned char *)wish->subject, -1, -1, 0) &&
           ASN1_TIME_set(X509_getm_notBefore(cert), (time_t)wish->valid_from_s) &&
           ASN1_TIME_set(X509_getm_notAfter(cert), (time_t)wish->valid_to_s) &&
           X509_set_pubkey(cert, key);
}

/* ---- authorities ---- */

static bool finish_ca(struct bt_ca *ca, const struct bt_cert_wish *wish) {
    return set_body(ca->cert, wish, ca->key) &&
           X509_set_issuer_name(ca->cert, X509_get_subject_name(ca->cert)) &&
           add_extension(ca->cert, ca->cert, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
           add_extension(ca->cert, ca->cert, NID_key_usage, "critical,keyCertSign,cRLSign") &&
           add_extension(ca->cert, ca->cert, NID_subject_key_identifier, "hash") &&
           X509_sign(ca->cert, ca->key, EVP_sha256());
}

bt_status bt_ca_create(const struct bt_cert_wish *wish, struct bt_ca **out, struct bt_error *err) {
    struct bt_ca *ca = calloc(1, sizeof *ca);
    if (!ca)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a certificate authority");
    ca->cert = X509_new();
    ca->key = EVP_EC_gen("P-256");
    if (!ca->cert || !ca->key || !finish_ca(ca, wish)) {
        bt_ca_destroy(ca);
        return fail_openssl(err, "making a certificate authority");
    }
    *out = ca;
    return BT_OK;
}

bt_status bt_ca_read(const char *cert, const char *key, struct bt_ca **out, struct bt_error *err) {
    struct bt_ca *ca = calloc(1, sizeof *ca);
    BIO *of_cert = BIO_new_mem_buf(cert, -1), *of_key = BIO_new_mem_buf(key, -1);
    if (ca && of_cert && of_key) {
        ca->cert = PEM_read_bio_X509(of_cert, NULL, NULL, NULL);
        ca->key = PEM_read_bio_PrivateKey(of_key, NULL, NULL, (void *)"");
    }
    BIO_free(of_cert);
    BIO_free(of_key);
    bool good = ca && ca->cert && ca->key && X509_check_private_key(ca->cert, ca->key) &&
                X509_check_ca(ca->cert);
    ERR_clear_error();
    if (!good) {
        bt_ca_destroy(ca);
        return bt_fail(err, BT_E_INVALID,
                       "this is no certificate authority with its key: a CA's certificate and its "
                       "own key in PEM are needed");
    }
    *out = ca;
    return BT_OK;
}

void bt_ca_destroy(struct bt_ca *ca) {
    if (!ca)
        return;
    X509_free(ca->cert);
    EVP_PKEY_free(ca->key);
    free(ca);
}

bt_status bt_ca_pem(const struct bt_ca *ca, char **cert, char **key, struct bt_error *err) {
    return write_pem(ca->cert, ca->key, cert, key, err);
}

static bool finish_cert(const struct bt_ca *ca, const struct bt_cert_wish *wish, X509 *cert) {
    return X509_set_issuer_name(cert, X509_get_subject_name(ca->cert)) &&
           add_extension(cert, ca->cert, NID_basic_constraints, "critical,CA:FALSE") &&
           add_extension(cert, ca->cert, NID_key_usage, "critical,digitalSignature") &&
           add_extension(cert, ca->cert, NID_ext_key_usage,
                         wish->server_only ? "serverAuth" : "serverAuth,clientAuth") &&
           add_extension(cert, ca->cert, NID_subject_key_identifier, "hash") &&
           add_extension(cert, ca->cert, NID_authority_key_identifier, "keyid") &&
           X509_sign(cert, ca->key, EVP_sha256());
}

bt_status bt_ca_issue(const struct bt_ca *ca, const struct bt_cert_wish *wish, char **cert_pem,
                      char **key_pem, struct bt_error *err) {
    X509 *cert = X509_new();
    EVP_PKEY *key = EVP_EC_gen("P-256");
    bt_status status = cert && key && set_body(cert, wish, key)
                           ? add_names(cert, wish, err)
                           : fail_openssl(err, "making a certificate");
    if (status == BT_OK && !finish_cert(ca, wish, cert))
        status = fail_openssl(err, "signing a certificate");
    if (status == BT_OK)
        status = write_pem(cert, key, cert_pem, key_pem, err);
    X509_free(cert);
    EVP_PKEY_free(key);
    return status;
}

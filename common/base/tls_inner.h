/* Inside common/base/tls*.c: what was read from the files, and the judgement of a certificate. */
#pragma once
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <pthread.h>
#include <stdatomic.h>

#include "common/base/tls.h"

/* One reading of the files; never changed, kept alive by whoever uses it. */
struct bt_tls_material {
    _Atomic uint32_t n_refs;
    SSL_CTX *ctx;
    char *cert_pem, *key_pem;
    char *ca, *alpn; /* of the configuration, for callbacks of ctx */
};

struct bt_tls {
    _Atomic uint32_t n_owners;
    struct bt_tls_config config; /* strings are owned */
    pthread_mutex_t lock;        /* guards material */
    struct bt_tls_material *material;
};

/* ---- tls.c ---- */

struct bt_tls_material *bt_tls_take_material(struct bt_tls *tls);
void bt_tls_put_material(struct bt_tls_material *material);

/* ---- tls_judge.c ---- */

/* Verifies what is in `store` and then the role. who names the certificate in the sentence; NULL:
 * by its subject. ca: where the CAs were read from. */
bt_status bt_tls_judge(X509_STORE_CTX *store, const char *who, const char *ca, uint32_t roles,
                       struct bt_error *err);
uint32_t bt_tls_cert_roles(X509 *cert);
/* In a server's or client's context: peers are judged by bt_tls_judge, the verdict is kept with the
 * stream. */
int bt_tls_on_verify(X509_STORE_CTX *store, void *ca);
/* What a stream remembers for bt_tls_on_verify; stands in the SSL object's application data. */
struct bt_tls_verdict {
    uint32_t roles;
    struct bt_error err; /* status BT_OK until it was refused */
};

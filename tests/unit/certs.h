/* For tests: a directory with a CA and certificates, made when it is needed and removed after. */
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/assert.h"
#include "common/base/cert_maker.h"
#include "common/base/tls.h"

enum { CERTS_PATH_BYTES = 256 };

struct certs {
    char dir[64];
    struct bt_ca *ca;
    char ca_path[CERTS_PATH_BYTES];
};

static inline void certs_write(const struct certs *certs, const char *name, const char *text) {
    char path[CERTS_PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", certs->dir, name);
    FILE *file = fopen(path, "w");
    BT_ASSERT(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static inline void certs_open(struct certs *certs) {
    struct bt_error err;
    char *cert, *key;
    int64_t now_s = time(NULL);
    struct bt_cert_wish wish = {
        .subject = "test CA", .valid_from_s = now_s - 60, .valid_to_s = now_s + 3600};
    snprintf(certs->dir, sizeof certs->dir, "/tmp/baton-certs-XXXXXX");
    BT_ASSERT(mkdtemp(certs->dir));
    BT_ASSERT(bt_ca_create(&wish, &certs->ca, &err) == BT_OK);
    BT_ASSERT(bt_ca_pem(certs->ca, &cert, &key, &err) == BT_OK);
    certs_write(certs, "ca.pem", cert);
    snprintf(certs->ca_path, sizeof certs->ca_path, "%s/ca.pem", certs->dir);
    free(cert);
    free(key);
}

/* NAME.pem and NAME-key.pem for one DNS name or address, valid between now + from_s and now + to_s.
 */
static inline void certs_issue(const struct certs *certs, const char *name, const char *dns,
                               int64_t from_s, int64_t to_s) {
    struct bt_error err;
    char *cert, *key, file[96];
    int64_t now_s = time(NULL);
    struct bt_cert_wish wish = {.subject = name,
                                .names = {dns},
                                .valid_from_s = now_s + from_s,
                                .valid_to_s = now_s + to_s};
    BT_ASSERT(bt_ca_issue(certs->ca, &wish, &cert, &key, &err) == BT_OK);
    snprintf(file, sizeof file, "%s.pem", name);
    certs_write(certs, file, cert);
    snprintf(file, sizeof file, "%s-key.pem", name);
    certs_write(certs, file, key);
    free(cert);
    free(key);
}

/* Certificates of the three roles. */
static inline void certs_issue_roles(const struct certs *certs) {
    certs_issue(certs, "router", "router.baton", -60, 3600);
    certs_issue(certs, "prefill", "prefill.baton", -60, 3600);
    certs_issue(certs, "decode", "decode.baton", -60, 3600);
}

/* The context of NAME.pem. ca NULL: this directory's; "": none. */
static inline bt_status certs_try_tls(const struct certs *certs, const char *name, const char *ca,
                                      uint32_t role, struct bt_tls **out, struct bt_error *err) {
    char cert[CERTS_PATH_BYTES], key[CERTS_PATH_BYTES];
    snprintf(cert, sizeof cert, "%s/%s.pem", certs->dir, name);
    snprintf(key, sizeof key, "%s/%s-key.pem", certs->dir, name);
    struct bt_tls_config config = {.cert = cert,
                                   .key = key,
                                   .ca = !ca   ? certs->ca_path
                                         : *ca ? ca
                                               : NULL,
                                   .role = role,
                                   .alpn = "http/1.1"};
    return bt_tls_create(&config, out, err);
}

static inline struct bt_tls *certs_tls(const struct certs *certs, const char *name, const char *ca,
                                       uint32_t role) {
    struct bt_tls *tls;
    struct bt_error err;
    if (certs_try_tls(certs, name, ca, role, &tls, &err) != BT_OK) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    return tls;
}

static inline void certs_close(struct certs *certs) {
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", certs->dir);
    BT_ASSERT(!strncmp(certs->dir, "/tmp/baton-certs-", 17) && system(command) == 0);
    bt_ca_destroy(certs->ca);
}

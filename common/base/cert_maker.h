/* Makes a certificate authority of one's own, and certificates that it signs: for `baton certs` and
 * for tests.
 *
 * Keys are P-256, signatures ECDSA with SHA-256, serial numbers random. Texts are PEM, end in NUL
 * and are the caller's to free. Any thread, one at a time for one authority. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"

enum { BT_CERT_NAMES_MAX = 24 };

struct bt_cert_wish {
    const char *subject;                  /* the common name, 1 to 64 bytes */
    const char *names[BT_CERT_NAMES_MAX]; /* DNS names and IP addresses; ended by NULL if fewer */
    bool server_only;                     /* else for both sides of a connection */
    int64_t valid_from_s, valid_to_s;     /* UNIX time */
};

struct bt_ca;

/* names and server_only of the wish are not looked at. BT_E_INVALID, BT_E_NO_MEMORY. */
bt_status bt_ca_create(const struct bt_cert_wish *wish, struct bt_ca **out, struct bt_error *err);
/* From what bt_ca_pem gave. BT_E_INVALID: not PEM, or the key is another's. */
bt_status bt_ca_read(const char *cert, const char *key, struct bt_ca **out, struct bt_error *err);
void bt_ca_destroy(struct bt_ca *ca);
bt_status bt_ca_pem(const struct bt_ca *ca, char **cert, char **key, struct bt_error *err);
/* A new key and its certificate. BT_E_INVALID: a name that is neither an IP address nor made of
 * letters, digits, '.', '-', '_', '*'. */
bt_status bt_ca_issue(const struct bt_ca *ca, const struct bt_cert_wish *wish, char **cert,
                      char **key, struct bt_error *err);

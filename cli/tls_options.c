/* The options that name certificate, key and CAs: the same for routers and workers. */
#include "cli/roles.h"

void bt_tls_option_rows(const char **cert, const char **key, const char **ca,
                        struct bt_option out[BT_TLS_OPTIONS]) {
    const struct bt_option rows[BT_TLS_OPTIONS] = {
        {"tls-cert", BT_OPTION_STRING, cert, .argument = "FILE",
         .help = "Encrypt between routers and workers; this process's certificate (PEM), which "
                 "names its role (`baton certs --help`). SIGHUP reads all three files again."},
        {"tls-key", BT_OPTION_STRING, key, .argument = "FILE",
         .help = "The key of --tls-cert (PEM)."},
        {"tls-ca", BT_OPTION_STRING, ca, .argument = "FILE",
         .help = "The CAs whose certificates routers and workers show each other (PEM)."},
    };
    for (int i = 0; i < BT_TLS_OPTIONS; i++)
        out[i] = rows[i];
}

bt_status bt_tls_options_check(const char *cert, const char *key, const char *ca,
                               struct bt_error *err) {
    if (!cert != !key || !cert != !ca)
        return bt_fail(err, BT_E_INVALID,
                       "tls-cert, tls-key and tls-ca must be given together: %s is missing",
                       !cert  ? "tls-cert"
                       : !key ? "tls-key"
                              : "tls-ca");
    return BT_OK;
}

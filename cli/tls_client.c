/* Makes TLS streams that check the server's certificate. */
#include "cli/tls_client.h"

#include <stdlib.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>

struct bt_tls_client {
    SSL_CTX *ctx;
    bool any_host;
};

bt_status bt_tls_client_open(const char *ca_file, bool any_host, struct bt_tls_client **out,
                             struct bt_error *err) {
    struct bt_tls_client *client = calloc(1, sizeof *client);
    if (client)
        client->ctx = SSL_CTX_new(TLS_client_method());
    if (!client || !client->ctx) {
        bt_tls_client_close(client);
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for TLS");
    }
    client->any_host = any_host;
    SSL_CTX_set_verify(client->ctx, SSL_VERIFY_PEER, NULL);
    /* A certificate in the file is trusted itself, whoever signed it. */
    X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(client->ctx), X509_V_FLAG_PARTIAL_CHAIN);
    if (ca_file ? SSL_CTX_load_verify_locations(client->ctx, ca_file, NULL) == 1
                : SSL_CTX_set_default_verify_paths(client->ctx) == 1) {
        *out = client;
        return BT_OK;
    }
    const char *why = ERR_reason_error_string(ERR_peek_last_error());
    bt_fail(err, BT_E_INVALID, "ca-file \"%.150s\": %s", ca_file ? ca_file : "",
            why ? why : "it cannot be read");
    bt_tls_client_close(client);
    return BT_E_INVALID;
}

void bt_tls_client_close(struct bt_tls_client *client) {
    if (!client)
        return;
    SSL_CTX_free(client->ctx);
    free(client);
}

struct bufferevent *bt_tls_client_stream(struct bt_tls_client *client, struct event_base *base,
                                         const char *host) {
    SSL *ssl = SSL_new(client->ctx);
    if (!ssl)
        return NULL;
    /* A certificate names addresses apart from names, and only names are said in the hello. */
    X509_VERIFY_PARAM *param = SSL_get0_param(ssl);
    bool good = client->any_host || X509_VERIFY_PARAM_set1_ip_asc(param, host) == 1 ||
                (SSL_set1_host(ssl, host) == 1 && SSL_set_tlsext_host_name(ssl, host) == 1);
    struct bufferevent *bev =
        good ? bufferevent_openssl_socket_new(base, -1, ssl, BUFFEREVENT_SSL_CONNECTING,
                                              BEV_OPT_CLOSE_ON_FREE)
             : NULL;
    if (!bev)
        SSL_free(ssl);
    else
        bufferevent_openssl_set_allow_dirty_shutdown(bev, 1);
    return bev;
}

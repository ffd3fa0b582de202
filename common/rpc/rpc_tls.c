/* gRPC's credentials from a struct bt_tls, and gRPC's words about TLS in sentences of ours. */
#include "common/rpc/rpc_tls.h"

#include <errno.h>
#include <fcntl.h>
#include <grpc/grpc_security_constants.h>
#include <grpc/support/alloc.h>
#include <grpc/support/string_util.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/rpc/rpc_call.h"
#include "common/rpc/rpc_seam.h"

enum { LOOK_S = 1 }; /* how often gRPC looks whether a server's files have changed, its least */

/* What gRPC puts between its own words and those of a verifier. */
static const char verdict_mark[] = "baton: ";

void bt_rpc_tls_only_1_3(void) {
    /* The only list that gRPC lets us choose is that of TLS 1.2. A cipher with a pre-shared key,
     * which nobody has, leaves nothing that could be agreed on there; 1.3 has a list of its own. */
    setenv("GRPC_SSL_CIPHER_SUITES", "PSK-AES128-GCM-SHA256", 1);
}

/* ---- judging peers ---- */

struct verifier {
    grpc_tls_certificate_verifier_external external; /* first */
    struct bt_tls *tls;                              /* shared */
    uint32_t roles;
    bool peer_is_client;
};

/* A thread of gRPC's. */
static int on_verify(void *self, grpc_tls_custom_verification_check_request *request,
                     grpc_tls_on_custom_verification_check_done_cb callback, void *callback_arg,
                     grpc_status_code *status, char **detail) {
    const struct verifier *verifier = self;
    struct bt_error err;
    BT_RPC_TAKE(self);
    (void)callback, (void)callback_arg;
    *status = GRPC_STATUS_OK;
    bt_status verdict = bt_tls_check_peer(verifier->tls, request->peer_info.peer_cert,
                                          request->peer_info.peer_cert_full_chain,
                                          verifier->peer_is_client, verifier->roles, NULL, &err);
    BT_RPC_GIVE(self);
    if (verdict == BT_OK)
        return 1;
    char text[sizeof err.text + sizeof verdict_mark];
    snprintf(text, sizeof text, "%s%s", verdict_mark, err.text);
    *status = GRPC_STATUS_UNAUTHENTICATED;
    *detail = gpr_strdup(text);
    if (verifier->peer_is_client) /* a client says it with its dial */
        bt_rpc_log(BT_LOG_WARN, "a connection to the registry was refused: %s", err.text);
    return 1;
}

/* The check was made at once, so none is under way. */
static void on_cancel(void *self, grpc_tls_custom_verification_check_request *request) {
    (void)self, (void)request;
}

static void on_destroy(void *self) {
    struct verifier *verifier = self;
    BT_RPC_TAKE(self); /* gRPC orders it after its last use */
    bt_tls_destroy(verifier->tls);
    free(verifier);
}

/* Gives the options a verifier, which they own from then on. */
static bool set_verifier(grpc_tls_credentials_options *options, struct bt_tls *tls, uint32_t roles,
                         bool peer_is_client) {
    struct verifier *verifier = calloc(1, sizeof *verifier);
    if (!verifier)
        return false;
    *verifier = (struct verifier){
        .external = {verifier, on_verify, on_cancel, on_destroy},
        .tls = bt_tls_share(tls),
        .roles = roles,
        .peer_is_client = peer_is_client,
    };
    BT_RPC_GIVE(verifier);
    grpc_tls_certificate_verifier *shell =
        grpc_tls_certificate_verifier_external_create(&verifier->external);
    grpc_tls_credentials_options_set_certificate_verifier(options, shell);
    grpc_tls_certificate_verifier_release(shell);
    return true;
}

static void set_provider(grpc_tls_credentials_options *options,
                         grpc_tls_certificate_provider *provider) {
    grpc_tls_credentials_options_set_certificate_provider(options, provider);
    grpc_tls_certificate_provider_release(provider);
    grpc_tls_credentials_options_watch_identity_key_cert_pairs(options);
}

/* ---- servers ---- */

static bool write_all(int fd, const char *text) {
    size_t n = strlen(text);
    while (n > 0) {
        ssize_t written = write(fd, text, n);
        if (written < 0 && errno != EINTR)
            return false;
        text += written > 0 ? written : 0;
        n -= written > 0 ? (size_t)written : 0;
    }
    return true;
}

/* gRPC reads a server's files by itself, whenever it likes; what it reads is a copy in memory that
 * was checked before, and that changes all at once. */
static int open_copy(struct bt_tls *tls, struct bt_error *err) {
    char *cert = NULL, *key = NULL;
    if (bt_tls_copy_pem(tls, &cert, &key, err) < 0)
        return -1;
    int fd = memfd_create("baton-tls", MFD_CLOEXEC);
    bool written = fd >= 0 && write_all(fd, key) && write_all(fd, cert);
    if (!written)
        bt_fail(err, BT_E_IO, "certificates cannot be kept in memory: %s", strerror(errno));
    explicit_bzero(key, strlen(key));
    free(key);
    free(cert);
    if (written)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

bt_status bt_rpc_tls_server_init(struct bt_rpc_tls_server *server, struct bt_tls *tls,
                                 uint32_t roles, grpc_server_credentials **out,
                                 struct bt_error *err) {
    server->tls = bt_tls_share(tls);
    server->fd = open_copy(tls, err);
    if (server->fd < 0)
        return err->status;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", server->fd);
    grpc_tls_credentials_options *options = grpc_tls_credentials_options_create();
    set_provider(options,
                 grpc_tls_certificate_provider_file_watcher_create(path, path, NULL, LOOK_S));
    /* OpenSSL only asks for a certificate: that there is one, and all else, is judged by us. */
    grpc_tls_credentials_options_set_cert_request_type(
        options, roles ? GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_BUT_DONT_VERIFY
                       : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
    bool judged = !roles || set_verifier(options, tls, roles, true);
    *out = grpc_tls_server_credentials_create(options); /* takes the options */
    if (judged && *out)
        return BT_OK;
    if (*out)
        grpc_server_credentials_release(*out);
    *out = NULL;
    return bt_fail(err, BT_E_NO_MEMORY, "gRPC takes no TLS credentials");
}

bt_status bt_rpc_tls_server_reload(struct bt_rpc_tls_server *server, struct bt_error *err) {
    int fd = open_copy(server->tls, err);
    if (fd < 0)
        return err->status;
    bool replaced = dup3(fd, server->fd, O_CLOEXEC) >= 0;
    int error = errno;
    close(fd);
    return replaced ? BT_OK
                    : bt_fail(err, BT_E_IO, "the certificates in memory cannot be replaced: %s",
                              strerror(error));
}

void bt_rpc_tls_server_fini(struct bt_rpc_tls_server *server) {
    if (!server->tls)
        return;
    if (server->fd >= 0)
        close(server->fd);
    bt_tls_destroy(server->tls);
    *server = (struct bt_rpc_tls_server){.fd = -1};
}

uint32_t bt_rpc_tls_caller_roles(grpc_call *call) {
    grpc_auth_context *context = grpc_call_auth_context(call);
    if (!context)
        return 0;
    grpc_auth_property_iterator at =
        grpc_auth_context_find_properties_by_name(context, GRPC_X509_PEM_CERT_PROPERTY_NAME);
    const grpc_auth_property *pem = grpc_auth_property_iterator_next(&at);
    char *text = pem ? strndup(pem->value, pem->value_length) : NULL;
    uint32_t roles = text ? bt_tls_pem_roles(text) : 0;
    free(text);
    grpc_auth_context_release(context);
    return roles;
}

/* ---- clients ---- */

bt_status bt_rpc_tls_client(struct bt_tls *tls, uint32_t roles, grpc_channel_credentials **out,
                            struct bt_error *err) {
    char *cert, *key;
    BT_TRY(bt_tls_copy_pem(tls, &cert, &key, err));
    grpc_tls_identity_pairs *pairs = grpc_tls_identity_pairs_create();
    grpc_tls_identity_pairs_add_pair(pairs, key, cert);
    explicit_bzero(key, strlen(key));
    free(key);
    free(cert);
    grpc_tls_credentials_options *options = grpc_tls_credentials_options_create();
    set_provider(options, grpc_tls_certificate_provider_static_data_create(NULL, pairs));
    grpc_tls_credentials_options_set_verify_server_cert(options, 0);
    grpc_tls_credentials_options_set_check_call_host(options, 0);
    bool judged = set_verifier(options, tls, roles, false);
    *out = grpc_tls_credentials_create(options); /* takes the options */
    if (judged && *out)
        return BT_OK;
    if (*out)
        grpc_channel_credentials_release(*out);
    *out = NULL;
    return bt_fail(err, BT_E_NO_MEMORY, "gRPC takes no TLS credentials");
}

/* ---- sentences ---- */

const char *bt_rpc_tls_sentence(const char *said, char *buffer, size_t buffer_bytes) {
    const char *verdict = strstr(said, verdict_mark);
    if (verdict) {
        snprintf(buffer, buffer_bytes, "%s", verdict + sizeof verdict_mark - 1);
        return buffer;
    }
    /* OpenSSL's "error:0A00010B:SSL routines::...", among errors of gRPC's. */
    for (const char *at = said; (at = strstr(at, "error:"));) {
        at += strlen("error:");
        if (strspn(at, "0123456789ABCDEF") == 8)
            return bt_tls_reason_sentence(strtoul(at, NULL, 16));
    }
    return NULL;
}

const char *bt_rpc_tls_dial_sentence(bool has_tls, const char *said, char *buffer,
                                     size_t buffer_bytes) {
    /* How gRPC says that the other side ended the connection without a word. */
    static const char *const closed[] = {"Socket closed", "Connection reset", "Broken pipe",
                                         "Handshake read failed"};
    const char *sentence = bt_rpc_tls_sentence(said, buffer, buffer_bytes);
    if (sentence)
        return sentence;
    for (size_t i = 0; i < sizeof closed / sizeof closed[0]; i++)
        if (strstr(said, closed[i]))
            return has_tls ? "the router closed the connection; where it refuses this worker's "
                             "certificate, its log says why"
                           : "the router closed the connection; it may want TLS (--tls-cert, "
                             "--tls-key, --tls-ca)";
    return NULL;
}

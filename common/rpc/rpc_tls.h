/* gRPC's credentials from a struct bt_tls, and gRPC's words about TLS in sentences of ours.
 *
 * gRPC makes the handshake; certificates are judged by bt_tls_check_peer, before a byte of HTTP/2
 * is read. gRPC 1.51 has no option for the least version: bt_rpc_tls_only_1_3 sees to it. */
#pragma once
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/base/tls.h"

/* Before grpc_init: no connection of this process, as server or client, is made by TLS 1.2. */
void bt_rpc_tls_only_1_3(void);

/* A server's credentials, which new connections take from a descriptor that can be replaced. */
struct bt_rpc_tls_server {
    struct bt_tls *tls; /* shared */
    int fd;             /* key and certificates in memory; -1: none */
};

/* roles: a client's certificate must name one of them; 0: clients show none. Any thread; server is
 * zeroed, and must stay until gRPC has ended the server. */
bt_status bt_rpc_tls_server_init(struct bt_rpc_tls_server *server, struct bt_tls *tls,
                                 uint32_t roles, grpc_server_credentials **out,
                                 struct bt_error *err);
/* After bt_tls_reload: connections use the new files within a second or two. */
bt_status bt_rpc_tls_server_reload(struct bt_rpc_tls_server *server, struct bt_error *err);
/* Accepts a zeroed one. */
void bt_rpc_tls_server_fini(struct bt_rpc_tls_server *server);

/* For one channel: what the files said last. The server's certificate must name one of roles. */
bt_status bt_rpc_tls_client(struct bt_tls *tls, uint32_t roles, grpc_channel_credentials **out,
                            struct bt_error *err);

/* The roles that the caller's certificate names; 0 where it showed none. */
uint32_t bt_rpc_tls_caller_roles(grpc_call *call);

/* A sentence for what gRPC says about a handshake that failed, or NULL where it is about something
 * else. Borrowed from `buffer` or constant. */
const char *bt_rpc_tls_sentence(const char *said, char *buffer, size_t buffer_bytes);
/* The same for a dial that was not answered. */
const char *bt_rpc_tls_dial_sentence(bool has_tls, const char *said, char *buffer,
                                     size_t buffer_bytes);

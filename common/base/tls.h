/* TLS 1.3: certificates that can be read again while in use, and non-blocking streams over sockets.
 *
 * Two uses. Inside (registry, KV link) both sides show a certificate that a CA of --tls-ca signed,
 * and the role stands in it as a DNS name: "router.baton", "prefill.baton", "decode.baton"; host
 * names play no part there. At a public door (HTTPS) the server alone shows a certificate, and the
 * client checks the host's name.
 *
 * bt_tls_reload reads the files again: streams made later use what they say then, older ones go on;
 * files that are refused change nothing. A bt_tls may be used by any thread, a stream by one.
 *
 * OpenSSL writes as write(2) does: a process that has streams ignores SIGPIPE. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

/* Roles that a certificate names; several can be combined to a set. */
enum { BT_TLS_ROUTER = 1, BT_TLS_PREFILL = 2, BT_TLS_DECODE = 4 };

struct bt_tls_config {
    const char *cert; /* PEM file: the certificate, then those between it and its CA. NULL with
                         key: none is shown (a client of a public door) */
    const char *key;  /* PEM file, no passphrase */
    const char *ca;   /* PEM file of the CAs whose certificates peers must show; NULL: a server at
                         a public door, whose clients show none */
    uint32_t role;    /* which our certificate must name; 0: not looked at (a public door) */
    bool takes_1_2;   /* a server at a public door: TLS 1.2 too, for older clients */
    const char *alpn; /* server: chosen where the client offers it, such as "http/1.1"; or NULL */
};

struct bt_tls;

/* Reads and checks the files. The strings are copied. Refuses, in one sentence that names the file:
 * one that cannot be read or is not PEM, a key with a passphrase, a key of another certificate, a
 * certificate that has expired, is not yet valid, is not signed by a CA of `ca` (where that is
 * given), or does not name `role`. BT_E_INVALID, BT_E_IO, BT_E_NO_MEMORY. */
bt_status bt_tls_create(const struct bt_tls_config *config, struct bt_tls **out,
                        struct bt_error *err);
/* Reads the same files again. On failure everything stays as it was. */
bt_status bt_tls_reload(struct bt_tls *tls, struct bt_error *err);
/* One more owner: each calls bt_tls_destroy. Answers tls. */
struct bt_tls *bt_tls_share(struct bt_tls *tls);
/* Streams that are still open keep what they need. NULL is accepted. */
void bt_tls_destroy(struct bt_tls *tls);

/* "router", "prefill", "decode", "prefill or decode"; "none" for the empty set. */
const char *bt_tls_role_name(uint32_t roles);
/* The DNS name that stands for one role in a certificate: "router.baton". */
const char *bt_tls_role_dns(uint32_t role);

/* ---- for a library that makes its own handshakes (gRPC) ---- */

/* Key, then certificates, as one PEM text that ends in NUL; the caller frees both. */
bt_status bt_tls_copy_pem(struct bt_tls *tls, char **cert, char **key, struct bt_error *err);
/* Checks a peer's certificate as a stream does: signed by a CA of ours, valid now, for one of
 * roles. leaf: PEM, NULL where the peer showed none; chain: further certificates in PEM, or NULL.
 * is_client says which side the peer is. *named gets the roles that the certificate names (may be
 * NULL). BT_E_PROTOCOL with a sentence where it is refused. */
bt_status bt_tls_check_peer(struct bt_tls *tls, const char *leaf, const char *chain, bool is_client,
                            uint32_t roles, uint32_t *named, struct bt_error *err);
/* The roles that a certificate (PEM) names; 0 where it is none. */
uint32_t bt_tls_pem_roles(const char *leaf);
/* What a code of OpenSSL's error queue means for a handshake; NULL: nothing that has a sentence. */
const char *bt_tls_reason_sentence(unsigned long openssl_error);

/* ---- streams ---- */

/* TLS over one non-blocking socket; err may be NULL in each call. BT_AGAIN: wait until it is
 * writable where bt_tls_wants_write says so, else until it is readable, and call again. */
struct bt_tls_stream;

/* What a stream holds at most, for bounds: measured 15 KiB, 46 in the handshake. */
enum { BT_TLS_STREAM_BYTES = 49152 };

/* The fd stays the caller's, must be non-blocking, and is closed after bt_tls_stream_destroy.
 * roles: the peer's certificate must name one of them; 0: any that our CAs signed (or none at a
 * public door). NULL: no memory. */
struct bt_tls_stream *bt_tls_accept(struct bt_tls *tls, int fd, uint32_t roles);
/* host: a name or address that the certificate must be made out to, and is told to the server; NULL
 * where roles say who the peer is. */
struct bt_tls_stream *bt_tls_connect(struct bt_tls *tls, int fd, uint32_t roles, const char *host);
/* NULL is accepted. Tells the peer nothing: see bt_tls_close. */
void bt_tls_stream_destroy(struct bt_tls_stream *stream);

/* BT_OK: done, and done again at once when called again. BT_AGAIN. BT_E_PROTOCOL (the peer does
 * not speak TLS, or its certificate is refused, or it refuses ours), BT_E_PEER_GONE: a sentence
 * says why. A client is done before the server has judged its certificate: that refusal comes from
 * the first bt_tls_read. Reading and writing do what is left of the handshake. */
bt_status bt_tls_handshake(struct bt_tls_stream *stream, struct bt_error *err);
/* Up to n_bytes into `to`; *n_read is set with BT_OK and is at least 1. BT_DONE: the peer has
 * closed in order. BT_AGAIN and failures as above; a connection that ends without TLS's end is
 * BT_E_PEER_GONE. */
bt_status bt_tls_read(struct bt_tls_stream *stream, void *to, size_t n_bytes, size_t *n_read,
                      struct bt_error *err);
/* Up to n_bytes (> 0) of `from`; *n_written is set with BT_OK. After BT_AGAIN the next write must
 * begin with the same bytes and be no shorter: they are encrypted already. */
bt_status bt_tls_write(struct bt_tls_stream *stream, const void *from, size_t n_bytes,
                       size_t *n_written, struct bt_error *err);
/* Before the handshake: for a stream of large transfers. Records are collected (128 KiB) and go out
 * with bt_tls_flush or when there is no more room; reads take as much from the socket at once.
 * False: no memory. */
bool bt_tls_collect(struct bt_tls_stream *stream);
/* Sends what was collected. BT_AGAIN: the socket takes no more now, call it again. */
bt_status bt_tls_flush(struct bt_tls_stream *stream, struct bt_error *err);
/* What the last BT_AGAIN waits for. */
bool bt_tls_wants_write(const struct bt_tls_stream *stream);
/* Bytes have come out of the socket that no read has taken: the socket need not become readable
 * again for them, so a reader that stops before BT_AGAIN must come back by itself. */
bool bt_tls_has_pending(const struct bt_tls_stream *stream);
/* Says TLS's end to the peer once (if the socket takes it); reading goes on. Call it before
 * shutdown(fd, SHUT_WR) or close(fd). */
void bt_tls_close(struct bt_tls_stream *stream);

/* The OpenSSL object inside, borrowed: what was agreed on can be asked of it. */
struct ssl_st *bt_tls_stream_ssl(struct bt_tls_stream *stream);

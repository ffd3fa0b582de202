/* One connection of the gRPC port: passes its bytes to a socket that gRPC has, and watches them.
 *
 * gRPC can be given a connected socket only without encryption, and must be kept from what
 * strangers may send (grpc_guard.h). So TLS ends here, with the same certificates and the same
 * reload as HTTPS, and plain bytes go through a socket pair. Each direction has one buffer; a side
 * that does not take its bytes stops the other. A client whose frames cost too much is read more
 * slowly, and so only slows itself down. Loop thread. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "common/base/tls.h"
#include "router/grpc_guard.h"

struct bt_grpc_relay;
struct event_base;

enum bt_grpc_relay_event {
    BT_GRPC_RELAY_SPEAKS, /* the handshake is over and the client's HTTP/2 preface is there */
    BT_GRPC_RELAY_ENDED,  /* to be destroyed */
};

struct bt_grpc_relay_config {
    struct event_base *base;
    struct bt_tls *tls;                 /* NULL: plain */
    struct bt_grpc_bucket *shared;      /* of all connections */
    const size_t *n_open;               /* how many share it */
    struct bt_grpc_allowance allowance; /* its own burst and rate */
    uint64_t *n_slowed;                 /* counts how often a client was made to wait */
    void (*on_event)(void *arg, enum bt_grpc_relay_event event);
    void *arg;
};

/* Takes the non-blocking socket over; NULL, and it is closed, where there is no memory. */
struct bt_grpc_relay *bt_grpc_relay_create(const struct bt_grpc_relay_config *config, int fd);
void bt_grpc_relay_destroy(struct bt_grpc_relay *relay);
/* What one connection may hold here; gRPC's own buffers are apart. */
size_t bt_grpc_relay_bytes_max(bool is_tls);
/* At SPEAKS: the other end of the pair, to be given to gRPC; -1: no descriptor or no memory. Bytes
 * flow from here on. */
int bt_grpc_relay_open(struct bt_grpc_relay *relay);

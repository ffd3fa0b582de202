/* One TLS connection of the gRPC port: decrypts for gRPC, which gets a socket of its own.
 *
 * gRPC can be given a connected socket only without encryption. So TLS ends here, with the same
 * certificates and the same reload as HTTPS, and plain bytes go through a socket pair. Each
 * direction has one buffer; a side that does not take its bytes stops the other. Loop thread. */
#pragma once
#include <stdbool.h>

#include "common/base/tls.h"

struct bt_grpc_relay;
struct event_base;

enum bt_grpc_relay_event {
    BT_GRPC_RELAY_SPEAKS, /* the handshake is over and the first bytes are there */
    BT_GRPC_RELAY_ENDED,  /* to be destroyed */
};

struct bt_grpc_relay_config {
    struct event_base *base;
    struct bt_tls *tls;
    void (*on_event)(void *arg, enum bt_grpc_relay_event event);
    void *arg;
};

/* Takes the non-blocking socket over; NULL, and it is closed, where there is no memory. */
struct bt_grpc_relay *bt_grpc_relay_create(const struct bt_grpc_relay_config *config, int fd);
void bt_grpc_relay_destroy(struct bt_grpc_relay *relay);
/* From SPEAKS on: the other end of the pair, to be given to gRPC; -1: no descriptor. Bytes flow
 * from here on. */
int bt_grpc_relay_open(struct bt_grpc_relay *relay);

/* The gRPC port's connections: accepted, bounded, and given to gRPC once they speak HTTP/2.
 *
 * gRPC 1.51's own listener stops for good when descriptors run out and knows no bound, so the
 * listening is ours. A connection waits here until the client's HTTP/2 preface is there (it speaks
 * first); one that says something else, or nothing for 10 s, never costs gRPC anything, and the one
 * that has waited longest makes room when there are many. All bytes go through grpc_relay.h.
 * Everything runs on the loop thread. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

struct bt_grpc_listener;
struct bt_tls;
struct event_base;

enum { BT_GRPC_WAITING_MAX = 512, BT_GRPC_PREFACE_S = 10 };

struct bt_grpc_listener_config {
    const char *host;
    uint16_t port;                            /* 0: chosen by the system */
    uint32_t connections_max;                 /* in gRPC's hands at once; further ones are closed */
    struct bt_tls *tls;                       /* NULL: plain; borrowed */
    void (*on_connection)(void *arg, int fd); /* takes the socket over */
    void *arg;
};

struct bt_grpc_listener_counters {
    uint64_t n_accepted;
    uint64_t n_strange;     /* closed: no HTTP/2, no handshake, or nothing said in time */
    uint64_t n_displaced;   /* closed: waited longest when too many did */
    uint64_t n_turned_away; /* closed: too many are open */
    uint64_t n_slowed;      /* made to wait: too many costly frames (grpc_guard.h) */
};

/* BT_E_INVALID (host), BT_E_IO (cannot listen there), BT_E_NO_MEMORY. */
bt_status bt_grpc_listener_start(struct event_base *base,
                                 const struct bt_grpc_listener_config *config,
                                 struct bt_grpc_listener **out, struct bt_error *err);
/* Closes every connection. NULL is accepted. */
void bt_grpc_listener_destroy(struct bt_grpc_listener *listener);
/* "host:port" with the true port. */
const char *bt_grpc_listener_address(const struct bt_grpc_listener *listener);
const struct bt_grpc_listener_counters *
bt_grpc_listener_counters(const struct bt_grpc_listener *listener);
size_t bt_grpc_listener_open(const struct bt_grpc_listener *listener);

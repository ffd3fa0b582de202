/* A worker's end of Registry.Attach: dials routers, one slot per router.
 *
 * A dial makes a new channel with connections of its own (an old one can stall as long again as a
 * network cut lasted), fails fast (connect timeout 0.3 s) and says why in a sentence. When to dial
 * again is the caller's business; bt_rpc_redial_ms says how long to wait. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/rpc/rpc_stream.h"

struct bt_tls;

struct bt_rpc_client_config {
    uint32_t max_streams;  /* slots; 0: BT_MAX_ROUTERS */
    size_t send_bytes_max; /* per stream; 0: 16 MiB */
    struct bt_tls *tls;    /* routers must show a router's certificate; each dial uses what its
                              files said last. NULL: plain text. Shared */
};

struct bt_rpc_client;

/* Loop thread, after bt_rpc_init. */
bt_status bt_rpc_client_start(const struct bt_rpc_client_config *config, struct bt_rpc_client **out,
                              struct bt_error *err);
/* Ends the thread and frees all. What bt_rpc_close has closed goes out first, with the time that it
 * has for that, so this may wait a second; what is open is cancelled. NULL is accepted. */
void bt_rpc_client_stop(struct bt_rpc_client *client);

/* Begins to attach to the router at address ("host:port"). OPENED follows when the router answered,
 * CLOSED when it did not or when the stream ended; then the slot may be dialled again. deadline_ms:
 * life of the stream, 0 for no end (tests use it). BT_E_INVALID: address, or slot not free. */
bt_status bt_rpc_client_dial(struct bt_rpc_client *client, uint32_t slot, const char *address,
                             uint32_t deadline_ms, struct bt_error *err);

/* Borrowed until stop. */
struct bt_rpc_streams *bt_rpc_client_streams(struct bt_rpc_client *client);

/* How long to wait before the next dial: 0 after a stream that had opened (failures = 0), then 100
 * to 500 ms, growing with the failures in a row and spread by 64 random bits. */
uint32_t bt_rpc_redial_ms(uint32_t failures, uint64_t random);

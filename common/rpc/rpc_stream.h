/* The Attach streams of one end (a router's server or a worker's client): what the loop thread
 * sends on them and hears from them.
 *
 * Two threads: the owner's loop thread calls everything here; a completion-queue thread inside
 * moves bytes. Streams are numbered slots of a fixed table.
 *
 * A loop turn looks like this (fd readable, or a timer):
 *     while (bt_rpc_next(streams, &event)) { core event; drain the core's actions: bt_rpc_send() }
 *     bt_rpc_flush(streams);
 *
 * Memory bounds per stream: 16 received messages or about 512 KiB not yet taken by the loop (then
 * the peer is not read: HTTP/2 flow control holds it back), BT_WIRE_JOIN_BYTES for an item that
 * arrives in pieces, send_bytes_max waiting to be sent. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/rpc/registry_msg.h"

enum bt_rpc_event_type {
    BT_RPC_OPENED = 1, /* server: a worker attached. client: the router answered the dial */
    BT_RPC_MESSAGE,
    BT_RPC_HALF_CLOSED, /* server only: the worker will say nothing more but still reads. Not an
                           end: bt_rpc_close it when all was said to it; may be ignored */
    BT_RPC_CLOSED,      /* the last event of this stream: the slot is free. On a client also the
                           answer to a dial that failed (then without OPENED) */
};

struct bt_rpc_event {
    enum bt_rpc_event_type type;
    uint32_t slot;
    const struct bt_msg *msg; /* MESSAGE: checked by bt_wire_check; valid, with all that it points
                                 to, until the next bt_rpc_next */
    bt_status status;         /* CLOSED: BT_OK when the stream ended in order */
    const char *text; /* OPENED: the peer's address. CLOSED: why, a sentence. Valid as msg */
};

struct bt_rpc_streams; /* made by bt_rpc_server_start and bt_rpc_client_start */

/* Readable when bt_rpc_next has something to give. */
int bt_rpc_fd(const struct bt_rpc_streams *streams);
/* Gives the next event; false: nothing more now, wait for the fd. A stream on which the peer sends
 * what bt_wire_check refuses is closed here, with the sentence. */
bool bt_rpc_next(struct bt_rpc_streams *streams, struct bt_rpc_event *out);

/* Queues one message; it leaves at the next bt_rpc_flush, or joins the message after the one that
 * is on its way (one is, at most, per stream). Token rows of successive TOKENS messages become one.
 * Everything that msg points to is copied. On a slot that is not open: BT_E_PEER_GONE, nothing
 * happens (its CLOSED event is on its way). BT_E_INVALID, BT_E_TOO_LARGE: what bt_wire_check
 * refuses is not sent. BT_E_FULL: the peer has not read send_bytes_max bytes: the stream is closed.
 */
bt_status bt_rpc_send(struct bt_rpc_streams *streams, uint32_t slot, const struct bt_msg *msg,
                      struct bt_error *err);
/* Sends what is queued on every stream touched since the last call; once per loop turn. */
void bt_rpc_flush(struct bt_rpc_streams *streams);

/* Ends a stream: what is queued is sent first (for one second at most, then the call is cancelled).
 * No MESSAGE comes from it any more; CLOSED does. The peer is told status and reason (a worker's
 * reason stays here: HTTP/2 has no place for it). A slot that is not open: nothing happens. */
void bt_rpc_close(struct bt_rpc_streams *streams, uint32_t slot, bt_status status,
                  const char *reason);

/* Bytes queued and not yet handed to gRPC on a slot; 0 when it is not open. */
size_t bt_rpc_queued_bytes(struct bt_rpc_streams *streams, uint32_t slot);

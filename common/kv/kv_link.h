/* KV links: connections that prefill workers dial to decode workers. Control messages and KV
 * frames.
 *
 * One of the three operation tables: tcp (kv_link_tcp.c) and in-process (kv_link_local.c). A link
 * moves bytes and finds out that a peer is gone; what may be said and what may land is decided by
 * the cores, which it calls through struct bt_kv_link_user. Everything runs on the worker's loop
 * thread. Links are numbered 0 .. BT_MAX_LINKS - 1; a number is used again after `down`.
 *
 * The first exchange on a connection is the link's own: P says name, incarnation, protocol range,
 * layout fingerprint and which incarnation of D it means, D answers with its incarnation and
 * protocol, or with the sentence that names what differs and closes. Then `up` is called on both
 * sides. A ping goes every 250 ms in both directions; 2 s of silence are death (limits.h). Connect
 * and first exchange take 1 s at most. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/fingerprint.h"
#include "common/base/id.h"
#include "common/base/status.h"
#include "common/kv/kv_msg.h"
#include "common/kv/kv_recv.h"
#include "common/kv/kv_send.h"

struct event_base;

/* The worker behind its links. No call may be made back into the link set from inside one of these,
 * except `send`, `pump` and `cut`. */
struct bt_kv_link_user {
    void *arg;
    void (*up)(void *arg, uint32_t link, struct bt_id peer);
    /* The last call for this link; every receive and frame of it has ended before. For a dial that
     * failed it comes without `up`. why is a sentence. */
    void (*down)(void *arg, uint32_t link, const char *why);
    void (*message)(void *arg, uint32_t link, const struct bt_kv_msg *msg);
    /* D only; as bt_kv_recv_frame and bt_kv_recv_frame_end. */
    bt_status (*frame)(void *arg, uint32_t link, const struct bt_kv_frame *frame,
                       struct bt_kv_landing *out, struct bt_error *err);
    void (*frame_end)(void *arg, uint32_t link, const struct bt_kv_landing *landing, bool whole,
                      const uint64_t *carried, const uint64_t *computed);
    /* P only; as bt_kv_send_next_frame and bt_kv_send_frame_done. */
    bool (*next_frame)(void *arg, uint32_t link, struct bt_kv_outgoing *out);
    void (*frame_done)(void *arg, uint32_t link, uint32_t id);
    /* Where the bytes of (layer, page) are; page_bytes of them. */
    uint8_t *(*page)(void *arg, uint32_t layer, uint32_t page);
    /* After each of up, down, message, frame_end and frame_done (but those that come from inside
     * cut): the worker drains its core's actions. Not called from inside itself. */
    void (*turn)(void *arg);
};

struct bt_tls;

struct bt_kv_links_config {
    struct event_base *base; /* borrowed */
    struct bt_kv_link_user user;
    bool prefill; /* P dials; else D listens */
    char name[BT_NAME_BYTES];
    struct bt_id incarnation;
    struct bt_fingerprint fingerprint;
    uint32_t n_layers;
    uint32_t page_bytes;
    const char *listen; /* D: "host:port", port 0 chosen by the system */
    struct bt_tls *tls; /* tcp: P shows D a prefill worker's certificate, D shows P a decode
                           worker's. NULL: plain text. Borrowed until destroy */
};

struct bt_kv_links; /* the worker's links of one kind */

struct bt_kv_link_ops {
    const char *name; /* "tcp", "local": printed at join, a label of the metrics */
    bt_status (*create)(const struct bt_kv_links_config *config, struct bt_kv_links **out,
                        struct bt_error *err);
    /* Every link goes down first (the user is told). */
    void (*destroy)(struct bt_kv_links *links);
    /* D: where it listens, "host:port". */
    const char *(*address)(const struct bt_kv_links *links);
    /* P: begins to connect link to the D at address, which must be of incarnation peer. `up` or
     * `down` follows, never from inside this call. */
    bt_status (*dial)(struct bt_kv_links *links, uint32_t link, const char *address,
                      struct bt_id peer, struct bt_error *err);
    /* Ends a link in order: what was queued is sent for at most 1 s. `down` follows later. */
    void (*close)(struct bt_kv_links *links, uint32_t link);
    /* Queues a control message. On a link that is not up nothing happens. A peer that does not read
     * 16 MiB of them is cut. */
    void (*send)(struct bt_kv_links *links, uint32_t link, const struct bt_kv_msg *msg);
    /* P: the core has frames for this link (user.next_frame will be called as it can be written).
     */
    void (*pump)(struct bt_kv_links *links, uint32_t link);
    /* D: bytes of receives that belong to this lease go to scratch from now on; their frame_end
     * (not whole) comes as soon as nothing writes there any more, at once for tcp. */
    void (*cut)(struct bt_kv_links *links, uint32_t link, uint32_t lease);
    /* Connections ended because the peer broke a rule of the link (kv_wire.h), since create. */
    uint64_t (*breaches)(const struct bt_kv_links *links);
};

/* The table by name, or NULL. */
const struct bt_kv_link_ops *bt_kv_link_find(const char *name);

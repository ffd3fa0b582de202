/* The KV link between two workers of one thread: for tests, with delays that a network has.
 *
 * Both ends are on one event base; addresses are "local:N". Messages and frames take a time that
 * can be set, so that a frame's bytes land while control goes on: the way of links whose bulk is
 * not on the control connection (RDMA, GPU to GPU), which TCP cannot show. Rules, as on those
 * links:
 *   - control messages arrive in order, and none before the announcement of a frame (user.frame)
 *     that was given to the link before it;
 *   - an announcement may overtake control; bytes land `bulk_us` after it, in order among frames;
 *   - `cut` stops nothing that is on its way: the bytes land, then frame_end comes, not whole;
 *   - frame_done comes when the bytes have landed: the sender's page is read until then. */
#pragma once
#include "common/kv/kv_link.h"

extern const struct bt_kv_link_ops bt_kv_link_local;

/* All 0 at first: everything arrives in the next turn of the loop, bytes at their announcement. */
struct bt_kv_local_timing {
    uint32_t control_us;  /* a control message, and the first exchange */
    uint32_t announce_us; /* a frame's announcement */
    uint32_t bulk_us;     /* from there to its last byte */
};
/* For what this set sends from now on. */
void bt_kv_link_local_set_timing(struct bt_kv_links *links,
                                 const struct bt_kv_local_timing *timing);
/* Ends a link as a lost connection does: what is on its way is gone. `down` comes on both sides,
 * from inside. */
void bt_kv_link_local_break(struct bt_kv_links *links, uint32_t link, const char *why);

/* The decode worker as a pure state machine: admission, the receiving half of the hand-off, growth
 * and preemption, decode steps. Events in, actions out.
 *
 * No clock, socket, thread or malloc after create. After each event the shell drains
 * bt_decode_core_next. Owned by the worker's loop thread. The states of a sequence and the table of
 * what each event does in each of them stand in decode_state.h. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/engine/step.h"
#include "common/kv/kv_recv.h"
#include "common/rpc/registry_msg.h"

struct bt_decode_config {
    struct bt_msg_join join; /* name, incarnation, fingerprint, max_context, max_seqs ... */
    uint32_t n_pages;
    uint32_t n_layers;
    uint32_t page_bytes;   /* of one (layer, page) */
    uint32_t n_vocab;      /* token ids are below it */
    uint32_t chunk_tokens; /* prompt tokens that may ride in one step beside decoding */
    uint32_t step_us;      /* they take no more of it than keeps it within this; 0: no bound */
    uint32_t drain_ms;     /* how long streams may go on after drain before they are moved */
};

struct bt_decode_core;

/* BT_E_INVALID names the field and its bound; BT_E_NO_MEMORY. */
bt_status bt_decode_core_create(const struct bt_decode_config *config, struct bt_decode_core **out,
                                struct bt_error *err);
void bt_decode_core_destroy(struct bt_decode_core *core); /* NULL is fine */

/* ---- events ---- */

/* slot < BT_MAX_ROUTERS: an Attach stream. */
void bt_decode_core_router_opened(struct bt_decode_core *core, uint64_t now_us, uint32_t slot);
/* BT_E_PROTOCOL: it may not come; the shell closes the stream with the sentence. */
bt_status bt_decode_core_router_message(struct bt_decode_core *core, uint64_t now_us, uint32_t slot,
                                        const struct bt_msg *msg, struct bt_error *err);
void bt_decode_core_router_closed(struct bt_decode_core *core, uint64_t now_us, uint32_t slot);

/* As kv_recv.h says. */
void bt_decode_core_link_up(struct bt_decode_core *core, uint64_t now_us, uint32_t link,
                            struct bt_id peer);
void bt_decode_core_link_down(struct bt_decode_core *core, uint64_t now_us, uint32_t link);
void bt_decode_core_link_message(struct bt_decode_core *core, uint64_t now_us, uint32_t link,
                                 const struct bt_kv_msg *msg);
bt_status bt_decode_core_link_frame(struct bt_decode_core *core, uint64_t now_us, uint32_t link,
                                    const struct bt_kv_frame *frame, struct bt_kv_landing *out,
                                    struct bt_error *err);
void bt_decode_core_link_frame_end(struct bt_decode_core *core, uint64_t now_us,
                                   const struct bt_kv_landing *landing, bool whole,
                                   const uint64_t *carried, const uint64_t *computed);
/* Frames and messages that a link itself refused (malformed): they count as refused too. */
void bt_decode_core_link_refused(struct bt_decode_core *core);

/* The step that was lent has come back with its results. */
void bt_decode_core_step_done(struct bt_decode_core *core, uint64_t now_us);

/* At least every 50 ms. */
void bt_decode_core_tick(struct bt_decode_core *core, uint64_t now_us);
/* While held no step is made. */
void bt_decode_core_hold(struct bt_decode_core *core, bool held);
/* No new work; streams finish or, after drain_ms, move. */
void bt_decode_core_drain(struct bt_decode_core *core, uint64_t now_us);

/* ---- actions ---- */

enum bt_decode_action_type {
    BT_DECODE_SEND = 1,  /* msg on the router stream in slot */
    BT_DECODE_CLOSE,     /* end that stream; reason says why; it is dialled again */
    BT_DECODE_QUIT,      /* refused for good: log reason, exit 2 */
    BT_DECODE_STEP,      /* post step to the engine; one is out at a time */
    BT_DECODE_LINK_SEND, /* link_msg on link */
    BT_DECODE_LINK_CUT,  /* receives of lease on link go to scratch */
    BT_DECODE_EXIT,      /* drained: nothing is held, everything was told */
};

struct bt_decode_action {
    enum bt_decode_action_type type;
    uint32_t slot;
    const struct bt_msg *msg;
    const char *reason;
    struct bt_step *step;
    uint32_t link, lease;
    struct bt_kv_msg link_msg;
};

/* False: nothing more now. Pointers are valid until the next call with this core. */
bool bt_decode_core_next(struct bt_decode_core *core, uint64_t now_us,
                         struct bt_decode_action *out);

/* ---- introspection ---- */

void bt_decode_core_census(const struct bt_decode_core *core, struct bt_census *out);
const struct bt_kv_recv_counters *bt_decode_core_kv_counters(const struct bt_decode_core *core);
/* Routers that have said welcome. */
uint32_t bt_decode_core_n_attached(const struct bt_decode_core *core);
bool bt_decode_core_is_idle(const struct bt_decode_core *core);
bool bt_decode_core_is_valid(const struct bt_decode_core *core);
/* Pairs (state, event) reached so far, as kv_recv.h; and those of its kv_recv. */
const uint32_t *bt_decode_core_coverage(const struct bt_decode_core *core, uint32_t *n_pairs);
/* Names of a pair; true where the table says that it is handled. */
bool bt_decode_core_pair(uint32_t pair, const char **state, const char **event);
const struct bt_kv_recv *bt_decode_core_kv_recv(const struct bt_decode_core *core);

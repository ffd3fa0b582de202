/* The prefill worker as a pure state machine: queue, hello and grant, chunked prefill, hand-off
 * out.
 *
 * No clock, socket, thread or malloc after create. After each event the shell drains
 * bt_prefill_core_next. Owned by the worker's loop thread. The states of a sequence and the table
 * of what each event does in each of them stand in prefill_state.h. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/engine/step.h"
#include "common/kv/kv_send.h"
#include "common/rpc/registry_msg.h"

struct bt_prefill_config {
    struct bt_msg_join join; /* name, incarnation, fingerprint, max_context, max_seqs ... */
    uint32_t n_pages;
    uint32_t n_layers;
    uint32_t page_bytes;   /* of one (layer, page) */
    uint32_t n_vocab;      /* token ids are below it */
    uint32_t chunk_tokens; /* rows of one step */
    uint32_t max_offers;   /* hellos that wait for a grant or for pages at once */
    uint32_t drain_ms;     /* how long prompts may go on after drain before they are given back */
#if BT_MUTANT_checksum_at_sending
    uint64_t (*sum_now)(void *arg, uint32_t layer, uint32_t page);
    void *sum_now_arg;
#endif
};

struct bt_prefill_core;

bt_status bt_prefill_core_create(const struct bt_prefill_config *config,
                                 struct bt_prefill_core **out, struct bt_error *err);
void bt_prefill_core_destroy(struct bt_prefill_core *core); /* NULL is fine */

/* ---- events ---- */

/* slot < BT_MAX_ROUTERS: an Attach stream. */
void bt_prefill_core_router_opened(struct bt_prefill_core *core, uint64_t now_us, uint32_t slot);
/* BT_E_PROTOCOL: it may not come; the shell closes the stream with the sentence. */
bt_status bt_prefill_core_router_message(struct bt_prefill_core *core, uint64_t now_us,
                                         uint32_t slot, const struct bt_msg *msg,
                                         struct bt_error *err);
void bt_prefill_core_router_closed(struct bt_prefill_core *core, uint64_t now_us, uint32_t slot);

/* As kv_send.h says. A dial that failed is link_down too. */
void bt_prefill_core_link_up(struct bt_prefill_core *core, uint64_t now_us, uint32_t link);
void bt_prefill_core_link_down(struct bt_prefill_core *core, uint64_t now_us, uint32_t link);
void bt_prefill_core_link_message(struct bt_prefill_core *core, uint64_t now_us, uint32_t link,
                                  const struct bt_kv_msg *msg);
bool bt_prefill_core_next_frame(struct bt_prefill_core *core, uint64_t now_us, uint32_t link,
                                struct bt_kv_outgoing *out);
void bt_prefill_core_frame_done(struct bt_prefill_core *core, uint64_t now_us, uint32_t link,
                                uint32_t id);

/* Layers up to and with this one are done in the step that is out; its sums stand. */
void bt_prefill_core_layer_done(struct bt_prefill_core *core, uint64_t now_us, uint32_t layer);
/* The step that was lent has come back with its results. */
void bt_prefill_core_step_done(struct bt_prefill_core *core, uint64_t now_us);

/* At least every 50 ms. */
void bt_prefill_core_tick(struct bt_prefill_core *core, uint64_t now_us);
/* No new work; prompts that are here go on or, after drain_ms, are given back. */
void bt_prefill_core_drain(struct bt_prefill_core *core, uint64_t now_us);

/* ---- actions ---- */

enum bt_prefill_action_type {
    BT_PREFILL_SEND = 1,  /* msg on the router stream in slot */
    BT_PREFILL_CLOSE,     /* end that stream; reason says why; it is dialled again */
    BT_PREFILL_QUIT,      /* refused for good: log reason, exit 2 */
    BT_PREFILL_STEP,      /* post step to the engine; one is out at a time */
    BT_PREFILL_LINK_SEND, /* link_msg on link */
    BT_PREFILL_LINK_PUMP, /* link has frames to pull */
    BT_PREFILL_LINK_DIAL, /* link to peer at address; up or down follows */
    BT_PREFILL_LINK_CLOSE,
    BT_PREFILL_EXIT, /* drained: nothing is held, everything was told */
};

struct bt_prefill_action {
    enum bt_prefill_action_type type;
    uint32_t slot;
    const struct bt_msg *msg;
    const char *reason;
    struct bt_step *step;
    uint32_t link;
    struct bt_kv_msg link_msg;
    const char *address; /* LINK_DIAL */
    struct bt_id peer;
};

/* False: nothing more now. Pointers are valid until the next call with this core. */
bool bt_prefill_core_next(struct bt_prefill_core *core, uint64_t now_us,
                          struct bt_prefill_action *out);

/* ---- introspection ---- */

void bt_prefill_core_census(const struct bt_prefill_core *core, struct bt_census *out);
uint32_t bt_prefill_core_n_attached(const struct bt_prefill_core *core);
/* Includes: pages are held only for tickets that were granted. */
bool bt_prefill_core_is_valid(const struct bt_prefill_core *core);
/* Pairs (state, event) reached so far. */
const uint32_t *bt_prefill_core_coverage(const struct bt_prefill_core *core, uint32_t *n_pairs);
/* Names of a pair; true where the table says that it is handled. */
bool bt_prefill_core_pair(uint32_t pair, const char **state, const char **event);
const struct bt_kv_send *bt_prefill_core_kv_send(const struct bt_prefill_core *core);

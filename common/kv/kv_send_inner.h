/* What the files of the sending half share: one send's state, its way through the layers, actions.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/kv/kv_send.h"

enum { BT_KV_LINK_FRAMES = 8 /* of one link, out at once */ };

enum bt_kv_send_state {
    BT_KV_SEND_NONE,
    BT_KV_SEND_HELLO,
    BT_KV_SEND_GIVEN, /* GRANTED in the header's picture, which is also the action's name */
    BT_KV_SEND_COMMITTING,
    BT_KV_SEND_CLOSING,
    BT_KV_SEND_STATE_COUNT,
};

enum bt_kv_send_event {
    BT_KV_SEND_ON_OFFER,
    BT_KV_SEND_ON_BIND,
    BT_KV_SEND_ON_READY,
    BT_KV_SEND_ON_FINISH,
    BT_KV_SEND_ON_CANCEL,
    BT_KV_SEND_ON_GRANT,
    BT_KV_SEND_ON_REFUSED,
    BT_KV_SEND_ON_COMMITTED,
    BT_KV_SEND_ON_ABORTED,
    BT_KV_SEND_ON_LINK_DOWN,
    BT_KV_SEND_ON_NEXT_FRAME,
    BT_KV_SEND_ON_FRAME_DONE,
    BT_KV_SEND_EVENT_COUNT,
};

/* How far one layer of one send is: pages below `next`, and of page `next` the first `offset`
 * bytes, were given to the link; pages below `ready` may be. */
struct bt_kv_cursor {
    uint32_t ready, next, offset;
};

struct bt_kv_one_send {
    enum bt_kv_send_state state;
    struct bt_kv_offer offer;
    const struct bt_kv_hold *hold; /* NULL until bound */
    uint32_t lease, pages_held;
    uint64_t generation;
    uint32_t first_layer; /* every page of the layers below was given to the link */
    uint32_t frames_out;
    uint64_t served; /* round of its link in which it was served last */
    uint64_t bytes;
    bool finished;
    int32_t token;
    enum bt_finish finish;
    uint64_t logits_hash;
    bool has_logprobs;
    struct bt_logprobs logprobs;
    uint64_t wait_us, prefill_us;
};

struct bt_kv_send {
    struct bt_kv_send_config config;
    struct bt_kv_one_send *sends; /* [max_sends] */
    struct bt_kv_cursor *cursors; /* [max_sends][n_layers] */
    struct bt_kv_send_action *actions;
    uint32_t max_actions, n_actions, next_action;
    struct {
        bool up;
        uint32_t frames_out;
        uint64_t round;
    } links[BT_MAX_LINKS];
    struct bt_kv_send_counters counters;
    uint32_t coverage[BT_KV_SEND_STATE_COUNT * BT_KV_SEND_EVENT_COUNT];
};

/* Counts the pair and says whether it is handled; an impossible one is asserted. */
bool bt_kv_send_enter(struct bt_kv_send *send, enum bt_kv_send_state state,
                      enum bt_kv_send_event event);
void bt_kv_send_act(struct bt_kv_send *send, const struct bt_kv_send_action *action);
/* FRAMES, unless it was the last action said. */
void bt_kv_send_tell_frames(struct bt_kv_send *send, uint32_t link);
/* Sends commit if the send is finished and the link has let go of its last frame. */
void bt_kv_send_try_commit(struct bt_kv_send *send, struct bt_kv_one_send *one);
/* Nothing more will be sent: RELEASED, now or when the link has let go. */
void bt_kv_send_close(struct bt_kv_send *send, struct bt_kv_one_send *one);

struct bt_kv_cursor *bt_kv_send_cursors(const struct bt_kv_send *send,
                                        const struct bt_kv_one_send *one);

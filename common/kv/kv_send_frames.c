/* Cuts ready pages into frames and gives them to the links, in turn among the sends. */
#include "common/base/assert.h"
#include "common/kv/kv_send.h"
#include "common/kv/kv_send_inner.h"

enum { NONE = UINT32_MAX };

/* The first layer that has pages to give, or NONE. */
static uint32_t layer_with_pages(const struct bt_kv_send *send, const struct bt_kv_one_send *one) {
    const struct bt_kv_cursor *cursors = bt_kv_send_cursors(send, one);
    for (uint32_t layer = one->first_layer; layer < send->config.n_layers; layer++)
        if (cursors[layer].next < cursors[layer].ready)
            return layer;
    return NONE;
}

/* Whose turn it is on this link, or NULL: in each round every send that has pages gives one frame,
 * the earliest first-token deadline first. *again: all have had their turn, a new round begins. */
static const struct bt_kv_one_send *next_in_turn(const struct bt_kv_send *send, uint32_t link,
                                                 bool *again) {
    const struct bt_kv_one_send *best = NULL;
    *again = true;
    for (uint32_t i = 0; i < send->config.max_sends; i++) {
        const struct bt_kv_one_send *one = &send->sends[i];
        if (one->state != BT_KV_SEND_GIVEN || !one->hold || one->offer.link != link ||
            layer_with_pages(send, one) == NONE)
            continue;
        bool waits = one->served <= send->links[link].round;
        if (!best || (waits && *again) ||
            (waits == !*again && one->offer.deadline_us < best->offer.deadline_us)) {
            best = one;
            *again = !waits;
        }
    }
    return best;
}

bool bt_kv_send_has_frame(const struct bt_kv_send *send, uint32_t link) {
    BT_ASSERT(link < BT_MAX_LINKS);
    bool again;
    return send->links[link].frames_out < BT_KV_LINK_FRAMES && next_in_turn(send, link, &again);
}

void bt_kv_send_ready(struct bt_kv_send *send, uint64_t now_us, uint32_t id, uint32_t layer,
                      uint32_t n_pages) {
    (void)now_us;
    BT_ASSERT(id < send->config.max_sends && layer < send->config.n_layers);
    struct bt_kv_one_send *one = &send->sends[id];
    if (!bt_kv_send_enter(send, one->state, BT_KV_SEND_ON_READY))
        return;
    struct bt_kv_cursor *cursor = &bt_kv_send_cursors(send, one)[layer];
    BT_ASSERT(one->hold && n_pages >= cursor->ready && n_pages <= one->offer.n_pages);
    cursor->ready = n_pages;
    if (cursor->next < cursor->ready && send->links[one->offer.link].frames_out < BT_KV_LINK_FRAMES)
        bt_kv_send_tell_frames(send, one->offer.link);
}

void bt_kv_send_tell_frames(struct bt_kv_send *send, uint32_t link) {
    if (send->n_actions) {
        uint32_t last = (send->next_action + send->n_actions - 1) % send->max_actions;
        if (send->actions[last].type == BT_KV_SEND_FRAMES && send->actions[last].link == link)
            return;
    }
    bt_kv_send_act(send, &(struct bt_kv_send_action){.type = BT_KV_SEND_FRAMES, .link = link});
}

/* Whole pages as many as fit, or the next piece of a page that is larger than a frame. */
static void cut_frame(const struct bt_kv_send *send, const struct bt_kv_one_send *one,
                      uint32_t layer, struct bt_kv_frame *frame) {
    const struct bt_kv_cursor *cursor = &bt_kv_send_cursors(send, one)[layer];
    uint32_t page_bytes = send->config.page_bytes;
    *frame = (struct bt_kv_frame){
        .lease = one->lease,
        .generation = one->generation,
        .layer = layer,
        .first_page = cursor->next,
        .n_pages = 1,
        .offset = cursor->offset,
        .length = page_bytes - cursor->offset,
    };
    if (page_bytes > BT_KV_FRAME_BYTES) {
        if (frame->length > BT_KV_FRAME_BYTES)
            frame->length = BT_KV_FRAME_BYTES;
        return;
    }
    uint32_t n = cursor->ready - cursor->next;
    if (n > BT_KV_FRAME_BYTES / page_bytes)
        n = BT_KV_FRAME_BYTES / page_bytes;
    frame->n_pages = n < BT_KV_FRAME_PAGES ? n : BT_KV_FRAME_PAGES;
    frame->length = frame->n_pages * page_bytes;
}

static void step_on(const struct bt_kv_send *send, struct bt_kv_one_send *one,
                    const struct bt_kv_frame *frame) {
    struct bt_kv_cursor *cursors = bt_kv_send_cursors(send, one);
    struct bt_kv_cursor *cursor = &cursors[frame->layer];
    uint32_t ended = bt_kv_frame_sums(frame, send->config.page_bytes);
    cursor->next += ended;
    cursor->offset = ended ? 0 : frame->offset + frame->length;
    while (one->first_layer < send->config.n_layers &&
           cursors[one->first_layer].next == one->offer.n_pages)
        one->first_layer++;
}

bool bt_kv_send_next_frame(struct bt_kv_send *send, uint64_t now_us, uint32_t link,
                           struct bt_kv_outgoing *out) {
    (void)now_us;
    BT_ASSERT(link < BT_MAX_LINKS);
    bool again;
    const struct bt_kv_one_send *turn = next_in_turn(send, link, &again);
    if (!turn || send->links[link].frames_out == BT_KV_LINK_FRAMES)
        return false;
    struct bt_kv_one_send *one = &send->sends[turn - send->sends];
    bt_kv_send_enter(send, one->state, BT_KV_SEND_ON_NEXT_FRAME);
    if (again)
        send->links[link].round++;
    one->served = send->links[link].round + 1;
    out->id = (uint32_t)(one - send->sends);
    cut_frame(send, one, layer_with_pages(send, one), &out->frame);
    uint32_t n_sums = bt_kv_frame_sums(&out->frame, send->config.page_bytes);
    for (uint32_t i = 0; i < out->frame.n_pages; i++) {
        uint32_t page = one->hold->pages[out->frame.first_page + i];
        enum bt_page_state state = bt_kv_page_state(send->config.pool, page);
        BT_ASSERT(state == BT_PAGE_LIVE || state == BT_PAGE_FILLING);
        out->pages[i] = page;
        if (i >= n_sums)
            continue;
        uint64_t *sum = bt_kv_page_sum(send->config.pool, out->frame.layer, page);
#if BT_MUTANT_checksum_at_sending
        if (send->config.sum_now) /* a planted defect */
            *sum = send->config.sum_now(send->config.sum_now_arg, out->frame.layer, page);
#endif
        out->sums[i] = *sum;
    }
    step_on(send, one, &out->frame);
    one->frames_out++;
    send->links[link].frames_out++;
    one->bytes += out->frame.length;
    send->counters.frames++;
    send->counters.bytes += out->frame.length;
    return true;
}

void bt_kv_send_frame_done(struct bt_kv_send *send, uint64_t now_us, uint32_t link, uint32_t id) {
    (void)now_us;
    BT_ASSERT(link < BT_MAX_LINKS && id < send->config.max_sends);
    struct bt_kv_one_send *one = &send->sends[id];
    bt_kv_send_enter(send, one->state, BT_KV_SEND_ON_FRAME_DONE);
    BT_ASSERT(one->offer.link == link && one->frames_out && send->links[link].frames_out);
    bool was_full = send->links[link].frames_out == BT_KV_LINK_FRAMES;
    one->frames_out--;
    send->links[link].frames_out--;
    if (one->state == BT_KV_SEND_CLOSING)
        bt_kv_send_close(send, one);
    else
        bt_kv_send_try_commit(send, one);
    if (was_full && bt_kv_send_has_frame(send, link))
        bt_kv_send_tell_frames(send, link);
}

/* Decides for each frame whether its bytes may land, and what they complete when they have. */
#include "common/base/assert.h"
#include "common/kv/kv_recv.h"
#include "common/kv/kv_recv_inner.h"

static struct bt_kv_progress *progress_of(const struct bt_kv_recv *recv, uint32_t layer,
                                          uint32_t page) {
    return &recv->progress[(size_t)page * recv->config.n_layers + layer];
}

/* Slot, generation and link: whether this peer may write into this lease at all. */
static bt_status check_grant(struct bt_kv_recv *recv, uint32_t link,
                             const struct bt_kv_frame *frame, struct bt_error *err) {
    if (frame->lease >= recv->config.max_leases) {
        recv->counters.refused_range++;
        return bt_fail(err, BT_E_INVALID, "frame for lease %u, must be below %u", frame->lease,
                       recv->config.max_leases);
    }
    const struct bt_kv_lease *lease = &recv->leases[frame->lease];
    bool open = bt_kv_recv_enter(recv, lease->state, BT_KV_RECV_ON_FRAME);
    if (!open && lease->state != BT_KV_RECV_COMMITTING) {
        recv->counters.refused_generation++;
        return bt_fail(err, BT_E_INVALID, "frame for lease %u, which is not granted", frame->lease);
    }
    if (!bt_kv_recv_fits(lease, frame->generation)) {
        recv->counters.refused_generation++;
        return bt_fail(err, BT_E_INVALID, "frame for generation %llu of lease %u, which is at %llu",
                       (unsigned long long)frame->generation, frame->lease,
                       (unsigned long long)lease->generation);
    }
    if (lease->link != link) {
        recv->counters.refused_link++;
        return bt_fail(err, BT_E_INVALID, "frame on link %u for lease %u, which is granted to %u",
                       link, frame->lease, lease->link);
    }
    if (!open) {
        recv->counters.refused_order++;
        return bt_fail(err, BT_E_INVALID, "frame for lease %u after its commit", frame->lease);
    }
    return BT_OK;
}

static bt_status check_range(const struct bt_kv_recv *recv, const struct bt_kv_lease *lease,
                             const struct bt_kv_frame *frame, struct bt_error *err) {
    uint64_t page_bytes = recv->config.page_bytes;
    if (frame->layer >= recv->config.n_layers)
        return bt_fail(err, BT_E_INVALID, "frame for layer %u, must be below %u", frame->layer,
                       recv->config.n_layers);
    if (frame->n_pages < 1 || frame->n_pages > BT_KV_FRAME_PAGES)
        return bt_fail(err, BT_E_INVALID, "frame of %u pages, must be 1 to %d", frame->n_pages,
                       BT_KV_FRAME_PAGES);
    if (frame->first_page < lease->pages_held ||
        (uint64_t)frame->first_page + frame->n_pages > lease->expect.n_pages)
        return bt_fail(err, BT_E_INVALID, "frame for pages %u + %u, must be in %u to %u",
                       frame->first_page, frame->n_pages, lease->pages_held, lease->expect.n_pages);
    if (frame->length < 1 || frame->length > BT_KV_FRAME_BYTES)
        return bt_fail(err, BT_E_INVALID, "frame of %u bytes, must be 1 to %d", frame->length,
                       BT_KV_FRAME_BYTES);
    if (frame->n_pages > 1 && (frame->offset || frame->length != frame->n_pages * page_bytes))
        return bt_fail(err, BT_E_INVALID, "frame of %u bytes at %u for %u pages of %llu bytes",
                       frame->length, frame->offset, frame->n_pages,
                       (unsigned long long)page_bytes);
    if ((uint64_t)frame->offset + frame->length > page_bytes * frame->n_pages)
        return bt_fail(err, BT_E_INVALID, "frame of %u bytes at %u, past a page of %llu bytes",
                       frame->length, frame->offset, (unsigned long long)page_bytes);
    return BT_OK;
}

/* Pieces of a page come in order, and nothing comes twice. */
static bt_status check_order(struct bt_kv_recv *recv, const struct bt_kv_lease *lease,
                             const struct bt_kv_frame *frame, struct bt_error *err) {
    for (uint32_t i = 0; i < frame->n_pages; i++) {
        uint32_t page = lease->expect.hold->pages[frame->first_page + i];
        uint32_t begun = progress_of(recv, frame->layer, page)->begun;
        if (frame->offset == begun)
            continue;
        recv->counters.refused_order++;
        return bt_fail(err, BT_E_INVALID, "frame at byte %u of layer %u, page %u, which has %u",
                       frame->offset, frame->layer, frame->first_page + i, begun);
    }
    return BT_OK;
}

bt_status bt_kv_recv_frame(struct bt_kv_recv *recv, uint64_t now_us, uint32_t link,
                           const struct bt_kv_frame *frame, struct bt_kv_landing *out,
                           struct bt_error *err) {
    (void)now_us;
    BT_TRY(check_grant(recv, link, frame, err));
    struct bt_kv_lease *lease = &recv->leases[frame->lease];
    bt_status status = check_range(recv, lease, frame, err);
    if (status != BT_OK) {
        recv->counters.refused_range++;
        return status;
    }
    BT_TRY(check_order(recv, lease, frame, err));
    out->lease = frame->lease;
    out->generation = lease->generation;
    out->frame = *frame;
    for (uint32_t i = 0; i < frame->n_pages; i++) {
        uint32_t page = lease->expect.hold->pages[frame->first_page + i];
        out->pages[i] = page;
        progress_of(recv, frame->layer, page)->begun += frame->length / frame->n_pages;
        bt_kv_page_receive_begin(recv->config.pool, page);
    }
    lease->receives++;
    return BT_OK;
}

/* Counts what came for one page. False: its sum is not the one that was sent. */
static bool take_page(struct bt_kv_recv *recv, struct bt_kv_lease *lease,
                      const struct bt_kv_landing *landing, uint32_t i, bool ends, uint64_t carried,
                      uint64_t computed) {
    const struct bt_kv_frame *frame = &landing->frame;
    uint32_t page = landing->pages[i];
    struct bt_kv_progress *progress = progress_of(recv, frame->layer, page);
    progress->ended += frame->length / frame->n_pages;
    if (!ends)
        return true;
    /* A sum that was made while an earlier piece was still on its way proves nothing. */
    if (carried != computed || progress->ended != recv->config.page_bytes)
        return false;
    *bt_kv_page_sum(recv->config.pool, frame->layer, page) = computed;
    if (++recv->verified[page] == recv->config.n_layers) {
        bt_kv_page_move(recv->config.pool, page, BT_PAGE_LANDED);
        lease->n_landed++;
    }
    return true;
}

void bt_kv_recv_frame_end(struct bt_kv_recv *recv, uint64_t now_us,
                          const struct bt_kv_landing *landing, bool whole, const uint64_t *carried,
                          const uint64_t *computed) {
    const struct bt_kv_frame *frame = &landing->frame;
    BT_ASSERT(landing->lease < recv->config.max_leases && landing->generation);
    BT_ASSERT(frame->n_pages >= 1 && frame->n_pages <= BT_KV_FRAME_PAGES);
    for (uint32_t i = 0; i < frame->n_pages; i++)
        bt_kv_page_receive_end(recv->config.pool, landing->pages[i]);
    struct bt_kv_lease *lease = &recv->leases[landing->lease];
    if (lease->generation != landing->generation) {
        bt_kv_recv_enter(recv, BT_KV_RECV_NONE, BT_KV_RECV_ON_FRAME_END);
        return;
    }
    bt_kv_recv_enter(recv, lease->state, BT_KV_RECV_ON_FRAME_END);
    BT_ASSERT(lease->receives > 0);
    lease->receives--;
    if (whole) {
        bool ends = bt_kv_frame_sums(frame, recv->config.page_bytes) > 0;
        recv->counters.frames++;
        recv->counters.bytes += frame->length;
        lease->bytes += frame->length;
        for (uint32_t i = 0; i < frame->n_pages; i++) {
            if (take_page(recv, lease, landing, i, ends, ends ? carried[i] : 0,
                          ends ? computed[i] : 0))
                continue;
            recv->counters.refused_checksum++;
            bt_kv_recv_end(recv, now_us, landing->lease, BT_KV_REASON_CHECKSUM, true, true);
            return;
        }
    }
    if (lease->state == BT_KV_RECV_COMMITTING && !lease->receives)
        bt_kv_recv_finish(recv, now_us, landing->lease);
}

/* ---- validity ---- */

static bool lease_is_valid(const struct bt_kv_recv *recv, const struct bt_kv_lease *lease) {
    const struct bt_kv_hold *hold = lease->expect.hold;
    if (lease->state == BT_KV_RECV_NONE)
        return !lease->generation && !lease->receives && !hold;
    if (!hold || bt_id_is_zero(lease->expect.ticket) ||
        bt_kv_tickets_find_ended(&recv->tickets, lease->expect.ticket) ||
        bt_kv_tickets_is_parked(&recv->tickets, lease->expect.ticket))
        return false;
    if (lease->state == BT_KV_RECV_EXPECTED)
        return !lease->generation && !lease->receives &&
               hold->n_reserved >= lease->expect.n_pages - hold->n_shared;
    if (lease->state != BT_KV_RECV_ARMED && lease->state != BT_KV_RECV_COMMITTING)
        return false;
    if (!lease->generation || lease->generation > recv->generation || lease->link >= BT_MAX_LINKS ||
        !recv->links[lease->link].up || hold->n_pages != lease->expect.n_pages)
        return false;
    uint32_t n_landed = 0, receives = 0;
    for (uint32_t i = lease->pages_held; i < hold->n_pages; i++) {
        uint32_t page = hold->pages[i];
        enum bt_page_state state = bt_kv_page_state(recv->config.pool, page);
        bool landed = recv->verified[page] == recv->config.n_layers;
        if (state != (landed ? BT_PAGE_LANDED : BT_PAGE_ARMED))
            return false;
        n_landed += landed;
        receives += bt_kv_page_receives(recv->config.pool, page);
    }
    return n_landed == lease->n_landed && receives >= lease->receives &&
           (receives > 0) == (lease->receives > 0);
}

bool bt_kv_recv_is_valid(const struct bt_kv_recv *recv) {
    for (uint32_t i = 0; i < recv->config.max_leases; i++) {
        if (!lease_is_valid(recv, &recv->leases[i]))
            return false;
        for (uint32_t j = 0; j < i; j++)
            if (recv->leases[i].generation &&
                recv->leases[i].generation == recv->leases[j].generation)
                return false;
    }
    return recv->n_actions <= recv->max_actions && bt_kv_tickets_is_valid(&recv->tickets);
}

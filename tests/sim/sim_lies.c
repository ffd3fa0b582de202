/* Workers that lie: forged and repeated frames, commits of another prompt, hellos that come late,
 * words said too early. */
#include <stdlib.h>
#include <string.h>

#include "common/kv/kv_recv_inner.h"
#include "common/kv/kv_send_inner.h"
#include "decode_worker/decode_state.h"
#include "sim.h"

/* ---- frames and hellos ---- */

static struct sim_conn *some_link(struct sim *sim) {
    uint32_t start = sim_below(&sim->random, SIM_CONNS);
    for (uint32_t k = 0; k < SIM_CONNS; k++) {
        struct sim_conn *conn = &sim->conns[(start + k) % SIM_CONNS];
        if (conn->used && conn->is_link && conn->open[0] && conn->open[1] && conn->told[1] &&
            conn->has_frame)
            return conn;
    }
    return NULL;
}

/* A hello that comes late: with the ticket of an attempt that has ended at that D. */
static void say_late_hello(struct sim *sim, uint32_t i) {
    struct sim_conn *conn = &sim->conns[i];
    for (int k = 0; k < SIM_TICKETS; k++) {
        const struct sim_ticket *ticket = &sim->tickets[k];
        if (ticket->node != conn->node[1] || !sim_has_ended(sim, conn->node[1], ticket->ticket) ||
            sim_chance(&sim->random, 50))
            continue;
        struct bt_kv_msg *msg = calloc(1, sizeof *msg);
        if (!msg)
            abort();
        msg->type = BT_KV_HELLO;
        msg->ticket = ticket->ticket;
        msg->n_tokens = 7;
        sim->coverage->faults[SIM_LATE_HELLO]++;
        sim_push(sim, sim_arrival(sim, &conn->last_us[1]), SIM_ON_LINK_MESSAGE, -1, i, 1, msg);
        return;
    }
}

/* The next frame that some send on this link will make, but with other bytes than its sums say. */
static bool forge_next(struct sim *sim, const struct sim_conn *conn, struct bt_kv_frame *header) {
    const struct bt_kv_send *send = bt_prefill_core_kv_send(sim->nodes[conn->node[0]].prefill);
    for (uint32_t i = 0; i < send->config.max_sends; i++) {
        const struct bt_kv_one_send *one = &send->sends[i];
        if (one->state != BT_KV_SEND_GIVEN || one->offer.link != conn->slot[0] ||
            one->first_layer == send->config.n_layers)
            continue;
        const struct bt_kv_cursor *cursor =
            &send->cursors[(size_t)i * send->config.n_layers + one->first_layer];
        uint32_t left = sim->page_bytes - cursor->offset;
        *header = (struct bt_kv_frame){
            .lease = one->lease,
            .generation = one->generation,
            .layer = one->first_layer,
            .first_page = cursor->next,
            .n_pages = 1,
            .offset = cursor->offset,
            .length = left < BT_KV_FRAME_BYTES ? left : BT_KV_FRAME_BYTES,
        };
        return true;
    }
    return false;
}

void sim_lie(struct sim *sim, enum sim_fault fault) {
    struct sim_conn *conn = some_link(sim);
    if (!conn)
        return;
    uint32_t i = (uint32_t)(conn - sim->conns);
    if (fault == SIM_LIE_COMMIT) {
        conn->tampers = true;
        return;
    }
    if (fault == SIM_LATE_HELLO) {
        say_late_hello(sim, i);
        return;
    }
    struct bt_kv_frame next;
    if (fault == SIM_LIE_CHECKSUM && !forge_next(sim, conn, &next))
        return;
    sim->coverage->faults[fault]++;
    sim_say(sim, conn->node[0], "lies: %s", sim_fault_name(fault));
    struct sim_frame *frame = calloc(1, sizeof *frame);
    if (!frame)
        abort();
    frame->is_forged = fault == SIM_LIE_CHECKSUM;
    frame->is_lie = !frame->is_forged;
    frame->out.frame = frame->is_forged ? next : conn->last_frame;
    for (uint32_t k = 0; k < BT_KV_FRAME_PAGES; k++) {
        frame->contents[k] = sim_next(&sim->random);
        frame->out.sums[k] = sim_sum(frame->contents[k]) ^ frame->is_forged;
    }
    struct bt_kv_frame *header = &frame->out.frame;
    if (fault == SIM_LIE_GENERATION) {
        header->generation += sim_chance(&sim->random, 50) ? 1 : UINT64_MAX;
        header->lease = sim_below(&sim->random, 4);
        /* Aimed at what a lease still lacks, so that only the generation is in the way. */
        header->layer = sim_below(&sim->random, SIM_LAYERS);
        header->first_page = sim_below(&sim->random, 6);
        header->n_pages = 1;
        header->offset = 0;
        header->length = sim->page_bytes < BT_KV_FRAME_BYTES ? sim->page_bytes : BT_KV_FRAME_BYTES;
        header->generation = UINT64_C(0x7000000000000000) + header->generation;
    } else if (fault == SIM_LIE_RANGE) {
        header->first_page += 1000 + sim_below(&sim->random, 100);
    } /* SIM_LIE_DUPLICATE: the frame that was sent last, once more */
    sim_push(sim, sim_arrival(sim, &conn->last_us[1]), SIM_ON_FRAME, -1, i, 0, frame);
}

bool sim_lease_is(const struct sim_node *d, uint32_t lease, uint64_t generation) {
    return bt_decode_core_kv_recv(d->decode)->leases[lease].generation == generation;
}

uint64_t sim_other_leases(const struct sim_node *d, uint32_t lease) {
    const struct bt_kv_recv *recv = bt_decode_core_kv_recv(d->decode);
    uint64_t hash = 0;
    for (uint32_t i = 0; i < recv->config.max_leases; i++)
        if (i != lease)
            hash = sim_mix(hash, sim_mix(recv->leases[i].generation, recv->leases[i].state));
    return hash;
}

/* ---- words said too early ---- */

void sim_lie_withdrawn(struct sim *sim, int n) {
    if (!sim_is_enabled(sim, SIM_LIE_WITHDRAWN) || !sim_chance(&sim->random, 10))
        return;
    const struct bt_kv_recv *recv = bt_decode_core_kv_recv(sim->nodes[n].decode);
    for (uint32_t i = 0; i < recv->config.max_leases; i++) {
        const struct bt_kv_lease *lease = &recv->leases[i];
        int p = lease->state == BT_KV_RECV_EXPECTED ? sim_node_of(sim, lease->expect.peer) : -1;
        for (uint32_t k = 0; p >= 0 && k < SIM_CONNS; k++) {
            struct sim_conn *conn = &sim->conns[k];
            if (!conn->used || !conn->is_link || conn->node[0] != p || conn->node[1] != n ||
                !conn->open[0] || !conn->open[1] || !conn->told[1])
                continue;
            struct bt_kv_msg *msg = calloc(1, sizeof *msg);
            if (!msg)
                abort();
            msg->type = BT_KV_WITHDRAWN;
            msg->ticket = lease->expect.ticket;
            msg->reason = BT_KV_REASON_PEER;
            sim->coverage->faults[SIM_LIE_WITHDRAWN]++;
            sim_say(sim, p, "gives up what it has not offered");
            uint64_t at = sim->now_us + 1;
            if (at <= conn->last_us[1])
                at = conn->last_us[1] + 1;
            conn->last_us[1] = at;
            sim_push(sim, at, SIM_ON_LINK_MESSAGE, -1, k, 1, msg);
            return;
        }
    }
}

void sim_live_first(struct sim *sim, int router, uint32_t slot, const struct bt_msg_pgone *pgone) {
    struct sim_conn *conn = sim_conn_at(sim, router, slot, false);
    if (!sim_is_enabled(sim, SIM_LIVE_FIRST) || !conn || !conn->open[0] || !conn->open[1])
        return;
    const struct sim_node *d = &sim->nodes[conn->node[0]];
    bool has_it = false;
    for (uint32_t i = 0; d->up && i < d->decode->n_seqs; i++)
        has_it |= d->decode->seqs[i].state == BT_DECODE_RUNNING &&
                  bt_id_equal(d->decode->seqs[i].job->ticket, pgone->ticket);
    if (!has_it)
        return;
    struct bt_msg msg = {.type = BT_MSG_LIVE, .live = {.key = pgone->key}};
    sim->coverage->faults[SIM_LIVE_FIRST]++;
    sim_say(sim, conn->node[0], "says that it has the cache before its tokens come");
    sim_push(sim, sim->now_us + 1, SIM_ON_MESSAGE, -1, (uint32_t)(conn - sim->conns), 1,
             sim_copy_msg(&msg));
}

/* KV links of the simulator: control and bulk, and landings that take time. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

static struct sim_node *node_at(struct sim *sim, const struct sim_conn *conn, int end) {
    return &sim->nodes[conn->node[end]];
}

/* ---- dialled, up, down ---- */

void sim_link_dial(struct sim *sim, int n, uint32_t link, struct bt_id peer) {
    struct bt_id *copy = malloc(sizeof *copy);
    if (!copy)
        abort();
    *copy = peer;
    sim_push(sim, sim->now_us + 500 + sim_below(&sim->random, 20000), SIM_ON_LINK_DIAL, n, link, 0,
             copy);
}

static uint32_t free_link(struct sim *sim, int n) {
    uint32_t link = 0;
    while (link < BT_MAX_LINKS && sim_conn_at(sim, n, link, true))
        link++;
    return link;
}

void sim_on_link_dial(struct sim *sim, const struct sim_event *event) {
    struct sim_node *p = &sim->nodes[event->node];
    struct bt_id peer;
    memcpy(&peer, event->data, sizeof peer);
    int n = sim_node_of(sim, peer);
    uint32_t link = event->a;
    if (n < 0 || sim->now_us < sim->cut_until_us[event->node][n] ||
        sim->now_us < sim->nodes[n].paused_until_us) {
        bt_prefill_core_link_down(p->prefill, sim->now_us, link);
        sim_drain_actions(sim, event->node);
        return;
    }
    int i = sim_conn_new(sim);
    if (i < 0)
        return;
    struct sim_conn *conn = &sim->conns[i];
    conn->is_link = true;
    conn->node[0] = event->node;
    conn->node[1] = n;
    conn->born[0] = p->born;
    conn->born[1] = sim->nodes[n].born;
    conn->slot[0] = link;
    conn->slot[1] = free_link(sim, n);
    conn->open[0] = conn->open[1] = true;
    sim_say(sim, event->node, "links to %s (link %d)", sim->nodes[n].name, i);
    sim_push(sim, sim_arrival(sim, &conn->last_us[1]), SIM_ON_LINK_UP, -1, (uint32_t)i, 1, NULL);
    sim_push(sim, sim_arrival(sim, &conn->last_us[0]), SIM_ON_LINK_UP, -1, (uint32_t)i, 0, NULL);
    if (conn->last_us[0] < conn->last_us[1]) /* P hears of it after D */
        conn->last_us[0] = conn->last_us[1];
}

void sim_on_link_up(struct sim *sim, const struct sim_event *event) {
    struct sim_conn *conn = &sim->conns[event->a];
    int end = (int)event->b;
    if (!conn->used || !conn->open[end])
        return;
    if (end == 0 && !conn->told[1]) { /* the exchange is D's answer: it cannot come before */
        sim_push(sim, sim->now_us + 1000, SIM_ON_LINK_UP, -1, event->a, 0, NULL);
        return;
    }
    conn->told[end] = true;
    if (end == 0)
        bt_prefill_core_link_up(node_at(sim, conn, 0)->prefill, sim->now_us, conn->slot[0]);
    else
        bt_decode_core_link_up(node_at(sim, conn, 1)->decode, sim->now_us, conn->slot[1],
                               node_at(sim, conn, 0)->incarnation);
    sim_drain_actions(sim, conn->node[end]);
}

/* Receives of this connection end: nothing lands any more. */
static void end_landings(struct sim *sim, uint32_t i, uint32_t lease, bool all) {
    struct sim_conn *conn = &sim->conns[i];
    for (size_t k = 0; k < sim->n_heap && conn->n_landing; k++) {
        struct sim_event *event = &sim->heap[k];
        struct sim_frame *frame = event->data;
        if (event->type != SIM_ON_LAND || !sim_concerns(sim, event, i) || frame->is_dead ||
            (!all && frame->landing.lease != lease))
            continue;
        frame->is_dead = true;
        conn->n_landing--;
        bt_decode_core_link_frame_end(node_at(sim, conn, 1)->decode, sim->now_us, &frame->landing,
                                      false, NULL, NULL);
    }
}

/* The link is gone before its receives are: the hardware writes for a while yet. */
static void delay_landings(struct sim *sim, uint32_t i) {
    struct sim_conn *conn = &sim->conns[i];
    for (size_t k = 0; k < sim->n_heap && conn->n_landing; k++) {
        struct sim_frame *frame = sim->heap[k].data;
        if (sim->heap[k].type != SIM_ON_LAND || !sim_concerns(sim, &sim->heap[k], i) ||
            frame->is_dead)
            continue;
        frame->is_dead = true;
        conn->n_landing--;
        if (sim->n_ending == SIM_ENDING)
            abort();
        sim->ending[sim->n_ending++] = frame->landing;
    }
}

static void push_endings(struct sim *sim, int node) {
    for (uint32_t k = 0; k < sim->n_ending; k++) {
        struct sim_frame *frame = calloc(1, sizeof *frame);
        if (!frame)
            abort();
        frame->landing = sim->ending[k];
        sim_push(sim, sim->now_us + 1 + sim_below(&sim->random, 100000), SIM_ON_LAND_END, node, 0,
                 0, frame);
    }
    sim->n_ending = 0;
}

void sim_on_land_end(struct sim *sim, const struct sim_event *event) {
    struct sim_frame *frame = event->data;
    struct sim_node *d = &sim->nodes[event->node];
    const struct bt_kv_landing *landing = &frame->landing;
    for (uint32_t k = 0; k < landing->frame.n_pages; k++)
        d->contents[(size_t)landing->frame.layer * d->n_pages + landing->pages[k]] =
            sim_next(&sim->random);
    bt_decode_core_link_frame_end(d->decode, sim->now_us, landing, false, NULL, NULL);
    sim_drain_actions(sim, event->node);
}

/* Tells one end that the link is down. What the sender holds has come back before. */
static void tell_down(struct sim *sim, uint32_t i, int end) {
    struct sim_conn *conn = &sim->conns[i];
    struct sim_node *node = node_at(sim, conn, end);
    conn->open[end] = false;
    bool alive = node->up && node->born == conn->born[end];
    if (alive && end == 0) {
        for (size_t k = 0; k < sim->n_heap; k++) {
            struct sim_event *event = &sim->heap[k];
            struct sim_frame *frame = event->data;
            if ((event->type != SIM_ON_FRAME_READ && event->type != SIM_ON_FRAME &&
                 event->type != SIM_ON_LAND) ||
                !sim_concerns(sim, event, i) || !frame->reads)
                continue;
            frame->reads = false;
            bt_prefill_core_frame_done(node->prefill, sim->now_us, conn->slot[0], frame->out.id);
        }
        bt_prefill_core_link_down(node->prefill, sim->now_us, conn->slot[0]);
    } else if (alive) {
        bool late = sim->split && sim_chance(&sim->random, 50);
        if (late)
            delay_landings(sim, i);
        else
            end_landings(sim, i, 0, true);
        push_endings(sim, conn->node[1]);
        if (conn->told[1])
            bt_decode_core_link_down(node->decode, sim->now_us, conn->slot[1]);
    }
    if (!conn->open[0] && !conn->open[1])
        conn->used = false;
    if (alive)
        sim_drain_actions(sim, (int)(node - sim->nodes));
}

void sim_end_link(struct sim *sim, uint32_t i, int end) {
    struct sim_conn *conn = &sim->conns[i];
    if (!conn->used || !conn->open[end])
        return;
    if (conn->open[!end])
        sim_push(sim, sim_arrival(sim, &conn->last_us[!end]), SIM_ON_LINK_DOWN, -1, i,
                 (uint32_t)!end, NULL);
    tell_down(sim, i, end);
}

void sim_lose_link(struct sim *sim, uint32_t i, int end) {
    struct sim_conn *conn = &sim->conns[i];
    if (conn->open[!end])
        sim_push(sim, sim->now_us + 2 * SIM_S + sim_below(&sim->random, 200000), SIM_ON_LINK_DOWN,
                 -1, i, (uint32_t)!end, NULL);
    tell_down(sim, i, end);
}

void sim_on_link_down(struct sim *sim, const struct sim_event *event) {
    sim_end_link(sim, event->a, (int)event->b);
}

void sim_link_close(struct sim *sim, int n, uint32_t link) {
    struct sim_conn *conn = sim_conn_at(sim, n, link, true);
    if (conn)
        sim_push(sim, sim->now_us + 1, SIM_ON_LINK_DOWN, -1, (uint32_t)(conn - sim->conns), 0,
                 NULL);
}

/* ---- control ---- */

void sim_link_send(struct sim *sim, int n, uint32_t link, const struct bt_kv_msg *msg) {
    struct sim_conn *conn = sim_conn_at(sim, n, link, true);
    if (!conn)
        return;
    int to = conn->node[0] == n ? 1 : 0;
    struct bt_kv_msg *copy = malloc(sizeof *copy);
    if (!copy)
        abort();
    *copy = *msg;
    if (msg->type == BT_KV_COMMIT && conn->tampers) {
        conn->tampers = false;
        copy->chain.lo ^= 1;
        sim->tampered[sim->n_tampered++ % SIM_TICKETS] = msg->ticket;
        sim->coverage->faults[SIM_LIE_COMMIT]++;
        sim_say(sim, n, "commits another prompt");
    }
    for (int i = 0; msg->type == BT_KV_COMMITTED && i < SIM_TICKETS; i++)
        if (bt_id_equal(sim->tampered[i], msg->ticket))
            sim_fail(sim, "a commit is of this prompt", "%s took the commit of another one",
                     sim->nodes[n].name);
    uint32_t i = (uint32_t)(conn - sim->conns);
    sim_push(sim, sim_arrival(sim, &conn->last_us[to]), SIM_ON_LINK_MESSAGE, -1, i, (uint32_t)to,
             copy);
    if (msg->type == BT_KV_COMMITTED && sim_is_enabled(sim, SIM_LIVE_FIRST) &&
        sim_chance(&sim->random, 10)) {
        sim_say(sim, n, "loses the link with its answer");
        sim_push(sim, sim->now_us + 1, SIM_ON_LINK_DOWN, -1, i, 0, NULL);
    }
}

/* The commit is there before the bytes are, and the link goes. */
static void lose_committing(struct sim *sim, uint32_t i) {
    if (!sim->conns[i].n_landing || !sim_is_enabled(sim, SIM_CUT_LINK) ||
        !sim_chance(&sim->random, 30))
        return;
    sim->coverage->faults[SIM_CUT_LINK]++;
    sim_say(sim, sim->conns[i].node[1], "loses the link in the middle of a commit");
    sim_push(sim, sim->now_us + sim_below(&sim->random, 2000), SIM_ON_LINK_DOWN, -1, i, 1, NULL);
}

void sim_on_link_message(struct sim *sim, const struct sim_event *event) {
    struct sim_conn *conn = &sim->conns[event->a];
    int end = (int)event->b;
    const struct bt_kv_msg *msg = event->data;
    if (!conn->used || !conn->open[end] || !conn->told[end])
        return;
    const struct bt_kv_recv_counters *kv =
        end ? bt_decode_core_kv_counters(node_at(sim, conn, 1)->decode) : NULL;
    uint64_t n_parked = kv ? kv->parked : 0;
    bool has_ended = end && sim_has_ended(sim, conn->node[1], msg->ticket);
    sim_say(sim, conn->node[end], "hears link message %d of ticket %08x", (int)msg->type,
            (unsigned)msg->ticket.lo);
    if (end == 0)
        bt_prefill_core_link_message(node_at(sim, conn, 0)->prefill, sim->now_us, conn->slot[0],
                                     msg);
    else
        bt_decode_core_link_message(node_at(sim, conn, 1)->decode, sim->now_us, conn->slot[1], msg);
    if (msg->type == BT_KV_COMMIT)
        lose_committing(sim, event->a);
    if (has_ended && kv->parked != n_parked)
        sim_fail(sim, "an ended ticket is refused",
                 "%s parked a hello with a ticket that ended there",
                 sim->nodes[conn->node[1]].name);
    sim_drain_actions(sim, conn->node[end]);
}

/* ---- frames ---- */

static void read_contents(struct sim_node *p, struct sim_frame *frame) {
    const struct bt_kv_outgoing *out = &frame->out;
    for (uint32_t k = 0; k < out->frame.n_pages; k++) {
        frame->contents[k] = p->contents[(size_t)out->frame.layer * p->n_pages + out->pages[k]];
        if (frame->is_corrupt)
            frame->contents[k] ^= SIM_CORRUPTION;
    }
}

static struct sim_frame *copy_frame(const struct sim_frame *frame) {
    struct sim_frame *copy = malloc(sizeof *copy);
    if (!copy)
        abort();
    *copy = *frame;
    return copy;
}

/* The header of a frame goes in order with what else is said. With bulk apart its bytes are read
 * from the sender's pages when they land; else they are the stream's next bytes. */
void sim_link_pump(struct sim *sim, int n, uint32_t link) {
    struct sim_conn *conn = sim_conn_at(sim, n, link, true);
    struct sim_node *p = &sim->nodes[n];
    if (!conn || !conn->told[0])
        return;
    uint32_t i = (uint32_t)(conn - sim->conns);
    while (conn->n_reading < 8) {
        struct sim_frame *frame = calloc(1, sizeof *frame);
        if (!frame)
            abort();
        p->corrupting = sim_is_enabled(sim, SIM_CORRUPT) && sim_chance(&sim->random, 2);
        if (!bt_prefill_core_next_frame(p->prefill, sim->now_us, link, &frame->out)) {
            free(frame);
            return;
        }
        frame->is_corrupt = p->corrupting;
        if (frame->is_corrupt) {
            sim->coverage->faults[SIM_CORRUPT]++;
            sim_say(sim, n, "sends pages that have changed under it");
        }
        conn->n_reading++;
        conn->last_frame = frame->out.frame;
        conn->has_frame = true;
        if (!sim->split || sim->eager) {
            read_contents(p, frame);
            struct sim_frame *writing = copy_frame(frame);
            writing->reads = true;
            sim_push(sim, sim->now_us + 20 + sim_below(&sim->random, 3000), SIM_ON_FRAME_READ, n, i,
                     0, writing);
        }
        frame->reads = sim->split && !sim->eager;
        sim_push(sim, sim_arrival(sim, &conn->last_us[1]), SIM_ON_FRAME, -1, i, 0, frame);
    }
}

void sim_on_frame_read(struct sim *sim, const struct sim_event *event) {
    struct sim_frame *frame = event->data;
    struct sim_conn *conn = &sim->conns[event->a];
    struct sim_node *p = &sim->nodes[event->node];
    if (!frame->reads || !conn->used || !conn->open[0])
        return;
    conn->n_reading--;
    uint32_t link = conn->slot[0];
    bt_prefill_core_frame_done(p->prefill, sim->now_us, link, frame->out.id);
    sim_drain_actions(sim, event->node);
    sim_link_pump(sim, event->node, link);
}

/* With bulk apart: the sender hears that its pages are not read any more. */
static void stop_reading(struct sim *sim, uint32_t i, const struct sim_frame *frame) {
    const struct sim_conn *conn = &sim->conns[i];
    if (frame->reads && conn->open[0])
        sim_push(sim, sim->now_us + 20 + sim_below(&sim->random, 500), SIM_ON_FRAME_READ,
                 conn->node[0], i, 0, copy_frame(frame));
}

static bool ends_page(const struct sim *sim, const struct bt_kv_frame *frame) {
    return bt_kv_frame_sums(frame, sim->page_bytes) > 0;
}

static void land(struct sim *sim, uint32_t i, struct sim_frame *frame) {
    struct sim_conn *conn = &sim->conns[i];
    struct sim_node *d = node_at(sim, conn, 1);
    const struct bt_kv_landing *landing = &frame->landing;
    uint64_t computed[BT_KV_FRAME_PAGES] = {0};
    bool whole = !sim->split || sim->eager || (frame->reads && conn->open[0]);
    if (sim->split && !sim->eager && whole)
        read_contents(node_at(sim, conn, 0), frame);
    for (uint32_t k = 0; k < landing->frame.n_pages && ends_page(sim, &landing->frame); k++) {
        /* A receive whose sender has gone may leave anything. */
        uint64_t contents = whole ? frame->contents[k] : sim_next(&sim->random);
        d->contents[(size_t)landing->frame.layer * d->n_pages + landing->pages[k]] = contents;
        computed[k] = sim_sum(contents);
    }
    uint64_t others = sim_other_leases(d, landing->lease);
    bt_decode_core_link_frame_end(d->decode, sim->now_us, landing, whole,
                                  whole ? frame->out.sums : NULL, whole ? computed : NULL);
    if (frame->is_forged && whole && ends_page(sim, &landing->frame) &&
        sim_lease_is(d, landing->lease, landing->generation))
        sim_fail(sim, "a forged frame ends its lease", "%s keeps lease %u", d->name,
                 landing->lease);
    if (frame->is_forged && others != sim_other_leases(d, landing->lease))
        sim_fail(sim, "a forged frame ends no other lease", "%s: one beside lease %u", d->name,
                 landing->lease);
    stop_reading(sim, i, frame);
    sim_drain_actions(sim, conn->node[1]);
}

void sim_on_frame(struct sim *sim, const struct sim_event *event) {
    struct sim_conn *conn = &sim->conns[event->a];
    struct sim_frame *frame = event->data;
    struct bt_error err;
    if (!conn->open[1] || !conn->told[1]) { /* nobody takes it: the sender's link lets go */
        stop_reading(sim, event->a, frame);
        return;
    }
    struct sim_node *d = node_at(sim, conn, 1);
    bt_status status = bt_decode_core_link_frame(d->decode, sim->now_us, conn->slot[1],
                                                 &frame->out.frame, &frame->landing, &err);
    if (status != BT_OK) {
        stop_reading(sim, event->a, frame);
        return;
    }
    if (frame->is_lie)
        sim_fail(sim, "no byte lands without a grant",
                 "%s took a forged frame: lease %u generation %llu layer %u page %u", d->name,
                 frame->out.frame.lease, (unsigned long long)frame->out.frame.generation,
                 frame->out.frame.layer, frame->out.frame.first_page);
    if (!sim->split) {
        land(sim, event->a, frame);
        return;
    }
    conn->n_landing++;
    uint64_t at = sim->now_us + 10 + sim_below(&sim->random, 8000);
    if (sim_chance(&sim->random, 5))
        at += sim_below(&sim->random, 400000);
    if (at <= conn->last_land_us) /* receives of one link end in order */
        at = conn->last_land_us + 1;
    conn->last_land_us = at;
    sim_push(sim, at, SIM_ON_LAND, -1, event->a, 0, copy_frame(frame));
}

void sim_on_land(struct sim *sim, const struct sim_event *event) {
    struct sim_frame *frame = event->data;
    if (frame->is_dead || !sim->conns[event->a].open[1]) {
        stop_reading(sim, event->a, frame);
        return;
    }
    sim->conns[event->a].n_landing--;
    land(sim, event->a, frame);
}

/* With bulk apart the hardware cannot be stopped: the bytes still come, and the pages wait. */
void sim_link_cut(struct sim *sim, int n, uint32_t link, uint32_t lease) {
    struct sim_conn *conn = sim_conn_at(sim, n, link, true);
    if (conn && !sim->split)
        end_landings(sim, (uint32_t)(conn - sim->conns), lease, false);
}

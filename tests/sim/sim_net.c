/* Attach streams of the simulator: dialled, delivered in order with delay, cut, closed by either
 * end. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

struct part {
    const void *from;
    size_t n_bytes;
};

/* What a message points to. */
static void parts_of(const struct bt_msg *msg, struct part parts[2]) {
    switch (msg->type) {
    case BT_MSG_BLOCKS:
        parts[0] = (struct part){msg->blocks.added, msg->blocks.n_added * sizeof(uint64_t)};
        parts[1] = (struct part){msg->blocks.evicted, msg->blocks.n_evicted * sizeof(uint64_t)};
        break;
    case BT_MSG_TOKENS: /* and room for a row of logprobs each */
        parts[0] = (struct part){msg->tokens.rows, msg->tokens.n_rows * sizeof(struct bt_token)};
        parts[1] = (struct part){NULL, msg->tokens.n_rows * sizeof(struct bt_logprobs)};
        break;
    case BT_MSG_SCORES:
        parts[0] = (struct part){msg->scores.rows, msg->scores.n_rows * sizeof(struct bt_logprobs)};
        break;
    case BT_MSG_PEERS:
        parts[0] = (struct part){msg->peers.peers, msg->peers.n_peers * sizeof(struct bt_peer)};
        break;
    case BT_MSG_RESUME:
        parts[0] = (struct part){msg->resume.rows, msg->resume.n_rows * sizeof(struct bt_resume)};
        break;
    case BT_MSG_RESERVE:
    case BT_MSG_PREFILL:
        parts[0] = (struct part){msg->work.tokens, msg->work.n_tokens * sizeof(int32_t)};
        parts[1] = (struct part){msg->work.sampling.bias,
                                 msg->work.sampling.n_bias * sizeof(struct bt_logit_bias)};
        break;
    case BT_MSG_SEEN:
        parts[0] = (struct part){msg->seen.keys, msg->seen.n_keys * sizeof(struct bt_attempt)};
        break;
    default:
        break;
    }
}

static void copy_tokens(struct bt_msg_tokens *copy, struct bt_token *rows,
                        struct bt_logprobs *logprobs) {
    copy->rows = rows;
    for (uint32_t i = 0; i < copy->n_rows; i++) {
        if (!rows[i].logprobs)
            continue;
        logprobs[i] = *rows[i].logprobs;
        rows[i].logprobs = &logprobs[i];
    }
}

/* A copy that owns what its pointers point to, in one block. */
struct bt_msg *sim_copy_msg(const struct bt_msg *msg) {
    struct part parts[2] = {{NULL, 0}, {NULL, 0}};
    parts_of(msg, parts);
    uint8_t *block = malloc(sizeof *msg + parts[0].n_bytes + parts[1].n_bytes + 16);
    if (!block)
        abort();
    struct bt_msg *copy = (struct bt_msg *)block;
    *copy = *msg;
    uint8_t *to[2] = {block + sizeof *msg, block + sizeof *msg + (parts[0].n_bytes + 7) / 8 * 8};
    for (int i = 0; i < 2; i++)
        if (parts[i].from && parts[i].n_bytes)
            memcpy(to[i], parts[i].from, parts[i].n_bytes);
    switch (msg->type) {
    case BT_MSG_BLOCKS:
        copy->blocks.added = (uint64_t *)to[0];
        copy->blocks.evicted = (uint64_t *)to[1];
        break;
    case BT_MSG_TOKENS:
        copy_tokens(&copy->tokens, (struct bt_token *)to[0], (struct bt_logprobs *)to[1]);
        break;
    case BT_MSG_SCORES:
        copy->scores.rows = (struct bt_logprobs *)to[0];
        break;
    case BT_MSG_PEERS:
        copy->peers.peers = (struct bt_peer *)to[0];
        break;
    case BT_MSG_RESUME:
        copy->resume.rows = (struct bt_resume *)to[0];
        break;
    case BT_MSG_RESERVE:
    case BT_MSG_PREFILL:
        copy->work.tokens = (int32_t *)to[0];
        copy->work.sampling.bias = (struct bt_logit_bias *)to[1];
        break;
    case BT_MSG_SEEN:
        copy->seen.keys = (struct bt_attempt *)to[0];
        break;
    default:
        break;
    }
    return copy;
}

uint64_t sim_arrival(struct sim *sim, uint64_t *last_us) {
    uint64_t at = sim->now_us + 50 + sim_below(&sim->random, 3000);
    if (sim_chance(&sim->random, sim->slow_percent))
        at += sim_below(&sim->random, 400000);
    if (at <= *last_us)
        at = *last_us + 1;
    return *last_us = at;
}

uint64_t sim_cut_until(const struct sim *sim, const struct sim_conn *conn) {
    return sim->cut_until_us[conn->node[0]][conn->node[1]];
}

int sim_conn_new(struct sim *sim) {
    for (int i = 0; i < SIM_CONNS; i++)
        if (!sim->conns[i].used) {
            sim->conns[i] = (struct sim_conn){.used = true, .serial = ++sim->n_conns};
            return i;
        }
    sim_fail(sim, "bounded", "more than %d connections", SIM_CONNS);
    return -1;
}

struct sim_conn *sim_conn_at(struct sim *sim, int node, uint32_t slot, bool is_link) {
    for (int i = 0; i < SIM_CONNS; i++) {
        struct sim_conn *conn = &sim->conns[i];
        if (!conn->used || conn->is_link != is_link)
            continue;
        for (int end = 0; end < 2; end++)
            if (conn->node[end] == node && conn->open[end] && conn->slot[end] == slot)
                return conn;
    }
    return NULL;
}

/* ---- Attach ---- */

void sim_dial_routers(struct sim *sim, int node) {
    struct sim_node *worker = &sim->nodes[node];
    for (int r = 0; r < sim->n_routers; r++)
        if (worker->conn_of[r] < 0 && !worker->dialing[r]) {
            worker->dialing[r] = true;
            sim_push(sim, sim->now_us + 1000 + sim_below(&sim->random, 300000), SIM_ON_DIAL, node,
                     (uint32_t)r, 0, NULL);
        }
}

static uint32_t free_router_slot(struct sim *sim, int router) {
    for (uint32_t slot = 0; slot < BT_ROUTER_SLOTS; slot++)
        if (!sim_conn_at(sim, router, slot, false))
            return slot;
    return BT_ROUTER_SLOTS;
}

void sim_on_dial(struct sim *sim, const struct sim_event *event) {
    int r = (int)event->a;
    struct sim_node *worker = &sim->nodes[event->node], *router = &sim->nodes[r];
    worker->dialing[r] = false;
    bool cut = sim->now_us < sim->cut_until_us[event->node][r];
    if (!router->up || cut || sim->now_us < router->paused_until_us) {
        sim_dial_routers(sim, event->node);
        return;
    }
    uint32_t slot = free_router_slot(sim, r);
    int i = sim_conn_new(sim);
    if (i < 0 || slot == BT_ROUTER_SLOTS)
        return;
    struct sim_conn *conn = &sim->conns[i];
    conn->node[0] = event->node;
    conn->node[1] = r;
    conn->born[0] = worker->born;
    conn->worker = worker->incarnation;
    conn->born[1] = router->born;
    conn->slot[0] = (uint32_t)r;
    conn->slot[1] = slot;
    conn->open[0] = conn->open[1] = true;
    worker->conn_of[r] = i;
    sim_say(sim, event->node, "attaches to %s (stream %d)", router->name, i);
    bt_router_core_worker_opened(router->router, sim->now_us, slot);
    sim_drain_actions(sim, r);
    if (worker->role == SIM_PREFILL)
        bt_prefill_core_router_opened(worker->prefill, sim->now_us, (uint32_t)r);
    else
        bt_decode_core_router_opened(worker->decode, sim->now_us, (uint32_t)r);
    sim_drain_actions(sim, event->node);
}

void sim_send_msg(struct sim *sim, int node, uint32_t slot, const struct bt_msg *msg) {
    struct sim_conn *conn = sim_conn_at(sim, node, slot, false);
    if (!conn)
        return; /* it has closed, the core will hear of it */
    int to = conn->node[0] == node ? 1 : 0;
    sim_push(sim, sim_arrival(sim, &conn->last_us[to]), SIM_ON_MESSAGE, -1,
             (uint32_t)(conn - sim->conns), (uint32_t)to, sim_copy_msg(msg));
}

static void settle_conn(struct sim *sim, struct sim_conn *conn) {
    if (conn->open[0] || conn->open[1])
        return;
    conn->used = false;
    (void)sim;
}

/* One end is over: its core is told, the other end will hear of it in order. */
static void close_end(struct sim *sim, uint32_t i, int end, bool tell_peer) {
    struct sim_conn *conn = &sim->conns[i];
    int n = conn->node[end];
    struct sim_node *node = &sim->nodes[n];
    conn->open[end] = false;
    if (tell_peer && conn->open[!end]) {
        uint64_t at = sim_arrival(sim, &conn->last_us[!end]);
        if (sim_chance(&sim->random, 5)) /* half open for a while */
            at += sim_below(&sim->random, 2000000);
        sim_push(sim, at, SIM_ON_CLOSED, -1, i, (uint32_t)!end, NULL);
    }
    bool alive = node->up && node->born == conn->born[end];
    uint32_t slot = conn->slot[end];
    settle_conn(sim, conn);
    if (!alive)
        return;
    if (end == 0)
        node->conn_of[slot] = -1;
    if (node->role == SIM_ROUTER)
        bt_router_core_worker_closed(node->router, sim->now_us, slot);
    else if (node->role == SIM_PREFILL)
        bt_prefill_core_router_closed(node->prefill, sim->now_us, slot);
    else
        bt_decode_core_router_closed(node->decode, sim->now_us, slot);
    if (end == 0)
        sim_dial_routers(sim, n);
    sim_drain_actions(sim, n);
}

void sim_close_stream(struct sim *sim, int node, uint32_t slot) {
    struct sim_conn *conn = sim_conn_at(sim, node, slot, false);
    if (!conn)
        return;
    int end = conn->node[0] == node ? 0 : 1;
    bool lingers = sim_chance(&sim->random, 50);
    uint64_t at = sim->now_us + 1 + sim_below(&sim->random, lingers ? 1000000 : 20000);
    sim_push(sim, at, SIM_ON_CLOSED, -1, (uint32_t)(conn - sim->conns), (uint32_t)end | 2u, NULL);
}

void sim_on_closed(struct sim *sim, const struct sim_event *event) {
    struct sim_conn *conn = &sim->conns[event->a];
    int end = (int)(event->b & 1);
    if (conn->used && conn->open[end])
        close_end(sim, event->a, end, true);
}

void sim_on_message(struct sim *sim, const struct sim_event *event) {
    struct sim_conn *conn = &sim->conns[event->a];
    int end = (int)event->b;
    const struct bt_msg *msg = event->data;
    if (!conn->used || !conn->open[end])
        return;
    int n = conn->node[end];
    struct sim_node *node = &sim->nodes[n];
    struct bt_error err = {0};
    bt_status status = BT_OK;
    if (node->role == SIM_ROUTER) {
        sim->speaker = conn->worker;
        if (msg->type == BT_MSG_TOKENS && sim_is_given_up(node, conn->slot[end]))
            sim->coverage->faults[SIM_LATE_TOKENS]++;
        bt_router_core_worker_message(node->router, sim->now_us, conn->slot[end], msg);
    } else if (node->role == SIM_PREFILL)
        status =
            bt_prefill_core_router_message(node->prefill, sim->now_us, conn->slot[end], msg, &err);
    else
        status =
            bt_decode_core_router_message(node->decode, sim->now_us, conn->slot[end], msg, &err);
    if (status < 0)
        sim_fail(sim, "protocol", "%s refuses message %d of a router: %s", node->name,
                 (int)msg->type, err.text);
    sim_drain_actions(sim, n);
    sim->speaker = (struct bt_id){0};
}

void sim_drop_conns(struct sim *sim, int n, bool silent) {
    for (uint32_t i = 0; i < SIM_CONNS; i++) {
        struct sim_conn *conn = &sim->conns[i];
        for (int end = 0; conn->used && end < 2; end++) {
            if (conn->node[end] != n || !conn->open[end])
                continue;
            if (!conn->is_link)
                close_end(sim, i, end, !silent);
            else if (silent)
                sim_lose_link(sim, i, end);
            else
                sim_end_link(sim, i, end);
        }
    }
}

/* Processes of the simulator: started, killed, and what their cores want done. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/kv/kv_recv_inner.h"
#include "common/kv/kv_send_inner.h"
#include "decode_worker/decode_state.h"
#include "prefill_worker/prefill_state.h"
#include "sim.h"

int sim_node_of(const struct sim *sim, struct bt_id incarnation) {
    for (int n = 0; n < sim->n_nodes; n++)
        if (sim->nodes[n].up && bt_id_equal(sim->nodes[n].incarnation, incarnation))
            return n;
    return -1;
}

static const struct bt_fingerprint fingerprint = {
    .model_hash = 77,
    .n_layers = SIM_LAYERS,
    .n_kv_heads = 1,
    .head_dim = 16,
    .page_tokens = BT_PAGE_TOKENS,
    .kv_type = BT_KV_BF16,
    .wire_type = BT_KV_BF16,
    .inner_order = BT_KV_INNER_ORDER_CPU,
    .profile = BT_PROFILE_FAST,
    .contract = BT_NUMERICS_CONTRACT,
};

static struct bt_msg_join join_of(const struct sim *sim, const struct sim_node *node) {
    struct bt_msg_join join = {
        .incarnation = node->incarnation,
        .role = node->role == SIM_PREFILL ? BT_ROLE_PREFILL : BT_ROLE_DECODE,
        .protocol_min = BT_PROTOCOL_MIN,
        .protocol_max = BT_PROTOCOL_MAX,
        .fingerprint = fingerprint,
        .text_hash = 5,
        .max_context = SIM_CONTEXT,
        .max_seqs = sim->short_cuts ? 32 : 8,
    };
    uint32_t pool_tokens = node->n_pages * BT_PAGE_TOKENS;
    if (pool_tokens < join.max_context)
        join.max_context = pool_tokens;
    snprintf(join.name, sizeof join.name, "%s", node->name);
    if (node->role == SIM_DECODE)
        snprintf(join.link_address, sizeof join.link_address, "%s:1", node->name);
    return join;
}

static bt_status start_router(struct sim *sim, struct sim_node *node, struct bt_error *err) {
    struct bt_router_config config;
    bt_router_config_default(&config);
    config.incarnation = node->incarnation;
    config.seed = (struct bt_id){sim_next(&sim->random), sim_next(&sim->random)};
    config.max_requests = sim->tight ? 3 + sim_below(&sim->random, 6) : 64;
    config.max_queued = sim->tight ? 1 + sim_below(&sim->random, 4) : 64;
    config.token_budget = (sim->tight ? 2 + sim_below(&sim->random, 6) : 64) * SIM_CONTEXT;
    config.queue_ms = sim->queue_ms;
    config.deadline_ms = 60000;
    config.disaggregate = sim->disaggregate;
    config.short_prompt_tokens = 6;
    config.prefill_backlog_tokens = 64 + sim_below(&sim->random, 128);
    config.prefix_slots = 256;
    config.n_records = 8;
    node->router = bt_router_core_create(&config, err);
    return node->router ? BT_OK : err->status;
}

#if BT_MUTANT_checksum_at_sending
static uint64_t sum_now(void *arg, uint32_t layer, uint32_t page) {
    const struct sim_node *node = arg;
    uint64_t contents = node->contents[(size_t)layer * node->n_pages + page];
    return sim_sum(node->corrupting ? contents ^ SIM_CORRUPTION : contents);
}
#endif

void sim_start_node(struct sim *sim, int n) {
    struct sim_node *node = &sim->nodes[n];
    struct bt_error err;
    bt_status status;
    node->up = true;
    node->born++;
    node->draining = false;
    node->incarnation = (struct bt_id){++sim->next_incarnation, sim_next(&sim->random)};
    node->paused_until_us = 0;
    sim_say(sim, n, "starts");
    if (node->role == SIM_ROUTER) {
        status = start_router(sim, node, &err);
    } else {
        node->contents = calloc((size_t)SIM_LAYERS * node->n_pages, sizeof *node->contents);
        for (int r = 0; r < SIM_ROUTERS; r++) {
            node->conn_of[r] = -1;
            node->dialing[r] = false;
        }
        if (node->role == SIM_PREFILL)
            status = bt_prefill_core_create(
                &(struct bt_prefill_config) {
                    .join = join_of(sim, node), .n_pages = node->n_pages, .n_layers = SIM_LAYERS,
                    .page_bytes = sim->page_bytes, .n_vocab = SIM_VOCAB,
                    .chunk_tokens = 16 + sim_below(&sim->random, 40),
                    .max_offers = sim_chance(&sim->random, 70) ? 2 : 1, .drain_ms = 300,
#if BT_MUTANT_checksum_at_sending
                    .sum_now = sum_now, .sum_now_arg = node,
#endif
                },
                &node->prefill, &err);
        else
            status = bt_decode_core_create(
                &(struct bt_decode_config){
                    .join = join_of(sim, node),
                    .n_pages = node->n_pages,
                    .n_layers = SIM_LAYERS,
                    .page_bytes = sim->page_bytes,
                    .n_vocab = SIM_VOCAB,
                    .chunk_tokens = sim->long_answers && sim_chance(&sim->random, 50)
                                        ? 1 + sim_below(&sim->random, 4)
                                        : 4 + sim_below(&sim->random, 52),
                    /* Half of them: some bounds are out of reach, some are
                     * never met. */
                    .step_us =
                        node->incarnation.lo % 2 ? (uint32_t)(node->incarnation.lo % 30000) : 0,
                    .drain_ms = 300},
                &node->decode, &err);
    }
    if (status < 0) {
        sim_fail(sim, "start", "%s: %s", node->name, err.text);
        return;
    }
    sim_push(sim, sim->now_us + sim_below(&sim->random, 50000), SIM_ON_TICK, n, 0, 0, NULL);
    if (node->role != SIM_ROUTER)
        sim_dial_routers(sim, n);
}

/* Adds what this core has reached to the totals; before it goes away. */
void sim_gather(struct sim *sim, int n) {
    struct sim_node *node = &sim->nodes[n];
    struct sim_coverage *all = sim->coverage;
    uint32_t n_pairs;
    const uint32_t *counts;
    if (node->router) {
        counts = bt_router_core_coverage(node->router, &n_pairs);
        for (uint32_t i = 0; i < n_pairs && i < 256; i++)
            all->pairs_router[i] += counts[i];
    }
    if (node->prefill) {
        counts = bt_prefill_core_coverage(node->prefill, &n_pairs);
        for (uint32_t i = 0; i < n_pairs && i < 256; i++)
            all->pairs_prefill[i] += counts[i];
        counts = bt_kv_send_coverage(bt_prefill_core_kv_send(node->prefill), &n_pairs);
        for (uint32_t i = 0; i < n_pairs && i < 256; i++)
            all->pairs_send[i] += counts[i];
    }
    if (node->decode) {
        counts = bt_decode_core_coverage(node->decode, &n_pairs);
        for (uint32_t i = 0; i < n_pairs && i < 256; i++)
            all->pairs_decode[i] += counts[i];
        counts = bt_kv_recv_coverage(bt_decode_core_kv_recv(node->decode), &n_pairs);
        for (uint32_t i = 0; i < n_pairs && i < 256; i++)
            all->pairs_recv[i] += counts[i];
        all->n_committed += bt_decode_core_kv_counters(node->decode)->committed;
    }
}

void sim_kill_node(struct sim *sim, int n, bool silent) {
    struct sim_node *node = &sim->nodes[n];
    if (!node->up)
        return;
    sim_say(sim, n, silent ? "dies and nobody is told" : "dies");
    sim_gather(sim, n);
    node->up = false;
    sim_drop_conns(sim, n, silent);
    if (node->role == SIM_ROUTER)
        sim_clients_lost(sim, n);
    bt_router_core_destroy(node->router);
    bt_prefill_core_destroy(node->prefill);
    bt_decode_core_destroy(node->decode);
    node->router = NULL;
    node->prefill = NULL;
    node->decode = NULL;
    free(node->contents);
    node->contents = NULL;
    node->step = NULL;
}

/* ---- what the cores want done ---- */

static void post(struct sim *sim, int n, struct bt_step *step) {
    struct sim_node *node = &sim->nodes[n];
    node->step = step;
    uint64_t at = sim->now_us;
    uint64_t layer_us = 300 + step->n_rows * (20 + sim_below(&sim->random, 60));
    if (sim_chance(&sim->random, 3))
        layer_us += sim_below(&sim->random, 150000);
    if (sim_is_enabled(sim, SIM_SLOW_STEP) && sim_chance(&sim->random, sim->slow ? 12 : 6)) {
        layer_us += 100000 + sim_below(&sim->random, sim->slow ? 2000000 : 1000000);
        sim->coverage->faults[SIM_SLOW_STEP]++;
        sim_say(sim, n, "computes a slow step");
    }
    for (uint32_t layer = 0; layer < SIM_LAYERS; layer++) {
        at += layer_us;
        sim_push(sim, at, SIM_ON_LAYER, n, layer, (uint32_t)step->id, NULL);
    }
    node->step_until_us = at + 100;
    sim_push(sim, at + 100, SIM_ON_STEP, n, 0, (uint32_t)step->id, NULL);
}

static void say_msg(struct sim *sim, int n, uint32_t slot, const struct bt_msg *msg) {
    static const char *const names[] = {
        "",       "join",    "status",  "blocks", "reserved", "live",    "tokens",
        "ended",  "welcome", "refused", "peers",  "resume",   "reserve", "prefill",
        "cancel", "pgone",   "seen",    "pulse",  "flush",    "scores",  "report"};
    if (!sim->options->trace || msg->type == BT_MSG_STATUS || msg->type == BT_MSG_PULSE)
        return;
    switch (msg->type) {
    case BT_MSG_TOKENS:
        for (uint32_t i = 0; i < msg->tokens.n_rows; i++)
            sim_say(sim, n, "to %u: token %u of request %llu.%u is %d", slot,
                    msg->tokens.rows[i].index, (unsigned long long)msg->tokens.rows[i].key.request,
                    msg->tokens.rows[i].key.attempt, msg->tokens.rows[i].token);
        break;
    case BT_MSG_ENDED:
        sim_say(sim, n, "to %u: ended %llu.%u reason %d next %u", slot,
                (unsigned long long)msg->ended.key.request, msg->ended.key.attempt,
                (int)msg->ended.reason, msg->ended.next_index);
        break;
    case BT_MSG_RESERVE:
    case BT_MSG_PREFILL:
        sim_say(sim, n, "to %u: %s %llu.%u, %u tokens%s", slot, names[msg->type],
                (unsigned long long)msg->work.key.request, msg->work.key.attempt,
                msg->work.n_tokens, msg->work.prefill_here ? ", computed there" : "");
        break;
    case BT_MSG_RESERVED:
        sim_say(sim, n, "to %u: reserved %llu.%u %s %d, holds %u of %u pages", slot,
                (unsigned long long)msg->reserved.key.request, msg->reserved.key.attempt,
                msg->reserved.accepted ? "accepted" : "refused", (int)msg->reserved.reason,
                msg->reserved.pages_held, msg->reserved.pages);
        break;
    case BT_MSG_CANCEL:
    case BT_MSG_PGONE:
    case BT_MSG_LIVE:
        sim_say(sim, n, "to %u: %s %llu.%u", slot, names[msg->type],
                (unsigned long long)msg->cancel.key.request, msg->cancel.key.attempt);
        break;
    default:
        sim_say(sim, n, "to %u: %s", slot, names[msg->type]);
    }
}

static void router_actions(struct sim *sim, int n) {
    struct sim_node *node = &sim->nodes[n];
    struct bt_router_action action;
    while (node->up && bt_router_core_next(node->router, &action))
        switch (action.type) {
        case BT_ROUTER_SEND:
            say_msg(sim, n, action.slot, action.msg);
            if (action.msg->type == BT_MSG_CANCEL)
                sim_check_cancel(sim, n, action.slot, &action.msg->cancel);
            if (action.msg->type == BT_MSG_RESUME)
                sim->coverage->n_resumed += action.msg->resume.n_rows;
            if (action.msg->type == BT_MSG_PGONE)
                sim_live_first(sim, n, action.slot, &action.msg->pgone);
            sim_send_msg(sim, n, action.slot, action.msg);
            break;
        case BT_ROUTER_CLOSE:
            sim_say(sim, n, "closes stream %u: %s", action.slot, action.reason);
            if (strstr(action.reason, "logprobs")) /* our workers tell them in order */
                sim_fail(sim, "logprobs of a prompt come once and in order", "%s: %s", node->name,
                         action.reason);
            sim_close_stream(sim, n, action.slot);
            break;
        case BT_ROUTER_EMIT:
            sim_on_emit(sim, &action);
            break;
        case BT_ROUTER_END:
            sim_on_end(sim, &action);
            break;
        case BT_ROUTER_SCORES:
            sim_on_scores(sim, &action);
            break;
        case BT_ROUTER_LOG:
            sim_say(sim, n, "says: %s", action.reason);
            break;
        }
}

static void prefill_actions(struct sim *sim, int n) {
    struct sim_node *node = &sim->nodes[n];
    struct bt_prefill_action action;
    while (node->up && bt_prefill_core_next(node->prefill, sim->now_us, &action))
        switch (action.type) {
        case BT_PREFILL_SEND:
            say_msg(sim, n, action.slot, action.msg);
            if (action.msg->type == BT_MSG_ENDED)
                sim->coverage->ends[action.msg->ended.reason]++;
            sim_send_msg(sim, n, action.slot, action.msg);
            break;
        case BT_PREFILL_CLOSE:
            sim_say(sim, n, "closes stream %u: %s", action.slot, action.reason);
            sim_close_stream(sim, n, action.slot);
            break;
        case BT_PREFILL_QUIT:
            sim_fail(sim, "protocol", "%s is refused: %s", node->name, action.reason);
            break;
        case BT_PREFILL_STEP:
            post(sim, n, action.step);
            break;
        case BT_PREFILL_LINK_SEND:
            sim_link_send(sim, n, action.link, &action.link_msg);
            break;
        case BT_PREFILL_LINK_PUMP:
            sim_link_pump(sim, n, action.link);
            break;
        case BT_PREFILL_LINK_DIAL:
            sim_link_dial(sim, n, action.link, action.peer);
            break;
        case BT_PREFILL_LINK_CLOSE:
            sim_link_close(sim, n, action.link);
            break;
        case BT_PREFILL_EXIT:
            sim_push(sim, sim->now_us + 1, SIM_ON_RESTART, n, 0, 0, NULL);
            break;
        }
}

/* Tickets that a decode worker has had: a late hello shows one of them again. */
static void remember_ticket(struct sim *sim, int n, struct bt_attempt key) {
    const struct bt_decode_core *core = sim->nodes[n].decode;
    for (uint32_t i = 0; i < core->n_seqs; i++) {
        const struct bt_job *job = bt_ledger_job(core->ledger, i);
        if (job->used && job->key.request == key.request && job->key.attempt == key.attempt)
            sim->tickets[sim->n_tickets++ % SIM_TICKETS] = (struct sim_ticket){
                .ticket = job->ticket, .node = n, .born = sim->nodes[n].born, .at_us = sim->now_us};
    }
}

static void decode_actions(struct sim *sim, int n) {
    struct sim_node *node = &sim->nodes[n];
    struct bt_decode_action action;
    while (node->up && bt_decode_core_next(node->decode, sim->now_us, &action))
        switch (action.type) {
        case BT_DECODE_SEND:
            say_msg(sim, n, action.slot, action.msg);
            if (action.msg->type == BT_MSG_ENDED) {
                sim->coverage->ends[action.msg->ended.reason]++;
                if (action.msg->ended.reason == BT_END_PREEMPTED)
                    sim_check_preempted(sim, n, &action.msg->ended);
            } else if (action.msg->type == BT_MSG_RESERVED) {
                sim->coverage->n_pinned += action.msg->reserved.pages_held;
                remember_ticket(sim, n, action.msg->reserved.key);
                if (!action.msg->reserved.accepted)
                    sim->coverage->ends[action.msg->reserved.reason]++;
                else
                    sim_lie_withdrawn(sim, n);
            }
            sim_send_msg(sim, n, action.slot, action.msg);
            if (action.msg->type == BT_MSG_SCORES)
                sim_cut_scores(sim, n, action.slot);
            break;
        case BT_DECODE_CLOSE:
            sim_say(sim, n, "closes stream %u: %s", action.slot, action.reason);
            sim_close_stream(sim, n, action.slot);
            break;
        case BT_DECODE_QUIT:
            sim_fail(sim, "protocol", "%s is refused: %s", node->name, action.reason);
            break;
        case BT_DECODE_STEP:
            post(sim, n, action.step);
            break;
        case BT_DECODE_LINK_SEND:
            sim_link_send(sim, n, action.link, &action.link_msg);
            break;
        case BT_DECODE_LINK_CUT:
            sim_link_cut(sim, n, action.link, action.lease);
            break;
        case BT_DECODE_EXIT:
            sim_push(sim, sim->now_us + 1, SIM_ON_RESTART, n, 0, 0, NULL);
            break;
        }
}

void sim_drain_actions(struct sim *sim, int n) {
    struct sim_node *node = &sim->nodes[n];
    if (!node->up)
        return;
    if (node->role == SIM_ROUTER)
        router_actions(sim, n);
    else if (node->role == SIM_PREFILL)
        prefill_actions(sim, n);
    else
        decode_actions(sim, n);
    if (sim->options->audit && node->up)
        sim_check_node(sim, n);
    if (node->up && node->router)
        sim_aim(sim, n);
    else if (node->up && node->prefill)
        sim_strike_waiting(sim, n);
}

uint32_t sim_n_pairs_prefill(void) {
    return BT_PREFILL_STATE_COUNT * BT_PREFILL_EVENT_COUNT;
}

uint32_t sim_n_pairs_decode(void) {
    return BT_DECODE_STATE_COUNT * BT_DECODE_EVENT_COUNT;
}

uint32_t sim_n_pairs_send(void) {
    return BT_KV_SEND_STATE_COUNT * BT_KV_SEND_EVENT_COUNT;
}

uint32_t sim_n_pairs_recv(void) {
    return BT_KV_RECV_STATE_COUNT * BT_KV_RECV_EVENT_COUNT;
}

/* The invariants that are more than what a client sees: bounds, victims, who is believed, and what
 * is left when everything has ended. */
#include "common/kv/kv_recv_inner.h"
#include "common/kv/kv_send_inner.h"
#include "common/rpc/ledger_state.h"
#include "decode_worker/decode_state.h"
#include "prefill_worker/prefill_state.h"
#include "router/core_state.h"
#include "sim.h"

/* ---- after each event of a node ---- */

static void check_bound(struct sim *sim, const struct sim_node *node, const char *what,
                        uint64_t value, uint64_t bound) {
    if (value > bound)
        sim_fail(sim, "no bounded thing above its bound", "%s has %llu %s, the bound is %llu",
                 node->name, (unsigned long long)value, what, (unsigned long long)bound);
}

static void check_ledger(struct sim *sim, const struct sim_node *node,
                         const struct bt_ledger *ledger) {
    uint32_t n_jobs = 0;
    for (uint32_t i = 0; i < BT_LEDGER_ROUTERS; i++)
        n_jobs += ledger->routers[i].n_jobs;
    check_bound(sim, node, "jobs", n_jobs, ledger->config.max_jobs);
    check_bound(sim, node, "answers to give", ledger->n_refusals, BT_LEDGER_REFUSALS);
    check_bound(sim, node, "changes to tell", ledger->n_changes, BT_LEDGER_BLOCKS);
}

static void check_router_bounds(struct sim *sim, const struct sim_node *node) {
    const struct bt_router_core *core = node->router;
    const struct bt_router_config *config = &core->config;
    const struct bt_router_counters *counters = bt_router_core_counters(node->router);
    check_bound(sim, node, "requests", counters->live, config->max_requests);
    check_bound(sim, node, "timers", core->timers.n, config->max_requests);
    /* In chunks, which the budget is rounded up to. */
    check_bound(sim, node, "chunks of tokens", bt_token_store_used(&core->tokens),
                bt_token_store_chunks_for(config->token_budget));
    check_bound(sim, node, "chunks promised", core->tokens.pool.n_reserved,
                core->tokens.pool.n_chunks);
    check_bound(sim, node, "retries at once", core->n_retrying, config->max_requests);
    check_bound(sim, node, "actions", core->actions.n, BT_ACTIONS_MAX);
}

static void check_prefill_bounds(struct sim *sim, const struct sim_node *node) {
    const struct bt_prefill_core *core = node->prefill;
    uint32_t n_waiting = 0;
    for (uint32_t i = 0; i < core->n_seqs; i++)
        n_waiting +=
            core->seqs[i].state == BT_PREFILL_OFFERED || core->seqs[i].state == BT_PREFILL_GRANTED;
    check_bound(sim, node, "sequences", core->n_active, core->n_seqs);
    check_bound(sim, node, "offers", n_waiting, core->config.max_offers);
    check_bound(sim, node, "actions of sends", core->send->n_actions, core->send->max_actions);
    for (uint32_t link = 0; link < BT_MAX_LINKS; link++)
        check_bound(sim, node, "frames out", core->send->links[link].frames_out, BT_KV_LINK_FRAMES);
    check_ledger(sim, node, core->ledger);
}

static void check_decode_bounds(struct sim *sim, const struct sim_node *node) {
    const struct bt_decode_core *core = node->decode;
    const struct bt_kv_tickets *tickets = &core->recv->tickets;
    check_bound(sim, node, "sequences", core->n_active, core->config.join.max_seqs);
    check_bound(sim, node, "parked hellos", tickets->n_parked, 4ull * core->config.join.max_seqs);
    check_bound(sim, node, "ended tickets", tickets->n_ended, tickets->max_ended);
    check_bound(sim, node, "actions of leases", core->recv->n_actions, core->recv->max_actions);
    check_ledger(sim, node, core->ledger);
}

void sim_check_node(struct sim *sim, int n) {
    const struct sim_node *node = &sim->nodes[n];
    bool valid;
    if (node->role == SIM_ROUTER) {
        valid = bt_router_core_is_valid(node->router);
        check_router_bounds(sim, node);
    } else if (node->role == SIM_PREFILL) {
        valid = bt_prefill_core_is_valid(node->prefill);
        check_prefill_bounds(sim, node);
    } else {
        valid = bt_decode_core_is_valid(node->decode);
        check_decode_bounds(sim, node);
    }
    if (!valid)
        sim_fail(sim, "everything adds up", "%s is not valid", node->name);
}

/* ---- who is believed ---- */

static bool is_speaker(const struct sim *sim, const struct bt_router_core *core, int worker) {
    return worker != BT_NO_WORKER &&
           bt_id_equal(core->workers.workers[worker].incarnation, sim->speaker);
}

void sim_check_speaker(struct sim *sim, int r, const struct bt_request *req) {
    /* Its last token has closed its parts; a lost one may have others by now. */
    if (req->state >= BT_REQUEST_SERVED || req->state < BT_REQUEST_TRANSFERRING)
        return;
    const struct bt_router_core *core = sim->nodes[r].router;
    if (!is_speaker(sim, core, req->p) && !is_speaker(sim, core, req->d))
        sim_fail(sim, "a worker thought dead is not believed",
                 "%s takes a token of request %llu from incarnation %llu", sim->nodes[r].name,
                 (unsigned long long)req->id, (unsigned long long)sim->speaker.hi);
}

bool sim_is_given_up(const struct sim_node *router, uint32_t slot) {
    return router->router->workers.slots[slot].closing;
}

/* ---- preemption and cancel ---- */

void sim_check_preempted(struct sim *sim, int n, const struct bt_msg_ended *end) {
    struct sim_node *d = &sim->nodes[n];
    const struct bt_decode_core *core = d->decode;
    const struct bt_job *victim = NULL;
    for (uint32_t i = 0; i < core->n_seqs; i++) {
        const struct bt_job *job = bt_ledger_job(core->ledger, i);
        if (job->used && job->key.request == end->key.request &&
            job->key.attempt == end->key.attempt && job->ended)
            victim = job;
    }
    sim->coverage->n_preempted += victim && victim->ended_us == sim->now_us;
    for (uint32_t i = 0; victim && i < core->n_seqs; i++) {
        const struct bt_decode_seq *seq = &core->seqs[i];
        if (seq->state != BT_DECODE_FREE && seq->job != victim &&
            seq->job->arrived_us <= victim->arrived_us)
            return;
    }
    if (!victim || !core->n_active || victim->ended_us != sim->now_us) /* told again, later */
        return;
    for (uint32_t i = 0; i < core->n_seqs; i++) {
        const struct bt_decode_seq *seq = &core->seqs[i];
        if (seq->state != BT_DECODE_FREE)
            sim_say(sim, n, "has %llu.%u state %d, %u pages %u reserved gain %u, arrived %.6f",
                    (unsigned long long)seq->job->key.request, seq->job->key.attempt,
                    (int)seq->state, seq->hold.n_pages, seq->hold.n_reserved,
                    bt_kv_hold_gain(core->pool, &seq->hold), (double)seq->job->arrived_us / 1e6);
    }
    sim_fail(sim, "the oldest sequence always finishes",
             "%s preempted request %llu, older than all others there (arrived %.6f)", d->name,
             (unsigned long long)end->key.request, (double)victim->arrived_us / 1e6);
}

void sim_check_cancel(struct sim *sim, int r, uint32_t slot, const struct bt_msg_cancel *cancel) {
    const struct sim_conn *conn = sim_conn_at(sim, r, slot, false);
    if (!conn || sim->nodes[conn->node[0]].role != SIM_DECODE || !conn->open[0])
        return;
    const struct sim_node *d = &sim->nodes[conn->node[0]];
    if (!d->up || sim->now_us < d->paused_until_us || sim->now_us < sim_cut_until(sim, conn))
        return;
    for (int c = 0; c < sim->n_clients; c++) {
        const struct sim_client *client = &sim->clients[c];
        if (!client->sent || client->ended || client->cancelled || client->lost || !client->req ||
            client->router != r || client->req->id != cancel->key.request)
            continue;
        for (uint32_t i = 0; i < d->decode->n_seqs; i++) {
            const struct bt_decode_seq *seq = &d->decode->seqs[i];
            if (seq->state == BT_DECODE_RUNNING && !seq->job->ended &&
                seq->job->key.request == cancel->key.request &&
                seq->job->key.attempt == cancel->key.attempt &&
                bt_id_equal(seq->job->ticket, cancel->ticket) &&
                client->req->state < BT_REQUEST_SERVED)
                sim_fail(sim, "P's death is D's to judge",
                         "%s cancels request %llu.%u, which %s has and decodes", sim->nodes[r].name,
                         (unsigned long long)cancel->key.request, cancel->key.attempt, d->name);
        }
    }
}

/* A decode worker that had this ticket not long ago and has it no more. */
bool sim_has_ended(const struct sim *sim, int n, struct bt_id ticket) {
    const struct bt_decode_core *core = sim->nodes[n].decode;
    for (uint32_t i = 0; i < core->n_seqs; i++)
        if (core->seqs[i].state != BT_DECODE_FREE && bt_id_equal(core->seqs[i].job->ticket, ticket))
            return false;
    for (int i = 0; i < SIM_TICKETS; i++) {
        const struct sim_ticket *t = &sim->tickets[i];
        if (bt_id_equal(t->ticket, ticket) && t->node == n && t->born == sim->nodes[n].born &&
            sim->now_us - t->at_us < 5 * SIM_S)
            return true;
    }
    return false;
}

/* ---- at the end ---- */

/* Links that were cut for less than 2 s have cost no attempt. */
static void check_moves(struct sim *sim, const struct sim_node *node,
                        const struct bt_router_counters *counters) {
    if (sim->short_cuts && counters->attempts != counters->submitted)
        sim_fail(sim, "a cut below 2 s re-prefills nothing", "%s made %llu attempts for %llu",
                 node->name, (unsigned long long)counters->attempts,
                 (unsigned long long)counters->submitted);
}

/* Where each request's time went adds up to all of it. */
static void check_spans(struct sim *sim, const struct sim_node *node) {
    struct bt_request_record record;
    for (uint32_t i = 0; bt_router_core_record(node->router, sim->now_us, i, &record); i++) {
        uint64_t all_us = 0, start_us = 0;
        for (int s = 0; s < BT_SPAN_COUNT; s++) {
            all_us += record.span_us[s];
            start_us += record.start_us[s];
        }
        if (all_us != record.total_us ||
            start_us != (record.ttft_us ? record.ttft_us : record.total_us))
            sim_fail(
                sim, "stages add up to the whole",
                "%s: request %llu took %llu us, its stages %llu; %llu to the first token, %llu",
                node->name, (unsigned long long)record.id, (unsigned long long)record.total_us,
                (unsigned long long)all_us, (unsigned long long)record.ttft_us,
                (unsigned long long)start_us);
    }
}

void sim_check_rest(struct sim *sim) {
    sim_check_clients(sim);
    sim_check_choices(sim);
    for (int n = 0; n < sim->n_nodes; n++) {
        const struct sim_node *node = &sim->nodes[n];
        struct bt_census census;
        if (node->role == SIM_ROUTER) {
            const struct bt_router_counters *counters = bt_router_core_counters(node->router);
            if (counters->live || counters->tokens_stored)
                sim_fail(sim, "nothing is left", "%s still has %llu requests, %llu tokens",
                         node->name, (unsigned long long)counters->live,
                         (unsigned long long)counters->tokens_stored);
            check_moves(sim, node, counters);
            check_spans(sim, node);
            continue;
        }
        if (node->role == SIM_PREFILL)
            bt_prefill_core_census(node->prefill, &census);
        else
            bt_decode_core_census(node->decode, &census);
        if (census.free + census.cached != census.total)
            sim_fail(sim, "nothing is left",
                     "%s: %u free + %u cached of %u pages (%u reserved, %u filling, %u armed, %u "
                     "landed, %u live, %u quarantined)",
                     node->name, census.free, census.cached, census.total, census.reserved,
                     census.filling, census.armed, census.landed, census.live, census.quarantined);
    }
}

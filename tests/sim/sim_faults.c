/* What goes wrong in a seed: which faults it has, when each strikes, and what it does. */
#include "common/rpc/ledger_state.h"
#include "prefill_worker/prefill_state.h"
#include "sim.h"

static const char *const fault_names[SIM_FAULT_COUNT] = {
    "kill router", "kill prefill",    "kill decode",    "pause",          "cut attach",
    "cut link",    "drain",           "flush",          "cancel",         "short deadline",
    "stop string", "lie: generation", "lie: range",     "lie: duplicate", "lie: commit",
    "late hello",  "lie: checksum",   "lie: withdrawn", "live first",     "corrupt page",
    "non-finite",  "power loss",      "slow step",      "late stop",      "short queue",
    "router full", "foreign token",   "short cut",      "late tokens",    "cut scores"};

const char *sim_fault_name(enum sim_fault fault) {
    return fault_names[fault];
}

bool sim_is_enabled(const struct sim *sim, enum sim_fault fault) {
    return sim->enabled[fault] && sim->now_us < sim->calm_us;
}

/* ---- the plan ---- */

/* How often a fault strikes in a seed that has it; 0: it lies in wait, or is a client's. */
static uint32_t strikes(struct sim *sim, enum sim_fault fault) {
    switch (fault) {
    case SIM_KILL_ROUTER:
    case SIM_KILL_PREFILL:
    case SIM_KILL_DECODE:
    case SIM_PAUSE:
    case SIM_CUT_ATTACH:
    case SIM_CUT_LINK:
    case SIM_DRAIN:
    case SIM_FLUSH:
    case SIM_POWER_LOSS:
        return 1 + sim_below(&sim->random, 2);
    case SIM_LIE_GENERATION:
    case SIM_LIE_RANGE:
    case SIM_LIE_DUPLICATE:
    case SIM_LIE_COMMIT:
    case SIM_LATE_HELLO:
    case SIM_LIE_CHECKSUM:
        return 12;
    case SIM_SHORT_CUT:
        return 6;
    default:
        return 0;
    }
}

static bool is_of_clients(enum sim_fault fault) {
    switch (fault) {
    case SIM_CANCEL:
    case SIM_SHORT_DEADLINE:
    case SIM_STOP_STRING:
    case SIM_LATE_STOP:
    case SIM_SHORT_QUEUE:
    case SIM_ROUTER_FULL:
    case SIM_FOREIGN_TOKEN:
        return true;
    default:
        return false;
    }
}

void sim_plan_faults(struct sim *sim) {
    struct sim_random *random = &sim->random;
    sim->faulty = sim->seed % 4 != 0;
    sim->calm_us = 5 * SIM_S;
    bool clients_only = sim->seed % 4 == 1;
    /* One seed in eight is about work that lasts: whoever waits meets deadlines, drains and the
     * end of its router there. */
    sim->slow = sim->seed % 8 == 7;
    sim->enabled[SIM_CUT_SCORES] = sim->faulty && !clients_only; /* not drawn: strikes are */
    for (int f = 0; f < SIM_CUT_SCORES; f++) {
        sim->enabled[f] = sim->faulty && sim_chance(random, 40);
        if (clients_only && !is_of_clients((enum sim_fault)f))
            sim->enabled[f] = false;
    }
    if (sim->slow) {
        sim->enabled[SIM_SLOW_STEP] = sim->enabled[SIM_CUT_ATTACH] = true;
        sim->enabled[SIM_SHORT_DEADLINE] |= sim_chance(random, 50);
    }
    sim->enabled[SIM_SHORT_QUEUE] &= sim_chance(random, 40);
    sim->enabled[SIM_ROUTER_FULL] &= sim_chance(random, 40);
    sim->enabled[SIM_SHORT_CUT] = sim->short_cuts;
    sim->tight = sim->enabled[SIM_ROUTER_FULL];
    sim->queue_ms = sim->enabled[SIM_SHORT_QUEUE] ? 20 + sim_below(random, 500) : 50000;
    for (int f = 0; f < SIM_FAULT_COUNT; f++)
        for (uint32_t n = sim->enabled[f] ? strikes(sim, (enum sim_fault)f) : 0; n; n--)
            sim_push(sim, sim->now_us + 200000 + sim_below(random, 3800000), SIM_ON_FAULT, -1,
                     (uint32_t)f, 0, NULL);
}

/* ---- what they do ---- */

static int some_node(struct sim *sim, int role) {
    int found[SIM_NODES], n_found = 0;
    for (int n = 0; n < sim->n_nodes; n++)
        if (sim->nodes[n].up && (role < 0 || (int)sim->nodes[n].role == role))
            found[n_found++] = n;
    return n_found ? found[sim_below(&sim->random, (uint32_t)n_found)] : -1;
}

static void cut_between(struct sim *sim, int a, int b, uint64_t until, enum sim_fault fault) {
    sim->cut_until_us[a][b] = sim->cut_until_us[b][a] = until;
    sim->coverage->faults[fault]++;
    sim_say(sim, a, "is cut from %s until %.3f s", sim->nodes[b].name, (double)until / 1e6);
}

static void cut(struct sim *sim, bool links) {
    int a = some_node(sim, links ? SIM_PREFILL : 1 + (int)sim_below(&sim->random, 2));
    int b = some_node(sim, links ? SIM_DECODE : SIM_ROUTER);
    if (a < 0 || b < 0 || sim->now_us < sim->cut_until_us[a][b])
        return;
    uint64_t until = sim->now_us + sim_below(&sim->random, 3500000);
    cut_between(sim, a, b, until, links ? SIM_CUT_LINK : SIM_CUT_ATTACH);
    if (!links || until - sim->now_us < 2 * SIM_S)
        return;
    for (uint32_t i = 0; i < SIM_CONNS; i++) { /* a link finds out after 2 s, each end by itself */
        const struct sim_conn *conn = &sim->conns[i];
        if (!conn->used || !conn->is_link || conn->node[0] != a || conn->node[1] != b)
            continue;
        for (uint32_t end = 0; end < 2; end++)
            sim_push(sim, sim->now_us + 2 * SIM_S + sim_below(&sim->random, 200000),
                     SIM_ON_LINK_DOWN, -1, i, end, NULL);
    }
}

/* One link that is up, or all of them at once, for less than it takes to notice. */
static void cut_short(struct sim *sim) {
    bool all = sim_chance(&sim->random, 50);
    uint64_t until = sim->now_us + sim_below(&sim->random, 1900000);
    for (uint32_t i = 0; i < SIM_CONNS; i++) {
        const struct sim_conn *conn = &sim->conns[i];
        if (!conn->used || !conn->is_link || !conn->told[0] || !conn->told[1] ||
            sim->now_us < sim_cut_until(sim, conn) || (!all && sim_chance(&sim->random, 50)))
            continue;
        cut_between(sim, conn->node[0], conn->node[1], until, SIM_SHORT_CUT);
    }
}

static void kill(struct sim *sim, int n, enum sim_fault fault) {
    if (n < 0)
        return;
    sim->coverage->faults[fault]++;
    sim_kill_node(sim, n, fault == SIM_POWER_LOSS);
    sim_push(sim, sim->now_us + 100000 + sim_below(&sim->random, SIM_S), SIM_ON_RESTART, n, 1, 0,
             NULL);
}

static void pause_node(struct sim *sim, int n) {
    if (n < 0 || sim->now_us < sim->nodes[n].paused_until_us)
        return;
    sim->nodes[n].paused_until_us = sim->now_us + sim_below(&sim->random, 3000000);
    sim->coverage->faults[SIM_PAUSE]++;
    sim_say(sim, n, "pauses until %.3f s", (double)sim->nodes[n].paused_until_us / 1e6);
}

static void drain(struct sim *sim, int n) {
    if (n < 0)
        return;
    sim->coverage->faults[SIM_DRAIN]++;
    sim_say(sim, n, "drains");
    if (sim->nodes[n].prefill)
        bt_prefill_core_drain(sim->nodes[n].prefill, sim->now_us);
    else
        bt_decode_core_drain(sim->nodes[n].decode, sim->now_us);
    sim_drain_actions(sim, n);
}

static void flush(struct sim *sim, int n) {
    if (n < 0)
        return;
    sim->coverage->faults[SIM_FLUSH]++;
    bt_router_core_flush(sim->nodes[n].router, sim->now_us);
    sim_drain_actions(sim, n);
}

/* The client of this job, -1: it has gone. */
static int client_of(const struct sim *sim, int router, uint64_t request) {
    for (int c = 0; c < sim->n_clients; c++)
        if (sim->clients[c].router == router && sim->clients[c].req &&
            sim->clients[c].req->id == request)
            return c;
    return -1;
}

void sim_strike_waiting(struct sim *sim, int n) {
    const struct bt_prefill_core *core = sim->nodes[n].prefill;
    if (!sim->slow || sim->n_struck >= 3 || sim->now_us > sim->calm_us || !core->n_active)
        return;
    const struct bt_prefill_seq *seq = NULL;
    for (uint32_t i = 0; i < core->n_seqs && !seq; i++)
        if (core->seqs[i].state == BT_PREFILL_GRANTED ||
            (core->seqs[i].state == BT_PREFILL_QUEUED && sim_chance(&sim->random, 5)))
            seq = &core->seqs[i];
    /* A step that lasts holds the pages for as long as a cut takes to be noticed. */
    const struct sim_node *node = &sim->nodes[n];
    bool lasts = node->step && node->step_until_us > sim->now_us + 1700000;
    if (!seq || !sim_chance(&sim->random, lasts ? 80 : 2))
        return;
    int r = sim_node_of(sim, core->ledger->routers[seq->job->router].incarnation);
    int c = r < 0 ? -1 : client_of(sim, r, seq->job->key.request);
    if (c < 0)
        return;
    sim->n_struck++;
    if (sim_chance(&sim->random, lasts ? 5 : 40)) {
        sim_push(sim, sim->now_us + 100, SIM_ON_CANCEL, -1, (uint32_t)c, 0, NULL);
    } else if (sim_chance(&sim->random, lasts ? 10 : 30)) {
        drain(sim, n);
    } else if (sim->now_us >= sim->cut_until_us[n][r]) {
        /* The worker gives its stream up after 1 s; when it is back nobody lists the prompt. Half
         * of the time no decode worker can tell it before. */
        uint64_t until = sim->now_us + 1100000 + sim_below(&sim->random, 300000);
        cut_between(sim, n, r, until, SIM_CUT_ATTACH);
        bool deaf = lasts && sim_chance(&sim->random, 50);
        for (int d = 0; deaf && d < sim->n_nodes; d++)
            if (sim->nodes[d].role == SIM_DECODE && sim->now_us >= sim->cut_until_us[n][d])
                cut_between(sim, n, d, until + 200000, SIM_SHORT_CUT);
        sim_push(sim, sim->now_us + 100000 + sim_below(&sim->random, 700000), SIM_ON_CANCEL, -1,
                 (uint32_t)c, 0, NULL);
    }
}

void sim_cut_scores(struct sim *sim, int decode, uint32_t slot) {
    const struct sim_conn *conn = sim_conn_at(sim, decode, slot, false);
    struct sim_random random = {sim_mix(sim->seed, sim->now_us)}; /* apart: schedules stay */
    if (!conn || !sim_is_enabled(sim, SIM_CUT_SCORES) || !sim_chance(&random, 15))
        return;
    sim->coverage->faults[SIM_CUT_SCORES]++;
    sim_say(sim, decode, "loses the stream with what is on it");
    sim_push(sim, sim->now_us + 1, SIM_ON_CLOSED, -1, (uint32_t)(conn - sim->conns), 1, NULL);
}

void sim_on_fault(struct sim *sim, enum sim_fault fault) {
    switch (fault) {
    case SIM_KILL_ROUTER:
        kill(sim, some_node(sim, SIM_ROUTER), fault);
        break;
    case SIM_KILL_PREFILL:
        kill(sim, some_node(sim, SIM_PREFILL), fault);
        break;
    case SIM_KILL_DECODE:
        kill(sim, some_node(sim, SIM_DECODE), fault);
        break;
    case SIM_POWER_LOSS:
        kill(sim, some_node(sim, -1), fault);
        break;
    case SIM_PAUSE:
        pause_node(sim, some_node(sim, -1));
        break;
    case SIM_CUT_ATTACH:
        cut(sim, false);
        break;
    case SIM_CUT_LINK:
        cut(sim, true);
        break;
    case SIM_SHORT_CUT:
        cut_short(sim);
        break;
    case SIM_DRAIN:
        drain(sim, some_node(sim, 1 + (int)sim_below(&sim->random, 2)));
        break;
    case SIM_FLUSH:
        flush(sim, some_node(sim, SIM_ROUTER));
        break;
    default:
        sim_lie(sim, fault);
    }
}

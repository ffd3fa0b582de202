/* One seed: builds the cluster and its faults, runs the events, checks what is left. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

void sim_say(struct sim *sim, int n, const char *format, ...) {
    if (!sim->options->trace)
        return;
    va_list args;
    va_start(args, format);
    printf("%10.6f %-3s ", (double)sim->now_us / 1e6, n < 0 ? "" : sim->nodes[n].name);
    vprintf(format, args);
    putchar('\n');
    va_end(args);
}

void sim_fail(struct sim *sim, const char *invariant, const char *format, ...) {
    char text[384];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    sim_say(sim, -1, "BROKEN: %s: %s", invariant, text);
    if (!sim->failure[0])
        snprintf(sim->failure, sizeof sim->failure, "%s: %s (at %.6f s)", invariant, text,
                 (double)sim->now_us / 1e6);
}

/* ---- the queue of events: a heap by (time, order) ---- */

static bool before(const struct sim_event *a, const struct sim_event *b) {
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->order < b->order;
}

static void insert(struct sim *sim, struct sim_event event) {
    if (sim->n_heap == sim->heap_capacity) {
        sim->heap_capacity = sim->heap_capacity ? 2 * sim->heap_capacity : 1024;
        sim->heap = realloc(sim->heap, sim->heap_capacity * sizeof *sim->heap);
        if (!sim->heap)
            abort();
    }
    size_t i = sim->n_heap++;
    while (i && before(&event, &sim->heap[(i - 1) / 2])) {
        sim->heap[i] = sim->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    sim->heap[i] = event;
}

static struct sim_event take(struct sim *sim) {
    struct sim_event first = sim->heap[0], last = sim->heap[--sim->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < sim->n_heap; i = child) {
        if (child + 1 < sim->n_heap && before(&sim->heap[child + 1], &sim->heap[child]))
            child++;
        if (!before(&sim->heap[child], &last))
            break;
        sim->heap[i] = sim->heap[child];
    }
    sim->heap[i] = last;
    return first;
}

static bool is_of_conn(enum sim_event_type type) {
    switch (type) {
    case SIM_ON_MESSAGE:
    case SIM_ON_CLOSED:
    case SIM_ON_LINK_UP:
    case SIM_ON_LINK_MESSAGE:
    case SIM_ON_FRAME_READ:
    case SIM_ON_FRAME:
    case SIM_ON_LAND:
    case SIM_ON_LINK_DOWN:
        return true;
    default:
        return false;
    }
}

bool sim_concerns(const struct sim *sim, const struct sim_event *event, uint32_t conn) {
    return is_of_conn(event->type) && event->a == conn && sim->conns[conn].used &&
           sim->conns[conn].serial == event->serial;
}

void sim_push(struct sim *sim, uint64_t at_us, enum sim_event_type type, int node, uint32_t a,
              uint32_t b, void *data) {
    insert(sim, (struct sim_event){.at_us = at_us,
                                   .order = ++sim->order,
                                   .type = type,
                                   .node = node,
                                   .born = node < 0 ? 0 : sim->nodes[node].born,
                                   .serial = is_of_conn(type) ? sim->conns[a].serial : 0,
                                   .a = a,
                                   .b = b,
                                   .data = data});
}

/* ---- building ---- */

static void add_nodes(struct sim *sim, enum sim_role role, int count, char letter) {
    for (int i = 0; i < count; i++) {
        struct sim_node *node = &sim->nodes[sim->n_nodes++];
        node->role = role;
        node->index = i;
        snprintf(node->name, sizeof node->name, "%c%d", letter, i);
        node->n_pages = 8 + sim_below(&sim->random, role == SIM_PREFILL ? 12 : 24);
        if (sim->short_cuts)
            node->n_pages = 480;
        else if (sim->slow && role == SIM_PREFILL)
            node->n_pages = 8 + sim_below(&sim->random, 3);
        else if (sim->long_answers)
            node->n_pages = 12 + sim_below(&sim->random, 6);
    }
}

static void build(struct sim *sim) {
    struct sim_random *random = &sim->random;
    sim->short_cuts = sim->seed % 16 == 4;
    sim->n_routers = 1 + (int)sim_below(random, sim->short_cuts ? 1 : SIM_ROUTERS);
    sim->long_answers = sim_chance(random, 30) && !sim->short_cuts;
    uint32_t mode = sim_below(random, 10), always = sim->long_answers ? 4 : 6;
    sim->disaggregate = mode < always                        ? BT_DISAGGREGATE_ALWAYS
                        : mode < (sim->long_answers ? 7 : 9) ? BT_DISAGGREGATE_AUTO
                                                             : BT_DISAGGREGATE_NEVER;
    sim->split = sim_chance(random, 40);
    sim->eager = sim->split && sim_chance(random, 40);
    sim->page_bytes = sim_chance(random, 20) ? 3 * BT_KV_FRAME_BYTES / 2 : 4096;
    sim->slow_percent = sim_chance(random, 50) ? 2 : 15;
    sim_plan_faults(sim);
    add_nodes(sim, SIM_ROUTER, sim->n_routers, 'r');
    add_nodes(sim, SIM_PREFILL, 1 + (int)sim_below(random, SIM_PREFILLS), 'p');
    add_nodes(sim, SIM_DECODE, 1 + (int)sim_below(random, SIM_DECODES), 'd');
    for (int n = 0; n < sim->n_nodes; n++)
        sim_start_node(sim, n);
    sim_make_clients(sim);
}

/* ---- events ---- */

static void on_tick(struct sim *sim, int n) {
    struct sim_node *node = &sim->nodes[n];
    if (node->role == SIM_ROUTER)
        bt_router_core_tick(node->router, sim->now_us);
    else if (node->role == SIM_PREFILL)
        bt_prefill_core_tick(node->prefill, sim->now_us);
    else
        bt_decode_core_tick(node->decode, sim->now_us);
    sim_drain_actions(sim, n);
    sim_push(sim, sim->now_us + 50000, SIM_ON_TICK, n, 0, 0, NULL);
}

static void on_engine(struct sim *sim, const struct sim_event *event) {
    int n = event->node;
    struct sim_node *node = &sim->nodes[n];
    if (event->type == SIM_ON_LAYER) {
        sim_engine_layer(node, event->a);
        if (node->prefill && node->step->n_sums)
            bt_prefill_core_layer_done(node->prefill, sim->now_us, event->a);
    } else {
        bool nonfinite = sim_is_enabled(sim, SIM_NONFINITE) && sim_chance(&sim->random, 10);
        sim_engine_results(node, &sim->random, nonfinite);
        node->step = NULL;
        if (nonfinite)
            sim->coverage->faults[SIM_NONFINITE]++;
        if (node->prefill)
            bt_prefill_core_step_done(node->prefill, sim->now_us);
        else
            bt_decode_core_step_done(node->decode, sim->now_us);
    }
    sim_drain_actions(sim, n);
}

/* The node that must be awake for the event, -1: none. */
static int awake_for(const struct sim *sim, const struct sim_event *event) {
    switch (event->type) {
    case SIM_ON_MESSAGE:
    case SIM_ON_CLOSED:
    case SIM_ON_LINK_UP:
    case SIM_ON_LINK_MESSAGE:
    case SIM_ON_LINK_DOWN:
        return sim->conns[event->a].used ? sim->conns[event->a].node[event->b & 1] : -1;
    case SIM_ON_FRAME:
        return sim->conns[event->a].used ? sim->conns[event->a].node[1] : -1;
    case SIM_ON_CANCEL:
    case SIM_ON_STOP:
    case SIM_ON_ARRIVE:
        return sim->clients[event->a].router;
    default:
        return event->node;
    }
}

/* When the event can happen: not while its node is paused or the network between is cut. */
static uint64_t possible_at(const struct sim *sim, const struct sim_event *event) {
    uint64_t at = sim->now_us;
    int n = awake_for(sim, event);
    if (n >= 0 && sim->nodes[n].up && sim->nodes[n].paused_until_us > at)
        at = sim->nodes[n].paused_until_us;
    bool crosses = event->type == SIM_ON_MESSAGE || event->type == SIM_ON_LINK_MESSAGE ||
                   event->type == SIM_ON_FRAME || event->type == SIM_ON_LINK_UP ||
                   (event->type == SIM_ON_CLOSED && !(event->b & 2));
    if (crosses && sim->conns[event->a].used) {
        uint64_t until = sim_cut_until(sim, &sim->conns[event->a]);
        if (until > at)
            at = until;
    }
    return at;
}

static void handle(struct sim *sim, const struct sim_event *event) {
    switch (event->type) {
    case SIM_ON_TICK:
        on_tick(sim, event->node);
        break;
    case SIM_ON_ARRIVE:
        sim_on_arrive(sim, event->a);
        break;
    case SIM_ON_CANCEL:
        sim_on_cancel(sim, event->a);
        break;
    case SIM_ON_STOP:
        sim_on_stop(sim, event->a);
        break;
    case SIM_ON_DIAL:
        sim_on_dial(sim, event);
        break;
    case SIM_ON_MESSAGE:
        sim_on_message(sim, event);
        break;
    case SIM_ON_CLOSED:
        sim_on_closed(sim, event);
        break;
    case SIM_ON_LAYER:
    case SIM_ON_STEP:
        on_engine(sim, event);
        break;
    case SIM_ON_LINK_DIAL:
        sim_on_link_dial(sim, event);
        break;
    case SIM_ON_LINK_UP:
        sim_on_link_up(sim, event);
        break;
    case SIM_ON_LINK_MESSAGE:
        sim_on_link_message(sim, event);
        break;
    case SIM_ON_FRAME_READ:
        sim_on_frame_read(sim, event);
        break;
    case SIM_ON_FRAME:
        sim_on_frame(sim, event);
        break;
    case SIM_ON_LAND:
        sim_on_land(sim, event);
        break;
    case SIM_ON_LAND_END:
        sim_on_land_end(sim, event);
        break;
    case SIM_ON_LINK_DOWN:
        sim_on_link_down(sim, event);
        break;
    case SIM_ON_FAULT:
        sim_on_fault(sim, (enum sim_fault)event->a);
        break;
    case SIM_ON_RESTART:
        if (sim->nodes[event->node].up) /* it has drained and leaves */
            sim_kill_node(sim, event->node, false);
        sim_start_node(sim, event->node);
        break;
    }
}

static bool all_up(const struct sim *sim) {
    for (int n = 0; n < sim->n_nodes; n++)
        if (!sim->nodes[n].up)
            return false;
    return true;
}

static void finish(struct sim *sim) {
    for (int n = 0; n < sim->n_nodes; n++)
        if (sim->nodes[n].up)
            sim_gather(sim, n);
    while (sim->n_heap)
        free(take(sim).data);
    for (int n = 0; n < sim->n_nodes; n++) {
        bt_router_core_destroy(sim->nodes[n].router);
        bt_prefill_core_destroy(sim->nodes[n].prefill);
        bt_decode_core_destroy(sim->nodes[n].decode);
        free(sim->nodes[n].contents);
    }
    free(sim->heap);
}

bool sim_run(uint64_t seed, const struct sim_options *options, struct sim_coverage *coverage,
             char failure[512]) {
    struct sim *sim = calloc(1, sizeof *sim);
    if (!sim)
        abort();
    sim->seed = seed;
    sim->options = options;
    sim->coverage = coverage;
    sim->random.state = sim_mix(seed, 1);
    sim->now_us = 1000000;

    build(sim);
    uint64_t settled_us = 0; /* when everything had ended */
    while (sim->n_heap && !sim->failure[0]) {
        struct sim_event event = take(sim);
        if (event.at_us > sim->now_us)
            sim->now_us = event.at_us;
        bool stale = event.node >= 0 && event.born != sim->nodes[event.node].born;
        if (is_of_conn(event.type) && !sim_concerns(sim, &event, event.a))
            stale = true;
        uint64_t at = stale ? sim->now_us : possible_at(sim, &event);
        if (!stale && at > sim->now_us) {
            event.at_us = at;
            insert(sim, event);
            continue;
        }
        bool dead = event.node >= 0 && !sim->nodes[event.node].up && event.type != SIM_ON_RESTART;
        if (!stale && !dead) {
            handle(sim, &event);
            sim->n_events++;
        }
        free(event.data);
        bool ended = sim->now_us > sim->calm_us && all_up(sim) && sim_all_ended(sim);
        if (ended && !settled_us)
            settled_us = sim->now_us;
        /* Leases of lost routers last 3 s. */
        if ((settled_us && sim->now_us > settled_us + 8 * SIM_S) || sim->now_us > 150 * SIM_S)
            break;
    }
    if (!sim->failure[0])
        sim_check_rest(sim);
    coverage->n_requests += (uint64_t)sim->n_clients;
    coverage->n_events += sim->n_events;
    finish(sim);
    snprintf(failure, 512, "%s", sim->failure);
    bool ok = !sim->failure[0];
    free(sim);
    return ok;
}

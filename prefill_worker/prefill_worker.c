/* The prefill worker's process: the core between its routers, its KV links and the engine. */
#include "prefill_worker/prefill_worker.h"

#include <event2/event.h>
#include <stdio.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/base/log.h"
#include "common/engine/kv_memory.h"
#include "common/kv/kv_link.h"
#include "common/worker/worker_host.h"
#include "prefill_worker/prefill_core.h"

/* Hellos that wait at once: one is granted while another computes ("a prefill or two"). */
enum { MAX_OFFERS = 2 };

/* The first frame of a hand-off, which a failpoint keeps for a while. */
struct held_frame {
    bool full;
    uint32_t link;
    uint64_t until_us;
    uint64_t generation; /* of the last hand-off that began */
    struct bt_kv_outgoing frame;
    struct event *timer;
};

struct worker {
    struct bt_worker_host host;
    struct bt_prefill_core *core;
    const struct bt_kv_link_ops *ops;
    struct bt_kv_links *links;
    uint64_t ticked_us;
    bool was_ready;
    struct held_frame held;
};

/* ---- what the core wants done ---- */

static void act(struct worker *worker, const struct bt_prefill_action *action) {
    struct bt_error err;
    switch (action->type) {
    case BT_PREFILL_SEND:
        bt_worker_send(&worker->host, action->slot, action->msg);
        break;
    case BT_PREFILL_CLOSE:
        bt_rpc_close(worker->host.streams, action->slot, BT_E_UNAVAILABLE, action->reason);
        break;
    case BT_PREFILL_QUIT:
        BT_ERROR("a router refuses this worker: %s", action->reason);
        bt_worker_host_stop(&worker->host, 2);
        break;
    case BT_PREFILL_STEP:
        bt_engine_post(worker->host.engine, action->step);
        break;
    case BT_PREFILL_LINK_SEND:
        worker->ops->send(worker->links, action->link, &action->link_msg);
        break;
    case BT_PREFILL_LINK_PUMP:
        worker->ops->pump(worker->links, action->link);
        break;
    case BT_PREFILL_LINK_DIAL:
        if (worker->ops->dial(worker->links, action->link, action->address, action->peer, &err) <
            0) {
            BT_WARN("cannot dial decode worker %s: %s", action->address, err.text);
            bt_prefill_core_link_down(worker->core, bt_clock_us(), action->link);
        }
        break;
    case BT_PREFILL_LINK_CLOSE:
        worker->ops->close(worker->links, action->link);
        break;
    case BT_PREFILL_EXIT:
        BT_INFO("drained");
        bt_worker_host_leave(&worker->host);
        break;
    }
}

static void drain_actions(struct worker *worker) {
    struct bt_prefill_action action;
    while (bt_prefill_core_next(worker->core, bt_clock_us(), &action))
        act(worker, &action);
}

/* ---- what the links tell ---- */

static void on_up(void *arg, uint32_t link, struct bt_id peer) {
    struct worker *worker = arg;
    (void)peer; /* it is the one that was dialled, or the link is refused */
    bt_prefill_core_link_up(worker->core, bt_clock_us(), link);
    drain_actions(worker);
}

static void on_down(void *arg, uint32_t link, const char *why) {
    struct worker *worker = arg;
    BT_INFO("link %u is down: %s", link, why);
    if (worker->held.full && worker->held.link == link) {
        worker->held.full = false;
        bt_prefill_core_frame_done(worker->core, bt_clock_us(), link, worker->held.frame.id);
    }
    bt_prefill_core_link_down(worker->core, bt_clock_us(), link);
    drain_actions(worker);
}

static void on_message(void *arg, uint32_t link, const struct bt_kv_msg *msg) {
    struct worker *worker = arg;
    bt_prefill_core_link_message(worker->core, bt_clock_us(), link, msg);
    drain_actions(worker);
}

static void on_held(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct worker *worker = arg;
    worker->held.until_us = 0;
    worker->ops->pump(worker->links, worker->held.link);
}

/* As next_frame, but the first frame of each hand-off comes so much later. */
static bool next_held(struct worker *worker, uint32_t link, uint64_t us,
                      struct bt_kv_outgoing *out) {
    struct held_frame *held = &worker->held;
    uint64_t now_us = bt_clock_us();
    if (held->full) {
        if (held->link != link || now_us < held->until_us)
            return false;
        *out = held->frame;
        held->full = false;
        return true;
    }
    if (!bt_prefill_core_next_frame(worker->core, now_us, link, out))
        return false;
    if (!held->timer)
        held->timer = evtimer_new(worker->host.base, on_held, worker);
    const struct timeval wait = {(time_t)(us / 1000000), (suseconds_t)(us % 1000000)};
    if (out->frame.generation == held->generation || !held->timer ||
        event_add(held->timer, &wait) != 0)
        return true;
    held->full = true;
    held->link = link;
    held->until_us = now_us + us;
    held->generation = out->frame.generation;
    held->frame = *out;
    return false;
}

static bool next_frame(void *arg, uint32_t link, struct bt_kv_outgoing *out) {
    struct worker *worker = arg;
    uint64_t hold_us = bt_failpoint_us(BT_FAILPOINT_TRANSFER);
    if (hold_us)
        return next_held(worker, link, hold_us, out);
    return bt_prefill_core_next_frame(worker->core, bt_clock_us(), link, out);
}

static void on_frame_done(void *arg, uint32_t link, uint32_t id) {
    struct worker *worker = arg;
    bt_prefill_core_frame_done(worker->core, bt_clock_us(), link, id);
}

static uint8_t *page_of(void *arg, uint32_t layer, uint32_t page) {
    struct worker *worker = arg;
    return bt_kv_memory_page(bt_engine_kv_memory(worker->host.engine), layer, page);
}

/* ---- one turn of the loop ---- */

static void on_router_event(struct worker *worker, uint64_t now_us,
                            const struct bt_rpc_event *event) {
    struct bt_error err;
    switch (event->type) {
    case BT_RPC_OPENED:
        bt_prefill_core_router_opened(worker->core, now_us, event->slot);
        break;
    case BT_RPC_MESSAGE:
        if (bt_prefill_core_router_message(worker->core, now_us, event->slot, event->msg, &err) <
            0) {
            BT_WARN("router %s: %s", bt_worker_router(&worker->host, event->slot), err.text);
            bt_rpc_close(worker->host.streams, event->slot, err.status, err.text);
        }
        break;
    case BT_RPC_CLOSED:
        bt_prefill_core_router_closed(worker->core, now_us, event->slot);
        break;
    case BT_RPC_HALF_CLOSED:
        break; /* of servers only */
    }
}

static void take_engine_events(struct worker *worker) {
    struct bt_engine_event event;
    while (bt_engine_next(worker->host.engine, &event)) {
        if (event.kind == BT_ENGINE_LAYER_DONE)
            bt_prefill_core_layer_done(worker->core, bt_clock_us(), event.layer);
        else
            bt_prefill_core_step_done(worker->core, bt_clock_us());
        drain_actions(worker);
    }
}

static void say_ready(struct worker *worker) {
    if (worker->was_ready || !bt_prefill_core_n_attached(worker->core))
        return;
    worker->was_ready = true;
    printf("ready: name=%s\n", worker->host.options->name);
    fflush(stdout);
}

static void turn(void *arg) {
    struct worker *worker = arg;
    if (!worker->core)
        return; /* the start failed half-way, the links are being taken down */
    struct bt_rpc_event event;
    take_engine_events(worker);
    while (bt_worker_next_router_event(&worker->host, bt_clock_us(), &event)) {
        on_router_event(worker, bt_clock_us(), &event);
        drain_actions(worker);
    }
    if (worker->host.n_signals)
        bt_prefill_core_drain(worker->core, bt_clock_us());
    uint64_t now_us = bt_clock_us();
    if (now_us - worker->ticked_us >= BT_WORKER_TICK_MS * 1000) {
        worker->ticked_us = now_us;
        bt_prefill_core_tick(worker->core, now_us);
    }
    drain_actions(worker);
    bt_worker_flush(&worker->host, bt_prefill_core_n_attached(worker->core));
    say_ready(worker);
}

/* ---- start, end ---- */

static bt_status start_links(struct worker *worker, struct bt_error *err) {
    const struct bt_engine_info *info = bt_engine_info(worker->host.engine);
    struct bt_kv_links_config config = {
        .base = worker->host.base,
        .user = {.arg = worker,
                 .up = on_up,
                 .down = on_down,
                 .message = on_message,
                 .next_frame = next_frame,
                 .frame_done = on_frame_done,
                 .page = page_of,
                 .turn = turn},
        .prefill = true,
        .incarnation = worker->host.incarnation,
        .fingerprint = info->fingerprint,
        .n_layers = info->n_layers,
        .page_bytes = (uint32_t)info->page_bytes,
        .tls = worker->host.tls,
    };
    snprintf(config.name, sizeof config.name, "%s", worker->host.options->name);
    worker->ops = bt_kv_link_find("tcp");
    return worker->ops->create(&config, &worker->links, err);
}

static bt_status start(struct worker *worker, const struct bt_worker_options *options,
                       struct bt_error *err) {
    BT_TRY(bt_worker_host_init(&worker->host, options, BT_ROLE_PREFILL, options->chunk_tokens, turn,
                               worker, err));
    const struct bt_engine_info *info = bt_engine_info(worker->host.engine);
    struct bt_prefill_config config = {
        .n_pages = info->n_pages,
        .n_layers = info->n_layers,
        .page_bytes = (uint32_t)info->page_bytes,
        .n_vocab = info->n_vocab,
        .chunk_tokens = options->chunk_tokens,
        .max_offers = MAX_OFFERS,
        .drain_ms = options->drain_seconds * 1000,
    };
    config.join.role = BT_ROLE_PREFILL;
    BT_TRY(bt_worker_join(&worker->host, &config.join, err));
    BT_TRY(bt_prefill_core_create(&config, &worker->core, err));
    return start_links(worker, err);
}

int bt_prefill_worker_run(const struct bt_worker_options *options) {
    struct worker worker = {0};
    struct bt_error err;
    int code = 2;
    if (start(&worker, options, &err) < 0)
        BT_ERROR("%s", err.text);
    else
        code = bt_worker_host_run(&worker.host);
    if (worker.links)
        worker.ops->destroy(worker.links);
    if (worker.held.timer)
        event_free(worker.held.timer);
    bt_worker_host_fini(&worker.host);
    bt_prefill_core_destroy(worker.core);
    return code;
}

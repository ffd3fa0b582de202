/* The decode worker's process: the core between its routers, its KV links and the engine. */
#include "decode_worker/decode_worker.h"

#include <event2/event.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/base/log.h"
#include "common/engine/kv_memory.h"
#include "common/kv/kv_link.h"
#include "common/worker/worker_host.h"
#include "decode_worker/decode_core.h"

struct worker {
    struct bt_worker_host host;
    struct bt_decode_core *core;
    const struct bt_kv_link_ops *ops;
    struct bt_kv_links *links;
    char address[BT_ADDRESS_BYTES]; /* where prefill workers dial */
    uint64_t ticked_us;
    uint64_t n_breaches; /* of links, told to the core */
    struct event *join;  /* a failpoint: steps begin again */
    bool was_ready;
};

/* ---- what the core wants done ---- */

static void act(struct worker *worker, const struct bt_decode_action *action) {
    switch (action->type) {
    case BT_DECODE_SEND:
        bt_worker_send(&worker->host, action->slot, action->msg);
        break;
    case BT_DECODE_CLOSE:
        bt_rpc_close(worker->host.streams, action->slot, BT_E_UNAVAILABLE, action->reason);
        break;
    case BT_DECODE_QUIT:
        BT_ERROR("a router refuses this worker: %s", action->reason);
        bt_worker_host_stop(&worker->host, 2);
        break;
    case BT_DECODE_STEP:
        bt_engine_post(worker->host.engine, action->step);
        break;
    case BT_DECODE_LINK_SEND:
        worker->ops->send(worker->links, action->link, &action->link_msg);
        break;
    case BT_DECODE_LINK_CUT:
        worker->ops->cut(worker->links, action->link, action->lease);
        break;
    case BT_DECODE_EXIT:
        BT_INFO("drained");
        bt_worker_host_leave(&worker->host);
        break;
    }
}

static void drain_actions(struct worker *worker) {
    struct bt_decode_action action;
    while (bt_decode_core_next(worker->core, bt_clock_us(), &action))
        act(worker, &action);
}

/* ---- what the links tell ---- */

static void on_up(void *arg, uint32_t link, struct bt_id peer) {
    struct worker *worker = arg;
    bt_decode_core_link_up(worker->core, bt_clock_us(), link, peer);
    drain_actions(worker);
}

static void on_down(void *arg, uint32_t link, const char *why) {
    struct worker *worker = arg;
    BT_INFO("link %u is down: %s", link, why);
    bt_decode_core_link_down(worker->core, bt_clock_us(), link);
    drain_actions(worker);
}

static void turn(void *arg);

static void on_join(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct worker *worker = arg;
    bt_decode_core_hold(worker->core, false);
    turn(worker);
}

/* Until then who has committed does not join the batch. */
static void hold_joins(struct worker *worker, uint64_t us) {
    const struct timeval wait = {(time_t)(us / 1000000), (suseconds_t)(us % 1000000)};
    if (!worker->join)
        worker->join = evtimer_new(worker->host.base, on_join, worker);
    if (worker->join && event_add(worker->join, &wait) == 0)
        bt_decode_core_hold(worker->core, true);
}

static void on_message(void *arg, uint32_t link, const struct bt_kv_msg *msg) {
    struct worker *worker = arg;
    uint64_t hold_us = msg->type == BT_KV_COMMIT ? bt_failpoint_us(BT_FAILPOINT_JOIN) : 0;
    if (hold_us)
        hold_joins(worker, hold_us);
    bt_decode_core_link_message(worker->core, bt_clock_us(), link, msg);
    drain_actions(worker);
}

static bt_status on_frame(void *arg, uint32_t link, const struct bt_kv_frame *frame,
                          struct bt_kv_landing *out, struct bt_error *err) {
    struct worker *worker = arg;
    return bt_decode_core_link_frame(worker->core, bt_clock_us(), link, frame, out, err);
}

static void on_frame_end(void *arg, uint32_t link, const struct bt_kv_landing *landing, bool whole,
                         const uint64_t *carried, const uint64_t *computed) {
    struct worker *worker = arg;
    (void)link;
    bt_decode_core_link_frame_end(worker->core, bt_clock_us(), landing, whole, carried, computed);
    drain_actions(worker);
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
        bt_decode_core_router_opened(worker->core, now_us, event->slot);
        break;
    case BT_RPC_MESSAGE:
        if (bt_decode_core_router_message(worker->core, now_us, event->slot, event->msg, &err) <
            0) {
            BT_WARN("router %s: %s", bt_worker_router(&worker->host, event->slot), err.text);
            bt_rpc_close(worker->host.streams, event->slot, err.status, err.text);
        }
        break;
    case BT_RPC_CLOSED:
        bt_decode_core_router_closed(worker->core, now_us, event->slot);
        break;
    case BT_RPC_HALF_CLOSED:
        break; /* of servers only */
    }
}

static void say_ready(struct worker *worker) {
    if (worker->was_ready || !bt_decode_core_n_attached(worker->core))
        return;
    worker->was_ready = true;
    printf("ready: name=%s link=%s\n", worker->host.options->name, worker->address);
    fflush(stdout);
}

static void turn(void *arg) {
    struct worker *worker = arg;
    if (!worker->core)
        return; /* the start failed half-way, the links are being taken down */
    struct bt_rpc_event router_event;
    struct bt_engine_event engine_event;
    while (bt_engine_next(worker->host.engine, &engine_event)) {
        if (engine_event.kind == BT_ENGINE_STEP_DONE)
            bt_decode_core_step_done(worker->core, bt_clock_us());
        drain_actions(worker);
    }
    while (bt_worker_next_router_event(&worker->host, bt_clock_us(), &router_event)) {
        on_router_event(worker, bt_clock_us(), &router_event);
        drain_actions(worker);
    }
    for (; worker->n_breaches < worker->ops->breaches(worker->links); worker->n_breaches++)
        bt_decode_core_link_refused(worker->core);
    if (worker->host.n_signals)
        bt_decode_core_drain(worker->core, bt_clock_us());
    uint64_t now_us = bt_clock_us();
    if (now_us - worker->ticked_us >= BT_WORKER_TICK_MS * 1000) {
        worker->ticked_us = now_us;
        bt_decode_core_tick(worker->core, now_us);
    }
    drain_actions(worker);
    bt_worker_flush(&worker->host, bt_decode_core_n_attached(worker->core));
    say_ready(worker);
}

/* ---- start, end ---- */

static bt_status start_links(struct worker *worker, struct bt_error *err) {
    const struct bt_worker_options *options = worker->host.options;
    const struct bt_engine_info *info = bt_engine_info(worker->host.engine);
    struct bt_kv_links_config config = {
        .base = worker->host.base,
        .user = {.arg = worker,
                 .up = on_up,
                 .down = on_down,
                 .message = on_message,
                 .frame = on_frame,
                 .frame_end = on_frame_end,
                 .page = page_of,
                 .turn = turn},
        .incarnation = worker->host.incarnation,
        .fingerprint = info->fingerprint,
        .n_layers = info->n_layers,
        .page_bytes = (uint32_t)info->page_bytes,
        .listen = options->link_listen,
        .tls = worker->host.tls,
    };
    snprintf(config.name, sizeof config.name, "%s", options->name);
    worker->ops = bt_kv_link_find("tcp");
    BT_TRY(worker->ops->create(&config, &worker->links, err));
    snprintf(worker->address, sizeof worker->address, "%s",
             options->link_advertise ? options->link_advertise
                                     : worker->ops->address(worker->links));
    return BT_OK;
}

static bt_status start(struct worker *worker, const struct bt_worker_options *options,
                       struct bt_error *err) {
    BT_TRY(bt_worker_host_init(&worker->host, options, BT_ROLE_DECODE,
                               options->max_seqs + options->chunk_tokens, turn, worker, err));
    BT_TRY(start_links(worker, err));
    const struct bt_engine_info *info = bt_engine_info(worker->host.engine);
    struct bt_decode_config config = {
        .n_pages = info->n_pages,
        .n_layers = info->n_layers,
        .page_bytes = (uint32_t)info->page_bytes,
        .n_vocab = info->n_vocab,
        .chunk_tokens = options->chunk_tokens,
        .step_us = options->step_ms * 1000,
        .drain_ms = options->drain_seconds * 1000,
    };
    config.join.role = BT_ROLE_DECODE;
    memcpy(config.join.link_address, worker->address, sizeof config.join.link_address);
    BT_TRY(bt_worker_join(&worker->host, &config.join, err));
    BT_TRY(bt_decode_core_create(&config, &worker->core, err));
    BT_INFO("KV links (%s) on %s", worker->ops->name, worker->address);
    return BT_OK;
}

int bt_decode_worker_run(const struct bt_worker_options *options) {
    struct worker worker = {0};
    struct bt_error err;
    int code = 2;
    if (start(&worker, options, &err) < 0)
        BT_ERROR("%s", err.text);
    else
        code = bt_worker_host_run(&worker.host);
    if (worker.links)
        worker.ops->destroy(worker.links);
    if (worker.join)
        event_free(worker.join);
    bt_worker_host_fini(&worker.host);
    bt_decode_core_destroy(worker.core);
    return code;
}

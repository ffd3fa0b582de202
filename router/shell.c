/* The router's loop: worker streams and HTTP calls into the core, its actions out again. */
#include "router/shell.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <sys/random.h>
#include <event2/event.h>

#include "common/base/address.h"
#include "common/base/tls.h"
#include "common/base/clock.h"
#include "common/rpc/health_port.h"
#include "router/completion.h"
#include "router/grpc_door.h"
#include "router/request_log.h"
#include "router/http_door.h"
#include "router/openai_handlers.h"

enum {
    LAST_BYTES_MS = 100, /* a drained router gives the last answers this long to leave */
};

uint64_t bt_shell_now(struct bt_shell *shell) {
    return shell->now_us = bt_clock_us();
}

/* ---- a turn's end ---- */

static void schedule_flush(struct bt_shell *shell) {
    if (shell->flush_pending)
        return;
    shell->flush_pending = true;
    event_active(shell->flush_event, EV_TIMEOUT, 1);
}

static void arm_tick(struct bt_shell *shell) {
    uint64_t next = bt_router_core_next_tick_us(shell->core);
    uint64_t latest = shell->now_us + BT_ROUTER_TICK_MS * 1000;
    if (next > latest)
        next = latest;
    if (shell->tick_at_us > shell->now_us && shell->tick_at_us <= next)
        return;
    uint64_t wait_us = next > shell->now_us ? next - shell->now_us : 0;
    struct timeval wait = {(time_t)(wait_us / 1000000), (suseconds_t)(wait_us % 1000000)};
    shell->tick_at_us = next;
    event_add(shell->tick_event, &wait);
}

static void end_if_drained(struct bt_shell *shell) {
    if (!shell->draining || shell->n_calls || shell->n_completions || bt_grpc_door_calls(shell) ||
        bt_router_core_counters(shell->core)->live != 0)
        return;
    const struct timeval wait = {0, LAST_BYTES_MS * 1000};
    event_base_loopexit(shell->base, &wait);
}

static void flush(struct bt_shell *shell) {
    shell->flush_pending = false;
    bt_sse_flush(&shell->sse, shell->now_us);
    bt_grpc_door_flush(shell);
    bt_health_port_set(shell->health, bt_router_core_ready(shell->core) && !shell->draining);
    if (!bt_shell_hold_on_flush(shell))
        bt_rpc_flush(shell->streams);
    bt_openai_free_ended(shell);
    bt_completion_free_ended(shell);
    arm_tick(shell);
    end_if_drained(shell);
}

static void on_flush(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    flush(arg);
}

static void on_touched(void *arg) {
    schedule_flush(arg);
}

/* ---- the core's actions ---- */

static void send_to_worker(struct bt_shell *shell, const struct bt_router_action *action) {
    struct bt_error err;
    bt_shell_hold_on_send(shell, action->msg);
    bt_status status = bt_rpc_send(shell->streams, action->slot, action->msg, &err);
    /* A stream that is gone or was closed for not reading: its CLOSED event is on its way, and the
     * core does then what is to be done. */
    if (status < 0 && status != BT_E_PEER_GONE)
        BT_WARN("worker stream %u: %s", action->slot, err.text);
}

static void note_end(struct bt_shell *shell, const struct bt_router_action *action) {
    struct bt_request_record record;
    bt_router_core_record_of(shell->core, action->req, &record);
    bt_request_times_add(&shell->times, &record);
    if (shell->options->log_requests)
        bt_request_log(&record, action->reason);
}

static void carry_out(struct bt_shell *shell, const struct bt_router_action *action) {
    switch (action->type) {
    case BT_ROUTER_EMIT:
        bt_completion_emit(action->req->user, action);
        break;
    case BT_ROUTER_END:
        note_end(shell, action);
        bt_completion_end(action->req->user, action);
        break;
    case BT_ROUTER_SCORES:
        bt_completion_scores(action->req->user, action);
        break;
    case BT_ROUTER_SEND:
        send_to_worker(shell, action);
        break;
    case BT_ROUTER_CLOSE:
        BT_INFO("closing worker stream %u: %s", action->slot, action->reason);
        bt_rpc_close(shell->streams, action->slot, BT_E_PROTOCOL, action->reason);
        break;
    case BT_ROUTER_LOG:
        BT_INFO("%s", action->reason);
        break;
    }
}

void bt_shell_drain(struct bt_shell *shell) {
    struct bt_router_action action;
    do {
        while (bt_router_core_next(shell->core, &action))
            carry_out(shell, &action);
    } while (bt_completion_tell_core(shell));
    schedule_flush(shell);
}

/* ---- workers ---- */

static void on_rpc(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_shell *shell = arg;
    struct bt_router_core *core = shell->core;
    struct bt_rpc_event event;
    uint64_t now_us = bt_shell_now(shell);
    /* All that waits is taken first: when the loop is behind, several steps become one send. */
    while (bt_rpc_next(shell->streams, &event)) {
        switch (event.type) {
        case BT_RPC_OPENED:
            BT_INFO("a worker attaches from %s", event.text);
            bt_router_core_worker_opened(core, now_us, event.slot);
            break;
        case BT_RPC_MESSAGE:
            bt_router_core_worker_message(core, now_us, event.slot, event.msg);
            break;
        case BT_RPC_HALF_CLOSED:
            /* It says no more: it waits for our end, and leaves. */
            bt_rpc_close(shell->streams, event.slot, BT_OK, "the worker ended its stream");
            continue;
        case BT_RPC_CLOSED:
            if (event.status != BT_OK)
                BT_INFO("worker stream %u ended: %s", event.slot, event.text);
            bt_router_core_worker_closed(core, now_us, event.slot);
            break;
        }
        bt_shell_drain(shell);
    }
    flush(shell);
}

/* ---- time and signals ---- */

static void on_tick(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_shell *shell = arg;
    uint64_t now_us = bt_shell_now(shell);
    shell->tick_at_us = 0;
    bt_router_core_tick(shell->core, now_us);
    bt_shell_drain(shell);
    bt_sse_sweep(&shell->sse, now_us);
    bt_stats_tick(shell);
    bt_grpc_door_sweep(shell);
    flush(shell);
}

static void on_signal(evutil_socket_t fd, short what, void *arg) {
    (void)what;
    struct bt_shell *shell = arg;
    if (shell->draining) {
        BT_WARN("second signal %d: ending at once", (int)fd);
        event_base_loopbreak(shell->base);
        return;
    }
    BT_INFO("signal %d: no new work, open streams finish", (int)fd);
    shell->draining = true;
    bt_http_server_drain(shell->http);
    bt_router_core_drain(shell->core, bt_shell_now(shell));
    bt_shell_drain(shell);
}

/* A bad file changes nothing: the registry goes on with what it has. */
static void reload_registry(struct bt_shell *shell) {
    struct bt_error err;
    if (!shell->tls)
        return;
    if (bt_tls_reload(shell->tls, &err) != BT_OK || bt_rpc_server_reload(shell->rpc, &err) != BT_OK)
        BT_WARN("SIGHUP: the registry's certificate stays as it was: %s", err.text);
    else
        BT_INFO("SIGHUP: the registry's certificate was read again from %s",
                shell->options->tls_cert);
}

static void on_hangup(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_shell *shell = arg;
    bt_http_door_reload(shell);
    bt_grpc_door_reload(shell);
    reload_registry(shell);
}

/* ---- start and end ---- */

static bt_status open_text(struct bt_shell *shell, struct bt_error *err) {
    const struct bt_router_options *options = shell->options;
    bt_status status = bt_text_model_open(options->model, &shell->text, err);
    if (status < 0 && !strstr(err->text, options->model)) {
        struct bt_error why = *err;
        bt_fail(err, status, "model \"%.80s\": %.160s", options->model, why.text);
    }
    BT_TRY(status);
    BT_TRY(bt_encode_scratch_create(shell->text.tokenizer, (size_t)options->body_bytes_max * 4,
                                    &shell->scratch, err));
    const char *slash = strrchr(options->model, '/');
    const char *name = options->served_name  ? options->served_name
                       : shell->text.name[0] ? shell->text.name
                       : slash               ? slash + 1
                                             : options->model;
    if (strlen(name) >= sizeof shell->model)
        return bt_fail(err, BT_E_INVALID,
                       "served-model-name has %zu bytes, it may have at most %zu", strlen(name),
                       sizeof shell->model - 1);
    memcpy(shell->model, name, strlen(name) + 1);
    return bt_openai_skeletons_init(&shell->skeletons, shell->model, err);
}

static bt_status create_core(struct bt_shell *shell, struct bt_error *err) {
    const struct bt_router_options *o = shell->options;
    struct bt_router_config config;
    bt_router_config_default(&config);
    if (getrandom(&config.incarnation, sizeof config.incarnation, 0) !=
            (ssize_t)sizeof config.incarnation ||
        getrandom(&config.seed, sizeof config.seed, 0) != (ssize_t)sizeof config.seed)
        return bt_fail(err, BT_E_IO, "no random bytes: %s", strerror(errno));
    config.max_requests = o->max_requests;
    config.max_queued = o->max_queued;
    config.max_context = o->max_context;
    config.queue_ms = o->queue_ms;
    config.deadline_ms = o->deadline_ms;
    config.disaggregate = (enum bt_disaggregate)o->disaggregate;
    config.short_prompt_tokens = o->short_prompt_tokens;
    config.prefill_backlog_tokens = o->prefill_backlog_tokens;
    config.n_records = o->debug_requests;
    for (config.prefix_slots = 1; config.prefix_slots < o->prefix_blocks;)
        config.prefix_slots *= 2;
    config.ttft_target_ms = o->ttft_target_ms;
    config.itl_target_us = o->itl_target_us;
    config.text_hash = shell->text.text_hash;
    shell->core = bt_router_core_create(&config, err);
    return shell->core ? BT_OK : err->status;
}

static bt_status create_events(struct bt_shell *shell, struct bt_error *err) {
    struct event_config *config = event_config_new();
    if (config && event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK) == 0)
        shell->base = event_base_new_with_config(config);
    if (config)
        event_config_free(config);
    if (!shell->base)
        return bt_fail(err, BT_E_NO_MEMORY, "cannot make an event loop");
    bt_sse_set_init(&shell->sse, (uint64_t)shell->options->client_stuck_ms * 1000,
                    shell->options->sse_keepalive_s * UINT64_C(1000000), on_touched, shell);
    shell->flush_event = evtimer_new(shell->base, on_flush, shell);
    shell->tick_event = evtimer_new(shell->base, on_tick, shell);
    shell->term_event = evsignal_new(shell->base, SIGTERM, on_signal, shell);
    shell->int_event = evsignal_new(shell->base, SIGINT, on_signal, shell);
    shell->hangup_event = evsignal_new(shell->base, SIGHUP, on_hangup, shell);
    if (!shell->flush_event || !shell->tick_event || !shell->term_event || !shell->int_event ||
        !shell->hangup_event || event_add(shell->term_event, NULL) != 0 ||
        event_add(shell->int_event, NULL) != 0 || event_add(shell->hangup_event, NULL) != 0)
        return bt_fail(err, BT_E_NO_MEMORY, "cannot make the loop's events");
    return BT_OK;
}

/* Before all else, so that a worker that was started with its router finds the port open: it may
 * dial while the text model is loaded, and is heard when the loop runs. */
static bt_status open_registry(struct bt_shell *shell, struct bt_error *err) {
    const struct bt_router_options *o = shell->options;
    struct bt_address registry;
    BT_TRY(bt_address_parse(o->registry_listen, &registry, err));
    if (!bt_address_is_loopback(&registry) && !o->insecure && !o->tls_cert)
        return bt_fail(
            err, BT_E_INVALID,
            "registry-listen \"%s\" is not a loopback address: give --tls-cert, --tls-key "
            "and --tls-ca, or --insecure to serve workers unencrypted",
            o->registry_listen);
    const struct bt_tls_config tls = {
        .cert = o->tls_cert, .key = o->tls_key, .ca = o->tls_ca, .role = BT_TLS_ROUTER};
    if (o->tls_cert)
        BT_TRY(bt_tls_create(&tls, &shell->tls, err));
    const struct bt_rpc_server_config rpc = {
        .listen = o->registry_listen, .tls = shell->tls, .max_streams = BT_ROUTER_SLOTS};
    BT_TRY(bt_rpc_server_start(&rpc, &shell->rpc, err));
    shell->streams = bt_rpc_server_streams(shell->rpc);
    return BT_OK;
}

static bt_status open_doors(struct bt_shell *shell, struct bt_error *err) {
    BT_TRY(bt_http_door_open(shell, err));
    BT_TRY(bt_grpc_door_open(shell, err));
    if (shell->options->health_listen)
        BT_TRY(
            bt_health_port_open(shell->base, shell->options->health_listen, &shell->health, err));
    shell->rpc_event =
        event_new(shell->base, bt_rpc_fd(shell->streams), EV_READ | EV_PERSIST, on_rpc, shell);
    if (!shell->rpc_event || event_add(shell->rpc_event, NULL) != 0)
        return bt_fail(err, BT_E_NO_MEMORY, "cannot watch the workers' streams");
    return BT_OK;
}

bt_status bt_shell_init(struct bt_shell *shell, const struct bt_router_options *options,
                        struct bt_error *err) {
    *shell = (struct bt_shell){.options = options, .started_s = (int64_t)time(NULL)};
    bt_stats_init(&shell->stats, bt_shell_now(shell));
    bt_request_times_init(&shell->times);
    BT_TRY(open_registry(shell, err));
    BT_TRY(open_text(shell, err));
    BT_TRY(create_core(shell, err));
    BT_TRY(create_events(shell, err));
    BT_TRY(bt_shell_hold_init(shell, err));
    return open_doors(shell, err);
}

void bt_shell_run(struct bt_shell *shell) {
    bt_shell_now(shell);
    arm_tick(shell);
    event_base_dispatch(shell->base);
}

void bt_shell_fini(struct bt_shell *shell) {
    struct event *events[] = {shell->rpc_event,  shell->flush_event, shell->tick_event,
                              shell->term_event, shell->int_event,   shell->hangup_event};
    bt_openai_free_all(shell);
    bt_completion_free_all(shell);
    bt_health_port_close(shell->health);
    bt_grpc_door_close(shell);
    bt_rpc_server_stop(shell->rpc);
    bt_tls_destroy(shell->tls);
    bt_http_door_close(shell);
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
        if (events[i])
            event_free(events[i]);
    bt_shell_hold_fini(shell);
    bt_sse_set_fini(&shell->sse);
    bt_router_core_destroy(shell->core);
    if (shell->base)
        event_base_free(shell->base);
    bt_openai_skeletons_fini(&shell->skeletons);
    bt_encode_scratch_destroy(shell->scratch);
    bt_text_model_close(&shell->text);
    *shell = (struct bt_shell){0};
}

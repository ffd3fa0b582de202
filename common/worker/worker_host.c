/* What stands around a worker's core: the event loop, the engine, the streams to its routers. */
#include "common/worker/worker_host.h"

#include <event2/event.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/base/gguf_text.h"
#include "common/base/log.h"
#include "common/base/tls.h"
#include "common/rpc/health_port.h"
#include "common/rpc/rpc.h"

/* ---- the model ---- */

static void on_progress(void *arg, uint64_t bytes_done, uint64_t bytes_total) {
    uint64_t *told_us = arg;
    uint64_t now_us = bt_clock_us();
    if (now_us - *told_us < 1000000)
        return;
    *told_us = now_us;
    BT_INFO("loading the model: %llu of %llu MB", (unsigned long long)(bytes_done >> 20),
            (unsigned long long)(bytes_total >> 20));
}

static bt_status load(struct bt_worker_host *host, uint32_t max_rows, struct bt_error *err) {
    const struct bt_worker_options *options = host->options;
    uint64_t started_us = bt_clock_us(), told_us = started_us;
    uint64_t n_pages = (options->kv_tokens + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
    struct bt_engine_params params = {
        .model_path = options->model,
        .n_threads = options->n_threads,
        .pin = options->pin,
        .profile = bt_precision_profile(options->precision),
        .kv_type = options->kv_type,
        .n_pages = n_pages > UINT32_MAX ? UINT32_MAX : (uint32_t)n_pages,
        .kv_bytes_max =
            options->kv_is_standard ? options->kv_standard_bytes_max : options->kv_memory_bytes,
        .max_rows = max_rows,
        .max_seqs = options->max_seqs,
        .max_context = options->max_context,
        .progress = on_progress,
        .progress_arg = &told_us,
    };
    BT_TRY(bt_engine_create(&params, &host->engine, err));
    const struct bt_engine_info *info = bt_engine_info(host->engine);
    if (info->remark[0])
        BT_INFO("%s", info->remark);
    BT_INFO("%s: %u layers, %s, %s kernels, %u threads, ready in %llu ms",
            info->model_name[0] ? info->model_name : options->model, info->n_layers,
            bt_profile_name(info->fingerprint.profile), info->kernels, info->n_threads,
            (unsigned long long)((bt_clock_us() - started_us) / 1000));
    BT_INFO("CPUs: %s", info->cpus);
    BT_INFO(
        "memory: weights %llu MB, KV cache %llu MB (%s, %u pages, %llu tokens), scratch %llu MB",
        (unsigned long long)(info->weight_bytes >> 20),
        (unsigned long long)(info->cache_bytes >> 20), bt_kv_type_name(info->fingerprint.kv_type),
        info->n_pages, (unsigned long long)info->n_pages * BT_PAGE_TOKENS,
        (unsigned long long)(info->scratch_bytes >> 20));
    return BT_OK;
}

bt_status bt_worker_join(const struct bt_worker_host *host, struct bt_msg_join *join,
                         struct bt_error *err) {
    const struct bt_engine_info *info = bt_engine_info(host->engine);
    struct bt_gguf *gguf;
    BT_TRY(bt_gguf_open(host->options->model, &gguf, err));
    join->text_hash = bt_gguf_text_hash(gguf);
    bt_gguf_close(gguf);
    snprintf(join->name, sizeof join->name, "%s", host->options->name);
    join->incarnation = host->incarnation;
    join->protocol_min = BT_PROTOCOL_MIN;
    join->protocol_max = BT_PROTOCOL_MAX;
    join->fingerprint = info->fingerprint;
    join->max_seqs = host->options->max_seqs;
    join->max_context = info->max_context;
    return BT_OK;
}

/* ---- the loop ---- */

static void on_event(evutil_socket_t fd, short what, void *arg) {
    (void)fd;
    (void)what;
    struct bt_worker_host *host = arg;
    host->turn(host->arg);
}

static void on_signal(evutil_socket_t number, short what, void *arg) {
    (void)what;
    struct bt_worker_host *host = arg;
    host->n_signals++;
    BT_INFO("%s: %s", number == SIGTERM ? "SIGTERM" : "SIGINT",
            host->n_signals == 1 ? "draining; a second one ends at once" : "ending at once");
    if (host->n_signals > 1)
        bt_worker_host_stop(host, 1);
    else
        host->turn(host->arg);
}

/* Bad files change nothing: what is open goes on, what is dialled uses what was read last. */
static void on_hangup(evutil_socket_t number, short what, void *arg) {
    (void)number, (void)what;
    struct bt_worker_host *host = arg;
    struct bt_error err;
    if (!host->tls)
        BT_INFO("SIGHUP: there is no certificate to read again");
    else if (bt_tls_reload(host->tls, &err) == BT_OK)
        BT_INFO("SIGHUP: the certificate was read again from %s", host->options->tls_cert);
    else
        BT_WARN("SIGHUP: the certificate stays as it was: %s", err.text);
}

static bt_status watch(struct bt_worker_host *host, struct bt_error *err) {
    short readable = EV_READ | EV_PERSIST;
    struct timeval tick = {.tv_usec = BT_WORKER_TICK_MS * 1000};
    host->rpc_event = event_new(host->base, bt_rpc_fd(host->streams), readable, on_event, host);
    host->engine_event =
        event_new(host->base, bt_engine_fd(host->engine), readable, on_event, host);
    host->tick = event_new(host->base, -1, EV_PERSIST, on_event, host);
    host->hold = event_new(host->base, -1, 0, on_event, host);
    host->term = evsignal_new(host->base, SIGTERM, on_signal, host);
    host->interrupt = evsignal_new(host->base, SIGINT, on_signal, host);
    if (!host->rpc_event || !host->engine_event || !host->tick || !host->hold || !host->term ||
        !host->interrupt || event_add(host->rpc_event, NULL) ||
        event_add(host->engine_event, NULL) || event_add(host->tick, &tick) ||
        event_add(host->term, NULL) || event_add(host->interrupt, NULL))
        return bt_fail(err, BT_E_NO_MEMORY, "the event loop cannot watch its events");
    return BT_OK;
}

bt_status bt_worker_host_init(struct bt_worker_host *host, const struct bt_worker_options *options,
                              enum bt_role role, uint32_t max_rows, void (*turn)(void *arg),
                              void *arg, struct bt_error *err) {
    memset(host, 0, sizeof *host);
    host->options = options;
    host->turn = turn;
    host->arg = arg;
    bt_log_set_role(options->name);
    if (getrandom(&host->incarnation, sizeof host->incarnation, 0) !=
            (ssize_t)sizeof host->incarnation ||
        getrandom(&host->random, sizeof host->random, 0) != (ssize_t)sizeof host->random)
        return bt_fail(err, BT_E_IO, "the system gives no random bytes");
    BT_TRY(bt_failpoint_check(err));
    signal(SIGPIPE, SIG_IGN);
    host->base = event_base_new();
    if (!host->base)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for the event loop");
    /* Before the model is loaded: a signal that comes meanwhile is heard after. */
    host->hangup = evsignal_new(host->base, SIGHUP, on_hangup, host);
    if (!host->hangup || event_add(host->hangup, NULL))
        return bt_fail(err, BT_E_NO_MEMORY, "the event loop cannot watch its events");
    const struct bt_tls_config tls = {
        .cert = options->tls_cert,
        .key = options->tls_key,
        .ca = options->tls_ca,
        .role = role == BT_ROLE_PREFILL ? BT_TLS_PREFILL : BT_TLS_DECODE,
    };
    if (options->tls_cert)
        BT_TRY(bt_tls_create(&tls, &host->tls, err));
    BT_TRY(load(host, max_rows, err));
    bt_rpc_init();
    host->has_rpc = true;
    BT_TRY(bt_rpc_client_start(&(struct bt_rpc_client_config){.tls = host->tls}, &host->rpc, err));
    host->streams = bt_rpc_client_streams(host->rpc);
    BT_TRY(bt_worker_routers_init(host, err));
    if (options->health_listen)
        BT_TRY(bt_health_port_open(host->base, options->health_listen, &host->health, err));
    return watch(host, err);
}

void bt_worker_host_fini(struct bt_worker_host *host) {
    struct event *events[] = {host->rpc_event, host->engine_event, host->tick,  host->hold,
                              host->term,      host->interrupt,    host->hangup};
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
        if (events[i])
            event_free(events[i]);
    bt_health_port_close(host->health);
    bt_rpc_client_stop(host->rpc);
    if (host->has_rpc)
        bt_rpc_fini();
    bt_tls_destroy(host->tls);
    bt_engine_destroy(host->engine);
    bt_router_lookup_destroy(host->lookup);
    if (host->base) {
        event_base_loop(host->base, EVLOOP_NONBLOCK); /* the resolver lets go */
        event_base_free(host->base);
    }
    memset(host, 0, sizeof *host);
}

int bt_worker_host_run(struct bt_worker_host *host) {
    host->turn(host->arg);
    if (!host->is_stopped) /* dispatch forgets a break that came before it */
        event_base_dispatch(host->base);
    return host->exit_code;
}

void bt_worker_host_stop(struct bt_worker_host *host, int exit_code) {
    host->is_stopped = true;
    host->exit_code = exit_code;
    event_base_loopbreak(host->base);
}

void bt_worker_host_leave(struct bt_worker_host *host) {
    for (uint32_t slot = 0; slot < BT_MAX_ROUTERS; slot++)
        bt_rpc_close(host->streams, slot, BT_OK, "drained");
    bt_worker_host_stop(host, 0);
}

/* ---- sending ---- */

/* Tokens wait on the way, and all that is said after them: nothing overtakes. */
static void hold_tokens(struct bt_worker_host *host, uint64_t us) {
    const struct timeval wait = {(time_t)(us / 1000000), (suseconds_t)(us % 1000000)};
    host->held_until_us = bt_clock_us() + us;
    event_add(host->hold, &wait);
}

void bt_worker_send(struct bt_worker_host *host, uint32_t slot, const struct bt_msg *msg) {
    struct bt_error err;
    uint64_t hold_us = msg->type == BT_MSG_TOKENS ? bt_failpoint_us(BT_FAILPOINT_NETWORK) : 0;
    if (hold_us && !host->held_until_us)
        hold_tokens(host, hold_us);
    bt_status status = bt_rpc_send(host->streams, slot, msg, &err);
    if (status < 0 && status != BT_E_PEER_GONE)
        BT_WARN("router %s: %s", bt_worker_router(host, slot), err.text);
}

void bt_worker_flush(struct bt_worker_host *host, uint32_t n_attached) {
    bt_health_port_set(host->health, n_attached && !host->n_signals);
    if (host->held_until_us && bt_clock_us() < host->held_until_us)
        return;
    host->held_until_us = 0;
    bt_rpc_flush(host->streams);
}

/* Opens the HTTP port with its table of pages, keys and certificate. */
#include "router/http_door.h"

#include <sys/resource.h>

#include "common/base/address.h"
#include "common/base/log.h"
#include "common/base/metrics.h"
#include "common/base/tls.h"
#include "router/debug_pages.h"
#include "router/live_page.h"
#include "router/metrics_export.h"
#include "router/model_pages.h"
#include "router/openai_handlers.h"
#include "router/shell.h"

enum {
    HEADER_BYTES_MAX = 65536,
    IDLE_S = 75,
    OTHER_FDS = 256, /* kept for workers' streams, files and the loop */
};

/* Every page that there is; what is not here is 404. */
static const struct bt_http_route routes[] = {
    {BT_HTTP_GET, "/", bt_live_on_page, BT_API_OPEN},
    {BT_HTTP_POST, "/v1/chat/completions", bt_openai_on_chat, BT_API_CLIENT},
    {BT_HTTP_POST, "/v1/completions", bt_openai_on_completion, BT_API_CLIENT},
    {BT_HTTP_GET, "/v1/models", bt_model_on_list, BT_API_CLIENT},
    {BT_HTTP_GET, "/v1/models/", bt_model_on_one, BT_API_CLIENT},
    {BT_HTTP_POST, "/tokenize", bt_model_on_tokenize, BT_API_CLIENT},
    {BT_HTTP_POST, "/detokenize", bt_model_on_detokenize, BT_API_CLIENT},
    {BT_HTTP_GET, "/health", bt_model_on_health, BT_API_OPEN},
    {BT_HTTP_GET, "/ready", bt_model_on_ready, BT_API_OPEN},
    {BT_HTTP_GET, "/version", bt_model_on_version, BT_API_CLIENT},
    {BT_HTTP_GET, "/metrics", bt_metrics_on_page, BT_API_OPERATOR},
    {BT_HTTP_GET, "/debug/stats", bt_stats_on_page, BT_API_OPERATOR},
    {BT_HTTP_GET, "/debug/requests", bt_debug_on_requests, BT_API_OPERATOR},
    {BT_HTTP_GET, "/debug/workers", bt_debug_on_workers, BT_API_OPERATOR},
    {BT_HTTP_POST, "/debug/flush", bt_debug_on_flush, BT_API_OPERATOR},
};

static bt_status open_secrets(struct bt_shell *shell, struct bt_error *err) {
    const struct bt_router_options *o = shell->options;
    if (o->api_key_file)
        BT_TRY(bt_api_keys_open(o->api_key_file, &shell->keys, err));
    if (!o->http_tls_cert != !o->http_tls_key)
        return bt_fail(err, BT_E_INVALID, "http-tls-cert and http-tls-key must be given together");
    const struct bt_tls_config tls = {
        .cert = o->http_tls_cert, .key = o->http_tls_key, .alpn = "http/1.1", .takes_1_2 = true};
    return o->http_tls_cert ? bt_tls_create(&tls, &shell->public_tls, err) : BT_OK;
}

/* As many as asked for, or as descriptors allow. */
static uint32_t connections_max(const struct bt_router_options *o) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return o->connections_max;
    rlim_t allowed =
        limit.rlim_cur > 2 * OTHER_FDS ? limit.rlim_cur - OTHER_FDS : limit.rlim_cur / 2;
    if (allowed >= o->connections_max)
        return o->connections_max;
    BT_WARN("max-connections is %u, but only %llu descriptors are allowed: %llu it is",
            o->connections_max, (unsigned long long)limit.rlim_cur, (unsigned long long)allowed);
    return (uint32_t)allowed;
}

bt_status bt_http_door_open(struct bt_shell *shell, struct bt_error *err) {
    const struct bt_router_options *o = shell->options;
    struct bt_address address = {.port = 0};
    snprintf(address.host, sizeof address.host, "%s", o->host);
    bool is_local = bt_address_is_loopback(&address);
    if (!is_local && !o->http_tls_cert && !o->insecure)
        return bt_fail(err, BT_E_INVALID,
                       "host \"%.64s\" is not a loopback address: give --http-tls-cert and "
                       "--http-tls-key, or --insecure to serve it unencrypted",
                       o->host);
    BT_TRY(open_secrets(shell, err));
    const struct bt_http_server_config http = {
        .host = o->host,
        .port = (uint16_t)o->port,
        .header_bytes_max = HEADER_BYTES_MAX,
        .body_bytes_max = (size_t)o->body_bytes_max,
        .held_bytes_max = o->receive_bytes_max,
        .connections_max = connections_max(o),
        .header_s = o->header_timeout_s,
        .idle_s = IDLE_S,
        .cors_origin = o->cors_origin,
        .routes = routes,
        .n_routes = sizeof routes / sizeof routes[0],
        .keys = shell->keys,
        .tls = shell->public_tls,
        .arg = shell,
    };
    if (o->receive_bytes_max < 2 * o->body_bytes_max)
        return bt_fail(err, BT_E_INVALID,
                       "receive-memory is %llu bytes, it must be at least twice max-body (%llu)",
                       (unsigned long long)o->receive_bytes_max,
                       (unsigned long long)o->body_bytes_max);
    BT_TRY(bt_http_server_start(shell->base, &http, &shell->http, err));
    BT_INFO("%s: at most %u connections, and %.1f MiB for all that they send; %s",
            shell->public_tls ? "HTTPS" : "HTTP", http.connections_max,
            (double)bt_http_server_bytes_max(&http) / (1 << 20),
            shell->keys ? "an API key is asked for" : "no API key is asked for");
    if (!is_local && !shell->keys)
        BT_WARN("there is no --api-key-file: whoever reaches %s may use the model", o->host);
    return BT_OK;
}

void bt_http_door_reload(struct bt_shell *shell) {
    struct bt_error err;
    if (shell->keys && bt_api_keys_reload(shell->keys, &err) != BT_OK)
        BT_WARN("the API keys stay as they were: %s", err.text);
    else if (shell->keys)
        BT_INFO("%zu API keys are known now", bt_api_keys_count(shell->keys));
    if (shell->public_tls && bt_tls_reload(shell->public_tls, &err) != BT_OK)
        BT_WARN("the HTTP certificate stays as it was: %s", err.text);
    else if (shell->public_tls)
        BT_INFO("the HTTP certificate was read again");
}

void bt_http_door_close(struct bt_shell *shell) {
    bt_http_server_destroy(shell->http);
    bt_tls_destroy(shell->public_tls);
    bt_api_keys_close(shell->keys);
}

void bt_http_door_write_metrics(const struct bt_shell *shell, struct evbuffer *out) {
    const struct bt_http_counters *c = bt_http_server_counters(shell->http);
    const struct {
        const char *reason;
        uint64_t n;
    } cut[] = {
        {"slow", c->n_slow},
        {"displaced", c->n_displaced},
        {"turned_away", c->n_turned_away},
        {"over_memory", c->n_over_memory},
        {"tls", c->n_tls_failed},
    };
    bt_metrics_family(out, "baton_http_connections", BT_METRIC_GAUGE, "HTTP connections open.");
    bt_metrics_u64(out, "baton_http_connections", NULL, 0, bt_http_server_connections(shell->http));
    bt_metrics_family(out, "baton_http_connections_total", BT_METRIC_COUNTER,
                      "HTTP connections accepted.");
    bt_metrics_u64(out, "baton_http_connections_total", NULL, 0, c->n_accepted);
    bt_metrics_family(out, "baton_http_errors_total", BT_METRIC_COUNTER,
                      "HTTP requests refused before a handler saw them.");
    bt_metrics_u64(out, "baton_http_errors_total", NULL, 0, c->n_refused);
    bt_metrics_family(out, "baton_http_cut_total", BT_METRIC_COUNTER,
                      "HTTP connections ended by the router, by reason.");
    for (size_t i = 0; i < sizeof cut / sizeof cut[0]; i++) {
        const struct bt_label label = {"reason", cut[i].reason};
        bt_metrics_u64(out, "baton_http_cut_total", &label, 1, cut[i].n);
    }
}

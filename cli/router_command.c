/* `baton router`: its options, read into what the router is started with. */
#include <stdio.h>
#include <string.h>

#include "cli/roles.h"
#include "common/base/assert.h"
#include "common/base/config.h"
#include "router/core.h"
#include "router/router_main.h"

enum { OPTIONS = 43 };

/* Where it listens, and what strangers may cost. Each answers how many rows it wrote. */
static size_t fill_ports(struct bt_router_options *o, struct bt_option *out) {
    const struct bt_option rows[] = {
        {"host", BT_OPTION_STRING, &o->host, "127.0.0.1", .argument = "ADDRESS",
         .help = "Address of the HTTP and the gRPC port."},
        {"port", BT_OPTION_U32, &o->port, "8000", 0, 65535, .argument = "P",
         .help = "HTTP port; 0 lets the system choose."},
        {"grpc-port", BT_OPTION_U32, &o->grpc_port, NULL, 0, 65535, .argument = "P",
         .help = "gRPC port, at the same address; 0 lets the system choose. Default: the HTTP port "
                 "and 1, or 0 where that is 0."},
        {"grpc-max-connections", BT_OPTION_U32, &o->grpc_connections_max, "1024", 1, 65536,
         .argument = "N", .help = "gRPC connections open at once; further ones are closed."},
        {"registry-listen", BT_OPTION_STRING, &o->registry_listen, "127.0.0.1:8400",
         .argument = "HOST:PORT", .help = "Where workers attach; port 0 lets the system choose."},
        {"insecure", BT_OPTION_FLAG, &o->insecure, "no",
         .help = "Allow addresses that other machines reach although nothing is encrypted."},
        {"health-listen", BT_OPTION_STRING, &o->health_listen, .argument = "HOST:PORT",
         .help = "A loopback port that answers grpc.health.v1 for probes beside it (baton health); "
                 "port 0 lets the system choose. Default: none."},
        {"http-tls-cert", BT_OPTION_STRING, &o->http_tls_cert, .argument = "FILE",
         .help = "Serve HTTPS with this certificate and its chain (PEM); SIGHUP reads it again."},
        {"http-tls-key", BT_OPTION_STRING, &o->http_tls_key, .argument = "FILE",
         .help = "The key of --http-tls-cert (PEM)."},
        {"api-key-file", BT_OPTION_STRING, &o->api_key_file, .argument = "FILE",
         .help = "Ask clients for a key of this file (`baton keys --help`); SIGHUP reads it "
                 "again."},
        {"cors-origin", BT_OPTION_STRING, &o->cors_origin, .argument = "URL",
         .help = "Let pages of this origin call from browsers; '*': of any."},
        {"max-connections", BT_OPTION_U32, &o->connections_max, "16384", 16, 1u << 20,
         .argument = "N",
         .help = "HTTP connections open at once; silent ones make room for new ones."},
        {"header-timeout-s", BT_OPTION_U32, &o->header_timeout_s, "20", 1, 3600, .argument = "S",
         .help = "A request's head must be there in so long; its body in so long and 1 s more for "
                 "each 64 KiB."},
        {"receive-memory", BT_OPTION_BYTES, &o->receive_bytes_max, "64m", 2048, 1ull << 40,
         .argument = "BYTES",
         .help = "What all HTTP requests that are still coming in may hold; past it the slowest "
                 "is refused."},
        {"sse-keepalive-s", BT_OPTION_U32, &o->sse_keepalive_s, "15", 0, 3600, .argument = "S",
         .help = "A stream that waits for its first token sends a comment this often; 0: never."},
    };
    memcpy(out, rows, sizeof rows);
    return sizeof rows / sizeof rows[0];
}

/* What it takes, and where it places it. */
static size_t fill_placing(struct bt_router_options *o, struct bt_option *out) {
    const struct bt_option rows[] = {
        {"disaggregate", BT_OPTION_CHOICE, &o->disaggregate, "auto",
         .choices = {"auto", "always", "never"}, .argument = "MODE",
         .help = "Where prompts are computed: on prefill workers always, on decode workers "
                 "(never), or short ones there."},
        {"max-requests", BT_OPTION_U32, &o->max_requests, NULL, 1, 1048575, .argument = "N",
         .help = "Requests in the router at once, waiting ones included."},
        {"max-queued", BT_OPTION_U32, &o->max_queued, NULL, 1, 1048575, .argument = "N",
         .help = "Requests that wait for a place; more are refused (429)."},
        {"deadline-ms", BT_OPTION_U32, &o->deadline_ms, NULL, 1, 86400000, .argument = "MS",
         .help = "Longest time for one request."},
        {"queue-ms", BT_OPTION_U32, &o->queue_ms, NULL, 1, 86400000, .argument = "MS",
         .help = "Longest wait for a place."},
        {"prefix-blocks", BT_OPTION_U32, &o->prefix_blocks, "262144", 1024, 1u << 28,
         .argument = "N",
         .help = "Blocks of 16 tokens that the router may know to be cached on workers; 16 bytes "
                 "each."},
        {"debug-requests", BT_OPTION_U32, &o->debug_requests, NULL, 1, 1000000, .argument = "N",
         .help = "Ended requests kept for /debug/requests."},
        {"short-prompt", BT_OPTION_U32, &o->short_prompt_tokens, NULL, 0, 1u << 24, .argument = "N",
         .help = "With auto: up to so many tokens to compute, the decode worker prefills."},
        {"prefill-backlog-tokens", BT_OPTION_U32, &o->prefill_backlog_tokens, NULL, 1, 1u << 30,
         .argument = "N", .help = "A prefill worker with more to compute gets nothing new."},
        {"max-context", BT_OPTION_U32, &o->max_context, "0", 0, 1u << 24, .argument = "N",
         .help = "Longest prompt and answer together, in tokens; 0: what the workers say."},
        {"ttft-target-ms", BT_OPTION_U32, &o->ttft_target_ms, "0", 0, 3600000, .argument = "MS",
         .help = "Time to first token that verdicts compare with; 0: learnt."},
        {"itl-target-us", BT_OPTION_U32, &o->itl_target_us, "0", 0, 60000000, .argument = "US",
         .help = "Time between tokens that verdicts compare with; 0: learnt."},
    };
    memcpy(out, rows, sizeof rows);
    return sizeof rows / sizeof rows[0];
}

/* The model, its clients and its log. */
static size_t fill_rest(struct bt_router_options *o, struct bt_option *out) {
    const struct bt_option rows[] = {
        {"model", BT_OPTION_STRING, &o->model, .argument = "FILE", .required = true,
         .help = "The model, a GGUF file; its metadata and tokenizer are read, not its weights."},
        {"served-model-name", BT_OPTION_STRING, &o->served_name, .argument = "NAME",
         .help = "Name of the model in the API; default: the file's own."},
        {"client-stuck-ms", BT_OPTION_U32, &o->client_stuck_ms, "30000", 100, 86400000,
         .argument = "MS", .help = "A client that reads nothing of its stream for so long is cut."},
        {"max-body", BT_OPTION_BYTES, &o->body_bytes_max, "4m", 1024, 1u << 30, .argument = "BYTES",
         .help = "Largest HTTP request body."},
        {"name", BT_OPTION_STRING, &o->name, "router", .argument = "NAME",
         .help = "Its name in the log."},
        {"log-level", BT_OPTION_CHOICE, &o->log_level, "info",
         .choices = {"error", "warn", "info", "debug"}, .argument = "LEVEL",
         .help = "What is logged."},
        {"log-format", BT_OPTION_CHOICE, &o->log_format, "auto",
         .choices = {"auto", "text", "json"}, .argument = "FORMAT",
         .help = "Lines for people or JSON objects; auto: text on a terminal, else JSON."},
        {"log-requests", BT_OPTION_FLAG, &o->log_requests, "yes",
         .help = "A line for each request at its end: its stages and its verdict, no text of it; "
                 "--log-requests=no for none."},
        {"die-with-parent", BT_OPTION_FLAG, &o->die_with_parent, "no",
         .help = "End when the process that started this one ends."},
    };
    memcpy(out, rows, sizeof rows);
    return sizeof rows / sizeof rows[0];
}

static size_t fill_options(struct bt_router_options *o, struct bt_option out[OPTIONS]) {
    size_t n = fill_rest(o, out);
    n += fill_ports(o, out + n);
    bt_tls_option_rows(&o->tls_cert, &o->tls_key, &o->tls_ca, out + n);
    n += BT_TLS_OPTIONS;
    n += fill_placing(o, out + n);
    BT_ASSERT(n <= OPTIONS);
    return n;
}

int bt_router_command(int argc, char **argv) {
    struct bt_router_config standard;
    bt_router_config_default(&standard);
    struct bt_router_options o = {
        .grpc_port = BT_GRPC_PORT_STANDARD,
        .max_requests = standard.max_requests,
        .max_queued = standard.max_queued,
        .deadline_ms = standard.deadline_ms,
        .queue_ms = standard.queue_ms,
        .debug_requests = standard.n_records,
        .short_prompt_tokens = standard.short_prompt_tokens,
        .prefill_backlog_tokens = standard.prefill_backlog_tokens,
    };
    struct bt_option options[OPTIONS];
    const struct bt_command command = {
        .name = "router",
        .usage = "baton router --model FILE [--port P] [--registry-listen HOST:PORT]",
        .summary = "Takes requests by HTTP, places them on the workers that have attached, and "
                   "streams their tokens.\n"
                   "SIGTERM: no new work, open streams finish, exit 0; a second one ends at once.",
        .example = "  baton router --model model.gguf --port 8000 --registry-listen 127.0.0.1:8400",
        .options = options,
        .n_options = fill_options(&o, options),
    };
    struct bt_error err;
    bt_status status = bt_config_parse(&command, argc, argv, &err);
    if (status == BT_OK)
        status = bt_tls_options_check(o.tls_cert, o.tls_key, o.tls_ca, &err);
    if (status < 0) {
        fprintf(stderr, "baton router: %s\n", err.text);
        return 2;
    }
    return status == BT_DONE ? 0 : bt_router_run(&o);
}

/* `baton router`: takes requests by HTTP, places them on workers, streams tokens. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/log.h"

enum { BT_GRPC_PORT_STANDARD = 65536 };

/* What the command line says; all borrowed until bt_router_run returns. */
struct bt_router_options {
    const char *model;       /* GGUF file; metadata and tokenizer are read */
    const char *served_name; /* NULL: the file's own */
    const char *host;        /* HTTP */
    uint32_t port;           /* 0: chosen by the system */
    uint32_t grpc_port;      /* the same; BT_GRPC_PORT_STANDARD: port + 1, 0 where that is 0 */
    uint32_t grpc_connections_max;
    const char *registry_listen;             /* "host:port" where workers attach */
    const char *tls_cert, *tls_key, *tls_ca; /* of the registry: PEM files; all or none */
    bool insecure;             /* allow other addresses than loopback without encryption */
    const char *health_listen; /* "host:port" on loopback for probes; NULL: none */
    const char *http_tls_cert, *http_tls_key; /* PEM files of the public doors, or NULL */
    const char *api_key_file;                 /* api_keys.h; NULL: no key is asked for */
    const char *cors_origin;                  /* whose pages may call, "*", or NULL */
    uint32_t connections_max, header_timeout_s;
    uint64_t receive_bytes_max; /* of HTTP requests still coming in */
    uint32_t sse_keepalive_s;   /* 0: off */
    uint32_t disaggregate;      /* enum bt_disaggregate */
    uint32_t max_requests, max_queued;
    uint32_t deadline_ms, queue_ms;
    uint32_t prefix_blocks;  /* known to be cached on workers; rounded up to a power of two */
    uint32_t debug_requests; /* ended requests kept for /debug/requests */
    uint32_t short_prompt_tokens, prefill_backlog_tokens;
    uint32_t max_context;                   /* 0: what the workers say */
    uint32_t ttft_target_ms, itl_target_us; /* 0: learnt */
    uint32_t client_stuck_ms;               /* a client that reads nothing for so long is cut */
    uint64_t body_bytes_max;
    const char *name; /* in the log */
    bool die_with_parent;
    uint32_t log_level;  /* enum bt_log_level */
    uint32_t log_format; /* enum bt_log_format */
    bool log_requests;   /* a line for each request that has ended */
};

/* Runs until SIGTERM or SIGINT; answers the process's exit code. Prints one line on stdout once
 * all ports listen: "ready: http=HOST:PORT registry=HOST:PORT grpc=HOST:PORT". */
int bt_router_run(const struct bt_router_options *options);

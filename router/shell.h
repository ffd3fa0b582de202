/* What surrounds the pure core in a router process: the loop, its clock, text, ports and streams.
 *
 * Everything runs on one libevent loop thread. A turn: events go into the core, its actions are
 * carried out after each (bt_shell_drain), and at the end of the turn each touched worker stream
 * and each touched client stream is written once (bt_shell_flush). */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/metrics.h"
#include "common/rpc/rpc_server.h"
#include "common/text/text_model.h"
#include "router/core.h"
#include "router/http_server.h"
#include "router/openai_answer.h"
#include "router/request_times.h"
#include "router/router_main.h"
#include "router/shell_hold.h"
#include "router/sse.h"
#include "router/stats_page.h"

struct event;
struct event_base;
struct bt_completion;
struct bt_grpc_api;
struct bt_health_port;
struct bt_tls;
struct bt_openai_call;

struct bt_shell {
    const struct bt_router_options *options;
    struct event_base *base;
    struct bt_router_core *core;
    struct bt_tls *tls; /* of the registry; NULL: plain text */
    struct bt_rpc_server *rpc;
    struct bt_rpc_streams *streams;
    struct bt_http_server *http;
    struct bt_grpc_api *grpc;
    struct bt_health_port *health; /* NULL: nobody asked for one */
    struct bt_api_keys *keys;      /* of both public doors; NULL: none is asked for */
    struct bt_tls *public_tls;     /* of both public doors; NULL: plain */
    struct bt_text_model text;
    struct bt_encode_scratch *scratch;
    struct bt_openai_skeletons skeletons;
    char model[BT_OPENAI_MODEL_BYTES]; /* its served name */
    int64_t started_s;                 /* UNIX time */
    uint64_t now_us;                   /* of this turn, monotonic */
    struct bt_sse_set sse;
    struct bt_completion *completions; /* all that are open */
    struct bt_completion *telling;     /* choices of theirs are to end: the core is told after its
                                          actions */
    struct bt_completion *ended;       /* freed at the end of the turn */
    size_t n_completions;
    struct bt_openai_call *calls;       /* all that are not answered yet */
    struct bt_openai_call *ended_calls; /* freed at the end of the turn */
    size_t n_calls;
    struct event *rpc_event, *flush_event, *tick_event, *term_event, *int_event, *hangup_event;
    uint64_t tick_at_us; /* when tick_event is due */
    bool flush_pending, draining;
    struct bt_shell_hold hold;
    struct bt_request_times times;
    struct bt_stats stats;
    uint64_t n_http_requests, n_http_refused;
};

/* Opens the model, both ports and the core; nothing is served before bt_shell_run. */
bt_status bt_shell_init(struct bt_shell *shell, const struct bt_router_options *options,
                        struct bt_error *err);
void bt_shell_fini(struct bt_shell *shell); /* accepts a half-built one */
/* Until the loop is told to end. */
void bt_shell_run(struct bt_shell *shell);

/* Reads the clock; before events go into the core. */
uint64_t bt_shell_now(struct bt_shell *shell);
/* Carries out the core's actions; after each event that went into it. */
void bt_shell_drain(struct bt_shell *shell);

/* What stands around a worker's core: the event loop, the engine, the streams to its routers.
 *
 * Both workers are built the same way. Everything that can happen (a router's message, a step's
 * end, a link's bytes, the clock, a signal) ends in one function, the worker's `turn`: it takes the
 * events, tells the core, and does what the core wants done. Owned by the process's main thread. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/engine/engine.h"
#include "common/engine/worker_options.h"
#include "common/rpc/rpc_client.h"
#include "common/worker/router_lookup.h"
#include "common/worker/router_set.h"

struct bt_health_port;
struct bt_tls;
struct event;
struct event_base;

enum { BT_WORKER_TICK_MS = 25 }; /* the cores want 50 at most */

struct bt_worker_host {
    const struct bt_worker_options *options; /* borrowed */
    struct event_base *base;
    struct bt_engine *engine;
    struct bt_tls *tls;            /* of routers and KV links; NULL: plain text */
    bool has_rpc;                  /* gRPC was started */
    struct bt_health_port *health; /* NULL: nobody asked for one */
    struct bt_rpc_client *rpc;
    struct bt_rpc_streams *streams; /* of rpc */
    struct event *rpc_event, *engine_event, *tick, *term, *interrupt, *hangup;
    struct event *hold;     /* what routers are sent waits until then (a failpoint) */
    uint64_t held_until_us; /* 0: it does not wait */
    void (*turn)(void *arg);
    void *arg;
    int n_signals; /* SIGTERM and SIGINT so far: the first drains, the second ends at once */
    bool is_stopped;
    int exit_code;
    struct bt_id incarnation;
    uint64_t random; /* state of the redial spread */
    struct {
        bool busy;             /* dialled or open */
        uint32_t failures;     /* in a row */
        uint64_t welcome_us;   /* 0: it has not said welcome on this stream */
        uint64_t dial_us;      /* not before */
        uint64_t said_us;      /* when `said` was logged; 0: not yet */
        char said[160];        /* why it could not be reached, the beginning */
    } routers[BT_MAX_ROUTERS]; /* by slot */
    struct bt_router_set set;
    struct bt_router_lookup *lookup;
    struct {
        uint64_t look_us; /* not before */
        bool failed;      /* the last time, which was said */
        uint32_t n_left_out;
    } names[BT_MAX_ROUTERS];
};

/* role: BT_ROLE_...; the certificate must name it. Loads the model (with progress in the log),
 * starts the RPC client and the loop's events. max_rows
 * and max_seqs are those of a step. On failure everything is undone by bt_worker_host_fini. */
bt_status bt_worker_host_init(struct bt_worker_host *host, const struct bt_worker_options *options,
                              enum bt_role role, uint32_t max_rows, void (*turn)(void *arg),
                              void *arg, struct bt_error *err);
/* Accepts a zeroed or half-built host. */
void bt_worker_host_fini(struct bt_worker_host *host);
/* Runs the loop until bt_worker_host_stop. Returns the process's exit code. */
int bt_worker_host_run(struct bt_worker_host *host);
void bt_worker_host_stop(struct bt_worker_host *host, int exit_code);
/* Ends the streams in order and stops with 0: what was said to routers reaches them, unless one
 * takes longer than a second (bt_rpc_client_stop). */
void bt_worker_host_leave(struct bt_worker_host *host);

/* Fills what a worker says at Join; role and link address are the caller's. */
bt_status bt_worker_join(const struct bt_worker_host *host, struct bt_msg_join *join,
                         struct bt_error *err);

/* Inside: after the RPC client was started. */
bt_status bt_worker_routers_init(struct bt_worker_host *host, struct bt_error *err);
/* The address of a slot's router, "host:port". */
const char *bt_worker_router(const struct bt_worker_host *host, uint32_t slot);
/* The next event of a router's stream; looks names up and dials those that are due. False: none
 * now. */
bool bt_worker_next_router_event(struct bt_worker_host *host, uint64_t now_us,
                                 struct bt_rpc_event *event);
/* Sends what the turn has said, and tells probes: it is ready while some router has said welcome
 * and no signal has come. */
void bt_worker_flush(struct bt_worker_host *host, uint32_t n_attached);
/* Sends msg; a stream that cannot take it is closed by the RPC library, and its CLOSED follows. */
void bt_worker_send(struct bt_worker_host *host, uint32_t slot, const struct bt_msg *msg);

/* The inside of struct bt_router_core, for the files that make it up; nobody else includes this.
 *
 * Each event enters (bt_core_enter), does its work, and leaves (bt_core_leave): there the dead are
 * cleaned up, peers are told and waiting requests are placed, in slices. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "router/core.h"
#include "router/core_actions.h"
#include "router/fence.h"
#include "router/lifecycle.h"
#include "router/prefix_table.h"
#include "router/record.h"
#include "router/request.h"
#include "router/request_heap.h"
#include "router/token_store.h"
#include "router/verdict.h"
#include "router/worker_table.h"

enum {
    BT_SEQUENCE_MAX = 1048576,      /* prompt + generated tokens of one request: the wire's bound */
    BT_SLOT_BITS = 20,              /* of a request's id */
    BT_WORKER_REQUESTS_MAX = 16384, /* on one worker: all must fit in one Resume */
    BT_SEEN_MAX = 1024,             /* ends to confirm to one worker in one message */
    BT_STALL_MS = 500,              /* our own loop stood still: nobody's silence counts */
    BT_DISPATCH_SLICE = 256,        /* requests placed in one event */
    BT_PASSED_MAX = 8,              /* requests that others may pass in one event */
    BT_CLEANUP_SLICE = 512,         /* requests taken off dead workers in one event */
    BT_TIMER_SLICE = 512,           /* requests whose time has come, in one tick */
    BT_FAILURES_MAX = 5,            /* lost attempts for which nobody has an excuse */
    BT_DEATHS_MAX = 2,              /* workers that died under a request */
    BT_BACKOFF_MS = 10,             /* after a refusal, doubled to BT_BACKOFF_MS_MAX */
    BT_BACKOFF_MS_MAX = 250,
    BT_HOLD_MS = 20,   /* a retry that finds the budget spent looks again */
    BT_ASIDE_MS = 100, /* a request that no attached worker can hold looks again */
    /* After so long only the prefix table says whether D still has a leader's prompt. */
    BT_CHOICE_FRESH_MS = 1000,
};

enum { BT_PAIRS = BT_LIFECYCLE_PAIRS + BT_WORKER_PAIRS };

struct bt_router_core {
    struct bt_router_config config;
    uint64_t now_us;
    bool clock_known;
    bool draining;
    bool held;         /* nothing is placed */
    bool dispatch_due; /* something changed that may let a waiting request go */

    struct bt_request *requests; /* [max_requests] */
    uint32_t n_touched;          /* slots used at least once */
    uint32_t first_free;         /* chain by live_next, BT_NO_REQUEST ends it */
    uint32_t first_ended;        /* END was given: freed once it is drained */
    uint32_t n_in[BT_REQUEST_STATE_COUNT];
    uint32_t n_retrying; /* attempts paid from the retry budget */
    uint64_t n_ids, n_draws;
    struct bt_request_heap timers; /* each live request */
    struct bt_request_heap queue;  /* QUEUED and not backing off, oldest first */
    uint64_t place_interval_us;    /* mean time between placements while requests wait */
    uint64_t placed_us;

    struct bt_token_store tokens;
    struct bt_fence fence;
    struct bt_prefix_table prefix;
    struct bt_worker_table workers;
    uint32_t n_dead; /* entries being cleaned up */
    struct bt_core_actions actions;
    struct bt_record_ring records;
    struct bt_verdict_targets targets;
    struct bt_router_counters counters;
    uint32_t coverage[BT_PAIRS]; /* the request's pairs, then the worker's */

    int32_t *scratch; /* [BT_SEQUENCE_MAX] one request's tokens in a row */
    struct bt_logit_bias bias[BT_LOGIT_BIASES]; /* one request's, while its message is given out */
    struct bt_attempt (*seen)[BT_SEEN_MAX];
};

void bt_core_enter(struct bt_router_core *core, uint64_t now_us);
void bt_core_leave(struct bt_router_core *core);

/* The live request of this key, whatever its attempt; NULL when it has ended or never was. */
struct bt_request *bt_core_find(struct bt_router_core *core, uint64_t id);
uint32_t bt_core_index(const struct bt_router_core *core, const struct bt_request *req);
void bt_core_set_state(struct bt_router_core *core, struct bt_request *req,
                       enum bt_request_state state);
/* Requests that were submitted and have not ended. */
uint32_t bt_core_live(const struct bt_router_core *core);
/* Tokens given to the client so far: the index of the next one. */
uint32_t bt_core_next_index(const struct bt_request *req);
/* Logprobs of its prompt are asked for and the client has not had all of them. */
bool bt_core_wants_scores(const struct bt_request *req);
/* Words of a logit bias in the token store. */
uint32_t bt_core_bias_words(const struct bt_sampling *sampling);
/* Puts the request's next time in the heap. */
void bt_core_arm(struct bt_router_core *core, struct bt_request *req);
struct bt_id bt_core_draw(struct bt_router_core *core);
/* All that is known of it at now_us, as a record; judging it is the caller's. */
void bt_core_describe(const struct bt_router_core *core, uint64_t now_us,
                      const struct bt_request *req, struct bt_record *out);
struct bt_record_sums bt_core_sums(struct bt_router_core *core);

/* The router as a pure state machine: events in, actions out.
 *
 * No clock, socket, thread, random source or malloc after create: each event is told the time
 * (now_us, any monotonic clock) and puts actions into a fixed ring, which the shell drains with
 * bt_router_core_next before the next event. Owned by one thread.
 *
 * The shell maps Attach streams to slots, requests to sinks (req->user), and text to tokens. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/fingerprint.h"
#include "common/base/status.h"
#include "common/rpc/registry_msg.h"
#include "router/request.h"

struct bt_router_core;

enum {
    BT_ROUTER_SLOTS = BT_MAX_WORKERS * 2, /* Attach streams; two while a worker redials */
    BT_ROUTER_TICK_MS = 50,               /* call tick at least this often */
    BT_ROUTER_TOKEN_ROWS = 16384, /* in one TOKENS or SCORES message; more closes the stream */
    BT_ROUTER_REASON_BYTES = 192,
};

enum bt_disaggregate { BT_DISAGGREGATE_AUTO, BT_DISAGGREGATE_ALWAYS, BT_DISAGGREGATE_NEVER };

struct bt_router_config {
    struct bt_id incarnation; /* of this router process; random per start */
    struct bt_id seed;        /* of tickets and of sampling seeds the client did not give; random */
    uint32_t max_requests;    /* live at once, queued ones included; 1..1048575 */
    uint32_t max_queued;      /* waiting for a place; past it submit answers BT_E_FULL */
    uint64_t token_budget;    /* tokens (prompt + max_tokens) of all live requests */
    uint32_t max_context;     /* 0: what the workers say */
    uint32_t queue_ms;        /* longest wait for the first place */
    uint32_t deadline_ms;     /* of requests that bring none */
    enum bt_disaggregate disaggregate;
    uint32_t short_prompt_tokens;    /* auto: tokens to compute up to which D prefills itself */
    uint32_t prefill_backlog_tokens; /* a prefill worker gets no more work past this */
    uint32_t prefix_slots;           /* blocks that the prefix table knows; a power of two */
    uint32_t n_records;              /* ended requests kept for /debug/requests */
    uint32_t ttft_target_ms;         /* 0: learnt from the unloaded pool */
    uint32_t itl_target_us;          /* 0: learnt */
    uint64_t text_hash;              /* of the router's own tokenizer; 0: the first worker's */
};

/* All fields but incarnation and seed. */
void bt_router_config_default(struct bt_router_config *config);

/* BT_E_INVALID names the field; BT_E_NO_MEMORY. */
struct bt_router_core *bt_router_core_create(const struct bt_router_config *config,
                                             struct bt_error *err);
void bt_router_core_destroy(struct bt_router_core *core); /* NULL is fine */

/* ---- events from clients ---- */

/* A checked request; everything is copied. */
struct bt_submit {
    const int32_t *tokens; /* the prompt */
    uint32_t n_tokens;     /* >= 1 */
    struct bt_sampling sampling;
    bool seed_given;       /* else the core draws sampling.seed */
    bool max_tokens_given; /* else sampling.max_tokens becomes what fits (readable in req) */
    uint32_t deadline_ms;  /* 0: the configured one */
    const char *tenant;    /* "" for none; < BT_NAME_BYTES bytes */
    const struct bt_caller *caller; /* for the record; NULL: nobody known */
    /* Another live request with the same prompt and tenant, or NULL. This one then waits until the
     * leader's cache is on its decode worker (or the leader has ended) and runs there, so that one
     * prefill and one transfer serve both. A choice of a request is such a follower. */
    const struct bt_request *leader;
    void *user;
};

/* BT_OK: *req lives until its END action was drained and the next event was given. Else nothing is
 * kept and err says why:
 *   BT_E_TOO_LARGE (400) prompt + max_tokens can never fit the workers' context or pools,
 *   BT_E_INVALID (400) no token, BT_E_FULL (429) queue, table or token budget is full now,
 *   BT_E_UNAVAILABLE (503) no worker that it needs is attached, or the router drains. */
bt_status bt_router_core_submit(struct bt_router_core *core, uint64_t now_us,
                                const struct bt_submit *submit, struct bt_request **req,
                                struct bt_error *err);

/* The client is gone: END follows with BT_E_CANCELLED. Harmless once the request has ended. */
void bt_router_core_cancel(struct bt_router_core *core, uint64_t now_us, struct bt_request *req);

/* A stop string matched in the text: END follows with BT_OK, BT_FINISH_STOP. Tokens that came after
 * are dropped. Harmless once the request has ended. */
void bt_router_core_stop(struct bt_router_core *core, uint64_t now_us, struct bt_request *req);

/* ---- events from workers. slot < BT_ROUTER_SLOTS is chosen by the shell per Attach stream ---- */

void bt_router_core_worker_opened(struct bt_router_core *core, uint64_t now_us, uint32_t slot);
void bt_router_core_worker_message(struct bt_router_core *core, uint64_t now_us, uint32_t slot,
                                   const struct bt_msg *msg);
/* The stream has ended, also after the core's own CLOSE; the slot may be used again. */
void bt_router_core_worker_closed(struct bt_router_core *core, uint64_t now_us, uint32_t slot);

/* ---- time and operation ---- */

void bt_router_core_tick(struct bt_router_core *core, uint64_t now_us);
/* When tick is due at the latest; <= now_us while work is waiting that was cut into slices. */
uint64_t bt_router_core_next_tick_us(const struct bt_router_core *core);
/* No new requests (submit answers BT_E_UNAVAILABLE); those here go on to their end. */
void bt_router_core_drain(struct bt_router_core *core, uint64_t now_us);
/* While held no request is placed: they wait in the queue. */
void bt_router_core_hold(struct bt_router_core *core, uint64_t now_us, bool held);
/* Asks every worker to empty its prefix cache. */
void bt_router_core_flush(struct bt_router_core *core, uint64_t now_us);

/* ---- actions ---- */

enum bt_router_action_type {
    BT_ROUTER_SEND = 1, /* msg on the stream in slot; wire cuts it into pieces */
    BT_ROUTER_CLOSE,    /* end the stream in slot, after what was sent on it; log reason */
    BT_ROUTER_EMIT,     /* the request's next token, in order, each index exactly once */
    BT_ROUTER_END,      /* exactly one per request, after its last EMIT */
    BT_ROUTER_LOG,      /* a line for the log: reason */
    BT_ROUTER_SCORES,   /* logprobs of the request's prompt tokens, before its first EMIT, in order,
                           each position once */
};

struct bt_router_action {
    enum bt_router_action_type type;
    uint32_t slot;                      /* SEND, CLOSE */
    const struct bt_msg *msg;           /* SEND */
    struct bt_request *req;             /* EMIT, END */
    uint32_t index;                     /* EMIT: 0, 1, 2, ... */
    int32_t token;                      /* EMIT */
    enum bt_finish finish;              /* EMIT: not NONE on the last; END with BT_OK */
    uint64_t hash;                      /* EMIT: logits hash or 0 */
    const struct bt_logprobs *logprobs; /* EMIT: NULL unless asked for; SCORES: [n_scores] */
    uint32_t first_score, n_scores;     /* SCORES: position in the prompt of logprobs[0] */
    bt_status status;                   /* END */
    const char *reason;                 /* END: a sentence, "" for BT_OK; CLOSE, LOG */
};

/* False when the ring is empty. Pointers in *out are valid until the next call with this core. */
bool bt_router_core_next(struct bt_router_core *core, struct bt_router_action *out);

/* ---- introspection: reads only, any time between events ---- */

/* Workers that the mode needs are attached, alive and not draining, and the router does not drain.
 */
bool bt_router_core_ready(const struct bt_router_core *core);
/* Largest prompt + max_tokens that submit takes now; 0 without workers. */
uint32_t bt_router_core_context(const struct bt_router_core *core);
/* For Retry-After. */
uint32_t bt_router_core_retry_after_ms(const struct bt_router_core *core);

struct bt_router_counters {
    /* Gauges. */
    uint64_t live, queued, streaming, tokens_stored, token_budget, prefix_blocks;
    /* Since start. */
    uint64_t submitted, refused_full, refused_invalid, refused_unavailable;
    uint64_t ended_ok, ended_cancelled, ended_deadline, ended_failed;
    uint64_t prompt_tokens, generated_tokens;
    uint64_t attempts, moved_preempted, moved_drained, moved_death, moved_link;
    uint64_t retries, retries_held_back; /* refusals tried again; of them, made to wait */
    uint64_t poisoned;
    uint64_t placed[BT_PLACEMENT_COUNT];
    uint64_t tokens_duplicate, tokens_stale, tokens_held; /* what the output fence did */
    uint64_t joins, joins_refused, deaths, leaves, suspects, stalls;
    uint64_t pgone_asked, pgone_live;
    uint64_t incomplete; /* D was done or far ahead and a token is missing: only a fault of ours or
                            a worker that lies can do it */
    uint64_t prefix_dropped, prefix_holes;
    uint64_t pages_prompt, pages_held; /* of placed requests: how many the prefix saved */
    uint64_t kv_bytes;
    uint64_t slow[BT_SLOW_PHASE_COUNT][BT_SLOW_STAGE_COUNT];
};
const struct bt_router_counters *bt_router_core_counters(struct bt_router_core *core);

enum bt_worker_state {
    BT_WORKER_NONE,
    BT_WORKER_UP,
    BT_WORKER_SUSPECT,  /* silent: no new work */
    BT_WORKER_DETACHED, /* its stream ended: no new work, may come back */
    BT_WORKER_DEAD,     /* being cleaned up */
    BT_WORKER_STATE_COUNT,
};
const char *bt_worker_state_name(enum bt_worker_state state);

struct bt_worker_view {
    const char *name, *link_address;
    struct bt_id incarnation;
    enum bt_role role;
    enum bt_worker_state state;
    uint32_t max_context, max_seqs;
    struct bt_msg_status status; /* the last one */
    uint32_t requests;           /* of this router, with a part there */
    uint64_t silent_us;
};
/* i < BT_MAX_WORKERS; false where there is none. */
bool bt_router_core_worker(const struct bt_router_core *core, uint64_t now_us, uint32_t i,
                           struct bt_worker_view *out);

/* What remains of an ended request, or what is known of a live one. */
struct bt_request_record {
    uint64_t id;
    char tenant[BT_NAME_BYTES];
    struct bt_caller caller;
    enum bt_request_state state; /* ENDED, or where a live one stands */
    bt_status status;
    enum bt_finish finish;
    enum bt_placement placement;
    char p_name[BT_NAME_BYTES], d_name[BT_NAME_BYTES];
    uint32_t prompt_tokens, generated_tokens, attempts, moves, retries;
    uint32_t pages, pages_held, pages_cached_p;
    uint64_t kv_bytes;
    /* Durations, microseconds. */
    uint64_t age_us; /* since its end; of a live one since its start */
    uint64_t total_us, ttft_us, itl_mean_us, itl_max_us;
    uint64_t span_us[BT_SPAN_COUNT];  /* they add up to total_us */
    uint64_t start_us[BT_SPAN_COUNT]; /* what of them passed before the first token */
    uint32_t unknown;      /* bit i: span i has not been reported; network has its time */
    struct bt_stages p, d; /* the workers' words on the last attempt */
    struct bt_verdict verdict;
};
/* i = 0 is the last one ended; false past the end. */
bool bt_router_core_record(const struct bt_router_core *core, uint64_t now_us, uint32_t i,
                           struct bt_request_record *out);
/* Live ones: *cursor = 0 first; false past the end. */
bool bt_router_core_live(const struct bt_router_core *core, uint64_t now_us, uint32_t *cursor,
                         struct bt_request_record *out);

/* The record of a request that has ended, before the next event: what its END action names. */
void bt_router_core_record_of(const struct bt_router_core *core, const struct bt_request *req,
                              struct bt_request_record *out);

/* The targets in use, set or learnt; 0 while nothing is learnt. For a prompt of n_tokens. */
uint64_t bt_router_core_ttft_target_us(const struct bt_router_core *core, uint32_t n_tokens);
uint64_t bt_router_core_itl_target_us(const struct bt_router_core *core);

/* ---- coverage: each pair of (state, event) counts how often it was met ---- */

enum bt_pair_kind {
    BT_PAIR_IMPOSSIBLE, /* asserted: its count stays 0 */
    BT_PAIR_IGNORED,    /* nothing happens, and `why` says why that is right */
    BT_PAIR_HANDLED,
};

struct bt_pair_view {
    const char *machine; /* "request" or "worker" */
    const char *state, *event;
    enum bt_pair_kind kind;
    const char *why; /* "" unless IGNORED */
};

/* counts[i] belongs to pair i; *n_pairs of them. Borrowed until destroy. */
const uint32_t *bt_router_core_coverage(const struct bt_router_core *core, uint32_t *n_pairs);
/* The same for every core; false past the end. */
bool bt_router_core_pair(uint32_t i, struct bt_pair_view *out);

/* Everything adds up: lists, heaps, token store, worker parts. For the simulator and debug builds.
 */
bool bt_router_core_is_valid(const struct bt_router_core *core);

/* One client request from admission to its last token: the struct that walks the router.
 *
 * Owned by the core (core.h) from bt_router_core_submit until the END action was drained; a shell
 * reads it, and writes `user` only. Times are the core's now_us. Read this file first. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/rpc/registry_msg.h"
#include "router/caller.h"

/* What the router waits for. The reaction to each event in each state is the table in
 * router/lifecycle.c. */
enum bt_request_state {
    BT_REQUEST_FREE,         /* the slot is not in use */
    BT_REQUEST_QUEUED,       /* waits in the router for room, first time or after a lost attempt */
    BT_REQUEST_RESERVING,    /* Reserve (and Prefill) sent, D has not answered */
    BT_REQUEST_PREFILLING,   /* D holds pages for it, no token of this attempt yet */
    BT_REQUEST_TRANSFERRING, /* token 0 came from P, the cache is still travelling */
    BT_REQUEST_STREAMING,    /* D has the cache and decodes */
    BT_REQUEST_ASKING,       /* P is lost: D was asked whether it has the cache */
    BT_REQUEST_SERVED,       /* its client has had END; followers wait for the cache that D gets */
    BT_REQUEST_ENDED,        /* END is in the action ring; freed at the next event */
    BT_REQUEST_STATE_COUNT,
};

/* Why a request's attempt ran where it did; recorded and exported for each. */
enum bt_placement {
    BT_PLACE_NONE,              /* never placed */
    BT_PLACE_SPLIT,             /* prefill on P, decode on D */
    BT_PLACE_LOCAL_SHORT,       /* prompt is short: prefill on D */
    BT_PLACE_LOCAL_PREFIX,      /* D already has (nearly) all of the prompt */
    BT_PLACE_LOCAL_NEVER,       /* --disaggregate never */
    BT_PLACE_LOCAL_NO_PREFILL,  /* no prefill worker is alive (auto only) */
    BT_PLACE_LOCAL_SCORES,      /* it wants logprobs of its prompt: one worker makes both */
    BT_PLACE_LOCAL_CHOICE,      /* a further choice: where its leader's prompt is */
    BT_PLACE_LOCAL_PAIR_BROKEN, /* every link to D that could be used was lost just now (auto) */
    BT_PLACEMENT_COUNT,
};

/* The phase that missed its target. */
enum bt_slow_phase {
    BT_SLOW_NOT,
    BT_SLOW_START,  /* time to first token */
    BT_SLOW_STREAM, /* time between tokens */
    BT_SLOW_PHASE_COUNT,
};

/* Where a request's time went: the spans of its life, which add up to its total (router/spans.h).
 */
enum bt_span {
    BT_SPAN_QUEUE,     /* waited in the router for a place */
    BT_SPAN_PLACEMENT, /* Reserve sent to accepted */
    BT_SPAN_WAIT,      /* accepted to the first chunk's start: the worker's queue, the grant */
    BT_SPAN_PREFILL,   /* compute of the prompt */
    BT_SPAN_TRANSFER,  /* last layer computed to committed */
    BT_SPAN_JOIN,      /* committed to the first decode step */
    BT_SPAN_DECODE,    /* first decode step to last */
    BT_SPAN_MOVED,     /* attempts that were lost, from their last token to the next one */
    BT_SPAN_NETWORK,   /* the remainder: what nobody accounts for */
    BT_SPAN_COUNT,
};

/* The stage that took most of the excess. */
enum bt_slow_stage {
    BT_STAGE_NONE,
    BT_STAGE_QUEUE,
    BT_STAGE_PLACEMENT,
    BT_STAGE_WAIT,
    BT_STAGE_PREFILL,
    BT_STAGE_TRANSFER,
    BT_STAGE_JOIN,
    BT_STAGE_BATCH,  /* decode steps were long: many sequences at once */
    BT_STAGE_STEP,   /* decode steps were long although few sequences shared them */
    BT_STAGE_MEMORY, /* pages ran out: preempted and prefilled again */
    BT_STAGE_MOVED,  /* a worker was lost or drained: prefilled again elsewhere */
    BT_STAGE_NETWORK,
    BT_SLOW_STAGE_COUNT,
};

struct bt_verdict {
    enum bt_slow_phase phase;
    enum bt_slow_stage stage;
    const char *advice; /* a sentence that says what would help; static storage, never NULL */
};

enum { BT_NO_WORKER = -1, BT_NO_REQUEST = UINT32_MAX };

struct bt_request {
    uint64_t id; /* low 20 bits: slot in the core's table; the rest counts its uses. Never reused */
    void *user;  /* the shell's */
    enum bt_request_state state;
    uint32_t attempt; /* 0 before the first placement */
    struct bt_id ticket;
    char tenant[BT_NAME_BYTES];
    struct bt_caller caller;
    struct bt_sampling sampling; /* its bias is NULL: the entries are in the token store */

    /* Prompt and emitted tokens, in the core's token store. */
    uint32_t first_chunk, last_chunk;
    uint32_t n_tokens; /* prompt + emitted */
    uint32_t n_prompt;
    uint32_t first_bias, last_bias; /* chain of sampling.n_bias entries, two words each */
    uint32_t chunks_reserved;       /* of the token budget, for all it may become */
    uint32_t window;                /* tokens that came before their turn; 0 = none (fence.h) */

    uint32_t n_scored; /* prompt tokens whose logprobs the client was given */

    /* Requests of one prompt (followers.h). */
    uint32_t leader;                   /* whose cache this one waits for, or BT_NO_REQUEST */
    uint32_t first_follower;           /* those that wait for this one's */
    uint32_t n_followers;              /* at most BT_CHOICES */
    uint32_t follow_next, follow_prev; /* in the leader's list */
    struct bt_id prompt_d; /* incarnation of the D that has, or is to have, the prompt's cache: its
                              own, before its first attempt its leader's; 0: not known */
    uint64_t released_us;  /* when its leader's cache was there; 0: it followed nobody */

    /* Where this attempt runs. */
    int16_t p, d;           /* worker table index or BT_NO_WORKER */
    bool p_open, d_open;    /* that worker has a part that has not ended */
    bool from_d;            /* a token of this attempt came from D: it is committed */
    bool retrying;          /* this attempt is paid from the retry budget */
    uint32_t attempt_first; /* index of this attempt's first token */
    enum bt_end p_end;      /* why P's part failed, while ASKING */
    enum bt_placement placement;
    char p_name[BT_NAME_BYTES], d_name[BT_NAME_BYTES]; /* of the last placement, for the record */

    /* Bounds. */
    uint64_t arrived_us, deadline_us, queue_deadline_us;
    uint64_t not_before_us;  /* after a refusal: back-off */
    uint32_t timer_position; /* in the core's heaps */
    uint32_t queue_position;
    uint64_t timer_us;             /* when the core looks at it next */
    uint32_t live_next, live_prev; /* list of the worker that runs it (D's) */
    uint32_t p_next, p_prev;       /* list of the worker that prefills it (P's) */
    uint8_t retries;               /* refusals and failures so far */
    uint8_t failures;              /* of them, those that were no lack of room */
    uint8_t deaths;                /* workers that died while it was on them */
    uint8_t moves;                 /* attempts after preemption, drain or death */

    /* What this attempt counts for in its workers' loads. */
    uint32_t pages_asked;    /* of D's pages, until D has answered */
    uint32_t backlog_tokens; /* of P's backlog, until its token came */
    bool retry_due;          /* the next attempt is a retry: it needs room in the budget */
    bool held_back;          /* and was made to wait for it */
    bool muted;              /* stop or cancel came: EMITs still in the ring are skipped */
    bool was_placed;         /* D accepted it once: the queue's deadline is for the first place */

    /* What happened, for the record and the verdict. */
    uint64_t queued_us, placed_us, first_token_us, last_token_us;
    uint64_t accepted_us;     /* when D accepted this attempt; 0: not yet */
    uint64_t queue_total_us;  /* waiting in the router, all attempts before the first token */
    uint64_t followed_us;     /* waiting for its leader's prompt to be computed and carried */
    uint64_t wasted_us;       /* attempts that were lost before the first token */
    uint64_t replay_total_us; /* from the last token before a loss to the next one, all losses */
    uint64_t lost_us;         /* where that last token stands; 0 = not replaying */
    uint64_t resumed_us;      /* first token of this attempt */
    uint64_t decoded_us;      /* first to last token of attempts that were lost later */
    uint64_t itl_max_us;
    struct bt_stages p_stages, d_stages; /* of the last attempt that reported */
    /* The start of the attempt that gave token 0, kept when it was lost later. */
    uint64_t start_us[BT_SPAN_COUNT];
    bool start_kept;
    bool p_reported, d_reported; /* this attempt's worker has told its stages (d: to the end) */
    bool first_from_d;           /* token 0 came from D, after the transfer */
    uint64_t kv_bytes;
    uint32_t pages, pages_held, pages_cached_p;
    bool preempted, moved;

    /* Set with END. */
    bt_status status;
    enum bt_finish finish;
    struct bt_verdict verdict;
};

const char *bt_request_state_name(enum bt_request_state state);
const char *bt_placement_name(enum bt_placement placement);
const char *bt_span_name(enum bt_span span);
const char *bt_slow_phase_name(enum bt_slow_phase phase);
const char *bt_slow_stage_name(enum bt_slow_stage stage);

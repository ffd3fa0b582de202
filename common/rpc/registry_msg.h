/* What a router and a worker say to each other on Registry.Attach, as plain structs.
 *
 * The pure cores on both sides speak these; common/rpc/wire.c turns them into protobuf messages and
 * back and checks all that a peer sends, so a core never sees a value outside the bounds written
 * here. Pointers are borrowed for the call that passes the message. Times are milliseconds left or
 * gone, never a clock reading. Includes nothing of gRPC. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/census.h"
#include "common/base/fingerprint.h"
#include "common/base/id.h"
#include "common/base/limits.h"
#include "common/base/sampling.h"

enum { BT_PROTOCOL_MIN = 1, BT_PROTOCOL_MAX = 1 };

/* In one Scores message: always fits BT_MESSAGE_BYTES. */
enum { BT_SCORE_ROWS = 1024 };

enum bt_role { BT_ROLE_PREFILL = 1, BT_ROLE_DECODE = 2 };

/* One try at one request. Unique within an incarnation of the router. */
struct bt_attempt {
    uint64_t request; /* never reused by an incarnation; 0 is no request */
    uint32_t attempt; /* 1, 2, ... */
};

/* How a worker's part of an attempt ended. The router's reaction stands in router/lifecycle.c,
 * one table. */
enum bt_end {
    BT_END_DONE = 1,  /* D: the last token was sent */
    BT_END_HANDED,    /* P: D committed, the pages are D's */
    BT_END_FULL,      /* no room for it now */
    BT_END_PREEMPTED, /* D: its pages went to an older sequence; go on elsewhere from next_index */
    BT_END_LINK,      /* the KV link was lost before commit */
    BT_END_PEER_GONE, /* D's answer to PGONE: it was not committed, it is freed */
    BT_END_REFUSED,   /* P: D refused its hello (unknown or ended ticket, another prompt) */
    BT_END_CHECKSUM,  /* D: a page or the manifest did not verify */
    BT_END_UNKNOWN,   /* the answer to a ticket in RESUME (or PGONE) that the worker lacks */
    BT_END_DEADLINE,
    BT_END_NONFINITE, /* the model gave a logit that is no number */
    BT_END_DRAINING,  /* the worker is leaving: go on elsewhere from next_index */
    BT_END_INVALID,   /* it can never run here (longer than the pool or the context) */
    BT_END_INTERNAL,
    BT_END_COUNT,
};

/* Durations of a worker's part, on its own clock, microseconds; 0 where it does not apply. */
struct bt_stages {
    uint64_t queue_us;    /* P: Prefill received to hello. D: Reserve to the first chunk's start;
                             of a prompt that P computed: P's queue and grant, as P told D */
    uint64_t grant_us;    /* P: hello to the first chunk's start: grant, pages, the step before */
    uint64_t prefill_us;  /* compute, first chunk's start to last chunk's end, whoever's */
    uint64_t transfer_us; /* P: last layer computed to committed. D: grant to commit verified */
    uint64_t join_us;     /* D: verified to first decode step */
    uint64_t decode_us;   /* D: first step to last */
    uint32_t steps;       /* D: decode steps */
    uint64_t batch_rows;  /* D: rows of all sequences in these steps, its own included */
};

/* ---- worker to router ---- */

struct bt_msg_join {
    char name[BT_NAME_BYTES];
    struct bt_id incarnation; /* per process start */
    enum bt_role role;
    uint32_t protocol_min, protocol_max;
    struct bt_fingerprint fingerprint;
    uint64_t text_hash; /* of the vocabulary, merges and template in the worker's model file */
    char link_address[BT_ADDRESS_BYTES]; /* D: where P dials; empty for P */
    uint32_t max_context;                /* tokens */
    uint32_t max_seqs;                   /* sequences that it runs at once */
    struct bt_census census;
};

/* Load; also the heartbeat. */
struct bt_msg_status {
    struct bt_census census;
    uint32_t running;        /* sequences in the batch */
    uint32_t backlog_tokens; /* prompt tokens accepted and not yet computed */
    uint32_t step_us;        /* mean of the last steps */
    bool draining;
    uint64_t kv_bytes;       /* KV bytes received (D) or sent (P) on links since start */
    uint64_t refused_frames; /* D: link frames and messages refused since start */
    uint32_t links;          /* KV links up */
    uint32_t step_p50_us;    /* what half of the last 1,024 steps do not exceed */
    uint32_t step_p99_us;    /* and 99 % of them */
};

/* Blocks added to and evicted from the prefix cache. A full census is a run of messages, the first
 * with `first` set, the last with `last` set; the router drops what it knew at `first`. Later
 * changes carry first = last = false. sequence rises by one with each message of an incarnation on
 * a stream, so that a hole is noticed. */
struct bt_msg_blocks {
    uint64_t sequence;
    bool census_first, census_last;
    const uint64_t *added, *evicted; /* low halves of block hashes */
    uint32_t n_added, n_evicted;
};

/* D's answer to RESERVE, at once. */
struct bt_msg_reserved {
    struct bt_attempt key;
    bool accepted;
    uint32_t pages_held; /* prompt pages already here (the prefix): they are not sent */
    uint32_t pages;      /* prompt pages in all */
    enum bt_end reason;  /* when refused: FULL, DRAINING, INVALID or DEADLINE */
};

/* D's answer to PGONE where the attempt is committed: nothing happens. (Else: ENDED, PEER_GONE or
 * UNKNOWN.) */
struct bt_msg_live {
    struct bt_attempt key;
};

/* Packed columns, one row per token. */
struct bt_token {
    struct bt_attempt key;
    uint32_t index; /* among the request's generated tokens, those of earlier attempts included */
    int32_t token;
    enum bt_finish finish;
    uint64_t hash;                      /* logits hash, 0 unless sampling.want_hash */
    const struct bt_logprobs *logprobs; /* NULL unless sampling.logprobs */
};

struct bt_msg_tokens {
    const struct bt_token *rows;
    uint32_t n_rows;
};

/* Logprobs of prompt tokens (sampling.prompt_logprobs), from the worker that computes the prompt
 * and decodes too: positions rise without a gap and all of them come before token 0. */
struct bt_msg_scores {
    struct bt_attempt key;
    uint32_t first; /* position of rows[0] in the prompt; 1 is the first that has one */
    const struct bt_logprobs *rows;
    uint32_t n_rows; /* at most BT_SCORE_ROWS */
};

struct bt_msg_ended {
    struct bt_attempt key;
    enum bt_end reason;
    uint32_t next_index; /* first index that was not sent */
    struct bt_stages stages;
    uint32_t pages;          /* prompt pages */
    uint32_t pages_held;     /* of them, found on D */
    uint32_t pages_cached_p; /* of them, found in P's own cache */
    uint64_t kv_bytes;       /* payload moved for this attempt */
};

/* ---- router to worker ---- */

struct bt_msg_welcome {
    struct bt_id incarnation; /* the router's */
    uint32_t protocol;
};

struct bt_msg_refused {
    char reason[256]; /* a sentence; the worker logs it and exits (another model) or retries (name
                         taken) */
    bool final;
};

struct bt_peer {
    char name[BT_NAME_BYTES];
    struct bt_id incarnation;
    char link_address[BT_ADDRESS_BYTES];
};

/* To a prefill worker: all decode workers, whole list each time. */
struct bt_msg_peers {
    const struct bt_peer *peers;
    uint32_t n_peers;
};

struct bt_resume {
    struct bt_attempt key;
    struct bt_id ticket;
    uint32_t next_index;
};

/* After Welcome: what the router holds with this worker. All other tickets of this router
 * incarnation are aborted. */
struct bt_msg_resume {
    const struct bt_resume *rows;
    uint32_t n_rows;
};

/* RESERVE to D, PREFILL to P: both carry all of the request. */
struct bt_msg_work {
    struct bt_attempt key;
    struct bt_id ticket;
    const int32_t *tokens; /* prompt and tokens already emitted; n_tokens >= 1 */
    uint32_t n_tokens;
    uint32_t n_prompt; /* the first n_prompt of them are the prompt; the rest count as generated */
    struct bt_sampling sampling;
    uint32_t remaining_ms; /* to the request's deadline */
    uint32_t elapsed_ms;   /* since it arrived at its router: its age when victims are chosen */
    char tenant[BT_NAME_BYTES];
    bool prefill_here; /* RESERVE: D computes the prompt itself */
    struct bt_id peer; /* PREFILL: incarnation of the D to hand to. RESERVE: incarnation of P */
};

/* Whether logprobs of the prompt are owed: those of an attempt that goes on after emitted tokens
 * were told before them. */
static inline bool bt_work_wants_scores(const struct bt_msg_work *work) {
    return work->sampling.prompt_logprobs && work->n_prompt > 1 && work->n_tokens == work->n_prompt;
}

struct bt_msg_cancel {
    struct bt_attempt key;
    struct bt_id ticket;
};

/* To D: the prefill worker of this attempt is gone. Answered by LIVE or ENDED. */
struct bt_msg_pgone {
    struct bt_attempt key;
    struct bt_id ticket;
};

/* Attempts whose end the router has seen: the worker may forget them. */
struct bt_msg_seen {
    const struct bt_attempt *keys;
    uint32_t n_keys;
};

enum bt_msg_type {
    BT_MSG_JOIN = 1,
    BT_MSG_STATUS,
    BT_MSG_BLOCKS,
    BT_MSG_RESERVED,
    BT_MSG_LIVE,
    BT_MSG_TOKENS,
    BT_MSG_ENDED,
    BT_MSG_WELCOME,
    BT_MSG_REFUSED,
    BT_MSG_PEERS,
    BT_MSG_RESUME,
    BT_MSG_RESERVE,
    BT_MSG_PREFILL,
    BT_MSG_CANCEL,
    BT_MSG_PGONE,
    BT_MSG_SEEN,
    BT_MSG_PULSE, /* router's heartbeat: renews every lease of this router. No fields */
    BT_MSG_FLUSH, /* router asks for an empty prefix cache (/debug/flush). No fields */
    BT_MSG_SCORES,
    BT_MSG_REPORT, /* as `ended`: what the worker's ENDED will say, as far as it is known, before
                      the tokens that it belongs to. reason: DONE before D's last token, else 0 */
    BT_MSG_COUNT,
};

struct bt_msg {
    enum bt_msg_type type;
    union {
        struct bt_msg_join join;
        struct bt_msg_status status;
        struct bt_msg_blocks blocks;
        struct bt_msg_reserved reserved;
        struct bt_msg_live live;
        struct bt_msg_tokens tokens;
        struct bt_msg_scores scores;
        struct bt_msg_ended ended;
        struct bt_msg_welcome welcome;
        struct bt_msg_refused refused;
        struct bt_msg_peers peers;
        struct bt_msg_resume resume;
        struct bt_msg_work work;
        struct bt_msg_cancel cancel;
        struct bt_msg_pgone pgone;
        struct bt_msg_seen seen;
    };
};

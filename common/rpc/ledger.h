/* What a worker owes its routers: who they are and how long they count, which attempts it holds for
 * each, and what is still to be said about them.
 *
 * Both worker cores stand on it. Pure: told the time, no malloc after create. What is to be said is
 * not queued but derived: a job knows which of its tokens and answers its router has been sent, so
 * a router that comes back is simply told again from where it stands (proto/registry.proto: Join,
 * Resume).
 *
 * A *router* here is one incarnation of a router process; it counts until it has been silent for
 * BT_LEASE_MS, attached or not. A *slot* is one Attach stream of the shell. A *job* is one attempt
 * at one request; its number is also the number of the core's sequence. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/rpc/logprob_store.h"
#include "common/rpc/registry_msg.h"

enum {
    BT_LEDGER_ROUTERS = BT_MAX_ROUTERS * 2, /* incarnations: attached ones and those just lost */
    BT_LEDGER_ROWS = 1024,                  /* tokens in one message */
    BT_LEDGER_BLOCKS = 4096,                /* block hashes in one message */
    BT_LEDGER_SCORE_BYTES = 12 << 20, /* logprobs of one prompt: less than a stream may hold */
    BT_LEDGER_STATUS_MS = 50,         /* load that has changed is told this often */
    BT_ROUTER_SILENT_MS = 1000,       /* then its stream is dialled anew */
};

/* One attempt. Open struct: the cores read it; only ledger.c and bt_ledger_* change it. */
struct bt_job {
    uint32_t id; /* its number */
    bool used;
    bool held;     /* the core still has a sequence for it */
    bool ended;    /* its end is known (`end`) */
    bool lost;     /* its router is gone or does not list it: the core must end it without a word */
    bool given_up; /* it was, and the core has been told; a step may still hold it */
    bool confirmed;
    uint32_t router; /* index of the incarnation */
    struct bt_attempt key;
    struct bt_id ticket;
    struct bt_sampling sampling;
    int32_t *tokens;  /* [max_context + 1]: prompt, earlier attempts' tokens, own tokens */
    uint64_t *hashes; /* [max_context + 1], of own tokens, by position */
    struct bt_logit_bias *bias;       /* [BT_LOGIT_BIASES]; sampling.bias points here */
    struct bt_logprob_chain logprobs; /* of own tokens; open where they are wanted */
    struct bt_logprob_chain scores;   /* of prompt tokens from position 1, the same */
    uint32_t n_tokens;
    uint32_t n_prompt;     /* the prompt's part of them */
    uint32_t n_start;      /* tokens when it came: own tokens begin here */
    enum bt_finish finish; /* of the last token */
    uint64_t received_us;  /* when it came */
    uint64_t arrived_us;   /* when its request arrived at its router: what victims are chosen by */
    uint64_t deadline_us;
    uint64_t ended_us;
    /* To be told. */
    uint32_t n_told;  /* tokens [n_start .. n_told) were sent; of `scores` what was read */
    bool answer_owed; /* `reserved` */
    bool live_owed;   /* the answer to PGONE */
    bool end_owed;    /* `end` */
    bool report_owed; /* `report`, before the tokens */
    struct bt_msg_reserved reserved;
    struct bt_msg_ended end, report;
    uint32_t next, previous; /* in the list of jobs that have something to say */
    bool listed;
};

enum { BT_DUE_US_PER_TOKEN = 4000 };

/* Who computes prompts takes the one that is due first: a short one passes a long one that came up
 * to so long before it, and none is passed for ever. */
static inline uint64_t bt_job_due_us(const struct bt_job *job) {
    return job->arrived_us + (uint64_t)job->n_tokens * BT_DUE_US_PER_TOKEN;
}

struct bt_ledger_config {
    /* All but the census. Its role says how many logprobs there can be: a prefill worker makes one
     * token of each job. */
    struct bt_msg_join join;
    uint32_t max_jobs; /* sequences at once and ended ones that are remembered */
};

struct bt_ledger;

bt_status bt_ledger_create(const struct bt_ledger_config *config, struct bt_ledger **out,
                           struct bt_error *err);
void bt_ledger_destroy(struct bt_ledger *ledger); /* NULL is fine */

/* ---- events ---- */

void bt_ledger_opened(struct bt_ledger *ledger, uint64_t now_us, uint32_t slot);
void bt_ledger_closed(struct bt_ledger *ledger, uint64_t now_us, uint32_t slot);
/* Takes what concerns the attachment (WELCOME, REFUSED, RESUME, SEEN, PULSE) and answers BT_DONE;
 * BT_OK: the core's business (RESERVE, PREFILL, CANCEL, PGONE, PEERS, FLUSH). BT_E_PROTOCOL: it may
 * not come now; the stream will be closed. */
bt_status bt_ledger_message(struct bt_ledger *ledger, uint64_t now_us, uint32_t slot,
                            const struct bt_msg *msg, struct bt_error *err);
void bt_ledger_tick(struct bt_ledger *ledger, uint64_t now_us);

/* The next job that lost its router; BT_NO_JOB: none. The core ends it and calls bt_ledger_drop. */
enum { BT_NO_JOB = 0xffffffff };
uint32_t bt_ledger_take_lost(struct bt_ledger *ledger);

/* ---- jobs ---- */

/* Opens a job for work from slot. BT_E_FULL: none is free, or no room for the logprobs that it may
 * come to (ended ones that are remembered make room first, the oldest of them). BT_E_INVALID: it is
 * here already, longer than max_context, or its prompt's logprobs are more than
 * BT_LEDGER_SCORE_BYTES on the wire; the sentence says so. */
bt_status bt_ledger_open(struct bt_ledger *ledger, uint64_t now_us, uint32_t slot,
                         const struct bt_msg_work *work, struct bt_job **out, struct bt_error *err);
/* By its router's stream and key; NULL: not here. Ended ones are found too. */
struct bt_job *bt_ledger_find(struct bt_ledger *ledger, uint32_t slot, struct bt_attempt key);
struct bt_job *bt_ledger_job(struct bt_ledger *ledger, uint32_t id);

/* One more token of the job's own; its logprobs where sampling.logprobs asks for them. */
void bt_ledger_token(struct bt_ledger *ledger, struct bt_job *job, int32_t token,
                     enum bt_finish finish, uint64_t hash, const struct bt_logprobs *logprobs);
/* Logprobs of the next n prompt tokens of a job that wants them, before its first token. */
void bt_ledger_scores(struct bt_ledger *ledger, struct bt_job *job, const struct bt_logprobs *rows,
                      uint32_t n);
/* Prompt tokens of the job whose logprobs are wanted, all told; 0 where nobody asked. */
uint32_t bt_ledger_n_scores(const struct bt_job *job);
/* Answers Reserve (or says again). */
void bt_ledger_answer(struct bt_ledger *ledger, struct bt_job *job,
                      const struct bt_msg_reserved *reserved);
void bt_ledger_live(struct bt_ledger *ledger, struct bt_job *job);
/* Its stages so far, told once, before the tokens that have not been told. */
void bt_ledger_report(struct bt_ledger *ledger, struct bt_job *job,
                      const struct bt_msg_ended *report);
/* Its end, told after its tokens and remembered until the router has seen it or one lease is over.
 * key and next_index of *end are filled in here. */
void bt_ledger_end(struct bt_ledger *ledger, uint64_t now_us, struct bt_job *job,
                   const struct bt_msg_ended *end);
/* Tells the end again. */
void bt_ledger_end_again(struct bt_ledger *ledger, struct bt_job *job);
/* The core has nothing more of it; a job that has not ended is forgotten without a word. */
void bt_ledger_drop(struct bt_ledger *ledger, struct bt_job *job);
/* Answers for what is not here, once: RESERVED refused or ENDED. */
void bt_ledger_refuse(struct bt_ledger *ledger, uint32_t slot, const struct bt_msg *msg);

/* ---- what goes to every router ---- */

void bt_ledger_set_status(struct bt_ledger *ledger, const struct bt_msg_status *status);
/* A change of the prefix index. */
void bt_ledger_block(struct bt_ledger *ledger, bool added, uint64_t hash);
/* A full census is owed to some router (it has just attached, or changes were lost): the core tells
 * all hashes by bt_ledger_census_block between begin and end. */
bool bt_ledger_wants_census(const struct bt_ledger *ledger, uint32_t *slot);
void bt_ledger_census_lost(struct bt_ledger *ledger); /* every router is owed one */
/* hashes [n] in one go; borrowed until the message was drained. */
void bt_ledger_census(struct bt_ledger *ledger, uint32_t slot, const uint64_t *hashes, uint32_t n);

/* ---- what is to be said ---- */

enum bt_ledger_action_type {
    BT_LEDGER_SEND = 1,
    BT_LEDGER_CLOSE, /* end the stream in slot; reason says why; it is dialled again */
    BT_LEDGER_QUIT,  /* refused for good: the worker exits with reason */
};
struct bt_ledger_action {
    enum bt_ledger_action_type type;
    uint32_t slot;
    const struct bt_msg *msg; /* valid until the next call */
    const char *reason;
};
bool bt_ledger_next(struct bt_ledger *ledger, uint64_t now_us, struct bt_ledger_action *out);

/* Streams on which a router has said welcome. */
uint32_t bt_ledger_n_attached(const struct bt_ledger *ledger);
/* Which router incarnation a stream belongs to; BT_LEDGER_ROUTERS: none (yet). */
uint32_t bt_ledger_router(const struct bt_ledger *ledger, uint32_t slot);
/* Bit i: router incarnation i counts (attached, or lost and jobs of it are held). */
uint32_t bt_ledger_routers(const struct bt_ledger *ledger);
/* Jobs whose end or tokens an attached router has not been told or has not seen. */
bool bt_ledger_is_quiet(const struct bt_ledger *ledger);
bool bt_ledger_is_valid(const struct bt_ledger *ledger);

/* The inside of the decode worker's core: a sequence, its states, and what each event does in each.
 *
 * Shared by decode_core.c (events, actions), decode_admit.c, decode_grow.c and decode_step.c. */
#pragma once
#include "common/base/block_hash.h"
#include "common/base/page.h"
#include "common/base/step_times.h"
#include "common/engine/batch.h"
#include "common/kv/kv_pool.h"
#include "common/kv/kv_recv.h"
#include "common/rpc/ledger.h"
#include "decode_worker/decode_core.h"

enum bt_decode_state {
    BT_DECODE_FREE,
    BT_DECODE_RESERVED, /* a lease in kv_recv waits for its prefill worker */
    BT_DECODE_PREFILL,  /* its prompt is computed here */
    BT_DECODE_RUNNING,  /* in the batch */
    BT_DECODE_CLOSING,  /* has ended, but the step that is out names its pages */
    BT_DECODE_STATE_COUNT,
};

enum bt_decode_event {
    BT_DECODE_ON_GRANTED, /* its prefill worker has said hello */
    BT_DECODE_ON_COMMITTED,
    BT_DECODE_ON_ABORTED, /* kv_recv ended the lease */
    BT_DECODE_ON_CANCEL,
    BT_DECODE_ON_PREFILL_GONE,
    BT_DECODE_ON_LOST, /* its router is gone, or no longer lists it */
    BT_DECODE_ON_DEADLINE,
    BT_DECODE_ON_PREEMPT,
    BT_DECODE_ON_MOVE, /* drain has lasted long enough */
    BT_DECODE_ON_STEP, /* the step with it is back */
    BT_DECODE_EVENT_COUNT,
};

struct bt_decode_seq {
    enum bt_decode_state state;
    struct bt_job *job; /* the ledger's; its number is the sequence's */
    struct bt_kv_hold hold;
    uint32_t lease;      /* RESERVED */
    bool in_step;        /* the step that is out has it */
    uint32_t n_computed; /* positions whose K and V are in the pages */
    uint32_t n_blocks;   /* of them, entered in the index (or found there) */
    struct bt_id chain;  /* hash of the last of these blocks; the root where there is none */
    uint32_t n_pages_prompt, n_pages_held;
    uint64_t kv_bytes;
    /* When, for the stage durations; 0: not yet. */
    uint64_t granted_us, joined_us, computing_us, first_step_us, last_step_us;
    uint32_t n_steps;
    uint64_t batch_rows;              /* of all sequences in these steps */
    uint64_t p_wait_us, p_prefill_us; /* P's part, as its commit told it */
};

struct bt_decode_core {
    struct bt_decode_config config;
    struct bt_kv_pool *pool;
    struct bt_kv_recv *recv;
    struct bt_ledger *ledger;
    struct bt_batch batch;
    struct bt_decode_seq *seqs; /* [n_seqs], by job number */
    uint32_t *pages;            /* [n_seqs][max_pages] */
    uint32_t n_seqs, max_pages, n_active;
    uint64_t *census; /* [n_pages] hashes of one full census */
    bool step_out, held, draining, exit_told;
    uint64_t drain_us, step_posted_us;
    uint32_t n_decoding; /* rows of the step that is out that are no prompt's */
    uint32_t row_ns;     /* what a row takes where prompts ride beside them; 0: not known */
    struct bt_step_times step_times;
    uint64_t n_link_refused;
    uint32_t coverage[BT_DECODE_STATE_COUNT * BT_DECODE_EVENT_COUNT];
};

/* Notes that the event reached the sequence; true where the table says that it is handled, false
 * where it is ignored. A pair that cannot be is asserted. */
bool bt_decode_handles(struct bt_decode_core *core, const struct bt_decode_seq *seq,
                       enum bt_decode_event event);
static inline struct bt_decode_seq *bt_decode_seq_of(struct bt_decode_core *core,
                                                     const struct bt_job *job) {
    return &core->seqs[job->id];
}

/* decode_admit.c */
void bt_decode_reserve(struct bt_decode_core *core, uint64_t now_us, uint32_t slot,
                       const struct bt_msg_work *work);
void bt_decode_on_committed(struct bt_decode_core *core, uint64_t now_us, struct bt_decode_seq *seq,
                            const struct bt_kv_msg *commit);
/* Its stages so far, before its next token is told. DONE: that token is the last. */
void bt_decode_report(struct bt_decode_core *core, struct bt_decode_seq *seq, enum bt_end reason);
/* Every end. `told`: the router hears of it; otherwise it knows or is gone. */
void bt_decode_end(struct bt_decode_core *core, uint64_t now_us, struct bt_decode_seq *seq,
                   enum bt_end reason, bool told);

/* decode_grow.c: a page for the position that the sequence computes next. False: it was preempted
 * itself. */
bool bt_decode_grow(struct bt_decode_core *core, uint64_t now_us, struct bt_decode_seq *seq);

/* decode_step.c */
/* Puts the next step together; false: nobody can run. */
bool bt_decode_compose(struct bt_decode_core *core, uint64_t now_us);
/* Learns from the duration what prompts may take of the next ones. */
void bt_decode_note_step(struct bt_decode_core *core, uint64_t took_us);
void bt_decode_on_step(struct bt_decode_core *core, uint64_t now_us);
/* The sequence got its next token; ends it where that was the last. */
void bt_decode_take_token(struct bt_decode_core *core, uint64_t now_us, struct bt_decode_seq *seq,
                          const struct bt_step_result *result);
/* Enters the blocks that are complete into the index. */
void bt_decode_publish(struct bt_decode_core *core, struct bt_decode_seq *seq);

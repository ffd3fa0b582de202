/* The inside of the prefill worker's core: a sequence, its states, and what each event does in
 * each.
 *
 * Shared by prefill_core.c (events, actions), prefill_queue.c, prefill_run.c and prefill_peers.c.
 */
#pragma once
#include "common/base/block_hash.h"
#include "common/base/page.h"
#include "common/base/step_times.h"
#include "common/engine/batch.h"
#include "common/kv/kv_pool.h"
#include "common/kv/kv_send.h"
#include "common/rpc/ledger.h"
#include "prefill_worker/prefill_core.h"

enum bt_prefill_state {
    BT_PREFILL_FREE,
    BT_PREFILL_QUEUED,    /* nothing is held for it */
    BT_PREFILL_OFFERED,   /* hello sent */
    BT_PREFILL_GRANTED,   /* D has bound its pages; ours are waited for */
    BT_PREFILL_COMPUTING, /* in the batch */
    BT_PREFILL_HANDING,   /* computed; its last pages or the commit are on their way */
    BT_PREFILL_CLOSING,   /* has ended, but a step or the link reads its pages */
    BT_PREFILL_STATE_COUNT,
};

enum bt_prefill_event {
    BT_PREFILL_ON_GRANTED,
    BT_PREFILL_ON_LINK_ENDED, /* refused or aborted by D, or the link was lost */
    BT_PREFILL_ON_COMMITTED,
    BT_PREFILL_ON_RELEASED, /* the link has let go */
    BT_PREFILL_ON_NO_LINK,  /* its D cannot be reached */
    BT_PREFILL_ON_CANCEL,
    BT_PREFILL_ON_LOST, /* its router is gone, or no longer lists it */
    BT_PREFILL_ON_DEADLINE,
    BT_PREFILL_ON_MOVE, /* drain has lasted long enough */
    BT_PREFILL_ON_LAYER,
    BT_PREFILL_ON_STEP,
    BT_PREFILL_EVENT_COUNT,
};

struct bt_prefill_seq {
    enum bt_prefill_state state;
    struct bt_job *job; /* the ledger's; its number is the sequence's */
    struct bt_id root;  /* of its block hashes */
    struct bt_id peer;  /* incarnation of the D to hand to */
    struct bt_kv_hold hold;
    uint32_t send;       /* id in kv_send, while `sending` */
    bool sending;        /* kv_send has it */
    bool in_step;        /* the step that is out has it */
    uint32_t n_computed; /* positions whose K and V are in the pages */
    uint32_t n_blocks;   /* of them, entered in the index (or found there) */
    struct bt_id chain;  /* hash of the last of these blocks; the root where there is none */
    uint32_t n_pages, n_pages_cached, n_pages_held; /* of the prompt; found here; found on D */
    uint64_t offered_us, computing_us, computed_us;
};

enum bt_prefill_link_state {
    BT_PREFILL_LINK_FREE,
    BT_PREFILL_LINK_DOWN, /* to be dialled at redial_us */
    BT_PREFILL_LINK_DIALING,
    BT_PREFILL_LINK_UP,
    BT_PREFILL_LINK_LEAVING, /* close was asked for */
};

/* The link to one decode worker. */
struct bt_prefill_link {
    enum bt_prefill_link_state state;
    struct bt_id incarnation;
    char address[BT_ADDRESS_BYTES];
    uint32_t routers; /* bit i: the router with that number in the ledger names it */
    uint64_t redial_us;
    uint32_t failures; /* in a row */
};

struct bt_prefill_core {
    struct bt_prefill_config config;
    struct bt_kv_pool *pool;
    struct bt_kv_send *send;
    struct bt_ledger *ledger;
    struct bt_batch batch;
    struct bt_prefill_seq *seqs; /* [n_seqs], by job number */
    uint32_t *pages;             /* [n_seqs][max_pages] */
    uint32_t n_seqs, max_pages, n_active;
    uint64_t *census; /* [n_pages] hashes of one full census */
    struct bt_prefill_link links[BT_MAX_LINKS];
    bool step_out, draining, exit_told;
    uint32_t n_layers_done; /* of the step that is out */
    uint64_t drain_us, step_posted_us;
    struct bt_step_times step_times;
    uint32_t coverage[BT_PREFILL_STATE_COUNT * BT_PREFILL_EVENT_COUNT];
};

/* Notes that the event reached the sequence; true where the table says that it is handled, false
 * where it is ignored. A pair that cannot be is asserted. */
bool bt_prefill_handles(struct bt_prefill_core *core, const struct bt_prefill_seq *seq,
                        enum bt_prefill_event event);

/* prefill_queue.c */
void bt_prefill_accept(struct bt_prefill_core *core, uint64_t now_us, uint32_t slot,
                       const struct bt_msg_work *work);
/* Says hello for those whose turn it is; gives up those whose D cannot be reached. */
void bt_prefill_offer(struct bt_prefill_core *core, uint64_t now_us);
/* Takes pages for granted prompts, those due first. */
void bt_prefill_take_pages(struct bt_prefill_core *core, uint64_t now_us);
/* Its stages so far, before token 0 is told. */
void bt_prefill_report(struct bt_prefill_core *core, struct bt_prefill_seq *seq);
/* Every end. `told`: the router hears of it; otherwise it knows or is gone. */
void bt_prefill_end(struct bt_prefill_core *core, uint64_t now_us, struct bt_prefill_seq *seq,
                    enum bt_end reason, bool told);
/* Frees a CLOSING sequence once neither a step nor the link has it. */
void bt_prefill_let_go(struct bt_prefill_core *core, struct bt_prefill_seq *seq);

/* prefill_run.c */
bool bt_prefill_compose(struct bt_prefill_core *core, uint64_t now_us);
void bt_prefill_on_layers(struct bt_prefill_core *core, uint64_t now_us, uint32_t n_layers_done);
void bt_prefill_on_step(struct bt_prefill_core *core, uint64_t now_us);

/* prefill_peers.c */
void bt_prefill_on_peers(struct bt_prefill_core *core, uint64_t now_us, uint32_t slot,
                         const struct bt_msg_peers *peers);
/* Index of the link to that D if it is up, else BT_MAX_LINKS. */
uint32_t bt_prefill_link_to(const struct bt_prefill_core *core, struct bt_id incarnation);
bool bt_prefill_next_link_action(struct bt_prefill_core *core, uint64_t now_us,
                                 struct bt_prefill_action *out);
uint32_t bt_prefill_links_up(const struct bt_prefill_core *core);

/* The inside of the ledger, shared by ledger.c (events) and ledger_say.c (what is to be said). */
#pragma once
#include "common/rpc/ledger.h"

_Static_assert((int)BT_SCORE_ROWS <= (int)BT_LEDGER_ROWS, "a Scores is lent like tokens");

/* A Resume of a stranger's tickets is the longest row of refusals that one event can cause. */
enum { BT_LEDGER_REFUSALS = 32768 };

struct bt_ledger_router {
    bool used, attached;
    bool resume_pending; /* attached, and has not yet said what it holds here */
    struct bt_id incarnation;
    uint32_t slot; /* while attached */
    uint64_t heard_us;
    uint32_t n_jobs;
};

struct bt_ledger_stream {
    bool open;
    bool join_owed;
    bool close_owed, closing;
    const char *reason; /* of the close */
    uint32_t router;    /* BT_LEDGER_ROUTERS: no welcome yet */
    uint64_t heard_us, said_us, status_us;
    bool status_changed;
    bool wants_census;
    const uint64_t *census; /* being told; NULL: none */
    uint32_t n_census, census_told;
    uint64_t blocks_sequence;
    uint32_t changes_told; /* of ledger->changes */
};

struct bt_ledger_refusal {
    uint32_t slot;
    bool reserve; /* answered by RESERVED, else by ENDED */
    struct bt_attempt key;
    enum bt_end reason;
};

struct bt_ledger_change {
    bool added;
    uint64_t hash;
};

struct bt_ledger {
    struct bt_ledger_config config;
    struct bt_ledger_router routers[BT_LEDGER_ROUTERS];
    struct bt_ledger_stream streams[BT_MAX_ROUTERS];
    struct bt_job *jobs;
    int32_t *tokens;
    uint64_t *hashes;
    struct bt_logit_bias *biases;
    struct bt_logprob_store logprobs;   /* of all jobs */
    uint32_t first_listed, last_listed; /* jobs with something to say, in the order it arose */
    uint32_t n_lost;

    struct bt_ledger_refusal *refusals; /* ring */
    uint32_t refusal_at, n_refusals;

    struct bt_msg_status status;
    struct bt_ledger_change *changes; /* of the prefix index, in order, told to every router */
    uint32_t n_changes;

    bool quit;
    char reason[256];

    /* What bt_ledger_next lends. */
    struct bt_msg msg;
    struct bt_token rows[BT_LEDGER_ROWS];
    struct bt_logprobs shown[BT_LEDGER_ROWS];
    uint64_t hashes_out[BT_LEDGER_BLOCKS];
};

void bt_ledger_list_(struct bt_ledger *ledger, struct bt_job *job);
void bt_ledger_unlist_(struct bt_ledger *ledger, struct bt_job *job);
/* The stream will be closed; reason must live as long as the ledger. */
void bt_ledger_close_(struct bt_ledger *ledger, uint32_t slot, const char *reason);
/* ENDED, UNKNOWN for an attempt that is not here. */
void bt_ledger_refuse_key_(struct bt_ledger *ledger, uint32_t slot, struct bt_attempt key);

/* What an event made the core say: a fixed list, given out in order by bt_router_core_next.
 *
 * Entries are small; messages are put together when they are given out, from the request as it
 * stands (nothing changes it between the entry and that). The list starts again from its beginning
 * when it was drained, so an idle router touches one page of it. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "router/core.h"
#include "router/fence.h"

enum {
    /* One TOKENS message: each row an EMIT, an END and two Cancels; held rows; the slices. */
    BT_ACTIONS_MAX = 4 * BT_ROUTER_TOKEN_ROWS + 32768,
    /* One TOKENS message and all held rows, or one SCORES. */
    BT_ACTIONS_LOGPROBS = BT_ROUTER_TOKEN_ROWS + BT_FENCE_ROWS,
    BT_REASONS_MAX = 4096,
    BT_RESUME_MAX = 16384,
};

struct bt_core_action {
    enum bt_router_action_type type;
    enum bt_msg_type msg_type;
    enum bt_finish finish;
    bt_status status;
    uint32_t slot;
    uint32_t request; /* index in the core's table */
    uint32_t index;   /* EMIT: the token's. SEND: the worker */
    int32_t token;
    uint64_t hash;                      /* EMIT. SEEN, RESUME: number of rows */
    const struct bt_logprobs *logprobs; /* EMIT, SCORES */
    uint32_t n_scores;                  /* SCORES; index is the first one's position */
    const char *reason;
    struct bt_attempt key;
    struct bt_id ticket;
};

struct bt_core_actions {
    struct bt_core_action *list; /* [BT_ACTIONS_MAX] */
    uint32_t n, n_given;
    char (*reasons)[BT_ROUTER_REASON_BYTES]; /* [BT_REASONS_MAX] */
    uint32_t n_reasons;
    struct bt_logprobs *logprobs; /* [BT_ACTIONS_LOGPROBS] */
    uint32_t n_logprobs;
    struct bt_resume *resume; /* [BT_RESUME_MAX]; filled by one Join at a time */
    uint32_t n_resume;
    struct bt_peer peers[BT_MAX_WORKERS];
    struct bt_msg msg; /* the one given out */
};

bt_status bt_core_actions_init(struct bt_core_actions *actions, struct bt_error *err);
void bt_core_actions_fini(struct bt_core_actions *actions);
bool bt_core_actions_empty(const struct bt_core_actions *actions);

/* A sentence that lives until the list is drained. */
const char *bt_core_actions_reason(struct bt_core_actions *actions, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

void bt_core_actions_emit(struct bt_router_core *core, struct bt_request *req, uint32_t index,
                          int32_t token, enum bt_finish finish, uint64_t hash,
                          const struct bt_logprobs *logprobs);
void bt_core_actions_scores(struct bt_router_core *core, struct bt_request *req, uint32_t first,
                            const struct bt_logprobs *logprobs, uint32_t n);
void bt_core_actions_end(struct bt_router_core *core, struct bt_request *req, const char *reason);
void bt_core_actions_log(struct bt_router_core *core, const char *reason);
void bt_core_actions_close(struct bt_router_core *core, uint32_t slot, const char *reason);
/* REFUSED, before the stream has a worker. */
void bt_core_actions_refuse(struct bt_router_core *core, uint32_t slot, const char *reason,
                            bool final);
/* A message without more than the request's key and ticket (CANCEL, PGONE, RESERVE, PREFILL) or
 * without any (WELCOME, PEERS, PULSE, FLUSH, SEEN, RESUME). Nothing when the worker has no stream:
 * Resume says it all when it comes back. */
void bt_core_actions_send(struct bt_router_core *core, uint32_t worker, enum bt_msg_type type,
                          const struct bt_request *req);

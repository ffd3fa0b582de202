/* The output fence: which token a request's client gets next, whoever sends it.
 *
 * Token 0 of an attempt comes from P and again from D: the first copy wins. Indexes that come
 * before their turn are held in a bounded window; duplicates are dropped. Attempts and workers that
 * are not the request's own never get this far (lifecycle.c). Memory is fixed at init. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/rpc/registry_msg.h"
#include "common/base/status.h"

enum {
    BT_FENCE_WINDOW = 32, /* rows held for one request */
    BT_FENCE_ROWS = 4096, /* for all */
};

struct bt_fence_row {
    uint32_t next;
    uint32_t index;
    int32_t token;
    enum bt_finish finish;
    uint64_t hash;
    bool from_p, has_logprobs;
    struct bt_logprobs logprobs;
};

struct bt_fence {
    struct bt_fence_row *rows; /* [n_rows + 1]; row 0 is never used */
    uint32_t n_rows;
    uint32_t first_free;
    uint32_t n_touched;
    uint32_t n_held;
};

enum bt_fence_answer {
    BT_FENCE_NEXT,      /* it is the one: give it to the client */
    BT_FENCE_HELD,      /* before its turn */
    BT_FENCE_DUPLICATE, /* the client has it, or it is held already */
    BT_FENCE_FULL,      /* no room to hold it: it is lost */
};

bt_status bt_fence_init(struct bt_fence *fence, uint32_t n_rows, struct bt_error *err);
void bt_fence_fini(struct bt_fence *fence);

/* *window is the request's chain of held rows (0 = none); next is the index that the client gets
 * next. */
enum bt_fence_answer bt_fence_offer(struct bt_fence *fence, uint32_t *window, uint32_t next,
                                    const struct bt_token *token, bool from_p);
/* The held row whose turn has come; false when there is none. */
bool bt_fence_take(struct bt_fence *fence, uint32_t *window, uint32_t next,
                   struct bt_fence_row *out);
/* Drops all that is held for a request: its attempt is over. */
void bt_fence_drop(struct bt_fence *fence, uint32_t *window);
/* Rows in one chain; UINT32_MAX when the chain is broken. */
uint32_t bt_fence_length(const struct bt_fence *fence, uint32_t window);

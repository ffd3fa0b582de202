/* Sorts what workers send into the one order that the client sees. */
#include "router/fence.h"

#include <stdlib.h>

bt_status bt_fence_init(struct bt_fence *fence, uint32_t n_rows, struct bt_error *err) {
    *fence = (struct bt_fence){.n_rows = n_rows};
    fence->rows = calloc((size_t)n_rows + 1, sizeof *fence->rows);
    return fence->rows ? BT_OK
                       : bt_fail(err, BT_E_NO_MEMORY, "no memory for %u held tokens", n_rows);
}

void bt_fence_fini(struct bt_fence *fence) {
    free(fence->rows);
    *fence = (struct bt_fence){0};
}

static uint32_t take_row(struct bt_fence *fence) {
    uint32_t row = fence->first_free;
    if (row)
        fence->first_free = fence->rows[row].next;
    else if (fence->n_touched < fence->n_rows)
        row = ++fence->n_touched;
    if (row)
        fence->n_held++;
    return row;
}

static void put_row(struct bt_fence *fence, uint32_t row) {
    fence->rows[row].next = fence->first_free;
    fence->first_free = row;
    fence->n_held--;
}

enum bt_fence_answer bt_fence_offer(struct bt_fence *fence, uint32_t *window, uint32_t next,
                                    const struct bt_token *token, bool from_p) {
    if (token->index == next)
        return BT_FENCE_NEXT;
    if (token->index < next)
        return BT_FENCE_DUPLICATE;
    if (token->index - next > BT_FENCE_WINDOW)
        return BT_FENCE_FULL;
    uint32_t *link = window;
    while (*link && fence->rows[*link].index < token->index)
        link = &fence->rows[*link].next;
    if (*link && fence->rows[*link].index == token->index)
        return BT_FENCE_DUPLICATE;
    uint32_t row = take_row(fence);
    if (!row)
        return BT_FENCE_FULL;
    fence->rows[row] = (struct bt_fence_row){.next = *link,
                                             .index = token->index,
                                             .token = token->token,
                                             .finish = token->finish,
                                             .hash = token->hash,
                                             .from_p = from_p,
                                             .has_logprobs = token->logprobs != NULL};
    if (token->logprobs)
        fence->rows[row].logprobs = *token->logprobs;
    *link = row;
    return BT_FENCE_HELD;
}

bool bt_fence_take(struct bt_fence *fence, uint32_t *window, uint32_t next,
                   struct bt_fence_row *out) {
    while (*window && fence->rows[*window].index <= next) {
        uint32_t row = *window;
        *out = fence->rows[row];
        *window = out->next;
        put_row(fence, row);
        if (out->index == next)
            return true;
    }
    return false;
}

void bt_fence_drop(struct bt_fence *fence, uint32_t *window) {
    while (*window) {
        uint32_t row = *window;
        *window = fence->rows[row].next;
        put_row(fence, row);
    }
}

uint32_t bt_fence_length(const struct bt_fence *fence, uint32_t window) {
    uint32_t n = 0;
    for (uint32_t row = window, last = 0; row; row = fence->rows[row].next, n++) {
        if (row > fence->n_touched || n >= fence->n_rows || (n && fence->rows[row].index <= last))
            return UINT32_MAX;
        last = fence->rows[row].index;
    }
    return n;
}

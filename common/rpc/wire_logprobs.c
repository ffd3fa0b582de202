/* Turns rows of logprobs into columns and back: who shows fewer than others takes less room. */
#include "common/rpc/wire_logprobs.h"

void bt_wire_logprobs_begin(Baton__V1__Logprobs *to, void *room, size_t n_rows) {
    baton__v1__logprobs__init(to);
    to->shown = room;
    to->own = (float *)(to->shown + n_rows);
    to->top_token = (uint32_t *)(to->own + n_rows);
    to->top = (float *)(to->top_token + n_rows * BT_TOP_LOGPROBS);
}

void bt_wire_logprobs_put(Baton__V1__Logprobs *to, const struct bt_logprobs *row) {
    to->shown[to->n_shown++] = row ? 1u + row->n_top : 0;
    if (!row)
        return;
    to->own[to->n_own++] = row->logprob;
    for (uint32_t i = 0; i < row->n_top; i++) {
        to->top_token[to->n_top_token++] = (uint32_t)row->top[i].token;
        to->top[to->n_top++] = row->top[i].logprob;
    }
}

static bt_status check_lengths(const Baton__V1__Logprobs *from, size_t n_rows,
                               struct bt_error *err) {
    size_t n_own = 0, n_top = 0;
    if (from->n_shown != n_rows)
        return bt_fail(err, BT_E_INVALID, "logprobs.shown has %zu entries, must have %zu",
                       from->n_shown, n_rows);
    for (size_t i = 0; i < n_rows; i++) {
        if (from->shown[i] > 1 + BT_TOP_LOGPROBS)
            return bt_fail(err, BT_E_INVALID, "logprobs.shown is %u, must be 0 to %d",
                           from->shown[i], 1 + BT_TOP_LOGPROBS);
        n_own += from->shown[i] > 0;
        n_top += from->shown[i] > 0 ? from->shown[i] - 1 : 0;
    }
    if (from->n_own != n_own)
        return bt_fail(err, BT_E_INVALID, "logprobs.own has %zu entries, must have %zu",
                       from->n_own, n_own);
    if (from->n_top_token != n_top || from->n_top != n_top)
        return bt_fail(err, BT_E_INVALID,
                       "logprobs.top_token and logprobs.top have %zu and %zu entries, must have "
                       "%zu",
                       from->n_top_token, from->n_top, n_top);
    return BT_OK;
}

bt_status bt_wire_logprobs_get(const Baton__V1__Logprobs *from, size_t n_rows,
                               struct bt_wire_arena *arena, struct bt_logprobs **out,
                               struct bt_error *err) {
    BT_TRY(check_lengths(from, n_rows, err));
    struct bt_logprobs *row = bt_wire_arena_alloc(arena, from->n_own * sizeof *row + 1);
    if (!row)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory to unpack %zu logprobs", from->n_own);
    *out = row;
    const uint32_t *token = from->top_token;
    const float *own = from->own, *top = from->top;
    for (size_t i = 0; i < n_rows; i++) {
        if (!from->shown[i])
            continue;
        *row = (struct bt_logprobs){.logprob = *own++, .n_top = (uint8_t)(from->shown[i] - 1)};
        for (uint32_t k = 0; k < row->n_top; k++)
            row->top[k] = (struct bt_logprob){(int32_t)*token++, *top++};
        row++;
    }
    return BT_OK;
}

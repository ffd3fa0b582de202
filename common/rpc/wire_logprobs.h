/* Inside common/rpc: logprobs as the columns of proto/registry.proto's Logprobs, and back. */
#pragma once
#include <stddef.h>

#include "common/base/sampling.h"
#include "common/base/status.h"
#include "common/rpc/wire_arena.h"
#include "proto/registry.pb-c.h"

/* Empty columns in room, which has BT_WIRE_LOGPROB_COLUMN_BYTES for each of n_rows. */
void bt_wire_logprobs_begin(Baton__V1__Logprobs *to, void *room, size_t n_rows);
/* One row more; NULL: it has none. */
void bt_wire_logprobs_put(Baton__V1__Logprobs *to, const struct bt_logprobs *row);

/* The logprobs of those of n_rows rows that have any, in the arena, in order. Checks the lengths of
 * the columns; the values are left to bt_wire_check. */
bt_status bt_wire_logprobs_get(const Baton__V1__Logprobs *from, size_t n_rows,
                               struct bt_wire_arena *arena, struct bt_logprobs **out,
                               struct bt_error *err);

/* Tells a worker's routers what its prefix index holds: changes as they come, or all of it. */
#pragma once
#include <stdint.h>

#include "common/kv/kv_pool.h"
#include "common/rpc/ledger.h"

/* Moves the index's changes to the ledger, and the whole index for a router that is owed it. Pure;
 * call it before bt_ledger_next. hashes has room for every page and is borrowed until what is to be
 * said was drained. */
void bt_tell_index(struct bt_kv_pool *pool, struct bt_ledger *ledger, uint64_t *hashes,
                   uint32_t n_pages);

/* Tells a worker's routers what its prefix index holds: changes as they come, or all of it. */
#include "common/worker/tell_index.h"

void bt_tell_index(struct bt_kv_pool *pool, struct bt_ledger *ledger, uint64_t *hashes,
                   uint32_t n_pages) {
    struct bt_kv_change change;
    bt_status status;
    while ((status = bt_kv_pool_next_change(pool, &change)) == BT_OK)
        bt_ledger_block(ledger, change.added, change.hash);
    if (status == BT_E_FULL)
        bt_ledger_census_lost(ledger);
    uint32_t slot;
    if (!bt_ledger_wants_census(ledger, &slot))
        return;
    uint32_t n = 0, cursor = 0;
    while (n < n_pages && bt_kv_pool_indexed(pool, &cursor, &hashes[n]))
        n++;
    bt_ledger_census(ledger, slot, hashes, n);
}

/* Memory that is taken piece by piece, up to a limit, and given back all at once. */
#pragma once
#include <stddef.h>

struct bt_arena {
    struct bt_arena_chunk *last;
    size_t n_bytes; /* taken so far */
    size_t limit;
};

void bt_arena_init(struct bt_arena *arena, size_t limit);
void bt_arena_fini(struct bt_arena *arena);
/* Zeroed, aligned for any type; NULL past the limit or where the system has no memory. n_bytes may
 * be 0. */
void *bt_arena_take(struct bt_arena *arena, size_t n_bytes);

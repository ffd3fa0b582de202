/* Memory for one unpacked item: bumped up, bounded, given back all at once. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct bt_wire_chunk;

/* Zeroed is empty. Owned by one thread. */
struct bt_wire_arena {
    struct bt_wire_chunk *chunks; /* newest first */
    size_t n_bytes, bytes_max;
    bool over; /* something asked for more than bytes_max since the last reset */
};

void bt_wire_arena_init(struct bt_wire_arena *arena, size_t bytes_max);
void bt_wire_arena_fini(struct bt_wire_arena *arena);
/* Aligned for any type, not zeroed. NULL: no memory, or past bytes_max. */
void *bt_wire_arena_alloc(struct bt_wire_arena *arena, size_t n_bytes);
/* All that was given is void. */
void bt_wire_arena_reset(struct bt_wire_arena *arena);

/* Chunks in a list; a piece comes from the last one or from a new one. */
#include "common/text/arena.h"

#include <stdlib.h>

enum { CHUNK_BYTES = 1 << 16, ALIGNMENT = 16 };

struct bt_arena_chunk {
    struct bt_arena_chunk *previous;
    size_t used, size;
    _Alignas(ALIGNMENT) char bytes[];
};

void bt_arena_init(struct bt_arena *arena, size_t limit) {
    *arena = (struct bt_arena){.limit = limit};
}

void bt_arena_fini(struct bt_arena *arena) {
    while (arena->last) {
        struct bt_arena_chunk *chunk = arena->last;
        arena->last = chunk->previous;
        free(chunk);
    }
    arena->n_bytes = 0;
}

void *bt_arena_take(struct bt_arena *arena, size_t n_bytes) {
    if (n_bytes > arena->limit - arena->n_bytes)
        return NULL;
    size_t rounded = (n_bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT; /* never 0: own addresses */
    struct bt_arena_chunk *chunk = arena->last;
    if (!chunk || chunk->size - chunk->used < rounded) {
        size_t size = rounded > CHUNK_BYTES ? rounded : CHUNK_BYTES;
        chunk = calloc(1, sizeof *chunk + size);
        if (!chunk)
            return NULL;
        chunk->size = size;
        chunk->previous = arena->last;
        arena->last = chunk;
    }
    void *bytes = chunk->bytes + chunk->used;
    chunk->used += rounded;
    arena->n_bytes +=
        rounded < arena->limit - arena->n_bytes ? rounded : arena->limit - arena->n_bytes;
    return bytes;
}

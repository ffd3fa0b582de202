/* Gives out memory for one unpacked item from few large chunks, within a bound. */
#include "common/rpc/wire_arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 64 << 10, ALIGN = 16 };

struct bt_wire_chunk {
    struct bt_wire_chunk *next;
    size_t used, capacity;
    _Alignas(ALIGN) uint8_t data[];
};

void bt_wire_arena_init(struct bt_wire_arena *arena, size_t bytes_max) {
    memset(arena, 0, sizeof *arena);
    arena->bytes_max = bytes_max;
}

void bt_wire_arena_fini(struct bt_wire_arena *arena) {
    while (arena->chunks) {
        struct bt_wire_chunk *next = arena->chunks->next;
        free(arena->chunks);
        arena->chunks = next;
    }
    arena->n_bytes = 0;
}

void *bt_wire_arena_alloc(struct bt_wire_arena *arena, size_t n_bytes) {
    if (n_bytes > arena->bytes_max || arena->n_bytes > arena->bytes_max - n_bytes) {
        arena->over = true;
        return NULL;
    }
    size_t size = (n_bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    struct bt_wire_chunk *chunk = arena->chunks;
    if (!chunk || chunk->capacity - chunk->used < size) {
        size_t capacity = size > CHUNK_BYTES ? size : CHUNK_BYTES;
        chunk = malloc(sizeof *chunk + capacity);
        if (!chunk)
            return NULL;
        chunk->used = 0;
        chunk->capacity = capacity;
        chunk->next = arena->chunks;
        arena->chunks = chunk;
    }
    void *p = chunk->data + chunk->used;
    chunk->used += size;
    arena->n_bytes += size;
    return p;
}

void bt_wire_arena_reset(struct bt_wire_arena *arena) {
    struct bt_wire_chunk *keep = NULL;
    while (arena->chunks) {
        struct bt_wire_chunk *chunk = arena->chunks;
        arena->chunks = chunk->next;
        if (!keep && chunk->capacity == CHUNK_BYTES)
            keep = chunk;
        else
            free(chunk);
    }
    if (keep) {
        keep->next = NULL;
        keep->used = 0;
    }
    arena->chunks = keep;
    arena->n_bytes = 0;
    arena->over = false;
}

/* SipHash-2-4-128 of one 8-byte word. */
#include "router/ticket.h"

static uint64_t rotate(uint64_t v, int n) {
    return v << n | v >> (64 - n);
}

static void mix(uint64_t v[4], int rounds) {
    for (int i = 0; i < rounds; i++) {
        v[0] += v[1];
        v[1] = rotate(v[1], 13) ^ v[0];
        v[0] = rotate(v[0], 32);
        v[2] += v[3];
        v[3] = rotate(v[3], 16) ^ v[2];
        v[0] += v[3];
        v[3] = rotate(v[3], 21) ^ v[0];
        v[2] += v[1];
        v[1] = rotate(v[1], 17) ^ v[2];
        v[2] = rotate(v[2], 32);
    }
}

struct bt_id bt_ticket_draw(struct bt_id key, uint64_t counter) {
    uint64_t v[4] = {key.lo ^ 0x736f6d6570736575ull, key.hi ^ 0x646f72616e646f6dull ^ 0xee,
                     key.lo ^ 0x6c7967656e657261ull, key.hi ^ 0x7465646279746573ull};
    const uint64_t words[2] = {counter, 8ull << 56}; /* the last word carries the length */
    for (int i = 0; i < 2; i++) {
        v[3] ^= words[i];
        mix(v, 2);
        v[0] ^= words[i];
    }
    struct bt_id out;
    v[2] ^= 0xee;
    mix(v, 4);
    out.lo = v[0] ^ v[1] ^ v[2] ^ v[3];
    v[1] ^= 0xdd;
    mix(v, 4);
    out.hi = v[0] ^ v[1] ^ v[2] ^ v[3];
    return out;
}

/* Little-endian loads and stores, and size arithmetic that cannot wrap. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline uint16_t bt_load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t bt_load_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t bt_load_u64(const uint8_t *p) {
    return (uint64_t)bt_load_u32(p) | (uint64_t)bt_load_u32(p + 4) << 32;
}

static inline void bt_store_u16(uint8_t *p, uint16_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static inline void bt_store_u32(uint8_t *p, uint32_t v) {
    bt_store_u16(p, (uint16_t)v);
    bt_store_u16(p + 2, (uint16_t)(v >> 16));
}

static inline void bt_store_u64(uint8_t *p, uint64_t v) {
    bt_store_u32(p, (uint32_t)v);
    bt_store_u32(p + 4, (uint32_t)(v >> 32));
}

/* Each answers false, and leaves *out alone, where the true result does not fit 64 bits. */
static inline bool bt_add_u64(uint64_t a, uint64_t b, uint64_t *out) {
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

static inline bool bt_mul_u64(uint64_t a, uint64_t b, uint64_t *out) {
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

/* Rounds v up to a multiple of align, a power of two. */
static inline bool bt_align_u64(uint64_t v, uint64_t align, uint64_t *out) {
    uint64_t r;
    if (!bt_add_u64(v, align - 1, &r))
        return false;
    *out = r & ~(align - 1);
    return true;
}

/* 128 random bits: a ticket, a process's incarnation. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct bt_id {
    uint64_t hi, lo;
};

static inline bool bt_id_equal(struct bt_id a, struct bt_id b) {
    return a.hi == b.hi && a.lo == b.lo;
}

static inline bool bt_id_is_zero(struct bt_id a) {
    return !a.hi && !a.lo;
}

/* The monotonic clock of the shells; the pure cores are told the time. */
#include "common/base/clock.h"

#include <time.h>

uint64_t bt_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

uint64_t bt_clock_us(void) {
    return bt_clock_ns() / 1000;
}

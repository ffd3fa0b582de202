/* The monotonic clock of the shells; the pure cores are told the time. */
#pragma once
#include <stdint.h>

/* Nanoseconds and microseconds since some moment before the process began. Any thread. */
uint64_t bt_clock_ns(void);
uint64_t bt_clock_us(void);

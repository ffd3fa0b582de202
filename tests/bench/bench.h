/* What the timing programs share: a thread's own time, memory in huge pages, rows by name. */
#pragma once
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

/* This thread's own time, so that a busy machine's other threads are not counted. */
static inline double bench_thread_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Zeroed; ends the program where there is no memory. */
static inline void *bench_huge_bytes(size_t bytes) {
    enum { HUGE_PAGE = 2 << 20 };
    bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    void *p = aligned_alloc(HUGE_PAGE, bytes);
    if (!p) {
        fprintf(stderr, "bench: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    madvise(p, bytes, MADV_HUGEPAGE); /* a hint only */
    memset(p, 0, bytes);
    return p;
}

/* Whether the row is among the words, or there are none. */
static inline bool bench_is_wanted(const char *name, char **words, int n) {
    for (int i = 0; i < n; i++)
        if (strcmp(words[i], name) == 0)
            return true;
    return n == 0;
}

/* Shares out the tasks of one run among threads: short spins, then a futex. */
#include "common/device/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xmmintrin.h>

#include "common/base/assert.h"

struct member {
    struct bt_thread_pool *pool;
    pthread_t thread;
    uint32_t index;
};

/* `next` is (run << 32 | next task). A thread takes a task by raising it; that succeeds only while
 * the run still has tasks, and until the last of them is done the runner changes nothing. So a
 * thread that slept through a run cannot take a task of the next one with the old fn: n_tasks, fn
 * and arg are stored with release after `next` has left the old run, and loaded with acquire before
 * `next` is, so whoever has seen one of the new run's fails to take. */
struct bt_thread_pool {
    _Alignas(64) _Atomic uint64_t next;
    _Alignas(64) _Atomic uint32_t n_done;
    _Atomic uint32_t runner_sleeps;
    _Alignas(64) _Atomic uint32_t posted; /* runs posted; what idle threads watch */
    _Atomic uint32_t n_sleeping;
    _Atomic bool stopping;
    _Atomic uint32_t n_tasks;
    _Atomic(bt_thread_pool_task *) fn;
    _Atomic(void *) arg;
    uint32_t n_threads, n_started, spin; /* fixed once the threads run */
    void (*start)(void *arg, uint32_t thread);
    void *start_arg;
    struct member *members;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
    /* Woken early, by a signal or because the word has changed: callers look again. */
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* Does tasks of run `run` until none is left to take. */
static void work(struct bt_thread_pool *pool, uint32_t run, uint32_t thread) {
    uint32_t n_tasks = atomic_load_explicit(&pool->n_tasks, memory_order_acquire);
    bt_thread_pool_task *fn = atomic_load_explicit(&pool->fn, memory_order_acquire);
    void *arg = atomic_load_explicit(&pool->arg, memory_order_acquire);
    uint64_t next = atomic_load_explicit(&pool->next, memory_order_acquire);
    while ((uint32_t)(next >> 32) == run && (uint32_t)next < n_tasks) {
        if (!atomic_compare_exchange_weak_explicit(&pool->next, &next, next + 1,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        fn(arg, (uint32_t)next, thread);
        if (atomic_fetch_add_explicit(&pool->n_done, 1, memory_order_seq_cst) + 1 == n_tasks &&
            thread != 0 && atomic_load_explicit(&pool->runner_sleeps, memory_order_seq_cst))
            futex_wake(&pool->n_done, 1);
        next = atomic_load_explicit(&pool->next, memory_order_acquire);
    }
}

/* Waits until a run other than `seen` is posted and returns it. */
static uint32_t await_post(struct bt_thread_pool *pool, uint32_t seen) {
    for (uint32_t i = 0; i < pool->spin; i++) {
        uint32_t posted = atomic_load_explicit(&pool->posted, memory_order_acquire);
        if (posted != seen)
            return posted;
        _mm_pause();
    }
    atomic_fetch_add_explicit(&pool->n_sleeping, 1, memory_order_seq_cst);
    uint32_t posted;
    while ((posted = atomic_load_explicit(&pool->posted, memory_order_seq_cst)) == seen)
        futex_wait(&pool->posted, seen);
    atomic_fetch_sub_explicit(&pool->n_sleeping, 1, memory_order_relaxed);
    return posted;
}

static void *member_main(void *arg) {
    struct member *member = arg;
    struct bt_thread_pool *pool = member->pool;
    uint32_t seen = 0;
    if (pool->start)
        pool->start(pool->start_arg, member->index);
    for (;;) {
        seen = await_post(pool, seen);
        if (atomic_load_explicit(&pool->stopping, memory_order_acquire))
            return NULL;
        work(pool, seen, member->index);
    }
}

void bt_thread_pool_run(struct bt_thread_pool *pool, uint32_t n_tasks, bt_thread_pool_task *fn,
                        void *arg) {
    if (pool->n_threads == 1 || n_tasks <= 1) {
        for (uint32_t i = 0; i < n_tasks; i++)
            fn(arg, i, 0);
        return;
    }
    uint32_t run = atomic_load_explicit(&pool->posted, memory_order_relaxed) + 1;
    /* The old run is closed before anything of the new one can be seen. */
    atomic_store_explicit(&pool->next, (uint64_t)run << 32 | UINT32_MAX, memory_order_relaxed);
    atomic_store_explicit(&pool->n_done, 0, memory_order_release);
    atomic_store_explicit(&pool->n_tasks, n_tasks, memory_order_release);
    atomic_store_explicit(&pool->fn, fn, memory_order_release);
    atomic_store_explicit(&pool->arg, arg, memory_order_release);
    atomic_store_explicit(&pool->next, (uint64_t)run << 32, memory_order_release);
    atomic_store_explicit(&pool->posted, run, memory_order_seq_cst);
    if (atomic_load_explicit(&pool->n_sleeping, memory_order_seq_cst))
        futex_wake(&pool->posted,
                   n_tasks - 1 < pool->n_threads ? (int)n_tasks - 1 : (int)pool->n_threads);
    work(pool, run, 0);
    for (uint32_t i = 0; i < pool->spin; i++) {
        if (atomic_load_explicit(&pool->n_done, memory_order_acquire) == n_tasks)
            return;
        _mm_pause();
    }
    atomic_store_explicit(&pool->runner_sleeps, 1, memory_order_seq_cst);
    uint32_t n_done;
    while ((n_done = atomic_load_explicit(&pool->n_done, memory_order_seq_cst)) != n_tasks)
        futex_wait(&pool->n_done, n_done);
    atomic_store_explicit(&pool->runner_sleeps, 0, memory_order_relaxed);
}

bt_status bt_thread_pool_create(uint32_t n_threads, uint32_t spin,
                                void (*start)(void *arg, uint32_t thread), void *arg,
                                struct bt_thread_pool **out, struct bt_error *err) {
    BT_ASSERT(n_threads >= 1);
    struct bt_thread_pool *pool = aligned_alloc(64, sizeof *pool);
    if (!pool)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a pool of %u threads", n_threads);
    memset(pool, 0, sizeof *pool);
    pool->n_threads = n_threads;
    pool->spin = spin;
    pool->start = start;
    pool->start_arg = arg;
    pool->members = calloc(n_threads, sizeof *pool->members);
    if (!pool->members) {
        bt_thread_pool_destroy(pool);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a pool of %u threads", n_threads);
    }
    for (uint32_t i = 1; i < n_threads; i++) {
        struct member *member = &pool->members[i];
        member->pool = pool;
        member->index = i;
        int code = pthread_create(&member->thread, NULL, member_main, member);
        if (code) {
            bt_thread_pool_destroy(pool);
            return bt_fail(err, BT_E_DEVICE, "compute thread %u of %u did not start: %s", i,
                           n_threads, strerror(code));
        }
        pool->n_started = i;
    }
    *out = pool;
    return BT_OK;
}

void bt_thread_pool_destroy(struct bt_thread_pool *pool) {
    if (!pool)
        return;
    atomic_store_explicit(&pool->stopping, true, memory_order_release);
    atomic_fetch_add_explicit(&pool->posted, 1, memory_order_seq_cst);
    futex_wake(&pool->posted, 1 << 30);
    for (uint32_t i = 1; i <= pool->n_started; i++)
        pthread_join(pool->members[i].thread, NULL);
    free(pool->members);
    free(pool);
}

/* A pool of compute threads that share out the tasks of one run at a time.
 *
 * One thread runs, the pool's threads help. A thread that the system has taken off its CPU delays
 * only the task in its hands, never the run: nobody waits for threads, only for tasks. */
#pragma once
#include <stdint.h>

#include "common/base/status.h"

typedef void bt_thread_pool_task(void *arg, uint32_t task, uint32_t thread);

struct bt_thread_pool;

/* `start` (may be NULL) is called on each of the pool's threads 1 .. n_threads - 1 before its first
 * task. spin: how many times a thread looks again before it sleeps. */
bt_status bt_thread_pool_create(uint32_t n_threads, uint32_t spin,
                                void (*start)(void *arg, uint32_t thread), void *arg,
                                struct bt_thread_pool **out, struct bt_error *err);
void bt_thread_pool_destroy(struct bt_thread_pool *pool); /* joins; NULL is accepted */
void bt_thread_pool_run(struct bt_thread_pool *pool, uint32_t n_tasks, bt_thread_pool_task *fn,
                        void *arg);

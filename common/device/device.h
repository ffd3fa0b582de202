/* A compute device: its kernel table, its worker threads and its memory.
 *
 * One thread owns a device: it alone opens, runs and closes. The pool's threads are the device's;
 * they sleep between runs after a short spin, so an idle device costs nothing. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/device/cpu_count.h"
#include "kernels/kernels.h"

enum { BT_DEVICE_THREADS_MAX = 256 };

struct bt_device_params {
    const char *kind;   /* "cpu" */
    const char *path;   /* kernels path as in BATON_CPU; NULL: that variable, else the fastest */
    uint32_t n_threads; /* that compute, the caller's included; 0: one per CPU that this process is
                           given (common/device/cpu_count.h) */
    bool pin;           /* one CPU each; ignored where the process may use fewer CPUs than threads.
                           The caller's thread is pinned too. */
    uint32_t pin_first_cpu; /* index among the CPUs of this process that the first thread takes */
};

struct bt_device;

/* Opens the device and starts its threads; also puts the calling thread into the mode that the
 * kernels need. BT_E_INVALID for an unknown kind, a path that the CPU lacks or too many threads;
 * `remark` (may be NULL, else BT_ERROR_TEXT_BYTES) receives a line for the log or "". */
bt_status bt_device_open(const struct bt_device_params *params, struct bt_device **out,
                         char *remark, struct bt_error *err);
/* Joins the threads; NULL is accepted. */
void bt_device_close(struct bt_device *device);

const struct bt_kernels *bt_device_kernels(const struct bt_device *device);
uint32_t bt_device_threads(const struct bt_device *device);
/* What this process was given when the device was opened. */
const struct bt_cpu_count *bt_device_cpus(const struct bt_device *device);

/* One task of a run. `thread` is 0 (the caller) .. n_threads - 1, for per-thread scratch. */
typedef void bt_device_task(void *arg, uint32_t task, uint32_t thread);

/* Calls fn(arg, task, thread) once for each task 0 .. n_tasks - 1, on all threads, in no order,
 * and returns when all have returned. Threads take the next task when they are free, so tasks
 * should be small (10 to 100 microseconds) and may differ in size. fn must not call this. */
void bt_device_run(struct bt_device *device, uint32_t n_tasks, bt_device_task *fn, void *arg);

/* Zeroed memory for weights, cache or scratch, aligned to 64 bytes, in huge pages where the system
 * gives them. NULL if there is none. Free with the same size. */
void *bt_device_alloc(struct bt_device *device, size_t bytes);
void bt_device_free(struct bt_device *device, void *memory, size_t bytes);

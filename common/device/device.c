/* Opens the CPU as a compute device: kernel table, thread pool, huge-page memory. */
#include "common/device/device.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/base/assert.h"
#include "common/device/thread_pool.h"

enum {
    /* About 50 microseconds of pauses: longer than the gaps between the runs of one forward pass,
     * shorter than anything a neighbour process would miss. */
    SPIN = 2000,
    HUGE_PAGE_BYTES = 2 << 20,
    PAGE_BYTES = 4096,
};

struct bt_device {
    const struct bt_kernels *kernels;
    struct bt_thread_pool *pool;
    uint32_t n_threads;
    bool pin;
    uint32_t pin_first_cpu;
    cpu_set_t cpus; /* that this process may run on */
    struct bt_cpu_count count;
};

/* Pins the calling thread to the i-th CPU (around the end) of those that the process may use. */
static void pin_thread(const struct bt_device *device, uint32_t thread) {
    uint32_t want = (device->pin_first_cpu + thread) % device->count.in_mask;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &device->cpus) || want-- != 0)
            continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        /* A CPU that went away meanwhile costs speed only, so a refusal is no failure. */
        sched_setaffinity(0, sizeof one, &one);
        return;
    }
}

static void start_thread(void *arg, uint32_t thread) {
    const struct bt_device *device = arg;
    bt_kernels_thread_init();
    if (device->pin)
        pin_thread(device, thread);
}

static bt_status count_cpus(struct bt_device *device, struct bt_error *err) {
    CPU_ZERO(&device->cpus);
    if (sched_getaffinity(0, sizeof device->cpus, &device->cpus) != 0)
        return bt_fail(err, BT_E_DEVICE, "the CPUs of this process cannot be asked for");
    bt_cpu_count("", (uint32_t)CPU_COUNT(&device->cpus), &device->count);
    return BT_OK;
}

static bt_status open_kernels(struct bt_device *device, const struct bt_device_params *params,
                              char *remark, struct bt_error *err) {
    char why[BT_ERROR_TEXT_BYTES];
    const char *path = params->path ? params->path : getenv("BATON_CPU");
    device->kernels = bt_kernels_find(path, why, sizeof why);
    if (!device->kernels)
        return bt_fail(err, BT_E_INVALID, "%s", why);
    if (remark)
        memcpy(remark, why, sizeof why);
    return BT_OK;
}

bt_status bt_device_open(const struct bt_device_params *params, struct bt_device **out,
                         char *remark, struct bt_error *err) {
    if (strcmp(params->kind, "cpu") != 0)
        return bt_fail(err, BT_E_INVALID, "device is \"%.32s\", expected cpu", params->kind);
    if (params->n_threads > BT_DEVICE_THREADS_MAX)
        return bt_fail(err, BT_E_INVALID, "%u compute threads asked for, at most %d",
                       params->n_threads, BT_DEVICE_THREADS_MAX);
    struct bt_device *device = calloc(1, sizeof *device);
    if (!device)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a device");
    bt_status status;
    BT_TRY_GOTO(open_kernels(device, params, remark, err), fail);
    BT_TRY_GOTO(count_cpus(device, err), fail);
    device->n_threads = params->n_threads;
    if (device->n_threads == 0)
        device->n_threads =
            device->count.n < BT_DEVICE_THREADS_MAX ? device->count.n : BT_DEVICE_THREADS_MAX;
    device->pin = params->pin && device->count.in_mask >= device->n_threads;
    device->pin_first_cpu = params->pin_first_cpu;
    start_thread(device, 0);
    /* With more threads than CPUs a spinning thread would take the time of a working one, or
     * of the quota. */
    uint32_t spin = device->count.n >= device->n_threads ? SPIN : 0;
    BT_TRY_GOTO(
        bt_thread_pool_create(device->n_threads, spin, start_thread, device, &device->pool, err),
        fail);
    *out = device;
    return BT_OK;
fail:
    bt_device_close(device);
    return status;
}

void bt_device_close(struct bt_device *device) {
    if (!device)
        return;
    bt_thread_pool_destroy(device->pool);
    free(device);
}

const struct bt_kernels *bt_device_kernels(const struct bt_device *device) {
    return device->kernels;
}

uint32_t bt_device_threads(const struct bt_device *device) {
    return device->n_threads;
}

const struct bt_cpu_count *bt_device_cpus(const struct bt_device *device) {
    return &device->count;
}

void bt_device_run(struct bt_device *device, uint32_t n_tasks, bt_device_task *fn, void *arg) {
    bt_thread_pool_run(device->pool, n_tasks, fn, arg);
}

static size_t mapped_bytes(size_t bytes) {
    return (bytes + PAGE_BYTES - 1) & ~(size_t)(PAGE_BYTES - 1);
}

/* Maps a little more and gives back what lies outside the aligned part. */
static void *map_huge(size_t bytes) {
    size_t length = mapped_bytes(bytes), mapped = length + HUGE_PAGE_BYTES;
    if (mapped < bytes)
        return NULL;
    uint8_t *base = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    size_t before = (HUGE_PAGE_BYTES - (uintptr_t)base % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    if (before)
        munmap(base, before);
    if (before < HUGE_PAGE_BYTES)
        munmap(base + before + length, HUGE_PAGE_BYTES - before);
    /* Systems without huge pages answer with an error; the memory is as good, only slower. */
    madvise(base + before, length, MADV_HUGEPAGE);
    return base + before;
}

void *bt_device_alloc(struct bt_device *device, size_t bytes) {
    BT_ASSERT(device);
    if (bytes >= HUGE_PAGE_BYTES)
        return map_huge(bytes);
    size_t rounded = (bytes + 63) & ~(size_t)63;
    void *memory = aligned_alloc(64, rounded ? rounded : 64);
    if (memory)
        memset(memory, 0, rounded);
    return memory;
}

void bt_device_free(struct bt_device *device, void *memory, size_t bytes) {
    BT_ASSERT(device);
    if (!memory)
        return;
    if (bytes >= HUGE_PAGE_BYTES)
        munmap(memory, mapped_bytes(bytes));
    else
        free(memory);
}

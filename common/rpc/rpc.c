/* Starts and ends gRPC, and lets its log lines through ours at a bounded rate. */
#include "common/rpc/rpc.h"

#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <signal.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/rpc/rpc_seam.h"

#ifdef BT_RPC_TSAN
/* What gRPC and its libraries do among themselves cannot be judged: they are not instrumented, so
 * their atomics are not seen while their calls of memcpy and free are. Calls out of such modules
 * are left aside; every access of our own code is still checked, and rpc_seam.h says what gRPC
 * orders for it. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) {
    return "ignore_noninstrumented_modules=1";
}
#endif

enum { LINES_PER_SECOND = 10 };

/* gRPC's log function is one per process and has no argument, so its state stands here. */
static _Atomic int64_t log_second;
static _Atomic uint32_t log_lines, log_dropped;

static void log_line(gpr_log_func_args *args) {
    enum bt_log_level level = args->severity == GPR_LOG_SEVERITY_ERROR ? BT_LOG_WARN : BT_LOG_DEBUG;
    if (level > bt_log_level())
        return;
    int64_t second = (int64_t)(bt_clock_us() / 1000000);
    if (atomic_exchange(&log_second, second) != second)
        atomic_store(&log_lines, 0);
    if (atomic_fetch_add(&log_lines, 1) >= LINES_PER_SECOND) {
        atomic_fetch_add(&log_dropped, 1);
        return;
    }
    uint32_t dropped = atomic_exchange(&log_dropped, 0);
    const char *file = strrchr(args->file, '/');
    file = file ? file + 1 : args->file;
    if (dropped)
        bt_log_write(level, "grpc: %s:%d: %.400s (%u lines before it were left out)", file,
                     args->line, args->message, dropped);
    else
        bt_log_write(level, "grpc: %s:%d: %.400s", file, args->line, args->message);
}

void bt_rpc_init(void) {
    sigset_t all, before;
    sigfillset(&all);
    /* Signals are the owner's: its loop hears them, not gRPC's threads. */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    gpr_set_log_function(log_line);
    grpc_init();
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void bt_rpc_fini(void) {
    grpc_shutdown();
}

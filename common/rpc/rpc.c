/* Starts and ends gRPC, and lets its log lines through ours at a bounded rate. */
#include "common/rpc/rpc.h"

#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <signal.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/rpc/rpc_call.h"
#include "common/rpc/rpc_seam.h"
#include "common/rpc/rpc_tls.h"

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

enum { LINES_PER_SECOND = 10, LINE_BYTES = 512, SAME_LINE_S = 10 };

/* gRPC's log function is one per process and has no argument, so its state stands here. */
static _Atomic int64_t log_second, last_second;
static _Atomic uint64_t last_hash;
static _Atomic uint32_t log_lines, log_dropped;

/* Whether this line may be written now, and how many were not since the last. Threads that race
 * here write a line too many or too few, which harms nobody. */
static bool take_turn(const char *text, uint32_t *dropped) {
    int64_t second = (int64_t)(bt_clock_us() / 1000000);
    uint64_t hash = XXH3_64bits(text, strlen(text));
    bool is_same =
        atomic_load(&last_hash) == hash && second - atomic_load(&last_second) < SAME_LINE_S;
    if (atomic_exchange(&log_second, second) != second)
        atomic_store(&log_lines, 0);
    if (is_same || atomic_fetch_add(&log_lines, 1) >= LINES_PER_SECOND) {
        atomic_fetch_add(&log_dropped, 1);
        return false;
    }
    atomic_store(&last_hash, hash);
    atomic_store(&last_second, second);
    *dropped = atomic_exchange(&log_dropped, 0);
    return true;
}

void bt_rpc_log(enum bt_log_level level, const char *format, ...) {
    uint32_t dropped;
    if (level > bt_log_level())
        return;
    char text[LINE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!take_turn(text, &dropped))
        return;
    if (dropped)
        bt_log_write(level, "%s (%u lines before it were left out)", text, dropped);
    else
        bt_log_write(level, "%s", text);
}

/* Errors to gRPC that are none: a dial says the first itself, the second comes with each stop. */
static bool is_noise(const char *message) {
    return strstr(message, "No match found for server name") ||
           strstr(message, "cancel_check_peer");
}

static void log_line(gpr_log_func_args *args) {
    bool is_error = args->severity == GPR_LOG_SEVERITY_ERROR && !is_noise(args->message);
    enum bt_log_level level = is_error ? BT_LOG_WARN : BT_LOG_DEBUG;
    if (level > bt_log_level())
        return;
    const char *file = strrchr(args->file, '/');
    char buffer[LINE_BYTES];
    file = file ? file + 1 : args->file;
    bool is_handshake = strstr(args->message, "Handshake failed") != NULL;
    const char *sentence =
        is_handshake ? bt_rpc_tls_sentence(args->message, buffer, sizeof buffer) : NULL;
    if (sentence)
        bt_rpc_log(level, "a TLS handshake failed: %s", sentence);
    else
        bt_rpc_log(level, "grpc: %s:%d: %.400s", file, args->line, args->message);
}

bt_status bt_rpc_start_thread(void *(*run)(void *self), void *self, pthread_t *thread,
                              struct bt_error *err) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(thread, NULL, run, self);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed ? bt_fail(err, BT_E_NO_MEMORY, "cannot start a thread: %s", strerror(failed))
                  : BT_OK;
}

void bt_rpc_init(void) {
    sigset_t all, before;
    sigfillset(&all);
    /* Signals are the owner's: its loop hears them, not gRPC's threads. */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    gpr_set_log_function(log_line);
    bt_rpc_tls_only_1_3();
    grpc_init();
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void bt_rpc_fini(void) {
    grpc_shutdown();
}

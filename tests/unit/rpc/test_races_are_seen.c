/* Proves that the thread sanitizer watches this folder: planted races are reported, the same
 * programs without them are silent. */
#include "tests/unit/rpc/ends.h"
#include "tests/unit/rpc/stranger.h"

#include <pthread.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/rpc/rpc_seam.h"

extern char **environ;

/* ---- the programs ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool locked;

static void say_much(struct ends *ends) {
    for (uint64_t i = 0; i < 500; i++) {
        if (locked)
            pthread_mutex_lock(&lock);
        send_status(ends, i);
        bt_rpc_flush(ends->end[WORKER].streams);
        if (locked)
            pthread_mutex_unlock(&lock);
    }
}

static void *say_much_too(void *ends) {
    say_much(ends);
    return NULL;
}

/* Two threads speak on one stream, which is for the loop thread alone: a race without the lock. */
static void two_speakers(void) {
    bt_rpc_init();
    struct ends *ends = open_ends(0);
    pthread_t thread;
    pthread_create(&thread, NULL, say_much_too, ends);
    say_much(ends);
    pthread_join(thread, NULL);
    close_ends(ends);
    bt_rpc_fini();
}

struct parcel {
    struct stranger stranger;
    long value;
};

static void *open_parcel(void *self) {
    struct parcel *parcel = self;
    grpc_event event = grpc_completion_queue_next(parcel->stranger.queue,
                                                  gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    while (event.type == GRPC_OP_COMPLETE && event.tag != &parcel->value)
        event = grpc_completion_queue_next(parcel->stranger.queue,
                                           gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    BT_RPC_TAKE(&parcel->value);
    return parcel->value > 0 ? parcel : NULL;
}

/* A tag goes through the completion queue to another thread; late: it is written after that. */
static void parcel_through_queue(bool late) {
    struct parcel *parcel = calloc(1, sizeof *parcel);
    grpc_init();
    stranger_start(&parcel->stranger, "127.0.0.1:1", "/x/y", "", 0, false);
    pthread_t thread;
    pthread_create(&thread, NULL, open_parcel, parcel);
    parcel->value = 1;
    BT_RPC_GIVE(&parcel->value);
    /* A tag of its own: the stranger stands at the same address as the parcel. */
    grpc_call_start_batch(parcel->stranger.call, NULL, 0, &parcel->value, NULL);
    if (late)
        parcel->value = 2;
    pthread_join(thread, NULL);
    grpc_call_cancel(parcel->stranger.call, NULL);
    _exit(0); /* the rest of the stranger is not what is looked at */
}

static int run(const char *program) {
    locked = strcmp(program, "two-speakers-with-a-lock") == 0;
    if (strncmp(program, "two-speakers", 12) == 0)
        two_speakers();
    else
        parcel_through_queue(strcmp(program, "late-write") == 0);
    return 0;
}

/* ---- the tests ---- */

/* Runs this program again as one of those above; answers its exit status. */
static int spawn(const char *program) {
    char *arguments[] = {"test", (char *)program, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", 1 /* O_WRONLY */, 0);
    pid_t child;
    assert_int_equal(posix_spawn(&child, "/proc/self/exe", &actions, NULL, arguments, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void test_correct_programs_are_silent(void **state) {
    (void)state;
    assert_int_equal(spawn("two-speakers-with-a-lock"), 0);
    assert_int_equal(spawn("parcel"), 0);
}

#ifdef BT_RPC_TSAN
enum { RACE = 66 }; /* the sanitizer's exit status after a report */

static void test_a_race_on_a_stream_is_seen(void **state) {
    (void)state;
    assert_int_equal(spawn("two-speakers"), RACE);
}

static void test_a_race_across_the_queue_is_seen(void **state) {
    (void)state;
    assert_int_equal(spawn("late-write"), RACE);
}
#endif

int main(int argc, char **argv) {
    if (argc > 1)
        return run(argv[1]);
    /* A planted race may as well crash its program: the first report ends it before that. */
    setenv("TSAN_OPTIONS", "halt_on_error=1", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_correct_programs_are_silent),
#ifdef BT_RPC_TSAN
        cmocka_unit_test(test_a_race_on_a_stream_is_seen),
        cmocka_unit_test(test_a_race_across_the_queue_is_seen),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

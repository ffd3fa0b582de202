/* Streams between processes: a program with streams open starts another by exec, which has its own
 * gRPC and nothing of ours; a peer that hangs is noticed. */
#include "tests/unit/rpc/ends.h"

#include <dirent.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int n_entries(const char *path) {
    DIR *folder = opendir(path);
    int n = 0;
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        n += entry->d_name[0] != '.';
    if (folder)
        closedir(folder);
    return n;
}

static int n_open_files(void) {
    return n_entries("/proc/self/fd");
}

/* The child: attaches to the parent, says one thing, hears one, leaves in order. */
static int attach(const char *address, int n_files) {
    if (n_open_files() != n_files)
        return 2; /* a socket or an eventfd of the parent came along */
    bt_rpc_init();
    struct ends *ends = calloc(1, sizeof *ends);
    struct end *worker = &ends->end[WORKER];
    start_client(ends, 0);
    if (bt_rpc_client_dial(ends->client, 0, address, 0, NULL) != BT_OK)
        return 3;
    TURN_UNTIL(ends, worker->n_heard > 0);
    if (worker->heard[0].type != BT_RPC_OPENED || send_status(ends, 42) != BT_OK)
        return 4;
    TURN_UNTIL(ends, worker->n_messages == 1);
    bt_rpc_close(worker->streams, 0, BT_OK, "done");
    TURN_UNTIL(ends, find_closed(worker));
    bool in_order = find_closed(worker)->status == BT_OK;
    close_ends(ends);
    bt_rpc_fini();
    return in_order ? 0 : 5;
}

static int n_files_at_start;

static void test_a_child_attaches_to_its_parent(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    struct end *router = &ends->end[ROUTER];
    assert_true(n_open_files() > n_files_at_start);
    router->n_heard = 0;
    char n_files[16];
    snprintf(n_files, sizeof n_files, "%d", n_files_at_start);
    char *arguments[] = {"test", (char *)bt_rpc_server_address(ends->server), n_files, NULL};
    pid_t child;
    int status = 0;
    assert_int_equal(posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ), 0);
    TURN_UNTIL(ends, router->n_messages == 1);
    uint32_t slot = last(router)->slot;
    assert_int_equal(last(router)->number, 42);
    struct bt_msg pulse = {.type = BT_MSG_PULSE};
    assert_int_equal(bt_rpc_send(router->streams, slot, &pulse, NULL), BT_OK);
    TURN_UNTIL(ends, last(router)->type == BT_RPC_HALF_CLOSED);
    bt_rpc_close(router->streams, slot, BT_OK, NULL);
    TURN_UNTIL(ends, waitpid(child, &status, WNOHANG) == child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_false(find_closed(&ends->end[WORKER])); /* the stream of ours beside it went on */
    close_ends(ends);
}

/* A peer that is there and does nothing (stopped, as a machine that hangs) is noticed. */
static void test_keepalive_notices_a_stopped_peer(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    struct end *router = &ends->end[ROUTER];
    router->n_heard = 0;
    char n_files[16];
    snprintf(n_files, sizeof n_files, "%d", n_files_at_start);
    char *arguments[] = {"test", (char *)bt_rpc_server_address(ends->server), n_files, NULL};
    pid_t child;
    assert_int_equal(posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ), 0);
    TURN_UNTIL(ends, router->n_messages == 1);
    assert_int_equal(kill(child, SIGSTOP), 0);
    uint64_t t0 = now_ms();
    TURN_UNTIL(ends, find_closed(router));
    assert_int_equal(find_closed(router)->status, BT_E_PEER_GONE);
    assert_true(now_ms() - t0 >= 1000); /* not before a ping had its second */
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(send_status(ends, 3), BT_OK); /* the stream beside it goes on */
    TURN_UNTIL(ends, last(router)->type == BT_RPC_MESSAGE);
    close_ends(ends);
}

int main(int argc, char **argv) {
    if (argc == 3)
        return attach(argv[1], atoi(argv[2]));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_child_attaches_to_its_parent),
        cmocka_unit_test(test_keepalive_notices_a_stopped_peer),
    };
    n_files_at_start = n_open_files();
    bt_rpc_init();
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    bt_rpc_fini();
    return n_failed;
}

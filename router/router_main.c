/* Starts a router process, says when it listens, and ends it in order. */
#include "router/router_main.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/rpc/rpc.h"
#include "router/grpc_door.h"
#include "router/shell.h"

enum { EXIT_ENDED = 0, EXIT_AT_ONCE = 1, EXIT_REFUSED = 2 };

/* Each stream is a descriptor: take as many as the system allows. */
static void raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    /* Refused: it goes on with what it has, and waits where descriptors run out. */
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        BT_WARN("the number of descriptors stays limited");
}

static bool die_with_parent(void) {
    pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    return getppid() == parent; /* else it died before we asked */
}

int bt_router_run(const struct bt_router_options *options) {
    struct bt_error err;
    bt_log_set_role(options->name);
    bt_log_set_level((enum bt_log_level)options->log_level);
    bt_log_set_format((enum bt_log_format)options->log_format);
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
    if (options->die_with_parent && !die_with_parent())
        return EXIT_ENDED;
    struct bt_shell *shell = calloc(1, sizeof *shell);
    if (!shell) {
        BT_ERROR("out of memory");
        return EXIT_AT_ONCE;
    }
    bt_rpc_init();
    int code = EXIT_REFUSED;
    if (bt_shell_init(shell, options, &err) == BT_OK) {
        printf("ready: http=%s registry=%s grpc=%s\n", bt_http_server_address(shell->http),
               bt_rpc_server_address(shell->rpc), bt_grpc_door_address(shell));
        fflush(stdout);
        BT_INFO("serving \"%s\"", shell->model);
        bt_shell_run(shell);
        code = shell->n_completions || shell->n_calls ? EXIT_AT_ONCE : EXIT_ENDED;
    } else {
        BT_ERROR("%s", err.text);
    }
    bt_shell_fini(shell);
    bt_rpc_fini();
    free(shell);
    return code;
}

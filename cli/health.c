/* Asks a process's health port, and says the answer by exit code. */
#include "cli/health.h"

#include <stdbool.h>
#include <stdio.h>

#include "common/base/config.h"
#include "common/base/log.h"
#include "common/rpc/health_client.h"
#include "common/rpc/rpc.h"

enum { EXIT_NOT_SERVING = 1, EXIT_REFUSED = 2 };

int bt_health_main(int argc, char **argv) {
    const char *address = NULL, *service = NULL;
    uint32_t timeout_ms = 0;
    const struct bt_option options[] = {
        {"health-listen", BT_OPTION_STRING, &address, "127.0.0.1:8081", .argument = "HOST:PORT",
         .help = "The process's --health-listen; in a container BATON_HEALTH_LISTEN says it to "
                 "both."},
        {"service", BT_OPTION_STRING, &service, "readiness", .argument = "NAME",
         .help = "readiness: it takes work; liveness: its loop turns; or a gRPC service's name."},
        {"timeout-ms", BT_OPTION_U32, &timeout_ms, "2000", 1, 3600000, .argument = "MS",
         .help = "No answer for so long is a no."},
    };
    const struct bt_command command = {
        .name = "health",
        .usage = "baton health [--health-listen HOST:PORT] [--service NAME]",
        .summary = "Asks a router or worker beside it for its health (grpc.health.v1), as probes "
                   "do.\nExit code 0: SERVING; 1: NOT_SERVING, or no answer.",
        .example = "  baton health --service liveness",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
    };
    struct bt_error err;
    bt_status status = bt_config_parse(&command, argc, argv, &err);
    if (status == BT_DONE)
        return 0;
    if (status < 0) {
        fprintf(stderr, "baton health: %s\n", err.text);
        return EXIT_REFUSED;
    }
    bool serving = false;
    bt_log_set_level(BT_LOG_ERROR);
    bt_rpc_init();
    status = bt_health_client_ask(address, service, timeout_ms, &serving, &err);
    bt_rpc_fini();
    if (status < 0) {
        fprintf(stderr, "baton health: %s\n", err.text);
        return EXIT_NOT_SERVING;
    }
    printf("%s\n", serving ? "SERVING" : "NOT_SERVING");
    return serving ? 0 : EXIT_NOT_SERVING;
}

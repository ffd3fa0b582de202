/* The command: finds the role or tool named by its first word and hands over. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/bench.h"
#include "cli/certs.h"
#include "cli/chat.h"
#include "cli/health.h"
#include "cli/inspect.h"
#include "cli/keys.h"
#include "cli/profile.h"
#include "cli/roles.h"
#include "cli/top.h"
#include "cli/up.h"

struct command {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
};

static const struct command commands[] = {
    {"up", "a whole cluster on this machine: router, prefill and decode workers", bt_up_main},
    {"chat", "talk to a router, with the time of each stage", bt_chat_main},
    {"top", "both pools, latencies and the last requests, live in this terminal", bt_top_main},
    {"router", "takes requests by HTTP, places them on workers, streams tokens", bt_router_command},
    {"prefill", "a worker that computes prompts and hands the KV cache over", bt_prefill_command},
    {"decode", "a worker that takes the KV cache and decodes tokens", bt_decode_command},
    {"bench", "load on a server: latencies, goodput, a picture", bt_bench_main},
    {"certs", "makes certificates for routers, workers and the public doors", bt_certs_main},
    {"keys", "makes API keys for --api-key-file", bt_keys_main},
    {"health", "whether a process beside it is alive or ready, for probes", bt_health_main},
    {"profile", "where the time of a prefill and a decode step goes, op by op", bt_profile_main},
    {"inspect", "what a model file is and what it costs to run", bt_inspect_main},
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_help(FILE *out) {
    fprintf(out,
            "Usage: baton COMMAND [OPTIONS]\n\n"
            "Baton serves large language models with prefill and decode on separate workers.\n\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-10s%s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\nStart here:   baton up --model model.gguf\n"
                 "Each command: baton COMMAND --help\n");
}

/* Where standard input, output or error is closed, the next file opened would take its number and
 * get what is printed. */
static void fill_standard_descriptors(void) {
    int fd;
    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd > STDERR_FILENO)
        close(fd);
}

int main(int argc, char **argv) {
    fill_standard_descriptors();
    const char *word = argc > 1 ? argv[1] : "";
    signal(SIGPIPE, SIG_IGN); /* a peer that left is an error of one write, not the end of all */
    if (!strcmp(word, "--help") || !strcmp(word, "-h") || !strcmp(word, "help")) {
        print_help(stdout);
        return 0;
    }
    if (!strcmp(word, "--version")) {
        printf("baton %s\n", BT_VERSION);
        return 0;
    }
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (!strcmp(word, commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    if (word[0])
        fprintf(stderr, "baton: there is no command '%s'\n\n", word);
    print_help(stderr);
    return 2;
}

/* Starts a router, prefill and decode workers as processes, asks the first question, restarts what
 * dies, ends all. */
#include "cli/up.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/children.h"
#include "cli/http_client.h"
#include "common/base/assert.h"
#include "common/base/clock.h"
#include "common/base/config.h"
#include "common/device/cpu_count.h"
#include "common/engine/worker_options.h"

enum {
    WORKERS_MAX = 32,
    READY_WAIT_MS = 120000,
    RESTART_MS = 500,
    OPTIONS = 32,
    RESTARTS_MAX = 1000,
    POLL_MS = 10
};

struct up {
    const char *model, *host, *prompt, *served_name, *kv_tokens, *kv_memory, *max_context, *tls;
    const char *http_tls_cert, *http_tls_key, *api_key_file, *cors_origin;
    uint32_t n_prefill, n_decode, port, threads, precision, kv_type, disaggregate;
    bool once, insecure, log_requests;
    struct bt_child router, chat, workers[WORKERS_MAX];
    size_t n_workers;
    char url[128], grpc[64], registry[64];
    int registry_fd; /* keeps the registry's port until the router listens there; -1: it does */
    int signals;
    double started_ms;
    bool ready;
    int n_stops; /* SIGINT or SIGTERM received */
    int code;
};

static const char *const precisions[] = BT_PRECISION_CHOICES;
static const char *const kv_types[] = BT_KV_TYPE_CHOICES;
static const char *const modes[] = {"auto", "always", "never"};

static double now_ms(void) {
    return (double)bt_clock_ns() / 1e6;
}

/* The files that `baton certs` made for a role, where --tls names their directory. */
static void add_tls(const struct up *up, struct bt_child *child, const char *role) {
    if (!up->tls)
        return;
    bt_child_arg(child, "--tls-cert=%s/%s.pem", up->tls, role);
    bt_child_arg(child, "--tls-key=%s/%s-key.pem", up->tls, role);
    bt_child_arg(child, "--tls-ca=%s/ca.pem", up->tls);
}

/* Who may come by HTTP, and how. */
static void add_door(const struct up *up, struct bt_child *router) {
    if (up->http_tls_cert)
        bt_child_arg(router, "--http-tls-cert=%s", up->http_tls_cert);
    if (up->http_tls_key)
        bt_child_arg(router, "--http-tls-key=%s", up->http_tls_key);
    if (up->api_key_file)
        bt_child_arg(router, "--api-key-file=%s", up->api_key_file);
    if (up->cors_origin)
        bt_child_arg(router, "--cors-origin=%s", up->cors_origin);
    bt_child_arg(router, "--log-requests=%s", up->log_requests ? "yes" : "no");
    if (up->insecure)
        bt_child_arg(router, "--insecure");
}

/* Takes a free port for the registry. A socket that is bound and does not listen keeps it from
 * everybody but the router, whose own may stand beside it (SO_REUSEADDR), so workers know where to
 * dial before the router listens and all start at once. */
static bt_status choose_registry(struct up *up, struct bt_error *err) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof address;
    int yes = 1;
    up->registry_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (up->registry_fd < 0 ||
        setsockopt(up->registry_fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
        bind(up->registry_fd, (struct sockaddr *)&address, n) != 0 ||
        getsockname(up->registry_fd, (struct sockaddr *)&address, &n) != 0)
        return bt_fail(err, BT_E_IO, "no port for the registry: %s", strerror(errno));
    snprintf(up->registry, sizeof up->registry, "127.0.0.1:%u", ntohs(address.sin_port));
    return BT_OK;
}

static bt_status start_router(struct up *up, struct bt_error *err) {
    struct bt_child *router = &up->router;
    bt_child_init(router, "router");
    bt_child_arg(router, "router");
    bt_child_arg(router, "--model=%s", up->model);
    bt_child_arg(router, "--host=%s", up->host);
    bt_child_arg(router, "--port=%u", up->port);
    bt_child_arg(router, "--registry-listen=%s", up->registry);
    bt_child_arg(router, "--disaggregate=%s", modes[up->disaggregate]);
    bt_child_arg(router, "--die-with-parent");
    add_tls(up, router, "router");
    add_door(up, router);
    if (up->served_name)
        bt_child_arg(router, "--served-model-name=%s", up->served_name);
    return bt_child_start(router, true, err);
}

static bt_status start_worker(struct up *up, const char *role, uint32_t index,
                              struct bt_error *err) {
    struct bt_child *worker = &up->workers[up->n_workers++];
    char name[32];
    snprintf(name, sizeof name, "%s-%u", role, index);
    bt_child_init(worker, name);
    bt_child_arg(worker, "%s", role);
    bt_child_arg(worker, "--name=%s", name);
    bt_child_arg(worker, "--model=%s", up->model);
    bt_child_arg(worker, "--router=%s", up->registry);
    bt_child_arg(worker, "--threads=%u", up->threads);
    bt_child_arg(worker, "--precision=%s", precisions[up->precision]);
    bt_child_arg(worker, "--kv-cache-dtype=%s", kv_types[up->kv_type]);
    bt_child_arg(worker, "--die-with-parent");
    add_tls(up, worker, role);
    if (up->kv_tokens)
        bt_child_arg(worker, "--kv-tokens=%s", up->kv_tokens);
    if (up->kv_memory)
        bt_child_arg(worker, "--kv-memory=%s", up->kv_memory);
    if (up->max_context)
        bt_child_arg(worker, "--max-context=%s", up->max_context);
    return bt_child_start(worker, true, err);
}

static void tell(struct bt_child *child, int signal) {
    if (child->pid > 0)
        kill(child->pid, signal);
}

static bool drop_line(void *arg, const char *line, size_t length) {
    (void)arg, (void)line, (void)length;
    return true;
}

/* Whether the router says that it can serve. */
static bool is_ready(const struct up *up) {
    const struct bt_http_request request = {.path = "/ready"};
    struct bt_http_client *client = NULL;
    struct bt_http_answer answer = {0};
    struct bt_error err;
    bool ready =
        bt_http_client_create(up->url, &client, &err) == BT_OK &&
        /* It is our own child, and the file is what it shows. */
        bt_http_client_trust(client, up->http_tls_cert, true, &err) == BT_OK &&
        bt_http_client_request(client, &request, drop_line, NULL, &answer, &err) == BT_OK &&
        answer.code == 200;
    bt_http_client_destroy(client);
    return ready;
}

static void on_ready(struct up *up) {
    up->ready = true;
    printf("Serving %s/v1 (gRPC at %s) after %.0f ms: 1 router, %u prefill, %u decode. "
           "Ctrl-C ends.\n",
           up->url, up->grpc, now_ms() - up->started_ms, up->n_prefill, up->n_decode);
    fflush(stdout);
    if (!up->prompt)
        return;
    printf("\n> %s\n", up->prompt);
    fflush(stdout);
    bt_child_init(&up->chat, "chat");
    bt_child_arg(&up->chat, "chat");
    bt_child_arg(&up->chat, "--url=%s", up->url);
    if (up->http_tls_cert)
        bt_child_arg(&up->chat, "--ca-file=%s", up->http_tls_cert);
    bt_child_arg(&up->chat, "--temperature=0");
    bt_child_arg(&up->chat, "--");
    bt_child_arg(&up->chat, "%s", up->prompt);
    struct bt_error err;
    if (bt_child_start(&up->chat, false, &err) != BT_OK) {
        fprintf(stderr, "baton up: %s\n", err.text);
        up->code = 1;
    }
}

/* Ends the cluster: the router first, so that its streams finish; the workers once it is gone. */
static void stop(struct up *up, int code) {
    up->n_stops++;
    if (code)
        up->code = code;
    int signal = up->n_stops > 1 ? SIGKILL : SIGTERM;
    tell(&up->chat, SIGTERM);
    tell(&up->router, signal);
    for (size_t i = 0; i < up->n_workers; i++) {
        up->workers[i].restart_at_ms = 0;
        if (up->n_stops > 1 || up->router.pid <= 0)
            tell(&up->workers[i], signal);
    }
}

static const char *how_it_ended(int status, char *text, size_t bytes) {
    if (WIFSIGNALED(status))
        snprintf(text, bytes, "was ended by signal %d", WTERMSIG(status));
    else
        snprintf(text, bytes, "ended with exit code %d", WEXITSTATUS(status));
    return text;
}

static void on_worker_end(struct up *up, struct bt_child *worker, int status) {
    char how[64];
    if (up->n_stops)
        return;
    how_it_ended(status, how, sizeof how);
    if (!worker->ready[0] && !worker->n_restarts) {
        fprintf(stderr, "baton up: %s %s before it was ready; its reason stands above\n",
                worker->name, how);
        stop(up, WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : 1);
        return;
    }
    fprintf(stderr, "baton up: %s %s, starting it again\n", worker->name, how);
    worker->n_restarts++;
    worker->restart_at_ms = now_ms() + RESTART_MS;
}

static void on_router_end(struct up *up, int status) {
    char how[64];
    if (!up->n_stops) {
        fprintf(stderr, "baton up: router %s\n", how_it_ended(status, how, sizeof how));
        stop(up, WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : 1);
        return;
    }
    for (size_t i = 0; i < up->n_workers; i++)
        tell(&up->workers[i], SIGTERM);
}

static void on_chat_end(struct up *up, int status) {
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    if (up->once && !up->n_stops)
        stop(up, code);
}

static void reap(struct up *up) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid == up->router.pid) {
            up->router.pid = 0;
            on_router_end(up, status);
        } else if (pid == up->chat.pid) {
            up->chat.pid = 0;
            on_chat_end(up, status);
        }
        for (size_t i = 0; i < up->n_workers; i++) {
            if (pid == up->workers[i].pid) {
                up->workers[i].pid = 0;
                on_worker_end(up, &up->workers[i], status);
            }
        }
    }
}

static void on_signal(struct up *up) {
    struct signalfd_siginfo info;
    while (read(up->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGCHLD)
            continue;
        if (info.ssi_signo == SIGHUP) {
            tell(&up->router, SIGHUP);
            for (size_t i = 0; i < up->n_workers; i++)
                tell(&up->workers[i], SIGHUP);
            continue;
        }
        if (!up->n_stops)
            printf("\nEnding; open streams finish first. Once more ends at once.\n");
        stop(up, 0);
    }
    reap(up);
}

static bool all_ended(const struct up *up) {
    bool running = up->router.pid > 0 || up->chat.pid > 0;
    for (size_t i = 0; i < up->n_workers; i++)
        running = running || up->workers[i].pid > 0;
    return !running;
}

static bt_status start_cluster(struct up *up, struct bt_error *err) {
    BT_TRY(choose_registry(up, err));
    BT_TRY(start_router(up, err));
    for (uint32_t i = 0; i < up->n_prefill; i++)
        BT_TRY(start_worker(up, "prefill", i, err));
    for (uint32_t i = 0; i < up->n_decode; i++)
        BT_TRY(start_worker(up, "decode", i, err));
    return BT_OK;
}

/* The router listens: where its clients find it. */
static void on_router_ready(struct up *up) {
    char http[64];
    if (!bt_child_ready_value(&up->router, "http", http, sizeof http) ||
        !bt_child_ready_value(&up->router, "grpc", up->grpc, sizeof up->grpc))
        return;
    snprintf(up->url, sizeof up->url, "%s://%s", up->http_tls_cert ? "https" : "http", http);
    close(up->registry_fd);
    up->registry_fd = -1;
}

static void restart_due(struct up *up) {
    struct bt_error err;
    for (size_t i = 0; i < up->n_workers; i++) {
        struct bt_child *worker = &up->workers[i];
        if (worker->restart_at_ms == 0 || now_ms() < worker->restart_at_ms)
            continue;
        if (worker->n_restarts > RESTARTS_MAX || bt_child_start(worker, true, &err) != BT_OK) {
            fprintf(stderr, "baton up: giving %s up\n", worker->name);
            stop(up, 1);
        }
    }
}

/* Waits for output, signals or the next poll, and handles them. */
static void turn(struct up *up) {
    struct pollfd fds[WORKERS_MAX + 2];
    struct bt_child *owners[WORKERS_MAX + 2];
    nfds_t n = 0;
    fds[n++] = (struct pollfd){.fd = up->signals, .events = POLLIN};
    for (size_t i = 0; i <= up->n_workers; i++) {
        struct bt_child *child = i < up->n_workers ? &up->workers[i] : &up->router;
        if (child->out >= 0) {
            owners[n] = child;
            fds[n++] = (struct pollfd){.fd = child->out, .events = POLLIN};
        }
    }
    bool busy = !up->ready && up->url[0];
    poll(fds, n, busy ? POLL_MS : 250);
    for (nfds_t i = 1; i < n; i++)
        if (fds[i].revents)
            bt_child_read(owners[i]);
    on_signal(up);
    if (up->n_stops)
        return;
    if (!up->url[0] && up->router.ready[0])
        on_router_ready(up);
    else if (busy && is_ready(up))
        on_ready(up);
    else if (!up->ready && now_ms() - up->started_ms > READY_WAIT_MS) {
        fprintf(stderr, "baton up: not ready after %d s\n", READY_WAIT_MS / 1000);
        stop(up, 1);
    }
    restart_due(up);
}

static int run(struct up *up) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGCHLD);
    if (up->tls || up->http_tls_cert ||
        up->api_key_file) /* else it means that the terminal is gone */
        sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    up->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    struct bt_error err;
    if (up->signals < 0) {
        fprintf(stderr, "baton up: %s\n", strerror(errno));
        return 1;
    }
    if (start_cluster(up, &err) != BT_OK) {
        fprintf(stderr, "baton up: %s\n", err.text);
        stop(up, 1);
    }
    while (!all_ended(up))
        turn(up);
    for (size_t i = 0; i < up->n_workers; i++)
        bt_child_fini(&up->workers[i]);
    bt_child_fini(&up->router);
    bt_child_fini(&up->chat);
    if (up->registry_fd >= 0)
        close(up->registry_fd);
    close(up->signals);
    return up->code;
}

/* What is started, and who may come. Each answers how many rows it wrote. */
static size_t fill_cluster(struct up *up, struct bt_option *out) {
    const struct bt_option rows[] = {
        {"model", BT_OPTION_STRING, &up->model, .argument = "FILE", .required = true,
         .help = "The model, a GGUF file."},
        {"prefill", BT_OPTION_U32, &up->n_prefill, "1", 0, WORKERS_MAX / 2, .argument = "N",
         .help = "Prefill workers."},
        {"decode", BT_OPTION_U32, &up->n_decode, "1", 1, WORKERS_MAX / 2, .argument = "M",
         .help = "Decode workers."},
        {"host", BT_OPTION_STRING, &up->host, "127.0.0.1", .argument = "ADDRESS",
         .help = "HTTP address."},
        {"port", BT_OPTION_U32, &up->port, "8000", 0, 65535, .argument = "P",
         .help = "HTTP port; 0 lets the system choose."},
        {"tls", BT_OPTION_STRING, &up->tls, .argument = "DIR",
         .help = "Encrypt between the router and its workers with the files that `baton certs DIR` "
                 "made."},
        {"http-tls-cert", BT_OPTION_STRING, &up->http_tls_cert, .argument = "FILE",
         .help = "Serve HTTPS with this certificate and its chain (PEM)."},
        {"http-tls-key", BT_OPTION_STRING, &up->http_tls_key, .argument = "FILE",
         .help = "The key of --http-tls-cert (PEM)."},
        {"api-key-file", BT_OPTION_STRING, &up->api_key_file, .argument = "FILE",
         .help = "Ask clients for a key of this file (`baton keys --help`)."},
        {"cors-origin", BT_OPTION_STRING, &up->cors_origin, .argument = "URL",
         .help = "Let pages of this origin call from browsers; '*': of any."},
        {"log-requests", BT_OPTION_FLAG, &up->log_requests, "no",
         .help = "Log a line for each request too; the live page and baton top show them anyway."},
        {"insecure", BT_OPTION_FLAG, &up->insecure, "no",
         .help = "Allow a --host that other machines reach although nothing is encrypted."},
    };
    memcpy(out, rows, sizeof rows);
    return sizeof rows / sizeof rows[0];
}

static size_t fill_work(struct up *up, struct bt_option *out) {
    const struct bt_option rows[] = {
        {"threads", BT_OPTION_U32, &up->threads, "0", 0, 256, .argument = "T",
         .help = "Compute threads of each worker; 0 shares this machine's CPUs among the workers."},
        {"precision", BT_OPTION_CHOICE, &up->precision, "fast", .choices = BT_PRECISION_CHOICES,
         .argument = "PROFILE", .help = "Arithmetic profile of all workers."},
        {"kv-cache-dtype", BT_OPTION_CHOICE, &up->kv_type, "auto", .choices = BT_KV_TYPE_CHOICES,
         .argument = "TYPE",
         .help = "What the workers' KV caches hold; auto: bf16, with --precision exact f32. int8 "
                 "takes half the bytes."},
        {"disaggregate", BT_OPTION_CHOICE, &up->disaggregate, "auto",
         .choices = {"auto", "always", "never"}, .argument = "MODE",
         .help = "Where prompts are computed: on prefill workers always, on decode workers "
                 "(never), or short ones there."},
        {"kv-tokens", BT_OPTION_STRING, &up->kv_tokens, .argument = "N",
         .help = "KV cache of each worker, in tokens."},
        {"kv-memory", BT_OPTION_STRING, &up->kv_memory, .argument = "BYTES",
         .help = "The same in bytes (64m, 1g)."},
        {"max-context", BT_OPTION_STRING, &up->max_context, .argument = "N",
         .help = "Longest prompt and answer together, in tokens."},
        {"served-model-name", BT_OPTION_STRING, &up->served_name, .argument = "NAME",
         .help = "Name of the model in the API."},
        {"prompt", BT_OPTION_STRING, &up->prompt, .argument = "TEXT",
         .help = "Ask this once all is ready."},
        {"once", BT_OPTION_FLAG, &up->once, "no", .help = "End after the answer to --prompt."},
    };
    memcpy(out, rows, sizeof rows);
    return sizeof rows / sizeof rows[0];
}

static int parse_and_run(struct up *up, int argc, char **argv) {
    struct bt_option options[OPTIONS];
    size_t n_options = fill_cluster(up, options);
    n_options += fill_work(up, options + n_options);
    BT_ASSERT(n_options <= OPTIONS);
    const struct bt_command command = {
        .name = "up",
        .usage = "baton up --model FILE [--prefill N] [--decode M] [--port P]",
        .summary = "Starts a whole cluster on this machine: a router, prefill workers and decode "
                   "workers, as processes that\n"
                   "end with this one. A worker that dies is started again; its streams go on "
                   "elsewhere meanwhile.",
        .example = "  baton up --model model.gguf --prefill 2 --decode 2\n"
                   "  curl localhost:8000/v1/completions -d '{\"prompt\": \"Once upon a time\", "
                   "\"max_tokens\": 32}'",
        .options = options,
        .n_options = n_options,
    };
    struct bt_error err;
    bt_status status = bt_config_parse(&command, argc, argv, &err);
    if (status < 0) {
        fprintf(stderr, "baton up: %s\n", err.text);
        return 2;
    }
    if (status == BT_DONE)
        return 0;
    unsetenv("BATON_CONFIG"); /* the file has options of this command, not of the children's */
    if (!up->threads) {
        struct bt_cpu_count cpus;
        bt_cpu_count_here(&cpus);
        uint32_t share = cpus.n / (up->n_prefill + up->n_decode);
        up->threads = share ? share : 1;
    }
    up->started_ms = now_ms();
    return run(up);
}

int bt_up_main(int argc, char **argv) {
    struct up *up = calloc(1, sizeof *up); /* the children's line buffers are large */
    if (!up) {
        fprintf(stderr, "baton up: out of memory\n");
        return 1;
    }
    int code = parse_and_run(up, argc, argv);
    free(up);
    return code;
}

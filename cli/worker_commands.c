/* `baton prefill` and `baton decode`: their options, checked, into what a worker is started with.
 */
#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "cli/roles.h"
#include "common/base/address.h"
#include "common/base/config.h"
#include "common/base/log.h"
#include "common/engine/worker_options.h"
#include "decode_worker/decode_worker.h"
#include "prefill_worker/prefill_worker.h"

enum { OPTIONS = 27, EXIT_REFUSED = 2 };

/* The command line as it was read; `options` is made from it. */
struct command_line {
    struct bt_worker_options options;
    struct bt_option_list routers;
    uint32_t precision, kv_type, kv_tokens, log_level, log_format;
    bool die_with_parent;
    char name[BT_NAME_BYTES];
};

/* Answers how many rows it wrote. */
static size_t fill_options(struct command_line *c, bool decode, struct bt_option out[OPTIONS]) {
    struct bt_worker_options *o = &c->options;
    const struct bt_option options[] = {
        {"model", BT_OPTION_STRING, &o->model, .argument = "FILE", .required = true,
         .help = "The model, a GGUF file; the same file as the router's and the other workers'."},
        {"router", BT_OPTION_LIST, &c->routers, .argument = "HOST:PORT", .required = true,
         .help = "A router's registry address; given again or separated by commas for several. A "
                 "name with "
                 "several addresses is several routers, looked up again every few seconds."},
        {"name", BT_OPTION_STRING, &o->name, .argument = "NAME",
         .help = "Name of this worker, its own in the cluster. Default: role, host and process."},
        {"threads", BT_OPTION_U32, &o->n_threads, "0", 0, BT_WORKER_THREADS_MAX, .argument = "N",
         .help = "Compute threads; 0 takes one per CPU that this process is given: its mask, and "
                 "the CPU quota of its control group."},
        {"pin", BT_OPTION_FLAG, &o->pin, "no", .help = "Keep each compute thread on one CPU."},
        {"precision", BT_OPTION_CHOICE, &c->precision, "fast", .choices = BT_PRECISION_CHOICES,
         .argument = "PROFILE",
         .help = "Arithmetic profile; the same for all workers of a cluster."},
        {"kv-cache-dtype", BT_OPTION_CHOICE, &c->kv_type, "auto", .choices = BT_KV_TYPE_CHOICES,
         .argument = "TYPE",
         .help = "What the KV cache holds; the same for all workers of a cluster. auto: bf16, with "
                 "--precision exact f32. int8 takes half of bf16's bytes, in memory and on links."},
        {"kv-tokens", BT_OPTION_U32, &c->kv_tokens, "0", 0, 1u << 30, .argument = "N",
         .help = "Size of the KV cache in tokens. Default: 16384, or what a quarter of this "
                 "machine's memory holds."},
        {"kv-memory", BT_OPTION_BYTES, &o->kv_memory_bytes, "0", 0, 1ull << 46, .argument = "BYTES",
         .help = "The same in bytes (64m, 1g)."},
        {"max-context", BT_OPTION_U32, &o->max_context, "0", 0, BT_WORKER_CONTEXT_MAX,
         .argument = "N",
         .help = "Longest prompt and answer together, in tokens; 0: what the model allows."},
        {"max-seqs", BT_OPTION_U32, &o->max_seqs, "64", 1, BT_WORKER_SEQS_MAX, .argument = "N",
         .help = "Requests at the same time."},
        {"chunk-tokens", BT_OPTION_U32, &o->chunk_tokens, "256", BT_PAGE_TOKENS,
         BT_WORKER_CHUNK_TOKENS_MAX, .argument = "N",
         .help = "Most prompt tokens computed in one step."},
        {"drain-seconds", BT_OPTION_U32, &o->drain_seconds, "30", 0, BT_WORKER_DRAIN_SECONDS_MAX,
         .argument = "N",
         .help = "After SIGTERM: what still runs after this long moves to other workers."},
        {"health-listen", BT_OPTION_STRING, &o->health_listen, .argument = "HOST:PORT",
         .help = "A loopback port that answers grpc.health.v1 for probes beside it (baton health); "
                 "port 0 lets the system choose. Default: none."},
        {"insecure", BT_OPTION_FLAG, &o->insecure, "no",
         .help = "Allow addresses on other machines without --tls-cert, unencrypted."},
        {"log-level", BT_OPTION_CHOICE, &c->log_level, "info",
         .choices = {"error", "warn", "info", "debug"}, .argument = "LEVEL",
         .help = "What is logged."},
        {"log-format", BT_OPTION_CHOICE, &c->log_format, "auto",
         .choices = {"auto", "text", "json"}, .argument = "FORMAT",
         .help = "Lines for people or JSON objects; auto: text on a terminal, else JSON."},
        {"die-with-parent", BT_OPTION_FLAG, &c->die_with_parent, "no",
         .help = "End when the process that started this one ends."},
        {"step-ms", BT_OPTION_U32, &o->step_ms, "12", 0, 10000, .argument = "MS",
         .help = "While others stream, a prompt computed here takes so many tokens a step that the "
                 "step stays within this, 8 at least; 0: always --chunk-tokens."},
        {"link-listen", BT_OPTION_STRING, &o->link_listen, "127.0.0.1:0", .argument = "HOST:PORT",
         .help = "Where prefill workers bring KV caches to; port 0 lets the system choose."},
        {"link-advertise", BT_OPTION_STRING, &o->link_advertise, .argument = "HOST:PORT",
         .help = "The same as other machines reach it, where that differs."},
    };
    _Static_assert(sizeof options / sizeof options[0] + BT_TLS_OPTIONS <= OPTIONS,
                   "room for every option");
    size_t n = sizeof options / sizeof options[0];
    if (!decode)
        n -= 3; /* a prefill worker has no streams; it dials links and listens for none */
    for (size_t i = 0; i < n; i++)
        out[i] = options[i];
    bt_tls_option_rows(&o->tls_cert, &o->tls_key, &o->tls_ca, out + n);
    return n + BT_TLS_OPTIONS;
}

/* Memory that this process may use: the machine's, or its control group's where that is less. */
static uint64_t memory_bytes(void) {
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t bytes = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 1ull << 30;
    unsigned long long bound;
    FILE *file = fopen("/sys/fs/cgroup/memory.max", "r");
    if (file && fscanf(file, "%llu", &bound) == 1 && bound < bytes)
        bytes = bound;
    if (file)
        fclose(file);
    return bytes;
}

/* Role, host and process: two workers of one cluster hardly ever share all three. */
static void make_name(char out[BT_NAME_BYTES], const char *role) {
    char host[BT_NAME_BYTES] = "host";
    if (gethostname(host, sizeof host) == 0)
        host[sizeof host - 1] = 0;
    for (char *c = host; *c; c++)
        if (!isalnum((unsigned char)*c) && *c != '.' && *c != '-')
            *c = '-';
    snprintf(out, BT_NAME_BYTES, "%s-%.40s-%ld", role, host, (long)getpid());
}

static bt_status check_name(const char *name, struct bt_error *err) {
    size_t n = strlen(name);
    if (n < 1 || n >= BT_NAME_BYTES)
        return bt_fail(err, BT_E_INVALID, "name: \"%.80s\" has %zu bytes, allowed 1 to %d", name, n,
                       BT_NAME_BYTES - 1);
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i]))
            return bt_fail(err, BT_E_INVALID,
                           "name: \"%.80s\" may have letters, digits, '.', '_' and '-' only", name);
    return BT_OK;
}

/* dialled: the port must be known. */
static bt_status check_address(const char *option, const char *text, bool dialled, bool anywhere,
                               struct bt_error *err) {
    struct bt_address address;
    struct bt_error why;
    if (bt_address_parse(text, &address, &why) < 0)
        return bt_fail(err, BT_E_INVALID, "%s: %.200s", option, why.text);
    if (dialled && address.port == 0)
        return bt_fail(err, BT_E_INVALID, "%s: \"%.80s\" has port 0, allowed 1 to 65535", option,
                       text);
    if (!anywhere && !bt_address_is_loopback(&address))
        return bt_fail(err, BT_E_INVALID,
                       "%s: \"%.80s\" is not on this machine: give --tls-cert, --tls-key and "
                       "--tls-ca, or --insecure to go there unencrypted",
                       option, text);
    return BT_OK;
}

static bt_status check_addresses(struct command_line *c, struct bt_error *err) {
    struct bt_worker_options *o = &c->options;
    bool anywhere = o->insecure || o->tls_cert;
    if (c->routers.n_items > BT_MAX_ROUTERS)
        return bt_fail(err, BT_E_INVALID, "router: %u addresses, allowed 1 to %d",
                       c->routers.n_items, BT_MAX_ROUTERS);
    for (uint32_t i = 0; i < c->routers.n_items; i++) {
        BT_TRY(check_address("router", c->routers.items[i], true, anywhere, err));
        o->routers[o->n_routers++] = c->routers.items[i];
    }
    if (o->link_listen)
        BT_TRY(check_address("link-listen", o->link_listen, false, anywhere, err));
    if (o->link_advertise)
        BT_TRY(check_address("link-advertise", o->link_advertise, true, anywhere, err));
    return BT_OK;
}

/* What the options say together, and what was left to be chosen here. */
static bt_status complete(struct command_line *c, const char *role, struct bt_error *err) {
    struct bt_worker_options *o = &c->options;
    if (!o->name) {
        make_name(c->name, role);
        o->name = c->name;
    }
    BT_TRY(check_name(o->name, err));
    BT_TRY(bt_tls_options_check(o->tls_cert, o->tls_key, o->tls_ca, err));
    BT_TRY(check_addresses(c, err));
    if (c->kv_tokens && o->kv_memory_bytes)
        return bt_fail(err, BT_E_INVALID,
                       "kv-tokens is %u and kv-memory is %llu: only one of them may be given",
                       c->kv_tokens, (unsigned long long)o->kv_memory_bytes);
    o->precision = (enum bt_precision)c->precision;
    o->kv_type = (enum bt_kv_type)c->kv_type;
    if (o->precision == BT_PRECISION_EXACT &&
        (o->kv_type == BT_KV_BF16 || o->kv_type == BT_KV_INT8))
        return bt_fail(err, BT_E_INVALID,
                       "kv-cache-dtype is %s: with precision exact the KV cache is f32, give f32 "
                       "or auto",
                       bt_kv_type_name(o->kv_type));
    o->kv_tokens = c->kv_tokens;
    if (!c->kv_tokens && !o->kv_memory_bytes) {
        o->kv_is_standard = true;
        o->kv_tokens = BT_WORKER_KV_TOKENS_STANDARD;
        o->kv_standard_bytes_max = memory_bytes() / 4;
    }
    return BT_OK;
}

/* False where the parent ended before this process could ask to be told. */
static bool die_with_parent(void) {
    pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    return getppid() == parent;
}

static int run(struct command_line *c, const struct bt_command *command, bool decode, int argc,
               char **argv) {
    struct bt_error err;
    bt_status status = bt_config_parse(command, argc, argv, &err);
    if (status == BT_DONE)
        return 0;
    if (status == BT_OK)
        status = complete(c, command->name, &err);
    if (status < 0) {
        fprintf(stderr, "baton %s: %s\n", command->name, err.text);
        return EXIT_REFUSED;
    }
    bt_log_set_level((enum bt_log_level)c->log_level);
    bt_log_set_format((enum bt_log_format)c->log_format);
    if (c->die_with_parent && !die_with_parent())
        return 0;
    return decode ? bt_decode_worker_run(&c->options) : bt_prefill_worker_run(&c->options);
}

int bt_prefill_command(int argc, char **argv) {
    struct command_line line = {0};
    struct bt_option options[OPTIONS];
    const struct bt_command command = {
        .name = "prefill",
        .usage = "baton prefill --model FILE --router HOST:PORT [--threads N]",
        .summary = "A worker that computes prompts and hands their KV caches to decode workers.\n"
                   "SIGTERM: no new work, what is under way finishes, exit 0; a second one ends at "
                   "once.",
        .example = "  baton prefill --model model.gguf --router 127.0.0.1:8400 --name prefill-0",
        .options = options,
        .n_options = fill_options(&line, false, options),
    };
    return run(&line, &command, false, argc, argv);
}

int bt_decode_command(int argc, char **argv) {
    struct command_line line = {0};
    struct bt_option options[OPTIONS];
    const struct bt_command command = {
        .name = "decode",
        .usage = "baton decode --model FILE --router HOST:PORT [--threads N] [--link-listen "
                 "HOST:PORT]",
        .summary = "A worker that takes KV caches from prefill workers and decodes tokens.\n"
                   "SIGTERM: no new work, its streams move to other workers or finish, exit 0; a "
                   "second one ends at once.",
        .example = "  baton decode --model model.gguf --router 127.0.0.1:8400 --name decode-0",
        .options = options,
        .n_options = fill_options(&line, true, options),
    };
    return run(&line, &command, true, argc, argv);
}

/* Runs one prefill and decode steps of a model and prints where their time went, op by op. */
#include "cli/profile.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bars.h"
#include "common/base/clock.h"
#include "common/base/config.h"
#include "common/base/limits.h"
#include "common/device/device.h"
#include "common/engine/engine.h"
#include "common/engine/forward_profile.h"
#include "common/engine/worker_options.h"

enum {
    EXIT_REFUSED = 2,
    SEQS_MAX = 256,
    TOKENS_MAX = 1 << 20,
    REPEATS_MAX = 10000,
    LIMIT_BYTES = 192 << 20, /* read to find the memory's limit: more than caches hold */
    LIMIT_PIECE = 1 << 20,
    LIMIT_ROUNDS = 5,
};

struct run {
    /* Options. */
    const char *model;
    uint32_t threads, precision, kv_type, prompt_tokens, depth, sequences, prefills, steps,
        chunk_tokens;
    bool pin, json;

    struct bt_engine *engine;
    const struct bt_engine_info *info;
    struct bt_forward_profile profile;
    struct bt_sampling sampling;
    uint64_t next_step;
    uint32_t pages_of_seq; /* each sequence has so many of its own */
    uint32_t *pages;       /* [sequences][pages_of_seq] */
    int32_t *tokens;       /* [rows of a step] */
    struct bt_step_seq *seqs;
    struct bt_step_result *results;
    double read_bytes_per_s; /* of this machine's memory, with these threads */
};

/* ---- Steps ---- */

/* One step of sequences first .. first + n, each with n_rows tokens from `position` on; answers
 * false where a logit was not finite. */
static bool run_step(struct run *r, uint32_t first, uint32_t n, uint32_t n_rows,
                     uint32_t position) {
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < n_rows; j++)
            r->tokens[i * n_rows + j] =
                (int32_t)((100 + (uint64_t)(position + j + i * 11) * 37) % r->info->n_vocab);
        r->seqs[i] = (struct bt_step_seq){.seq = i,
                                          .first_row = i * n_rows,
                                          .n_rows = n_rows,
                                          .position = position,
                                          .pages = r->pages + (size_t)(first + i) * r->pages_of_seq,
                                          .sample = true,
                                          .sampling = &r->sampling};
    }
    struct bt_step step = {.id = ++r->next_step,
                           .tokens = r->tokens,
                           .n_rows = n * n_rows,
                           .seqs = r->seqs,
                           .n_seqs = n,
                           .results = r->results};
    bt_engine_post(r->engine, &step);
    while (bt_engine_busy(r->engine)) {
        struct pollfd fd = {.fd = bt_engine_fd(r->engine), .events = POLLIN};
        struct bt_engine_event event;
        poll(&fd, 1, -1);
        while (bt_engine_next(r->engine, &event))
            ;
    }
    for (uint32_t i = 0; i < n; i++)
        if (r->results[i].token < 0)
            return false;
    return true;
}

static bool prefill(struct run *r, uint32_t seq, uint32_t n_tokens) {
    for (uint32_t at = 0; at < n_tokens; at += r->chunk_tokens) {
        uint32_t n = n_tokens - at < r->chunk_tokens ? n_tokens - at : r->chunk_tokens;
        if (!run_step(r, seq, 1, n, at))
            return false;
    }
    return true;
}

/* ---- What is printed ---- */

/* One of the two parts of a profile: a prompt, or a decode step. */
struct part {
    const char *name;  /* "prefill" */
    uint32_t n_tokens; /* of one repetition */
    uint32_t repeats;
};

static double per_ms(const struct run *r, const struct part *part, uint64_t thread_ns) {
    return (double)thread_ns / 1e6 / r->profile.n_threads / part->repeats;
}

/* Per nanosecond of the threads that worked on it together. */
static double rate(const struct run *r, uint64_t amount, uint64_t busy_ns) {
    return busy_ns ? (double)amount * r->profile.n_threads / (double)busy_ns : 0;
}

static uint64_t waiting_ns(const struct bt_forward_profile *p) {
    uint64_t sum = 0;
    for (int op = 0; op < BT_OP_COUNT; op++)
        sum += p->waiting_ns[op];
    return sum;
}

/* Threads' time in steps that neither an op nor waiting accounts for. */
static uint64_t other_ns(const struct bt_forward_profile *p) {
    uint64_t all = p->wall_ns * p->n_threads, known = waiting_ns(p);
    for (int op = 0; op < BT_OP_COUNT; op++)
        known += bt_forward_profile_busy_ns(p, (enum bt_forward_op)op);
    return all > known ? all - known : 0;
}

static void print_total(const struct run *r, const char *name, const struct part *part,
                        uint64_t thread_ns) {
    double ms = per_ms(r, part, thread_ns),
           all = per_ms(r, part, r->profile.wall_ns) * r->profile.n_threads;
    printf("  %-14s%10.3f%7.1f %%\n", name, ms, all > 0 ? 100 * ms / all : 0);
}

static void print_table(const struct run *r, const struct part *part) {
    const struct bt_forward_profile *p = &r->profile;
    double wall_ms = (double)p->wall_ns / 1e6 / part->repeats;
    printf("\n%s: %.3f ms, %.0f tokens/s, %.0f runs that all threads joined\n", part->name, wall_ms,
           wall_ms > 0 ? 1e3 * part->n_tokens / wall_ms : 0, (double)p->n_runs / part->repeats);
    printf("  %-14s%10s%9s%10s%10s%9s%9s\n", "op", "ms", "share", "waited ms", "read", "GB/s",
           "GOP/s");
    for (int i = 0; i < BT_OP_COUNT; i++) {
        enum bt_forward_op op = (enum bt_forward_op)i;
        uint64_t busy = bt_forward_profile_busy_ns(p, op);
        char size[32];
        if (!busy && !p->waiting_ns[op])
            continue;
        printf("  %-14s%10.3f%7.1f %%%10.3f", bt_forward_op_name(op), per_ms(r, part, busy),
               100 * per_ms(r, part, busy) / wall_ms, per_ms(r, part, p->waiting_ns[op]));
        if (p->bytes[op])
            printf("%10s%9.1f", bt_size_text((double)p->bytes[op] / part->repeats, size),
                   rate(r, p->bytes[op], busy));
        if (p->operations[op])
            printf("%9.1f", rate(r, p->operations[op], busy));
        printf("\n");
    }
    print_total(r, "waiting", part, waiting_ns(p));
    print_total(r, "other", part, other_ns(p));
}

static void print_json_part(const struct run *r, const struct part *part) {
    const struct bt_forward_profile *p = &r->profile;
    printf(",\n \"%s\": {\"ms\": %.4f, \"tokens\": %u, \"runs\": %.1f, \"waiting_ms\": %.4f, "
           "\"other_ms\": %.4f, \"ops\": [",
           part->name, (double)p->wall_ns / 1e6 / part->repeats, part->n_tokens,
           (double)p->n_runs / part->repeats, per_ms(r, part, waiting_ns(p)),
           per_ms(r, part, other_ns(p)));
    for (int i = 0; i < BT_OP_COUNT; i++) {
        enum bt_forward_op op = (enum bt_forward_op)i;
        uint64_t busy = bt_forward_profile_busy_ns(p, op);
        printf("%s\n  {\"op\": \"%s\", \"ms\": %.4f, \"waiting_ms\": %.4f, \"bytes\": %.0f, "
               "\"operations\": %.0f, \"gb_per_s\": %.2f, \"gop_per_s\": %.2f}",
               i ? "," : "", bt_forward_op_name(op), per_ms(r, part, busy),
               per_ms(r, part, p->waiting_ns[op]), (double)p->bytes[op] / part->repeats,
               (double)p->operations[op] / part->repeats, rate(r, p->bytes[op], busy),
               rate(r, p->operations[op], busy));
    }
    printf("]}");
}

static void print_head(const struct run *r) {
    if (r->json)
        printf("{\"threads\": %u, \"kernels\": \"%s\", \"precision\": \"%s\", \"kv_cache\": "
               "\"%s\", \"depth\": %u, "
               "\"sequences\": %u, \"memory_read_gb_per_s\": %.2f",
               r->info->n_threads, r->info->kernels, bt_profile_name(r->info->fingerprint.profile),
               bt_kv_type_name(r->info->fingerprint.kv_type), r->depth, r->sequences,
               r->read_bytes_per_s / 1e9);
    else
        printf("%u threads (%s), %s, profile %s, %s cache. Memory is read at %.1f GB/s by them.\n",
               r->info->n_threads, r->info->cpus, r->info->kernels,
               bt_profile_name(r->info->fingerprint.profile),
               bt_kv_type_name(r->info->fingerprint.kv_type), r->read_bytes_per_s / 1e9);
}

static void print_part(const struct run *r, const struct part *part) {
    if (r->json)
        print_json_part(r, part);
    else
        print_table(r, part);
}

/* ---- The memory's limit ---- */

struct reading {
    const uint64_t *words;
    _Alignas(64) volatile uint64_t sums[BT_DEVICE_THREADS_MAX]; /* so that nothing is left out */
};

static void read_piece(void *arg, uint32_t task, uint32_t thread) {
    struct reading *reading = arg;
    const uint64_t *words = reading->words + (size_t)task * (LIMIT_PIECE / sizeof *words);
    uint64_t sums[8] = {0};
    for (size_t i = 0; i < LIMIT_PIECE / sizeof *words; i += 8)
        for (size_t j = 0; j < 8; j++)
            sums[j] += words[i + j];
    for (size_t j = 0; j < 8; j++)
        reading->sums[thread] += sums[j];
}

/* The best of some rounds over more memory than the caches hold. */
static bt_status measure_memory(struct run *r, struct bt_error *err) {
    const struct bt_device_params params = {
        .kind = "cpu", .n_threads = r->info->n_threads, .pin = r->pin};
    struct bt_device *device = NULL;
    BT_TRY(bt_device_open(&params, &device, NULL, err));
    void *memory = bt_device_alloc(device, LIMIT_BYTES);
    if (!memory) {
        bt_device_close(device);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory to measure the memory with: %d bytes",
                       LIMIT_BYTES);
    }
    memset(memory, 1, LIMIT_BYTES);
    struct reading reading = {.words = memory};
    for (int i = 0; i < LIMIT_ROUNDS; i++) {
        uint64_t start_ns = bt_clock_ns();
        bt_device_run(device, LIMIT_BYTES / LIMIT_PIECE, read_piece, &reading);
        double speed = 1e9 * LIMIT_BYTES / (double)(bt_clock_ns() - start_ns);
        if (speed > r->read_bytes_per_s)
            r->read_bytes_per_s = speed;
    }
    bt_device_free(device, memory, LIMIT_BYTES);
    bt_device_close(device);
    return BT_OK;
}

/* ---- The whole ---- */

static bt_status refuse_bits(struct bt_error *err) {
    return bt_fail(err, BT_E_INVALID, "a step gave logits that are not finite");
}

static bt_status profile_prefill(struct run *r, struct bt_error *err) {
    const struct part part = {"prefill", r->prompt_tokens, r->prefills};
    if (!prefill(r, 0, r->prompt_tokens)) /* warms up */
        return refuse_bits(err);
    bt_forward_profile_reset(&r->profile);
    bt_engine_set_profile(r->engine, &r->profile);
    bool finite = true;
    for (uint32_t i = 0; i < r->prefills && finite; i++)
        finite = prefill(r, 0, r->prompt_tokens);
    bt_engine_set_profile(r->engine, NULL);
    if (!finite)
        return refuse_bits(err);
    print_part(r, &part);
    return BT_OK;
}

static bt_status profile_decode(struct run *r, struct bt_error *err) {
    const struct part part = {"decode", r->sequences, r->steps};
    bool finite = true;
    for (uint32_t i = 0; i < r->sequences && finite; i++)
        finite = prefill(r, i, r->depth);
    finite = finite && run_step(r, 0, r->sequences, 1, r->depth);
    bt_forward_profile_reset(&r->profile);
    bt_engine_set_profile(r->engine, &r->profile);
    for (uint32_t i = 0; i < r->steps && finite; i++)
        finite = run_step(r, 0, r->sequences, 1, r->depth + 1 + i);
    bt_engine_set_profile(r->engine, NULL);
    if (!finite)
        return refuse_bits(err);
    print_part(r, &part);
    return BT_OK;
}

static bt_status take_memory(struct run *r, uint32_t max_rows, struct bt_error *err) {
    uint32_t n_pages = r->sequences * r->pages_of_seq;
    r->pages = malloc(n_pages * sizeof *r->pages);
    r->tokens = malloc(max_rows * sizeof *r->tokens);
    r->seqs = malloc(r->sequences * sizeof *r->seqs);
    r->results = malloc(r->sequences * sizeof *r->results);
    if (!r->pages || !r->tokens || !r->seqs || !r->results)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for steps of %u rows", max_rows);
    for (uint32_t i = 0; i < n_pages; i++)
        r->pages[i] = i;
    return bt_forward_profile_init(&r->profile, r->info->n_threads, err);
}

static bt_status profile_model(struct run *r, struct bt_error *err) {
    uint32_t deepest = r->depth + r->steps + 1;
    uint32_t context = deepest > r->prompt_tokens ? deepest : r->prompt_tokens;
    uint32_t max_rows = r->chunk_tokens > r->sequences ? r->chunk_tokens : r->sequences;
    r->pages_of_seq = (context + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
    r->sampling =
        (struct bt_sampling){.top_p = 1, .repetition_penalty = 1, .max_tokens = TOKENS_MAX};
    const struct bt_engine_params params = {
        .model_path = r->model,
        .n_threads = r->threads,
        .pin = r->pin,
        .profile = bt_precision_profile((enum bt_precision)r->precision),
        .kv_type = (enum bt_kv_type)r->kv_type, /* the choices stand in the enum's order */
        .n_pages = r->sequences * r->pages_of_seq,
        .max_rows = max_rows,
        .max_seqs = r->sequences,
        .max_context = context};
    BT_TRY(bt_engine_create(&params, &r->engine, err));
    r->info = bt_engine_info(r->engine);
    if (r->info->max_context < context)
        return bt_fail(err, BT_E_INVALID, "%u tokens were asked for, the model has room for %u",
                       context, r->info->max_context);
    BT_TRY(take_memory(r, max_rows, err));
    BT_TRY(measure_memory(r, err));
    print_head(r);
    if (r->prompt_tokens)
        BT_TRY(profile_prefill(r, err));
    if (r->steps)
        BT_TRY(profile_decode(r, err));
    if (r->json)
        printf("}\n");
    return BT_OK;
}

static void free_memory(struct run *r) {
    bt_engine_destroy(r->engine);
    bt_forward_profile_fini(&r->profile);
    free(r->pages);
    free(r->tokens);
    free(r->seqs);
    free(r->results);
}

int bt_profile_main(int argc, char **argv) {
    struct run r = {0};
    const struct bt_option options[] = {
        {"model", BT_OPTION_STRING, &r.model, .argument = "FILE", .required = true,
         .help = "The model, a GGUF file."},
        {"threads", BT_OPTION_U32, &r.threads, "0", 0, BT_WORKER_THREADS_MAX, .argument = "N",
         .help = "Compute threads; 0 takes one per CPU that this process is given."},
        {"pin", BT_OPTION_FLAG, &r.pin, "yes", .help = "Keep each compute thread on one CPU."},
        {"precision", BT_OPTION_CHOICE, &r.precision, "fast", .choices = BT_PRECISION_CHOICES,
         .argument = "PROFILE", .help = "Arithmetic profile."},
        {"kv-cache-dtype", BT_OPTION_CHOICE, &r.kv_type, "auto", .choices = BT_KV_TYPE_CHOICES,
         .argument = "TYPE", .help = "What the KV cache holds; auto: what the profile has."},
        {"prompt-tokens", BT_OPTION_U32, &r.prompt_tokens, "512", 0, TOKENS_MAX, .argument = "N",
         .help = "Length of the prompt whose prefill is profiled; 0: no prefill."},
        {"prefills", BT_OPTION_U32, &r.prefills, "5", 1, REPEATS_MAX, .argument = "N",
         .help = "How often it is repeated; what is printed is the mean."},
        {"chunk-tokens", BT_OPTION_U32, &r.chunk_tokens, "512", BT_PAGE_TOKENS,
         BT_WORKER_CHUNK_TOKENS_MAX, .argument = "N", .help = "Most prompt tokens in one step."},
        {"sequences", BT_OPTION_U32, &r.sequences, "1", 1, SEQS_MAX, .argument = "N",
         .help = "Sequences that are decoded together."},
        {"depth", BT_OPTION_U32, &r.depth, "0", 0, TOKENS_MAX, .argument = "N",
         .help = "Tokens that each of them has in the cache before."},
        {"steps", BT_OPTION_U32, &r.steps, "64", 0, REPEATS_MAX, .argument = "N",
         .help = "Decode steps profiled, of which the mean is printed; 0: no decode."},
        {"json", BT_OPTION_FLAG, &r.json, "no", .help = "One JSON object instead of tables."},
    };
    const struct bt_command command = {
        .name = "profile",
        .usage = "baton profile --model FILE [--threads N] [--prompt-tokens N] [--sequences N] "
                 "[--depth N]",
        .summary =
            "Runs one prefill and decode steps of a model, as a worker would, and prints where "
            "their time goes:\n"
            "for each op the time of all layers, the share, what threads waited for it, and how "
            "fast it read and computed.\n\n"
            "Decode is bound by memory: compare its GB/s with the memory's, which is measured "
            "too (what lies in a cache\n"
            "is faster). Prefill is bound by arithmetic: compare GOP/s between ops and thread "
            "counts. \"waited\" is threads'\n"
            "time without a task: uneven parts, tasks for one thread only, other processes.",
        .example = "  baton profile --model model.gguf\n"
                   "  baton profile --model model.gguf --prompt-tokens 0 --sequences 16 --depth "
                   "1024 --threads 2",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
    };
    struct bt_error err;
    bt_status status = bt_config_parse(&command, argc, argv, &err);
    if (status == BT_DONE)
        return 0;
    if (status == BT_OK)
        status = profile_model(&r, &err);
    if (status < 0)
        fprintf(stderr, "baton profile: %s\n", err.text);
    free_memory(&r);
    return status == BT_OK ? 0 : EXIT_REFUSED;
}

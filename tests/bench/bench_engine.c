/* Times the engine alone, as a worker's loop uses it: prefill, decode at several depths, decode of
 * several sequences together. One JSON row of samples per line; kv_bytes is what a token takes in
 * the cache. */
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/engine/engine.h"
#include "tests/bench/bench.h"

enum {
    CHUNK = 512, /* rows of a step of prefill */
    DEPTH_MAX = 4096,
    BATCH_MAX = 32,
    BATCH_PROMPT = 128, /* tokens of each sequence before they decode together */
    DECODE_SHORT = 128, /* tokens timed from an empty cache */
    DECODE_DEEP = 64,   /* tokens timed at depth, and of each sequence of a batch */
    WARM_UP = 8,        /* tokens decoded before any is timed */
    CONTEXT = DEPTH_MAX + DECODE_SHORT,
    N_PAGES = CONTEXT / BT_PAGE_TOKENS,
    BATCH_PAGES = (BATCH_PROMPT + DECODE_DEEP) / BT_PAGE_TOKENS,
    REPETITIONS_MAX = 64,
};

_Static_assert(BATCH_MAX *BATCH_PAGES <= 2 * N_PAGES, "the pages of a batch are there");

enum kind { PREFILL, DECODE, BATCH };

static const struct row {
    const char *name;
    enum kind kind;
    uint32_t n; /* prompt tokens, depth, or sequences */
} ROWS[] = {
    {"prefill_128", PREFILL, 128}, {"prefill_512", PREFILL, 512},  {"prefill_2048", PREFILL, 2048},
    {"decode_d0", DECODE, 0},      {"decode_d2048", DECODE, 2048}, {"decode_d4096", DECODE, 4096},
    {"batch_4", BATCH, 4},         {"batch_16", BATCH, 16},        {"batch_32", BATCH, 32},
};
enum { N_ROWS = sizeof ROWS / sizeof *ROWS };

struct bench {
    struct bt_engine *engine;
    struct bt_sampling sampling;
    uint64_t next_step;
    uint32_t pages[BATCH_MAX][N_PAGES];
};

/* One step of n_seqs sequences, each with n_rows tokens from `position` on; waits for its end. */
static void run_step(struct bench *b, uint32_t n_seqs, uint32_t n_rows, uint32_t position) {
    int32_t tokens[CHUNK];
    struct bt_step_seq seqs[BATCH_MAX];
    struct bt_step_result results[BATCH_MAX];
    for (uint32_t i = 0; i < n_seqs; i++) {
        for (uint32_t j = 0; j < n_rows; j++)
            tokens[i * n_rows + j] = (int32_t)(100 + (position + j + i * 11) * 37 % 40000);
        seqs[i] = (struct bt_step_seq){.seq = i,
                                       .first_row = i * n_rows,
                                       .n_rows = n_rows,
                                       .position = position,
                                       .pages = b->pages[i],
                                       .sample = true,
                                       .sampling = &b->sampling};
    }
    struct bt_step step = {.id = ++b->next_step,
                           .tokens = tokens,
                           .n_rows = n_seqs * n_rows,
                           .seqs = seqs,
                           .n_seqs = n_seqs,
                           .results = results};
    bt_engine_post(b->engine, &step);
    while (bt_engine_busy(b->engine)) {
        struct pollfd fd = {.fd = bt_engine_fd(b->engine), .events = POLLIN};
        struct bt_engine_event event;
        poll(&fd, 1, -1);
        while (bt_engine_next(b->engine, &event))
            ;
    }
    for (uint32_t i = 0; i < n_seqs; i++)
        if (results[i].token < 0) {
            fprintf(stderr, "bench_engine: a step gave logits that are not finite\n");
            exit(1);
        }
}

/* Fills each sequence's cache with n_tokens, one sequence after the other. */
static void prefill(struct bench *b, uint32_t n_seqs, uint32_t n_tokens) {
    for (uint32_t at = 0; at < n_tokens; at += CHUNK)
        for (uint32_t i = 0; i < n_seqs; i++) {
            uint32_t n = n_tokens - at < CHUNK ? n_tokens - at : CHUNK;
            /* run_step takes sequences from the first one on. */
            uint32_t kept[N_PAGES];
            memcpy(kept, b->pages[0], sizeof kept);
            memcpy(b->pages[0], b->pages[i], sizeof kept);
            run_step(b, 1, n, at);
            memcpy(b->pages[0], kept, sizeof kept);
        }
}

static double decode(struct bench *b, uint32_t n_seqs, uint32_t depth, uint32_t n_tokens) {
    run_step(b, n_seqs, 1, depth);
    uint64_t start_ns = bt_clock_ns();
    for (uint32_t i = 1; i < n_tokens; i++)
        run_step(b, n_seqs, 1, depth + i);
    return 1e9 * n_seqs * (n_tokens - 1) / (double)(bt_clock_ns() - start_ns);
}

/* Sequence i's pages: all of them for one sequence, a share for each of a batch. */
static void share_pages(struct bench *b, uint32_t n_seqs) {
    uint32_t share = n_seqs == 1 ? N_PAGES : BATCH_PAGES;
    for (uint32_t i = 0; i < n_seqs; i++)
        for (uint32_t j = 0; j < share; j++)
            b->pages[i][j] = i * share + j;
}

/* Fills the caches that the row starts from, and warms up. */
static void prepare(struct bench *b, const struct row *row) {
    share_pages(b, row->kind == BATCH ? row->n : 1);
    if (row->kind == BATCH)
        prefill(b, row->n, BATCH_PROMPT);
    else
        prefill(b, 1, row->n);
    if (row->kind != PREFILL)
        decode(b, row->kind == BATCH ? row->n : 1, row->kind == BATCH ? BATCH_PROMPT : row->n,
               WARM_UP);
}

/* Tokens per second. What was decoded before from the same depth is written over. */
static double measure(struct bench *b, const struct row *row) {
    if (row->kind == DECODE)
        return decode(b, 1, row->n, row->n ? DECODE_DEEP : DECODE_SHORT);
    if (row->kind == BATCH)
        return decode(b, row->n, BATCH_PROMPT, DECODE_DEEP);
    uint64_t start_ns = bt_clock_ns();
    prefill(b, 1, row->n);
    return 1e9 * row->n / (double)(bt_clock_ns() - start_ns);
}

static void print_row(const char *row, const char *engine, const struct bt_engine_info *info,
                      const double *samples, uint32_t n) {
    printf("{\"row\": \"%s\", \"engine\": \"%s\", \"threads\": %u, \"unit\": \"tokens/s\", "
           "\"kv_bytes\": %zu, \"setting\": \"%s kernels\", \"samples\": [",
           row, engine, info->n_threads, info->n_layers * info->page_bytes / BT_PAGE_TOKENS,
           info->kernels);
    for (uint32_t i = 0; i < n; i++)
        printf("%s%.2f", i ? ", " : "", samples[i]);
    printf("]}\n");
}

static int usage(void) {
    fprintf(stderr, "usage: bench_engine MODEL THREADS REPETITIONS PROFILE [ROW...]\n"
                    "THREADS: 2 pins each to a CPU, 2,unpinned does not, as workers do by default. "
                    "PROFILE: fast, bf16 or exact, and after a + the KV cache's type: fast+int8. "
                    "Rows (all by default):");
    for (int i = 0; i < N_ROWS; i++)
        fprintf(stderr, " %s", ROWS[i].name);
    fprintf(stderr, "\n");
    return 2;
}

/* "fast", or "fast+int8" with the cache's type; 0: there is none of that name. */
static enum bt_profile find_profile(const char *name, enum bt_kv_type *kv_type) {
    size_t n = strcspn(name, "+");
    *kv_type = BT_KV_BY_PROFILE;
    for (uint32_t t = BT_KV_BF16; name[n] && t <= BT_KV_INT8; t++)
        if (strcmp(bt_kv_type_name(t), name + n + 1) == 0)
            *kv_type = (enum bt_kv_type)t;
    for (uint32_t p = BT_PROFILE_FAST; p <= BT_PROFILE_EXACT; p++)
        if (strlen(bt_profile_name(p)) == n && strncmp(bt_profile_name(p), name, n) == 0)
            return name[n] && !*kv_type ? (enum bt_profile)0 : (enum bt_profile)p;
    return (enum bt_profile)0;
}

int main(int argc, char **argv) {
    uint32_t n_threads = argc >= 5 ? (uint32_t)atoi(argv[2]) : 0;
    uint32_t n = argc >= 5 ? (uint32_t)atoi(argv[3]) : 0;
    bool pin = argc >= 5 && !strchr(argv[2], ',');
    enum bt_kv_type kv_type = BT_KV_BY_PROFILE;
    enum bt_profile profile = argc >= 5 ? find_profile(argv[4], &kv_type) : (enum bt_profile)0;
    if (!n_threads || !n || n > REPETITIONS_MAX || !profile ||
        (!pin && strcmp(strchr(argv[2], ','), ",unpinned") != 0))
        return usage();
    static struct bench b;
    struct bt_error err = {0};
    const struct bt_engine_params params = {.model_path = argv[1],
                                            .n_threads = n_threads,
                                            .pin = pin,
                                            .profile = profile,
                                            .kv_type = kv_type,
                                            .n_pages = 2 * N_PAGES,
                                            .max_rows = CHUNK,
                                            .max_seqs = BATCH_MAX,
                                            .max_context = CONTEXT};
    if (bt_engine_create(&params, &b.engine, &err) < 0) {
        fprintf(stderr, "bench_engine: %s\n", err.text);
        return 1;
    }
    b.sampling = (struct bt_sampling){.top_p = 1, .repetition_penalty = 1, .max_tokens = CONTEXT};
    char engine[32];
    snprintf(engine, sizeof engine, "baton%s%s%s", profile == BT_PROFILE_FAST ? "" : "-",
             profile == BT_PROFILE_FAST ? "" : bt_profile_name(profile),
             kv_type == BT_KV_INT8 ? "-int8kv" : "");
    for (int r = 0; r < N_ROWS; r++) {
        double samples[REPETITIONS_MAX];
        if (!bench_is_wanted(ROWS[r].name, argv + 5, argc - 5))
            continue;
        prepare(&b, &ROWS[r]);
        for (uint32_t i = 0; i < n; i++)
            samples[i] = measure(&b, &ROWS[r]);
        print_row(ROWS[r].name, engine, bt_engine_info(b.engine), samples, n);
        fflush(stdout);
    }
    bt_engine_destroy(b.engine);
    return 0;
}

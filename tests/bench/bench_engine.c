/* Times the engine alone, as a worker's loop uses it: prefill of 512 tokens, decode from an empty
 * cache, decode of 16 sequences. One JSON row of samples per line.
 *
 *   bench_engine MODEL THREADS REPETITIONS */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/base/limits.h"
#include "common/engine/engine.h"

enum {
    PREFILL = 512,
    DECODE = 128,
    BATCH = 16,
    SEQ_PAGES = (PREFILL + DECODE) / BT_PAGE_TOKENS,
    REPETITIONS_MAX = 64,
};

struct bench {
    struct bt_engine *engine;
    int32_t tokens[PREFILL];
    uint32_t pages[BATCH][SEQ_PAGES];
    struct bt_sampling sampling;
    uint64_t next_step;
};

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One step of n_seqs sequences, each with n_rows tokens from `position` on; waits for its end. */
static void run_step(struct bench *b, uint32_t n_seqs, uint32_t n_rows, uint32_t position) {
    int32_t tokens[PREFILL];
    struct bt_step_seq seqs[BATCH];
    struct bt_step_result results[BATCH];
    for (uint32_t i = 0; i < n_seqs * n_rows; i++)
        tokens[i] = b->tokens[(position + i) % PREFILL];
    for (uint32_t i = 0; i < n_seqs; i++)
        seqs[i] = (struct bt_step_seq){.seq = i,
                                       .first_row = i * n_rows,
                                       .n_rows = n_rows,
                                       .position = position,
                                       .pages = b->pages[i],
                                       .sample = true,
                                       .sampling = &b->sampling};
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
        if (results[i].token < 0)
            exit(1);
}

static double time_prefill(struct bench *b) {
    double start = now_s();
    run_step(b, 1, PREFILL, 0);
    return PREFILL / (now_s() - start);
}

static double time_decode(struct bench *b, uint32_t n_seqs) {
    run_step(b, n_seqs, 1, 0);
    double start = now_s();
    for (uint32_t i = 0; i < DECODE; i++)
        run_step(b, n_seqs, 1, 1 + i);
    return n_seqs * DECODE / (now_s() - start);
}

static void print_row(const char *row, uint32_t n_threads, const double *samples, uint32_t n) {
    printf("{\"row\": \"%s\", \"engine\": \"baton\", \"threads\": %u, \"unit\": \"tokens/s\", "
           "\"samples\": [",
           row, n_threads);
    for (uint32_t i = 0; i < n; i++)
        printf("%s%.2f", i ? ", " : "", samples[i]);
    printf("]}\n");
}

int main(int argc, char **argv) {
    uint32_t n_threads = argc == 4 ? (uint32_t)atoi(argv[2]) : 0;
    uint32_t n = argc == 4 ? (uint32_t)atoi(argv[3]) : 0;
    if (!n_threads || !n || n > REPETITIONS_MAX) {
        fprintf(stderr, "usage: bench_engine MODEL THREADS REPETITIONS\n");
        return 2;
    }
    static struct bench b;
    struct bt_error err = {0};
    const struct bt_engine_params params = {.model_path = argv[1],
                                            .n_threads = n_threads,
                                            .profile = BT_PROFILE_FAST,
                                            .n_pages = BATCH * SEQ_PAGES,
                                            .max_rows = PREFILL,
                                            .max_seqs = BATCH,
                                            .max_context = PREFILL + DECODE};
    if (bt_engine_create(&params, &b.engine, &err) < 0) {
        fprintf(stderr, "bench_engine: %s\n", err.text);
        return 1;
    }
    b.sampling = (struct bt_sampling){.top_p = 1, .repetition_penalty = 1, .max_tokens = DECODE};
    for (uint32_t i = 0; i < PREFILL; i++)
        b.tokens[i] = (int32_t)(100 + i * 37 % 40000);
    for (uint32_t i = 0; i < BATCH * SEQ_PAGES; i++)
        b.pages[i / SEQ_PAGES][i % SEQ_PAGES] = i;
    double prefill[REPETITIONS_MAX], decode[REPETITIONS_MAX], batch[REPETITIONS_MAX];
    for (uint32_t i = 0; i <= n; i++) { /* the first one warms up */
        uint32_t at = i ? i - 1 : 0;
        prefill[at] = time_prefill(&b);
        decode[at] = time_decode(&b, 1);
        batch[at] = time_decode(&b, BATCH);
    }
    print_row("prefill_512", n_threads, prefill, n);
    print_row("decode_d0", n_threads, decode, n);
    print_row("decode_16_seqs", n_threads, batch, n);
    bt_engine_destroy(b.engine);
    return 0;
}

/* Times one thread's attention over the paged cache: one row of a deep sequence, many shallow
 * sequences, a window, tiles of prefill. One JSON row of samples per line, in the form of
 * bench_engine.
 *
 * The cache comes from memory as in a step, where each layer's follows the layer before: decode
 * rows walk through layers until no cache of the processor holds them all. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels/kernels.h"
#include "tests/bench/bench.h"

enum {
    SAMPLES_MAX = 64,
    SAMPLE_US = 20000, /* each sample repeats the pass for at least so long */
    N_KV_HEADS = 3,    /* the shape of SmolLM2-135M */
    N_GROUP = 3,
    HEAD_DIM = 64,
    N_LAYERS = 30,
    PAGES_MAX = 4096 / BT_KERNELS_PAGE_TOKENS + 1, /* of one layer */
    ROWS_MAX = 64,
    Q_DIM = N_KV_HEADS * N_GROUP * HEAD_DIM,
};

static const struct row {
    const char *name;
    uint32_t n_seqs, position, n_rows, window;
    bool split; /* piece by piece, then merged */
} ROWS[] = {
    {"decode_d2048", 1, 2048, 1, 0, false},
    {"decode_d4096", 1, 4096, 1, 0, false},
    {"decode_d4096_pieces", 1, 4096, 1, 0, true},
    {"decode_d4096_window_1024", 1, 4096, 1, 1024, false},
    {"batch_16_d160", 16, 160, 1, 0, false},
    {"batch_16_d240", 16, 240, 1, 0, false},
    {"rows_4_d2048", 1, 2048, 4, 0, false},
    {"prefill_24_d0", 1, 0, 24, 0, false},
    {"prefill_24_d488", 1, 488, 24, 0, false},
    {"prefill_24_d2024", 1, 2024, 24, 0, false},
    {"prefill_24_d4000", 1, 4000, 24, 0, false},
};

static const struct cache {
    const char *name;
    enum bt_cache_type type;
} CACHES[] = {{"bf16", BT_CACHE_BF16}, {"int8", BT_CACHE_INT8}, {"f32", BT_CACHE_F32}};

#define COUNT(array) (int)(sizeof(array) / sizeof *(array))

struct bench {
    const struct bt_kernels *kernels;
    const struct cache *cache;
    uint8_t *memory; /* [layer][page] */
    size_t page_bytes;
    float *q, *out, *partials;
    bool cached;
};

static float pseudo_random(size_t i) {
    return (float)(int32_t)(uint32_t)(i * 2654435761u) * 0x1p-31f;
}

static void bench_init(struct bench *b, const struct bt_kernels *kernels,
                       const struct cache *cache) {
    *b = (struct bench){.kernels = kernels, .cache = cache};
    b->page_bytes = kernels->page_bytes(cache->type, N_KV_HEADS, HEAD_DIM);
    b->memory = bench_huge_bytes(N_LAYERS * PAGES_MAX * b->page_bytes);
    b->q = bench_huge_bytes(ROWS_MAX * Q_DIM * sizeof(float));
    b->out = bench_huge_bytes(ROWS_MAX * Q_DIM * sizeof(float));
    b->partials = bench_huge_bytes(PAGES_MAX * Q_DIM * 2 * sizeof(float));
    enum { STRIDE = N_KV_HEADS * HEAD_DIM };
    float k[BT_KERNELS_PAGE_TOKENS * STRIDE];
    for (size_t i = 0; i < ROWS_MAX * Q_DIM; i++)
        b->q[i] = pseudo_random(i);
    for (size_t page = 0; page < N_LAYERS * PAGES_MAX; page++) {
        for (size_t i = 0; i < BT_KERNELS_PAGE_TOKENS * STRIDE; i++)
            k[i] = pseudo_random(page * 77 + i);
        kernels->cache_write(&(struct bt_cache_write){.cache = cache->type,
                                                      .page = b->memory + page * b->page_bytes,
                                                      .n_tokens = BT_KERNELS_PAGE_TOKENS,
                                                      .n_kv_heads = N_KV_HEADS,
                                                      .head_dim = HEAD_DIM,
                                                      .k = k,
                                                      .v = k,
                                                      .stride = STRIDE});
    }
}

static void bench_fini(struct bench *b) {
    free(b->memory);
    free(b->q);
    free(b->out);
    free(b->partials);
}

static void attend(const struct bench *b, const struct row *row, const void *const *pages,
                   uint32_t kv_head) {
    struct bt_attention args = {.cache = b->cache->type,
                                .pages = pages,
                                .kv_head = kv_head,
                                .n_group = N_GROUP,
                                .head_dim = HEAD_DIM,
                                .position = row->position - (row->position % 16 == 0 &&
                                                             row->position > 0 && row->n_rows == 1),
                                .n_rows = row->n_rows,
                                .window = row->window,
                                .scale = 0.125f,
                                .q = b->q,
                                .q_stride = Q_DIM,
                                .out = b->out,
                                .out_stride = Q_DIM,
                                .partials_stride = N_GROUP * BT_KERNELS_PARTIAL_FLOATS(HEAD_DIM)};
    if (!row->split) {
        b->kernels->attention(&args);
        return;
    }
    uint32_t n = args.position / BT_KERNELS_PIECE_TOKENS + 1;
    for (uint32_t i = 0; i < n; i++) {
        args.piece_first = i;
        args.piece_end = i + 1;
        args.partials = b->partials + i * args.partials_stride;
        b->kernels->attention(&args);
    }
    args.piece_first = 0;
    args.piece_end = n;
    args.partials = b->partials;
    b->kernels->attention_merge(&args);
}

/* Every layer, sequence and kv head once. */
static void pass(const struct bench *b, const struct row *row) {
    const void *pages[PAGES_MAX];
    uint32_t n_pages = (row->position + row->n_rows - 1) / BT_KERNELS_PAGE_TOKENS + 1;
    for (uint32_t layer = 0; layer < N_LAYERS; layer++)
        for (uint32_t seq = 0; seq < row->n_seqs; seq++) {
            for (uint32_t i = 0; i < n_pages; i++) {
                size_t page =
                    (size_t)(b->cached ? 0 : layer) * PAGES_MAX + (seq * n_pages + i) % PAGES_MAX;
                pages[i] = b->memory + page * b->page_bytes;
            }
            for (uint32_t kv_head = 0; kv_head < N_KV_HEADS; kv_head++)
                attend(b, row, pages, kv_head);
        }
}

/* Nanoseconds of one call: one layer, sequence and kv head. */
static double measure(const struct bench *b, const struct row *row) {
    double start = bench_thread_s(), seconds;
    uint32_t n = 0;
    do {
        pass(b, row);
        n++;
        seconds = bench_thread_s() - start;
    } while (seconds < SAMPLE_US * 1e-6);
    return seconds * 1e9 / (n * N_LAYERS * row->n_seqs * N_KV_HEADS);
}

static void print_row(const struct bench *b, const struct row *row, const double *samples, int n) {
    printf("{\"row\": \"%s_%s\", \"engine\": \"%s\", \"threads\": 1, \"unit\": \"ns\", "
           "\"samples\": [",
           b->cache->name, row->name, b->kernels->name);
    for (int i = 0; i < n; i++)
        printf("%s%.0f", i ? ", " : "", samples[i]);
    printf("]}\n");
    fflush(stdout);
}

static int usage(void) {
    fprintf(stderr, "usage: bench_attention PATH REPETITIONS CACHE [cached] [ROW...]\n"
                    "PATH: portable, fma, avx2, avx512, or - for the fastest. Cache: bf16, int8 or "
                    "f32. Rows (all by default):");
    for (int i = 0; i < COUNT(ROWS); i++)
        fprintf(stderr, " %s", ROWS[i].name);
    fprintf(stderr, "\n");
    return 2;
}

int main(int argc, char **argv) {
    int n = argc >= 4 ? atoi(argv[2]) : 0, cache = 0;
    if (n < 1 || n > SAMPLES_MAX)
        return usage();
    while (cache < COUNT(CACHES) && strcmp(CACHES[cache].name, argv[3]) != 0)
        cache++;
    if (cache == COUNT(CACHES))
        return usage();
    char why[256];
    bt_kernels_thread_init();
    const struct bt_kernels *kernels =
        bt_kernels_find(strcmp(argv[1], "-") == 0 ? "" : argv[1], why, sizeof why);
    if (!kernels) {
        fprintf(stderr, "bench_attention: %s\n", why);
        return 1;
    }
    struct bench b;
    bench_init(&b, kernels, &CACHES[cache]);
    b.cached = argc > 4 && strcmp(argv[4], "cached") == 0;
    argv += b.cached;
    argc -= b.cached;
    for (int r = 0; r < COUNT(ROWS); r++) {
        double samples[SAMPLES_MAX];
        if (!bench_is_wanted(ROWS[r].name, argv + 4, argc - 4))
            continue;
        measure(&b, &ROWS[r]); /* warms up */
        for (int i = 0; i < n; i++)
            samples[i] = measure(&b, &ROWS[r]);
        print_row(&b, &ROWS[r], samples, n);
    }
    bench_fini(&b);
    return 0;
}

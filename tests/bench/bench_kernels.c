/* Times one thread's products (`linear`), pack by pack and shape by shape, beside this CPU's peaks.
 * One JSON row of samples per line, in the form of bench_engine.
 *
 * Weights come from memory as in a step, where each layer's follow the layer before: copies are
 * taken in turn until no cache holds them all. With the word `cached` one copy is used again and
 * again. */
#include <immintrin.h>
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
    SAMPLE_US = 4000, /* each sample repeats the call for at least so long */
    ROWS_MAX = 256,
    PEAK_STEPS = 1 << 20,
    N_SUMS = 12, /* independent chains: more than latency times two units */
};
static const size_t COLD_BYTES = (size_t)128 << 20; /* more than any cache of the last level */

static const struct format {
    const char *name;
    enum bt_pack pack;
    enum bt_tensor_type type;
} FORMATS[] = {
    {"q4_1", BT_PACK_Q4_1, BT_TENSOR_Q4_1},
    {"q4_0", BT_PACK_Q4_0, BT_TENSOR_Q4_0},
    {"q8_0", BT_PACK_Q8_0, BT_TENSOR_Q8_0},
    {"bf16", BT_PACK_BF16, BT_TENSOR_BF16},
};

static const struct shape {
    const char *name;
    uint32_t n_in, n_out;
} SHAPES[] = {
    {"576x1536", 576, 1536}, {"1536x576", 1536, 576}, {"576x960", 576, 960}, {"head", 576, 49152}};

static const uint32_t N_ROWS[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, ROWS_MAX};

#define COUNT(array) (int)(sizeof(array) / sizeof *(array))

/* ---- Peaks: operations of one instruction from registers, a multiplication and an addition each.
 */

__attribute__((target("avx512f,avx512vnni"))) static float int8_peak(void) {
    __m512i sums[N_SUMS], a = _mm512_set1_epi32(0x01020304);
    for (int i = 0; i < N_SUMS; i++)
        sums[i] = _mm512_set1_epi32(i);
    for (int step = 0; step < PEAK_STEPS; step++)
#pragma GCC unroll 12
        for (int i = 0; i < N_SUMS; i++)
            sums[i] = _mm512_dpbusd_epi32(sums[i], a, a);
    for (int i = 1; i < N_SUMS; i++)
        sums[0] = _mm512_xor_si512(sums[0], sums[i]);
    return (float)_mm512_reduce_add_epi32(sums[0]);
}

__attribute__((target("avx512f,avx512bf16"))) static float bf16_peak(void) {
    __m512 sums[N_SUMS];
    __m512i a = _mm512_set1_epi32(0x3f803f80);
    for (int i = 0; i < N_SUMS; i++)
        sums[i] = _mm512_set1_ps((float)i);
    for (int step = 0; step < PEAK_STEPS; step++)
#pragma GCC unroll 12
        for (int i = 0; i < N_SUMS; i++)
            sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)a, (__m512bh)a);
    for (int i = 1; i < N_SUMS; i++)
        sums[0] = _mm512_add_ps(sums[0], sums[i]);
    return _mm512_reduce_add_ps(sums[0]);
}

__attribute__((target("avx2,fma"))) static float f32_peak(void) {
    __m256 sums[N_SUMS], a = _mm256_set1_ps(1.0f);
    for (int i = 0; i < N_SUMS; i++)
        sums[i] = _mm256_set1_ps((float)i);
    for (int step = 0; step < PEAK_STEPS; step++)
#pragma GCC unroll 12
        for (int i = 0; i < N_SUMS; i++)
            sums[i] = _mm256_fmadd_ps(sums[i], a, a);
    for (int i = 1; i < N_SUMS; i++)
        sums[0] = _mm256_add_ps(sums[0], sums[i]);
    return _mm256_cvtss_f32(sums[0]);
}

static void print_row(const char *row, const char *engine, const char *unit, const double *samples,
                      int n) {
    printf("{\"row\": \"%s\", \"engine\": \"%s\", \"threads\": 1, \"unit\": \"%s\", \"samples\": [",
           row, engine, unit);
    for (int i = 0; i < n; i++)
        printf("%s%.2f", i ? ", " : "", samples[i]);
    printf("]}\n");
    fflush(stdout);
}

static void measure_peak(const char *name, float (*peak)(void), double ops, int n) {
    double samples[SAMPLES_MAX];
    volatile float sink = peak(); /* warms up */
    for (int i = 0; i < n; i++) {
        double start = bench_thread_s();
        sink = peak();
        samples[i] = ops * N_SUMS * PEAK_STEPS / (bench_thread_s() - start) / 1e9;
    }
    (void)sink;
    print_row(name, "cpu", "GOP/s", samples, n);
}

static void measure_peaks(int n) {
    if (__builtin_cpu_supports("avx512vnni"))
        measure_peak("peak_int8", int8_peak, 128, n);
    if (__builtin_cpu_supports("avx512bf16"))
        measure_peak("peak_bf16", bf16_peak, 64, n);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        measure_peak("peak_f32_256", f32_peak, 16, n);
}

/* ---- Products ---- */

struct layer {
    const struct bt_kernels *kernels;
    const struct format *format;
    const struct shape *shape;
    uint8_t *copies;
    size_t copy_bytes, n_copies, next;
    void *prepared;
    float *y;
};

/* Scales of 1/16 keep all sums finite; the quants are whatever the file would hold. */
static void fill_tensor(const struct format *format, uint8_t *tensor, size_t bytes) {
    size_t block = format->pack == BT_PACK_Q4_1 ? 20 : format->pack == BT_PACK_Q4_0 ? 18 : 34;
    for (size_t i = 0; i < bytes; i++)
        tensor[i] = (uint8_t)(i * 2654435761u >> 13);
    for (size_t i = 0; i < bytes; i += format->pack == BT_PACK_BF16 ? 2 : block) {
        tensor[i] = 0;
        tensor[i + 1] = 0x2c;
        if (format->pack == BT_PACK_Q4_1)
            memset(tensor + i + 2, 0x2a, 2);
    }
}

static void layer_init(struct layer *l, const struct bt_kernels *kernels, const struct format *f,
                       const struct shape *s, bool cached) {
    *l = (struct layer){.kernels = kernels, .format = f, .shape = s};
    size_t bytes = kernels->row_bytes(f->type, s->n_in) * s->n_out;
    uint8_t *tensor = bench_huge_bytes(bytes);
    fill_tensor(f, tensor, bytes);
    l->copy_bytes = kernels->packed_bytes(f->pack, s->n_out, s->n_in);
    l->n_copies = cached ? 1 : COLD_BYTES / l->copy_bytes + 1;
    l->copies = bench_huge_bytes(l->n_copies * l->copy_bytes);
    for (size_t i = 0; i < l->n_copies; i++)
        kernels->repack(f->pack, f->type, tensor, s->n_out, s->n_in, 0, s->n_out,
                        l->copies + i * l->copy_bytes);
    free(tensor);
    float *x = bench_huge_bytes((size_t)ROWS_MAX * s->n_in * sizeof *x);
    for (size_t i = 0; i < (size_t)ROWS_MAX * s->n_in; i++)
        x[i] = (float)(int32_t)(i * 2654435761u) * 0x1p-31f;
    enum bt_prepared form = kernels->prepared_for(f->pack);
    l->prepared = bench_huge_bytes(kernels->prepared_bytes(form, ROWS_MAX, s->n_in));
    kernels->prepare(form, x, s->n_in, 0, ROWS_MAX, s->n_in, l->prepared);
    free(x);
    l->y = bench_huge_bytes((size_t)ROWS_MAX * s->n_out * sizeof *l->y);
}

static void layer_fini(struct layer *l) {
    free(l->copies);
    free(l->prepared);
    free(l->y);
}

static void multiply(struct layer *l, uint32_t n_rows) {
    l->kernels->linear(&(struct bt_linear){.pack = l->format->pack,
                                           .weights = l->copies + l->next * l->copy_bytes,
                                           .n_in = l->shape->n_in,
                                           .n_out = l->shape->n_out,
                                           .x = l->prepared,
                                           .row_end = n_rows,
                                           .col_end = l->shape->n_out,
                                           .y = l->y,
                                           .y_stride = l->shape->n_out});
    l->next = (l->next + 1) % l->n_copies;
}

static void measure(struct layer *l, uint32_t n_rows, int n) {
    double ops[SAMPLES_MAX], bytes[SAMPLES_MAX];
    multiply(l, n_rows); /* warms up */
    for (int i = 0; i < n; i++) {
        double start = bench_thread_s(), end;
        int calls = 0;
        do {
            multiply(l, n_rows);
            calls++;
            end = bench_thread_s();
        } while (end - start < 1e-6 * SAMPLE_US);
        double s = (end - start) / calls;
        ops[i] = 2.0 * n_rows * l->shape->n_in * l->shape->n_out / s / 1e9;
        bytes[i] = (double)l->copy_bytes / s / 1e9;
    }
    char row[80];
    snprintf(row, sizeof row, "%s_%s_%u%s", l->format->name, l->shape->name, n_rows,
             l->n_copies == 1 ? "_cached" : "");
    print_row(row, l->kernels->name, "GOP/s", ops, n);
    snprintf(row, sizeof row, "%s_%s_%u%s_weights", l->format->name, l->shape->name, n_rows,
             l->n_copies == 1 ? "_cached" : "");
    print_row(row, l->kernels->name, "GB/s", bytes, n);
}

/* A pack, a shape or a number of rows is wanted if it is named, or if none of its kind is. */
static bool is_wanted(const char *name, const char *const *kind, int n_kind, char **words, int n) {
    bool any = false;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n_kind; j++)
            any |= strcmp(words[i], kind[j]) == 0;
    for (int i = 0; i < n; i++)
        if (strcmp(words[i], name) == 0)
            return true;
    return !any;
}

/* The names of each kind, to tell which a word belongs to. */
struct names {
    const char *formats[COUNT(FORMATS)], *shapes[COUNT(SHAPES)], *rows[COUNT(N_ROWS)];
    char row_text[COUNT(N_ROWS)][12];
};

static void list_names(struct names *names) {
    for (int i = 0; i < COUNT(FORMATS); i++)
        names->formats[i] = FORMATS[i].name;
    for (int i = 0; i < COUNT(SHAPES); i++)
        names->shapes[i] = SHAPES[i].name;
    for (int i = 0; i < COUNT(N_ROWS); i++) {
        snprintf(names->row_text[i], sizeof names->row_text[i], "%u", N_ROWS[i]);
        names->rows[i] = names->row_text[i];
    }
}

static int usage(void) {
    fprintf(stderr, "usage: bench_kernels PATH REPETITIONS [cached] [PACK...] [SHAPE...] "
                    "[ROWS...]\nPATH: a kernels path, or fastest. Packs: ");
    for (int i = 0; i < COUNT(FORMATS); i++)
        fprintf(stderr, " %s", FORMATS[i].name);
    fprintf(stderr, ". Shapes:");
    for (int i = 0; i < COUNT(SHAPES); i++)
        fprintf(stderr, " %s", SHAPES[i].name);
    fprintf(stderr, ". Rows:");
    for (int i = 0; i < COUNT(N_ROWS); i++)
        fprintf(stderr, " %u", N_ROWS[i]);
    fprintf(stderr, ".\n");
    return 2;
}

int main(int argc, char **argv) {
    int n = argc >= 3 ? atoi(argv[2]) : 0;
    if (n < 1 || n > SAMPLES_MAX)
        return usage();
    char why[256];
    const struct bt_kernels *kernels =
        bt_kernels_find(strcmp(argv[1], "fastest") == 0 ? NULL : argv[1], why, sizeof why);
    if (!kernels) {
        fprintf(stderr, "bench_kernels: %s\n", why);
        return 1;
    }
    bt_kernels_thread_init();
    static struct names names;
    list_names(&names);
    bool cached = false;
    for (int i = 3; i < argc; i++)
        cached |= strcmp(argv[i], "cached") == 0;
    measure_peaks(n);
    for (int f = 0; f < COUNT(FORMATS); f++)
        for (int s = 0; s < COUNT(SHAPES); s++) {
            if (!is_wanted(FORMATS[f].name, names.formats, COUNT(FORMATS), argv + 3, argc - 3) ||
                !is_wanted(SHAPES[s].name, names.shapes, COUNT(SHAPES), argv + 3, argc - 3))
                continue;
            struct layer l;
            layer_init(&l, kernels, &FORMATS[f], &SHAPES[s], cached);
            for (int r = 0; r < COUNT(N_ROWS); r++)
                if (is_wanted(names.rows[r], names.rows, COUNT(N_ROWS), argv + 3, argc - 3))
                    measure(&l, N_ROWS[r], n);
            layer_fini(&l);
        }
    return 0;
}

/* Measures what this machine can do at most: bytes read per second from memory, int8 and bf16
 * operations per second from registers. One JSON row of samples per line; null where the CPU lacks
 * the instruction.
 *
 * The engine bench runs it in each of its rounds and derives every row's limit from it
 * (limits.py). It uses nothing of Baton, so that no mistake of ours can move the bar. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum {
    THREADS_MAX = 64,
    SAMPLES_MAX = 64,
    READ_BYTES = 100 * 1000 * 1000, /* all threads together: the size of the bench's weights */
    READ_PASSES = 10,
    CHAINS = 12,                 /* independent accumulators: more than latency times width */
    PEAK_TURNS = 8 * 1000 * 1000 /* some 20 ms, so that waking a thread does not count */
};

/* A vector of 64 bytes; the compiler makes two or four registers of it where there are no 512-bit
 * ones. */
typedef uint64_t vector __attribute__((vector_size(64), aligned(64)));

/* One thread's work: what `run` needs, and when it ran. */
struct job {
    void (*run)(struct job *);
    pthread_barrier_t *start;
    const vector *memory;
    size_t n_vectors;
    int cpu;
    double began_s, ended_s;
    uint64_t sink; /* keeps the compiler from leaving the work out */
};

struct measure {
    const char *row, *unit;
    const char *by;            /* the instructions */
    void (*run)(struct job *); /* NULL: the CPU lacks them */
    double per_thread;         /* bytes or operations of a run; 0: its share of READ_BYTES */
};

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Eight sums, so that no read waits for another. */
#define READ_ALL(job)                                                                        \
    do {                                                                                     \
        vector a = {0}, b = a, c = a, d = a, e = a, f = a, g = a, h = a;                     \
        for (int pass = 0; pass < READ_PASSES; pass++)                                       \
            for (const vector *v = (job)->memory; v + 8 <= (job)->memory + (job)->n_vectors; \
                 v += 8) {                                                                   \
                a ^= v[0], b ^= v[1], c ^= v[2], d ^= v[3];                                  \
                e ^= v[4], f ^= v[5], g ^= v[6], h ^= v[7];                                  \
            }                                                                                \
        a ^= b ^ c ^ d ^ e ^ f ^ g ^ h;                                                      \
        for (int lane = 0; lane < 8; lane++)                                                 \
            (job)->sink ^= a[lane];                                                          \
    } while (0)

static void read_plain(struct job *job) {
    READ_ALL(job);
}

__attribute__((target("avx2"))) static void read_avx2(struct job *job) {
    READ_ALL(job);
}

__attribute__((target("avx512f"))) static void read_avx512(struct job *job) {
    READ_ALL(job);
}

/* What RUN_TURNS does to each of CHAINS accumulators; all operands stay in registers 0 to 14, and
 * all are zero: no product is slower than another on the CPUs that have these instructions. */
#define VPDPBUSD_512(chain) "vpdpbusd %%zmm13, %%zmm12, %%zmm" #chain "\n\t"
#define VPDPBUSD_VEX(chain) "%{vex%} vpdpbusd %%ymm13, %%ymm12, %%ymm" #chain "\n\t"
#define VPMADDUBSW_VPADDW(chain)               \
    "vpmaddubsw %%ymm13, %%ymm12, %%ymm14\n\t" \
    "vpaddw %%ymm14, %%ymm" #chain ", %%ymm" #chain "\n\t"
#define VDPBF16PS(chain) "vdpbf16ps %%zmm13, %%zmm12, %%zmm" #chain "\n\t"
#define VFMADD231PS(chain) "vfmadd231ps %%ymm13, %%ymm12, %%ymm" #chain "\n\t"
#define TURN(ONE) \
    ONE(0) ONE(1) ONE(2) ONE(3) ONE(4) ONE(5) ONE(6) ONE(7) ONE(8) ONE(9) ONE(10) ONE(11)
#define RUN_TURNS(ONE)                                                                             \
    do {                                                                                           \
        long turns = PEAK_TURNS;                                                                   \
        __asm__ volatile("vzeroall\n\t"                                                            \
                         ".p2align 6\n"                                                            \
                         "1:\n\t" TURN(ONE) "dec %0\n\t"                                           \
                                            "jnz 1b\n\t"                                           \
                                            "vzeroupper"                                           \
                         : "+r"(turns)                                                             \
                         :                                                                         \
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", \
                           "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "cc");    \
    } while (0)

static void int8_avx512(struct job *job) {
    (void)job;
    RUN_TURNS(VPDPBUSD_512);
}

static void int8_avx_vnni(struct job *job) {
    (void)job;
    RUN_TURNS(VPDPBUSD_VEX);
}

static void int8_avx2(struct job *job) {
    (void)job;
    RUN_TURNS(VPMADDUBSW_VPADDW);
}

static void bf16_avx512(struct job *job) {
    (void)job;
    RUN_TURNS(VDPBF16PS);
}

static void bf16_fma(struct job *job) {
    (void)job;
    RUN_TURNS(VFMADD231PS);
}

static bool has_avx_vnni(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) &&
           (a >> 4 & 1);
}

static struct measure read_measure(void) {
    struct measure m = {.row = "limit_read", .unit = "GB/s", .by = "loads", .run = read_plain};
    if (__builtin_cpu_supports("avx512f"))
        m.run = read_avx512;
    else if (__builtin_cpu_supports("avx2"))
        m.run = read_avx2;
    return m;
}

/* A product and a sum are two operations. Sums of 16 bits are enough for some products of bytes by
 * 4 bits: the most that AVX2 alone can do. */
static struct measure int8_measure(void) {
    struct measure m = {.row = "limit_int8", .unit = "GOP/s"};
    double products = 0; /* of a chain's turn */
    if (__builtin_cpu_supports("avx512vnni"))
        m.run = int8_avx512, m.by = "vpdpbusd, 512 bits", products = 64;
    else if (has_avx_vnni())
        m.run = int8_avx_vnni, m.by = "vpdpbusd, 256 bits", products = 32;
    else if (__builtin_cpu_supports("avx2"))
        m.run = int8_avx2, m.by = "vpmaddubsw and vpaddw, 256 bits", products = 32;
    m.per_thread = 2 * products * CHAINS * PEAK_TURNS;
    return m;
}

/* Without bf16 instructions it is widened, and multiplied as f32. */
static struct measure bf16_measure(void) {
    struct measure m = {.row = "limit_bf16", .unit = "GOP/s"};
    double products = 0;
    if (__builtin_cpu_supports("avx512bf16"))
        m.run = bf16_avx512, m.by = "vdpbf16ps, 512 bits", products = 32;
    else if (__builtin_cpu_supports("fma"))
        m.run = bf16_fma, m.by = "vfmadd231ps, 256 bits", products = 8;
    m.per_thread = 2 * products * CHAINS * PEAK_TURNS;
    return m;
}

static void *thread_main(void *arg) {
    struct job *job = arg;
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(job->cpu, &cpus);
    sched_setaffinity(0, sizeof cpus, &cpus);
    pthread_barrier_wait(job->start);
    job->began_s = now_s();
    job->run(job);
    job->ended_s = now_s();
    return NULL;
}

/* The i-th CPU that this process may use; counts round where there are fewer. */
static int nth_cpu(int i) {
    cpu_set_t allowed;
    sched_getaffinity(0, sizeof allowed, &allowed);
    i %= CPU_COUNT(&allowed);
    for (int cpu = 0;; cpu++)
        if (CPU_ISSET(cpu, &allowed) && i-- == 0)
            return cpu;
}

/* Seconds from the first thread's start to the last one's end. */
static double run_threads(const struct measure *m, const vector *memory, int n_threads) {
    static struct job jobs[THREADS_MAX];
    pthread_t threads[THREADS_MAX];
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, (unsigned)n_threads);
    size_t share = READ_BYTES / sizeof(vector) / (size_t)n_threads;
    for (int i = 0; i < n_threads; i++) {
        jobs[i] = (struct job){.run = m->run,
                               .start = &start,
                               .memory = memory + share * (size_t)i,
                               .n_vectors = share,
                               .cpu = nth_cpu(i)};
        if (pthread_create(&threads[i], NULL, thread_main, &jobs[i]) != 0) {
            fprintf(stderr, "machine_limits: thread %d of %d does not start\n", i + 1, n_threads);
            exit(1);
        }
    }
    double began = 1e300, ended = 0;
    for (int i = 0; i < n_threads; i++) {
        pthread_join(threads[i], NULL);
        began = jobs[i].began_s < began ? jobs[i].began_s : began;
        ended = jobs[i].ended_s > ended ? jobs[i].ended_s : ended;
    }
    pthread_barrier_destroy(&start);
    return ended - began;
}

static void print_samples(const struct measure *m, const vector *memory, int n_threads, int n) {
    printf("{\"row\": \"%s\", \"engine\": \"machine\", \"threads\": %d, \"unit\": \"%s\", "
           "\"by\": ",
           m->row, n_threads, m->unit);
    if (!m->run) {
        printf("null, \"samples\": null}\n");
        return;
    }
    printf("\"%s\", \"samples\": ", m->by);
    double work = m->per_thread > 0 ? m->per_thread * n_threads : (double)READ_BYTES * READ_PASSES;
    for (int i = 0; i < n; i++)
        printf("%s%.2f", i ? ", " : "[", work / run_threads(m, memory, n_threads) / 1e9);
    printf("]}\n");
}

int main(int argc, char **argv) {
    int n_samples = argc >= 3 ? atoi(argv[1]) : 0;
    if (n_samples < 1 || n_samples > SAMPLES_MAX) {
        fprintf(stderr, "usage: machine_limits SAMPLES THREADS...\n");
        return 2;
    }
    void *memory =
        mmap(NULL, READ_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("machine_limits: 100 MB");
        return 1;
    }
    madvise(memory, READ_BYTES, MADV_HUGEPAGE);
    memset(memory, 1, READ_BYTES);
    const struct measure measures[] = {read_measure(), int8_measure(), bf16_measure()};
    for (int t = 2; t < argc; t++) {
        int n_threads = atoi(argv[t]);
        if (n_threads < 1 || n_threads > THREADS_MAX) {
            fprintf(stderr, "machine_limits: threads are 1 to %d, not %s\n", THREADS_MAX, argv[t]);
            return 2;
        }
        for (size_t i = 0; i < sizeof measures / sizeof measures[0]; i++)
            print_samples(&measures[i], memory, n_threads, n_samples);
    }
    munmap(memory, READ_BYTES);
    return 0;
}

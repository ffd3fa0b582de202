/* build/sim: runs the cluster simulator over many seeds, or one seed with a readable trace. */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

enum { JOBS_MAX = 64 };

/* Shared with the processes that run seeds. */
struct shared {
    struct {
        uint64_t seed; /* being run */
        uint64_t n_done;
        bool failed;
        uint64_t failed_seed;
        char failure[512];
        struct sim_coverage coverage;
    } jobs[JOBS_MAX];
};

struct arguments {
    uint64_t first, count;
    uint32_t n_jobs;
    const char *replay;
    bool one, require_all, require_some, expect_failure, print_pairs;
};

static void print_help(void) {
    puts("Usage: sim [--seeds N] [--first N] [--jobs N] [--some | --all] [--expect-failure]\n"
         "       sim --seed N | --replay FILE\n\n"
         "Runs the shipped cores of routers and workers under a simulated clock and network, one\n"
         "schedule per seed, and checks the invariants after each event.\n\n"
         "  --seed N           replay one seed with a trace\n"
         "  --replay FILE      the seeds that FILE names, one at the start of each line\n"
         "  --seeds N          so many seeds (default 1000)\n"
         "  --first N          from this one on (default 1)\n"
         "  --jobs N           processes (default: one per CPU)\n"
         "  --some             fail unless every fault, end and handled state was reached\n"
         "  --all              the same, and every handled pair of state and event\n"
         "  --pairs            print how often each handled pair was met\n"
         "  --expect-failure   for planted defects: fail unless some seed fails");
}

static bool parse(int argc, char **argv, struct arguments *args) {
    *args = (struct arguments){.first = 1, .count = 1000};
    args->n_jobs = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        uint64_t value = i + 1 < argc ? strtoull(argv[i + 1], NULL, 10) : 0;
        if (!strcmp(word, "--some")) {
            args->require_some = true;
        } else if (!strcmp(word, "--all")) {
            args->require_some = args->require_all = true;
        } else if (!strcmp(word, "--pairs")) {
            args->print_pairs = true;
        } else if (!strcmp(word, "--expect-failure")) {
            args->expect_failure = true;
        } else if (i + 1 < argc && !strcmp(word, "--seed")) {
            args->one = true;
            args->first = value;
            i++;
        } else if (i + 1 < argc && !strcmp(word, "--replay")) {
            args->replay = argv[++i];
        } else if (i + 1 < argc && !strcmp(word, "--seeds")) {
            args->count = value;
            i++;
        } else if (i + 1 < argc && !strcmp(word, "--first")) {
            args->first = value;
            i++;
        } else if (i + 1 < argc && !strcmp(word, "--jobs")) {
            args->n_jobs = (uint32_t)value;
            i++;
        } else {
            return false;
        }
    }
    return args->n_jobs >= 1 && args->n_jobs <= JOBS_MAX;
}

static void run_job(struct shared *shared, const struct arguments *args, uint32_t job) {
    struct sim_options options = {.audit = true};
    /* The cores' large tables are mostly untouched: fresh zero pages are cheaper than cleared ones.
     */
    mallopt(M_MMAP_THRESHOLD, 256 << 10);
    for (uint64_t k = job; k < args->count; k += args->n_jobs) {
        uint64_t seed = args->first + k;
        shared->jobs[job].seed = seed;
        if (!sim_run(seed, &options, &shared->jobs[job].coverage, shared->jobs[job].failure)) {
            shared->jobs[job].failed = true;
            shared->jobs[job].failed_seed = seed;
            return;
        }
        shared->jobs[job].n_done++;
    }
}

static void add(struct sim_coverage *sum, const struct sim_coverage *one) {
    uint64_t *to = (uint64_t *)sum;
    const uint64_t *from = (const uint64_t *)one;
    for (size_t i = 0; i < sizeof *sum / sizeof *to; i++)
        to[i] += from[i];
}

/* ---- what was reached ---- */

struct pair {
    const char *machine, *state, *event;
    bool handled;
    uint64_t count;
};

/* Calls note for each pair of each machine. */
static void each_pair(const struct sim_coverage *all,
                      void (*note)(void *arg, const struct pair *pair), void *arg) {
    struct bt_pair_view view;
    for (uint32_t i = 0; i < 256 && bt_router_core_pair(i, &view); i++)
        note(arg, &(struct pair){view.machine, view.state, view.event, view.kind == BT_PAIR_HANDLED,
                                 all->pairs_router[i]});
    struct pair pair = {.machine = "prefill"};
    for (uint32_t i = 0; i < sim_n_pairs_prefill(); i++) {
        pair.handled = bt_prefill_core_pair(i, &pair.state, &pair.event);
        pair.count = all->pairs_prefill[i];
        note(arg, &pair);
    }
    pair.machine = "decode";
    for (uint32_t i = 0; i < sim_n_pairs_decode(); i++) {
        pair.handled = bt_decode_core_pair(i, &pair.state, &pair.event);
        pair.count = all->pairs_decode[i];
        note(arg, &pair);
    }
    pair.event = "";
    pair.machine = "kv_send";
    for (uint32_t i = 0; i < sim_n_pairs_send(); i++) {
        pair.state = bt_kv_send_pair_name(i, &pair.handled);
        pair.count = all->pairs_send[i];
        note(arg, &pair);
    }
    pair.machine = "kv_recv";
    for (uint32_t i = 0; i < sim_n_pairs_recv(); i++) {
        pair.state = bt_kv_recv_pair_name(i, &pair.handled);
        pair.count = all->pairs_recv[i];
        note(arg, &pair);
    }
}

enum { MACHINES = 6 };

struct pair_sum {
    struct {
        const char *name;
        uint32_t n_handled, n_reached;
    } machines[MACHINES];
    int n_machines;
    bool print_all;
    /* The state whose pairs come now. */
    const char *machine, *state;
    size_t state_length;
    bool state_handles, state_reached;
    uint32_t n_states_missed;
};

/* The names of kv_send's and kv_recv's pairs are "state + event". */
static size_t state_length(const char *state) {
    const char *end = strstr(state, " + ");
    return end ? (size_t)(end - state) : strlen(state);
}

static void leave_state(struct pair_sum *sum) {
    if (sum->state_handles && !sum->state_reached) {
        printf("  never in: %s: %.*s\n", sum->machine, (int)sum->state_length, sum->state);
        sum->n_states_missed++;
    }
    sum->state_handles = sum->state_reached = false;
}

static void note_state(struct pair_sum *sum, const struct pair *pair) {
    size_t length = state_length(pair->state);
    if (!sum->state || strcmp(sum->machine, pair->machine) != 0 || length != sum->state_length ||
        strncmp(sum->state, pair->state, length) != 0) {
        leave_state(sum);
        sum->machine = pair->machine;
        sum->state = pair->state;
        sum->state_length = length;
    }
    sum->state_handles |= pair->handled;
    sum->state_reached |= pair->handled && pair->count;
}

static void note_pair(void *arg, const struct pair *pair) {
    struct pair_sum *sum = arg;
    note_state(sum, pair);
    if (!pair->handled)
        return;
    int m = sum->n_machines - 1;
    if (m < 0 || strcmp(sum->machines[m].name, pair->machine) != 0) {
        m = sum->n_machines++;
        sum->machines[m].name = pair->machine;
    }
    sum->machines[m].n_handled++;
    sum->machines[m].n_reached += pair->count > 0;
    if (!pair->count)
        printf("  never: %s: %s %s\n", pair->machine, pair->state, pair->event);
    else if (sum->print_all)
        printf("  %8llu %s: %s %s\n", (unsigned long long)pair->count, pair->machine, pair->state,
               pair->event);
}

/* Prints what was reached of each machine. */
static void report_pairs(const struct sim_coverage *all, bool print_all, bool *every_state,
                         bool *every_pair) {
    struct pair_sum sum = {.print_all = print_all};
    puts("handled pairs of state and event:");
    each_pair(all, note_pair, &sum);
    leave_state(&sum);
    *every_state = !sum.n_states_missed;
    *every_pair = true;
    for (int m = 0; m < sum.n_machines; m++) {
        printf("  %-18s %u of %u\n", sum.machines[m].name, sum.machines[m].n_reached,
               sum.machines[m].n_handled);
        *every_pair &= sum.machines[m].n_reached == sum.machines[m].n_handled;
    }
}

static bool report(const struct sim_coverage *all, const struct arguments *args) {
    static const char *const ends[BT_END_COUNT] = {"",          "done",    "handed",    "full",
                                                   "preempted", "link",    "peer gone", "refused",
                                                   "checksum",  "unknown", "deadline",  "nonfinite",
                                                   "draining",  "invalid", "internal"};
    bool ok = true;
    printf("requests %llu: ok %llu, cancelled %llu, failed %llu, refused %llu, router lost %llu\n",
           (unsigned long long)all->n_requests, (unsigned long long)all->n_ok,
           (unsigned long long)all->n_cancelled, (unsigned long long)all->n_failed,
           (unsigned long long)all->n_refused, (unsigned long long)all->n_lost);
    printf("tokens %llu, hand-offs %llu, preempted %llu, resumed %llu, pages from the prefix %llu, "
           "choices "
           "placed where their prompt is %llu, logprobs %llu, scores %llu\n",
           (unsigned long long)all->n_tokens, (unsigned long long)all->n_committed,
           (unsigned long long)all->n_preempted, (unsigned long long)all->n_resumed,
           (unsigned long long)all->n_pinned, (unsigned long long)all->n_choices,
           (unsigned long long)all->n_logprobs, (unsigned long long)all->n_scores);
    puts("sometimes:");
    for (int f = 0; f < SIM_FAULT_COUNT; f++) {
        printf("  %-18s %llu\n", sim_fault_name((enum sim_fault)f),
               (unsigned long long)all->faults[f]);
        ok = ok && all->faults[f];
    }
    puts("ends told by workers:");
    for (int e = 1; e < BT_END_COUNT; e++) {
        printf("  %-18s %llu\n", ends[e], (unsigned long long)all->ends[e]);
        /* No core says INTERNAL: it is what the router makes of an end that it does not know. */
        ok = ok && (all->ends[e] || e == BT_END_INTERNAL);
    }
    bool every_state, every_pair;
    report_pairs(all, args->print_pairs, &every_state, &every_pair);
    ok = ok && every_state && (every_pair || !args->require_all);
    return ok || !args->require_some;
}

static bool run_seeds(struct shared *shared, const struct arguments *args, uint64_t *n_done) {
    fflush(stdout);
    pid_t children[JOBS_MAX];
    for (uint32_t job = 0; job < args->n_jobs; job++) {
        children[job] = fork();
        if (children[job] == 0) {
            run_job(shared, args, job);
            fflush(stdout);
            _exit(0);
        }
    }
    bool ok = true;
    *n_done = 0;
    for (uint32_t job = 0; job < args->n_jobs; job++) {
        int status = 0;
        waitpid(children[job], &status, 0);
        *n_done += shared->jobs[job].n_done;
        if (!WIFEXITED(status) || WEXITSTATUS(status)) {
            printf("seed %llu: an assertion failed\n", (unsigned long long)shared->jobs[job].seed);
            ok = false;
        } else if (shared->jobs[job].failed) {
            printf("seed %llu: %s\n", (unsigned long long)shared->jobs[job].failed_seed,
                   shared->jobs[job].failure);
            ok = false;
        }
    }
    return ok;
}

/* Seeds that once failed, with a word on what it was. */
static bool replay(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) {
        printf("%s cannot be read\n", path);
        return false;
    }
    char line[512], failure[512];
    bool ok = true;
    uint32_t n = 0;
    struct sim_coverage coverage = {0};
    while (fgets(line, sizeof line, file)) {
        char *end;
        uint64_t seed = strtoull(line, &end, 10);
        if (end == line)
            continue;
        n++;
        if (!sim_run(seed, &(struct sim_options){.audit = true}, &coverage, failure)) {
            printf("seed %llu: %s\n", (unsigned long long)seed, failure);
            ok = false;
        }
    }
    fclose(file);
    printf("%u seeds of %s %s\n", n, path, ok ? "ok" : "FAILED");
    return ok && n;
}

int main(int argc, char **argv) {
    struct arguments args;
    if (!parse(argc, argv, &args)) {
        print_help();
        return argc == 2 && !strcmp(argv[1], "--help") ? 0 : 2;
    }
    if (args.one) {
        struct sim_coverage coverage = {0};
        char failure[512];
        bool ok = sim_run(args.first, &(struct sim_options){.trace = true, .audit = true},
                          &coverage, failure);
        printf("seed %llu: %s\n", (unsigned long long)args.first, ok ? "ok" : failure);
        return ok ? 0 : 1;
    }
    if (args.replay)
        return replay(args.replay) ? 0 : 1;
    struct shared *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return 2;
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    uint64_t n_done;
    bool ok = run_seeds(shared, &args, &n_done);
    clock_gettime(CLOCK_MONOTONIC, &end);
    double seconds =
        (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
    if (args.expect_failure) {
        printf("%llu seeds passed before one failed: the planted defect is %s\n",
               (unsigned long long)n_done, ok ? "NOT caught" : "caught");
        return ok ? 1 : 0;
    }
    struct sim_coverage all = {0};
    for (uint32_t job = 0; job < args.n_jobs; job++)
        add(&all, &shared->jobs[job].coverage);
    bool reached = report(&all, &args);
    printf("%llu seeds %s in %.1f s, %.0f a second\n", (unsigned long long)n_done,
           ok && reached ? "ok"
           : ok          ? "ok, but not everything was reached"
                         : "FAILED",
           seconds, (double)n_done / seconds);
    return ok && reached ? 0 : 1;
}

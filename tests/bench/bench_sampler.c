/* Times the choice of a token in every way that a request may ask for: one JSON row of samples per
 * line, milliseconds per token on one thread.
 *
 *   bench_sampler [REPETITIONS] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/engine/sampler.h"

enum { VOCAB = 49152, TOKENS = 40, REPETITIONS_MAX = 100 };

struct way {
    const char *row;
    struct bt_sampling how;
};

/* Logits as a language model gives them: most of a bell, some far above. */
static void make_logits(float *logits, uint32_t salt) {
    const uint32_t key[2] = {salt, 1};
    for (uint32_t i = 0; i < VOCAB; i++) {
        const uint32_t counter[4] = {i, 0, 0, 0};
        uint32_t random[4];
        bt_philox(counter, key, random);
        double u = (random[0] + 1.0) / 4294967297.0, angle = random[1] / 4294967296.0 * 6.283185307;
        logits[i] = (float)(2.5 * sqrt(-2 * log(u)) * cos(angle));
        if (random[2] % 4096 == 0)
            logits[i] += 8;
    }
}

static double time_way(struct bt_sampler *sampler, const struct bt_sampling *how,
                       const float *logits, uint64_t *check) {
    uint64_t start_us = bt_clock_us();
    for (uint32_t i = 0; i < TOKENS; i++) {
        const struct bt_step_seq seq = {.n_rows = 1, .sample = true, .index = i, .sampling = how};
        struct bt_step_result result = bt_sampler_sample(sampler, &seq, logits + i % 4 * VOCAB);
        *check = *check * 31 + (uint32_t)result.token;
    }
    return (double)(bt_clock_us() - start_us) / 1e3 / TOKENS;
}

int main(int argc, char **argv) {
    int repetitions = argc > 1 ? atoi(argv[1]) : 5;
    if (repetitions < 1 || repetitions > REPETITIONS_MAX) {
        fprintf(stderr, "bench_sampler: %d repetitions asked for, 1 to %d are possible\n",
                repetitions, REPETITIONS_MAX);
        return 1;
    }
    const struct bt_sampling plain = {.top_p = 1, .repetition_penalty = 1, .seed = 7};
    struct way ways[] = {{"sample_greedy", plain},      {"sample_t1", plain},
                         {"sample_top_k_40", plain},    {"sample_top_p_90", plain},
                         {"sample_top_p_99_t2", plain}, {"sample_min_p", plain},
                         {"sample_k_and_p", plain},     {"sample_t1_logprobs", plain}};
    enum { WAYS = sizeof ways / sizeof *ways };
    for (int i = 1; i < WAYS; i++)
        ways[i].how.temperature = 1;
    ways[2].how.top_k = ways[6].how.top_k = 40;
    ways[3].how.top_p = ways[6].how.top_p = 0.9f;
    ways[4].how.top_p = 0.99f;
    ways[4].how.temperature = 2;
    ways[5].how.min_p = 0.05f;
    ways[7].how.logprobs = 6;
    char why[256];
    bt_kernels_thread_init();
    const struct bt_kernels *kernels = bt_kernels_find(NULL, why, sizeof why);
    float *logits = malloc(4 * VOCAB * sizeof *logits);
    static const int32_t eos[] = {2};
    struct bt_sampler sampler;
    struct bt_error err;
    if (!kernels || !logits || bt_sampler_init(&sampler, kernels, VOCAB, eos, 1, &err) < 0) {
        fprintf(stderr, "bench_sampler: no kernels or no memory\n");
        return 1;
    }
    for (uint32_t i = 0; i < 4; i++)
        make_logits(logits + i * VOCAB, i);
    for (int w = 0; w < WAYS; w++) {
        uint64_t check = 0;
        time_way(&sampler, &ways[w].how, logits, &check);
        printf("{\"row\": \"%s\", \"engine\": \"baton\", \"threads\": 1, \"unit\": \"ms\", "
               "\"samples\": [",
               ways[w].row);
        for (int r = 0; r < repetitions; r++)
            printf("%s%.4f", r ? ", " : "", time_way(&sampler, &ways[w].how, logits, &check));
        printf("], \"tokens_hash\": \"%016llx\"}\n", (unsigned long long)check);
    }
    bt_sampler_fini(&sampler);
    free(logits);
    return 0;
}

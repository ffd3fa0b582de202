/* Sampler: the generator's known answers, each rule against a plain one that sorts, and what stays
 * the same. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <xxhash.h>

#include "common/engine/logprobs.h"
#include "common/engine/sampler.h"

enum { N = 200, N_LARGE = 49152 };

static const int32_t eos[] = {2, 5};
static struct bt_sampler sampler;

static int open_sampler(void **state) {
    (void)state;
    char why[256];
    bt_kernels_thread_init();
    const struct bt_kernels *kernels = bt_kernels_find(NULL, why, sizeof why);
    assert_non_null(kernels);
    return bt_sampler_init(&sampler, kernels, N, eos, 2, NULL);
}

static int close_sampler(void **state) {
    (void)state;
    bt_sampler_fini(&sampler);
    bt_sampler_fini(&sampler); /* a zeroed one is accepted */
    return 0;
}

static void test_philox_known_answers(void **state) {
    (void)state;
    /* kat_vectors of Random123 1.14, philox4x32 with 10 rounds. */
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint32_t out[4];
        bt_philox(known[i].counter, known[i].key, out);
        assert_memory_equal(out, known[i].out, sizeof out);
    }
}

/* ---- A plain sampler: sorts everything ---- */

static float plain_values[N_LARGE];
static uint32_t plain_ids[N_LARGE];

static int by_value(const void *a, const void *b) {
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    if (plain_values[i] != plain_values[j])
        return plain_values[i] > plain_values[j] ? -1 : 1;
    return i < j ? -1 : i > j;
}

static int by_id(const void *a, const void *b) {
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    return i < j ? -1 : i > j;
}

static double plain_sum(const uint32_t *ids, uint32_t n) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)plain_values[ids[i]];
    return sum;
}

static void plain_penalties(const struct bt_step_seq *seq, uint32_t n_vocab) {
    const struct bt_sampling *how = seq->sampling;
    for (uint32_t id = 0; id < n_vocab; id++) {
        uint32_t before = 0, generated = 0;
        for (uint32_t i = 0; i < seq->n_history; i++) {
            before += seq->history[i] == (int32_t)id;
            generated += i >= seq->n_prompt && seq->history[i] == (int32_t)id;
        }
        float v = plain_values[id];
        if (before && how->repetition_penalty != 1)
            v = v > 0 ? v / how->repetition_penalty : v * how->repetition_penalty;
        if (generated)
            v = v - (float)generated * how->frequency_penalty - how->presence_penalty;
        plain_values[id] = v;
    }
}

static int32_t plain_sample(const struct bt_step_seq *seq, const float *logits, uint32_t n_vocab) {
    const struct bt_sampling *how = seq->sampling;
    memcpy(plain_values, logits, n_vocab * sizeof *logits);
    static bool masked[N_LARGE];
    memset(masked, 0, sizeof masked);
    for (uint32_t i = 0; seq->index < how->min_tokens && i < 2; i++)
        masked[eos[i]] = true;
    for (uint32_t i = 0; seq->index < how->min_tokens && i < how->n_stop_tokens; i++)
        masked[how->stop_tokens[i]] = true;
    for (uint32_t i = 0; i < how->n_bias; i++)
        plain_values[how->bias[i].token] += how->bias[i].bias;
    plain_penalties(seq, n_vocab);
    uint32_t *ids = plain_ids, n = 0;
    float highest = -INFINITY;
    for (uint32_t id = 0; id < n_vocab; id++)
        if (!masked[id]) {
            ids[n++] = id;
            highest = fmaxf(highest, plain_values[id]);
        }
    if (how->temperature == 0) {
        qsort(ids, n, sizeof *ids, by_value);
        return (int32_t)ids[0];
    }
    for (uint32_t id = 0; id < n_vocab; id++)
        plain_values[id] /= how->temperature;
    sampler.kernels->exp(plain_values, highest / how->temperature, n_vocab, plain_values);
    qsort(ids, n, sizeof *ids, by_value);
    float floor = how->min_p * plain_values[ids[0]];
    while (plain_values[ids[n - 1]] < floor)
        n--;
    if (how->top_k > 0 && (uint32_t)how->top_k < n)
        n = (uint32_t)how->top_k;
    if (how->top_p < 1) {
        uint32_t kept = 0;
        double mass = 0;
        qsort(ids, n, sizeof *ids, by_id);
        double enough = (double)how->top_p * plain_sum(ids, n);
        qsort(ids, n, sizeof *ids, by_value);
        while (kept < n && (kept == 0 || mass < enough))
            mass += (double)plain_values[ids[kept++]];
        n = kept;
    }
    qsort(ids, n, sizeof *ids, by_id);
    const uint32_t counter[4] = {seq->index, 0, 0, 0};
    const uint32_t key[2] = {(uint32_t)how->seed, (uint32_t)(how->seed >> 32)};
    uint32_t random[4];
    bt_philox(counter, key, random);
    double reach = (double)(random[0] >> 8) / 16777216.0 * plain_sum(ids, n), mass = 0;
    for (uint32_t i = 0; i < n; i++)
        if ((mass += (double)plain_values[ids[i]]) >= reach)
            return (int32_t)ids[i];
    fail_msg("the plain sampler found no token");
    return -1;
}

static uint32_t random_state = 1;

static uint32_t next_random(uint32_t below) {
    random_state = random_state * 1664525u + 1013904223u;
    return (random_state >> 8) % below;
}

/* Quarters, so that ties are common. */
static void random_logits(float logits[N]) {
    for (uint32_t i = 0; i < N; i++)
        logits[i] = (float)next_random(80) * 0.25f - 10;
}

static struct bt_logit_bias random_bias[2];

static struct bt_sampling random_sampling(void) {
    static const float temperatures[] = {0, 0.3f, 1, 2}, top_ps[] = {1, 0.9f, 0.5f, 0.01f};
    static const float min_ps[] = {0, 0.05f, 0.5f, 1}, penalties[] = {0, 0.5f, -0.5f, 2};
    static const float repetitions[] = {1, 1.3f, 0.8f};
    static const int32_t top_ks[] = {0, 1, 5, 50, 1000};
    for (int32_t i = 0; i < 2; i++)
        random_bias[i] = (struct bt_logit_bias){(int32_t)next_random(100) + 100 * i,
                                                (float)next_random(800) * 0.25f - 100};
    return (struct bt_sampling){
        .temperature = temperatures[next_random(4)],
        .top_p = top_ps[next_random(4)],
        .min_p = min_ps[next_random(4)],
        .top_k = top_ks[next_random(5)],
        .frequency_penalty = penalties[next_random(4)],
        .presence_penalty = penalties[next_random(4)],
        .repetition_penalty = repetitions[next_random(3)],
        .seed = (uint64_t)next_random(1 << 24) << 32 | next_random(1 << 24),
        .max_tokens = 100,
        .min_tokens = next_random(4),
        .ignore_eos = next_random(2),
        .n_stop_tokens = (uint8_t)next_random(3),
        .stop_tokens = {17, 99},
        .n_bias = (uint16_t)next_random(3),
        .bias = random_bias,
        .logprobs = (uint8_t)next_random(3),
    };
}

static void test_each_rule_equals_the_plain_one(void **state) {
    (void)state;
    float logits[N], copy[N];
    int32_t history[40];
    uint32_t n_other = 0;
    for (uint32_t round = 0; round < 20000; round++) {
        random_logits(logits);
        memcpy(copy, logits, sizeof copy);
        struct bt_sampling how = random_sampling();
        for (uint32_t i = 0; i < 40; i++)
            history[i] = (int32_t)next_random(N);
        uint32_t n_history = 1 + next_random(40);
        struct bt_step_seq seq = {.sample = true,
                                  .index = next_random(6),
                                  .sampling = &how,
                                  .history = history,
                                  .n_history = n_history,
                                  .n_prompt = next_random(n_history + 1)};
        struct bt_step_result result = bt_sampler_sample(&sampler, &seq, logits);
        assert_int_equal(result.token, plain_sample(&seq, logits, N));
        assert_memory_equal(copy, logits, sizeof copy);
        bool is_end = !how.ignore_eos && (result.token == 2 || result.token == 5);
        for (uint32_t i = 0; i < how.n_stop_tokens; i++)
            is_end |= result.token == how.stop_tokens[i];
        assert_int_equal(result.finish, is_end ? BT_FINISH_STOP : BT_FINISH_NONE);
        if (seq.index < how.min_tokens)
            assert_false(is_end && !how.ignore_eos);
        struct bt_logprobs expected = {0};
        if (how.logprobs)
            bt_logprobs_make(sampler.kernels, logits, N, result.token, how.logprobs - 1u,
                             &expected);
        assert_memory_equal(&result.logprobs, &expected, sizeof expected);
        n_other += result.token != (int32_t)sampler.kernels->argmax(logits, N);
    }
    assert_true(n_other > 5000); /* the rules do something */
}

/* ---- A vocabulary of a real size, whose masses are sums of many terms ---- */

static float large_logits[N_LARGE];

/* Of few values, so that bounds fall into long ties; of many; or one far above the rest. */
static void make_large(uint32_t shape) {
    for (uint32_t i = 0; i < N_LARGE; i++) {
        float bell = 0;
        for (int k = 0; k < 6; k++)
            bell += (float)next_random(4096) / 1024.0f - 2;
        large_logits[i] = shape == 0   ? (float)next_random(3)
                          : shape == 1 ? bell
                                       : bell / 64 - (i == 777 ? 0 : 12);
    }
}

static void check_large(struct bt_sampler *large, struct bt_sampling how) {
    for (uint32_t index = 0; index < 2; index++) {
        struct bt_step_seq seq = {.sample = true, .index = index, .sampling = &how};
        int32_t token = bt_sampler_sample(large, &seq, large_logits).token;
        int32_t expected = plain_sample(&seq, large_logits, N_LARGE);
        if (token != expected)
            fail_msg("token %d, expected %d: temperature %g, top_k %d, top_p %.9g, min_p %g", token,
                     expected, (double)how.temperature, how.top_k, (double)how.top_p,
                     (double)how.min_p);
    }
}

static void test_a_large_vocabulary_equals_the_plain_one(void **state) {
    (void)state;
    static const float top_ps[] = {1, 0.99f, 0.9f, 0.5f, 1e-6f, 0.99999994f};
    static const int32_t top_ks[] = {0, 1, 40, 20000, N_LARGE - 1, N_LARGE + 1};
    static const float temperatures[] = {0.3f, 1, 2}, min_ps[] = {0, 0.01f};
    struct bt_sampler large;
    assert_int_equal(bt_sampler_init(&large, sampler.kernels, N_LARGE, eos, 2, NULL), BT_OK);
    for (uint32_t round = 0; round < 108; round++) {
        make_large(round % 3);
        struct bt_sampling how = {.temperature = temperatures[round / 3 % 3],
                                  .top_p = top_ps[round % 6],
                                  .top_k = top_ks[round / 6 % 6],
                                  .min_p = min_ps[round / 36 % 2],
                                  .repetition_penalty = 1,
                                  .max_tokens = 1,
                                  .seed = round * 0x9e3779b97f4a7c15u};
        check_large(&large, how);
    }
    bt_sampler_fini(&large);
}

/* All masses are powers of two, so that the bound of top_p is met exactly: the id that meets it is
 * in, the next one is not. */
static void test_a_mass_that_is_met_exactly(void **state) {
    (void)state;
    struct bt_sampler even;
    enum { EVEN = 256 };
    assert_int_equal(bt_sampler_init(&even, sampler.kernels, EVEN, eos, 2, NULL), BT_OK);
    float logits[EVEN] = {0};
    uint32_t highest = 0;
    for (uint32_t index = 0; index < 20000; index++) {
        struct bt_sampling how = {.temperature = 1, .top_p = 0.25f, .repetition_penalty = 1};
        struct bt_step_seq seq = {.sample = true, .index = index, .sampling = &how};
        uint32_t token = (uint32_t)bt_sampler_sample(&even, &seq, logits).token;
        highest = token > highest ? token : highest;
    }
    assert_int_equal(highest, EVEN / 4 - 1);
    bt_sampler_fini(&even);
}

static const struct bt_sampling plain = {
    .temperature = 1, .top_p = 1, .repetition_penalty = 1, .max_tokens = 1, .seed = 7};

static void test_draws_follow_the_distribution(void **state) {
    (void)state;
    float logits[N];
    for (uint32_t i = 0; i < N; i++)
        logits[i] = -60;
    logits[10] = 0;
    logits[20] = logf(3);
    uint32_t n_20 = 0, n_other = 0;
    for (uint32_t index = 0; index < 40000; index++) {
        struct bt_step_seq seq = {.sample = true, .index = index, .sampling = &plain};
        int32_t token = bt_sampler_sample(&sampler, &seq, logits).token;
        n_20 += token == 20;
        n_other += token != 10 && token != 20;
    }
    assert_int_equal(n_other, 0);
    /* 30,000 expected, standard deviation 87 */
    assert_in_range(n_20, 30000 - 400, 30000 + 400);
}

static void test_a_draw_depends_on_seed_and_index_only(void **state) {
    (void)state;
    float logits[N];
    random_logits(logits);
    int32_t first[64];
    uint32_t n_same = 0;
    for (uint32_t i = 0; i < 64; i++) {
        struct bt_step_seq seq = {.sample = true, .index = i, .sampling = &plain};
        first[i] = bt_sampler_sample(&sampler, &seq, logits).token;
    }
    struct bt_sampling other = plain;
    other.seed = 8ull << 32 | 7;
    for (uint32_t i = 64; i-- > 0;) {
        struct bt_step_seq seq = {.seq = 9, .position = 5, .sample = true, .index = i};
        seq.sampling = &plain;
        assert_int_equal(bt_sampler_sample(&sampler, &seq, logits).token, first[i]);
        seq.sampling = &other;
        n_same += bt_sampler_sample(&sampler, &seq, logits).token == first[i];
    }
    assert_true(n_same < 40);
}

static void test_non_finite_logits_fail_the_sequence(void **state) {
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    float logits[N];
    for (size_t i = 0; i < 3; i++) {
        random_logits(logits);
        logits[N - 1 - i] = bad[i];
        struct bt_sampling how = plain;
        how.want_hash = true;
        struct bt_step_seq seq = {.sample = true, .sampling = &how};
        struct bt_step_result result = bt_sampler_sample(&sampler, &seq, logits);
        assert_int_equal(result.token, -1);
        assert_int_equal(result.finish, BT_FINISH_ERROR);
        assert_true(result.hash == XXH3_64bits(logits, sizeof logits));
    }
}

static void test_bias_decides_and_leaves_the_raw_row(void **state) {
    (void)state;
    float logits[N];
    random_logits(logits);
    const struct bt_logit_bias bias[] = {{3, -100}, {150, 100}};
    struct bt_sampling how = plain;
    how.n_bias = 2, how.bias = bias;
    how.logprobs = 1, how.want_hash = true;
    for (uint32_t i = 0; i < 2; i++) {
        how.temperature = (float)i;
        struct bt_step_seq seq = {.sample = true, .index = i, .sampling = &how};
        struct bt_step_result result = bt_sampler_sample(&sampler, &seq, logits);
        struct bt_logprobs raw;
        bt_logprobs_make(sampler.kernels, logits, N, 150, 0, &raw);
        assert_int_equal(result.token, 150);
        assert_true(result.logprobs.logprob == raw.logprob);
        assert_true(result.hash == XXH3_64bits(logits, sizeof logits));
    }
    /* A bias of -100 is a ban. */
    for (uint32_t i = 0; i < N; i++)
        logits[i] = i == 3 ? 40 : 0;
    for (uint32_t i = 0; i < 200; i++) {
        struct bt_step_seq seq = {.sample = true, .index = i, .sampling = &how};
        how.n_bias = 1;
        assert_int_not_equal(bt_sampler_sample(&sampler, &seq, logits).token, 3);
    }
}

static void test_the_hash_is_of_the_raw_row(void **state) {
    (void)state;
    float logits[N];
    random_logits(logits);
    struct bt_sampling how = plain;
    how.temperature = 0.5f;
    how.frequency_penalty = 1;
    const int32_t history[] = {1, 2, 3};
    struct bt_step_seq seq = {.sample = true, .sampling = &how, .history = history, .n_history = 3};
    assert_true(bt_sampler_sample(&sampler, &seq, logits).hash == 0);
    how.want_hash = true;
    assert_true(bt_sampler_sample(&sampler, &seq, logits).hash ==
                XXH3_64bits(logits, sizeof logits));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_each_rule_equals_the_plain_one),
        cmocka_unit_test(test_a_large_vocabulary_equals_the_plain_one),
        cmocka_unit_test(test_a_mass_that_is_met_exactly),
        cmocka_unit_test(test_draws_follow_the_distribution),
        cmocka_unit_test(test_a_draw_depends_on_seed_and_index_only),
        cmocka_unit_test(test_non_finite_logits_fail_the_sequence),
        cmocka_unit_test(test_bias_decides_and_leaves_the_raw_row),
        cmocka_unit_test(test_the_hash_is_of_the_raw_row),
    };
    return cmocka_run_group_tests(tests, open_sampler, close_sampler);
}

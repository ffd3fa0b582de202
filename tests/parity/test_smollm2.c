/* SmolLM2-135M-Instruct Q4_1 against an independent fp32 reference: every prompt position, 64
 * greedy tokens each, and how far profile fast strays (mean KL), beside llama.cpp's own arithmetic.
 *
 * Prompts of more than 300 tokens run only with BATON_TEST_LONG=1. */
#include "tests/parity/model_run.h"

#include <math.h>

#include "common/engine/logprobs.h"

enum { CHUNK = RUN_SEQS, N_VOCAB = 49152, N_GREEDY = 64, SHORT_TOKENS_MAX = 300 };

/* Mean KL to fp32 over every position of the prompts up to 300 tokens in llama.cpp's arithmetic
 * (int8 activations per 32, f16 cache), measured by the reference in the same way. */
static const double KL_LLAMA_CPP = 0.0041;

/* Above these margins the argmax must be the reference's. Activations of 8 bits lose 0.46 in
 * llama.cpp. In the prompt "long", position 605 stands on an edge: noise of one ulp in the
 * activations moves its lead between 0.2 and 0.8 in a numpy model of this arithmetic, and here it
 * loses 0.544. */
static const double EXACT_MARGIN = 2e-3, FAST_MARGIN = 0.5, FAST_MARGIN_LONG = 0.6;

struct profile_stats {
    const char *name;
    double worst_top, worst_logit;
    uint32_t n_positions, n_wrong, n_steps, n_steps_wrong;
    double lost_margin; /* the largest that an argmax was lost against */
    /* How far logprobs are off: of prompt tokens, and of the five likeliest of greedy steps. */
    double worst_score, sum_score, worst_greedy, sum_greedy;
    uint32_t n_scores, n_greedy;
};

struct check {
    struct model_run exact, fast;
    json_t *golden;
    struct tensor_file last_logits;
    struct profile_stats exact_stats, fast_stats;
    double kl_sum, kl_sum_long;
    uint32_t n_kl, n_kl_long; /* positions */
};

static struct check check;
static char model_path[4096];

static int open_models(void **state) {
    (void)state;
    if (!find_smollm2(model_path))
        return 0;
    struct run_options options = {
        .path = model_path, .profile = BT_PROFILE_EXACT, .max_context = 2048, .n_pages = 128};
    run_open(&check.exact, &options);
    options.profile = BT_PROFILE_FAST;
    run_open(&check.fast, &options);
    check.golden = open_json(BT_FIXTURES "/smollm2/golden.json");
    check.last_logits = open_tensor_file(BT_FIXTURES "/smollm2/last_logits.safetensors");
    check.exact_stats.name = "exact";
    check.fast_stats.name = "fast";
    assert_int_equal(check.exact.model.shape.n_vocab, N_VOCAB);
    return 0;
}

static int close_models(void **state) {
    (void)state;
    if (!check.golden)
        return 0;
    run_close(&check.exact);
    run_close(&check.fast);
    json_decref(check.golden);
    close_tensor_file(&check.last_logits);
    return 0;
}

/* Sum of exp(row - highest), and the highest. */
static double exp_sum(const float *row, double *highest) {
    *highest = (double)row[row_argmax(row, N_VOCAB)];
    double sum = 0;
    for (uint32_t i = 0; i < N_VOCAB; i++)
        sum += exp((double)row[i] - *highest);
    return sum;
}

/* KL(p || q) of the distributions of two rows. */
static double divergence(const float *p, const float *q) {
    double p_max, q_max, p_sum = exp_sum(p, &p_max), q_sum = exp_sum(q, &q_max);
    double p_log = p_max + log(p_sum), q_log = q_max + log(q_sum), kl = 0;
    for (uint32_t i = 0; i < N_VOCAB; i++) {
        double lp = (double)p[i] - p_log;
        kl += exp(lp) * (lp - ((double)q[i] - q_log));
    }
    return kl;
}

static void count_position(struct profile_stats *stats, const json_t *test, uint32_t i,
                           const float *row, double margin_min) {
    double margin = json_number_at(test, "all_margin", i);
    uint32_t argmax = row_argmax(row, N_VOCAB);
    bool wrong = argmax != (uint32_t)json_number_at(test, "all_argmax", i);
    stats->n_positions++;
    stats->worst_top =
        fmax(stats->worst_top, fabs((double)row[argmax] - json_number_at(test, "all_top1", i)));
    stats->n_wrong += wrong && margin > margin_min;
    if (wrong && margin > margin_min)
        print_message("profile %s: position %u lost a margin of %.3f\n", stats->name, i, margin);
    if (wrong)
        stats->lost_margin = fmax(stats->lost_margin, margin);
}

/* The logprob of the prompt token behind position i against the reference's. */
static void count_score(struct profile_stats *stats, struct model_run *run, const json_t *test,
                        uint32_t i, const float *row, int32_t next) {
    struct bt_logprobs ours;
    bt_logprobs_make(bt_device_kernels(run->device), row, N_VOCAB, next, 0, &ours);
    double off = fabs((double)ours.logprob - json_number_at(test, "prompt_logprobs", i + 1));
    stats->worst_score = fmax(stats->worst_score, off);
    stats->sum_score += off;
    stats->n_scores++;
}

/* The five likeliest of a greedy step, each under its own id. */
static void count_greedy(struct profile_stats *stats, struct model_run *run, const json_t *test,
                         uint32_t step, const float *row) {
    const json_t *top = json_array_get(json_object_get(test, "greedy_top5_logprob"), step), *pair;
    size_t i;
    json_array_foreach(top, i, pair) {
        struct bt_logprobs ours;
        int32_t id = (int32_t)json_integer_value(json_array_get(pair, 0));
        bt_logprobs_make(bt_device_kernels(run->device), row, N_VOCAB, id, 0, &ours);
        double off = fabs((double)ours.logprob - json_number_value(json_array_get(pair, 1)));
        stats->worst_greedy = fmax(stats->worst_greedy, off);
        stats->sum_greedy += off;
        stats->n_greedy++;
    }
}

/* Both profiles over the prompt, chunk by chunk, each position compared. */
static void run_prompt(const json_t *test, struct run_seq *exact_seq, struct run_seq *fast_seq) {
    uint32_t n;
    int32_t *ids = json_ids(test, "prompt_ids", &n);
    double fast_margin = n > SHORT_TOKENS_MAX ? FAST_MARGIN_LONG : FAST_MARGIN;
    for (uint32_t at = 0; at < n; at += CHUNK) {
        uint32_t n_rows = n - at < CHUNK ? n - at : CHUNK, rows[CHUNK];
        for (uint32_t i = 0; i < n_rows; i++)
            rows[i] = i;
        run_step(&check.exact, &(struct run_rows){exact_seq, ids + at, n_rows}, 1);
        run_step(&check.fast, &(struct run_rows){fast_seq, ids + at, n_rows}, 1);
        const float *exact = bt_forward_logits(check.exact.forward, rows, n_rows);
        const float *fast = bt_forward_logits(check.fast.forward, rows, n_rows);
        for (uint32_t i = 0; i < n_rows; i++) {
            const float *e = exact + (size_t)i * N_VOCAB, *f = fast + (size_t)i * N_VOCAB;
            count_position(&check.exact_stats, test, at + i, e, EXACT_MARGIN);
            count_position(&check.fast_stats, test, at + i, f, fast_margin);
            if (at + i + 1 < n) {
                count_score(&check.exact_stats, &check.exact, test, at + i, e, ids[at + i + 1]);
                count_score(&check.fast_stats, &check.fast, test, at + i, f, ids[at + i + 1]);
            }
            double kl = divergence(e, f);
            *(n > SHORT_TOKENS_MAX ? &check.kl_sum_long : &check.kl_sum) += kl;
            *(n > SHORT_TOKENS_MAX ? &check.n_kl_long : &check.n_kl) += 1;
        }
    }
    const float *last =
        tensor_f32(&check.last_logits, json_string_value(json_object_get(test, "name")), N_VOCAB);
    const float *ours = run_logits(&check.exact, (n - 1) % CHUNK);
    for (uint32_t i = 0; i < N_VOCAB; i++)
        check.exact_stats.worst_logit =
            fmax(check.exact_stats.worst_logit, fabs((double)ours[i] - (double)last[i]));
    free(ids);
}

/* Greedy tokens with the golden token fed whatever ours was. */
static void run_greedy(const json_t *test, struct model_run *run, struct run_seq *seq,
                       struct profile_stats *stats, uint32_t last_row, double margin_min) {
    uint32_t n, row = last_row;
    int32_t *ids = json_ids(test, "greedy_ids", &n);
    assert_int_equal(n, N_GREEDY);
    for (uint32_t i = 0; i < n; i++) {
        const float *logits = run_logits(run, row);
        int32_t token = (int32_t)row_argmax(logits, N_VOCAB);
        count_greedy(stats, run, test, i, logits);
        double margin = json_number_at(test, "greedy_margin", i);
        stats->n_steps++;
        stats->n_steps_wrong += token != ids[i] && margin > margin_min;
        if (token != ids[i])
            stats->lost_margin = fmax(stats->lost_margin, margin);
        run_step(run, &(struct run_rows){seq, &ids[i], 1}, 1);
        row = 0;
    }
    free(ids);
}

/* Greedy steps in profile exact only where they are asked for. */
static void run_case(const json_t *test, bool exact_steps) {
    struct run_seq exact_seq, fast_seq;
    run_forget_pages(&check.exact);
    run_forget_pages(&check.fast);
    run_seq_init(&check.exact, &exact_seq);
    run_seq_init(&check.fast, &fast_seq);
    run_prompt(test, &exact_seq, &fast_seq);
    uint32_t last = (exact_seq.position - 1) % CHUNK;
    if (exact_steps)
        run_greedy(test, &check.exact, &exact_seq, &check.exact_stats, last, EXACT_MARGIN);
    run_greedy(test, &check.fast, &fast_seq, &check.fast_stats, last, FAST_MARGIN);
    run_seq_fini(&exact_seq);
    run_seq_fini(&fast_seq);
}

/* docs/numerics.md names these bounds. */
static void check_logprobs(const struct profile_stats *s, double worst, double mean) {
    assert_true(s->n_scores > 200 && s->n_greedy > 2000);
    assert_true(s->worst_score < worst && s->worst_greedy < worst);
    assert_true(s->sum_score / s->n_scores < mean && s->sum_greedy / s->n_greedy < mean);
}

static void print_stats(const struct profile_stats *s) {
    print_message("profile %s: %u prompt positions, %u greedy steps; wrong %u and %u; largest "
                  "margin lost %.3f; top logit within %.2g\n",
                  s->name, s->n_positions, s->n_steps, s->n_wrong, s->n_steps_wrong, s->lost_margin,
                  s->worst_top);
    print_message("profile %s: logprobs of prompt tokens within %.3g (mean %.3g), of the five "
                  "likeliest of greedy steps within %.3g (mean %.3g)\n",
                  s->name, s->worst_score, s->sum_score / s->n_scores, s->worst_greedy,
                  s->sum_greedy / s->n_greedy);
}

static void test_all_prompts(void **state) {
    (void)state;
    if (!check.golden) {
        print_message("skipped: no model at %s (scripts/get-model)\n", model_path);
        skip();
    }
    size_t i;
    json_t *test;
    json_array_foreach(json_object_get(check.golden, "cases"), i, test) {
        const char *name = json_string_value(json_object_get(test, "name"));
        if (json_array_size(json_object_get(test, "prompt_ids")) <= SHORT_TOKENS_MAX ||
            test_is_long())
            run_case(test, true);
        else
            print_message("%s is left to BATON_TEST_LONG=1\n", name);
    }
    double kl = check.kl_sum / check.n_kl;
    print_stats(&check.exact_stats);
    print_stats(&check.fast_stats);
    print_message("profile exact: last logits within %.2g of the reference\n",
                  check.exact_stats.worst_logit);
    print_message("profile fast: mean KL over every prompt position %.5f, llama.cpp's %.4f\n", kl,
                  KL_LLAMA_CPP);
    if (check.n_kl_long)
        print_message("profile fast: mean KL over the long prompt %.5f\n",
                      check.kl_sum_long / check.n_kl_long);
    assert_true(check.exact_stats.worst_logit < 1e-2);
    assert_true(check.exact_stats.worst_top < 1e-2);
    assert_int_equal(check.exact_stats.n_wrong, 0);
    assert_int_equal(check.exact_stats.n_steps_wrong, 0);
    assert_int_equal(check.fast_stats.n_wrong, 0);
    assert_int_equal(check.fast_stats.n_steps_wrong, 0);
    assert_true(kl > 0 && kl < 1.1 * KL_LLAMA_CPP);
    check_logprobs(&check.exact_stats, 1e-3, 1e-4);
    check_logprobs(&check.fast_stats, 1.5, 0.1);
}

/* All prompts up to n_max tokens again, in another arithmetic than `fast`. Returns the mean KL. */
static double run_again(const char *name, enum bt_profile profile, enum bt_kv_type kv_type,
                        size_t n_max) {
    run_close(&check.fast);
    run_open(&check.fast, &(struct run_options){.path = model_path,
                                                .profile = profile,
                                                .kv_type = kv_type,
                                                .max_context = 2048,
                                                .n_pages = 128});
    check.fast_stats = (struct profile_stats){.name = name};
    check.kl_sum = check.kl_sum_long = 0;
    check.n_kl = check.n_kl_long = 0;
    size_t i;
    json_t *test;
    json_array_foreach(json_object_get(check.golden, "cases"), i, test) {
        if (json_array_size(json_object_get(test, "prompt_ids")) <= n_max)
            run_case(test, false);
    }
    double kl = check.kl_sum / check.n_kl;
    assert_true(check.n_kl > 200);
    print_stats(&check.fast_stats);
    print_message("profile %s: mean KL over every prompt position %.5f\n", name, kl);
    return kl;
}

/* The cache in int8 may add to KL once more what llama.cpp's own arithmetic costs. */
static void test_int8_cache_adds_little(void **state) {
    (void)state;
    if (!check.golden)
        skip();
    double kl = run_again("fast with an int8 cache", BT_PROFILE_FAST, BT_KV_INT8,
                          test_is_long() ? SIZE_MAX : SHORT_TOKENS_MAX);
    if (check.n_kl_long)
        print_message("profile fast with an int8 cache: mean KL over the long prompt %.5f\n",
                      check.kl_sum_long / check.n_kl_long);
    assert_true(kl > 0 && kl < 2 * KL_LLAMA_CPP);
    assert_true(check.fast_stats.lost_margin < 1);
    check_logprobs(&check.fast_stats, 2, 0.15);
    kl = run_again("bf16 with an int8 cache", BT_PROFILE_BF16, BT_KV_INT8, 64);
    assert_true(kl > 0 && kl < KL_LLAMA_CPP / 2);
}

/* Weights and activations in bf16 stray sixteen times less (mean KL 0.00024 in the reference). */
static void test_profile_bf16_is_nearer(void **state) {
    (void)state;
    if (!check.golden)
        skip();
    double kl = run_again("bf16", BT_PROFILE_BF16, BT_KV_BY_PROFILE, 64);
    assert_true(kl > 0 && kl < 0.0005);
    assert_true(check.fast_stats.lost_margin < 0.2);
    check_logprobs(&check.fast_stats, 0.5, 0.03);
}

/* Keys and values after some layers of one short prompt, so that a failure below has a place. */
static void test_keys_and_values_follow_the_trace(void **state) {
    (void)state;
    if (!check.golden)
        skip();
    struct tensor_file trace = open_tensor_file(BT_FIXTURES "/smollm2/trace_short.safetensors");
    enum { N = 5, KV = 192, HEAD = 64 };
    json_t *ids_entry = json_object_get(trace.header, "k.0");
    assert_int_equal(json_integer_value(json_array_get(json_object_get(ids_entry, "shape"), 0)), N);
    size_t i;
    json_t *test, *found = NULL;
    json_array_foreach(json_object_get(check.golden, "cases"), i, test) {
        if (!strcmp(json_string_value(json_object_get(test, "name")), "short"))
            found = test;
    }
    assert_non_null(found);
    uint32_t n;
    int32_t *ids = json_ids(found, "prompt_ids", &n);
    assert_int_equal(n, N);
    struct run_seq seq;
    run_forget_pages(&check.exact);
    run_seq_init(&check.exact, &seq);
    run_step(&check.exact, &(struct run_rows){&seq, ids, n}, 1);
    static const uint32_t layers[] = {0, 1, 14, 29};
    for (size_t l = 0; l < sizeof layers / sizeof *layers; l++) {
        char name[16];
        snprintf(name, sizeof name, "k.%u", layers[l]);
        const float *k = tensor_f32(&trace, name, N * KV);
        snprintf(name, sizeof name, "v.%u", layers[l]);
        const float *v = tensor_f32(&trace, name, N * KV);
        const float *page = bt_kv_memory_page(&check.exact.kv, layers[l], seq.pages[0]);
        double worst = 0;
        for (uint32_t t = 0; t < N; t++)
            for (uint32_t d = 0; d < KV; d++) {
                /* f32 pages: K is [dim][16 tokens], V is [16 tokens][dim], head by head */
                const float *head = page + (d / HEAD) * 2 * HEAD * BT_PAGE_TOKENS;
                double ours_k = (double)head[d % HEAD * BT_PAGE_TOKENS + t];
                double ours_v = (double)head[HEAD * BT_PAGE_TOKENS + t * HEAD + d % HEAD];
                worst = fmax(worst, fabs(ours_k - (double)k[t * KV + d]));
                worst = fmax(worst, fabs(ours_v - (double)v[t * KV + d]));
            }
        print_message("layer %u: k and v within %.2g\n", layers[l], worst);
        assert_true(worst < 1e-2);
    }
    free(ids);
    run_seq_fini(&seq);
    close_tensor_file(&trace);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys_and_values_follow_the_trace),
        cmocka_unit_test(test_all_prompts),
        cmocka_unit_test(test_profile_bf16_is_nearer),
        cmocka_unit_test(test_int8_cache_adds_little),
    };
    return cmocka_run_group_tests(tests, open_models, close_models);
}

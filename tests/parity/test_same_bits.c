/* A token's logits are the same bits in any chunk, batch and thread count, and on every CPU path.
 *
 * Each position's hash under one plain run (one thread, chunks of 256) must come back under every
 * other way to compute it; so must the bytes of the pages. */
#include "tests/parity/model_run.h"

#include "common/engine/logprobs.h"
#include "kernels/kernels.h"

/* 1 + 2 + ... + 33 rows, so that steps of each of these sizes stand in one sequence. */
enum { MAX_POSITIONS = 33 * 34 / 2 };

struct expected {
    uint32_t n;
    int32_t tokens[MAX_POSITIONS];
    uint64_t hashes[MAX_POSITIONS];
    uint64_t pages; /* of all bytes of the sequence's pages in all layers */
};

static struct expected expected;

static void make_tokens(uint32_t n, uint32_t n_vocab) {
    uint32_t state = 12345;
    expected.n = n;
    for (uint32_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        expected.tokens[i] = (int32_t)(3 + (state >> 8) % (n_vocab - 3));
    }
}

static uint64_t hash_pages(const struct model_run *run, const struct run_seq *seq) {
    uint64_t hash = 0;
    for (uint32_t layer = 0; layer < run->kv.n_layers; layer++)
        for (uint32_t i = 0; i < seq->n_pages; i++)
            hash =
                hash * 0x9E3779B97F4A7C15u +
                XXH3_64bits(bt_kv_memory_page(&run->kv, layer, seq->pages[i]), run->kv.page_bytes);
    return hash;
}

/* Hashes of rows [first, first + n) of the last step. */
static void hash_rows(struct model_run *run, uint32_t first, uint32_t n, uint64_t *hashes) {
    uint32_t n_vocab = run->model.shape.n_vocab;
    for (uint32_t at = 0; at < n; at += RUN_SEQS) {
        uint32_t rows[RUN_SEQS], n_rows = n - at < RUN_SEQS ? n - at : RUN_SEQS;
        for (uint32_t i = 0; i < n_rows; i++)
            rows[i] = first + at + i;
        const float *logits = bt_forward_logits(run->forward, rows, n_rows);
        for (uint32_t i = 0; i < n_rows; i++)
            hashes[at + i] = row_hash(logits + (size_t)i * n_vocab, n_vocab);
    }
}

static void compare(const char *how, const uint64_t *hashes, uint32_t first, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (hashes[i] != expected.hashes[first + i])
            fail_msg("%s: position %u has other bits", how, first + i);
}

/* In place: the forward pass keeps addresses of what stands in `run`. */
static void open_model(struct model_run *run, const char *path, const struct arithmetic *a,
                       const char *cpu, uint32_t n_threads) {
    run_open(run, &(struct run_options){.path = path,
                                        .profile = a->profile,
                                        .kv_type = a->kv_type,
                                        .cpu = cpu,
                                        .n_threads = n_threads,
                                        .max_context = 1024,
                                        .n_pages = 256});
}

static void compute_expected(const char *path, const struct arithmetic *a, uint32_t n) {
    struct model_run run;
    open_model(&run, path, a, NULL, 1);
    make_tokens(n, run.model.shape.n_vocab);
    struct run_seq seq;
    run_seq_init(&run, &seq);
    for (uint32_t at = 0; at < n; at += 256) {
        uint32_t rows = n - at < 256 ? n - at : 256;
        run_step(&run, &(struct run_rows){&seq, expected.tokens + at, rows}, 1);
        hash_rows(&run, 0, rows, expected.hashes + at);
    }
    expected.pages = hash_pages(&run, &seq);
    run_seq_fini(&seq);
    run_close(&run);
}

/* ---- The other ways ---- */

/* chunk 0: steps of 1, 2, 3 ... 33 rows. */
static void check_chunks(struct model_run *run, uint32_t chunk, uint32_t n, const char *how) {
    struct run_seq seq;
    uint64_t hashes[256];
    run_forget_pages(run);
    run_seq_init(run, &seq);
    for (uint32_t at = 0, step = 1; at < n; step++) {
        uint32_t rows = chunk ? chunk : step;
        rows = n - at < rows ? n - at : rows;
        run_step(run, &(struct run_rows){&seq, expected.tokens + at, rows}, 1);
        hash_rows(run, 0, rows, hashes);
        compare(how, hashes, at, rows);
        at += rows;
    }
    if (n == expected.n && hash_pages(run, &seq) != expected.pages)
        fail_msg("%s: the pages have other bytes", how);
    run_seq_fini(&seq);
}

/* Companions before and behind in every step: one decodes, one prefills by five. */
static void check_companions(struct model_run *run, uint32_t chunk, const char *how) {
    struct run_seq seq, decoding, filling;
    uint64_t hashes[256];
    run_forget_pages(run);
    run_seq_init(run, &seq);
    run_seq_init(run, &decoding);
    run_seq_init(run, &filling);
    run_step(run, &(struct run_rows){&decoding, expected.tokens + 7, 40}, 1);
    for (uint32_t at = 0, i = 0; at < expected.n; i++) {
        uint32_t rows = expected.n - at < chunk ? expected.n - at : chunk;
        const struct run_rows batch[] = {{&decoding, expected.tokens + i % 50, 1},
                                         {&seq, expected.tokens + at, rows},
                                         {&filling, expected.tokens + i % 30, 5}};
        run_step(run, batch, filling.position + 5 > 512 ? 2 : 3);
        hash_rows(run, 1, rows, hashes);
        compare(how, hashes, at, rows);
        at += rows;
    }
    if (hash_pages(run, &seq) != expected.pages)
        fail_msg("%s: the pages have other bytes", how);
    run_seq_fini(&seq);
    run_seq_fini(&decoding);
    run_seq_fini(&filling);
}

/* As workers run it: only sampled rows pass the last layer, hashes and sums come from the step. */
static void check_sampled(struct model_run *run, const char *how) {
    struct run_seq seq;
    uint64_t sums[64 * 64];
    run_forget_pages(run);
    run_seq_init(run, &seq);
    run_cover(run, &seq, expected.n);
    bt_forward_keep_all_rows(run->forward, false);
    const struct bt_sampling sampling = {
        .temperature = 0, .top_p = 1, .repetition_penalty = 1, .max_tokens = 1, .want_hash = true};
    uint32_t n_pages = (expected.n + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
    assert_true(run->kv.n_layers * n_pages <= sizeof sums / sizeof *sums);
    for (uint32_t at = 0, rows = 0; at < expected.n; at += rows) {
        rows = expected.n - at < 100 ? expected.n - at : at == 300 ? 1 : 100;
        bool last = at + rows == expected.n;
        struct bt_step_seq part = {.n_rows = rows,
                                   .position = at,
                                   .pages = seq.pages,
                                   .n_sums = last ? n_pages : 0,
                                   .sample = true,
                                   .sampling = &sampling,
                                   .history = expected.tokens,
                                   .n_history = at + rows,
                                   .n_prompt = at + rows};
        struct bt_step_result result;
        struct bt_step step = {.tokens = expected.tokens + at,
                               .n_rows = rows,
                               .seqs = &part,
                               .n_seqs = 1,
                               .sums = sums,
                               .n_sums = part.n_sums,
                               .results = &result};
        bt_forward_run(run->forward, &step, NULL, NULL);
        compare(how, &result.hash, at + rows - 1, 1);
    }
    for (uint32_t layer = 0; layer < run->kv.n_layers; layer++)
        for (uint32_t i = 0; i < n_pages; i++)
            assert_true(
                sums[layer * n_pages + i] ==
                XXH3_64bits(bt_kv_memory_page(&run->kv, layer, seq.pages[i]), run->kv.page_bytes));
    assert_true(hash_pages(run, &seq) == expected.pages);
    bt_forward_keep_all_rows(run->forward, true);
    run_seq_fini(&seq);
}

enum { SCORE_TOP = 3 };

static struct bt_logprobs expected_scores[MAX_POSITIONS];

/* What the logits of each row give, one at a time. */
static void compute_expected_scores(struct model_run *run) {
    struct run_seq seq;
    const struct bt_kernels *kernels = bt_device_kernels(run->device);
    run_forget_pages(run);
    run_seq_init(run, &seq);
    for (uint32_t at = 0; at + 1 < expected.n; at++) {
        run_step(run, &(struct run_rows){&seq, expected.tokens + at, 1}, 1);
        bt_logprobs_make(kernels, run_logits(run, 0), run->model.shape.n_vocab,
                         expected.tokens[at + 1], SCORE_TOP, &expected_scores[at]);
    }
    run_seq_fini(&seq);
}

/* As a decode worker scores a prompt: in chunks, beside one that samples, few rows of each step. */
static void check_scores(struct model_run *run, uint32_t chunk, bool keep_all, const char *how) {
    struct run_seq seq, other;
    run_forget_pages(run);
    run_seq_init(run, &seq);
    run_seq_init(run, &other);
    run_cover(run, &seq, expected.n);
    run_cover(run, &other, expected.n);
    bt_forward_keep_all_rows(run->forward, keep_all);
    const struct bt_sampling sampling = {
        .top_p = 1, .repetition_penalty = 1, .max_tokens = 1, .want_hash = true, .logprobs = 1};
    static struct bt_logprobs scores[MAX_POSITIONS];
    for (uint32_t at = 0, n_step = 0; at < expected.n; n_step++) {
        uint32_t n = expected.n - at < chunk ? expected.n - at : chunk;
        bool last = at + n == expected.n;
        int32_t tokens[RUN_ROWS];
        tokens[0] = expected.tokens[n_step];
        memcpy(tokens + 1, expected.tokens + at, n * sizeof *tokens);
        struct bt_step_seq parts[2] = {{.n_rows = 1,
                                        .position = n_step,
                                        .pages = other.pages,
                                        .sample = true,
                                        .sampling = &sampling,
                                        .history = expected.tokens,
                                        .n_history = n_step + 1,
                                        .n_prompt = n_step + 1},
                                       {.first_row = 1,
                                        .n_rows = n,
                                        .position = at,
                                        .pages = seq.pages,
                                        .sample = last,
                                        .sampling = last ? &sampling : NULL,
                                        .history = expected.tokens,
                                        .n_history = expected.n,
                                        .n_prompt = expected.n,
                                        .scores = scores + at,
                                        .next = expected.tokens + at + 1,
                                        .n_scores = last ? n - 1 : n,
                                        .score_top = SCORE_TOP}};
        struct bt_step_result results[2];
        struct bt_step step = {
            .tokens = tokens, .n_rows = n + 1, .seqs = parts, .n_seqs = 2, .results = results};
        bt_forward_run(run->forward, &step, NULL, NULL);
        compare(how, &results[0].hash, n_step, 1);
        if (last)
            compare(how, &results[1].hash, expected.n - 1, 1);
        assert_int_equal(results[1].finish, BT_FINISH_NONE);
        at += n;
    }
    for (uint32_t i = 0; i + 1 < expected.n; i++)
        if (memcmp(&scores[i], &expected_scores[i], sizeof scores[i]))
            fail_msg("%s: position %u has another score", how, i);
    bt_forward_keep_all_rows(run->forward, true);
    run_seq_fini(&seq);
    run_seq_fini(&other);
}

/* A key that is no number spoils the logits of every later row: the sequence fails, sampled or not,
 * and its neighbour does not. */
static void check_non_finite(struct model_run *run) {
    struct run_seq seq, other;
    run_forget_pages(run);
    run_seq_init(run, &seq);
    run_seq_init(run, &other);
    run_step(run, &(struct run_rows){&seq, expected.tokens, 5}, 1);
    run_cover(run, &other, 4);
    memset(bt_kv_memory_page(&run->kv, 0, seq.pages[0]), 0xff, run->kv.page_bytes);
    struct bt_logprobs scores[4];
    struct bt_step_seq parts[2] = {{.n_rows = 2,
                                    .position = 5,
                                    .pages = seq.pages,
                                    .scores = scores,
                                    .next = expected.tokens + 6,
                                    .n_scores = 2},
                                   {.first_row = 2,
                                    .n_rows = 2,
                                    .pages = other.pages,
                                    .scores = scores + 2,
                                    .next = expected.tokens + 1,
                                    .n_scores = 2,
                                    .score_top = SCORE_TOP}};
    const int32_t tokens[4] = {expected.tokens[5], expected.tokens[6], expected.tokens[0],
                               expected.tokens[1]};
    struct bt_step_result results[2];
    struct bt_step step = {
        .tokens = tokens, .n_rows = 4, .seqs = parts, .n_seqs = 2, .results = results};
    bt_forward_keep_all_rows(run->forward, false);
    bt_forward_run(run->forward, &step, NULL, NULL);
    bt_forward_keep_all_rows(run->forward, true);
    assert_int_equal(results[0].finish, BT_FINISH_ERROR);
    assert_int_equal(results[0].token, -1);
    for (int i = 0; i < 2; i++)
        assert_true(scores[i].logprob == BT_LOGPROB_MIN && scores[i].n_top == 0);
    assert_int_equal(results[1].finish, BT_FINISH_NONE);
    assert_memory_equal(&scores[2], expected_scores, 2 * sizeof *scores);
    run_seq_fini(&seq);
    run_seq_fini(&other);
}

static void check_threads_chunks_companions(const char *path, const struct arithmetic *a) {
    static const uint32_t chunks[] = {1, 7, 16, 256, 0};
    char how[128];
    for (uint32_t n_threads = 1; n_threads <= 2; n_threads++) {
        struct model_run run;
        open_model(&run, path, a, NULL, n_threads);
        for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
            snprintf(how, sizeof how, "%s, %u threads, chunks of %u", a->name, n_threads,
                     chunks[i]);
            check_chunks(&run, chunks[i], expected.n, how);
        }
        for (uint32_t chunk = 1; chunk <= 64; chunk *= 8) {
            snprintf(how, sizeof how, "%s, %u threads, chunks of %u in company", a->name, n_threads,
                     chunk);
            check_companions(&run, chunk, how);
        }
        check_sampled(&run, how);
        if (n_threads == 1)
            compute_expected_scores(&run);
        for (uint32_t i = 0; i < 4; i++) {
            snprintf(how, sizeof how, "%s, %u threads, scores in chunks of %u", a->name, n_threads,
                     chunks[i]);
            check_scores(&run, chunks[i], i % 2, how);
        }
        check_non_finite(&run);
        run_close(&run);
    }
}

/* The first n positions on each path that this CPU has. */
static void check_cpu_paths(const char *path, const struct arithmetic *a, uint32_t n) {
    static const char *const names[] = {"portable", "fma", "avx2", "avx2vnni", "avx512"};
    char how[128], why[BT_ERROR_TEXT_BYTES];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!bt_kernels_find(names[i], why, sizeof why)) {
            print_message("not run: %s\n", why);
            continue;
        }
        struct model_run run;
        open_model(&run, path, a, names[i], 2);
        snprintf(how, sizeof how, "%s on path %s", a->name, names[i]);
        check_chunks(&run, 37, n, how);
        if (n == expected.n || n >= 300)
            check_scores(&run, 37, false, how);
        run_close(&run);
    }
}

static void check_tiny(const char *type, const struct arithmetic *a) {
    char path[512];
    snprintf(path, sizeof path, BT_FIXTURES "/tiny_gguf/tiny-llama-%s.gguf", type);
    compute_expected(path, a, MAX_POSITIONS);
    check_threads_chunks_companions(path, a);
    check_cpu_paths(path, a, 300);
}

static void test_tiny_fast(void **state) {
    (void)state;
    check_tiny("Q4_1", &FAST);
    check_tiny("Q4_0", &FAST);
    check_tiny("Q8_0", &FAST);
    check_tiny("BF16", &FAST);
    check_tiny("F16", &FAST);
}

static void test_tiny_bf16(void **state) {
    (void)state;
    check_tiny("Q4_1", &BF16);
}

static void test_tiny_int8_cache(void **state) {
    (void)state;
    check_tiny("Q4_1", &FAST_INT8);
}

static void test_tiny_exact(void **state) {
    (void)state;
    check_tiny("Q4_1", &EXACT);
}

static void check_smollm2(const struct arithmetic *a) {
    char path[4096];
    if (!find_smollm2(path)) {
        print_message("skipped: no model at %s (scripts/get-model)\n", path);
        skip();
    }
    compute_expected(path, a, test_is_long() ? MAX_POSITIONS : 280);
    check_threads_chunks_companions(path, a);
    check_cpu_paths(path, a, test_is_long() ? 280 : 40);
}

static void test_smollm2_fast(void **state) {
    (void)state;
    check_smollm2(&FAST);
}

static void test_smollm2_int8_cache(void **state) {
    (void)state;
    check_smollm2(&FAST_INT8);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_fast),       cmocka_unit_test(test_tiny_bf16),
        cmocka_unit_test(test_tiny_int8_cache), cmocka_unit_test(test_tiny_exact),
        cmocka_unit_test(test_smollm2_fast),    cmocka_unit_test(test_smollm2_int8_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

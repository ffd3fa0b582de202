/* Engine: steps in, events out; what it says about itself; what it refuses; no memory taken by a
 * step. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <xxhash.h>

#include "common/base/limits.h"
#include "common/engine/engine.h"
#include "common/engine/kv_memory.h"
#include "tests/unit/allocations.h"

#define MODEL BT_FIXTURES "/tiny_gguf/tiny-llama-Q4_1.gguf"

enum { N_ROWS = 40, N_PAGES = 8, N_LAYERS = 2 };

static struct bt_engine_params standard(void) {
    return (struct bt_engine_params){.model_path = MODEL,
                                     .n_threads = 2,
                                     .profile = BT_PROFILE_FAST,
                                     .n_pages = N_PAGES,
                                     .max_rows = N_ROWS,
                                     .max_seqs = 4,
                                     .max_context = 100};
}

static struct bt_engine *open_engine(const struct bt_engine_params *params) {
    struct bt_engine *engine = NULL;
    struct bt_error err = {0};
    if (bt_engine_create(params, &engine, &err) < 0)
        fail_msg("%s", err.text);
    return engine;
}

/* Waits for the next event. */
static struct bt_engine_event await(struct bt_engine *engine) {
    struct bt_engine_event event;
    while (!bt_engine_next(engine, &event)) {
        struct pollfd fd = {.fd = bt_engine_fd(engine), .events = POLLIN};
        assert_true(poll(&fd, 1, 10000) == 1);
    }
    return event;
}

/* ---- Steps ---- */

static const uint32_t pages[] = {5, 0, 7};
static const struct bt_sampling greedy = {
    .top_p = 1, .repetition_penalty = 1, .max_tokens = 9, .want_hash = true};

struct example {
    int32_t tokens[N_ROWS];
    uint64_t sums[N_LAYERS * 3];
    struct bt_step_seq seq;
    struct bt_step_result result;
    struct bt_step step;
};

/* n rows of one sequence, the sums of all its pages wanted if with_sums. */
static void make_step(struct example *e, uint32_t n, bool with_sums) {
    memset(e, 0, sizeof *e);
    for (uint32_t i = 0; i < n; i++)
        e->tokens[i] = (int32_t)(i * 7 % 500);
    uint32_t n_pages = (n + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
    e->seq = (struct bt_step_seq){.n_rows = n,
                                  .pages = pages,
                                  .n_sums = with_sums ? n_pages : 0,
                                  .sample = true,
                                  .sampling = &greedy};
    e->step = (struct bt_step){.id = 42,
                               .tokens = e->tokens,
                               .n_rows = n,
                               .seqs = &e->seq,
                               .n_seqs = 1,
                               .sums = e->sums,
                               .n_sums = e->seq.n_sums,
                               .results = &e->result};
}

static void test_layers_and_sums_come_before_the_result(void **state) {
    (void)state;
    struct bt_engine_params params = standard();
    struct bt_engine *engine = open_engine(&params);
    const struct bt_engine_info *info = bt_engine_info(engine);
    struct example e;
    make_step(&e, 37, true);
    assert_false(bt_engine_busy(engine));
    bt_engine_post(engine, &e.step);
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
        struct bt_engine_event event = await(engine);
        assert_int_equal(event.kind, BT_ENGINE_LAYER_DONE);
        assert_int_equal(event.layer, layer);
        assert_int_equal(event.step, 42);
        for (uint32_t i = 0; i < 3; i++)
            assert_true(e.sums[layer * 3 + i] ==
                        XXH3_64bits(bt_kv_memory_page(bt_engine_kv_memory(engine), layer, pages[i]),
                                    info->page_bytes));
        assert_true(bt_engine_busy(engine));
    }
    struct bt_engine_event event = await(engine);
    assert_int_equal(event.kind, BT_ENGINE_STEP_DONE);
    assert_int_equal(event.step, 42);
    assert_false(bt_engine_busy(engine));
    assert_in_range(e.result.token, 0, info->n_vocab - 1);
    assert_true(e.result.hash != 0);
    assert_false(bt_engine_next(engine, &event));

    uint64_t hash = e.result.hash;
    make_step(&e, 37, false);
    bt_engine_post(engine, &e.step);
    assert_int_equal(await(engine).kind, BT_ENGINE_STEP_DONE); /* no layers where no sums */
    assert_true(e.result.hash == hash);
    bt_engine_destroy(engine);
}

static void test_a_page_that_is_taken_anew_has_a_clean_tail(void **state) {
    (void)state;
    struct bt_engine_params params = standard();
    struct bt_engine *engine = open_engine(&params);
    struct bt_kv_memory *kv = bt_engine_kv_memory(engine);
    struct example e;
    uint64_t clean[N_LAYERS * 3];
    make_step(&e, 37, true);
    bt_engine_post(engine, &e.step);
    while (await(engine).kind != BT_ENGINE_STEP_DONE)
        ;
    memcpy(clean, e.sums, sizeof clean);
    uint64_t hash = e.result.hash;
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) /* NaN in every element */
        for (uint32_t i = 0; i < 3; i++)
            memset(bt_kv_memory_page(kv, layer, pages[i]), 0xff, kv->page_bytes);
    make_step(&e, 37, true);
    bt_engine_post(engine, &e.step);
    while (await(engine).kind != BT_ENGINE_STEP_DONE)
        ;
    assert_memory_equal(e.sums, clean, sizeof clean);
    assert_true(e.result.hash == hash);
    bt_engine_destroy(engine);
}

/* The same with everything that can be asked for: bias, logprobs of the token and of all rows. */
static void ask_for_all(struct example *e, uint32_t n, struct bt_logprobs *scores) {
    static const struct bt_logit_bias bias[] = {{7, 100}};
    static const struct bt_sampling all = {.temperature = 1,
                                           .top_p = 0.9f,
                                           .repetition_penalty = 1,
                                           .max_tokens = 9,
                                           .logprobs = 1 + BT_TOP_LOGPROBS,
                                           .n_bias = 1,
                                           .bias = bias};
    make_step(e, n, true);
    e->seq.sampling = &all;
    e->seq.history = e->tokens;
    e->seq.n_history = e->seq.n_prompt = n;
    e->seq.scores = scores;
    e->seq.next = e->tokens + 1;
    e->seq.n_scores = n - 1;
    e->seq.score_top = BT_TOP_LOGPROBS;
}

static void test_a_step_takes_no_memory(void **state) {
    (void)state;
    if (!COUNTS_ALLOCATIONS) {
        print_message("not run: a sanitizer owns malloc\n");
        skip();
    }
    struct bt_engine_params params = standard();
    struct bt_engine *engine = open_engine(&params);
    uint64_t before = allocations.n;
    assert_true(before > 0);
    for (uint32_t n = 1; n <= N_ROWS; n++) {
        struct example e;
        make_step(&e, n, true);
        bt_engine_post(engine, &e.step);
        while (await(engine).kind != BT_ENGINE_STEP_DONE)
            ;
    }
    for (uint32_t n = 1; n <= N_ROWS; n++) {
        struct example e;
        struct bt_logprobs scores[N_ROWS];
        ask_for_all(&e, n, scores);
        bt_engine_post(engine, &e.step);
        while (await(engine).kind != BT_ENGINE_STEP_DONE)
            ;
        assert_int_equal(e.result.token, 7);
        assert_int_equal(e.result.logprobs.n_top, BT_TOP_LOGPROBS);
        for (uint32_t i = 0; i + 1 < n; i++)
            assert_true(scores[i].n_top == BT_TOP_LOGPROBS && scores[i].logprob < 0);
    }
    assert_int_equal(allocations.n - before, 0);
    bt_engine_destroy(engine);
}

/* Each allocation of create fails once; all but the last such attempt must be refused, in order. */
static void test_create_survives_each_failed_allocation(void **state) {
    (void)state;
    if (!COUNTS_ALLOCATIONS) {
        print_message("not run: a sanitizer owns malloc\n");
        skip();
    }
    struct bt_engine_params params = standard();
    uint32_t n_refused = 0;
    for (uint64_t n = 1;; n++) {
        struct bt_engine *engine = NULL;
        struct bt_error err = {0};
        allocations.failing = allocations.n + n;
        bt_status status = bt_engine_create(&params, &engine, &err);
        bool reached = allocations.n >= allocations.failing;
        allocations.failing = 0;
        bt_engine_destroy(engine);
        if (!reached)
            break;
        if (status < 0) {
            assert_true(bt_status_is_process(status));
            assert_true(err.text[0] != 0);
            n_refused++;
        }
    }
    assert_true(n_refused > 10);
}

static void test_destroy_waits_for_the_step(void **state) {
    (void)state;
    struct bt_engine_params params = standard();
    struct bt_engine *engine = open_engine(&params);
    struct example e;
    make_step(&e, 37, true);
    bt_engine_post(engine, &e.step);
    bt_engine_destroy(engine);
    assert_true(e.result.hash != 0);
    bt_engine_destroy(NULL);
}

/* ---- What it says and refuses ---- */

static void count_progress(void *arg, uint64_t done, uint64_t total) {
    uint64_t *last = arg;
    assert_true(done > *last && done <= total);
    *last = done;
    if (done == total)
        *last |= 1ull << 63;
}

static void test_info_says_what_was_loaded(void **state) {
    (void)state;
    uint64_t last = 0;
    struct bt_engine_params params = standard();
    params.progress = count_progress;
    params.progress_arg = &last;
    struct bt_engine *engine = open_engine(&params);
    const struct bt_engine_info *info = bt_engine_info(engine);
    assert_true(last >> 63); /* progress came to its end */
    assert_string_equal(info->model_name, "tiny random llama");
    assert_int_equal(info->n_layers, N_LAYERS);
    assert_int_equal(info->n_vocab, 512);
    assert_int_equal(info->max_context, 100);
    assert_int_equal(info->n_pages, N_PAGES);
    assert_int_equal(info->n_eos, 1);
    assert_int_equal(info->eos[0], 2);
    assert_int_equal(info->page_bytes,
                     2 * 2 * 32 * 16 * 2); /* heads, K and V, dims, tokens, bf16 */
    assert_int_equal(info->cache_bytes, info->page_bytes * N_PAGES * N_LAYERS);
    assert_int_equal(info->fingerprint.n_kv_heads, 2);
    assert_int_equal(info->fingerprint.head_dim, 32);
    assert_int_equal(info->fingerprint.kv_type, BT_KV_BF16);
    struct bt_fingerprint fast = info->fingerprint;
    bt_engine_destroy(engine);

    params = standard();
    params.profile = BT_PROFILE_EXACT;
    params.n_threads = 1;
    params.path = "portable";
    params.n_pages = 0;
    params.kv_bytes_max = 100000;
    params.max_context = 0;
    engine = open_engine(&params);
    info = bt_engine_info(engine);
    /* The same model whatever computes it; another cache. */
    assert_true(info->fingerprint.model_hash == fast.model_hash);
    assert_int_equal(info->fingerprint.kv_type, BT_KV_F32);
    assert_int_equal(bt_fingerprint_compare(&fast, &info->fingerprint, NULL), BT_E_LAYOUT_MISMATCH);
    assert_true(info->n_pages * BT_PAGE_TOKENS < 1024); /* less than the model's own */
    assert_int_equal(info->max_context, info->n_pages * BT_PAGE_TOKENS);
    assert_int_equal(info->n_pages, 100000 / (info->page_bytes * N_LAYERS));
    assert_string_equal(info->kernels, "portable");
    bt_engine_destroy(engine);

    params = standard();
    params.kv_type = BT_KV_INT8;
    engine = open_engine(&params);
    info = bt_engine_info(engine);
    /* heads, tokens, K and V of 32 integers and a scale */
    assert_int_equal(info->page_bytes, 2 * 16 * 2 * (32 + 4));
    assert_int_equal(info->fingerprint.kv_type, BT_KV_INT8);
    assert_int_equal(info->fingerprint.wire_type, BT_KV_INT8);
    struct bt_error err = {0};
    assert_int_equal(bt_fingerprint_compare(&fast, &info->fingerprint, &err), BT_E_LAYOUT_MISMATCH);
    assert_non_null(strstr(err.text, "kv_type differs: ours is bf16, theirs is int8"));
    bt_engine_destroy(engine);

    params = standard();
    params.model_path = BT_FIXTURES "/tiny_gguf/tiny-llama-Q4_0.gguf";
    engine = open_engine(&params);
    assert_true(bt_engine_info(engine)->fingerprint.model_hash != fast.model_hash);
    bt_engine_destroy(engine);
}

static void refused(const struct bt_engine_params *params, bt_status wanted, const char *sentence) {
    struct bt_engine *engine = NULL;
    struct bt_error err = {0};
    assert_int_equal(bt_engine_create(params, &engine, &err), wanted);
    assert_null(engine);
    if (!strstr(err.text, sentence))
        fail_msg("\"%s\" does not say \"%s\"", err.text, sentence);
}

static void test_what_cannot_be_is_refused(void **state) {
    (void)state;
    struct bt_engine_params params = standard();
    params.model_path = "/nonexistent.gguf";
    refused(&params, BT_E_NOT_FOUND, "/nonexistent.gguf");
    params = standard();
    params.max_rows = 0;
    refused(&params, BT_E_INVALID, "0 rows and 4 sequences");
    params = standard();
    params.n_pages = 0;
    refused(&params, BT_E_INVALID, "neither pages nor bytes");
    params.kv_bytes_max = 100;
    refused(&params, BT_E_INVALID, "100 bytes hold no page");
    params = standard();
    params.path = "abacus";
    refused(&params, BT_E_INVALID, "abacus");
    params = standard();
    params.profile = BT_PROFILE_EXACT;
    params.kv_type = BT_KV_INT8;
    refused(&params, BT_E_INVALID, "type int8 was asked for; profile exact has f32 only");
    params = standard();
    params.model_path = BT_FIXTURES "/tiny_gguf/golden.json";
    refused(&params, BT_E_INVALID, "GGUF");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layers_and_sums_come_before_the_result),
        cmocka_unit_test(test_a_page_that_is_taken_anew_has_a_clean_tail),
        cmocka_unit_test(test_a_step_takes_no_memory),
        cmocka_unit_test(test_create_survives_each_failed_allocation),
        cmocka_unit_test(test_destroy_waits_for_the_step),
        cmocka_unit_test(test_info_says_what_was_loaded),
        cmocka_unit_test(test_what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

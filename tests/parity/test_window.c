/* A tiny Mistral with a sliding window of 24 in every layer, against an independent fp32 reference:
 * every prompt position and greedy step, in any chunks and company, on every CPU path. */
#include "tests/parity/model_run.h"

#include <math.h>

enum { N_PROMPT = 96, N_GREEDY = 32, N_VOCAB = 768, N_TOKENS = N_PROMPT + N_GREEDY - 1 };

static const char model_path[] = BT_FIXTURES "/tiny_window/tiny-mistral-BF16.gguf";

static struct golden {
    struct tensor_file file;
    const float *logits, *decode_logits; /* [N_PROMPT], [N_GREEDY] rows of N_VOCAB */
    int32_t tokens[N_TOKENS];            /* the prompt, then what greedy steps feed */
} golden;

static int open_golden(void **state) {
    (void)state;
    uint32_t n_prompt, n_greedy;
    json_t *json = open_json(BT_FIXTURES "/tiny_window/golden.json");
    int32_t *prompt = json_ids(json, "prompt_ids", &n_prompt);
    int32_t *greedy = json_ids(json, "greedy_ids", &n_greedy);
    assert_int_equal(n_prompt, N_PROMPT);
    assert_int_equal(n_greedy, N_GREEDY);
    memcpy(golden.tokens, prompt, N_PROMPT * sizeof *prompt);
    memcpy(golden.tokens + N_PROMPT, greedy, (N_GREEDY - 1) * sizeof *greedy);
    golden.file = open_tensor_file(BT_FIXTURES "/tiny_window/golden.safetensors");
    golden.logits = tensor_f32(&golden.file, "logits", N_PROMPT * N_VOCAB);
    golden.decode_logits = tensor_f32(&golden.file, "decode_logits", N_GREEDY * N_VOCAB);
    free(prompt);
    free(greedy);
    json_decref(json);
    return 0;
}

static int close_golden(void **state) {
    (void)state;
    close_tensor_file(&golden.file);
    return 0;
}

static const float *golden_row(uint32_t position) {
    return position < N_PROMPT ? golden.logits + (size_t)position * N_VOCAB
                               : golden.decode_logits + (size_t)(position - N_PROMPT + 1) * N_VOCAB;
}

static void open_model(struct model_run *run, enum bt_profile profile, const char *cpu,
                       uint32_t n_threads) {
    run_open(run, &(struct run_options){.path = model_path,
                                        .profile = profile,
                                        .cpu = cpu,
                                        .n_threads = n_threads,
                                        .max_context = 512,
                                        .n_pages = 64});
}

/* Feeds all tokens in chunks, behind `company` rows of another sequence; the rows' hashes go to
 * `hashes`, and the largest distance to the reference is returned. */
static double run_all(struct model_run *run, uint32_t chunk, uint32_t company, uint64_t *hashes) {
    struct run_seq seq, other;
    double worst = 0;
    run_forget_pages(run);
    run_seq_init(run, &seq);
    run_seq_init(run, &other);
    for (uint32_t at = 0; at < N_TOKENS; at += chunk) {
        uint32_t n = N_TOKENS - at < chunk ? N_TOKENS - at : chunk;
        const struct run_rows batch[] = {{&other, golden.tokens + at % 40, company},
                                         {&seq, golden.tokens + at, n}};
        run_step(run, company ? batch : batch + 1, company ? 2 : 1);
        for (uint32_t i = 0; i < n; i++) {
            const float *ours = run_logits(run, company + i), *theirs = golden_row(at + i);
            for (uint32_t j = 0; j < N_VOCAB; j++)
                worst = fmax(worst, fabs((double)ours[j] - (double)theirs[j]));
            hashes[at + i] = row_hash(ours, N_VOCAB);
        }
    }
    run_seq_fini(&seq);
    run_seq_fini(&other);
    return worst;
}

static void check_profile(enum bt_profile profile, double bound) {
    static const char *const paths[] = {"portable", "fma", "avx2", "avx2vnni", "avx512"};
    static const uint32_t chunks[] = {1, 5, 16, 33, N_TOKENS};
    uint64_t expected[N_TOKENS], hashes[N_TOKENS];
    char why[BT_ERROR_TEXT_BYTES];
    struct model_run run;
    open_model(&run, profile, NULL, 1);
    assert_int_equal(run.model.shape.window, 24);
    double worst = run_all(&run, 64, 0, expected);
    print_message("profile %s: logits within %.2g\n", bt_profile_name((uint32_t)profile), worst);
    assert_true(worst < bound);
    run_close(&run);
    for (size_t p = 0; p < sizeof paths / sizeof *paths; p++) {
        if (!bt_kernels_find(paths[p], why, sizeof why)) {
            print_message("not run: %s\n", why);
            continue;
        }
        open_model(&run, profile, paths[p], 2);
        for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
            run_all(&run, chunks[c], c % 2 ? 3 : 0, hashes);
            for (uint32_t i = 0; i < N_TOKENS; i++)
                if (hashes[i] != expected[i])
                    fail_msg("%s on %s, chunks of %u: position %u has other bits",
                             bt_profile_name((uint32_t)profile), paths[p], chunks[c], i);
        }
        run_close(&run);
    }
}

static void test_exact_is_the_reference(void **state) {
    (void)state;
    check_profile(BT_PROFILE_EXACT, 1e-3);
}

/* A window off by one moves the reference's logits by 3.7, so that these bounds still see it. */
static void test_bf16_is_near(void **state) {
    (void)state;
    check_profile(BT_PROFILE_BF16, 1);
    check_profile(BT_PROFILE_FAST, 1);
}

/* Without its window, or with one of 25, the same file gives other logits and another hash. */
static void test_another_window_is_another_model(void **state) {
    (void)state;
    static const uint32_t windows[] = {0, 25};
    static uint8_t bytes[2 << 20];
    FILE *f = fopen(model_path, "rb");
    assert_non_null(f);
    size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    uint64_t hashes[N_TOKENS];
    struct model_run run;
    open_model(&run, BT_PROFILE_EXACT, NULL, 2);
    uint64_t model_hash = run.weights.model_hash;
    run_close(&run);
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
        open_model(&run, BT_PROFILE_EXACT, NULL, 2);
        /* The key's value in a copy of the file. */
        const struct bt_gguf_key *key =
            bt_gguf_find_key(run.model.gguf, "llama.attention.sliding_window");
        const struct bt_gguf_key *first = bt_gguf_key_at(run.model.gguf, 0);
        assert_non_null(key);
        size_t at = 24 + 8 + (size_t)(key->value - (const uint8_t *)first->name.text);
        bt_store_u32(bytes + at, windows[i]);
        run_close(&run);
        char path[] = "/tmp/tiny-mistral-XXXXXX";
        int fd = mkstemp(path);
        assert_true(fd >= 0 && write(fd, bytes, n) == (ssize_t)n);
        close(fd);
        run_open(&run, &(struct run_options){.path = path,
                                             .profile = BT_PROFILE_EXACT,
                                             .n_threads = 2,
                                             .max_context = 512,
                                             .n_pages = 64});
        assert_int_equal(run.model.shape.window, windows[i]);
        assert_true(run.weights.model_hash != model_hash);
        assert_true(run_all(&run, 64, 0, hashes) > 1);
        run_close(&run);
        unlink(path);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_is_the_reference),
        cmocka_unit_test(test_bf16_is_near),
        cmocka_unit_test(test_another_window_is_another_model),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}

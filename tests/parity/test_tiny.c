/* Tiny GGUF Llamas in each supported format against an independent fp32 reference, profile exact;
 * the other profiles must stay near it. */
#include "tests/parity/model_run.h"

#include <math.h>

enum { N_PROMPT = 64, N_GREEDY = 32, N_VOCAB = 512 };

struct golden_case {
    json_t *json; /* borrowed */
    struct tensor_file file;
    const float *logits; /* [N_PROMPT][N_VOCAB] */
    int32_t *prompt, *greedy;
};

static void open_case(struct golden_case *c, json_t *all, const char *type) {
    char name[64], path[512];
    snprintf(name, sizeof name, "tiny-llama-%s.gguf", type);
    size_t i;
    json_t *entry;
    c->json = NULL;
    json_array_foreach(json_object_get(all, "cases"), i, entry) {
        if (!strcmp(json_string_value(json_object_get(entry, "file")), name))
            c->json = entry;
    }
    assert_non_null(c->json);
    snprintf(path, sizeof path, BT_FIXTURES "/tiny_gguf/tiny-llama-%s.golden.safetensors", type);
    c->file = open_tensor_file(path);
    c->logits = tensor_f32(&c->file, "logits", N_PROMPT * N_VOCAB);
    uint32_t n;
    c->prompt = json_ids(c->json, "prompt_ids", &n);
    assert_int_equal(n, N_PROMPT);
    c->greedy = json_ids(c->json, "greedy_ids", &n);
    assert_int_equal(n, N_GREEDY);
}

static void close_case(struct golden_case *c) {
    close_tensor_file(&c->file);
    free(c->prompt);
    free(c->greedy);
}

static float margin(const float *row) {
    uint32_t best = row_argmax(row, N_VOCAB);
    float second = -INFINITY;
    for (uint32_t i = 0; i < N_VOCAB; i++)
        if (i != best && row[i] > second)
            second = row[i];
    return row[best] - second;
}

/* Largest difference of a prompt's logits; argmax must agree wherever the margin is above. */
static double compare_prompt(struct model_run *run, struct run_seq *seq,
                             const struct golden_case *c, float margin_min) {
    double worst = 0;
    run_step(run, &(struct run_rows){seq, c->prompt, N_PROMPT}, 1);
    for (uint32_t row = 0; row < N_PROMPT; row++) {
        const float *ours = run_logits(run, row), *theirs = c->logits + row * N_VOCAB;
        for (uint32_t i = 0; i < N_VOCAB; i++)
            worst = fmax(worst, fabs((double)ours[i] - (double)theirs[i]));
        if (margin(theirs) > margin_min)
            assert_int_equal(row_argmax(ours, N_VOCAB), row_argmax(theirs, N_VOCAB));
    }
    return worst;
}

static void check_exact(const char *type, const char *path) {
    json_t *all = open_json(BT_FIXTURES "/tiny_gguf/golden.json");
    struct golden_case c;
    open_case(&c, all, type);
    struct model_run run;
    run_open(&run, &(struct run_options){.path = path,
                                         .profile = BT_PROFILE_EXACT,
                                         .n_threads = 2,
                                         .max_context = 128,
                                         .n_pages = 8});
    struct run_seq seq;
    run_seq_init(&run, &seq);
    double worst = compare_prompt(&run, &seq, &c, 2e-3f);
    uint32_t token = row_argmax(run_logits(&run, N_PROMPT - 1), N_VOCAB), n_close = 0;
    for (uint32_t i = 0; i < N_GREEDY; i++) {
        if (json_number_at(c.json, "greedy_margin", i) > 2e-3)
            assert_int_equal(token, c.greedy[i]);
        else
            n_close++;
        run_step(&run, &(struct run_rows){&seq, &c.greedy[i], 1}, 1);
        token = row_argmax(run_logits(&run, 0), N_VOCAB);
    }
    print_message("%s exact: logits within %.2g, %u greedy steps too close to call\n", path, worst,
                  n_close);
    assert_true(worst < 1e-3);
    run_seq_fini(&seq);
    run_close(&run);
    close_case(&c);
    json_decref(all);
}

static void check_fixture(const char *type) {
    char path[512];
    snprintf(path, sizeof path, BT_FIXTURES "/tiny_gguf/tiny-llama-%s.gguf", type);
    check_exact(type, path);
}

static void test_q4_0(void **state) {
    (void)state;
    check_fixture("Q4_0");
}

static void test_q4_1(void **state) {
    (void)state;
    check_fixture("Q4_1");
}

static void test_q8_0(void **state) {
    (void)state;
    check_fixture("Q8_0");
}

static void test_f16(void **state) {
    (void)state;
    check_fixture("F16");
}

static void test_bf16(void **state) {
    (void)state;
    check_fixture("BF16");
}

/* ---- F32, written from the BF16 file ---- */

static void put(FILE *out, const void *bytes, size_t n) {
    assert_int_equal(fwrite(bytes, 1, n, out), n);
}

static void put_u32(FILE *out, uint32_t v) {
    uint8_t bytes[4];
    bt_store_u32(bytes, v);
    put(out, bytes, sizeof bytes);
}

static void put_u64(FILE *out, uint64_t v) {
    uint8_t bytes[8];
    bt_store_u64(bytes, v);
    put(out, bytes, sizeof bytes);
}

/* A tensor of the new file: the values of one of the old, under a name of its own; or ones. */
struct new_tensor {
    struct bt_gguf_string name;
    const struct bt_gguf_tensor *values; /* NULL: ones */
    uint64_t n_ones;
};

static void put_info(FILE *out, const struct new_tensor *t, uint64_t *offset) {
    uint64_t n_elements = t->values ? t->values->n_elements : t->n_ones;
    put_u64(out, t->name.n_bytes);
    put(out, t->name.text, t->name.n_bytes);
    put_u32(out, t->values ? t->values->n_dims : 1);
    for (uint32_t d = 0; t->values && d < t->values->n_dims; d++)
        put_u64(out, t->values->dims[d]);
    if (!t->values)
        put_u64(out, t->n_ones);
    put_u32(out, 0);
    put_u64(out, *offset);
    *offset += (n_elements * 4 + 31) / 32 * 32;
}

static void put_values(FILE *out, const struct new_tensor *t) {
    while (ftell(out) % 32)
        put(out, "", 1);
    if (!t->values)
        for (uint64_t i = 0; i < t->n_ones; i++)
            put(out, &(float){1}, sizeof(float));
    else if (t->values->type == 0)
        put(out, t->values->data, t->values->n_bytes);
    else
        for (uint64_t i = 0; i < t->values->n_elements; i++)
            put_u32(out, (uint32_t)bt_load_u16(t->values->data + 2 * i) << 16);
}

/* The same keys; every tensor as F32. `untied` brings the head as a tensor of its own, and rope
 * divisors that change nothing. */
static void write_as_f32(const struct bt_gguf *gguf, const uint8_t *file, bool untied, FILE *out) {
    struct new_tensor tensors[64];
    uint32_t n = 0;
    for (; n < bt_gguf_n_tensors(gguf); n++) {
        const struct bt_gguf_tensor *t = bt_gguf_tensor_at(gguf, n);
        assert_true(n < 62 && (t->type == 0 || t->type == 30));
        tensors[n] = (struct new_tensor){t->name, t, 0};
    }
    if (untied) {
        tensors[n++] = (struct new_tensor){
            {"output.weight", 13}, bt_gguf_find_tensor(gguf, "token_embd.weight"), 0};
        tensors[n++] = (struct new_tensor){{"rope_freqs.weight", 17}, NULL, 16};
    }
    const uint8_t *infos = (const uint8_t *)bt_gguf_tensor_at(gguf, 0)->name.text - 8;
    put(out, file, 8);
    put_u64(out, n);
    put(out, file + 16, (size_t)(infos - file - 16));
    uint64_t offset = 0;
    for (uint32_t i = 0; i < n; i++)
        put_info(out, &tensors[i], &offset);
    for (uint32_t i = 0; i < n; i++)
        put_values(out, &tensors[i]);
}

static void check_f32(bool untied) {
    FILE *in = fopen(BT_FIXTURES "/tiny_gguf/tiny-llama-BF16.gguf", "rb");
    assert_non_null(in);
    static uint8_t bytes[4 << 20];
    size_t n = fread(bytes, 1, sizeof bytes, in);
    fclose(in);
    struct bt_gguf *gguf;
    struct bt_error err = {0};
    assert_int_equal(bt_gguf_open_memory(bytes, n, &gguf, &err), BT_OK);
    char path[] = "/tmp/tiny-llama-F32-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    FILE *out = fdopen(fd, "wb");
    assert_non_null(out);
    write_as_f32(gguf, bytes, untied, out);
    assert_int_equal(fclose(out), 0);
    bt_gguf_close(gguf);
    check_exact("BF16", path);
    unlink(path);
}

static void test_f32(void **state) {
    (void)state;
    check_f32(false);
}

static void test_untied_head_and_rope_divisors(void **state) {
    (void)state;
    check_f32(true);
}

/* ---- The other profiles ---- */

/* Random weights have small margins, so this bounds the error of the arithmetic, and that a token
 * with a clear lead keeps it. */
static void check_near(const char *type, enum bt_profile profile, double bound) {
    char path[512];
    snprintf(path, sizeof path, BT_FIXTURES "/tiny_gguf/tiny-llama-%s.gguf", type);
    json_t *all = open_json(BT_FIXTURES "/tiny_gguf/golden.json");
    struct golden_case c;
    open_case(&c, all, type);
    struct model_run run;
    run_open(&run, &(struct run_options){
                       .path = path, .profile = profile, .max_context = 128, .n_pages = 8});
    struct run_seq seq;
    run_seq_init(&run, &seq);
    double worst = compare_prompt(&run, &seq, &c, 2 * (float)bound);
    print_message("%s profile %s: logits within %.2g\n", type, bt_profile_name(profile), worst);
    assert_true(worst < bound);
    assert_true(worst > 1e-6); /* it is another arithmetic */
    run_seq_fini(&seq);
    run_close(&run);
    close_case(&c);
    json_decref(all);
}

static void test_fast_is_near(void **state) {
    (void)state;
    check_near("Q4_0", BT_PROFILE_FAST, 1);
    check_near("Q4_1", BT_PROFILE_FAST, 1);
    check_near("Q8_0", BT_PROFILE_FAST, 1);
    check_near("F16", BT_PROFILE_FAST, 1);
    check_near("BF16", BT_PROFILE_FAST, 1);
}

static void test_bf16_profile_is_near(void **state) {
    (void)state;
    check_near("Q4_1", BT_PROFILE_BF16, 1);
    check_near("Q8_0", BT_PROFILE_BF16, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_q4_0),
        cmocka_unit_test(test_q4_1),
        cmocka_unit_test(test_q8_0),
        cmocka_unit_test(test_f16),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_untied_head_and_rope_divisors),
        cmocka_unit_test(test_fast_is_near),
        cmocka_unit_test(test_bf16_profile_is_near),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

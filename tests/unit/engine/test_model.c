/* Model: the numbers of a good file; every number, key and tensor that would change the answer is
 * refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/bytes.h"
#include "common/engine/model.h"

/* A copy of a good file, to be spoilt in place. */
static uint8_t file[1 << 20];
static size_t n_file;

static int read_file(void **state) {
    (void)state;
    FILE *f = fopen(BT_FIXTURES "/tiny_gguf/tiny-llama-Q4_1.gguf", "rb");
    if (!f)
        return -1;
    n_file = fread(file, 1, sizeof file, f);
    fclose(f);
    return n_file > 1000 && n_file < sizeof file ? 0 : -1;
}

/* Where in `file` a key's value or name is. */
static uint8_t *find(const char *key, bool name) {
    struct bt_gguf *gguf = NULL;
    assert_int_equal(bt_gguf_open_memory(file, n_file, &gguf, NULL), BT_OK);
    const struct bt_gguf_key *k = bt_gguf_find_key(gguf, key);
    if (!k)
        fail_msg("no key %s", key);
    const uint8_t *at = name ? (const uint8_t *)k->name.text : k->value;
    bt_gguf_close(gguf);
    return file + (at - file);
}

static uint8_t *find_tensor_name(const char *tensor) {
    struct bt_gguf *gguf = NULL;
    assert_int_equal(bt_gguf_open_memory(file, n_file, &gguf, NULL), BT_OK);
    const struct bt_gguf_tensor *t = bt_gguf_find_tensor(gguf, tensor);
    assert_non_null(t);
    const uint8_t *at = (const uint8_t *)t->name.text;
    bt_gguf_close(gguf);
    return file + (at - file);
}

static void refused(bt_status wanted, const char *sentence) {
    struct bt_model model = {0};
    struct bt_error err = {0};
    bt_status status = bt_model_open_memory(file, n_file, &model, &err);
    if (status != wanted || !strstr(err.text, sentence))
        fail_msg("%s, \"%s\"; wanted %s, \"%s\"", bt_status_name(status), err.text,
                 bt_status_name(wanted), sentence);
    assert_null(model.gguf);
    assert_null(model.layers);
    assert_int_equal(read_file(NULL), 0);
}

static void spoil_u32(const char *key, uint32_t v, bt_status wanted, const char *sentence) {
    bt_store_u32(find(key, false), v);
    refused(wanted, sentence);
}

static void spoil_f32(const char *key, float v, bt_status wanted, const char *sentence) {
    memcpy(find(key, false), &v, sizeof v);
    refused(wanted, sentence);
}

/* Gives a key another name of the same length. */
static void rename_key(const char *key, const char *name) {
    assert_int_equal(strlen(key), strlen(name));
    memcpy(find(key, true), name, strlen(name));
}

static void test_a_good_file_gives_its_numbers(void **state) {
    (void)state;
    struct bt_model m = {0};
    struct bt_error err = {0};
    assert_int_equal(bt_model_open_memory(file, n_file, &m, &err), BT_OK);
    assert_int_equal(m.shape.n_layers, 2);
    assert_int_equal(m.shape.dim, 256);
    assert_int_equal(m.shape.n_heads, 8);
    assert_int_equal(m.shape.n_kv_heads, 2);
    assert_int_equal(m.shape.head_dim, 32);
    assert_int_equal(m.shape.n_rot, 32);
    assert_int_equal(m.shape.ffn_dim, 256);
    assert_int_equal(m.shape.n_vocab, 512);
    assert_int_equal(m.shape.context, 1024);
    assert_true(m.shape.norm_eps == 1e-5f);
    assert_true(m.shape.rope_base == 10000);
    assert_ptr_equal(m.output, m.token_embd); /* tied */
    assert_null(m.rope_freqs);
    assert_int_equal(m.n_eos, 1);
    assert_int_equal(m.eos[0], 2);
    assert_string_equal(m.name, "tiny random llama");
    assert_int_equal(m.layers[1].w_down->dims[1], 256);
    bt_model_close(&m);
    bt_model_close(&m); /* a zeroed one is accepted */
}

static void test_numbers_out_of_range_are_refused(void **state) {
    (void)state;
    spoil_u32("llama.block_count", 0, BT_E_INVALID, "llama.block_count is 0, must be 1 to 1024");
    spoil_u32("llama.block_count", 3, BT_E_NOT_FOUND, "no tensor \"blk.2.attn_norm.weight\"");
    spoil_u32("llama.block_count", 1, BT_E_UNSUPPORTED, "tensor \"blk.1.");
    spoil_u32("llama.block_count", UINT32_MAX, BT_E_INVALID, "must be 1 to 1024");
    spoil_u32("llama.embedding_length", UINT32_MAX, BT_E_INVALID, "llama.embedding_length");
    spoil_u32("llama.embedding_length", 512, BT_E_INVALID, "tensor \"token_embd.weight\" has 2");
    spoil_u32("llama.feed_forward_length", 254, BT_E_INVALID, "must be 2, 256 x 254");
    spoil_u32("llama.context_length", 0, BT_E_INVALID, "llama.context_length is 0");
    spoil_u32("llama.attention.head_count", 0, BT_E_INVALID, "head_count is 0");
    spoil_u32("llama.attention.head_count", 7, BT_E_INVALID, "must be a multiple of head_count_kv");
    spoil_u32("llama.attention.head_count", 6, BT_E_INVALID, "must be a multiple of head_count, 6");
    spoil_u32("llama.attention.head_count", 32, BT_E_UNSUPPORTED, "the head dimension is 8");
    spoil_u32("llama.attention.head_count_kv", 4, BT_E_INVALID, "\"blk.0.attn_k.weight\"");
    spoil_u32("llama.rope.dimension_count", 33, BT_E_INVALID, "must be 2 to 32");
    spoil_u32("llama.rope.dimension_count", 31, BT_E_INVALID, "is 31, must be even");
    spoil_u32("llama.vocab_size", 511, BT_E_INVALID, "is 511, but token_embd.weight has 512 rows");
    spoil_u32("tokenizer.ggml.eos_token_id", 512, BT_E_INVALID, "is 512, must be 0 to 511");
    spoil_f32("llama.rope.freq_base", 0, BT_E_INVALID, "llama.rope.freq_base is 0");
    spoil_f32("llama.attention.layer_norm_rms_epsilon", -1, BT_E_INVALID, "is -1, must be 0 to 1");
}

static void test_what_is_not_computed_is_refused(void **state) {
    (void)state;
    memcpy(find("general.architecture", false) + 8, "gemma", 5);
    refused(BT_E_UNSUPPORTED, "general.architecture is \"gemma\", only \"llama\" is supported");
    /* A key that we do not know may change the answer. */
    rename_key("llama.vocab_size", "llama.logit_scal");
    refused(BT_E_UNSUPPORTED, "the model sets llama.logit_scal, which is not supported");
    rename_key("llama.rope.freq_base", "llama.rope.freq_bass");
    refused(BT_E_UNSUPPORTED, "llama.rope.freq_bass");
    rename_key("llama.context_length", "llama.content_length");
    refused(BT_E_UNSUPPORTED, "llama.content_length");
}

/* Puts a key before the others, and one more that keeps the data aligned. */
static void insert_key(const char *name, enum bt_gguf_type type, const void *value, size_t n) {
    uint8_t added[256] = {0};
    size_t n_name = strlen(name), at = 8 + n_name + 4 + n;
    size_t n_pad = (32 - (at + 8 + 3 + 4 + 8) % 32) % 32;
    bt_store_u64(added, n_name);
    memcpy(added + 8, name, n_name);
    bt_store_u32(added + 8 + n_name, (uint32_t)type);
    memcpy(added + 12 + n_name, value, n);
    bt_store_u64(added + at, 3);
    memcpy(added + at + 8, "pad", 3);
    bt_store_u32(added + at + 11, BT_GGUF_STRING);
    bt_store_u64(added + at + 15, n_pad);
    at += 23 + n_pad;
    assert_true(at % 32 == 0 && at <= sizeof added && n_file + at <= sizeof file);
    memmove(file + 24 + at, file + 24, n_file - 24);
    memcpy(file + 24, added, at);
    n_file += at;
    bt_store_u64(file + 16, bt_load_u64(file + 16) + 2);
}

static void insert_u32(const char *name, uint32_t v) {
    uint8_t bytes[4];
    bt_store_u32(bytes, v);
    insert_key(name, BT_GGUF_U32, bytes, 4);
}

static void insert_f32(const char *name, float v) {
    insert_key(name, BT_GGUF_F32, &v, 4);
}

static uint32_t window_of_file(void) {
    struct bt_model model = {0};
    struct bt_error err = {0};
    if (bt_model_open_memory(file, n_file, &model, &err) < 0)
        fail_msg("%s", err.text);
    uint32_t window = model.shape.window;
    bt_model_close(&model);
    assert_int_equal(read_file(NULL), 0);
    return window;
}

/* One that the whole context fits is none. */
static void test_a_sliding_window_counts_where_it_is_smaller_than_the_context(void **state) {
    (void)state;
    assert_int_equal(window_of_file(), 0);
    static const uint32_t windows[][2] = {{0, 0},       {1, 1},    {512, 512},
                                          {1023, 1023}, {1024, 0}, {UINT32_MAX, 0}};
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
        insert_u32("llama.attention.sliding_window", windows[i][0]);
        assert_int_equal(window_of_file(), windows[i][1]);
    }
    insert_f32("llama.attention.sliding_window", 512);
    refused(BT_E_INVALID, "llama.attention.sliding_window");
    insert_u32("llama.attention.sliding_window_pattern", 2);
    refused(BT_E_UNSUPPORTED, "llama.attention.sliding_window_pattern");
}

static void accepted(void) {
    struct bt_model model = {0};
    struct bt_error err = {0};
    if (bt_model_open_memory(file, n_file, &model, &err) < 0)
        fail_msg("%s", err.text);
    bt_model_close(&model);
    assert_int_equal(read_file(NULL), 0);
}

static void test_known_keys_count_only_where_they_change_nothing(void **state) {
    (void)state;
    insert_u32("llama.expert_count", 8);
    refused(BT_E_UNSUPPORTED, "llama.expert_count is 8");
    insert_u32("llama.expert_count", 0);
    accepted();
    insert_f32("llama.rope.scaling.factor", 4);
    refused(BT_E_UNSUPPORTED, "llama.rope.scaling.factor is 4");
    insert_f32("llama.rope.scale_linear", 2);
    refused(BT_E_UNSUPPORTED, "llama.rope.scale_linear is 2");
    insert_f32("llama.rope.scaling.factor", 1);
    accepted();
    insert_key("llama.rope.scaling.type", BT_GGUF_STRING, "\4\0\0\0\0\0\0\0yarn", 12);
    refused(BT_E_UNSUPPORTED, "llama.rope.scaling.type is \"yarn\"");
    insert_key("llama.rope.scaling.type", BT_GGUF_STRING, "\4\0\0\0\0\0\0\0none", 12);
    accepted();
    insert_key("llama.attention.causal", BT_GGUF_BOOL, "\0", 1);
    refused(BT_E_UNSUPPORTED, "llama.attention.causal is false");
    insert_u32("llama.attention.key_length", 48);
    refused(BT_E_INVALID, "must be 2, 256 x 384");
    insert_u32("llama.attention.value_length", 16);
    refused(BT_E_UNSUPPORTED, "value_length is 16, must equal key_length, 32");
    insert_u32("tokenizer.ggml.eot_token_id", 512);
    refused(BT_E_INVALID, "tokenizer.ggml.eot_token_id is 512");
}

static void test_wrong_tensors_are_refused(void **state) {
    (void)state;
    memcpy(find_tensor_name("blk.0.attn_q.weight"), "blk.0.attn_x", 12);
    refused(BT_E_NOT_FOUND, "no tensor \"blk.0.attn_q.weight\"");
    memcpy(find_tensor_name("token_embd.weight"), "token_embx", 10);
    refused(BT_E_NOT_FOUND, "no tensor \"token_embd.weight\"");
    /* name, u32 n_dims, u64 dims[2], u32 type */
    uint8_t *type = find_tensor_name("blk.0.attn_q.weight") + 19 + 4 + 16;
    assert_int_equal(bt_load_u32(type), 3);
    bt_store_u32(type, 39); /* MXFP4 has smaller blocks, so the file still holds it */
    refused(BT_E_UNSUPPORTED, "tensor \"blk.0.attn_q.weight\" is stored as MXFP4; supported are");
    uint8_t *dim = find_tensor_name("blk.0.attn_q.weight") + 19 + 4 + 8;
    bt_store_u64(dim, 128);
    refused(BT_E_INVALID, "has 2 dimensions, 256 x 128; must be 2, 256 x 256");
}

static void test_every_cut_is_refused(void **state) {
    (void)state;
    for (size_t n = 0; n < n_file; n += n < 40000 ? 97 : 4099) {
        uint8_t *copy = malloc(n + !n); /* exact, so that asan sees the first byte past it */
        assert_non_null(copy);
        memcpy(copy, file, n);
        struct bt_model model = {0};
        struct bt_error err = {0};
        assert_true(bt_model_open_memory(copy, n, &model, &err) < 0);
        assert_true(err.text[0] != 0);
        free(copy);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_good_file_gives_its_numbers),
        cmocka_unit_test(test_numbers_out_of_range_are_refused),
        cmocka_unit_test(test_what_is_not_computed_is_refused),
        cmocka_unit_test(test_a_sliding_window_counts_where_it_is_smaller_than_the_context),
        cmocka_unit_test(test_known_keys_count_only_where_they_change_nothing),
        cmocka_unit_test(test_wrong_tensors_are_refused),
        cmocka_unit_test(test_every_cut_is_refused),
    };
    return cmocka_run_group_tests(tests, read_file, NULL);
}

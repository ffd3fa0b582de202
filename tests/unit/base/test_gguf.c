/* GGUF reader: what a good file gives back; every cut and every lie is refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/base/gguf.h"

/* A file under construction. */
struct builder {
    uint8_t bytes[4096];
    size_t n;
};

static void put(struct builder *b, const void *bytes, size_t n) {
    assert_true(b->n + n <= sizeof b->bytes);
    memcpy(b->bytes + b->n, bytes, n);
    b->n += n;
}

static void put_u32(struct builder *b, uint32_t v) {
    uint8_t bytes[4];
    bt_store_u32(bytes, v);
    put(b, bytes, 4);
}

static void put_u64(struct builder *b, uint64_t v) {
    uint8_t bytes[8];
    bt_store_u64(bytes, v);
    put(b, bytes, 8);
}

static void put_string(struct builder *b, const char *text) {
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

static void put_key(struct builder *b, const char *name, enum bt_gguf_type type) {
    put_string(b, name);
    put_u32(b, (uint32_t)type);
}

static void put_f32(struct builder *b, float v) {
    put(b, &v, sizeof v);
}

static void put_header(struct builder *b, uint64_t n_tensors, uint64_t n_keys) {
    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, n_tensors);
    put_u64(b, n_keys);
}

static void put_tensor(struct builder *b, const char *name, uint32_t n_dims, uint64_t d0,
                       uint64_t d1, uint32_t type, uint64_t offset) {
    put_string(b, name);
    put_u32(b, n_dims);
    put_u64(b, d0);
    if (n_dims > 1)
        put_u64(b, d1);
    put_u32(b, type);
    put_u64(b, offset);
}

static void put_data(struct builder *b, size_t n) {
    while (b->n % 32)
        put(b, "", 1);
    for (size_t i = 0; i < n; i++)
        put(b, &(uint8_t){(uint8_t)i}, 1);
}

/* One key of each kind, two tensors; the file ends with the last tensor's last byte. */
static void put_good_file(struct builder *b) {
    put_header(b, 2, 9);
    put_key(b, "general.architecture", BT_GGUF_STRING);
    put_string(b, "llama");
    put_key(b, "a.u32", BT_GGUF_U32);
    put_u32(b, 576);
    put_key(b, "a.u64", BT_GGUF_U64);
    put_u64(b, 1ull << 40);
    put_key(b, "a.i32", BT_GGUF_I32);
    put_u32(b, (uint32_t)-7);
    put_key(b, "a.f32", BT_GGUF_F32);
    put_f32(b, 1e-5f);
    put_key(b, "a.bool", BT_GGUF_BOOL);
    put(b, "\1", 1);
    put_key(b, "a.words", BT_GGUF_ARRAY);
    put_u32(b, BT_GGUF_STRING);
    put_u64(b, 3);
    put_string(b, "one");
    put_string(b, "");
    put_string(b, "three");
    put_key(b, "a.ids", BT_GGUF_ARRAY);
    put_u32(b, BT_GGUF_I32);
    put_u64(b, 2);
    put_u32(b, 5);
    put_u32(b, (uint32_t)-6);
    put_key(b, "a.scores", BT_GGUF_ARRAY);
    put_u32(b, BT_GGUF_F32);
    put_u64(b, 1);
    put_f32(b, -0.5f);
    put_tensor(b, "t.q4_1", 2, 64, 2, 3, 0); /* 4 blocks of 20 bytes */
    put_tensor(b, "t.f32", 1, 3, 0, 0, 96);
    put_data(b, 96 + 12);
}

/* Opens an exact copy, so that asan sees the first byte read past it. */
static bt_status open_copy(const struct builder *b, size_t n, struct bt_error *err) {
    uint8_t *copy = malloc(n + !n);
    assert_non_null(copy);
    memcpy(copy, b->bytes, n);
    struct bt_gguf *gguf = NULL;
    bt_status status = bt_gguf_open_memory(copy, n, &gguf, err);
    assert_true((status == BT_OK) == (gguf != NULL));
    static volatile uint64_t sink; /* keeps the reads */
    uint64_t sum = 0;
    for (uint32_t i = 0; gguf && i < bt_gguf_n_tensors(gguf); i++)
        for (uint64_t j = 0; j < bt_gguf_tensor_at(gguf, i)->n_bytes; j++)
            sum += bt_gguf_tensor_at(gguf, i)->data[j];
    sink = sum;
    (void)sink;
    bt_gguf_close(gguf);
    free(copy);
    return status;
}

static void refused(const struct builder *b, bt_status wanted, const char *sentence) {
    struct bt_error err = {0};
    assert_int_equal(open_copy(b, b->n, &err), wanted);
    if (!strstr(err.text, sentence))
        fail_msg("\"%s\" does not say \"%s\"", err.text, sentence);
}

static void check_good_scalars(const struct bt_gguf *g) {
    uint32_t u32 = 0;
    uint64_t u64 = 0;
    float f32 = 0;
    bool flag = false;
    struct bt_gguf_string text;
    assert_int_equal(bt_gguf_get_u32(g, "a.u32", &u32, NULL), BT_OK);
    assert_int_equal(u32, 576);
    assert_int_equal(bt_gguf_get_u64(g, "a.u32", &u64, NULL), BT_OK);
    assert_int_equal(bt_gguf_get_u64(g, "a.u64", &u64, NULL), BT_OK);
    assert_true(u64 == 1ull << 40);
    assert_int_equal(bt_gguf_get_f32(g, "a.f32", &f32, NULL), BT_OK);
    assert_true(f32 == 1e-5f);
    assert_int_equal(bt_gguf_get_bool(g, "a.bool", &flag, NULL), BT_OK);
    assert_true(flag);
    assert_int_equal(bt_gguf_get_string(g, "general.architecture", &text, NULL), BT_OK);
    assert_true(bt_gguf_string_is(text, "llama") && !bt_gguf_string_is(text, "llam"));

    struct bt_error err = {0};
    assert_int_equal(bt_gguf_get_u32(g, "a.none", &u32, &err), BT_E_NOT_FOUND);
    assert_int_equal(bt_gguf_get_u32(g, "a.u64", &u32, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "key \"a.u64\" is 1099511627776, limit 4294967295"));
    assert_int_equal(bt_gguf_get_u32(g, "a.i32", &u32, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "must not be negative"));
    assert_int_equal(bt_gguf_get_u32(g, "a.f32", &u32, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "is of type F32, must be an integer"));
    assert_int_equal(bt_gguf_get_f32(g, "a.u32", &f32, &err), BT_E_INVALID);
    assert_int_equal(bt_gguf_get_bool(g, "a.u32", &flag, &err), BT_E_INVALID);
    assert_int_equal(bt_gguf_get_string(g, "a.u32", &text, &err), BT_E_INVALID);
    assert_int_equal(u32, 576);
}

static void check_good_arrays(const struct bt_gguf *g) {
    struct bt_gguf_array a;
    struct bt_gguf_string s;
    struct bt_error err = {0};
    assert_int_equal(bt_gguf_get_array(g, "a.words", BT_GGUF_STRING, &a, NULL), BT_OK);
    assert_int_equal(a.n_elements, 3);
    assert_true(bt_gguf_next_string(&a, &s) && bt_gguf_string_is(s, "one"));
    assert_true(bt_gguf_next_string(&a, &s) && bt_gguf_string_is(s, ""));
    assert_true(bt_gguf_next_string(&a, &s) && bt_gguf_string_is(s, "three"));
    assert_false(bt_gguf_next_string(&a, &s));
    assert_int_equal(bt_gguf_get_array(g, "a.ids", BT_GGUF_I32, &a, NULL), BT_OK);
    assert_int_equal(bt_gguf_i32_at(&a, 0), 5);
    assert_int_equal(bt_gguf_i32_at(&a, 1), -6);
    assert_int_equal(bt_gguf_get_array(g, "a.scores", BT_GGUF_F32, &a, NULL), BT_OK);
    assert_true(bt_gguf_f32_at(&a, 0) == -0.5f);
    assert_int_equal(bt_gguf_get_array(g, "a.ids", BT_GGUF_F32, &a, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "is an array of I32, must be of F32"));
    assert_int_equal(bt_gguf_get_array(g, "a.u32", BT_GGUF_F32, &a, &err), BT_E_INVALID);
}

static void test_a_good_file_gives_all_back(void **state) {
    (void)state;
    struct builder b = {0};
    put_good_file(&b);
    struct bt_gguf *g = NULL;
    struct bt_error err = {0};
    assert_int_equal(bt_gguf_open_memory(b.bytes, b.n, &g, &err), BT_OK);
    assert_int_equal(bt_gguf_n_keys(g), 9);
    assert_int_equal(bt_gguf_file_bytes(g), b.n);
    check_good_scalars(g);
    check_good_arrays(g);
    assert_int_equal(bt_gguf_n_tensors(g), 2);
    const struct bt_gguf_tensor *t = bt_gguf_find_tensor(g, "t.q4_1");
    assert_ptr_equal(t, bt_gguf_tensor_at(g, 0));
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->dims[0], 64);
    assert_int_equal(t->dims[1], 2);
    assert_int_equal(t->dims[2], 1);
    assert_int_equal(t->n_bytes, 80);
    assert_string_equal(bt_gguf_tensor_type_name(t->type), "Q4_1");
    t = bt_gguf_find_tensor(g, "t.f32");
    assert_int_equal(t->n_bytes, 12);
    assert_ptr_equal(t->data + t->n_bytes, b.bytes + b.n);
    assert_null(bt_gguf_find_tensor(g, "t.none"));
    bt_gguf_close(g);
}

static void test_every_cut_is_refused(void **state) {
    (void)state;
    struct builder b = {0};
    put_good_file(&b);
    for (size_t n = 0; n < b.n; n++) {
        struct bt_error err = {0};
        assert_int_equal(open_copy(&b, n, &err), BT_E_INVALID);
        assert_true(err.text[0]);
    }
}

static void test_every_changed_byte_is_refused_or_read(void **state) {
    (void)state;
    static const uint8_t values[] = {0x00, 0x01, 0x20, 0x7f, 0x80, 0xff};
    struct builder good = {0};
    put_good_file(&good);
    for (size_t at = 0; at < good.n; at++)
        for (size_t i = 0; i < sizeof values; i++) {
            struct builder b = good;
            struct bt_error err = {0};
            b.bytes[at] = values[i];
            bt_status status = open_copy(&b, b.n, &err);
            assert_true(status == BT_OK || (status < 0 && err.text[0]));
        }
}

static void test_lies_of_the_head_are_named(void **state) {
    (void)state;
    struct builder b = {0};
    put(&b, "GGML", 4);
    refused(&b, BT_E_INVALID, "does not begin with \"GGUF\"");
    b.n = 0;
    put(&b, "GGUF", 4);
    put_u32(&b, 0x03000000);
    refused(&b, BT_E_UNSUPPORTED, "big-endian");
    b.n = 4;
    put_u32(&b, 1);
    refused(&b, BT_E_UNSUPPORTED, "GGUF version 1");
    b.n = 0;
    put_header(&b, UINT64_MAX, 0);
    refused(&b, BT_E_INVALID, "18446744073709551615 tensors, limit 65536");
    b.n = 0;
    put_header(&b, 0, 1);
    refused(&b, BT_E_INVALID, "1 keys, limit 65536 and what 0 bytes hold");
}

/* A file of one key, whose value the caller appends. */
static struct builder one_key(const char *name, uint32_t type) {
    struct builder b = {0};
    put_header(&b, 0, 1);
    put_key(&b, name, (enum bt_gguf_type)type);
    return b;
}

static void test_lies_of_keys_are_named(void **state) {
    (void)state;
    struct builder b = one_key("k", 13);
    put_u64(&b, 0);
    refused(&b, BT_E_INVALID, "key \"k\" is of type 13, the last known is 12");
    b = one_key("k", BT_GGUF_BOOL);
    put(&b, "\2", 1);
    refused(&b, BT_E_INVALID, "is the bool 2");
    b = one_key("a\nb", BT_GGUF_U8);
    put(&b, "\2", 1);
    refused(&b, BT_E_INVALID, "control character 0x0a");
    b = one_key("k", BT_GGUF_STRING);
    put_u64(&b, 1ull << 60);
    refused(&b, BT_E_INVALID, "has 1152921504606846976 bytes, limit 16777216");
    b = one_key("k", BT_GGUF_ARRAY);
    put_u32(&b, BT_GGUF_ARRAY);
    put_u64(&b, 1);
    refused(&b, BT_E_UNSUPPORTED, "an array of arrays");
    b = one_key("k", BT_GGUF_ARRAY);
    put_u32(&b, BT_GGUF_U64);
    put_u64(&b, 1ull << 61);
    refused(&b, BT_E_INVALID, "2305843009213693952 elements, limit 16777216");
    b = one_key("k", BT_GGUF_ARRAY);
    put_u32(&b, BT_GGUF_U32);
    put_u64(&b, 3);
    put_u64(&b, 0);
    refused(&b, BT_E_INVALID, "needs 12 bytes, but the file ends after 8 more");
    b = (struct builder){0};
    put_header(&b, 0, 2);
    for (int i = 0; i < 2; i++) {
        put_key(&b, "twice", BT_GGUF_U8);
        put(&b, "\1", 1);
    }
    refused(&b, BT_E_INVALID, "key \"twice\" stands twice");
    b = one_key("general.alignment", BT_GGUF_U32);
    put_u32(&b, 24);
    refused(&b, BT_E_INVALID, "general.alignment is 24, must be a power of two");
}

/* A file of one tensor with 64 bytes of data. */
static struct builder one_tensor(uint32_t n_dims, uint64_t d0, uint64_t d1, uint32_t type,
                                 uint64_t offset) {
    struct builder b = {0};
    put_header(&b, 1, 0);
    put_tensor(&b, "t", n_dims, d0, d1, type, offset);
    put_data(&b, 64);
    return b;
}

static void test_lies_of_tensors_are_named(void **state) {
    (void)state;
    struct bt_error err = {0};
    struct builder b = one_tensor(1, 16, 0, 0, 0);
    assert_int_equal(open_copy(&b, b.n, &err), BT_OK);
    b = one_tensor(5, 1, 1, 0, 0);
    refused(&b, BT_E_INVALID, "has 5 dimensions, must be 1 to 4");
    b = one_tensor(2, 4, 0, 0, 0);
    refused(&b, BT_E_INVALID, "dimension 1 is 0; must be 1 or more");
    b = one_tensor(2, 1ull << 33, 1ull << 33, 0, 0);
    refused(&b, BT_E_INVALID, "all elements must be fewer than 2^64");
    b = one_tensor(2, 1ull << 32, 1ull << 31, 0, 0);
    refused(&b, BT_E_INVALID, "do not fit 64 bits");
    b = one_tensor(1, 16, 0, 4, 0);
    refused(&b, BT_E_UNSUPPORTED, "tensor \"t\" is of type 4");
    b = one_tensor(1, 33, 0, 3, 0);
    refused(&b, BT_E_INVALID, "rows of 33 elements are not whole blocks of 32 (Q4_1)");
    b = one_tensor(1, 4, 0, 0, 8);
    refused(&b, BT_E_INVALID, "offset 8 is no multiple of the alignment 32");
    b = one_tensor(1, 16, 0, 0, 32);
    refused(&b, BT_E_INVALID, "64 bytes at offset 32 pass the end of the file");
    b = one_tensor(1, 16, 0, 0, UINT64_MAX - 31);
    refused(&b, BT_E_INVALID, "pass the end of the file");
    b = (struct builder){0};
    put_header(&b, 2, 0);
    put_tensor(&b, "t", 1, 1, 0, 0, 0);
    put_tensor(&b, "t", 1, 1, 0, 0, 32);
    put_data(&b, 64);
    refused(&b, BT_E_INVALID, "tensor \"t\" stands twice");
}

static void test_files_are_mapped_and_refused_by_path(void **state) {
    (void)state;
    struct bt_gguf *g = NULL;
    struct bt_error err = {0};
    assert_int_equal(bt_gguf_open("/nonexistent.gguf", &g, &err), BT_E_NOT_FOUND);
    assert_non_null(strstr(err.text, "/nonexistent.gguf"));
    assert_int_equal(bt_gguf_open("/", &g, &err), BT_E_INVALID);
    assert_int_equal(bt_gguf_open("/dev/null", &g, &err), BT_E_INVALID);
    assert_null(g);
    char path[] = "/tmp/test_gguf_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    struct builder b = {0};
    assert_int_equal(bt_gguf_open(path, &g, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "has 0 bytes, a GGUF file has at least 24"));
    put_good_file(&b);
    assert_int_equal(write(fd, b.bytes, b.n), b.n);
    close(fd);
    assert_int_equal(bt_gguf_open(path, &g, &err), BT_OK);
    assert_non_null(bt_gguf_find_key(g, "a.words"));
    bt_gguf_close(g);
    unlink(path);
}

static void test_a_real_model_file_opens(void **state) {
    (void)state;
    struct bt_gguf *g = NULL;
    struct bt_error err = {0};
    assert_int_equal(bt_gguf_open(BT_FIXTURES "/tiny_gguf/tiny-llama-Q4_1.gguf", &g, &err), BT_OK);
    struct bt_gguf_array tokens;
    uint32_t width;
    assert_int_equal(bt_gguf_get_array(g, "tokenizer.ggml.tokens", BT_GGUF_STRING, &tokens, NULL),
                     BT_OK);
    assert_int_equal(tokens.n_elements, 512);
    assert_int_equal(bt_gguf_get_u32(g, "llama.embedding_length", &width, NULL), BT_OK);
    assert_int_equal(width, 256);
    assert_int_equal(bt_gguf_n_tensors(g), 2 + 2 * 9);
    assert_int_equal(bt_gguf_find_tensor(g, "token_embd.weight")->dims[1], 512);
    bt_gguf_close(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_good_file_gives_all_back),
        cmocka_unit_test(test_every_cut_is_refused),
        cmocka_unit_test(test_every_changed_byte_is_refused_or_read),
        cmocka_unit_test(test_lies_of_the_head_are_named),
        cmocka_unit_test(test_lies_of_keys_are_named),
        cmocka_unit_test(test_lies_of_tensors_are_named),
        cmocka_unit_test(test_files_are_mapped_and_refused_by_path),
        cmocka_unit_test(test_a_real_model_file_opens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

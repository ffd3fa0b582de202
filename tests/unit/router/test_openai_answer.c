/* Tests what clients read: chunks, whole answers and errors are JSON of the right shape. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>

#include "router/openai_answer.h"
#include "router/text_buffer.h"

static struct bt_openai_skeletons skeletons;

static int set_up(void **state) {
    (void)state;
    return bt_openai_skeletons_init(&skeletons, "a \"model\"", NULL) == BT_OK ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    bt_openai_skeletons_fini(&skeletons);
    return 0;
}

static struct bt_openai_answer answer(enum bt_openai_kind kind) {
    return (struct bt_openai_answer){
        .skeletons = &skeletons, .kind = kind, .n_prompt = 5, .id = 0xabc, .created_s = 1700000001};
}

/* The JSON of one event, and a check of its frame. */
static json_t *event(const struct bt_text_buffer *out) {
    assert_false(out->failed);
    assert_memory_equal(out->data, "data: ", 6);
    assert_memory_equal(out->data + out->n_bytes - 2, "\n\n", 2);
    json_t *root = json_loadb(out->data + 6, out->n_bytes - 8, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    assert_null(memchr(out->data, '\n', out->n_bytes - 2));
    return root;
}

static const char *string_at(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

static void chat_chunks(void **state) {
    (void)state;
    struct bt_openai_answer a = answer(BT_OPENAI_CHAT);
    struct bt_text_buffer out = {0};
    struct bt_piece piece = {.text = {"say \"hi\"\n\x01", 10}};
    bt_openai_write_chunk(&out, &a, &piece);
    json_t *root = event(&out);
    assert_string_equal(string_at(root, "id"), "chatcmpl-0000000000000abc");
    assert_string_equal(string_at(root, "object"), "chat.completion.chunk");
    assert_string_equal(string_at(root, "model"), "a \"model\"");
    assert_int_equal(json_integer_value(json_object_get(root, "created")), 1700000001);
    assert_null(json_object_get(root, "usage"));
    json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    json_t *delta = json_object_get(choice, "delta");
    assert_string_equal(string_at(delta, "role"), "assistant");
    assert_string_equal(string_at(delta, "content"), "say \"hi\"\n\x01");
    assert_true(json_is_null(json_object_get(choice, "finish_reason")));
    json_decref(root);

    out.n_bytes = 0;
    piece = (struct bt_piece){.index = 1, .text = {"", 0}, .finish = BT_FINISH_LENGTH};
    a.include_usage = true;
    bt_openai_write_chunk(&out, &a, &piece);
    root = event(&out);
    choice = json_array_get(json_object_get(root, "choices"), 0);
    delta = json_object_get(choice, "delta");
    assert_null(json_object_get(delta, "role"));
    assert_string_equal(string_at(choice, "finish_reason"), "length");
    assert_true(json_is_null(json_object_get(root, "usage")));
    json_decref(root);
    bt_text_buffer_fini(&out);
}

static void ids_hashes_and_usage(void **state) {
    (void)state;
    struct bt_openai_answer a = answer(BT_OPENAI_COMPLETION);
    struct bt_text_buffer out = {0};
    struct bt_piece piece = {
        .index = 2, .token = 17, .hash = 0x0123456789abcdefull, .text = {"x", 1}};
    a.return_token_ids = a.return_logits_hash = a.continuous_usage = true;
    bt_openai_write_chunk(&out, &a, &piece);
    json_t *root = event(&out);
    json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    assert_string_equal(string_at(root, "id"), "cmpl-0000000000000abc");
    assert_string_equal(string_at(choice, "text"), "x");
    json_t *ids = json_object_get(choice, "token_ids");
    assert_int_equal(json_integer_value(json_array_get(ids, 0)), 17);
    json_t *hashes = json_object_get(choice, "logits_hashes");
    assert_string_equal(json_string_value(json_array_get(hashes, 0)), "0123456789abcdef");
    json_t *usage = json_object_get(root, "usage");
    assert_int_equal(json_integer_value(json_object_get(usage, "total_tokens")), 8);
    json_decref(root);
    out.n_bytes = 0;
    a.include_usage = true;
    static const char extra[] = ",\"baton\":{\"a\":1}";
    bt_openai_write_last_chunk(&out, &a, 4, (struct bt_slice){extra, sizeof extra - 1});
    root = event(&out);
    assert_int_equal(json_array_size(json_object_get(root, "choices")), 0);
    usage = json_object_get(root, "usage");
    assert_int_equal(json_integer_value(json_object_get(usage, "completion_tokens")), 4);
    assert_int_equal(json_integer_value(json_object_get(usage, "prompt_tokens")), 5);
    assert_non_null(json_object_get(root, "baton"));
    json_decref(root);
    bt_text_buffer_fini(&out);
}

static void whole_answers(void **state) {
    (void)state;
    static const int32_t tokens[] = {3, 4};
    static const uint64_t hashes[] = {1, UINT64_MAX};
    for (int chat = 0; chat < 2; chat++) {
        struct bt_openai_answer a = answer(chat ? BT_OPENAI_CHAT : BT_OPENAI_COMPLETION);
        a.return_token_ids = a.return_logits_hash = true;
        struct bt_openai_whole whole = {.text = {"ab", 2},
                                        .tokens = tokens,
                                        .hashes = hashes,
                                        .n_generated = 2,
                                        .finish = BT_FINISH_STOP};
        struct bt_text_buffer out = {0};
        bt_openai_write_whole(&out, &a, &whole, (struct bt_slice){"", 0});
        json_t *root = json_loadb(out.data, out.n_bytes, JSON_REJECT_DUPLICATES, NULL);
        assert_non_null(root);
        json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
        json_t *message = json_object_get(choice, "message");
        assert_string_equal(string_at(root, "object"),
                            chat ? "chat.completion" : "text_completion");
        assert_string_equal(chat ? string_at(message, "content") : string_at(choice, "text"), "ab");
        assert_string_equal(string_at(choice, "finish_reason"), "stop");
        json_t *list = json_object_get(choice, "logits_hashes");
        assert_string_equal(json_string_value(json_array_get(list, 1)), "ffffffffffffffff");
        assert_int_equal(json_array_size(json_object_get(choice, "token_ids")), 2);
        json_t *usage = json_object_get(root, "usage");
        assert_int_equal(json_integer_value(json_object_get(usage, "total_tokens")), 7);
        json_decref(root);
        bt_text_buffer_fini(&out);
    }
}

static void errors_have_openais_shape(void **state) {
    (void)state;
    struct bt_text_buffer out = {0};
    bt_openai_write_error(&out, 400, "no \"x\"", "x", NULL);
    json_t *root = json_loadb(out.data, out.n_bytes, 0, NULL);
    json_t *error = json_object_get(root, "error");
    assert_string_equal(string_at(error, "message"), "no \"x\"");
    assert_string_equal(string_at(error, "type"), "invalid_request_error");
    assert_string_equal(string_at(error, "param"), "x");
    assert_string_equal(string_at(error, "code"), "invalid_value");
    json_decref(root);
    out.n_bytes = 0;
    bt_openai_write_error(&out, 429, "full", NULL, NULL);
    root = json_loadb(out.data, out.n_bytes, 0, NULL);
    error = json_object_get(root, "error");
    assert_true(json_is_null(json_object_get(error, "param")));
    assert_string_equal(string_at(error, "code"), "rate_limit_exceeded");
    json_decref(root);
    out.n_bytes = 0;
    bt_openai_write_error(&out, 418, "tea", NULL, "model_not_found");
    root = json_loadb(out.data, out.n_bytes, 0, NULL);
    error = json_object_get(root, "error");
    assert_string_equal(string_at(error, "type"), "server_error");
    assert_string_equal(string_at(error, "code"), "model_not_found");
    json_decref(root);
    bt_text_buffer_fini(&out);
}

/* Every byte that a JSON string must not hold as it is comes back as it was. */
static void strings_survive(void **state) {
    (void)state;
    char text[130];
    size_t n = 0;
    for (int c = 1; c < 0x80; c++)
        text[n++] = (char)c;
    text[n] = 0;
    struct bt_text_buffer out = {0};
    bt_text_buffer_add_json(&out, text);
    json_t *value = json_loadb(out.data, out.n_bytes, JSON_DECODE_ANY, NULL);
    assert_non_null(value);
    assert_string_equal(json_string_value(value), text);
    json_decref(value);
    out.n_bytes = 0;
    bt_text_buffer_add_i64(&out, INT64_MIN);
    bt_text_buffer_add(&out, " ", 1);
    bt_text_buffer_add_u64(&out, UINT64_MAX);
    bt_text_buffer_add(&out, "", 1);
    assert_string_equal(out.data, "-9223372036854775808 18446744073709551615");
    bt_text_buffer_fini(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chat_chunks),     cmocka_unit_test(ids_hashes_and_usage),
        cmocka_unit_test(whole_answers),   cmocka_unit_test(errors_have_openais_shape),
        cmocka_unit_test(strings_survive),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

/* Messages of the public service become the same request that OpenAI's would. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "router/grpc_request.h"

#define TEXT(literal) \
    { (literal), sizeof(literal) - 1 }

static struct bt_generate_fault fault;
static struct bt_error err;
static const struct bt_generate_check check = {&fault, &err};

static struct bt_inference_generate plain(void) {
    return (struct bt_inference_generate){
        .model = {"", 0},
        .cache_salt = TEXT("salt"),
        .prompt = {.kind = BT_INFERENCE_TEXT, .text = TEXT("hello"), .add_special_tokens = true},
        .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .max_tokens = 9},
        .max_tokens_given = true,
        .n = 3,
        .n_stops = 1,
        .stops = {TEXT("end")},
        .include_stop_text = true,
    };
}

static void test_text(void **state) {
    (void)state;
    struct bt_inference_generate message = plain();
    struct bt_grpc_request out;
    message.model = (struct bt_inference_text)TEXT("m");
    assert_int_equal(bt_grpc_request_fill(&message, &out, &check), BT_OK);
    const struct bt_generate_request *r = &out.generate;
    assert_string_equal(r->model, "m");
    assert_string_equal(r->tenant, "salt");
    assert_int_equal(r->n, 3);
    assert_int_equal(r->n_prompts, 1);
    assert_true(r->prompts[0].is_text && r->prompts[0].text.n_bytes == 5);
    assert_true(r->include_stop && r->max_tokens_given && !r->seed_given);
    assert_false(r->skip_special_tokens);
    assert_int_equal(r->stops[0].n_bytes, 3);
    assert_int_equal(bt_generate_request_check(r, 100, &check), BT_OK);
    bt_grpc_request_fini(&out);
    message.model.n_bytes = 0;
    assert_int_equal(bt_grpc_request_fill(&message, &out, &check), BT_OK);
    assert_null(out.generate.model);
    bt_grpc_request_fini(&out);
}

static void test_chat(void **state) {
    (void)state;
    struct bt_inference_generate message = plain();
    struct bt_grpc_request out;
    struct bt_inference_message messages[] = {{TEXT("user"), TEXT("a\xc3\xb6")},
                                              {TEXT("assistant"), TEXT("")}};
    message.prompt = (struct bt_inference_prompt){.kind = BT_INFERENCE_CHAT,
                                                  .messages = messages,
                                                  .n_messages = 2,
                                                  .add_generation_prompt = true};
    assert_int_equal(bt_grpc_request_fill(&message, &out, &check), BT_OK);
    assert_int_equal(json_array_size(out.generate.messages), 2);
    const json_t *first = json_array_get(out.generate.messages, 0);
    assert_string_equal(json_string_value(json_object_get(first, "content")), "a\xc3\xb6");
    bt_grpc_request_fini(&out);
    messages[1].content = (struct bt_inference_text)TEXT("a\0b");
    assert_int_equal(bt_grpc_request_fill(&message, &out, &check), BT_E_INVALID);
    assert_string_equal(fault.param, "messages[1].content");
    messages[1].content = (struct bt_inference_text)TEXT("\xff");
    assert_int_equal(bt_grpc_request_fill(&message, &out, &check), BT_E_INVALID);
    messages[1].content = (struct bt_inference_text)TEXT("");
    messages[0].role = (struct bt_inference_text)TEXT("wizard");
    assert_int_equal(bt_grpc_request_fill(&message, &out, &check), BT_E_INVALID);
    assert_string_equal(fault.param, "messages[0].role");
}

static void test_utf8(void **state) {
    (void)state;
    struct bt_grpc_request out;
    struct bt_inference_generate message = plain();
    message.prompt.text = (struct bt_inference_text)TEXT("a\0b"); /* a NUL is a character */
    assert_int_equal(bt_grpc_request_fill(&message, &out, &check), BT_OK);
    bt_grpc_request_fini(&out);
    message.prompt.text = (struct bt_inference_text)TEXT("\xc3");
    assert_int_equal(bt_grpc_request_fill(&message, &out, &check), BT_E_INVALID);
    assert_string_equal(fault.param, "prompt");
    message = plain();
    message.stops[0] = (struct bt_inference_text)TEXT("\x80");
    assert_int_equal(bt_grpc_request_fill(&message, &out, &check), BT_E_INVALID);
    assert_string_equal(fault.param, "stop");
}

static void test_field_names(void **state) {
    (void)state;
    const struct bt_inference_prompt text = {.kind = BT_INFERENCE_TEXT},
                                     ids = {.kind = BT_INFERENCE_TOKENS};
    static const char *const rows[][2] = {{"temperature", "sampling.temperature"},
                                          {"n", "n"},
                                          {"model", "model"},
                                          {"", ""},
                                          {"messages", "chat.messages"},
                                          {"messages[3].role", "chat.messages[3].role"},
                                          {"cache_salt", "cache_salt"},
                                          {"prompt", "text"}};
    char field[BT_INFERENCE_FIELD_BYTES];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        bt_grpc_request_field(rows[i][0], &text, field);
        assert_string_equal(field, rows[i][1]);
    }
    bt_grpc_request_field("prompt", &ids, field);
    assert_string_equal(field, "tokens.ids");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_chat),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_field_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Tests what clients read: chunks, whole answers and errors are JSON of the right shape. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>

#include "byte_tokenizer.h"
#include "router/openai_choice.h"
#include "router/text_buffer.h"

static struct bt_openai_skeletons skeletons;

static int set_up_all(void **state) {
    if (set_up(state) != 0)
        return -1;
    return bt_openai_skeletons_init(&skeletons, "a \"model\"", NULL) == BT_OK ? 0 : -1;
}

static int tear_down_all(void **state) {
    bt_openai_skeletons_fini(&skeletons);
    return tear_down(state);
}

static const int32_t prompt_ids[] = {'a', 0xc3, 0xa9, 'b', 256};
static const struct bt_prompt prompts[] = {{.ids = prompt_ids, .n_ids = 5},
                                           {.ids = prompt_ids, .n_ids = 1}};

static struct bt_openai_answer answer(enum bt_openai_kind kind) {
    return (struct bt_openai_answer){.skeletons = &skeletons,
                                     .tok = tok,
                                     .kind = kind,
                                     .n_shown = 1,
                                     .n_per_prompt = 1,
                                     .skip_special_tokens = true,
                                     .id = 0xabc,
                                     .created_s = 1700000001};
}

static void begin(struct bt_openai_answer *a, uint32_t n_prompts) {
    const struct bt_sink_begin begin = {prompts, n_prompts, n_prompts * a->n_per_prompt};
    bt_openai_answer_begin(a, &begin);
    assert_false(a->failed);
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
    begin(&a, 1);
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
    bt_openai_answer_fini(&a);
}

static void ids_hashes_and_usage(void **state) {
    (void)state;
    struct bt_openai_answer a = answer(BT_OPENAI_COMPLETION);
    struct bt_text_buffer out = {0};
    begin(&a, 1);
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
    const struct bt_sink_end end = {.n_prompt = 5, .n_generated = 4, .n_cached = 3};
    bt_openai_write_last_chunk(&out, &a, &end, (struct bt_slice){extra, sizeof extra - 1});
    root = event(&out);
    assert_int_equal(json_array_size(json_object_get(root, "choices")), 0);
    usage = json_object_get(root, "usage");
    assert_int_equal(json_integer_value(json_object_get(usage, "completion_tokens")), 4);
    assert_int_equal(json_integer_value(json_object_get(usage, "prompt_tokens")), 5);
    json_t *details = json_object_get(usage, "prompt_tokens_details");
    assert_int_equal(json_integer_value(json_object_get(details, "cached_tokens")), 3);
    assert_non_null(json_object_get(root, "baton"));
    json_decref(root);
    bt_text_buffer_fini(&out);
    bt_openai_answer_fini(&a);
}

/* A whole answer's JSON, checked to have no key twice. */
static json_t *whole(struct bt_openai_answer *a, const struct bt_openai_choice *choices,
                     const struct bt_sink_end *end) {
    struct bt_text_buffer out = {0};
    bt_openai_write_whole(&out, a, choices, end, (struct bt_slice){"", 0});
    assert_false(out.failed);
    json_t *root = json_loadb(out.data, out.n_bytes, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    bt_text_buffer_fini(&out);
    return root;
}

static json_t *choice_at(const json_t *root, size_t i) {
    json_t *choice = json_array_get(json_object_get(root, "choices"), i);
    assert_int_equal(json_integer_value(json_object_get(choice, "index")), i);
    return choice;
}

static double number_at(const json_t *array, size_t i) {
    assert_true(json_is_number(json_array_get(array, i)));
    return json_number_value(json_array_get(array, i));
}

static void whole_answers(void **state) {
    (void)state;
    for (int chat = 0; chat < 2; chat++) {
        struct bt_openai_answer a = answer(chat ? BT_OPENAI_CHAT : BT_OPENAI_COMPLETION);
        a.return_token_ids = a.return_logits_hash = true;
        begin(&a, 1);
        struct bt_openai_choice choice = {0};
        const struct bt_piece first = {.token = 'a', .hash = 1, .text = {"a", 1}};
        const struct bt_piece last = {.index = 1,
                                      .token = 'b',
                                      .hash = UINT64_MAX,
                                      .text = {"b", 1},
                                      .finish = BT_FINISH_STOP};
        bt_openai_choice_add(&choice, &a, &first);
        bt_openai_choice_add(&choice, &a, &last);
        const struct bt_sink_end end = {.n_prompt = 5, .n_generated = 2};
        json_t *root = whole(&a, &choice, &end), *answered = choice_at(root, 0);
        json_t *message = json_object_get(answered, "message");
        assert_string_equal(string_at(root, "object"),
                            chat ? "chat.completion" : "text_completion");
        assert_string_equal(chat ? string_at(message, "content") : string_at(answered, "text"),
                            "ab");
        assert_string_equal(string_at(answered, "finish_reason"), "stop");
        assert_true(json_is_null(json_object_get(answered, "logprobs")));
        json_t *list = json_object_get(answered, "logits_hashes");
        assert_string_equal(json_string_value(json_array_get(list, 1)), "ffffffffffffffff");
        assert_int_equal(json_array_size(json_object_get(answered, "token_ids")), 2);
        json_t *usage = json_object_get(root, "usage");
        assert_int_equal(json_integer_value(json_object_get(usage, "total_tokens")), 7);
        json_decref(root);
        bt_openai_choice_fini(&choice);
        bt_openai_answer_fini(&a);
    }
}

/* The likeliest are 'x' and a byte that is no character; the token itself is third. */
static const struct bt_logprobs sample = {
    .logprob = -2.5f, .n_top = 2, .top = {{'x', -0.1f}, {0xc3, -1e-5f}}};

static void logprobs_of_a_chat(void **state) {
    (void)state;
    struct bt_openai_answer a = answer(BT_OPENAI_CHAT);
    struct bt_text_buffer out = {0};
    a.logprobs = 1 + 2;
    begin(&a, 1);
    /* Text is held back, and yet the token has its entry. */
    const struct bt_piece piece = {.token = 0xa9, .logprobs = &sample};
    struct bt_openai_choice choice = {0};
    const struct bt_sink_end end = {.n_generated = 1};
    bt_openai_choice_add(&choice, &a, &piece);
    bt_openai_write_chunk(&out, &a, &piece);
    json_t *roots[2] = {whole(&a, &choice, &end), event(&out)};
    for (int i = 0; i < 2; i++) {
        json_t *content =
            json_object_get(json_object_get(choice_at(roots[i], 0), "logprobs"), "content");
        assert_int_equal(json_array_size(content), 1);
        json_t *entry = json_array_get(content, 0), *top = json_object_get(entry, "top_logprobs");
        assert_string_equal(string_at(entry, "token"), "bytes:\\xa9");
        assert_true(json_number_value(json_object_get(entry, "logprob")) == -2.5);
        assert_int_equal(number_at(json_object_get(entry, "bytes"), 0), 0xa9);
        assert_int_equal(json_array_size(top), 2);
        assert_string_equal(string_at(json_array_get(top, 0), "token"), "x");
        /* The float comes back as it was. */
        assert_true((float)json_number_value(json_object_get(json_array_get(top, 0), "logprob")) ==
                    -0.1f);
        assert_true((float)json_number_value(json_object_get(json_array_get(top, 1), "logprob")) ==
                    -1e-5f);
        json_decref(roots[i]);
    }
    bt_openai_choice_fini(&choice);
    bt_text_buffer_fini(&out);
    bt_openai_answer_fini(&a);
}

/* Control tokens have text of their own in the lists; what is never chosen has a number. */
static void logprobs_of_a_completion(void **state) {
    (void)state;
    struct bt_openai_answer a = answer(BT_OPENAI_COMPLETION);
    struct bt_text_buffer out = {0};
    const struct bt_logprobs never = {
        .logprob = -__builtin_inff(), .n_top = 2, .top = {{256, -0.5f}, {'q', -1}}};
    a.logprobs = 1 + 1;
    begin(&a, 1);
    const struct bt_piece piece = {
        .choice = 0, .index = 3, .token = 'z', .text = {"z", 1}, .offset = 7, .logprobs = &never};
    bt_openai_write_chunk(&out, &a, &piece);
    json_t *root = event(&out), *logprobs = json_object_get(choice_at(root, 0), "logprobs");
    assert_string_equal(json_string_value(json_array_get(json_object_get(logprobs, "tokens"), 0)),
                        "z");
    assert_true(number_at(json_object_get(logprobs, "token_logprobs"), 0) == -9999);
    assert_int_equal(number_at(json_object_get(logprobs, "text_offset"), 0), 7);
    json_t *top = json_array_get(json_object_get(logprobs, "top_logprobs"), 0);
    assert_int_equal(json_object_size(top), 2); /* one was asked for; the token itself is added */
    assert_true(json_number_value(json_object_get(top, "<end>")) == -0.5);
    assert_true(json_number_value(json_object_get(top, "z")) == -9999);
    json_decref(root);
    bt_text_buffer_fini(&out);
    bt_openai_answer_fini(&a);
}

static void score_prompt(struct bt_openai_answer *a, uint32_t prompt, float base) {
    struct bt_logprobs rows[4];
    for (uint32_t i = 0; i < 4; i++)
        rows[i] = (struct bt_logprobs){.logprob = base - (float)i,
                                       .n_top = 2,
                                       .top = {{'x', -0.25f}, {prompt_ids[i + 1], base}}};
    /* In two parts, as they may come. */
    struct bt_scores scores = {prompt, 1, 1, rows};
    bt_openai_answer_scores(a, &scores);
    scores = (struct bt_scores){prompt, 2, 3, rows + 1};
    bt_openai_answer_scores(a, &scores);
}

static void check_echo(const json_t *choice, size_t n) {
    assert_memory_equal(string_at(choice, "text"),
                        "a\xc3\xa9"
                        "b",
                        4);
    const json_t *logprobs = json_object_get(choice, "logprobs");
    const json_t *offsets = json_object_get(logprobs, "text_offset");
    const json_t *tokens = json_object_get(logprobs, "tokens");
    const json_t *numbers = json_object_get(logprobs, "token_logprobs");
    const json_t *tops = json_object_get(logprobs, "top_logprobs");
    assert_int_equal(json_array_size(offsets), n);
    assert_int_equal(json_array_size(tokens), n);
    assert_int_equal(json_array_size(numbers), n);
    assert_int_equal(json_array_size(tops), n);
    assert_true(json_is_null(json_array_get(numbers, 0)));
    assert_true(json_is_null(json_array_get(tops, 0)));
    assert_true(number_at(numbers, 1) == -1);
    assert_true(number_at(numbers, 4) == -4);
    static const int starts[] = {0, 1, 1, 2, 3};
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(number_at(offsets, i), starts[i]);
    assert_string_equal(json_string_value(json_array_get(tokens, 4)), "<end>");
    assert_true(json_number_value(json_object_get(json_array_get(tops, 1), "x")) == -0.25);
}

static void an_echo_has_its_scores(void **state) {
    (void)state;
    struct bt_openai_answer a = answer(BT_OPENAI_COMPLETION);
    struct bt_text_buffer out = {0};
    a.echo = true;
    a.logprobs = 1 + 1;
    begin(&a, 1);
    score_prompt(&a, 0, -1);
    const struct bt_piece piece = {.token = 'c', .text = {"c", 1}, .logprobs = &sample};
    struct bt_openai_choice choice = {0};
    const struct bt_sink_end end = {.n_generated = 1};
    bt_openai_choice_add(&choice, &a, &piece);
    json_t *root = whole(&a, &choice, &end);
    check_echo(choice_at(root, 0), 6);
    assert_string_equal(string_at(choice_at(root, 0), "text"), "a\xc3\xa9"
                                                               "bc");
    json_t *offsets =
        json_object_get(json_object_get(choice_at(root, 0), "logprobs"), "text_offset");
    assert_int_equal(number_at(offsets, 5), 3);
    json_decref(root);
    /* In a stream the prompt is an event of its own. */
    bt_openai_write_chunk(&out, &a, &piece);
    char *second = strstr(out.data, "\n\n") + 2;
    struct bt_text_buffer half = {.data = out.data, .n_bytes = (size_t)(second - out.data)};
    root = event(&half);
    check_echo(choice_at(root, 0), 5);
    json_decref(root);
    half = (struct bt_text_buffer){.data = second,
                                   .n_bytes = out.n_bytes - (size_t)(second - out.data)};
    root = event(&half);
    assert_string_equal(string_at(choice_at(root, 0), "text"), "c");
    json_decref(root);
    bt_openai_choice_fini(&choice);
    bt_text_buffer_fini(&out);
    bt_openai_answer_fini(&a);
}

static void a_prompt_alone(void **state) {
    (void)state;
    struct bt_openai_answer a = answer(BT_OPENAI_COMPLETION);
    a.echo = true;
    a.logprobs = 1;
    a.continuous_usage = a.return_token_ids = true;
    begin(&a, 1);
    score_prompt(&a, 0, -1);
    const struct bt_piece piece = {.token = -1, .finish = BT_FINISH_LENGTH};
    struct bt_openai_choice choice = {0};
    const struct bt_sink_end end = {.n_prompt = 5};
    bt_openai_choice_add(&choice, &a, &piece);
    json_t *root = whole(&a, &choice, &end);
    assert_string_equal(string_at(choice_at(root, 0), "text"), "a\xc3\xa9"
                                                               "b");
    assert_string_equal(string_at(choice_at(root, 0), "finish_reason"), "length");
    json_t *logprobs = json_object_get(choice_at(root, 0), "logprobs");
    assert_int_equal(json_array_size(json_object_get(logprobs, "tokens")), 5);
    assert_int_equal(json_array_size(json_object_get(choice_at(root, 0), "token_ids")), 0);
    json_decref(root);
    struct bt_text_buffer out = {0};
    bt_openai_write_chunk(&out, &a, &piece);
    char *second = strstr(out.data, "\n\n") + 2;
    struct bt_text_buffer half = {.data = second,
                                  .n_bytes = out.n_bytes - (size_t)(second - out.data)};
    root = event(&half);
    assert_string_equal(string_at(choice_at(root, 0), "finish_reason"), "length");
    json_t *usage = json_object_get(root, "usage");
    assert_int_equal(json_integer_value(json_object_get(usage, "completion_tokens")), 0);
    json_decref(root);
    bt_text_buffer_fini(&out);
    bt_openai_choice_fini(&choice);
    bt_openai_answer_fini(&a);
}

static void scores_as_vllm_has_them(void **state) {
    (void)state;
    for (int chat = 0; chat < 2; chat++) {
        struct bt_openai_answer a = answer(chat ? BT_OPENAI_CHAT : BT_OPENAI_COMPLETION);
        a.prompt_logprobs = 1 + 1;
        begin(&a, 1);
        score_prompt(&a, 0, -1);
        struct bt_openai_choice choice = {0};
        const struct bt_sink_end end = {.n_prompt = 5};
        json_t *root = whole(&a, &choice, &end);
        json_t *scores = json_object_get(chat ? root : choice_at(root, 0), "prompt_logprobs");
        assert_int_equal(json_array_size(scores), 5);
        assert_true(json_is_null(json_array_get(scores, 0)));
        json_t *second = json_array_get(scores, 1);
        assert_int_equal(json_object_size(second), 2);
        json_t *x = json_object_get(second, "120"), *own = json_object_get(second, "195");
        assert_true(json_number_value(json_object_get(x, "logprob")) == -0.25);
        assert_int_equal(json_integer_value(json_object_get(x, "rank")), 1);
        assert_string_equal(string_at(x, "decoded_token"), "x");
        assert_true(json_number_value(json_object_get(own, "logprob")) == -1);
        assert_int_equal(json_integer_value(json_object_get(own, "rank")), 2);
        json_decref(root);
        bt_openai_choice_fini(&choice);
        bt_openai_answer_fini(&a);
    }
}

/* Of each prompt's three choices the two with the highest mean logprob, best first. */
static void the_best_are_shown(void **state) {
    (void)state;
    struct bt_openai_answer a = answer(BT_OPENAI_COMPLETION);
    a.n_shown = 2;
    a.n_per_prompt = 3;
    begin(&a, 2);
    static const float rates[] = {-3, -1, -2, -1, -1, -0.5f};
    struct bt_openai_choice choices[6] = {0};
    for (uint32_t i = 0; i < 6; i++) {
        const struct bt_logprobs logprobs = {.logprob = rates[i]};
        const char text[] = {(char)('A' + i)};
        struct bt_piece piece = {
            .choice = i, .token = 'a', .text = {text, 1}, .logprobs = &logprobs};
        for (; piece.index <= i; piece.index++) /* as many as it likes: the mean counts */
            bt_openai_choice_add(&choices[i], &a, &piece);
    }
    const struct bt_sink_end end = {.n_generated = 21};
    json_t *root = whole(&a, choices, &end);
    static const char best[] = "BCFD";
    assert_int_equal(json_array_size(json_object_get(root, "choices")), 4);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(string_at(choice_at(root, i), "text")[0], best[i]);
    json_decref(root);
    for (size_t i = 0; i < 6; i++)
        bt_openai_choice_fini(&choices[i]);
    bt_openai_answer_fini(&a);
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
        cmocka_unit_test(chat_chunks),
        cmocka_unit_test(ids_hashes_and_usage),
        cmocka_unit_test(whole_answers),
        cmocka_unit_test(logprobs_of_a_chat),
        cmocka_unit_test(logprobs_of_a_completion),
        cmocka_unit_test(an_echo_has_its_scores),
        cmocka_unit_test(a_prompt_alone),
        cmocka_unit_test(scores_as_vllm_has_them),
        cmocka_unit_test(the_best_are_shown),
        cmocka_unit_test(errors_have_openais_shape),
        cmocka_unit_test(strings_survive),
    };
    return cmocka_run_group_tests(tests, set_up_all, tear_down_all);
}

/* Tests the reader of OpenAI requests: what each field becomes, and how each is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#include "openai_parse.h"

static void expect_refused(enum bt_openai_kind kind, const char *body, const char *param,
                           const char *words) {
    struct parsed p = parse(kind, body);
    if (p.status >= 0)
        fail_msg("taken: %s", body);
    assert_string_equal(p.fault.param, param);
    if (!strstr(p.err.text, words))
        fail_msg("\"%s\" does not say \"%s\"", p.err.text, words);
    assert_null(p.request.root);
}

static void defaults_of_a_completion(void **state) {
    (void)state;
    struct parsed p = parse(BT_OPENAI_COMPLETION, "{\"prompt\":\"hi\"}");
    assert_int_equal(p.status, BT_OK);
    assert_true(p.request.prompts->is_text);
    assert_memory_equal(p.request.prompts->text.data, "hi", 2);
    assert_int_equal(p.request.generate.sampling.max_tokens, 16);
    assert_true(p.request.generate.max_tokens_given);
    assert_true(p.request.generate.sampling.temperature == 1);
    assert_true(p.request.generate.sampling.top_p == 1);
    assert_true(p.request.generate.sampling.repetition_penalty == 1);
    assert_false(p.request.generate.seed_given);
    assert_false(p.request.stream);
    assert_true(p.request.generate.skip_special_tokens);
    bt_openai_request_fini(&p.request);
}

static void every_sampling_field(void **state) {
    (void)state;
    struct parsed p = parse(
        BT_OPENAI_COMPLETION,
        "{\"prompt\":[1,2,99],\"max_tokens\":7,\"temperature\":0.5,\"top_p\":0.9,\"top_k\":40,"
        "\"min_p\":0.1,\"seed\":-3,\"stop\":[\"a\",\"bc\"],\"frequency_penalty\":-2,"
        "\"presence_penalty\":2,\"repetition_penalty\":1.5,\"ignore_eos\":true,\"min_tokens\":3,"
        "\"stop_token_ids\":[4,5],\"return_token_ids\":true,\"return_logits_hash\":true,"
        "\"stream\":true,\"stream_options\":{\"include_usage\":true},"
        "\"include_stop_str_in_output\":true,\"skip_special_tokens\":false,"
        "\"cache_salt\":\"me\",\"model\":\"m\",\"user\":\"ignored\",\"new_field\":[1]}");
    assert_int_equal(p.status, BT_OK);
    const struct bt_openai_request *r = &p.request;
    assert_int_equal(r->prompts->n_ids, 3);
    assert_int_equal(r->prompts->ids[2], 99);
    assert_int_equal(r->generate.sampling.max_tokens, 7);
    assert_true(r->generate.sampling.temperature == 0.5f);
    assert_true(r->generate.sampling.top_p == 0.9f);
    assert_int_equal(r->generate.sampling.top_k, 40);
    assert_true(r->generate.sampling.min_p == 0.1f);
    assert_true(r->generate.seed_given);
    assert_true(r->generate.sampling.seed == (uint64_t)-3);
    assert_int_equal(r->generate.n_stops, 2);
    assert_int_equal(r->generate.stops[1].n_bytes, 2);
    assert_true(r->generate.sampling.frequency_penalty == -2 &&
                r->generate.sampling.presence_penalty == 2);
    assert_true(r->generate.sampling.repetition_penalty == 1.5f);
    assert_true(r->generate.sampling.ignore_eos);
    assert_int_equal(r->generate.sampling.min_tokens, 3);
    assert_int_equal(r->generate.sampling.n_stop_tokens, 2);
    assert_int_equal(r->generate.sampling.stop_tokens[1], 5);
    assert_true(r->return_token_ids && r->return_logits_hash && r->generate.sampling.want_hash);
    assert_true(r->stream && r->include_usage && r->generate.include_stop &&
                !r->generate.skip_special_tokens);
    assert_string_equal(r->generate.tenant, "me");
    assert_string_equal(r->generate.model, "m");
    bt_openai_request_fini(&p.request);
}

static void null_is_absent(void **state) {
    (void)state;
    struct parsed p = parse(
        BT_OPENAI_CHAT,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"max_tokens\":null,\"stop\":null,"
        "\"logprobs\":null,\"temperature\":null,\"stream\":null,\"stream_options\":null,\"n\":null,"
        "\"tools\":null,\"response_format\":null,\"seed\":null,\"logit_bias\":null}");
    assert_int_equal(p.status, BT_OK);
    assert_false(p.request.generate.max_tokens_given);
    assert_false(p.request.generate.seed_given);
    assert_int_equal(json_array_size(p.request.generate.messages), 1);
    bt_openai_request_fini(&p.request);
}

static void neutral_values_are_taken(void **state) {
    (void)state;
    struct parsed p =
        parse(BT_OPENAI_CHAT,
              "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"n\":1,\"logprobs\":false,"
              "\"top_logprobs\":0,\"logit_bias\":{},\"tools\":[],\"tool_choice\":\"none\","
              "\"response_format\":{\"type\":\"text\"},\"modalities\":[\"text\"],\"echo\":false,"
              "\"bad_words\":[],\"max_completion_tokens\":9,\"max_tokens\":5,\"top_k\":-1}");
    assert_int_equal(p.status, BT_OK);
    assert_int_equal(p.request.generate.sampling.max_tokens, 9);
    assert_int_equal(p.request.generate.sampling.top_k, 0);
    bt_openai_request_fini(&p.request);
}

static void list_with_one_prompt(void **state) {
    (void)state;
    struct parsed p = parse(BT_OPENAI_COMPLETION, "{\"prompt\":[\"one\"]}");
    assert_int_equal(p.status, BT_OK);
    assert_true(p.request.prompts->is_text);
    bt_openai_request_fini(&p.request);
    p = parse(BT_OPENAI_COMPLETION, "{\"prompt\":[[7,8]]}");
    assert_int_equal(p.status, BT_OK);
    assert_int_equal(p.request.prompts->n_ids, 2);
    assert_int_equal(p.request.prompts->ids[0], 7);
    bt_openai_request_fini(&p.request);
}

static void text_parts_are_joined(void **state) {
    (void)state;
    const char *body = "{\"messages\":[{\"role\":\"user\",\"content\":["
                       "{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]}";
    struct parsed p = parse(BT_OPENAI_CHAT, body);
    assert_int_equal(p.status, BT_OK);
    const json_t *message = json_array_get(p.request.generate.messages, 0);
    assert_string_equal(json_string_value(json_object_get(message, "content")), "a\nb");
    bt_openai_request_fini(&p.request);
    struct parsed q = {0};
    q.status = bt_openai_request_parse(BT_OPENAI_CHAT, (struct bt_slice){body, strlen(body)}, VOCAB,
                                       false, &q.request, &q.fault, &q.err);
    assert_int_equal(q.status, BT_OK);
    message = json_array_get(q.request.generate.messages, 0);
    assert_true(json_is_array(json_object_get(message, "content")));
    bt_openai_request_fini(&q.request);
}

#define PROMPT(fields) "{\"prompt\":\"x\"," fields "}"

static void ranges_are_named(void **state) {
    (void)state;
    static const struct {
        const char *body, *param, *words;
    } rows[] = {
        {PROMPT("\"temperature\":2.1"), "temperature", "at least 0 and at most 2"},
        {PROMPT("\"temperature\":-0.1"), "temperature", "at least 0"},
        {PROMPT("\"temperature\":\"hot\""), "temperature", "must be a number, not a string"},
        {PROMPT("\"top_p\":0"), "top_p", "above 0 and at most 1"},
        {PROMPT("\"top_p\":1e-60"), "top_p", "above 0"},
        {PROMPT("\"top_p\":1.01"), "top_p", "at most 1"},
        {PROMPT("\"min_p\":-1"), "min_p", "at least 0"},
        {PROMPT("\"top_k\":-2"), "top_k", "from -1 to"},
        {PROMPT("\"top_k\":1.5"), "top_k", "must be an integer"},
        {PROMPT("\"max_tokens\":0"), "max_tokens", "with echo or prompt_logprobs only"},
        {PROMPT("\"max_tokens\":\"9\""), "max_tokens", "must be an integer, not a string"},
        {PROMPT("\"max_tokens\":99999999999"), "max_tokens", "from 0 to"},
        {PROMPT("\"max_tokens\":4,\"min_tokens\":5"), "min_tokens", "from 0 to 4"},
        {PROMPT("\"seed\":1.5"), "seed", "must be an integer"},
        {PROMPT("\"frequency_penalty\":2.5"), "frequency_penalty", "at most 2"},
        {PROMPT("\"presence_penalty\":-3"), "presence_penalty", "at least -2"},
        {PROMPT("\"repetition_penalty\":0"), "repetition_penalty", "above 0"},
        {PROMPT("\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]"), "stop", "at most 4"},
        {PROMPT("\"stop\":[\"\"]"), "stop", "1 to 256"},
        {PROMPT("\"stop\":7"), "stop", "a string or a list"},
        {PROMPT("\"stop\":[7]"), "stop", "stop[0] must be a string"},
        {PROMPT("\"stop_token_ids\":[100]"), "stop_token_ids", "from 0 to 99"},
        {PROMPT("\"stop_token_ids\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]"), "stop_token_ids",
         "at most 16"},
        {PROMPT("\"stream\":1"), "stream", "must be true or false"},
        {PROMPT("\"stream_options\":{}"), "stream_options", "stream: true"},
        {PROMPT("\"ignore_eos\":\"yes\""), "ignore_eos", "true or false"},
        {PROMPT("\"model\":5"), "model", "must be a string"},
        {PROMPT("\"cache_salt\":\"0123456789012345678901234567890123456789012345678901234567890123"
                "\""),
         "cache_salt", "at most 63"},
        {"{\"prompt\":[100]}", "prompt", "from 0 to 99"},
        {"{\"prompt\":[-1]}", "prompt", "from 0 to 99"},
        {"{\"prompt\":[1,\"a\"]}", "prompt", "must be a token id"},
        {"{\"prompt\":[]}", "prompt", "at least one token"},
        {"{\"prompt\":7}", "prompt", "a string or a list of token ids"},
        {"{}", "prompt", "missing"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        expect_refused(BT_OPENAI_COMPLETION, rows[i].body, rows[i].param, rows[i].words);
}

static void what_would_change_the_answer_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *body, *param;
    } rows[] = {
        {PROMPT("\"suffix\":\"x\""), "suffix"},
        {PROMPT("\"logprobs\":true"), "logprobs"},
        {PROMPT("\"top_logprobs\":2"), "top_logprobs"},
        {PROMPT("\"tools\":[{}]"), "tools"},
        {PROMPT("\"tool_choice\":\"required\""), "tool_choice"},
        {PROMPT("\"response_format\":{\"type\":\"json_object\"}"), "response_format"},
        {PROMPT("\"response_format\":\"text\""), "response_format"},
        {PROMPT("\"modalities\":[\"audio\"]"), "modalities"},
        {PROMPT("\"structured_outputs\":{}"), "structured_outputs"},
        {PROMPT("\"guided_json\":{}"), "guided_json"},
        {PROMPT("\"allowed_token_ids\":[]"), "allowed_token_ids"},
        {PROMPT("\"bad_words\":[\"x\"]"), "bad_words"},
        {PROMPT("\"use_beam_search\":true"), "use_beam_search"},
        {PROMPT("\"truncate_prompt_tokens\":3"), "truncate_prompt_tokens"},
        {PROMPT("\"continue_final_message\":true"), "continue_final_message"},
        {PROMPT("\"kv_transfer_params\":{}"), "kv_transfer_params"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        expect_refused(BT_OPENAI_COMPLETION, rows[i].body, rows[i].param, rows[i].param);
}

#define CHAT(messages) "{\"messages\":" messages "}"

static void messages_are_checked(void **state) {
    (void)state;
    static const struct {
        const char *body, *param, *words;
    } rows[] = {
        {"{}", "messages", "missing"},
        {CHAT("[]"), "messages", "empty"},
        {CHAT("\"hi\""), "messages", "must be an array"},
        {CHAT("[7]"), "messages", "messages[0] must be an object"},
        {CHAT("[{\"content\":\"x\"}]"), "messages[0].role", "must be a string"},
        {CHAT("[{\"role\":\"boss\",\"content\":\"x\"}]"), "messages[0].role", "\"boss\""},
        {CHAT("[{\"role\":\"user\"}]"), "messages[0].content", "missing"},
        {CHAT("[{\"role\":\"user\",\"content\":7}]"), "messages[0].content", "a string or a list"},
        {CHAT("[{\"role\":\"user\",\"content\":[7]}]"), "messages[0].content",
         "an object with a type"},
        {CHAT("[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]"),
         "messages[0].content", "image_url"},
        {CHAT("[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]"), "messages[0].content",
         "text must be a string"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        expect_refused(BT_OPENAI_CHAT, rows[i].body, rows[i].param, rows[i].words);
    struct parsed p = parse(BT_OPENAI_CHAT, CHAT("[{\"role\":\"assistant\",\"content\":null}]"));
    assert_int_equal(p.status, BT_OK);
    bt_openai_request_fini(&p.request);
}

static void not_json(void **state) {
    (void)state;
    static const char *const bodies[] = {
        "",
        "{",
        "nul",
        "{\"prompt\":\"x\"} trailing",
        "[1,2]",
        "{\"prompt\":\"\xff\xfe\"}",
        "7",
        "{\"prompt\":\"x\",\"prompt\":\"y\"}",
        "{\"prompt\":\"\\ud800\"}",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++)
        expect_refused(BT_OPENAI_COMPLETION, bodies[i], "", "the body");
}

static void tokenize_and_detokenize(void **state) {
    (void)state;
    struct parsed p = parse(BT_OPENAI_TOKENIZE, "{\"prompt\":\"\",\"n\":5}");
    assert_int_equal(p.status, BT_OK);
    bt_openai_request_fini(&p.request);
    p = parse(BT_OPENAI_TOKENIZE, CHAT("[{\"role\":\"user\",\"content\":\"x\"}]"));
    assert_int_equal(p.status, BT_OK);
    assert_non_null(p.request.generate.messages);
    bt_openai_request_fini(&p.request);
    p = parse(BT_OPENAI_DETOKENIZE, "{\"tokens\":[]}");
    assert_int_equal(p.status, BT_OK);
    assert_int_equal(p.request.prompts->n_ids, 0);
    bt_openai_request_fini(&p.request);
    expect_refused(BT_OPENAI_DETOKENIZE, "{\"tokens\":\"x\"}", "tokens", "list of token ids");
    expect_refused(BT_OPENAI_DETOKENIZE, "{}", "tokens", "missing");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_of_a_completion),
        cmocka_unit_test(every_sampling_field),
        cmocka_unit_test(null_is_absent),
        cmocka_unit_test(neutral_values_are_taken),
        cmocka_unit_test(list_with_one_prompt),
        cmocka_unit_test(text_parts_are_joined),
        cmocka_unit_test(ranges_are_named),
        cmocka_unit_test(what_would_change_the_answer_is_refused),
        cmocka_unit_test(messages_are_checked),
        cmocka_unit_test(not_json),
        cmocka_unit_test(tokenize_and_detokenize),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

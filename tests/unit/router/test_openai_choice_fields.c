/* Tests the fields of an OpenAI request about prompts, choices, logprobs and logit bias. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "openai_parse.h"

static struct parsed expect(enum bt_openai_kind kind, const char *body) {
    struct parsed p = parse(kind, body);
    if (p.status != BT_OK)
        fail_msg("%s: %s", body, p.err.text);
    /* What the parser takes the checks for both doors take too. */
    struct bt_generate_fault fault;
    struct bt_error err = {.text = ""};
    const struct bt_generate_check check = {&fault, &err};
    if (bt_generate_request_check(&p.request.generate, VOCAB, &check) != BT_OK)
        fail_msg("%s: %s", body, err.text);
    return p;
}

#define PROMPT(fields) "{\"prompt\":\"x\"," fields "}"
#define CHAT(fields) "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]," fields "}"

static void several_prompts(void **state) {
    (void)state;
    struct parsed p = expect(BT_OPENAI_COMPLETION, "{\"prompt\":[\"one\",[7,8],\"three\",[9]]}");
    assert_int_equal(p.request.generate.n_prompts, 4);
    assert_true(p.request.prompts[0].is_text && p.request.prompts[2].is_text);
    assert_memory_equal(p.request.prompts[2].text.data, "three", 5);
    assert_int_equal(p.request.prompts[1].n_ids, 2);
    assert_int_equal(p.request.prompts[1].ids[1], 8);
    assert_int_equal(p.request.prompts[3].n_ids, 1);
    assert_int_equal(p.request.prompts[3].ids[0], 9);
    assert_int_equal(bt_generate_request_choices(&p.request.generate), 4);
    bt_openai_request_fini(&p.request);
    p = expect(BT_OPENAI_COMPLETION, "{\"prompt\":[\"a\",\"b\"],\"n\":3}");
    assert_int_equal(bt_generate_request_choices(&p.request.generate), 6);
    bt_openai_request_fini(&p.request);
}

static void n_and_best_of(void **state) {
    (void)state;
    struct parsed p = expect(BT_OPENAI_CHAT, CHAT("\"n\":4,\"stream\":true"));
    assert_int_equal(p.request.n_shown, 4);
    assert_int_equal(p.request.generate.n, 4);
    assert_int_equal(p.request.generate.sampling.logprobs, 0);
    bt_openai_request_fini(&p.request);
    p = expect(BT_OPENAI_COMPLETION, PROMPT("\"n\":2,\"best_of\":5"));
    assert_int_equal(p.request.n_shown, 2);
    assert_int_equal(p.request.generate.n, 5);
    /* Needed to choose, not shown. */
    assert_int_equal(p.request.generate.sampling.logprobs, 1);
    assert_int_equal(p.request.logprobs, 0);
    bt_openai_request_fini(&p.request);
    p = expect(BT_OPENAI_COMPLETION, PROMPT("\"best_of\":1,\"stream\":true"));
    assert_int_equal(p.request.generate.n, 1);
    bt_openai_request_fini(&p.request);
}

static void logprobs(void **state) {
    (void)state;
    static const struct {
        enum bt_openai_kind kind;
        const char *body;
        int shown, prompt_shown, sampled, scored;
    } rows[] = {
        {BT_OPENAI_COMPLETION, PROMPT("\"logprobs\":null"), 0, 0, 0, 0},
        {BT_OPENAI_COMPLETION, PROMPT("\"logprobs\":false"), 0, 0, 0, 0},
        {BT_OPENAI_COMPLETION, PROMPT("\"logprobs\":0"), 1, 0, 1, 0},
        {BT_OPENAI_COMPLETION, PROMPT("\"logprobs\":20"), 21, 0, 21, 0},
        {BT_OPENAI_COMPLETION, PROMPT("\"logprobs\":5,\"echo\":true"), 6, 0, 6, 6},
        {BT_OPENAI_COMPLETION, PROMPT("\"echo\":true"), 0, 0, 0, 0},
        {BT_OPENAI_COMPLETION, PROMPT("\"prompt_logprobs\":3"), 0, 4, 0, 4},
        {BT_OPENAI_COMPLETION, PROMPT("\"prompt_logprobs\":1,\"logprobs\":4,\"echo\":true"), 5, 2,
         5, 5},
        {BT_OPENAI_CHAT, CHAT("\"logprobs\":true"), 1, 0, 1, 0},
        {BT_OPENAI_CHAT, CHAT("\"logprobs\":true,\"top_logprobs\":20"), 21, 0, 21, 0},
        {BT_OPENAI_CHAT, CHAT("\"logprobs\":false,\"top_logprobs\":0"), 0, 0, 0, 0},
        {BT_OPENAI_CHAT, CHAT("\"prompt_logprobs\":0"), 0, 1, 0, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct parsed p = expect(rows[i].kind, rows[i].body);
        assert_int_equal(p.request.logprobs, rows[i].shown);
        assert_int_equal(p.request.prompt_logprobs, rows[i].prompt_shown);
        assert_int_equal(p.request.generate.sampling.logprobs, rows[i].sampled);
        assert_int_equal(p.request.generate.sampling.prompt_logprobs, rows[i].scored);
        bt_openai_request_fini(&p.request);
    }
}

static void nothing_but_the_prompt(void **state) {
    (void)state;
    struct parsed p =
        expect(BT_OPENAI_COMPLETION, PROMPT("\"max_tokens\":0,\"echo\":true,\"logprobs\":1"));
    assert_true(p.request.generate.prompt_only && p.request.generate.keep_prompts);
    assert_int_equal(p.request.generate.sampling.max_tokens, 1);
    bt_openai_request_fini(&p.request);
    p = expect(BT_OPENAI_COMPLETION, PROMPT("\"max_tokens\":1,\"echo\":true"));
    assert_false(p.request.generate.prompt_only);
    bt_openai_request_fini(&p.request);
}

static void logit_bias(void **state) {
    (void)state;
    struct parsed p =
        expect(BT_OPENAI_CHAT, CHAT("\"logit_bias\":{\"50\":-100,\"7\":2.5,\"99\":100,\"0\":0}"));
    const struct bt_sampling *s = &p.request.generate.sampling;
    static const struct bt_logit_bias wanted[] = {{0, 0}, {7, 2.5f}, {50, -100}, {99, 100}};
    assert_int_equal(s->n_bias, 4);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(s->bias[i].token, wanted[i].token);
        assert_true(s->bias[i].bias == wanted[i].bias);
    }
    bt_openai_request_fini(&p.request);
    p = expect(BT_OPENAI_CHAT, CHAT("\"logit_bias\":{}"));
    assert_int_equal(p.request.generate.sampling.n_bias, 0);
    bt_openai_request_fini(&p.request);
}

static void too_many_biases(void **state) {
    (void)state;
    char body[8192];
    size_t n = (size_t)snprintf(body, sizeof body, "{\"prompt\":\"x\",\"logit_bias\":{");
    for (int i = 0; i <= BT_LOGIT_BIASES; i++)
        n += (size_t)snprintf(body + n, sizeof body - n, "%s\"%d\":1", i ? "," : "", i);
    snprintf(body + n, sizeof body - n, "}}");
    struct parsed p = parse(BT_OPENAI_COMPLETION, body);
    assert_int_equal(p.status, BT_E_INVALID);
    assert_string_equal(p.fault.param, "logit_bias");
}

static void refusals(void **state) {
    (void)state;
    static const struct {
        enum bt_openai_kind kind;
        const char *body, *param, *words, *code;
    } rows[] = {
        {BT_OPENAI_CHAT, CHAT("\"n\":0"), "n", "from 1 to 128", "integer_below_min_value"},
        {BT_OPENAI_CHAT, CHAT("\"n\":129"), "n", "from 1 to 128", "integer_above_max_value"},
        {BT_OPENAI_CHAT, CHAT("\"n\":\"2\""), "n", "must be an integer", "invalid_type"},
        {BT_OPENAI_COMPLETION, PROMPT("\"n\":3,\"best_of\":2"), "best_of", "at least n", NULL},
        {BT_OPENAI_COMPLETION, PROMPT("\"best_of\":2,\"stream\":true"), "best_of", "without stream",
         NULL},
        {BT_OPENAI_CHAT, CHAT("\"best_of\":2"), "best_of", "/v1/completions",
         "unsupported_parameter"},
        {BT_OPENAI_COMPLETION, "{\"prompt\":[\"a\",\"b\",\"c\"],\"n\":43}", "n", "129", NULL},
        {BT_OPENAI_COMPLETION, "{\"prompt\":[\"a\",7]}", "prompt", "a string or a list",
         "invalid_type"},
        {BT_OPENAI_COMPLETION, "{\"prompt\":[[1],[]]}", "prompt", "at least one token", NULL},
        {BT_OPENAI_COMPLETION, "{\"prompt\":[[1],[100]]}", "prompt", "from 0 to 99", NULL},
        {BT_OPENAI_TOKENIZE, "{\"prompt\":[\"a\",\"b\"]}", "prompt", "at most 1", NULL},
        {BT_OPENAI_COMPLETION, PROMPT("\"logprobs\":21"), "logprobs", "from 0 to 20",
         "integer_above_max_value"},
        {BT_OPENAI_COMPLETION, PROMPT("\"logprobs\":true"), "logprobs", "must be an integer",
         "invalid_type"},
        {BT_OPENAI_COMPLETION, PROMPT("\"top_logprobs\":3"), "top_logprobs", "chat",
         "unsupported_parameter"},
        {BT_OPENAI_CHAT, CHAT("\"logprobs\":5"), "logprobs", "true or false", "invalid_type"},
        {BT_OPENAI_CHAT, CHAT("\"top_logprobs\":5"), "top_logprobs", "with logprobs: true", NULL},
        {BT_OPENAI_CHAT, CHAT("\"logprobs\":true,\"top_logprobs\":21"), "top_logprobs",
         "from 0 to 20", "integer_above_max_value"},
        {BT_OPENAI_CHAT, CHAT("\"prompt_logprobs\":-1"), "prompt_logprobs", "from 0 to 20",
         "integer_below_min_value"},
        {BT_OPENAI_CHAT, CHAT("\"prompt_logprobs\":1,\"stream\":true"), "prompt_logprobs",
         "without stream", NULL},
        {BT_OPENAI_CHAT, CHAT("\"echo\":true"), "echo", "/v1/completions", "unsupported_parameter"},
        {BT_OPENAI_CHAT, CHAT("\"max_tokens\":0"), "max_tokens", "from 1 to",
         "integer_below_min_value"},
        {BT_OPENAI_COMPLETION, PROMPT("\"max_tokens\":0,\"logprobs\":1"), "max_tokens",
         "with echo or prompt_logprobs", NULL},
        {BT_OPENAI_COMPLETION, PROMPT("\"logit_bias\":[]"), "logit_bias", "must be an object",
         "invalid_type"},
        {BT_OPENAI_COMPLETION, PROMPT("\"logit_bias\":{\"100\":1}"), "logit_bias", "from 0 to 99",
         NULL},
        {BT_OPENAI_COMPLETION, PROMPT("\"logit_bias\":{\"-1\":1}"), "logit_bias", "\"-1\"", NULL},
        {BT_OPENAI_COMPLETION, PROMPT("\"logit_bias\":{\"01\":1}"), "logit_bias", "\"01\"", NULL},
        {BT_OPENAI_COMPLETION, PROMPT("\"logit_bias\":{\"x\":1}"), "logit_bias", "\"x\"", NULL},
        {BT_OPENAI_COMPLETION, PROMPT("\"logit_bias\":{\"9999999999\":1}"), "logit_bias",
         "from 0 to 99", NULL},
        {BT_OPENAI_COMPLETION, PROMPT("\"logit_bias\":{\"5\":101}"), "logit_bias", "-100 to 100",
         NULL},
        {BT_OPENAI_COMPLETION, PROMPT("\"logit_bias\":{\"5\":\"1\"}"), "logit_bias", "a number",
         NULL},
        {BT_OPENAI_COMPLETION, "{}", "prompt", "missing", "missing_required_parameter"},
        {BT_OPENAI_COMPLETION, PROMPT("\"suffix\":\"x\""), "suffix", "suffix",
         "unsupported_parameter"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct parsed p = parse(rows[i].kind, rows[i].body);
        if (p.status >= 0)
            fail_msg("taken: %s", rows[i].body);
        assert_string_equal(p.fault.param, rows[i].param);
        if (!strstr(p.err.text, rows[i].words))
            fail_msg("\"%s\" does not say \"%s\"", p.err.text, rows[i].words);
        if (rows[i].code)
            assert_string_equal(p.fault.code, rows[i].code);
        assert_null(p.request.root);
    }
}

/* The checks that stand before the core hold for a request that no parser has seen. */
static void numbers_that_no_parser_has_seen(void **state) {
    (void)state;
    static const int32_t ids[] = {1, 2};
    static const int32_t outside[] = {1, VOCAB};
    static const struct bt_logit_bias twice[] = {{4, 1}, {4, 2}};
    const struct bt_generate_prompt prompt = {.ids = ids, .n_ids = 2};
    const struct bt_generate_prompt empty = {.ids = ids};
    const struct bt_generate_prompt wrong = {.ids = outside, .n_ids = 2};
    struct bt_generate_request good, bad;
    struct bt_generate_fault fault;
    struct bt_error err;
    const struct bt_generate_check check = {&fault, &err};
    bt_generate_request_init(&good);
    good.prompts = &prompt;
    good.n_prompts = 1;
    assert_int_equal(bt_generate_request_check(&good, VOCAB, &check), BT_OK);
#define EXPECT(change, name)                                                            \
    do {                                                                                \
        bad = good;                                                                     \
        change;                                                                         \
        assert_int_equal(bt_generate_request_check(&bad, VOCAB, &check), BT_E_INVALID); \
        assert_string_equal(fault.param, name);                                         \
    } while (0)
    EXPECT(bad.n_prompts = 0, "prompt");
    EXPECT(bad.prompts = &empty, "prompt");
    EXPECT(bad.prompts = &wrong, "prompt");
    EXPECT(bad.n = 0, "n");
    EXPECT(bad.n = BT_CHOICES + 1, "n");
    EXPECT(bad.sampling.temperature = 3, "temperature");
    EXPECT(bad.sampling.temperature = __builtin_nanf(""), "temperature");
    EXPECT(bad.sampling.top_p = 0, "top_p");
    EXPECT(bad.sampling.top_k = -1, "top_k");
    EXPECT(bad.sampling.max_tokens = 0, "max_tokens");
    EXPECT(bad.sampling.repetition_penalty = 0, "repetition_penalty");
    EXPECT(bad.sampling.logprobs = 22, "logprobs");
    EXPECT(bad.sampling.prompt_logprobs = 22, "prompt_logprobs");
    EXPECT((bad.sampling.n_stop_tokens = 1, bad.sampling.stop_tokens[0] = -1), "stop_token_ids");
    EXPECT((bad.sampling.n_bias = 2, bad.sampling.bias = twice), "logit_bias");
    EXPECT((bad.max_tokens_given = true, bad.sampling.min_tokens = 2), "min_tokens");
    EXPECT(bad.n_stops = BT_STOP_STRINGS + 1, "stop");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(several_prompts), cmocka_unit_test(n_and_best_of),
        cmocka_unit_test(logprobs),        cmocka_unit_test(nothing_but_the_prompt),
        cmocka_unit_test(logit_bias),      cmocka_unit_test(too_many_biases),
        cmocka_unit_test(refusals),        cmocka_unit_test(numbers_that_no_parser_has_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

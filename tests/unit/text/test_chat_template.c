/* Golden renderings of seven templates, Python's semantics case by case, bounds, and the origin of
 * each byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>

#include "common/text/chat_template.h"

static struct bt_slice slice_of(const char *text) {
    return (struct bt_slice){text, strlen(text)};
}

static bt_status render(const char *source, const json_t *messages, const json_t *vars,
                        struct bt_chat_text *out, struct bt_error *err) {
    struct bt_chat_template *tpl = NULL;
    bt_status status = bt_chat_template_create(slice_of(source), &tpl, err);
    if (status < 0)
        return status;
    /* 2 Jan 2026, 03:04:05 UTC: the golden renderer's clock. */
    struct bt_chat_input in = {.messages = messages,
                               .vars = vars,
                               .bos = slice_of("<s>"),
                               .eos = slice_of("</s>"),
                               .now_s = 1767323045,
                               .max_output_bytes = 1 << 20};
    status = bt_chat_template_render(tpl, &in, out, err);
    bt_chat_template_destroy(tpl);
    return status;
}

static void test_golden_renderings(void **state) {
    (void)state;
    json_error_t why;
    json_t *data = json_load_file(BT_FIXTURES "/chat/cases.json", 0, &why), *one;
    assert_non_null(data);
    json_t *templates = json_object_get(data, "templates");
    json_t *conversations = json_object_get(data, "conversations");
    size_t i, n_texts = 0, n_errors = 0;
    json_array_foreach(json_object_get(data, "cases"), i, one) {
        const char *name = json_string_value(json_object_get(one, "template"));
        const char *conversation = json_string_value(json_object_get(one, "conv"));
        const json_t *text = json_object_get(one, "text");
        struct bt_chat_text out = {0};
        struct bt_error err = {0};
        bt_status status = render(json_string_value(json_object_get(templates, name)),
                                  json_object_get(conversations, conversation),
                                  json_object_get(one, "vars"), &out, &err);
        if (!text) {
            if (status != BT_E_INVALID)
                fail_msg("%s, %s: status %d, expected a refusal", name, conversation, status);
            assert_non_null(strstr(err.text, "line "));
            n_errors++;
            continue;
        }
        if (status != BT_OK)
            fail_msg("%s, %s: %s", name, conversation, err.text);
        if (out.n_bytes != json_string_length(text) ||
            memcmp(out.text, json_string_value(text), out.n_bytes))
            fail_msg("%s, %s:\n%.*s\nexpected:\n%s", name, conversation, (int)out.n_bytes, out.text,
                     json_string_value(text));
        bt_chat_text_fini(&out);
        n_texts++;
    }
    printf("%zu renderings, %zu refusals\n", n_texts, n_errors);
    assert_int_equal(n_texts + n_errors, 204);
    json_decref(data);
}

/* Templates put together at random, rendered by Jinja itself; null: it raised an error. */
static void test_random_templates(void **state) {
    (void)state;
    json_error_t why;
    json_t *data = json_load_file(BT_FIXTURES "/chat/random.json", 0, &why), *one;
    assert_non_null(data);
    json_t *conversations = json_object_get(data, "conversations");
    size_t i, n = 0;
    json_array_foreach(json_object_get(data, "cases"), i, one) {
        const char *source = json_string_value(json_array_get(one, 0));
        json_int_t conversation = json_integer_value(json_array_get(one, 1));
        const json_t *text = json_array_get(one, 2);
        struct bt_chat_text out = {0};
        struct bt_error err = {0};
        bt_status status =
            render(source, json_array_get(conversations, (size_t)conversation), NULL, &out, &err);
        if (json_is_null(text) != (status < 0))
            fail_msg("%s: status %d, %s", source, status, err.text);
        if (status == BT_OK && (out.n_bytes != json_string_length(text) ||
                                memcmp(out.text, json_string_value(text), out.n_bytes)))
            fail_msg("%s:\n%.*s\nexpected:\n%s", source, (int)out.n_bytes, out.text,
                     json_string_value(text));
        if (status == BT_OK)
            bt_chat_text_fini(&out);
        n++;
    }
    assert_int_equal(n, 400);
    json_decref(data);
}

/* Renders with one message {"role": "user", "content": content}. */
static void expect(const char *source, const char *content, const char *expected) {
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", content);
    struct bt_chat_text out = {0};
    struct bt_error err = {0};
    if (render(source, messages, NULL, &out, &err) != BT_OK)
        fail_msg("%s: %s", source, err.text);
    if (out.n_bytes != strlen(expected) || memcmp(out.text, expected, out.n_bytes))
        fail_msg("%s: \"%.*s\", expected \"%s\"", source, (int)out.n_bytes, out.text, expected);
    bt_chat_text_fini(&out);
    json_decref(messages);
}

static void test_expressions(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"{{ 1 + 2 * 3 ** 2 }}", "19"},
        {"{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }}", "3 -4 2 3.5"},
        {"{{ 1e3 }} {{ 0.1 + 0.2 }} {{ 1e16 }} {{ 1e-5 }} {{ 100.0 }}",
         "1000.0 0.30000000000000004 1e+16 1e-05 100.0"},
        {"{{ 'a' ~ 1 ~ none ~ true }}", "a1NoneTrue"},
        {"{{ 'ab' * 3 }}{{ [1] * 2 }}", "ababab[1, 1]"},
        {"{{ 1 < 2 < 3 }} {{ 1 < 2 > 5 }}", "True False"},
        {"{{ 1 if false else 2 if true else 3 }}", "2"},
        {"{{ not 1 == 2 and 'x' or 'y' }}", "x"},
        {"{{ 'b' in 'abc' }} {{ 'z' not in ['z'] }} {{ 'role' in messages[0] }}",
         "True False True"},
        {"{{ [1, 2, 3][::-1] }} {{ 'hello'[1:-1] }} {{ 'hello'[::2] }} {{ 'h\xc3\xa9llo'[1] }}",
         "[3, 2, 1] ell hlo \xc3\xa9"},
        {"{{ (1,) }} {{ () }} {{ {'a': none, 1: [true]} }}", "(1,) () {'a': None, 1: [True]}"},
        {"{{ \"it's\" | list | last }} {{ [\"it's\", 'q\"'] }}", "s [\"it's\", 'q\"']"},
        {"{{ messages[5] }}{{ missing }}{{ messages[0].nothing }}|", "|"},
        {"{{ messages[0].nothing is defined }} {{ x is not defined }}", "False True"},
        {"{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a,b,c'.rsplit(',', 1) }}",
         "['a', 'b', '', 'c'] ['a', 'b'] ['a,b', 'c']"},
        {"{{ 'xxhixx'.strip('x') }} {{ 'abc'.startswith(('b', 'a')) }} {{ 'abab'.find('b') }}",
         "hi True 1"},
        {"{{ '%s is %d, %.2f%%' % ('x', 3, 1.5) }}", "x is 3, 1.50%"},
        {"{{ 'x' 'y' \"\\n\\u00e9\\x41\" }}", "xy\n\xc3\xa9"
                                              "A"},
        {"{{ {'b': 1, 'a': {'c': [1, 2]}} | tojson }}", "{\"b\": 1, \"a\": {\"c\": [1, 2]}}"},
        {"{{ {'b': [], 'a': [1]} | tojson(indent=2, sort_keys=true) }}",
         "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}"},
        {"{{ '\xc3\xa9<\"' | tojson }} {{ '\xc3\xa9' | tojson(ensure_ascii=true) }}",
         "\"\xc3\xa9<\\\"\" \"\\u00e9\""},
        {"{{ {'a': 1} | tojson(separators=(',', ':')) }}", "{\"a\":1}"},
        {"{{ [3, 1, 2] | sort }} {{ ['b', 'A'] | sort }} {{ [1, 2] | sum }} {{ [1, 1] | unique }}",
         "[1, 2, 3] ['A', 'b'] 3 [1]"},
        {"{{ {'b': 1, 'a': 2} | dictsort }} {{ [1, 5, 3] | max }}", "[('a', 2), ('b', 1)] 5"},
        {"{{ 'a-b c' | title }} {{ 'aBC' | capitalize }} {{ '\xc3\xa9' | upper }}",
         "A-B C Abc \xc3\x89"},
        {"{{ ['a', 'b'] | map('upper') | join('+') }} {{ [1, 2, 3] | select('odd') | list }}",
         "A+B [1, 3]"},
        {"{{ none | selectattr('a') | list }} {{ tools | map('upper') | join }}|", "[] |"},
        {"{{ 3 | round }} {{ 2.567 | round(2) }} {{ 3 | round(0, 'floor') }}", "3 2.57 3.0"},
        {"{{ '42' | int + 1 }} {{ 'x' | int(7) }} {{ '1.5' | float }} {{ 2.5 | round }}",
         "43 7 1.5 2.0"},
        {"{{ 'a\nb\n\nc' | indent(2) }}", "a\n  b\n\n  c"},
        {"{{ x | default('d') }} {{ '' | default('e', true) }} {{ none | default('f') }}",
         "d e None"},
        {"{{ range(3) | list }} {{ range(5, 1, -2) | list }}", "[0, 1, 2] [5, 3]"},
        {"{{ 10 is divisibleby 5 }} {{ 3 is odd }} {{ 'a' is string }} {{ messages is mapping }}",
         "True True True False"},
        {"{{ messages[0].get('x', 'no') }} {{ messages[0].get('role') }} {{ messages[0]['x'] }}|",
         "no user |"},
        {"{{ messages[0].keys() | list }} {{ messages[0] | items | first }}",
         "['role', 'content'] ('role', 'user')"},
        {"{{ messages[0].content | length }} {{ messages | length }}", "2 1"},
        {"{{ messages | map(attribute='role') | first }}", "user"},
        {"{{ strftime_now('%d %b %Y') }}", "02 Jan 2026"},
        {"{{ tools is none }} {{ documents }}", "True None"},
        {"{{ -3 | abs }} {{ - 2 ** 2 }}", "3 4"},
        {"{{ {'a': {'b': 1}}.a.b }} {{ [[1, 2]].0.1 }}", "1 2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect(cases[i][0], "hi", cases[i][1]);
}

static void test_statements(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"{% for i in range(5) if i % 2 %}{{ i }}{{ loop.last }}{% endfor %}", "1False3True"},
        {"{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }},{% endfor %}", "3,7,"},
        {"{% for x in [] %}x{% else %}none{% endfor %}", "none"},
        {"{% for x in 'abc' %}{% if x == 'b' %}{% continue %}{% endif %}{{ x }}{% endfor %}", "ac"},
        {"{% for x in 'abc' %}{% if x == 'b' %}{% break %}{% endif %}{{ x }}{% endfor %}!", "a!"},
        {"{% for x in [1, 2] %}{% continue %}{% else %}e{% endfor %}", "e"},
        {"{% for x in [1, 2] %}{% if x == 2 %}{% break %}{% endif %}{% else %}e{% endfor %}", ""},
        {"{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}", "1"},
        {"{% set n = namespace(x=1) %}{% for i in [1] %}{% set n.x = 2 %}{% endfor %}{{ n.x }}",
         "2"},
        {"{% if true %}{% set x = 3 %}{% endif %}{{ x }}", "3"},
        {"{% if 0 %}a{% elif 0 %}b{% elif 1 %}c{% else %}d{% endif %}", "c"},
        {"{% macro m(a, b='B') %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(b=2, a=3) }}",
         "[1B][32]"},
        {"{% macro m(n) %}{{ n }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}",
         "3210"},
        {"{% macro w() %}<{{ caller('x') }}>{% endmacro %}"
         "{% call(v) w() %}{{ v }}y{% endcall %}",
         "<xy>"},
        {"{% set t %}a{{ 1 }}{% endset %}{{ t }}{% set u | upper %}b{% endset %}{{ u }}", "a1B"},
        {"{% filter upper | replace('A', 'x') %}ab{% endfilter %}", "xB"},
        {"{% generation %}g{% endgeneration %}", "g"},
        {"{% raw %}{{ x }}{% endraw %}{# {{ y }} #}", "{{ x }}"},
        {"{% set a, b = 1, 2 %}{{ b }}{{ a }}", "21"},
        {"{% for x in [1, 2] %}{{ loop.previtem is defined }}{{ loop.revindex }}{% endfor %}",
         "False2True1"},
        /* Whitespace: trim_blocks, lstrip_blocks, signs. */
        {"a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"},
        {"a\n  {%+ if true %}\nb{% endif +%}\nc", "a\n  b\nc"},
        {"a \n {%- if true -%} \n b {%- endif %} c", "ab c"},
        {"  {{ 1 }}  \n  {{- 2 }}", "  12"},
        {"{{ 1 -}}  \n x", "1x"},
        {"  {# c #}\nx", "x"},
        {"x\n\n", "x\n"},
        {"a\r\nb\rc", "a\nb\nc"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect(cases[i][0], "hi", cases[i][1]);
}

static void refuse(const char *source, bt_status expected, const char *word) {
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", "hi");
    struct bt_chat_text out = {0};
    struct bt_error err = {0};
    bt_status status = render(source, messages, NULL, &out, &err);
    if (status != expected || !strstr(err.text, word))
        fail_msg("%s: status %d, \"%s\"; expected %d with \"%s\"", source, status, err.text,
                 expected, word);
    json_decref(messages);
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *source;
        bt_status status;
        const char *word;
    } cases[] = {
        {"a\nb\n{% include 'x' %}", BT_E_UNSUPPORTED, "line 3: {% include %}"},
        {"{{ x | frobnicate }}", BT_E_UNSUPPORTED, "filter frobnicate"},
        {"\n{{ x is prime }}", BT_E_UNSUPPORTED, "line 2: the test \"is prime\""},
        {"{{ 'x'.encode('utf-8') }}", BT_E_UNSUPPORTED, "method encode()"},
        {"{{ x | tojson(cls=1) }}", BT_E_UNSUPPORTED, "cls="},
        {"{{ loop.cycle('a') }}", BT_E_UNSUPPORTED, "loop.cycle()"},
        {"{% for x in y recursive %}{% endfor %}", BT_E_UNSUPPORTED, "recursive"},
        {"{% if x %}", BT_E_INVALID, "{% endif %}"},
        {"{% endif %}", BT_E_INVALID, "endif"},
        {"{{ x", BT_E_INVALID, "{{ has no end"},
        {"{{ 'x }}", BT_E_INVALID, "string has no end"},
        {"{# x", BT_E_INVALID, "comment has no end"},
        {"{{ (1 }}", BT_E_INVALID, "line 1"},
        {"{{ 1 + }}", BT_E_INVALID, "expected an expression"},
        {"{% break %}", BT_E_INVALID, "outside of a loop"},
        {"{{ raise_exception('no ' ~ messages[0].role) }}", BT_E_INVALID, "line 1: no user"},
        {"{{ a.b.c }}", BT_E_INVALID, "a is undefined"},
        {"\n\n{{ 'x' + 1 }}", BT_E_INVALID, "line 3: string + integer"},
        {"{{ x + 'a' }}", BT_E_INVALID, "\"x\" is undefined"},
        {"{{ none | length }}", BT_E_INVALID, "none has no length"},
        {"{{ 1 // 0 }}", BT_E_INVALID, "division by zero"},
        {"{{ x | int(3) }}", BT_E_INVALID, "x is undefined"},
        {"{{ 1 | indent }}", BT_E_INVALID, "integer where a string belongs"},
        {"{{ nothing() }}", BT_E_INVALID, "nothing"},
        {"{{ 9223372036854775807 + 1 }}", BT_E_TOO_LARGE, "64 bits"},
        {"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
         BT_E_TOO_LARGE, "MiB of memory"},
        {"{% set a = range(1000) %}{% for i in range(9999) %}{{ a == a }}{% endfor %}",
         BT_E_TOO_LARGE, "work"},
        {"{{ 'xxxxxxxx' * 200000 }}", BT_E_TOO_LARGE, "bytes allowed"},
        {"{% set s = namespace(x='abcdefgh') %}"
         "{% for i in range(40) %}{% set s.x = s.x + s.x %}{% endfor %}",
         BT_E_TOO_LARGE, "line 1"},
        {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", BT_E_TOO_LARGE, "nested deeper"},
        {"{% set s = namespace(x=1) %}"
         "{% for i in range(100) %}{% set s.x = [s.x] %}{% endfor %}{{ s.x }}",
         BT_E_TOO_LARGE, "nested deeper"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refuse(cases[i].source, cases[i].status, cases[i].word);
    char deep[4096] = "{{ ";
    for (int i = 0; i < 200; i++)
        strcat(deep, "(");
    strcat(deep, "1");
    for (int i = 0; i < 200; i++)
        strcat(deep, ")");
    strcat(deep, " }}");
    refuse(deep, BT_E_UNSUPPORTED, "nested deeper");
    strcpy(deep, "{{ 1");
    for (int i = 0; i < 400; i++)
        strcat(deep, "+1");
    strcat(deep, " }}");
    refuse(deep, BT_E_UNSUPPORTED, "in a row");
    struct bt_chat_template *tpl = NULL;
    assert_int_equal(bt_chat_template_create((struct bt_slice){"\xff", 1}, &tpl, NULL),
                     BT_E_INVALID);
    assert_int_equal(bt_chat_template_create((struct bt_slice){"a\0b", 3}, &tpl, NULL),
                     BT_E_INVALID);
    assert_null(tpl);
}

/* Renders with a message that holds only 'U' and 'u', and a template that has neither: each byte
 * of the output must be untrusted exactly if it is one of them. */
static void expect_origin(const char *source, const char *expected) {
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "U", "content", " uUu ");
    struct bt_chat_text out = {0};
    struct bt_error err = {0};
    if (render(source, messages, NULL, &out, &err) != BT_OK)
        fail_msg("%s: %s", source, err.text);
    char marked[512] = "";
    size_t n = 0, at = 0;
    for (size_t s = 0; s <= out.n_untrusted; s++) {
        size_t start = s < out.n_untrusted ? out.untrusted[s].start : out.n_bytes;
        assert_true(start >= at && start <= out.n_bytes);
        memcpy(marked + n, out.text + at, start - at);
        n += start - at;
        if (s == out.n_untrusted)
            break;
        at = out.untrusted[s].end;
        assert_true(at > start);
        marked[n++] = '<';
        memcpy(marked + n, out.text + start, at - start);
        n += at - start;
        marked[n++] = '>';
    }
    marked[n] = 0;
    if (strcmp(marked, expected))
        fail_msg("%s: %s, expected %s", source, marked, expected);
    bt_chat_text_fini(&out);
    json_decref(messages);
}

static void test_origin_of_each_byte(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"a{{ messages[0].role }}b", "a<U>b"},
        {"{{ 'x' + messages[0].role + 'y' ~ messages[0].role }}", "x<U>y<U>"},
        {"{{ messages[0].content | trim }}|", "<uUu>|"},
        {"{{ (messages[0].content | trim).upper() + 'x' }}", "<UUU>x"},
        {"{{ ('x' + messages[0].content + 'y')[1:-1] }}", "< uUu >"},
        {"{{ messages[0].content.strip().split('U') | join('-') }}", "<u>-<u>"},
        {"{{ messages[0].content.strip().replace('U', '-') }}", "<u>-<u>"},
        {"{{ 'a-b'.replace('-', messages[0].role) }}", "a<U>b"},
        {"{{ '[%s]' % messages[0].role }} {{ '%s.' | format(messages[0].role) }}", "[<U>] <U>."},
        {"{{ {'k': messages[0].role} | tojson }}", "{\"k\": <\"U\">}"},
        {"{{ messages[0] | tojson }}", "<{\"role\": \"U\", \"content\": \" uUu \"}>"},
        {"{{ messages }}", "<[{'role': 'U', 'content': ' uUu '}]>"},
        {"{% set x %}a{{ messages[0].role }}{% endset %}{{ x * 2 }}", "a<U>a<U>"},
        {"{% macro m(v) %}({{ v }}){% endmacro %}{{ m(messages[0].role) }}", "(<U>)"},
        {"{% for k in messages[0] %}{{ k }},{% endfor %}", "<role>,<content>,"},
        {"{% filter lower %}A{{ messages[0].role }}{% endfilter %}", "a<u>"},
        {"{{ messages[0].role | default('x') }}{{ none_such | default('x') }}", "<U>x"},
        {"{{ messages | map(attribute='role') | join(', ') }}", "<U>"},
        {"{{ 'x' ~ (messages[0].content | length) }}", "x5"},
        {"{{ bos_token }}{{ messages[0].role }}{{ eos_token }}", "<s><U></s>"},
        {"{{ 'a\nb' | indent(messages[0].role) }}", "a\n<U>b"},
        {"{{ messages[0].content | list | last }}{{ (messages[0].role ~ 'x') | first }}", "< U>"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_origin(cases[i][0], cases[i][1]);
}

static void test_reads_parts(void **state) {
    (void)state;
    static const struct {
        const char *source;
        bool reads;
    } cases[] = {
        {"{% for m in messages %}{{ m.content }}{% endfor %}", false},
        {"{% for m in messages %}{{ m.role + m.content }}{% endfor %}", false},
        {"{% for m in messages %}{{ m.content | tojson }}{% endfor %}", false},
        {"{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
         "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}",
         true},
        {"nothing", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bt_chat_template *tpl;
        assert_int_equal(bt_chat_template_create(slice_of(cases[i].source), &tpl, NULL), BT_OK);
        assert_int_equal(bt_chat_template_reads_parts(tpl), cases[i].reads);
        bt_chat_template_destroy(tpl);
    }
}

static void test_output_bound(void **state) {
    (void)state;
    struct bt_chat_template *tpl;
    struct bt_chat_text out = {0};
    json_t *messages = json_pack("[{s:s}]", "content", "0123456789");
    assert_int_equal(bt_chat_template_create(slice_of("{{ messages[0].content }}"), &tpl, NULL),
                     BT_OK);
    struct bt_chat_input in = {.messages = messages, .max_output_bytes = 9};
    struct bt_error err;
    assert_int_equal(bt_chat_template_render(tpl, &in, &out, &err), BT_E_TOO_LARGE);
    assert_non_null(strstr(err.text, "9 bytes"));
    assert_null(out.text);
    in.max_output_bytes = 10;
    assert_int_equal(bt_chat_template_render(tpl, &in, &out, &err), BT_OK);
    bt_chat_text_fini(&out);
    json_t *deep = json_array();
    for (int i = 0; i < 100; i++)
        deep = json_pack("[o]", deep);
    in.messages = deep;
    assert_int_equal(bt_chat_template_render(tpl, &in, &out, &err), BT_E_TOO_LARGE);
    json_decref(deep);
    json_decref(messages);
    bt_chat_template_destroy(tpl);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_expressions),      cmocka_unit_test(test_statements),
        cmocka_unit_test(test_refusals),         cmocka_unit_test(test_golden_renderings),
        cmocka_unit_test(test_random_templates), cmocka_unit_test(test_origin_of_each_byte),
        cmocka_unit_test(test_reads_parts),      cmocka_unit_test(test_output_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

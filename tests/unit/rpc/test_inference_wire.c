/* The public service's messages: what is read means what the .proto says, shapes are refused by
 * name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/rpc/inference_wire.h"
#include "proto/inference.pb-c.h"

struct fixture {
    struct bt_wire_arena arena;
    struct bt_inference_generate out;
    char field[BT_INFERENCE_FIELD_BYTES];
    struct bt_error err;
};

static bt_status read_bytes(struct fixture *f, const void *bytes, size_t n) {
    return bt_inference_read_generate(bytes, n, &f->arena, &f->out, f->field, &f->err);
}

static bt_status read_message(struct fixture *f, const Baton__V1__GenerateRequest *request) {
    static uint8_t bytes[1 << 16];
    size_t n = baton__v1__generate_request__get_packed_size(request);
    assert_true(n <= sizeof bytes);
    baton__v1__generate_request__pack(request, bytes);
    return read_bytes(f, bytes, n);
}

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    bt_wire_arena_init(&f->arena, BT_INFERENCE_ARENA_BYTES);
    *state = f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    bt_wire_arena_fini(&f->arena);
    free(f);
    return 0;
}

static ProtobufCBinaryData text_of(const char *text, size_t n) {
    return (ProtobufCBinaryData){n, (uint8_t *)(uintptr_t)text};
}

/* What is left out: off, or what the .proto says. */
static void test_defaults(void **state) {
    struct fixture *f = *state;
    Baton__V1__GenerateRequest request;
    baton__v1__generate_request__init(&request);
    request.prompt_case = BATON__V1__GENERATE_REQUEST__PROMPT_TEXT;
    request.text = text_of("a\0b", 3);
    assert_int_equal(read_message(f, &request), BT_OK);
    const struct bt_sampling *s = &f->out.sampling;
    assert_int_equal(f->out.prompt.kind, BT_INFERENCE_TEXT);
    assert_int_equal(f->out.prompt.text.n_bytes, 3);
    assert_memory_equal(f->out.prompt.text.data, "a\0b", 3);
    assert_true(f->out.prompt.add_special_tokens && f->out.skip_special_tokens);
    assert_int_equal(f->out.n, 1);
    assert_true(s->temperature == 1 && s->top_p == 1 && s->repetition_penalty == 1);
    assert_true(s->min_p == 0 && s->top_k == 0 && s->logprobs == 0 && s->prompt_logprobs == 0);
    assert_false(f->out.max_tokens_given || f->out.seed_given || s->ignore_eos || s->want_hash);
    assert_int_equal(f->out.model.n_bytes, 0);
}

/* A zero that is given is not the same as one that is left out. */
static void test_presence(void **state) {
    struct fixture *f = *state;
    Baton__V1__GenerateRequest request;
    baton__v1__generate_request__init(&request);
    Baton__V1__SamplingParams s;
    baton__v1__sampling_params__init(&s);
    request.prompt_case = BATON__V1__GENERATE_REQUEST__PROMPT_TEXT;
    request.sampling = &s;
    s.temperature_opt_case = BATON__V1__SAMPLING_PARAMS__TEMPERATURE_OPT_TEMPERATURE;
    s.seed_opt_case = BATON__V1__SAMPLING_PARAMS__SEED_OPT_SEED;
    s.max_tokens_opt_case = BATON__V1__SAMPLING_PARAMS__MAX_TOKENS_OPT_MAX_TOKENS;
    s.logprobs_opt_case = BATON__V1__SAMPLING_PARAMS__LOGPROBS_OPT_LOGPROBS;
    request.n_opt_case = BATON__V1__GENERATE_REQUEST__N_OPT_N;
    request.skip_special_tokens_opt_case =
        BATON__V1__GENERATE_REQUEST__SKIP_SPECIAL_TOKENS_OPT_SKIP_SPECIAL_TOKENS;
    assert_int_equal(read_message(f, &request), BT_OK);
    assert_true(f->out.sampling.temperature == 0);
    assert_true(f->out.seed_given && f->out.sampling.seed == 0);
    assert_true(f->out.max_tokens_given && f->out.sampling.max_tokens == 0); /* refused later */
    assert_int_equal(f->out.sampling.logprobs, 1);
    assert_int_equal(f->out.n, 0);
    assert_false(f->out.skip_special_tokens);
}

static void test_lists(void **state) {
    struct fixture *f = *state;
    Baton__V1__GenerateRequest request;
    baton__v1__generate_request__init(&request);
    Baton__V1__SamplingParams s;
    baton__v1__sampling_params__init(&s);
    Baton__V1__TokenBias biases[2], *pointers[2] = {&biases[0], &biases[1]};
    ProtobufCBinaryData stops[2] = {text_of("a\0", 2), text_of("bb", 2)};
    uint32_t ids[3] = {7, 0, INT32_MAX};
    Baton__V1__TokenIds tokens = BATON__V1__TOKEN_IDS__INIT;
    tokens.n_ids = 3;
    tokens.ids = ids;
    baton__v1__token_bias__init(&biases[0]);
    baton__v1__token_bias__init(&biases[1]);
    biases[0].token = 9;
    biases[0].bias = 1.5f;
    biases[1].token = 4;
    biases[1].bias = -2;
    request.prompt_case = BATON__V1__GENERATE_REQUEST__PROMPT_TOKENS;
    request.tokens = &tokens;
    request.sampling = &s;
    s.n_logit_bias = 2;
    s.logit_bias = pointers;
    s.n_stop = 2;
    s.stop = stops;
    s.n_stop_token_ids = 3;
    s.stop_token_ids = ids;
    assert_int_equal(read_message(f, &request), BT_OK);
    assert_int_equal(f->out.prompt.kind, BT_INFERENCE_TOKENS);
    assert_int_equal(f->out.prompt.n_ids, 3);
    assert_int_equal(f->out.prompt.ids[2], INT32_MAX);
    assert_int_equal(f->out.sampling.n_bias, 2);
    assert_int_equal(f->out.sampling.bias[0].token, 4); /* rising */
    assert_true(f->out.sampling.bias[1].bias == 1.5f);
    assert_int_equal(f->out.n_stops, 2);
    assert_int_equal(f->out.stops[0].n_bytes, 2);
    assert_int_equal(f->out.sampling.n_stop_tokens, 3);
    ids[1] = 1u << 31;
    assert_int_equal(read_message(f, &request), BT_E_INVALID);
    assert_string_equal(f->field, "tokens.ids");
}

static void test_refusals(void **state) {
    struct fixture *f = *state;
    Baton__V1__GenerateRequest request;
    baton__v1__generate_request__init(&request);
    Baton__V1__SamplingParams s;
    baton__v1__sampling_params__init(&s);
    static uint32_t ids[BT_STOP_TOKENS + 1];
    static char text[BT_INFERENCE_MODEL_BYTES + 1];
    assert_int_equal(read_message(f, &request), BT_E_INVALID);
    assert_string_equal(f->field, "prompt");
    request.prompt_case = BATON__V1__GENERATE_REQUEST__PROMPT_TEXT;
    request.sampling = &s;
    s.n_stop_token_ids = BT_STOP_TOKENS + 1;
    s.stop_token_ids = ids;
    assert_int_equal(read_message(f, &request), BT_E_INVALID);
    assert_string_equal(f->field, "sampling.stop_token_ids");
    s.n_stop_token_ids = 0;
    s.prompt_logprobs_opt_case = BATON__V1__SAMPLING_PARAMS__PROMPT_LOGPROBS_OPT_PROMPT_LOGPROBS;
    s.prompt_logprobs = BT_TOP_LOGPROBS + 1;
    assert_int_equal(read_message(f, &request), BT_E_INVALID);
    assert_string_equal(f->field, "sampling.prompt_logprobs");
    s.prompt_logprobs = BT_TOP_LOGPROBS;
    assert_int_equal(read_message(f, &request), BT_OK);
    memset(text, 'm', sizeof text);
    request.model = text_of(text, sizeof text);
    assert_int_equal(read_message(f, &request), BT_E_INVALID);
    assert_string_equal(f->field, "model");
    request.model = text_of("a\0b", 3);
    assert_int_equal(read_message(f, &request), BT_E_INVALID);
    request.model = text_of("", 0);
    request.cache_salt = text_of(text, BT_NAME_BYTES);
    assert_int_equal(read_message(f, &request), BT_E_INVALID);
    assert_string_equal(f->field, "cache_salt");
}

/* A small message that would take a lot to unpack meets the arena's bound. */
static void test_arena_is_bounded(void **state) {
    struct fixture *f = *state;
    enum { MESSAGES = 1 << 20 };
    size_t n = 0;
    uint8_t *bytes = malloc(2 * MESSAGES + 16);
    assert_non_null(bytes);
    /* Chat (field 4) of MESSAGES empty ChatMessages (field 1). */
    bytes[n++] = 4 << 3 | 2;
    for (uint32_t left = 2 * MESSAGES; left; left >>= 7)
        bytes[n++] = (uint8_t)((left & 0x7f) | (left >= 0x80 ? 0x80 : 0));
    for (uint32_t i = 0; i < MESSAGES; i++) {
        bytes[n++] = 1 << 3 | 2;
        bytes[n++] = 0;
    }
    assert_int_equal(read_bytes(f, bytes, n), BT_E_TOO_LARGE);
    assert_true(f->arena.n_bytes <= BT_INFERENCE_ARENA_BYTES);
    assert_int_equal(read_bytes(f,
                                "\x0a\x05"
                                "a",
                                3),
                     BT_E_INVALID); /* cut short */
    free(bytes);
}

/* What is packed reads back, and two packed messages in a row are one with both tokens. */
static void test_pack_and_merge(void **state) {
    (void)state;
    struct bt_inference_buffer buffer = {0};
    uint8_t joined[512];
    size_t n = 0;
    const struct bt_logprobs values = {-0.5f, 1, {{3, -0.5f}}};
    struct bt_inference_token token = {.choice = 2, .id = 5, .text = {"x\0y", 3}, .hash = 1};
    token.logprobs.values = &values;
    token.logprobs.top_bytes[0] = (struct bt_inference_text){"\xff", 1};
    for (uint32_t i = 0; i < 2; i++) {
        token.index = i;
        token.finish = i ? BT_FINISH_STOP : BT_FINISH_NONE;
        assert_true(bt_inference_pack_token(&buffer, &token));
        memcpy(joined + n, buffer.bytes, buffer.n_bytes);
        n += buffer.n_bytes;
    }
    Baton__V1__GenerateResponse *back = baton__v1__generate_response__unpack(NULL, n, joined);
    assert_non_null(back);
    assert_int_equal(back->n_tokens, 2);
    assert_int_equal(back->tokens[1]->index, 1);
    assert_int_equal(back->tokens[1]->finish_reason, BATON__V1__FINISH_REASON__FINISH_REASON_STOP);
    assert_int_equal(back->tokens[0]->text.len, 3);
    assert_int_equal(back->tokens[0]->logprobs->top[0]->token.data[0], 0xff);
    assert_null(back->end);
    baton__v1__generate_response__free_unpacked(back, NULL);
    bt_inference_buffer_fini(&buffer);
}

static void test_pack_end(void **state) {
    (void)state;
    struct bt_inference_buffer buffer = {0};
    struct bt_inference_choice choices[BT_CHOICES];
    for (int i = 0; i < BT_CHOICES; i++)
        choices[i] = (struct bt_inference_choice){BT_FINISH_STOP, {NULL, 0}, i % 3 - 1, 4};
    choices[7].stop = (struct bt_inference_text){"end", 3};
    const struct bt_inference_end end = {.request_id = "id",
                                         .choices = choices,
                                         .n_choices = BT_CHOICES,
                                         .prompt_tokens = 9,
                                         .decode_us = 77,
                                         .verdict_phase = "ok",
                                         .verdict_stage = "",
                                         .verdict_advice = "",
                                         .placement = "split",
                                         .prefill_worker = "p",
                                         .decode_worker = "d",
                                         .resumed = 2};
    assert_true(bt_inference_pack_end(&buffer, &end));
    Baton__V1__GenerateResponse *back =
        baton__v1__generate_response__unpack(NULL, buffer.n_bytes, buffer.bytes);
    assert_non_null(back);
    assert_int_equal(back->end->n_choices, BT_CHOICES);
    assert_int_equal(back->end->choices[0]->matched_stop_case,
                     BATON__V1__CHOICE__MATCHED_STOP__NOT_SET);
    assert_int_equal(back->end->choices[5]->stop_token_id, 1);
    assert_int_equal(back->end->choices[7]->matched_stop_case,
                     BATON__V1__CHOICE__MATCHED_STOP_STOP);
    assert_int_equal(back->end->stages->decode_us, 77);
    assert_int_equal(back->end->resumed, 2);
    assert_int_equal(back->end->exactness, BATON__V1__EXACTNESS__EXACTNESS_SAME_BITS);
    baton__v1__generate_response__free_unpacked(back, NULL);
    bt_inference_buffer_fini(&buffer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_defaults, setup, teardown),
        cmocka_unit_test_setup_teardown(test_presence, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lists, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_arena_is_bounded, setup, teardown),
        cmocka_unit_test(test_pack_and_merge),
        cmocka_unit_test(test_pack_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

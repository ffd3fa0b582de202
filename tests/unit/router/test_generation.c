/* Tests the way from token ids to pieces of text: characters, stop strings, a sink that is full. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "byte_tokenizer.h"
#include "router/generation.h"

enum { PIECES = 256, CHOICE = 3 };

/* A sink that writes down what it is given. */
struct record {
    struct bt_request_sink base;
    size_t room; /* pieces until it is full */
    size_t n_pieces;
    uint64_t offset;
    char texts[PIECES][64];
    int32_t tokens[PIECES];
    enum bt_finish finish;
    float logprobs[PIECES];
};

static bool is_full(const struct bt_request_sink *sink) {
    const struct record *r = (const struct record *)(const void *)sink;
    return r->n_pieces >= r->room;
}

static void piece(struct bt_request_sink *sink, const struct bt_piece *given) {
    struct record *r = (struct record *)(void *)sink;
    assert_int_equal(given->index, r->n_pieces);
    assert_int_equal(r->finish, BT_FINISH_NONE);
    assert_int_equal(given->choice, CHOICE);
    snprintf(r->texts[r->n_pieces], sizeof r->texts[0], "%.*s", (int)given->text.n_bytes,
             given->text.data);
    r->offset = given->offset;
    r->logprobs[r->n_pieces] = given->logprobs ? given->logprobs->logprob : 0;
    r->tokens[r->n_pieces++] = given->token;
    r->finish = given->finish;
}

static const struct bt_request_sink_ops ops = {.is_full = is_full, .piece = piece};

static void begin(struct bt_generation *gen, struct record *r, const char *stop, bool include) {
    struct bt_stop_filter *stops = NULL;
    *r = (struct record){.base = {&ops}, .room = PIECES};
    if (stop) {
        const struct bt_slice string = {stop, strlen(stop)};
        stops = malloc(sizeof *stops);
        assert_non_null(stops);
        assert_int_equal(bt_stop_filter_init(stops, &string, 1, include, NULL), BT_OK);
    }
    bt_generation_init(gen, tok, true, stops, &r->base, CHOICE);
}

static bool emit(struct bt_generation *gen, int32_t token, enum bt_finish finish) {
    const struct bt_emitted emitted = {.token = token, .finish = finish};
    return bt_generation_emit(gen, &emitted);
}

static bool emit_text(struct bt_generation *gen, const char *text) {
    bool matched = false;
    for (; *text; text++)
        matched = emit(gen, (uint8_t)*text, BT_FINISH_NONE) || matched;
    return matched;
}

static const char *all_text(const struct record *r) {
    static char text[4096];
    text[0] = 0;
    for (size_t i = 0; i < r->n_pieces; i++)
        strcat(text, r->texts[i]);
    return text;
}

static void one_piece_per_token(void **state) {
    (void)state;
    struct bt_generation gen;
    struct record r;
    begin(&gen, &r, NULL, false);
    assert_false(emit_text(&gen, "a\xc3\xa9"));
    assert_int_equal(r.n_pieces, 3);
    assert_string_equal(r.texts[0], "a");
    assert_string_equal(r.texts[1], ""); /* half a character */
    assert_string_equal(r.texts[2], "\xc3\xa9");
    assert_false(emit(&gen, 256, BT_FINISH_STOP));
    assert_string_equal(r.texts[3], "");
    assert_int_equal(r.offset, 2); /* characters, not bytes */
    assert_int_equal(r.finish, BT_FINISH_STOP);
    assert_int_equal(gen.n_generated, 4);
    bt_generation_fini(&gen);
}

static void an_unfinished_character_is_shown_at_the_end(void **state) {
    (void)state;
    struct bt_generation gen;
    struct record r;
    begin(&gen, &r, NULL, false);
    emit_text(&gen, "a");
    emit(&gen, 0xc3, BT_FINISH_LENGTH);
    assert_string_equal(all_text(&r), "a\xef\xbf\xbd");
    bt_generation_fini(&gen);
}

static void a_stop_string_ends_it(void **state) {
    (void)state;
    for (int include = 0; include < 2; include++) {
        struct bt_generation gen;
        struct record r;
        begin(&gen, &r, "END", include);
        assert_false(emit_text(&gen, "xENy"));
        assert_string_equal(all_text(&r), "xENy");
        assert_false(emit_text(&gen, "EN"));
        assert_string_equal(all_text(&r), "xENy");
        assert_true(emit_text(&gen, "D"));
        assert_string_equal(all_text(&r), include ? "xENyEND" : "xENy");
        assert_int_equal(r.finish, BT_FINISH_STOP);
        /* What was on its way is dropped. */
        assert_false(emit_text(&gen, "more"));
        assert_int_equal(r.n_pieces, 7);
        assert_int_equal(gen.n_generated, 7);
        bt_generation_fini(&gen);
    }
}

static void a_beginning_of_a_stop_string_is_shown_at_the_end(void **state) {
    (void)state;
    struct bt_generation gen;
    struct record r;
    begin(&gen, &r, "END", false);
    emit_text(&gen, "xE");
    emit(&gen, 'N', BT_FINISH_LENGTH);
    assert_string_equal(all_text(&r), "xEN");
    assert_int_equal(r.finish, BT_FINISH_LENGTH);
    bt_generation_fini(&gen);
}

/* The last token may complete a stop string: the core needs not be told, the reason is stop. */
static void a_stop_string_in_the_last_token(void **state) {
    (void)state;
    struct bt_generation gen;
    struct record r;
    begin(&gen, &r, "D", false);
    assert_false(emit(&gen, 'D', BT_FINISH_LENGTH));
    assert_int_equal(r.finish, BT_FINISH_STOP);
    assert_string_equal(all_text(&r), "");
    bt_generation_fini(&gen);
}

static void tokens_wait_for_a_full_sink(void **state) {
    (void)state;
    struct bt_generation gen;
    struct record r;
    begin(&gen, &r, NULL, false);
    r.room = 2;
    for (int i = 0; i < 200; i++)
        emit(&gen, 'a' + i % 26, BT_FINISH_NONE);
    emit(&gen, '!', BT_FINISH_LENGTH);
    assert_int_equal(r.n_pieces, 2);
    r.room = 150;
    assert_false(bt_generation_resume(&gen));
    assert_int_equal(r.n_pieces, 150);
    r.room = PIECES;
    assert_false(bt_generation_resume(&gen));
    assert_int_equal(r.n_pieces, 201);
    for (int i = 0; i < 200; i++)
        assert_int_equal(r.tokens[i], 'a' + i % 26);
    assert_int_equal(r.finish, BT_FINISH_LENGTH);
    bt_generation_fini(&gen);
}

static void a_stop_string_among_waiting_tokens(void **state) {
    (void)state;
    struct bt_generation gen;
    struct record r;
    begin(&gen, &r, "END", false);
    r.room = 0;
    assert_false(emit_text(&gen, "abENDxyz"));
    assert_int_equal(r.n_pieces, 0);
    r.room = PIECES;
    assert_true(bt_generation_resume(&gen));
    assert_string_equal(all_text(&r), "ab");
    assert_int_equal(r.n_pieces, 5);
    bt_generation_fini(&gen);
}

/* What is held keeps its logprobs, and each piece gets its own. */
static void logprobs_wait_with_their_tokens(void **state) {
    (void)state;
    struct bt_generation gen;
    struct record r;
    begin(&gen, &r, NULL, false);
    r.room = 1;
    for (int i = 0; i < 100; i++) {
        const struct bt_logprobs logprobs = {.logprob = (float)-i};
        const struct bt_emitted emitted = {.token = 'a', .logprobs = &logprobs};
        bt_generation_emit(&gen, &emitted);
    }
    assert_int_equal(r.n_pieces, 1);
    r.room = 60;
    bt_generation_resume(&gen);
    assert_int_equal(r.n_pieces, 60);
    for (int i = 0; i < 60; i++)
        assert_true(r.logprobs[i] == (float)-i);
    bt_generation_fini(&gen); /* forty are held still */
}

static void tokens_wait_for_scores(void **state) {
    (void)state;
    struct bt_generation gen;
    struct record r;
    begin(&gen, &r, NULL, false);
    gen.waits = true;
    emit_text(&gen, "ab");
    assert_false(bt_generation_resume(&gen));
    assert_int_equal(r.n_pieces, 0);
    gen.waits = false;
    bt_generation_resume(&gen);
    assert_string_equal(all_text(&r), "ab");
    bt_generation_fini(&gen);
}

/* Where nothing is to be generated, the one token that had to be only ends the choice. */
static void a_prompt_alone_shows_no_token(void **state) {
    (void)state;
    for (int full = 0; full < 2; full++) {
        struct bt_generation gen;
        struct record r;
        begin(&gen, &r, NULL, false);
        gen.prompt_only = true;
        r.room = !full;
        assert_false(emit(&gen, 'x', BT_FINISH_LENGTH));
        assert_int_equal(r.n_pieces, !full);
        r.room = PIECES;
        bt_generation_resume(&gen);
        assert_int_equal(r.n_pieces, 1);
        assert_int_equal(r.tokens[0], -1);
        assert_string_equal(all_text(&r), "");
        assert_int_equal(r.finish, BT_FINISH_LENGTH);
        assert_int_equal(gen.n_generated, 0);
        bt_generation_fini(&gen);
    }
}

/* The client is gone: what comes still is dropped. */
static void without_a_sink_nothing_is_kept(void **state) {
    (void)state;
    struct bt_generation gen;
    struct record r;
    begin(&gen, &r, "END", false);
    r.room = 1;
    emit_text(&gen, "ab");
    gen.sink = NULL;
    assert_false(emit_text(&gen, "END"));
    assert_false(bt_generation_resume(&gen));
    assert_int_equal(r.n_pieces, 1);
    bt_generation_fini(&gen);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_piece_per_token),
        cmocka_unit_test(an_unfinished_character_is_shown_at_the_end),
        cmocka_unit_test(a_stop_string_ends_it),
        cmocka_unit_test(a_beginning_of_a_stop_string_is_shown_at_the_end),
        cmocka_unit_test(a_stop_string_in_the_last_token),
        cmocka_unit_test(tokens_wait_for_a_full_sink),
        cmocka_unit_test(a_stop_string_among_waiting_tokens),
        cmocka_unit_test(logprobs_wait_with_their_tokens),
        cmocka_unit_test(tokens_wait_for_scores),
        cmocka_unit_test(a_prompt_alone_shows_no_token),
        cmocka_unit_test(without_a_sink_nothing_is_kept),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

/* The decode worker's core by hand: what a router's question about a prefill worker does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "decode_worker/decode_core.h"

struct world {
    struct bt_decode_core *core;
    uint64_t now_us;
    uint32_t n[BT_MSG_COUNT]; /* what was said, by type */
    struct bt_msg_ended ended;
    struct bt_step *step;
};

static int set_up(void **state) {
    struct world *world = calloc(1, sizeof *world);
    struct bt_decode_config config = {.n_pages = 8,
                                      .n_layers = 1,
                                      .page_bytes = 64,
                                      .n_vocab = 100,
                                      .chunk_tokens = 4,
                                      .drain_ms = 300};
    config.join.incarnation = (struct bt_id){7, 7};
    config.join.role = BT_ROLE_DECODE;
    config.join.max_context = 64;
    config.join.max_seqs = 2;
    struct bt_error err;
    world->now_us = 1000000;
    assert_int_equal(bt_decode_core_create(&config, &world->core, &err), BT_OK);
    *state = world;
    return 0;
}

static int tear_down(void **state) {
    struct world *world = *state;
    bt_decode_core_destroy(world->core);
    free(world);
    return 0;
}

static void listen(struct world *world) {
    struct bt_decode_action action;
    memset(world->n, 0, sizeof world->n);
    while (bt_decode_core_next(world->core, world->now_us, &action)) {
        if (action.type == BT_DECODE_STEP)
            world->step = action.step;
        if (action.type != BT_DECODE_SEND)
            continue;
        world->n[action.msg->type]++;
        if (action.msg->type == BT_MSG_ENDED)
            world->ended = action.msg->ended;
    }
    assert_true(bt_decode_core_is_valid(world->core));
}

static void tell(struct world *world, const struct bt_msg *msg) {
    struct bt_error err;
    assert_int_equal(bt_decode_core_router_message(world->core, world->now_us, 0, msg, &err),
                     BT_OK);
    listen(world);
}

static void reserve(struct world *world, bool here) {
    static const int32_t tokens[6] = {1, 2, 3, 4, 5, 6};
    bt_decode_core_router_opened(world->core, world->now_us, 0);
    listen(world);
    tell(world, &(struct bt_msg){.type = BT_MSG_WELCOME, .welcome = {{3, 3}, 1}});
    struct bt_msg msg = {.type = BT_MSG_RESERVE};
    msg.work = (struct bt_msg_work){.key = {1, 1},
                                    .ticket = {4, 4},
                                    .tokens = tokens,
                                    .n_tokens = 6,
                                    .n_prompt = 6,
                                    .remaining_ms = 1000,
                                    .peer = {9, 9},
                                    .prefill_here = here};
    msg.work.sampling.max_tokens = 2;
    tell(world, &msg);
    assert_int_equal(world->n[BT_MSG_RESERVED], 1);
}

static void ask(struct world *world) {
    tell(world, &(struct bt_msg){.type = BT_MSG_PGONE, .pgone = {{1, 1}, {4, 4}}});
}

/* No prefill worker computes it: the question is a mistake and changes nothing. */
static void test_question_about_a_prompt_computed_here(void **state) {
    struct world *world = *state;
    reserve(world, true);
    assert_non_null(world->step);
    ask(world);
    assert_int_equal(world->n[BT_MSG_ENDED] + world->n[BT_MSG_LIVE], 0);
    assert_false(bt_decode_core_is_idle(world->core));
    for (int n = 0; n < 8 && world->step; n++) { /* it goes on to its end */
        struct bt_step *step = world->step;
        world->step = NULL;
        step->results[0] = (struct bt_step_result){.token = 9};
        bt_decode_core_step_done(world->core, world->now_us += 1000);
        listen(world);
    }
    assert_int_equal(world->ended.reason, BT_END_DONE);
    assert_int_equal(world->ended.next_index, 2);
}

static void test_question_before_the_hand_off(void **state) {
    struct world *world = *state;
    reserve(world, false);
    ask(world);
    assert_int_equal(world->n[BT_MSG_ENDED], 1);
    assert_int_equal(world->ended.reason, BT_END_PEER_GONE);
    assert_true(bt_decode_core_is_idle(world->core));
    struct bt_census census;
    bt_decode_core_census(world->core, &census);
    assert_int_equal(census.free, census.total);
}

static void test_question_about_what_is_not_here(void **state) {
    struct world *world = *state;
    reserve(world, false);
    tell(world, &(struct bt_msg){.type = BT_MSG_PGONE, .pgone = {{2, 1}, {5, 5}}});
    assert_int_equal(world->n[BT_MSG_ENDED], 1);
    assert_int_equal(world->ended.reason, BT_END_UNKNOWN);
    assert_false(bt_decode_core_is_idle(world->core));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_question_about_a_prompt_computed_here, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_question_before_the_hand_off, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_question_about_what_is_not_here, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

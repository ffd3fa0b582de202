/* The prefill worker's core by hand: what it refuses of logprobs and bias; who is offered first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "prefill_worker/prefill_core.h"

struct world {
    struct bt_prefill_core *core;
    uint64_t now_us;
    uint32_t n_ended;
    struct bt_msg_ended ended;
    uint64_t offered[2]; /* requests, as hello was said for them */
    uint32_t n_offered;
};

static int set_up(void **state) {
    struct world *world = calloc(1, sizeof *world);
    struct bt_prefill_config config = {.n_pages = 8,
                                       .n_layers = 1,
                                       .page_bytes = 64,
                                       .n_vocab = 100,
                                       .chunk_tokens = 16,
                                       .max_offers = 2,
                                       .drain_ms = 300};
    config.join.incarnation = (struct bt_id){7, 7};
    config.join.role = BT_ROLE_PREFILL;
    config.join.max_context = 64;
    config.join.max_seqs = 2;
    struct bt_error err;
    world->now_us = 1000000;
    assert_int_equal(bt_prefill_core_create(&config, &world->core, &err), BT_OK);
    *state = world;
    return 0;
}

static int tear_down(void **state) {
    struct world *world = *state;
    bt_prefill_core_destroy(world->core);
    free(world);
    return 0;
}

static void listen(struct world *world) {
    struct bt_prefill_action action;
    world->n_ended = 0;
    while (bt_prefill_core_next(world->core, world->now_us, &action))
        if (action.type == BT_PREFILL_SEND && action.msg->type == BT_MSG_ENDED) {
            world->ended = action.msg->ended;
            world->n_ended++;
        } else if (action.type == BT_PREFILL_LINK_SEND && action.link_msg.type == BT_KV_HELLO) {
            assert_true(world->n_offered < 2);
            world->offered[world->n_offered++] = action.link_msg.ticket.hi;
        }
    assert_true(bt_prefill_core_is_valid(world->core));
}

static void tell(struct world *world, const struct bt_msg *msg) {
    struct bt_error err;
    assert_int_equal(bt_prefill_core_router_message(world->core, world->now_us, 0, msg, &err),
                     BT_OK);
    listen(world);
}

static void ask(struct world *world, uint64_t request, uint32_t n_tokens, uint32_t n_prompt,
                const struct bt_sampling *sampling) {
    static const int32_t tokens[6] = {1, 2, 3, 4, 5, 6};
    struct bt_msg msg = {.type = BT_MSG_PREFILL};
    msg.work = (struct bt_msg_work){.key = {request, 1},
                                    .ticket = {request, 4},
                                    .tokens = tokens,
                                    .n_tokens = n_tokens,
                                    .n_prompt = n_prompt,
                                    .sampling = *sampling,
                                    .remaining_ms = 1000,
                                    .peer = {9, 9}};
    tell(world, &msg);
}

static void test_what_can_never_run_here_is_refused(void **state) {
    struct world *world = *state;
    const struct bt_logit_bias bias[] = {{99, 1}, {100, 1}};
    const struct bt_sampling scored = {.max_tokens = 4, .prompt_logprobs = 1},
                             foreign = {.max_tokens = 4, .n_bias = 2, .bias = bias},
                             biased = {.max_tokens = 4, .n_bias = 1, .bias = bias, .logprobs = 21};
    bt_prefill_core_router_opened(world->core, world->now_us, 0);
    listen(world);
    tell(world, &(struct bt_msg){.type = BT_MSG_WELCOME, .welcome = {{3, 3}, 1}});
    ask(world, 1, 6, 6, &scored); /* a decode worker computes and scores it */
    assert_int_equal(world->n_ended, 1);
    assert_int_equal(world->ended.reason, BT_END_INVALID);
    ask(world, 2, 6, 6, &foreign); /* 100 tokens are in the vocabulary */
    assert_int_equal(world->n_ended, 1);
    assert_int_equal(world->ended.reason, BT_END_INVALID);
    ask(world, 3, 6, 5, &scored); /* its prompt was scored before the token that was emitted */
    ask(world, 4, 6, 6, &biased);
    assert_int_equal(world->n_ended, 0);
    ask(world, 5, 1, 1, &scored); /* no token stands before its only one: nothing to score */
    assert_int_equal(world->n_ended, 1);
    assert_int_equal(world->ended.reason, BT_END_FULL); /* two at once run here */
}

/* Both wait for their link; the long one came first, but by less than it may be passed. */
static void test_a_short_prompt_passes_a_long_one_for_a_while(void **state) {
    for (int late = 0; late < 2; late++) {
        struct world *world = *state;
        const struct bt_sampling sampling = {.max_tokens = 4};
        const struct bt_peer peer = {.incarnation = {9, 9}, .link_address = "127.0.0.1:9"};
        bt_prefill_core_router_opened(world->core, world->now_us, 0);
        listen(world);
        tell(world, &(struct bt_msg){.type = BT_MSG_WELCOME, .welcome = {{3, 3}, 1}});
        ask(world, 1, 6, 6, &sampling);
        world->now_us += late ? 20001 : 19999;
        ask(world, 2, 1, 1, &sampling);
        tell(world, &(struct bt_msg){.type = BT_MSG_PEERS, .peers = {&peer, 1}});
        bt_prefill_core_link_up(world->core, world->now_us, 0);
        listen(world);
        assert_int_equal(world->n_offered, 2);
        assert_int_equal(world->offered[0], late ? 1 : 2);
        tear_down(state);
        set_up(state);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_can_never_run_here_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_short_prompt_passes_a_long_one_for_a_while, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

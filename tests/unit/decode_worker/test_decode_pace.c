/* The decode worker's core by hand: how much of a step prompts take beside streams, and which is
 * first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "decode_worker/decode_core.h"

enum { TOKENS = 700, STEP_US = 10000, CHUNK = 64 };

struct world {
    struct bt_decode_core *core;
    uint64_t now_us;
    struct bt_step *step;
};

static void open_world(struct world *world, uint32_t step_us) {
    struct bt_decode_config config = {.n_pages = 128,
                                      .n_layers = 1,
                                      .page_bytes = 64,
                                      .n_vocab = 5000,
                                      .chunk_tokens = CHUNK,
                                      .step_us = step_us,
                                      .drain_ms = 300};
    config.join.incarnation = (struct bt_id){7, 7};
    config.join.role = BT_ROLE_DECODE;
    config.join.max_context = 1024;
    config.join.max_seqs = 4;
    struct bt_error err;
    *world = (struct world){.now_us = 1000000};
    assert_int_equal(bt_decode_core_create(&config, &world->core, &err), BT_OK);
}

static void listen(struct world *world) {
    struct bt_decode_action action;
    while (bt_decode_core_next(world->core, world->now_us, &action))
        if (action.type == BT_DECODE_STEP)
            world->step = action.step;
    assert_true(bt_decode_core_is_valid(world->core));
}

static void tell(struct world *world, const struct bt_msg *msg) {
    struct bt_error err;
    assert_int_equal(bt_decode_core_router_message(world->core, world->now_us, 0, msg, &err),
                     BT_OK);
    listen(world);
}

static void attach(struct world *world) {
    bt_decode_core_router_opened(world->core, world->now_us, 0);
    listen(world);
    tell(world, &(struct bt_msg){.type = BT_MSG_WELCOME, .welcome = {{3, 3}, 1}});
}

/* A prompt to be computed here; no two begin alike. */
static void ask(struct world *world, uint64_t request, uint32_t n_tokens) {
    int32_t tokens[TOKENS];
    for (int32_t i = 0; i < TOKENS; i++)
        tokens[i] = i + 1000 * (int32_t)request;
    struct bt_msg msg = {.type = BT_MSG_RESERVE};
    msg.work = (struct bt_msg_work){.key = {request, 1},
                                    .ticket = {request, 4},
                                    .tokens = tokens,
                                    .n_tokens = n_tokens,
                                    .n_prompt = n_tokens,
                                    .remaining_ms = 60000,
                                    .peer = {9, 9},
                                    .prefill_here = true};
    msg.work.sampling.max_tokens = 100;
    tell(world, &msg);
}

/* The step that is out took so long; rows of the next one. */
static uint32_t step(struct world *world, uint64_t took_us) {
    struct bt_step *done = world->step;
    assert_non_null(done);
    world->step = NULL;
    for (uint32_t i = 0; i < done->n_seqs; i++)
        done->results[i] = (struct bt_step_result){.token = 9};
    bt_decode_core_step_done(world->core, world->now_us += took_us);
    listen(world);
    return world->step ? world->step->n_rows : 0;
}

static void test_prompts_take_what_keeps_a_step_within_its_bound(void **state) {
    (void)state;
    struct world world;
    open_world(&world, STEP_US);
    attach(&world);
    ask(&world, 1, CHUNK);
    assert_int_equal(world.step->n_rows, CHUNK); /* nobody streams: a whole chunk */
    assert_int_equal(step(&world, 90000), 1);
    ask(&world, 2, TOKENS);
    /* What a row takes is not known yet, so a few; the first step was no measure. */
    assert_int_equal(step(&world, 3000), 1 + 8);
    /* 0.25 ms a row: 40 rows in 10 ms. */
    assert_int_equal(step(&world, 9 * 250), 40);
    /* 0.1 ms lately, 0.2125 ms on average. */
    assert_int_equal(step(&world, 40 * 100), 47);
    /* However fast, no more than a chunk beside the stream. */
    assert_int_equal(step(&world, 47), 62);
    assert_int_equal(step(&world, 62), 1 + CHUNK);
    assert_int_equal(step(&world, 65), 1 + CHUNK);
    /* However slow, a few. */
    assert_int_equal(step(&world, 5000000000), 1 + 8);
    assert_int_equal(step(&world, 5000000000), 1 + 8);
    for (int i = 0; i < 80 && world.step->n_seqs > 1 && world.step->seqs[1].n_rows > 1; i++)
        assert_in_range(step(&world, 1000), 2, 1 + CHUNK);
    assert_int_equal(world.step->n_rows, 2); /* both stream */
    bt_decode_core_destroy(world.core);
}

static void test_without_a_bound_a_chunk_rides_in_each_step(void **state) {
    (void)state;
    struct world world;
    open_world(&world, 0);
    attach(&world);
    ask(&world, 1, 10);
    assert_int_equal(step(&world, 1000), 1);
    ask(&world, 2, 190);
    for (int i = 0; i < 2; i++)
        assert_int_equal(step(&world, 500000), 1 + CHUNK);
    bt_decode_core_destroy(world.core);
}

static void test_a_short_prompt_passes_a_long_one_for_a_while(void **state) {
    (void)state;
    struct world world;
    open_world(&world, STEP_US);
    attach(&world);
    ask(&world, 1, 190); /* in the step that is out */
    ask(&world, 2, 20);
    assert_int_equal(step(&world, 20000), CHUNK);
    assert_int_equal(world.step->n_seqs, 2);
    assert_int_equal(world.step->seqs[0].n_rows, 20);
    assert_int_equal(world.step->seqs[1].n_rows, CHUNK - 20);
    world.now_us += 190 * 4000; /* one that comes so much later does not */
    ask(&world, 3, 20);
    step(&world, 1000);
    assert_int_equal(world.step->n_rows, 1 + 8);
    assert_int_equal(world.step->seqs[1].position, CHUNK + CHUNK - 20);
    bt_decode_core_destroy(world.core);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompts_take_what_keeps_a_step_within_its_bound),
        cmocka_unit_test(test_without_a_bound_a_chunk_rides_in_each_step),
        cmocka_unit_test(test_a_short_prompt_passes_a_long_one_for_a_while),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

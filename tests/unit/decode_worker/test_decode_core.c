/* The decode worker's core by hand: what a router's question about a prefill worker does, prompts
 * that are scored, what is refused, and the links it counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>

#include "common/base/block_hash.h"
#include "decode_worker/decode_core.h"

struct world {
    struct bt_decode_core *core;
    uint64_t now_us;
    uint32_t n[BT_MSG_COUNT]; /* what was said, by type */
    struct bt_msg_ended ended;
    struct bt_step *step;
    struct bt_msg_reserved reserved;
    struct bt_msg_status status;
    uint32_t n_scores;           /* heard in all, before any token */
    struct bt_logprobs logprobs; /* of the last token told */
    struct bt_kv_msg grant;
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
        if (action.type == BT_DECODE_LINK_SEND && action.link_msg.type == BT_KV_GRANT)
            world->grant = action.link_msg;
        if (action.type != BT_DECODE_SEND)
            continue;
        world->n[action.msg->type]++;
        if (action.msg->type == BT_MSG_ENDED)
            world->ended = action.msg->ended;
        if (action.msg->type == BT_MSG_TOKENS && action.msg->tokens.rows->logprobs)
            world->logprobs = *action.msg->tokens.rows->logprobs;
        if (action.msg->type == BT_MSG_RESERVED)
            world->reserved = action.msg->reserved;
        if (action.msg->type == BT_MSG_STATUS)
            world->status = action.msg->status;
        if (action.msg->type == BT_MSG_SCORES) {
            assert_int_equal(world->n[BT_MSG_TOKENS], 0);
            assert_int_equal(action.msg->scores.first, 1 + world->n_scores);
            for (uint32_t i = 0; i < action.msg->scores.n_rows; i++)
                assert_true(action.msg->scores.rows[i].logprob == -(float)++world->n_scores);
        }
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

enum { SCORED = 40 };

static void tell_work(struct world *world, uint64_t request, uint32_t n_tokens, bool here,
                      const struct bt_sampling *sampling) {
    static int32_t tokens[SCORED];
    for (int32_t i = 0; i < SCORED; i++)
        tokens[i] = i;
    struct bt_msg msg = {.type = BT_MSG_RESERVE};
    msg.work = (struct bt_msg_work){.key = {request, 1},
                                    .ticket = {request, 4},
                                    .tokens = tokens,
                                    .n_tokens = n_tokens,
                                    .n_prompt = n_tokens,
                                    .sampling = *sampling,
                                    .remaining_ms = 1000,
                                    .peer = {9, 9},
                                    .prefill_here = here};
    tell(world, &msg);
}

static void attach(struct world *world) {
    bt_decode_core_router_opened(world->core, world->now_us, 0);
    listen(world);
    tell(world, &(struct bt_msg){.type = BT_MSG_WELCOME, .welcome = {{3, 3}, 1}});
}

/* Runs steps as they are asked for; each scored row says its token's position. Counts rows. */
static uint32_t run_to_the_end(struct world *world) {
    uint32_t n_rows = 0;
    while (world->step) {
        struct bt_step *step = world->step;
        world->step = NULL;
        for (uint32_t i = 0; i < step->n_seqs; i++) {
            const struct bt_step_seq *seq = &step->seqs[i];
            for (uint32_t k = 0; k < seq->n_scores; k++) {
                assert_int_equal(seq->next[k], seq->position + k + 1);
                seq->scores[k] = (struct bt_logprobs){.logprob = -(float)(seq->position + k + 1)};
            }
            step->results[i] = (struct bt_step_result){.token = 9};
        }
        n_rows += step->n_rows;
        bt_decode_core_step_done(world->core, world->now_us += 1000);
        listen(world);
    }
    return n_rows;
}

/* Chunk by chunk all of the prompt is computed and scored, though the cache has it. */
static void test_a_scored_prompt_takes_no_prefix(void **state) {
    struct world *world = *state;
    struct bt_sampling plain = {.max_tokens = 1}, scored = {.max_tokens = 1, .prompt_logprobs = 1};
    attach(world);
    for (uint64_t round = 0; round < 3; round++) {
        world->n_scores = 0;
        tell_work(world, 1 + round, SCORED, true, round ? &scored : &plain);
        assert_true(world->reserved.accepted);
        assert_int_equal(world->reserved.pages_held, 0);
        assert_int_equal(run_to_the_end(world), SCORED);
        assert_int_equal(world->n_scores, round ? SCORED - 1 : 0);
        assert_int_equal(world->ended.reason, BT_END_DONE);
        assert_int_equal(world->ended.next_index, 1);
    }
    tell_work(world, 9, SCORED, true, &plain); /* its pages are in the cache */
    assert_int_equal(world->reserved.pages_held, 2);
    run_to_the_end(world);
}

static void test_a_scored_row_that_is_no_number_ends_it(void **state) {
    struct world *world = *state;
    struct bt_sampling scored = {.max_tokens = 1, .prompt_logprobs = 1};
    attach(world);
    tell_work(world, 1, SCORED, true, &scored);
    assert_false(world->step->seqs[0].sample);
    struct bt_step *step = world->step;
    world->step = NULL;
    step->results[0] = (struct bt_step_result){.token = -1, .finish = BT_FINISH_ERROR};
    bt_decode_core_step_done(world->core, world->now_us += 1000);
    listen(world);
    assert_int_equal(world->ended.reason, BT_END_NONFINITE);
    assert_int_equal(world->n_scores, 0);
    assert_true(bt_decode_core_is_idle(world->core));
}

/* A prompt of one page, handed off with what `first` says of token 0. */
static void hand_off(struct world *world, uint64_t request, const struct bt_kv_msg *first) {
    int32_t tokens[6];
    for (int32_t i = 0; i < 6; i++)
        tokens[i] = i;
    uint64_t layout = bt_fingerprint_hash(&(struct bt_fingerprint){0}), sum = 5;
    struct bt_kv_msg hello = {.type = BT_KV_HELLO, .ticket = {request, 4}, .n_tokens = 6};
    hello.chain = bt_block_prompt(bt_block_root("", layout), tokens, 6);
    bt_decode_core_link_message(world->core, world->now_us, 0, &hello);
    listen(world);
    struct bt_kv_frame frame = {.lease = world->grant.lease,
                                .generation = world->grant.generation,
                                .n_pages = 1,
                                .length = 64};
    struct bt_kv_landing landing;
    struct bt_error err;
    assert_int_equal(
        bt_decode_core_link_frame(world->core, world->now_us, 0, &frame, &landing, &err), BT_OK);
    bt_decode_core_link_frame_end(world->core, world->now_us, &landing, true, &sum, &sum);
    struct bt_kv_msg commit = *first;
    commit.type = BT_KV_COMMIT;
    commit.ticket = hello.ticket;
    commit.chain = hello.chain;
    commit.lease = world->grant.lease;
    commit.generation = world->grant.generation;
    commit.n_sums = 1;
    commit.manifest = XXH3_64bits(&sum, sizeof sum);
    commit.fingerprint_hash = layout;
    bt_decode_core_link_message(world->core, world->now_us, 0, &commit);
    listen(world);
}

/* What the commit says of token 0 must be what was asked for, or nothing of it is believed. */
static void test_logprobs_of_the_commit(void **state) {
    struct world *world = *state;
    const struct bt_sampling asks = {.max_tokens = 1, .logprobs = 2}, plain = {.max_tokens = 1};
    const struct bt_kv_msg good = {.token = 9,
                                   .finish = BT_FINISH_LENGTH,
                                   .has_logprobs = true,
                                   .logprobs = {.logprob = -2, .n_top = 1, .top = {{99, -1}}}};
    struct bt_kv_msg none = good, wide = good, foreign = good;
    none.has_logprobs = false;
    wide.logprobs.n_top = 2;
    foreign.logprobs.top[0].token = 100;
    const struct {
        const struct bt_kv_msg *first;
        const struct bt_sampling *sampling;
        enum bt_end end;
    } cases[] = {{&good, &asks, BT_END_DONE},      {&none, &asks, BT_END_CHECKSUM},
                 {&wide, &asks, BT_END_CHECKSUM},  {&foreign, &asks, BT_END_CHECKSUM},
                 {&good, &plain, BT_END_CHECKSUM}, {&none, &plain, BT_END_DONE}};
    attach(world);
    bt_decode_core_link_up(world->core, world->now_us, 0, (struct bt_id){9, 9});
    for (uint64_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        world->logprobs = (struct bt_logprobs){0};
        tell_work(world, 1 + i, 6, false, cases[i].sampling);
        assert_true(world->reserved.accepted);
        hand_off(world, 1 + i, cases[i].first);
        assert_int_equal(world->ended.key.request, 1 + i);
        assert_int_equal(world->ended.reason, cases[i].end);
        assert_int_equal(world->ended.next_index, cases[i].end == BT_END_DONE);
        if (i == 0)
            assert_memory_equal(&world->logprobs, &good.logprobs, sizeof good.logprobs);
        else
            assert_int_equal(world->logprobs.n_top, 0);
    }
}

static void test_links_up_are_told(void **state) {
    struct world *world = *state;
    attach(world);
    bt_decode_core_link_up(world->core, world->now_us, 0, (struct bt_id){9, 9});
    bt_decode_core_link_up(world->core, world->now_us, 3, (struct bt_id){8, 8});
    world->now_us += 1000000;
    listen(world);
    assert_int_equal(world->status.links, 2);
    bt_decode_core_link_down(world->core, world->now_us, 0);
    bt_decode_core_link_down(world->core, world->now_us, 1); /* never was up */
    world->now_us += 1000000;
    listen(world);
    assert_int_equal(world->status.links, 1);
}

static void test_what_can_never_run_here_is_refused(void **state) {
    struct world *world = *state;
    const struct bt_logit_bias bias[] = {{99, 1}, {100, 1}};
    struct bt_sampling sampling = {.max_tokens = 1, .prompt_logprobs = 1};
    attach(world);
    tell_work(world, 1, SCORED, false, &sampling); /* scores of a prompt computed elsewhere */
    assert_int_equal(world->reserved.reason, BT_END_INVALID);
    sampling = (struct bt_sampling){.max_tokens = 1, .n_bias = 2, .bias = bias};
    tell_work(world, 2, SCORED, true, &sampling); /* 100 tokens are in the vocabulary */
    assert_int_equal(world->reserved.reason, BT_END_INVALID);
    sampling.n_bias = 1;
    tell_work(world, 3, SCORED, true, &sampling);
    assert_true(world->reserved.accepted);
    assert_int_equal(run_to_the_end(world), SCORED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_question_about_a_prompt_computed_here, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_question_before_the_hand_off, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_question_about_what_is_not_here, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_scored_prompt_takes_no_prefix, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_scored_row_that_is_no_number_ends_it, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_logprobs_of_the_commit, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_links_up_are_told, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_can_never_run_here_is_refused, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

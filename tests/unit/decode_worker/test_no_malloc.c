/* The decode worker's core and the engine together, as its loop drives them: once it is warm, no
 * step takes memory, on no thread, whatever is sampled and wherever pages are added. What gRPC and
 * the event loop allocate to carry the tokens away is not part of this. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "common/engine/engine.h"
#include "decode_worker/decode_core.h"
#include "tests/unit/allocations.h"

#define MODEL BT_FIXTURES "/tiny_gguf/tiny-llama-Q4_1.gguf"

enum {
    SEQS = 16,
    PROMPT = 6,
    TOKENS = 72,
    WARM = 4,     /* each sequence has as many tokens when counting begins */
    COUNTED = 60, /* and as many when it ends: four page edges later */
    N_PAGES = 128,
    WAIT_MS = 10000,
};

struct world {
    struct bt_engine *engine;
    struct bt_decode_core *core;
    uint64_t now_us;
    uint32_t n_tokens[SEQS + 1]; /* told so far, by request; requests are 1 .. SEQS */
    uint32_t n_logprobs;
};

static void drain(struct world *world) {
    struct bt_decode_action action;
    while (bt_decode_core_next(world->core, world->now_us, &action)) {
        if (action.type == BT_DECODE_STEP)
            bt_engine_post(world->engine, action.step);
        if (action.type != BT_DECODE_SEND || action.msg->type != BT_MSG_TOKENS)
            continue;
        for (uint32_t i = 0; i < action.msg->tokens.n_rows; i++) {
            const struct bt_token *token = &action.msg->tokens.rows[i];
            world->n_tokens[token->key.request]++;
            world->n_logprobs += token->logprobs != NULL;
        }
    }
}

/* Waits for the step that is out and takes its end to the core, as decode_worker.c does. */
static void turn(struct world *world) {
    struct bt_engine_event event;
    struct pollfd fd = {.fd = bt_engine_fd(world->engine), .events = POLLIN};
    if (poll(&fd, 1, WAIT_MS) != 1)
        fail_msg("no step ended within %d ms", WAIT_MS);
    world->now_us += 1000;
    while (bt_engine_next(world->engine, &event)) {
        if (event.kind == BT_ENGINE_STEP_DONE)
            bt_decode_core_step_done(world->core, world->now_us);
        drain(world);
    }
    bt_decode_core_tick(world->core, world->now_us);
    drain(world);
}

static void tell(struct world *world, const struct bt_msg *msg) {
    struct bt_error err;
    if (bt_decode_core_router_message(world->core, world->now_us, 0, msg, &err) < 0)
        fail_msg("%s", err.text);
    drain(world);
}

static const struct bt_logit_bias bias[] = {{7, -100}, {99, 2.5f}};

/* Every way to choose a token. */
static struct bt_sampling way(uint32_t i) {
    struct bt_sampling how = {.temperature = 1,
                              .top_p = 1,
                              .repetition_penalty = 1,
                              .seed = i,
                              .max_tokens = TOKENS,
                              .ignore_eos = true};
    switch (i % 8) {
    case 0:
        how.temperature = 0;
        break;
    case 1:
        how.top_p = 0.9f;
        break;
    case 2:
        how.temperature = 2, how.top_p = 0.99f;
        break;
    case 3:
        how.top_k = 40, how.top_p = 0.5f;
        break;
    case 4:
        how.min_p = 0.05f, how.min_tokens = TOKENS;
        break;
    case 5:
        how.frequency_penalty = how.presence_penalty = 0.5f, how.repetition_penalty = 1.2f;
        break;
    case 6:
        how.n_bias = 2, how.bias = bias;
        break;
    default:
        how.logprobs = 1 + BT_TOP_LOGPROBS, how.want_hash = true;
    }
    return how;
}

static void open_world(struct world *world, uint32_t n_threads) {
    const struct bt_engine_params params = {.model_path = MODEL,
                                            .n_threads = n_threads,
                                            .profile = BT_PROFILE_FAST,
                                            .n_pages = N_PAGES,
                                            .max_rows = 2 * SEQS,
                                            .max_seqs = SEQS,
                                            .max_context = 128};
    struct bt_error err;
    *world = (struct world){.now_us = 1000000};
    if (bt_engine_create(&params, &world->engine, &err) < 0)
        fail_msg("%s", err.text);
    const struct bt_engine_info *info = bt_engine_info(world->engine);
    struct bt_decode_config config = {.n_pages = info->n_pages,
                                      .n_layers = info->n_layers,
                                      .page_bytes = (uint32_t)info->page_bytes,
                                      .n_vocab = info->n_vocab,
                                      .chunk_tokens = SEQS,
                                      .drain_ms = 300};
    config.join.incarnation = (struct bt_id){7, 7};
    config.join.role = BT_ROLE_DECODE;
    config.join.max_context = 128;
    config.join.max_seqs = SEQS;
    config.join.fingerprint = info->fingerprint;
    if (bt_decode_core_create(&config, &world->core, &err) < 0)
        fail_msg("%s", err.text);
    bt_decode_core_router_opened(world->core, world->now_us, 0);
    drain(world);
    tell(world, &(struct bt_msg){.type = BT_MSG_WELCOME, .welcome = {{3, 3}, 1}});
}

static void ask(struct world *world, uint32_t i) {
    int32_t tokens[PROMPT];
    for (uint32_t k = 0; k < PROMPT; k++)
        tokens[k] = (int32_t)(10 + i * PROMPT + k);
    struct bt_msg msg = {.type = BT_MSG_RESERVE};
    msg.work = (struct bt_msg_work){.key = {1 + i, 1},
                                    .ticket = {4, 1 + i},
                                    .tokens = tokens,
                                    .n_tokens = PROMPT,
                                    .n_prompt = PROMPT,
                                    .remaining_ms = 1000000,
                                    .peer = {9, 9},
                                    .prefill_here = true};
    msg.work.sampling = way(i);
    tell(world, &msg);
}

static uint32_t fewest(const struct world *world, uint32_t first, uint32_t n) {
    uint32_t least = UINT32_MAX;
    for (uint32_t i = first; i < first + n; i++)
        least = world->n_tokens[1 + i] < least ? world->n_tokens[1 + i] : least;
    return least;
}

static void run(struct world *world, uint32_t first, uint32_t n) {
    for (uint32_t i = first; i < first + n; i++)
        ask(world, i);
    while (fewest(world, first, n) < WARM)
        turn(world);
    uint64_t before = allocations.n;
    while (fewest(world, first, n) < COUNTED)
        turn(world);
    assert_int_equal(allocations.n - before, 0);
    while (fewest(world, first, n) < TOKENS)
        turn(world);
    assert_int_equal(world->n_tokens[1 + first], TOKENS);
}

static void close_world(struct world *world) {
    bt_decode_core_destroy(world->core);
    bt_engine_destroy(world->engine);
}

static void test_sixteen_sequences(void **state) {
    (void)state;
    for (uint32_t n_threads = 1; n_threads <= 2; n_threads++) {
        struct world world;
        open_world(&world, n_threads);
        run(&world, 0, SEQS);
        assert_int_equal(world.n_logprobs, SEQS / 8 * TOKENS);
        close_world(&world);
    }
}

/* One after the other, so that each way has steps of its own. */
static void test_one_sequence(void **state) {
    (void)state;
    struct world world;
    open_world(&world, 2);
    for (uint32_t i = 0; i < 8; i++)
        run(&world, i, 1);
    close_world(&world);
}

/* What is counted above is counted at all. */
static void test_an_allocation_is_seen(void **state) {
    (void)state;
    uint64_t before = allocations.n;
    void *volatile memory = malloc(100);
    free(memory);
    memory = aligned_alloc(64, 128);
    free(memory);
    assert_int_equal(allocations.n - before, COUNTS_ALLOCATIONS ? 2 : 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_allocation_is_seen),
        cmocka_unit_test(test_one_sequence),
        cmocka_unit_test(test_sixteen_sequences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

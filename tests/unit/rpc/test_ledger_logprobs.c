/* The ledger's logprobs: prompt positions before token 0, told again after a cut, bounded memory.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rpc/ledger.h"

enum { MAX_JOBS = 4, CONTEXT = 3000, PROMPT = 2500 };

struct world {
    struct bt_ledger *ledger;
    uint64_t now_us;
    int32_t tokens[PROMPT];
};

static int set_up(void **state) {
    struct world *world = calloc(1, sizeof *world);
    struct bt_ledger_config config = {.max_jobs = MAX_JOBS};
    config.join.role = BT_ROLE_DECODE;
    config.join.max_context = CONTEXT;
    config.join.max_seqs = 2;
    config.join.incarnation = (struct bt_id){7, 7};
    struct bt_error err;
    world->now_us = 1000000;
    assert_int_equal(bt_ledger_create(&config, &world->ledger, &err), BT_OK);
    *state = world;
    return 0;
}

static int tear_down(void **state) {
    struct world *world = *state;
    bt_ledger_destroy(world->ledger);
    free(world);
    return 0;
}

static struct bt_logprobs row_of(uint32_t i, uint32_t n_top) {
    struct bt_logprobs row = {.logprob = -(float)i, .n_top = (uint8_t)n_top};
    for (uint32_t k = 0; k < n_top; k++)
        row.top[k] = (struct bt_logprob){(int32_t)(i + k), -(float)k};
    return row;
}

/* What is said, checked row by row: positions and indexes rise from where they should. */
struct heard {
    uint32_t n_scores, first_score, n_tokens, first_token, n_messages;
    bool tokens_came_early; /* before a score */
};

static struct heard listen(struct world *world, uint32_t score_top, uint32_t token_top) {
    struct heard heard = {0};
    struct bt_ledger_action action;
    while (bt_ledger_next(world->ledger, world->now_us, &action)) {
        if (action.type != BT_LEDGER_SEND)
            continue;
        if (action.msg->type == BT_MSG_SCORES) {
            const struct bt_msg_scores *scores = &action.msg->scores;
            heard.first_score = heard.n_scores ? heard.first_score : scores->first;
            assert_true(scores->n_rows >= 1 && scores->n_rows <= BT_SCORE_ROWS);
            assert_int_equal(scores->first, heard.first_score + heard.n_scores);
            for (uint32_t i = 0; i < scores->n_rows; i++) {
                struct bt_logprobs expected = row_of(scores->first + i, score_top);
                assert_memory_equal(&scores->rows[i], &expected, sizeof expected);
            }
            heard.n_scores += scores->n_rows;
            heard.n_messages++;
            heard.tokens_came_early |= heard.n_tokens > 0;
        } else if (action.msg->type == BT_MSG_TOKENS) {
            for (uint32_t i = 0; i < action.msg->tokens.n_rows; i++) {
                const struct bt_token *row = &action.msg->tokens.rows[i];
                heard.first_token = heard.n_tokens ? heard.first_token : row->index;
                assert_int_equal(row->index, heard.first_token + heard.n_tokens++);
                assert_int_equal(row->token, 100 + row->index);
                assert_true((row->logprobs != NULL) == (token_top > 0));
                if (!row->logprobs)
                    continue;
                struct bt_logprobs expected = row_of(row->index, token_top - 1);
                assert_memory_equal(row->logprobs, &expected, sizeof expected);
            }
        }
    }
    assert_true(bt_ledger_is_valid(world->ledger));
    return heard;
}

static void tell(struct world *world, const struct bt_msg *msg) {
    struct bt_error err;
    assert_int_equal(bt_ledger_message(world->ledger, world->now_us, 0, msg, &err), BT_DONE);
}

static void attach(struct world *world) {
    bt_ledger_opened(world->ledger, world->now_us, 0);
    listen(world, 0, 0);
    tell(world, &(struct bt_msg){.type = BT_MSG_WELCOME, .welcome = {{1, 10}, 1}});
}

static bt_status open_job(struct world *world, uint64_t request, const struct bt_sampling *sampling,
                          uint32_t n_prompt, struct bt_job **job) {
    struct bt_error err;
    struct bt_msg_work work = {.key = {request, 1},
                               .ticket = {request, 99},
                               .tokens = world->tokens,
                               .n_tokens = n_prompt,
                               .n_prompt = n_prompt,
                               .sampling = *sampling,
                               .remaining_ms = 1000};
    return bt_ledger_open(world->ledger, world->now_us, 0, &work, job, &err);
}

static void add_tokens(struct world *world, struct bt_job *job, uint32_t n, uint32_t n_top) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t index = job->n_tokens - job->n_prompt;
        struct bt_logprobs row = row_of(index, n_top);
        bt_ledger_token(world->ledger, job, (int32_t)(100 + index), BT_FINISH_NONE, 0, &row);
    }
}

static void add_scores(struct world *world, struct bt_job *job, uint32_t first, uint32_t n,
                       uint32_t n_top) {
    for (uint32_t i = 0; i < n; i++) {
        struct bt_logprobs row = row_of(first + i, n_top);
        bt_ledger_scores(world->ledger, job, &row, 1);
    }
}

static void resume_from(struct world *world, uint32_t next_index) {
    bt_ledger_closed(world->ledger, world->now_us, 0);
    attach(world);
    struct bt_resume row = {.key = {1, 1}, .ticket = {1, 99}, .next_index = next_index};
    tell(world, &(struct bt_msg){.type = BT_MSG_RESUME, .resume = {&row, 1}});
}

static void drop(struct world *world, struct bt_job *job) {
    bt_ledger_drop(world->ledger, job);
    assert_true(bt_ledger_is_valid(world->ledger));
}

static void test_scores_come_first_and_again(void **state) {
    struct world *world = *state;
    struct bt_sampling sampling = {.max_tokens = 400, .logprobs = 4, .prompt_logprobs = 3};
    struct bt_job *job;
    attach(world);
    tell(world, &(struct bt_msg){.type = BT_MSG_PULSE});
    assert_int_equal(open_job(world, 1, &sampling, PROMPT, &job), BT_OK);
    assert_int_equal(bt_ledger_n_scores(job), PROMPT - 1);
    add_scores(world, job, 1, 10, 2);
    struct heard heard = listen(world, 2, 4);
    assert_int_equal(heard.first_score, 1);
    assert_int_equal(heard.n_scores, 10);
    add_scores(world, job, 11, PROMPT - 11, 2);
    add_tokens(world, job, 40, 3);
    heard = listen(world, 2, 4);
    assert_int_equal(heard.first_score, 11);
    assert_int_equal(heard.n_scores, PROMPT - 11);
    assert_int_equal(heard.n_messages, 3); /* of at most 1,024 rows */
    assert_int_equal(heard.n_tokens, 40);
    assert_false(heard.tokens_came_early);
    /* Without token 0 it may lack any of them. */
    resume_from(world, 0);
    heard = listen(world, 2, 4);
    assert_int_equal(heard.first_score, 1);
    assert_int_equal(heard.n_scores, PROMPT - 1);
    assert_int_equal(heard.n_tokens, 40);
    assert_false(heard.tokens_came_early);
    /* With it, it has them all. */
    resume_from(world, 23);
    add_tokens(world, job, 1, 3);
    heard = listen(world, 2, 4);
    assert_int_equal(heard.n_scores, 0);
    assert_int_equal(heard.first_token, 23);
    assert_int_equal(heard.n_tokens, 18);
    drop(world, job);
}

/* An attempt that goes on after emitted tokens owes no scores; one without logprobs shows none. */
static void test_nothing_is_told_that_nobody_asked_for(void **state) {
    struct world *world = *state;
    struct bt_job *job;
    struct bt_error err;
    struct bt_msg_work work = {.key = {1, 1},
                               .ticket = {1, 99},
                               .tokens = world->tokens,
                               .n_tokens = 9,
                               .n_prompt = 8,
                               .sampling = {.max_tokens = 5, .prompt_logprobs = 1},
                               .remaining_ms = 1000};
    attach(world);
    tell(world, &(struct bt_msg){.type = BT_MSG_PULSE});
    assert_int_equal(bt_ledger_open(world->ledger, world->now_us, 0, &work, &job, &err), BT_OK);
    assert_int_equal(bt_ledger_n_scores(job), 0);
    add_tokens(world, job, 4, 0);
    struct heard heard = listen(world, 0, 0);
    assert_int_equal(heard.first_token, 1);
    assert_int_equal(heard.n_tokens, 4);
    assert_int_equal(heard.n_scores, 0);
    drop(world, job);
}

static void test_room_is_promised_and_given_back(void **state) {
    struct world *world = *state;
    struct bt_sampling widest = {.max_tokens = CONTEXT - PROMPT,
                                 .logprobs = 1 + BT_TOP_LOGPROBS,
                                 .prompt_logprobs = 1 + BT_TOP_LOGPROBS};
    struct bt_sampling none = {.max_tokens = 1};
    struct bt_job *first, *second, *third;
    attach(world);
    tell(world, &(struct bt_msg){.type = BT_MSG_PULSE});
    assert_int_equal(open_job(world, 1, &widest, PROMPT, &first), BT_OK);
    assert_int_equal(open_job(world, 2, &widest, PROMPT, &second), BT_E_FULL);
    assert_true(bt_ledger_is_valid(world->ledger));
    assert_int_equal(open_job(world, 3, &none, PROMPT, &third), BT_OK); /* takes none of it */
    /* Ended and still remembered: it makes room. */
    add_scores(world, first, 1, PROMPT - 1, BT_TOP_LOGPROBS);
    add_tokens(world, first, CONTEXT - PROMPT, BT_TOP_LOGPROBS); /* the promise is enough */
    bt_ledger_end(world->ledger, world->now_us, first, &(struct bt_msg_ended){.reason = 1});
    drop(world, first);
    assert_int_equal(open_job(world, 2, &widest, PROMPT, &second), BT_OK);
    drop(world, second);
    drop(world, third);
    assert_true(bt_ledger_is_quiet(world->ledger));
}

/* More than a stream may hold at once could never be told again. */
static void test_a_prompt_with_too_many_logprobs_is_refused(void **state) {
    (void)state;
    enum { LONG = 70000 };
    struct bt_ledger_config config = {.max_jobs = 1};
    config.join.role = BT_ROLE_DECODE;
    config.join.max_context = LONG + 1;
    config.join.max_seqs = 1;
    config.join.incarnation = (struct bt_id){7, 7};
    struct world world = {.now_us = 1000000};
    struct bt_error err;
    assert_int_equal(bt_ledger_create(&config, &world.ledger, &err), BT_OK);
    attach(&world);
    int32_t *tokens = calloc(LONG, sizeof *tokens);
    struct bt_msg_work work = {.key = {1, 1},
                               .ticket = {1, 99},
                               .tokens = tokens,
                               .n_tokens = LONG,
                               .n_prompt = LONG,
                               .sampling = {.max_tokens = 1},
                               .remaining_ms = 1000};
    struct bt_job *job;
    work.sampling.prompt_logprobs = 1 + BT_TOP_LOGPROBS;
    assert_int_equal(bt_ledger_open(world.ledger, world.now_us, 0, &work, &job, &err),
                     BT_E_INVALID);
    assert_non_null(strstr(err.text, "take 12949815 bytes, must be at most 12582912"));
    work.sampling.prompt_logprobs = 1 + 19;
    assert_int_equal(bt_ledger_open(world.ledger, world.now_us, 0, &work, &job, &err), BT_OK);
    bt_ledger_drop(world.ledger, job);
    bt_ledger_destroy(world.ledger);
    free(tokens);
}

static void test_bias_is_kept_by_the_job(void **state) {
    struct world *world = *state;
    struct bt_logit_bias bias[BT_LOGIT_BIASES];
    for (int32_t i = 0; i < BT_LOGIT_BIASES; i++)
        bias[i] = (struct bt_logit_bias){i * 2, (float)(i % 200) - 100};
    struct bt_sampling sampling = {.max_tokens = 5, .n_bias = BT_LOGIT_BIASES, .bias = bias};
    struct bt_job *job, *other;
    attach(world);
    tell(world, &(struct bt_msg){.type = BT_MSG_PULSE});
    assert_int_equal(open_job(world, 1, &sampling, 4, &job), BT_OK);
    sampling.n_bias = 1;
    assert_int_equal(open_job(world, 2, &sampling, 4, &other), BT_OK);
    struct bt_logit_bias copy[BT_LOGIT_BIASES];
    memcpy(copy, bias, sizeof bias);
    memset(bias, 0xff, sizeof bias); /* what brought them is gone */
    assert_memory_equal(job->sampling.bias, copy, sizeof copy);
    assert_memory_equal(other->sampling.bias, copy, sizeof *copy);
    sampling.n_bias = 0;
    bt_ledger_drop(world->ledger, other);
    assert_int_equal(open_job(world, 3, &sampling, 4, &other), BT_OK);
    assert_null(other->sampling.bias);
    drop(world, job);
    drop(world, other);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_scores_come_first_and_again),
        TEST(test_nothing_is_told_that_nobody_asked_for),
        TEST(test_room_is_promised_and_given_back),
        TEST(test_a_prompt_with_too_many_logprobs_is_refused),
        TEST(test_bias_is_kept_by_the_job),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

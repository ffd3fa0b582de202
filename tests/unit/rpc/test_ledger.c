/* The ledger: what a worker owes its routers, told once, told again after a cut, forgotten in time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rpc/ledger.h"

enum { MAX_JOBS = 4, CONTEXT = 64 };
static const struct bt_id router_a = {1, 10}, router_b = {2, 20};

struct world {
    struct bt_ledger *ledger;
    uint64_t now_us;
};

static int set_up(void **state) {
    struct world *world = calloc(1, sizeof *world);
    struct bt_ledger_config config = {.max_jobs = MAX_JOBS};
    config.join.max_context = CONTEXT;
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

/* Takes everything that is to be said; counts by type, keeps the last of each. */
struct heard {
    uint32_t n[BT_MSG_COUNT];
    struct bt_msg_ended ended, report;
    uint32_t n_rows_before_report;
    struct bt_msg_reserved reserved;
    struct bt_msg_status status;
    struct bt_token rows[BT_LEDGER_ROWS];
    uint32_t n_rows, n_added, n_evicted;
    bool census_first, census_last;
    uint32_t n_closes, n_quits;
};

static struct heard *listen(struct world *world) {
    static struct heard heard;
    memset(&heard, 0, sizeof heard);
    struct bt_ledger_action action;
    while (bt_ledger_next(world->ledger, world->now_us, &action)) {
        heard.n_closes += action.type == BT_LEDGER_CLOSE;
        heard.n_quits += action.type == BT_LEDGER_QUIT;
        if (action.type != BT_LEDGER_SEND)
            continue;
        heard.n[action.msg->type]++;
        switch (action.msg->type) {
        case BT_MSG_ENDED:
            heard.ended = action.msg->ended;
            break;
        case BT_MSG_REPORT:
            heard.report = action.msg->ended;
            heard.n_rows_before_report = heard.n_rows;
            break;
        case BT_MSG_RESERVED:
            heard.reserved = action.msg->reserved;
            break;
        case BT_MSG_STATUS:
            heard.status = action.msg->status;
            break;
        case BT_MSG_BLOCKS:
            heard.n_added += action.msg->blocks.n_added;
            heard.n_evicted += action.msg->blocks.n_evicted;
            heard.census_first |= action.msg->blocks.census_first;
            heard.census_last |= action.msg->blocks.census_last;
            break;
        case BT_MSG_TOKENS:
            for (uint32_t i = 0; i < action.msg->tokens.n_rows; i++)
                heard.rows[heard.n_rows++] = action.msg->tokens.rows[i];
            break;
        default:
            break;
        }
    }
    assert_true(bt_ledger_is_valid(world->ledger));
    return &heard;
}

static void tell(struct world *world, uint32_t slot, const struct bt_msg *msg, bt_status expected) {
    struct bt_error err;
    assert_int_equal(bt_ledger_message(world->ledger, world->now_us, slot, msg, &err), expected);
    assert_true(bt_ledger_is_valid(world->ledger));
}

static void attach(struct world *world, uint32_t slot, struct bt_id router) {
    bt_ledger_opened(world->ledger, world->now_us, slot);
    assert_int_equal(listen(world)->n[BT_MSG_JOIN], 1);
    tell(world, slot, &(struct bt_msg){.type = BT_MSG_WELCOME, .welcome = {router, 1}}, BT_DONE);
}

static void pulse(struct world *world, uint32_t slot) {
    tell(world, slot, &(struct bt_msg){.type = BT_MSG_PULSE}, BT_DONE);
}

static struct bt_job *open_job(struct world *world, uint32_t slot, uint64_t request) {
    static const int32_t tokens[3] = {5, 6, 7};
    struct bt_msg_work work = {.key = {request, 1},
                               .ticket = {request, 99},
                               .tokens = tokens,
                               .n_tokens = 3,
                               .n_prompt = 2,
                               .remaining_ms = 1000,
                               .elapsed_ms = 40};
    work.sampling.max_tokens = 20;
    struct bt_job *job = NULL;
    struct bt_error err;
    assert_int_equal(bt_ledger_open(world->ledger, world->now_us, slot, &work, &job, &err), BT_OK);
    return job;
}

static void test_tokens_then_end(void **state) {
    struct world *world = *state;
    attach(world, 0, router_a);
    pulse(world, 0);
    listen(world);
    struct bt_job *job = open_job(world, 0, 1);
    assert_int_equal(job->arrived_us, world->now_us - 40000);
    assert_int_equal(job->deadline_us, world->now_us + 1000000);
    bt_ledger_answer(world->ledger, job, &(struct bt_msg_reserved){.accepted = true, .pages = 1});
    bt_ledger_token(world->ledger, job, 11, BT_FINISH_NONE, 0x11, NULL);
    bt_ledger_token(world->ledger, job, 12, BT_FINISH_LENGTH, 0x12, NULL);
    bt_ledger_end(world->ledger, world->now_us, job, &(struct bt_msg_ended){.reason = BT_END_DONE});
    bt_ledger_drop(world->ledger, job);
    const struct heard *heard = listen(world);
    assert_int_equal(heard->n[BT_MSG_RESERVED], 1);
    assert_int_equal(heard->n_rows, 2);
    /* One token of an earlier attempt stands before: its own begin at index 1. */
    assert_int_equal(heard->rows[0].index, 1);
    assert_int_equal(heard->rows[0].token, 11);
    assert_int_equal(heard->rows[0].finish, BT_FINISH_NONE);
    assert_int_equal(heard->rows[1].index, 2);
    assert_int_equal(heard->rows[1].finish, BT_FINISH_LENGTH);
    assert_int_equal(heard->rows[1].hash, 0x12);
    assert_int_equal(heard->ended.next_index, 3);
    assert_int_equal(listen(world)->n[BT_MSG_ENDED], 0); /* once */
    assert_false(bt_ledger_is_quiet(world->ledger));
    struct bt_attempt seen = {1, 1};
    tell(world, 0, &(struct bt_msg){.type = BT_MSG_SEEN, .seen = {&seen, 1}}, BT_DONE);
    assert_true(bt_ledger_is_quiet(world->ledger));
}

/* One Tokens has rows of several jobs: every report that is due stands before it. */
static void test_reports_stand_before_tokens(void **state) {
    struct world *world = *state;
    attach(world, 0, router_a);
    pulse(world, 0);
    listen(world);
    struct bt_job *jobs[3];
    for (uint64_t i = 1; i <= 2; i++) {
        jobs[i] = open_job(world, 0, i);
        bt_ledger_answer(world->ledger, jobs[i],
                         &(struct bt_msg_reserved){.accepted = true, .pages = 1});
    }
    listen(world);
    for (uint64_t i = 1; i <= 2; i++) {
        struct bt_job *job = jobs[i];
        bt_ledger_token(world->ledger, job, 11, BT_FINISH_LENGTH, 0, NULL);
        if (i == 2)
            bt_ledger_report(
                world->ledger, job,
                &(struct bt_msg_ended){.reason = BT_END_DONE, .stages = {.decode_us = 5}});
        bt_ledger_end(world->ledger, world->now_us, job,
                      &(struct bt_msg_ended){.reason = BT_END_DONE});
        bt_ledger_drop(world->ledger, job);
    }
    const struct heard *heard = listen(world);
    assert_int_equal(heard->n[BT_MSG_REPORT], 1);
    assert_int_equal(heard->n_rows_before_report, 0);
    assert_int_equal(heard->report.key.request, 2);
    assert_int_equal(heard->report.stages.decode_us, 5);
    assert_int_equal(heard->n_rows, 2);
    assert_int_equal(heard->n[BT_MSG_ENDED], 2);
    assert_int_equal(listen(world)->n[BT_MSG_REPORT], 0); /* once */
}

static void test_resume_tells_again(void **state) {
    struct world *world = *state;
    attach(world, 0, router_a);
    pulse(world, 0);
    struct bt_job *job = open_job(world, 0, 1), *other = open_job(world, 0, 2);
    for (int32_t i = 0; i < 5; i++)
        bt_ledger_token(world->ledger, job, 100 + i, BT_FINISH_NONE, 0, NULL);
    assert_int_equal(listen(world)->n_rows, 5);
    bt_ledger_closed(world->ledger, world->now_us, 0);
    bt_ledger_token(world->ledger, job, 105, BT_FINISH_NONE, 0, NULL);
    assert_int_equal(listen(world)->n_rows, 0); /* nobody is there */
    world->now_us += 500000;
    attach(world, 0, router_a);
    assert_int_equal(listen(world)->n_rows, 0); /* not before Resume */
    struct bt_resume rows[2] = {{.key = {1, 1}, .ticket = {1, 99}, .next_index = 3},
                                {.key = {9, 1}, .ticket = {9, 99}}};
    tell(world, 0, &(struct bt_msg){.type = BT_MSG_RESUME, .resume = {rows, 2}}, BT_DONE);
    const struct heard *heard = listen(world);
    assert_int_equal(heard->n_rows, 4); /* indexes 3 to 6 */
    assert_int_equal(heard->rows[0].index, 3);
    assert_int_equal(heard->rows[3].token, 105);
    assert_int_equal(heard->ended.key.request, 9); /* a ticket that is not here */
    assert_int_equal(heard->ended.reason, BT_END_UNKNOWN);
    /* What was not listed is lost: the core ends it without a word. */
    assert_int_equal(bt_ledger_take_lost(world->ledger), other->id);
    bt_ledger_drop(world->ledger, other);
    assert_int_equal(bt_ledger_take_lost(world->ledger), BT_NO_JOB);
    bt_ledger_drop(world->ledger, job);
    assert_true(bt_ledger_is_quiet(world->ledger));
}

static void test_no_resume_means_nothing_held(void **state) {
    struct world *world = *state;
    attach(world, 0, router_a);
    pulse(world, 0);
    struct bt_job *job = open_job(world, 0, 1);
    bt_ledger_closed(world->ledger, world->now_us, 0);
    attach(world, 1, router_a);
    assert_int_equal(bt_ledger_take_lost(world->ledger), BT_NO_JOB);
    pulse(world, 1);
    assert_int_equal(bt_ledger_take_lost(world->ledger), job->id);
    bt_ledger_drop(world->ledger, job);
}

static void test_lease_of_a_lost_router(void **state) {
    struct world *world = *state;
    attach(world, 0, router_a);
    pulse(world, 0);
    struct bt_job *job = open_job(world, 0, 1);
    bt_ledger_closed(world->ledger, world->now_us, 0);
    attach(world, 0, router_b); /* another process at the same address */
    pulse(world, 0);
    world->now_us += (uint64_t)BT_LEASE_MS * 1000;
    pulse(world, 0);
    bt_ledger_tick(world->ledger, world->now_us);
    assert_int_equal(bt_ledger_take_lost(world->ledger), BT_NO_JOB); /* not yet */
    world->now_us += 1;
    bt_ledger_tick(world->ledger, world->now_us);
    assert_int_equal(bt_ledger_take_lost(world->ledger), job->id);
    bt_ledger_drop(world->ledger, job);
    bt_ledger_tick(world->ledger, world->now_us);
    assert_int_equal(bt_ledger_n_attached(world->ledger), 1);
    assert_int_equal(__builtin_popcount(bt_ledger_routers(world->ledger)), 1);
}

/* The lease ended while a step held the job; the router comes back before that step does. */
static void test_given_up_is_unknown_to_a_late_resume(void **state) {
    struct world *world = *state;
    attach(world, 0, router_a);
    struct bt_job *job = open_job(world, 0, 1);
    bt_ledger_token(world->ledger, job, 40, BT_FINISH_NONE, 0, NULL);
    bt_ledger_closed(world->ledger, world->now_us, 0);
    world->now_us += BT_LEASE_MS * 1000 + 1;
    bt_ledger_tick(world->ledger, world->now_us);
    assert_int_equal(bt_ledger_take_lost(world->ledger), job->id);

    attach(world, 0, router_a);
    struct bt_resume row = {.key = {1, 1}, .ticket = {1, 99}, .next_index = 0};
    tell(world, 0, &(struct bt_msg){.type = BT_MSG_RESUME, .resume = {&row, 1}}, BT_DONE);
    struct heard *heard = listen(world);
    assert_int_equal(heard->n[BT_MSG_ENDED], 1);
    assert_int_equal(heard->ended.reason, BT_END_UNKNOWN);
    assert_int_equal(heard->ended.key.request, 1);
    bt_ledger_drop(world->ledger, job);
    listen(world);
    assert_false(job->used);
}

static void test_silence_is_dialled_anew(void **state) {
    struct world *world = *state;
    attach(world, 0, router_a);
    pulse(world, 0);
    listen(world);
    world->now_us += (uint64_t)BT_ROUTER_SILENT_MS * 1000 + 1;
    bt_ledger_tick(world->ledger, world->now_us);
    const struct heard *heard = listen(world);
    assert_int_equal(heard->n_closes, 1);
    assert_int_equal(heard->n[BT_MSG_STATUS], 0); /* nothing more is said on it */
}

static void test_heartbeat_and_load(void **state) {
    struct world *world = *state;
    attach(world, 0, router_a);
    pulse(world, 0);
    listen(world);
    struct bt_msg_status status = {.running = 3};
    bt_ledger_set_status(world->ledger, &status);
    world->now_us += BT_LEDGER_STATUS_MS * 1000;
    assert_int_equal(listen(world)->status.running, 3);
    world->now_us += BT_LEDGER_STATUS_MS * 1000;
    bt_ledger_set_status(world->ledger, &status); /* unchanged: not worth a message */
    assert_int_equal(listen(world)->n[BT_MSG_STATUS], 0);
    world->now_us += BT_HEARTBEAT_MS * 1000;
    assert_int_equal(listen(world)->n[BT_MSG_STATUS], 1);
}

static void test_index_is_told_in_order(void **state) {
    struct world *world = *state;
    attach(world, 0, router_a);
    pulse(world, 0);
    uint32_t slot = 9;
    assert_true(bt_ledger_wants_census(world->ledger, &slot));
    assert_int_equal(slot, 0);
    static uint64_t hashes[BT_LEDGER_BLOCKS + 5];
    bt_ledger_census(world->ledger, 0, hashes, BT_LEDGER_BLOCKS + 5);
    const struct heard *heard = listen(world);
    assert_int_equal(heard->n[BT_MSG_BLOCKS], 2);
    assert_int_equal(heard->n_added, BT_LEDGER_BLOCKS + 5);
    assert_true(heard->census_first && heard->census_last);
    bt_ledger_block(world->ledger, true, 1);
    bt_ledger_block(world->ledger, true, 2);
    bt_ledger_block(world->ledger, false, 1);
    bt_ledger_block(world->ledger, true, 1);
    heard = listen(world);
    assert_int_equal(heard->n[BT_MSG_BLOCKS], 3); /* added, evicted, added: in order */
    assert_int_equal(heard->n_added, 3);
    assert_int_equal(heard->n_evicted, 1);
    for (uint32_t i = 0; i <= BT_LEDGER_BLOCKS; i++) /* more than is kept: a census is owed */
        bt_ledger_block(world->ledger, true, i);
    assert_true(bt_ledger_wants_census(world->ledger, &slot));
}

static void test_full_and_forgotten(void **state) {
    struct world *world = *state;
    attach(world, 0, router_a);
    pulse(world, 0);
    struct bt_job *jobs[MAX_JOBS];
    for (uint32_t i = 0; i < MAX_JOBS; i++)
        jobs[i] = open_job(world, 0, i + 1);
    int32_t token = 1;
    struct bt_msg_work work = {.key = {50, 1}, .tokens = &token, .n_tokens = 1, .n_prompt = 1};
    struct bt_job *job;
    struct bt_error err;
    assert_int_equal(bt_ledger_open(world->ledger, world->now_us, 0, &work, &job, &err), BT_E_FULL);
    work.key.request = 1;
    assert_int_equal(bt_ledger_open(world->ledger, world->now_us, 0, &work, &job, &err),
                     BT_E_INVALID);
    /* An ended one is remembered, and makes room when it is needed. */
    bt_ledger_end(world->ledger, world->now_us, jobs[2],
                  &(struct bt_msg_ended){.reason = BT_END_DONE});
    bt_ledger_drop(world->ledger, jobs[2]);
    assert_non_null(bt_ledger_find(world->ledger, 0, (struct bt_attempt){3, 1}));
    work.key.request = 50;
    assert_int_equal(bt_ledger_open(world->ledger, world->now_us, 0, &work, &job, &err), BT_OK);
    assert_null(bt_ledger_find(world->ledger, 0, (struct bt_attempt){3, 1}));
    static int32_t many[CONTEXT + 1];
    work = (struct bt_msg_work){
        .key = {60, 1}, .tokens = many, .n_tokens = CONTEXT + 1, .n_prompt = CONTEXT + 1};
    assert_int_equal(bt_ledger_open(world->ledger, world->now_us, 0, &work, &job, &err),
                     BT_E_INVALID);
    /* Nobody has seen an end for one lease: forgotten. */
    bt_ledger_end(world->ledger, world->now_us, jobs[0],
                  &(struct bt_msg_ended){.reason = BT_END_DONE});
    bt_ledger_drop(world->ledger, jobs[0]);
    world->now_us += (uint64_t)BT_LEASE_MS * 1000 + 1;
    pulse(world, 0);
    bt_ledger_tick(world->ledger, world->now_us);
    assert_null(bt_ledger_find(world->ledger, 0, (struct bt_attempt){1, 1}));
}

static void test_what_a_router_must_not_say(void **state) {
    struct world *world = *state;
    bt_ledger_opened(world->ledger, world->now_us, 0);
    tell(world, 0, &(struct bt_msg){.type = BT_MSG_PULSE}, BT_E_PROTOCOL);
    bt_ledger_closed(world->ledger, world->now_us, 0);
    attach(world, 0, router_a);
    tell(world, 0, &(struct bt_msg){.type = BT_MSG_WELCOME, .welcome = {router_a, 1}},
         BT_E_PROTOCOL);
    pulse(world, 0);
    tell(world, 0, &(struct bt_msg){.type = BT_MSG_RESUME}, BT_E_PROTOCOL);
    tell(world, 0, &(struct bt_msg){.type = BT_MSG_STATUS}, BT_E_PROTOCOL);
    struct bt_msg refused = {.type = BT_MSG_REFUSED, .refused = {.reason = "no", .final = true}};
    tell(world, 0, &refused, BT_DONE);
    const struct heard *heard = listen(world);
    assert_int_equal(heard->n_quits, 1);
    assert_int_equal(heard->n_closes, 1);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_tokens_then_end),
        TEST(test_reports_stand_before_tokens),
        TEST(test_resume_tells_again),
        TEST(test_no_resume_means_nothing_held),
        TEST(test_lease_of_a_lost_router),
        TEST(test_given_up_is_unknown_to_a_late_resume),
        TEST(test_silence_is_dialled_anew),
        TEST(test_heartbeat_and_load),
        TEST(test_index_is_told_in_order),
        TEST(test_full_and_forgotten),
        TEST(test_what_a_router_must_not_say),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Logprobs of tokens and prompts, and logit bias, on their way through the core. */
#include "harness.h"

enum { D2 = 2, N_PROMPT = 40 };

static struct bt_logprobs logprobs_of(int i) {
    return (struct bt_logprobs){
        .logprob = (float)-i, .n_top = 1, .top = {{.token = i, .logprob = (float)-i}}};
}

static void token_with(struct harness *h, uint32_t slot, struct bt_attempt key, uint32_t index,
                       enum bt_finish finish_reason) {
    struct bt_logprobs logprobs = logprobs_of((int)index);
    struct bt_token row = {.key = key,
                           .index = index,
                           .token = 500 + (int32_t)index,
                           .finish = finish_reason,
                           .logprobs = &logprobs};
    struct bt_msg msg = {.type = BT_MSG_TOKENS};
    msg.tokens = (struct bt_msg_tokens){&row, 1};
    say(h, slot, &msg);
}

static void scores(struct harness *h, uint32_t slot, struct bt_attempt key, uint32_t first,
                   uint32_t n) {
    struct bt_logprobs rows[N_PROMPT];
    for (uint32_t i = 0; i < n && i < N_PROMPT; i++)
        rows[i] = logprobs_of((int)(first + i));
    struct bt_msg msg = {.type = BT_MSG_SCORES};
    msg.scores = (struct bt_msg_scores){key, first, rows, n};
    say(h, slot, &msg);
}

static struct bt_request *ask(struct harness *h, uint8_t logprobs, uint8_t prompt_logprobs) {
    struct bt_submit what = submit_of(sample_prompt, N_PROMPT, 8);
    what.sampling.logprobs = logprobs;
    what.sampling.prompt_logprobs = prompt_logprobs;
    return submit_this(h, &what);
}

static void test_through_the_fence(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *req = ask(h, 2, 0);
    struct bt_attempt key = key_of(req);
    token_with(h, D, key, 2, BT_FINISH_NONE);
    token_with(h, D, key, 1, BT_FINISH_NONE);
    assert_int_equal(h->n_emits, 0);
    token_with(h, P, key, 0, BT_FINISH_NONE);
    token_with(h, D, key, 0, BT_FINISH_NONE);
    token_with(h, D, key, 3, BT_FINISH_STOP);
    assert_int_equal(h->n_emits, 4);
    for (int i = 0; i < 4; i++) {
        assert_true(h->emits[i].has_logprobs);
        assert_int_equal(h->emits[i].logprobs.top[0].token, i);
        assert_true(h->emits[i].logprobs.logprob == (float)-i);
    }
    assert_int_equal(h->n_ends, 1);
    harness_finish(h);
}

static void test_not_asked_not_given(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *req = ask(h, 0, 0);
    token_with(h, P, key_of(req), 0, BT_FINISH_NONE);
    assert_int_equal(h->n_emits, 1);
    assert_false(h->emits[0].has_logprobs);
    assert_int_equal(sent_to(h, D, BT_MSG_RESERVE)->msg.work.sampling.logprobs, 0);
    harness_finish(h);
}

static void test_missing_ones_are_a_fault(void **state) {
    (void)state;
    for (uint32_t slot = P; slot <= D; slot++) {
        struct harness *h = harness_start(NULL);
        struct bt_request *req = ask(h, 1, 0);
        token(h, slot, key_of(req), 0, 500, BT_FINISH_NONE);
        assert_int_equal(h->n_emits, 0);
        assert_int_equal(h->n_closed, 1);
        assert_non_null(strstr(h->closed, "has no logprobs"));
        assert_int_equal(req->state, BT_REQUEST_RESERVING);
        harness_finish(h);
    }
    /* The rows before it count, those after it do not. */
    struct harness *h = harness_start(NULL);
    struct bt_request *req = ask(h, 1, 0);
    struct bt_logprobs logprobs = logprobs_of(0);
    struct bt_token rows[3] = {{.key = key_of(req), .index = 0, .logprobs = &logprobs},
                               {.key = key_of(req), .index = 1},
                               {.key = key_of(req), .index = 1, .logprobs = &logprobs}};
    struct bt_msg msg = {.type = BT_MSG_TOKENS};
    msg.tokens = (struct bt_msg_tokens){rows, 3};
    say(h, D, &msg);
    assert_int_equal(h->n_emits, 1);
    assert_int_equal(h->n_closed, 1);
    harness_finish(h);
}

static void test_scores_come_once_and_in_order(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    attach(h, D2, "d1", 30, BT_ROLE_DECODE);
    struct bt_request *req = ask(h, 0, 3);
    assert_int_equal(req->placement, BT_PLACE_LOCAL_SCORES);
    uint32_t first = req->d_name[1] == '0' ? D : D2, second = first == D ? D2 : D;
    struct sent *reserve = sent_to(h, first, BT_MSG_RESERVE);
    assert_true(reserve->msg.work.prefill_here);
    assert_int_equal(reserve->msg.work.sampling.prompt_logprobs, 3);
    assert_null(sent_to(h, P, BT_MSG_PREFILL));
    scores(h, first, key_of(req), 1, 10);
    assert_int_equal(req->state, BT_REQUEST_PREFILLING);
    scores(h, first, key_of(req), 1, 15); /* told again after Resume */
    assert_int_equal(h->n_scores, 15);
    struct bt_attempt lost = key_of(req);
    ended(h, first, lost, BT_END_PREEMPTED);
    /* Another D begins at the start, and is asked again: not all had come. */
    assert_int_equal(req->attempt, 2);
    assert_int_equal(req->placement, BT_PLACE_LOCAL_SCORES);
    uint32_t now = sent_nth(h, second, BT_MSG_RESERVE, 0) ? second : first;
    scores(h, first, lost, 16, 3); /* of the lost attempt: nobody listens */
    assert_int_equal(h->n_scores, 15);
    scores(h, now, key_of(req), 1, 8);
    scores(h, now, key_of(req), 9, 20);
    scores(h, now, key_of(req), 29, 11);
    assert_int_equal(h->n_scores, N_PROMPT - 1);
    for (uint32_t i = 0; i < N_PROMPT - 1; i++) {
        assert_int_equal(h->score_positions[i], i + 1);
        assert_int_equal(h->scores[i].top[0].token, i + 1);
    }
    token(h, now, key_of(req), 0, 500, BT_FINISH_NONE);
    assert_int_equal(h->n_emits, 1);
    /* All have come: the next attempt is like any other. */
    clear(h);
    ended(h, now, key_of(req), BT_END_PREEMPTED);
    const uint32_t slots[] = {P, D, D2};
    pass(h, 100, slots, 3);
    assert_int_equal(req->placement, BT_PLACE_SPLIT);
    assert_int_equal(sent_to(h, P, BT_MSG_PREFILL)->msg.work.sampling.prompt_logprobs, 0);
    assert_int_equal(h->n_closed, 0);
    harness_finish(h);
}

static void test_lies_about_scores(void **state) {
    (void)state;
    static const struct {
        uint32_t first, n;
        const char *word;
    } lies[] = {
        {0, 1, "positions 0"}, {1, N_PROMPT, "1 to 39"},          {2, 1, "position 2"},
        {39, 2, "39 to 40"},   {UINT32_MAX, 2, "positions 4294"}, {1, 20000, "20000 rows"},
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        struct harness *h = harness_start(NULL);
        struct bt_request *req = ask(h, 0, 1);
        scores(h, D, key_of(req), lies[i].first, lies[i].n);
        assert_int_equal(h->n_closed, 1);
        if (!strstr(h->closed, lies[i].word))
            fail_msg("lie %zu: %s", i, h->closed);
        assert_int_equal(h->n_scores, 0);
        harness_finish(h);
    }
    /* A token before the last of them. */
    struct harness *h = harness_start(NULL);
    struct bt_request *req = ask(h, 0, 1);
    scores(h, D, key_of(req), 1, N_PROMPT - 2);
    token(h, D, key_of(req), 0, 500, BT_FINISH_NONE);
    assert_int_equal(h->n_closed, 1);
    assert_non_null(strstr(h->closed, "38 of 39"));
    assert_int_equal(h->n_emits, 0);
    harness_finish(h);
    /* Nobody asked. */
    for (uint32_t slot = P; slot <= D; slot++) {
        h = harness_start(NULL);
        req = ask(h, 0, 0);
        scores(h, slot, key_of(req), 1, 1);
        assert_int_equal(h->n_closed, 1);
        assert_non_null(strstr(h->closed, "not asked for"));
        harness_finish(h);
    }
}

static void test_a_prompt_of_one_token_has_no_scores(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_submit what = submit_of(sample_prompt, 1, 8);
    what.sampling.prompt_logprobs = 1;
    struct bt_request *req = submit_this(h, &what);
    assert_int_equal(req->placement, BT_PLACE_SPLIT);
    assert_int_equal(sent_to(h, D, BT_MSG_RESERVE)->msg.work.sampling.prompt_logprobs, 0);
    token(h, P, key_of(req), 0, 500, BT_FINISH_NONE);
    assert_int_equal(h->n_emits, 1);
    harness_finish(h);
}

static void test_a_stopped_request_gives_no_more(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *req = ask(h, 0, 1);
    struct bt_logprobs rows[1] = {logprobs_of(1)};
    struct bt_msg msg = {.type = BT_MSG_SCORES};
    msg.scores = (struct bt_msg_scores){key_of(req), 1, rows, 1};
    bt_router_core_worker_message(h->core, h->now_us, D, &msg);
    bt_router_core_cancel(h->core, h->now_us, req);
    drain(h);
    assert_int_equal(h->n_scores, 0);
    assert_int_equal(h->n_ends, 1);
    harness_finish(h);
}

static void test_bias_is_kept_and_given_to_both(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_logit_bias bias[BT_LOGIT_BIASES];
    for (int i = 0; i < BT_LOGIT_BIASES; i++)
        bias[i] = (struct bt_logit_bias){3 * i, (float)(i % 200) - 100.0f};
    struct bt_submit what = submit_of(sample_prompt, N_PROMPT, 8);
    what.sampling.n_bias = BT_LOGIT_BIASES;
    what.sampling.bias = bias;
    uint64_t before = bt_router_core_counters(h->core)->tokens_stored;
    struct bt_request *req = submit_this(h, &what);
    memset(bias, 0, sizeof bias); /* it was borrowed for the call */
    assert_null(req->sampling.bias);
    assert_true(bt_router_core_counters(h->core)->tokens_stored >=
                before + 2 * BT_LOGIT_BIASES + N_PROMPT);
    for (int is_p = 0; is_p < 2; is_p++) {
        struct sent *s = sent_to(h, is_p ? P : D, is_p ? BT_MSG_PREFILL : BT_MSG_RESERVE);
        assert_int_equal(s->msg.work.sampling.n_bias, BT_LOGIT_BIASES);
        for (int i = 0; i < BT_LOGIT_BIASES; i++) {
            assert_int_equal(s->bias[i].token, 3 * i);
            assert_true(s->bias[i].bias == (float)(i % 200) - 100.0f);
        }
    }
    bt_router_core_cancel(h->core, h->now_us, req);
    drain(h);
    bt_router_core_tick(h->core, h->now_us);
    drain(h);
    assert_int_equal(bt_router_core_counters(h->core)->tokens_stored, 0);
    /* One more than there may be. */
    what.sampling.n_bias = BT_LOGIT_BIASES + 1;
    struct bt_error err = {0};
    assert_int_equal(bt_router_core_submit(h->core, h->now_us, &what, &req, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "301"));
    harness_finish(h);
}

static void test_bias_counts_in_the_budget(void **state) {
    (void)state;
    struct bt_router_config config = small_config();
    config.token_budget = 20 * 31;
    struct harness *h = calloc(1, sizeof *h);
    harness_init(h, &config);
    attach(h, P, "p0", 10, BT_ROLE_PREFILL);
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    struct bt_logit_bias bias[BT_LOGIT_BIASES] = {{1, 1}};
    struct bt_submit what = submit_of(sample_prompt, N_PROMPT, 8);
    what.sampling.n_bias = BT_LOGIT_BIASES;
    what.sampling.bias = bias;
    struct bt_request *req = NULL;
    struct bt_error err = {0};
    assert_int_equal(bt_router_core_submit(h->core, h->now_us, &what, &req, &err), BT_E_FULL);
    drain(h);
    what.sampling.n_bias = 200;
    submit_this(h, &what);
    harness_finish(h);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_through_the_fence),
        cmocka_unit_test(test_not_asked_not_given),
        cmocka_unit_test(test_missing_ones_are_a_fault),
        cmocka_unit_test(test_scores_come_once_and_in_order),
        cmocka_unit_test(test_lies_about_scores),
        cmocka_unit_test(test_a_prompt_of_one_token_has_no_scores),
        cmocka_unit_test(test_a_stopped_request_gives_no_more),
        cmocka_unit_test(test_bias_is_kept_and_given_to_both),
        cmocka_unit_test(test_bias_counts_in_the_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Tests the front of generations: choices in the core, one sink, and every way in which it ends. */
#include "harness.h"

#include "byte_tokenizer.h"
#include "router/completion.h"
#include "router/prompt.h"
#include "router/shell.h"

enum { PIECES = 512, CHOICES = 10 };

static struct harness h;
static struct bt_shell shell;

/* A sink that writes down what it is given, and checks the order of it. */
static struct record {
    struct bt_request_sink base;
    bool full;
    uint32_t n_begins, n_ends, n_scores, n_choices;
    uint32_t n_pieces[CHOICES];
    char text[CHOICES][64];
    int32_t tokens[CHOICES][64];
    enum bt_finish finish[CHOICES];
    float logprob; /* of the last piece that had one */
    bt_status status;
    char reason[128];
    struct bt_sink_end end;
} sink;

static struct bt_completion *handle;

static struct record *of(struct bt_request_sink *base) {
    return (struct record *)(void *)base;
}

static void on_begin(struct bt_request_sink *base, const struct bt_sink_begin *begin) {
    struct record *r = of(base);
    r->n_begins++;
    r->n_choices = begin->n_choices;
    assert_true(begin->n_choices <= CHOICES);
    assert_non_null(begin->prompts[0].ids);
}

static bool is_full(const struct bt_request_sink *base) {
    return ((const struct record *)(const void *)base)->full;
}

static void on_scores(struct bt_request_sink *base, const struct bt_scores *scores) {
    struct record *r = of(base);
    assert_int_equal(scores->first, r->n_scores + 1);
    for (uint32_t i = 0; i < CHOICES; i++)
        assert_int_equal(r->n_pieces[i], 0);
    r->n_scores += scores->n;
}

static void on_piece(struct bt_request_sink *base, const struct bt_piece *piece) {
    struct record *r = of(base);
    uint32_t c = piece->choice;
    assert_int_equal(r->n_begins, 1);
    assert_int_equal(r->n_ends, 0);
    assert_true(c < r->n_choices);
    assert_int_equal(piece->index, r->n_pieces[c]);
    assert_int_equal(r->finish[c], BT_FINISH_NONE);
    size_t n = strlen(r->text[c]);
    snprintf(r->text[c] + n, sizeof r->text[c] - n, "%.*s", (int)piece->text.n_bytes,
             piece->text.data);
    r->tokens[c][r->n_pieces[c]++] = piece->token;
    r->finish[c] = piece->finish;
    if (piece->logprobs)
        r->logprob = piece->logprobs->logprob;
}

static void on_end(struct bt_request_sink *base, const struct bt_sink_end *end) {
    struct record *r = of(base);
    assert_null(handle); /* nobody can cancel what has ended */
    r->n_ends++;
    r->status = end->status;
    r->end = *end;
    r->end.choices = NULL;
    snprintf(r->reason, sizeof r->reason, "%s", end->reason);
}

static const struct bt_request_sink_ops ops = {
    .begin = on_begin, .is_full = is_full, .scores = on_scores, .piece = on_piece, .end = on_end};

/* ---- a shell without ports: what the core says goes to the harness or to the completion ---- */

void bt_shell_drain(struct bt_shell *of_test) {
    struct bt_router_action action;
    do {
        while (bt_router_core_next(of_test->core, &action)) {
            if (action.type == BT_ROUTER_SEND)
                keep(&h, &action);
            else if (action.type == BT_ROUTER_EMIT)
                bt_completion_emit(action.req->user, &action);
            else if (action.type == BT_ROUTER_SCORES)
                bt_completion_scores(action.req->user, &action);
            else if (action.type == BT_ROUTER_END)
                bt_completion_end(action.req->user, &action);
        }
    } while (bt_completion_tell_core(of_test));
    assert_true(bt_router_core_is_valid(of_test->core));
}

static void hear(uint32_t slot, const struct bt_msg *msg) {
    bt_router_core_worker_message(h.core, h.now_us, slot, msg);
    bt_shell_drain(&shell);
}

static int begin(void **state) {
    (void)state;
    struct bt_router_config config = small_config();
    harness_init(&h, &config);
    attach(&h, P, "p", 1, BT_ROLE_PREFILL);
    attach(&h, D, "d", 2, BT_ROLE_DECODE);
    clear(&h);
    shell = (struct bt_shell){.core = h.core, .model = "tiny", .now_us = h.now_us};
    shell.text.tokenizer = tok;
    bt_request_times_init(&shell.times);
    sink = (struct record){.base = {&ops}};
    handle = NULL;
    return 0;
}

static int end(void **state) {
    (void)state;
    bt_completion_free_ended(&shell);
    assert_int_equal(shell.n_completions, 0);
    harness_fini(&h);
    return 0;
}

static const int32_t ids[] = {'o', 'n', 'c', 'e'};
static const int32_t other_ids[] = {'u', 'p', 'o', 'n'};
static const struct bt_generate_prompt prompts[] = {{.ids = ids, .n_ids = 4},
                                                    {.ids = other_ids, .n_ids = 4}};

static struct bt_generate_request request_of(uint32_t n_prompts, uint32_t n) {
    struct bt_generate_request request;
    bt_generate_request_init(&request);
    request.prompts = prompts;
    request.n_prompts = n_prompts;
    request.n = n;
    request.sampling.max_tokens = 4;
    request.max_tokens_given = true;
    request.sampling.seed = 40;
    request.seed_given = true;
    return request;
}

static bt_status try_start(const struct bt_generate_request *request, struct bt_error *err) {
    struct bt_generate_fault fault;
    bt_status status = bt_completion_start(&shell, request, &sink.base, &handle, &fault, err);
    bt_shell_drain(&shell);
    return status;
}

static void start(const struct bt_generate_request *request) {
    struct bt_error err;
    if (try_start(request, &err) != BT_OK)
        fail_msg("start: %s", err.text);
    assert_non_null(handle);
    assert_int_equal(sink.n_begins, 1);
}

/* The i-th Reserve so far: each choice that was placed has one. */
static const struct bt_msg_work *work(uint32_t i) {
    struct sent *sent = sent_nth(&h, D, BT_MSG_RESERVE, i);
    assert_non_null(sent);
    return &sent->msg.work;
}

static void accept(uint32_t i) {
    struct bt_msg msg = {.type = BT_MSG_RESERVED};
    msg.reserved = (struct bt_msg_reserved){
        .key = work(i)->key, .accepted = true, .pages = 2, .pages_held = i > 0};
    hear(D, &msg);
}

static void give(uint32_t i, uint32_t index, int32_t id, enum bt_finish finish) {
    struct bt_token row = {.key = work(i)->key, .index = index, .token = id, .finish = finish};
    struct bt_msg msg = {.type = BT_MSG_TOKENS};
    msg.tokens = (struct bt_msg_tokens){&row, 1};
    hear(D, &msg);
}

/* All choices of one prompt are on D: the leader has one token. */
static void place_all(uint32_t n) {
    accept(0);
    give(0, 0, 'a', BT_FINISH_NONE);
    for (uint32_t i = 1; i < n; i++)
        accept(i);
}

/* ---- tests ---- */

static void choices_have_seeds_of_their_own(void **state) {
    (void)state;
    struct bt_generate_request request = request_of(1, 3);
    start(&request);
    assert_null(sent_nth(&h, D, BT_MSG_RESERVE, 1)); /* the others wait for the first one's cache */
    place_all(3);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(work(i)->sampling.seed, 40 + i);
    for (uint32_t i = 1; i < 3; i++) {
        give(i, 0, 'b', BT_FINISH_NONE);
        give(i, 1, 'c', BT_FINISH_STOP);
    }
    assert_int_equal(sink.n_ends, 0);
    give(0, 1, 'z', BT_FINISH_LENGTH);
    assert_int_equal(sink.n_ends, 1);
    assert_int_equal(sink.status, BT_OK);
    assert_string_equal(sink.text[0], "az");
    assert_string_equal(sink.text[2], "bc");
    assert_int_equal(sink.finish[1], BT_FINISH_STOP);
    assert_int_equal(sink.finish[0], BT_FINISH_LENGTH);
    assert_int_equal(sink.end.n_prompt, 4);
    assert_int_equal(sink.end.n_generated, 6);
    assert_int_equal(sink.end.n_cached, 0);
}

static void prompts_come_one_after_the_other(void **state) {
    (void)state;
    struct bt_generate_request request = request_of(2, 1);
    start(&request);
    assert_int_equal(work(0)->sampling.seed, 40);
    assert_int_equal(work(1)->sampling.seed, 40); /* as if it were asked for alone */
    accept(0);
    accept(1);
    give(1, 0, 'b', BT_FINISH_STOP);
    give(0, 0, 'a', BT_FINISH_STOP);
    assert_string_equal(sink.text[0], "a");
    assert_string_equal(sink.text[1], "b");
    assert_int_equal(sink.end.n_prompt, 8);
    assert_int_equal(sink.n_ends, 1);
}

static void one_that_fails_ends_all(void **state) {
    (void)state;
    struct bt_generate_request request = request_of(1, 3);
    request.deadline_ms = 60000;
    start(&request);
    place_all(3);
    h.now_us += 61000000;
    shell.now_us = h.now_us;
    /* The first one's deadline is met first, and its end is everybody's. */
    bt_router_core_tick(h.core, h.now_us);
    bt_shell_drain(&shell);
    assert_int_equal(sink.n_ends, 1);
    assert_int_equal(sink.status, BT_E_DEADLINE);
    assert_true(sink.reason[0]);
    assert_int_equal(bt_router_core_counters(h.core)->live, 0);
}

static void what_a_full_sink_has_not_taken_comes_before_the_end(void **state) {
    (void)state;
    struct bt_generate_request request = request_of(1, 2);
    start(&request);
    place_all(2);
    sink.full = true;
    give(0, 1, 'b', BT_FINISH_STOP);
    give(1, 0, 'c', BT_FINISH_STOP);
    assert_int_equal(bt_router_core_counters(h.core)->live, 0);
    assert_int_equal(sink.n_ends, 0);
    assert_string_equal(sink.text[0], "a");
    sink.full = false;
    bt_completion_resume(handle);
    assert_string_equal(sink.text[0], "ab");
    assert_string_equal(sink.text[1], "c");
    assert_int_equal(sink.n_ends, 1);
}

static void a_failure_keeps_its_reason_until_it_is_told(void **state) {
    (void)state;
    struct bt_generate_request request = request_of(1, 1);
    request.deadline_ms = 60000;
    start(&request);
    place_all(1);
    sink.full = true;
    give(0, 1, 'b', BT_FINISH_NONE);
    shell.now_us = h.now_us += 61000000;
    bt_router_core_tick(h.core, h.now_us);
    bt_shell_drain(&shell);
    assert_int_equal(sink.n_ends, 0);
    sink.full = false;
    bt_completion_resume(handle);
    assert_string_equal(sink.text[0], "ab");
    assert_int_equal(sink.n_ends, 1);
    assert_int_equal(sink.status, BT_E_DEADLINE);
    assert_non_null(strstr(sink.reason, "deadline"));
}

static void a_client_that_leaves_cancels_all(void **state) {
    (void)state;
    struct bt_generate_request request = request_of(2, 2);
    start(&request);
    accept(0);
    bt_completion_cancel(handle);
    assert_null(handle);
    assert_int_equal(bt_router_core_counters(h.core)->live, 0);
    assert_int_equal(bt_router_core_counters(h.core)->ended_cancelled, 4);
    assert_int_equal(sink.n_ends, 0); /* nobody is there to be told */
}

static void a_client_that_leaves_after_the_last_token(void **state) {
    (void)state;
    struct bt_generate_request request = request_of(1, 1);
    start(&request);
    place_all(1);
    sink.full = true;
    give(0, 1, 'b', BT_FINISH_STOP);
    assert_non_null(handle); /* a token is held still */
    bt_completion_cancel(handle);
    bt_completion_free_ended(&shell);
    assert_int_equal(shell.n_completions, 0);
}

static void all_are_admitted_or_none(void **state) {
    (void)state;
    struct bt_generate_request request = request_of(2, 4);
    struct bt_error err;
    request.sampling.max_tokens = 4000;
    start(&request);
    struct bt_completion *first = handle, *second = NULL;
    struct bt_generate_fault fault;
    struct record other = {.base = {&ops}};
    uint64_t live_before = bt_router_core_counters(h.core)->live;
    /* Sixteen times 4,004 tokens are within the budget: of these ten two are too many. */
    request.n = 5;
    assert_int_equal(bt_completion_start(&shell, &request, &other.base, &second, &fault, &err),
                     BT_E_FULL);
    bt_shell_drain(&shell);
    assert_null(second);
    assert_int_equal(other.n_ends, 0);
    assert_int_equal(bt_router_core_counters(h.core)->live, live_before);
    assert_int_equal(bt_router_core_counters(h.core)->ended_cancelled, 8);
    bt_completion_free_ended(&shell);
    assert_int_equal(shell.n_completions, 1);
    bt_completion_cancel(first);
}

static void a_stop_string_ends_its_choice_only(void **state) {
    (void)state;
    struct bt_generate_request request = request_of(1, 2);
    request.n_stops = 1;
    request.stops[0] = (struct bt_slice){"bc", 2};
    start(&request);
    place_all(2);
    give(0, 1, 'b', BT_FINISH_NONE);
    give(0, 2, 'c', BT_FINISH_NONE);
    assert_int_equal(sink.finish[0], BT_FINISH_STOP);
    assert_string_equal(sink.text[0], "a");
    assert_int_equal(bt_router_core_counters(h.core)->live, 1);
    give(1, 0, 'b', BT_FINISH_LENGTH);
    assert_string_equal(sink.text[1], "b");
    assert_int_equal(sink.n_ends, 1);
    assert_int_equal(sink.status, BT_OK);
}

static void scores(const struct bt_logprobs *rows, uint32_t first, uint32_t n) {
    struct bt_msg msg = {.type = BT_MSG_SCORES};
    msg.scores =
        (struct bt_msg_scores){.key = work(0)->key, .first = first, .rows = rows, .n_rows = n};
    hear(D, &msg);
}

static void scores_are_asked_for_once_a_prompt(void **state) {
    (void)state;
    static const struct bt_logprobs rows[3] = {{.logprob = -1}, {.logprob = -2}, {.logprob = -3}};
    struct bt_generate_request request = request_of(1, 2);
    request.sampling.prompt_logprobs = 1;
    request.keep_prompts = true;
    start(&request);
    assert_int_equal(work(0)->sampling.prompt_logprobs, 1);
    accept(0);
    scores(rows, 1, 2);
    scores(rows + 2, 3, 1);
    assert_int_equal(sink.n_scores, 3);
    give(0, 0, 'a', BT_FINISH_STOP);
    accept(1);
    assert_int_equal(work(1)->sampling.prompt_logprobs, 0);
    give(1, 0, 'b', BT_FINISH_STOP);
    assert_int_equal(sink.status, BT_OK);
    assert_string_equal(sink.text[1], "b");
}

static void a_prompt_alone(void **state) {
    (void)state;
    static const struct bt_logprobs rows[3] = {{.logprob = -1}, {.logprob = -2}, {.logprob = -3}};
    struct bt_generate_request request = request_of(1, 1);
    request.sampling.prompt_logprobs = 1;
    request.sampling.max_tokens = 1;
    request.prompt_only = request.keep_prompts = true;
    start(&request);
    accept(0);
    scores(rows, 1, 3);
    give(0, 0, 'a', BT_FINISH_LENGTH);
    assert_int_equal(sink.n_scores, 3);
    assert_int_equal(sink.tokens[0][0], -1);
    assert_int_equal(sink.finish[0], BT_FINISH_LENGTH);
    assert_int_equal(sink.end.n_generated, 0);
}

static void refusals(void **state) {
    (void)state;
    struct bt_error err;
    struct bt_generate_fault fault;
    struct bt_generate_request request = request_of(1, 1);
    request.model = "another";
    assert_int_equal(bt_completion_start(&shell, &request, &sink.base, &handle, &fault, &err),
                     BT_E_NOT_FOUND);
    assert_string_equal(fault.code, "model_not_found");
    assert_string_equal(fault.param, "model");
    request = request_of(1, 1);
    request.sampling.max_tokens = 5000;
    assert_int_equal(bt_completion_start(&shell, &request, &sink.base, &handle, &fault, &err),
                     BT_E_TOO_LARGE);
    assert_string_equal(fault.code, "context_length_exceeded");
    assert_non_null(strstr(err.text, "maximum context length is 4096 tokens"));
    request = request_of(1, 1);
    request.sampling.temperature = 9;
    assert_int_equal(bt_completion_start(&shell, &request, &sink.base, &handle, &fault, &err),
                     BT_E_INVALID);
    assert_string_equal(fault.param, "temperature");
    assert_null(handle);
    assert_int_equal(sink.n_begins, 0);
    assert_int_equal(bt_router_core_counters(h.core)->submitted, 0);
}

/* The process ends in the middle: nobody is told, nothing leaks. */
static void freed_in_the_middle(void **state) {
    (void)state;
    struct bt_generate_request request = request_of(2, 2);
    start(&request);
    accept(0);
    sink.full = true;
    give(0, 0, 'a', BT_FINISH_NONE);
    bt_completion_free_all(&shell);
    assert_int_equal(sink.n_ends, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(choices_have_seeds_of_their_own),
        TEST(prompts_come_one_after_the_other),
        TEST(one_that_fails_ends_all),
        TEST(what_a_full_sink_has_not_taken_comes_before_the_end),
        TEST(a_failure_keeps_its_reason_until_it_is_told),
        TEST(a_client_that_leaves_cancels_all),
        TEST(a_client_that_leaves_after_the_last_token),
        TEST(all_are_admitted_or_none),
        TEST(a_stop_string_ends_its_choice_only),
        TEST(scores_are_asked_for_once_a_prompt),
        TEST(a_prompt_alone),
        TEST(refusals),
        TEST(freed_in_the_middle),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

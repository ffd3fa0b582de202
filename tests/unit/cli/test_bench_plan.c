/* What a bench will send: arrivals, traces with their refusals, prompts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cli/bench_plan.h"
#include "cli/bench_report.h"

static void make(struct bt_bench_plan *plan, enum bt_bench_arrival arrival, uint32_t n) {
    const struct bt_bench_rate rate = {
        .per_s = 50, .arrival = arrival, .n_requests = n, .prompt_tokens = 20, .max_tokens = 5};
    struct bt_error err;
    assert_int_equal(bt_bench_plan_rate(plan, &rate, &err), BT_OK);
}

static void test_poisson_has_its_mean_and_spread(void **state) {
    (void)state;
    struct bt_bench_plan plan = {.seed = 7}, same = {.seed = 7}, other = {.seed = 8};
    make(&plan, BT_BENCH_POISSON, 20001);
    make(&same, BT_BENCH_POISSON, 20001);
    make(&other, BT_BENCH_POISSON, 20001);
    double sum = 0, squares = 0;
    for (uint32_t i = 1; i < plan.n_items; i++) {
        double gap = (double)(plan.items[i].at_us - plan.items[i - 1].at_us) / 1e6;
        sum += gap;
        squares += gap * gap;
        assert_int_equal(plan.items[i].at_us, same.items[i].at_us);
    }
    double mean = sum / 20000, variance = squares / 20000 - mean * mean;
    /* An exponential gap has mean 1/rate and the variance of its mean's square. */
    assert_true(mean > 0.0195 && mean < 0.0205);
    assert_true(variance > 0.00037 && variance < 0.00043);
    assert_true(other.items[100].at_us != plan.items[100].at_us);
    bt_bench_plan_fini(&plan);
    bt_bench_plan_fini(&same);
    bt_bench_plan_fini(&other);
}

static void test_constant_is_constant(void **state) {
    (void)state;
    struct bt_bench_plan plan = {.seed = 7};
    make(&plan, BT_BENCH_CONSTANT, 100);
    for (uint32_t i = 0; i < plan.n_items; i++)
        assert_in_range(plan.items[i].at_us + 1, 20000 * i, 20000 * i + 2);
    bt_bench_plan_fini(&plan);
}

static bt_status trace(struct bt_bench_plan *plan, const char *text, double speed, uint32_t max,
                       struct bt_error *err) {
    *plan = (struct bt_bench_plan){.seed = 1};
    return bt_bench_plan_trace(plan, (struct bt_slice){text, strlen(text)}, speed, max, err);
}

static void test_a_trace_is_read(void **state) {
    (void)state;
    struct bt_bench_plan plan;
    struct bt_error err;
    static const char text[] =
        "{\"timestamp\": 1000, \"input_length\": 12, \"output_length\": 3, \"hash_ids\": [1, 2]}\n"
        "\n"
        "{\"timestamp\": 1500.5, \"prompt\": \"hello\", \"output_length\": 0, "
        "\"class\": \"chat\"}\n"
        "{\"timestamp\": 1501, \"input_length\": 1, \"output_length\": 1}";
    assert_int_equal(trace(&plan, text, 2, 10, &err), BT_OK);
    assert_int_equal(plan.n_items, 3);
    assert_int_equal(plan.n_classes, 2);
    assert_string_equal(plan.classes[plan.items[0].class_id], "other");
    assert_string_equal(plan.classes[plan.items[1].class_id], "chat");
    assert_int_equal(plan.items[2].class_id, plan.items[0].class_id);
    assert_int_equal(plan.items[0].at_us, 0);
    assert_int_equal(plan.items[0].prompt_tokens, 12);
    assert_int_equal(plan.items[1].at_us, 250250);
    assert_int_equal(plan.items[1].max_tokens, 1);
    char *prompt = bt_bench_prompt(&plan, 1);
    assert_string_equal(prompt, "hello");
    free(prompt);
    bt_bench_plan_fini(&plan);
    assert_int_equal(trace(&plan, text, 1, 1, &err), BT_OK);
    assert_int_equal(plan.n_items, 1);
    bt_bench_plan_fini(&plan);
}

static void test_a_bad_trace_is_refused_by_line(void **state) {
    (void)state;
    static const struct {
        const char *text, *word;
    } cases[] = {
        {"", "no request"},
        {"[1]", "line 1 is not a JSON object"},
        {"{", "line 1 is not JSON"},
        {"{\"timestamp\":0,\"output_length\":1}", "input_length"},
        {"{\"timestamp\":0,\"input_length\":-1,\"output_length\":1}", "-1"},
        {"{\"timestamp\":\"x\",\"input_length\":1,\"output_length\":1}", "timestamp"},
        {"{\"timestamp\":0,\"prompt\":3,\"output_length\":1}", "prompt"},
        {"{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"class\":3}", "class must be"},
        {"{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"class\":\"\"}",
         "class must be"},
        {"{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"class\":"
         "\"a name of thirty-two bytes, one over\"}",
         "1 to 31"},
        {"{\"timestamp\":5,\"input_length\":1,\"output_length\":1}\n"
         "{\"timestamp\":4,\"input_length\":1,\"output_length\":1}",
         "line 2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bt_bench_plan plan;
        struct bt_error err;
        assert_true(trace(&plan, cases[i].text, 1, 10, &err) < 0);
        assert_non_null(strstr(err.text, cases[i].word));
        bt_bench_plan_fini(&plan);
    }
}

static uint32_t words_of(const char *text) {
    uint32_t n = *text != 0;
    for (; *text; text++)
        n += *text == ' ';
    return n;
}

static void test_prompts_differ_behind_what_they_share(void **state) {
    (void)state;
    struct bt_bench_plan plan = {.seed = 3, .shared_tokens = 8};
    make(&plan, BT_BENCH_CONSTANT, 2);
    char *a = bt_bench_prompt(&plan, 0), *b = bt_bench_prompt(&plan, 1);
    assert_int_equal(words_of(a), 20);
    assert_int_equal(words_of(b), 20);
    size_t common = 0;
    uint32_t spaces = 0;
    for (; a[common] && a[common] == b[common]; common++)
        spaces += a[common] == ' ';
    assert_in_range(spaces, 8, 10);
    assert_string_not_equal(a, b);
    free(a);
    free(b);
    bt_bench_plan_fini(&plan);
}

static void test_percentiles_are_nearest_ranks(void **state) {
    (void)state;
    double values[100];
    for (int i = 0; i < 100; i++)
        values[i] = i + 1;
    assert_true(bt_bench_percentile(values, 100, 0.5) == 50);
    assert_true(bt_bench_percentile(values, 100, 0.99) == 99);
    assert_true(bt_bench_percentile(values, 100, 1) == 100);
    assert_true(bt_bench_percentile(values, 1, 0.01) == 1);
    assert_true(bt_bench_percentile(values, 0, 0.5) == 0);
}

static void test_goodput_counts_what_keeps_every_bound(void **state) {
    (void)state;
    struct bt_bench_plan plan = {.seed = 1};
    make(&plan, BT_BENCH_CONSTANT, 4);
    /* TTFT 10, 30, 10 ms; time per further token 5, 5, 50 ms; the last one failed. */
    struct bt_bench_result results[4] = {
        {.ok = true,
         .sent_us = 1000,
         .first_us = 11000,
         .last_us = 21000,
         .end_us = 22000,
         .completion_tokens = 3,
         .prompt_tokens = 20},
        {.ok = true,
         .sent_us = 1000,
         .first_us = 31000,
         .last_us = 41000,
         .end_us = 42000,
         .completion_tokens = 3,
         .prompt_tokens = 20},
        {.ok = true,
         .sent_us = 1000,
         .first_us = 11000,
         .last_us = 111000,
         .end_us = 112000,
         .completion_tokens = 3,
         .prompt_tokens = 20},
        {.sent_us = 1000, .end_us = 2000, .reason = "HTTP 500"},
    };
    struct bt_bench_gap gaps[] = {{5000, 0}, {5000, 1}, {50000, 2}};
    struct bt_bench_load load = {.plan = &plan, .results = results, .gaps = {gaps, 3, 3}};
    const struct bt_bench_slo slo = {.ttft_ms = 20, .itl_ms = 10};
    struct bt_bench_report report;
    assert_true(bt_bench_report_make(&load, &slo, 0, &report));
    assert_int_equal(report.n_ok, 3);
    assert_int_equal(report.n_failed, 1);
    assert_int_equal(report.n_in_slo, 1);
    assert_true(report.ttft.p50 == 10 && report.ttft.max == 30);
    assert_true(report.tpot.p50 == 5 && report.tpot.p99 == 50);
    assert_true(report.itl.n == 3 && report.itl.max == 50);
    assert_true(report.mean_output_tokens == 3);
    bt_bench_plan_fini(&plan);
}

static void test_classes_and_gaps_of_requests_are_told_apart(void **state) {
    (void)state;
    static const char text[] =
        "{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"class\":\"chat\"}\n"
        "{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"class\":\"long\"}\n"
        "{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"class\":\"chat\"}\n";
    struct bt_bench_plan plan;
    struct bt_error err;
    assert_int_equal(trace(&plan, text, 1, 10, &err), BT_OK);
    struct bt_bench_result results[3];
    for (int i = 0; i < 3; i++)
        results[i] = (struct bt_bench_result){.ok = true,
                                              .sent_us = 1000,
                                              .first_us = 11000 + 10000u * (uint32_t)i,
                                              .last_us = 900000,
                                              .end_us = 900000,
                                              .completion_tokens = 200};
    /* Of 199 gaps the second largest is the p99. The first request has one long gap, the last has
     * two. */
    enum { GAPS = 199 };
    struct bt_bench_gap gaps[2 * GAPS + 1];
    for (uint32_t i = 0; i < 2 * GAPS; i++)
        gaps[i] = (struct bt_bench_gap){.us = 1000, .request = i % 2 * 2};
    gaps[2 * GAPS] = (struct bt_bench_gap){.us = 70000, .request = 1};
    gaps[20].us = gaps[21].us = gaps[41].us = 50000;
    struct bt_bench_load load = {
        .plan = &plan, .results = results, .gaps = {gaps, 2 * GAPS + 1, 2 * GAPS + 1}};
    assert_true(bt_bench_gaps_sort(&load));
    assert_int_equal(results[0].itl_p99_us, 1000);
    assert_int_equal(results[1].itl_p99_us, 70000);
    assert_int_equal(results[2].itl_p99_us, 50000);
    const struct bt_bench_slo slo = {.itl_p99_ms = 25};
    struct bt_bench_report report;
    assert_true(bt_bench_report_make(&load, &slo, 0, &report));
    assert_int_equal(report.n_in_slo, 1);
    assert_int_equal(report.itl.n, 2 * GAPS + 1);
    const struct bt_bench_class_report *chat = &report.classes[0], *other = &report.classes[1];
    assert_true(chat->n_requests == 2 && chat->n_in_slo == 1 && chat->itl.n == 2 * GAPS);
    assert_true(chat->ttft.p50 == 10 && chat->ttft.max == 30 && chat->itl_p99.max == 50);
    assert_true(other->n_requests == 1 && other->n_in_slo == 0 && other->itl.max == 70);
    assert_true(bt_bench_report_make(&load, &slo, 1, &report));
    assert_true(report.itl.n == GAPS + 1 && report.classes[0].n_requests == 1);
    bt_bench_plan_fini(&plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_poisson_has_its_mean_and_spread),
        cmocka_unit_test(test_constant_is_constant),
        cmocka_unit_test(test_a_trace_is_read),
        cmocka_unit_test(test_a_bad_trace_is_refused_by_line),
        cmocka_unit_test(test_prompts_differ_behind_what_they_share),
        cmocka_unit_test(test_percentiles_are_nearest_ranks),
        cmocka_unit_test(test_goodput_counts_what_keeps_every_bound),
        cmocka_unit_test(test_classes_and_gaps_of_requests_are_told_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

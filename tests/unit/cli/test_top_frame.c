/* What `baton top` draws: fits any terminal, whatever the answers hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cli/top_frame.h"

static const char stats_text[] =
    "{\"version\":\"0.1.0\",\"model\":\"tiny\",\"uptime_s\":75,\"ready\":true,\"draining\":false,"
    "\"disaggregate\":\"always\",\"prefill_backlog_tokens\":2048,\"registry\":\"127.0.0.1:8400\","
    "\"requests_per_s\":1.25,\"tokens_per_s\":120,\"ttft_ms\":{\"p50\":0.05,\"p95\":42.1,\"p99\":"
    "1234},"
    "\"itl_ms\":{\"p50\":3.21,\"p95\":9,\"p99\":11},\"live\":7,\"queued\":2,\"streaming\":5,"
    "\"ended_ok\":9,\"prefill\":[%s],\"decode\":[%s]}";
static const char worker_text[] =
    "{\"name\":\"worker-%d\",\"state\":\"up\",\"draining\":false,\"running\":16,\"max_seqs\":64,"
    "\"backlog_tokens\":1024,\"step_p50_ms\":3,\"step_p99_ms\":12,\"link_bytes_per_s\":12300000,"
    "\"pages\":{\"total\":100,\"active\":50,\"cached\":25,\"free\":25}}";
static const char requests_text[] =
    "{\"requests\":[{\"state\":\"ended\",\"status\":\"ok\",\"age_us\":3000000,"
    "\"prompt_tokens\":600,\"generated_tokens\":32,\"ttft_us\":120000,\"itl_mean_us\":3100,"
    "\"stages\":{\"queue_ms\":50,\"prefill_ms\":25,\"join_ms\":null,\"decode_ms\":25},"
    "\"verdict\":{\"text\":\"slow to start (queue)\"}},"
    "{\"state\":\"streaming\",\"status\":\"ok\",\"stages\":{\"queue_ms\":1,\"network_ms\":99}},"
    "{\"state\":\"ended\",\"status\":\"cancelled\"}]}";

static char out[BT_TOP_BYTES];

static json_t *make_stats(int n_prefill, int n_decode) {
    static char workers[2][64 * 400], text[3 * 64 * 400];
    const int n[2] = {n_prefill, n_decode};
    for (int p = 0; p < 2; p++) {
        size_t at = 0;
        workers[p][0] = 0;
        for (int i = 0; i < n[p]; i++) {
            at += (size_t)snprintf(workers[p] + at, sizeof workers[p] - at, "%s", i ? "," : "");
            at += (size_t)snprintf(workers[p] + at, sizeof workers[p] - at, worker_text, i);
        }
    }
    snprintf(text, sizeof text, stats_text, workers[0], workers[1]);
    json_t *stats = json_loads(text, 0, NULL);
    assert_non_null(stats);
    return stats;
}

/* No escape code is in out: a byte that begins a character is a cell. */
static void check_fits(unsigned columns, unsigned rows) {
    unsigned cells = 0, lines = 1;
    for (const char *s = out; *s; s++) {
        if (*s == '\n') {
            lines++;
            cells = 0;
        } else if (((unsigned char)*s & 0xc0) != 0x80) {
            cells++;
        }
        if (cells > columns || lines > rows)
            fail_msg("%u x %u: line %u has %u cells\n%s", columns, rows, lines, cells, out);
    }
}

static void test_every_size(void **state) {
    (void)state;
    json_t *requests = json_loads(requests_text, 0, NULL);
    const int pools[][2] = {{0, 0}, {1, 1}, {1, 3}, {20, 2}, {64, 64}};
    for (size_t p = 0; p < sizeof pools / sizeof pools[0]; p++) {
        json_t *stats = make_stats(pools[p][0], pools[p][1]);
        for (unsigned columns = 0; columns < 300; columns += columns < 30 ? 1 : 13) {
            for (unsigned rows = 0; rows < 140; rows += rows < 30 ? 1 : 17) {
                const struct bt_top_view view = {.columns = columns,
                                                 .rows = rows,
                                                 .unicode = columns % 2 == 0,
                                                 .notice = rows % 3 ? NULL : "no contact for 3 s"};
                size_t n = bt_top_frame(&view, stats, requests, out);
                assert_int_equal(n, strlen(out));
                check_fits(columns, rows);
            }
        }
        json_decref(stats);
    }
    json_decref(requests);
}

static void has(const char *words) {
    if (!strstr(out, words))
        fail_msg("\"%s\" is missing in\n%s", words, out);
}

static void test_what_it_says(void **state) {
    (void)state;
    json_t *stats = make_stats(1, 2), *requests = json_loads(requests_text, 0, NULL);
    const struct bt_top_view view = {.columns = 80, .rows = 24};
    bt_top_frame(&view, stats, requests, out);
    has("Baton  tiny");
    has("serving, up 1 min, 9 served, 0.1.0\n");
    has("TTFT p50 <0.1 ms");
    has("p95 42 ms");
    has("p99 1.23 s");
    has("ITL  p50 3.2 ms");
    has("queue 2\n");
    has("streaming 5 of 7\n");
    has("PREFILL computes prompts");
    has("DECODE makes tokens");
    has("worker-0 up, step 3.0 ms (p99 12 ms)");
    has("#########          1024 tokens"); /* half of 2,048 */
    has("#####              16 of 64");    /* a quarter */
    has("#########=====.... 50% 12.3 MB/s");
    has("3 s      600>32     120 ms  3.1 ms  qqqqqqqqPPPPdddd  slow to start (queue)");
    has("qqqqqqqqqqqqqqqq  streaming"); /* what is not known of a live one is not shown */
    has("cancelled");
    has("n:network");
    json_decref(stats);
    stats = make_stats(0, 0);
    bt_top_frame(&view, stats, NULL, out);
    has("none attached");
    has("baton prefill --router 127.0.0.1:8400");
    has("baton decode --router 127.0.0.1:8400");
    has("no request yet");
    const struct bt_top_view lost = {.columns = 80, .rows = 24, .notice = "no contact for 3 s"};
    bt_top_frame(&lost, NULL, NULL, out);
    has("connecting");
    has("\nno contact for 3 s\n");
    bt_top_frame(&lost, stats, NULL, out);
    has("no contact, up 1 min");
    assert_null(strstr(out, "serving,"));
    json_decref(stats);
    json_decref(requests);
}

/* Other types, huge numbers, control characters: drawn as nothing or cut, and never more. */
static void test_odd_answers(void **state) {
    (void)state;
    static const char *const texts[] = {
        "{}",
        "{\"model\":7,\"ttft_ms\":[],\"prefill\":{},\"decode\":\"x\"}",
        "{\"prefill\":[1,null,[],{\"name\":{},\"pages\":[]},{\"pages\":{\"total\":-1}}]}",
        "{\"model\":\"\\u001b[2J\\u0007\\u009b2J\\u4f60\",\"prefill\":[{\"name\":\"a\\nb\"}]}",
        "{\"requests_per_s\":1e308,\"live\":1e300,\"queued\":-5,\"uptime_s\":1e99,"
        "\"decode\":[{\"running\":1e308,\"max_seqs\":1e-308,\"step_p99_ms\":1e300,"
        "\"pages\":{\"total\":1,\"active\":9,\"cached\":9,\"free\":-9}}]}",
    };
    static const char requests_odd[] =
        "{\"requests\":[5,{},{\"stages\":{\"queue_ms\":1e308,\"decode_ms\":1e308},\"age_us\":1e308,"
        "\"prompt_tokens\":1e300,\"state\":\"ended\",\"status\":\"ok\","
        "\"verdict\":{\"text\":\"\\u001b[31m\"}}]}";
    json_t *requests = json_loads(requests_odd, 0, NULL);
    assert_non_null(requests);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        json_t *stats = json_loads(texts[i], 0, NULL);
        assert_non_null(stats);
        for (int unicode = 0; unicode < 2; unicode++) {
            const struct bt_top_view view = {.columns = 80, .rows = 24, .unicode = unicode};
            bt_top_frame(&view, stats, requests, out);
            check_fits(80, 24);
            assert_null(strchr(out, 0x1b));
            assert_null(strchr(out, 7));
            assert_null(strstr(out, "\xc2\x9b"));
            for (const char *s = out; !unicode && *s; s++)
                assert_true((unsigned char)*s < 0x80);
        }
        json_decref(stats);
    }
    json_decref(requests);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_size),
        cmocka_unit_test(test_what_it_says),
        cmocka_unit_test(test_odd_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

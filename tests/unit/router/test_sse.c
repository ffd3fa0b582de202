/* Tests the streaming sink: chunks of every size, failures before and after the first byte, clients
 * that do not read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "router/sse.h"

/* ---- a call that keeps what is sent ---- */

struct bt_http_call {
    struct bt_text_buffer sent;
    size_t room; /* bytes that it takes until there is no room */
    bool broken;
    uint32_t n_finished, n_cut, n_replied;
    int code;
    void (*on_room)(void *arg);
    void *arg;
};

bt_status bt_http_call_send(struct bt_http_call *call, const char *bytes, size_t n_bytes,
                            size_t *n_sent) {
    if (call->broken)
        return BT_E_PEER_GONE;
    if (!call->room)
        return BT_AGAIN;
    *n_sent = n_bytes < call->room ? n_bytes : call->room;
    call->room -= *n_sent;
    bt_text_buffer_add(&call->sent, bytes, *n_sent);
    return BT_OK;
}

bt_status bt_http_call_await_room(struct bt_http_call *call, void (*on_room)(void *arg),
                                  void *arg) {
    call->on_room = on_room;
    call->arg = arg;
    return BT_OK;
}

bool bt_http_call_is_chunked(const struct bt_http_call *call) {
    return call != NULL;
}

void bt_http_call_set_id(struct bt_http_call *call, uint64_t id) {
    assert_non_null(call);
    assert_int_equal(id, 0xabc);
}

void bt_http_call_write_head(struct bt_http_call *call, struct bt_text_buffer *out, int code,
                             const char *content_type, const char *extra) {
    assert_non_null(extra);
    call->code = code;
    bt_text_buffer_printf(out, "HTTP/1.1 %d\r\nContent-Type: %s\r\n\r\n", code, content_type);
}

void bt_http_call_reply(struct bt_http_call *call, int code, const char *content_type,
                        struct bt_slice body, const char *extra) {
    (void)content_type, (void)extra;
    call->n_replied++;
    call->code = code;
    bt_text_buffer_add(&call->sent, body.data, body.n_bytes);
}

void bt_http_call_finish(struct bt_http_call *call) {
    call->n_finished++;
}

void bt_http_call_cut(struct bt_http_call *call) {
    call->n_cut++;
}

/* ---- one stream ---- */

static struct bt_openai_skeletons skeletons;
static struct bt_sse_set set;
static struct bt_http_call call;
static struct bt_openai_answer answer;
static struct bt_sse sse;
static enum bt_sse_event last_event;
static uint32_t n_events[BT_SSE_LOST + 1];

static void on_touched(void *arg) {
    (void)arg;
}

static void on_event(struct bt_sse *of, enum bt_sse_event event) {
    assert_ptr_equal(of, &sse);
    last_event = event;
    n_events[event]++;
}

static int begin(void **state) {
    (void)state;
    memset(n_events, 0, sizeof n_events);
    call = (struct bt_http_call){.room = SIZE_MAX};
    answer = (struct bt_openai_answer){.kind = BT_OPENAI_COMPLETION,
                                       .skeletons = &skeletons,
                                       .n_shown = 1,
                                       .n_per_prompt = 1,
                                       .id = 0xabc};
    if (bt_openai_skeletons_init(&skeletons, "m", NULL) != BT_OK)
        return -1;
    bt_sse_set_init(&set, 1000, 0, on_touched, NULL);
    bt_sse_init(&sse, &set, &call, &answer, on_event);
    static const int32_t ids[] = {1};
    const struct bt_prompt prompt = {.ids = ids, .n_ids = 1};
    const struct bt_sink_begin given = {&prompt, 1, 1};
    sse.base.ops->begin(&sse.base, &given);
    return 0;
}

static int end(void **state) {
    (void)state;
    bt_sse_fini(&sse);
    bt_sse_set_fini(&set);
    bt_openai_answer_fini(&answer);
    bt_openai_skeletons_fini(&skeletons);
    bt_text_buffer_fini(&call.sent);
    return 0;
}

static uint32_t n_pieces;

static void give(const char *text, size_t n, enum bt_finish finish) {
    const struct bt_piece piece = {
        .index = n_pieces++, .token = 1, .text = {text, n}, .finish = finish};
    sse.base.ops->piece(&sse.base, &piece);
}

static void finish(bt_status status, const char *reason) {
    const struct bt_sink_end given = {.status = status, .reason = reason};
    sse.base.ops->end(&sse.base, &given);
}

/* What the client reads: the body without its chunks. Whole chunks only. */
static char *body(size_t *n_bytes, bool *complete) {
    const char *at = strstr(call.sent.data, "\r\n\r\n") + 4;
    const char *last = call.sent.data + call.sent.n_bytes;
    char *out = calloc(1, call.sent.n_bytes);
    *n_bytes = 0;
    *complete = false;
    while (at < last && !*complete) {
        char *after;
        size_t n = strtoul(at, &after, 16);
        assert_memory_equal(after, "\r\n", 2);
        assert_true((size_t)(last - after) >= n + 4);
        memcpy(out + *n_bytes, after + 2, n);
        *n_bytes += n;
        at = after + 2 + n;
        assert_memory_equal(at, "\r\n", 2);
        at += 2;
        *complete = n == 0;
    }
    assert_ptr_equal(at, last);
    return out;
}

static void a_stream_and_its_end(void **state) {
    (void)state;
    size_t n;
    bool complete;
    n_pieces = 0;
    give("a", 1, BT_FINISH_NONE);
    give("b", 1, BT_FINISH_NONE);
    bt_sse_flush(&set, 1);
    char *text = body(&n, &complete);
    assert_false(complete);
    assert_non_null(strstr(text, "\"text\":\"b\""));
    free(text);
    give("c", 1, BT_FINISH_STOP);
    finish(BT_OK, "");
    bt_sse_flush(&set, 2);
    text = body(&n, &complete);
    assert_true(complete);
    assert_string_equal(text + n - 14, "data: [DONE]\n\n");
    free(text);
    assert_int_equal(call.n_finished, 1);
    assert_int_equal(n_events[BT_SSE_DONE], 1);
}

/* An echo with logprobs can be larger than any number of six hex digits says. */
static void a_piece_of_many_megabytes(void **state) {
    (void)state;
    size_t n, size = 17 << 20;
    bool complete;
    char *large = malloc(size);
    assert_non_null(large);
    memset(large, 'x', size);
    n_pieces = 0;
    give(large, size, BT_FINISH_NONE);
    give("y", 1, BT_FINISH_STOP);
    finish(BT_OK, "");
    bt_sse_flush(&set, 1);
    char *text = body(&n, &complete);
    assert_true(complete);
    assert_true(n > size);
    assert_non_null(memmem(text, n, "\"text\":\"y\"", 10));
    free(text);
    free(large);
}

static void a_failure_before_the_first_byte(void **state) {
    (void)state;
    n_pieces = 0;
    finish(BT_E_DEADLINE, "too late");
    bt_sse_flush(&set, 1);
    assert_int_equal(call.n_replied, 1);
    assert_int_equal(call.code, 504);
    assert_non_null(memmem(call.sent.data, call.sent.n_bytes, "too late", 8));
    assert_int_equal(n_events[BT_SSE_DONE], 1);
    assert_int_equal(call.n_cut + call.n_finished, 0);
}

/* It must not look whole: an error event, no [DONE], no last chunk. */
static void a_failure_in_the_middle(void **state) {
    (void)state;
    size_t n;
    bool complete;
    n_pieces = 0;
    give("a", 1, BT_FINISH_NONE);
    finish(BT_E_PEER_GONE, "the worker has died");
    bt_sse_flush(&set, 1);
    char *text = body(&n, &complete);
    assert_false(complete);
    assert_non_null(strstr(text, "event: error\ndata: {\"error\":"));
    assert_null(strstr(text, "[DONE]"));
    free(text);
    assert_int_equal(call.n_cut, 1);
    assert_int_equal(n_events[BT_SSE_DONE], 1);
}

static void a_client_that_reads_late(void **state) {
    (void)state;
    size_t n;
    bool complete;
    static char large[BT_SSE_FULL_BYTES];
    memset(large, 'x', sizeof large);
    n_pieces = 0;
    call.room = 100;
    give(large, sizeof large, BT_FINISH_NONE);
    assert_true(sse.base.ops->is_full(&sse.base));
    bt_sse_flush(&set, 1);
    assert_non_null(call.on_room);
    assert_int_equal(n_events[BT_SSE_ROOM], 0);
    call.room = SIZE_MAX;
    call.on_room(call.arg);
    bt_sse_flush(&set, 2);
    assert_int_equal(n_events[BT_SSE_ROOM], 1);
    assert_false(sse.base.ops->is_full(&sse.base));
    give("z", 1, BT_FINISH_STOP);
    finish(BT_OK, "");
    bt_sse_flush(&set, 3);
    free(body(&n, &complete));
    assert_true(complete);
}

static void a_client_that_never_reads(void **state) {
    (void)state;
    n_pieces = 0;
    call.room = 10;
    give("a", 1, BT_FINISH_NONE);
    bt_sse_flush(&set, 1);
    bt_sse_sweep(&set, 1000);
    assert_int_equal(call.n_cut, 0);
    bt_sse_sweep(&set, 1001);
    assert_int_equal(call.n_cut, 1);
    assert_int_equal(last_event, BT_SSE_STUCK);
    give("b", 1, BT_FINISH_NONE); /* nobody is there: dropped */
    finish(BT_OK, "");
    bt_sse_flush(&set, 2);
}

static void a_connection_that_breaks(void **state) {
    (void)state;
    n_pieces = 0;
    call.broken = true;
    give("a", 1, BT_FINISH_NONE);
    bt_sse_flush(&set, 1);
    assert_int_equal(call.n_cut, 1);
    assert_int_equal(last_event, BT_SSE_LOST);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_stream_and_its_end),
        TEST(a_piece_of_many_megabytes),
        TEST(a_failure_before_the_first_byte),
        TEST(a_failure_in_the_middle),
        TEST(a_client_that_reads_late),
        TEST(a_client_that_never_reads),
        TEST(a_connection_that_breaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The public gRPC server: calls in, messages out, back-pressure, refusals, ends. */
#include "tests/unit/rpc/caller.h"

#include <stdlib.h>

#include "common/rpc/public_health.h"
#include "common/rpc/public_reflection.h"
#include "common/rpc/public_status.h"

enum { STREAM, PLAIN, CHAT };

static const struct bt_public_method methods[] = {
    [STREAM] = {.path = "/t.T/Stream", .joins_responses = true},
    [PLAIN] = {.path = "/t.T/Plain"},
    [CHAT] = {.path = "/t.T/Chat", .many_requests = true},
};

static void open_pair(struct pair *pair, struct bt_public_config config) {
    struct bt_error err;
    memset(pair, 0, sizeof *pair);
    config.methods = methods;
    config.n_methods = 3;
    bt_rpc_init();
    assert_int_equal(bt_public_start(&config, &pair->server, &err), BT_OK);
    caller_open(&pair->caller, pair->server);
}

static void close_pair(struct pair *pair) {
    caller_close(&pair->caller);
    bt_public_stop(pair->server);
    bt_rpc_fini();
}

static void finish(struct bt_public_call *call) {
    bt_public_finish(call, &(struct bt_public_end){.message = ""});
}

static void test_one_call(void **state) {
    (void)state;
    struct pair pair;
    struct call call;
    open_pair(&pair, (struct bt_public_config){0});
    call_start(&pair.caller, &call, "/t.T/Plain", "hello", 5, 5000, true);
    PAIR_WAIT(&pair, &call, 1, pair.n_heard == 1);
    const struct heard *heard = &pair.heard[0];
    assert_int_equal(heard->type, BT_PUBLIC_STARTED);
    assert_int_equal(heard->method, PLAIN);
    assert_int_equal(heard->n_bytes, 5);
    assert_memory_equal(heard->bytes, "hello", 5);
    uint32_t left_ms = bt_public_deadline_ms(heard->call);
    assert_true(left_ms > 0 && left_ms <= 6000);
    const char *value;
    size_t n;
    assert_true(bt_public_header(heard->call, "x-request-id", &value, &n));
    assert_int_equal(n, 9);
    assert_memory_equal(value, "from-test", 9);
    assert_false(bt_public_header(heard->call, "nothing", &value, &n));
    bt_public_set_request_id(heard->call, "back");
    assert_int_equal(bt_public_n_calls(pair.server), 1);
    bt_public_send(heard->call, "world!", 6);
    finish(heard->call);
    bt_public_send(heard->call, "late", 4); /* nothing happens after the end */
    PAIR_WAIT(&pair, &call, 1, call.over && pair.n_heard == 2);
    assert_int_equal(pair.heard[1].type, BT_PUBLIC_CLOSED);
    assert_int_equal(call.code, GRPC_STATUS_OK);
    assert_int_equal(call.n_messages, 1);
    assert_memory_equal(call.first, "world!", 6);
    assert_string_equal(metadata_of(&call.initial, "x-request-id"), "back");
    assert_null(metadata_of(&call.trailing, "x-request-id"));
    assert_int_equal(bt_public_n_calls(pair.server), 0);
    call_fini(&call);
    close_pair(&pair);
}

/* A refusal has no initial metadata; its id and details are in the trailing one. */
static void test_refusal(void **state) {
    (void)state;
    struct pair pair;
    struct call call;
    open_pair(&pair, (struct bt_public_config){0});
    call_start(&pair.caller, &call, "/t.T/Stream", "x", 1, 0, true);
    PAIR_WAIT(&pair, &call, 1, pair.n_heard == 1);
    assert_int_equal(bt_public_deadline_ms(pair.heard[0].call), 0);
    bt_public_set_request_id(pair.heard[0].call, "back");
    bt_public_fail(
        pair.heard[0].call,
        &(struct bt_public_fault){
            .code = 3, .message = "n is 0", .reason = "", .field = "n", .retry_ms = 1500});
    PAIR_WAIT(&pair, &call, 1, call.over && pair.n_heard == 2);
    assert_int_equal(call.code, 3);
    assert_int_equal(call.initial.count, 0);
    assert_string_equal(metadata_of(&call.trailing, "x-request-id"), "back");
    assert_non_null(metadata_of(&call.trailing, "grpc-status-details-bin"));
    char *text = grpc_slice_to_c_string(call.detail);
    assert_string_equal(text, "n is 0");
    gpr_free(text);
    call_fini(&call);
    close_pair(&pair);
}

/* Messages of one turn, and those that wait for a send, become one where the method says so. */
static void test_joining(void **state) {
    (void)state;
    for (int joins = 0; joins < 2; joins++) {
        struct pair pair;
        struct call call;
        open_pair(&pair, (struct bt_public_config){0});
        call_start(&pair.caller, &call, joins ? "/t.T/Stream" : "/t.T/Plain", "x", 1, 0, true);
        PAIR_WAIT(&pair, &call, 1, pair.n_heard == 1);
        for (int i = 0; i < 10; i++)
            bt_public_send(pair.heard[0].call, "ab", 2);
        finish(pair.heard[0].call);
        PAIR_WAIT(&pair, &call, 1, call.over);
        assert_int_equal(call.n_messages, joins ? 1 : 10);
        assert_int_equal(call.n_bytes, 20);
        call_fini(&call);
        close_pair(&pair);
    }
}

/* A client that does not read: full, then ROOM when it does; nothing is lost. */
static void test_back_pressure(void **state) {
    (void)state;
    enum { PIECE = 1000 };
    static const uint8_t piece[PIECE];
    struct pair pair;
    struct call call;
    size_t n_sent = 0;
    open_pair(&pair, (struct bt_public_config){0});
    call_start(&pair.caller, &call, "/t.T/Stream", "x", 1, 0, true);
    call.reads = false;
    PAIR_WAIT(&pair, &call, 1, pair.n_heard == 1);
    struct bt_public_call *at_server = pair.heard[0].call;
    while (!bt_public_is_full(at_server)) {
        bt_public_send(at_server, piece, PIECE);
        n_sent += PIECE;
        if (n_sent % (50 * PIECE) == 0)
            pair_turn(&pair, &call, 1);
        assert_true(n_sent <
                    64 << 20); /* a window, what it is asked for ahead, and our own bound */
    }
    assert_int_equal(pair.n_heard, 1);
    call.reads = true;
    PAIR_WAIT(&pair, &call, 1, pair.n_heard == 2);
    assert_int_equal(pair.heard[1].type, BT_PUBLIC_ROOM);
    assert_false(bt_public_is_full(at_server));
    finish(at_server);
    PAIR_WAIT(&pair, &call, 1, call.over && pair.n_heard == 3);
    assert_int_equal(call.code, GRPC_STATUS_OK);
    assert_int_equal(call.n_bytes, n_sent);
    call_fini(&call);
    close_pair(&pair);
}

/* A client that never reads is cancelled after stuck_ms. */
static void test_stuck(void **state) {
    (void)state;
    static const uint8_t piece[65536];
    struct pair pair;
    struct call call;
    open_pair(&pair, (struct bt_public_config){.stuck_ms = 300});
    call_start(&pair.caller, &call, "/t.T/Stream", "x", 1, 0, true);
    call.reads = false;
    PAIR_WAIT(&pair, &call, 1, pair.n_heard == 1);
    /* gRPC takes some itself; then nothing moves. */
    uint64_t until = clock_ms() + CALLER_WAIT_MS;
    while (pair.heard[pair.n_heard - 1].type != BT_PUBLIC_CLOSED) {
        assert_true(clock_ms() < until);
        if (!bt_public_is_full(pair.heard[0].call))
            bt_public_send(pair.heard[0].call, piece, sizeof piece);
        pair_turn(&pair, &call, 1);
    }
    call.reads = true; /* the end stands behind what it has not read */
    PAIR_WAIT(&pair, &call, 1, call.over);
    assert_int_equal(call.code, GRPC_STATUS_CANCELLED);
    call_fini(&call);
    close_pair(&pair);
}

static void test_cancel_and_deadline(void **state) {
    (void)state;
    for (int deadline = 0; deadline < 2; deadline++) {
        struct pair pair;
        struct call call;
        open_pair(&pair, (struct bt_public_config){0});
        call_start(&pair.caller, &call, "/t.T/Stream", "x", 1, deadline ? 300 : 0, true);
        PAIR_WAIT(&pair, &call, 1, pair.n_heard == 1);
        bt_public_send(pair.heard[0].call, "ab", 2);
        PAIR_WAIT(&pair, &call, 1, call.n_messages == 1);
        if (!deadline)
            grpc_call_cancel(call.grpc, NULL);
        PAIR_WAIT(&pair, &call, 1, call.over && pair.n_heard == 2);
        assert_int_equal(pair.heard[1].type, BT_PUBLIC_CLOSED);
        assert_int_equal(call.code,
                         deadline ? GRPC_STATUS_DEADLINE_EXCEEDED : GRPC_STATUS_CANCELLED);
        call_fini(&call);
        close_pair(&pair);
    }
}

/* What the loop never hears of. */
static void test_refused_before_the_loop(void **state) {
    (void)state;
    struct pair pair;
    struct call calls[4];
    static uint8_t large[70000];
    open_pair(&pair, (struct bt_public_config){.max_calls = 1, .message_bytes_max = 65536});
    call_start(&pair.caller, &calls[0], "/t.T/Nope", "x", 1, 0, true);
    PAIR_WAIT(&pair, calls, 1, calls[0].over);
    call_start(&pair.caller, &calls[1], "/t.T/Plain", NULL, 0, 0, true);
    PAIR_WAIT(&pair, calls, 2, calls[1].over);
    call_start(&pair.caller, &calls[2], "/t.T/Plain", large, sizeof large, 0, true);
    PAIR_WAIT(&pair, calls, 3, calls[2].over);
    assert_int_equal(calls[0].code, GRPC_STATUS_UNIMPLEMENTED);
    assert_int_equal(calls[1].code, GRPC_STATUS_INVALID_ARGUMENT);
    assert_int_equal(calls[2].code, GRPC_STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(pair.n_heard, 0);
    /* Their places are free again, and there is one. */
    call_fini(&calls[0]);
    call_start(&pair.caller, &calls[0], "/t.T/Plain", "x", 1, 0, true);
    PAIR_WAIT(&pair, calls, 1, pair.n_heard == 1);
    call_start(&pair.caller, &calls[3], "/t.T/Plain", "x", 1, 0, true);
    PAIR_WAIT(&pair, calls, 4, calls[3].over);
    assert_int_equal(calls[3].code, GRPC_STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(metadata_of(&calls[3].trailing, "grpc-status-details-bin"));
    finish(pair.heard[0].call);
    PAIR_WAIT(&pair, calls, 4, calls[0].over && pair.n_heard == 2);
    for (size_t i = 0; i < 4; i++)
        call_fini(&calls[i]);
    close_pair(&pair);
}

/* What the loop has not taken is bounded: the next large message is refused. */
static void test_waiting_bytes(void **state) {
    (void)state;
    static uint8_t large[40000];
    struct pair pair;
    struct call calls[3];
    open_pair(&pair, (struct bt_public_config){.waiting_bytes_max = 70000});
    struct bt_public_server *server = pair.server;
    pair.server = NULL; /* the loop stands still */
    for (int i = 0; i < 2; i++)
        call_start(&pair.caller, &calls[i], "/t.T/Plain", large, sizeof large, 0, true);
    PAIR_WAIT(&pair, calls, 2, calls[0].over || calls[1].over);
    int refused = calls[1].over;
    assert_int_equal(calls[refused].code, GRPC_STATUS_RESOURCE_EXHAUSTED);
    pair.server = server;
    PAIR_WAIT(&pair, calls, 2, pair.n_heard == 1);
    finish(pair.heard[0].call);
    PAIR_WAIT(&pair, calls, 2, pair.n_heard == 2 && calls[!refused].over);
    call_start(&pair.caller, &calls[2], "/t.T/Plain", large, sizeof large, 0, true);
    PAIR_WAIT(&pair, calls, 3, pair.n_heard == 3); /* it is taken: there is room again */
    finish(pair.heard[2].call);
    PAIR_WAIT(&pair, calls, 3, calls[2].over && pair.n_heard == 4);
    for (int i = 0; i < 3; i++)
        call_fini(&calls[i]);
    close_pair(&pair);
}

static void send_more(struct call *call, const char *text, bool end) {
    grpc_slice slice = grpc_slice_from_copied_string(text);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    grpc_op ops[2] = {{.op = GRPC_OP_SEND_MESSAGE}, {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT}};
    ops[0].data.send_message.send_message = buffer;
    assert_int_equal(grpc_call_start_batch(call->grpc, ops, end ? 2 : 1, NULL, NULL), GRPC_CALL_OK);
    grpc_byte_buffer_destroy(buffer);
}

static void test_many_requests(void **state) {
    (void)state;
    struct pair pair;
    struct call call;
    open_pair(&pair, (struct bt_public_config){0});
    call_start(&pair.caller, &call, "/t.T/Chat", "one", 3, 0, false);
    PAIR_WAIT(&pair, &call, 1, pair.n_heard == 1);
    struct bt_public_call *at_server = pair.heard[0].call;
    bt_public_send(at_server, "1", 1);
    bt_public_receive(at_server);
    PAIR_WAIT(&pair, &call, 1, call.n_messages == 1);
    send_more(&call, "two", true);
    PAIR_WAIT(&pair, &call, 1, pair.n_heard == 2);
    assert_int_equal(pair.heard[1].type, BT_PUBLIC_MESSAGE);
    assert_memory_equal(pair.heard[1].bytes, "two", 3);
    bt_public_receive(at_server);
    PAIR_WAIT(&pair, &call, 1, pair.n_heard == 3);
    assert_int_equal(pair.heard[2].type, BT_PUBLIC_HALF_CLOSED);
    bt_public_send(at_server, "2", 1);
    finish(at_server);
    PAIR_WAIT(&pair, &call, 1, call.over && pair.n_heard == 4);
    assert_int_equal(call.code, GRPC_STATUS_OK);
    assert_int_equal(call.n_messages, 2);
    call_fini(&call);
    close_pair(&pair);
}

/* Stop with open calls: clients hear it, everything is freed (the leak checker looks). */
static void test_stop_with_open_calls(void **state) {
    (void)state;
    struct pair pair;
    struct call calls[3];
    open_pair(&pair, (struct bt_public_config){0});
    for (int i = 0; i < 3; i++)
        call_start(&pair.caller, &calls[i], i ? "/t.T/Stream" : "/t.T/Chat", "x", 1, 0, i != 0);
    PAIR_WAIT(&pair, calls, 3, pair.n_heard == 3);
    for (int i = 0; i < 3; i++)
        bt_public_send(pair.heard[i].call, "ab", 2);
    bt_public_stop(pair.server);
    pair.server = NULL;
    PAIR_WAIT(&pair, calls, 3, calls[0].over && calls[1].over && calls[2].over);
    for (int i = 0; i < 3; i++) {
        assert_int_not_equal(calls[i].code, GRPC_STATUS_OK);
        call_fini(&calls[i]);
    }
    close_pair(&pair);
}

/* A connection whose peer answers no ping is closed, and its calls with it. */
static void test_silent_peer(void **state) {
    (void)state;
    struct bt_error err;
    struct bt_public_server *server;
    int fds[2];
    char bytes[256];
    bt_rpc_init();
    const struct bt_public_config config = {
        .methods = methods, .n_methods = 3, .keepalive_ms = 200};
    assert_int_equal(bt_public_start(&config, &server, &err), BT_OK);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    bt_public_add_connection(server, fds[0]);
    static const char said[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0";
    assert_int_equal(write(fds[1], said, sizeof said - 1), sizeof said - 1);
    while (read(fds[1], bytes, sizeof bytes) > 0) { /* until the server closes it */
    }
    close(fds[1]);
    bt_public_stop(server);
    bt_rpc_fini();
}

static void answer_health(struct pair *pair, const struct bt_public_event *event) {
    struct bt_public_health *health = pair->arg;
    if (event->type == BT_PUBLIC_STARTED && event->method == PLAIN)
        bt_public_health_check(health, event->call, event->bytes, event->n_bytes);
    else if (event->type == BT_PUBLIC_STARTED)
        bt_public_health_watch(health, event->call, event->bytes, event->n_bytes);
    else if (event->type == BT_PUBLIC_CLOSED && event->method == STREAM)
        bt_public_health_closed(health, event->call);
}

static void test_health(void **state) {
    (void)state;
    struct pair pair;
    struct call calls[4];
    struct bt_public_health health = {0};
    open_pair(&pair, (struct bt_public_config){0});
    pair.on_event = answer_health;
    pair.arg = &health;
    static const char *const asked[] = {"", "\x0a\x08liveness", "\x0a\x05other"};
    for (int i = 0; i < 3; i++)
        call_start(&pair.caller, &calls[i], "/t.T/Plain", asked[i], strlen(asked[i]), 0, true);
    call_start(&pair.caller, &calls[3], "/t.T/Stream", "", 0, 0, true);
    PAIR_WAIT(&pair, calls, 4,
              calls[0].over && calls[1].over && calls[2].over && calls[3].n_messages == 1);
    assert_memory_equal(calls[0].first, "\x08\x02", 2); /* not serving */
    assert_memory_equal(calls[1].first, "\x08\x01", 2);
    assert_int_equal(calls[2].code, GRPC_STATUS_NOT_FOUND);
    assert_memory_equal(calls[3].first, "\x08\x02", 2);
    bt_public_health_set(&health, true);
    PAIR_WAIT(&pair, calls, 4, calls[3].n_messages == 2);
    assert_memory_equal(calls[3].first, "\x08\x01", 2);
    assert_int_equal(health.n_watchers, 1);
    grpc_call_cancel(calls[3].grpc, NULL);
    PAIR_WAIT(&pair, calls, 4, health.n_watchers == 0);
    for (int i = 0; i < 4; i++)
        call_fini(&calls[i]);
    close_pair(&pair);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_call),
        cmocka_unit_test(test_refusal),
        cmocka_unit_test(test_joining),
        cmocka_unit_test(test_back_pressure),
        cmocka_unit_test(test_stuck),
        cmocka_unit_test(test_cancel_and_deadline),
        cmocka_unit_test(test_refused_before_the_loop),
        cmocka_unit_test(test_waiting_bytes),
        cmocka_unit_test(test_many_requests),
        cmocka_unit_test(test_stop_with_open_calls),
        cmocka_unit_test(test_silent_peer),
        cmocka_unit_test(test_health),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

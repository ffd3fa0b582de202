/* Registry.Attach between a real server and a real client: order, pieces, ends, back-pressure. */
#include "tests/unit/rpc/ends.h"

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/time.h>
#include <pthread.h>
#include <unistd.h>

#include "common/rpc/rpc_call.h"

static void test_opens_and_speaks_in_order(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    struct end *worker = &ends->end[WORKER], *router = &ends->end[ROUTER];
    assert_string_equal(worker->heard[0].text, bt_rpc_server_address(ends->server));
    assert_non_null(strstr(router->heard[0].text, "127.0.0.1"));
    for (uint64_t i = 1; i <= 1000; i++) {
        assert_int_equal(send_status(ends, i), BT_OK);
        assert_int_equal(send_cancel(ends, i), BT_OK);
        if (i % 7 == 0)
            turn(ends);
    }
    TURN_UNTIL(ends, worker->n_messages == 1000 && router->n_messages == 1000);
    for (uint64_t i = 1; i <= 1000; i++) {
        assert_int_equal(router->heard[i].msg_type, BT_MSG_STATUS);
        assert_int_equal(router->heard[i].number, i);
        assert_int_equal(worker->heard[i].msg_type, BT_MSG_CANCEL);
        assert_int_equal(worker->heard[i].number, i);
    }
    close_ends(ends);
}

static void test_what_may_not_be_said_is_refused(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    struct bt_error err = {0};
    struct bt_msg msg = {.type = BT_MSG_CANCEL, .cancel = {.key = {1, 1}, .ticket = {1, 1}}};
    assert_int_equal(bt_rpc_send(ends->end[WORKER].streams, 0, &msg, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "none that a worker sends"));
    msg.cancel.key.attempt = 0;
    assert_int_equal(bt_rpc_send(ends->end[ROUTER].streams, 0, &msg, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "cancel.key.attempt is 0"));
    msg.cancel.key.attempt = 1;
    assert_int_equal(bt_rpc_send(ends->end[ROUTER].streams, 3, &msg, &err), BT_E_PEER_GONE);
    assert_non_null(strstr(err.text, "stream 3 is not open"));
    assert_int_equal(bt_rpc_queued_bytes(ends->end[ROUTER].streams, 3), 0);
    bt_rpc_close(ends->end[ROUTER].streams, 3, BT_OK, "nothing");
    assert_int_equal(send_cancel(ends, 5), BT_OK);
    assert_true(bt_rpc_queued_bytes(ends->end[ROUTER].streams, 0) > 0);
    TURN_UNTIL(ends, ends->end[WORKER].n_messages == 1);
    assert_int_equal(last(&ends->end[WORKER])->number, 5);
    close_ends(ends);
}

enum { ROWS = 100000, ROWS_AT_ONCE = 250 };

static void say_rows(struct ends *ends, uint32_t at) {
    struct bt_token rows[ROWS_AT_ONCE];
    for (uint32_t i = 0; i < ROWS_AT_ONCE; i++)
        rows[i] = (struct bt_token){.key = {1 + i, 1}, .index = at + i, .token = 7};
    struct bt_msg msg = {.type = BT_MSG_TOKENS, .tokens = {rows, ROWS_AT_ONCE}};
    assert_int_equal(bt_rpc_send(ends->end[WORKER].streams, 0, &msg, NULL), BT_OK);
}

static void test_100k_token_rows(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    for (uint32_t at = 0; at < ROWS; at += ROWS_AT_ONCE) {
        say_rows(ends, at);
        if (at % 8000 == 0)
            turn(ends);
    }
    TURN_UNTIL(ends, ends->end[ROUTER].n_rows == ROWS);
    /* Successive rows became few messages. */
    assert_true(ends->end[ROUTER].n_messages < ROWS / ROWS_AT_ONCE / 4);
    close_ends(ends);
}

static uint64_t xor_of_tokens;

static void add_tokens(struct end *end, const struct bt_rpc_event *event) {
    (void)end;
    if (event->msg->type == BT_MSG_RESERVE)
        for (uint32_t i = 0; i < event->msg->work.n_tokens; i++)
            xor_of_tokens ^= (uint64_t)event->msg->work.tokens[i] * (i + 1);
}

static void test_an_item_of_four_mib_travels_in_pieces(void **state) {
    (void)state;
    enum { N = 1048576 };
    struct ends *ends = open_ends(0);
    int32_t *tokens = malloc(N * sizeof *tokens);
    assert_non_null(tokens);
    uint64_t expected = 0;
    for (uint32_t i = 0; i < N; i++) {
        tokens[i] = (int32_t)((1u << 27) + i * 77); /* four bytes as a varint */
        expected ^= (uint64_t)tokens[i] * (i + 1);
    }
    struct bt_msg msg = {
        .type = BT_MSG_RESERVE,
        .work = {.key = {1, 1},
                 .ticket = {1, 2},
                 .tokens = tokens,
                 .n_tokens = N,
                 .n_prompt = N,
                 .sampling = {.top_p = 1, .repetition_penalty = 1, .max_tokens = 1},
                 .peer = {3, 4}}};
    xor_of_tokens = 0;
    ends->end[WORKER].on_message = add_tokens;
    assert_int_equal(send_cancel(ends, 1), BT_OK);
    assert_int_equal(bt_rpc_send(ends->end[ROUTER].streams, 0, &msg, NULL), BT_OK);
    assert_int_equal(send_cancel(ends, 2), BT_OK);
    TURN_UNTIL(ends, ends->end[WORKER].n_messages == 3);
    assert_int_equal(ends->end[WORKER].heard[1].number, 1);
    assert_int_equal(ends->end[WORKER].heard[2].number, N);
    assert_int_equal(ends->end[WORKER].heard[3].number, 2);
    assert_true(xor_of_tokens == expected);
    free(tokens);
    close_ends(ends);
}

static void test_worker_closes_in_order(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    struct end *worker = &ends->end[WORKER], *router = &ends->end[ROUTER];
    assert_int_equal(send_status(ends, 9), BT_OK);
    bt_rpc_close(worker->streams, 0, BT_OK, "drained");
    assert_int_equal(send_status(ends, 10), BT_E_PEER_GONE);
    TURN_UNTIL(ends, heard_type(router, BT_RPC_HALF_CLOSED));
    assert_int_equal(router->heard[1].number, 9); /* what was queued came first */
    assert_int_equal(router->heard[2].type, BT_RPC_HALF_CLOSED);
    assert_int_equal(send_cancel(ends, 1), BT_OK); /* half-closed is not the end */
    bt_rpc_close(router->streams, 0, BT_OK, NULL);
    TURN_UNTIL(ends, find_closed(worker) && find_closed(router));
    assert_int_equal(find_closed(worker)->status, BT_OK);
    assert_string_equal(find_closed(worker)->text, "drained");
    assert_int_equal(find_closed(router)->status, BT_OK);
    assert_int_equal(worker->n_messages, 0); /* no message after close */
    dial(ends, 0);                           /* the slot is free again */
    TURN_UNTIL(ends, last(worker)->type == BT_RPC_OPENED);
    close_ends(ends);
}

static void *stop_at_once(void *client) {
    bt_rpc_client_stop(client);
    return NULL;
}

/* A worker that leaves says what it has to say, though it is more than the stream takes at once. */
static void test_stop_waits_for_what_was_closed(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    struct end *router = &ends->end[ROUTER];
    for (uint32_t at = 0; at < ROWS; at += ROWS_AT_ONCE)
        say_rows(ends, at);
    assert_int_equal(send_status(ends, 9), BT_OK);
    bt_rpc_close(ends->end[WORKER].streams, 0, BT_OK, "drained");
    ends->end[WORKER].streams = NULL;
    pthread_t thread;
    uint64_t started_ms = now_ms();
    assert_int_equal(pthread_create(&thread, NULL, stop_at_once, ends->client), 0);
    ends->client = NULL;
    TURN_UNTIL(ends, heard_type(router, BT_RPC_HALF_CLOSED) || find_closed(router));
    /* Where it took longer than a stop waits, it was broken off as promised. */
    if (!find_closed(router) || now_ms() - started_ms < BT_RPC_CLOSE_MS) {
        assert_null(find_closed(router));
        assert_int_equal(router->n_rows, ROWS);
        bt_rpc_close(router->streams, 0, BT_OK, NULL);
        TURN_UNTIL(ends, find_closed(router));
    }
    assert_int_equal(pthread_join(thread, NULL), 0);
    close_ends(ends);
}

static void test_router_closes_with_a_reason(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    struct end *worker = &ends->end[WORKER], *router = &ends->end[ROUTER];
    assert_int_equal(send_cancel(ends, 3), BT_OK);
    bt_rpc_close(router->streams, 0, BT_E_LAYOUT_MISMATCH, "head_dim differs\nby a line");
    TURN_UNTIL(ends, find_closed(worker) && find_closed(router));
    assert_int_equal(worker->heard[1].number, 3);
    assert_int_equal(find_closed(worker)->status, BT_E_LAYOUT_MISMATCH);
    assert_non_null(strstr(find_closed(worker)->text, "head_dim differs?by a line"));
    assert_int_equal(find_closed(router)->status, BT_E_LAYOUT_MISMATCH);
    assert_int_equal(router->n_messages, 0);
    close_ends(ends);
}

static void test_dial_to_nobody_says_why(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    char address[BT_ADDRESS_BYTES];
    snprintf(address, sizeof address, "%s", bt_rpc_server_address(ends->server));
    stop_server(ends);
    TURN_UNTIL(ends, find_closed(&ends->end[WORKER]));
    ends->end[WORKER].n_heard = 0;
    uint64_t t0 = now_ms();
    struct bt_error err = {0};
    assert_int_equal(bt_rpc_client_dial(ends->client, 0, address, 0, &err), BT_OK);
    assert_int_equal(bt_rpc_client_dial(ends->client, 0, address, 0, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "slot 0 is not free"));
    TURN_UNTIL(ends, find_closed(&ends->end[WORKER]));
    const struct heard *closed = find_closed(&ends->end[WORKER]);
    assert_int_equal(ends->end[WORKER].n_heard, 1); /* without OPENED */
    assert_int_equal(closed->status, BT_E_PEER_GONE);
    assert_non_null(strstr(closed->text, "cannot attach to the router at 127.0.0.1:"));
    assert_true(now_ms() - t0 < 5000);
    assert_int_equal(bt_rpc_client_dial(ends->client, 0, "nonsense", 0, &err), BT_E_INVALID);
    assert_int_equal(bt_rpc_client_dial(ends->client, 99, address, 0, &err), BT_E_INVALID);
    close_ends(ends);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_opens_and_speaks_in_order),
        cmocka_unit_test(test_what_may_not_be_said_is_refused),
        cmocka_unit_test(test_100k_token_rows),
        cmocka_unit_test(test_an_item_of_four_mib_travels_in_pieces),
        cmocka_unit_test(test_worker_closes_in_order),
        cmocka_unit_test(test_stop_waits_for_what_was_closed),
        cmocka_unit_test(test_router_closes_with_a_reason),
        cmocka_unit_test(test_dial_to_nobody_says_why),
    };
    bt_rpc_init();
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    bt_rpc_fini();
    return n_failed;
}

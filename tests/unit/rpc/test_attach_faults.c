/* Registry.Attach when something is wrong: ends that vanish, do not read, or say what they must
 * not. */
#include "tests/unit/rpc/ends.h"
#include "tests/unit/rpc/stranger.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/address.h"

enum { BLOCKS = 25000, BLOCKS_BYTES = BLOCKS * 8 }; /* a message of 200 kB */
static uint64_t hashes[BLOCKS];

static bt_status send_blocks(struct ends *ends, uint64_t number, struct bt_error *err) {
    struct bt_msg msg = {.type = BT_MSG_BLOCKS,
                         .blocks = {.sequence = number, .added = hashes, .n_added = BLOCKS}};
    return bt_rpc_send(ends->end[WORKER].streams, 0, &msg, err);
}

static void test_server_stops_while_open(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    stop_server(ends);
    TURN_UNTIL(ends, find_closed(&ends->end[WORKER]));
    const struct heard *closed = find_closed(&ends->end[WORKER]);
    assert_int_equal(closed->status, BT_E_PEER_GONE);
    assert_non_null(strstr(closed->text, "the stream to the router at 127.0.0.1:"));
    close_ends(ends);
}

static void test_client_stops_while_open(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    assert_int_equal(send_cancel(ends, 1), BT_OK);
    stop_client(ends);
    TURN_UNTIL(ends, find_closed(&ends->end[ROUTER]));
    const struct heard *closed = find_closed(&ends->end[ROUTER]);
    assert_int_equal(closed->status, BT_E_PEER_GONE);
    assert_non_null(strstr(closed->text, "broke the stream off"));
    assert_false(heard_type(&ends->end[ROUTER], BT_RPC_HALF_CLOSED));
    close_ends(ends);
}

static void test_both_stop_with_events_untaken(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    ends->end[ROUTER].paused = ends->end[WORKER].paused = true;
    for (uint64_t i = 0; i < 20; i++) {
        assert_int_equal(send_blocks(ends, i, NULL), BT_OK);
        assert_int_equal(send_cancel(ends, i + 1), BT_OK);
        turn(ends);
    }
    close_ends(ends);
}

/* The peer does not read: what is kept is bounded at both ends, then the stream is closed. */
static void test_flood_against_a_reader_that_does_not_read(void **state) {
    (void)state;
    enum { BOUND = 2 << 20 };
    struct ends *ends = open_ends(BOUND);
    struct end *worker = &ends->end[WORKER], *router = &ends->end[ROUTER];
    struct bt_error err = {0};
    router->paused = true;
    uint64_t n_sent = 0, until = now_ms() + WAIT_MS;
    bt_status status;
    while ((status = send_blocks(ends, n_sent, &err)) == BT_OK) {
        n_sent++;
        turn_for(ends, 20);
        assert_true(now_ms() < until && n_sent < 1000);
    }
    assert_int_equal(status, BT_E_FULL);
    assert_non_null(strstr(err.text, "has not read"));
    assert_non_null(strstr(err.text, "the bound is 2097152"));
    /* Bound + what waits at the router (512 KiB and a message) + what is in gRPC and the kernel. */
    assert_true(n_sent * BLOCKS_BYTES < BOUND + (12 << 20));
    TURN_UNTIL(ends, find_closed(worker));
    assert_int_equal(find_closed(worker)->status, BT_E_FULL);
    assert_int_equal(bt_rpc_send(worker->streams, 0, &(struct bt_msg){.type = BT_MSG_STATUS}, NULL),
                     BT_E_PEER_GONE);
    router->paused = false;
    TURN_UNTIL(ends, find_closed(router));
    assert_int_equal(find_closed(router)->status, BT_E_PEER_GONE);
    assert_true(router->n_messages < n_sent);
    for (uint64_t i = 0; i < router->n_messages; i++)
        assert_int_equal(router->heard[1 + i].number, i);
    close_ends(ends);
}

/* The same reader wakes up in time: nothing is lost and the order holds. */
static void test_a_slow_reader_loses_nothing(void **state) {
    (void)state;
    enum { N = 100 };
    struct ends *ends = open_ends(64 << 20);
    struct end *router = &ends->end[ROUTER];
    router->paused = true;
    for (uint64_t i = 0; i < N; i++) {
        assert_int_equal(send_blocks(ends, i, NULL), BT_OK);
        assert_int_equal(send_status(ends, i), BT_OK);
        turn(ends);
    }
    assert_true(bt_rpc_queued_bytes(ends->end[WORKER].streams, 0) > 1000000);
    router->paused = false;
    TURN_UNTIL(ends, router->n_messages == 2 * N);
    for (uint64_t i = 0; i < 2 * N; i++)
        assert_int_equal(router->heard[1 + i].number, i / 2);
    TURN_UNTIL(ends, bt_rpc_queued_bytes(ends->end[WORKER].streams, 0) == 0);
    close_ends(ends);
}

static struct ends *answering;

static void answer_blocks(struct end *end, const struct bt_rpc_event *event) {
    (void)end;
    if (event->msg->type == BT_MSG_BLOCKS)
        assert_int_equal(send_cancel(answering, event->msg->blocks.sequence + 1), BT_OK);
}

static void answer_cancel(struct end *end, const struct bt_rpc_event *event) {
    (void)end;
    if (event->msg->type == BT_MSG_CANCEL)
        assert_int_equal(send_status(answering, event->msg->cancel.key.request), BT_OK);
}

/* A part of a large send is answered, and the answer answered, before the send's own completion. */
static void test_answers_come_before_completions(void **state) {
    (void)state;
    enum { N = 200 };
    struct ends *ends = answering = open_ends(64 << 20);
    ends->end[ROUTER].on_message = answer_blocks;
    ends->end[WORKER].on_message = answer_cancel;
    for (uint64_t i = 0; i < N; i++) {
        assert_int_equal(send_blocks(ends, i, NULL), BT_OK);
        if (i % 5 == 0)
            bt_rpc_flush(ends->end[WORKER].streams);
    }
    TURN_UNTIL(ends, ends->end[WORKER].n_messages == N && ends->end[ROUTER].n_messages == 2 * N);
    for (uint64_t i = 0; i < N; i++)
        assert_int_equal(ends->end[WORKER].heard[1 + i].number, i + 1);
    /* One at a time: each answer starts the next. */
    ends->end[ROUTER].n_messages = 0;
    for (uint64_t i = 0; i < N; i++) {
        assert_int_equal(send_blocks(ends, i, NULL), BT_OK);
        TURN_UNTIL(ends, ends->end[ROUTER].n_messages == 2 * (i + 1));
    }
    close_ends(ends);
}

static void test_a_close_that_is_not_read_ends_anyway(void **state) {
    (void)state;
    struct ends *ends = open_ends(64 << 20);
    struct end *worker = &ends->end[WORKER];
    ends->end[ROUTER].paused = true;
    for (uint64_t i = 0; i < 100; i++)
        assert_int_equal(send_blocks(ends, i, NULL), BT_OK);
    uint64_t t0 = now_ms();
    bt_rpc_close(worker->streams, 0, BT_OK, "leaving");
    TURN_UNTIL(ends, find_closed(worker));
    assert_true(now_ms() - t0 >= 900);
    assert_int_equal(find_closed(worker)->status, BT_E_PEER_GONE);
    assert_non_null(strstr(find_closed(worker)->text, "did not take the end of the stream"));
    ends->end[ROUTER].paused = false;
    TURN_UNTIL(ends, find_closed(&ends->end[ROUTER]));
    close_ends(ends);
}

static void test_a_half_close_may_be_ignored(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    bt_rpc_close(ends->end[WORKER].streams, 0, BT_OK, "leaving");
    TURN_UNTIL(ends, heard_type(&ends->end[ROUTER], BT_RPC_HALF_CLOSED));
    TURN_UNTIL(ends, find_closed(&ends->end[WORKER]) && find_closed(&ends->end[ROUTER]));
    assert_int_equal(find_closed(&ends->end[ROUTER])->status, BT_E_PEER_GONE);
    close_ends(ends);
}

static void test_slots_are_bounded_and_used_again(void **state) {
    (void)state;
    struct ends *ends = open_ends(0); /* four slots */
    struct end *worker = &ends->end[WORKER], *router = &ends->end[ROUTER];
    for (uint32_t i = 1; i < 4; i++)
        dial(ends, i);
    TURN_UNTIL(ends, worker->n_heard == 4 && router->n_heard == 4);
    dial(ends, 4);
    TURN_UNTIL(ends, find_closed(worker));
    assert_int_equal(worker->n_heard, 5); /* no OPENED of the fifth */
    assert_int_equal(find_closed(worker)->slot, 4);
    assert_int_equal(find_closed(worker)->status, BT_E_FULL);
    assert_non_null(strstr(find_closed(worker)->text, "has its 4 workers' streams"));
    assert_int_equal(router->n_heard, 4);
    for (uint32_t i = 0; i < 40; i++) {
        worker->n_heard = router->n_heard = 0;
        bt_rpc_close(router->streams, i % 4, BT_OK, NULL);
        TURN_UNTIL(ends, find_closed(router) && find_closed(worker));
        dial(ends, find_closed(worker)->slot);
        TURN_UNTIL(ends,
                   last(worker)->type == BT_RPC_OPENED && last(router)->type == BT_RPC_OPENED);
        assert_int_equal(last(router)->slot, i % 4);
    }
    close_ends(ends);
}

static void test_a_deadline_ends_a_stream(void **state) {
    (void)state;
    struct ends *ends = calloc(1, sizeof *ends);
    start_server(ends, 0, 0);
    start_client(ends, 0);
    assert_int_equal(
        bt_rpc_client_dial(ends->client, 7, bt_rpc_server_address(ends->server), 300, NULL), BT_OK);
    TURN_UNTIL(ends, find_closed(&ends->end[WORKER]) && find_closed(&ends->end[ROUTER]));
    assert_int_equal(ends->end[WORKER].heard[0].type, BT_RPC_OPENED);
    assert_int_equal(ends->end[WORKER].heard[0].slot, 7);
    assert_int_equal(find_closed(&ends->end[WORKER])->status, BT_E_DEADLINE);
    close_ends(ends);
}

/* A port that takes connections and never says a word. */
static void test_dial_to_a_mute_port(void **state) {
    (void)state;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof name;
    assert_int_equal(bind(fd, (struct sockaddr *)&name, n), 0);
    assert_int_equal(listen(fd, 8), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&name, &n), 0);
    char address[BT_ADDRESS_BYTES];
    snprintf(address, sizeof address, "127.0.0.1:%u", ntohs(name.sin_port));
    struct ends *ends = calloc(1, sizeof *ends);
    start_client(ends, 0);
    assert_int_equal(bt_rpc_client_dial(ends->client, 0, address, 0, NULL), BT_OK);
    TURN_UNTIL(ends, find_closed(&ends->end[WORKER]));
    assert_int_equal(ends->end[WORKER].n_heard, 1);
    assert_non_null(strstr(find_closed(&ends->end[WORKER])->text, address));
    assert_true(find_closed(&ends->end[WORKER])->status < 0);
    close(fd);
    close_ends(ends);
}

/* ---- strangers ---- */

static void check_stranger(struct ends *ends, const char *method, const void *bytes, size_t n,
                           bool compress, grpc_status_code code, const char *says) {
    struct stranger stranger;
    stranger_start(&stranger, bt_rpc_server_address(ends->server), method, bytes, n, compress);
    TURN_UNTIL(ends, stranger_turn(&stranger));
    char *detail = grpc_slice_to_c_string(stranger.detail);
    if (stranger.code != code || !strstr(detail, says))
        fail_msg("code %d \"%s\", must be %d \"%s\"", (int)stranger.code, detail, (int)code, says);
    gpr_free(detail);
    stranger_fini(&stranger);
}

static void test_strangers_are_told_what_is_wrong(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    const char *attach = "/baton.v1.Registry/Attach";
    uint8_t *zeros = calloc(1, BT_MESSAGE_BYTES + 1);
    check_stranger(ends, "/baton.v1.Registry/Detach", "", 0, false, GRPC_STATUS_UNIMPLEMENTED,
                   "no such method");
    check_stranger(ends, attach, "\xff\xff", 2, false, GRPC_STATUS_INVALID_ARGUMENT,
                   "no field tag at byte 0 of 2");
    check_stranger(ends, attach, "\x0a\x02\x2a\x00", 4, false, GRPC_STATUS_INVALID_ARGUMENT,
                   "live.key.request is 0, must be at least 1");
    check_stranger(ends, attach, zeros, BT_MESSAGE_BYTES + 1, false, GRPC_STATUS_RESOURCE_EXHAUSTED,
                   "larger than max");
    for (size_t i = 0; i + 4 <= BT_MESSAGE_BYTES; i += 4)
        memcpy(zeros + i, "\x0a\x02\x12\x00", 4);
    check_stranger(ends, attach, zeros, BT_MESSAGE_BYTES, true, GRPC_STATUS_INVALID_ARGUMENT,
                   "is compressed, must be plain");
    check_stranger(ends, attach, zeros, BT_MESSAGE_BYTES, false, GRPC_STATUS_INVALID_ARGUMENT,
                   "over 1024 items");
    free(zeros);
    /* The worker beside them noticed nothing. */
    assert_int_equal(send_status(ends, 77), BT_OK);
    TURN_UNTIL(ends, last(&ends->end[ROUTER])->number == 77);
    assert_false(find_closed(&ends->end[WORKER]));
    close_ends(ends);
}

static void test_noise_on_the_port_harms_nobody(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    struct bt_address address;
    assert_int_equal(bt_address_parse(bt_rpc_server_address(ends->server), &address, NULL), BT_OK);
    struct sockaddr_in name = {.sin_family = AF_INET,
                               .sin_port = htons(address.port),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    static const char *const noise[] = {"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                                        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nxxxxxxxxxxxxxxxx",
                                        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"};
    for (int i = 0; i < 3; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&name, sizeof name), 0);
        assert_true(send(fd, noise[i], strlen(noise[i]), MSG_NOSIGNAL) > 0);
        char byte[256];
        fcntl(fd, F_SETFL, O_NONBLOCK);
        ssize_t n = 0;
        /* It says its settings, then hangs up. */
        TURN_UNTIL(ends, ((n = recv(fd, byte, sizeof byte, 0)) == 0) || (n < 0 && errno != EAGAIN));
        close(fd);
    }
    assert_int_equal(send_status(ends, 5), BT_OK);
    TURN_UNTIL(ends, last(&ends->end[ROUTER])->number == 5);
    close_ends(ends);
}

static void test_a_port_that_is_taken(void **state) {
    (void)state;
    struct ends *ends = open_ends(0);
    struct bt_rpc_server *second = NULL;
    struct bt_rpc_server_config config = {.listen = bt_rpc_server_address(ends->server)};
    struct bt_error err = {0};
    assert_int_equal(bt_rpc_server_start(&config, &second, &err), BT_E_IO);
    assert_non_null(strstr(err.text, "Address already in use"));
    config.listen = "127.0.0.1";
    assert_int_equal(bt_rpc_server_start(&config, &second, &err), BT_E_INVALID);
    assert_null(second);
    close_ends(ends);
}

static void test_redial_waits(void **state) {
    (void)state;
    for (uint64_t random = 0; random < 1000; random++) {
        assert_int_equal(bt_rpc_redial_ms(0, random), 0);
        for (uint32_t failures = 1; failures < 40; failures++) {
            uint32_t ms = bt_rpc_redial_ms(failures, random * 0x9e3779b97f4a7c15u);
            assert_in_range(ms, 100, failures < 4 ? 100 + 100 * failures : 500);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_server_stops_while_open),
        cmocka_unit_test(test_client_stops_while_open),
        cmocka_unit_test(test_both_stop_with_events_untaken),
        cmocka_unit_test(test_flood_against_a_reader_that_does_not_read),
        cmocka_unit_test(test_a_slow_reader_loses_nothing),
        cmocka_unit_test(test_answers_come_before_completions),
        cmocka_unit_test(test_a_close_that_is_not_read_ends_anyway),
        cmocka_unit_test(test_a_half_close_may_be_ignored),
        cmocka_unit_test(test_slots_are_bounded_and_used_again),
        cmocka_unit_test(test_a_deadline_ends_a_stream),
        cmocka_unit_test(test_dial_to_a_mute_port),
        cmocka_unit_test(test_strangers_are_told_what_is_wrong),
        cmocka_unit_test(test_noise_on_the_port_harms_nobody),
        cmocka_unit_test(test_a_port_that_is_taken),
        cmocka_unit_test(test_redial_waits),
    };
    bt_rpc_init();
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    bt_rpc_fini();
    return n_failed;
}

/* KV links over TCP, a scripted worker on each side: exchange, frames, every way to end. */
#include "link_rig.h"

#include "common/base/log.h"
#include "common/kv/kv_link_tcp.h"

static void test_a_link_comes_up_and_speaks_both_ways(void **state) {
    (void)state;
    struct rig rig = {0};
    rig_open(&rig, "tcp", RIG_PAGE_BYTES);
    assert_int_equal(rig.p.link, 3);
    assert_true(bt_id_equal(rig.p.peer, rig.d.incarnation));
    assert_true(bt_id_equal(rig.d.peer, rig.p.incarnation));
    for (uint64_t i = 0; i < 40; i++) {
        struct bt_kv_msg msg = rig_hello(i);
        rig.p.ops->send(rig.p.links, 3, &msg);
        msg = (struct bt_kv_msg){.type = BT_KV_GRANT, .ticket = {1, i + 1}, .pages = 9};
        rig.d.ops->send(rig.d.links, rig.d.link, &msg);
    }
    RIG_UNTIL(rig.base, rig.p.n_messages == 40 && rig.d.n_messages == 40);
    for (uint64_t i = 0; i < 40; i++) {
        assert_int_equal(rig.d.messages[i].type, BT_KV_HELLO);
        assert_int_equal(rig.d.messages[i].ticket.lo, i);
        assert_int_equal(rig.d.messages[i].n_tokens, 1500);
        assert_int_equal(rig.p.messages[i].type, BT_KV_GRANT);
        assert_int_equal(rig.p.messages[i].ticket.lo, i + 1);
    }
    assert_true(rig.d.n_turns >= 41);
    rig_close(&rig);
}

static void test_frames_land_byte_for_byte(void **state) {
    (void)state;
    rig_send_all(RIG_PAGE_BYTES);
    rig_send_all(100);                       /* 64 pages a frame */
    rig_send_all(2 * BT_KV_FRAME_BYTES + 5); /* three pieces a page */
}

static void test_control_stands_before_the_next_frame_and_behind_pulled_ones(void **state) {
    (void)state;
    struct rig rig = {0};
    rig_open(&rig, "tcp", RIG_PAGE_BYTES);
    rig_flood(&rig, 100);
    RIG_UNTIL(rig.base, rig.p.next_out > 0);
    uint32_t pulled = rig.p.next_out;
    struct bt_kv_msg msg = rig_hello(1);
    rig.p.ops->send(rig.p.links, 3, &msg);
    RIG_UNTIL(rig.base, rig.d.n_whole == rig.p.n_out && rig.d.n_messages == 1);
    assert_int_equal(rig.d.frames_before_message[0], pulled);
    rig_close(&rig);
}

static void expect_refusal(struct rig *rig, const struct bt_fingerprint *p_layout,
                           struct bt_id dialled, const char *text) {
    struct bt_fingerprint layout = rig_layout();
    struct bt_error err;
    rig_open_base(rig);
    rig_side_init(&rig->d, rig->base, "tcp", false, 1, RIG_PAGE_BYTES, &layout);
    rig_side_init(&rig->p, rig->base, "tcp", true, 2, RIG_PAGE_BYTES, p_layout);
    assert_int_equal(
        rig->p.ops->dial(rig->p.links, 0, rig->d.ops->address(rig->d.links), dialled, &err), BT_OK);
    RIG_UNTIL(rig->base, rig->p.n_down);
    assert_int_equal(rig->p.n_up + rig->d.n_up + rig->d.n_down, 0);
    if (!strstr(rig->p.why, text))
        fail_msg("%s: not in: %s", text, rig->p.why);
    rig_close(rig);
}

static void test_another_layout_or_incarnation_is_refused_by_name(void **state) {
    (void)state;
    struct rig rig = {0};
    struct bt_fingerprint layout = rig_layout();
    layout.head_dim = 128;
    expect_refusal(&rig, &layout, (struct bt_id){0xabc, 1},
                   "layout field head_dim differs: ours is 64, theirs is 128");
    layout = rig_layout();
    layout.profile = BT_PROFILE_EXACT;
    memset(&rig, 0, sizeof rig);
    expect_refusal(&rig, &layout, (struct bt_id){0xabc, 1}, "layout field profile differs");
    layout = rig_layout();
    memset(&rig, 0, sizeof rig);
    expect_refusal(&rig, &layout, (struct bt_id){0xabc, 99}, "it has started again");
}

static void test_a_dial_that_cannot_be_fails(void **state) {
    (void)state;
    struct rig rig = {0};
    struct bt_fingerprint layout = rig_layout();
    struct bt_error err;
    struct bt_id peer = {1, 1};
    rig_open_base(&rig);
    rig_side_init(&rig.p, rig.base, "tcp", true, 2, RIG_PAGE_BYTES, &layout);
    assert_int_equal(rig.p.ops->dial(rig.p.links, 0, "no port", peer, &err), BT_E_INVALID);
    assert_int_equal(rig.p.ops->dial(rig.p.links, 0, "127.0.0.1:0", peer, &err), BT_E_INVALID);
    /* A port that was free a moment ago. */
    rig_side_init(&rig.d, rig.base, "tcp", false, 1, RIG_PAGE_BYTES, &layout);
    char address[BT_ADDRESS_BYTES];
    memcpy(address, rig.d.ops->address(rig.d.links), sizeof address);
    rig_side_fini(&rig.d);
    assert_int_equal(rig.p.ops->dial(rig.p.links, 0, address, peer, &err), BT_OK);
    assert_int_equal(rig.p.n_down, 0);
    RIG_UNTIL(rig.base, rig.p.n_down == 1);
    assert_non_null(strstr(rig.p.why, "failed: Connection refused"));
    /* The number can be used again; a name is looked up without holding the loop. */
    assert_int_equal(rig.p.ops->dial(rig.p.links, 0, "localhost:1", peer, &err), BT_OK);
    RIG_UNTIL(rig.base, rig.p.n_down == 2);
    assert_non_null(strstr(rig.p.why, "localhost:1"));
    rig_close(&rig);
}

static void test_a_name_is_dialled(void **state) {
    (void)state;
    struct rig rig = {0};
    struct bt_fingerprint layout = rig_layout();
    struct bt_error err;
    char address[BT_ADDRESS_BYTES] = "localhost";
    rig_open_base(&rig);
    rig_side_init(&rig.d, rig.base, "tcp", false, 1, RIG_PAGE_BYTES, &layout);
    rig_side_init(&rig.p, rig.base, "tcp", true, 2, RIG_PAGE_BYTES, &layout);
    strcat(address, strrchr(rig.d.ops->address(rig.d.links), ':'));
    assert_int_equal(rig.p.ops->dial(rig.p.links, 0, address, rig.d.incarnation, &err), BT_OK);
    RIG_UNTIL(rig.base, rig.p.n_up && rig.d.n_up);
    rig_close(&rig);
}

static void test_a_peer_that_never_answers_is_given_up_after_a_second(void **state) {
    (void)state;
    struct rig rig = {0};
    struct bt_fingerprint layout = rig_layout();
    struct bt_error err;
    rig_open_base(&rig);
    rig_side_init(&rig.p, rig.base, "tcp", true, 2, RIG_PAGE_BYTES, &layout);
    rig_side_init(&rig.d, rig.base, "tcp", false, 1, RIG_PAGE_BYTES, &layout);
    /* A socket that listens and never accepts; and one that connects and never joins. */
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t n = sizeof at;
    int mute = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(!bind(mute, (struct sockaddr *)&at, n) && !listen(mute, 1));
    assert_int_equal(getsockname(mute, (struct sockaddr *)&at, &n), 0);
    char address[BT_ADDRESS_BYTES];
    snprintf(address, sizeof address, "127.0.0.1:%u", ntohs(at.sin_port));
    uint64_t start = rig_now_ms();
    assert_int_equal(rig.p.ops->dial(rig.p.links, 0, address, (struct bt_id){1, 1}, &err), BT_OK);
    int silent = raw_connect(&rig.d);
    uint8_t bytes[64];
    size_t n_bytes = 0;
    RIG_UNTIL(rig.base, rig.p.n_down && !raw_read(silent, bytes, &n_bytes, sizeof bytes));
    assert_true(rig_now_ms() - start >= 900);
    assert_non_null(strstr(rig.p.why, "first exchange within 1000 ms"));
    assert_int_equal(rig.d.n_up + rig.d.n_down, 0);
    close(silent);
    close(mute);
    rig_close(&rig);
}

static void test_a_peer_killed_in_mid_frame_ends_the_receive_first(void **state) {
    (void)state;
    struct rig rig = {0};
    rig_open(&rig, "tcp", RIG_PAGE_BYTES);
    static uint8_t bytes[4 * RIG_PAGE_BYTES];
    struct bt_kv_frame frame = {.first_page = 4, .n_pages = 2, .length = 2 * RIG_PAGE_BYTES};
    for (uint32_t page = 4; page < 6; page++)
        rig_fill(&rig.p, 0, page, 9);
    int fd = raw_open(&rig, 77);
    size_t n = raw_frame(bytes, &rig.p, &frame);
    raw_send(fd, bytes, n - RIG_PAGE_BYTES - 100);
    RIG_UNTIL(rig.base, rig.d.n_begun == 1);
    assert_int_equal(rig.d.n_broken, 0);
    shutdown(fd, SHUT_WR);
    RIG_UNTIL(rig.base, rig.d.n_down == 1); /* rig_down checks that no receive is open */
    close(fd);
    assert_int_equal(rig.d.n_broken, 1);
    assert_non_null(strstr(rig.d.why, "in the middle of a frame"));
    assert_int_equal(rig_page(&rig.d, 0, 5)[0], 0);
    rig_close(&rig);
}

static void test_a_stream_cut_at_every_byte_leaves_nothing_open(void **state) {
    (void)state;
    struct rig rig = {0};
    rig_open(&rig, "tcp", 24);
    static uint8_t bytes[4096];
    struct bt_kv_frame frame = {.first_page = 0, .n_pages = 3, .length = 72};
    struct bt_kv_control c = {.type = BT_KV_CONTROL_MSG, .msg = rig_hello(1)};
    size_t n_join = raw_join(bytes, &rig.d, 1ull << 40), n = n_join;
    size_t n_hello = bt_kv_control_pack(&c, bytes + n);
    n += n_hello;
    n += raw_frame(bytes + n, &rig.p, &frame);
    n += bt_kv_control_pack(&c, bytes + n);
    rig.d.n_down = rig.d.n_up = 0;
    for (size_t cut = 0; cut <= n; cut++) {
        uint32_t downs = rig.d.n_down;
        raw_join(bytes, &rig.d, (1ull << 40) + cut);
        int fd = raw_connect(&rig.d);
        raw_send(fd, bytes, cut);
        shutdown(fd, SHUT_WR);
        uint8_t heard[1024];
        size_t n_heard = 0;
        RIG_UNTIL(rig.base, !raw_read(fd, heard, &n_heard, sizeof heard));
        assert_int_equal(rig.d.n_down - downs, cut >= n_join);
        close(fd);
    }
    assert_int_equal(rig.d.n_up, n + 1 - n_join);
    /* The first hello counts where all of it came, the second in the last round alone. */
    assert_int_equal(rig.d.n_messages, n + 1 - n_join - n_hello + 1);
    assert_int_equal(rig.d.n_begun, rig.d.n_whole + rig.d.n_broken);
    assert_true(rig.d.n_whole > 0 && rig.d.n_broken > 0);
    /* The link that was there all the time still works. */
    struct bt_kv_msg msg = rig_hello(5);
    uint32_t messages = rig.d.n_messages;
    rig.p.ops->send(rig.p.links, 3, &msg);
    RIG_UNTIL(rig.base, rig.d.n_messages == messages + 1);
    rig_close(&rig);
}

/* Bytes that break a rule: D ends that connection alone, counts it, says why. */
static void expect_breach(bool join_first, const uint8_t *bytes, size_t n, const char *why) {
    struct rig rig = {0};
    rig_open(&rig, "tcp", RIG_PAGE_BYTES);
    int fd = join_first ? raw_open(&rig, 5) : raw_connect(&rig.d);
    uint8_t heard[2048];
    size_t n_heard = 0;
    raw_send(fd, bytes, n);
    RIG_UNTIL(rig.base, !raw_read(fd, heard, &n_heard, sizeof heard));
    assert_int_equal(rig.d.ops->breaches(rig.d.links), 1);
    assert_int_equal(rig.d.n_down, join_first ? 1 : 0);
    if (join_first && !strstr(rig.d.why, why))
        fail_msg("%s: not in: %s", why, rig.d.why);
    if (!join_first) {
        /* It is told, in a LinkRefused. */
        struct bt_kv_control c;
        struct bt_error err;
        assert_true(n_heard > BT_KV_HEADER_BYTES);
        assert_int_equal(bt_kv_control_unpack(heard + BT_KV_HEADER_BYTES,
                                              n_heard - BT_KV_HEADER_BYTES, &c, &err),
                         BT_OK);
        assert_int_equal(c.type, BT_KV_CONTROL_REFUSED);
        assert_non_null(strstr(c.refused, why));
    }
    close(fd);
    struct bt_kv_msg msg = rig_hello(5);
    rig.p.ops->send(rig.p.links, 3, &msg);
    RIG_UNTIL(rig.base, rig.d.n_messages == 1);
    assert_int_equal(rig.p.n_down, 0);
    rig_close(&rig);
}

static void test_a_peer_that_breaks_a_rule_is_closed_and_counted(void **state) {
    (void)state;
    uint8_t bytes[BT_KV_UNIT_BYTES_MAX];
    struct bt_kv_control c = {.type = BT_KV_CONTROL_MSG, .msg = rig_hello(1)};
    memset(bytes, 'x', sizeof bytes);
    expect_breach(false, bytes, 48, "not a KV link");
    expect_breach(true, bytes, 48, "not a KV link");
    size_t n = bt_kv_control_pack(&c, bytes);
    expect_breach(false, bytes, n, "first message of a link must be LinkJoin");
    bytes[41] ^= 1;
    expect_breach(true, bytes, 48, "unit header's hash is");
    bt_kv_control_pack(&c, bytes);
    bytes[n - 1] ^= 1;
    expect_breach(true, bytes, n, "control message has hash");
    c.msg = (struct bt_kv_msg){.type = BT_KV_COMMITTED, .ticket = {1, 1}};
    n = bt_kv_control_pack(&c, bytes);
    expect_breach(true, bytes, n, "a prefill worker must not send");
    c = (struct bt_kv_control){.type = BT_KV_CONTROL_WELCOME, .welcome = {{1, 1}, 1}};
    n = bt_kv_control_pack(&c, bytes);
    expect_breach(true, bytes, n, "first exchange");
    struct bt_kv_frame frame = {.n_pages = 2, .length = 2 * RIG_PAGE_BYTES + 1};
    bt_kv_header_pack_frame(&frame, bytes);
    expect_breach(true, bytes, 48, "frame of 2 pages has length 24577, must be 24576");
    frame.length--;
    bt_kv_header_pack_frame(&frame, bytes);
    expect_breach(false, bytes, 48, "only control messages may");
}

static void test_refused_frames_are_read_and_dropped(void **state) {
    (void)state;
    struct rig rig = {0};
    rig_open(&rig, "tcp", RIG_PAGE_BYTES);
    for (uint32_t page = 0; page < RIG_PAGES; page++)
        rig_fill(&rig.p, 0, page, 1);
    rig_offer(&rig.p, 8, 0, 0, 32); /* lease 8 is not granted */
    uint32_t n_refused = rig.p.n_out;
    rig_offer(&rig.p, 0, 0, 32, 32);
    rig.p.ops->pump(rig.p.links, 3);
    RIG_UNTIL(rig.base, rig.d.n_whole == rig.p.n_out - n_refused);
    assert_int_equal(rig.d.n_refused, n_refused);
    assert_int_equal(rig.d.n_bad_sums, 0);
    assert_int_equal(rig_page(&rig.d, 0, 0)[0] | rig_page(&rig.d, 0, 31)[100], 0);
    assert_true(rig_equal(&rig, 0, 32) && rig_equal(&rig, 0, 63));
    assert_int_equal(rig.d.ops->breaches(rig.d.links), 0);
    rig_close(&rig);
}

static void test_a_cut_lease_lands_no_further_byte(void **state) {
    (void)state;
    struct rig rig = {0};
    static uint8_t bytes[8 * RIG_PAGE_BYTES];
    rig_open(&rig, "tcp", RIG_PAGE_BYTES);
    struct bt_kv_frame frame = {.n_pages = 4, .length = 4 * RIG_PAGE_BYTES};
    for (uint32_t page = 0; page < 4; page++)
        rig_fill(&rig.p, 0, page, 9);
    int fd = raw_open(&rig, 77);
    uint32_t link = rig.d.link;
    size_t n = raw_frame(bytes, &rig.p, &frame), half = n - 2 * RIG_PAGE_BYTES;
    raw_send(fd, bytes, half);
    RIG_UNTIL(rig.base, rig_page(&rig.d, 0, 1)[RIG_PAGE_BYTES - 1] ==
                            rig_page(&rig.p, 0, 1)[RIG_PAGE_BYTES - 1]);
    rig.d.ops->cut(rig.d.links, link, 1); /* another lease */
    assert_int_equal(rig.d.n_broken, 0);
    rig.d.ops->cut(rig.d.links, link, 0);
    assert_int_equal(rig.d.n_broken, 1); /* at once */
    raw_send(fd, bytes + half, n - half);
    uint8_t unit[BT_KV_UNIT_BYTES_MAX];
    struct bt_kv_control c = {.type = BT_KV_CONTROL_MSG, .msg = rig_hello(1)};
    raw_send(fd, unit, bt_kv_control_pack(&c, unit));
    RIG_UNTIL(rig.base, rig.d.n_messages == 1); /* it stands behind the frame */
    for (uint32_t i = 0; i < 2 * RIG_PAGE_BYTES; i++)
        assert_int_equal(rig_page(&rig.d, 0, 2)[i], 0);
    raw_send(fd, bytes, n); /* the same frame again: lands */
    RIG_UNTIL(rig.base, rig.d.n_whole == 1);
    assert_true(rig_equal(&rig, 0, 3));
    close(fd);
    rig_close(&rig);
}

static void test_a_silent_peer_is_dead_after_two_seconds(void **state) {
    (void)state;
    struct rig rig = {0};
    rig_open(&rig, "tcp", RIG_PAGE_BYTES);
    int fd = raw_open(&rig, 5);
    uint64_t start = rig_now_ms();
    RIG_UNTIL(rig.base, rig.d.n_down == 1);
    assert_true(rig_now_ms() - start >= 1900);
    assert_non_null(strstr(rig.d.why, "the peer was silent for "));
    close(fd);
    /* The other one had nothing to say either, but pings: it is alive. */
    struct bt_kv_msg msg = rig_hello(5);
    rig.p.ops->send(rig.p.links, 3, &msg);
    RIG_UNTIL(rig.base, rig.d.n_messages == 1);
    assert_int_equal(rig.p.n_down, 0);
    rig_close(&rig);
}

static void test_a_peer_that_does_not_read_control_is_cut(void **state) {
    (void)state;
    struct rig rig = {0};
    rig_open(&rig, "tcp", RIG_PAGE_BYTES);
    int fd = raw_open(&rig, 5);
    struct bt_kv_msg msg = {.type = BT_KV_COMMITTED, .ticket = {1, 1}};
    uint32_t n = 0;
    while (!rig.d.n_down && n < 1000000) {
        for (int i = 0; i < 1000; i++, n++)
            rig.d.ops->send(rig.d.links, rig.d.link, &msg);
        event_base_loop(rig.base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
    }
    assert_int_equal(rig.d.n_down, 1);
    assert_non_null(strstr(rig.d.why, "does not read"));
    close(fd);
    rig_close(&rig);
}

static void test_a_slow_reader_holds_back_only_its_own_frames(void **state) {
    (void)state;
    struct rig rig = {0};
    struct bt_fingerprint layout = rig_layout();
    struct bt_error err;
    rig_open(&rig, "tcp", RIG_PAGE_BYTES);
    /* A decode worker that reads nothing: a raw socket. */
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t n = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(!bind(listener, (struct sockaddr *)&at, n) && !listen(listener, 1));
    assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &n), 0);
    char address[BT_ADDRESS_BYTES];
    snprintf(address, sizeof address, "127.0.0.1:%u", ntohs(at.sin_port));
    struct rig_side p2;
    rig_side_init(&p2, rig.base, "tcp", true, 4, RIG_PAGE_BYTES, &layout);
    assert_int_equal(p2.ops->dial(p2.links, 0, address, (struct bt_id){9, 9}, &err), BT_OK);
    int fd = accept(listener, NULL, NULL);
    assert_true(fd >= 0);
    struct bt_kv_control c = {.type = BT_KV_CONTROL_WELCOME, .welcome = {{9, 9}, 1}};
    uint8_t unit[BT_KV_UNIT_BYTES_MAX];
    raw_send(fd, unit, bt_kv_control_pack(&c, unit));
    RIG_UNTIL(rig.base, p2.n_up);
    for (uint32_t i = 0; i < 200; i++)
        rig_offer(&p2, 0, 0, 0, 21); /* 52 MB */
    p2.ops->pump(p2.links, 0);
    uint32_t before = 0;
    uint64_t since = rig_now_ms();
    while (rig_now_ms() - since < 200) { /* until no more goes into the socket */
        event_base_loop(rig.base, EVLOOP_ONCE);
        if (p2.next_out != before)
            since = rig_now_ms();
        before = p2.next_out;
    }
    assert_true(p2.next_out < 200);
    assert_true(p2.next_out <= p2.n_done + 1); /* one frame at a time is pulled */
    struct bt_kv_msg msg = rig_hello(5);
    rig.p.ops->send(rig.p.links, 3, &msg);
    RIG_UNTIL(rig.base, rig.d.n_messages == 1);
    /* Now it reads: everything comes. */
    static uint8_t sink[1 << 20];
    uint64_t n_read = 0;
    while (p2.n_done < 200) {
        event_base_loop(rig.base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
        ssize_t got = recv(fd, sink, sizeof sink, MSG_DONTWAIT);
        n_read += got > 0 ? (uint64_t)got : 0;
    }
    assert_true(n_read > 200ull * 20 * RIG_PAGE_BYTES / 2);
    assert_int_equal(p2.n_down, 0);
    rig_side_fini(&p2);
    close(fd);
    close(listener);
    rig_close(&rig);
}

static void test_close_sends_what_was_queued(void **state) {
    (void)state;
    struct rig rig = {0};
    rig_open(&rig, "tcp", RIG_PAGE_BYTES);
    for (uint64_t i = 0; i < 50; i++) {
        struct bt_kv_msg msg = rig_hello(i);
        rig.p.ops->send(rig.p.links, 3, &msg);
    }
    rig.p.ops->close(rig.p.links, 3);
    assert_int_equal(rig.p.n_down, 0);
    RIG_UNTIL(rig.base, rig.p.n_down == 1 && rig.d.n_down == 1);
    assert_int_equal(rig.d.n_messages, 50);
    assert_string_equal(rig.p.why, "closed");
    assert_string_equal(rig.d.why, "the peer closed the connection");
    /* The number is free again. */
    rig.p.n_down = rig.p.n_up = 0;
    rig_dial(&rig);
    RIG_UNTIL(rig.base, rig.p.n_up == 1);
    rig_close(&rig);
}

static void test_a_worker_that_dials_again_replaces_its_old_connection(void **state) {
    (void)state;
    struct rig rig = {0};
    rig_open(&rig, "tcp", RIG_PAGE_BYTES);
    int first = raw_open(&rig, 5), second = raw_open(&rig, 5);
    assert_int_equal(rig.d.n_down, 1);
    assert_non_null(strstr(rig.d.why, "opened a new connection"));
    uint8_t bytes[256];
    size_t n = 0;
    RIG_UNTIL(rig.base, !raw_read(first, bytes, &n, sizeof bytes));
    close(first);
    close(second);
    RIG_UNTIL(rig.base, rig.d.n_down == 2);
    rig_close(&rig);
}

static void test_there_are_no_more_links_than_the_bound(void **state) {
    (void)state;
    struct rig rig = {0};
    int fds[BT_MAX_LINKS];
    uint8_t unit[BT_KV_UNIT_BYTES_MAX];
    rig_open(&rig, "tcp", RIG_PAGE_BYTES); /* one */
    for (uint32_t i = 1; i < BT_MAX_LINKS; i++)
        fds[i] = raw_open(&rig, i);
    int fd = raw_connect(&rig.d);
    raw_send(fd, unit, raw_join(unit, &rig.d, 1000));
    uint8_t heard[1024];
    size_t n_heard = 0;
    RIG_UNTIL(rig.base, raw_read(fd, heard, &n_heard, sizeof heard) && n_heard > 48);
    struct bt_kv_control c;
    struct bt_error err;
    assert_int_equal(bt_kv_control_unpack(heard + 48, n_heard - 48, &c, &err), BT_OK);
    assert_int_equal(c.type, BT_KV_CONTROL_REFUSED);
    assert_non_null(strstr(c.refused, "has 64 KV links, which is the most"));
    close(fd);
    for (uint32_t i = 1; i < BT_MAX_LINKS; i++)
        close(fds[i]);
    RIG_UNTIL(rig.base, rig.d.n_down == BT_MAX_LINKS - 1);
    rig_close(&rig);
}

static void test_kinds_are_found_by_name(void **state) {
    (void)state;
    struct bt_fingerprint layout = rig_layout();
    struct event_base *base = event_base_new();
    struct bt_error err = {0};
    struct bt_kv_links *links = NULL;
    assert_string_equal(bt_kv_link_find("tcp")->name, "tcp");
    assert_string_equal(bt_kv_link_find("local")->name, "local");
    assert_null(bt_kv_link_find("pigeon"));
    struct bt_kv_links_config config = {
        .base = base, .fingerprint = layout, .page_bytes = 1, .listen = "127.0.0.1:99999"};
    assert_int_equal(bt_kv_link_find("tcp")->create(&config, &links, &err), BT_E_INVALID);
    config.listen = "192.0.2.1:0"; /* not an address of this machine */
    assert_int_equal(bt_kv_link_find("tcp")->create(&config, &links, &err), BT_E_IO);
    assert_non_null(strstr(err.text, "cannot listen for KV links on 192.0.2.1:0"));
    assert_null(links);
    event_base_free(base);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_link_comes_up_and_speaks_both_ways),
        cmocka_unit_test(test_frames_land_byte_for_byte),
        cmocka_unit_test(test_control_stands_before_the_next_frame_and_behind_pulled_ones),
        cmocka_unit_test(test_another_layout_or_incarnation_is_refused_by_name),
        cmocka_unit_test(test_a_dial_that_cannot_be_fails),
        cmocka_unit_test(test_a_name_is_dialled),
        cmocka_unit_test(test_a_peer_that_never_answers_is_given_up_after_a_second),
        cmocka_unit_test(test_a_peer_killed_in_mid_frame_ends_the_receive_first),
        cmocka_unit_test(test_a_stream_cut_at_every_byte_leaves_nothing_open),
        cmocka_unit_test(test_a_peer_that_breaks_a_rule_is_closed_and_counted),
        cmocka_unit_test(test_refused_frames_are_read_and_dropped),
        cmocka_unit_test(test_a_cut_lease_lands_no_further_byte),
        cmocka_unit_test(test_a_silent_peer_is_dead_after_two_seconds),
        cmocka_unit_test(test_a_peer_that_does_not_read_control_is_cut),
        cmocka_unit_test(test_a_slow_reader_holds_back_only_its_own_frames),
        cmocka_unit_test(test_close_sends_what_was_queued),
        cmocka_unit_test(test_a_worker_that_dials_again_replaces_its_old_connection),
        cmocka_unit_test(test_there_are_no_more_links_than_the_bound),
        cmocka_unit_test(test_kinds_are_found_by_name),
    };
    bt_log_set_level(BT_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

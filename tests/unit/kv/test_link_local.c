/* The in-process KV link: the same calls as over TCP, and bytes that land apart from control. */
#include "link_rig.h"

#include "common/kv/kv_link_local.h"

static void offer_all(struct rig *rig) {
    for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
        for (uint32_t page = 0; page < RIG_PAGES; page++)
            rig_fill(&rig->p, layer, page, 1);
        rig_offer(&rig->p, 0, layer, 0, RIG_PAGES);
    }
}

static void test_frames_and_messages_arrive(void **state) {
    (void)state;
    static const uint32_t sizes[] = {RIG_PAGE_BYTES, 100, 2 * BT_KV_FRAME_BYTES + 5};
    for (int i = 0; i < 3; i++) {
        struct rig rig = {0};
        rig_open(&rig, "local", sizes[i]);
        assert_true(bt_id_equal(rig.p.peer, rig.d.incarnation));
        assert_true(bt_id_equal(rig.d.peer, rig.p.incarnation));
        offer_all(&rig);
        rig.p.ops->pump(rig.p.links, 3);
        struct bt_kv_msg msg = rig_hello(1);
        rig.p.ops->send(rig.p.links, 3, &msg);
        RIG_UNTIL(rig.base, rig.d.n_whole == rig.p.n_out && rig.d.n_messages == 1);
        assert_int_equal(rig.p.n_done, rig.p.n_out);
        assert_int_equal(rig.d.n_bad_sums, 0);
        assert_memory_equal(rig.p.memory, rig.d.memory, (size_t)RIG_LAYERS * RIG_PAGES * sizes[i]);
        rig_close(&rig);
    }
}

static void test_control_overtakes_bytes_but_no_announcement(void **state) {
    (void)state;
    struct rig rig = {0};
    const struct bt_kv_local_timing slow_bulk = {.control_us = 1000, .bulk_us = 30000};
    rig_open(&rig, "local", RIG_PAGE_BYTES);
    bt_kv_link_local_set_timing(rig.p.links, &slow_bulk);
    rig_fill(&rig.p, 0, 0, 1);
    rig_offer(&rig.p, 0, 0, 0, 21);
    rig.p.ops->pump(rig.p.links, 3);
    RIG_UNTIL(rig.base, rig.p.next_out == 1);
    struct bt_kv_msg msg = rig_hello(1);
    rig.p.ops->send(rig.p.links, 3, &msg);
    RIG_UNTIL(rig.base, rig.d.n_messages == 1);
    assert_int_equal(rig.d.n_begun, 1);
    assert_int_equal(rig.d.n_whole, 0);
    assert_int_equal(rig.p.n_done, 0); /* the sender's page is still read */
    /* What stands in the page when the bytes move is what arrives: the sum no longer fits. */
    rig_page(&rig.p, 0, 0)[7] ^= 1;
    RIG_UNTIL(rig.base, rig.d.n_whole == 1);
    assert_int_equal(rig.d.n_bad_sums, 1);
    assert_int_equal(rig.p.n_done, 1);
    rig_close(&rig);
}

static void test_an_announcement_may_overtake_control(void **state) {
    (void)state;
    struct rig rig = {0};
    const struct bt_kv_local_timing slow_control = {.control_us = 30000};
    rig_open(&rig, "local", RIG_PAGE_BYTES);
    bt_kv_link_local_set_timing(rig.p.links, &slow_control);
    struct bt_kv_msg msg = rig_hello(1);
    rig.p.ops->send(rig.p.links, 3, &msg);
    rig_offer(&rig.p, 0, 0, 0, 5);
    rig.p.ops->pump(rig.p.links, 3);
    RIG_UNTIL(rig.base, rig.d.n_messages == 1);
    assert_int_equal(rig.d.frames_before_message[0], 1);
    rig_close(&rig);
}

static void test_a_cut_stops_no_byte_that_is_on_its_way(void **state) {
    (void)state;
    struct rig rig = {0};
    const struct bt_kv_local_timing slow_bulk = {.bulk_us = 30000};
    rig_open(&rig, "local", RIG_PAGE_BYTES);
    bt_kv_link_local_set_timing(rig.p.links, &slow_bulk);
    rig_fill(&rig.p, 0, 0, 1);
    rig_offer(&rig.p, 0, 0, 0, 1);
    rig.p.ops->pump(rig.p.links, 3);
    RIG_UNTIL(rig.base, rig.d.n_begun == 1);
    rig.d.ops->cut(rig.d.links, rig.d.link, 0);
    assert_int_equal(rig.d.n_broken, 0);
    RIG_UNTIL(rig.base, rig.d.n_broken == 1);
    assert_true(rig_equal(&rig, 0, 0)); /* why a page is quarantined until then */
    assert_int_equal(rig.p.n_done, 1);
    rig_close(&rig);
}

static void test_a_broken_link_ends_its_receives_first(void **state) {
    (void)state;
    struct rig rig = {0};
    const struct bt_kv_local_timing slow = {.control_us = 5000, .bulk_us = 30000};
    rig_open(&rig, "local", RIG_PAGE_BYTES);
    bt_kv_link_local_set_timing(rig.p.links, &slow);
    offer_all(&rig);
    rig.p.ops->pump(rig.p.links, 3);
    RIG_UNTIL(rig.base, rig.d.n_begun == 8);
    struct bt_kv_msg msg = rig_hello(1);
    rig.p.ops->send(rig.p.links, 3, &msg);
    bt_kv_link_local_break(rig.d.links, rig.d.link, "pulled out");
    assert_int_equal(rig.p.n_down + rig.d.n_down, 2); /* rig_down checks the receives */
    assert_string_equal(rig.p.why, "pulled out");
    assert_int_equal(rig.d.n_broken, 8);
    assert_int_equal(rig_page(&rig.d, 0, 0)[0], 0);
    /* Nothing of it comes later, and the number can be used again. */
    rig.p.n_up = rig.p.n_down = 0;
    rig.d.n_up = 0;
    rig.p.n_out = rig.p.next_out = rig.p.n_done = 0;
    rig_dial(&rig);
    RIG_UNTIL(rig.base, rig.p.n_up && rig.d.n_up);
    assert_int_equal(rig.d.n_messages, 0);
    rig_close(&rig);
}

static void test_dials_are_refused_like_over_tcp(void **state) {
    (void)state;
    static const char *const why[] = {"nothing listens on local:99", "another incarnation",
                                      "head_dim differs"};
    for (int i = 0; i < 3; i++) {
        struct rig rig = {0};
        struct bt_fingerprint layout = rig_layout();
        struct bt_error err;
        rig_open_base(&rig);
        rig_side_init(&rig.d, rig.base, "local", false, 1, RIG_PAGE_BYTES, &layout);
        layout.head_dim *= i == 2 ? 2 : 1;
        rig_side_init(&rig.p, rig.base, "local", true, 2, RIG_PAGE_BYTES, &layout);
        struct bt_id peer = rig.d.incarnation;
        peer.lo += i == 1;
        const char *address = i == 0 ? "local:99" : rig.d.ops->address(rig.d.links);
        assert_int_equal(rig.p.ops->dial(rig.p.links, 3, address, peer, &err), BT_OK);
        assert_int_equal(rig.p.n_down, 0);
        RIG_UNTIL(rig.base, rig.p.n_down == 1);
        assert_non_null(strstr(rig.p.why, why[i]));
        assert_int_equal(rig.d.n_up + rig.d.n_down, 0);
        rig_close(&rig);
    }
}

static void test_close_delivers_what_was_sent(void **state) {
    (void)state;
    struct rig rig = {0};
    const struct bt_kv_local_timing slow = {.control_us = 3000, .bulk_us = 20000};
    rig_open(&rig, "local", RIG_PAGE_BYTES);
    bt_kv_link_local_set_timing(rig.p.links, &slow);
    rig_offer(&rig.p, 0, 0, 0, 21);
    rig.p.ops->pump(rig.p.links, 3);
    RIG_UNTIL(rig.base, rig.d.n_begun == 1);
    struct bt_kv_msg msg = rig_hello(1);
    rig.p.ops->send(rig.p.links, 3, &msg);
    rig.p.ops->close(rig.p.links, 3);
    RIG_UNTIL(rig.base, rig.p.n_down && rig.d.n_down);
    assert_int_equal(rig.d.n_messages, 1);
    assert_int_equal(rig.d.n_whole, 1);
    rig_close(&rig);
}

static void test_a_set_that_goes_takes_its_links_down(void **state) {
    (void)state;
    struct rig rig = {0};
    const struct bt_kv_local_timing slow = {.bulk_us = 1000000};
    rig_open(&rig, "local", RIG_PAGE_BYTES);
    bt_kv_link_local_set_timing(rig.p.links, &slow);
    rig_offer(&rig.p, 0, 0, 0, 21);
    rig.p.ops->pump(rig.p.links, 3);
    RIG_UNTIL(rig.base, rig.d.n_begun == 1);
    rig_side_fini(&rig.p);
    assert_int_equal(rig.d.n_down, 1);
    assert_int_equal(rig.d.n_broken, 1);
    rig_close(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frames_and_messages_arrive),
        cmocka_unit_test(test_control_overtakes_bytes_but_no_announcement),
        cmocka_unit_test(test_an_announcement_may_overtake_control),
        cmocka_unit_test(test_a_cut_stops_no_byte_that_is_on_its_way),
        cmocka_unit_test(test_a_broken_link_ends_its_receives_first),
        cmocka_unit_test(test_dials_are_refused_like_over_tcp),
        cmocka_unit_test(test_close_delivers_what_was_sent),
        cmocka_unit_test(test_a_set_that_goes_takes_its_links_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

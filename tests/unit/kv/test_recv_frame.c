/* Frames at the receiving half: which land, pieces, sums, quarantine, and all that must not land.
 */
#include "tests/unit/kv/recv_world.h"

static const struct bt_id root = {1, 1};

/* A good frame but for one field. */
static struct bt_kv_frame with(const struct world *w, size_t field, uint64_t value) {
    struct bt_kv_frame frame = frame_of(w, 0, 1, 1);
    uint32_t value32 = (uint32_t)value;
    if (field == offsetof(struct bt_kv_frame, generation))
        frame.generation = value;
    else
        memcpy((uint8_t *)&frame + field, &value32, sizeof value32);
    return frame;
}
#define WITH(member, value) with(&w, offsetof(struct bt_kv_frame, member), value)

static void test_hostile_frames_do_not_land(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    const struct bt_kv_recv_counters *c = counters(&w);
    arm(&w, 1);
    refuse_frame(&w, LINK, WITH(lease, 2), &c->refused_range);
    refuse_frame(&w, LINK, WITH(lease, UINT32_MAX), &c->refused_range);
    refuse_frame(&w, LINK, WITH(lease, 1), &c->refused_generation);
    refuse_frame(&w, LINK, WITH(generation, w.generation + 1), &c->refused_generation);
    refuse_frame(&w, LINK, WITH(generation, 0), &c->refused_generation);
    refuse_frame(&w, LINK + 1, frame_of(&w, 0, 1, 1), &c->refused_link);
    refuse_frame(&w, LINK, WITH(layer, N_LAYERS), &c->refused_range);
    refuse_frame(&w, LINK, WITH(layer, UINT32_MAX), &c->refused_range);
    refuse_frame(&w, LINK, WITH(first_page, PROMPT_PAGES), &c->refused_range);
    refuse_frame(&w, LINK, WITH(first_page, UINT32_MAX), &c->refused_range);
    refuse_frame(&w, LINK, frame_of(&w, 0, 1, PROMPT_PAGES), &c->refused_range);
    refuse_frame(&w, LINK, WITH(n_pages, 0), &c->refused_range);
    refuse_frame(&w, LINK, WITH(n_pages, BT_KV_FRAME_PAGES + 1), &c->refused_range);
    refuse_frame(&w, LINK, WITH(n_pages, 2), &c->refused_range); /* its length says one */
    refuse_frame(&w, LINK, WITH(length, 0), &c->refused_range);
    refuse_frame(&w, LINK, WITH(length, PAGE_BYTES + 1), &c->refused_range);
    refuse_frame(&w, LINK, WITH(length, UINT32_MAX), &c->refused_range);
    refuse_frame(&w, LINK, WITH(offset, 1), &c->refused_range);
    refuse_frame(&w, LINK, WITH(offset, UINT32_MAX), &c->refused_range);
    struct bt_kv_frame two = frame_of(&w, 0, 0, 2), late_piece = WITH(offset, 8);
    two.offset = 8;
    refuse_frame(&w, LINK, two, &c->refused_range);
    late_piece.length = PAGE_BYTES - 8;
    refuse_frame(&w, LINK, late_piece, &c->refused_order);
    struct bt_kv_landing landing;
    struct bt_kv_frame good = frame_of(&w, 0, 1, 1);
    land(&w, &good, &landing);
    assert_int_equal(landing.pages[0], w.pages[1]);
    refuse_frame(&w, LINK, good, &c->refused_order); /* while it is on its way */
    finish_landing(&w, &landing, true);
    refuse_frame(&w, LINK, good, &c->refused_order); /* and when it is there */
    refuse_frame(&w, LINK, frame_of(&w, 0, 0, 3), &c->refused_order);
    assert_int_equal(c->bytes, PAGE_BYTES);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_CANCELLED);
    drain(&w);
    refuse_frame(&w, LINK, good, &c->refused_generation);
    close_world(&w);
}

static void test_a_large_page_comes_in_pieces_in_order(void **state) {
    (void)state;
    struct world w;
    open_world(&w, 2 * BT_KV_FRAME_BYTES + 100);
    arm(&w, 1);
    uint32_t lengths[] = {BT_KV_FRAME_BYTES, BT_KV_FRAME_BYTES, 100};
    struct bt_kv_landing landings[3];
    for (uint32_t layer = 0; layer < N_LAYERS; layer++)
        for (uint32_t page = 0; page < PROMPT_PAGES; page++) {
            for (uint32_t i = 0, offset = 0; i < 3; offset += lengths[i++]) {
                struct bt_kv_frame frame = frame_of(&w, layer, page, 1);
                frame.offset = offset + 1;
                frame.length = lengths[i] - 1;
                refuse_frame(&w, LINK, frame, &counters(&w)->refused_order);
                frame.offset = offset;
                frame.length = lengths[i];
                land(&w, &frame, &landings[i]);
            }
            for (uint32_t i = 0; i < 3; i++)
                finish_landing(&w, &landings[i], true);
        }
    say(&w, LINK, commit_of(&w, 1));
    check_committed(&w, 0);
    close_world(&w);
}

/* The sum was made before the first piece was there: it is not believed. */
static void test_the_last_piece_must_end_last(void **state) {
    (void)state;
    struct world w;
    open_world(&w, BT_KV_FRAME_BYTES + 100);
    arm(&w, 1);
    struct bt_kv_landing first, last;
    struct bt_kv_frame frame = frame_of(&w, 0, 0, 1);
    frame.length = BT_KV_FRAME_BYTES;
    land(&w, &frame, &first);
    frame.offset = BT_KV_FRAME_BYTES;
    frame.length = 100;
    land(&w, &frame, &last);
    finish_landing(&w, &last, true);
    assert_int_equal(w.actions[0].type, BT_KV_RECV_CUT);
    assert_int_equal(sent(&w, 1, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_CHECKSUM);
    check_aborted(&w, 2, BT_KV_REASON_CHECKSUM);
    finish_landing(&w, &first, true);
    close_world(&w);
}

static void test_a_wrong_sum_ends_the_lease(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    arm(&w, 1);
    struct bt_kv_frame frame = frame_of(&w, 0, 0, 3);
    struct bt_kv_landing landing;
    land(&w, &frame, &landing);
    uint64_t carried[] = {1, 2, 3}, computed[] = {1, 2, 4};
    bt_kv_recv_frame_end(w.recv, w.now_us, &landing, true, carried, computed);
    drain(&w);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_CHECKSUM);
    check_aborted(&w, 1, BT_KV_REASON_CHECKSUM);
    assert_int_equal(counters(&w)->refused_checksum, 1);
    assert_int_equal(bt_kv_pool_available(w.pool), N_PAGES);
    close_world(&w);
}

static void test_pages_are_quarantined_while_a_receive_is_in_flight(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    arm(&w, 1);
    struct bt_kv_landing old, young;
    struct bt_kv_frame frame = frame_of(&w, 0, 0, 2);
    land(&w, &frame, &old);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_PREEMPTED);
    drain(&w);
    assert_int_equal(w.actions[0].type, BT_KV_RECV_CUT);
    assert_int_equal(w.actions[0].link, LINK);
    assert_int_equal(w.actions[0].lease, w.lease);
    assert_int_equal(sent(&w, 1, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_PREEMPTED);
    assert_int_equal(w.n_actions, 2);
    assert_int_equal(bt_kv_page_state(w.pool, old.pages[0]), BT_PAGE_QUARANTINED);
    assert_int_equal(bt_kv_page_state(w.pool, old.pages[1]), BT_PAGE_QUARANTINED);
    arm(&w, 2); /* the same slot, other pages, another generation */
    assert_int_equal(w.lease, old.lease);
    for (uint32_t i = 0; i < PROMPT_PAGES; i++)
        assert_true(w.pages[i] != old.pages[0] && w.pages[i] != old.pages[1]);
    frame = frame_of(&w, 0, 0, 2);
    land(&w, &frame, &young);
    finish_landing(&w, &old, true); /* it frees its pages and proves nothing about the new lease */
    assert_int_equal(bt_kv_page_state(w.pool, old.pages[0]), BT_PAGE_FREE);
    assert_int_equal(counters(&w)->bytes, 0);
    finish_landing(&w, &young, true);
    assert_int_equal(counters(&w)->bytes, 2 * PAGE_BYTES);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_CANCELLED);
    close_world(&w);
}

static void test_a_frame_that_breaks_off_completes_nothing(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    arm(&w, 1);
    struct bt_kv_landing landing;
    struct bt_kv_frame frame = frame_of(&w, 0, 0, 1);
    land(&w, &frame, &landing);
    bt_kv_recv_frame_end(w.recv, w.now_us, &landing, false, NULL, NULL);
    drain(&w);
    assert_int_equal(w.n_actions, 0);
    assert_int_equal(counters(&w)->bytes, 0);
    say(&w, LINK, commit_of(&w, 1));
    assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_INCOMPLETE);
    check_aborted(&w, 1, BT_KV_REASON_INCOMPLETE);
    close_world(&w);
}

static void test_a_prefix_that_is_here_is_not_sent(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    int32_t tokens[BT_PAGE_TOKENS] = {5};
    assert_true(bt_kv_hold_reserve(w.pool, &w.hold, 1));
    bt_kv_hold_bind(w.pool, &w.hold, 1, BT_PAGE_FILLING);
    bt_kv_page_move(w.pool, w.pages[0], BT_PAGE_LIVE);
    bt_kv_pool_publish(w.pool, &w.hold, 0, root, tokens);
    bt_kv_hold_release(w.pool, &w.hold);
    assert_int_equal(bt_kv_hold_pin(w.pool, &w.hold, root, tokens, 1), 1);
    assert_true(bt_kv_hold_reserve(w.pool, &w.hold, PROMPT_PAGES - 1 + 2)); /* two to grow into */
    assert_int_equal(expect(&w, 1), BT_OK);
    hello(&w, LINK, 1);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_GRANT)->pages_held, 1);
    check_grant_of(&w, 0);
    refuse_frame(&w, LINK, frame_of(&w, 0, 0, 1), &counters(&w)->refused_range);
    refuse_frame(&w, LINK, frame_of(&w, 0, 0, 2), &counters(&w)->refused_range);
    fill(&w);
    struct bt_kv_msg msg = commit_of(&w, 1);
    assert_int_equal(msg.n_sums, (PROMPT_PAGES - 1) * N_LAYERS);
    say(&w, LINK, msg);
    check_committed(&w, 0);
    assert_int_equal(w.hold.n_reserved, 2);
    close_world(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile_frames_do_not_land),
        cmocka_unit_test(test_a_large_page_comes_in_pieces_in_order),
        cmocka_unit_test(test_the_last_piece_must_end_last),
        cmocka_unit_test(test_a_wrong_sum_ends_the_lease),
        cmocka_unit_test(test_pages_are_quarantined_while_a_receive_is_in_flight),
        cmocka_unit_test(test_a_frame_that_breaks_off_completes_nothing),
        cmocka_unit_test(test_a_prefix_that_is_here_is_not_sent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

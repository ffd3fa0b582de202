/* Further choices: they wait for their leader's cache, go where it is, and outlive their leader. */
#include "harness.h"

enum { D2 = 2 };

static bool waits(const struct bt_request *req) {
    return req->state == BT_REQUEST_QUEUED && req->leader != BT_NO_REQUEST;
}

static uint64_t placed(struct harness *h, enum bt_placement why) {
    return bt_router_core_counters(h->core)->placed[why];
}

static void end_of(struct harness *h, struct bt_request *req) {
    bt_router_core_cancel(h->core, h->now_us, req);
    drain(h);
}

static void test_one_prefill_and_one_transfer_for_all(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *leader = submit(h, 40, 8), *followers[3];
    for (int i = 0; i < 3; i++) {
        followers[i] = submit_follower(h, leader, 8);
        assert_true(waits(followers[i]));
    }
    /* The prompt on its way is not there yet: not with its pages, not with P's token. */
    reserved(h, D, key_of(leader), true, 0);
    token(h, P, key_of(leader), 0, 500, BT_FINISH_NONE);
    const uint32_t slots[] = {P, D};
    pass(h, 500, slots, 2);
    for (int i = 0; i < 3; i++)
        assert_true(waits(followers[i]));
    token(h, D, key_of(leader), 0, 500, BT_FINISH_NONE);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(followers[i]->state, BT_REQUEST_RESERVING);
        assert_int_equal(followers[i]->placement, BT_PLACE_LOCAL_CHOICE);
        /* 3 pages of prompt and 0 to grow: 2 are held. */
        assert_int_equal(followers[i]->pages_asked, 1);
        struct sent *s = sent_nth(h, D, BT_MSG_RESERVE, 1 + (uint32_t)i);
        assert_true(s->msg.work.prefill_here);
        assert_int_equal(s->msg.work.key.request, followers[i]->id);
    }
    assert_int_equal(placed(h, BT_PLACE_SPLIT), 1);
    assert_int_equal(placed(h, BT_PLACE_LOCAL_CHOICE), 3);
    assert_null(sent_nth(h, P, BT_MSG_PREFILL, 1));
    /* One that comes now finds it there as well. */
    struct bt_request *late = submit_follower(h, leader, 8);
    assert_int_equal(late->placement, BT_PLACE_LOCAL_CHOICE);
    harness_finish(h);
}

static void test_a_leader_computed_by_its_decode_worker(void **state) {
    (void)state;
    struct bt_router_config config = small_config();
    config.disaggregate = BT_DISAGGREGATE_NEVER;
    struct harness *h = harness_start(&config);
    struct bt_request *leader = submit(h, 40, 1), *follower = submit_follower(h, leader, 8);
    assert_true(waits(follower));
    token(h, D, key_of(leader), 0, 500, BT_FINISH_LENGTH);
    assert_int_equal(h->n_ends, 1);
    assert_int_equal(follower->placement, BT_PLACE_LOCAL_CHOICE);
    harness_finish(h);
}

static void test_no_room_where_the_cache_is(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *leader = submit(h, 40, 200), *follower = submit_follower(h, leader, 200);
    reserved(h, D, key_of(leader), true, 0);
    attach(h, D2, "d1", 30, BT_ROLE_DECODE);
    /* Of the prompt's 3 pages 2 are there already: 5 must be free, 1 and 4 to grow. */
    status_free(h, D, 4);
    token(h, D, key_of(leader), 0, 500, BT_FINISH_NONE);
    assert_int_equal(follower->placement, BT_PLACE_SPLIT);
    assert_string_equal(follower->d_name, "d1");
    harness_finish(h);

    h = harness_start(NULL);
    leader = submit(h, 40, 200), follower = submit_follower(h, leader, 200);
    reserved(h, D, key_of(leader), true, 0);
    attach(h, D2, "d1", 30, BT_ROLE_DECODE);
    status_free(h, D, 5);
    token(h, D, key_of(leader), 0, 500, BT_FINISH_NONE);
    assert_int_equal(follower->placement, BT_PLACE_LOCAL_CHOICE);
    assert_string_equal(follower->d_name, "d0");
    /* Refused there, it is placed like any other. */
    reserved(h, D, key_of(follower), false, BT_END_FULL);
    const uint32_t slots[] = {P, D, D2};
    pass(h, 300, slots, 3);
    assert_int_equal(follower->attempt, 2);
    assert_int_equal(follower->placement, BT_PLACE_SPLIT);
    harness_finish(h);
}

/* Without a word of the prefix table it is believed for a second only. */
static void test_what_was_there_may_be_gone(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *leader = submit(h, 40, 200), *follower = submit_follower(h, leader, 200);
    reserved(h, D, key_of(leader), true, 0);
    status_free(h, D, 0);
    token(h, D, key_of(leader), 0, 500, BT_FINISH_NONE);
    assert_int_equal(follower->state, BT_REQUEST_QUEUED);
    assert_int_equal(follower->leader, BT_NO_REQUEST);
    for (int i = 0; i < 25; i++) {
        h->now_us += 50000;
        status_free(h, D, 0);
        status_free(h, P, 256);
        bt_router_core_tick(h->core, h->now_us);
        drain(h);
    }
    status_free(h, D, 100);
    assert_int_equal(follower->placement, BT_PLACE_SPLIT);
    harness_finish(h);
}

static void test_a_lost_attempt_of_the_leader(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *leader = submit(h, 40, 8), *follower = submit_follower(h, leader, 8);
    reserved(h, D, key_of(leader), true, 0);
    ended(h, D, key_of(leader), BT_END_CHECKSUM);
    assert_int_equal(leader->state, BT_REQUEST_QUEUED);
    assert_true(waits(follower));
    const uint32_t slots[] = {P, D};
    pass(h, 300, slots, 2);
    assert_int_equal(leader->attempt, 2);
    assert_true(waits(follower));
    token(h, D, key_of(leader), 0, 500, BT_FINISH_NONE);
    assert_int_equal(follower->placement, BT_PLACE_LOCAL_CHOICE);
    harness_finish(h);
}

static void test_an_heir_leads_the_others(void **state) {
    (void)state;
    for (int queued = 0; queued < 2; queued++) {
        struct harness *h = harness_start(NULL);
        if (queued)
            status_free(h, D, 0);
        struct bt_request *leader = submit(h, 40, 8), *f[3];
        for (int i = 0; i < 3; i++)
            f[i] = submit_follower(h, i == 1 ? f[0] : leader, 8);
        end_of(h, leader);
        status_free(h, D, 256);
        assert_int_equal(h->n_ends, 1);
        assert_int_equal(f[0]->placement, BT_PLACE_SPLIT);
        assert_int_equal(f[0]->state, BT_REQUEST_RESERVING);
        assert_true(waits(f[1]) && waits(f[2]));
        /* The leader's slot is used again, and nobody takes the newcomer for it. */
        struct bt_request *other = submit(h, 20, 8);
        assert_ptr_equal(other, leader);
        token(h, D, key_of(other), 0, 500, BT_FINISH_NONE);
        assert_true(waits(f[1]) && waits(f[2]));
        /* One in the middle leaves. */
        end_of(h, f[1]);
        token(h, D, key_of(f[0]), 0, 500, BT_FINISH_NONE);
        assert_int_equal(f[2]->placement, BT_PLACE_LOCAL_CHOICE);
        assert_int_equal(placed(h, BT_PLACE_LOCAL_CHOICE), 1);
        harness_finish(h);
    }
}

static void test_a_prompt_that_kills_is_not_tried_by_others(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    attach(h, D2, "d1", 30, BT_ROLE_DECODE);
    struct bt_request *leader = submit(h, 40, 8);
    submit_follower(h, leader, 8);
    submit_follower(h, leader, 8);
    uint32_t first = leader->d_name[1] == '0' ? D : D2, second = first == D ? D2 : D;
    stream_end(h, first);
    const uint32_t rest[] = {P, second};
    pass(h, 350, rest, 2);
    assert_int_equal(leader->attempt, 2);
    stream_end(h, second);
    pass(h, 350, rest, 1);
    assert_int_equal(h->n_ends, 3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(h->ends[i].status, BT_E_PEER_GONE);
    assert_int_equal(bt_router_core_counters(h->core)->poisoned, 3);
    harness_finish(h);
}

static void test_their_deadlines(void **state) {
    (void)state;
    /* The leader has no place: they wait as long as it may, and no longer. */
    struct harness *h = harness_start(NULL);
    status_free(h, D, 0);
    struct bt_request *leader = submit(h, 40, 8);
    submit_follower(h, leader, 8);
    for (int i = 0; i < 601; i++) {
        h->now_us += 50000;
        status_free(h, D, 0);
        status_free(h, P, 256);
        bt_router_core_tick(h->core, h->now_us);
        drain(h);
    }
    assert_int_equal(h->n_ends, 2);
    assert_int_equal(h->ends[0].status, BT_E_DEADLINE);
    assert_int_equal(h->ends[1].status, BT_E_DEADLINE);
    harness_finish(h);

    /* The leader's prompt takes longer than the queue's bound: that is no wait for a place. */
    h = harness_start(NULL);
    leader = submit(h, 40, 8);
    struct bt_request *follower = submit_follower(h, leader, 8);
    reserved(h, D, key_of(leader), true, 0);
    const uint32_t slots[] = {P, D};
    pass(h, 70000, slots, 2);
    assert_int_equal(h->n_ends, 0);
    assert_true(waits(follower));
    /* Its own deadline holds. */
    struct bt_submit what = submit_of(sample_prompt, 40, 8);
    what.leader = leader;
    what.deadline_ms = 1000;
    submit_this(h, &what);
    pass(h, 1100, slots, 2);
    assert_int_equal(h->n_ends, 1);
    assert_int_equal(h->ends[0].status, BT_E_DEADLINE);
    token(h, D, key_of(leader), 0, 500, BT_FINISH_NONE);
    assert_int_equal(follower->placement, BT_PLACE_LOCAL_CHOICE);
    harness_finish(h);
}

static void test_others_do_not_wait_behind_them(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *leader = submit(h, 40, 8), *follower = submit_follower(h, leader, 8);
    struct bt_request *other = submit(h, 20, 8);
    assert_true(waits(follower));
    assert_int_equal(other->state, BT_REQUEST_RESERVING);
    harness_finish(h);
}

static void test_a_group_is_bounded(void **state) {
    (void)state;
    struct bt_router_config config = small_config();
    config.max_requests = config.max_queued = 200;
    struct harness *h = harness_start(&config);
    struct bt_request *leader = submit(h, 40, 8), *last = NULL;
    for (int i = 0; i < BT_CHOICES; i++)
        last = submit_follower(h, leader, 8);
    assert_true(waits(last));
    struct bt_request *over = submit_follower(h, leader, 8);
    assert_int_equal(over->placement, BT_PLACE_SPLIT);
    /* There is room again when one has left. */
    end_of(h, last);
    assert_true(waits(submit_follower(h, leader, 8)));
    harness_finish(h);
}

static void test_a_leader_that_has_ended(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    struct bt_request *leader = submit(h, 40, 8);
    end_of(h, leader);
    assert_int_equal(leader->state, BT_REQUEST_ENDED);
    struct bt_request *follower = submit_follower(h, leader, 8);
    assert_int_equal(follower->placement, BT_PLACE_SPLIT);
    harness_finish(h);
}

static void test_what_a_record_says_of_the_wait(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    status_free(h, D, 0);
    struct bt_request *req = submit(h, 40, 8);
    const uint32_t p = P;
    pass(h, 100, &p, 1);
    end_of(h, req);
    struct bt_request_record record;
    assert_true(bt_router_core_record(h->core, h->now_us, 0, &record));
    assert_int_equal(record.span_us[BT_SPAN_QUEUE], 100000);
    harness_finish(h);
}

/* A choice waits for a place as long as its leader does; the rest is its prompt being computed. */
static void test_where_a_choice_spent_its_time(void **state) {
    (void)state;
    struct harness *h = harness_start(NULL);
    status_free(h, D, 0);
    struct bt_request *leader = submit(h, 40, 2), *follower = submit_follower(h, leader, 1);
    h->now_us += 30000;
    status_free(h, D, 256);
    assert_int_equal(leader->state, BT_REQUEST_RESERVING);
    h->now_us += 200000;
    token(h, D, key_of(leader), 0, 500, BT_FINISH_NONE);
    assert_int_equal(follower->placement, BT_PLACE_LOCAL_CHOICE);
    token(h, D, key_of(leader), 1, 500, BT_FINISH_LENGTH);
    h->now_us += 1000;
    token(h, D, key_of(follower), 0, 500, BT_FINISH_LENGTH);
    struct bt_request_record record;
    assert_true(bt_router_core_record(h->core, h->now_us, 0, &record));
    assert_int_equal(record.id, follower->id);
    assert_int_equal(record.start_us[BT_SPAN_QUEUE], 30000);
    assert_int_equal(record.start_us[BT_SPAN_PREFILL], 200000);
    assert_int_equal(record.total_us, 231000);
    harness_finish(h);
}

/* The last one of a group was not alone: nothing is learnt from its long start. */
static void test_a_choice_is_no_measure(void **state) {
    (void)state;
    struct bt_router_config config = small_config();
    config.disaggregate = BT_DISAGGREGATE_NEVER;
    struct harness *h = harness_start(&config);
    const uint32_t slots[] = {P, D};
    for (int with_others = 1; with_others >= 0; with_others--) {
        for (int i = 0; i < 6; i++) {
            struct bt_request *req = submit(h, 40, 1);
            struct bt_request *follower = with_others ? submit_follower(h, req, 1) : req;
            h->now_us += 200000;
            for (struct bt_request *next = req;; next = follower) {
                struct bt_attempt key = key_of(next);
                token(h, D, key, 0, 500, BT_FINISH_LENGTH);
                ended(h, D, key, BT_END_DONE);
                if (next == follower)
                    break;
            }
            pass(h, 1500, slots, 2);
        }
        assert_int_equal(bt_router_core_ttft_target_us(h->core, 40) != 0, !with_others);
    }
    harness_finish(h);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_prefill_and_one_transfer_for_all),
        cmocka_unit_test(test_a_leader_computed_by_its_decode_worker),
        cmocka_unit_test(test_no_room_where_the_cache_is),
        cmocka_unit_test(test_what_was_there_may_be_gone),
        cmocka_unit_test(test_a_lost_attempt_of_the_leader),
        cmocka_unit_test(test_an_heir_leads_the_others),
        cmocka_unit_test(test_a_prompt_that_kills_is_not_tried_by_others),
        cmocka_unit_test(test_their_deadlines),
        cmocka_unit_test(test_others_do_not_wait_behind_them),
        cmocka_unit_test(test_a_group_is_bounded),
        cmocka_unit_test(test_a_leader_that_has_ended),
        cmocka_unit_test(test_what_a_record_says_of_the_wait),
        cmocka_unit_test(test_where_a_choice_spent_its_time),
        cmocka_unit_test(test_a_choice_is_no_measure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

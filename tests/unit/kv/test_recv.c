/* The receiving half: both orders of hello and Reserve, commits, every end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static int allocations_left = -1;
static void *failing_calloc(size_t n, size_t size) {
    if (allocations_left == 0)
        return NULL;
    if (allocations_left > 0)
        allocations_left--;
    return calloc(n, size);
}
#define calloc failing_calloc
#include "common/kv/kv_recv.c"
#include "common/kv/kv_recv_tickets.c"
#undef calloc
#include "tests/unit/kv/recv_world.h"

/* ---- life ---- */

static void test_refuses_sizes_out_of_bounds(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    struct bt_kv_recv *recv = NULL;
    struct bt_error err;
    struct bt_kv_recv_config config = config_of(w.pool, 0);
    assert_int_equal(bt_kv_recv_create(&config, &recv, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "pages of 0 bytes"));
    config = config_of(w.pool, 1);
    config.max_leases = 0;
    assert_int_equal(bt_kv_recv_create(&config, &recv, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "0 leases, must be 1 to 65536"));
    config = config_of(w.pool, 1);
    config.max_pages = BT_KV_PAGES_MAX + 1;
    assert_int_equal(bt_kv_recv_create(&config, &recv, &err), BT_E_INVALID);
    config = config_of(w.pool, 1);
    config.n_layers = 0;
    assert_int_equal(bt_kv_recv_create(&config, &recv, &err), BT_E_INVALID);
    config = config_of(w.pool, 1);
    config.max_parked = 0;
    assert_int_equal(bt_kv_recv_create(&config, &recv, &err), BT_E_INVALID);
    assert_non_null(strstr(err.text, "0 early hellos"));
    config = config_of(w.pool, 1);
    config.max_ended = 1u << 21;
    assert_int_equal(bt_kv_recv_create(&config, &recv, &err), BT_E_INVALID);
    assert_null(recv);
    bt_kv_recv_destroy(NULL);
    close_world(&w);
}

static void test_create_survives_each_failed_allocation(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    struct bt_kv_recv_config config = config_of(w.pool, PAGE_BYTES);
    int n = 0;
    for (;; n++) {
        struct bt_kv_recv *recv = NULL;
        struct bt_error err = {0};
        allocations_left = n;
        bt_status status = bt_kv_recv_create(&config, &recv, &err);
        allocations_left = -1;
        if (status == BT_OK) {
            bt_kv_recv_destroy(recv);
            break;
        }
        assert_int_equal(status, BT_E_NO_MEMORY);
        assert_non_null(strstr(err.text, "no memory"));
        assert_null(recv);
    }
    assert_int_equal(n, 8);
    close_world(&w);
}

/* ---- tickets ---- */

static void test_reserve_before_hello(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    arm(&w, 1);
    for (uint32_t i = 0; i < PROMPT_PAGES; i++)
        assert_int_equal(bt_kv_page_state(w.pool, w.pages[i]), BT_PAGE_ARMED);
    fill(&w);
    for (uint32_t i = 0; i < PROMPT_PAGES; i++)
        assert_int_equal(bt_kv_page_state(w.pool, w.pages[i]), BT_PAGE_LANDED);
    say(&w, LINK, commit_of(&w, 1));
    check_committed(&w, 0);
    assert_int_equal(bt_kv_recv_lease_bytes(w.recv, w.lease), PROMPT_PAGES * N_LAYERS * PAGE_BYTES);
    assert_int_equal(counters(&w)->bytes, PROMPT_PAGES * N_LAYERS * PAGE_BYTES);
    assert_int_equal(counters(&w)->frames, N_LAYERS);
    assert_int_equal(counters(&w)->committed, 1);
    assert_true(bt_kv_recv_is_ended(w.recv, ticket_of(1)));
    say(&w, LINK, commit_of(&w, 1)); /* asked again: the answer is the same */
    sent(&w, 0, LINK, BT_KV_COMMITTED);
    assert_int_equal(w.n_actions, 1);
    close_world(&w);
}

static void test_hello_before_reserve(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    hello(&w, LINK, 1);
    assert_int_equal(w.n_actions, 0);
    hello(&w, LINK, 1); /* it waits already */
    assert_int_equal(w.n_actions, 0);
    assert_int_equal(counters(&w)->parked, 1);
    assert_int_equal(expect(&w, 1), BT_OK);
    check_grant_of(&w, 0);
    fill(&w);
    say(&w, LINK, commit_of(&w, 1));
    check_committed(&w, 0);
    close_world(&w);
}

static void test_a_ticket_shown_by_two_workers_is_the_expected_ones(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    hello(&w, LINK + 1, 1);
    hello(&w, LINK, 1);
    assert_int_equal(w.n_actions, 0);
    assert_int_equal(expect(&w, 1), BT_OK);
    assert_int_equal(sent(&w, 0, LINK + 1, BT_KV_REFUSED)->reason, BT_KV_REASON_UNKNOWN);
    check_grant_of(&w, 1);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_CANCELLED);
    drain(&w);
    hello(&w, LINK, 2); /* in the other order: the second one comes too late */
    hello(&w, LINK + 1, 2);
    assert_int_equal(expect(&w, 2), BT_OK);
    sent(&w, 0, LINK, BT_KV_GRANT);
    assert_int_equal(sent(&w, 2, LINK + 1, BT_KV_REFUSED)->reason, BT_KV_REASON_UNKNOWN);
    close_world(&w);
}

static void test_hello_of_another_incarnation_is_refused(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    assert_int_equal(expect(&w, 1), BT_OK);
    hello(&w, LINK + 1, 1);
    assert_int_equal(sent(&w, 0, LINK + 1, BT_KV_REFUSED)->reason, BT_KV_REASON_UNKNOWN);
    assert_int_equal(w.n_actions, 1);
    assert_int_equal(counters(&w)->refused_ticket, 1);
    hello(&w, LINK, 1);
    check_grant_of(&w, 0);
    hello(&w, LINK, 1); /* one lease, one link, one hello */
    sent(&w, 0, LINK, BT_KV_REFUSED);
    hello(&w, LINK + 1, 1);
    sent(&w, 0, LINK + 1, BT_KV_REFUSED);
    fill(&w);
    say(&w, LINK, commit_of(&w, 1));
    check_committed(&w, 0);
    close_world(&w);
}

static void test_hello_of_another_prompt_ends_the_lease(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    struct bt_kv_msg wrong[2] = {
        {.type = BT_KV_HELLO, .ticket = ticket_of(1), .chain = {1, 1}, .n_tokens = N_TOKENS},
        {.type = BT_KV_HELLO, .ticket = ticket_of(2), .chain = chain, .n_tokens = N_TOKENS + 1},
    };
    assert_int_equal(expect(&w, 1), BT_OK);
    say(&w, LINK, wrong[0]);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_REFUSED)->reason, BT_KV_REASON_PROMPT);
    check_aborted(&w, 1, BT_KV_REASON_PROMPT);
    assert_int_equal(counters(&w)->refused_prompt, 1);
    say(&w, LINK, wrong[1]); /* parked first: the same */
    assert_int_equal(expect(&w, 2), BT_OK);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_REFUSED)->reason, BT_KV_REASON_PROMPT);
    check_aborted(&w, 1, BT_KV_REASON_PROMPT);
    assert_int_equal(expect(&w, 2), BT_E_INVALID);
    close_world(&w);
}

static void test_parked_hellos_are_few_and_do_not_stay(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    hello(&w, LINK, 1);
    w.now_us += 1000000;
    hello(&w, LINK, 2);
    hello(&w, LINK, 3);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_REFUSED)->reason, BT_KV_REASON_FULL);
    w.now_us += BT_LEASE_MS * 1000 - 1000000;
    bt_kv_recv_tick(w.recv, w.now_us);
    drain(&w);
    assert_int_equal(w.n_actions, 1);
    const struct bt_kv_msg *msg = sent(&w, 0, LINK, BT_KV_REFUSED);
    assert_int_equal(msg->reason, BT_KV_REASON_UNKNOWN);
    assert_true(bt_id_equal(msg->ticket, ticket_of(1)));
    assert_int_equal(counters(&w)->parked_expired, 1);
    say(&w, LINK, (struct bt_kv_msg){.type = BT_KV_WITHDRAWN, .ticket = ticket_of(2)});
    assert_int_equal(expect(&w, 2), BT_OK); /* nothing is parked: it waits */
    assert_int_equal(w.n_actions, 0);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_CANCELLED);
    drain(&w);
    assert_int_equal(w.n_actions, 0); /* nobody was granted: nobody to tell */
    hello(&w, LINK, 4);
    bt_kv_recv_forbid(w.recv, w.now_us, ticket_of(4));
    drain(&w);
    sent(&w, 0, LINK, BT_KV_REFUSED);
    hello(&w, LINK, 4);
    sent(&w, 0, LINK, BT_KV_REFUSED);
    hello(&w, LINK, 5);
    bt_kv_recv_link_down(w.recv, w.now_us, LINK);
    drain(&w);
    assert_int_equal(w.n_actions, 0);
    assert_int_equal(expect(&w, 5), BT_OK);
    assert_int_equal(w.n_actions, 0);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_CANCELLED);
    close_world(&w);
}

static void test_ended_tickets_are_refused_for_two_leases(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    bt_kv_recv_forbid(w.recv, w.now_us, ticket_of(1));
    bt_kv_recv_forbid(w.recv, w.now_us + 10, ticket_of(1));
    drain(&w);
    w.now_us += 2 * BT_LEASE_MS * 1000 - 1;
    bt_kv_recv_tick(w.recv, w.now_us);
    assert_true(bt_kv_recv_is_ended(w.recv, ticket_of(1)));
    assert_int_equal(expect(&w, 1), BT_E_INVALID);
    hello(&w, LINK, 1);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_REFUSED)->reason, BT_KV_REASON_UNKNOWN);
    say(&w, LINK, (struct bt_kv_msg){.type = BT_KV_WITHDRAWN, .ticket = ticket_of(1)});
    assert_int_equal(w.n_actions, 0);
    say(&w, LINK, commit_of(&w, 1));
    assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_CANCELLED);
    w.now_us += 1;
    bt_kv_recv_tick(w.recv, w.now_us);
    assert_false(bt_kv_recv_is_ended(w.recv, ticket_of(1)));
    for (uint64_t i = 10; i < 15; i++) { /* room for four: the oldest goes */
        bt_kv_recv_forbid(w.recv, w.now_us, ticket_of(i));
        drain(&w);
    }
    assert_false(bt_kv_recv_is_ended(w.recv, ticket_of(10)));
    for (uint64_t i = 11; i < 15; i++)
        assert_true(bt_kv_recv_is_ended(w.recv, ticket_of(i)));
    bt_kv_hold_release(w.pool, &w.hold);
    close_world(&w);
}

static void test_expect_says_why_not(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    assert_int_equal(expect(&w, 1), BT_OK);
    struct bt_kv_hold hold[2] = {{.capacity = 8}, {.capacity = 8}};
    uint32_t pages[2][8];
    uint32_t lease;
    hold[0].pages = pages[0];
    hold[1].pages = pages[1];
    for (int i = 0; i < 2; i++)
        assert_true(bt_kv_hold_reserve(w.pool, &hold[i], 6));
    struct bt_kv_expect e = {.ticket = ticket_of(1), .peer = peer, .n_pages = 1, .hold = &hold[0]};
    assert_int_equal(bt_kv_recv_expect(w.recv, 0, &e, &lease), BT_E_INVALID);
    e.ticket = (struct bt_id){0, 0};
    assert_int_equal(bt_kv_recv_expect(w.recv, 0, &e, &lease), BT_E_INVALID);
    e.ticket = ticket_of(2);
    e.n_pages = 7;
    assert_int_equal(bt_kv_recv_expect(w.recv, 0, &e, &lease), BT_E_TOO_LARGE);
    e.n_pages = 6;
    assert_int_equal(bt_kv_recv_expect(w.recv, 0, &e, &lease), BT_OK);
    e.ticket = ticket_of(3);
    e.hold = &hold[1];
    assert_int_equal(bt_kv_recv_expect(w.recv, 0, &e, &lease), BT_E_FULL);
    e.ticket = ticket_of(1); /* that it is here already is the better reason */
    assert_int_equal(bt_kv_recv_expect(w.recv, 0, &e, &lease), BT_E_INVALID);
    bt_kv_recv_forbid(w.recv, 0, ticket_of(1)); /* a lease ends by abort, not by this */
    assert_false(bt_kv_recv_is_ended(w.recv, ticket_of(1)));
    drain(&w);
    assert_int_equal(w.n_actions, 0);
    bt_kv_recv_abort(w.recv, 0, 0, BT_KV_REASON_DEADLINE);
    bt_kv_recv_abort(w.recv, 0, 1, BT_KV_REASON_DEADLINE);
    bt_kv_hold_release(w.pool, &hold[1]);
    close_world(&w);
}

static void test_frames_need_a_grant(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    struct bt_kv_frame early = {.n_pages = 1, .length = PAGE_BYTES};
    refuse_frame(&w, LINK, early, &counters(&w)->refused_generation);
    assert_int_equal(expect(&w, 1), BT_OK);
    refuse_frame(&w, LINK, early, &counters(&w)->refused_generation);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_CANCELLED);
    close_world(&w);
}

/* ---- commit ---- */

static void test_a_commit_is_compared_with_our_own_copy(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    const struct bt_kv_recv_counters *c = counters(&w);
    struct {
        enum bt_kv_reason reason;
        const uint64_t *counter;
    } cases[] = {
        {BT_KV_REASON_UNKNOWN, &c->refused_generation},
        {BT_KV_REASON_UNKNOWN, &c->refused_generation},
        {BT_KV_REASON_LAYOUT, &c->refused_layout},
        {BT_KV_REASON_PROMPT, &c->refused_prompt},
        {BT_KV_REASON_CHECKSUM, &c->refused_checksum},
        {BT_KV_REASON_CHECKSUM, &c->refused_checksum},
    };
    for (uint64_t i = 0; i < 6; i++) {
        arm(&w, 100 + i);
        fill(&w);
        struct bt_kv_msg msg = commit_of(&w, 100 + i);
        msg.lease += i == 0;
        msg.generation += i == 1;
        msg.fingerprint_hash += i == 2;
        msg.chain.lo += i == 3;
        msg.manifest += i == 4;
        msg.n_sums += i == 5;
        uint64_t before = *cases[i].counter, commits = c->refused_commit;
        say(&w, LINK, msg);
        assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, cases[i].reason);
        check_aborted(&w, 1, cases[i].reason);
        assert_int_equal(*cases[i].counter, before + 1);
        assert_int_equal(c->refused_commit, commits + 1);
        say(&w, LINK, msg); /* asked again: told again */
        assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, cases[i].reason);
        assert_int_equal(w.n_actions, 1);
    }
    assert_int_equal(c->committed, 0);
    close_world(&w);
}

static void test_a_strangers_commit_touches_nothing(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    say(&w, LINK, commit_of(&w, 1)); /* of nothing */
    assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_UNKNOWN);
    hello(&w, LINK, 1);
    say(&w, LINK, commit_of(&w, 1)); /* of what is parked */
    sent(&w, 0, LINK, BT_KV_ABORTED);
    say(&w, LINK, (struct bt_kv_msg){.type = BT_KV_WITHDRAWN, .ticket = ticket_of(1)});
    assert_int_equal(expect(&w, 1), BT_OK);
    say(&w, LINK, commit_of(&w, 1)); /* not granted yet */
    sent(&w, 0, LINK, BT_KV_ABORTED);
    assert_int_equal(w.n_actions, 1);
    say(&w, LINK + 1, (struct bt_kv_msg){.type = BT_KV_WITHDRAWN, .ticket = ticket_of(1)});
    assert_int_equal(w.n_actions, 0);
    hello(&w, LINK, 1);
    check_grant_of(&w, 0);
    say(&w, LINK + 1, (struct bt_kv_msg){.type = BT_KV_WITHDRAWN, .ticket = ticket_of(1)});
    assert_int_equal(w.n_actions, 0);
    fill(&w);
    say(&w, LINK + 1, commit_of(&w, 1));
    assert_int_equal(sent(&w, 0, LINK + 1, BT_KV_ABORTED)->reason, BT_KV_REASON_UNKNOWN);
    assert_int_equal(w.n_actions, 1);
    say(&w, LINK, (struct bt_kv_msg){.type = BT_KV_GRANT, .ticket = ticket_of(1)});
    assert_int_equal(counters(&w)->refused_message, 1);
    say(&w, LINK, (struct bt_kv_msg){.type = BT_KV_HELLO});
    say(&w, LINK + 2, commit_of(&w, 1)); /* a link that is not up */
    assert_int_equal(w.n_actions, 0);
    say(&w, LINK, commit_of(&w, 1));
    check_committed(&w, 0);
    close_world(&w);
}

/* Arms a lease whose last frame is in flight when commit comes. */
static void commit_early(struct world *w, uint64_t ticket, struct bt_kv_landing *landing) {
    arm(w, ticket);
    struct bt_kv_frame frame = frame_of(w, 0, 0, PROMPT_PAGES);
    land(w, &frame, landing);
    finish_landing(w, landing, true);
    frame.layer = 1;
    land(w, &frame, landing);
    say(w, LINK, commit_of(w, ticket));
    assert_int_equal(w->n_actions, 0);
}

static void test_a_commit_waits_for_receives_in_flight(void **state) {
    (void)state;
    struct world w;
    struct bt_kv_landing landing;
    open_world(&w, PAGE_BYTES);
    commit_early(&w, 1, &landing);
    say(&w, LINK, commit_of(&w, 1));
    hello(&w, LINK, 1);
    sent(&w, 0, LINK, BT_KV_REFUSED);
    assert_int_equal(expect(&w, 1), BT_E_INVALID);
    bt_kv_recv_forbid(w.recv, w.now_us, ticket_of(1));
    refuse_frame(&w, LINK, frame_of(&w, 0, 0, 1), &counters(&w)->refused_order);
    finish_landing(&w, &landing, true);
    check_committed(&w, 0);
    bt_kv_hold_release(w.pool, &w.hold);

    commit_early(&w, 2, &landing);
    bt_kv_recv_frame_end(w.recv, w.now_us, &landing, false, NULL, NULL);
    drain(&w);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_INCOMPLETE);
    check_aborted(&w, 1, BT_KV_REASON_INCOMPLETE);

    commit_early(&w, 3, &landing);
    say(&w, LINK, (struct bt_kv_msg){.type = BT_KV_WITHDRAWN, .ticket = ticket_of(3)});
    assert_int_equal(w.actions[0].type, BT_KV_RECV_CUT);
    check_aborted(&w, 1, BT_KV_REASON_PEER);
    finish_landing(&w, &landing, true);

    commit_early(&w, 4, &landing);
    bt_kv_recv_abort(w.recv, w.now_us, w.lease, BT_KV_REASON_LEASE);
    drain(&w);
    assert_int_equal(sent(&w, 1, LINK, BT_KV_ABORTED)->reason, BT_KV_REASON_LEASE);
    finish_landing(&w, &landing, false);

    commit_early(&w, 5, &landing);
    bt_kv_recv_link_down(w.recv, w.now_us, LINK);
    drain(&w);
    check_aborted(&w, 1, BT_KV_REASON_LINK);
    finish_landing(&w, &landing, false);
    assert_int_equal(bt_kv_pool_available(w.pool), N_PAGES);
    close_world(&w);
}

/* ---- ends ---- */

static void test_a_lost_link_ends_what_was_granted_on_it(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    assert_int_equal(expect(&w, 1), BT_OK);
    bt_kv_recv_link_down(w.recv, w.now_us, LINK);
    drain(&w);
    assert_int_equal(w.n_actions, 0); /* P may dial again and say hello then */
    bt_kv_recv_link_down(w.recv, w.now_us, LINK);
    bt_kv_recv_link_up(w.recv, w.now_us, LINK, peer);
    hello(&w, LINK, 1);
    check_grant_of(&w, 0);
    bt_kv_recv_link_down(w.recv, w.now_us, LINK + 1); /* another one */
    drain(&w);
    assert_int_equal(w.n_actions, 0);
    bt_kv_recv_link_down(w.recv, w.now_us, LINK);
    drain(&w);
    check_aborted(&w, 0, BT_KV_REASON_LINK);
    assert_int_equal(w.n_actions, 1);
    bt_kv_recv_link_up(w.recv, w.now_us, LINK, peer);
    hello(&w, LINK, 1);
    assert_int_equal(sent(&w, 0, LINK, BT_KV_REFUSED)->reason, BT_KV_REASON_UNKNOWN);
    close_world(&w);
}

static void test_p_gives_up(void **state) {
    (void)state;
    struct world w;
    open_world(&w, PAGE_BYTES);
    struct bt_kv_msg msg = {.type = BT_KV_WITHDRAWN, .ticket = ticket_of(1)};
    say(&w, LINK, msg);
    assert_int_equal(w.n_actions, 0);
    assert_int_equal(expect(&w, 1), BT_OK);
    say(&w, LINK, msg); /* its hello has expired here, and it does not know yet */
    check_aborted(&w, 0, BT_KV_REASON_PEER);
    msg.ticket = ticket_of(2);
    arm(&w, 2);
    bt_kv_recv_forbid(w.recv, w.now_us, ticket_of(2));
    assert_int_equal(expect(&w, 2), BT_E_INVALID);
    say(&w, LINK, msg);
    check_aborted(&w, 0, BT_KV_REASON_PEER);
    assert_int_equal(w.n_actions, 1);
    assert_int_equal(counters(&w)->aborted, 2);
    close_world(&w);
}

static void test_every_pair_was_reached(void **state) {
    (void)state;
    for (uint32_t i = 0; i < sizeof pair_names / sizeof *pair_names; i++) {
        bool handled;
        const char *name = bt_kv_recv_pair_name(i, &handled);
        bool possible = table[i / BT_KV_RECV_EVENT_COUNT][i % BT_KV_RECV_EVENT_COUNT] != '-';
        if ((reached[i] > 0) != possible)
            fail_msg("%s: reached %u times", name, reached[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_sizes_out_of_bounds),
        cmocka_unit_test(test_create_survives_each_failed_allocation),
        cmocka_unit_test(test_reserve_before_hello),
        cmocka_unit_test(test_hello_before_reserve),
        cmocka_unit_test(test_a_ticket_shown_by_two_workers_is_the_expected_ones),
        cmocka_unit_test(test_hello_of_another_incarnation_is_refused),
        cmocka_unit_test(test_hello_of_another_prompt_ends_the_lease),
        cmocka_unit_test(test_parked_hellos_are_few_and_do_not_stay),
        cmocka_unit_test(test_ended_tickets_are_refused_for_two_leases),
        cmocka_unit_test(test_expect_says_why_not),
        cmocka_unit_test(test_frames_need_a_grant),
        cmocka_unit_test(test_a_commit_is_compared_with_our_own_copy),
        cmocka_unit_test(test_a_strangers_commit_touches_nothing),
        cmocka_unit_test(test_a_commit_waits_for_receives_in_flight),
        cmocka_unit_test(test_a_lost_link_ends_what_was_granted_on_it),
        cmocka_unit_test(test_p_gives_up),
        cmocka_unit_test(test_every_pair_was_reached),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

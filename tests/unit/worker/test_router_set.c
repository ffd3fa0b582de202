/* The routers of a worker: names with several addresses, changes, bounds; and a real lookup. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <event2/event.h>

#include "common/worker/router_lookup.h"
#include "common/worker/router_set.h"

enum { LEASE_US = BT_LEASE_MS * 1000 };

/* A lookup that found these; what is dialled and what has a new address comes back. */
struct world {
    struct bt_router_set set;
    uint32_t busy, fresh, n_left_out;
    uint64_t now_us;
};

static void find(struct world *w, uint32_t name, const char *const *hosts) {
    char list[BT_LOOKUP_ADDRESSES][BT_ADDRESS_BYTES] = {{0}};
    uint32_t n = 0;
    for (; hosts[n]; n++)
        snprintf(list[n], sizeof list[n], "%s", hosts[n]);
    w->n_left_out = bt_router_set_found(&w->set, name, (const char(*)[BT_ADDRESS_BYTES])list, n,
                                        w->busy, w->now_us, &w->fresh);
}

#define HOSTS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* The addresses that may be dialled, in order of slots. */
static void expect_dialled(const struct world *w, const char *const *addresses) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < BT_MAX_ROUTERS; i++)
        if (bt_router_set_may_dial(&w->set, i)) {
            assert_non_null(addresses[n]);
            assert_string_equal(w->set.slots[i].address, addresses[n]);
            n++;
        }
    assert_null(addresses[n]);
}

static void test_addresses_are_not_looked_up(void **state) {
    (void)state;
    struct world w = {0};
    bt_router_set_init(&w.set, HOSTS("10.0.0.1:1", "[fe80::1]:2", "localhost:3"), 3);
    for (uint32_t i = 0; i < 3; i++)
        assert_true(w.set.names[i].is_fixed && bt_router_set_has(&w.set, i));
    expect_dialled(&w, HOSTS("10.0.0.1:1", "[fe80::1]:2", "localhost:3"));
    bt_router_set_closed(&w.set, 1, 5);
    expect_dialled(&w, HOSTS("10.0.0.1:1", "[fe80::1]:2", "localhost:3"));
}

static void test_a_name_is_as_many_routers_as_it_has_addresses(void **state) {
    (void)state;
    struct world w = {0};
    bt_router_set_init(&w.set, HOSTS("routers.zone:8400", "10.0.0.9:1"), 2);
    assert_false(w.set.names[0].is_fixed);
    assert_false(bt_router_set_has(&w.set, 0));
    expect_dialled(&w, HOSTS("10.0.0.9:1"));
    find(&w, 0, HOSTS("10.0.0.1", "10.0.0.2"));
    assert_int_equal(w.fresh, 6);
    expect_dialled(&w, HOSTS("10.0.0.9:1", "10.0.0.1:8400", "10.0.0.2:8400"));
    w.busy = 7;
    find(&w, 0, HOSTS("10.0.0.1", "10.0.0.2", "fd00::7"));
    assert_int_equal(w.fresh, 8);
    expect_dialled(&w, HOSTS("10.0.0.9:1", "10.0.0.1:8400", "10.0.0.2:8400", "[fd00::7]:8400"));
    find(&w, 0, HOSTS("10.0.0.1", "10.0.0.2", "fd00::7"));
    assert_int_equal(w.fresh + w.n_left_out, 0);
}

static void test_an_address_that_left_keeps_its_stream_and_no_more(void **state) {
    (void)state;
    struct world w = {.now_us = 1000};
    bt_router_set_init(&w.set, HOSTS("routers.zone:1"), 1);
    find(&w, 0, HOSTS("10.0.0.1", "10.0.0.2"));
    w.busy = 3;
    find(&w, 0, HOSTS("10.0.0.2"));
    assert_true(w.set.slots[0].is_used); /* its stream goes on */
    expect_dialled(&w, HOSTS("10.0.0.2:1"));
    find(&w, 0, HOSTS("10.0.0.1", "10.0.0.2")); /* it was away for one lookup only */
    assert_int_equal(w.fresh, 0);
    expect_dialled(&w, HOSTS("10.0.0.1:1", "10.0.0.2:1"));
    find(&w, 0, HOSTS("10.0.0.2"));
    w.busy = 2;
    bt_router_set_closed(&w.set, 0, w.now_us);
    assert_false(w.set.slots[0].is_used);
    /* One that ended while it was still there stays. */
    bt_router_set_closed(&w.set, 1, w.now_us);
    expect_dialled(&w, HOSTS("10.0.0.2:1"));
    /* One without a stream goes at once. */
    w.busy = 0;
    find(&w, 0, HOSTS("10.0.0.5"));
    assert_int_equal(w.fresh, 1u << 2); /* the other two slots rest */
    expect_dialled(&w, HOSTS("10.0.0.5:1"));
    w.now_us += LEASE_US;
    find(&w, 0, HOSTS("10.0.0.5", "10.0.0.6"));
    assert_int_equal(w.fresh, 1);
    expect_dialled(&w, HOSTS("10.0.0.6:1", "10.0.0.5:1"));
}

static void test_slots_are_bounded(void **state) {
    (void)state;
    struct world w = {0};
    bt_router_set_init(&w.set, HOSTS("a.zone:1", "10.0.0.200:1", "b.zone:1"), 3);
    find(&w, 0, HOSTS("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"));
    assert_int_equal(w.n_left_out, 0);
    find(&w, 2, HOSTS("10.0.1.1", "10.0.0.5", "10.0.1.2", "10.0.1.3", "10.0.1.4"));
    assert_int_equal(w.n_left_out, 2); /* 8 in all, and one that both names have */
    expect_dialled(&w, HOSTS("10.0.0.200:1", "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1",
                             "10.0.0.5:1", "10.0.1.1:1", "10.0.1.2:1"));
    find(&w, 0, HOSTS("10.0.0.1"));
    w.now_us += LEASE_US;
    find(&w, 2, HOSTS("10.0.1.1", "10.0.0.5", "10.0.1.2", "10.0.1.3", "10.0.1.4"));
    assert_int_equal(w.n_left_out, 0);
    expect_dialled(&w, HOSTS("10.0.0.200:1", "10.0.0.1:1", "10.0.0.5:1", "10.0.1.3:1", "10.0.1.4:1",
                             "10.0.1.1:1", "10.0.1.2:1"));
}

/* ---- a lookup ---- */

struct heard {
    struct event_base *base;
    uint32_t n_found, n_failed, n_hosts;
    char first[BT_ADDRESS_BYTES], why[100];
};

static void on_found(void *arg, uint32_t name, const char (*hosts)[BT_ADDRESS_BYTES],
                     uint32_t n_hosts) {
    struct heard *heard = arg;
    assert_int_equal(name, 3);
    heard->n_found++;
    heard->n_hosts = n_hosts;
    memcpy(heard->first, hosts[0], sizeof heard->first);
}

static void on_failed(void *arg, uint32_t name, const char *why) {
    struct heard *heard = arg;
    assert_int_equal(name, 3);
    heard->n_failed++;
    snprintf(heard->why, sizeof heard->why, "%s", why);
}

static void look(struct heard *heard, struct bt_router_lookup *lookup, const char *host) {
    uint32_t n = heard->n_found + heard->n_failed;
    bt_router_lookup_start(lookup, 3, host);
    for (int i = 0; i < 10000 && heard->n_found + heard->n_failed == n; i++) {
        const struct timeval wait = {.tv_usec = 2000};
        event_base_loopexit(heard->base, &wait);
        event_base_dispatch(heard->base);
    }
    assert_int_equal(heard->n_found + heard->n_failed, n + 1);
}

static void test_a_name_of_this_machine_is_found(void **state) {
    (void)state;
    struct heard heard = {.base = event_base_new()};
    const struct bt_router_lookup_user user = {&heard, on_found, on_failed};
    struct bt_router_lookup *lookup;
    struct bt_error err;
    assert_int_equal(bt_router_lookup_create(heard.base, &user, &lookup, &err), BT_OK);
    for (int i = 0; i < 3; i++) {
        look(&heard, lookup, "localhost"); /* of /etc/hosts */
        assert_int_equal(heard.n_found, i + 1);
        assert_int_equal(heard.n_hosts, 1);
        assert_string_equal(heard.first, "127.0.0.1");
    }
    look(&heard, lookup, "10.1.2.3");
    assert_string_equal(heard.first, "10.1.2.3");
    /* One that is under way when all ends. */
    bt_router_lookup_start(lookup, 3, "nobody.invalid");
    bt_router_lookup_destroy(lookup);
    event_base_loop(heard.base, EVLOOP_NONBLOCK);
    event_base_free(heard.base);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_addresses_are_not_looked_up),
        cmocka_unit_test(test_a_name_is_as_many_routers_as_it_has_addresses),
        cmocka_unit_test(test_an_address_that_left_keeps_its_stream_and_no_more),
        cmocka_unit_test(test_slots_are_bounded),
        cmocka_unit_test(test_a_name_of_this_machine_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

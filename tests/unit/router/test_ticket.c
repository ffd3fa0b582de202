/* Tickets are SipHash-2-4-128, and no two are alike. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "router/ticket.h"

static void test_known_answer(void **state) {
    (void)state;
    /* openssl mac -macopt hexkey:000102..0f -macopt size:16 SIPHASH of the bytes 2a 00 00 00 00 00
     * 00 00 answers e41a7c9cd825eb6b4aa8de8966989a13. */
    struct bt_id key = {.lo = 0x0706050403020100ull, .hi = 0x0f0e0d0c0b0a0908ull};
    struct bt_id ticket = bt_ticket_draw(key, 42);
    assert_int_equal(ticket.lo, 0x6beb25d89c7c1ae4ull);
    assert_int_equal(ticket.hi, 0x139a986689dea84aull);
    assert_false(bt_id_equal(ticket, bt_ticket_draw(key, 43)));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_known_answer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

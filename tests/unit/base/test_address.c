/* Addresses: what is read comes back the same, what is refused says why, what is loopback. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/address.h"

static void test_reads_and_writes(void **state) {
    (void)state;
    static const struct {
        const char *text, *host;
        uint16_t port;
    } cases[] = {
        {"localhost:8080", "localhost", 8080},
        {"10.1.2.3:0", "10.1.2.3", 0},
        {"router-0.my_zone.example:65535", "router-0.my_zone.example", 65535},
        {"[::1]:7000", "::1", 7000},
        {"[fe80::1%2]:1", "fe80::1%2", 1},
        {"[::ffff:1.2.3.4]:80", "::ffff:1.2.3.4", 80},
        /* 63 bytes, the longest */
        {"aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffff:9999",
         "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffff", 9999},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bt_address address;
        struct bt_error err = {0};
        assert_int_equal(bt_address_parse(cases[i].text, &address, &err), BT_OK);
        assert_string_equal(address.host, cases[i].host);
        assert_int_equal(address.port, cases[i].port);
        char text[BT_ADDRESS_BYTES];
        bt_address_format(&address, text);
        assert_string_equal(text, cases[i].text);
    }
}

static void test_refuses_with_a_sentence(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "must be host:port"},
        {"localhost", "must be host:port"},
        {":80", "no host"},
        {"[]:80", "no host"},
        {"[::1]", "must be host:port"},
        {"[::1]80", "must be host:port"},
        {"[::1:80", "must be host:port"},
        {"::1:80", "brackets"},
        {"[1.2.3.4]:80", "no IPv6 address"},
        {"[::g]:80", "0x67 in its host"},
        {"a b:80", "0x20 in its host"},
        {"a\nb:80", "0x0a in its host"},
        {"a/b:80", "0x2f in its host"},
        {"h:", "port \"\""},
        {"h:-1", "port \"-1\""},
        {"h:+1", "port \"+1\""},
        {"h: 1", "port \" 1\""},
        {"h:65536", "port \"65536\""},
        {"h:000080", "port \"000080\""},
        {"h:8o", "port \"8o\""},
        {"aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffg:9999", "has 64 bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bt_address address = {.port = 7};
        struct bt_error err = {0};
        assert_int_equal(bt_address_parse(cases[i].text, &address, &err), BT_E_INVALID);
        if (!strstr(err.text, cases[i].says))
            fail_msg("\"%s\" says: %s", cases[i].text, err.text);
        assert_int_equal(address.port, 7); /* written only on success */
    }
}

static void test_knows_loopback(void **state) {
    (void)state;
    static const char *const inside[] = {"127.0.0.1:1",         "127.9.8.7:1", "[::1]:1",
                                         "[0:0:0:0:0:0:0:1]:1", "localhost:1", "LocalHost:1"};
    static const char *const outside[] = {"0.0.0.0:1",    "128.0.0.1:1",  "10.0.0.1:1",
                                          "[::]:1",       "[::2]:1",      "localhost.example:1",
                                          "my-machine:1", "127.example:1"};
    struct bt_address address;
    for (size_t i = 0; i < sizeof inside / sizeof inside[0]; i++) {
        assert_int_equal(bt_address_parse(inside[i], &address, NULL), BT_OK);
        assert_true(bt_address_is_loopback(&address));
    }
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++) {
        assert_int_equal(bt_address_parse(outside[i], &address, NULL), BT_OK);
        assert_false(bt_address_is_loopback(&address));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_and_writes),
        cmocka_unit_test(test_refuses_with_a_sentence),
        cmocka_unit_test(test_knows_loopback),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

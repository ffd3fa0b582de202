/* The guard before gRPC: what passes, what is counted, what is refused, in any cut of the bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "router/grpc_guard.h"

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING = 6, WINDOW_UPDATE = 8, CONTINUATION };

struct script {
    uint8_t bytes[1 << 17];
    size_t n;
};

static void add_preface(struct script *s) {
    memcpy(s->bytes, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BT_GRPC_PREFACE_BYTES);
    s->n = BT_GRPC_PREFACE_BYTES;
}

static void add(struct script *s, uint8_t type, uint8_t flags, uint32_t length) {
    const uint8_t header[9] = {
        (uint8_t)(length >> 16), (uint8_t)(length >> 8), (uint8_t)length, type, flags, 0, 0, 0, 1};
    memcpy(s->bytes + s->n, header, sizeof header);
    memset(s->bytes + s->n + sizeof header, 3, length); /* looks like frames of its own */
    s->n += sizeof header + length;
}

/* Fed in pieces of `step` bytes. */
static bt_status feed(const struct script *s, size_t step, uint32_t *n_costly) {
    struct bt_grpc_guard guard = {0};
    struct bt_error err = {0};
    *n_costly = 0;
    for (size_t at = 0; at < s->n; at += step) {
        size_t n = s->n - at < step ? s->n - at : step;
        bt_status status = bt_grpc_guard_take(&guard, s->bytes + at, n, n_costly, &err);
        if (status < 0) {
            assert_true(err.text[0]);
            return status;
        }
    }
    return BT_OK;
}

static void expect(const struct script *s, bt_status status, uint32_t n_costly) {
    static const size_t steps[] = {1, 2, 7, 9, 100, 1 << 17};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        uint32_t n;
        assert_int_equal(feed(s, steps[i], &n), status);
        if (status == BT_OK)
            assert_int_equal(n, n_costly);
    }
}

static void test_ordinary_calls(void **state) {
    (void)state;
    static struct script s;
    add_preface(&s);
    add(&s, SETTINGS, 1, 0); /* an acknowledgement */
    add(&s, WINDOW_UPDATE, 0, 4);
    add(&s, PING, 1, 8);
    for (int i = 0; i < 50; i++) {
        add(&s, HEADERS, 4, 200);
        add(&s, DATA, 0, 1000);
        add(&s, DATA, 1, 0);
    }
    expect(&s, BT_OK, 12); /* and 65 of 128 parts */
    for (int i = 0; i < 63; i++)
        add(&s, WINDOW_UPDATE, 0, 4);
    expect(&s, BT_OK, 13);
}

static void test_costly_frames(void **state) {
    (void)state;
    static struct script s;
    add_preface(&s);
    add(&s, SETTINGS, 0, 6);
    add(&s, PING, 0, 8);
    add(&s, PRIORITY, 0, 5);
    add(&s, DATA, 0, 0);
    for (int i = 0; i < 7; i++) {
        add(&s, HEADERS, 5, 30);
        add(&s, RST_STREAM, 0, 4);
    }
    add(&s, 77, 0, 3);
    expect(&s, BT_OK, 12 + 1); /* and seven calls */
}

static void test_header_blocks(void **state) {
    (void)state;
    static struct script s;
    add_preface(&s);
    add(&s, HEADERS, 0, 16000);
    add(&s, CONTINUATION, 0, 200);
    add(&s, CONTINUATION, 4, 184);
    add(&s, HEADERS, 4, 16384); /* the bound is each block's own */
    expect(&s, BT_OK, 0);
    size_t whole = s.n;
    add(&s, HEADERS, 4, 16385);
    expect(&s, BT_E_PROTOCOL, 0);
    s.n = whole;
    add(&s, HEADERS, 0, 16000);
    add(&s, CONTINUATION, 0, 385);
    expect(&s, BT_E_PROTOCOL, 0);
    s.n = whole;
    for (int i = 0; i <= BT_GRPC_BLOCK_FRAMES_MAX; i++)
        add(&s, i ? CONTINUATION : HEADERS, 0, 0);
    expect(&s, BT_E_PROTOCOL, 0);
    s.n = whole;
    add(&s, CONTINUATION, 4, 10);
    expect(&s, BT_E_PROTOCOL, 0);
    s.n = whole;
    add(&s, HEADERS, 0, 10);
    add(&s, DATA, 0, 10);
    expect(&s, BT_E_PROTOCOL, 0);
}

static void test_preface(void **state) {
    (void)state;
    static struct script s;
    struct bt_grpc_guard guard = {0};
    struct bt_error err;
    uint32_t n = 0;
    add_preface(&s);
    for (size_t i = 0; i < s.n; i++) {
        assert_false(bt_grpc_guard_is_open(&guard));
        assert_int_equal(bt_grpc_guard_take(&guard, s.bytes + i, 1, &n, &err), BT_OK);
    }
    assert_true(bt_grpc_guard_is_open(&guard));
    for (size_t i = 0; i < BT_GRPC_PREFACE_BYTES; i++) {
        add_preface(&s);
        s.bytes[i] ^= 1;
        expect(&s, BT_E_PROTOCOL, 0);
    }
}

static void test_bucket(void **state) {
    (void)state;
    struct bt_grpc_bucket bucket = {.burst = 10, .per_second = 100};
    uint64_t now = 5000000;
    for (int i = 0; i < 9; i++)
        assert_int_equal(bt_grpc_bucket_take(&bucket, now, 1), 0);
    /* The tenth empties it; each further one costs a hundredth of a second. */
    assert_in_range(bt_grpc_bucket_take(&bucket, now, 1), 1, 2);
    assert_in_range(bt_grpc_bucket_take(&bucket, now, 100), 1000000, 1000001);
    now += 1000001;
    assert_true(bt_grpc_bucket_take(&bucket, now, 1) > 0);
    now += 3600ull * 1000000 * 1000; /* never more than full, however long */
    for (int i = 0; i < 9; i++)
        assert_int_equal(bt_grpc_bucket_take(&bucket, now, 1), 0);
    assert_true(bt_grpc_bucket_take(&bucket, now, 1) > 0);
}

/* A flood takes the shared bucket far below zero; whoever asks for little does not pay for it. */
static void test_allowance(void **state) {
    (void)state;
    struct bt_grpc_bucket shared = {.burst = 1000, .per_second = 2000};
    struct bt_grpc_allowance quiet = {.own = {.burst = 200, .per_second = 500}};
    uint64_t now = 5000000, flood_us = 0, quiet_us = 0;
    for (int i = 0; i < 5000; i++, now += 10000) {
        struct bt_grpc_allowance flood = {.own = {.burst = 200, .per_second = 500}};
        flood_us =
            bt_grpc_allowance_take(&flood, &shared, 5, now, 900); /* comes again as another */
        quiet_us +=
            bt_grpc_allowance_take(&quiet, &shared, 5, now, 2); /* 200 a second of its 400 */
    }
    assert_int_equal(quiet_us, 0);
    assert_true(flood_us >= 1000000);
    assert_true(bt_grpc_bucket_take(&shared, now, 1) > 600ull * 1000000);
    /* Past its share, until that has paid for it; past its own bound, until that has. */
    assert_in_range(bt_grpc_allowance_take(&quiet, &shared, 5, now, 240), 100000, 110000);
    struct bt_grpc_allowance alone = {.own = {.burst = 200, .per_second = 500}};
    struct bt_grpc_bucket full = {.burst = 1000, .per_second = 2000};
    assert_int_equal(bt_grpc_allowance_take(&alone, &full, 1000, now, 199), 0);
    assert_in_range(bt_grpc_allowance_take(&alone, &full, 1000, now, 51), 100000, 100001);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ordinary_calls), cmocka_unit_test(test_costly_frames),
        cmocka_unit_test(test_header_blocks),  cmocka_unit_test(test_preface),
        cmocka_unit_test(test_bucket),         cmocka_unit_test(test_allowance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

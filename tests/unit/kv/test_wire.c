/* What goes over a KV link: every message survives, every bound is checked, frames land and are
 * cut. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <xxhash.h>

#include "common/base/bytes.h"
#include "common/kv/kv_wire.h"
#include "common/kv/kv_wire_read.h"
#include "proto/kv.pb-c.h"

enum { PAGE_BYTES = 12288 };

static const struct bt_kv_frame good_frame = {.lease = 7,
                                              .generation = 0x1122334455667788ull,
                                              .layer = 29,
                                              .first_page = 40,
                                              .n_pages = 21,
                                              .length = 21 * PAGE_BYTES};

static struct bt_fingerprint sample_layout(void) {
    return (struct bt_fingerprint){.model_hash = 0x0123456789abcdefull,
                                   .n_layers = 30,
                                   .n_kv_heads = 3,
                                   .head_dim = 64,
                                   .page_tokens = BT_PAGE_TOKENS,
                                   .kv_type = BT_KV_BF16,
                                   .wire_type = BT_KV_BF16,
                                   .inner_order = BT_KV_INNER_ORDER_CPU,
                                   .profile = BT_PROFILE_FAST,
                                   .contract = BT_NUMERICS_CONTRACT};
}

/* ---- headers ---- */

static void test_frame_header_survives(void **state) {
    (void)state;
    uint8_t bytes[BT_KV_HEADER_BYTES];
    struct bt_kv_unit unit;
    struct bt_error err;
    bt_kv_header_pack_frame(&good_frame, bytes);
    assert_memory_equal(bytes, "BTKV\2\0\0\0\7\0\0\0\35\0\0\0\x88\x77\x66\x55\x44\x33\x22\x11", 24);
    assert_int_equal(bt_kv_header_unpack(bytes, PAGE_BYTES, &unit, &err), BT_OK);
    assert_int_equal(unit.type, BT_KV_UNIT_FRAME);
    assert_memory_equal(&unit.frame, &good_frame, sizeof good_frame);
    assert_int_equal(unit.length, good_frame.length);
}

static void test_any_flipped_bit_of_a_header_is_refused(void **state) {
    (void)state;
    uint8_t bytes[BT_KV_HEADER_BYTES];
    struct bt_kv_unit unit;
    struct bt_error err;
    bt_kv_header_pack_frame(&good_frame, bytes);
    for (int bit = 0; bit < BT_KV_HEADER_BYTES * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(bt_kv_header_unpack(bytes, PAGE_BYTES, &unit, &err), BT_E_PROTOCOL);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

static bt_status unpack_frame(struct bt_kv_frame frame, uint32_t page_bytes, struct bt_error *err) {
    uint8_t bytes[BT_KV_HEADER_BYTES];
    struct bt_kv_unit unit;
    bt_kv_header_pack_frame(&frame, bytes);
    return bt_kv_header_unpack(bytes, page_bytes, &unit, err);
}

static void test_frames_out_of_bounds_are_refused(void **state) {
    (void)state;
    struct bt_error err;
    static const struct {
        uint32_t layer, first_page, n_pages, offset, length, page_bytes;
        const char *text; /* NULL: fine */
    } rows[] = {
        {1023, 0, 1, 0, 100, 100, NULL},
        {1024, 0, 1, 0, 100, 100, "layer is 1024, must be below 1024"},
        {0, 0, 0, 0, 100, 100, "n_pages is 0, must be 1 to 64"},
        {0, 0, 64, 0, 6400, 100, NULL},
        {0, 0, 65, 0, 6500, 100, "n_pages is 65, must be 1 to 64"},
        {0, 65535, 1, 0, 100, 100, NULL},
        {0, 65536, 1, 0, 100, 100, "pages 65536 + 1 end behind page 65536"},
        {0, 65535, 2, 0, 200, 100, "pages 65535 + 2"},
        {0, UINT32_MAX, 2, 0, 200, 100, "end behind page 65536"},
        {0, 0, 1, 0, 0, 100, "length is 0, must be 1 to 262144"},
        {0, 0, 1, 0, 262144, 300000, NULL},
        {0, 0, 1, 0, 262145, 300000, "length is 262145"},
        {0, 0, 1, 262144, 37856, 300000, NULL},
        {0, 0, 1, 262144, 37857, 300000, "piece 262144 + 37857 ends behind the page's 300000"},
        {0, 0, 1, UINT32_MAX, 1, 100, "ends behind the page's 100 bytes"},
        {0, 0, 1, 1, 99, 100, NULL},
        {0, 0, 2, 1, 199, 100, "frame of 2 pages has offset 1"},
        {0, 0, 2, 0, 199, 100, "frame of 2 pages has length 199, must be 200"},
        {0, 0, 2, 0, 201, 100, "must be 200"},
        /* n_pages * page bytes is 2^32 + 8: must not wrap to a length that fits. */
        {0, 0, 2, 0, 8, 0x80000004u, "must be 4294967304"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct bt_kv_frame frame = {.layer = rows[i].layer,
                                    .first_page = rows[i].first_page,
                                    .n_pages = rows[i].n_pages,
                                    .offset = rows[i].offset,
                                    .length = rows[i].length};
        bt_status status = unpack_frame(frame, rows[i].page_bytes, &err);
        assert_int_equal(status, rows[i].text ? BT_E_PROTOCOL : BT_OK);
        if (rows[i].text)
            assert_non_null(strstr(err.text, rows[i].text));
    }
}

static void test_control_header_has_zeros(void **state) {
    (void)state;
    uint8_t bytes[BT_KV_HEADER_BYTES], payload[4] = {1, 2, 3, 4};
    struct bt_kv_unit unit;
    struct bt_error err;
    bt_kv_header_pack_control(payload, sizeof payload, bytes);
    assert_int_equal(bt_kv_header_unpack(bytes, PAGE_BYTES, &unit, &err), BT_OK);
    assert_int_equal(unit.type, BT_KV_UNIT_CONTROL);
    assert_int_equal(unit.length, 4);
    assert_true(unit.payload_hash == XXH3_64bits(payload, 4));
    static const int zeros[] = {8, 12, 24, 28, 32};
    for (size_t i = 0; i < sizeof zeros / sizeof zeros[0]; i++) {
        bt_kv_header_pack_control(payload, sizeof payload, bytes);
        bytes[zeros[i]] = 1;
        bt_store_u64(bytes + 40, XXH3_64bits(bytes, 40));
        assert_int_equal(bt_kv_header_unpack(bytes, PAGE_BYTES, &unit, &err), BT_E_PROTOCOL);
        assert_non_null(strstr(err.text, "zero must stand"));
    }
    static const uint32_t lengths[] = {0, 65537, UINT32_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        bt_kv_header_pack_control(payload, sizeof payload, bytes);
        bt_store_u32(bytes + 36, lengths[i]);
        bt_store_u64(bytes + 40, XXH3_64bits(bytes, 40));
        assert_int_equal(bt_kv_header_unpack(bytes, PAGE_BYTES, &unit, &err), BT_E_PROTOCOL);
        assert_non_null(strstr(err.text, "must have 1 to 65536"));
    }
    bt_kv_header_pack_control(payload, sizeof payload, bytes);
    bt_store_u32(bytes + 4, 3);
    bt_store_u64(bytes + 40, XXH3_64bits(bytes, 40));
    assert_int_equal(bt_kv_header_unpack(bytes, PAGE_BYTES, &unit, &err), BT_E_PROTOCOL);
    assert_non_null(strstr(err.text, "type is 3, must be 1 or 2"));
}

/* ---- control ---- */

static void round_trip(const struct bt_kv_control *in) {
    uint8_t bytes[BT_KV_UNIT_BYTES_MAX], again[BT_KV_UNIT_BYTES_MAX];
    struct bt_kv_unit unit;
    struct bt_kv_control out;
    struct bt_error err;
    size_t n = bt_kv_control_pack(in, bytes);
    assert_int_equal(bt_kv_header_unpack(bytes, PAGE_BYTES, &unit, &err), BT_OK);
    assert_int_equal(unit.length + BT_KV_HEADER_BYTES, n);
    assert_int_equal(bt_kv_control_unpack(bytes + BT_KV_HEADER_BYTES, unit.length, &out, &err),
                     BT_OK);
    assert_int_equal(out.type, in->type);
    /* A field that was lost on the way would be packed as 0. */
    assert_int_equal(bt_kv_control_pack(&out, again), n);
    assert_memory_equal(again, bytes, n);
    if (in->type == BT_KV_CONTROL_MSG) {
        assert_int_equal(out.msg.type, in->msg.type);
        assert_int_equal(out.msg.token, in->msg.token);
        assert_true(out.msg.generation == in->msg.generation && out.msg.lease == in->msg.lease);
        assert_true(out.msg.manifest == in->msg.manifest);
        assert_true(out.msg.wait_us == in->msg.wait_us);
        assert_true(out.msg.prefill_us == in->msg.prefill_us);
    }
}

static void test_every_message_survives(void **state) {
    (void)state;
    struct bt_kv_control c;
    memset(&c, 0, sizeof c);
    c.type = BT_KV_CONTROL_JOIN;
    memset(c.join.name, 'n', BT_NAME_BYTES - 1);
    c.join.incarnation = (struct bt_id){~0ull, ~0ull};
    c.join.peer = (struct bt_id){0, 1};
    c.join.protocol_min = 1;
    c.join.protocol_max = UINT32_MAX;
    c.join.fingerprint = sample_layout();
    round_trip(&c);
    memset(&c, 0, sizeof c);
    c.type = BT_KV_CONTROL_WELCOME;
    c.welcome = (struct bt_kv_welcome){.incarnation = {1, 0}, .protocol = 1};
    round_trip(&c);
    memset(&c, 0, sizeof c);
    c.type = BT_KV_CONTROL_REFUSED;
    memset(c.refused, 'r', sizeof c.refused - 1);
    round_trip(&c);
    memset(&c, 0, sizeof c);
    c.type = BT_KV_CONTROL_PING;
    round_trip(&c);
    const struct bt_id ticket = {0x1111, 0x2222}, chain = {3, 4};
    const struct bt_kv_msg messages[] = {
        {.type = BT_KV_HELLO, .ticket = ticket, .chain = chain, .n_tokens = 1048576},
        {.type = BT_KV_GRANT,
         .ticket = ticket,
         .lease = UINT32_MAX,
         .generation = UINT64_MAX,
         .pages_held = 65536,
         .pages = 65536},
        {.type = BT_KV_REFUSED, .ticket = ticket, .reason = BT_KV_REASON_UNKNOWN},
        {.type = BT_KV_COMMIT,
         .ticket = ticket,
         .chain = chain,
         .lease = 1,
         .generation = 2,
         .n_sums = 1 << 26,
         .manifest = UINT64_MAX,
         .fingerprint_hash = 9,
         .token = INT32_MAX,
         .finish = BT_FINISH_LENGTH,
         .logits_hash = 77,
         .wait_us = 1234,
         .prefill_us = 1ull << 40,
         .has_logprobs = true,
         .logprobs = {.logprob = BT_LOGPROB_MIN,
                      .n_top = 3,
                      .top = {{INT32_MAX, 0}, {0, -0.5f}, {7, -3}}}},
        {.type = BT_KV_COMMIT, .ticket = ticket, .token = -1, .finish = BT_FINISH_ERROR},
        {.type = BT_KV_COMMITTED, .ticket = ticket},
        {.type = BT_KV_ABORTED, .ticket = ticket, .reason = BT_KV_REASON_COUNT - 1},
        {.type = BT_KV_WITHDRAWN, .ticket = ticket, .reason = BT_KV_REASON_CANCELLED},
    };
    for (size_t i = 0; i < sizeof messages / sizeof messages[0]; i++) {
        memset(&c, 0, sizeof c);
        c.type = BT_KV_CONTROL_MSG;
        c.msg = messages[i];
        round_trip(&c);
    }
}

/* The sentence with which a message is refused; "" where it is taken. */
static const char *refusal(Baton__V1__LinkMessage *message) {
    static struct bt_error err;
    uint8_t bytes[1024];
    struct bt_kv_control out;
    size_t n = baton__v1__link_message__get_packed_size(message);
    assert_true(n <= sizeof bytes);
    baton__v1__link_message__pack(message, bytes);
    err.text[0] = '\0';
    bt_status status = bt_kv_control_unpack(bytes, n, &out, &err);
    assert_true(status == BT_OK ? !err.text[0] : status == BT_E_PROTOCOL && err.text[0]);
    return err.text;
}
#define REFUSED(message, text) assert_non_null(strstr(refusal(message), text))
#define TAKEN(message) assert_string_equal(refusal(message), "")

static void test_joins_out_of_bounds_are_refused(void **state) {
    (void)state;
    Baton__V1__LinkMessage m = BATON__V1__LINK_MESSAGE__INIT;
    Baton__V1__LinkJoin join = BATON__V1__LINK_JOIN__INIT;
    Baton__V1__Id id = BATON__V1__ID__INIT, zero = BATON__V1__ID__INIT;
    uint8_t fingerprint[BT_FINGERPRINT_BYTES];
    struct bt_fingerprint layout = sample_layout();
    char name[65];
    bt_fingerprint_pack(&layout, fingerprint);
    memset(name, 'x', 64);
    name[64] = '\0';
    id.lo = 1;
    m.message_case = BATON__V1__LINK_MESSAGE__MESSAGE_JOIN;
    m.join = &join;
    join.name = "p";
    join.incarnation = join.peer = &id;
    join.protocol_min = join.protocol_max = 1;
    join.fingerprint.data = fingerprint;
    join.fingerprint.len = sizeof fingerprint;
    TAKEN(&m);
    join.name = name;
    REFUSED(&m, "join.name has 64 bytes, must have 1 to 63");
    join.name = "";
    REFUSED(&m, "join.name has 0 bytes");
    join.name = "a\nb";
    REFUSED(&m, "join.name has a control character (10) at byte 1");
    join.name = "p";
    join.incarnation = NULL;
    REFUSED(&m, "join.incarnation is 0 or left out");
    join.incarnation = &id;
    join.peer = &zero;
    REFUSED(&m, "join.peer is 0 or left out");
    join.peer = &id;
    join.protocol_min = 2;
    REFUSED(&m, "join.protocol_min is 2, must be 1 to 1");
    join.protocol_min = 0;
    REFUSED(&m, "join.protocol_min is 0");
    join.protocol_max = 0;
    REFUSED(&m, "join.protocol_max is 0");
    join.protocol_min = join.protocol_max = 1;
    join.fingerprint.len = 63;
    REFUSED(&m, "fingerprint has 63 bytes");
    join.fingerprint.len = 64;
    fingerprint[63] = 1;
    REFUSED(&m, "where zero must stand");
}

static void test_messages_out_of_bounds_are_refused(void **state) {
    (void)state;
    Baton__V1__LinkMessage m = BATON__V1__LINK_MESSAGE__INIT;
    Baton__V1__Id id = BATON__V1__ID__INIT;
    id.hi = 1;
    Baton__V1__LinkWelcome welcome = BATON__V1__LINK_WELCOME__INIT;
    m.message_case = BATON__V1__LINK_MESSAGE__MESSAGE_WELCOME;
    m.welcome = &welcome;
    welcome.protocol = 1;
    REFUSED(&m, "welcome.incarnation is 0");
    welcome.incarnation = &id;
    TAKEN(&m);
    welcome.protocol = 2;
    REFUSED(&m, "welcome.protocol is 2, must be 1 to 1");
    Baton__V1__LinkRefused refused = BATON__V1__LINK_REFUSED__INIT;
    m.message_case = BATON__V1__LINK_MESSAGE__MESSAGE_REFUSED;
    m.refused = &refused;
    REFUSED(&m, "refused.reason has 0 bytes, must have 1 to 255");
    Baton__V1__Hello hello = BATON__V1__HELLO__INIT;
    m.message_case = BATON__V1__LINK_MESSAGE__MESSAGE_HELLO;
    m.hello = &hello;
    hello.n_tokens = 1;
    REFUSED(&m, "hello.ticket is 0");
    hello.ticket = &id;
    TAKEN(&m);
    hello.n_tokens = 0;
    REFUSED(&m, "hello.n_tokens is 0, must be 1 to 1048576");
    hello.n_tokens = 1048577;
    REFUSED(&m, "hello.n_tokens is 1048577");
    Baton__V1__Grant grant = BATON__V1__GRANT__INIT;
    m.message_case = BATON__V1__LINK_MESSAGE__MESSAGE_GRANT;
    m.grant = &grant;
    grant.pages = 1;
    REFUSED(&m, "grant.ticket is 0");
    grant.ticket = &id;
    TAKEN(&m);
    grant.pages_held = 2;
    REFUSED(&m, "grant.pages_held is 2, must be 0 to 1");
    grant.pages = 65537;
    REFUSED(&m, "grant.pages is 65537, must be 1 to 65536");
    grant.pages = 0;
    REFUSED(&m, "grant.pages is 0");
    Baton__V1__Aborted aborted = BATON__V1__ABORTED__INIT;
    m.message_case = BATON__V1__LINK_MESSAGE__MESSAGE_ABORTED;
    m.aborted = &aborted;
    aborted.ticket = &id;
    REFUSED(&m, "aborted.reason is 0, must be 1 to 12");
    aborted.reason = (Baton__V1__Reason)13;
    REFUSED(&m, "aborted.reason is 13");
    aborted.reason = (Baton__V1__Reason)-1;
    REFUSED(&m, "aborted.reason is 4294967295");
}

static void test_commits_out_of_bounds_are_refused(void **state) {
    (void)state;
    Baton__V1__LinkMessage m = BATON__V1__LINK_MESSAGE__INIT;
    Baton__V1__Id id = BATON__V1__ID__INIT;
    Baton__V1__Commit commit = BATON__V1__COMMIT__INIT;
    Baton__V1__Logprobs logprobs = BATON__V1__LOGPROBS__INIT;
    uint32_t shown[2] = {2, 2}, top_token[1] = {7};
    float own[1] = {-1}, top[1] = {-0.5f};
    id.hi = 1;
    m.message_case = BATON__V1__LINK_MESSAGE__MESSAGE_COMMIT;
    m.commit = &commit;
    REFUSED(&m, "commit.ticket is 0");
    commit.ticket = &id;
    TAKEN(&m);
    commit.n_sums = (1 << 26) + 1;
    REFUSED(&m, "commit.n_sums is 67108865, must be 0 to 67108864");
    commit.n_sums = 0;
    commit.token = 0x80000000u;
    REFUSED(&m, "commit.token is 2147483648, must be 0 to 2147483647");
    commit.token = 0;
    commit.finish = (Baton__V1__Finish)4;
    REFUSED(&m, "commit.finish is 4, must be 0 to 3");
    commit.finish = BATON__V1__FINISH__FINISH_NONE;
    commit.logprobs = &logprobs;
    REFUSED(&m, "commit.logprobs has 0 rows and 0 entries, must have 1");
    logprobs.shown = shown, logprobs.own = own, logprobs.top_token = top_token, logprobs.top = top;
    logprobs.n_shown = logprobs.n_own = logprobs.n_top_token = logprobs.n_top = 1;
    TAKEN(&m);
    logprobs.n_shown = 2;
    REFUSED(&m, "commit.logprobs has 2 rows and 1 entries, must have 1");
    logprobs.n_shown = 1, shown[0] = 22;
    REFUSED(&m, "commit.logprobs.shown is 22, must be 1 to 21");
    shown[0] = 0;
    REFUSED(&m, "commit.logprobs.shown is 0, must be 1 to 21");
    shown[0] = 3;
    REFUSED(&m, "commit.logprobs has 1 likeliest tokens and 1 values, must have 2");
    shown[0] = 2, top_token[0] = 0x80000000u;
    REFUSED(&m, "commit.logprobs.top_token is 2147483648");
    top_token[0] = 7, top[0] = NAN;
    REFUSED(&m, "commit.logprobs.top is");
    top[0] = -1, own[0] = 0.5f;
    REFUSED(&m, "commit.logprobs.own is 0.5, must be -9999 to 0");
}

static void test_what_is_no_message_is_refused_and_later_ones_are_skipped(void **state) {
    (void)state;
    struct bt_kv_control out;
    struct bt_error err;
    /* Field 3 (refused) says 5 bytes and has 1. */
    assert_int_equal(bt_kv_control_unpack((const uint8_t *)"\x1a\5\1", 3, &out, &err),
                     BT_E_PROTOCOL);
    assert_non_null(strstr(err.text, "not a LinkMessage"));
    assert_int_equal(bt_kv_control_unpack((const uint8_t *)"", 0, &out, &err), BT_E_PROTOCOL);
    /* Field 100, an empty message: of a version to come. */
    assert_int_equal(bt_kv_control_unpack((const uint8_t *)"\xa2\6\0", 3, &out, &err), BT_OK);
    assert_int_equal(out.type, BT_KV_CONTROL_UNKNOWN);
}

/* ---- the reader ---- */

enum { N_LAYERS = 2, N_PAGES = 8, SMALL = 40 };

struct taker {
    struct bt_kv_link_user user;
    struct bt_kv_reader reader;
    uint8_t memory[N_LAYERS][N_PAGES][SMALL];
    uint8_t scratch[BT_KV_FRAME_BYTES];
    bool refuse;
    uint32_t n_begun, n_whole, n_cut, n_control, n_bad_sums;
};

static bt_status take_frame(void *arg, uint32_t link, const struct bt_kv_frame *frame,
                            struct bt_kv_landing *out, struct bt_error *err) {
    struct taker *t = arg;
    (void)link;
    if (t->refuse)
        return bt_fail(err, BT_E_INVALID, "refused");
    t->n_begun++;
    out->lease = frame->lease;
    out->generation = frame->generation;
    out->frame = *frame;
    for (uint32_t i = 0; i < frame->n_pages; i++)
        out->pages[i] = N_PAGES - 1 - frame->first_page - i; /* not the prompt's order */
    return BT_OK;
}

static void take_frame_end(void *arg, uint32_t link, const struct bt_kv_landing *landing,
                           bool whole, const uint64_t *carried, const uint64_t *computed) {
    struct taker *t = arg;
    (void)link;
    if (!whole) {
        t->n_cut++;
        return;
    }
    t->n_whole++;
    for (uint32_t i = 0; i < bt_kv_frame_sums(&landing->frame, SMALL); i++)
        t->n_bad_sums += carried[i] != computed[i];
}

static uint8_t *take_page(void *arg, uint32_t layer, uint32_t page) {
    return ((struct taker *)arg)->memory[layer][page];
}

static bt_status take_control(void *arg, const struct bt_kv_control *control,
                              struct bt_error *err) {
    (void)control, (void)err;
    ((struct taker *)arg)->n_control++;
    return BT_OK;
}

static void ended(void *arg) {
    (void)arg;
}

static struct taker *taker_create(void) {
    struct taker *t = calloc(1, sizeof *t);
    assert_non_null(t);
    t->user = (struct bt_kv_link_user){
        .arg = t, .frame = take_frame, .frame_end = take_frame_end, .page = take_page};
    t->reader.user = &t->user;
    t->reader.page_bytes = SMALL;
    t->reader.may_frame = true;
    t->reader.control = take_control;
    t->reader.frame_ended = ended;
    t->reader.arg = t;
    t->reader.scratch = t->scratch;
    return t;
}

/* Feeds at most `step` bytes at once. */
static bt_status feed(struct taker *t, const uint8_t *bytes, size_t n, size_t step,
                      struct bt_error *err) {
    while (n) {
        struct iovec iov[BT_KV_READER_IOVS];
        int n_iov = bt_kv_reader_want(&t->reader, iov);
        size_t got = 0;
        for (int i = 0; i < n_iov && got < step && n; i++) {
            size_t take = iov[i].iov_len < n ? iov[i].iov_len : n;
            take = take < step - got ? take : step - got;
            memcpy(iov[i].iov_base, bytes, take);
            bytes += take;
            n -= take;
            got += take;
        }
        BT_TRY(bt_kv_reader_got(&t->reader, got, err));
    }
    return BT_OK;
}

/* A ping, a frame of three pages with its sums, one of a piece of a page in two frames, a ping. */
static size_t sample_stream(uint8_t *out) {
    const struct bt_kv_control ping = {.type = BT_KV_CONTROL_PING};
    const struct bt_kv_frame frames[] = {
        {.lease = 5, .layer = 1, .first_page = 1, .n_pages = 3, .length = 3 * SMALL},
        {.lease = 5, .layer = 0, .first_page = 7, .n_pages = 1, .length = 30},
        {.lease = 5, .layer = 0, .first_page = 7, .n_pages = 1, .offset = 30, .length = 10}};
    uint8_t page[SMALL];
    size_t at = bt_kv_control_pack(&ping, out);
    for (int f = 0; f < 3; f++) {
        bt_kv_header_pack_frame(&frames[f], out + at);
        at += BT_KV_HEADER_BYTES;
        for (uint32_t i = 0; i < bt_kv_frame_sums(&frames[f], SMALL); i++, at += 8) {
            memset(page, (int)(10 * (frames[f].layer + 1) + frames[f].first_page + i), SMALL);
            bt_store_u64(out + at, XXH3_64bits(page, SMALL));
        }
        for (uint32_t i = 0; i < frames[f].n_pages; i++) {
            uint32_t n = frames[f].length / frames[f].n_pages;
            memset(out + at, (int)(10 * (frames[f].layer + 1) + frames[f].first_page + i), n);
            at += n;
        }
    }
    return at + bt_kv_control_pack(&ping, out + at);
}

static void test_frames_land_however_the_bytes_come(void **state) {
    (void)state;
    uint8_t stream[4096];
    size_t n = sample_stream(stream);
    for (size_t step = 1; step <= n; step++) {
        struct taker *t = taker_create();
        struct bt_error err;
        assert_int_equal(feed(t, stream, n, step, &err), BT_OK);
        assert_false(bt_kv_reader_is_inside(&t->reader));
        assert_int_equal(t->n_control, 2);
        assert_int_equal(t->n_whole, 3);
        assert_int_equal(t->n_bad_sums, 0);
        assert_int_equal(t->memory[1][6][0], 21);
        assert_int_equal(t->memory[1][4][SMALL - 1], 23);
        assert_int_equal(t->memory[0][0][SMALL - 1], 17);
        assert_int_equal(t->memory[1][7][0], 0);
        free(t);
    }
}

static void test_a_stream_cut_anywhere_leaves_no_receive_open(void **state) {
    (void)state;
    uint8_t stream[4096];
    size_t n = sample_stream(stream);
    for (size_t cut = 0; cut <= n; cut++) {
        struct taker *t = taker_create();
        struct bt_error err;
        assert_int_equal(feed(t, stream, cut, SIZE_MAX, &err), BT_OK);
        bt_kv_reader_stop(&t->reader);
        assert_int_equal(t->n_begun, t->n_whole + t->n_cut);
        free(t);
    }
}

static void test_a_flipped_byte_never_lands_unseen(void **state) {
    (void)state;
    uint8_t stream[4096];
    size_t n = sample_stream(stream);
    for (size_t i = 0; i < n; i++) {
        struct taker *t = taker_create();
        struct bt_error err = {0};
        stream[i] ^= 0x10;
        bt_status status = feed(t, stream, n, SIZE_MAX, &err);
        assert_true(status == BT_E_PROTOCOL || t->n_bad_sums == 1);
        assert_true(status != BT_E_PROTOCOL || err.text[0]);
        stream[i] ^= 0x10;
        free(t);
    }
}

static void test_refused_and_cut_frames_touch_no_page(void **state) {
    (void)state;
    uint8_t stream[4096];
    size_t n = sample_stream(stream), into = BT_KV_HEADER_BYTES * 2 + 2 + 24 + SMALL;
    struct bt_error err;
    struct taker *t = taker_create();
    t->refuse = true;
    assert_int_equal(feed(t, stream, n, SIZE_MAX, &err), BT_OK);
    assert_int_equal(t->n_control, 2);
    for (size_t i = 0; i < sizeof t->memory; i++)
        assert_int_equal(((uint8_t *)t->memory)[i], 0);
    free(t);
    /* Cut after the first of three pages: the other two stay as they were. */
    t = taker_create();
    assert_int_equal(feed(t, stream, into, SIZE_MAX, &err), BT_OK);
    bt_kv_reader_cut(&t->reader, 4);
    assert_int_equal(t->n_cut, 0);
    bt_kv_reader_cut(&t->reader, 5);
    assert_int_equal(t->n_cut, 1);
    assert_int_equal(feed(t, stream + into, n - into, SIZE_MAX, &err), BT_OK);
    assert_int_equal(t->memory[1][6][0], 21);
    assert_int_equal(t->memory[1][5][0], 0);
    assert_int_equal(t->memory[1][4][0], 0);
    assert_int_equal(t->n_whole, 2); /* the frames after it land */
    free(t);
}

static void test_frames_are_refused_where_only_control_may_come(void **state) {
    (void)state;
    uint8_t stream[4096];
    size_t n = sample_stream(stream);
    struct bt_error err;
    struct taker *t = taker_create();
    t->reader.may_frame = false;
    assert_int_equal(feed(t, stream, n, SIZE_MAX, &err), BT_E_PROTOCOL);
    assert_non_null(strstr(err.text, "only control messages"));
    assert_int_equal(t->n_begun, 0);
    free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frame_header_survives),
        cmocka_unit_test(test_any_flipped_bit_of_a_header_is_refused),
        cmocka_unit_test(test_frames_out_of_bounds_are_refused),
        cmocka_unit_test(test_control_header_has_zeros),
        cmocka_unit_test(test_every_message_survives),
        cmocka_unit_test(test_joins_out_of_bounds_are_refused),
        cmocka_unit_test(test_messages_out_of_bounds_are_refused),
        cmocka_unit_test(test_commits_out_of_bounds_are_refused),
        cmocka_unit_test(test_what_is_no_message_is_refused_and_later_ones_are_skipped),
        cmocka_unit_test(test_frames_land_however_the_bytes_come),
        cmocka_unit_test(test_a_stream_cut_anywhere_leaves_no_receive_open),
        cmocka_unit_test(test_a_flipped_byte_never_lands_unseen),
        cmocka_unit_test(test_refused_and_cut_frames_touch_no_page),
        cmocka_unit_test(test_frames_are_refused_where_only_control_may_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

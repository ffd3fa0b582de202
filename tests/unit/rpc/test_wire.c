/* The wire of Registry.Attach: what goes in comes out, pieces join, messages stay small. */
#include "tests/unit/rpc/sample.h"

#include "proto/registry.pb-c.h"

/* Takes all that a writer has as messages, checks their sizes, and reads them back. */
struct through {
    struct bt_wire_writer writer;
    struct bt_wire_reader reader;
    struct bt_wire_arena arena;
    uint8_t *message; /* a copy of exactly one message, so that a byte too far is seen */
    size_t at;
    uint32_t n_messages;
};

static void through_init(struct through *t, enum bt_wire_side from) {
    memset(t, 0, sizeof *t);
    bt_wire_writer_init(&t->writer, from);
    bt_wire_reader_init(&t->reader, from);
    bt_wire_arena_init(&t->arena, BT_WIRE_ARENA_BYTES);
}

static void through_fini(struct through *t) {
    free(t->message);
    bt_wire_writer_fini(&t->writer);
    bt_wire_reader_fini(&t->reader);
    bt_wire_arena_fini(&t->arena);
}

/* False: nothing is left. */
static bool through_next(struct through *t, struct bt_msg *out) {
    struct bt_error err = {0};
    bt_wire_writer_finish(&t->writer);
    for (;;) {
        bt_status status = bt_wire_reader_next(&t->reader, &t->arena, out, &err);
        if (status == BT_OK)
            return true;
        if (status != BT_DONE)
            fail_msg("%s", err.text);
        if (t->at == t->writer.n_bytes)
            return false;
        size_t n = bt_wire_message_bytes(t->writer.bytes + t->at, t->writer.n_bytes - t->at);
        assert_true(n > 0 && n <= BT_MESSAGE_BYTES);
        free(t->message);
        t->message = malloc(n);
        assert_non_null(t->message);
        memcpy(t->message, t->writer.bytes + t->at, n);
        t->at += n;
        t->n_messages++;
        bt_wire_reader_begin(&t->reader, t->message, n);
    }
}

static void test_every_message_comes_back(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int type = BT_MSG_JOIN; type < BT_MSG_COUNT; type++)
        for (int round = 0; round < 25; round++) {
            struct bt_msg in, out;
            struct lists lists;
            struct bt_error err = {0};
            struct through t;
            draw_message(&seed, (enum bt_msg_type)type, &in, &lists);
            if (in.type == BT_MSG_TOKENS && in.tokens.n_rows == 0)
                in.tokens.n_rows = 1, ((struct bt_token *)lists.a)->key = draw_key(&seed);
            through_init(&t, side_of(in.type));
            if (bt_wire_writer_add(&t.writer, &in, &err) != BT_OK)
                fail_msg("type %d: %s", type, err.text);
            assert_true(through_next(&t, &out));
            same_message(&in, &out);
            assert_false(through_next(&t, &out));
            through_fini(&t);
            free(lists.a);
            free(lists.b);
        }
}

/* A thousand random messages at once, pieces among them: order, and no message too large. */
static void test_many_messages_keep_their_order(void **state) {
    (void)state;
    enum { N = 400 };
    for (int side = BT_WIRE_WORKER; side <= BT_WIRE_ROUTER; side++) {
        struct bt_msg *in = calloc(N, sizeof *in), out;
        struct lists *lists = calloc(N, sizeof *lists);
        struct through t;
        uint64_t seed = 7;
        through_init(&t, (enum bt_wire_side)side);
        for (int i = 0; i < N; i++) {
            int type;
            do {
                type = 1 + (int)(draw(&seed) % (BT_MSG_COUNT - 1));
            } while ((int)side_of((enum bt_msg_type)type) != side || type == BT_MSG_TOKENS);
            draw_message(&seed, (enum bt_msg_type)type, &in[i], &lists[i]);
            assert_int_equal(bt_wire_writer_add(&t.writer, &in[i], NULL), BT_OK);
        }
        for (int i = 0; i < N; i++) {
            assert_true(through_next(&t, &out));
            same_message(&in[i], &out);
            free(lists[i].a);
            free(lists[i].b);
        }
        assert_false(through_next(&t, &out));
        through_fini(&t);
        free(in);
        free(lists);
    }
}

static void test_token_rows_join_and_split(void **state) {
    (void)state;
    struct through t;
    struct bt_msg out,
        ended = {.type = BT_MSG_ENDED, .ended = {.key = {1, 1}, .reason = BT_END_DONE}};
    struct bt_token *rows = calloc(BT_WIRE_TOKEN_ROWS, sizeof *rows);
    through_init(&t, BT_WIRE_WORKER);
    uint32_t next = 0;
    for (uint32_t n = 1; n <= 100; n++) { /* 5050 rows in 100 messages */
        for (uint32_t i = 0; i < n; i++)
            rows[i] = (struct bt_token){.key = {1, 1}, .index = next++};
        struct bt_msg msg = {.type = BT_MSG_TOKENS, .tokens = {rows, n}};
        assert_int_equal(bt_wire_writer_add(&t.writer, &msg, NULL), BT_OK);
    }
    assert_true(bt_wire_writer_bytes(&t.writer) > 5050);
    assert_int_equal(bt_wire_writer_add(&t.writer, &ended, NULL), BT_OK);
    /* The widest rows there can be, as many as there can be, still fit their messages. */
    for (uint32_t i = 0; i < BT_WIRE_TOKEN_ROWS; i++)
        rows[i] = (struct bt_token){.key = {UINT64_MAX, UINT32_MAX},
                                    .index = UINT32_MAX,
                                    .token = INT32_MAX,
                                    .finish = BT_FINISH_ERROR,
                                    .hash = UINT64_MAX};
    struct bt_msg wide = {.type = BT_MSG_TOKENS, .tokens = {rows, BT_WIRE_TOKEN_ROWS}};
    assert_int_equal(bt_wire_writer_add(&t.writer, &wide, NULL), BT_OK);
    uint32_t heard = 0, n_items = 0;
    while (heard < 5050) {
        assert_true(through_next(&t, &out));
        assert_int_equal(out.type, BT_MSG_TOKENS);
        for (uint32_t i = 0; i < out.tokens.n_rows; i++)
            assert_int_equal(out.tokens.rows[i].index, heard++);
        n_items++;
    }
    assert_int_equal(n_items, 2);
    assert_true(through_next(&t, &out));
    assert_int_equal(out.type, BT_MSG_ENDED); /* rows do not pass what was said between them */
    for (heard = 0; heard < BT_WIRE_TOKEN_ROWS; heard += out.tokens.n_rows) {
        assert_true(through_next(&t, &out));
        assert_int_equal(out.type, BT_MSG_TOKENS);
        assert_true(out.tokens.rows[0].key.request == UINT64_MAX);
        assert_true(out.tokens.rows[out.tokens.n_rows - 1].hash == UINT64_MAX);
    }
    assert_false(through_next(&t, &out));
    free(rows);
    through_fini(&t);
}

/* The widest logprobs there can be: cut into items that fit, and in order with plain rows. */
static void test_rows_with_logprobs_fit_their_messages(void **state) {
    (void)state;
    enum { N = 3 * BT_WIRE_LOGPROB_ROWS_SENT + 1 };
    struct bt_logprobs widest = {.logprob = BT_LOGPROB_MIN, .n_top = BT_TOP_LOGPROBS};
    for (int i = 0; i < BT_TOP_LOGPROBS; i++)
        widest.top[i] = (struct bt_logprob){INT32_MAX, BT_LOGPROB_MIN};
    struct bt_token *rows = calloc(N, sizeof *rows), plain = {.key = {1, 1}, .index = 7};
    struct bt_logprobs *scores = calloc(BT_SCORE_ROWS, sizeof *scores);
    for (uint32_t i = 0; i < N; i++)
        rows[i] = (struct bt_token){.key = {UINT64_MAX, UINT32_MAX},
                                    .index = UINT32_MAX - i,
                                    .token = INT32_MAX,
                                    .finish = BT_FINISH_ERROR,
                                    .hash = UINT64_MAX,
                                    .logprobs = &widest};
    for (uint32_t i = 0; i < BT_SCORE_ROWS; i++)
        scores[i] = widest;
    struct through t;
    struct bt_msg out, one = {.type = BT_MSG_TOKENS, .tokens = {&plain, 1}},
                       wide = {.type = BT_MSG_TOKENS, .tokens = {rows, N}},
                       scored = {.type = BT_MSG_SCORES,
                                 .scores = {{UINT64_MAX, UINT32_MAX}, 1, scores, BT_SCORE_ROWS}};
    through_init(&t, BT_WIRE_WORKER);
    assert_int_equal(bt_wire_writer_add(&t.writer, &one, NULL), BT_OK);
    assert_int_equal(bt_wire_writer_add(&t.writer, &wide, NULL), BT_OK);
    assert_int_equal(bt_wire_writer_add(&t.writer, &one, NULL), BT_OK);
    assert_int_equal(bt_wire_writer_add(&t.writer, &scored, NULL), BT_OK);
    assert_true(through_next(&t, &out));
    assert_int_equal(out.tokens.rows[0].index, 7);
    assert_null(out.tokens.rows[0].logprobs);
    for (uint32_t heard = 0; heard < N; heard += out.tokens.n_rows) {
        assert_true(through_next(&t, &out));
        assert_int_equal(out.type, BT_MSG_TOKENS);
        for (uint32_t i = 0; i < out.tokens.n_rows; i++) {
            assert_int_equal(out.tokens.rows[i].index, UINT32_MAX - heard - i);
            same_logprobs(out.tokens.rows[i].logprobs, &widest);
        }
    }
    assert_true(through_next(&t, &out));
    assert_int_equal(out.tokens.rows[0].index, 7);
    assert_true(through_next(&t, &out));
    same_message(&out, &scored);
    assert_false(through_next(&t, &out));
    free(rows);
    free(scores);
    through_fini(&t);
}

static void test_small_items_share_a_message_up_to_its_bound(void **state) {
    (void)state;
    struct through t;
    struct bt_msg out, pulse = {.type = BT_MSG_PULSE};
    through_init(&t, BT_WIRE_ROUTER);
    for (int i = 0; i < 2 * BT_WIRE_ITEMS + 1; i++)
        assert_int_equal(bt_wire_writer_add(&t.writer, &pulse, NULL), BT_OK);
    for (int i = 0; i < 2 * BT_WIRE_ITEMS + 1; i++)
        assert_true(through_next(&t, &out));
    assert_false(through_next(&t, &out));
    assert_int_equal(t.n_messages, 3);
    through_fini(&t);
}

static void test_an_item_over_the_join_bound_is_not_sent(void **state) {
    (void)state;
    struct through t;
    struct bt_error err = {0};
    struct bt_msg msg, out;
    struct lists lists;
    uint64_t seed = 3;
    draw_message(&seed, BT_MSG_PREFILL, &msg, &lists);
    free(lists.a);
    int32_t *tokens = some(BT_WIRE_PROMPT_TOKENS, sizeof *tokens);
    for (uint32_t i = 0; i < BT_WIRE_PROMPT_TOKENS; i++)
        tokens[i] = INT32_MAX; /* five bytes each */
    msg.work.tokens = tokens;
    msg.work.n_tokens = BT_WIRE_PROMPT_TOKENS;
    through_init(&t, BT_WIRE_ROUTER);
    assert_int_equal(bt_wire_writer_add(&t.writer, &msg, &err), BT_E_TOO_LARGE);
    assert_non_null(strstr(err.text, "must have at most 4259840"));
    assert_false(through_next(&t, &out)); /* nothing of it was added */
    for (uint32_t i = 0; i < BT_WIRE_PROMPT_TOKENS; i++)
        tokens[i] = (1 << 28) - 1;
    assert_int_equal(bt_wire_writer_add(&t.writer, &msg, &err), BT_OK);
    assert_true(through_next(&t, &out));
    same_message(&msg, &out);
    assert_true(t.n_messages >= 17);
    free(tokens);
    free(lists.b);
    through_fini(&t);
}

/* ---- what a hostile peer sends ---- */

struct hostile {
    struct bt_wire_reader reader;
    struct bt_wire_arena arena;
    uint8_t *bytes;
};

static void hostile_init(struct hostile *h, enum bt_wire_side from) {
    bt_wire_reader_init(&h->reader, from);
    bt_wire_arena_init(&h->arena, BT_WIRE_ARENA_BYTES);
    h->bytes = NULL;
}

static void hostile_fini(struct hostile *h) {
    bt_wire_reader_fini(&h->reader);
    bt_wire_arena_fini(&h->arena);
    free(h->bytes);
}

/* Reads one message to its end or its refusal; *n_read counts what came out. */
static bt_status hear_bytes(struct hostile *h, const uint8_t *bytes, size_t n, int *n_read,
                            struct bt_error *err) {
    struct bt_msg msg;
    bt_status status;
    free(h->bytes);
    h->bytes = malloc(n + 1);
    assert_non_null(h->bytes);
    memcpy(h->bytes, bytes, n);
    bt_wire_reader_begin(&h->reader, h->bytes, n);
    *n_read = 0;
    while ((status = bt_wire_reader_next(&h->reader, &h->arena, &msg, err)) == BT_OK)
        ++*n_read;
    return status;
}

static bt_status hear_packed(struct hostile *h, const ProtobufCMessage *message, int *n_read,
                             struct bt_error *err) {
    size_t n = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = malloc(n + 1);
    assert_non_null(bytes);
    protobuf_c_message_pack(message, bytes);
    bt_status status = hear_bytes(h, bytes, n, n_read, err);
    free(bytes);
    return status;
}

static bt_status hear_piece(struct hostile *h, uint32_t total, uint32_t offset, const void *data,
                            size_t n_data, int *n_read, struct bt_error *err) {
    Baton__V1__RouterMessage message = BATON__V1__ROUTER_MESSAGE__INIT;
    Baton__V1__RouterItem item = BATON__V1__ROUTER_ITEM__INIT, *items[] = {&item};
    Baton__V1__Piece piece = BATON__V1__PIECE__INIT;
    piece.total_bytes = total;
    piece.offset = offset;
    piece.data.data = (uint8_t *)data;
    piece.data.len = n_data;
    item.item_case = BATON__V1__ROUTER_ITEM__ITEM_PIECE;
    item.piece = &piece;
    message.items = items;
    message.n_items = 1;
    return hear_packed(h, &message.base, n_read, err);
}

static void expect_refused(bt_status status, const struct bt_error *err, const char *says) {
    if (status != BT_E_INVALID && status != BT_E_TOO_LARGE)
        fail_msg("status %d, must be refused: %s", (int)status, says);
    if (!strstr(err->text, says))
        fail_msg("\"%s\" does not say \"%s\"", err->text, says);
}

/* The bytes of one Refused item, 20 long. */
static size_t pack_refused(uint8_t *out) {
    Baton__V1__RouterItem item = BATON__V1__ROUTER_ITEM__INIT;
    Baton__V1__Refused refused = BATON__V1__REFUSED__INIT;
    refused.reason = "name is taken 12";
    item.item_case = BATON__V1__ROUTER_ITEM__ITEM_REFUSED;
    item.refused = &refused;
    return protobuf_c_message_pack(&item.base, out);
}

static void test_pieces_join_only_in_order(void **state) {
    (void)state;
    uint8_t bytes[64];
    uint32_t n = (uint32_t)pack_refused(bytes);
    assert_int_equal(n, 20);
    struct hostile h;
    struct bt_error err = {0};
    int n_read;
    static const struct {
        uint32_t total, offset, n_data; /* of the second part; the first is 0 to 7 of 20 */
        const char *says;
    } cases[] = {
        {20, 8, 12, "piece.offset is 8, must be 7"},
        {20, 6, 14, "piece.offset is 6, must be 7"},
        {20, 0, 20, "piece.offset is 0, must be 7"},
        {21, 7, 14, "piece.total_bytes is 21, must be 20"},
        {20, 7, 14, "piece.data has 14 bytes, must have 1 to 13"},
        {20, 7, 0, "piece.data has 0 bytes, must have 1 to 13"},
        {0, 7, 13, "piece.total_bytes is 0, must be 1 to 4259840"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        hostile_init(&h, BT_WIRE_ROUTER);
        assert_int_equal(hear_piece(&h, n, 0, bytes, 7, &n_read, &err), BT_DONE);
        assert_int_equal(n_read, 0);
        expect_refused(
            hear_piece(&h, cases[i].total, cases[i].offset, bytes, cases[i].n_data, &n_read, &err),
            &err, cases[i].says);
        hostile_fini(&h);
    }
    hostile_init(&h, BT_WIRE_ROUTER); /* one byte at a time, across messages */
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(hear_piece(&h, n, i, bytes + i, 1, &n_read, &err), BT_DONE);
        assert_int_equal(n_read, i == n - 1);
    }
    assert_int_equal(hear_piece(&h, n, 0, bytes, n, &n_read, &err), BT_DONE); /* in one part */
    assert_int_equal(n_read, 1);
    hostile_fini(&h);
}

static void test_hostile_pieces(void **state) {
    (void)state;
    uint8_t bytes[64], pulse[] = {0x0a, 2, 0x52, 0}, nothing[] = {0x0a, 0};
    uint32_t n = (uint32_t)pack_refused(bytes);
    struct hostile h;
    struct bt_error err = {0};
    int n_read;
    hostile_init(&h, BT_WIRE_ROUTER);
    expect_refused(hear_piece(&h, BT_WIRE_JOIN_BYTES + 1, 0, bytes, 1, &n_read, &err), &err,
                   "piece.total_bytes is 4259841");
    hostile_fini(&h);
    hostile_init(&h, BT_WIRE_ROUTER);
    expect_refused(hear_piece(&h, n, 7, bytes, 7, &n_read, &err), &err, "piece.offset is 7");
    hostile_fini(&h);
    const uint8_t *between[] = {pulse, nothing};
    const size_t n_between[] = {sizeof pulse, sizeof nothing};
    for (int i = 0; i < 2; i++) { /* between the parts: another item, and one that is nothing */
        hostile_init(&h, BT_WIRE_ROUTER);
        assert_int_equal(hear_piece(&h, n, 0, bytes, 7, &n_read, &err), BT_DONE);
        expect_refused(hear_bytes(&h, between[i], n_between[i], &n_read, &err), &err,
                       "another item stands after 7 of 20 bytes");
        hostile_fini(&h);
    }
    /* A piece that holds a piece: it would never have to end. */
    Baton__V1__RouterItem item = BATON__V1__ROUTER_ITEM__INIT;
    Baton__V1__Piece piece = BATON__V1__PIECE__INIT;
    piece.total_bytes = 1;
    piece.data.data = bytes;
    piece.data.len = 1;
    item.item_case = BATON__V1__ROUTER_ITEM__ITEM_PIECE;
    item.piece = &piece;
    uint8_t inner[64];
    size_t n_inner = protobuf_c_message_pack(&item.base, inner);
    hostile_init(&h, BT_WIRE_ROUTER);
    expect_refused(hear_piece(&h, (uint32_t)n_inner, 0, inner, n_inner, &n_read, &err), &err,
                   "pieces join to a piece");
    hostile_fini(&h);
    /* Pieces that join to nonsense, and to an item that is not known (skipped). */
    hostile_init(&h, BT_WIRE_ROUTER);
    expect_refused(hear_piece(&h, 3, 0, "\xff\xff\xff", 3, &n_read, &err), &err,
                   "is no well-formed RouterItem");
    hostile_fini(&h);
    hostile_init(&h, BT_WIRE_ROUTER);
    assert_int_equal(hear_piece(&h, 3, 0, "\xa2\x06\x00", 3, &n_read, &err), BT_DONE);
    assert_int_equal(n_read, 0);
    assert_int_equal(hear_bytes(&h, pulse, sizeof pulse, &n_read, &err), BT_DONE);
    assert_int_equal(n_read, 1);
    hostile_fini(&h);
}

static void test_hostile_messages(void **state) {
    (void)state;
    struct hostile h;
    struct bt_error err = {0};
    int n_read;
    static const struct {
        const char *bytes;
        size_t n;
        const char *says;
    } cases[] = {
        {"\xff", 1, "no field tag at byte 0 of 1"},
        {"\x00", 1, "no field tag"},
        {"\x0b", 1, "cut off"}, /* a group */
        {"\x0a", 1, "cut off"},
        {"\x0a\x05\x52", 3, "cut off"},
        {"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11, "cut off"},
        {"\x11\x01\x02", 3, "cut off"},
        {"\x15\x01\x02", 3, "cut off"},
        {"\x0a\x02\x52\x05", 4, "no well-formed RouterItem"},
        {"\x0a\x01\x52", 3, "no well-formed RouterItem"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        hostile_init(&h, BT_WIRE_ROUTER);
        expect_refused(hear_bytes(&h, (const uint8_t *)cases[i].bytes, cases[i].n, &n_read, &err),
                       &err, cases[i].says);
        hostile_fini(&h);
    }
    /* Fields that we do not know, of each wire type, before an item that we know. */
    static const uint8_t grown[] = {0x10, 0x96, 0x01, 0x19, 1, 2, 3, 4, 5,    6, 7,    8, 0x22,
                                    2,    9,    9,    0x2d, 1, 2, 3, 4, 0x0a, 2, 0x52, 0};
    hostile_init(&h, BT_WIRE_ROUTER);
    assert_int_equal(hear_bytes(&h, grown, sizeof grown, &n_read, &err), BT_DONE);
    assert_int_equal(n_read, 1);
    assert_int_equal(hear_bytes(&h, grown, 0, &n_read, &err), BT_DONE); /* an empty message */
    hostile_fini(&h);
}

static void test_a_message_is_bounded(void **state) {
    (void)state;
    struct hostile h;
    struct bt_error err = {0};
    int n_read;
    uint8_t *bytes = calloc(1, BT_MESSAGE_BYTES + 1);
    hostile_init(&h, BT_WIRE_ROUTER);
    expect_refused(hear_bytes(&h, bytes, BT_MESSAGE_BYTES + 1, &n_read, &err), &err,
                   "message has 262145 bytes, must have at most 262144");
    for (size_t i = 0; i < BT_MESSAGE_BYTES; i += 2)
        bytes[i] = 0x0a; /* items of no bytes */
    expect_refused(hear_bytes(&h, bytes, BT_MESSAGE_BYTES, &n_read, &err), &err, "over 1024 items");
    assert_int_equal(hear_bytes(&h, bytes, 2048, &n_read, &err), BT_DONE);
    hostile_fini(&h);
    free(bytes);
}

/* Small bytes that take much memory to unpack are refused, not taken. */
static void test_unpacking_is_bounded(void **state) {
    (void)state;
    enum { N = BT_WIRE_JOIN_BYTES };
    struct hostile h;
    struct bt_error err = {0};
    int n_read = 0;
    uint8_t *bytes = malloc(N);
    for (size_t i = 0; i + 3 <= N; i += 3) /* unknown fields, each three bytes */
        memcpy(bytes + i, "\xf8\x06\x00", 3);
    memset(bytes + N / 3 * 3, 0, N % 3);
    hostile_init(&h, BT_WIRE_ROUTER);
    bt_status status = BT_DONE;
    for (uint32_t at = 0; at < N && status == BT_DONE;) {
        uint32_t n = N - at < 200000 ? N - at : 200000;
        status = hear_piece(&h, N, at, bytes + at, n, &n_read, &err);
        at += n;
    }
    expect_refused(status, &err, "to unpack, the bound");
    hostile_fini(&h);
    free(bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_message_comes_back),
        cmocka_unit_test(test_many_messages_keep_their_order),
        cmocka_unit_test(test_token_rows_join_and_split),
        cmocka_unit_test(test_rows_with_logprobs_fit_their_messages),
        cmocka_unit_test(test_small_items_share_a_message_up_to_its_bound),
        cmocka_unit_test(test_an_item_over_the_join_bound_is_not_sent),
        cmocka_unit_test(test_pieces_join_only_in_order),
        cmocka_unit_test(test_hostile_pieces),
        cmocka_unit_test(test_hostile_messages),
        cmocka_unit_test(test_a_message_is_bounded),
        cmocka_unit_test(test_unpacking_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

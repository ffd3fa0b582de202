/* Every bound of proto/registry.proto: one step past it is refused with a sentence, both ways. */
#include "tests/unit/rpc/sample.h"

#include <math.h>

#include "proto/registry.pb-c.h"

static const struct bt_census census = {.total = 10, .free = 6, .cached = 4};
static int32_t tokens[4] = {1, 2, 3, INT32_MAX};

/* A plain valid message of each type, to be spoilt in one place. */
static struct bt_msg valid(enum bt_msg_type type) {
    static struct bt_token row;
    static struct bt_logprobs logprobs;
    static struct bt_logit_bias bias[2];
    static struct bt_peer peer;
    static struct bt_resume resume;
    static struct bt_attempt key;
    logprobs = (struct bt_logprobs){.logprob = -1, .n_top = 2, .top = {{7, -0.5f}, {3, -1}}};
    row = (struct bt_token){.key = {1, 1}, .logprobs = &logprobs};
    bias[0] = (struct bt_logit_bias){3, -100};
    bias[1] = (struct bt_logit_bias){INT32_MAX, 100};
    peer = (struct bt_peer){.name = "d0", .incarnation = {0, 1}, .link_address = "h:1"};
    resume = (struct bt_resume){.key = {1, 1}, .ticket = {1, 0}};
    key = (struct bt_attempt){1, 1};
    struct bt_msg msg;
    memset(&msg, 0, sizeof msg);
    msg.type = type;
    switch (type) {
    case BT_MSG_JOIN:
        msg.join = (struct bt_msg_join){.name = "d0",
                                        .incarnation = {0, 1},
                                        .role = BT_ROLE_DECODE,
                                        .protocol_min = 1,
                                        .protocol_max = 1,
                                        .fingerprint = {.n_layers = 1,
                                                        .n_kv_heads = 1,
                                                        .head_dim = 64,
                                                        .page_tokens = 16,
                                                        .kv_type = 1,
                                                        .wire_type = 1,
                                                        .inner_order = 1,
                                                        .profile = 1,
                                                        .contract = 1},
                                        .link_address = "127.0.0.1:7000",
                                        .max_context = 1,
                                        .max_seqs = 1,
                                        .census = census};
        break;
    case BT_MSG_STATUS:
        msg.status.census = census;
        break;
    case BT_MSG_RESERVED:
        msg.reserved = (struct bt_msg_reserved){{1, 1}, true, 3, 3, (enum bt_end)0};
        break;
    case BT_MSG_LIVE:
        msg.live.key = key;
        break;
    case BT_MSG_TOKENS:
        msg.tokens = (struct bt_msg_tokens){&row, 1};
        break;
    case BT_MSG_REPORT:
        msg.ended = (struct bt_msg_ended){.key = {1, 1}, .reason = BT_END_DONE};
        break;
    case BT_MSG_ENDED:
        msg.ended = (struct bt_msg_ended){.key = {1, 1}, .reason = BT_END_INTERNAL};
        break;
    case BT_MSG_SCORES:
        msg.scores = (struct bt_msg_scores){{1, 1}, 1, &logprobs, 1};
        break;
    case BT_MSG_WELCOME:
        msg.welcome = (struct bt_msg_welcome){{1, 0}, 1};
        break;
    case BT_MSG_REFUSED:
        msg.refused.reason[0] = 'x';
        break;
    case BT_MSG_PEERS:
        msg.peers = (struct bt_msg_peers){&peer, 1};
        break;
    case BT_MSG_RESUME:
        msg.resume = (struct bt_msg_resume){&resume, 1};
        break;
    case BT_MSG_RESERVE:
    case BT_MSG_PREFILL:
        msg.work = (struct bt_msg_work){.key = {1, 1},
                                        .ticket = {1, 0},
                                        .tokens = tokens,
                                        .n_tokens = 4,
                                        .n_prompt = 4,
                                        .sampling = {.temperature = 2,
                                                     .top_p = 1,
                                                     .min_p = 1,
                                                     .frequency_penalty = -2,
                                                     .presence_penalty = 2,
                                                     .repetition_penalty = 10,
                                                     .logprobs = 1 + BT_TOP_LOGPROBS,
                                                     .prompt_logprobs = 1 + BT_TOP_LOGPROBS,
                                                     .n_bias = 2,
                                                     .bias = bias,
                                                     .max_tokens = 1048576,
                                                     .min_tokens = 1048576,
                                                     .n_stop_tokens = 16},
                                        .remaining_ms = 86400000,
                                        .elapsed_ms = 86400000,
                                        .peer = {0, 1}};
        break;
    case BT_MSG_CANCEL:
    case BT_MSG_PGONE:
        msg.cancel = (struct bt_msg_cancel){{1, 1}, {1, 0}};
        break;
    case BT_MSG_SEEN:
        msg.seen = (struct bt_msg_seen){&key, 1};
        break;
    default:
        break;
    }
    return msg;
}

/* The change is refused with the sentence; without it the message is fine. */
#define REFUSED(type_, says, ...)                                                               \
    do {                                                                                        \
        struct bt_error err_ = {0};                                                             \
        struct bt_msg m = valid(type_);                                                         \
        if (bt_wire_check(&m, side_of(type_), &err_) != BT_OK)                                  \
            fail_msg("a valid message is refused: %s", err_.text);                              \
        __VA_ARGS__;                                                                            \
        bt_status status_ = bt_wire_check(&m, side_of(type_), &err_);                           \
        if ((status_ != BT_E_INVALID && status_ != BT_E_TOO_LARGE) || err_.status != status_ || \
            !strstr(err_.text, says))                                                           \
            fail_msg("line %d: status %d, \"%s\" does not say \"%s\"", __LINE__, (int)status_,  \
                     err_.text, says);                                                          \
    } while (0)

static void test_join(void **state) {
    (void)state;
    REFUSED(BT_MSG_JOIN, "join.name has 0 bytes, must have 1 to 63", m.join.name[0] = 0);
    REFUSED(BT_MSG_JOIN, "join.name has no end within 64 bytes", memset(m.join.name, 'a', 64));
    REFUSED(BT_MSG_JOIN, "join.name has the byte 0x0a at 1", strcpy(m.join.name, "a\nb"));
    REFUSED(BT_MSG_JOIN, "join.name has the byte 0x7f at 0", strcpy(m.join.name, "\x7f"));
    REFUSED(BT_MSG_JOIN, "byte 0xc3 at 2", strcpy(m.join.name, "ab\xc3"));
    REFUSED(BT_MSG_JOIN, "byte 0xc0 at 0", strcpy(m.join.name, "\xc0\xaf")); /* overlong */
    REFUSED(BT_MSG_JOIN, "byte 0xe0 at 0", strcpy(m.join.name, "\xe0\x80\x80"));
    REFUSED(BT_MSG_JOIN, "byte 0xed at 0", strcpy(m.join.name, "\xed\xa0\x80")); /* surrogate */
    REFUSED(BT_MSG_JOIN, "byte 0xf0 at 0", strcpy(m.join.name, "\xf0\x80\x80\x80"));
    REFUSED(BT_MSG_JOIN, "byte 0xf4 at 0", strcpy(m.join.name, "\xf4\x90\x80\x80")); /* past it */
    REFUSED(BT_MSG_JOIN, "byte 0xc2 at 0", strcpy(m.join.name, "\xc2\x85"));         /* control */
    REFUSED(BT_MSG_JOIN, "join.incarnation is 0", m.join.incarnation.lo = 0);
    REFUSED(BT_MSG_JOIN, "join.role is 0, must be 1 to 2", m.join.role = (enum bt_role)0);
    REFUSED(BT_MSG_JOIN, "join.role is 3, must be 1 to 2", m.join.role = (enum bt_role)3);
    REFUSED(BT_MSG_JOIN, "join.protocol_min is 0", m.join.protocol_min = 0);
    REFUSED(BT_MSG_JOIN, "join.protocol_max is 1, must be 2 to", m.join.protocol_min = 2);
    REFUSED(BT_MSG_JOIN, "join.fingerprint: layout field n_layers is 0",
            m.join.fingerprint.n_layers = 0);
    REFUSED(BT_MSG_JOIN, "join.link_address has 0 bytes", m.join.link_address[0] = 0);
    REFUSED(BT_MSG_JOIN, "join.link_address: address \"nonsense\" must be host:port",
            strcpy(m.join.link_address, "nonsense"));
    REFUSED(BT_MSG_JOIN, "must be empty for a prefill worker", m.join.role = BT_ROLE_PREFILL);
    REFUSED(BT_MSG_JOIN, "join.max_context is 0", m.join.max_context = 0);
    REFUSED(BT_MSG_JOIN, "join.max_seqs is 0", m.join.max_seqs = 0);
    REFUSED(BT_MSG_JOIN, "join.census.total is 11, must be the sum of the others, 10",
            m.join.census.total = 11);
}

static void test_worker_messages(void **state) {
    (void)state;
    REFUSED(BT_MSG_STATUS, "status.census.total is 10, must be the sum of the others, 11",
            m.status.census.armed = 1);
    REFUSED(BT_MSG_STATUS, "must be the sum of the others, 4294967306", /* no wrap */
            m.status.census.free = UINT32_MAX;
            m.status.census.cached = 11);
    REFUSED(BT_MSG_BLOCKS, "blocks.added has 262145 entries, must have at most 262144",
            m.blocks.n_added = 262145);
    REFUSED(BT_MSG_BLOCKS, "blocks.evicted has 262145 entries", m.blocks.n_evicted = 262145);
    REFUSED(BT_MSG_RESERVED, "reserved.key.request is 0", m.reserved.key.request = 0);
    REFUSED(BT_MSG_RESERVED, "reserved.key.attempt is 0", m.reserved.key.attempt = 0);
    REFUSED(BT_MSG_RESERVED, "reserved.pages_held is 4, must be 0 to 3", m.reserved.pages_held = 4);
    REFUSED(BT_MSG_RESERVED, "reserved.reason of an accepted one is 3, must be 0 to 0",
            m.reserved.reason = BT_END_FULL);
    REFUSED(BT_MSG_RESERVED, "reserved.reason of a refused one is 0", m.reserved.accepted = false);
    REFUSED(BT_MSG_RESERVED, "refused one is 1, must be FULL, DRAINING, INVALID or DEADLINE",
            m.reserved.accepted = false;
            m.reserved.reason = BT_END_DONE);
    REFUSED(BT_MSG_LIVE, "live.key.attempt is 0", m.live.key.attempt = 0);
    REFUSED(BT_MSG_TOKENS, "tokens has 8193 entries, must have at most 8192",
            m.tokens.n_rows = 8193);
    REFUSED(BT_MSG_TOKENS, "tokens.request is 0",
            ((struct bt_token *)m.tokens.rows)->key.request = 0);
    REFUSED(BT_MSG_TOKENS, "tokens.attempt is 0",
            ((struct bt_token *)m.tokens.rows)->key.attempt = 0);
    REFUSED(BT_MSG_TOKENS, "tokens.token is 4294967295, must be 0 to 2147483647",
            ((struct bt_token *)m.tokens.rows)->token = -1);
    REFUSED(BT_MSG_TOKENS, "tokens.finish is 4, must be 0 to 3",
            ((struct bt_token *)m.tokens.rows)->finish = (enum bt_finish)4);
    struct bt_logprobs *l = (struct bt_logprobs *)valid(BT_MSG_TOKENS).tokens.rows->logprobs;
    for (int i = 0; i < 2; i++) {
        enum bt_msg_type t = i ? BT_MSG_SCORES : BT_MSG_TOKENS;
        REFUSED(t, "logprobs.own is 0.5, must be -9999 to 0", l->logprob = 0.5f);
        REFUSED(t, "logprobs.own is -10000", l->logprob = -10000);
        REFUSED(t, "logprobs.own is", l->logprob = NAN);
        REFUSED(t, "logprobs.own is -inf", l->logprob = -INFINITY);
        REFUSED(t, "number of logprobs.top is 21, must be 0 to 20", l->n_top = 21);
        REFUSED(t, "logprobs.top_token is 4294967295", l->top[1].token = -1);
        REFUSED(t, "logprobs.top is", l->top[1].logprob = NAN);
    }
    REFUSED(BT_MSG_SCORES, "scores.key.request is 0", m.scores.key.request = 0);
    REFUSED(BT_MSG_SCORES, "scores.first is 0, must be 1 to 1048576", m.scores.first = 0);
    REFUSED(BT_MSG_SCORES, "number of scores is 0", m.scores.n_rows = 0);
    REFUSED(BT_MSG_SCORES, "scores has 1025 entries, must have at most 1024",
            m.scores.n_rows = 1025);
    REFUSED(BT_MSG_ENDED, "ended.key.request is 0", m.ended.key.request = 0);
    REFUSED(BT_MSG_REPORT, "report.key.attempt is 0", m.ended.key.attempt = 0);
    REFUSED(BT_MSG_REPORT, "report.reason is 2, must be 0 to 1", m.ended.reason = BT_END_HANDED);
    REFUSED(BT_MSG_ENDED, "ended.reason is 0, must be 1 to 14", m.ended.reason = (enum bt_end)0);
    REFUSED(BT_MSG_ENDED, "ended.reason is 15, must be 1 to 14", m.ended.reason = BT_END_COUNT);
}

static void test_router_messages(void **state) {
    (void)state;
    REFUSED(BT_MSG_WELCOME, "welcome.incarnation is 0", m.welcome.incarnation.hi = 0);
    REFUSED(BT_MSG_WELCOME, "welcome.protocol is 0", m.welcome.protocol = 0);
    REFUSED(BT_MSG_REFUSED, "refused.reason has 0 bytes, must have 1 to 255",
            m.refused.reason[0] = 0);
    REFUSED(BT_MSG_REFUSED, "refused.reason has the byte 0x1b at 1",
            strcpy(m.refused.reason, "a\x1b[2J"));
    REFUSED(BT_MSG_PEERS, "peers has 65 entries, must have at most 64", m.peers.n_peers = 65);
    REFUSED(BT_MSG_PEERS, "peers.name has 0 bytes", ((struct bt_peer *)m.peers.peers)->name[0] = 0);
    REFUSED(BT_MSG_PEERS, "peers.incarnation is 0",
            ((struct bt_peer *)m.peers.peers)->incarnation.lo = 0);
    REFUSED(BT_MSG_PEERS, "peers.link_address: address \"h:99999\"",
            strcpy(((struct bt_peer *)m.peers.peers)->link_address, "h:99999"));
    REFUSED(BT_MSG_RESUME, "resume has 16385 entries, must have at most 16384",
            m.resume.n_rows = 16385);
    REFUSED(BT_MSG_RESUME, "resume.key.request is 0",
            ((struct bt_resume *)m.resume.rows)->key.request = 0);
    REFUSED(BT_MSG_RESUME, "resume.ticket is 0",
            ((struct bt_resume *)m.resume.rows)->ticket.hi = 0);
    REFUSED(BT_MSG_CANCEL, "cancel.key.attempt is 0", m.cancel.key.attempt = 0);
    REFUSED(BT_MSG_CANCEL, "cancel.ticket is 0", m.cancel.ticket.hi = 0);
    REFUSED(BT_MSG_PGONE, "prefill_gone.key.request is 0", m.pgone.key.request = 0);
    REFUSED(BT_MSG_PGONE, "prefill_gone.ticket is 0", m.pgone.ticket.hi = 0);
    REFUSED(BT_MSG_SEEN, "seen has 8193 entries, must have at most 8192", m.seen.n_keys = 8193);
    REFUSED(BT_MSG_SEEN, "seen.key.attempt is 0", ((struct bt_attempt *)m.seen.keys)->attempt = 0);
}

static void test_work(void **state) {
    (void)state;
    for (int type = BT_MSG_RESERVE; type <= BT_MSG_PREFILL; type++) {
        enum bt_msg_type t = (enum bt_msg_type)type;
        int32_t bad[1] = {-1};
        REFUSED(t, "work.key.request is 0", m.work.key.request = 0);
        REFUSED(t, "work.ticket is 0", m.work.ticket.hi = 0);
        REFUSED(t, "work.tokens has 1048577 entries, must have at most 1048576",
                m.work.n_tokens = 1048577);
        REFUSED(t, "number of work.tokens is 0", m.work.n_tokens = 0);
        REFUSED(t, "work.n_prompt is 0, must be 1 to 4", m.work.n_prompt = 0);
        REFUSED(t, "work.n_prompt is 5, must be 1 to 4", m.work.n_prompt = 5);
        REFUSED(t, "work.tokens is 4294967295, must be 0 to 2147483647", m.work.tokens = bad;
                m.work.n_tokens = m.work.n_prompt = 1);
        REFUSED(t, "work.remaining_ms is 86400001, must be 0 to 86400000",
                m.work.remaining_ms = 86400001);
        REFUSED(t, "work.elapsed_ms is 86400001, must be 0 to 86400000",
                m.work.elapsed_ms = 86400001);
        REFUSED(t, "work.tenant has the byte 0x01", strcpy(m.work.tenant, "\x01"));
        REFUSED(t, "work.peer is 0", m.work.peer.lo = 0);
    }
    struct bt_msg alone = valid(BT_MSG_RESERVE);
    alone.work.peer.lo = 0;
    alone.work.prefill_here = true;
    assert_int_equal(bt_wire_check(&alone, BT_WIRE_ROUTER, NULL), BT_OK);
}

static void test_sampling(void **state) {
    (void)state;
    enum bt_msg_type t = BT_MSG_RESERVE;
    REFUSED(t, "sampling.temperature is -0.01, must be 0 to 2",
            m.work.sampling.temperature = -0.01f);
    REFUSED(t, "sampling.temperature is 2.01", m.work.sampling.temperature = 2.01f);
    REFUSED(t, "sampling.temperature is", m.work.sampling.temperature = NAN);
    REFUSED(t, "sampling.top_p is 0, must be over 0, at most 1", m.work.sampling.top_p = 0);
    REFUSED(t, "sampling.top_p is 1.01", m.work.sampling.top_p = 1.01f);
    REFUSED(t, "sampling.top_p is", m.work.sampling.top_p = NAN);
    REFUSED(t, "sampling.min_p is -1", m.work.sampling.min_p = -1);
    REFUSED(t, "sampling.min_p is 1.5, must be 0 to 1", m.work.sampling.min_p = 1.5f);
    REFUSED(t, "sampling.top_k is 4294967295, must be 0 to 2147483647", m.work.sampling.top_k = -1);
    REFUSED(t, "sampling.frequency_penalty is 2.5, must be -2 to 2",
            m.work.sampling.frequency_penalty = 2.5f);
    REFUSED(t, "sampling.presence_penalty is -2.5, must be -2 to 2",
            m.work.sampling.presence_penalty = -2.5f);
    REFUSED(t, "sampling.repetition_penalty is 0, must be over 0, at most 10",
            m.work.sampling.repetition_penalty = 0);
    REFUSED(t, "sampling.repetition_penalty is inf", m.work.sampling.repetition_penalty = INFINITY);
    REFUSED(t, "sampling.max_tokens is 0, must be 1 to 1048576", m.work.sampling.max_tokens = 0);
    REFUSED(t, "sampling.max_tokens is 1048577", m.work.sampling.max_tokens = 1048577);
    REFUSED(t, "sampling.min_tokens is 1048576, must be 0 to 5", m.work.sampling.max_tokens = 5);
    REFUSED(t, "sampling.stop_tokens has 17 entries, must have at most 16",
            m.work.sampling.n_stop_tokens = 17);
    REFUSED(t, "sampling.stop_tokens is 4294967295", m.work.sampling.stop_tokens[15] = -1);
    REFUSED(t, "sampling.logprobs is 22, must be 0 to 21", m.work.sampling.logprobs = 22);
    REFUSED(t, "sampling.prompt_logprobs is 22", m.work.sampling.prompt_logprobs = 22);
    struct bt_logit_bias *bias = (struct bt_logit_bias *)valid(t).work.sampling.bias;
    REFUSED(t, "sampling.bias has 301 entries, must have at most 300",
            m.work.sampling.n_bias = 301);
    REFUSED(t, "sampling.bias_token is 4294967295", bias[0].token = -1);
    REFUSED(t, "sampling.bias_token is 3 after 3, must rise", bias[1].token = 3);
    REFUSED(t, "sampling.bias is 100.5, must be -100 to 100", bias[0].bias = 100.5f);
    REFUSED(t, "sampling.bias is", bias[1].bias = NAN);
}

static void test_each_side_has_its_own(void **state) {
    (void)state;
    for (int type = 0; type <= BT_MSG_COUNT; type++) {
        struct bt_error err = {0};
        struct bt_msg msg = valid((enum bt_msg_type)type);
        bool worker = (type >= BT_MSG_JOIN && type <= BT_MSG_ENDED) ||
                      (type >= BT_MSG_SCORES && type < BT_MSG_COUNT);
        bool router = type >= BT_MSG_WELCOME && type <= BT_MSG_FLUSH;
        assert_int_equal(bt_wire_check(&msg, BT_WIRE_WORKER, &err) == BT_OK, worker);
        assert_int_equal(bt_wire_check(&msg, BT_WIRE_ROUTER, &err) == BT_OK, router);
    }
}

/* ---- what only the wire can hold ---- */

static void expect_unpack_refused(const ProtobufCMessage *message, enum bt_wire_side from,
                                  const char *says) {
    size_t n = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = malloc(n + 1);
    assert_non_null(bytes);
    protobuf_c_message_pack(message, bytes);
    struct bt_wire_reader reader;
    struct bt_wire_arena arena;
    struct bt_msg msg;
    struct bt_error err = {0};
    bt_wire_reader_init(&reader, from);
    bt_wire_arena_init(&arena, BT_WIRE_ARENA_BYTES);
    bt_wire_reader_begin(&reader, bytes, n);
    bt_status status = bt_wire_reader_next(&reader, &arena, &msg, &err);
    if ((status != BT_E_INVALID && status != BT_E_TOO_LARGE) || !strstr(err.text, says))
        fail_msg("status %d, \"%s\" does not say \"%s\"", (int)status, err.text, says);
    bt_wire_reader_fini(&reader);
    bt_wire_arena_fini(&arena);
    free(bytes);
}

static void from_worker(Baton__V1__WorkerItem__ItemCase item_case, void *body, const char *says) {
    Baton__V1__WorkerMessage message = BATON__V1__WORKER_MESSAGE__INIT;
    Baton__V1__WorkerItem item = BATON__V1__WORKER_ITEM__INIT, *items[] = {&item};
    item.item_case = item_case;
    item.join = body;
    message.items = items;
    message.n_items = 1;
    expect_unpack_refused(&message.base, BT_WIRE_WORKER, says);
}

static void from_router(Baton__V1__RouterItem__ItemCase item_case, void *body, const char *says) {
    Baton__V1__RouterMessage message = BATON__V1__ROUTER_MESSAGE__INIT;
    Baton__V1__RouterItem item = BATON__V1__ROUTER_ITEM__INIT, *items[] = {&item};
    item.item_case = item_case;
    item.welcome = body;
    message.items = items;
    message.n_items = 1;
    expect_unpack_refused(&message.base, BT_WIRE_ROUTER, says);
}

static void test_what_is_left_out(void **state) {
    (void)state;
    Baton__V1__Join join = BATON__V1__JOIN__INIT;
    from_worker(BATON__V1__WORKER_ITEM__ITEM_JOIN, &join, "fingerprint has 0 bytes, must have 64");
    Baton__V1__Reserved reserved = BATON__V1__RESERVED__INIT;
    from_worker(BATON__V1__WORKER_ITEM__ITEM_RESERVED, &reserved, "reserved.key.request is 0");
    Baton__V1__Live live = BATON__V1__LIVE__INIT;
    from_worker(BATON__V1__WORKER_ITEM__ITEM_LIVE, &live, "live.key.request is 0");
    Baton__V1__Ended ended = BATON__V1__ENDED__INIT;
    from_worker(BATON__V1__WORKER_ITEM__ITEM_ENDED, &ended, "ended.key.request is 0");
    Baton__V1__Welcome welcome = BATON__V1__WELCOME__INIT;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_WELCOME, &welcome, "welcome.incarnation is 0");
    Baton__V1__Attempt key = BATON__V1__ATTEMPT__INIT;
    key.request = key.attempt = 1;
    Baton__V1__Cancel cancel = BATON__V1__CANCEL__INIT;
    cancel.key = &key;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_CANCEL, &cancel, "cancel.ticket is 0");
    Baton__V1__PrefillGone gone = BATON__V1__PREFILL_GONE__INIT;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_PREFILL_GONE, &gone, "prefill_gone.key.request is 0");
    Baton__V1__Work work = BATON__V1__WORK__INIT;
    Baton__V1__Id id = BATON__V1__ID__INIT;
    uint32_t token = 5;
    id.lo = 1;
    work.key = &key;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_RESERVE, &work, "work.ticket is 0");
    work.ticket = work.peer = &id;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_PREFILL, &work, "number of work.tokens is 0");
    work.tokens = &token;
    work.n_tokens = work.n_prompt = 1;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_PREFILL, &work, "sampling.top_p is 0");
    Baton__V1__Sampling sampling = BATON__V1__SAMPLING__INIT;
    sampling.top_p = sampling.repetition_penalty = 1;
    sampling.max_tokens = 1;
    sampling.prompt_logprobs = 256 + 1; /* 1 in a byte */
    work.sampling = &sampling;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_PREFILL, &work, "sampling.prompt_logprobs is 255");
    token = 1u << 31;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_PREFILL, &work, "work.tokens is 2147483648");
    Baton__V1__ResumeRow row = BATON__V1__RESUME_ROW__INIT, *rows[] = {&row};
    Baton__V1__Resume resume = BATON__V1__RESUME__INIT;
    resume.rows = rows;
    resume.n_rows = 1;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_RESUME, &resume, "resume.key.request is 0");
}

static void test_texts_that_are_too_long(void **state) {
    (void)state;
    char text[300];
    memset(text, 'a', sizeof text);
    text[256] = 0;
    Baton__V1__Refused refused = BATON__V1__REFUSED__INIT;
    refused.reason = text;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_REFUSED, &refused,
                "refused.reason has 256 bytes, must have at most 255");
    text[64] = 0;
    Baton__V1__Join join = BATON__V1__JOIN__INIT;
    join.name = text;
    from_worker(BATON__V1__WORKER_ITEM__ITEM_JOIN, &join,
                "join.name has 64 bytes, must have at most 63");
    join.name = "a";
    join.link_address = text;
    from_worker(BATON__V1__WORKER_ITEM__ITEM_JOIN, &join, "join.link_address has 64 bytes");
    Baton__V1__Peer peer = BATON__V1__PEER__INIT, *peers[] = {&peer};
    Baton__V1__Peers list = BATON__V1__PEERS__INIT;
    list.peers = peers;
    list.n_peers = 1;
    peer.name = text;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_PEERS, &list, "peers.name has 64 bytes");
    peer.name = "a";
    peer.link_address = text;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_PEERS, &list, "peers.link_address has 64 bytes");
    Baton__V1__Work work = BATON__V1__WORK__INIT;
    work.tenant = text;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_RESERVE, &work, "work.tenant has 64 bytes");
}

static void test_columns(void **state) {
    (void)state;
    uint64_t wide[2] = {1, 1};
    uint32_t narrow[2] = {1, 2};
    Baton__V1__Finish finish[2] = {BATON__V1__FINISH__FINISH_NONE, (Baton__V1__Finish)9};
    Baton__V1__Tokens t = BATON__V1__TOKENS__INIT;
    t.request = t.hash = wide;
    t.attempt = t.index = t.token = narrow;
    t.finish = finish;
    t.n_request = t.n_attempt = t.n_index = t.n_token = t.n_finish = t.n_hash = 2;
    Baton__V1__WorkerItem__ItemCase tokens_case = BATON__V1__WORKER_ITEM__ITEM_TOKENS;
    from_worker(tokens_case, &t, "tokens.finish is 9, must be 0 to 3");
    t.n_attempt = 1;
    from_worker(tokens_case, &t, "tokens.attempt has 1 entries, must have 2 as the first column");
    t.n_attempt = 2, t.n_index = 0;
    from_worker(tokens_case, &t, "tokens.index has 0 entries, must have 2");
    t.n_index = 2, t.n_token = 1;
    from_worker(tokens_case, &t, "tokens.token has 1 entries");
    t.n_token = 2, t.n_finish = 1;
    from_worker(tokens_case, &t, "tokens.finish has 1 entries");
    t.n_finish = 2, t.n_hash = 1;
    from_worker(tokens_case, &t, "tokens.hash has 1 entries, must have 2 or none");
    Baton__V1__Seen seen = BATON__V1__SEEN__INIT;
    seen.request = wide;
    seen.n_request = 2;
    seen.attempt = narrow;
    seen.n_attempt = 1;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_SEEN, &seen,
                "seen.attempt has 1 entries, must have 2");
}

static void test_logprob_columns(void **state) {
    (void)state;
    uint64_t request[2] = {1, 1};
    uint32_t ones[2] = {1, 1}, shown[2] = {2, 1};
    float values[2] = {-1, -1};
    Baton__V1__Attempt key = BATON__V1__ATTEMPT__INIT;
    Baton__V1__Logprobs l = BATON__V1__LOGPROBS__INIT;
    l.shown = shown, l.own = values, l.top = values, l.top_token = ones;
    l.n_shown = l.n_own = 2, l.n_top_token = l.n_top = 1;
    Baton__V1__Tokens t = BATON__V1__TOKENS__INIT;
    t.request = request, t.attempt = t.index = t.token = ones;
    t.n_request = t.n_attempt = t.n_index = t.n_token = 2;
    t.logprobs = &l;
    Baton__V1__Scores s = BATON__V1__SCORES__INIT;
    key.request = key.attempt = 1;
    s.key = &key, s.first = 1, s.rows = &l;
    Baton__V1__WorkerItem__ItemCase tokens_case = BATON__V1__WORKER_ITEM__ITEM_TOKENS,
                                    scores_case = BATON__V1__WORKER_ITEM__ITEM_SCORES;
    l.n_shown = 1;
    from_worker(tokens_case, &t, "logprobs.shown has 1 entries, must have 2");
    from_worker(scores_case, &s, "logprobs.shown has 1 entries, must have 2");
    l.n_shown = 2, l.n_own = 1;
    from_worker(tokens_case, &t, "logprobs.own has 1 entries, must have 2");
    l.n_own = 2, l.n_top = 0;
    from_worker(tokens_case, &t, "logprobs.top have 1 and 0 entries, must have 1");
    l.n_top = 1, shown[0] = 22;
    from_worker(tokens_case, &t, "logprobs.shown is 22, must be 0 to 21");
    shown[0] = UINT32_MAX;
    from_worker(tokens_case, &t, "logprobs.shown is 4294967295");
    shown[0] = 2, shown[1] = 0, l.n_own = 1;
    from_worker(scores_case, &s, "logprobs.shown has 2 entries, must have 1");
    s.rows = NULL;
    from_worker(scores_case, &s, "number of scores is 0");
}

static void test_lists_that_are_too_long(void **state) {
    (void)state;
    enum { N = 20000 };
    uint64_t *wide = calloc(N, sizeof *wide);
    uint32_t *narrow = calloc(N, sizeof *narrow);
    Baton__V1__Tokens t = BATON__V1__TOKENS__INIT;
    t.request = wide;
    t.n_request = 8193;
    from_worker(BATON__V1__WORKER_ITEM__ITEM_TOKENS, &t,
                "tokens.request has 8193 entries, must have at most 8192");
    Baton__V1__Seen seen = BATON__V1__SEEN__INIT;
    seen.request = wide;
    seen.n_request = 8193;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_SEEN, &seen, "seen.request has 8193 entries");
    Baton__V1__Peer peer = BATON__V1__PEER__INIT, *peers[65];
    Baton__V1__ResumeRow row = BATON__V1__RESUME_ROW__INIT, **rows = malloc(N * sizeof *rows);
    for (int i = 0; i < N; i++)
        rows[i] = &row;
    for (int i = 0; i < 65; i++)
        peers[i] = &peer;
    Baton__V1__Peers list = BATON__V1__PEERS__INIT;
    list.peers = peers;
    list.n_peers = 65;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_PEERS, &list, "peers has 65 entries");
    Baton__V1__Resume resume = BATON__V1__RESUME__INIT;
    resume.rows = rows;
    resume.n_rows = 16385;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_RESUME, &resume, "resume has 16385 entries");
    Baton__V1__Sampling sampling = BATON__V1__SAMPLING__INIT;
    sampling.stop_tokens = narrow;
    sampling.n_stop_tokens = 256 + 1; /* 1 in a byte */
    Baton__V1__Work work = BATON__V1__WORK__INIT;
    work.sampling = &sampling;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_RESERVE, &work, "sampling.stop_tokens has 257");
    sampling.n_stop_tokens = 0;
    sampling.bias_token = narrow;
    sampling.n_bias_token = 301;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_RESERVE, &work, "sampling.bias_token has 301");
    sampling.n_bias_token = 2;
    from_router(BATON__V1__ROUTER_ITEM__ITEM_RESERVE, &work,
                "sampling.bias has 0 entries, must have 2");
    free(wide);
    free(narrow);
    free(rows);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_join),
        cmocka_unit_test(test_worker_messages),
        cmocka_unit_test(test_router_messages),
        cmocka_unit_test(test_work),
        cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_each_side_has_its_own),
        cmocka_unit_test(test_what_is_left_out),
        cmocka_unit_test(test_texts_that_are_too_long),
        cmocka_unit_test(test_columns),
        cmocka_unit_test(test_logprob_columns),
        cmocka_unit_test(test_lists_that_are_too_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

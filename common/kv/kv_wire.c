/* Packs and checks what goes over a KV link: unit headers and control messages. */
#include "common/kv/kv_wire.h"

#include <string.h>
#include <xxhash.h>

#include "common/base/assert.h"
#include "common/base/bytes.h"
#include "proto/kv.pb-c.h"

_Static_assert(BT_KV_FRAME_PAGES == 64 && BT_KV_FRAME_BYTES == 262144 && BT_KV_PAGES_MAX == 65536,
               "kv_wire.h and proto/kv.proto name these numbers");
_Static_assert((int)BT_KV_REASON_COUNT == BATON__V1__REASON__REASON_PEER + 1 &&
                   (int)BT_KV_REASON_CHECKSUM == BATON__V1__REASON__REASON_CHECKSUM,
               "enum bt_kv_reason is proto/kv.proto's Reason");
_Static_assert((int)BT_FINISH_ERROR == BATON__V1__FINISH__FINISH_ERROR &&
                   (int)BT_FINISH_STOP == BATON__V1__FINISH__FINISH_STOP,
               "enum bt_finish is proto/registry.proto's Finish");

/* ---- headers ---- */

static void seal(uint8_t header[BT_KV_HEADER_BYTES], enum bt_kv_unit_type type, uint32_t length) {
    bt_store_u32(header, BT_KV_MAGIC);
    bt_store_u32(header + 4, type);
    bt_store_u32(header + 36, length);
    bt_store_u64(header + 40, XXH3_64bits(header, 40));
}

void bt_kv_header_pack_frame(const struct bt_kv_frame *frame, uint8_t out[BT_KV_HEADER_BYTES]) {
    bt_store_u32(out + 8, frame->lease);
    bt_store_u32(out + 12, frame->layer);
    bt_store_u64(out + 16, frame->generation);
    bt_store_u32(out + 24, frame->first_page);
    bt_store_u32(out + 28, frame->n_pages);
    bt_store_u32(out + 32, frame->offset);
    seal(out, BT_KV_UNIT_FRAME, frame->length);
}

void bt_kv_header_pack_control(const uint8_t *payload, uint32_t n_bytes,
                               uint8_t out[BT_KV_HEADER_BYTES]) {
    BT_ASSERT(n_bytes >= 1 && n_bytes <= BT_KV_CONTROL_BYTES);
    memset(out, 0, BT_KV_HEADER_BYTES);
    bt_store_u64(out + 16, XXH3_64bits(payload, n_bytes));
    seal(out, BT_KV_UNIT_CONTROL, n_bytes);
}

static bt_status check_frame(const struct bt_kv_frame *f, uint32_t page_bytes,
                             struct bt_error *err) {
    if (f->layer >= BT_KV_LAYERS_MAX)
        return bt_fail(err, BT_E_PROTOCOL, "frame's layer is %u, must be below %d", f->layer,
                       BT_KV_LAYERS_MAX);
    if (f->n_pages < 1 || f->n_pages > BT_KV_FRAME_PAGES)
        return bt_fail(err, BT_E_PROTOCOL, "frame's n_pages is %u, must be 1 to %d", f->n_pages,
                       BT_KV_FRAME_PAGES);
    if (f->first_page > BT_KV_PAGES_MAX - f->n_pages)
        return bt_fail(err, BT_E_PROTOCOL, "frame's pages %u + %u end behind page %d",
                       f->first_page, f->n_pages, BT_KV_PAGES_MAX);
    if (f->length < 1 || f->length > BT_KV_FRAME_BYTES)
        return bt_fail(err, BT_E_PROTOCOL, "frame's length is %u, must be 1 to %d", f->length,
                       BT_KV_FRAME_BYTES);
    if (f->n_pages > 1 && f->offset)
        return bt_fail(err, BT_E_PROTOCOL, "frame of %u pages has offset %u, must be 0", f->n_pages,
                       f->offset);
    if (f->n_pages > 1 && f->length != (uint64_t)f->n_pages * page_bytes)
        return bt_fail(err, BT_E_PROTOCOL, "frame of %u pages has length %u, must be %llu",
                       f->n_pages, f->length, (unsigned long long)f->n_pages * page_bytes);
    if ((uint64_t)f->offset + f->length > page_bytes && f->n_pages == 1)
        return bt_fail(err, BT_E_PROTOCOL, "frame's piece %u + %u ends behind the page's %u bytes",
                       f->offset, f->length, page_bytes);
    return BT_OK;
}

bt_status bt_kv_header_unpack(const uint8_t bytes[BT_KV_HEADER_BYTES], uint32_t page_bytes,
                              struct bt_kv_unit *out, struct bt_error *err) {
    /* A TLS record: its type, handshake or alert, then its version (RFC 8446, section 5.1). */
    if ((bytes[0] == 0x16 || bytes[0] == 0x15) && bytes[1] == 0x03)
        return bt_fail(
            err, BT_E_PROTOCOL,
            "the peer speaks TLS and this side does not (--tls-cert, --tls-key, --tls-ca)");
    if (bt_load_u32(bytes) != BT_KV_MAGIC)
        return bt_fail(err, BT_E_PROTOCOL,
                       "unit begins with %08x where %08x must stand: not a KV link",
                       bt_load_u32(bytes), BT_KV_MAGIC);
    if (bt_load_u64(bytes + 40) != XXH3_64bits(bytes, 40))
        return bt_fail(err, BT_E_PROTOCOL, "unit header's hash is %016llx, its bytes have %016llx",
                       (unsigned long long)bt_load_u64(bytes + 40),
                       (unsigned long long)XXH3_64bits(bytes, 40));
    struct bt_kv_unit unit = {
        .length = bt_load_u32(bytes + 36),
        .frame = {.lease = bt_load_u32(bytes + 8),
                  .generation = bt_load_u64(bytes + 16),
                  .layer = bt_load_u32(bytes + 12),
                  .first_page = bt_load_u32(bytes + 24),
                  .n_pages = bt_load_u32(bytes + 28),
                  .offset = bt_load_u32(bytes + 32),
                  .length = bt_load_u32(bytes + 36)},
    };
    uint32_t type = bt_load_u32(bytes + 4);
    if (type == BT_KV_UNIT_FRAME) {
        BT_TRY(check_frame(&unit.frame, page_bytes, err));
    } else if (type == BT_KV_UNIT_CONTROL) {
        const struct bt_kv_frame *f = &unit.frame;
        if (f->lease || f->layer || f->first_page || f->n_pages || f->offset)
            return bt_fail(err, BT_E_PROTOCOL,
                           "control header has a number where zero must stand (lease %u, layer %u, "
                           "pages %u + %u, offset %u)",
                           f->lease, f->layer, f->first_page, f->n_pages, f->offset);
        if (unit.length < 1 || unit.length > BT_KV_CONTROL_BYTES)
            return bt_fail(err, BT_E_PROTOCOL, "control message has %u bytes, must have 1 to %d",
                           unit.length, BT_KV_CONTROL_BYTES);
        unit.payload_hash = f->generation;
        unit.frame = (struct bt_kv_frame){0};
    } else {
        return bt_fail(err, BT_E_PROTOCOL, "unit's type is %u, must be %d or %d", type,
                       BT_KV_UNIT_CONTROL, BT_KV_UNIT_FRAME);
    }
    unit.type = (enum bt_kv_unit_type)type;
    *out = unit;
    return BT_OK;
}

/* ---- packing ---- */

static void put_id(Baton__V1__Id *out, struct bt_id id) {
    baton__v1__id__init(out);
    out->hi = id.hi;
    out->lo = id.lo;
}

/* Everything that one packed message can point to. */
struct parts {
    Baton__V1__LinkMessage message;
    Baton__V1__Id id, id2;
    union {
        Baton__V1__LinkJoin join;
        Baton__V1__LinkWelcome welcome;
        Baton__V1__LinkRefused refused;
        Baton__V1__Ping ping;
        Baton__V1__Hello hello;
        Baton__V1__Grant grant;
        Baton__V1__HelloRefused hello_refused;
        Baton__V1__Commit commit;
        Baton__V1__Committed committed;
        Baton__V1__Aborted aborted;
        Baton__V1__Withdrawn withdrawn;
    };
    Baton__V1__Logprobs logprobs; /* of one token: */
    uint32_t shown, top_tokens[BT_TOP_LOGPROBS];
    float own, top[BT_TOP_LOGPROBS];
    uint8_t fingerprint[BT_FINGERPRINT_BYTES];
};

/* Sets the member of the oneof whose C name is `member`, initialised. */
#define SET(p, member_, MEMBER)                                                \
    do {                                                                       \
        (p)->message.message_case = BATON__V1__LINK_MESSAGE__MESSAGE_##MEMBER; \
        (p)->message.member_ = &(p)->member_;                                  \
    } while (0)

static void put_join(struct parts *p, const struct bt_kv_join *join) {
    BT_ASSERT(join->name[0] && !bt_id_is_zero(join->incarnation) && !bt_id_is_zero(join->peer));
    baton__v1__link_join__init(&p->join);
    put_id(&p->id, join->incarnation);
    put_id(&p->id2, join->peer);
    bt_fingerprint_pack(&join->fingerprint, p->fingerprint);
    p->join.name = (char *)join->name;
    p->join.incarnation = &p->id;
    p->join.peer = &p->id2;
    p->join.protocol_min = join->protocol_min;
    p->join.protocol_max = join->protocol_max;
    p->join.fingerprint.data = p->fingerprint;
    p->join.fingerprint.len = sizeof p->fingerprint;
    SET(p, join, JOIN);
}

static void put_logprobs(struct parts *p, const struct bt_logprobs *logprobs) {
    BT_ASSERT(logprobs->n_top <= BT_TOP_LOGPROBS);
    baton__v1__logprobs__init(&p->logprobs);
    p->shown = 1u + logprobs->n_top;
    p->own = logprobs->logprob;
    for (uint32_t i = 0; i < logprobs->n_top; i++) {
        p->top_tokens[i] = (uint32_t)logprobs->top[i].token;
        p->top[i] = logprobs->top[i].logprob;
    }
    p->logprobs.shown = &p->shown;
    p->logprobs.own = &p->own;
    p->logprobs.n_shown = p->logprobs.n_own = 1;
    p->logprobs.top_token = p->top_tokens;
    p->logprobs.top = p->top;
    p->logprobs.n_top_token = p->logprobs.n_top = logprobs->n_top;
    p->commit.logprobs = &p->logprobs;
}

static void put_commit(struct parts *p, const struct bt_kv_msg *msg) {
    baton__v1__commit__init(&p->commit);
    put_id(&p->id2, msg->chain);
    p->commit.token = msg->finish == BT_FINISH_ERROR ? 0 : (uint32_t)msg->token;
    p->commit.finish = (Baton__V1__Finish)msg->finish;
    p->commit.logits_hash = msg->logits_hash;
    if (msg->has_logprobs)
        put_logprobs(p, &msg->logprobs);
    p->commit.ticket = &p->id;
    p->commit.chain = &p->id2;
    p->commit.lease = msg->lease;
    p->commit.generation = msg->generation;
    p->commit.n_sums = msg->n_sums;
    p->commit.manifest = msg->manifest;
    p->commit.fingerprint_hash = msg->fingerprint_hash;
    p->commit.wait_us = msg->wait_us;
    p->commit.prefill_us = msg->prefill_us;
    SET(p, commit, COMMIT);
}

static void put_hello(struct parts *p, const struct bt_kv_msg *msg) {
    baton__v1__hello__init(&p->hello);
    put_id(&p->id2, msg->chain);
    p->hello.ticket = &p->id;
    p->hello.chain = &p->id2;
    p->hello.n_tokens = msg->n_tokens;
    SET(p, hello, HELLO);
}

static void put_grant(struct parts *p, const struct bt_kv_msg *msg) {
    baton__v1__grant__init(&p->grant);
    p->grant.ticket = &p->id;
    p->grant.lease = msg->lease;
    p->grant.generation = msg->generation;
    p->grant.pages_held = msg->pages_held;
    p->grant.pages = msg->pages;
    SET(p, grant, GRANT);
}

/* The three that carry a reason differ in their type alone. */
#define PUT_REASON(p, msg, member_, MEMBER)                     \
    do {                                                        \
        baton__v1__##member_##__init(&(p)->member_);            \
        (p)->member_.ticket = &(p)->id;                         \
        (p)->member_.reason = (Baton__V1__Reason)(msg)->reason; \
        SET(p, member_, MEMBER);                                \
    } while (0)

static void put_msg(struct parts *p, const struct bt_kv_msg *msg) {
    BT_ASSERT(msg->type >= BT_KV_HELLO && msg->type < BT_KV_MSG_COUNT);
    BT_ASSERT(!bt_id_is_zero(msg->ticket));
    put_id(&p->id, msg->ticket);
    switch (msg->type) {
    case BT_KV_HELLO:
        put_hello(p, msg);
        return;
    case BT_KV_GRANT:
        put_grant(p, msg);
        return;
    case BT_KV_REFUSED:
        PUT_REASON(p, msg, hello_refused, HELLO_REFUSED);
        return;
    case BT_KV_COMMIT:
        put_commit(p, msg);
        return;
    case BT_KV_COMMITTED:
        baton__v1__committed__init(&p->committed);
        p->committed.ticket = &p->id;
        SET(p, committed, COMMITTED);
        return;
    case BT_KV_ABORTED:
        PUT_REASON(p, msg, aborted, ABORTED);
        return;
    case BT_KV_WITHDRAWN:
        PUT_REASON(p, msg, withdrawn, WITHDRAWN);
        return;
    case BT_KV_MSG_COUNT:
        return;
    }
}

size_t bt_kv_control_pack(const struct bt_kv_control *control, uint8_t out[BT_KV_UNIT_BYTES_MAX]) {
    struct parts p;
    BT_ASSERT(control->type != BT_KV_CONTROL_UNKNOWN);
    memset(&p, 0, sizeof p);
    baton__v1__link_message__init(&p.message);
    switch (control->type) {
    case BT_KV_CONTROL_JOIN:
        put_join(&p, &control->join);
        break;
    case BT_KV_CONTROL_WELCOME:
        baton__v1__link_welcome__init(&p.welcome);
        put_id(&p.id, control->welcome.incarnation);
        p.welcome.incarnation = &p.id;
        p.welcome.protocol = control->welcome.protocol;
        SET(&p, welcome, WELCOME);
        break;
    case BT_KV_CONTROL_REFUSED:
        BT_ASSERT(control->refused[0]);
        baton__v1__link_refused__init(&p.refused);
        p.refused.reason = (char *)control->refused;
        SET(&p, refused, REFUSED);
        break;
    case BT_KV_CONTROL_PING:
        baton__v1__ping__init(&p.ping);
        SET(&p, ping, PING);
        break;
    case BT_KV_CONTROL_MSG:
        put_msg(&p, &control->msg);
        break;
    case BT_KV_CONTROL_UNKNOWN:
        break;
    }
    size_t n = baton__v1__link_message__get_packed_size(&p.message);
    BT_ASSERT(BT_KV_HEADER_BYTES + n <= BT_KV_UNIT_BYTES_MAX);
    baton__v1__link_message__pack(&p.message, out + BT_KV_HEADER_BYTES);
    bt_kv_header_pack_control(out + BT_KV_HEADER_BYTES, (uint32_t)n, out);
    return BT_KV_HEADER_BYTES + n;
}

/* ---- unpacking ---- */

/* field is "message.field", for the sentence. */
static bt_status get_id(const Baton__V1__Id *in, const char *field, bool may_be_zero,
                        struct bt_id *out, struct bt_error *err) {
    struct bt_id id = {0};
    if (in)
        id = (struct bt_id){.hi = in->hi, .lo = in->lo};
    if (!may_be_zero && bt_id_is_zero(id))
        return bt_fail(err, BT_E_PROTOCOL, "%s is 0 or left out, must not be 0", field);
    *out = id;
    return BT_OK;
}

static bt_status get_u32(uint32_t in, const char *field, uint32_t min, uint32_t max, uint32_t *out,
                         struct bt_error *err) {
    if (in < min || in > max)
        return bt_fail(err, BT_E_PROTOCOL, "%s is %u, must be %u to %u", field, in, min, max);
    *out = in;
    return BT_OK;
}

static bt_status get_text(const char *in, const char *field, char *out, size_t out_bytes,
                          struct bt_error *err) {
    size_t n = strlen(in);
    if (n < 1 || n >= out_bytes)
        return bt_fail(err, BT_E_PROTOCOL, "%s has %zu bytes, must have 1 to %zu", field, n,
                       out_bytes - 1);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)in[i] < 0x20 || in[i] == 0x7f)
            return bt_fail(err, BT_E_PROTOCOL, "%s has a control character (%u) at byte %zu", field,
                           (unsigned char)in[i], i);
    memcpy(out, in, n + 1);
    return BT_OK;
}

static bt_status get_join(const Baton__V1__LinkJoin *in, struct bt_kv_join *out,
                          struct bt_error *err) {
    BT_TRY(get_text(in->name, "join.name", out->name, sizeof out->name, err));
    BT_TRY(get_id(in->incarnation, "join.incarnation", false, &out->incarnation, err));
    BT_TRY(get_id(in->peer, "join.peer", false, &out->peer, err));
    BT_TRY(get_u32(in->protocol_max, "join.protocol_max", 1, UINT32_MAX, &out->protocol_max, err));
    BT_TRY(get_u32(in->protocol_min, "join.protocol_min", 1, out->protocol_max, &out->protocol_min,
                   err));
    return bt_fingerprint_unpack(in->fingerprint.data, in->fingerprint.len, &out->fingerprint, err);
}

static bt_status get_welcome(const Baton__V1__LinkWelcome *in, struct bt_kv_welcome *out,
                             struct bt_error *err) {
    BT_TRY(get_id(in->incarnation, "welcome.incarnation", false, &out->incarnation, err));
    return get_u32(in->protocol, "welcome.protocol", BT_KV_PROTOCOL_MIN, BT_KV_PROTOCOL_MAX,
                   &out->protocol, err);
}

static bt_status get_reason(int in, const char *field, enum bt_kv_reason *out,
                            struct bt_error *err) {
    uint32_t reason = 0;
    BT_TRY(get_u32((uint32_t)in, field, 1, BT_KV_REASON_COUNT - 1, &reason, err));
    *out = (enum bt_kv_reason)reason;
    return BT_OK;
}

static bt_status get_hello(const Baton__V1__Hello *in, struct bt_kv_msg *out,
                           struct bt_error *err) {
    out->type = BT_KV_HELLO;
    BT_TRY(get_id(in->ticket, "hello.ticket", false, &out->ticket, err));
    BT_TRY(get_id(in->chain, "hello.chain", true, &out->chain, err));
    return get_u32(in->n_tokens, "hello.n_tokens", 1, BT_KV_TOKENS_MAX, &out->n_tokens, err);
}

static bt_status get_grant(const Baton__V1__Grant *in, struct bt_kv_msg *out,
                           struct bt_error *err) {
    out->type = BT_KV_GRANT;
    BT_TRY(get_id(in->ticket, "grant.ticket", false, &out->ticket, err));
    BT_TRY(get_u32(in->pages, "grant.pages", 1, BT_KV_PAGES_MAX, &out->pages, err));
    BT_TRY(get_u32(in->pages_held, "grant.pages_held", 0, out->pages, &out->pages_held, err));
    out->lease = in->lease;
    out->generation = in->generation;
    return BT_OK;
}

static bt_status get_logprob(float in, const char *field, float *out, struct bt_error *err) {
    if (!(in >= BT_LOGPROB_MIN && in <= 0)) /* what is no number is refused too */
        return bt_fail(err, BT_E_PROTOCOL, "%s is %g, must be %g to 0", field, (double)in,
                       (double)BT_LOGPROB_MIN);
    *out = in;
    return BT_OK;
}

static bt_status get_logprobs(const Baton__V1__Logprobs *in, struct bt_logprobs *out,
                              struct bt_error *err) {
    if (in->n_shown != 1 || in->n_own != 1)
        return bt_fail(err, BT_E_PROTOCOL,
                       "commit.logprobs has %zu rows and %zu entries, must "
                       "have 1",
                       in->n_shown, in->n_own);
    uint32_t shown = 0, token = 0;
    BT_TRY(get_u32(in->shown[0], "commit.logprobs.shown", 1, 1 + BT_TOP_LOGPROBS, &shown, err));
    if (in->n_top_token != shown - 1 || in->n_top != shown - 1)
        return bt_fail(err, BT_E_PROTOCOL,
                       "commit.logprobs has %zu likeliest tokens and %zu values, must have %u",
                       in->n_top_token, in->n_top, shown - 1);
    out->n_top = (uint8_t)(shown - 1);
    BT_TRY(get_logprob(in->own[0], "commit.logprobs.own", &out->logprob, err));
    for (uint32_t i = 0; i < out->n_top; i++) {
        BT_TRY(get_u32(in->top_token[i], "commit.logprobs.top_token", 0, INT32_MAX, &token, err));
        BT_TRY(get_logprob(in->top[i], "commit.logprobs.top", &out->top[i].logprob, err));
        out->top[i].token = (int32_t)token;
    }
    return BT_OK;
}

static bt_status get_commit(const Baton__V1__Commit *in, struct bt_kv_msg *out,
                            struct bt_error *err) {
    uint32_t token = 0, finish = 0;
    out->type = BT_KV_COMMIT;
    BT_TRY(get_id(in->ticket, "commit.ticket", false, &out->ticket, err));
    BT_TRY(get_id(in->chain, "commit.chain", true, &out->chain, err));
    BT_TRY(get_u32(in->n_sums, "commit.n_sums", 0, BT_KV_SUMS_MAX, &out->n_sums, err));
    BT_TRY(get_u32(in->token, "commit.token", 0, INT32_MAX, &token, err));
    BT_TRY(get_u32((uint32_t)in->finish, "commit.finish", 0, BT_FINISH_ERROR, &finish, err));
    out->has_logprobs = in->logprobs != NULL;
    if (in->logprobs)
        BT_TRY(get_logprobs(in->logprobs, &out->logprobs, err));
    out->finish = (enum bt_finish)finish;
    out->token = out->finish == BT_FINISH_ERROR ? -1 : (int32_t)token;
    out->logits_hash = in->logits_hash;
    out->lease = in->lease;
    out->generation = in->generation;
    out->wait_us = in->wait_us;
    out->prefill_us = in->prefill_us;
    out->manifest = in->manifest;
    out->fingerprint_hash = in->fingerprint_hash;
    return BT_OK;
}

static bt_status get_msg(const Baton__V1__LinkMessage *in, struct bt_kv_msg *out,
                         struct bt_error *err) {
    switch (in->message_case) {
    case BATON__V1__LINK_MESSAGE__MESSAGE_HELLO:
        return get_hello(in->hello, out, err);
    case BATON__V1__LINK_MESSAGE__MESSAGE_GRANT:
        return get_grant(in->grant, out, err);
    case BATON__V1__LINK_MESSAGE__MESSAGE_COMMIT:
        return get_commit(in->commit, out, err);
    case BATON__V1__LINK_MESSAGE__MESSAGE_COMMITTED:
        out->type = BT_KV_COMMITTED;
        return get_id(in->committed->ticket, "committed.ticket", false, &out->ticket, err);
    case BATON__V1__LINK_MESSAGE__MESSAGE_HELLO_REFUSED:
        out->type = BT_KV_REFUSED;
        BT_TRY(get_reason(in->hello_refused->reason, "hello_refused.reason", &out->reason, err));
        return get_id(in->hello_refused->ticket, "hello_refused.ticket", false, &out->ticket, err);
    case BATON__V1__LINK_MESSAGE__MESSAGE_ABORTED:
        out->type = BT_KV_ABORTED;
        BT_TRY(get_reason(in->aborted->reason, "aborted.reason", &out->reason, err));
        return get_id(in->aborted->ticket, "aborted.ticket", false, &out->ticket, err);
    case BATON__V1__LINK_MESSAGE__MESSAGE_WITHDRAWN:
        out->type = BT_KV_WITHDRAWN;
        BT_TRY(get_reason(in->withdrawn->reason, "withdrawn.reason", &out->reason, err));
        return get_id(in->withdrawn->ticket, "withdrawn.ticket", false, &out->ticket, err);
    default:
        return BT_AGAIN;
    }
}

static bt_status get_control(const Baton__V1__LinkMessage *in, struct bt_kv_control *out,
                             struct bt_error *err) {
    switch (in->message_case) {
    case BATON__V1__LINK_MESSAGE__MESSAGE_JOIN:
        out->type = BT_KV_CONTROL_JOIN;
        return get_join(in->join, &out->join, err);
    case BATON__V1__LINK_MESSAGE__MESSAGE_WELCOME:
        out->type = BT_KV_CONTROL_WELCOME;
        return get_welcome(in->welcome, &out->welcome, err);
    case BATON__V1__LINK_MESSAGE__MESSAGE_REFUSED:
        out->type = BT_KV_CONTROL_REFUSED;
        return get_text(in->refused->reason, "refused.reason", out->refused, sizeof out->refused,
                        err);
    case BATON__V1__LINK_MESSAGE__MESSAGE_PING:
        out->type = BT_KV_CONTROL_PING;
        return BT_OK;
    default:
        out->type = BT_KV_CONTROL_MSG;
        bt_status status = get_msg(in, &out->msg, err);
        if (status == BT_AGAIN) {
            /* No member that we know: a later version's message, to be skipped. */
            out->type = BT_KV_CONTROL_UNKNOWN;
            status = BT_OK;
        }
        return status;
    }
}

bt_status bt_kv_control_unpack(const uint8_t *payload, size_t n_bytes, struct bt_kv_control *out,
                               struct bt_error *err) {
    struct bt_kv_control control;
    memset(&control, 0, sizeof control);
    if (n_bytes < 1 || n_bytes > BT_KV_CONTROL_BYTES)
        return bt_fail(err, BT_E_PROTOCOL, "control message has %zu bytes, must have 1 to %d",
                       n_bytes, BT_KV_CONTROL_BYTES);
    Baton__V1__LinkMessage *message = baton__v1__link_message__unpack(NULL, n_bytes, payload);
    if (!message)
        return bt_fail(err, BT_E_PROTOCOL, "control message of %zu bytes is not a LinkMessage",
                       n_bytes);
    bt_status status = get_control(message, &control, err);
    baton__v1__link_message__free_unpacked(message, NULL);
    if (status == BT_OK)
        *out = control;
    return status;
}

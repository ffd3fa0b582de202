/* Scans HTTP/2 frame headers. */
#include "router/grpc_guard.h"

#include <inttypes.h>
#include <string.h>

static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
_Static_assert(sizeof preface - 1 == BT_GRPC_PREFACE_BYTES, "as RFC 9113 has it");

/* RFC 9113, 6. */
enum {
    DATA,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    PUSH_PROMISE,
    PING,
    WINDOW_UPDATE = 8,
    CONTINUATION
};
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4 };
/* Some calls a second for each of a thousand connections, which gRPC still clears away. */
enum { FAIR_PER_S_MIN = 16 };
enum { COSTLY = 128 };

bool bt_grpc_guard_is_open(const struct bt_grpc_guard *guard) {
    return guard->n_preface == BT_GRPC_PREFACE_BYTES;
}

/* A reset is COSTLY. */
static uint32_t cost(uint8_t type, uint8_t flags, uint32_t length) {
    switch (type) {
    case DATA:
        return !length && !(flags & END_STREAM) ? COSTLY : 0;
    case HEADERS: /* a call, or one that gRPC has to reset itself */
        return COSTLY / 4;
    case SETTINGS:
    case PING: /* gRPC answers each, and hangs up only when a queue has grown */
        return flags & ACK ? 0 : COSTLY;
    case WINDOW_UPDATE: /* an eager client sends two for each token it gets, and gets 25,000 a
                           second */
        return 1;
    case PRIORITY:
    case RST_STREAM:
    case PUSH_PROMISE:
        return COSTLY;
    default:
        return type > CONTINUATION ? COSTLY : 0;
    }
}

static bt_status check_block(struct bt_grpc_guard *guard, uint8_t type, uint8_t flags,
                             uint32_t length, struct bt_error *err) {
    bool in_block = guard->block_frames != 0;
    if (in_block != (type == CONTINUATION))
        return bt_fail(err, BT_E_PROTOCOL, "a frame of type %u stands %s a header block", type,
                       in_block ? "within" : "outside of");
    if (type != HEADERS && type != CONTINUATION)
        return BT_OK;
    guard->block_frames++;
    guard->block_bytes += length;
    if (guard->block_bytes > BT_GRPC_BLOCK_BYTES_MAX)
        return bt_fail(err, BT_E_PROTOCOL,
                       "a header block has %" PRIu32 " bytes, it may have at most %d",
                       guard->block_bytes, BT_GRPC_BLOCK_BYTES_MAX);
    if (guard->block_frames > BT_GRPC_BLOCK_FRAMES_MAX)
        return bt_fail(err, BT_E_PROTOCOL, "a header block has more than %d frames",
                       BT_GRPC_BLOCK_FRAMES_MAX);
    if (flags & END_HEADERS)
        guard->block_bytes = guard->block_frames = 0;
    return BT_OK;
}

static bt_status take_header(struct bt_grpc_guard *guard, uint32_t *n_costly,
                             struct bt_error *err) {
    const uint8_t *h = guard->header;
    uint32_t length = (uint32_t)h[0] << 16 | (uint32_t)h[1] << 8 | h[2];
    guard->n_header = 0;
    guard->payload_left = length;
    guard->parts += cost(h[3], h[4], length);
    *n_costly += guard->parts / COSTLY;
    guard->parts %= COSTLY;
    return check_block(guard, h[3], h[4], length, err);
}

bt_status bt_grpc_guard_take(struct bt_grpc_guard *guard, const void *bytes, size_t n_bytes,
                             uint32_t *n_costly, struct bt_error *err) {
    const uint8_t *at = bytes, *end = at + n_bytes;
    for (; at < end && !bt_grpc_guard_is_open(guard); at++)
        if (*at != (uint8_t)preface[guard->n_preface++])
            return bt_fail(err, BT_E_PROTOCOL, "the client does not speak HTTP/2");
    while (at < end) {
        size_t left = (size_t)(end - at);
        if (guard->payload_left) {
            size_t n = left < guard->payload_left ? left : guard->payload_left;
            guard->payload_left -= (uint32_t)n;
            at += n;
            continue;
        }
        size_t missing = sizeof guard->header - guard->n_header;
        size_t n = left < missing ? left : missing;
        memcpy(guard->header + guard->n_header, at, n);
        guard->n_header += (uint32_t)n;
        at += n;
        if (guard->n_header == sizeof guard->header)
            BT_TRY(take_header(guard, n_costly, err));
    }
    return BT_OK;
}

uint64_t bt_grpc_bucket_take(struct bt_grpc_bucket *bucket, uint64_t now_us, uint32_t n) {
    int64_t full = (int64_t)bucket->burst * 1000000;
    if (!bucket->filled_us) {
        bucket->level_us = full;
    } else if (now_us > bucket->filled_us) {
        uint64_t passed = now_us - bucket->filled_us;
        if (passed > 1000000ull * 3600) /* full long since; keeps the product small */
            passed = 1000000ull * 3600;
        bucket->level_us += (int64_t)(passed * bucket->per_second);
        if (bucket->level_us > full)
            bucket->level_us = full;
    }
    bucket->filled_us = now_us ? now_us : 1;
    bucket->level_us -= (int64_t)n * 1000000;
    if (bucket->level_us > 0)
        return 0;
    return (uint64_t)(-bucket->level_us) / bucket->per_second + 1;
}

uint64_t bt_grpc_allowance_take(struct bt_grpc_allowance *allowance, struct bt_grpc_bucket *shared,
                                size_t n_open, uint64_t now_us, uint32_t n) {
    struct bt_grpc_bucket *fair = &allowance->fair;
    size_t share = shared->per_second / (n_open ? n_open : 1);
    fair->burst = allowance->own.burst;
    fair->per_second = share > FAIR_PER_S_MIN ? (uint32_t)share : FAIR_PER_S_MIN;
    uint64_t own_us = bt_grpc_bucket_take(&allowance->own, now_us, n);
    uint64_t fair_us = bt_grpc_bucket_take(fair, now_us, n);
    uint64_t shared_us = bt_grpc_bucket_take(shared, now_us, n);
    shared_us = shared_us < fair_us ? shared_us : fair_us;
    return own_us > shared_us ? own_us : shared_us;
}

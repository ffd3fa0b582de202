/* Watches what a client of the gRPC port sends, frame by frame, before gRPC sees it.
 *
 * gRPC 1.51 has two holes that a stranger's frames reach: streams opened and reset in a row pile up
 * (CVE-2023-44487), and a header block without an end is gathered without a bound (CVE-2023-33953).
 * So header blocks are bounded here, and frames that cost the server more than the client (resets,
 * pings, settings, priorities, empty data; at a quarter calls, hardly window updates) are
 * counted, for the caller to slow the connection down. All other frames pass; payloads are not
 * looked at. Pure. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum {
    BT_GRPC_PREFACE_BYTES = 24,      /* RFC 9113, 3.4: what every client says first */
    BT_GRPC_BLOCK_BYTES_MAX = 16384, /* of one header block; metadata has at most 8 KiB */
    BT_GRPC_BLOCK_FRAMES_MAX = 8,
};

/* Zeroed is ready for the first byte. */
struct bt_grpc_guard {
    uint32_t n_preface;
    uint8_t header[9];
    uint32_t n_header;
    uint32_t payload_left;
    uint32_t parts;                     /* of a costly frame, not yet counted */
    uint32_t block_bytes, block_frames; /* of the header block that is open; 0 frames: none */
};

/* Takes the next bytes. *n_costly grows by what their frames cost, in resets. BT_E_PROTOCOL: it
 * is no HTTP/2 or breaks a bound; the sentence says which, and the connection is to be closed. */
bt_status bt_grpc_guard_take(struct bt_grpc_guard *guard, const void *bytes, size_t n_bytes,
                             uint32_t *n_costly, struct bt_error *err);
/* The preface is complete. */
bool bt_grpc_guard_is_open(const struct bt_grpc_guard *guard);

/* A bucket that costly frames empty and time fills. */
struct bt_grpc_bucket {
    uint32_t burst, per_second; /* set by the owner */
    int64_t level_us;           /* in units of 1 / per_second / 1e6; <= 0: empty */
    uint64_t filled_us;         /* when it was filled last; 0: never, it is full */
};

/* Takes n out; answers for how many microseconds it is empty then, 0: it is not. */
uint64_t bt_grpc_bucket_take(struct bt_grpc_bucket *bucket, uint64_t now_us, uint32_t n);

/* The buckets of one connection. */
struct bt_grpc_allowance {
    struct bt_grpc_bucket own;  /* what it may cost however idle the others are */
    struct bt_grpc_bucket fair; /* what it may cost however busy they are; its rate is set here */
};

/* Takes n out of a connection's buckets and out of the one that n_open connections share; answers
 * for how many microseconds it has to wait. When the shared bucket is empty, a connection waits no
 * longer than until an equal share of its rate has paid for it: a flood of others does not stop
 * whoever asks for little. */
uint64_t bt_grpc_allowance_take(struct bt_grpc_allowance *allowance, struct bt_grpc_bucket *shared,
                                size_t n_open, uint64_t now_us, uint32_t n);

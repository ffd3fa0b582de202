/* The one set of result codes, and the sentence that explains a failure.
 *
 * 0 is success, positive values are progress, negative ones are failures grouped by what is lost:
 * the request, the peer or the process. One table (status.c) maps a status to its HTTP and gRPC
 * codes; there is no other mapping. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

typedef enum bt_status {
    BT_OK = 0,
    /* Progress. */
    BT_AGAIN = 1, /* nothing to do now, ask again */
    BT_DONE = 2,  /* the end was reached in order */
    /* The request is lost, nothing else. */
    BT_E_INVALID = -1,   /* a field is malformed or out of range */
    BT_E_TOO_LARGE = -2, /* it can never fit */
    BT_E_CANCELLED = -3,
    BT_E_DEADLINE = -4,
    BT_E_FULL = -5, /* it does not fit now */
    BT_E_NOT_FOUND = -6,
    BT_E_UNSUPPORTED = -7,
    BT_E_UNAUTHENTICATED = -8, /* nobody we know */
    BT_E_FORBIDDEN = -9,       /* known, and not allowed */
    /* The peer is lost. */
    BT_E_PEER_GONE = -20,
    BT_E_PEER_BUSY = -21,
    BT_E_LAYOUT_MISMATCH = -22,
    BT_E_PROTOCOL = -23, /* the peer said something that it must not say */
    BT_E_UNAVAILABLE = -24,
    /* The process is lost. */
    BT_E_NO_MEMORY = -40,
    BT_E_DEVICE = -41,
    BT_E_IO = -42,
    BT_E_INTERNAL = -43,
} bt_status;

enum { BT_ERROR_TEXT_BYTES = 256 };

/* Why something failed, in one sentence that names the thing, the value and the bound. Owned by the
 * caller. */
struct bt_error {
    bt_status status;
    char text[BT_ERROR_TEXT_BYTES];
};

/* Writes status and text into *err (which may be NULL) and returns status, so that `return
 * bt_fail(err, ...)` works. */
bt_status bt_fail(struct bt_error *err, bt_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

const char *bt_status_name(bt_status status);
int bt_status_http(bt_status status); /* HTTP status code of a failure; 200 for success */
int bt_status_grpc(bt_status status); /* grpc_status_code of a failure; 0 for success */
bool bt_status_is_process(bt_status status);

#define BT_TRY(call)                       \
    do {                                   \
        bt_status bt_try_status_ = (call); \
        if (bt_try_status_ < 0)            \
            return bt_try_status_;         \
    } while (0)

/* Needs a local `bt_status status` and a label. */
#define BT_TRY_GOTO(call, label) \
    do {                         \
        status = (call);         \
        if (status < 0)          \
            goto label;          \
    } while (0)

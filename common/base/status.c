/* The names of the result codes, and the one table that maps them to HTTP and gRPC. */
#include "common/base/status.h"

#include <stdarg.h>
#include <stdio.h>

struct row {
    bt_status status;
    const char *name;
    int http;
    int grpc; /* grpc_status_code, https://grpc.github.io/grpc/core/md_doc_statuscodes.html */
};

static const struct row rows[] = {
    {BT_OK, "ok", 200, 0},
    {BT_AGAIN, "again", 200, 0},
    {BT_DONE, "done", 200, 0},
    {BT_E_INVALID, "invalid", 400, 3},
    {BT_E_TOO_LARGE, "too large", 400, 3},
    {BT_E_CANCELLED, "cancelled", 499, 1},
    {BT_E_DEADLINE, "deadline exceeded", 504, 4},
    {BT_E_FULL, "full", 429, 8},
    {BT_E_NOT_FOUND, "not found", 404, 5},
    {BT_E_UNSUPPORTED, "unsupported", 400, 12},
    {BT_E_UNAUTHENTICATED, "unauthenticated", 401, 16},
    {BT_E_FORBIDDEN, "forbidden", 403, 7},
    {BT_E_PEER_GONE, "peer gone", 503, 14},
    {BT_E_PEER_BUSY, "peer busy", 503, 14},
    {BT_E_LAYOUT_MISMATCH, "layout mismatch", 503, 9},
    {BT_E_PROTOCOL, "protocol error", 503, 13},
    {BT_E_UNAVAILABLE, "unavailable", 503, 14},
    {BT_E_NO_MEMORY, "out of memory", 503, 8},
    {BT_E_DEVICE, "device error", 500, 13},
    {BT_E_IO, "input/output error", 500, 13},
    {BT_E_INTERNAL, "internal error", 500, 13},
};

static const struct row *find(bt_status status) {
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].status == status)
            return &rows[i];
    return &rows[sizeof rows / sizeof rows[0] - 1];
}

bt_status bt_fail(struct bt_error *err, bt_status status, const char *format, ...) {
    if (err) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        err->status = status;
    }
    return status;
}

const char *bt_status_name(bt_status status) {
    return find(status)->name;
}

int bt_status_http(bt_status status) {
    return find(status)->http;
}

int bt_status_grpc(bt_status status) {
    return find(status)->grpc;
}

bool bt_status_is_process(bt_status status) {
    return status <= BT_E_NO_MEMORY;
}

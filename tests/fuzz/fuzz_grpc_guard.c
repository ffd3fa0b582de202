/* Feeds any bytes to the guard before gRPC, whole and in two cuts: it must judge and count the
 * same. */
#include <string.h>

#include "common/base/assert.h"
#include "router/grpc_guard.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/* The first byte says where to cut; bit 7 of it, that the preface is left out. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct bt_grpc_guard whole = {0}, cut = {0};
    struct bt_error err = {0};
    uint32_t n_whole = 0, n_cut = 0;
    if (!size)
        return 0;
    size_t n = size - 1, at = data[0] & 0x7f;
    if (!(data[0] & 0x80)) {
        BT_ASSERT(bt_grpc_guard_take(&whole, preface, sizeof preface - 1, &n_whole, &err) == BT_OK);
        cut = whole;
    }
    bt_status status = bt_grpc_guard_take(&whole, data + 1, n, &n_whole, &err);
    at = at < n ? at : n;
    bt_status in_pieces = bt_grpc_guard_take(&cut, data + 1, at, &n_cut, &err);
    if (in_pieces == BT_OK)
        in_pieces = bt_grpc_guard_take(&cut, data + 1 + at, n - at, &n_cut, &err);
    BT_ASSERT(in_pieces == status && n_cut == n_whole);
    BT_ASSERT(status == BT_OK || err.text[0]);
    BT_ASSERT(n_whole <= n / sizeof whole.header + 1);
    return 0;
}

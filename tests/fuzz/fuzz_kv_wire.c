/* Feeds bytes to the reader of a KV link: whatever a peer sends, every receive that began ends, and
 * no byte lands outside the granted pages.
 *
 * The first byte chooses how many bytes come at once and whether the hashes are made right first,
 * without which mutations would rarely get past the header. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/base/assert.h"
#include "common/base/bytes.h"
#include "common/kv/kv_wire_read.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { N_LAYERS = 3, N_PAGES = 4, PAGE_BYTES = 96, STREAM_MAX = 1 << 16 };

struct sink {
    struct bt_kv_link_user user;
    struct bt_kv_reader reader;
    uint8_t memory[N_LAYERS][N_PAGES][PAGE_BYTES];
    uint8_t scratch[BT_KV_FRAME_BYTES];
    uint32_t n_begun, n_ended;
};

static bt_status on_frame(void *arg, uint32_t link, const struct bt_kv_frame *frame,
                          struct bt_kv_landing *out, struct bt_error *err) {
    struct sink *sink = arg;
    (void)link;
    if (frame->layer >= N_LAYERS || frame->first_page >= N_PAGES ||
        frame->n_pages > N_PAGES - frame->first_page)
        return bt_fail(err, BT_E_INVALID, "not granted");
    sink->n_begun++;
    out->lease = frame->lease;
    out->frame = *frame;
    for (uint32_t i = 0; i < frame->n_pages; i++)
        out->pages[i] = frame->first_page + i;
    return BT_OK;
}

static void on_frame_end(void *arg, uint32_t link, const struct bt_kv_landing *landing, bool whole,
                         const uint64_t *carried, const uint64_t *computed) {
    struct sink *sink = arg;
    (void)link, (void)landing;
    BT_ASSERT(whole == (carried != NULL) && whole == (computed != NULL));
    BT_ASSERT(++sink->n_ended == sink->n_begun);
}

static uint8_t *on_page(void *arg, uint32_t layer, uint32_t page) {
    BT_ASSERT(layer < N_LAYERS && page < N_PAGES);
    return ((struct sink *)arg)->memory[layer][page];
}

/* What was taken can be packed again and reads the same. */
static bt_status on_control(void *arg, const struct bt_kv_control *control, struct bt_error *err) {
    struct sink *sink = arg;
    struct bt_kv_control again;
    uint8_t bytes[BT_KV_UNIT_BYTES_MAX];
    size_t n = bt_kv_control_pack(control, bytes);
    BT_ASSERT(bt_kv_control_unpack(bytes + BT_KV_HEADER_BYTES, n - BT_KV_HEADER_BYTES, &again,
                                   err) == BT_OK);
    BT_ASSERT(again.type == control->type);
    if (control->type == BT_KV_CONTROL_MSG) {
        BT_ASSERT(again.msg.type == control->msg.type);
        BT_ASSERT(bt_id_equal(again.msg.ticket, control->msg.ticket));
        if (control->msg.type == BT_KV_WITHDRAWN)
            bt_kv_reader_cut(&sink->reader, (uint32_t)control->msg.ticket.lo);
    }
    return BT_OK;
}

static void on_ended(void *arg) {
    (void)arg;
}

/* Copies the input as a stream whose magic and hashes are right. */
static size_t repair(const uint8_t *in, size_t n, uint8_t *out) {
    size_t at = 0;
    while (n > 40 && at + BT_KV_HEADER_BYTES <= STREAM_MAX) {
        uint8_t *header = out + at;
        memcpy(header, in, 40);
        in += 40;
        n -= 40;
        at += BT_KV_HEADER_BYTES;
        bt_store_u32(header, BT_KV_MAGIC);
        bool is_control = bt_load_u32(header + 4) == BT_KV_UNIT_CONTROL;
        uint64_t length = bt_load_u32(header + 36);
        if (!is_control)
            length += 8ull * (bt_load_u32(header + 28) % 65);
        if (length > n)
            length = n;
        if (length > STREAM_MAX - at)
            length = STREAM_MAX - at;
        memcpy(out + at, in, length);
        if (is_control)
            bt_store_u64(header + 16, XXH3_64bits(in, length));
        bt_store_u64(header + 40, XXH3_64bits(header, 40));
        in += length;
        n -= length;
        at += length;
    }
    return at;
}

static void feed(struct sink *sink, const uint8_t *bytes, size_t n, size_t step) {
    while (n) {
        struct iovec iov[BT_KV_READER_IOVS];
        struct bt_error err;
        int n_iov = bt_kv_reader_want(&sink->reader, iov);
        size_t got = 0;
        BT_ASSERT(n_iov >= 1 && iov[0].iov_len > 0);
        for (int i = 0; i < n_iov && got < step && n; i++) {
            size_t take = iov[i].iov_len < n ? iov[i].iov_len : n;
            take = take < step - got ? take : step - got;
            memcpy(iov[i].iov_base, bytes, take);
            bytes += take;
            n -= take;
            got += take;
        }
        if (bt_kv_reader_got(&sink->reader, got, &err) < 0) {
            BT_ASSERT(err.status == BT_E_PROTOCOL && err.text[0]);
            return;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t stream[STREAM_MAX];
    if (size < 1 || size > STREAM_MAX)
        return 0;
    struct sink *sink = calloc(1, sizeof *sink);
    BT_ASSERT(sink);
    sink->user = (struct bt_kv_link_user){
        .arg = sink, .frame = on_frame, .frame_end = on_frame_end, .page = on_page};
    sink->reader.user = &sink->user;
    sink->reader.page_bytes = PAGE_BYTES;
    sink->reader.may_frame = true;
    sink->reader.control = on_control;
    sink->reader.frame_ended = on_ended;
    sink->reader.arg = sink;
    sink->reader.scratch = sink->scratch;
    size_t step = (data[0] & 0x7f) ? (data[0] & 0x7f) : SIZE_MAX;
    if (data[0] & 0x80)
        feed(sink, stream, repair(data + 1, size - 1, stream), step);
    else
        feed(sink, data + 1, size - 1, step);
    bt_kv_reader_stop(&sink->reader);
    BT_ASSERT(sink->n_begun == sink->n_ended);
    free(sink);
    return 0;
}

/* Takes the units of a KV link apart as their bytes come, and lands frames straight in pages. */
#include "common/kv/kv_wire_read.h"

#include <xxhash.h>

#include "common/base/assert.h"
#include "common/base/bytes.h"

static uint32_t n_sums(const struct bt_kv_reader *reader) {
    return bt_kv_frame_sums(&reader->unit.frame, reader->page_bytes);
}

static uint8_t *page_at(const struct bt_kv_reader *reader, uint32_t i) {
    return reader->user->page(reader->user->arg, reader->unit.frame.layer,
                              reader->landing.pages[i]);
}

/* Entries for bytes [from, length) of a payload that lands. */
static int want_pages(struct bt_kv_reader *reader, struct iovec *iov) {
    const struct bt_kv_frame *frame = &reader->unit.frame;
    uint32_t at = frame->offset + reader->n_done, end = frame->offset + frame->length;
    int n = 0;
    while (at < end) {
        uint32_t i = at / reader->page_bytes, in_page = at % reader->page_bytes;
        uint32_t take = reader->page_bytes - in_page;
        if (take > end - at)
            take = end - at;
        iov[n++] = (struct iovec){.iov_base = page_at(reader, i) + in_page, .iov_len = take};
        at += take;
    }
    return n;
}

int bt_kv_reader_want(struct bt_kv_reader *reader, struct iovec iov[BT_KV_READER_IOVS]) {
    uint32_t done = reader->n_done;
    int n = 1;
    switch (reader->phase) {
    case BT_KV_READ_HEADER:
        iov[0] = (struct iovec){reader->header + done, BT_KV_HEADER_BYTES - done};
        return 1;
    case BT_KV_READ_CONTROL:
        iov[0] = (struct iovec){reader->payload + done, reader->unit.length - done};
        return 1;
    case BT_KV_READ_SUMS:
        iov[0] = (struct iovec){reader->sums + done, n_sums(reader) * 8 - done};
        return 1;
    case BT_KV_READ_PAYLOAD:
        break;
    }
    if (reader->is_landing)
        n = want_pages(reader, iov);
    else
        iov[0] = (struct iovec){reader->scratch, reader->unit.length - done};
    /* The unit that follows has a header in any case: one call less for each frame. */
    iov[n] = (struct iovec){reader->header, BT_KV_HEADER_BYTES};
    return n + 1;
}

static void enter(struct bt_kv_reader *reader, enum bt_kv_reader_phase phase) {
    reader->phase = phase;
    reader->n_done = 0;
}

/* A refusal is the user's to count; the bytes must be read all the same to find the next unit. */
static void begin_payload(struct bt_kv_reader *reader) {
    struct bt_error why;
    const struct bt_kv_link_user *user = reader->user;
    bt_status status =
        user->frame(user->arg, reader->link, &reader->unit.frame, &reader->landing, &why);
    reader->is_landing = status == BT_OK;
    enter(reader, BT_KV_READ_PAYLOAD);
}

static bt_status end_header(struct bt_kv_reader *reader, struct bt_error *err) {
    BT_TRY(bt_kv_header_unpack(reader->header, reader->page_bytes, &reader->unit, err));
    if (reader->unit.type == BT_KV_UNIT_CONTROL) {
        enter(reader, BT_KV_READ_CONTROL);
        return BT_OK;
    }
    if (!reader->may_frame)
        return bt_fail(err, BT_E_PROTOCOL, "a frame came where only control messages may");
    if (n_sums(reader))
        enter(reader, BT_KV_READ_SUMS);
    else
        begin_payload(reader);
    return BT_OK;
}

static bt_status end_control(struct bt_kv_reader *reader, struct bt_error *err) {
    struct bt_kv_control control;
    uint64_t hash = XXH3_64bits(reader->payload, reader->unit.length);
    if (hash != reader->unit.payload_hash)
        return bt_fail(err, BT_E_PROTOCOL,
                       "control message has hash %016llx, its header says %016llx",
                       (unsigned long long)hash, (unsigned long long)reader->unit.payload_hash);
    BT_TRY(bt_kv_control_unpack(reader->payload, reader->unit.length, &control, err));
    enter(reader, BT_KV_READ_HEADER);
    return control.type == BT_KV_CONTROL_UNKNOWN ? BT_OK
                                                 : reader->control(reader->arg, &control, err);
}

/* The last byte of a payload has come: the sums are compared against what stands in the pages now.
 */
static void end_payload(struct bt_kv_reader *reader) {
    uint64_t carried[BT_KV_FRAME_PAGES] = {0}, computed[BT_KV_FRAME_PAGES] = {0};
    bool was_landing = reader->is_landing;
    if (was_landing) {
        for (uint32_t i = 0; i < n_sums(reader); i++) {
            carried[i] = bt_load_u64(reader->sums + 8 * i);
            computed[i] = XXH3_64bits(page_at(reader, i), reader->page_bytes);
        }
        reader->is_landing = false;
    }
    enter(reader, BT_KV_READ_HEADER);
    if (was_landing) {
        const struct bt_kv_link_user *user = reader->user;
        user->frame_end(user->arg, reader->link, &reader->landing, true, carried, computed);
        reader->frame_ended(reader->arg);
    }
}

/* Bytes that the phase still lacks. */
static size_t missing(const struct bt_kv_reader *reader) {
    switch (reader->phase) {
    case BT_KV_READ_HEADER:
        return BT_KV_HEADER_BYTES - reader->n_done;
    case BT_KV_READ_SUMS:
        return n_sums(reader) * 8 - reader->n_done;
    case BT_KV_READ_CONTROL:
    case BT_KV_READ_PAYLOAD:
        break;
    }
    return reader->unit.length - reader->n_done;
}

bt_status bt_kv_reader_got(struct bt_kv_reader *reader, size_t n_bytes, struct bt_error *err) {
    BT_ASSERT(n_bytes >= 1);
    while (n_bytes) {
        size_t left = missing(reader), take = n_bytes < left ? n_bytes : left;
        reader->n_done += (uint32_t)take;
        n_bytes -= take;
        if (take < left)
            break;
        switch (reader->phase) {
        case BT_KV_READ_HEADER:
            BT_TRY(end_header(reader, err));
            break;
        case BT_KV_READ_CONTROL:
            BT_TRY(end_control(reader, err));
            break;
        case BT_KV_READ_SUMS:
            begin_payload(reader);
            break;
        case BT_KV_READ_PAYLOAD:
            end_payload(reader);
            break;
        }
    }
    return BT_OK;
}

void bt_kv_reader_stop(struct bt_kv_reader *reader) {
    if (!reader->is_landing)
        return;
    reader->is_landing = false;
    reader->user->frame_end(reader->user->arg, reader->link, &reader->landing, false, NULL, NULL);
}

void bt_kv_reader_cut(struct bt_kv_reader *reader, uint32_t lease) {
    if (reader->is_landing && reader->landing.lease == lease)
        bt_kv_reader_stop(reader);
}

bool bt_kv_reader_is_inside(const struct bt_kv_reader *reader) {
    return reader->phase != BT_KV_READ_HEADER || reader->n_done;
}

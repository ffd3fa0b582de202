/* Feeds any bytes to the readers of Registry.Attach, as a stream of messages; what comes out must
 * be within its bounds and must survive being sent on. */
#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/rpc/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Packs what was read, reads it back, and looks at what it points to. */
static void send_on(const struct bt_msg *msg, enum bt_wire_side from, struct bt_wire_arena *arena) {
    struct bt_wire_writer writer;
    struct bt_wire_reader reader;
    struct bt_msg back;
    struct bt_error err = {0};
    bt_wire_writer_init(&writer, from);
    bt_wire_reader_init(&reader, from);
    BT_ASSERT(bt_wire_check(msg, from, &err) == BT_OK);
    bt_status status = bt_wire_writer_add(&writer, msg, &err);
    BT_ASSERT(status == BT_OK || status == BT_E_TOO_LARGE);
    bt_wire_writer_finish(&writer);
    for (size_t at = 0, n; at < writer.n_bytes; at += n) {
        n = bt_wire_message_bytes(writer.bytes + at, writer.n_bytes - at);
        BT_ASSERT(n > 0 && n <= BT_MESSAGE_BYTES);
        bt_wire_reader_begin(&reader, writer.bytes + at, n);
        while ((status = bt_wire_reader_next(&reader, arena, &back, &err)) == BT_OK)
            BT_ASSERT(back.type == msg->type);
        BT_ASSERT(status == BT_DONE);
    }
    bt_wire_writer_fini(&writer);
    bt_wire_reader_fini(&reader);
}

/* The first byte says who speaks; then messages, each after its length in two bytes. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1)
        return 0;
    enum bt_wire_side from = data[0] & 1 ? BT_WIRE_ROUTER : BT_WIRE_WORKER;
    struct bt_wire_reader reader;
    struct bt_wire_arena arena, second;
    bt_wire_reader_init(&reader, from);
    bt_wire_arena_init(&arena, BT_WIRE_ARENA_BYTES);
    bt_wire_arena_init(&second, BT_WIRE_ARENA_BYTES);
    bt_status status = BT_DONE;
    for (size_t at = 1; at + 2 <= size && status == BT_DONE;) {
        size_t n = (size_t)data[at] | (size_t)data[at + 1] << 8;
        at += 2;
        if (n > size - at)
            n = size - at;
        struct bt_msg msg;
        struct bt_error err = {0};
        bt_wire_reader_begin(&reader, data + at, n);
        while ((status = bt_wire_reader_next(&reader, &arena, &msg, &err)) == BT_OK)
            send_on(&msg, from, &second);
        BT_ASSERT(status == BT_DONE || err.text[0]);
        at += n;
    }
    bt_wire_reader_fini(&reader);
    bt_wire_arena_fini(&arena);
    bt_wire_arena_fini(&second);
    return 0;
}

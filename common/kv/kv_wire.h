/* The bytes on a KV link: a fixed header before each unit, control messages, frames of KV bytes.
 *
 * A link is one TCP connection that a prefill worker (P) opens to a decode worker (D). Each
 * direction is a sequence of units with nothing between them. A unit begins with this header, 48
 * bytes, every number little-endian:
 *
 *   at  size  field       control                       frame
 *    0  u32   magic       0x564b5442, the bytes "BTKV"  the same
 *    4  u32   type        1                             2
 *    8  u32   lease       0                             the grant's lease slot
 *   12  u32   layer       0                             0 .. layers - 1
 *   16  u64   generation  XXH3-64 of the payload        the grant's generation
 *   24  u32   first_page  0                             index in the prompt, of the first page
 *   28  u32   n_pages     0                             1 .. 64, first_page + n_pages <= 65536
 *   32  u32   offset      0                             in the page, bytes
 *   36  u32   length      1 .. 65536                    1 .. 262144
 *   40  u64   hash        XXH3-64 (seed 0) of the 40 bytes before it
 *
 * Control: length bytes of payload follow, one packed LinkMessage of proto/kv.proto.
 *
 * Frame, from P to D only: pages first_page .. first_page + n_pages - 1 of one layer. First the
 * sums of the pages that end in the frame, a u64 each in page order: XXH3-64 (seed 0) of the page's
 * bytes in that layer. Then length bytes of payload, the pages one after another. Two shapes:
 *   - whole pages: offset 0, length = n_pages * page bytes, n_pages sums;
 *   - one piece of one page, where a page is larger than a frame may be: n_pages 1, offset + length
 *     <= page bytes; pieces come in order; one sum where offset + length = page bytes, else none.
 * Page bytes = 16 tokens * KV heads * head dimension * 2 (K and V) * bytes per element: both sides
 * know it from the layout fingerprint. What stands inside a page is the fingerprint's inner order.
 *
 * The order of a connection, times and rules of the messages stand in proto/kv.proto. A header that
 * breaks a bound above, a hash that differs, a payload that is not such a message: the reader
 * closes the connection. A well-formed frame that D did not grant (lease, generation, layer, range,
 * order) is read, dropped and counted, and the link goes on. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "common/base/fingerprint.h"
#include "common/base/id.h"
#include "common/base/status.h"
#include "common/kv/kv_msg.h"

enum {
    BT_KV_PROTOCOL_MIN = 1,
    BT_KV_PROTOCOL_MAX = 1,
    BT_KV_MAGIC = 0x564b5442,
    BT_KV_HEADER_BYTES = 48,
    BT_KV_CONTROL_BYTES = 65536, /* largest payload of a control unit */
    BT_KV_UNIT_BYTES_MAX = 512,  /* largest control unit that we send, its header included */
    BT_KV_TOKENS_MAX = BT_KV_PAGES_MAX * BT_PAGE_TOKENS,
    BT_KV_SUMS_MAX = BT_KV_PAGES_MAX * BT_KV_LAYERS_MAX,
};

enum bt_kv_unit_type { BT_KV_UNIT_CONTROL = 1, BT_KV_UNIT_FRAME = 2 };

/* A header that was read. */
struct bt_kv_unit {
    enum bt_kv_unit_type type;
    uint32_t length;          /* of the payload */
    uint64_t payload_hash;    /* CONTROL */
    struct bt_kv_frame frame; /* FRAME; frame.length = length */
};

enum bt_kv_control_type {
    BT_KV_CONTROL_UNKNOWN, /* of a later version: skipped; never sent */
    BT_KV_CONTROL_JOIN,
    BT_KV_CONTROL_WELCOME,
    BT_KV_CONTROL_REFUSED,
    BT_KV_CONTROL_PING,
    BT_KV_CONTROL_MSG, /* one of the cores' */
};

struct bt_kv_join {
    char name[BT_NAME_BYTES];
    struct bt_id incarnation;
    struct bt_id peer; /* the decode worker that P means to reach */
    uint32_t protocol_min, protocol_max;
    struct bt_fingerprint fingerprint;
};

struct bt_kv_welcome {
    struct bt_id incarnation;
    uint32_t protocol;
};

struct bt_kv_control {
    enum bt_kv_control_type type;
    union {
        struct bt_kv_join join;
        struct bt_kv_welcome welcome;
        char refused[BT_ERROR_TEXT_BYTES]; /* a sentence */
        struct bt_kv_msg msg;
    };
};

/* ---- headers ---- */

void bt_kv_header_pack_frame(const struct bt_kv_frame *frame, uint8_t out[BT_KV_HEADER_BYTES]);
/* Of a control unit with this payload. */
void bt_kv_header_pack_control(const uint8_t *payload, uint32_t n_bytes,
                               uint8_t out[BT_KV_HEADER_BYTES]);
/* BT_E_PROTOCOL with a sentence for every header that breaks a bound. page_bytes is of our layout.
 * The layer is checked against BT_KV_LAYERS_MAX only: what was granted is the core's to know. */
bt_status bt_kv_header_unpack(const uint8_t bytes[BT_KV_HEADER_BYTES], uint32_t page_bytes,
                              struct bt_kv_unit *out, struct bt_error *err);

/* ---- control ---- */

/* Packs header and payload; the number of bytes. The message is ours: a value outside the bounds is
 * asserted, not refused. */
size_t bt_kv_control_pack(const struct bt_kv_control *control, uint8_t out[BT_KV_UNIT_BYTES_MAX]);
/* A payload whose hash was compared. BT_E_PROTOCOL with a sentence that names field, value and
 * bound. A message of a type that this version does not know is BT_OK and UNKNOWN. */
bt_status bt_kv_control_unpack(const uint8_t *payload, size_t n_bytes, struct bt_kv_control *out,
                               struct bt_error *err);

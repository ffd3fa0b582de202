/* Cuts what one side says into messages, and gives what a peer says message by message. */
#include "common/rpc/wire.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/rpc/wire_item.h"

enum {
    ITEM_TAG = 1 << 3 | 2, /* field 1, length-delimited: items of both message types */
    FRAME_BYTES = 1 + 5,   /* tag and length, at most */
    PIECE_BYTES = 64,      /* what a Piece has beside its data, at most, its frame included */
    ROW_BYTES = 24,        /* about one packed token row */
    ROW_BYTES_MAX = 34,    /* one packed token row: 10 + 5 + 5 + 5 + 1 + 8, at most */
    LOGPROB_BYTES_MAX = 1 + 4 + 9 * BT_TOP_LOGPROBS, /* of one row, beside that */
    COLUMNS_BYTES = 96, /* what Tokens or Scores has beside its rows, at most, its frame included */
    KEEP_BYTES = 256 << 10, /* of memory, after a turn */
    ROWS_AT_LEAST = 64,
};
_Static_assert(BT_WIRE_TOKEN_ROWS_SENT *ROW_BYTES_MAX + COLUMNS_BYTES <= BT_MESSAGE_BYTES,
               "a Tokens that we make always fits one message");
_Static_assert(BT_WIRE_LOGPROB_ROWS_SENT *(ROW_BYTES_MAX + LOGPROB_BYTES_MAX) + COLUMNS_BYTES <=
                   BT_MESSAGE_BYTES,
               "a Tokens with logprobs that we make always fits one message");
_Static_assert(BT_SCORE_ROWS *LOGPROB_BYTES_MAX + COLUMNS_BYTES <= BT_MESSAGE_BYTES,
               "a Scores always fits one message");

/* ---- writer ---- */

void bt_wire_writer_init(struct bt_wire_writer *writer, enum bt_wire_side from) {
    memset(writer, 0, sizeof *writer);
    writer->from = from;
}

void bt_wire_writer_fini(struct bt_wire_writer *writer) {
    free(writer->bytes);
    free(writer->rows);
    free(writer->columns);
    bt_wire_writer_init(writer, writer->from);
}

void bt_wire_writer_clear(struct bt_wire_writer *writer) {
    writer->n_bytes = 0;
    writer->n_rows = 0;
    if (writer->capacity > KEEP_BYTES) {
        free(writer->bytes);
        writer->bytes = NULL;
        writer->capacity = 0;
    }
}

static bool reserve(struct bt_wire_writer *writer, size_t n_more) {
    size_t needed = writer->n_bytes + n_more, capacity = writer->capacity;
    if (needed <= capacity)
        return true;
    while (capacity < needed)
        capacity = capacity ? capacity * 2 : 4096;
    uint8_t *bytes = realloc(writer->bytes, capacity);
    if (!bytes)
        return false;
    writer->bytes = bytes;
    writer->capacity = capacity;
    return true;
}

static void put_varint(struct bt_wire_writer *writer, size_t v) {
    for (; v > 127; v >>= 7)
        writer->bytes[writer->n_bytes++] = (uint8_t)(v | 128);
    writer->bytes[writer->n_bytes++] = (uint8_t)v;
}

/* Room for an item in the writer's bytes, behind its frame. */
static uint8_t *room_framed(void *self, size_t n) {
    struct bt_wire_writer *writer = self;
    if (!reserve(writer, n + FRAME_BYTES))
        return NULL;
    writer->bytes[writer->n_bytes++] = ITEM_TAG;
    put_varint(writer, n);
    writer->n_bytes += n;
    return writer->bytes + writer->n_bytes - n;
}

/* An item that is packed before it is known whether it fits one message. */
struct item {
    struct bt_wire_writer *writer;
    uint8_t *large; /* memory of its own, where it does not */
    size_t n_large;
};

static uint8_t *room_for_item(void *self, size_t n) {
    struct item *item = self;
    if (n + FRAME_BYTES <= BT_MESSAGE_BYTES)
        return room_framed(item->writer, n);
    item->large = malloc(n);
    item->n_large = n;
    return item->large;
}

static bt_status add_pieces(struct bt_wire_writer *writer, const uint8_t *bytes, size_t n_bytes,
                            struct bt_error *err) {
    enum { DATA = BT_MESSAGE_BYTES - PIECE_BYTES };
    size_t n_pieces = (n_bytes + DATA - 1) / DATA;
    if (!reserve(writer, n_bytes + n_pieces * PIECE_BYTES))
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for an item of %zu bytes", n_bytes);
    for (size_t at = 0; at < n_bytes;) {
        size_t n = n_bytes - at < DATA ? n_bytes - at : DATA;
        struct bt_wire_piece piece = {.total_bytes = (uint32_t)n_bytes,
                                      .offset = (uint32_t)at,
                                      .data = bytes + at,
                                      .n_data = n};
        bt_status status = bt_wire_piece_pack(&piece, writer->from, room_framed, writer, err);
        BT_ASSERT(status == BT_OK); /* the room is there */
        at += n;
    }
    return BT_OK;
}

static bt_status add_item(struct bt_wire_writer *writer, const struct bt_msg *msg,
                          struct bt_error *err) {
    struct item item = {.writer = writer};
    bt_status status = bt_wire_item_pack(msg, writer->columns, room_for_item, &item, err);
    if (status == BT_OK && item.large)
        status = add_pieces(writer, item.large, item.n_large, err);
    free(item.large);
    return status;
}

void bt_wire_writer_finish(struct bt_wire_writer *writer) {
    if (!writer->n_rows)
        return;
    struct bt_msg msg = {.type = BT_MSG_TOKENS,
                         .tokens = {.rows = writer->rows, .n_rows = writer->n_rows}};
    bt_status status = add_item(writer, &msg, NULL);
    BT_ASSERT(status == BT_OK); /* add_rows made the room, and so few rows always fit */
    writer->n_rows = 0;
}

static bool grow_columns(struct bt_wire_writer *writer, size_t n_bytes) {
    if (n_bytes <= writer->columns_bytes)
        return true;
    void *columns = realloc(writer->columns, n_bytes);
    if (!columns)
        return false;
    writer->columns = columns;
    writer->columns_bytes = n_bytes;
    return true;
}

static bool grow_rows(struct bt_wire_writer *writer, uint32_t n_more) {
    uint32_t needed = writer->n_rows + n_more, capacity = writer->rows_capacity;
    if (needed > BT_WIRE_TOKEN_ROWS_SENT)
        needed = BT_WIRE_TOKEN_ROWS_SENT;
    if (needed <= capacity)
        return true;
    while (capacity < needed)
        capacity = capacity ? capacity * 2 : ROWS_AT_LEAST;
    struct bt_token *rows = realloc(writer->rows, capacity * sizeof *rows);
    if (rows)
        writer->rows = rows;
    if (!rows || !grow_columns(writer, (size_t)capacity * BT_WIRE_COLUMN_BYTES))
        return false;
    writer->rows_capacity = capacity;
    return true;
}

static bt_status add_rows(struct bt_wire_writer *writer, const struct bt_msg_tokens *tokens,
                          struct bt_error *err) {
    size_t n_rows = (size_t)writer->n_rows + tokens->n_rows;
    size_t n_items = n_rows / BT_WIRE_TOKEN_ROWS_SENT + 1;
    if (!grow_rows(writer, tokens->n_rows) ||
        !reserve(writer, n_rows * ROW_BYTES_MAX + n_items * COLUMNS_BYTES))
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u token rows", tokens->n_rows);
    for (uint32_t at = 0; at < tokens->n_rows;) {
        uint32_t n = tokens->n_rows - at, space = BT_WIRE_TOKEN_ROWS_SENT - writer->n_rows;
        if (n > space)
            n = space;
        memcpy(writer->rows + writer->n_rows, tokens->rows + at, n * sizeof *tokens->rows);
        writer->n_rows += n;
        at += n;
        if (writer->n_rows == BT_WIRE_TOKEN_ROWS_SENT)
            bt_wire_writer_finish(writer);
    }
    return BT_OK;
}

/* Rows whose logprobs are lent for this call only become items now. */
static bt_status add_rows_with_logprobs(struct bt_wire_writer *writer,
                                        const struct bt_msg_tokens *tokens, struct bt_error *err) {
    enum {
        ROWS = BT_WIRE_LOGPROB_ROWS_SENT,
        COLUMN_BYTES = BT_WIRE_COLUMN_BYTES + BT_WIRE_LOGPROB_COLUMN_BYTES
    };
    uint32_t n_most = tokens->n_rows < ROWS ? tokens->n_rows : ROWS;
    size_t n_items = tokens->n_rows / ROWS + 1;
    bt_wire_writer_finish(writer);
    if (!grow_columns(writer, (size_t)n_most * COLUMN_BYTES) ||
        !reserve(writer, (size_t)tokens->n_rows * (ROW_BYTES_MAX + LOGPROB_BYTES_MAX) +
                             n_items * COLUMNS_BYTES))
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u token rows", tokens->n_rows);
    for (uint32_t at = 0, n; at < tokens->n_rows; at += n) {
        n = tokens->n_rows - at < ROWS ? tokens->n_rows - at : ROWS;
        struct bt_msg part = {.type = BT_MSG_TOKENS, .tokens = {tokens->rows + at, n}};
        bt_status status = add_item(writer, &part, err);
        BT_ASSERT(status == BT_OK); /* the room is there, and so few rows always fit */
    }
    return BT_OK;
}

static bool has_logprobs(const struct bt_msg_tokens *tokens) {
    for (uint32_t i = 0; i < tokens->n_rows; i++)
        if (tokens->rows[i].logprobs)
            return true;
    return false;
}

bt_status bt_wire_writer_add(struct bt_wire_writer *writer, const struct bt_msg *msg,
                             struct bt_error *err) {
    BT_TRY(bt_wire_check(msg, writer->from, err));
    if (msg->type == BT_MSG_TOKENS && has_logprobs(&msg->tokens))
        return add_rows_with_logprobs(writer, &msg->tokens, err);
    if (msg->type == BT_MSG_TOKENS)
        return add_rows(writer, &msg->tokens, err);
    bt_wire_writer_finish(writer);
    if (msg->type == BT_MSG_SCORES &&
        !grow_columns(writer, (size_t)msg->scores.n_rows * BT_WIRE_LOGPROB_COLUMN_BYTES))
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u scores", msg->scores.n_rows);
    return add_item(writer, msg, err);
}

size_t bt_wire_writer_bytes(const struct bt_wire_writer *writer) {
    return writer->n_bytes + (size_t)writer->n_rows * ROW_BYTES;
}

/* Reads a varint of at most 10 bytes (protobuf, "Base 128 Varints"); 0 where there is none. */
static size_t get_varint(const uint8_t *bytes, size_t n_bytes, uint64_t *out) {
    uint64_t v = 0;
    for (size_t i = 0; i < n_bytes && i < 10; i++) {
        v |= (uint64_t)(bytes[i] & 127) << (7 * i);
        if (!(bytes[i] & 128)) {
            *out = v;
            return i + 1;
        }
    }
    return 0;
}

size_t bt_wire_message_bytes(const uint8_t *bytes, size_t n_bytes) {
    size_t at = 0;
    for (int n_items = 0; n_items < BT_WIRE_ITEMS && at < n_bytes; n_items++) {
        uint64_t length = 0;
        BT_ASSERT(bytes[at] == ITEM_TAG);
        size_t n = get_varint(bytes + at + 1, n_bytes - at - 1, &length);
        BT_ASSERT(n && length <= n_bytes - at - 1 - n);
        size_t end = at + 1 + n + (size_t)length;
        if (end > BT_MESSAGE_BYTES)
            break;
        at = end;
    }
    return at;
}

/* ---- reader ---- */

void bt_wire_reader_init(struct bt_wire_reader *reader, enum bt_wire_side from) {
    memset(reader, 0, sizeof *reader);
    reader->from = from;
}

void bt_wire_reader_fini(struct bt_wire_reader *reader) {
    free(reader->joined);
    bt_wire_reader_init(reader, reader->from);
}

void bt_wire_reader_begin(struct bt_wire_reader *reader, const uint8_t *bytes, size_t n_bytes) {
    reader->message = bytes;
    reader->n_message = n_bytes;
    reader->at = 0;
    reader->n_items = 0;
}

/* Takes the next field of the message; *n_item is 0 and *item NULL for one that we do not know.
 * Wire types: protobuf, "Message Structure". */
static bt_status next_field(struct bt_wire_reader *reader, const uint8_t **item, size_t *n_item,
                            struct bt_error *err) {
    uint64_t tag = 0, length = 0;
    const uint8_t *bytes = reader->message + reader->at;
    size_t n_left = reader->n_message - reader->at;
    size_t n = get_varint(bytes, n_left, &tag);
    *item = NULL;
    *n_item = 0;
    if (!n || tag < 8 || tag > UINT32_MAX)
        return bt_fail(err, BT_E_INVALID, "message has no field tag at byte %zu of %zu", reader->at,
                       reader->n_message);
    size_t m;
    switch (tag & 7) {
    case 0:
        m = get_varint(bytes + n, n_left - n, &length);
        length = 0;
        break;
    case 1:
        m = 8;
        break;
    case 2:
        m = get_varint(bytes + n, n_left - n, &length);
        break;
    case 5:
        m = 4;
        break;
    default:
        m = 0;
    }
    if (!m || m > n_left - n || length > n_left - n - m)
        return bt_fail(err, BT_E_INVALID,
                       "message of %zu bytes is cut off in the field at byte %zu",
                       reader->n_message, reader->at);
    if (tag == ITEM_TAG) {
        *item = bytes + n + m;
        *n_item = (size_t)length;
    }
    reader->at += n + m + (size_t)length;
    return BT_OK;
}

/* Adds one part to the item that is being joined; *complete where it was the last. */
static bt_status join(struct bt_wire_reader *reader, const struct bt_wire_piece *piece,
                      bool *complete, struct bt_error *err) {
    if (piece->total_bytes == 0 || piece->total_bytes > BT_WIRE_JOIN_BYTES)
        return bt_fail(err, BT_E_TOO_LARGE, "piece.total_bytes is %u, must be 1 to %d",
                       piece->total_bytes, BT_WIRE_JOIN_BYTES);
    if (reader->joined && piece->total_bytes != reader->total)
        return bt_fail(err, BT_E_INVALID,
                       "piece.total_bytes is %u, must be %u as in the parts before it",
                       piece->total_bytes, reader->total);
    uint32_t n_joined = reader->joined ? reader->n_joined : 0;
    if (piece->offset != n_joined)
        return bt_fail(err, BT_E_INVALID, "piece.offset is %u, must be %u", piece->offset,
                       n_joined);
    if (piece->n_data == 0 || piece->n_data > piece->total_bytes - n_joined)
        return bt_fail(err, BT_E_INVALID, "piece.data has %zu bytes, must have 1 to %u",
                       piece->n_data, piece->total_bytes - n_joined);
    if (!reader->joined) {
        reader->joined = malloc(piece->total_bytes);
        if (!reader->joined)
            return bt_fail(err, BT_E_NO_MEMORY, "no memory for an item of %u bytes in pieces",
                           piece->total_bytes);
        reader->total = piece->total_bytes;
        reader->n_joined = 0;
    }
    memcpy(reader->joined + reader->n_joined, piece->data, piece->n_data);
    reader->n_joined += (uint32_t)piece->n_data;
    *complete = reader->n_joined == reader->total;
    return BT_OK;
}

/* Unpacks one item of the message, and the item that its piece completes. */
static bt_status take_item(struct bt_wire_reader *reader, struct bt_wire_arena *arena,
                           const uint8_t *item, size_t n_item, enum bt_wire_item_kind *kind,
                           struct bt_msg *out, struct bt_error *err) {
    struct bt_wire_piece piece;
    BT_TRY(bt_wire_item_unpack(item, n_item, reader->from, arena, kind, out, &piece, err));
    if (*kind != BT_WIRE_ITEM_PIECE) {
        if (reader->joined)
            return bt_fail(err, BT_E_INVALID,
                           "another item stands after %u of %u bytes of an item in pieces",
                           reader->n_joined, reader->total);
        return BT_OK;
    }
    bool complete = false;
    BT_TRY(join(reader, &piece, &complete, err));
    if (!complete)
        return BT_OK;
    bt_status status = bt_wire_item_unpack(reader->joined, reader->total, reader->from, arena, kind,
                                           out, &piece, err);
    free(reader->joined);
    reader->joined = NULL;
    if (status == BT_OK && *kind == BT_WIRE_ITEM_PIECE)
        return bt_fail(err, BT_E_INVALID, "pieces join to a piece, must join to another item");
    return status;
}

bt_status bt_wire_reader_next(struct bt_wire_reader *reader, struct bt_wire_arena *arena,
                              struct bt_msg *out, struct bt_error *err) {
    if (reader->n_message > BT_MESSAGE_BYTES)
        return bt_fail(err, BT_E_TOO_LARGE, "message has %zu bytes, must have at most %d",
                       reader->n_message, BT_MESSAGE_BYTES);
    while (reader->at < reader->n_message) {
        const uint8_t *item;
        size_t n_item;
        BT_TRY(next_field(reader, &item, &n_item, err));
        if (!item)
            continue;
        if (++reader->n_items > BT_WIRE_ITEMS)
            return bt_fail(err, BT_E_TOO_LARGE, "message has over %d items, the bound",
                           BT_WIRE_ITEMS);
        enum bt_wire_item_kind kind;
        BT_TRY(take_item(reader, arena, item, n_item, &kind, out, err));
        if (kind == BT_WIRE_ITEM_MESSAGE)
            return bt_wire_check(out, reader->from, err);
    }
    return BT_DONE;
}

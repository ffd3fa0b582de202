/* Reads the container of a GGUF v3 model file: keys with values, and where each tensor lies.
 *
 * Knows nothing of what keys and tensors mean. Everything in the file is checked when it is opened:
 * each count, length, offset and size against the file's size and against the bounds below; after
 * that the getters only look. The file stays mapped until it is closed, and every string, array and
 * tensor points into that mapping, at any alignment. After open any thread may read. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/bytes.h"
#include "common/base/status.h"

enum {
    BT_GGUF_MAX_KEYS = 65536,
    BT_GGUF_MAX_TENSORS = 65536,
    BT_GGUF_MAX_DIMS = 4,
    BT_GGUF_MAX_NAME_BYTES = 1024,      /* of a key or tensor */
    BT_GGUF_MAX_STRING_BYTES = 1 << 24, /* of a value */
    BT_GGUF_MAX_ARRAY_ELEMENTS = 1 << 24,
    BT_GGUF_MAX_ALIGNMENT = 1 << 20,
};

/* Type of a value, numbered as in the file. */
enum bt_gguf_type {
    BT_GGUF_U8 = 0,
    BT_GGUF_I8 = 1,
    BT_GGUF_U16 = 2,
    BT_GGUF_I16 = 3,
    BT_GGUF_U32 = 4,
    BT_GGUF_I32 = 5,
    BT_GGUF_F32 = 6,
    BT_GGUF_BOOL = 7,
    BT_GGUF_STRING = 8,
    BT_GGUF_ARRAY = 9,
    BT_GGUF_U64 = 10,
    BT_GGUF_I64 = 11,
    BT_GGUF_F64 = 12,
};

/* Bytes that are not ended by a NUL; a string value may hold any byte. */
struct bt_gguf_string {
    const char *text;
    size_t n_bytes;
};

/* All elements of one array, or, after some bt_gguf_next_string calls, the strings not yet read. */
struct bt_gguf_array {
    enum bt_gguf_type type; /* of its elements; never ARRAY: nested arrays are refused */
    uint32_t n_elements;
    const uint8_t *bytes; /* of the first element, little-endian */
};

struct bt_gguf_key {
    struct bt_gguf_string name;
    enum bt_gguf_type type;
    const uint8_t *value;         /* of a scalar */
    struct bt_gguf_string string; /* STRING */
    struct bt_gguf_array array;   /* ARRAY */
};

struct bt_gguf_tensor {
    struct bt_gguf_string name;
    uint32_t type; /* ggml's number, one that bt_gguf_tensor_type_name knows */
    uint32_t n_dims;
    uint64_t dims[BT_GGUF_MAX_DIMS]; /* dims[0] moves fastest; those past n_dims are 1 */
    uint64_t n_elements;
    const uint8_t *data;
    uint64_t n_bytes;
};

struct bt_gguf;

/* Maps and checks a file. BT_E_NOT_FOUND or BT_E_IO with the system's reason, BT_E_INVALID with a
 * sentence that names field, value and bound, BT_E_UNSUPPORTED (big-endian, another version, an
 * unknown tensor type, nested arrays), BT_E_NO_MEMORY. */
bt_status bt_gguf_open(const char *path, struct bt_gguf **out, struct bt_error *err);
/* The same for bytes in memory, borrowed until bt_gguf_close. */
bt_status bt_gguf_open_memory(const uint8_t *bytes, size_t n_bytes, struct bt_gguf **out,
                              struct bt_error *err);
/* Accepts NULL. All that was borrowed from it is gone. */
void bt_gguf_close(struct bt_gguf *gguf);

/* Lets go of the memory that shows the file: what is read again comes from the system's page cache.
 * Any thread, also while others read; for borrowed bytes nothing happens. */
void bt_gguf_release(const struct bt_gguf *gguf);

/* Bytes of the whole file. */
uint64_t bt_gguf_file_bytes(const struct bt_gguf *gguf);

/* Keys in the file's order, and by name (NULL where there is none). */
uint32_t bt_gguf_n_keys(const struct bt_gguf *gguf);
const struct bt_gguf_key *bt_gguf_key_at(const struct bt_gguf *gguf, uint32_t i);
const struct bt_gguf_key *bt_gguf_find_key(const struct bt_gguf *gguf, const char *name);

/* Typed getters: BT_E_NOT_FOUND where the key is absent, BT_E_INVALID where its type or value does
 * not fit; *out is written only on success. The integer getters accept every integer type whose
 * value fits, f32 also f64. */
bt_status bt_gguf_get_u32(const struct bt_gguf *gguf, const char *name, uint32_t *out,
                          struct bt_error *err);
bt_status bt_gguf_get_u64(const struct bt_gguf *gguf, const char *name, uint64_t *out,
                          struct bt_error *err);
bt_status bt_gguf_get_f32(const struct bt_gguf *gguf, const char *name, float *out,
                          struct bt_error *err);
bt_status bt_gguf_get_bool(const struct bt_gguf *gguf, const char *name, bool *out,
                           struct bt_error *err);
bt_status bt_gguf_get_string(const struct bt_gguf *gguf, const char *name,
                             struct bt_gguf_string *out, struct bt_error *err);
/* Only an array whose elements are of exactly this type. */
bt_status bt_gguf_get_array(const struct bt_gguf *gguf, const char *name, enum bt_gguf_type type,
                            struct bt_gguf_array *out, struct bt_error *err);

/* Takes the next string off a STRING array; false after the last. */
bool bt_gguf_next_string(struct bt_gguf_array *strings, struct bt_gguf_string *out);
/* Elements of an I32, U32 or F32 array; i < n_elements. */
static inline int32_t bt_gguf_i32_at(const struct bt_gguf_array *array, uint32_t i) {
    return (int32_t)bt_load_u32(array->bytes + 4 * (size_t)i);
}
float bt_gguf_f32_at(const struct bt_gguf_array *array, uint32_t i);

/* Whether s is the C string `text`. */
bool bt_gguf_string_is(struct bt_gguf_string s, const char *text);

/* Tensors in the file's order, and by name (NULL where there is none). */
uint32_t bt_gguf_n_tensors(const struct bt_gguf *gguf);
const struct bt_gguf_tensor *bt_gguf_tensor_at(const struct bt_gguf *gguf, uint32_t i);
const struct bt_gguf_tensor *bt_gguf_find_tensor(const struct bt_gguf *gguf, const char *name);

/* "Q4_1", or NULL for a number that this reader does not know. */
const char *bt_gguf_tensor_type_name(uint32_t type);
/* "U32", "STRING"... */
const char *bt_gguf_type_name(enum bt_gguf_type type);

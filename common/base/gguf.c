/* Reads the container of a GGUF v3 model file: keys with values, and where each tensor lies. */
#include "common/base/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/base/assert.h"

/* Shortest key: name length, one byte of name, type, one byte of value. Shortest tensor: name
 * length, one byte of name, n_dims, one dim, type, offset. A count that needs more than the file
 * holds is refused before memory is taken for it. */
enum { KEY_BYTES_MIN = 14, TENSOR_BYTES_MIN = 33, DEFAULT_ALIGNMENT = 32 };

/* Positions of named things, by open addressing; 0 is an empty slot, else position + 1. */
struct name_index {
    uint32_t *slots;
    uint32_t mask;
};

struct bt_gguf {
    const uint8_t *bytes;
    size_t n_bytes;
    bool mapped; /* bytes are ours to unmap */
    struct bt_gguf_key *keys;
    uint32_t n_keys;
    struct bt_gguf_tensor *tensors;
    uint32_t n_tensors;
    struct name_index key_index, tensor_index;
};

/* What is left to read; at never passes n_bytes. */
struct cursor {
    const uint8_t *bytes;
    size_t n_bytes, at;
};

/* What a name in a sentence may show of it. */
#define SHOWN(s) (int)((s).n_bytes < 80 ? (s).n_bytes : 80), (s).text

struct tensor_layout {
    const char *name;
    uint16_t block_elements, block_bytes;
};

/* By ggml's number; gaps are formats that ggml removed. */
static const struct tensor_layout tensor_layouts[] = {
    [0] = {"F32", 1, 4},         [1] = {"F16", 1, 2},         [2] = {"Q4_0", 32, 18},
    [3] = {"Q4_1", 32, 20},      [6] = {"Q5_0", 32, 22},      [7] = {"Q5_1", 32, 24},
    [8] = {"Q8_0", 32, 34},      [9] = {"Q8_1", 32, 36},      [10] = {"Q2_K", 256, 84},
    [11] = {"Q3_K", 256, 110},   [12] = {"Q4_K", 256, 144},   [13] = {"Q5_K", 256, 176},
    [14] = {"Q6_K", 256, 210},   [15] = {"Q8_K", 256, 292},   [16] = {"IQ2_XXS", 256, 66},
    [17] = {"IQ2_XS", 256, 74},  [18] = {"IQ3_XXS", 256, 98}, [19] = {"IQ1_S", 256, 50},
    [20] = {"IQ4_NL", 32, 18},   [21] = {"IQ3_S", 256, 110},  [22] = {"IQ2_S", 256, 82},
    [23] = {"IQ4_XS", 256, 136}, [24] = {"I8", 1, 1},         [25] = {"I16", 1, 2},
    [26] = {"I32", 1, 4},        [27] = {"I64", 1, 8},        [28] = {"F64", 1, 8},
    [29] = {"IQ1_M", 256, 56},   [30] = {"BF16", 1, 2},       [34] = {"TQ1_0", 256, 54},
    [35] = {"TQ2_0", 256, 66},   [39] = {"MXFP4", 32, 17},
};

static const struct tensor_layout *find_layout(uint32_t type) {
    if (type >= sizeof tensor_layouts / sizeof *tensor_layouts || !tensor_layouts[type].name)
        return NULL;
    return &tensor_layouts[type];
}

const char *bt_gguf_tensor_type_name(uint32_t type) {
    const struct tensor_layout *layout = find_layout(type);
    return layout ? layout->name : NULL;
}

static const struct {
    const char *name;
    uint8_t n_bytes; /* 0: not of a fixed size */
} value_types[] = {
    [BT_GGUF_U8] = {"U8", 1},       [BT_GGUF_I8] = {"I8", 1},     [BT_GGUF_U16] = {"U16", 2},
    [BT_GGUF_I16] = {"I16", 2},     [BT_GGUF_U32] = {"U32", 4},   [BT_GGUF_I32] = {"I32", 4},
    [BT_GGUF_F32] = {"F32", 4},     [BT_GGUF_BOOL] = {"BOOL", 1}, [BT_GGUF_STRING] = {"STRING", 0},
    [BT_GGUF_ARRAY] = {"ARRAY", 0}, [BT_GGUF_U64] = {"U64", 8},   [BT_GGUF_I64] = {"I64", 8},
    [BT_GGUF_F64] = {"F64", 8},
};
enum { N_VALUE_TYPES = sizeof value_types / sizeof *value_types };

const char *bt_gguf_type_name(enum bt_gguf_type type) {
    return (uint32_t)type < N_VALUE_TYPES ? value_types[type].name : "unknown";
}

/* ---- Names ---- */

static bt_status index_init(struct name_index *index, uint32_t n_names, struct bt_error *err) {
    uint32_t n_slots = 16;
    while (n_slots < 2 * n_names)
        n_slots *= 2;
    index->slots = calloc(n_slots, sizeof *index->slots);
    if (!index->slots)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for an index of %u names", n_names);
    index->mask = n_slots - 1;
    return BT_OK;
}

/* The slot that holds this name, or the empty one where it belongs. Names stand first in both
 * kinds of element. */
static uint32_t *index_slot(const struct name_index *index, const void *elements, size_t stride,
                            struct bt_gguf_string name) {
    uint32_t i = (uint32_t)XXH3_64bits(name.text, name.n_bytes) & index->mask;
    for (;; i = (i + 1) & index->mask) {
        uint32_t *slot = &index->slots[i];
        if (!*slot)
            return slot;
        const struct bt_gguf_string *other =
            (const void *)((const uint8_t *)elements + (*slot - 1) * stride);
        if (other->n_bytes == name.n_bytes && memcmp(other->text, name.text, name.n_bytes) == 0)
            return slot;
    }
}

_Static_assert(offsetof(struct bt_gguf_key, name) == 0, "index_slot reads the name there");
_Static_assert(offsetof(struct bt_gguf_tensor, name) == 0, "index_slot reads the name there");

bool bt_gguf_string_is(struct bt_gguf_string s, const char *text) {
    return s.n_bytes == strlen(text) && memcmp(s.text, text, s.n_bytes) == 0;
}

/* ---- Reading ---- */

static size_t left(const struct cursor *c) {
    return c->n_bytes - c->at;
}

static bt_status cut_short(const struct cursor *c, const char *what, uint64_t needed,
                           struct bt_error *err) {
    return bt_fail(err, BT_E_INVALID,
                   "%s at byte %zu needs %llu bytes, but the file ends after %zu more", what, c->at,
                   (unsigned long long)needed, left(c));
}

static bt_status read_u32(struct cursor *c, const char *what, uint32_t *out, struct bt_error *err) {
    if (left(c) < 4)
        return cut_short(c, what, 4, err);
    *out = bt_load_u32(c->bytes + c->at);
    c->at += 4;
    return BT_OK;
}

static bt_status read_u64(struct cursor *c, const char *what, uint64_t *out, struct bt_error *err) {
    if (left(c) < 8)
        return cut_short(c, what, 8, err);
    *out = bt_load_u64(c->bytes + c->at);
    c->at += 8;
    return BT_OK;
}

static bt_status read_string(struct cursor *c, const char *what, uint64_t max,
                             struct bt_gguf_string *out, struct bt_error *err) {
    uint64_t n = 0;
    BT_TRY(read_u64(c, what, &n, err));
    if (n > max)
        return bt_fail(err, BT_E_INVALID, "%s at byte %zu has %llu bytes, limit %llu", what,
                       c->at - 8, (unsigned long long)n, (unsigned long long)max);
    if (n > left(c))
        return cut_short(c, what, n, err);
    *out = (struct bt_gguf_string){(const char *)c->bytes + c->at, (size_t)n};
    c->at += (size_t)n;
    return BT_OK;
}

/* A name goes into sentences and log lines, so it must not carry control characters. */
static bt_status read_name(struct cursor *c, const char *what, struct bt_gguf_string *out,
                           struct bt_error *err) {
    size_t at = c->at;
    BT_TRY(read_string(c, what, BT_GGUF_MAX_NAME_BYTES, out, err));
    if (!out->n_bytes)
        return bt_fail(err, BT_E_INVALID, "%s at byte %zu is empty", what, at);
    for (size_t i = 0; i < out->n_bytes; i++)
        if ((uint8_t)out->text[i] < 0x20 || out->text[i] == 0x7f)
            return bt_fail(err, BT_E_INVALID, "%s at byte %zu holds the control character 0x%02x",
                           what, at, (unsigned)(uint8_t)out->text[i]);
    return BT_OK;
}

static bt_status read_array(struct cursor *c, const struct bt_gguf_key *key,
                            struct bt_gguf_array *out, struct bt_error *err) {
    uint32_t type = 0;
    uint64_t n = 0;
    BT_TRY(read_u32(c, "the element type of an array", &type, err));
    BT_TRY(read_u64(c, "the length of an array", &n, err));
    if (type >= N_VALUE_TYPES)
        return bt_fail(err, BT_E_INVALID,
                       "key \"%.*s\" is an array of type %u, the last known is %d",
                       SHOWN(key->name), type, N_VALUE_TYPES - 1);
    if (type == BT_GGUF_ARRAY)
        return bt_fail(err, BT_E_UNSUPPORTED, "key \"%.*s\" is an array of arrays",
                       SHOWN(key->name));
    if (n > BT_GGUF_MAX_ARRAY_ELEMENTS)
        return bt_fail(err, BT_E_INVALID, "key \"%.*s\" is an array of %llu elements, limit %d",
                       SHOWN(key->name), (unsigned long long)n, BT_GGUF_MAX_ARRAY_ELEMENTS);
    *out = (struct bt_gguf_array){(enum bt_gguf_type)type, (uint32_t)n, c->bytes + c->at};
    if (type == BT_GGUF_STRING) {
        for (uint64_t i = 0; i < n; i++) {
            struct bt_gguf_string s;
            BT_TRY(read_string(c, "a string of an array", BT_GGUF_MAX_STRING_BYTES, &s, err));
        }
        return BT_OK;
    }
    uint64_t n_bytes = n * value_types[type].n_bytes;
    if (n_bytes > left(c))
        return cut_short(c, "an array", n_bytes, err);
    if (type == BT_GGUF_BOOL)
        for (uint64_t i = 0; i < n; i++)
            if (c->bytes[c->at + i] > 1)
                return bt_fail(err, BT_E_INVALID, "key \"%.*s\" holds the bool %u, must be 0 or 1",
                               SHOWN(key->name), c->bytes[c->at + i]);
    c->at += (size_t)n_bytes;
    return BT_OK;
}

static bt_status read_key(struct cursor *c, struct bt_gguf_key *key, struct bt_error *err) {
    uint32_t type = 0;
    BT_TRY(read_name(c, "a key's name", &key->name, err));
    BT_TRY(read_u32(c, "a key's type", &type, err));
    if (type >= N_VALUE_TYPES)
        return bt_fail(err, BT_E_INVALID, "key \"%.*s\" is of type %u, the last known is %d",
                       SHOWN(key->name), type, N_VALUE_TYPES - 1);
    key->type = (enum bt_gguf_type)type;
    key->value = c->bytes + c->at;
    if (type == BT_GGUF_STRING)
        return read_string(c, "a key's string", BT_GGUF_MAX_STRING_BYTES, &key->string, err);
    if (type == BT_GGUF_ARRAY)
        return read_array(c, key, &key->array, err);
    if (value_types[type].n_bytes > left(c))
        return cut_short(c, "a key's value", value_types[type].n_bytes, err);
    if (type == BT_GGUF_BOOL && *key->value > 1)
        return bt_fail(err, BT_E_INVALID, "key \"%.*s\" is the bool %u, must be 0 or 1",
                       SHOWN(key->name), *key->value);
    c->at += value_types[type].n_bytes;
    return BT_OK;
}

/* Name, shape and type; leaves the offset, which counts from a place not known yet, to the caller.
 */
static bt_status read_tensor(struct cursor *c, struct bt_gguf_tensor *t, uint64_t *offset,
                             struct bt_error *err) {
    BT_TRY(read_name(c, "a tensor's name", &t->name, err));
    BT_TRY(read_u32(c, "a tensor's number of dimensions", &t->n_dims, err));
    if (t->n_dims < 1 || t->n_dims > BT_GGUF_MAX_DIMS)
        return bt_fail(err, BT_E_INVALID, "tensor \"%.*s\" has %u dimensions, must be 1 to %d",
                       SHOWN(t->name), t->n_dims, BT_GGUF_MAX_DIMS);
    t->n_elements = 1;
    for (uint32_t i = 0; i < BT_GGUF_MAX_DIMS; i++) {
        t->dims[i] = 1;
        if (i < t->n_dims)
            BT_TRY(read_u64(c, "a tensor's dimension", &t->dims[i], err));
        if (!t->dims[i] || !bt_mul_u64(t->n_elements, t->dims[i], &t->n_elements))
            return bt_fail(err, BT_E_INVALID,
                           "tensor \"%.*s\": dimension %u is %llu; must be 1 or more, and all "
                           "elements must be fewer than 2^64",
                           SHOWN(t->name), i, (unsigned long long)t->dims[i]);
    }
    BT_TRY(read_u32(c, "a tensor's type", &t->type, err));
    BT_TRY(read_u64(c, "a tensor's offset", offset, err));
    const struct tensor_layout *layout = find_layout(t->type);
    if (!layout)
        return bt_fail(err, BT_E_UNSUPPORTED, "tensor \"%.*s\" is of type %u, which is not known",
                       SHOWN(t->name), t->type);
    if (t->dims[0] % layout->block_elements)
        return bt_fail(err, BT_E_INVALID,
                       "tensor \"%.*s\": rows of %llu elements are not whole blocks of %u (%s)",
                       SHOWN(t->name), (unsigned long long)t->dims[0], layout->block_elements,
                       layout->name);
    if (!bt_mul_u64(t->n_elements / layout->block_elements, layout->block_bytes, &t->n_bytes))
        return bt_fail(err, BT_E_INVALID, "tensor \"%.*s\": %llu elements of %s do not fit 64 bits",
                       SHOWN(t->name), (unsigned long long)t->n_elements, layout->name);
    return BT_OK;
}

static bt_status read_header(struct cursor *c, struct bt_gguf *g, struct bt_error *err) {
    uint32_t version = 0;
    uint64_t n_tensors = 0, n_keys = 0;
    if (left(c) < 4 || memcmp(c->bytes, "GGUF", 4) != 0)
        return bt_fail(err, BT_E_INVALID, "the file does not begin with \"GGUF\"");
    c->at = 4;
    BT_TRY(read_u32(c, "the version", &version, err));
    if (version == 0x03000000)
        return bt_fail(err, BT_E_UNSUPPORTED,
                       "the file is big-endian GGUF, only little-endian is read");
    if (version != 2 && version != 3)
        return bt_fail(err, BT_E_UNSUPPORTED, "the file is GGUF version %u, 2 and 3 are read",
                       version);
    BT_TRY(read_u64(c, "the number of tensors", &n_tensors, err));
    BT_TRY(read_u64(c, "the number of keys", &n_keys, err));
    if (n_tensors > BT_GGUF_MAX_TENSORS || n_tensors > left(c) / TENSOR_BYTES_MIN)
        return bt_fail(err, BT_E_INVALID,
                       "the file says %llu tensors, limit %d and what %zu bytes hold",
                       (unsigned long long)n_tensors, BT_GGUF_MAX_TENSORS, left(c));
    if (n_keys > BT_GGUF_MAX_KEYS || n_keys > left(c) / KEY_BYTES_MIN)
        return bt_fail(err, BT_E_INVALID,
                       "the file says %llu keys, limit %d and what %zu bytes hold",
                       (unsigned long long)n_keys, BT_GGUF_MAX_KEYS, left(c));
    g->n_keys = (uint32_t)n_keys;
    g->n_tensors = (uint32_t)n_tensors;
    return BT_OK;
}

static bt_status read_keys(struct cursor *c, struct bt_gguf *g, struct bt_error *err) {
    g->keys = calloc(g->n_keys + !g->n_keys, sizeof *g->keys);
    if (!g->keys)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u keys", g->n_keys);
    BT_TRY(index_init(&g->key_index, g->n_keys, err));
    for (uint32_t i = 0; i < g->n_keys; i++) {
        struct bt_gguf_key *key = &g->keys[i];
        BT_TRY(read_key(c, key, err));
        uint32_t *slot = index_slot(&g->key_index, g->keys, sizeof *key, key->name);
        if (*slot)
            return bt_fail(err, BT_E_INVALID, "key \"%.*s\" stands twice in the file",
                           SHOWN(key->name));
        *slot = i + 1;
    }
    return BT_OK;
}

/* Tensor offsets wait in `data` as plain numbers until the start of the data is known. */
static bt_status read_tensors(struct cursor *c, struct bt_gguf *g, uint64_t *offsets,
                              struct bt_error *err) {
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        struct bt_gguf_tensor *t = &g->tensors[i];
        BT_TRY(read_tensor(c, t, &offsets[i], err));
        uint32_t *slot = index_slot(&g->tensor_index, g->tensors, sizeof *t, t->name);
        if (*slot)
            return bt_fail(err, BT_E_INVALID, "tensor \"%.*s\" stands twice in the file",
                           SHOWN(t->name));
        *slot = i + 1;
    }
    uint32_t alignment = DEFAULT_ALIGNMENT;
    if (bt_gguf_find_key(g, "general.alignment"))
        BT_TRY(bt_gguf_get_u32(g, "general.alignment", &alignment, err));
    if (!alignment || alignment & (alignment - 1) || alignment > BT_GGUF_MAX_ALIGNMENT)
        return bt_fail(err, BT_E_INVALID,
                       "general.alignment is %u, must be a power of two up to %d", alignment,
                       BT_GGUF_MAX_ALIGNMENT);
    uint64_t start = 0;
    bool fits = bt_align_u64(c->at, alignment, &start);
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        struct bt_gguf_tensor *t = &g->tensors[i];
        uint64_t begin = 0, end = 0;
        if (offsets[i] % alignment)
            return bt_fail(err, BT_E_INVALID,
                           "tensor \"%.*s\": offset %llu is no multiple of the alignment %u",
                           SHOWN(t->name), (unsigned long long)offsets[i], alignment);
        if (!fits || !bt_add_u64(start, offsets[i], &begin) ||
            !bt_add_u64(begin, t->n_bytes, &end) || end > c->n_bytes)
            return bt_fail(err, BT_E_INVALID,
                           "tensor \"%.*s\": %llu bytes at offset %llu pass the end of the file of "
                           "%zu bytes",
                           SHOWN(t->name), (unsigned long long)t->n_bytes,
                           (unsigned long long)offsets[i], c->n_bytes);
        t->data = c->bytes + begin;
    }
    return BT_OK;
}

static bt_status parse(struct bt_gguf *g, struct bt_error *err) {
    struct cursor c = {g->bytes, g->n_bytes, 0};
    BT_TRY(read_header(&c, g, err));
    BT_TRY(read_keys(&c, g, err));
    BT_TRY(index_init(&g->tensor_index, g->n_tensors, err));
    g->tensors = calloc(g->n_tensors + !g->n_tensors, sizeof *g->tensors);
    uint64_t *offsets = calloc(g->n_tensors + !g->n_tensors, sizeof *offsets);
    bt_status status = g->tensors && offsets
                           ? read_tensors(&c, g, offsets, err)
                           : bt_fail(err, BT_E_NO_MEMORY, "no memory for %u tensors", g->n_tensors);
    free(offsets);
    return status;
}

bt_status bt_gguf_open_memory(const uint8_t *bytes, size_t n_bytes, struct bt_gguf **out,
                              struct bt_error *err) {
    struct bt_gguf *g = calloc(1, sizeof *g);
    if (!g)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a model file's index");
    g->bytes = bytes;
    g->n_bytes = n_bytes;
    bt_status status = parse(g, err);
    if (status < 0) {
        bt_gguf_close(g);
        return status;
    }
    *out = g;
    return BT_OK;
}

static bt_status map_file(const char *path, int fd, const uint8_t **bytes, size_t *n_bytes,
                          struct bt_error *err) {
    struct stat info;
    if (fstat(fd, &info))
        return bt_fail(err, BT_E_IO, "cannot stat %s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return bt_fail(err, BT_E_INVALID, "%s is not a regular file", path);
    if (info.st_size < 24)
        return bt_fail(err, BT_E_INVALID, "%s has %lld bytes, a GGUF file has at least 24", path,
                       (long long)info.st_size);
    void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        return bt_fail(err, BT_E_IO, "cannot map %s: %s", path, strerror(errno));
    *bytes = map;
    *n_bytes = (size_t)info.st_size;
    return BT_OK;
}

bt_status bt_gguf_open(const char *path, struct bt_gguf **out, struct bt_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return bt_fail(err, errno == ENOENT ? BT_E_NOT_FOUND : BT_E_IO, "cannot open %s: %s", path,
                       strerror(errno));
    const uint8_t *bytes = NULL;
    size_t n_bytes = 0;
    bt_status status = map_file(path, fd, &bytes, &n_bytes, err);
    close(fd);
    BT_TRY(status);
    struct bt_gguf *g = NULL;
    struct bt_error why;
    status = bt_gguf_open_memory(bytes, n_bytes, &g, &why);
    if (status < 0) {
        munmap((void *)(uintptr_t)bytes, n_bytes);
        return bt_fail(err, status, "%.100s: %.140s", path, why.text);
    }
    BT_ASSERT(g);
    g->mapped = true;
    *out = g;
    return BT_OK;
}

void bt_gguf_close(struct bt_gguf *g) {
    if (!g)
        return;
    if (g->mapped)
        munmap((void *)(uintptr_t)g->bytes, g->n_bytes);
    free(g->keys);
    free(g->tensors);
    free(g->key_index.slots);
    free(g->tensor_index.slots);
    free(g);
}

/* ---- Looking ---- */

void bt_gguf_release(const struct bt_gguf *g) {
    /* Refused, the memory stays: it is given back with the mapping. */
    if (g->mapped)
        madvise((void *)(uintptr_t)g->bytes, g->n_bytes, MADV_DONTNEED);
}

uint64_t bt_gguf_file_bytes(const struct bt_gguf *g) {
    return g->n_bytes;
}

uint32_t bt_gguf_n_keys(const struct bt_gguf *g) {
    return g->n_keys;
}

const struct bt_gguf_key *bt_gguf_key_at(const struct bt_gguf *g, uint32_t i) {
    BT_ASSERT(i < g->n_keys);
    return &g->keys[i];
}

const struct bt_gguf_key *bt_gguf_find_key(const struct bt_gguf *g, const char *name) {
    struct bt_gguf_string s = {name, strlen(name)};
    uint32_t slot = *index_slot(&g->key_index, g->keys, sizeof *g->keys, s);
    return slot ? &g->keys[slot - 1] : NULL;
}

uint32_t bt_gguf_n_tensors(const struct bt_gguf *g) {
    return g->n_tensors;
}

const struct bt_gguf_tensor *bt_gguf_tensor_at(const struct bt_gguf *g, uint32_t i) {
    BT_ASSERT(i < g->n_tensors);
    return &g->tensors[i];
}

const struct bt_gguf_tensor *bt_gguf_find_tensor(const struct bt_gguf *g, const char *name) {
    struct bt_gguf_string s = {name, strlen(name)};
    uint32_t slot = *index_slot(&g->tensor_index, g->tensors, sizeof *g->tensors, s);
    return slot ? &g->tensors[slot - 1] : NULL;
}

static bt_status require_key(const struct bt_gguf *g, const char *name,
                             const struct bt_gguf_key **out, struct bt_error *err) {
    *out = bt_gguf_find_key(g, name);
    return *out ? BT_OK : bt_fail(err, BT_E_NOT_FOUND, "the file has no key \"%s\"", name);
}

static bt_status wrong_type(const struct bt_gguf_key *key, const char *wanted,
                            struct bt_error *err) {
    return bt_fail(err, BT_E_INVALID, "key \"%.*s\" is of type %s, must be %s", SHOWN(key->name),
                   bt_gguf_type_name(key->type), wanted);
}

/* Any integer type; negative values are refused, since nothing in a model file's numbers that we
 * read may be negative. */
static bt_status unsigned_value(const struct bt_gguf_key *key, uint64_t *out,
                                struct bt_error *err) {
    int64_t v = 0;
    switch (key->type) {
    case BT_GGUF_U8:
        *out = *key->value;
        return BT_OK;
    case BT_GGUF_U16:
        *out = bt_load_u16(key->value);
        return BT_OK;
    case BT_GGUF_U32:
        *out = bt_load_u32(key->value);
        return BT_OK;
    case BT_GGUF_U64:
        *out = bt_load_u64(key->value);
        return BT_OK;
    case BT_GGUF_I8:
        v = (int8_t)*key->value;
        break;
    case BT_GGUF_I16:
        v = (int16_t)bt_load_u16(key->value);
        break;
    case BT_GGUF_I32:
        v = (int32_t)bt_load_u32(key->value);
        break;
    case BT_GGUF_I64:
        v = (int64_t)bt_load_u64(key->value);
        break;
    default:
        return wrong_type(key, "an integer", err);
    }
    if (v < 0)
        return bt_fail(err, BT_E_INVALID, "key \"%.*s\" is %lld, must not be negative",
                       SHOWN(key->name), (long long)v);
    *out = (uint64_t)v;
    return BT_OK;
}

bt_status bt_gguf_get_u64(const struct bt_gguf *g, const char *name, uint64_t *out,
                          struct bt_error *err) {
    const struct bt_gguf_key *key;
    BT_TRY(require_key(g, name, &key, err));
    return unsigned_value(key, out, err);
}

bt_status bt_gguf_get_u32(const struct bt_gguf *g, const char *name, uint32_t *out,
                          struct bt_error *err) {
    uint64_t v;
    BT_TRY(bt_gguf_get_u64(g, name, &v, err));
    if (v > UINT32_MAX)
        return bt_fail(err, BT_E_INVALID, "key \"%s\" is %llu, limit %u", name,
                       (unsigned long long)v, UINT32_MAX);
    *out = (uint32_t)v;
    return BT_OK;
}

static float load_f32(const uint8_t *p) {
    uint32_t bits = bt_load_u32(p);
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

bt_status bt_gguf_get_f32(const struct bt_gguf *g, const char *name, float *out,
                          struct bt_error *err) {
    const struct bt_gguf_key *key;
    BT_TRY(require_key(g, name, &key, err));
    float v;
    if (key->type == BT_GGUF_F32) {
        v = load_f32(key->value);
    } else if (key->type == BT_GGUF_F64) {
        uint64_t bits = bt_load_u64(key->value);
        double wide;
        memcpy(&wide, &bits, sizeof wide);
        v = (float)wide;
    } else {
        return wrong_type(key, "F32", err);
    }
    if (!isfinite(v))
        return bt_fail(err, BT_E_INVALID, "key \"%s\" is %g, must be finite", name, (double)v);
    *out = v;
    return BT_OK;
}

bt_status bt_gguf_get_bool(const struct bt_gguf *g, const char *name, bool *out,
                           struct bt_error *err) {
    const struct bt_gguf_key *key;
    BT_TRY(require_key(g, name, &key, err));
    if (key->type != BT_GGUF_BOOL)
        return wrong_type(key, "BOOL", err);
    *out = *key->value != 0;
    return BT_OK;
}

bt_status bt_gguf_get_string(const struct bt_gguf *g, const char *name, struct bt_gguf_string *out,
                             struct bt_error *err) {
    const struct bt_gguf_key *key;
    BT_TRY(require_key(g, name, &key, err));
    if (key->type != BT_GGUF_STRING)
        return wrong_type(key, "STRING", err);
    *out = key->string;
    return BT_OK;
}

bt_status bt_gguf_get_array(const struct bt_gguf *g, const char *name, enum bt_gguf_type type,
                            struct bt_gguf_array *out, struct bt_error *err) {
    const struct bt_gguf_key *key;
    BT_TRY(require_key(g, name, &key, err));
    if (key->type != BT_GGUF_ARRAY)
        return wrong_type(key, "ARRAY", err);
    if (key->array.type != type)
        return bt_fail(err, BT_E_INVALID, "key \"%s\" is an array of %s, must be of %s", name,
                       bt_gguf_type_name(key->array.type), bt_gguf_type_name(type));
    *out = key->array;
    return BT_OK;
}

bool bt_gguf_next_string(struct bt_gguf_array *strings, struct bt_gguf_string *out) {
    BT_ASSERT(strings->type == BT_GGUF_STRING);
    if (!strings->n_elements)
        return false;
    uint64_t n = bt_load_u64(strings->bytes);
    *out = (struct bt_gguf_string){(const char *)strings->bytes + 8, (size_t)n};
    strings->bytes += 8 + n;
    strings->n_elements--;
    return true;
}

float bt_gguf_f32_at(const struct bt_gguf_array *array, uint32_t i) {
    BT_ASSERT(i < array->n_elements);
    return load_f32(array->bytes + 4 * (size_t)i);
}

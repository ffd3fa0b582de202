/* One number for the text side of a model file, the same on a router and on a worker. */
#include "common/base/gguf_text.h"

#include <string.h>
#include <xxhash.h>

static size_t element_bytes(enum bt_gguf_type type) {
    switch (type) {
    case BT_GGUF_U8:
    case BT_GGUF_I8:
    case BT_GGUF_BOOL:
        return 1;
    case BT_GGUF_U16:
    case BT_GGUF_I16:
        return 2;
    case BT_GGUF_U32:
    case BT_GGUF_I32:
    case BT_GGUF_F32:
        return 4;
    default:
        return 8;
    }
}

static uint64_t hash_string(struct bt_gguf_string string, uint64_t seed) {
    return XXH3_64bits_withSeed(string.text, string.n_bytes, seed);
}

static uint64_t hash_key(const struct bt_gguf_key *key) {
    uint64_t hash = hash_string(key->name, (uint64_t)key->type);
    if (key->type == BT_GGUF_STRING)
        return hash_string(key->string, hash);
    if (key->type != BT_GGUF_ARRAY)
        return XXH3_64bits_withSeed(key->value, element_bytes(key->type), hash);
    struct bt_gguf_array array = key->array;
    if (array.type != BT_GGUF_STRING)
        return XXH3_64bits_withSeed(array.bytes, array.n_elements * element_bytes(array.type),
                                    hash);
    for (struct bt_gguf_string string; bt_gguf_next_string(&array, &string);)
        hash = hash_string(string, hash);
    return hash;
}

uint64_t bt_gguf_text_hash(const struct bt_gguf *gguf) {
    static const char prefix[] = "tokenizer.";
    uint64_t sum = 0;
    for (uint32_t i = 0; i < bt_gguf_n_keys(gguf); i++) {
        const struct bt_gguf_key *key = bt_gguf_key_at(gguf, i);
        if (key->name.n_bytes >= sizeof prefix - 1 &&
            !memcmp(key->name.text, prefix, sizeof prefix - 1))
            sum += hash_key(key);
    }
    return sum;
}

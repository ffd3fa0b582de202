/* Fuzz target: opens bytes as a GGUF file, and reads all that the reader then promises is readable.
 */
#include <stdint.h>
#include <stdlib.h>

#include "common/base/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t touch(const void *bytes, uint64_t n_bytes) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < n_bytes; i++)
        sum = sum * 31 + ((const uint8_t *)bytes)[i];
    return sum;
}

static uint64_t touch_key(const struct bt_gguf *gguf, const struct bt_gguf_key *key) {
    uint64_t sum = touch(key->name.text, key->name.n_bytes);
    if (key->type == BT_GGUF_STRING)
        sum += touch(key->string.text, key->string.n_bytes);
    char name[BT_GGUF_MAX_NAME_BYTES + 1] = {0};
    for (size_t i = 0; i < key->name.n_bytes; i++)
        name[i] = key->name.text[i];
    if (bt_gguf_find_key(gguf, name) != key)
        abort();
    uint64_t wide;
    float real;
    if (bt_gguf_get_u64(gguf, name, &wide, NULL) == BT_OK)
        sum += wide;
    if (bt_gguf_get_f32(gguf, name, &real, NULL) == BT_OK)
        sum += real > 0;
    if (key->type != BT_GGUF_ARRAY)
        return sum;
    struct bt_gguf_array array = key->array;
    struct bt_gguf_string s;
    if (array.type == BT_GGUF_STRING)
        while (bt_gguf_next_string(&array, &s))
            sum += touch(s.text, s.n_bytes);
    else if (array.type == BT_GGUF_F32 || array.type == BT_GGUF_I32)
        for (uint32_t i = 0; i < array.n_elements; i++)
            sum += (uint64_t)bt_gguf_i32_at(&array, i) + (bt_gguf_f32_at(&array, i) > 0);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct bt_gguf *gguf = NULL;
    struct bt_error err = {0};
    bt_status status = bt_gguf_open_memory(data, size, &gguf, &err);
    if (status < 0) {
        if (!err.text[0] || gguf)
            abort();
        return 0;
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i < bt_gguf_n_keys(gguf); i++)
        sum += touch_key(gguf, bt_gguf_key_at(gguf, i));
    for (uint32_t i = 0; i < bt_gguf_n_tensors(gguf); i++) {
        const struct bt_gguf_tensor *t = bt_gguf_tensor_at(gguf, i);
        sum += touch(t->data, t->n_bytes) + touch(t->name.text, t->name.n_bytes);
    }
    static volatile uint64_t sink; /* keeps the reads */
    sink = sum;
    (void)sink;
    bt_gguf_close(gguf);
    return 0;
}

/* A model's shape as `baton inspect --shape` reads it: what is taken is within its bounds. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cli/kv_growth.h"
#include "common/base/assert.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1);
    struct bt_kv_shape shape = {0};
    struct bt_error err = {0};
    uint64_t bytes = 0;
    if (!text)
        return 0;
    if (size)
        memcpy(text, data, size);
    text[size] = 0;
    if (bt_kv_shape_parse(text, &shape, &bytes, &err) == BT_OK) {
        BT_ASSERT(bytes >= 1 && bytes <= 8 && shape.layers >= 1 && shape.layers <= 65536);
        BT_ASSERT(shape.kv_heads >= 1 && shape.kv_heads <= 65536 && shape.heads <= 65536);
        BT_ASSERT(shape.head_dim_k >= 1 && shape.head_dim_k <= 65536 &&
                  shape.head_dim_v == shape.head_dim_k && shape.context <= UINT32_MAX);
    } else {
        BT_ASSERT(err.text[0]);
    }
    free(text);
    return 0;
}

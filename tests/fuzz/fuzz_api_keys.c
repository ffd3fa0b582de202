/* Fuzzes the reader of API key files; the input's first line is also shown as a key. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "router/api_keys.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct bt_api_keys *keys = NULL;
    struct bt_error err = {.text = ""};
    if (bt_api_keys_parse("keys", (const char *)data, size, &keys, &err) != BT_OK) {
        /* A refusal always says why. */
        if (!err.text[0] || keys)
            abort();
        return 0;
    }
    size_t n = bt_api_keys_count(keys);
    if (n < 1 || n > BT_API_KEYS_MAX)
        abort();
    char shown[300], name[BT_API_NAME_BYTES];
    size_t taken = size < sizeof shown - 8 ? size : sizeof shown - 8;
    memcpy(shown, "Bearer ", 7);
    memcpy(shown + 7, data, taken);
    shown[7 + taken] = 0;
    const struct bt_api_caller caller = {.authorization = shown};
    /* Nobody finds a key whose hash he has written down himself by showing the file. */
    if (bt_api_keys_check(keys, &caller, BT_API_CLIENT, name, &err) == BT_OK || name[0])
        abort();
    bt_api_keys_close(keys);
    return 0;
}

/* The picture of `baton top`, made from a server's answer: whatever that holds, it fits, and no
 * control character of it reaches the terminal. */
#include <stdint.h>
#include <stdlib.h>

#include "cli/top_frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_t *json = json_loadb((const char *)data, size, 0, NULL);
    char *out = json ? malloc(BT_TOP_BYTES) : NULL;
    for (unsigned unicode = 0; out && unicode < 2; unicode++) {
        const struct bt_top_view view = {
            .columns = 80, .rows = 24, .unicode = unicode, .terminal = false};
        size_t n = bt_top_frame(&view, json, json, out);
        unsigned cells = 0, lines = 1;
        for (size_t i = 0; i < n; i++) {
            unsigned char c = (unsigned char)out[i];
            lines += c == '\n';
            cells = c == '\n' ? 0 : cells + ((c & 0xc0) != 0x80);
            if (cells > 80 || lines > 24 || (c < 0x20 && c != '\n') || c == 0x7f)
                abort();
        }
    }
    free(out);
    json_decref(json);
    return 0;
}

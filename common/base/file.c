/* Reads files of unknown size in a buffer that grows. */
#include "common/base/file.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_BYTES = 16 << 10 };

/* Up to bytes_max and one more, which says that there are too many. False: no memory. */
static bool read_all(FILE *file, size_t bytes_max, char **text, size_t *n) {
    size_t capacity = 0;
    do {
        capacity = capacity ? 2 * capacity : FIRST_BYTES;
        capacity = capacity < bytes_max + 1 ? capacity : bytes_max + 1;
        char *grown = realloc(*text, capacity + 1);
        if (!grown)
            return false;
        *text = grown;
        *n += fread(*text + *n, 1, capacity - *n, file);
    } while (*n == capacity && capacity <= bytes_max);
    (*text)[*n] = 0;
    return true;
}

bt_status bt_file_read(const char *what, const char *path, size_t bytes_max, char **out,
                       size_t *n_bytes, struct bt_error *err) {
    char *text = NULL;
    size_t n = 0;
    *out = NULL;
    *n_bytes = 0;
    FILE *file = fopen(path, "re");
    if (!file)
        return bt_fail(err, BT_E_IO, "%s \"%.120s\" cannot be opened: %s", what, path,
                       strerror(errno));
    bool read = read_all(file, bytes_max, &text, &n);
    int error = ferror(file) ? errno : 0;
    fclose(file);
    if (read && !error && n <= bytes_max) {
        *out = text;
        *n_bytes = n;
        return BT_OK;
    }
    free(text);
    if (!read)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory to read %s \"%.120s\"", what, path);
    if (error)
        return bt_fail(err, BT_E_IO, "%s \"%.120s\" cannot be read: %s", what, path,
                       strerror(error));
    return bt_fail(err, BT_E_INVALID, "%s \"%.120s\" has more than %zu bytes", what, path,
                   bytes_max);
}

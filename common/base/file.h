/* Reads a file whole: certificates, keys, tables that people write. */
#pragma once
#include <stddef.h>

#include "common/base/status.h"

/* *out gets the file's bytes and a NUL behind them, to be freed; *n_bytes their number without it.
 * what: how the sentence calls the file, an option's name most often. BT_E_IO, BT_E_INVALID (more
 * than bytes_max), BT_E_NO_MEMORY; *out is NULL then. */
bt_status bt_file_read(const char *what, const char *path, size_t bytes_max, char **out,
                       size_t *n_bytes, struct bt_error *err);

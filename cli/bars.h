/* Bars of block characters for the terminal, or of plain ASCII where the locale has no others. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

enum { BT_BAR_CELLS_MAX = 120, BT_BAR_BYTES = BT_BAR_CELLS_MAX * 3 + 1 };

/* Whether the environment's locale writes UTF-8. */
bool bt_bar_unicode(void);

/* A bar `share` (cut to 0..1) of `cells` long, padded with spaces to that width where padded. In
 * eighths of a cell with unicode, in whole ones without; what is more than nothing shows. Answers
 * out. */
const char *bt_bar(char out[BT_BAR_BYTES], double share, unsigned cells, bool padded, bool unicode);

/* One bar of several parts: parts[i] cells of the i-th letter of "#=." or its shade; the rest of
 * the width is spaces. */
const char *bt_bar_parts(char out[BT_BAR_BYTES], const double *shares, unsigned n_shares,
                         unsigned cells, bool unicode);

/* "1.2 GB" and the like, decimal; the second with three digits, "1.24 GB". */
const char *bt_size_text(double bytes, char out[32]);
const char *bt_size_text3(double bytes, char out[32]);

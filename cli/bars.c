/* Draws bars for the terminal. */
#include "cli/bars.h"

#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>

static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};

bool bt_bar_unicode(void) {
    locale_t locale = newlocale(LC_CTYPE_MASK, "", (locale_t)0);
    if (!locale)
        return false;
    bool unicode = !strcmp(nl_langinfo_l(CODESET, locale), "UTF-8");
    freelocale(locale);
    return unicode;
}

static size_t put(char *out, size_t at, const char *text) {
    size_t n = strlen(text);
    memcpy(out + at, text, n);
    return at + n;
}

static double cut(double share) {
    return share > 0 ? share < 1 ? share : 1 : 0; /* no number counts as nothing */
}

const char *bt_bar(char out[BT_BAR_BYTES], double share, unsigned cells, bool padded,
                   bool unicode) {
    static const char *const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    if (cells > BT_BAR_CELLS_MAX)
        cells = BT_BAR_CELLS_MAX;
    unsigned steps = unicode ? 8 : 1;
    unsigned n = (unsigned)(cut(share) * cells * steps + 0.5);
    if (!n && cells && share > 0)
        n = 1;
    size_t at = 0;
    unsigned used = n / steps + (n % steps > 0);
    for (unsigned i = 0; i < n / steps; i++)
        at = put(out, at, unicode ? "█" : "#");
    if (n % steps)
        at = put(out, at, eighths[n % steps]);
    for (; padded && used < cells; used++)
        at = put(out, at, " ");
    out[at] = 0;
    return out;
}

const char *bt_bar_parts(char out[BT_BAR_BYTES], const double *shares, unsigned n_shares,
                         unsigned cells, bool unicode) {
    static const char *const shades[] = {"█", "▒", "░"};
    static const char *const letters[] = {"#", "=", "."};
    if (cells > BT_BAR_CELLS_MAX)
        cells = BT_BAR_CELLS_MAX;
    size_t at = 0;
    unsigned used = 0;
    double sum = 0;
    for (unsigned i = 0; i < n_shares; i++) {
        sum += cut(shares[i]);
        unsigned end = (unsigned)(cut(sum) * cells + 0.5);
        /* What is there shows, as long as there is a cell for it. */
        if (end <= used && shares[i] > 0 && used < cells)
            end = used + 1;
        for (; used < end; used++)
            at = put(out, at, unicode ? shades[i % 3] : letters[i % 3]);
    }
    for (; used < cells; used++)
        at = put(out, at, " ");
    out[at] = 0;
    return out;
}

static size_t unit_of(double *bytes) {
    size_t u = 0;
    while (*bytes >= 1000 && u + 1 < sizeof units / sizeof units[0]) {
        *bytes /= 1000;
        u++;
    }
    return u;
}

const char *bt_size_text(double bytes, char out[32]) {
    size_t u = unit_of(&bytes);
    snprintf(out, 32, u ? "%.1f %s" : "%.0f %s", bytes, units[u]);
    return out;
}

const char *bt_size_text3(double bytes, char out[32]) {
    size_t u = unit_of(&bytes);
    snprintf(out, 32, "%.*f %s",
             !u || bytes >= 99.95 ? 0
             : bytes >= 9.995     ? 1
                                  : 2,
             bytes, units[u]);
    return out;
}

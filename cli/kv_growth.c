/* Prints the growth of a KV cache, and reads a shape from the command line. */
#include "cli/kv_growth.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bars.h"
#include "common/base/limits.h"

enum { BAR_CELLS = 32, FIRST_TOKENS = 256, CONTEXT_SHOWN = 32768, NUMBER_BYTES = 16 };

/* ---- reading ---- */

struct part {
    const char *name;
    uint64_t *out;
    uint64_t max;
    bool required;
};

static bt_status take_part(const struct part *parts, size_t n_parts, const char *text, size_t n,
                           struct bt_error *err) {
    const char *equals = memchr(text, '=', n);
    size_t n_name = equals ? (size_t)(equals - text) : n;
    for (size_t i = 0; i < n_parts; i++) {
        if (strlen(parts[i].name) != n_name || strncmp(parts[i].name, text, n_name) != 0)
            continue;
        char number[NUMBER_BYTES] = "";
        size_t n_number = equals ? n - n_name - 1 : 0;
        if (n_number && n_number < sizeof number)
            memcpy(number, equals + 1, n_number);
        uint64_t value = strtoull(number, NULL, 10);
        bool digits = number[0] && strspn(number, "0123456789") == n_number;
        if (!digits || value < 1 || value > parts[i].max)
            return bt_fail(err, BT_E_INVALID,
                           "shape: %.*s is not a number from 1 to %" PRIu64 " for %s",
                           (int)(n < 60 ? n : 60), text, parts[i].max, parts[i].name);
        if (*parts[i].out)
            return bt_fail(err, BT_E_INVALID, "shape: %s is given twice", parts[i].name);
        *parts[i].out = value;
        return BT_OK;
    }
    return bt_fail(err, BT_E_INVALID,
                   "shape: there is no \"%.*s\"; it takes layers, heads, kv-heads, head-dim, bytes "
                   "and context",
                   (int)(n_name < 60 ? n_name : 60), text);
}

bt_status bt_kv_shape_parse(const char *text, struct bt_kv_shape *shape, uint64_t *element_bytes,
                            struct bt_error *err) {
    struct bt_kv_shape s = {0};
    uint64_t bytes = 0;
    const struct part parts[] = {
        {"layers", &s.layers, 1 << 16, true},
        {"heads", &s.heads, 1 << 16, false},
        {"kv-heads", &s.kv_heads, 1 << 16, false},
        {"head-dim", &s.head_dim_k, 1 << 16, true},
        {"bytes", &bytes, 8, false},
        {"context", &s.context, UINT32_MAX, false},
    };
    enum { N_PARTS = sizeof parts / sizeof parts[0] };
    for (const char *at = text; at;) {
        size_t n = strcspn(at, ",");
        BT_TRY(take_part(parts, N_PARTS, at, n, err));
        at = at[n] ? at + n + 1 : NULL;
    }
    for (size_t i = 0; i < N_PARTS; i++)
        if (parts[i].required && !*parts[i].out)
            return bt_fail(err, BT_E_INVALID, "shape: %s is missing", parts[i].name);
    if (!s.kv_heads)
        s.kv_heads = s.heads;
    if (!s.kv_heads)
        return bt_fail(err, BT_E_INVALID, "shape: kv-heads (or heads) is missing");
    if (s.heads && s.heads < s.kv_heads)
        return bt_fail(err, BT_E_INVALID,
                       "shape: kv-heads is %" PRIu64 ", it may be at most heads, %" PRIu64,
                       s.kv_heads, s.heads);
    s.head_dim_v = s.head_dim_k;
    *shape = s;
    *element_bytes = bytes ? bytes : 2;
    return BT_OK;
}

/* ---- printing ---- */

/* 819200 as "819,200". */
static const char *grouped(uint64_t n, char out[32]) {
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%" PRIu64, n), at = 0;
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0)
            out[at++] = ',';
        out[at++] = digits[i];
    }
    out[at] = 0;
    return out;
}

uint64_t bt_kv_token_bytes(const struct bt_kv_shape *s, uint64_t bytes, uint64_t scale) {
    return s->layers * s->kv_heads * ((s->head_dim_k + s->head_dim_v) * bytes + 2 * scale);
}

static uint64_t token_bytes(const struct bt_kv_growth *growth, unsigned type) {
    return bt_kv_token_bytes(&growth->shape, growth->types[type].bytes, growth->types[type].scale);
}

static void print_sum(const struct bt_kv_growth *growth, unsigned type) {
    const struct bt_kv_shape *s = &growth->shape;
    uint64_t bytes = token_bytes(growth, type), scale = growth->types[type].scale;
    char number[32], size[32], more[48] = "";
    printf("  %-8s", growth->types[type].name);
    if (s->head_dim_k == s->head_dim_v)
        printf("2 (K and V) x %" PRIu64 " layers x %" PRIu64 " KV heads x %" PRIu64, s->layers,
               s->kv_heads, s->head_dim_k);
    else
        printf("%" PRIu64 " layers x %" PRIu64 " KV heads x (%" PRIu64 " of K + %" PRIu64 " of V)",
               s->layers, s->kv_heads, s->head_dim_k, s->head_dim_v);
    if (scale)
        snprintf(more, sizeof more, " and a scale of %" PRIu64 " each", scale);
    printf(" x %" PRIu64 " byte%s%s = %s bytes a token", growth->types[type].bytes,
           growth->types[type].bytes == 1 ? "" : "s", more, grouped(bytes, number));
    printf(bytes >= 1000 ? " (%s)\n" : "\n", bt_size_text3((double)bytes, size));
}

/* Whole pages, as workers keep them. */
static double bytes_at(const struct bt_kv_growth *growth, unsigned type, uint64_t tokens) {
    uint64_t pages = (tokens + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
    return (double)pages * BT_PAGE_TOKENS * (double)token_bytes(growth, type);
}

static void print_row(const struct bt_kv_growth *growth, uint64_t tokens, uint64_t last,
                      bool unicode) {
    char number[32], size[32], bar[BT_BAR_BYTES];
    printf("  %12s", grouped(tokens, number));
    for (unsigned t = 0; t < growth->n_types; t++)
        printf("  %9s", bt_size_text3(bytes_at(growth, t, tokens), size));
    for (unsigned t = 0; growth->memory_bytes && t < growth->n_types; t++) {
        double n = (double)growth->memory_bytes / bytes_at(growth, t, tokens);
        printf("  %9s", n < 1 ? "none" : grouped((uint64_t)n, number));
    }
    printf("  %s\n", bt_bar(bar, bytes_at(growth, 0, tokens) / bytes_at(growth, 0, last), BAR_CELLS,
                            false, unicode));
}

static void print_head(const struct bt_kv_growth *growth) {
    char size[32], label[64];
    printf("\n  %12s", "tokens");
    for (unsigned t = 0; t < growth->n_types; t++)
        printf("  %9s", growth->types[t].name);
    for (unsigned t = 0; growth->memory_bytes && t < growth->n_types; t++) {
        snprintf(label, sizeof label, "fit, %s", growth->types[t].name);
        printf("  %9s", label);
    }
    printf("\n");
    if (growth->memory_bytes)
        printf("  %12s  (fit: so many sequences have room in %s of KV cache)\n", "",
               bt_size_text3((double)growth->memory_bytes, size));
}

void bt_kv_growth_print(const struct bt_kv_growth *growth) {
    const struct bt_kv_shape *s = &growth->shape;
    uint64_t last = s->context ? s->context : CONTEXT_SHOWN;
    bool unicode = bt_bar_unicode();
    printf("\nGrowth of the KV cache of one sequence\n");
    for (unsigned t = 0; t < growth->n_types; t++)
        print_sum(growth, t);
    if (s->heads > s->kv_heads)
        printf("  %-8swith a KV head for each of the %" PRIu64
               " heads it would be %.4g times that\n",
               "", s->heads, (double)s->heads / (double)s->kv_heads);
    print_head(growth);
    for (uint64_t tokens = FIRST_TOKENS; tokens < last; tokens *= 2)
        print_row(growth, tokens, last, unicode);
    print_row(growth, last, last, unicode);
}

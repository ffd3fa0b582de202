/* Narrows a sorted list of special tokens byte by byte at each place where one may begin. */
#include "common/text/special_finder.h"

#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b, void *vocab) {
    struct bt_slice x = bt_vocab_text(vocab, *(const int32_t *)a);
    struct bt_slice y = bt_vocab_text(vocab, *(const int32_t *)b);
    int order = memcmp(x.data, y.data, x.n_bytes < y.n_bytes ? x.n_bytes : y.n_bytes);
    if (order)
        return order;
    return (x.n_bytes > y.n_bytes) - (x.n_bytes < y.n_bytes);
}

bt_status bt_special_finder_init(struct bt_special_finder *finder, const struct bt_vocab *vocab,
                                 struct bt_error *err) {
    *finder = (struct bt_special_finder){.vocab = vocab};
    uint32_t n = 0;
    for (uint32_t i = 0; i < vocab->n_tokens; i++)
        n += vocab->types[i] == BT_TOKEN_CONTROL || vocab->types[i] == BT_TOKEN_USER_DEFINED;
    if (!n)
        return BT_OK;
    finder->ids = malloc(n * sizeof *finder->ids);
    if (!finder->ids)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u special tokens", n);
    for (uint32_t i = 0; i < vocab->n_tokens; i++) {
        if (vocab->types[i] != BT_TOKEN_CONTROL && vocab->types[i] != BT_TOKEN_USER_DEFINED)
            continue;
        finder->ids[finder->n_ids++] = (int32_t)i;
        finder->begins[(uint8_t)bt_vocab_text(vocab, (int32_t)i).data[0]] = true;
        finder->has_user_defined |= vocab->types[i] == BT_TOKEN_USER_DEFINED;
    }
    qsort_r(finder->ids, n, sizeof *finder->ids, compare, (void *)vocab);
    return BT_OK;
}

void bt_special_finder_fini(struct bt_special_finder *finder) {
    free(finder->ids);
    *finder = (struct bt_special_finder){0};
}

/* First index in [low, high) whose byte at `depth` is at least `byte`; all of them share the bytes
 * before, and one that ends there sorts first. */
static uint32_t lower_bound(const struct bt_special_finder *finder, uint32_t low, uint32_t high,
                            size_t depth, int byte) {
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        struct bt_slice text = bt_vocab_text(finder->vocab, finder->ids[middle]);
        int here = depth < text.n_bytes ? (uint8_t)text.data[depth] : -1;
        if (here < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Whether a token of this type may be recognised in [start, end). */
static bool is_allowed(const struct bt_special_finder *finder, int32_t id, size_t start, size_t end,
                       struct bt_special_limits *limits) {
    if (finder->vocab->types[id] == BT_TOKEN_USER_DEFINED)
        return true;
    if (!limits->parse_control)
        return false;
    while (limits->n_spans && limits->spans->end <= start) {
        limits->spans++;
        limits->n_spans--;
    }
    return !limits->n_spans || limits->spans->start >= end;
}

/* The longest special that begins at byte `at`. */
static struct bt_special_match match_at(const struct bt_special_finder *finder,
                                        struct bt_slice text, size_t at,
                                        struct bt_special_limits *limits) {
    struct bt_special_match match = {.id = -1};
    uint32_t low = 0, high = finder->n_ids;
    for (size_t depth = 0; at + depth < text.n_bytes; depth++) {
        int byte = (uint8_t)text.data[at + depth];
        low = lower_bound(finder, low, high, depth, byte);
        high = lower_bound(finder, low, high, depth, byte + 1);
        if (low == high)
            break;
        size_t end = at + depth + 1;
        if (bt_vocab_text(finder->vocab, finder->ids[low]).n_bytes == depth + 1 &&
            is_allowed(finder, finder->ids[low], at, end, limits))
            match = (struct bt_special_match){{at, end}, finder->ids[low]};
    }
    return match;
}

struct bt_special_match bt_special_finder_next(const struct bt_special_finder *finder,
                                               struct bt_slice text, size_t at,
                                               struct bt_special_limits *limits) {
    if (limits->parse_control || finder->has_user_defined) {
        for (; at < text.n_bytes; at++) {
            if (!finder->begins[(uint8_t)text.data[at]])
                continue;
            struct bt_special_match match = match_at(finder, text, at, limits);
            if (match.id >= 0)
                return match;
        }
    }
    return (struct bt_special_match){{text.n_bytes, text.n_bytes}, -1};
}

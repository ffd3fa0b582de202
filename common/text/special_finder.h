/* Finds special tokens in text: the leftmost, and of those that begin there the longest. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/text/slice.h"
#include "common/text/vocab.h"

/* The special tokens in the order of their bytes; borrows the vocabulary. */
struct bt_special_finder {
    const struct bt_vocab *vocab;
    int32_t *ids;
    uint32_t n_ids;
    bool begins[256];      /* some special begins with this byte */
    bool has_user_defined; /* some special is recognised in all text */
};

bt_status bt_special_finder_init(struct bt_special_finder *finder, const struct bt_vocab *vocab,
                                 struct bt_error *err);
void bt_special_finder_fini(struct bt_special_finder *finder);

struct bt_special_match {
    struct bt_text_span span;
    int32_t id; /* -1: none up to the end; span is empty and stands at the end */
};

/* Where control tokens may not be recognised; the finder moves `spans` on as it passes them. */
struct bt_special_limits {
    bool parse_control; /* false: only user-defined tokens are recognised */
    const struct bt_text_span *spans;
    size_t n_spans;
};

/* Looks from byte `at` on; calls on one text must not go back. */
struct bt_special_match bt_special_finder_next(const struct bt_special_finder *finder,
                                               struct bt_slice text, size_t at,
                                               struct bt_special_limits *limits);

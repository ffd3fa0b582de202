/* How many KV pages hold a number of tokens. */
#pragma once
#include <stdint.h>

#include "common/base/limits.h"

static inline uint32_t bt_pages_of(uint32_t n_tokens) {
    return (uint32_t)(((uint64_t)n_tokens + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS);
}

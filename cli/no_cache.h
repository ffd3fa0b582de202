/* What an answer would have cost without a KV cache: `baton chat --no-kv-cache`.
 *
 * A demonstration: each token of a finished answer is computed again by a request of its own that
 * has the whole text so far as its prompt, under a cache_salt that nothing else has, so that no
 * prefix is found anywhere. The same token must come out, because the cache changes no bit. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "cli/http_client.h"

enum { BT_NO_CACHE_TOKENS = 64, BT_NO_CACHE_TOKENS_MAX = 512 };

/* An answer, as it came with the cache. */
struct bt_no_cache_answer {
    const char *messages; /* the conversation that it answers, as a JSON array */
    uint32_t n_tokens;
    int32_t tokens[BT_NO_CACHE_TOKENS_MAX];
    double gaps_ms[BT_NO_CACHE_TOKENS_MAX]; /* since the token before; [0] is the time to it */
};

/* Computes it again and prints both times token by token on stdout. False where a request failed or
 * a token differs; it has been said then. */
bool bt_no_cache_show(struct bt_http_client *client, const char *api_key,
                      const struct bt_no_cache_answer *answer, bool terminal);

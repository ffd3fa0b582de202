/* What the load generators share: their options, their samples, the one line of JSON they print.
 *
 * A generator is a closed loop of streams: each sends its next request when its last one has ended.
 * Token ids tell when they were sent (mock_worker.c, mock_http.c). */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FIRST_ID = 100, PROMPT_IDS = 16 };

struct samples {
    uint32_t *us;
    size_t n, capacity;
};

struct load {
    int port;
    const char *ca; /* PEM file: the server speaks TLS; NULL: it does not */
    uint32_t n_streams, tokens, words, vocab, ramp_us, n_connections;
    uint64_t n_requests, n_started, n_ended, n_tokens, n_errors, n_unordered;
    double seconds;
    bool hold, fresh, by_index;
    uint64_t started_us;
    struct samples ttft, delay;
    char error[256];
};

uint64_t load_now_us(void);
/* Reads the options of both generators, and raises the bound on descriptors. False: they are wrong.
 */
bool load_parse(struct load *load, int argc, char **argv);
/* The prompt: words or ids. The caller frees it; NULL without --words. */
char *load_words(const struct load *load);
/* Token `index` of a request that was sent at sent_us. */
void load_take(struct load *load, uint32_t index, uint32_t id, uint64_t sent_us, uint64_t now_us);
/* The first reason is kept. */
void load_fail(struct load *load, const char *why);
/* A request has ended with so many tokens. */
void load_end(struct load *load, uint32_t n_tokens);
/* False: all is over, or --hold's wait, or the time. Call it once per turn of the loop. */
bool load_goes_on(struct load *load);
void load_report(struct load *load);

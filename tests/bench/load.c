/* Options, samples and report of the load generators. */
#include "tests/bench/load.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/resource.h>

enum { SAMPLES_MAX = 1 << 24, STREAMS_PER_CONNECTION = 500 };

uint64_t load_now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void add_sample(struct samples *s, uint64_t us) {
    if (s->n == SAMPLES_MAX)
        return;
    if (s->n == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 4096;
        s->us = realloc(s->us, s->capacity * sizeof *s->us);
        if (!s->us)
            exit(1);
    }
    s->us[s->n++] = us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* The samples must be sorted. */
static uint32_t quantile(const struct samples *s, double q) {
    return s->n ? s->us[(size_t)((double)(s->n - 1) * q)] : 0;
}

static void take_number(struct load *load, int option, const char *text) {
    uint32_t value = text ? (uint32_t)strtoul(text, NULL, 10) : 0;
    switch (option) {
    case 'p':
        load->port = (int)value;
        break;
    case 's':
        load->n_streams = value;
        break;
    case 'r':
        load->n_requests = value;
        break;
    case 't':
        load->tokens = value;
        break;
    case 'w':
        load->words = value;
        break;
    case 'v':
        load->vocab = value;
        break;
    case 'e':
        load->seconds = value;
        break;
    case 'u':
        load->ramp_us = value;
        break;
    default:
        load->n_connections = value;
    }
}

bool load_parse(struct load *load, int argc, char **argv) {
    static const struct option options[] = {
        {"port", 1, NULL, 'p'},     {"streams", 1, NULL, 's'}, {"requests", 1, NULL, 'r'},
        {"tokens", 1, NULL, 't'},   {"words", 1, NULL, 'w'},   {"vocab", 1, NULL, 'v'},
        {"seconds", 1, NULL, 'e'},  {"ramp-us", 1, NULL, 'u'}, {"connections", 1, NULL, 'c'},
        {"hold", 0, NULL, 'h'},     {"fresh", 0, NULL, 'f'},   {"ca", 1, NULL, 'a'},
        {"by-index", 0, NULL, 'x'}, {NULL, 0, NULL, 0},
    };
    *load =
        (struct load){.n_streams = 1, .n_requests = 1, .tokens = 64, .vocab = 500, .seconds = 60};
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == '?')
            return false;
        if (o == 'h')
            load->hold = true;
        else if (o == 'f')
            load->fresh = true;
        else if (o == 'x')
            load->by_index = true;
        else if (o == 'a')
            load->ca = optarg;
        else
            take_number(load, o, optarg);
    }
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (!load->n_connections)
        load->n_connections = (load->n_streams - 1) / STREAMS_PER_CONNECTION + 1;
    load->started_us = load_now_us();
    return load->port && load->n_streams && load->tokens && load->vocab > FIRST_ID;
}

char *load_words(const struct load *load) {
    if (!load->words)
        return NULL;
    char *text = malloc(6 * (size_t)load->words + 1), *at = text;
    if (!text)
        exit(1);
    for (uint32_t i = 0; i < load->words; i++)
        at += sprintf(at, "%sword%c", i ? " " : "", (char)('a' + i % 26));
    return text;
}

void load_take(struct load *load, uint32_t index, uint32_t id, uint64_t sent_us, uint64_t now_us) {
    uint64_t range = load->vocab - FIRST_ID;
    load->n_tokens++;
    if (!index)
        add_sample(&load->ttft, now_us - sent_us);
    if (load->by_index)
        load->n_unordered += id != FIRST_ID + index % range;
    else
        add_sample(&load->delay,
                   (now_us / 100 % range + range - (id - FIRST_ID) % range) % range * 100);
}

void load_fail(struct load *load, const char *why) {
    load->n_errors++;
    if (!load->error[0])
        snprintf(load->error, sizeof load->error, "%.200s", why);
}

void load_end(struct load *load, uint32_t n_tokens) {
    char why[64];
    load->n_ended++;
    snprintf(why, sizeof why, "%u tokens instead of %u", n_tokens, load->tokens);
    if (n_tokens != load->tokens)
        load_fail(load, why);
}

bool load_goes_on(struct load *load) {
    if (load->n_ended == load->n_started && load->n_started >= load->n_requests)
        return false;
    if (load->hold && load->ttft.n + load->n_errors >= load->n_streams)
        return false;
    if ((double)(load_now_us() - load->started_us) / 1e6 <= load->seconds)
        return true;
    load->n_errors += load->n_started - load->n_ended;
    snprintf(load->error, sizeof load->error, "out of time");
    return false;
}

void load_report(struct load *load) {
    struct rusage usage;
    double wall_s = (double)(load_now_us() - load->started_us) / 1e6;
    getrusage(RUSAGE_SELF, &usage);
    if (load->ttft.n)
        qsort(load->ttft.us, load->ttft.n, sizeof *load->ttft.us, by_size);
    if (load->delay.n)
        qsort(load->delay.us, load->delay.n, sizeof *load->delay.us, by_size);
    for (char *c = load->error; *c; c++)
        if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ')
            *c = ' ';
    printf("{\"streams\":%u,\"requests\":%" PRIu64 ",\"unfinished\":%" PRIu64 ",\"tokens\":%" PRIu64
           ",\"unordered\":%" PRIu64
           ",\"wall_s\":%.3f,\"tokens_s\":%.0f,\"ttft_p50_us\":%u,\"ttft_p99_us\":%u,"
           "\"delay_p50_us\":%u,\"delay_p99_us\":%u,\"errors\":%" PRIu64 ",\"client_cpu_s\":%.2f,"
           "\"error\":\"%.200s\"}\n",
           load->n_streams, load->n_ended, load->n_started - load->n_ended, load->n_tokens,
           load->n_unordered, wall_s, (double)load->n_tokens / wall_s, quantile(&load->ttft, 0.5),
           quantile(&load->ttft, 0.99), quantile(&load->delay, 0.5), quantile(&load->delay, 0.99),
           load->n_errors,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6,
           load->error);
    fflush(stdout);
    for (char byte; load->hold && read(STDIN_FILENO, &byte, 1) > 0;)
        continue;
}

/* Sends a plan to a server at its own pace, whatever the server does, and times every token.
 *
 * Open loop: a request goes out when its time has come, not when an earlier one is done, so that a
 * slow server is not spared. On one libevent loop; blocks until all have ended. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "cli/bench_plan.h"
#include "common/base/status.h"

struct bt_bench_server {
    const char *url;     /* "http[s]://host[:port][/prefix]" */
    const char *model;   /* NULL: the first that GET /v1/models lists */
    const char *api_key; /* NULL: none */
    const char *ca_file; /* https: what its certificate is checked against; NULL: the system's */
    bool chat;           /* /v1/chat/completions, else /v1/completions */
    bool ignore_eos;     /* ask for answers of full length (vLLM's field, ours too) */
    const char *temperature; /* a number as text */
    uint32_t timeout_s;      /* of one request */
};

enum { BT_BENCH_REASON_BYTES = 120 };

struct bt_bench_result {
    bool ok;           /* 200, tokens came, and the stream ended with [DONE] */
    int code;          /* HTTP status, 0: none came */
    uint64_t due_us;   /* all times on one clock, from the start of the load */
    uint64_t sent_us;  /* given to its connection */
    uint64_t first_us; /* first event with a choice; 0: none */
    uint64_t last_us;
    uint64_t end_us;
    uint32_t n_events;                         /* with a choice */
    uint32_t itl_p99_us;                       /* of the gaps between them; 0: none */
    uint32_t prompt_tokens, completion_tokens; /* by the server's usage; else events count */
    char reason[BT_BENCH_REASON_BYTES];        /* why it is not ok */
};

struct bt_bench_gap { /* between two events of one stream */
    uint32_t us;
    uint32_t request; /* its index in the plan */
};

struct bt_bench_gaps { /* of all requests; ascending at the end */
    struct bt_bench_gap *all;
    uint64_t n, capacity;
};

struct bt_bench_progress {
    uint32_t n_sent, n_ended, n_failed, n_in_flight, n_total;
    uint64_t elapsed_us;
};

struct bt_bench_load {
    struct bt_bench_server server;
    const struct bt_bench_plan *plan;
    char model[256];                 /* out: that was asked for */
    struct bt_bench_result *results; /* out: [plan->n_items], owned */
    struct bt_bench_gaps gaps;       /* out, owned */
    uint64_t took_us;                /* out: first due to last end */
    bool stopped;                    /* out: SIGINT ended it early; what was not sent is not ok */
    void (*on_progress)(void *arg, const struct bt_bench_progress *progress); /* 4 times a second */
    void *arg;
};

/* BT_E_INVALID: the URL; BT_E_PEER_GONE: no model could be asked for; BT_E_NO_MEMORY. Requests that
 * fail are results, not errors. */
bt_status bt_bench_load_run(struct bt_bench_load *load, struct bt_error *err);
/* Sorts the gaps and fills each result's itl_p99_us; bt_bench_load_run has done it. False: no
 * memory. */
bool bt_bench_gaps_sort(struct bt_bench_load *load);
void bt_bench_load_fini(struct bt_bench_load *load);

/* Why a request was slow: its spans beside what is usual for each, and beside the targets.
 *
 * A request is slow when it misses a target: the time to its first token (start) or the mean time
 * between its tokens (stream). The verdict then names the stage that took most of the excess over
 * what is usual for that stage. What is usual is learnt from requests that met no other; before
 * anything is learnt nothing is usual, and the longest stage is named. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "router/core.h"
#include "router/request.h"

/* Moving means over requests that met no other: alone nobody else can be the reason. Those that
 * miss a target teach little, so that a fault does not become usual before it was looked at. */
struct bt_verdict_targets {
    uint64_t ttft_set_us, itl_set_us; /* 0: learnt */
    uint64_t base_us;                 /* time to first token less the prompt's compute */
    uint64_t token_ns;                /* compute of one prompt token */
    uint64_t itl_us;
    /* What is usual for one request. */
    uint64_t placement_us, wait_us, transfer_us, join_us, network_us;
    uint64_t step_us;                    /* of one decode step */
    uint64_t step_gap_us;                /* a streamed token's part of the network */
    uint32_t n_start, n_split, n_stream; /* samples: starts, those of split ones, streams */
};

enum {
    BT_VERDICT_SAMPLES = 4, /* before that nothing counts as learnt */
    /* A learnt target is this many times the unloaded mean and a margin: what a busy machine's
     * scheduler takes now and then, up to a tenth of a second in all, is not worth a word. */
    BT_VERDICT_FACTOR = 2,
    BT_VERDICT_MARGIN_US = 100000,
    BT_VERDICT_TOKEN_MARGIN_US = 5000, /* and of each token after the first */
};

void bt_verdict_init(struct bt_verdict_targets *targets, uint32_t ttft_target_ms,
                     uint32_t itl_target_us);
/* 0 while nothing is learnt. */
uint64_t bt_verdict_ttft_target_us(const struct bt_verdict_targets *targets, uint32_t n_tokens);
uint64_t bt_verdict_itl_target_us(const struct bt_verdict_targets *targets);

/* A request that ran alone and never moved, with its workers' reports; judged already. */
void bt_verdict_learn(struct bt_verdict_targets *targets, const struct bt_request_record *record);
struct bt_verdict bt_verdict_of(const struct bt_verdict_targets *targets,
                                const struct bt_request_record *record, bool preempted);

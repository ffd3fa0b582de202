/* Why a request was slow: its stages beside the targets, set or learnt from the unloaded pool. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "router/core.h"
#include "router/request.h"

/* Learnt values are moving means over requests that met no other: half of the pool idle would do,
 * but alone nobody else can be the reason. */
struct bt_verdict_targets {
    uint64_t ttft_set_us, itl_set_us; /* 0: learnt */
    uint64_t base_us;                 /* time to first token less the prompt's compute */
    uint64_t token_ns;                /* compute of one prompt token */
    uint64_t itl_us;
    uint32_t n_start, n_stream; /* samples */
};

enum {
    BT_VERDICT_SAMPLES = 4, /* before that nothing counts as learnt */
    BT_VERDICT_FACTOR = 2,  /* a learnt target is this many times the unloaded mean */
};

void bt_verdict_init(struct bt_verdict_targets *targets, uint32_t ttft_target_ms,
                     uint32_t itl_target_us);
/* 0 while nothing is learnt. */
uint64_t bt_verdict_ttft_target_us(const struct bt_verdict_targets *targets, uint32_t n_tokens);
uint64_t bt_verdict_itl_target_us(const struct bt_verdict_targets *targets);

/* A request that ran alone, never waited and never moved, with its workers' reports. */
void bt_verdict_learn(struct bt_verdict_targets *targets, const struct bt_request_record *record);
struct bt_verdict bt_verdict_of(const struct bt_verdict_targets *targets,
                                const struct bt_request_record *record, bool preempted);

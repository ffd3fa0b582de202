/* What a bench will send and when: arrivals drawn from a Poisson process, or read from a trace
 * file.
 *
 * Made whole before the first request goes out, from a seed: the same plan twice is the same load.
 * A trace is JSON lines with the fields of the published Mooncake traces: timestamp (ms from the
 * start), input_length, output_length (tokens), and optionally prompt (text, instead of
 * input_length) and class (a name: the report tells the classes apart). Other fields are ignored.
 */
#pragma once
#include <stdint.h>

#include "common/base/status.h"
#include "common/text/slice.h"

enum {
    BT_BENCH_REQUESTS_MAX = 1000000,
    BT_BENCH_TOKENS_MAX = 1 << 20, /* of one prompt, and of one answer */
    BT_BENCH_CLASSES_MAX = 8,
    BT_BENCH_CLASS_BYTES = 32, /* of a class's name, with its NUL */
};

enum bt_bench_arrival { BT_BENCH_POISSON, BT_BENCH_CONSTANT };

struct bt_bench_item {
    uint64_t at_us;         /* from the start of the load, rising */
    uint32_t prompt_tokens; /* about so many: words of one token each in common vocabularies */
    uint32_t max_tokens;
    uint32_t class_id; /* below the plan's n_classes, where that is not 0 */
    char *prompt;      /* owned; NULL: bt_bench_prompt makes one */
};

struct bt_bench_plan {
    struct bt_bench_item *items;
    uint32_t n_items;
    uint64_t seed;
    uint32_t shared_tokens; /* the first so many words are the same in all prompts */
    char classes[BT_BENCH_CLASSES_MAX][BT_BENCH_CLASS_BYTES]; /* names, as the trace brought them */
    uint32_t n_classes; /* 0: no trace; lines without a class are of the class "other" */
};

struct bt_bench_rate {
    double per_s; /* > 0 */
    enum bt_bench_arrival arrival;
    uint32_t n_requests;
    uint32_t prompt_tokens, max_tokens;
};

/* Fills plan->items; seed and shared_tokens are the caller's. BT_E_INVALID, BT_E_NO_MEMORY. */
bt_status bt_bench_plan_rate(struct bt_bench_plan *plan, const struct bt_bench_rate *rate,
                             struct bt_error *err);
/* From the bytes of a trace. speed: times are divided by it. Refuses with the line's number, the
 * field, its value and the bound. */
bt_status bt_bench_plan_trace(struct bt_bench_plan *plan, struct bt_slice trace, double speed,
                              uint32_t n_requests_max, struct bt_error *err);
void bt_bench_plan_fini(struct bt_bench_plan *plan);

/* The text of item i's prompt, malloc'ed; NULL: no memory. */
char *bt_bench_prompt(const struct bt_bench_plan *plan, uint32_t i);

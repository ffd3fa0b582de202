/* Fuzz target: reads bytes as a bench's trace; what it takes keeps its promises. */
#include <stdlib.h>

#include "cli/bench_plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct bt_bench_plan plan = {.seed = 1};
    struct bt_error err;
    if (bt_bench_plan_trace(&plan, (struct bt_slice){(const char *)data, size}, 1.5, 1000, &err) ==
        BT_OK) {
        if (!plan.n_items || plan.n_items > 1000 || plan.items[0].at_us != 0)
            abort();
        for (uint32_t i = 0; i < plan.n_items; i++) {
            const struct bt_bench_item *item = &plan.items[i];
            if (item->max_tokens < 1 || item->max_tokens > BT_BENCH_TOKENS_MAX ||
                item->class_id >= plan.n_classes || item->prompt_tokens < 1 ||
                item->prompt_tokens > BT_BENCH_TOKENS_MAX || (i && item->at_us < item[-1].at_us))
                abort();
        }
    }
    bt_bench_plan_fini(&plan);
    return 0;
}

/* Chooses the decode worker and the prefill worker of one attempt: D first, then P.
 *
 * Reads the tables and changes nothing. D by free pages and prefix, P by prefix and backlog; a
 * worker that is suspect, detached or draining gets nothing. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/rpc/registry_msg.h"
#include "router/prefix_table.h"
#include "router/request.h"
#include "router/worker_table.h"

enum {
    BT_PREFIX_PAGE_WEIGHT = 4, /* a page that D holds is worth so many free ones */
};

struct bt_placement_ask {
    const int32_t *tokens; /* prompt and emitted */
    uint32_t n_tokens;
    uint32_t n_total; /* with all that it may still generate */
    const char *tenant;
    bool scores; /* it wants logprobs of its prompt: D computes all of it */
    /* The D that has the prompt's whole blocks since its leader was there, or BT_NO_WORKER: it goes
     * there if there is room. fresh: they have just come, and the prefix table may not know. */
    int choice_d;
    bool choice_fresh;
};

struct bt_placement_rules {
    enum bt_disaggregate mode;
    uint32_t short_prompt_tokens;
    uint32_t prefill_backlog_tokens;
    uint32_t worker_requests_max;
};

struct bt_placement_choice {
    int p, d; /* p is BT_NO_WORKER where D computes */
    enum bt_placement why;
    uint32_t pages;          /* that D will take */
    uint32_t backlog_tokens; /* that P will compute */
};

enum bt_placement_answer {
    BT_PLACEMENT_FOUND,
    BT_PLACEMENT_WAIT,   /* no room now: it and all after it wait */
    BT_PLACEMENT_WAIT_P, /* only prefill workers are busy: what needs none may pass */
    BT_PLACEMENT_ASIDE,  /* no attached worker can ever hold it: others need not wait for it */
};

enum bt_placement_answer bt_placement_choose(const struct bt_worker_table *table,
                                             const struct bt_prefix_table *prefix,
                                             const struct bt_placement_rules *rules,
                                             uint64_t now_us, const struct bt_placement_ask *ask,
                                             struct bt_placement_choice *out);

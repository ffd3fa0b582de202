/* Reads BATON_FAILPOINT: which stage takes longer, and by how much. */
#include "common/base/failpoint.h"

#if BT_FAILPOINTS
#include <stdlib.h>
#include <string.h>

enum { MS_MAX = 60000 };

static const char *const names[BT_FAILPOINT_COUNT] = {"queue", "placement", "prefill", "transfer",
                                                      "join",  "step",      "network"};

/* 0: it is none. */
static uint64_t ms_of(const char *text, enum bt_failpoint which) {
    size_t n = strlen(names[which]);
    if (strncmp(text, names[which], n) || text[n] != '=')
        return 0;
    char *end;
    unsigned long ms = strtoul(text + n + 1, &end, 10);
    return !strcmp(end, "ms") && ms <= MS_MAX ? ms : 0;
}

uint64_t bt_failpoint_us(enum bt_failpoint which) {
    const char *text = getenv("BATON_FAILPOINT");
    return text ? ms_of(text, which) * 1000 : 0;
}

bt_status bt_failpoint_check(struct bt_error *err) {
    const char *text = getenv("BATON_FAILPOINT");
    if (!text || !*text)
        return BT_OK;
    for (int i = 0; i < BT_FAILPOINT_COUNT; i++)
        if (ms_of(text, (enum bt_failpoint)i))
            return BT_OK;
    return bt_fail(err, BT_E_INVALID,
                   "BATON_FAILPOINT is \"%.60s\", must be a stage (queue, placement, prefill, "
                   "transfer, join, step, network), = and 1ms to %dms",
                   text, MS_MAX);
}
#endif

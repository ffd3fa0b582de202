/* Places where a test adds time to one stage of every request, to see that the stage is named.
 *
 * Only builds with -DBT_FAILPOINTS=ON have them; in others each is 0 and the compiler drops what
 * depends on it. BATON_FAILPOINT=prefill=200ms in a process's environment sets one. The places are
 * in the shells (as timers) and in the engine (whose thread really takes that long), never in a
 * core. */
#pragma once
#include <stdint.h>

#include "common/base/status.h"

enum bt_failpoint {
    BT_FAILPOINT_QUEUE,     /* router: no request is placed sooner */
    BT_FAILPOINT_PLACEMENT, /* router: what workers are sent waits once a Reserve is among it */
    BT_FAILPOINT_PREFILL,   /* engine: the step with the end of a prompt */
    BT_FAILPOINT_TRANSFER,  /* prefill worker: the first frame of a hand-off */
    BT_FAILPOINT_JOIN,      /* decode worker: no step after a commit */
    BT_FAILPOINT_STEP,      /* engine: the decode step that makes a request's third token */
    BT_FAILPOINT_NETWORK,   /* workers: what the router is sent waits once tokens are among it */
    BT_FAILPOINT_COUNT,
};

#if BT_FAILPOINTS
/* What the environment says, microseconds; 0: not set. Any thread. */
uint64_t bt_failpoint_us(enum bt_failpoint which);
/* BT_E_INVALID: BATON_FAILPOINT is set and not NAME=NUMBERms of at most a minute. Once at start. */
bt_status bt_failpoint_check(struct bt_error *err);
#else
static inline uint64_t bt_failpoint_us(enum bt_failpoint which) {
    (void)which;
    return 0;
}
static inline bt_status bt_failpoint_check(struct bt_error *err) {
    (void)err;
    return BT_OK;
}
#endif

/* Names the reasons for which a hand-off ends. */
#include "common/kv/kv_msg.h"

const char *bt_kv_reason_name(enum bt_kv_reason reason) {
    static const char *const names[BT_KV_REASON_COUNT] = {
        [BT_KV_REASON_UNKNOWN] = "unknown",   [BT_KV_REASON_FULL] = "full",
        [BT_KV_REASON_PROMPT] = "prompt",     [BT_KV_REASON_LAYOUT] = "layout",
        [BT_KV_REASON_CHECKSUM] = "checksum", [BT_KV_REASON_INCOMPLETE] = "incomplete",
        [BT_KV_REASON_LINK] = "link",         [BT_KV_REASON_CANCELLED] = "cancelled",
        [BT_KV_REASON_DEADLINE] = "deadline", [BT_KV_REASON_PREEMPTED] = "preempted",
        [BT_KV_REASON_LEASE] = "lease",       [BT_KV_REASON_PEER] = "peer",
    };
    return (unsigned)reason < BT_KV_REASON_COUNT && names[reason] ? names[reason] : "none";
}

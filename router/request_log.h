/* What the log says of each request when it has ended: where its time went and why it was slow. No
 * word of its prompt or its answer, and no key. */
#pragma once
#include "router/core.h"

/* reason: the sentence of one that failed, "" else. One line at level info, or warn where the fault
 * is ours. */
void bt_request_log(const struct bt_request_record *record, const char *reason);

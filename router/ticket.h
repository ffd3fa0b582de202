/* Draws tickets and sampling seeds from one random key and a counter. */
#pragma once
#include <stdint.h>

#include "common/base/id.h"

/* SipHash-2-4 with 128-bit output (Aumasson and Bernstein 2012) of the counter under the key: who
 * has seen tickets cannot guess others, and the same key and counter give the same ticket. */
struct bt_id bt_ticket_draw(struct bt_id key, uint64_t counter);

/* How many of a worker's KV pages are in each state. */
#pragma once
#include <stdint.h>

/* Every page is in exactly one state: the others add up to total. */
struct bt_census {
    uint32_t total;
    uint32_t free;
    uint32_t cached;      /* in the prefix index, no reference */
    uint32_t reserved;    /* promised, not yet bound to a sequence */
    uint32_t filling;     /* the worker's own forward pass writes it */
    uint32_t armed;       /* a remote writer may exist */
    uint32_t landed;      /* complete and verified */
    uint32_t live;        /* complete and referenced: attention or a send may read it */
    uint32_t quarantined; /* aborted while a receive into it was in flight */
};

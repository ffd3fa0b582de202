/* The numbers that bound everything fixed in size, with the relations between them. */
#pragma once

enum {
    BT_PAGE_TOKENS = 16, /* tokens in one KV page; also a block of the prefix index */
    /* Pages that a decode worker promises for growth at admission, beside those of the prompt, and
     * that a router therefore looks for: with fewer, a sequence just admitted is soon preempted;
     * with more, fewer are admitted. */
    BT_GROWTH_PAGES = 4,
    BT_MAX_WORKERS = 64,       /* attached to one router (a worker set is one 64-bit word) */
    BT_MAX_ROUTERS = 8,        /* a worker serves */
    BT_MAX_LINKS = 64,         /* KV links of one worker */
    BT_NAME_BYTES = 64,        /* a worker's name, its NUL included */
    BT_ADDRESS_BYTES = 64,     /* "host:port", its NUL included */
    BT_MESSAGE_BYTES = 262144, /* largest message on Registry.Attach and largest KV frame payload */
    BT_STOP_TOKENS = 16,       /* stop token ids in one request */
    BT_STOP_STRINGS = 4,       /* stop strings in one request */
    BT_STOP_BYTES = 256,       /* one stop string */
    BT_TOP_LOGPROBS = 20,      /* likeliest tokens shown for one position */
    BT_LOGIT_BIASES = 300,     /* biased tokens in one request */
    BT_CHOICES = 128,          /* prompts times n in one request */
    BT_LINK_PING_MS = 250,
    BT_LINK_DEAD_MS = 2000,
    BT_HEARTBEAT_MS = 250,
    BT_SUSPECT_MS = 750,
    BT_DEAD_MS = 2000,
    BT_REATTACH_MS = 300, /* a stream that ended may come back this long */
    BT_LEASE_MS = 3000,
    BT_PAIR_AVOID_MS = 1000, /* after a link loss */
    BT_REQUEST_DEADLINE_MS = 600000,
    BT_QUEUE_DEADLINE_MS = 30000,
};

_Static_assert(BT_HEARTBEAT_MS * 2 < BT_SUSPECT_MS,
               "one lost heartbeat must not make a worker suspect");
_Static_assert(BT_SUSPECT_MS < BT_DEAD_MS && BT_DEAD_MS < BT_LEASE_MS,
               "silence: suspect, dead, then the lease ends");

/* The sink that streams: server-sent events, written straight to the connection.
 *
 * What a turn of the loop brings for a stream is collected in one buffer and leaves with one send()
 * at the end of the turn. Buffers come from a small pool, so a stream costs one only while it has
 * bytes to send. A client that does not read is full at BT_SSE_FULL_BYTES and stuck after
 * stuck_us without progress. Everything runs on the loop thread. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "router/http_server.h"
#include "router/openai_answer.h"
#include "router/request_sink.h"
#include "router/text_buffer.h"

struct bt_sse;

enum { BT_SSE_FULL_BYTES = 262144, BT_SSE_POOL = 256, BT_SSE_POOLED_BYTES = 8192 };

enum bt_sse_event {
    BT_SSE_ROOM,  /* it was full and is not any more */
    BT_SSE_DONE,  /* all is sent, or answered with an error; the call has ended */
    BT_SSE_STUCK, /* the client did not read for too long; the call has been cut */
    BT_SSE_LOST,  /* the socket broke; the call has been cut */
};

/* All streams of one loop. */
struct bt_sse_set {
    uint64_t stuck_us;
    uint64_t keepalive_us; /* a stream that waits for its first event sends a comment; 0: never */
    uint64_t now_us;       /* of the last look at the clock */
    struct bt_sse *waiting, *last_waiting; /* for their first event, the next to be due first */
    struct bt_sse *touched;                /* to be written at the end of the turn */
    struct bt_sse *blocked;                /* their socket took no more */
    struct bt_text_buffer pool[BT_SSE_POOL];
    size_t n_pooled, n_blocked;
    uint64_t n_sends, n_bytes, n_stuck;
    void (*on_touched)(
        void *arg); /* the first stream of a turn was touched: flush before its end */
    void *arg;
};

void bt_sse_set_init(struct bt_sse_set *set, uint64_t stuck_us, uint64_t keepalive_us,
                     void (*on_touched)(void *arg), void *arg);
void bt_sse_set_fini(struct bt_sse_set *set); /* every stream has ended */
/* Writes what the turn brought. */
void bt_sse_flush(struct bt_sse_set *set, uint64_t now_us);
/* Cuts streams whose client has not read for too long; sends comments for those that wait, so that
 * nobody between takes the connection for dead. After such a comment the head is out: a failure is
 * an event then. */
void bt_sse_sweep(struct bt_sse_set *set, uint64_t now_us);

struct bt_sse {
    struct bt_request_sink base;
    struct bt_sse_set *set;
    struct bt_http_call *call; /* NULL once it has ended */
    struct bt_openai_answer *answer;
    void (*on_event)(struct bt_sse *sse, enum bt_sse_event event);
    /* Adds members to the last event's object: a comma, then them. NULL: none. */
    void (*add_extra)(struct bt_sse *sse, struct bt_text_buffer *out);
    struct bt_text_buffer out;
    size_t n_sent;   /* of out */
    size_t chunk_at; /* where this turn's chunk begins in out */
    bool chunked, started, chunk_open, is_touched, is_blocked, is_writable, was_full;
    bool ending;     /* the last byte is in out */
    bool cut_at_end; /* the answer failed in its middle: no last chunk, the connection is closed */
    bool replied;    /* it failed before its first byte: an error answer took its place */
    uint64_t blocked_us;     /* since when, or since the last progress */
    uint64_t comment_due_us; /* while it waits */
    bool is_waiting;
    struct bt_sse *next_waiting, *previous_waiting;
    struct bt_sse *next_touched, *next_blocked, *previous_blocked;
};

void bt_sse_init(struct bt_sse *sse, struct bt_sse_set *set, struct bt_http_call *call,
                 struct bt_openai_answer *answer,
                 void (*on_event)(struct bt_sse *sse, enum bt_sse_event event));
/* Takes it out of all lists; the call is the caller's business. Accepts one that was not used. */
void bt_sse_fini(struct bt_sse *sse);

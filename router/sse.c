/* Server-sent events on a connection: collected per turn of the loop, one send per stream. */
#include "router/sse.h"

/* A chunk begins with its size in eight hex digits and CRLF, filled in when the turn ends. */
enum { CHUNK_DIGITS = 8, CHUNK_HEAD_BYTES = CHUNK_DIGITS + 2, CHUNK_CLOSED_BYTES = 8 << 20 };

void bt_sse_set_init(struct bt_sse_set *set, uint64_t stuck_us, uint64_t keepalive_us,
                     void (*on_touched)(void *arg), void *arg) {
    *set = (struct bt_sse_set){
        .stuck_us = stuck_us, .keepalive_us = keepalive_us, .on_touched = on_touched, .arg = arg};
}

void bt_sse_set_fini(struct bt_sse_set *set) {
    while (set->n_pooled)
        bt_text_buffer_fini(&set->pool[--set->n_pooled]);
}

static void take_buffer(struct bt_sse *sse) {
    if (!sse->out.data && sse->set->n_pooled)
        sse->out = sse->set->pool[--sse->set->n_pooled];
}

static void put_buffer(struct bt_sse *sse) {
    struct bt_sse_set *set = sse->set;
    sse->out.n_bytes = sse->n_sent = 0;
    if (sse->out.data && !sse->out.failed && sse->out.capacity <= BT_SSE_POOLED_BYTES &&
        set->n_pooled < BT_SSE_POOL) {
        set->pool[set->n_pooled++] = sse->out;
        sse->out = (struct bt_text_buffer){0};
    } else {
        bt_text_buffer_fini(&sse->out);
    }
}

static void touch(struct bt_sse *sse) {
    struct bt_sse_set *set = sse->set;
    if (sse->is_touched)
        return;
    sse->is_touched = true;
    if (!set->touched)
        set->on_touched(set->arg);
    sse->next_touched = set->touched;
    set->touched = sse;
}

/* ---- waiting for the first event ---- */

static void wait_on(struct bt_sse *sse) {
    struct bt_sse_set *set = sse->set;
    if (!set->keepalive_us)
        return;
    sse->is_waiting = true;
    sse->comment_due_us = set->now_us + set->keepalive_us;
    sse->next_waiting = NULL;
    sse->previous_waiting = set->last_waiting;
    *(set->last_waiting ? &set->last_waiting->next_waiting : &set->waiting) = sse;
    set->last_waiting = sse;
}

static void stop_waiting(struct bt_sse *sse) {
    struct bt_sse_set *set = sse->set;
    if (!sse->is_waiting)
        return;
    sse->is_waiting = false;
    *(sse->previous_waiting ? &sse->previous_waiting->next_waiting : &set->waiting) =
        sse->next_waiting;
    *(sse->next_waiting ? &sse->next_waiting->previous_waiting : &set->last_waiting) =
        sse->previous_waiting;
}

/* ---- framing ---- */

static void start(struct bt_sse *sse) {
    sse->started = true;
    bt_http_call_set_id(sse->call, sse->answer->id);
    bt_http_call_write_head(sse->call, &sse->out, 200, "text/event-stream",
                            "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n");
}

static void open_chunk(struct bt_sse *sse) {
    touch(sse);
    take_buffer(sse);
    if (!sse->started)
        start(sse);
    if (sse->chunk_open)
        return;
    sse->chunk_open = true;
    sse->chunk_at = sse->out.n_bytes;
    if (sse->chunked)
        bt_text_buffer_add_literal(&sse->out, "00000000\r\n");
}

static void close_chunk(struct bt_sse *sse) {
    if (!sse->chunk_open)
        return;
    sse->chunk_open = false;
    if (!sse->chunked || sse->out.failed)
        return;
    size_t n = sse->out.n_bytes - sse->chunk_at - CHUNK_HEAD_BYTES;
    char *head = sse->out.data + sse->chunk_at;
    for (size_t i = CHUNK_DIGITS; i-- > 0; n >>= 4)
        head[i] = "0123456789abcdef"[n & 15];
    bt_text_buffer_add_literal(&sse->out, "\r\n");
}

/* ---- the sink ---- */

static struct bt_sse *of(struct bt_request_sink *sink) {
    return (struct bt_sse *)(void *)sink;
}

static void begin(struct bt_request_sink *sink, const struct bt_sink_begin *given) {
    bt_openai_answer_begin(of(sink)->answer, given);
}

static bool is_full(const struct bt_request_sink *sink) {
    const struct bt_sse *sse = (const struct bt_sse *)(const void *)sink;
    return sse->out.n_bytes - sse->n_sent >= BT_SSE_FULL_BYTES;
}

static void scores(struct bt_request_sink *sink, const struct bt_scores *given) {
    bt_openai_answer_scores(of(sink)->answer, given);
}

static void piece(struct bt_request_sink *sink, const struct bt_piece *given) {
    struct bt_sse *sse = of(sink);
    if (!sse->call)
        return;
    stop_waiting(sse);
    open_chunk(sse);
    bt_openai_write_chunk(&sse->out, sse->answer, given);
    if (sse->chunk_open && sse->out.n_bytes - sse->chunk_at > CHUNK_CLOSED_BYTES)
        close_chunk(sse);
    sse->was_full = sse->was_full || is_full(sink);
}

static void end_well(struct bt_sse *sse, const struct bt_sink_end *end) {
    struct bt_text_buffer extra = {0};
    if (sse->add_extra)
        sse->add_extra(sse, &extra);
    open_chunk(sse);
    if (sse->answer->include_usage || extra.n_bytes)
        bt_openai_write_last_chunk(&sse->out, sse->answer, end,
                                   (struct bt_slice){extra.data, extra.n_bytes});
    bt_text_buffer_fini(&extra);
    bt_text_buffer_add_literal(&sse->out, "data: [DONE]\n\n");
    close_chunk(sse);
    if (sse->chunked)
        bt_text_buffer_add_literal(&sse->out, "0\r\n\r\n");
}

static void end(struct bt_request_sink *sink, const struct bt_sink_end *given) {
    struct bt_sse *sse = of(sink);
    if (!sse->call)
        return;
    stop_waiting(sse);
    touch(sse);
    sse->ending = true;
    if (given->status == BT_OK) {
        end_well(sse, given);
        return;
    }
    int code = bt_status_http(given->status);
    struct bt_text_buffer body = {0};
    bt_openai_write_error(&body, code, given->reason, NULL, NULL);
    if (!sse->started) {
        struct bt_http_call *call = sse->call;
        sse->call = NULL;
        sse->replied = true;
        bt_http_call_set_id(call, sse->answer->id);
        bt_http_call_reply(call, code, "application/json",
                           (struct bt_slice){body.data, body.n_bytes},
                           code == 429 || code == 503 ? "Retry-After: 1\r\n" : NULL);
    } else {
        /* A cut answer must not look whole: no [DONE], no last chunk. */
        sse->cut_at_end = true;
        open_chunk(sse);
        bt_text_buffer_add_literal(&sse->out, "event: error\ndata: ");
        bt_text_buffer_add(&sse->out, body.data, body.n_bytes);
        bt_text_buffer_add_literal(&sse->out, "\n\n");
        close_chunk(sse);
    }
    bt_text_buffer_fini(&body);
}

static const struct bt_request_sink_ops ops = {
    .begin = begin, .is_full = is_full, .scores = scores, .piece = piece, .end = end};

void bt_sse_init(struct bt_sse *sse, struct bt_sse_set *set, struct bt_http_call *call,
                 struct bt_openai_answer *answer,
                 void (*on_event)(struct bt_sse *sse, enum bt_sse_event event)) {
    *sse = (struct bt_sse){.base = {&ops},
                           .set = set,
                           .call = call,
                           .answer = answer,
                           .on_event = on_event,
                           .chunked = bt_http_call_is_chunked(call)};
    wait_on(sse);
}

/* ---- writing ---- */

static void unblock(struct bt_sse *sse) {
    struct bt_sse_set *set = sse->set;
    if (!sse->is_blocked)
        return;
    if (sse->call)
        bt_http_call_await_room(sse->call, NULL, NULL);
    sse->is_blocked = false;
    *(sse->previous_blocked ? &sse->previous_blocked->next_blocked : &set->blocked) =
        sse->next_blocked;
    if (sse->next_blocked)
        sse->next_blocked->previous_blocked = sse->previous_blocked;
    sse->next_blocked = sse->previous_blocked = NULL;
    set->n_blocked--;
}

void bt_sse_fini(struct bt_sse *sse) {
    if (!sse->set)
        return;
    stop_waiting(sse);
    unblock(sse);
    if (sse->is_touched) {
        struct bt_sse **at = &sse->set->touched;
        while (*at != sse)
            at = &(*at)->next_touched;
        *at = sse->next_touched;
        sse->is_touched = false;
    }
    put_buffer(sse);
    sse->call = NULL;
}

/* The connection is lost or given up. */
static void give_up(struct bt_sse *sse, enum bt_sse_event event) {
    struct bt_http_call *call = sse->call;
    stop_waiting(sse);
    unblock(sse);
    sse->call = NULL;
    put_buffer(sse);
    bt_http_call_cut(call);
    sse->on_event(sse, event);
}

static void done(struct bt_sse *sse) {
    struct bt_http_call *call = sse->call;
    sse->call = NULL;
    if (call && sse->cut_at_end)
        bt_http_call_cut(call);
    else if (call)
        bt_http_call_finish(call);
    sse->on_event(sse, BT_SSE_DONE);
}

static void on_room(void *arg) {
    struct bt_sse *sse = arg;
    sse->is_writable = true;
    touch(sse);
}

/* False where the stream has been given up. */
static bool block(struct bt_sse *sse, uint64_t now_us, bool progress) {
    struct bt_sse_set *set = sse->set;
    if (sse->is_blocked) {
        if (progress)
            sse->blocked_us = now_us;
        return true;
    }
    if (bt_http_call_await_room(sse->call, on_room, sse) != BT_OK) {
        give_up(sse, BT_SSE_LOST);
        return false;
    }
    sse->blocked_us = now_us;
    sse->is_blocked = true;
    sse->next_blocked = set->blocked;
    if (set->blocked)
        set->blocked->previous_blocked = sse;
    set->blocked = sse;
    set->n_blocked++;
    return true;
}

/* Sends what is there; the stream may be gone afterwards. */
static void write_out(struct bt_sse *sse, uint64_t now_us) {
    struct bt_sse_set *set = sse->set;
    bool progress = false;
    if (sse->is_blocked && !sse->is_writable)
        return; /* it would only answer EAGAIN again */
    sse->is_writable = false;
    while (sse->n_sent < sse->out.n_bytes) {
        size_t n = 0;
        bt_status status = bt_http_call_send(sse->call, sse->out.data + sse->n_sent,
                                             sse->out.n_bytes - sse->n_sent, &n);
        if (status < 0) {
            give_up(sse, BT_SSE_LOST);
            return;
        }
        if (status == BT_AGAIN) {
            if (!block(sse, now_us, progress))
                return;
            break;
        }
        set->n_sends++;
        set->n_bytes += n;
        sse->n_sent += n;
        progress = true;
    }
    if (sse->n_sent < sse->out.n_bytes) {
        /* Moved to the front only now and then: each move costs what is left. */
        if (sse->n_sent > BT_SSE_FULL_BYTES / 2) {
            memmove(sse->out.data, sse->out.data + sse->n_sent, sse->out.n_bytes - sse->n_sent);
            sse->out.n_bytes -= sse->n_sent;
            sse->n_sent = 0;
        }
    } else {
        unblock(sse);
        put_buffer(sse);
    }
    if (sse->was_full && sse->out.n_bytes - sse->n_sent < BT_SSE_FULL_BYTES / 2) {
        sse->was_full = false;
        sse->on_event(sse, BT_SSE_ROOM);
    }
    if (sse->ending && sse->call && sse->n_sent == sse->out.n_bytes && !sse->is_touched)
        done(sse);
}

void bt_sse_flush(struct bt_sse_set *set, uint64_t now_us) {
    set->now_us = now_us;
    while (set->touched) {
        struct bt_sse *sse = set->touched;
        set->touched = sse->next_touched;
        sse->next_touched = NULL;
        sse->is_touched = false;
        close_chunk(sse);
        if (sse->replied)
            done(sse);
        else if (sse->out.failed)
            give_up(sse, BT_SSE_LOST);
        else
            write_out(sse, now_us);
    }
}

static void send_comments(struct bt_sse_set *set) {
    while (set->waiting && set->now_us >= set->waiting->comment_due_us) {
        struct bt_sse *sse = set->waiting;
        stop_waiting(sse);
        if (!sse->call)
            continue; /* its client is gone, and its end on the way */
        open_chunk(sse);
        bt_text_buffer_add_literal(&sse->out, ": keep-alive\n\n");
        wait_on(sse);
    }
}

void bt_sse_sweep(struct bt_sse_set *set, uint64_t now_us) {
    set->now_us = now_us;
    send_comments(set);
    for (struct bt_sse *sse = set->blocked, *next; sse; sse = next) {
        next = sse->next_blocked;
        if (now_us - sse->blocked_us < set->stuck_us)
            continue;
        set->n_stuck++;
        give_up(sse, BT_SSE_STUCK);
    }
}

/* Both halves of the hand-off joined in memory: random order, aborts, lost links, a hostile peer.
 *
 * One prefill worker P and one decode worker D, each with its pool and its page bytes, and a link
 * of two queues between them. What a page must hold is known from the prompt, so that each commit
 * is checked byte by byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <cmocka.h>

#include "common/base/block_hash.h"
#include "common/kv/kv_recv.h"
#include "common/kv/kv_send.h"

enum {
    N_LAYERS = 2,
    P_PAGES = 12,
    D_PAGES = 14,
    N_REQUESTS = 4,
    MAX_PROMPT_PAGES = 5,
    MAX_TOKENS = MAX_PROMPT_PAGES * BT_PAGE_TOKENS,
    MAX_PAGE_BYTES = 270000,
    MAX_RECEIVES = 3,
    QUEUE = 512,
    LINK = 0,
    HOSTILE = 1,
    N_SEEDS = 60,
    N_STEPS = 6000,
};
static const struct bt_id root = {3, 4}, peer = {5, 6}, hostile_peer = {7, 8};
static const uint64_t layout = 99;

enum p_state { P_NEW, P_OFFERED, P_GRANTED, P_COMPUTING, P_FINISHED, P_CLOSING, P_OVER };
enum d_state { D_NEW, D_LEASED, D_RUNNING, D_OVER };

struct request {
    bool active;
    struct bt_id ticket;
    int32_t tokens[MAX_TOKENS];
    uint32_t n_tokens, n_pages;
    enum p_state p;
    enum d_state d;
    uint32_t send, lease, layer, n_granted_held;
    struct bt_kv_hold p_hold, d_hold;
    uint32_t p_pages[MAX_PROMPT_PAGES], d_pages[MAX_PROMPT_PAGES];
};

struct item {
    bool is_frame;
    struct bt_kv_msg msg;
    struct bt_kv_frame frame;
    uint64_t sums[BT_KV_FRAME_PAGES];
    uint8_t *bytes; /* owned */
};

struct receive {
    struct bt_kv_landing landing;
    struct item item;
    bool cut;
};

struct world {
    uint64_t now_us, random, next_ticket;
    uint32_t page_bytes;
    struct bt_kv_pool *p_pool, *d_pool;
    struct bt_kv_send *send;
    struct bt_kv_recv *recv;
    uint8_t *p_memory, *d_memory;
    struct request requests[N_REQUESTS];
    bool up;
    bool pump; /* the core has said that there are frames, and they were not all pulled yet */
    struct bt_kv_outgoing pending[8]; /* given to the link, its bytes not read yet */
    uint32_t n_pending;
    struct item to_d[QUEUE];
    struct bt_kv_msg to_p[QUEUE];
    uint32_t n_to_d, n_to_p;
    struct receive receives[MAX_RECEIVES];
    uint32_t n_receives;
    struct item replay; /* a frame that was sent before, or none */
    uint64_t n_granted, n_committed, n_quarantined, n_held, n_waited;
};

static uint32_t below(struct world *w, uint32_t n) {
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((w->random >> 33) % n);
}

static uint8_t *bytes_of(struct world *w, uint8_t *memory, uint32_t layer, uint32_t page,
                         uint32_t n_pages) {
    return memory + ((size_t)layer * n_pages + page) * w->page_bytes;
}
#define P_BYTES(w, layer, page) bytes_of(w, (w)->p_memory, layer, page, P_PAGES)
#define D_BYTES(w, layer, page) bytes_of(w, (w)->d_memory, layer, page, D_PAGES)

/* What page i of the prompt must hold in one layer. */
static void write_page(struct world *w, const struct request *r, uint32_t layer, uint32_t i,
                       uint8_t *out) {
    uint32_t n = (i + 1) * BT_PAGE_TOKENS;
    struct bt_id h = bt_block_prompt(root, r->tokens, n < r->n_tokens ? n : r->n_tokens);
    for (uint32_t at = 0; at < w->page_bytes; at++)
        out[at] = (uint8_t)((h.lo >> (at % 8 * 8)) + layer * 13 + at / 8);
}

static bool page_is_right(struct world *w, const struct request *r, uint32_t layer, uint32_t i,
                          const uint8_t *bytes) {
    static uint8_t expected[MAX_PAGE_BYTES];
    write_page(w, r, layer, i, expected);
    return !memcmp(expected, bytes, w->page_bytes);
}

static void publish(struct bt_kv_pool *pool, const struct request *r,
                    const struct bt_kv_hold *hold) {
    struct bt_id previous = root;
    for (uint32_t i = 0; (i + 1) * BT_PAGE_TOKENS <= r->n_tokens; i++) {
        const int32_t *tokens = r->tokens + i * BT_PAGE_TOKENS;
        bt_kv_pool_publish(pool, hold, i, previous, tokens);
        previous = bt_block_next(previous, tokens);
    }
}

/* ---- actions of the two halves ---- */

static void drain_p(struct world *w) {
    struct bt_kv_send_action a;
    while (bt_kv_send_next(w->send, &a)) {
        struct request *r = &w->requests[a.user];
        switch (a.type) {
        case BT_KV_SEND_MSG:
            if (!w->up)
                break;
            assert_true(w->n_to_d < QUEUE);
            w->to_d[w->n_to_d++] = (struct item){.msg = a.msg};
            break;
        case BT_KV_SEND_GRANTED:
            assert_int_equal(r->p, P_OFFERED);
            r->p = P_GRANTED;
            r->n_granted_held = a.pages_held;
            w->n_granted++;
            w->n_held += a.pages_held > 0;
            break;
        case BT_KV_SEND_ENDED:
        case BT_KV_SEND_COMMITTED:
            assert_true(r->p >= P_OFFERED && r->p <= P_FINISHED);
            if (a.type == BT_KV_SEND_COMMITTED)
                assert_int_equal(r->p, P_FINISHED);
            r->p = P_CLOSING;
            break;
        case BT_KV_SEND_RELEASED:
            assert_int_equal(r->p, P_CLOSING);
            bt_kv_hold_release(w->p_pool, &r->p_hold);
            r->p = P_OVER;
            break;
        case BT_KV_SEND_FRAMES:
            w->pump = true;
            break;
        }
    }
    assert_true(bt_kv_send_is_valid(w->send) && bt_kv_pool_is_valid(w->p_pool));
}

static void on_committed(struct world *w, struct request *r, const struct bt_kv_msg *msg) {
    assert_int_equal(r->d, D_LEASED);
    assert_int_equal(msg->token, (int32_t)r->ticket.lo);
    for (uint32_t i = 0; i < r->n_pages; i++)
        for (uint32_t layer = 0; layer < N_LAYERS; layer++)
            assert_true(page_is_right(w, r, layer, i, D_BYTES(w, layer, r->d_pages[i])));
    publish(w->d_pool, r, &r->d_hold);
    r->d = D_RUNNING;
    w->n_committed++;
}

static void drain_d(struct world *w) {
    struct bt_kv_recv_action a;
    while (bt_kv_recv_next(w->recv, &a)) {
        struct request *r = &w->requests[a.user];
        switch (a.type) {
        case BT_KV_RECV_SEND:
            if (a.link != LINK || !w->up)
                break;
            assert_true(w->n_to_p < QUEUE);
            w->to_p[w->n_to_p++] = a.msg;
            break;
        case BT_KV_RECV_GRANTED:
            assert_int_equal(r->d, D_LEASED);
            break;
        case BT_KV_RECV_COMMITTED:
            on_committed(w, r, &a.msg);
            break;
        case BT_KV_RECV_ABORTED:
            assert_int_equal(r->d, D_LEASED);
            assert_int_equal(r->d_hold.n_pages + r->d_hold.n_reserved, 0);
            assert_true(a.reason == BT_KV_REASON_LINK || a.reason == BT_KV_REASON_PEER);
            r->d = D_OVER;
            break;
        case BT_KV_RECV_CUT:
            assert_int_equal(a.link, LINK);
            for (uint32_t i = 0; i < w->n_receives; i++)
                if (w->receives[i].landing.lease == a.lease)
                    w->receives[i].cut = true;
            break;
        }
    }
    struct bt_census census;
    bt_kv_pool_census(w->d_pool, &census);
    w->n_quarantined += census.quarantined > 0;
    assert_true(bt_kv_recv_is_valid(w->recv) && bt_kv_pool_is_valid(w->d_pool));
}

/* ---- what the workers do ---- */

static void start_request(struct world *w, struct request *r) {
    *r = (struct request){.active = true};
    r->ticket = (struct bt_id){1, ++w->next_ticket};
    r->n_tokens = 1 + below(w, MAX_TOKENS);
    r->n_pages = (r->n_tokens + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
    uint32_t family = below(w, 3), own = below(w, MAX_TOKENS); /* prompts share their beginnings */
    for (uint32_t i = 0; i < r->n_tokens; i++)
        r->tokens[i] = (int32_t)(i < own ? family : 1000 + w->next_ticket % 5);
    r->p_hold = (struct bt_kv_hold){.pages = r->p_pages, .capacity = MAX_PROMPT_PAGES};
    r->d_hold = (struct bt_kv_hold){.pages = r->d_pages, .capacity = MAX_PROMPT_PAGES};
}

static void offer(struct world *w, struct request *r) {
    struct bt_kv_offer o = {.ticket = r->ticket,
                            .chain = bt_block_prompt(root, r->tokens, r->n_tokens),
                            .n_tokens = r->n_tokens,
                            .n_pages = r->n_pages,
                            .link = LINK,
                            .deadline_us = r->ticket.lo,
                            .user = (uint32_t)(r - w->requests)};
    bt_status status = bt_kv_send_offer(w->send, w->now_us, &o, &r->send);
    assert_int_equal(status, w->up ? BT_OK : BT_E_PEER_GONE);
    r->p = status == BT_OK ? P_OFFERED : P_OVER;
}

static void take_pages(struct world *w, struct request *r) {
    struct bt_kv_hold *hold = &r->p_hold;
    uint32_t found = bt_kv_hold_pin(w->p_pool, hold, root, r->tokens, r->n_tokens / BT_PAGE_TOKENS);
    if (!bt_kv_hold_reserve(w->p_pool, hold, r->n_pages - found)) {
        bt_kv_hold_release(w->p_pool, hold);
        return;
    }
    bt_kv_hold_bind(w->p_pool, hold, r->n_pages - found, BT_PAGE_FILLING);
    bt_kv_send_bind(w->send, r->send, hold);
    for (uint32_t layer = 0; layer < N_LAYERS; layer++)
        bt_kv_send_ready(w->send, w->now_us, r->send, layer, found);
    r->p = P_COMPUTING;
}

static void compute_layer(struct world *w, struct request *r) {
    for (uint32_t i = r->p_hold.n_shared; i < r->n_pages; i++) {
        uint8_t *bytes = P_BYTES(w, r->layer, r->p_pages[i]);
        write_page(w, r, r->layer, i, bytes);
        *bt_kv_page_sum(w->p_pool, r->layer, r->p_pages[i]) = XXH3_64bits(bytes, w->page_bytes);
    }
    bt_kv_send_ready(w->send, w->now_us, r->send, r->layer, r->n_pages);
    if (++r->layer < N_LAYERS)
        return;
    for (uint32_t i = r->p_hold.n_shared; i < r->n_pages; i++)
        bt_kv_page_move(w->p_pool, r->p_pages[i], BT_PAGE_LIVE);
    publish(w->p_pool, r, &r->p_hold);
    r->p = P_FINISHED;
    bt_kv_send_finish(w->send, w->now_us, r->send, (int32_t)r->ticket.lo, BT_FINISH_NONE, 0, NULL);
}

static void reserve(struct world *w, struct request *r) {
    struct bt_kv_hold *hold = &r->d_hold;
    uint32_t found = bt_kv_hold_pin(w->d_pool, hold, root, r->tokens, r->n_tokens / BT_PAGE_TOKENS);
    r->d = D_OVER;
    if (!bt_kv_hold_reserve(w->d_pool, hold, r->n_pages - found)) {
        bt_kv_hold_release(w->d_pool, hold);
        bt_kv_recv_forbid(w->recv, w->now_us, r->ticket);
        return;
    }
    struct bt_kv_expect e = {.ticket = r->ticket,
                             .peer = peer,
                             .chain = bt_block_prompt(root, r->tokens, r->n_tokens),
                             .n_tokens = r->n_tokens,
                             .n_pages = r->n_pages,
                             .hold = hold,
                             .user = (uint32_t)(r - w->requests)};
    assert_int_equal(bt_kv_recv_expect(w->recv, w->now_us, &e, &r->lease), BT_OK);
    r->d = D_LEASED;
}

static void step_p(struct world *w, struct request *r) {
    if (r->p == P_NEW)
        offer(w, r);
    else if (r->p == P_GRANTED)
        take_pages(w, r);
    else if (r->p == P_COMPUTING)
        compute_layer(w, r);
    /* Rarely it is given up; always where D has ended without it. */
    if (r->p >= P_OFFERED && r->p <= P_FINISHED && below(w, 100) < (r->d == D_OVER ? 20u : 1u)) {
        r->p = P_CLOSING;
        bt_kv_send_cancel(w->send, w->now_us, r->send, BT_KV_REASON_CANCELLED);
    }
    drain_p(w);
}

static void step_d(struct world *w, struct request *r) {
    if (r->d == D_NEW) {
        reserve(w, r);
    } else if (r->d == D_LEASED && below(w, 100) < (r->p == P_OVER ? 20u : 1u)) {
        r->d = D_OVER;
        bt_kv_recv_abort(w->recv, w->now_us, r->lease, BT_KV_REASON_CANCELLED);
    } else if (r->d == D_RUNNING && below(w, 4) == 0) {
        bt_kv_hold_release(w->d_pool, &r->d_hold);
        r->d = D_OVER;
    }
    drain_d(w);
    if (r->p == P_OVER && r->d == D_OVER)
        r->active = false;
}

/* ---- the link ---- */

static struct item copy_of(const struct world *w, const struct item *item) {
    struct item copy = *item;
    (void)w;
    copy.bytes = malloc(item->frame.length);
    assert_non_null(copy.bytes);
    memcpy(copy.bytes, item->bytes, item->frame.length);
    return copy;
}

static void pull_frame(struct world *w) {
    if (!w->pump) {
        assert_false(bt_kv_send_has_frame(w->send, LINK)); /* or nobody would ever pull it */
        return;
    }
    struct bt_kv_outgoing out;
    w->pump = bt_kv_send_next_frame(w->send, w->now_us, LINK, &out);
    if (w->pump) {
        assert_true(w->n_pending < 8);
        w->pending[w->n_pending++] = out;
    }
    drain_p(w);
}

/* The link reads the bytes of the first frame that it was given, and lets its pages go. */
static void write_frame(struct world *w) {
    if (!w->n_pending)
        return;
    struct bt_kv_outgoing out = w->pending[0];
    memmove(w->pending, w->pending + 1, --w->n_pending * sizeof *w->pending);
    struct item item = {.is_frame = true, .frame = out.frame};
    item.bytes = malloc(out.frame.length);
    assert_non_null(item.bytes);
    uint32_t n = out.frame.length / out.frame.n_pages;
    for (uint32_t i = 0; i < out.frame.n_pages; i++)
        memcpy(item.bytes + (size_t)i * n,
               P_BYTES(w, out.frame.layer, out.pages[i]) + out.frame.offset, n);
    memcpy(item.sums, out.sums, sizeof item.sums);
    assert_true(w->n_to_d < QUEUE - 1);
    w->to_d[w->n_to_d++] = item;
    if (below(w, 10) == 0)
        w->to_d[w->n_to_d++] = copy_of(w, &item); /* a liar sends it twice */
    if (below(w, 20) == 0) {
        free(w->replay.bytes);
        w->replay = copy_of(w, &item);
    }
    bt_kv_send_frame_done(w->send, w->now_us, LINK, out.id);
    drain_p(w);
}

/* Bytes [from, to) of a frame land; a link that is told to cut may still do so. */
static void land_bytes(struct world *w, const struct receive *receive, uint32_t from, uint32_t to) {
    const struct bt_kv_frame *frame = &receive->landing.frame;
    uint32_t n = frame->length / frame->n_pages;
    for (uint32_t at = from; at < to; at++)
        D_BYTES(w, frame->layer, receive->landing.pages[at / n])
    [frame->offset + at % n] = receive->item.bytes[at];
}

static void end_receive(struct world *w) {
    if (!w->n_receives)
        return;
    struct receive receive = w->receives[0];
    memmove(w->receives, w->receives + 1, --w->n_receives * sizeof *w->receives);
    const struct bt_kv_frame *frame = &receive.landing.frame;
    /* What was told to stop may write to its last byte, and any byte again. */
    land_bytes(w, &receive, receive.cut ? 0 : frame->length / 2, frame->length);
    uint64_t computed[BT_KV_FRAME_PAGES] = {0};
    uint32_t n_sums = bt_kv_frame_sums(frame, w->page_bytes);
    for (uint32_t i = 0; i < n_sums; i++)
        computed[i] =
            XXH3_64bits(D_BYTES(w, frame->layer, receive.landing.pages[i]), w->page_bytes);
    bt_kv_recv_frame_end(w->recv, w->now_us, &receive.landing, !receive.cut, receive.item.sums,
                         computed);
    free(receive.item.bytes);
    drain_d(w);
}

static void begin_receive(struct world *w, struct item item) {
    struct receive *receive = &w->receives[w->n_receives];
    struct bt_error err;
    if (bt_kv_recv_frame(w->recv, w->now_us, LINK, &item.frame, &receive->landing, &err) != BT_OK) {
        free(item.bytes);
        return;
    }
    receive->item = item;
    receive->cut = false;
    w->n_receives++;
    land_bytes(w, receive, 0, item.frame.length / 2);
}

static void read_at_d(struct world *w) {
    if (!w->n_to_d || w->n_receives == MAX_RECEIVES)
        return;
    struct item item = w->to_d[0];
    memmove(w->to_d, w->to_d + 1, --w->n_to_d * sizeof *w->to_d);
    if (item.is_frame) {
        begin_receive(w, item);
    } else {
        w->n_waited += item.msg.type == BT_KV_COMMIT && w->n_receives > 0;
        bt_kv_recv_message(w->recv, w->now_us, LINK, &item.msg);
    }
    drain_d(w);
}

static void read_at_p(struct world *w) {
    if (!w->n_to_p)
        return;
    struct bt_kv_msg msg = w->to_p[0];
    memmove(w->to_p, w->to_p + 1, --w->n_to_p * sizeof *w->to_p);
    bt_kv_send_message(w->send, w->now_us, LINK, &msg);
    drain_p(w);
}

static void give_up_frames(struct world *w) {
    while (w->n_pending) {
        bt_kv_send_frame_done(w->send, w->now_us, LINK, w->pending[--w->n_pending].id);
        drain_p(w);
    }
}

static void cut_link(struct world *w) {
    if (!w->up)
        return;
    if (below(w, 2))
        give_up_frames(w);
    w->up = false;
    bt_kv_send_link_down(w->send, w->now_us, LINK);
    drain_p(w);
    give_up_frames(w);
    while (w->n_receives && below(w, 3))
        end_receive(w);
    for (uint32_t i = 0; i < w->n_receives; i++)
        w->receives[i].cut = true;
    bt_kv_recv_link_down(w->recv, w->now_us, LINK);
    drain_d(w);
    for (uint32_t i = 0; i < w->n_to_d; i++)
        free(w->to_d[i].bytes);
    w->n_to_d = w->n_to_p = 0;
}

static void heal_link(struct world *w) {
    if (w->up || w->n_receives)
        return;
    w->up = true;
    bt_kv_recv_link_up(w->recv, w->now_us, LINK, peer);
    bt_kv_send_link_up(w->send, w->now_us, LINK);
}

/* Another prefill worker knows each ticket, slot and generation, and uses them on its own link;
 * and old frames come again on the right one. */
static void lie(struct world *w) {
    const struct request *r = &w->requests[below(w, N_REQUESTS)];
    struct bt_kv_landing landing;
    struct bt_error err;
    if (w->replay.bytes) {
        struct bt_kv_frame frame = w->replay.frame;
        assert_int_not_equal(bt_kv_recv_frame(w->recv, w->now_us, HOSTILE, &frame, &landing, &err),
                             BT_OK);
        if (w->up && w->n_to_d < QUEUE - 1)
            w->to_d[w->n_to_d++] = copy_of(w, &w->replay);
    }
    struct bt_kv_msg msg = {.ticket = r->ticket,
                            .chain = bt_block_prompt(root, r->tokens, r->n_tokens),
                            .n_tokens = r->n_tokens,
                            .lease = r->lease,
                            .generation = 1 + below(w, 50),
                            .fingerprint_hash = layout};
    static const enum bt_kv_msg_type types[] = {BT_KV_HELLO, BT_KV_COMMIT, BT_KV_WITHDRAWN,
                                                BT_KV_GRANT};
    msg.type = types[below(w, 4)];
    bt_kv_recv_message(w->recv, w->now_us, HOSTILE, &msg);
    drain_d(w);
}

/* ---- a run ---- */

static void open_world(struct world *w, uint64_t seed, uint32_t page_bytes) {
    memset(w, 0, sizeof *w);
    w->random = seed;
    w->page_bytes = page_bytes;
    w->now_us = 1000;
    struct bt_kv_pool_config pool = {.n_pages = P_PAGES, .n_layers = N_LAYERS, .n_changes = 16};
    assert_int_equal(bt_kv_pool_create(&pool, &w->p_pool, NULL), BT_OK);
    pool.n_pages = D_PAGES;
    assert_int_equal(bt_kv_pool_create(&pool, &w->d_pool, NULL), BT_OK);
    struct bt_kv_send_config send = {.pool = w->p_pool,
                                     .n_layers = N_LAYERS,
                                     .page_bytes = page_bytes,
                                     .fingerprint_hash = layout,
                                     .max_sends = N_REQUESTS};
    assert_int_equal(bt_kv_send_create(&send, &w->send, NULL), BT_OK);
    struct bt_kv_recv_config recv = {.pool = w->d_pool,
                                     .n_layers = N_LAYERS,
                                     .page_bytes = page_bytes,
                                     .fingerprint_hash = layout,
                                     .max_leases = N_REQUESTS,
                                     .max_pages = MAX_PROMPT_PAGES,
                                     .max_parked = 64,
                                     .max_ended = 4096};
    assert_int_equal(bt_kv_recv_create(&recv, &w->recv, NULL), BT_OK);
    w->p_memory = calloc((size_t)P_PAGES * N_LAYERS, page_bytes);
    w->d_memory = calloc((size_t)D_PAGES * N_LAYERS, page_bytes);
    assert_true(w->p_memory && w->d_memory);
    heal_link(w);
    bt_kv_recv_link_up(w->recv, w->now_us, HOSTILE, hostile_peer);
}

static void step(struct world *w, bool faults) {
    struct request *r = &w->requests[below(w, N_REQUESTS)];
    uint32_t what = below(w, 200);
    w->now_us += below(w, 20000);
    if (what < 40) {
        if (!r->active)
            start_request(w, r);
        step_p(w, r);
    } else if (what < 80 && r->active) {
        step_d(w, r);
    } else if (what < 100) {
        pull_frame(w);
    } else if (what < 120) {
        write_frame(w);
    } else if (what < 145) {
        read_at_d(w);
    } else if (what < 165) {
        read_at_p(w);
    } else if (what < 185) {
        /* One that was cut may go on for long, while its pages are wanted. */
        if (!w->n_receives || !w->receives[0].cut || below(w, 20) == 0)
            end_receive(w);
    } else if (what < 190) {
        bt_kv_recv_tick(w->recv, w->now_us);
        drain_d(w);
    } else if (what < 193) {
        heal_link(w);
    } else if (faults && what == 193 && below(w, 4) == 0) {
        cut_link(w);
    } else if (faults && what < 199) {
        lie(w);
    }
}

/* Everything ends; then every page must be free or cached, on both sides. */
static void close_world(struct world *w) {
    cut_link(w);
    while (w->n_receives)
        end_receive(w);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        struct request *r = &w->requests[i];
        assert_true(!r->active || r->p == P_NEW || r->p == P_OVER);
        if (r->d == D_LEASED)
            bt_kv_recv_abort(w->recv, w->now_us, r->lease, BT_KV_REASON_DEADLINE);
        drain_d(w);
        bt_kv_hold_release(w->d_pool, &r->d_hold);
    }
    struct bt_census p, d;
    bt_kv_pool_census(w->p_pool, &p);
    bt_kv_pool_census(w->d_pool, &d);
    assert_int_equal(p.free + p.cached, P_PAGES);
    assert_int_equal(d.free + d.cached, D_PAGES);
    bt_kv_pool_flush(w->p_pool);
    bt_kv_pool_flush(w->d_pool);
    assert_int_equal(bt_kv_pool_available(w->p_pool), P_PAGES);
    assert_int_equal(bt_kv_pool_available(w->d_pool), D_PAGES);
    bt_kv_send_destroy(w->send);
    bt_kv_recv_destroy(w->recv);
    bt_kv_pool_destroy(w->p_pool);
    bt_kv_pool_destroy(w->d_pool);
    free(w->p_memory);
    free(w->d_memory);
    free(w->replay.bytes);
}

static void test_random_order_with_faults(void **state) {
    (void)state;
    struct world *w = malloc(sizeof *w);
    assert_non_null(w);
    uint64_t granted = 0, committed = 0, quarantined = 0, held = 0, waited = 0, parked = 0;
    uint64_t refused = 0, refused_link = 0, refused_order = 0;
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++) {
        open_world(w, seed, 32);
        for (int i = 0; i < N_STEPS; i++)
            step(w, true);
        const struct bt_kv_recv_counters *c = bt_kv_recv_counters(w->recv);
        /* Our own peers never lie about bytes or prompts. */
        assert_int_equal(c->refused_checksum + c->refused_prompt + c->refused_layout, 0);
        refused += c->refused_generation;
        refused_link += c->refused_link;
        refused_order += c->refused_order;
        parked += c->parked;
        granted += w->n_granted;
        committed += w->n_committed;
        quarantined += w->n_quarantined;
        held += w->n_held;
        waited += w->n_waited;
        close_world(w);
    }
    free(w);
    assert_true(granted > committed && committed > 2000);
    assert_true(quarantined > 100 && held > 100 && waited > 100 && parked > 100);
    assert_true(refused > 100 && refused_link > 100 && refused_order > 100);
}

/* Without faults nothing is refused but what a full pool or a cancel ends. */
static void test_pages_in_pieces(void **state) {
    (void)state;
    struct world *w = malloc(sizeof *w);
    assert_non_null(w);
    open_world(w, 7, MAX_PAGE_BYTES);
    for (int i = 0; i < 6000; i++)
        step(w, false);
    assert_true(w->n_committed > 10);
    assert_int_equal(bt_kv_recv_counters(w->recv)->refused_range, 0);
    close_world(w);
    free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_order_with_faults),
        cmocka_unit_test(test_pages_in_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

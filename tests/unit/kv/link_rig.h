/* Two ends of a KV link on one event loop with a scripted worker behind each, and a raw peer that
 * speaks bytes. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include <xxhash.h>

#include "common/base/bytes.h"
#include "common/kv/kv_link.h"
#include "common/kv/kv_wire.h"

/* Under which certificates sides are opened; NULL: plain text. */
static struct bt_tls *rig_p_tls, *rig_d_tls;

enum { RIG_LAYERS = 4, RIG_PAGES = 64, RIG_PAGE_BYTES = 12288, RIG_FRAMES = 4096, RIG_WAIT_S = 20 };

/* One scripted worker. A prefill side sends out[0 .. n_out); a decode side takes every frame whose
 * lease is `accept` into the pages of the same index. */
struct rig_side {
    struct event_base *base;
    const struct bt_kv_link_ops *ops;
    struct bt_kv_links *links;
    uint32_t page_bytes, n_pages;
    uint8_t *memory; /* [layer][page] */
    struct bt_id incarnation;
    /* What was heard. */
    uint32_t n_up, n_down, n_turns, link;
    struct bt_id peer;
    char why[BT_ERROR_TEXT_BYTES];
    struct bt_kv_msg messages[64];
    uint32_t n_messages, frames_before_message[64];
    /* Receiving. */
    uint32_t accept, n_refused, n_begun, n_whole, n_broken, n_bad_sums;
    bool is_receiving, echo_abort;
    /* Sending. */
    struct bt_kv_outgoing *out;
    uint32_t n_out, next_out, n_done;
};

static inline uint8_t *rig_page(void *arg, uint32_t layer, uint32_t page) {
    struct rig_side *side = arg;
    assert_true(layer < RIG_LAYERS && page < side->n_pages);
    return side->memory + ((size_t)layer * side->n_pages + page) * side->page_bytes;
}

static inline void rig_up(void *arg, uint32_t link, struct bt_id peer) {
    struct rig_side *side = arg;
    side->n_up++;
    side->link = link;
    side->peer = peer;
}

static inline void rig_down(void *arg, uint32_t link, const char *why) {
    struct rig_side *side = arg;
    (void)link;
    side->n_down++;
    assert_int_equal(side->n_begun, side->n_whole + side->n_broken);
    assert_int_equal(side->next_out, side->n_done);
    assert_true(why[0]);
    memcpy(side->why, why, strlen(why) + 1);
}

static inline void rig_message(void *arg, uint32_t link, const struct bt_kv_msg *msg) {
    struct rig_side *side = arg;
    (void)link;
    if (side->n_messages < 64) {
        side->messages[side->n_messages] = *msg;
        side->frames_before_message[side->n_messages] = side->n_whole;
    }
    side->n_messages++;
}

static inline bt_status rig_frame(void *arg, uint32_t link, const struct bt_kv_frame *frame,
                                  struct bt_kv_landing *out, struct bt_error *err) {
    struct rig_side *side = arg;
    (void)link;
    if (frame->lease != side->accept) {
        side->n_refused++;
        return bt_fail(err, BT_E_INVALID, "lease %u is not granted", frame->lease);
    }
    side->n_begun++;
    out->lease = frame->lease;
    out->generation = frame->generation;
    out->frame = *frame;
    for (uint32_t i = 0; i < frame->n_pages; i++)
        out->pages[i] = frame->first_page + i;
    return BT_OK;
}

static inline void rig_frame_end(void *arg, uint32_t link, const struct bt_kv_landing *landing,
                                 bool whole, const uint64_t *carried, const uint64_t *computed) {
    struct rig_side *side = arg;
    (void)link;
    if (!whole) {
        side->n_broken++;
        return;
    }
    side->n_whole++;
    for (uint32_t i = 0; i < bt_kv_frame_sums(&landing->frame, side->page_bytes); i++)
        side->n_bad_sums += carried[i] != computed[i];
}

static inline bool rig_next_frame(void *arg, uint32_t link, struct bt_kv_outgoing *out) {
    struct rig_side *side = arg;
    (void)link;
    if (side->next_out == side->n_out)
        return false;
    *out = side->out[side->next_out++];
    return true;
}

static inline void rig_frame_done(void *arg, uint32_t link, uint32_t id) {
    struct rig_side *side = arg;
    (void)link;
    assert_int_equal(id, side->n_done); /* in order */
    side->n_done++;
}

static inline void rig_turn(void *arg) {
    ((struct rig_side *)arg)->n_turns++;
}

static inline struct bt_fingerprint rig_layout(void) {
    return (struct bt_fingerprint){.model_hash = 1,
                                   .n_layers = RIG_LAYERS,
                                   .n_kv_heads = 3,
                                   .head_dim = 64,
                                   .page_tokens = BT_PAGE_TOKENS,
                                   .kv_type = BT_KV_BF16,
                                   .wire_type = BT_KV_BF16,
                                   .inner_order = BT_KV_INNER_ORDER_CPU,
                                   .profile = BT_PROFILE_FAST,
                                   .contract = BT_NUMERICS_CONTRACT};
}

static inline void rig_side_init(struct rig_side *side, struct event_base *base, const char *kind,
                                 bool prefill, uint64_t id, uint32_t page_bytes,
                                 const struct bt_fingerprint *layout) {
    struct bt_error err = {0};
    memset(side, 0, sizeof *side);
    side->base = base;
    side->ops = bt_kv_link_find(kind);
    assert_non_null(side->ops);
    side->page_bytes = page_bytes;
    side->n_pages = RIG_PAGES;
    side->memory = calloc((size_t)RIG_LAYERS * RIG_PAGES, page_bytes);
    side->out = calloc(RIG_FRAMES, sizeof *side->out);
    assert_true(side->memory && side->out);
    side->incarnation = (struct bt_id){.hi = 0xabc, .lo = id};
    struct bt_kv_links_config config = {
        .base = base,
        .user = {.arg = side,
                 .up = rig_up,
                 .down = rig_down,
                 .message = rig_message,
                 .frame = rig_frame,
                 .frame_end = rig_frame_end,
                 .next_frame = rig_next_frame,
                 .frame_done = rig_frame_done,
                 .page = rig_page,
                 .turn = rig_turn},
        .prefill = prefill,
        .incarnation = side->incarnation,
        .fingerprint = *layout,
        .n_layers = RIG_LAYERS,
        .page_bytes = page_bytes,
        .listen = prefill ? NULL : "127.0.0.1:0",
        .tls = prefill ? rig_p_tls : rig_d_tls,
    };
    memcpy(config.name, prefill ? "prefill" : "decode", prefill ? 8 : 7);
    assert_int_equal(side->ops->create(&config, &side->links, &err), BT_OK);
}

static inline void rig_side_fini(struct rig_side *side) {
    if (side->links)
        side->ops->destroy(side->links);
    free(side->memory);
    free(side->out);
    memset(side, 0, sizeof *side);
}

static inline uint64_t rig_now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static inline void rig_tick(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what, (void)arg;
}

/* Runs the loop until the condition holds; fails after RIG_WAIT_S. */
#define RIG_UNTIL(base, condition)                                       \
    do {                                                                 \
        uint64_t rig_end_ = rig_now_ms() + RIG_WAIT_S * 1000;            \
        while (!(condition)) {                                           \
            if (rig_now_ms() > rig_end_)                                 \
                fail_msg("not within %d s: %s", RIG_WAIT_S, #condition); \
            event_base_loop(base, EVLOOP_ONCE);                          \
        }                                                                \
    } while (0)

struct rig {
    struct event_base *base;
    struct event *tick; /* so that the loop never sleeps for long */
    struct rig_side p, d;
};

static inline void rig_open_base(struct rig *rig) {
    const struct timeval period = {.tv_usec = 5000};
    rig->base = event_base_new();
    rig->tick = event_new(rig->base, -1, EV_PERSIST, rig_tick, NULL);
    assert_true(rig->base && rig->tick && !event_add(rig->tick, &period));
}

static inline void rig_dial(struct rig *rig) {
    struct bt_error err = {0};
    assert_int_equal(rig->p.ops->dial(rig->p.links, 3, rig->d.ops->address(rig->d.links),
                                      rig->d.incarnation, &err),
                     BT_OK);
    assert_int_equal(rig->p.n_up + rig->p.n_down, 0); /* never from inside */
}

static inline void rig_open(struct rig *rig, const char *kind, uint32_t page_bytes) {
    struct bt_fingerprint layout = rig_layout();
    rig_open_base(rig);
    rig_side_init(&rig->d, rig->base, kind, false, 1, page_bytes, &layout);
    rig_side_init(&rig->p, rig->base, kind, true, 2, page_bytes, &layout);
    rig_dial(rig);
    RIG_UNTIL(rig->base, rig->p.n_up && rig->d.n_up);
}

static inline void rig_close(struct rig *rig) {
    if (rig->p.links)
        rig_side_fini(&rig->p);
    if (rig->d.links)
        rig_side_fini(&rig->d);
    event_free(rig->tick);
    event_base_free(rig->base);
}

/* Fills a page with bytes of its own, and gives its sum. */
static inline uint64_t rig_fill(struct rig_side *side, uint32_t layer, uint32_t page,
                                uint32_t salt) {
    uint8_t *bytes = rig_page(side, layer, page);
    uint32_t x = layer * 7919 + page * 104729 + salt * 31 + 1;
    for (uint32_t i = 0; i < side->page_bytes; i++) {
        x = x * 1664525 + 1013904223;
        bytes[i] = (uint8_t)(x >> 24);
    }
    return XXH3_64bits(bytes, side->page_bytes);
}

/* Appends frames for pages [first, first + n) of a layer: as many whole pages as fit a frame, or
 * the pieces of each. */
static inline void rig_offer(struct rig_side *side, uint32_t lease, uint32_t layer, uint32_t first,
                             uint32_t n) {
    uint32_t fit = BT_KV_FRAME_BYTES / side->page_bytes;
    uint32_t at = first, offset = 0;
    while (at < first + n) {
        assert_true(side->n_out < RIG_FRAMES);
        struct bt_kv_outgoing *out = &side->out[side->n_out];
        struct bt_kv_frame *frame = &out->frame;
        *frame = (struct bt_kv_frame){.lease = lease,
                                      .generation = lease + 1000,
                                      .layer = layer,
                                      .first_page = at,
                                      .n_pages = 1,
                                      .offset = offset};
        if (fit) {
            frame->n_pages = first + n - at < fit ? first + n - at : fit;
            frame->n_pages =
                frame->n_pages < BT_KV_FRAME_PAGES ? frame->n_pages : BT_KV_FRAME_PAGES;
            frame->length = frame->n_pages * side->page_bytes;
            at += frame->n_pages;
        } else {
            uint32_t left = side->page_bytes - offset;
            frame->length = left < BT_KV_FRAME_BYTES ? left : BT_KV_FRAME_BYTES;
            offset += frame->length;
            if (offset == side->page_bytes) {
                offset = 0;
                at++;
            }
        }
        for (uint32_t i = 0; i < frame->n_pages; i++) {
            out->pages[i] = frame->first_page + i;
            out->sums[i] =
                XXH3_64bits(rig_page(side, layer, frame->first_page + i), side->page_bytes);
        }
        out->id = side->n_out++;
    }
}

static inline bool rig_equal(struct rig *rig, uint32_t layer, uint32_t page) {
    return !memcmp(rig_page(&rig->p, layer, page), rig_page(&rig->d, layer, page),
                   rig->p.page_bytes);
}

/* Every page of every layer, compared byte for byte. */
static inline void rig_send_all(uint32_t page_bytes) {
    struct rig rig = {0};
    rig_open(&rig, "tcp", page_bytes);
    for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
        for (uint32_t page = 0; page < RIG_PAGES; page++)
            rig_fill(&rig.p, layer, page, 1);
        rig_offer(&rig.p, 0, layer, 0, RIG_PAGES);
    }
    rig.p.ops->pump(rig.p.links, 3);
    RIG_UNTIL(rig.base, rig.d.n_whole == rig.p.n_out);
    assert_int_equal(rig.p.n_done, rig.p.n_out);
    assert_int_equal(rig.d.n_bad_sums + rig.d.n_broken + rig.d.n_refused, 0);
    assert_memory_equal(rig.p.memory, rig.d.memory, (size_t)RIG_LAYERS * RIG_PAGES * page_bytes);
    rig_close(&rig);
}

/* P sends pages 0 to 20 of layer 0 n times: a link that is busy for a while. */
static inline void rig_flood(struct rig *rig, uint32_t n) {
    for (uint32_t page = 0; page < RIG_PAGES; page++)
        rig_fill(&rig->p, 0, page, 1);
    for (uint32_t i = 0; i < n; i++)
        rig_offer(&rig->p, 0, 0, 0, 21);
    rig->p.ops->pump(rig->p.links, 3);
}

static inline struct bt_kv_msg rig_hello(uint64_t n) {
    return (struct bt_kv_msg){
        .type = BT_KV_HELLO, .ticket = {1, n}, .chain = {n, n}, .n_tokens = 1500};
}

/* ---- a raw prefill worker: a socket, and bytes ---- */

static inline int raw_connect(const struct rig_side *d) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const char *colon = strrchr(d->ops->address(d->links), ':');
    to.sin_port = htons((uint16_t)atoi(colon + 1));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static inline void raw_send(int fd, const void *bytes, size_t n) {
    assert_int_equal(send(fd, bytes, n, MSG_NOSIGNAL), n);
}

static inline size_t raw_join(uint8_t *out, const struct rig_side *d, uint64_t id) {
    struct bt_kv_control c = {.type = BT_KV_CONTROL_JOIN,
                              .join = {.name = "raw",
                                       .incarnation = {0xfff, id},
                                       .peer = d->incarnation,
                                       .protocol_min = 1,
                                       .protocol_max = 1,
                                       .fingerprint = rig_layout()}};
    return bt_kv_control_pack(&c, out);
}

/* Connects, joins, and waits until D has it up. */
static inline int raw_open(struct rig *rig, uint64_t id) {
    uint8_t unit[BT_KV_UNIT_BYTES_MAX];
    int fd = raw_connect(&rig->d);
    uint32_t was = rig->d.n_up;
    raw_send(fd, unit, raw_join(unit, &rig->d, id));
    RIG_UNTIL(rig->base, rig->d.n_up == was + 1);
    return fd;
}

static inline size_t raw_frame(uint8_t *out, struct rig_side *from,
                               const struct bt_kv_frame *frame) {
    size_t at = BT_KV_HEADER_BYTES;
    bt_kv_header_pack_frame(frame, out);
    for (uint32_t i = 0; i < bt_kv_frame_sums(frame, from->page_bytes); i++, at += 8)
        bt_store_u64(out + at, XXH3_64bits(rig_page(from, frame->layer, frame->first_page + i),
                                           from->page_bytes));
    memcpy(out + at, rig_page(from, frame->layer, frame->first_page) + frame->offset,
           frame->length);
    return at + frame->length;
}

/* What D has said so far; false at the end of the connection. */
static inline bool raw_read(int fd, uint8_t *bytes, size_t *n, size_t max) {
    ssize_t got = recv(fd, bytes + *n, max - *n, MSG_DONTWAIT);
    if (got > 0)
        *n += (size_t)got;
    return got != 0 && !(got < 0 && errno != EAGAIN && errno != EWOULDBLOCK);
}

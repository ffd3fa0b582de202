/* The KV link between two workers of one thread: for tests, with delays that a network has. */
#include "common/kv/kv_link_local.h"

#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "common/base/assert.h"
#include "common/base/clock.h"

enum { FRAMES_OUT = 8 };

enum parcel_type {
    DIAL,     /* to P itself: the first exchange takes place */
    MESSAGE,  /* to either side */
    ANNOUNCE, /* to D: a frame's header */
    LAND,     /* to D: its bytes */
    FAREWELL, /* to either side: the other one has closed */
};

/* Something on its way to a set. */
struct parcel {
    struct parcel *next;
    uint64_t due_us;
    enum parcel_type type;
    uint32_t link; /* the receiver's */
    bool is_cut;   /* LAND */
    struct bt_kv_msg msg;
    struct bt_kv_outgoing frame;
    struct bt_kv_landing landing; /* LAND */
};

struct end {
    bool is_used, is_up, is_closing;
    struct bt_kv_links *peer;
    uint32_t peer_link;
    struct bt_id peer_id;
    char address[BT_ADDRESS_BYTES];
    uint32_t n_out;      /* frames pulled and not done */
    uint64_t ordered_us; /* control must not be due before: what was sent before it is due then */
    uint64_t landed_us;  /* the last frame's bytes are due */
};

struct bt_kv_links {
    struct bt_kv_links_config config;
    uint32_t number; /* D: of its address */
    char address[BT_ADDRESS_BYTES];
    struct bt_kv_links *next; /* in `listening` */
    struct bt_kv_local_timing timing;
    struct parcel *inbox; /* by due time, in order of sending where equal */
    struct event *deliver, *flush;
    struct end ends[BT_MAX_LINKS];
    bool in_turn;
};

/* The D sets that can be dialled from this thread. */
static _Thread_local struct bt_kv_links *listening;

static void turn(struct bt_kv_links *set) {
    if (set->in_turn)
        return;
    set->in_turn = true;
    set->config.user.turn(set->config.user.arg);
    set->in_turn = false;
}

/* ---- parcels ---- */

/* By a timer also where it is due now: a turn of the loop in between lets others have theirs. */
static void arm(struct bt_kv_links *set) {
    uint64_t now = bt_clock_us();
    if (!set->inbox)
        return;
    uint64_t wait = set->inbox->due_us > now ? set->inbox->due_us - now : 0;
    struct timeval t = {.tv_sec = (time_t)(wait / 1000000), .tv_usec = (long)(wait % 1000000)};
    event_add(set->deliver, &t);
}

static void post(struct bt_kv_links *set, const struct parcel *what) {
    struct parcel **at = &set->inbox, *parcel = malloc(sizeof *parcel);
    BT_ASSERT(parcel); /* a link for tests */
    *parcel = *what;
    while (*at && (*at)->due_us <= parcel->due_us)
        at = &(*at)->next;
    parcel->next = *at;
    *at = parcel;
    arm(set);
}

static void flush_soon(struct bt_kv_links *set) {
    const struct timeval at_once = {0};
    event_add(set->flush, &at_once);
}

static void frame_done(struct bt_kv_links *set, uint32_t link, uint32_t id) {
    set->ends[link].n_out--;
    set->config.user.frame_done(set->config.user.arg, link, id);
    turn(set);
    flush_soon(set);
}

/* The bytes move, and both sides hear of it. */
static void land(struct bt_kv_links *d, struct parcel *parcel, bool is_lost) {
    const struct bt_kv_link_user *user = &d->config.user;
    struct end *end = &d->ends[parcel->link];
    struct bt_kv_links *p = end->peer;
    const struct bt_kv_frame *frame = &parcel->frame.frame;
    uint32_t page_bytes = d->config.page_bytes, n_sums = bt_kv_frame_sums(frame, page_bytes);
    uint32_t each = frame->length / frame->n_pages, peer_link = end->peer_link;
    uint64_t computed[BT_KV_FRAME_PAGES] = {0};
    for (uint32_t i = 0; i < frame->n_pages && !is_lost; i++) {
        uint8_t *to = user->page(user->arg, frame->layer, parcel->landing.pages[i]);
        const uint8_t *from =
            p->config.user.page(p->config.user.arg, frame->layer, parcel->frame.pages[i]);
        memcpy(to + frame->offset, from + frame->offset, each);
        if (n_sums && !parcel->is_cut)
            computed[i] = XXH3_64bits(to, page_bytes);
    }
    bool whole = !is_lost && !parcel->is_cut;
    user->frame_end(user->arg, parcel->link, &parcel->landing, whole,
                    whole ? parcel->frame.sums : NULL, whole ? computed : NULL);
    turn(d);
    frame_done(p, peer_link, parcel->frame.id);
}

static void announce(struct bt_kv_links *d, const struct parcel *parcel) {
    const struct bt_kv_link_user *user = &d->config.user;
    struct end *end = &d->ends[parcel->link];
    struct parcel next = *parcel;
    struct bt_error why;
    if (user->frame(user->arg, parcel->link, &parcel->frame.frame, &next.landing, &why) != BT_OK) {
        frame_done(end->peer, end->peer_link, parcel->frame.id);
        return;
    }
    next.type = LAND;
    next.due_us += end->peer->timing.bulk_us;
    if (next.due_us < end->landed_us)
        next.due_us = end->landed_us;
    end->landed_us = next.due_us;
    post(d, &next);
}

/* ---- ends ---- */

/* Takes what is on its way to this end; frames end on both sides. */
static void purge(struct bt_kv_links *set, uint32_t link) {
    struct parcel **at = &set->inbox;
    while (*at) {
        struct parcel *parcel = *at;
        if (parcel->link != link) {
            at = &parcel->next;
            continue;
        }
        *at = parcel->next;
        struct end *end = &set->ends[link];
        /* Frames come to an end that has, or has had, a peer. */
        BT_ASSERT(end->peer || (parcel->type != LAND && parcel->type != ANNOUNCE));
        if (parcel->type == LAND)
            land(set, parcel, true);
        else if (parcel->type == ANNOUNCE)
            frame_done(end->peer, end->peer_link, parcel->frame.id);
        free(parcel);
        at = &set->inbox; /* the user was called */
    }
}

static void tell_down(struct bt_kv_links *set, uint32_t link, const char *why) {
    set->ends[link] = (struct end){0};
    set->config.user.down(set->config.user.arg, link, why);
    turn(set);
}

static void end_link(struct bt_kv_links *set, uint32_t link, const char *why) {
    struct end *end = &set->ends[link];
    struct bt_kv_links *peer = end->peer;
    uint32_t peer_link = end->peer_link;
    end->is_up = false; /* nothing is sent from inside the calls below */
    if (peer)
        peer->ends[peer_link].is_up = false;
    purge(set, link);
    if (peer) {
        purge(peer, peer_link);
        tell_down(peer, peer_link, why);
    }
    tell_down(set, link, why);
}

void bt_kv_link_local_break(struct bt_kv_links *set, uint32_t link, const char *why) {
    if (link < BT_MAX_LINKS && set->ends[link].is_used)
        end_link(set, link, why);
}

static bt_status exchange(struct bt_kv_links *p, uint32_t link, struct bt_error *err) {
    struct end *end = &p->ends[link];
    struct bt_kv_links *d = listening;
    while (d && strcmp(d->address, end->address) != 0)
        d = d->next;
    if (!d)
        return bt_fail(err, BT_E_PEER_GONE, "nothing listens on %s", end->address);
    if (!bt_id_equal(d->config.incarnation, end->peer_id))
        return bt_fail(err, BT_E_PEER_GONE, "%s is another incarnation than was dialled",
                       end->address);
    BT_TRY(bt_fingerprint_compare(&d->config.fingerprint, &p->config.fingerprint, err));
    uint32_t i = 0;
    while (i < BT_MAX_LINKS && d->ends[i].is_used)
        i++;
    if (i == BT_MAX_LINKS)
        return bt_fail(err, BT_E_FULL, "%s has %d KV links, which is the most", d->config.name,
                       BT_MAX_LINKS);
    d->ends[i] = (struct end){.is_used = true,
                              .is_up = true,
                              .peer = p,
                              .peer_link = link,
                              .peer_id = p->config.incarnation};
    end->is_up = true;
    end->peer = d;
    end->peer_link = i;
    d->config.user.up(d->config.user.arg, i, p->config.incarnation);
    turn(d);
    p->config.user.up(p->config.user.arg, link, d->config.incarnation);
    turn(p);
    return BT_OK;
}

/* ---- events ---- */

static void take(struct bt_kv_links *set, struct parcel *parcel) {
    const struct bt_kv_link_user *user = &set->config.user;
    struct bt_error err;
    switch (parcel->type) {
    case DIAL:
        if (exchange(set, parcel->link, &err) != BT_OK)
            tell_down(set, parcel->link, err.text);
        return;
    case MESSAGE:
        user->message(user->arg, parcel->link, &parcel->msg);
        turn(set);
        return;
    case ANNOUNCE:
        announce(set, parcel);
        return;
    case LAND:
        land(set, parcel, false);
        return;
    case FAREWELL:
        end_link(set, parcel->link, "closed");
        return;
    }
}

static void on_deliver(evutil_socket_t fd, short what, void *arg) {
    struct bt_kv_links *set = arg;
    uint64_t now = bt_clock_us();
    (void)fd, (void)what;
    while (set->inbox && set->inbox->due_us <= now) {
        struct parcel *parcel = set->inbox;
        set->inbox = parcel->next;
        take(set, parcel);
        free(parcel);
    }
    arm(set);
}

static void pull(struct bt_kv_links *set, uint32_t link) {
    const struct bt_kv_link_user *user = &set->config.user;
    struct end *end = &set->ends[link];
    struct parcel parcel = {.type = ANNOUNCE, .link = end->peer_link};
    while (end->is_up && !end->is_closing && end->n_out < FRAMES_OUT &&
           user->next_frame(user->arg, link, &parcel.frame)) {
        end->n_out++;
        parcel.due_us = bt_clock_us() + set->timing.announce_us;
        if (parcel.due_us > end->ordered_us)
            end->ordered_us = parcel.due_us;
        post(end->peer, &parcel);
    }
}

static void on_flush(evutil_socket_t fd, short what, void *arg) {
    struct bt_kv_links *set = arg;
    (void)fd, (void)what;
    for (uint32_t link = 0; set->config.prefill && link < BT_MAX_LINKS; link++)
        pull(set, link);
}

void bt_kv_link_local_set_timing(struct bt_kv_links *set, const struct bt_kv_local_timing *timing) {
    set->timing = *timing;
}

/* ---- the table ---- */

static void local_destroy(struct bt_kv_links *set) {
    if (!set)
        return;
    for (uint32_t link = 0; link < BT_MAX_LINKS; link++)
        if (set->ends[link].is_used)
            end_link(set, link, "the worker closes its links");
    for (struct bt_kv_links **at = &listening; *at; at = &(*at)->next) {
        if (*at == set) {
            *at = set->next;
            break;
        }
    }
    if (set->deliver)
        event_free(set->deliver);
    if (set->flush)
        event_free(set->flush);
    free(set);
}

static bt_status local_create(const struct bt_kv_links_config *config, struct bt_kv_links **out,
                              struct bt_error *err) {
    struct bt_kv_links *set = calloc(1, sizeof *set);
    if (!set)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for KV links");
    set->config = *config;
    set->config.listen = NULL;
    set->deliver = event_new(config->base, -1, 0, on_deliver, set);
    set->flush = event_new(config->base, -1, 0, on_flush, set);
    if (!set->deliver || !set->flush) {
        local_destroy(set);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for KV links");
    }
    if (!config->prefill) {
        set->number = listening ? listening->number + 1 : 1;
        snprintf(set->address, sizeof set->address, "local:%u", set->number);
        set->next = listening;
        listening = set;
    }
    *out = set;
    return BT_OK;
}

static const char *local_address(const struct bt_kv_links *set) {
    return set->address;
}

static bt_status local_dial(struct bt_kv_links *set, uint32_t link, const char *address,
                            struct bt_id peer, struct bt_error *err) {
    BT_ASSERT(set->config.prefill && link < BT_MAX_LINKS && !set->ends[link].is_used);
    if (strlen(address) >= BT_ADDRESS_BYTES)
        return bt_fail(err, BT_E_INVALID, "link address has %zu bytes, at most %d", strlen(address),
                       BT_ADDRESS_BYTES - 1);
    struct end *end = &set->ends[link];
    *end = (struct end){.is_used = true, .peer_id = peer};
    snprintf(end->address, sizeof end->address, "%s", address);
    post(set, &(struct parcel){
                  .type = DIAL, .link = link, .due_us = bt_clock_us() + set->timing.control_us});
    return BT_OK;
}

static struct end *end_up(struct bt_kv_links *set, uint32_t link) {
    struct end *end = link < BT_MAX_LINKS ? &set->ends[link] : NULL;
    return end && end->is_up && !end->is_closing ? end : NULL;
}

/* Control is due after its delay, but not before what was sent before it. */
static void post_control(struct bt_kv_links *set, struct end *end, struct parcel *parcel) {
    parcel->due_us = bt_clock_us() + set->timing.control_us;
    if (parcel->due_us < end->ordered_us)
        parcel->due_us = end->ordered_us;
    end->ordered_us = parcel->due_us;
    parcel->link = end->peer_link;
    post(end->peer, parcel);
}

static void local_close(struct bt_kv_links *set, uint32_t link) {
    struct end *end = end_up(set, link);
    if (!end) {
        /* Before it is up: the dial comes to nothing. */
        if (link < BT_MAX_LINKS && set->ends[link].is_used && !set->ends[link].is_up)
            set->ends[link].address[0] = '\0';
        return;
    }
    struct parcel farewell = {.type = FAREWELL};
    uint64_t landed_us = end->peer->ends[end->peer_link].landed_us;
    if (landed_us > end->ordered_us)
        end->ordered_us = landed_us;
    post_control(set, end, &farewell);
    end->is_closing = true;
}

static void local_send(struct bt_kv_links *set, uint32_t link, const struct bt_kv_msg *msg) {
    struct end *end = end_up(set, link);
    struct parcel parcel = {.type = MESSAGE, .msg = *msg};
    if (end)
        post_control(set, end, &parcel);
}

static void local_pump(struct bt_kv_links *set, uint32_t link) {
    if (end_up(set, link))
        flush_soon(set);
}

static void local_cut(struct bt_kv_links *set, uint32_t link, uint32_t lease) {
    for (struct parcel *parcel = set->inbox; parcel; parcel = parcel->next)
        if (parcel->type == LAND && parcel->link == link && parcel->landing.lease == lease)
            parcel->is_cut = true;
}

static uint64_t local_breaches(const struct bt_kv_links *set) {
    (void)set; /* both ends are ours: structs, not bytes */
    return 0;
}

const struct bt_kv_link_ops bt_kv_link_local = {
    .name = "local",
    .create = local_create,
    .destroy = local_destroy,
    .address = local_address,
    .dial = local_dial,
    .close = local_close,
    .send = local_send,
    .pump = local_pump,
    .cut = local_cut,
    .breaches = local_breaches,
};

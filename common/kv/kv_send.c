/* Leads each send from hello over grant and commit to its release. */
#include "common/kv/kv_send.h"

#include <stdlib.h>

#include "common/base/assert.h"
#include "common/kv/kv_send_inner.h"

enum { SENDS_MAX = 1 << 16 };

/* What each event does in each state of a send. H: handled. i: ignored. -: impossible, asserted.
 *
 *   offer, bind, ready, finish   are the owner's, who knows the state; ready and finish are ignored
 *              in CLOSING: the step that they come from was posted before
 *   cancel     in every state, ignored in CLOSING, which has been given up
 *   grant      ends the wait of HELLO (or the send, if its numbers cannot be); ignored later: a
 *              second grant of one ticket is D's mistake and changes nothing
 *   refused    ends HELLO; ignored after the grant, which only `aborted` takes back
 *   committed  ends COMMITTING; ignored before commit: nothing was promised yet
 *   aborted    ends GRANTED and COMMITTING; HELLO ignores it: only what was granted can be aborted,
 *              and the grant comes first
 *   link down  ends all but CLOSING, which has ended
 *   next frame only GRANTED has any
 *   frame done GRANTED may commit then, CLOSING may be released; COMMITTING has none out, as commit
 *              follows the last
 * Messages for a ticket that is not here (NONE) are late answers to what was given up. */
static const char table[BT_KV_SEND_STATE_COUNT][BT_KV_SEND_EVENT_COUNT + 1] = {
    [BT_KV_SEND_NONE] = "H----iiii---",    [BT_KV_SEND_HELLO] = "----HHHiiH--",
    [BT_KV_SEND_GIVEN] = "-HHHHiiiHHHH",   [BT_KV_SEND_COMMITTING] = "----HiiHHH--",
    [BT_KV_SEND_CLOSING] = "--iiiiiiii-H",
};

#define NAMES(state)                                                                           \
    state " + offer", state " + bind", state " + ready", state " + finish", state " + cancel", \
        state " + grant", state " + refused", state " + committed", state " + aborted",        \
        state " + link down", state " + next frame", state " + frame done"
static const char *const pair_names[] = {NAMES("none"), NAMES("hello"), NAMES("granted"),
                                         NAMES("committing"), NAMES("closing")};
_Static_assert(sizeof pair_names / sizeof *pair_names ==
                   BT_KV_SEND_STATE_COUNT * BT_KV_SEND_EVENT_COUNT,
               "a name for each pair");

bool bt_kv_send_enter(struct bt_kv_send *send, enum bt_kv_send_state state,
                      enum bt_kv_send_event event) {
    char what = table[state][event];
    BT_ASSERT(what != '-');
    send->coverage[state * BT_KV_SEND_EVENT_COUNT + event]++;
    return what == 'H';
}

const uint32_t *bt_kv_send_coverage(const struct bt_kv_send *send, uint32_t *n_pairs) {
    *n_pairs = BT_KV_SEND_STATE_COUNT * BT_KV_SEND_EVENT_COUNT;
    return send->coverage;
}

const char *bt_kv_send_pair_name(uint32_t pair, bool *handled) {
    BT_ASSERT(pair < BT_KV_SEND_STATE_COUNT * BT_KV_SEND_EVENT_COUNT);
    *handled = table[pair / BT_KV_SEND_EVENT_COUNT][pair % BT_KV_SEND_EVENT_COUNT] == 'H';
    return pair_names[pair];
}

/* ---- life ---- */

static bt_status check_config(const struct bt_kv_send_config *config, struct bt_error *err) {
    if (config->max_sends < 1 || config->max_sends > SENDS_MAX)
        return bt_fail(err, BT_E_INVALID, "room for %u sends, must be 1 to %d", config->max_sends,
                       SENDS_MAX);
    if (config->n_layers < 1 || config->n_layers > BT_KV_LAYERS_MAX)
        return bt_fail(err, BT_E_INVALID, "%u layers to send, must be 1 to %d", config->n_layers,
                       BT_KV_LAYERS_MAX);
    if (config->page_bytes < 1)
        return bt_fail(err, BT_E_INVALID, "pages of 0 bytes, must be at least 1");
    return BT_OK;
}

bt_status bt_kv_send_create(const struct bt_kv_send_config *config, struct bt_kv_send **out,
                            struct bt_error *err) {
    BT_TRY(check_config(config, err));
    struct bt_kv_send *send = calloc(1, sizeof *send);
    if (!send)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for the sending half");
    send->config = *config;
    /* A lost link makes two actions for each send; the rest is for owners that cause a few events
     * before they ask. */
    send->max_actions = 4 * config->max_sends + 2 * BT_MAX_LINKS;
    send->sends = calloc(config->max_sends, sizeof *send->sends);
    send->cursors = calloc((size_t)config->max_sends * config->n_layers, sizeof *send->cursors);
    send->actions = calloc(send->max_actions, sizeof *send->actions);
    if (!send->sends || !send->cursors || !send->actions) {
        bt_kv_send_destroy(send);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u sends of %u layers",
                       config->max_sends, config->n_layers);
    }
    *out = send;
    return BT_OK;
}

void bt_kv_send_destroy(struct bt_kv_send *send) {
    if (!send)
        return;
    free(send->sends);
    free(send->cursors);
    free(send->actions);
    free(send);
}

/* ---- actions ---- */

void bt_kv_send_act(struct bt_kv_send *send, const struct bt_kv_send_action *action) {
    BT_ASSERT(send->n_actions < send->max_actions);
    send->actions[(send->next_action + send->n_actions++) % send->max_actions] = *action;
}

bool bt_kv_send_next(struct bt_kv_send *send, struct bt_kv_send_action *out) {
    if (!send->n_actions)
        return false;
    *out = send->actions[send->next_action];
    send->next_action = (send->next_action + 1) % send->max_actions;
    send->n_actions--;
    return true;
}

static void tell_peer(struct bt_kv_send *send, const struct bt_kv_one_send *one,
                      const struct bt_kv_msg *msg) {
    struct bt_kv_send_action action = {
        .type = BT_KV_SEND_MSG, .link = one->offer.link, .user = one->offer.user, .msg = *msg};
    action.msg.ticket = one->offer.ticket;
    bt_kv_send_act(send, &action);
}

static void withdraw(struct bt_kv_send *send, const struct bt_kv_one_send *one,
                     enum bt_kv_reason reason) {
    tell_peer(send, one, &(struct bt_kv_msg){.type = BT_KV_WITHDRAWN, .reason = reason});
}

static void tell_user(struct bt_kv_send *send, const struct bt_kv_one_send *one,
                      enum bt_kv_send_action_type type, enum bt_kv_reason reason) {
    bt_kv_send_act(send, &(struct bt_kv_send_action){
                             .type = type,
                             .link = one->offer.link,
                             .user = one->offer.user,
                             .pages_held = one->pages_held,
                             .reason = reason,
                         });
}

void bt_kv_send_close(struct bt_kv_send *send, struct bt_kv_one_send *one) {
    one->state = BT_KV_SEND_CLOSING;
    if (one->frames_out)
        return;
    one->state = BT_KV_SEND_NONE;
    one->hold = NULL;
    tell_user(send, one, BT_KV_SEND_RELEASED, (enum bt_kv_reason)0);
}

static void end(struct bt_kv_send *send, struct bt_kv_one_send *one, enum bt_kv_reason reason) {
    tell_user(send, one, BT_KV_SEND_ENDED, reason);
    bt_kv_send_close(send, one);
}

/* ---- from the prefill core ---- */

static struct bt_kv_one_send *find(struct bt_kv_send *send, struct bt_id ticket, uint32_t link) {
    for (uint32_t i = 0; i < send->config.max_sends; i++) {
        struct bt_kv_one_send *one = &send->sends[i];
        if (one->state != BT_KV_SEND_NONE && one->offer.link == link &&
            bt_id_equal(one->offer.ticket, ticket))
            return one;
    }
    return NULL;
}

static struct bt_kv_one_send *of_id(struct bt_kv_send *send, uint32_t id) {
    BT_ASSERT(id < send->config.max_sends);
    return &send->sends[id];
}

struct bt_kv_cursor *bt_kv_send_cursors(const struct bt_kv_send *send,
                                        const struct bt_kv_one_send *one) {
    return send->cursors + (size_t)(one - send->sends) * send->config.n_layers;
}

bt_status bt_kv_send_offer(struct bt_kv_send *send, uint64_t now_us,
                           const struct bt_kv_offer *offer, uint32_t *id) {
    (void)now_us;
    BT_ASSERT(offer->link < BT_MAX_LINKS && offer->n_pages <= BT_KV_PAGES_MAX);
    if (!send->links[offer->link].up)
        return BT_E_PEER_GONE;
    if (bt_id_is_zero(offer->ticket) || find(send, offer->ticket, offer->link))
        return BT_E_INVALID;
    uint32_t i = 0;
    while (i < send->config.max_sends && send->sends[i].state != BT_KV_SEND_NONE)
        i++;
    if (i == send->config.max_sends)
        return BT_E_FULL;
    struct bt_kv_one_send *one = &send->sends[i];
    bt_kv_send_enter(send, one->state, BT_KV_SEND_ON_OFFER);
    *one = (struct bt_kv_one_send){.state = BT_KV_SEND_HELLO, .offer = *offer};
    send->counters.offers++;
    tell_peer(send, one,
              &(struct bt_kv_msg){
                  .type = BT_KV_HELLO, .chain = offer->chain, .n_tokens = offer->n_tokens});
    *id = i;
    return BT_OK;
}

void bt_kv_send_bind(struct bt_kv_send *send, uint32_t id, const struct bt_kv_hold *hold) {
    struct bt_kv_one_send *one = of_id(send, id);
    bt_kv_send_enter(send, one->state, BT_KV_SEND_ON_BIND);
    BT_ASSERT(!one->hold && hold->n_pages == one->offer.n_pages);
    one->hold = hold;
}

void bt_kv_send_took(struct bt_kv_send *send, uint32_t id, uint64_t wait_us, uint64_t prefill_us) {
    struct bt_kv_one_send *one = of_id(send, id);
    one->wait_us = wait_us;
    one->prefill_us = prefill_us;
}

void bt_kv_send_finish(struct bt_kv_send *send, uint64_t now_us, uint32_t id, int32_t token,
                       enum bt_finish finish, uint64_t logits_hash,
                       const struct bt_logprobs *logprobs) {
    (void)now_us;
    struct bt_kv_one_send *one = of_id(send, id);
    if (!bt_kv_send_enter(send, one->state, BT_KV_SEND_ON_FINISH))
        return;
    BT_ASSERT(one->hold && !one->finished);
    const struct bt_kv_cursor *cursors = bt_kv_send_cursors(send, one);
    for (uint32_t layer = 0; layer < send->config.n_layers; layer++)
        BT_ASSERT(cursors[layer].ready == one->offer.n_pages ||
                  one->pages_held == one->offer.n_pages);
    one->finished = true;
    one->token = token;
    one->finish = finish;
    one->logits_hash = logits_hash;
    one->has_logprobs = logprobs != NULL;
    if (logprobs)
        one->logprobs = *logprobs;
    bt_kv_send_try_commit(send, one);
}

void bt_kv_send_try_commit(struct bt_kv_send *send, struct bt_kv_one_send *one) {
    uint32_t n_layers = send->config.n_layers;
    if (!one->finished || one->first_layer < n_layers || one->frames_out)
        return;
    one->state = BT_KV_SEND_COMMITTING;
    tell_peer(send, one,
              &(struct bt_kv_msg){
                  .type = BT_KV_COMMIT,
                  .chain = one->offer.chain,
                  .lease = one->lease,
                  .generation = one->generation,
                  .n_sums = (one->offer.n_pages - one->pages_held) * n_layers,
                  .manifest = bt_kv_hold_manifest(send->config.pool, one->hold, one->pages_held),
                  .fingerprint_hash = send->config.fingerprint_hash,
                  .token = one->token,
                  .finish = one->finish,
                  .logits_hash = one->logits_hash,
                  .has_logprobs = one->has_logprobs,
                  .logprobs = one->logprobs,
                  .wait_us = one->wait_us,
                  .prefill_us = one->prefill_us,
              });
}

void bt_kv_send_cancel(struct bt_kv_send *send, uint64_t now_us, uint32_t id,
                       enum bt_kv_reason reason) {
    (void)now_us;
    struct bt_kv_one_send *one = of_id(send, id);
    if (!bt_kv_send_enter(send, one->state, BT_KV_SEND_ON_CANCEL))
        return;
    send->counters.cancelled++;
    withdraw(send, one, reason);
    bt_kv_send_close(send, one);
}

/* ---- from the links ---- */

void bt_kv_send_link_up(struct bt_kv_send *send, uint64_t now_us, uint32_t link) {
    (void)now_us;
    BT_ASSERT(link < BT_MAX_LINKS && !send->links[link].up);
    send->links[link].up = true;
}

void bt_kv_send_link_down(struct bt_kv_send *send, uint64_t now_us, uint32_t link) {
    (void)now_us;
    BT_ASSERT(link < BT_MAX_LINKS);
    if (!send->links[link].up) /* it ended before it was up: nothing was offered on it */
        return;
    send->links[link].up = false;
    for (uint32_t i = 0; i < send->config.max_sends; i++) {
        struct bt_kv_one_send *one = &send->sends[i];
        if (one->state == BT_KV_SEND_NONE || one->offer.link != link ||
            !bt_kv_send_enter(send, one->state, BT_KV_SEND_ON_LINK_DOWN))
            continue;
        send->counters.links_lost++;
        end(send, one, BT_KV_REASON_LINK);
    }
}

static void on_grant(struct bt_kv_send *send, struct bt_kv_one_send *one,
                     const struct bt_kv_msg *msg) {
    if (msg->pages != one->offer.n_pages || msg->pages_held > msg->pages || !msg->generation) {
        /* It is a grant of another prompt: D has bound pages for it and must let them go. */
        send->counters.aborted++;
        withdraw(send, one, BT_KV_REASON_PROMPT);
        end(send, one, BT_KV_REASON_PROMPT);
        return;
    }
    send->counters.granted++;
    one->state = BT_KV_SEND_GIVEN;
    one->lease = msg->lease;
    one->generation = msg->generation;
    one->pages_held = msg->pages_held;
    one->first_layer = one->pages_held < one->offer.n_pages ? 0 : send->config.n_layers;
    struct bt_kv_cursor *cursors = bt_kv_send_cursors(send, one);
    for (uint32_t layer = 0; layer < send->config.n_layers; layer++)
        cursors[layer] = (struct bt_kv_cursor){.next = one->pages_held};
    tell_user(send, one, BT_KV_SEND_GRANTED, (enum bt_kv_reason)0);
}

/* -1: not a message that D sends. */
static int event_of(enum bt_kv_msg_type type) {
    switch (type) {
    case BT_KV_GRANT:
        return BT_KV_SEND_ON_GRANT;
    case BT_KV_REFUSED:
        return BT_KV_SEND_ON_REFUSED;
    case BT_KV_COMMITTED:
        return BT_KV_SEND_ON_COMMITTED;
    case BT_KV_ABORTED:
        return BT_KV_SEND_ON_ABORTED;
    default:
        return -1;
    }
}

void bt_kv_send_message(struct bt_kv_send *send, uint64_t now_us, uint32_t link,
                        const struct bt_kv_msg *msg) {
    (void)now_us;
    BT_ASSERT(link < BT_MAX_LINKS);
    int event = event_of(msg->type);
    if (event < 0)
        return;
    struct bt_kv_one_send *one = find(send, msg->ticket, link);
    enum bt_kv_send_state state = one ? one->state : BT_KV_SEND_NONE;
    if (!bt_kv_send_enter(send, state, (enum bt_kv_send_event)event))
        return;
    BT_ASSERT(one); /* without a send every message is ignored */
    switch (msg->type) {
    case BT_KV_GRANT:
        on_grant(send, one, msg);
        return;
    case BT_KV_REFUSED:
        send->counters.refused++;
        end(send, one, msg->reason);
        return;
    case BT_KV_COMMITTED:
        send->counters.committed++;
        tell_user(send, one, BT_KV_SEND_COMMITTED, (enum bt_kv_reason)0);
        bt_kv_send_close(send, one);
        return;
    default:
        send->counters.aborted++;
        end(send, one, msg->reason);
        return;
    }
}

/* ---- what is asked ---- */

const struct bt_kv_send_counters *bt_kv_send_counters(const struct bt_kv_send *send) {
    return &send->counters;
}

uint64_t bt_kv_send_bytes(const struct bt_kv_send *send, uint32_t id) {
    BT_ASSERT(id < send->config.max_sends);
    return send->sends[id].bytes;
}

static bool one_is_valid(const struct bt_kv_send *send, const struct bt_kv_one_send *one) {
    if (one->state == BT_KV_SEND_NONE)
        return !one->hold && !one->frames_out;
    if (bt_id_is_zero(one->offer.ticket) || one->offer.link >= BT_MAX_LINKS)
        return false;
    if (one->state != BT_KV_SEND_CLOSING && !send->links[one->offer.link].up)
        return false;
    if (one->state == BT_KV_SEND_HELLO)
        return !one->hold && !one->frames_out && !one->generation;
    if (one->state == BT_KV_SEND_CLOSING)
        return one->frames_out && one->hold;
    if (!one->generation || one->pages_held > one->offer.n_pages)
        return false;
    if (one->state == BT_KV_SEND_COMMITTING)
        return one->hold && one->finished && !one->frames_out &&
               one->first_layer == send->config.n_layers;
    const struct bt_kv_cursor *cursors = bt_kv_send_cursors(send, one);
    for (uint32_t layer = 0; layer < send->config.n_layers; layer++)
        if (cursors[layer].ready > one->offer.n_pages || cursors[layer].next > one->offer.n_pages ||
            cursors[layer].next < one->pages_held ||
            cursors[layer].offset >= send->config.page_bytes)
            return false;
    return one->state == BT_KV_SEND_GIVEN;
}

bool bt_kv_send_is_valid(const struct bt_kv_send *send) {
    uint32_t frames_out[BT_MAX_LINKS] = {0};
    for (uint32_t i = 0; i < send->config.max_sends; i++) {
        if (!one_is_valid(send, &send->sends[i]))
            return false;
        if (send->sends[i].state != BT_KV_SEND_NONE)
            frames_out[send->sends[i].offer.link] += send->sends[i].frames_out;
    }
    for (uint32_t link = 0; link < BT_MAX_LINKS; link++)
        if (frames_out[link] != send->links[link].frames_out ||
            frames_out[link] > BT_KV_LINK_FRAMES)
            return false;
    return send->n_actions <= send->max_actions;
}

/* Drives the router's core by hand: a small core, scripted workers, and all that it said kept in
 * lists. After each event the core must add up. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "router/core.h"

enum { SENT_MAX = 4096, EMITS_MAX = 4096 };

struct sent {
    uint32_t slot;
    struct bt_msg msg;
    int32_t first_token; /* of RESERVE, PREFILL */
    struct bt_logit_bias bias[BT_LOGIT_BIASES];
    uint32_t n_rows; /* of RESUME, SEEN, PEERS */
    struct bt_resume resume[64];
    struct bt_attempt seen[64];
    struct bt_peer peers[8];
};

struct emit {
    struct bt_request *req;
    uint32_t index;
    int32_t token;
    enum bt_finish finish;
    bool has_logprobs;
    struct bt_logprobs logprobs;
};

struct end {
    struct bt_request *req;
    uint64_t id;
    bt_status status;
    enum bt_finish finish;
    char reason[BT_ROUTER_REASON_BYTES];
};

struct harness {
    struct bt_router_core *core;
    uint64_t now_us;
    struct sent *sent; /* since the last clear */
    uint32_t n_sent;
    struct emit emits[EMITS_MAX];
    uint32_t n_emits;
    struct bt_logprobs scores[EMITS_MAX]; /* in the order in which they came */
    uint32_t score_positions[EMITS_MAX];
    uint32_t n_scores;
    struct end ends[256];
    uint32_t n_ends;
    uint32_t n_closed;
    char closed[BT_ROUTER_REASON_BYTES]; /* the last reason */
};

static inline struct bt_fingerprint sample_fingerprint(void) {
    return (struct bt_fingerprint){.model_hash = 7,
                                   .n_layers = 2,
                                   .n_kv_heads = 1,
                                   .head_dim = 64,
                                   .page_tokens = BT_PAGE_TOKENS,
                                   .kv_type = BT_KV_BF16,
                                   .wire_type = BT_KV_BF16,
                                   .inner_order = BT_KV_INNER_ORDER_CPU,
                                   .profile = BT_PROFILE_FAST,
                                   .contract = BT_NUMERICS_CONTRACT};
}

static inline struct bt_router_config small_config(void) {
    struct bt_router_config config = {.incarnation = {1, 2}, .seed = {3, 4}};
    bt_router_config_default(&config);
    config.max_requests = 64;
    config.max_queued = 32;
    config.token_budget = 65536;
    config.prefix_slots = 256;
    config.n_records = 16;
    config.disaggregate = BT_DISAGGREGATE_ALWAYS;
    return config;
}

static inline void harness_init(struct harness *h, const struct bt_router_config *config) {
    memset(h, 0, sizeof *h);
    struct bt_error err = {0};
    h->core = bt_router_core_create(config, &err);
    if (!h->core)
        fail_msg("create: %s", err.text);
    h->sent = calloc(SENT_MAX, sizeof *h->sent);
    h->now_us = 1000000;
}

static inline void harness_fini(struct harness *h) {
    bt_router_core_destroy(h->core);
    free(h->sent);
}

static inline void keep(struct harness *h, const struct bt_router_action *action) {
    assert_true(h->n_sent < SENT_MAX);
    struct sent *s = &h->sent[h->n_sent++];
    memset(s, 0, sizeof *s);
    s->slot = action->slot;
    s->msg = *action->msg;
    if (s->msg.type == BT_MSG_RESERVE || s->msg.type == BT_MSG_PREFILL)
        s->first_token = s->msg.work.tokens[0];
    if (s->msg.type == BT_MSG_RESERVE || s->msg.type == BT_MSG_PREFILL)
        for (uint32_t i = 0; i < s->msg.work.sampling.n_bias; i++)
            s->bias[i] = s->msg.work.sampling.bias[i];
    if (s->msg.type == BT_MSG_RESUME) {
        s->n_rows = s->msg.resume.n_rows;
        for (uint32_t i = 0; i < s->n_rows && i < 64; i++)
            s->resume[i] = s->msg.resume.rows[i];
    }
    if (s->msg.type == BT_MSG_SEEN) {
        s->n_rows = s->msg.seen.n_keys;
        for (uint32_t i = 0; i < s->n_rows && i < 64; i++)
            s->seen[i] = s->msg.seen.keys[i];
    }
    if (s->msg.type == BT_MSG_PEERS) {
        s->n_rows = s->msg.peers.n_peers;
        for (uint32_t i = 0; i < s->n_rows && i < 8; i++)
            s->peers[i] = s->msg.peers.peers[i];
    }
}

/* Takes all actions; called after each event. */
static inline void drain(struct harness *h) {
    struct bt_router_action action;
    while (bt_router_core_next(h->core, &action)) {
        switch (action.type) {
        case BT_ROUTER_SEND:
            keep(h, &action);
            break;
        case BT_ROUTER_CLOSE:
            h->n_closed++;
            snprintf(h->closed, sizeof h->closed, "%s", action.reason);
            break;
        case BT_ROUTER_EMIT:
            assert_true(h->n_emits < EMITS_MAX);
            h->emits[h->n_emits] = (struct emit){.req = action.req,
                                                 .index = action.index,
                                                 .token = action.token,
                                                 .finish = action.finish};
            if (action.logprobs) {
                h->emits[h->n_emits].has_logprobs = true;
                h->emits[h->n_emits].logprobs = *action.logprobs;
            }
            h->n_emits++;
            break;
        case BT_ROUTER_END: {
            struct end *e = &h->ends[h->n_ends++ % 256];
            *e = (struct end){action.req, action.req->id, action.status, action.finish, ""};
            snprintf(e->reason, sizeof e->reason, "%s", action.reason);
            break;
        }
        case BT_ROUTER_SCORES:
            for (uint32_t i = 0; i < action.n_scores; i++) {
                assert_true(h->n_scores < EMITS_MAX);
                h->scores[h->n_scores] = action.logprobs[i];
                h->score_positions[h->n_scores++] = action.first_score + i;
            }
            break;
        case BT_ROUTER_LOG:
            assert_non_null(action.reason);
            break;
        }
    }
    assert_true(bt_router_core_is_valid(h->core));
}

static inline void clear(struct harness *h) {
    h->n_sent = h->n_emits = h->n_scores = h->n_ends = h->n_closed = 0;
}

/* The n-th message of that type to that slot since clear; NULL if there is none. */
static inline struct sent *sent_nth(struct harness *h, uint32_t slot, enum bt_msg_type type,
                                    uint32_t n) {
    for (uint32_t i = 0; i < h->n_sent; i++)
        if (h->sent[i].slot == slot && h->sent[i].msg.type == type && n-- == 0)
            return &h->sent[i];
    return NULL;
}

static inline struct sent *sent_to(struct harness *h, uint32_t slot, enum bt_msg_type type) {
    return sent_nth(h, slot, type, 0);
}

static inline void say(struct harness *h, uint32_t slot, const struct bt_msg *msg) {
    bt_router_core_worker_message(h->core, h->now_us, slot, msg);
    drain(h);
}

static inline struct bt_msg join_of(const char *name, uint64_t incarnation, enum bt_role role) {
    struct bt_msg msg = {.type = BT_MSG_JOIN};
    struct bt_msg_join *join = &msg.join;
    snprintf(join->name, sizeof join->name, "%s", name);
    join->incarnation = (struct bt_id){incarnation, 99};
    join->role = role;
    join->protocol_min = join->protocol_max = 1;
    join->fingerprint = sample_fingerprint();
    join->text_hash = 5;
    if (role == BT_ROLE_DECODE)
        snprintf(join->link_address, sizeof join->link_address, "127.0.0.1:%u", 9000u);
    join->max_context = 4096;
    join->max_seqs = 64;
    join->census = (struct bt_census){.total = 256, .free = 256};
    return msg;
}

static inline void attach(struct harness *h, uint32_t slot, const char *name, uint64_t incarnation,
                          enum bt_role role) {
    bt_router_core_worker_opened(h->core, h->now_us, slot);
    drain(h);
    struct bt_msg msg = join_of(name, incarnation, role);
    say(h, slot, &msg);
}

/* A core with prefill worker P in slot 0 and decode worker D in slot 1; NULL: small_config. */
enum { P = 0, D = 1 };

static inline struct harness *harness_start(const struct bt_router_config *config) {
    const struct bt_router_config small = small_config();
    struct harness *h = calloc(1, sizeof *h);
    harness_init(h, config ? config : &small);
    attach(h, P, "p0", 10, BT_ROLE_PREFILL);
    attach(h, D, "d0", 20, BT_ROLE_DECODE);
    clear(h);
    return h;
}

static inline void harness_finish(struct harness *h) {
    harness_fini(h);
    free(h);
}

static inline void stream_end(struct harness *h, uint32_t slot) {
    bt_router_core_worker_closed(h->core, h->now_us, slot);
    drain(h);
}

static inline void status_free(struct harness *h, uint32_t slot, uint32_t free) {
    struct bt_msg msg = {.type = BT_MSG_STATUS};
    msg.status.census = (struct bt_census){.total = 256, .free = free, .live = 256 - free};
    say(h, slot, &msg);
}

/* Time passes in ticks, and the workers on these slots go on talking. */
static inline void pass(struct harness *h, uint64_t ms, const uint32_t *slots, uint32_t n_slots) {
    for (uint64_t end_us = h->now_us + ms * 1000; h->now_us < end_us;) {
        uint64_t left_us = end_us - h->now_us;
        h->now_us += left_us < 50000 ? left_us : 50000;
        for (uint32_t i = 0; i < n_slots; i++)
            status_free(h, slots[i], 256);
        bt_router_core_tick(h->core, h->now_us);
        drain(h);
    }
}

static inline struct bt_submit submit_of(const int32_t *tokens, uint32_t n_tokens,
                                         uint32_t max_tokens) {
    struct bt_submit submit = {.tokens = tokens,
                               .n_tokens = n_tokens,
                               .sampling = {.top_p = 1, .repetition_penalty = 1},
                               .tenant = ""};
    submit.sampling.max_tokens = max_tokens;
    submit.max_tokens_given = max_tokens > 0;
    return submit;
}

static const int32_t sample_prompt[512] = {101, 102, 103, 104, 105, 106, 107, 108, 109, 110};

static inline struct bt_request *submit_this(struct harness *h, const struct bt_submit *what) {
    struct bt_request *req = NULL;
    struct bt_error err = {0};
    bt_status status = bt_router_core_submit(h->core, h->now_us, what, &req, &err);
    if (status != BT_OK)
        fail_msg("submit: %s", err.text);
    drain(h);
    return req;
}

static inline struct bt_request *submit(struct harness *h, uint32_t n_tokens, uint32_t max_tokens) {
    struct bt_submit what = submit_of(sample_prompt, n_tokens, max_tokens);
    return submit_this(h, &what);
}

/* A further choice of that one. */
static inline struct bt_request *submit_follower(struct harness *h, const struct bt_request *leader,
                                                 uint32_t max_tokens) {
    struct bt_submit what = submit_of(sample_prompt, leader->n_prompt, max_tokens);
    what.leader = leader;
    return submit_this(h, &what);
}

static inline struct bt_attempt key_of(const struct bt_request *req) {
    return (struct bt_attempt){req->id, req->attempt};
}

static inline void reserved(struct harness *h, uint32_t slot, struct bt_attempt key, bool accepted,
                            enum bt_end reason) {
    struct bt_msg msg = {.type = BT_MSG_RESERVED};
    msg.reserved = (struct bt_msg_reserved){
        .key = key, .accepted = accepted, .pages = 3, .pages_held = 1, .reason = reason};
    say(h, slot, &msg);
}

static inline void token(struct harness *h, uint32_t slot, struct bt_attempt key, uint32_t index,
                         int32_t id, enum bt_finish finish) {
    struct bt_token row = {.key = key, .index = index, .token = id, .finish = finish};
    struct bt_msg msg = {.type = BT_MSG_TOKENS};
    msg.tokens = (struct bt_msg_tokens){&row, 1};
    say(h, slot, &msg);
}

static inline void ended(struct harness *h, uint32_t slot, struct bt_attempt key,
                         enum bt_end reason) {
    struct bt_msg msg = {.type = BT_MSG_ENDED};
    msg.ended = (struct bt_msg_ended){.key = key, .reason = reason, .pages = 3, .pages_held = 1};
    msg.ended.stages = (struct bt_stages){
        .queue_us = 100, .prefill_us = 5000, .transfer_us = 300, .decode_us = 2000, .steps = 4};
    msg.ended.kv_bytes = 4096;
    say(h, slot, &msg);
}

static inline void live(struct harness *h, uint32_t slot, struct bt_attempt key) {
    struct bt_msg msg = {.type = BT_MSG_LIVE};
    msg.live.key = key;
    say(h, slot, &msg);
}

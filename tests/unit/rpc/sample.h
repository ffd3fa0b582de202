/* Valid messages of each type with random values, and their comparison: for the tests here. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/rpc/wire.h"

static inline uint64_t draw(uint64_t *seed) { /* splitmix64, Steele et al. 2014 */
    uint64_t z = (*seed += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* From 0 to max; half of the time a small one or an end. */
static inline uint64_t draw_to(uint64_t *seed, uint64_t max) {
    uint64_t kind = draw(seed) % 8, v = draw(seed);
    if (kind == 0)
        return max;
    if (kind == 1)
        return 0;
    if (kind < 4)
        v %= 300;
    return max == UINT64_MAX ? v : v % (max + 1);
}

static inline uint32_t draw_u32(uint64_t *seed) {
    return (uint32_t)draw_to(seed, UINT32_MAX);
}

static inline struct bt_id draw_id(uint64_t *seed) {
    return (struct bt_id){draw_to(seed, UINT64_MAX), draw_to(seed, UINT64_MAX - 1) + 1};
}

static inline struct bt_attempt draw_key(uint64_t *seed) {
    return (struct bt_attempt){draw_to(seed, UINT64_MAX - 1) + 1,
                               (uint32_t)draw_to(seed, UINT32_MAX - 1) + 1};
}

static inline float draw_float(uint64_t *seed, float min, float max) {
    return min + (max - min) * (float)(draw(seed) % 1001) / 1000;
}

static inline void draw_text(uint64_t *seed, char *to, size_t n_min, size_t n_max) {
    size_t n = n_min + draw_to(seed, n_max - n_min), i = 0;
    for (; i + 2 <= n && draw(seed) % 8 == 0; i += 2)
        memcpy(to + i, "\xc3\xa9", 2);
    for (; i < n; i++)
        to[i] = (char)(0x20 + draw(seed) % 95);
    to[n] = 0;
}

static inline void draw_address(uint64_t *seed, char *to) {
    snprintf(to, BT_ADDRESS_BYTES, draw(seed) % 2 ? "host-%u.zone:%u" : "[fe80::%x]:%u",
             (unsigned)(draw(seed) % 9999), (unsigned)(draw(seed) % 65536));
}

static inline struct bt_census draw_census(uint64_t *seed) {
    struct bt_census c;
    uint32_t *parts = &c.free;
    c.total = 0;
    for (int i = 0; i < 8; i++)
        c.total += parts[i] = (uint32_t)draw_to(seed, UINT32_MAX / 8);
    return c;
}

/* What the lists of a message point to. */
struct lists {
    void *a, *b;
};

static inline void *some(size_t n, size_t element_bytes) {
    void *p = calloc(n + 1, element_bytes);
    assert_non_null(p);
    return p;
}

static inline void draw_join(uint64_t *seed, struct bt_msg_join *join) {
    join->role = draw(seed) % 2 ? BT_ROLE_DECODE : BT_ROLE_PREFILL;
    draw_text(seed, join->name, 1, 63);
    join->incarnation = draw_id(seed);
    join->protocol_min = 1 + (uint32_t)draw_to(seed, 9);
    join->protocol_max = join->protocol_min + (uint32_t)draw_to(seed, 9);
    join->fingerprint = (struct bt_fingerprint){.model_hash = draw(seed),
                                                .n_layers = 1 + (uint32_t)draw_to(seed, 1023),
                                                .n_kv_heads = 1 + (uint32_t)draw_to(seed, 1023),
                                                .head_dim = 1 + (uint32_t)draw_to(seed, 1023),
                                                .page_tokens = 16,
                                                .kv_type = 1 + (uint32_t)(draw(seed) % 3),
                                                .wire_type = 1 + (uint32_t)(draw(seed) % 3),
                                                .inner_order = 1,
                                                .profile = 1 + (uint32_t)(draw(seed) % 3),
                                                .contract = 1 + (uint32_t)draw_to(seed, 65534)};
    join->text_hash = draw(seed);
    if (join->role == BT_ROLE_DECODE)
        draw_address(seed, join->link_address);
    join->max_context = 1 + (uint32_t)draw_to(seed, UINT32_MAX - 1);
    join->max_seqs = 1 + (uint32_t)draw_to(seed, UINT32_MAX - 1);
    join->census = draw_census(seed);
}

static inline void draw_sampling(uint64_t *seed, struct bt_sampling *s) {
    s->temperature = draw_float(seed, 0, 2);
    s->top_p = draw_float(seed, 0.001f, 1);
    s->min_p = draw_float(seed, 0, 1);
    s->top_k = (int32_t)draw_to(seed, INT32_MAX);
    s->frequency_penalty = draw_float(seed, -2, 2);
    s->presence_penalty = draw_float(seed, -2, 2);
    s->repetition_penalty = draw_float(seed, 0.01f, 10);
    s->seed = draw(seed);
    s->max_tokens = 1 + (uint32_t)draw_to(seed, BT_WIRE_PROMPT_TOKENS - 1);
    s->min_tokens = (uint32_t)draw_to(seed, s->max_tokens);
    s->ignore_eos = draw(seed) % 2;
    s->want_hash = draw(seed) % 2;
    s->n_stop_tokens = (uint8_t)draw_to(seed, BT_STOP_TOKENS);
    for (int i = 0; i < s->n_stop_tokens; i++)
        s->stop_tokens[i] = (int32_t)draw_to(seed, INT32_MAX);
    s->logprobs = (uint8_t)draw_to(seed, 1 + BT_TOP_LOGPROBS);
    s->prompt_logprobs = (uint8_t)draw_to(seed, 1 + BT_TOP_LOGPROBS);
}

static inline void draw_bias(uint64_t *seed, struct bt_sampling *s, struct lists *lists) {
    s->n_bias = (uint16_t)draw_to(seed, BT_LOGIT_BIASES);
    struct bt_logit_bias *bias = lists->b = some(s->n_bias, sizeof *bias);
    int32_t token = -1;
    for (uint32_t i = 0; i < s->n_bias; i++) {
        token += 1 + (int32_t)draw_to(seed, INT32_MAX / BT_LOGIT_BIASES - 1);
        bias[i] = (struct bt_logit_bias){token, draw_float(seed, -100, 100)};
    }
    s->bias = bias;
}

static inline struct bt_logprobs draw_logprobs(uint64_t *seed) {
    struct bt_logprobs l = {.logprob = draw_float(seed, BT_LOGPROB_MIN, 0),
                            .n_top = (uint8_t)draw_to(seed, BT_TOP_LOGPROBS)};
    for (uint32_t i = 0; i < l.n_top; i++)
        l.top[i] = (struct bt_logprob){(int32_t)draw_to(seed, INT32_MAX),
                                       draw_float(seed, BT_LOGPROB_MIN, 0)};
    return l;
}

static inline void draw_work(uint64_t *seed, struct bt_msg_work *work, bool reserve,
                             struct lists *lists) {
    work->key = draw_key(seed);
    work->ticket = draw_id(seed);
    work->n_tokens = 1 + (uint32_t)draw_to(seed, 99999);
    int32_t *tokens = lists->a = some(work->n_tokens, sizeof *tokens);
    for (uint32_t i = 0; i < work->n_tokens; i++)
        tokens[i] = (int32_t)draw_to(seed, INT32_MAX);
    work->tokens = tokens;
    work->n_prompt = 1 + (uint32_t)draw_to(seed, work->n_tokens - 1);
    draw_sampling(seed, &work->sampling);
    draw_bias(seed, &work->sampling, lists);
    work->remaining_ms = (uint32_t)draw_to(seed, BT_WIRE_DURATION_MS);
    work->elapsed_ms = (uint32_t)draw_to(seed, BT_WIRE_DURATION_MS);
    draw_text(seed, work->tenant, 0, 63);
    work->prefill_here = reserve && draw(seed) % 2;
    if (!work->prefill_here)
        work->peer = draw_id(seed);
}

static inline void draw_blocks(uint64_t *seed, struct bt_msg_blocks *blocks, struct lists *lists) {
    blocks->sequence = draw(seed);
    blocks->census_first = draw(seed) % 2;
    blocks->census_last = draw(seed) % 2;
    blocks->n_added = (uint32_t)draw_to(seed, draw(seed) % 4 ? 3000 : BT_WIRE_BLOCKS);
    blocks->n_evicted = (uint32_t)draw_to(seed, draw(seed) % 4 ? 3000 : BT_WIRE_BLOCKS);
    uint64_t *added = lists->a = some(blocks->n_added, sizeof *added);
    uint64_t *evicted = lists->b = some(blocks->n_evicted, sizeof *evicted);
    for (uint32_t i = 0; i < blocks->n_added; i++)
        added[i] = draw(seed);
    for (uint32_t i = 0; i < blocks->n_evicted; i++)
        evicted[i] = draw(seed);
    blocks->added = added;
    blocks->evicted = evicted;
}

static inline void draw_tokens(uint64_t *seed, struct bt_msg_tokens *tokens, struct lists *lists) {
    bool finishes = draw(seed) % 2, hashes = draw(seed) % 2, logprobs = draw(seed) % 2;
    tokens->n_rows =
        (uint32_t)draw_to(seed, logprobs ? BT_WIRE_LOGPROB_ROWS_SENT : BT_WIRE_TOKEN_ROWS_SENT);
    struct bt_token *rows = lists->a = some(tokens->n_rows, sizeof *rows);
    struct bt_logprobs *shown = lists->b = some(tokens->n_rows, sizeof *shown);
    for (uint32_t i = 0; i < tokens->n_rows; i++) {
        rows[i] = (struct bt_token){.key = draw_key(seed),
                                    .index = draw_u32(seed),
                                    .token = (int32_t)draw_to(seed, INT32_MAX),
                                    .finish = finishes ? (enum bt_finish)(draw(seed) % 4)
                                                       : BT_FINISH_NONE,
                                    .hash = hashes ? draw(seed) : 0};
        shown[i] = draw_logprobs(seed);
        if (logprobs && draw(seed) % 4)
            rows[i].logprobs = &shown[i];
    }
    tokens->rows = rows;
}

static inline void draw_scores(uint64_t *seed, struct bt_msg_scores *scores, struct lists *lists) {
    scores->key = draw_key(seed);
    scores->first = 1 + (uint32_t)draw_to(seed, BT_WIRE_PROMPT_TOKENS - 1);
    scores->n_rows = 1 + (uint32_t)draw_to(seed, BT_SCORE_ROWS - 1);
    struct bt_logprobs *rows = lists->a = some(scores->n_rows, sizeof *rows);
    for (uint32_t i = 0; i < scores->n_rows; i++)
        rows[i] = draw_logprobs(seed);
    scores->rows = rows;
}

static inline void draw_ended(uint64_t *seed, struct bt_msg_ended *ended) {
    ended->key = draw_key(seed);
    ended->reason = (enum bt_end)(1 + draw(seed) % (BT_END_COUNT - 1));
    ended->next_index = draw_u32(seed);
    ended->stages = (struct bt_stages){draw(seed), draw(seed), draw(seed),     draw(seed),
                                       draw(seed), draw(seed), draw_u32(seed), draw(seed)};
    ended->pages = draw_u32(seed);
    ended->pages_held = draw_u32(seed);
    ended->pages_cached_p = draw_u32(seed);
    ended->kv_bytes = draw(seed);
}

static inline void draw_reserved(uint64_t *seed, struct bt_msg_reserved *reserved) {
    static const enum bt_end reasons[] = {BT_END_FULL, BT_END_DRAINING, BT_END_INVALID,
                                          BT_END_DEADLINE};
    reserved->key = draw_key(seed);
    reserved->accepted = draw(seed) % 2;
    reserved->pages = draw_u32(seed);
    reserved->pages_held = (uint32_t)draw_to(seed, reserved->pages);
    if (!reserved->accepted)
        reserved->reason = reasons[draw(seed) % 4];
}

static inline void draw_lists(uint64_t *seed, struct bt_msg *msg, struct lists *lists) {
    if (msg->type == BT_MSG_PEERS) {
        uint32_t n = msg->peers.n_peers = (uint32_t)draw_to(seed, BT_MAX_WORKERS);
        struct bt_peer *peers = lists->a = some(n, sizeof *peers);
        for (uint32_t i = 0; i < n; i++) {
            draw_text(seed, peers[i].name, 1, 63);
            peers[i].incarnation = draw_id(seed);
            draw_address(seed, peers[i].link_address);
        }
        msg->peers.peers = peers;
    } else if (msg->type == BT_MSG_RESUME) {
        uint32_t n = msg->resume.n_rows = (uint32_t)draw_to(seed, BT_WIRE_RESUME_ROWS);
        struct bt_resume *rows = lists->a = some(n, sizeof *rows);
        for (uint32_t i = 0; i < n; i++)
            rows[i] = (struct bt_resume){draw_key(seed), draw_id(seed), draw_u32(seed)};
        msg->resume.rows = rows;
    } else {
        uint32_t n = msg->seen.n_keys = (uint32_t)draw_to(seed, BT_WIRE_SEEN_KEYS);
        struct bt_attempt *keys = lists->a = some(n, sizeof *keys);
        for (uint32_t i = 0; i < n; i++)
            keys[i] = draw_key(seed);
        msg->seen.keys = keys;
    }
}

/* A valid message of the type; free both lists. */
static inline void draw_message(uint64_t *seed, enum bt_msg_type type, struct bt_msg *msg,
                                struct lists *lists) {
    memset(msg, 0, sizeof *msg);
    memset(lists, 0, sizeof *lists);
    msg->type = type;
    switch (type) {
    case BT_MSG_JOIN:
        draw_join(seed, &msg->join);
        break;
    case BT_MSG_STATUS:
        msg->status = (struct bt_msg_status){
            draw_census(seed), draw_u32(seed), draw_u32(seed), draw_u32(seed), draw(seed) % 2,
            draw(seed),        draw(seed),     draw_u32(seed), draw_u32(seed), draw_u32(seed)};
        break;
    case BT_MSG_BLOCKS:
        draw_blocks(seed, &msg->blocks, lists);
        break;
    case BT_MSG_RESERVED:
        draw_reserved(seed, &msg->reserved);
        break;
    case BT_MSG_LIVE:
        msg->live.key = draw_key(seed);
        break;
    case BT_MSG_TOKENS:
        draw_tokens(seed, &msg->tokens, lists);
        break;
    case BT_MSG_ENDED:
        draw_ended(seed, &msg->ended);
        break;
    case BT_MSG_SCORES:
        draw_scores(seed, &msg->scores, lists);
        break;
    case BT_MSG_REPORT:
        draw_ended(seed, &msg->ended);
        msg->ended.reason = (enum bt_end)(draw(seed) % 2);
        break;
    case BT_MSG_WELCOME:
        msg->welcome.incarnation = draw_id(seed);
        msg->welcome.protocol = 1 + (uint32_t)draw_to(seed, 5);
        break;
    case BT_MSG_REFUSED:
        draw_text(seed, msg->refused.reason, 1, 255);
        msg->refused.final = draw(seed) % 2;
        break;
    case BT_MSG_RESERVE:
    case BT_MSG_PREFILL:
        draw_work(seed, &msg->work, type == BT_MSG_RESERVE, lists);
        break;
    case BT_MSG_CANCEL:
    case BT_MSG_PGONE:
        msg->cancel.key = draw_key(seed);
        msg->cancel.ticket = draw_id(seed);
        break;
    case BT_MSG_PEERS:
    case BT_MSG_RESUME:
    case BT_MSG_SEEN:
        draw_lists(seed, msg, lists);
        break;
    default:
        break;
    }
}

static inline enum bt_wire_side side_of(enum bt_msg_type type) {
    return type <= BT_MSG_ENDED || type >= BT_MSG_SCORES ? BT_WIRE_WORKER : BT_WIRE_ROUTER;
}

#define SAME(member) assert_true(a->member == b->member)
#define SAME_ID(member) assert_true(bt_id_equal(a->member, b->member))
#define SAME_KEY(member) \
    assert_true(a->member.request == b->member.request && a->member.attempt == b->member.attempt)

static inline void same_census(const struct bt_census *a, const struct bt_census *b) {
    assert_memory_equal(a, b, sizeof *a); /* nine equal fields: no padding */
}

static inline void same_join(const struct bt_msg_join *a, const struct bt_msg_join *b) {
    assert_string_equal(a->name, b->name);
    SAME_ID(incarnation);
    SAME(role);
    SAME(protocol_min);
    SAME(protocol_max);
    assert_int_equal(bt_fingerprint_compare(&a->fingerprint, &b->fingerprint, NULL), BT_OK);
    SAME(text_hash);
    assert_string_equal(a->link_address, b->link_address);
    SAME(max_context);
    SAME(max_seqs);
    same_census(&a->census, &b->census);
}

static inline void same_status(const struct bt_msg_status *a, const struct bt_msg_status *b) {
    same_census(&a->census, &b->census);
    SAME(running);
    SAME(backlog_tokens);
    SAME(step_us);
    SAME(draining);
    SAME(kv_bytes);
    SAME(refused_frames);
    SAME(links);
    SAME(step_p50_us);
    SAME(step_p99_us);
}

static inline void same_blocks(const struct bt_msg_blocks *a, const struct bt_msg_blocks *b) {
    SAME(sequence);
    SAME(census_first);
    SAME(census_last);
    SAME(n_added);
    SAME(n_evicted);
    for (uint32_t i = 0; i < a->n_added; i++)
        SAME(added[i]);
    for (uint32_t i = 0; i < a->n_evicted; i++)
        SAME(evicted[i]);
}

static inline void same_logprobs(const struct bt_logprobs *a, const struct bt_logprobs *b) {
    assert_int_equal(!a, !b);
    if (!a)
        return;
    SAME(logprob);
    SAME(n_top);
    for (uint32_t i = 0; i < a->n_top; i++) {
        SAME(top[i].token);
        SAME(top[i].logprob);
    }
}

static inline void same_tokens(const struct bt_msg_tokens *a, const struct bt_msg_tokens *b) {
    SAME(n_rows);
    for (uint32_t i = 0; i < a->n_rows; i++) {
        SAME_KEY(rows[i].key);
        SAME(rows[i].index);
        SAME(rows[i].token);
        SAME(rows[i].finish);
        SAME(rows[i].hash);
        same_logprobs(a->rows[i].logprobs, b->rows[i].logprobs);
    }
}

static inline void same_scores(const struct bt_msg_scores *a, const struct bt_msg_scores *b) {
    SAME_KEY(key);
    SAME(first);
    SAME(n_rows);
    for (uint32_t i = 0; i < a->n_rows; i++)
        same_logprobs(&a->rows[i], &b->rows[i]);
}

static inline void same_ended(const struct bt_msg_ended *a, const struct bt_msg_ended *b) {
    SAME_KEY(key);
    SAME(reason);
    SAME(next_index);
    SAME(stages.queue_us);
    SAME(stages.grant_us);
    SAME(stages.prefill_us);
    SAME(stages.transfer_us);
    SAME(stages.join_us);
    SAME(stages.decode_us);
    SAME(stages.steps);
    SAME(stages.batch_rows);
    SAME(pages);
    SAME(pages_held);
    SAME(pages_cached_p);
    SAME(kv_bytes);
}

static inline void same_work(const struct bt_msg_work *a, const struct bt_msg_work *b) {
    SAME_KEY(key);
    SAME_ID(ticket);
    SAME(n_tokens);
    assert_memory_equal(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens);
    SAME(n_prompt);
    SAME(sampling.temperature);
    SAME(sampling.top_p);
    SAME(sampling.min_p);
    SAME(sampling.top_k);
    SAME(sampling.frequency_penalty);
    SAME(sampling.presence_penalty);
    SAME(sampling.repetition_penalty);
    SAME(sampling.seed);
    SAME(sampling.max_tokens);
    SAME(sampling.min_tokens);
    SAME(sampling.ignore_eos);
    SAME(sampling.want_hash);
    SAME(sampling.n_stop_tokens);
    for (int i = 0; i < a->sampling.n_stop_tokens; i++)
        SAME(sampling.stop_tokens[i]);
    SAME(sampling.logprobs);
    SAME(sampling.prompt_logprobs);
    SAME(sampling.n_bias);
    for (int i = 0; i < a->sampling.n_bias; i++) {
        SAME(sampling.bias[i].token);
        SAME(sampling.bias[i].bias);
    }
    SAME(remaining_ms);
    SAME(elapsed_ms);
    assert_string_equal(a->tenant, b->tenant);
    SAME(prefill_here);
    SAME_ID(peer);
}

static inline void same_lists(const struct bt_msg *a, const struct bt_msg *b) {
    if (a->type == BT_MSG_PEERS) {
        SAME(peers.n_peers);
        for (uint32_t i = 0; i < a->peers.n_peers; i++) {
            assert_string_equal(a->peers.peers[i].name, b->peers.peers[i].name);
            SAME_ID(peers.peers[i].incarnation);
            assert_string_equal(a->peers.peers[i].link_address, b->peers.peers[i].link_address);
        }
    } else if (a->type == BT_MSG_RESUME) {
        SAME(resume.n_rows);
        for (uint32_t i = 0; i < a->resume.n_rows; i++) {
            SAME_KEY(resume.rows[i].key);
            SAME_ID(resume.rows[i].ticket);
            SAME(resume.rows[i].next_index);
        }
    } else {
        SAME(seen.n_keys);
        for (uint32_t i = 0; i < a->seen.n_keys; i++)
            SAME_KEY(seen.keys[i]);
    }
}

static inline void same_message(const struct bt_msg *a, const struct bt_msg *b) {
    SAME(type);
    switch (a->type) {
    case BT_MSG_JOIN:
        same_join(&a->join, &b->join);
        break;
    case BT_MSG_STATUS:
        same_status(&a->status, &b->status);
        break;
    case BT_MSG_BLOCKS:
        same_blocks(&a->blocks, &b->blocks);
        break;
    case BT_MSG_RESERVED:
        SAME_KEY(reserved.key);
        SAME(reserved.accepted);
        SAME(reserved.pages_held);
        SAME(reserved.pages);
        SAME(reserved.reason);
        break;
    case BT_MSG_LIVE:
        SAME_KEY(live.key);
        break;
    case BT_MSG_TOKENS:
        same_tokens(&a->tokens, &b->tokens);
        break;
    case BT_MSG_ENDED:
    case BT_MSG_REPORT:
        same_ended(&a->ended, &b->ended);
        break;
    case BT_MSG_SCORES:
        same_scores(&a->scores, &b->scores);
        break;
    case BT_MSG_WELCOME:
        SAME_ID(welcome.incarnation);
        SAME(welcome.protocol);
        break;
    case BT_MSG_REFUSED:
        assert_string_equal(a->refused.reason, b->refused.reason);
        SAME(refused.final);
        break;
    case BT_MSG_RESERVE:
    case BT_MSG_PREFILL:
        same_work(&a->work, &b->work);
        break;
    case BT_MSG_CANCEL:
    case BT_MSG_PGONE:
        SAME_KEY(cancel.key);
        SAME_ID(cancel.ticket);
        break;
    case BT_MSG_PEERS:
    case BT_MSG_RESUME:
    case BT_MSG_SEEN:
        same_lists(a, b);
        break;
    default:
        break;
    }
}

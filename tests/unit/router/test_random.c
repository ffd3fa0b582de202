/* The core among honest workers under random faults: cuts, deaths, restarts, refusals, cancels.
 * Each request ends exactly once, its tokens are the right ones in order, and all adds up at any
 * time. */
#include "harness.h"

enum { N_WORKERS = 5, N_P = 2, PARTS_MAX = 64, QUEUE_MAX = 512, REQUESTS_MAX = 64 };

struct rng {
    uint64_t s;
};

static uint32_t draw(struct rng *r, uint32_t n) {
    r->s ^= r->s << 13;
    r->s ^= r->s >> 7;
    r->s ^= r->s << 17;
    return (uint32_t)((r->s * 0x2545f4914f6cdd1dull) >> 33) % n;
}

static int32_t oracle(uint64_t request, uint32_t index) {
    return (int32_t)((request * 1000003u + index * 7919u) & 0x7fffff);
}

enum part_state { PART_NEW, PART_HANDING, PART_LIVE, PART_ENDED };

struct part {
    struct bt_attempt key;
    struct bt_id ticket;
    struct bt_id peer;
    enum part_state state;
    uint32_t first, next, max;
    bool local;
    bool greeted; /* on D: P has its grant */
    enum bt_end end;
};

struct worker {
    bool is_p, up;
    uint64_t incarnation;
    int slot; /* -1: not attached */
    bool joined;
    struct part parts[PARTS_MAX];
    uint32_t n_parts;
    struct bt_msg in[QUEUE_MAX]; /* from the router, in order */
    int32_t n_in;
    struct bt_resume resume[PARTS_MAX];
    uint32_t n_resume;
    struct {
        struct bt_msg msg;
        struct bt_token row;
    } out[QUEUE_MAX];
    uint32_t n_out;
};

struct cluster {
    struct rng rng;
    struct bt_router_core *core;
    uint64_t now_us;
    struct worker w[N_WORKERS];
    bool slot_used[BT_ROUTER_SLOTS];
    int owner[BT_ROUTER_SLOTS];
    struct {
        struct bt_request *req;
        uint64_t id;
        uint32_t next, max;
        bool ended;
        bt_status status;
    } reqs[REQUESTS_MAX];
    uint32_t n_reqs;
    uint64_t n_ok;
};

static struct part *find(struct worker *w, struct bt_attempt key) {
    for (uint32_t i = 0; i < w->n_parts; i++)
        if (w->parts[i].key.request == key.request && w->parts[i].key.attempt == key.attempt)
            return &w->parts[i];
    return NULL;
}

static void drop(struct worker *w, struct part *p) {
    *p = w->parts[--w->n_parts];
}

static void out(struct worker *w, const struct bt_msg *msg) {
    /* Before Resume nothing is said of requests; it brings all of it again. */
    if (w->slot < 0 || !w->joined)
        return;
    assert_true(w->n_out < QUEUE_MAX);
    w->out[w->n_out].msg = *msg;
    if (msg->type == BT_MSG_TOKENS)
        w->out[w->n_out].row = msg->tokens.rows[0];
    w->n_out++;
}

static void out_token(struct worker *w, struct part *p, uint32_t index) {
    struct bt_token row = {.key = p->key,
                           .index = index,
                           .token = oracle(p->key.request, index),
                           .finish = index + 1 == p->max ? BT_FINISH_LENGTH : BT_FINISH_NONE};
    struct bt_msg msg = {.type = BT_MSG_TOKENS};
    msg.tokens = (struct bt_msg_tokens){&row, 1};
    out(w, &msg);
}

static void end_part(struct worker *w, struct part *p, enum bt_end reason) {
    p->state = PART_ENDED;
    p->end = reason;
    struct bt_msg msg = {.type = BT_MSG_ENDED};
    msg.ended = (struct bt_msg_ended){.key = p->key, .reason = reason, .next_index = p->next};
    out(w, &msg);
}

static void out_end(struct worker *w, struct bt_attempt key, enum bt_end reason) {
    struct bt_msg msg = {.type = BT_MSG_ENDED};
    msg.ended = (struct bt_msg_ended){.key = key, .reason = reason};
    out(w, &msg);
}

static void take_work(struct cluster *c, struct worker *w, const struct bt_msg *msg) {
    if (w->n_parts == PARTS_MAX || (!w->is_p && draw(&c->rng, 8) == 0)) {
        if (w->is_p) {
            out_end(w, msg->work.key, BT_END_FULL);
        } else {
            struct bt_msg no = {.type = BT_MSG_RESERVED};
            no.reserved.key = msg->work.key;
            no.reserved.reason = BT_END_FULL;
            out(w, &no);
        }
        return;
    }
    struct part *p = &w->parts[w->n_parts++];
    *p = (struct part){.key = msg->work.key,
                       .ticket = msg->work.ticket,
                       .peer = msg->work.peer,
                       .first = msg->work.n_tokens - msg->work.n_prompt,
                       .max = msg->work.sampling.max_tokens,
                       .local = msg->work.prefill_here};
    p->next = p->first;
    if (!w->is_p) {
        struct bt_msg yes = {.type = BT_MSG_RESERVED};
        yes.reserved.key = msg->work.key;
        yes.reserved.accepted = true;
        yes.reserved.pages = 3;
        out(w, &yes);
    }
}

static void take_resume(struct worker *w) {
    for (uint32_t i = 0; i < w->n_parts;) {
        bool listed = false;
        for (uint32_t r = 0; r < w->n_resume; r++)
            listed |= bt_id_equal(w->resume[r].ticket, w->parts[i].ticket);
        if (listed)
            i++;
        else
            drop(w, &w->parts[i]);
    }
    for (uint32_t r = 0; r < w->n_resume; r++) {
        struct part *p = find(w, w->resume[r].key);
        if (!p) {
            out_end(w, w->resume[r].key, BT_END_UNKNOWN);
            continue;
        }
        if (!w->is_p || p->state == PART_HANDING || p->state == PART_ENDED)
            for (uint32_t index = w->resume[r].next_index; index < p->next; index++)
                out_token(w, p, index);
        if (p->state == PART_ENDED)
            out_end(w, p->key, p->end);
    }
}

static void worker_reads(struct cluster *c, struct worker *w) {
    if (!w->n_in)
        return;
    struct bt_msg msg = w->in[0];
    memmove(w->in, w->in + 1, (size_t)--w->n_in * sizeof w->in[0]);
    struct part *p;
    switch (msg.type) {
    case BT_MSG_RESUME:
        w->joined = true;
        take_resume(w);
        break;
    case BT_MSG_RESERVE:
    case BT_MSG_PREFILL:
        take_work(c, w, &msg);
        break;
    case BT_MSG_CANCEL:
        if ((p = find(w, msg.cancel.key)))
            drop(w, p);
        break;
    case BT_MSG_PGONE:
        p = find(w, msg.pgone.key);
        if (!p)
            out_end(w, msg.pgone.key, BT_END_UNKNOWN);
        else if (p->state == PART_LIVE) {
            struct bt_msg yes = {.type = BT_MSG_LIVE};
            yes.live.key = p->key;
            out(w, &yes);
        } else if (p->state == PART_NEW)
            end_part(w, p, BT_END_PEER_GONE);
        break;
    default:
        break;
    }
}

/* The other worker's part of the same attempt, while that process lives. */
static struct part *other_part(struct cluster *c, struct part *p) {
    for (int i = 0; i < N_WORKERS; i++)
        if (c->w[i].incarnation == p->peer.hi)
            return find(&c->w[i], p->key);
    return NULL;
}

static bool peer_has(struct cluster *c, struct part *p) {
    struct part *there = other_part(c, p);
    return there && there->state != PART_ENDED;
}

/* P: hello and grant, the first token, commit. A D that does not know the ticket yet parks the
 * hello, for a while. */
static void prefill_works(struct cluster *c, struct worker *w, struct part *p) {
    struct part *there = other_part(c, p);
    if (!there || there->state == PART_ENDED) {
        if (p->state == PART_HANDING || draw(&c->rng, 6) == 0)
            end_part(w, p, there ? BT_END_REFUSED : BT_END_LINK);
    } else if (p->state == PART_NEW) {
        there->greeted = true;
        p->state = PART_HANDING;
        p->next = p->first + 1;
        out_token(w, p, p->first);
    } else {
        if (there->state == PART_NEW)
            there->state = PART_LIVE;
        end_part(w, p, BT_END_HANDED);
    }
}

/* P computes, D commits at some later time, D decodes. */
static void worker_works(struct cluster *c, struct worker *w) {
    if (!w->n_parts)
        return;
    struct part *p = &w->parts[draw(&c->rng, w->n_parts)];
    if (p->state == PART_ENDED)
        return;
    static const enum bt_end lost[] = {BT_END_LINK, BT_END_FULL, BT_END_DRAINING, BT_END_CHECKSUM};
    if (draw(&c->rng, 60) == 0) {
        end_part(w, p, w->is_p ? lost[draw(&c->rng, 2)] : lost[draw(&c->rng, 2) * 3]);
        return;
    }
    if (w->is_p) {
        prefill_works(c, w, p);
    } else if (p->state == PART_NEW && p->local) {
        p->state = PART_LIVE;
    } else if (p->state == PART_NEW && p->greeted && !peer_has(c, p)) {
        end_part(w, p, BT_END_LINK);
    } else if (p->state == PART_LIVE) {
        if (draw(&c->rng, 40) == 0) {
            end_part(w, p, draw(&c->rng, 2) ? BT_END_PREEMPTED : BT_END_INTERNAL);
            return;
        }
        out_token(w, p, p->next++);
        if (p->next == p->max)
            end_part(w, p, BT_END_DONE);
    }
}

static void to_worker(struct cluster *c, const struct bt_router_action *action) {
    int i = c->owner[action->slot];
    if (i < 0 || c->w[i].slot != (int)action->slot)
        return;
    struct worker *w = &c->w[i];
    assert_true(w->n_in < QUEUE_MAX);
    w->in[w->n_in++] = *action->msg;
    if (action->msg->type == BT_MSG_RESUME) {
        w->n_resume = action->msg->resume.n_rows;
        assert_true(w->n_resume <= PARTS_MAX);
        memcpy(w->resume, action->msg->resume.rows, w->n_resume * sizeof w->resume[0]);
    }
    if (action->msg->type == BT_MSG_SEEN)
        for (uint32_t r = 0; r < action->msg->seen.n_keys; r++) {
            struct part *p = find(w, action->msg->seen.keys[r]);
            if (p && p->state == PART_ENDED)
                drop(w, p);
        }
}

static void drain_cluster(struct cluster *c) {
    struct bt_router_action action;
    while (bt_router_core_next(c->core, &action)) {
        uint32_t r = 0;
        if (action.req)
            r = (uint32_t)(uintptr_t)action.req->user;
        if (action.type == BT_ROUTER_SEND) {
            to_worker(c, &action);
        } else if (action.type == BT_ROUTER_EMIT) {
            assert_false(c->reqs[r].ended);
            assert_int_equal(action.index, c->reqs[r].next);
            assert_int_equal(action.token, oracle(action.req->id, action.index));
            c->reqs[r].next++;
            assert_int_equal(action.finish != BT_FINISH_NONE, c->reqs[r].next == c->reqs[r].max);
        } else if (action.type == BT_ROUTER_END) {
            assert_false(c->reqs[r].ended);
            c->reqs[r].ended = true;
            c->reqs[r].status = action.status;
            if (action.status == BT_OK && action.finish == BT_FINISH_LENGTH)
                assert_int_equal(c->reqs[r].next, c->reqs[r].max);
            c->n_ok += action.status == BT_OK;
        }
    }
    assert_true(bt_router_core_is_valid(c->core));
}

static void worker_attach(struct cluster *c, int i) {
    struct worker *w = &c->w[i];
    int slot = 0;
    while (c->slot_used[slot])
        slot++;
    c->slot_used[slot] = true;
    c->owner[slot] = i;
    w->slot = slot;
    w->joined = false;
    w->n_in = 0;
    w->n_out = 0;
    bt_router_core_worker_opened(c->core, c->now_us, (uint32_t)slot);
    drain_cluster(c);
    char name[8];
    snprintf(name, sizeof name, "w%d", i);
    struct bt_msg msg = join_of(name, w->incarnation, w->is_p ? BT_ROLE_PREFILL : BT_ROLE_DECODE);
    bt_router_core_worker_message(c->core, c->now_us, (uint32_t)slot, &msg);
    drain_cluster(c);
}

static void worker_detach(struct cluster *c, int i) {
    struct worker *w = &c->w[i];
    if (w->slot < 0)
        return;
    uint32_t slot = (uint32_t)w->slot;
    w->slot = -1;
    w->n_in = 0;
    w->n_out = 0;
    c->owner[slot] = -1;
    c->slot_used[slot] = false;
    bt_router_core_worker_closed(c->core, c->now_us, slot);
    drain_cluster(c);
}

static void worker_speaks(struct cluster *c, struct worker *w) {
    if (w->slot < 0 || !w->n_out)
        return;
    struct bt_msg msg = w->out[0].msg;
    struct bt_token row = w->out[0].row;
    if (msg.type == BT_MSG_TOKENS)
        msg.tokens = (struct bt_msg_tokens){&row, 1};
    memmove(w->out, w->out + 1, (size_t)--w->n_out * sizeof w->out[0]);
    bt_router_core_worker_message(c->core, c->now_us, (uint32_t)w->slot, &msg);
    drain_cluster(c);
}

static void submit_one(struct cluster *c) {
    if (c->n_reqs == REQUESTS_MAX)
        return;
    uint32_t n = 1 + draw(&c->rng, 80), max = 1 + draw(&c->rng, 12);
    struct bt_submit what = submit_of(sample_prompt, n, max);
    /* Some are further choices of one that may be anywhere in its life. */
    uint32_t leader = draw(&c->rng, 2) && c->n_reqs ? draw(&c->rng, c->n_reqs) : REQUESTS_MAX;
    if (leader < REQUESTS_MAX && !c->reqs[leader].ended) {
        what.leader = c->reqs[leader].req;
        what.n_tokens = what.leader->n_prompt;
    }
    what.user = (void *)(uintptr_t)c->n_reqs;
    struct bt_request *req;
    struct bt_error err = {0};
    bt_status status = bt_router_core_submit(c->core, c->now_us, &what, &req, &err);
    if (status == BT_OK) {
        c->reqs[c->n_reqs].req = req;
        c->reqs[c->n_reqs].max = max;
        c->reqs[c->n_reqs].id = req->id;
        c->n_reqs++;
    } else {
        assert_true(err.text[0] && (status == BT_E_UNAVAILABLE || status == BT_E_FULL));
    }
    drain_cluster(c);
}

static void fault(struct cluster *c) {
    int i = (int)draw(&c->rng, N_WORKERS);
    struct worker *w = &c->w[i];
    if (draw(&c->rng, 3)) { /* a cut: the same process comes back */
        worker_detach(c, i);
        return;
    }
    worker_detach(c, i);
    w->incarnation += 100; /* it died; another one starts later */
    w->n_parts = 0;
}

static void cancel_one(struct cluster *c) {
    if (!c->n_reqs)
        return;
    uint32_t r = draw(&c->rng, c->n_reqs);
    if (c->reqs[r].ended)
        return;
    if (draw(&c->rng, 2))
        bt_router_core_cancel(c->core, c->now_us, c->reqs[r].req);
    else
        bt_router_core_stop(c->core, c->now_us, c->reqs[r].req);
    drain_cluster(c);
    assert_true(c->reqs[r].ended);
}

static void say_status(struct worker *w) {
    struct bt_msg msg = {.type = BT_MSG_STATUS};
    msg.status.census = (struct bt_census){.total = 256, .free = 256};
    out(w, &msg);
}

static void step(struct cluster *c, bool faults) {
    c->now_us += 200 + draw(&c->rng, 3000);
    int i = (int)draw(&c->rng, N_WORKERS);
    struct worker *w = &c->w[i];
    switch (draw(&c->rng, 16)) {
    case 0:
        if (faults)
            submit_one(c);
        break;
    case 1:
        if (faults && draw(&c->rng, 12) == 0)
            fault(c);
        break;
    case 2:
        if (faults && draw(&c->rng, 8) == 0)
            cancel_one(c);
        break;
    case 3:
        if (w->slot < 0 && draw(&c->rng, 4) == 0)
            worker_attach(c, i);
        break;
    case 4:
        bt_router_core_tick(c->core, c->now_us);
        drain_cluster(c);
        break;
    case 5:
        if (w->n_out < QUEUE_MAX / 2)
            say_status(w);
        break;
    case 6:
    case 7:
    case 8:
        worker_reads(c, w);
        break;
    case 9:
    case 10:
    case 11:
        if (w->n_out < QUEUE_MAX - 100)
            worker_works(c, w);
        break;
    default:
        worker_speaks(c, w);
    }
}

/* Nobody is left with a part of a request, and no token was missed between honest workers. */
static void check_quiet(struct cluster *c, uint64_t seed) {
    for (int n = 0; n < 20000; n++)
        step(c, false);
    for (int i = 0; i < N_WORKERS; i++)
        for (uint32_t n = 0; n < c->w[i].n_parts; n++)
            if (c->w[i].parts[n].state != PART_ENDED)
                fail_msg("seed %llu: worker %d is left with a part in state %d",
                         (unsigned long long)seed, i, (int)c->w[i].parts[n].state);
    const struct bt_router_counters *counters = bt_router_core_counters(c->core);
    assert_int_equal(counters->tokens_stored, 0);
    assert_int_equal(counters->incomplete, 0);
    assert_int_equal(counters->submitted, c->n_reqs);
}

static uint64_t run_seed(uint64_t seed, uint64_t *totals, uint32_t n_pairs) {
    struct cluster *c = calloc(1, sizeof *c);
    c->rng.s = seed * 0x9e3779b97f4a7c15ull | 1;
    struct bt_router_config config = small_config();
    config.max_requests = 16;
    config.disaggregate = (enum bt_disaggregate)(seed % 3);
    struct bt_error err = {0};
    c->core = bt_router_core_create(&config, &err);
    assert_non_null(c->core);
    c->now_us = 1000;
    for (int i = 0; i < BT_ROUTER_SLOTS; i++)
        c->owner[i] = -1;
    for (int i = 0; i < N_WORKERS; i++) {
        c->w[i] = (struct worker){
            .is_p = i < N_P, .up = true, .slot = -1, .incarnation = 1 + (uint64_t)i};
        worker_attach(c, i);
    }
    for (int n = 0; n < 4000; n++)
        step(c, true);
    /* The faults stop: all that lives must end. */
    for (int n = 0; n < 60000 && bt_router_core_counters(c->core)->live; n++)
        step(c, false);
    for (uint32_t r = 0; r < c->n_reqs; r++)
        if (!c->reqs[r].ended)
            fail_msg("seed %llu: request %u never ended, state %s", (unsigned long long)seed, r,
                     bt_request_state_name(c->reqs[r].req->state));
    check_quiet(c, seed);
    uint32_t n;
    const uint32_t *counts = bt_router_core_coverage(c->core, &n);
    assert_int_equal(n, n_pairs);
    for (uint32_t i = 0; i < n; i++)
        totals[i] += counts[i];
    uint64_t n_ok = c->n_ok;
    bt_router_core_destroy(c->core);
    free(c);
    return n_ok;
}

static void test_random_faults(void **state) {
    (void)state;
    const char *asked = getenv("BT_SEEDS");
    uint64_t n_seeds = asked ? strtoull(asked, NULL, 10) : 60, n_ok = 0;
    uint64_t totals[1024] = {0};
    uint32_t n_pairs = 0;
    struct bt_pair_view pair;
    while (bt_router_core_pair(n_pairs, &pair))
        n_pairs++;
    for (uint64_t seed = 1; seed <= n_seeds; seed++)
        n_ok += run_seed(seed, totals, n_pairs);
    for (uint32_t i = 0; asked && i < n_pairs; i++) {
        bt_router_core_pair(i, &pair);
        if (pair.kind != BT_PAIR_IMPOSSIBLE)
            print_message("%-8s %-13s %-14s %s %llu\n", pair.machine, pair.state, pair.event,
                          pair.kind == BT_PAIR_HANDLED ? "handled" : "ignored",
                          (unsigned long long)totals[i]);
    }
    assert_true(n_ok > n_seeds);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

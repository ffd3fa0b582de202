/* The decode worker's core: what happens on each event, and what is to be done then. */
#include "decode_worker/decode_core.h"

#include <stdlib.h>

#include "common/base/assert.h"
#include "common/worker/tell_index.h"
#include "decode_worker/decode_state.h"

/* What each event does in each state: H handled, i ignored, - impossible. */
static const char table[BT_DECODE_STATE_COUNT][BT_DECODE_EVENT_COUNT + 1] = {
    /* granted committed aborted cancel prefill-gone lost deadline preempt move step */
    [BT_DECODE_FREE] = "----------",
    [BT_DECODE_RESERVED] = "HHHHHHHHH-",
    /* A router asks only about attempts that a prefill worker computes. */
    [BT_DECODE_PREFILL] = "---HiHHHHH",
    [BT_DECODE_RUNNING] = "---HHHHHHH",
    /* Its end is known and told: only the step's return matters. */
    [BT_DECODE_CLOSING] = "---iiii--H",
};
static const char *const state_names[] = {"free", "reserved", "prefill", "running", "closing"};
static const char *const event_names[] = {"granted",      "committed", "aborted",  "cancel",
                                          "prefill gone", "lost",      "deadline", "preempt",
                                          "move",         "step"};

bool bt_decode_handles(struct bt_decode_core *core, const struct bt_decode_seq *seq,
                       enum bt_decode_event event) {
    char entry = table[seq->state][event];
    BT_ASSERT(entry != '-');
    core->coverage[seq->state * BT_DECODE_EVENT_COUNT + event]++;
    return entry == 'H';
}

const uint32_t *bt_decode_core_coverage(const struct bt_decode_core *core, uint32_t *n_pairs) {
    *n_pairs = BT_DECODE_STATE_COUNT * BT_DECODE_EVENT_COUNT;
    return core->coverage;
}

bool bt_decode_core_pair(uint32_t pair, const char **state, const char **event) {
    uint32_t s = pair / BT_DECODE_EVENT_COUNT, e = pair % BT_DECODE_EVENT_COUNT;
    BT_ASSERT(s < BT_DECODE_STATE_COUNT);
    *state = state_names[s];
    *event = event_names[e];
    return table[s][e] == 'H';
}

/* ---- create, destroy ---- */

static bt_status check(const struct bt_decode_config *config, struct bt_error *err) {
    if (config->join.max_context < 2 || config->join.max_context > BT_KV_PAGES_MAX * 16u)
        return bt_fail(err, BT_E_INVALID, "max-context is %u, must be 2 to %u",
                       config->join.max_context, BT_KV_PAGES_MAX * 16u);
    if (!config->join.max_seqs || config->join.max_seqs > 4096)
        return bt_fail(err, BT_E_INVALID, "max-seqs is %u, must be 1 to 4096",
                       config->join.max_seqs);
    if (!config->n_pages || !config->n_layers || !config->page_bytes || !config->n_vocab)
        return bt_fail(err, BT_E_INVALID, "the KV cache has %u pages, must be at least 1",
                       config->n_pages);
    if (!config->chunk_tokens)
        return bt_fail(err, BT_E_INVALID, "chunk-tokens is 0, must be at least 1");
    return BT_OK;
}

static bt_status create_parts(struct bt_decode_core *core, struct bt_error *err) {
    const struct bt_decode_config *config = &core->config;
    uint32_t max_seqs = config->join.max_seqs;
    BT_TRY(bt_kv_pool_create(&(struct bt_kv_pool_config){.n_pages = config->n_pages,
                                                         .n_layers = config->n_layers,
                                                         .n_changes = 4096},
                             &core->pool, err));
    BT_TRY(bt_kv_recv_create(
        &(struct bt_kv_recv_config){
            .pool = core->pool,
            .n_layers = config->n_layers,
            .page_bytes = config->page_bytes,
            .fingerprint_hash = bt_fingerprint_hash(&config->join.fingerprint),
            .max_leases = max_seqs,
            .max_pages = core->max_pages,
            .max_parked = 4 * max_seqs,
            .max_ended = 64 * max_seqs + 1024,
        },
        &core->recv, err));
    BT_TRY(
        bt_ledger_create(&(struct bt_ledger_config){.join = config->join, .max_jobs = core->n_seqs},
                         &core->ledger, err));
    BT_TRY(bt_batch_init(&core->batch, max_seqs + config->chunk_tokens, max_seqs, 0,
                         config->chunk_tokens, config->n_layers, err));
    core->seqs = calloc(core->n_seqs, sizeof *core->seqs);
    core->pages = calloc((size_t)core->n_seqs * core->max_pages, sizeof *core->pages);
    core->census = calloc(config->n_pages, sizeof *core->census);
    if (!core->seqs || !core->pages || !core->census)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u sequences", core->n_seqs);
    for (uint32_t i = 0; i < core->n_seqs; i++) {
        core->seqs[i].hold.pages = core->pages + (size_t)i * core->max_pages;
        core->seqs[i].hold.capacity = core->max_pages;
    }
    return BT_OK;
}

bt_status bt_decode_core_create(const struct bt_decode_config *config, struct bt_decode_core **out,
                                struct bt_error *err) {
    BT_TRY(check(config, err));
    struct bt_decode_core *core = calloc(1, sizeof *core);
    if (!core)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for the decode core");
    core->config = *config;
    core->max_pages = bt_pages_of(config->join.max_context);
    /* Ended sequences are remembered until their router has seen the end: as many again. */
    core->n_seqs = 2 * config->join.max_seqs + 8;
    bt_status status = create_parts(core, err);
    if (status < 0) {
        bt_decode_core_destroy(core);
        return status;
    }
    *out = core;
    return BT_OK;
}

void bt_decode_core_destroy(struct bt_decode_core *core) {
    if (!core)
        return;
    bt_ledger_destroy(core->ledger);
    bt_kv_recv_destroy(core->recv);
    bt_kv_pool_destroy(core->pool);
    bt_batch_fini(&core->batch);
    free(core->seqs);
    free(core->pages);
    free(core->census);
    free(core);
}

/* ---- routers ---- */

void bt_decode_core_router_opened(struct bt_decode_core *core, uint64_t now_us, uint32_t slot) {
    bt_ledger_opened(core->ledger, now_us, slot);
}

void bt_decode_core_router_closed(struct bt_decode_core *core, uint64_t now_us, uint32_t slot) {
    bt_ledger_closed(core->ledger, now_us, slot);
}

static void on_cancel(struct bt_decode_core *core, uint64_t now_us, uint32_t slot,
                      const struct bt_msg_cancel *cancel) {
    struct bt_job *job = bt_ledger_find(core->ledger, slot, cancel->key);
    if (!job || !job->held) {
        bt_kv_recv_forbid(core->recv, now_us, cancel->ticket);
        return;
    }
    struct bt_decode_seq *seq = bt_decode_seq_of(core, job);
    if (bt_decode_handles(core, seq, BT_DECODE_ON_CANCEL))
        bt_decode_end(core, now_us, seq, BT_END_DONE, false);
}

static void on_prefill_gone(struct bt_decode_core *core, uint64_t now_us, uint32_t slot,
                            const struct bt_msg_pgone *gone) {
    struct bt_job *job = bt_ledger_find(core->ledger, slot, gone->key);
    if (!job) {
        bt_kv_recv_forbid(core->recv, now_us, gone->ticket);
        bt_ledger_refuse(core->ledger, slot,
                         &(struct bt_msg){.type = BT_MSG_ENDED,
                                          .ended = {.key = gone->key, .reason = BT_END_UNKNOWN}});
        return;
    }
    if (!job->held) {
        bt_ledger_end_again(core->ledger, job);
        return;
    }
    struct bt_decode_seq *seq = bt_decode_seq_of(core, job);
    if (!bt_decode_handles(core, seq, BT_DECODE_ON_PREFILL_GONE)) {
        if (job->ended)
            bt_ledger_end_again(core->ledger, job);
    } else if (seq->state == BT_DECODE_RESERVED) {
        bt_decode_end(core, now_us, seq, BT_END_PEER_GONE, true);
    } else {
        bt_ledger_live(core->ledger, job);
    }
}

bt_status bt_decode_core_router_message(struct bt_decode_core *core, uint64_t now_us, uint32_t slot,
                                        const struct bt_msg *msg, struct bt_error *err) {
    bt_status status = bt_ledger_message(core->ledger, now_us, slot, msg, err);
    if (status != BT_OK)
        return status < 0 ? status : BT_OK;
    switch (msg->type) {
    case BT_MSG_RESERVE:
        bt_decode_reserve(core, now_us, slot, &msg->work);
        return BT_OK;
    case BT_MSG_CANCEL:
        on_cancel(core, now_us, slot, &msg->cancel);
        return BT_OK;
    case BT_MSG_PGONE:
        on_prefill_gone(core, now_us, slot, &msg->pgone);
        return BT_OK;
    case BT_MSG_FLUSH:
        bt_kv_pool_flush(core->pool);
        return BT_OK;
    default:
        return bt_fail(err, BT_E_PROTOCOL, "message %d is not for a decode worker", (int)msg->type);
    }
}

/* ---- links ---- */

void bt_decode_core_link_up(struct bt_decode_core *core, uint64_t now_us, uint32_t link,
                            struct bt_id peer) {
    bt_kv_recv_link_up(core->recv, now_us, link, peer);
}

void bt_decode_core_link_down(struct bt_decode_core *core, uint64_t now_us, uint32_t link) {
    bt_kv_recv_link_down(core->recv, now_us, link);
}

void bt_decode_core_link_message(struct bt_decode_core *core, uint64_t now_us, uint32_t link,
                                 const struct bt_kv_msg *msg) {
    bt_kv_recv_message(core->recv, now_us, link, msg);
}

bt_status bt_decode_core_link_frame(struct bt_decode_core *core, uint64_t now_us, uint32_t link,
                                    const struct bt_kv_frame *frame, struct bt_kv_landing *out,
                                    struct bt_error *err) {
    return bt_kv_recv_frame(core->recv, now_us, link, frame, out, err);
}

void bt_decode_core_link_frame_end(struct bt_decode_core *core, uint64_t now_us,
                                   const struct bt_kv_landing *landing, bool whole,
                                   const uint64_t *carried, const uint64_t *computed) {
    bt_kv_recv_frame_end(core->recv, now_us, landing, whole, carried, computed);
}

void bt_decode_core_link_refused(struct bt_decode_core *core) {
    core->n_link_refused++;
}

/* ---- engine and time ---- */

void bt_decode_core_step_done(struct bt_decode_core *core, uint64_t now_us) {
    BT_ASSERT(core->step_out);
    core->step_out = false;
    bt_step_times_add(&core->step_times, now_us - core->step_posted_us);
    bt_decode_note_step(core, now_us - core->step_posted_us);
    bt_decode_on_step(core, now_us);
}

void bt_decode_core_tick(struct bt_decode_core *core, uint64_t now_us) {
    bt_ledger_tick(core->ledger, now_us);
    bt_kv_recv_tick(core->recv, now_us);
    bool move = core->draining && now_us - core->drain_us > (uint64_t)core->config.drain_ms * 1000;
    for (uint32_t i = 0; core->n_active && i < core->n_seqs; i++) {
        struct bt_decode_seq *seq = &core->seqs[i];
        if (seq->state == BT_DECODE_FREE)
            continue;
        if (now_us >= seq->job->deadline_us) {
            if (bt_decode_handles(core, seq, BT_DECODE_ON_DEADLINE))
                bt_decode_end(core, now_us, seq, BT_END_DEADLINE, true);
        } else if (move && seq->state != BT_DECODE_CLOSING &&
                   bt_decode_handles(core, seq, BT_DECODE_ON_MOVE)) {
            bt_decode_end(core, now_us, seq, BT_END_DRAINING, true);
        }
    }
}

void bt_decode_core_hold(struct bt_decode_core *core, bool held) {
    core->held = held;
}

void bt_decode_core_drain(struct bt_decode_core *core, uint64_t now_us) {
    if (core->draining)
        return;
    core->draining = true;
    core->drain_us = now_us;
}

/* ---- actions ---- */

static enum bt_end end_of(enum bt_kv_reason reason) {
    switch (reason) {
    case BT_KV_REASON_LINK:
        return BT_END_LINK;
    case BT_KV_REASON_CHECKSUM:
    case BT_KV_REASON_INCOMPLETE:
    case BT_KV_REASON_PROMPT:
    case BT_KV_REASON_LAYOUT:
        return BT_END_CHECKSUM;
    case BT_KV_REASON_DEADLINE:
        return BT_END_DEADLINE;
    default:
        return BT_END_PEER_GONE;
    }
}

/* Takes the next action of the receiving half; true where it is for the shell. */
static bool next_of_recv(struct bt_decode_core *core, uint64_t now_us,
                         struct bt_decode_action *out) {
    struct bt_kv_recv_action action;
    while (bt_kv_recv_next(core->recv, &action)) {
        struct bt_decode_seq *seq = NULL;
        switch (action.type) {
        case BT_KV_RECV_SEND:
            *out = (struct bt_decode_action){
                .type = BT_DECODE_LINK_SEND, .link = action.link, .link_msg = action.msg};
            return true;
        case BT_KV_RECV_CUT:
            *out = (struct bt_decode_action){
                .type = BT_DECODE_LINK_CUT, .link = action.link, .lease = action.lease};
            return true;
        case BT_KV_RECV_GRANTED:
            seq = &core->seqs[action.user];
            if (bt_decode_handles(core, seq, BT_DECODE_ON_GRANTED))
                seq->granted_us = now_us;
            break;
        case BT_KV_RECV_COMMITTED:
            seq = &core->seqs[action.user];
            if (bt_decode_handles(core, seq, BT_DECODE_ON_COMMITTED))
                bt_decode_on_committed(core, now_us, seq, &action.msg);
            break;
        case BT_KV_RECV_ABORTED:
            seq = &core->seqs[action.user];
            if (bt_decode_handles(core, seq, BT_DECODE_ON_ABORTED)) {
                seq->lease = BT_NO_JOB; /* kv_recv has ended it */
                bt_decode_end(core, now_us, seq, end_of(action.reason), true);
            }
            break;
        }
    }
    return false;
}

static void end_lost(struct bt_decode_core *core, uint64_t now_us) {
    for (uint32_t id; (id = bt_ledger_take_lost(core->ledger)) != BT_NO_JOB;) {
        struct bt_decode_seq *seq = &core->seqs[id];
        if (bt_decode_handles(core, seq, BT_DECODE_ON_LOST))
            bt_decode_end(core, now_us, seq, BT_END_DONE, false);
    }
}

static void tell_status(struct bt_decode_core *core, uint64_t now_us) {
    bt_step_times_refresh(&core->step_times, now_us);
    const struct bt_kv_recv_counters *kv = bt_kv_recv_counters(core->recv);
    struct bt_msg_status status = {
        .draining = core->draining,
        .step_us = core->step_times.mean_us,
        .step_p50_us = core->step_times.p50_us,
        .step_p99_us = core->step_times.p99_us,
        .kv_bytes = kv->bytes,
        .refused_frames = core->n_link_refused + kv->refused_ticket + kv->refused_generation +
                          kv->refused_range + kv->refused_order + kv->refused_link +
                          kv->refused_checksum + kv->refused_commit + kv->refused_prompt +
                          kv->refused_layout,
        .links = bt_kv_recv_links_up(core->recv),
    };
    bt_kv_pool_census(core->pool, &status.census);
    for (uint32_t i = 0; core->n_active && i < core->n_seqs; i++) {
        const struct bt_decode_seq *seq = &core->seqs[i];
        status.running += seq->state == BT_DECODE_RUNNING;
        if (seq->state == BT_DECODE_PREFILL)
            status.backlog_tokens += seq->job->n_tokens - seq->n_computed;
    }
    bt_ledger_set_status(core->ledger, &status);
}

static bool next_of_ledger(struct bt_decode_core *core, uint64_t now_us,
                           struct bt_decode_action *out) {
    struct bt_ledger_action action;
    if (!bt_ledger_next(core->ledger, now_us, &action))
        return false;
    *out = (struct bt_decode_action){
        .type = action.type == BT_LEDGER_SEND    ? BT_DECODE_SEND
                : action.type == BT_LEDGER_CLOSE ? BT_DECODE_CLOSE
                                                 : BT_DECODE_QUIT,
        .slot = action.slot,
        .msg = action.msg,
        .reason = action.reason,
    };
    return true;
}

bool bt_decode_core_next(struct bt_decode_core *core, uint64_t now_us,
                         struct bt_decode_action *out) {
    end_lost(core, now_us);
    if (next_of_recv(core, now_us, out))
        return true;
    if (!core->step_out && !core->held && core->n_active && bt_decode_compose(core, now_us)) {
        core->step_out = true;
        core->step_posted_us = now_us;
        *out = (struct bt_decode_action){.type = BT_DECODE_STEP, .step = &core->batch.step};
        return true;
    }
    if (next_of_recv(core, now_us, out)) /* composing may have preempted a lease */
        return true;
    bt_tell_index(core->pool, core->ledger, core->census, core->config.n_pages);
    tell_status(core, now_us);
    if (next_of_ledger(core, now_us, out))
        return true;
    bool told = bt_ledger_is_quiet(core->ledger) || !bt_ledger_n_attached(core->ledger);
    if (core->draining && !core->exit_told && !core->n_active && told) {
        core->exit_told = true;
        *out = (struct bt_decode_action){.type = BT_DECODE_EXIT};
        return true;
    }
    return false;
}

/* ---- introspection ---- */

void bt_decode_core_census(const struct bt_decode_core *core, struct bt_census *out) {
    bt_kv_pool_census(core->pool, out);
}

const struct bt_kv_recv_counters *bt_decode_core_kv_counters(const struct bt_decode_core *core) {
    return bt_kv_recv_counters(core->recv);
}

const struct bt_kv_recv *bt_decode_core_kv_recv(const struct bt_decode_core *core) {
    return core->recv;
}

uint32_t bt_decode_core_n_attached(const struct bt_decode_core *core) {
    return bt_ledger_n_attached(core->ledger);
}

bool bt_decode_core_is_idle(const struct bt_decode_core *core) {
    return !core->n_active && !core->step_out;
}

bool bt_decode_core_is_valid(const struct bt_decode_core *core) {
    uint32_t n_active = 0, n_bound = 0;
    for (uint32_t i = 0; i < core->n_seqs; i++) {
        const struct bt_decode_seq *seq = &core->seqs[i];
        n_active += seq->state != BT_DECODE_FREE;
        n_bound += seq->hold.n_reserved;
        if (seq->state == BT_DECODE_FREE ? seq->hold.n_pages || seq->hold.n_reserved || seq->in_step
                                         : !seq->job->held || seq->hold.n_pages > core->max_pages)
            return false;
        if (seq->state == BT_DECODE_RUNNING &&
            (seq->n_computed + 1 != seq->job->n_tokens ||
             seq->hold.n_pages * BT_PAGE_TOKENS < seq->n_computed))
            return false;
    }
    struct bt_census census;
    bt_kv_pool_census(core->pool, &census);
    return n_active == core->n_active && n_bound == census.reserved &&
           bt_kv_pool_is_valid(core->pool) && bt_kv_recv_is_valid(core->recv) &&
           bt_ledger_is_valid(core->ledger);
}
